"""A chain in the process of the one live sink that gets what it makes, without a process or a
wake-up of its own.

    captured ring → Hosted → the sink's ``write``
                      └────→ processed ring (who taps it; and a chain's process that comes later)

So works what can neither hang nor end a process (``ProcessorType.hosted``): nobody minds it here.
The sink takes it for a Reader of the processed ring: the blocks that it gives are those that it
publishes, and what the captured ring had no room for counts as missed once the block behind it
comes. Once the chain has left for a process of its own, it is no more than that Reader.

Thread: the sink's push thread.
"""

import logging
import time
from collections.abc import Sequence

from capstand.audio.block import Block
from capstand.audio.ring import Reader
from capstand.audio.wake import WakeUp
from capstand.host.logs import log_event
from capstand.processing.chain import Chain, be_silent, concern_of
from capstand.processing.orders import Set, Work
from capstand.processing.passage import Batch, Batches, Rings
from capstand.processing.processor import Moment


class Hosted:
    """``descriptors``: the processed ring, for reading; the captured one; the processed one, for
    writing, which is closed when the chain leaves; an eventfd for each quarter of that. Nobody
    waits for its blocks: who taps it looks now and then.
    """

    def __init__(self, work: Work, descriptors: Sequence[int]) -> None:
        be_silent()
        self._heard, captured, processed, quarter_full = descriptors
        self._rings = rings = Rings.of(work, captured, processed)
        rings.ring.wakes(rests=(WakeUp(quarter_full),))
        self._reader = Reader(captured, work.audio)
        self._batches = Batches(self._reader, work.gather_frames)
        self._chain: Chain | None = Chain(work.settings, rings.shape, self._say)
        self._ended_at: int | None = None
        self.until: int | None = None
        """What is captured from the block of this number on is not for it."""
        self.captured = self.next_frame = self.missed = 0
        self.has_news = False
        """A processor fails, or works again; whoever tells that takes it back."""

    @property
    def number(self) -> int:
        """Of the next block of the ring that it reads."""
        return self._reader.number

    @property
    def ns_per_frame(self) -> float:
        return self._reader.ns_per_frame

    @property
    def drift_ppm(self) -> float:
        return self._reader.drift_ppm

    @property
    def settled(self) -> bool:
        return self._reader.settled

    def join(self) -> None:
        """What was captured until now was not meant for it; who else reads has missed that."""
        reader = self._reader
        reader.join()
        self.captured, self.next_frame = reader.captured, reader.next_frame
        if self._chain is not None and reader.number:
            empty = Block(reader.next_frame, 0, reader.due_ns, b"", self._rings.out)
            self._rings.publish(empty, reader.captured, reader)

    newest = False
    """As a Reader's; it is asked until it has no more."""

    def read(self) -> Block | None:
        """The next block; None where there is none yet."""
        if self._chain is None:
            block = self._reader.read()
            return None if block is None else self._comes(block, self._reader.captured)
        batch = self._batches.take(self.until)
        return None if batch is None else self._processed(batch, self._chain)

    def rest(self) -> Block | None:
        """What is shorter than it should be, as nothing follows."""
        batch = self._batches.rest()
        return None if batch is None or self._chain is None else self._processed(batch, self._chain)

    def leave(self) -> Block | None:
        """Another process goes on where this ends: at the end of the block that is returned."""
        block = self.rest()
        self._chain = None
        self._rings.ring.close()
        self._reader.close()
        self._reader = Reader(self._heard, self._rings.out)
        return block

    def set(self, order: Set) -> None:
        """From the next block on; not for a chain that has left."""
        if self._chain is not None:
            self._chain.change(order.settings)
            self._batches.frames = order.gather_frames

    def figures(self) -> dict[str, object]:
        """What is told of a chain; "concern": why sound is not processed as it should be."""
        if self._chain is None:
            return {}
        stages = self._chain.figures()
        return {
            "delay_ms": round(self._chain.delay_frames * 1000 / self._rings.audio.rate_hz, 3),
            "missed_frames": self.missed,
            "stages": stages,
            "concern": concern_of(stages),
        }

    def _processed(self, batch: Batch, chain: Chain) -> Block:
        rings, reader, block = self._rings, self._reader, batch.block
        gap = self._ended_at is not None and block.first_frame != self._ended_at
        self._ended_at = block.end_frame
        moment = Moment(block.captured_at_ns, reader.ns_per_frame)
        now_ns = time.monotonic_ns()
        out = chain.process(rings.floats(block.samples), now_ns, moment, gap=gap)
        done = rings.processed_block(block, out, chain.delay_frames)
        rings.publish(done, batch.captured_before, reader)
        return self._comes(done, batch.captured_before + block.frames)

    def _comes(self, block: Block, captured: int) -> Block:
        self.missed += captured - block.frames - self.captured
        self.captured, self.next_frame = captured, block.end_frame
        return block

    def _say(self, words: str) -> None:
        log_event(logging.WARNING, "%s", words, KIND="process")
        self.has_news = True
