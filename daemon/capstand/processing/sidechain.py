"""A sidechain: another stream's captured sound, for a processor that listens to it.

The process of a chain is given that stream's captured ring, to read only, and each processor reads
it at its own pace, as anybody reads a ring: what has come is there, what was lost or lapped is not.
The ring's memory outlasts the process that writes it, so a stream that starts again is heard again.
Only a reload makes another ring, and then another Sidechain.

Threads: a Reader is of the thread of its processor.
"""

import os
import weakref
from collections.abc import Iterator

from capstand.audio.block import AudioFormat, Block, joined
from capstand.audio.ring import Reader
from capstand.dsp.convert import to_float32
from capstand.processing.processor import Moment, Samples

BACK_S = 2.0
"""A reader begins with what came so long before it."""


class Sidechain:
    """``descriptor`` of the ring is its own now, and closed when nobody refers to it any more.
    ``period_ms`` is what the stream asks of its card, which may grant twice as much."""

    def __init__(self, descriptor: int, audio: AudioFormat, period_ms: float) -> None:
        self.descriptor = descriptor
        self.audio = audio
        self.period_ms = period_ms
        weakref.finalize(self, os.close, descriptor).atexit = False

    def has_ring(self, descriptor: int) -> bool:
        return os.path.sameopenfile(self.descriptor, descriptor)


class SidechainReader:
    """One reader of it."""

    def __init__(self, sidechain: Sidechain) -> None:
        self._audio = sidechain.audio
        self._reader = Reader(sidechain.descriptor, self._audio, keep=None)
        self._reader.go_back(max(0, self._reader.captured - round(BACK_S * self._audio.rate_hz)))

    def read(self) -> Iterator[tuple[Samples, Moment]]:
        """All that has come since, in as few pieces as it has gaps."""
        blocks: list[Block] = []
        for block in self._reader.blocks():
            if blocks and block.first_frame != blocks[-1].end_frame:
                yield self._piece(blocks)
                blocks = []
            blocks.append(block)
        if blocks:
            yield self._piece(blocks)

    def _piece(self, blocks: list[Block]) -> tuple[Samples, Moment]:
        whole = joined(blocks)
        samples = to_float32(whole.samples, self._audio.sample).reshape(-1, self._audio.channels)
        return samples, Moment(whole.captured_at_ns, self._reader.ns_per_frame)
