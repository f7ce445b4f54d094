"""The level meter: RMS and peak of all channels together, in dB below full scale (dBFS).

0 dBFS is the largest value the format holds, for the peak and for the RMS alike (a full-scale sine
reads −3.0 dBFS RMS). Thread: the pusher updates, any may read.
"""

import math

import numpy as np

from capstand.block import AudioFormat, SampleFormat
from capstand.dsp.convert import to_float32

FLOOR_DBFS = -120.0
WINDOW_S = 0.2


class Meter:
    """``level_dbfs`` and ``peak_dbfs`` of the last full window; None before the first. ``zeros_s``:
    for how long every sample has been exactly zero, which no open microphone is, however quiet.

    Blocks are gathered and measured once a window: twenty small calls into numpy, each with cold
    caches, cost more than all else that happens to a block.
    """

    def __init__(self, audio: AudioFormat) -> None:
        self.level_dbfs: float | None = None
        self.peak_dbfs: float | None = None
        self.zeros_s = 0.0
        self._sample = audio.sample
        self._bytes_per_s = audio.rate_hz * audio.frame_bytes
        self._window_bytes = round(WINDOW_S * audio.rate_hz) * audio.frame_bytes
        self._gathered: list[bytes] = []
        self._bytes = 0

    def update(self, samples: bytes) -> None:
        self._gathered.append(samples)
        self._bytes += len(samples)
        if self._bytes >= self._window_bytes:
            self._measure(b"".join(self._gathered))
            self._gathered.clear()
            self._bytes = 0

    def _measure(self, samples: bytes) -> None:
        if self._sample is SampleFormat.S16_LE:
            values = np.frombuffer(samples, "<i2").astype(np.float32)
            full = 2.0**15
        else:
            values, full = to_float32(samples, self._sample), 1.0
        square = float(np.dot(values, values)) / (full * full)
        peak = max(float(values.max()), -float(values.min())) / full
        self.zeros_s = 0.0 if peak else self.zeros_s + len(samples) / self._bytes_per_s
        self.level_dbfs = _dbfs(math.sqrt(square / len(values)))
        self.peak_dbfs = _dbfs(peak)


def _dbfs(amplitude: float) -> float:
    return round(20 * math.log10(amplitude), 1) if amplitude > 1e-6 else FLOOR_DBFS


def mean_square(samples: bytes, sample: SampleFormat) -> float:
    """The mean power of all channels together; 1.0 is that of full scale."""
    values = to_float32(samples, sample)
    return float(np.dot(values, values)) / max(1, len(values))
