"""Dither: to fewer bits without distortion.

Two even random numbers of one step each, added before rounding, make the error a noise that knows
nothing of the sound: its mean and its power are always the same. Source: S. Lipshitz,
R. Wannamaker, J. Vanderkooy, "Quantization and dither: a theoretical survey", JAES 40 (1992).

Thread: the chain's.
"""

from typing import Any

import numpy as np

from capstand.processing.linear import fitting
from capstand.processing.processor import Samples, Shape


class Dither:
    """What comes out are whole steps of 2^(1 − bits), within what such integers hold."""

    delay_frames = 0
    stays_finite = True

    def __init__(self, bits: int, shape: Shape) -> None:
        self._scale = np.float32(2.0 ** (bits - 1))
        self._random = np.random.Generator(np.random.SFC64())
        self._out = np.empty((0, shape.channels), np.float32)

    def process(self, block: Samples) -> Samples:
        self._out = out = fitting(self._out, len(block))
        first, second = self._random.random((2, *block.shape), np.float32)
        np.multiply(block, self._scale, out=out)
        first -= second
        out += first
        np.rint(out, out=out)
        np.minimum(out, self._scale - 1, out=out)  # np.clip takes longer than both
        np.maximum(out, -self._scale, out=out)
        return np.divide(out, self._scale, out=out)

    def reset(self) -> None:
        pass

    def change(self, settings: Any) -> bool:
        return False

    def figures(self) -> dict[str, object]:
        return {}
