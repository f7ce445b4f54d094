"""What is measured of a window of packed samples: of all together, and of each channel.

Whole numbers are measured by audioop, which is part of Python, and from 3.13 on a package of the
same code: a tenth of a millisecond a window, where numpy would be 12 MB in the process of every
stream. What audioop does not know (floats, big-endian, 24 and 20 bits in other places) is numpy's.

Thread: the pusher's.
"""

import re
import warnings
from array import array
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from capstand.audio.block import SampleFormat

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import audioop

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

WIDTHS = {SampleFormat.S16_LE: 2, SampleFormat.S24_3LE: 3, SampleFormat.S32_LE: 4}
NARROW, WIDE = 2, 4
FULL = 2.0**31
PIECE = 8192
"""So many samples are widened at once."""
MOST = 1e3
"""Floats may be anything; what is more than this is no sound, and its square no number."""


class Channel(NamedTuple):
    """Highest and lowest sample of one channel and their mean, as shares of full scale.
    ``long_stays`` counts how often it stays at full scale of ``bits`` for at least ``frames``."""

    high: float
    low: float
    mean: float
    long_stays: Callable[[int, int], int]


class Window(Protocol):
    """A window: its peak and its mean square, as shares of full scale and of its square."""

    peak: float

    @property
    def mean_square(self) -> float: ...
    def channels(self, count: int) -> list[Channel]: ...
    def floats(self, count: int) -> "tuple[npt.NDArray[np.float32], float]":
        """(frames, ``count`` channels), and the number that is full scale."""
        ...


def window(samples: bytes | memoryview, sample: SampleFormat) -> Window:
    width = WIDTHS.get(sample)
    return _Floats(samples, sample) if width is None else _Whole(samples, width)


class _Whole:
    """Widened piece by piece: for a large block of memory malloc asks the system each time."""

    def __init__(self, samples: bytes | memoryview, width: int) -> None:
        self._samples, self._width = samples, width
        lowest = highest = 0
        squares = 0.0
        for at in range(0, len(samples), PIECE * width):
            piece = self._widened(samples[at : at + PIECE * width])
            low, high = audioop.minmax(piece, WIDE)
            lowest, highest = min(lowest, low), max(highest, high)
            squares += (audioop.rms(piece, WIDE) / FULL) ** 2 * len(piece)
        self.peak = max(highest, -lowest) / FULL
        self.mean_square = squares / max(1, len(samples) // width * WIDE)

    def _widened(self, samples: bytes | memoryview) -> bytes | memoryview:
        return samples if self._width == WIDE else audioop.lin2lin(samples, self._width, WIDE)

    def channels(self, count: int) -> list[Channel]:
        narrow = self._width == NARROW
        samples = self._samples if narrow else self._widened(self._samples)
        together = array("h" if narrow else "i", bytes(samples))
        return [self._channel(together[at::count]) for at in range(count)]

    def _channel(self, samples: "array[int]") -> Channel:
        size = samples.itemsize
        wide = samples if size == WIDE else audioop.lin2lin(samples, size, WIDE)
        low, high = audioop.minmax(wide, WIDE)
        mean = audioop.avg(wide, WIDE)
        return Channel(high / FULL, low / FULL, mean / FULL, partial(_stays_of_16_bits, samples))

    def floats(self, count: int) -> "tuple[npt.NDArray[np.float32], float]":
        import numpy as np

        wide = self._widened(self._samples)
        return np.frombuffer(wide, "<i4").astype(np.float32).reshape(-1, count), FULL


class _Floats:
    def __init__(self, samples: bytes | memoryview, sample: SampleFormat) -> None:
        import numpy as np

        from capstand.dsp.convert import to_float32

        self._values = values = to_float32(samples, sample)
        self.peak = max(float(values.max()), -float(values.min())) if len(values) else 0.0
        if self.peak > MOST:
            self._values, self.peak = np.clip(values, -MOST, MOST), MOST

    @property
    def mean_square(self) -> float:
        return float(self._values @ self._values) / max(1, len(self._values))

    def channels(self, count: int) -> list[Channel]:
        import numpy as np

        found = []
        for samples in np.ascontiguousarray(self._values.reshape(-1, count).T):
            high, low = float(samples.max()), float(samples.min())
            found.append(Channel(high, low, float(samples.mean()), partial(_stays, samples)))
        return found

    def floats(self, count: int) -> "tuple[npt.NDArray[np.float32], float]":
        return self._values.reshape(-1, count), 1.0


def _stays_of_16_bits(samples: "array[int]", bits: int, frames: int) -> int:
    """By the two bytes of each: where both are those of full scale, a byte is set."""
    assert bits == 16
    size = samples.itemsize
    top = samples.tobytes() if size == NARROW else audioop.lin2lin(samples, size, NARROW)
    high, low = top[1::2].translate(_HIGH), top[::2].translate(_LOW)
    both = int.from_bytes(high, "little") & int.from_bytes(low, "little")
    there = both.to_bytes(len(high), "little")
    return sum(1 for _ in re.finditer(rb"[^\0]{%d,}" % frames, there))


def _table(plus: bytes, minus: bytes) -> bytes:
    """Which bytes belong to full scale: 1 above, 2 below."""
    return bytes(1 * (one in plus) | 2 * (one in minus) for one in range(256))


_HIGH, _LOW = _table(b"\x7f", b"\x80"), _table(b"\xff", b"\x00\x01")


def _stays(samples: "npt.NDArray[np.float32]", bits: int, frames: int) -> int:
    import numpy as np

    there = np.zeros(len(samples) + 2, np.int8)
    there[1:-1] = np.abs(samples) >= 1.0 - 2.0 ** (1 - bits)
    turns = np.flatnonzero(np.diff(there))
    return int(np.count_nonzero(turns[1::2] - turns[::2] >= frames))
