"""The level meter: RMS and peak of all channels together, in dB below full scale (dBFS).

0 dBFS is the largest value the format holds, for the peak and for the RMS alike (a full-scale sine
reads −3.0 dBFS RMS). Thread: the pusher updates, any may read.
"""

import math
from typing import TYPE_CHECKING

from capstand.audio.block import AudioFormat, SampleFormat
from capstand.dsp import measure
from capstand.dsp.defects import Defects

if TYPE_CHECKING:
    from capstand.dsp.loudness import LoudnessWatch

FLOOR_DBFS = -120.0
WINDOW_S = 0.4
MOST_BYTES = 1 << 22
"""What is gathered for one window where a second has very much sound."""


class Meter:
    """``level_dbfs`` and ``peak_dbfs`` of the last full window; None before the first. ``zeros_s``:
    for how long every sample has been exactly zero, which no open microphone is, however quiet.
    ``defects``, where given, looks at the channels apart, ``loudness`` measures that.

    Blocks are gathered and measured once a window: forty small calls, each with cold caches, cost
    more than all else that happens to a block.
    """

    def __init__(
        self,
        audio: AudioFormat,
        defects: Defects | None = None,
        loudness: "LoudnessWatch | None" = None,
    ) -> None:
        self.level_dbfs: float | None = None
        self.peak_dbfs: float | None = None
        self.zeros_s = 0.0
        self._defects = defects
        self._loudness = loudness
        self._sample = audio.sample
        self._channels = audio.channels
        self._frame_bytes = audio.frame_bytes
        self._bytes_per_s = audio.rate_hz * audio.frame_bytes
        frames = min(round(WINDOW_S * audio.rate_hz), MOST_BYTES // audio.frame_bytes)
        self._window_bytes = frames * audio.frame_bytes
        self._gathered = bytearray(self._window_bytes)
        self._bytes = 0

    def update(self, samples: bytes) -> None:
        begin, end = self._bytes, self._bytes + len(samples)
        self._gathered[begin:end] = samples
        self._bytes = end
        if end >= self._window_bytes:
            with memoryview(self._gathered) as gathered, gathered[:end] as window:
                self._measure(window)
            self._bytes = 0

    def _measure(self, samples: memoryview) -> None:
        window = measure.window(samples, self._sample)
        peak = window.peak
        self.zeros_s = 0.0 if peak else self.zeros_s + len(samples) / self._bytes_per_s
        self.level_dbfs = dbfs(math.sqrt(window.mean_square))
        self.peak_dbfs = dbfs(peak)
        if self._defects is not None:
            self._defects.window(window, len(samples) // self._frame_bytes)
        if self._loudness is not None:
            self._loudness.window(*window.floats(self._channels))


def dbfs(amplitude: float) -> float:
    return round(20 * math.log10(amplitude), 1) if amplitude > 1e-6 else FLOOR_DBFS


def mean_square(samples: bytes, sample: SampleFormat) -> float:
    """The mean power of all channels together; 1.0 is that of full scale."""
    return measure.window(samples, sample).mean_square
