"""Whole blocks of 10 ms for an engine that takes nothing else, from blocks of any length.

Engines for speech are built for frames of 10 ms. Some take other lengths without a word and give
out something else, one ends the process. A card's period may be 1024 frames, so what is left over
waits for the next block; that as many frames come out as go in, the output begins with silence.

The silence is as short as can be: one frame less than 10 ms where blocks may have any length. Where
every block is known to be a multiple of ``grain_frames``, it is 10 ms less what both have in
common, so nothing at all for blocks of 10, 20 or 40 ms.

Thread: the chain's.
"""

from collections.abc import Callable
from math import gcd

import numpy as np

from capstand.processing.processor import Samples

LOUDEST = 8.0
"""+18 dBFS. What is beyond is no sound; engines square it."""
SANE = 1e12
"""A block's sum of squares; one with NaN in it is not below anything."""


class WholeBlocks:
    """Hands ``engine`` blocks of a multiple of ``frames``, ``channels`` wide, and gives out as many
    frames as it was given, ``delay_frames`` later. The engine returns as many frames, ``out`` wide
    (0: as wide), of which the sound is ``engine_delay`` later.
    """

    def __init__(
        self,
        engine: Callable[[Samples], Samples],
        frames: int,
        channels: int,
        *,
        out: int = 0,
        engine_delay: int = 0,
        grain_frames: int = 1,
    ) -> None:
        wait_frames = frames - gcd(frames, grain_frames)
        self.delay_frames = wait_frames + engine_delay
        self._engine = engine
        self._engine_delay = engine_delay
        self._frames = frames
        self._empty = np.zeros((0, channels), np.float32)
        self._silence = np.zeros((wait_frames, out or channels), np.float32)
        self._hush = 0
        self._left, self._ready = self._empty, self._silence

    def reset(self, silent_frames: int = 0) -> None:
        """Lets go of all sound. What the engine has learnt it keeps, and what it holds of the sound
        of before is silence when it comes out, as are the ``silent_frames`` that it gets next."""
        self._left, self._ready = self._empty, self._silence
        self._hush = self._engine_delay + silent_frames

    def process(self, block: Samples) -> Samples:
        frames = len(block)
        if len(self._left):
            block = np.concatenate((self._left, block))
        whole = len(block) - len(block) % self._frames
        self._left = block[whole:].copy() if whole < len(block) else self._empty
        made = self._engine(np.ascontiguousarray(block[:whole])) if whole else self._silence[:0]
        if self._hush and whole:
            made[: self._hush] = 0
            self._hush = max(0, self._hush - whole)
        if len(self._ready):
            made = np.concatenate((self._ready, made))
        self._ready = made[frames:].copy()
        return made[:frames]


def sane(block: Samples) -> bool:
    """Whether every sample is a number that can be squared."""
    flat = block.reshape(-1)
    return bool(flat.dot(flat) < SANE)


def mended(block: Samples) -> Samples:
    """The block, silent where it is no number and where it is louder than can be."""
    return block if sane(block) else np.where(np.abs(block) < LOUDEST, block, np.float32(0))
