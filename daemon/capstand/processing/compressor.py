"""A compressor: what is above a threshold is made softer by a ratio.

The level is the mean square of the loudest channel over 1 ms (``HOP_MS``), counted from the first
frame on, so that it does not matter where a block ends. The gain that the level asks for follows in
dB by one pole, another for less gain (attack) than for more (release), and is a straight line from
hop to hop. A hop is known at its end: the gain comes 1 to 2 ms late, and the sound not at all.

Thread: the chain's. Source: D. Giannoulis, M. Massberg, J. Reiss, "Digital dynamic range compressor
design", JAES 60 (2012): the soft knee, and smoothing behind the gain computer.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from capstand.processing.linear import fitting, multiply
from capstand.processing.processor import Samples, Shape

Values = npt.NDArray[np.float64]
HOP_MS = 1.0
SILENT = 1e-12
"""A mean square of -120 dB, which is below any threshold."""


class Curve:
    """The static curve: how much gain, in dB, each level gets."""

    def __init__(self, threshold_dbfs: float, ratio: float, knee_db: float) -> None:
        self._begin, self._slope, self._knee = threshold_dbfs - knee_db / 2, 1 / ratio - 1, knee_db

    def gains_db(self, levels_dbfs: Values) -> Values:
        over = np.maximum(levels_dbfs - self._begin, 0.0)
        if not self._knee:
            return self._slope * over
        bent = np.minimum(over, self._knee)  # how far into the knee
        return self._slope * (bent * bent / (2 * self._knee) + over - bent)


class Compressor:
    """``makeup_db`` is added to all."""

    delay_frames = 0
    stays_finite = True
    _at: int
    """In the hop that has begun; ``_power`` is what it has so far, by channel."""
    _power: Values
    _before_db: float
    """The gain at the end of the hop before the last; ``_gain_db``: of the last."""
    _gain_db: float

    def __init__(
        self, curve: Curve, attack_ms: float, release_ms: float, makeup_db: float, shape: Shape
    ) -> None:
        self._curve = curve
        self._makeup_db = makeup_db
        self._hop = max(1, round(shape.rate_hz * HOP_MS / 1000))
        hop_ms = self._hop * 1000 / shape.rate_hz
        self._attack, self._release = (
            math.exp(-hop_ms / one) if one else 0.0 for one in (attack_ms, release_ms)
        )
        self._ramp = np.arange(self._hop) / self._hop
        self._out = np.empty((0, shape.channels), np.float32)
        self.reset()

    def process(self, block: Samples) -> Samples:
        frames, hop = len(block), self._hop
        first = self._at
        ends = range(hop - first, frames + 1, hop)
        powers = np.square(block, dtype=np.float64)
        starts = [0, *(end for end in ends if end < frames)]
        sums = np.add.reduceat(powers, starts, axis=0)
        sums[0] += self._power
        loudest = sums[: len(ends)].max(axis=1) / hop
        levels_dbfs = 10 * np.log10(np.maximum(loudest, SILENT))
        knots = [self._before_db, gain_db := self._gain_db]
        for wanted_db in self._curve.gains_db(levels_dbfs).tolist():
            pole = self._attack if wanted_db < gain_db else self._release
            gain_db = wanted_db + pole * (gain_db - wanted_db)
            knots.append(gain_db)
        self._at = (first + frames) % hop
        self._power = sums[-1] if len(sums) > len(ends) else np.zeros_like(sums[-1])
        self._before_db, self._gain_db = knots[-2], knots[-1]
        # Over a hop the gain goes from that of the hop before the last to that of the last.
        ends_db = np.array(knots) + self._makeup_db
        lines = ends_db[:-1, None] + np.diff(ends_db)[:, None] * self._ramp
        gains_db = lines.reshape(-1)[first : first + frames]
        self._out = fitting(self._out, frames)
        multiply(block, np.exp(gains_db * (math.log(10) / 20)), self._out)
        return self._out

    def reset(self) -> None:
        self._at = 0
        self._power = np.zeros(self._out.shape[1])
        self._before_db = self._gain_db = 0.0

    def change(self, settings: Any) -> bool:
        return False

    def figures(self) -> dict[str, object]:
        return {"reduction_db": round(-self._gain_db, 1) + 0.0}
