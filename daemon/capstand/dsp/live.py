"""A stream on its way to a live peer: at its rate and in its format, locked to CLOCK_MONOTONIC.

Samples stay integers all the way (16 bits where the card gives 16, else 32), so that a block costs
little more than the resampler itself. Where the card gives what the track takes (S16_LE, as many
channels), bytes go in and out as they are, and numpy is not even loaded. A gap is closed before the
resampler: the last sample dies away over ``FADE_MS``, silence follows, the new sound fades in; so
nothing clicks, and the resampler runs on without noticing.

Thread: the sink's.
"""

import math
from array import array
from collections.abc import Callable

from capstand.audio.block import NS_PER_S, AudioFormat, Block, SampleFormat
from capstand.audio.clock import Pace
from capstand.dsp.catchup import FADE_MS
from capstand.dsp.ratelock import RateLoop
from capstand.dsp.resample import Resampler

Convert = Callable[[bytes], bytes]


class LiveTrack:
    """Turns blocks of ``audio`` into ``sample`` of ``rate_hz`` and ``channels``; ``pace`` is that
    of the stream's clock. ``loop`` tells how the lock stands.
    """

    def __init__(
        self,
        audio: AudioFormat,
        rate_hz: int,
        channels: int,
        pace: Pace,
        sample: SampleFormat = SampleFormat.S16_LE,
    ) -> None:
        s16 = SampleFormat.S16_LE
        inner = s16 if audio.sample is s16 else SampleFormat.S32_LE
        self.loop = RateLoop(audio.rate_hz, rate_hz)
        self._rate_hz = audio.rate_hz
        self._pace = pace
        self._unpacked: Convert | None = None
        self._rounded: Convert | None = None
        if (audio.sample, audio.channels) != (inner, channels) or sample is not inner:
            self._unpacked, self._rounded = _conversions(audio, channels, inner, sample)
        self._resampler = Resampler(audio.rate_hz, rate_hz, channels, inner, moving=True)
        self._channels = channels
        self._code = "h" if inner is s16 else "i"
        self._frame_bytes = channels * inner.size_bytes
        self._last = bytes(self._frame_bytes)  # the newest frame
        self._fade_in = False
        fade_frames = round(FADE_MS * audio.rate_hz / 1000)
        step = math.pi / (fade_frames - 1)
        self._bend = [0.5 * math.cos(number * step) for number in range(fade_frames)]

    def put(self, block: Block) -> tuple[bytes, int]:
        """The block, resampled to keep pace with the time at which it was captured; and when the
        first frame of that was.
        """
        loop, pace, frames = self.loop, self._pace, block.frames
        samples, captured_at_ns = block.samples, block.captured_at_ns
        first_ns = captured_at_ns - round(loop.held_s * NS_PER_S)
        if self._unpacked is not None:
            samples = self._unpacked(samples)
        if self._fade_in:
            samples = self._faded_in(samples)
        end_ns = captured_at_ns + round(frames * pace.ns_per_frame)
        ratio = loop.ratio(frames, end_ns, pace.drift_ppm, pace.settled)
        return self._resampled(samples, frames, ratio), first_ns

    def bridge(self, duration_ms: float) -> bytes:
        """What closes a gap: the sound before it dies away, then silence, at least ``FADE_MS`` in
        all; the next block fades in and begins a new timeline.
        """
        self.loop.restart()
        self._fade_in = True
        last, bend = array(self._code, self._last), self._bend
        fading = array(self._code, [int(one * (0.5 + half)) for half in bend for one in last])
        frames = max(len(bend), math.ceil(duration_ms * self._rate_hz / 1000))
        silence = bytes((frames - len(bend)) * self._frame_bytes)
        return self._resampled(fading.tobytes() + silence, frames, self.loop.bridged(frames))

    def _faded_in(self, samples: bytes) -> bytes:
        self._fade_in = False
        rising, channels = array(self._code, samples), self._channels
        for number in range(min(len(self._bend) * channels, len(rising))):
            rising[number] = int(rising[number] * (0.5 - self._bend[number // channels]))
        return rising.tobytes()

    def _resampled(self, samples: bytes, frames: int, ratio: float) -> bytes:
        self._last = samples[-self._frame_bytes :]
        self._resampler.move(ratio, round(frames / ratio))
        given = self._resampler.process(samples)
        self.loop.gave(len(given) // self._frame_bytes, frames / self._rate_hz)
        return given if self._rounded is None else self._rounded(given)


def _conversions(
    audio: AudioFormat, channels: int, inner: SampleFormat, sample: SampleFormat
) -> tuple[Convert | None, Convert | None]:
    """Before the resampler, from ``audio`` to ``channels`` of ``inner``; behind it from that to
    ``sample``. None where there is nothing to convert.
    """
    import numpy as np  # 12 MB that the usual card does without

    from capstand.dsp.channels import to_channels
    from capstand.dsp.convert import convert, to_int32

    narrow = inner is SampleFormat.S16_LE
    whole = audio.sample is inner and audio.channels == channels

    def unpacked(packed: bytes) -> bytes:
        flat = np.frombuffer(packed, "<i2") if narrow else to_int32(packed, audio.sample)
        return to_channels(flat.reshape(-1, audio.channels), channels).tobytes()

    def rounded(wide: bytes) -> bytes:
        return convert(wide, inner, sample)

    return None if whole else unpacked, None if sample is inner else rounded
