"""The level meter: RMS and peak of all channels together, in dB below full scale (dBFS).

0 dBFS is the largest value the format holds, for the peak and for the RMS alike (a full-scale sine
reads −3.0 dBFS RMS). Thread: the pusher updates, any may read.
"""

import math

import numpy as np

from capstand.block import AudioFormat, SampleFormat
from capstand.dsp.convert import to_int32

FLOOR_DBFS = -120.0
WINDOW_S = 0.2


class Meter:
    """``level_dbfs`` and ``peak_dbfs`` of the last full window; None before the first."""

    def __init__(self, audio: AudioFormat) -> None:
        self.level_dbfs: float | None = None
        self.peak_dbfs: float | None = None
        self._sample = audio.sample
        self._window = round(WINDOW_S * audio.rate_hz) * audio.channels
        self._seen = 0
        self._square = 0.0
        self._peak = 0.0

    def update(self, samples: bytes) -> None:
        if self._sample is SampleFormat.S16_LE:
            values = np.frombuffer(samples, "<i2").astype(np.float32)
            full = 2.0**15
        else:
            values = to_int32(samples, self._sample).astype(np.float32)
            full = 2.0**31
        self._square += float(np.dot(values, values)) / (full * full)
        self._peak = max(self._peak, float(values.max()) / full, -float(values.min()) / full)
        self._seen += len(values)
        if self._seen >= self._window:
            self.level_dbfs = _dbfs(math.sqrt(self._square / self._seen))
            self.peak_dbfs = _dbfs(self._peak)
            self._seen = 0
            self._square = self._peak = 0.0


def _dbfs(amplitude: float) -> float:
    return round(20 * math.log10(amplitude), 1) if amplitude > 1e-6 else FLOOR_DBFS
