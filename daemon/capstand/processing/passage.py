"""What every owner of a chain does around it: sound comes out of the captured ring, and goes into
the processed one.

A processed block has the frame index of what was captured, ``captured_before`` likewise, and a time
stamp that is earlier by the chain's delay: what the chain misses, its readers miss, to the frame.

Thread: the one that reads the captured ring.
"""

from typing import NamedTuple

from capstand.audio.block import NS_PER_S, AudioFormat, Block, Shape, joined
from capstand.audio.clock import Pace
from capstand.audio.ring import Reader, Ring
from capstand.dsp.convert import from_float, to_float32
from capstand.processing.chain import shapes
from capstand.processing.orders import Work
from capstand.processing.processor import Samples


class Batch(NamedTuple):
    """Captured frames that are worked on at once, and how much had been captured before them."""

    block: Block
    captured_before: int


class Batches:
    """Blocks of ``reader`` put together to ``frames`` at least; a gap, or what the reader missed,
    ends a shorter one."""

    def __init__(self, reader: Reader, frames: int) -> None:
        self.frames = frames
        self._reader = reader
        self._blocks: list[Block] = []
        self._have = self._before = 0

    def take(self, until: int | None) -> Batch | None:
        """The next one; None where there is none yet. What is in the ring from block number
        ``until`` on is not read."""
        reader = self._reader
        while self._have < self.frames or not self._blocks:
            if until is not None and reader.number >= until:
                return None
            block = reader.read()
            if block is None:
                return None
            if not block.frames:
                continue
            before, done = reader.captured - block.frames, self._blocks
            follows = not done or (
                before == self._before + self._have and block.first_frame == done[-1].end_frame
            )
            batch = None if follows else self.rest()
            if not self._blocks:
                self._before = before
            self._blocks.append(block)
            self._have += block.frames
            if batch is not None:
                return batch
        return self.rest()

    def rest(self) -> Batch | None:
        """What is left; it need not wait for more."""
        if not self._blocks:
            return None
        batch = Batch(joined(self._blocks), self._before)
        self._blocks = []
        self._have = 0
        return batch


class Rings(NamedTuple):
    """Where a chain's sound comes from and goes to: descriptors of the ``captured`` ring and of the
    ``processed`` one, ``ring``, which it writes; the ``audio`` that comes in, and the ``channels``
    that go out.
    """

    captured: int
    processed: int
    ring: Ring
    audio: AudioFormat
    channels: int

    @classmethod
    def of(cls, work: Work, captured: int, processed: int) -> "Rings":
        """Those that the work is for; the processed one is written to, and closed with ``ring``."""
        ring = Ring(work.slots, work.slot_bytes, processed)
        shape = Shape(work.audio.rate_hz, work.audio.channels)
        return cls(captured, processed, ring, work.audio, shapes(work.settings, shape)[-1].channels)

    @property
    def shape(self) -> Shape:
        return Shape(self.audio.rate_hz, self.audio.channels)

    @property
    def out(self) -> AudioFormat:
        return self.audio._replace(channels=self.channels)

    def floats(self, samples: bytes) -> Samples:
        """Captured samples, as a chain takes them."""
        return to_float32(samples, self.audio.sample).reshape(-1, self.audio.channels)

    def processed_block(self, block: Block, out: Samples, delay_frames: int) -> Block:
        """What a chain made of a block, so much later."""
        delay_ns = round(delay_frames * NS_PER_S / self.audio.rate_hz)
        heard_at_ns = block.captured_at_ns - delay_ns
        packed = from_float(out, self.audio.sample)
        return Block(block.first_frame, block.frames, heard_at_ns, packed, self.out)

    def publish(self, block: Block, captured_before: int, pace: Pace) -> None:
        """Shows a processed block to its readers."""
        ring = self.ring
        ring.slot()[: len(block.samples)] = block.samples
        at_ns = block.captured_at_ns
        ring.publish(block.first_frame, block.frames, at_ns, captured_before, pace)
