"""A limiter that looks ahead: no sample above the ceiling, ever, and no loop over samples.

The gain that each frame needs is known before the frame goes out, L − 1 frames later. Where nothing
is above the ceiling, the frames are only delayed, to the bit. Otherwise, in logarithmic units,

    needed    what brings the loudest channel of a frame to the ceiling; 0 where it is below
    released  the lowest so far, coming back by a constant step per frame:
              min over the past of (needed − step · n) + step · n, a running minimum
    held      the lowest of the last L
    smooth    the mean of the last L of that: an even attack

and a frame is among the L of every ``held`` that its ``smooth`` is the mean of, so the mean of them
cannot be above what it needs. All of this is in whole numbers (``UNIT_DB``), where sums and minima
do not depend on the order: the result is the same to the bit however the sound is cut into blocks.

It knows samples; what the sound does between them may be a little higher.

Thread: the chain's.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from capstand.processing.delay import DelayLine
from capstand.processing.linear import fitting, multiply
from capstand.processing.processor import Samples, Shape

Units = npt.NDArray[np.int32]
UNIT_DB = 1e-6
_UNITS = 20 / UNIT_DB
ROUNDING = 4e-6
"""Logarithms are float32, whose last digit is 1e-6 where a sample is 10,000 times too loud; so are
gains, and what they make of samples. All of float32 is within 771 dB of the ceiling's: units fit
into 32 bits, of which processors take twice as many at once."""
_HIGHEST, _LOWEST = np.maximum.reduce, np.minimum.reduce


class Limiter:
    """``ceiling``: of full scale."""

    stays_finite = True

    def __init__(
        self, ceiling: float, lookahead_ms: float, release_db_per_s: float, shape: Shape
    ) -> None:
        self._ceiling = np.float32(ceiling)
        if float(self._ceiling) > ceiling:
            self._ceiling = np.nextafter(self._ceiling, np.float32(0))
        self._aim = self._ceiling * np.float32(1 - ROUNDING)
        self._window = max(1, round(lookahead_ms * shape.rate_hz / 1000))
        self.delay_frames = self._window - 1
        self._step = max(1, round(release_db_per_s / shape.rate_hz / UNIT_DB))
        self._line = DelayLine(self.delay_frames, shape.channels)
        self._out = np.empty((0, shape.channels), np.float32)
        self._rise = np.empty(0, np.int32)
        self._forget()

    def process(self, block: Samples) -> Samples:
        self._line.feed(block)
        late = self._line.read()
        self._out = fitting(self._out, len(block))
        if not self._active and self._is_below(block):
            self._out[...] = late
            return self._out
        gain = self._smooth(self._needed(block))
        self._gain = gain
        factors = (gain * (math.log(10) / (self._window * _UNITS))).astype(np.float32)
        multiply(late, np.exp(factors, out=factors), self._out)
        return self._out

    def reset(self) -> None:
        self._line.clear()
        self._forget()

    def change(self, settings: Any) -> bool:
        return False

    def figures(self) -> dict[str, object]:
        lowest_db = int(self._gain.min()) / self._window * UNIT_DB if self._active else 0.0
        return {"reduction_db": round(-lowest_db, 1) + 0.0}

    def _forget(self) -> None:
        self._active = False
        self._gain = np.zeros(1, np.int64)  # of the last block that was too loud
        self._released = np.zeros(self.delay_frames, np.int32)
        self._held = np.zeros(self.delay_frames, np.int32)
        self._level = 0  # of ``released`` at the newest frame

    def _is_below(self, block: Samples) -> bool:
        ceiling = self._ceiling
        return bool(_HIGHEST(block, None) <= ceiling and -_LOWEST(block, None) <= ceiling)

    def _needed(self, block: Samples) -> Units:
        loud = np.abs(block)
        loudest = loud[:, 0]
        for number in range(1, loud.shape[1]):  # numpy takes ten times as long for all in one call
            loudest = np.maximum(loudest, loud[:, number])
        over = np.maximum(loudest, self._aim)
        over /= self._aim
        np.log(over, out=over)
        over *= np.float32(-_UNITS / math.log(10))
        return np.floor(over, out=over).astype(np.int32)

    def _smooth(self, needed: Units) -> npt.NDArray[np.int64]:
        """For each frame that goes out the sum of L gains."""
        if len(self._rise) != len(needed):
            self._rise = self._step * np.arange(1, len(needed) + 1, dtype=np.int32)
        needed -= self._rise
        needed[0] = min(needed[0], self._level)
        released = np.minimum.accumulate(needed)
        released += self._rise
        np.minimum(released, 0, out=released)
        self._level = int(released[-1])
        window, before = self._window, self.delay_frames
        past = np.concatenate([self._released, released])
        held = np.concatenate([self._held, _least(past, window)])
        self._released, self._held = past[len(past) - before :], held[len(held) - before :]
        self._active = bool(self._level or self._released.any() or self._held.any())
        sums = np.zeros(len(held) + 1, np.int64)
        np.cumsum(held, out=sums[1:])
        return sums[window:] - sums[:-window]


def _least(values: Units, window: int) -> Units:
    """The least of each ``window`` neighbours, by windows of doubled width."""
    width = 1
    while 2 * width <= window:
        values = np.minimum(values[:-width], values[width:])
        width *= 2
    rest = window - width
    return np.minimum(values[:-rest], values[rest:]) if rest else values
