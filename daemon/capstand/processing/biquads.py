"""Coefficients of filters of first and second order, by the bilinear transform. No numpy.

Source: R. Bristow-Johnson, "Cookbook formulae for audio EQ biquad filter coefficients"; the Q of
the sections of a Butterworth filter is 1 / (2 cos θ) of its poles' angles.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

BUTTERWORTH_Q = math.sqrt(0.5)


class Biquad(NamedTuple):
    """H(z) = (b0 + b1 z⁻¹ + b2 z⁻²) / (1 + a1 z⁻¹ + a2 z⁻²)."""

    b0: float
    b1: float
    b2: float
    a1: float
    a2: float

    @property
    def order(self) -> int:
        return 2 if self.b2 or self.a2 else 1

    def times(self, gain: float) -> "Biquad":
        return self._replace(b0=self.b0 * gain, b1=self.b1 * gain, b2=self.b2 * gain)


def butterworth(kind: str, order: int, cutoff_hz: float, rate_hz: int) -> tuple[Biquad, ...]:
    """A "high-pass" or "low-pass", 3 dB down at ``cutoff_hz``."""
    first = (_first_order(kind, cutoff_hz, rate_hz),) if order % 2 else ()
    return first + tuple(second_order(kind, cutoff_hz, rate_hz, q) for q in _butterworth_qs(order))


def _butterworth_qs(order: int) -> Iterator[float]:
    """Of the pairs of poles; an odd order has a real pole besides."""
    for number in range(order // 2):
        yield 1 / (2 * math.cos(math.pi * (2 * number + 1 + order % 2) / (2 * order)))


def _first_order(kind: str, cutoff_hz: float, rate_hz: int) -> Biquad:
    k = math.tan(math.pi * cutoff_hz / rate_hz)
    a1 = (k - 1) / (k + 1)
    if kind == "high-pass":
        return Biquad(1 / (1 + k), -1 / (1 + k), 0.0, a1, 0.0)
    return Biquad(k / (1 + k), k / (1 + k), 0.0, a1, 0.0)


def second_order(
    kind: str, frequency_hz: float, rate_hz: int, q: float, gain_db: float = 0.0
) -> Biquad:
    """One of the cookbook's; ``gain_db`` is of "peak", "low-shelf" and "high-shelf"."""
    w = 2 * math.pi * frequency_hz / rate_hz
    cos, alpha, amp = math.cos(w), math.sin(w) / (2 * q), 10 ** (gain_db / 40)
    match kind:
        case "high-pass":
            b = ((1 + cos) / 2, -(1 + cos), (1 + cos) / 2)
        case "low-pass":
            b = ((1 - cos) / 2, 1 - cos, (1 - cos) / 2)
        case "band-pass":
            b = (alpha, 0.0, -alpha)
        case "notch":
            b = (1.0, -2 * cos, 1.0)
        case "peak":
            return _normalised(
                (1 + alpha * amp, -2 * cos, 1 - alpha * amp),
                (1 + alpha / amp, -2 * cos, 1 - alpha / amp),
            )
        case "low-shelf":
            return _shelf(cos, alpha, amp)
        case "high-shelf":
            low = _shelf(-cos, alpha, amp)
            return low._replace(b1=-low.b1, a1=-low.a1)
        case _:
            raise ValueError(kind)
    return _normalised(b, (1 + alpha, -2 * cos, 1 - alpha))


def _shelf(cos: float, alpha: float, amp: float) -> Biquad:
    """A low shelf; with z turned into −z it is the high one."""
    up, down, root = amp + 1, amp - 1, 2 * math.sqrt(amp) * alpha
    b, a = up - down * cos, up + down * cos
    return _normalised(
        (amp * (b + root), 2 * amp * (down - up * cos), amp * (b - root)),
        (a + root, -2 * (down + up * cos), a - root),
    )


def _normalised(b: tuple[float, float, float], a: tuple[float, float, float]) -> Biquad:
    return Biquad(b[0] / a[0], b[1] / a[0], b[2] / a[0], a[1] / a[0], a[2] / a[0])
