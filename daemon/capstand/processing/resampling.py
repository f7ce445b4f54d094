"""Another rate, by libsoxr (``dsp/resample.py``).

libsoxr holds back so many milliseconds, and then gives many frames at once. As much silence as it
holds back at most is put before what it gives: by the count of frames nothing is missing then, as
many come out of every block as the rates say, and the delay is a number that is known.

Thread: the chain's.
"""

import math
from functools import cache
from typing import Any

import numpy as np

from capstand.audio.block import SampleFormat
from capstand.dsp.resample import Resampler
from capstand.processing.processor import Samples, Shape

PROBE_S, PROBE_STEP_S = 1.0, 0.001


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
        self._resampler = _resampler(rate_hz, self._to_hz, channels)
        self._waiting = np.zeros((self.delay_frames, channels), np.float32)

    def change(self, settings: Any) -> bool:
        return False

    def figures(self) -> dict[str, object]:
        return {}


def _resampler(rate_hz: int, to_hz: int, channels: int) -> Resampler:
    return Resampler(rate_hz, to_hz, channels, SampleFormat.FLOAT_LE, steady=False)


@cache
def _held_back(rate_hz: int, to_hz: int) -> int:
    """At most, in frames that come out: it is seen at each step of a second of silence, and may be
    more by a step in between."""
    resampler, step = _resampler(rate_hz, to_hz, 1), max(1, round(rate_hz * PROBE_STEP_S))
    silence, given, most = bytes(4 * step), 0, 0
    for taken in range(step, round(rate_hz * PROBE_S) + 1, step):
        given += len(resampler.process(silence)) // 4
        most = max(most, taken * to_hz // rate_hz - given)
    return most + math.ceil(step * to_hz / rate_hz) + 2
