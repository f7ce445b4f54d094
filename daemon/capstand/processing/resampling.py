"""Another rate, by libsoxr (``dsp/resample.py``).

libsoxr holds back some milliseconds, at first and then for ever. So many frames of silence are put
before what it gives: by the count of frames nothing is missing then, as many come out of every
block as the rates say, and the delay is a number that is known (to less than three frames).

Thread: the chain's.
"""

from functools import cache
from typing import Any

import numpy as np

from capstand.audio.block import SampleFormat
from capstand.dsp.resample import Resampler
from capstand.processing.processor import Samples, Shape

PROBE_S = 0.25


class Resampling:
    """From the ``shape``'s rate to ``to_hz``."""

    stays_finite = True
    _waiting: Samples

    def __init__(self, to_hz: int, shape: Shape) -> None:
        self._to_hz = to_hz
        self._shape = shape
        self.delay_frames = _held_back(shape.rate_hz, to_hz)
        self._taken = self._given = 0
        self.reset()

    def process(self, block: Samples) -> Samples:
        self._taken += len(block)
        made = np.frombuffer(self._resampler.process(block.tobytes()), np.float32)
        self._waiting = np.concatenate([self._waiting, made.reshape(-1, self._shape.channels)])
        due = self._taken * self._to_hz // self._shape.rate_hz - self._given
        out, self._waiting = self._waiting[:due], self._waiting[due:]
        self._given += len(out)
        return out

    def reset(self) -> None:
        rate_hz, channels = self._shape
        self._resampler = Resampler(rate_hz, self._to_hz, channels, SampleFormat.FLOAT_LE)
        self._waiting = np.zeros((self.delay_frames, channels), np.float32)

    def change(self, settings: Any) -> bool:
        return False

    def figures(self) -> dict[str, object]:
        return {}


@cache
def _held_back(rate_hz: int, to_hz: int) -> int:
    """In frames that come out; it varies by one with the blocks, by another with where the count of
    frames was when it began."""
    frames = round(rate_hz * PROBE_S)
    resampler = Resampler(rate_hz, to_hz, 1, SampleFormat.FLOAT_LE)
    given = len(resampler.process(bytes(4 * frames))) // 4
    return frames * to_hz // rate_hz - given + 2
