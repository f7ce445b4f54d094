"""A stream on its way into a live channel: S16 at the track's rate, locked to CLOCK_MONOTONIC.

Samples stay integers all the way (16 bits where the card gives 16, else 32), so that a block costs
little more than the resampler itself. A gap is closed before the resampler: the last sample dies
away over ``FADE_MS``, silence follows, the new sound fades in; so nothing clicks, and the resampler
runs on without noticing.

Thread: the sink's.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from capstand.audio.block import NS_PER_S, AudioFormat, Block, SampleFormat
from capstand.audio.clock import Pace
from capstand.dsp.catchup import FADE_MS
from capstand.dsp.channels import to_channels
from capstand.dsp.convert import round_to_s16, to_int32
from capstand.dsp.ratelock import RateLoop
from capstand.dsp.resample import Resampler

Samples = npt.NDArray[Any]


class LiveTrack:
    """Turns blocks of ``audio`` into S16 of ``rate_hz`` and ``channels``; ``pace`` is that of
    the stream's clock. ``loop`` tells how the lock stands.
    """

    def __init__(self, audio: AudioFormat, rate_hz: int, channels: int, pace: Pace) -> None:
        self.loop = RateLoop(audio.rate_hz, rate_hz)
        self._audio = audio
        self._channels = channels
        self._pace = pace
        narrow = audio.sample is SampleFormat.S16_LE
        self._dtype = "int16" if narrow else "int32"
        self._resampler = Resampler(audio.rate_hz, rate_hz, channels, self._dtype, moving=True)
        self._fade_frames = round(FADE_MS * audio.rate_hz / 1000)
        self._last = np.zeros((1, channels), np.float64)  # the newest frame
        self._fade_in = False

    def put(self, block: Block) -> tuple[bytes, int]:
        """The block, resampled to keep pace with the time at which it was captured; and when the
        first frame of that was.
        """
        loop = self.loop
        first_ns = block.captured_at_ns - round(loop.inside_s * NS_PER_S)
        samples = self._decoded(block.samples)
        if self._fade_in:
            samples = self._faded_in(samples)
        end_ns = block.captured_at_ns + round(block.frames * self._pace.ns_per_frame)
        ratio = loop.ratio(block.frames, end_ns, self._pace.drift_ppm, self._pace.settled)
        return self._resampled(samples, ratio), first_ns

    def bridge(self, duration_ms: float) -> bytes:
        """What closes a gap: the sound before it dies away, then silence, at least ``FADE_MS`` in
        all; the next block fades in and begins a new timeline.
        """
        self.loop.restart()
        self._fade_in = True
        fade = self._fade_frames
        frames = max(fade, math.ceil(duration_ms * self._audio.rate_hz / 1000))
        gap = np.zeros((frames, self._channels))
        gap[:fade] = self._last * (1 + np.cos(np.linspace(0, np.pi, fade)))[:, None] / 2
        return self._resampled(gap.astype(self._dtype), self.loop.bridged(frames))

    def _decoded(self, packed: bytes) -> Samples:
        if self._dtype == "int16":
            flat = np.frombuffer(packed, "<i2")
        else:
            flat = to_int32(packed, self._audio.sample)
        return to_channels(flat.reshape(-1, self._audio.channels), self._channels)

    def _faded_in(self, samples: Samples) -> Samples:
        self._fade_in = False
        faded = samples.astype(np.float64)
        fade = min(self._fade_frames, len(faded))
        faded[:fade] *= (1 - np.cos(np.linspace(0, np.pi, fade)))[:, None] / 2
        return faded.astype(self._dtype)

    def _resampled(self, samples: Samples, ratio: float) -> bytes:
        self._last = samples[-1:]
        self._resampler.move(ratio, round(len(samples) / ratio))
        given = self._resampler.process(samples)
        self.loop.gave(len(given), len(samples) / self._audio.rate_hz)
        return given.tobytes() if self._dtype == "int16" else round_to_s16(given)
