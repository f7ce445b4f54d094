"""What is wrong with the sound of single channels: one value only, an offset, clipping.

Theory. *One value*: an open input always brings some noise, so a channel whose samples are all the
same is muted, not connected or stuck. *Offset*: the mean over seconds of what a microphone hears is
nothing; what is not has a fault in its electronics or is read in a wrong format. *Clipping*: a
wave that was cut off stays at full scale for a while. An uncut one that just reaches it does so
too, the longer the lower its tone and the coarser the format (about √step / f), so only a stay that
a tone of 25 Hz would not explain counts.

A look at each channel costs more than the level of all together. So one window in two seconds is
looked at, windows in a row only while something may be wrong, and each that reaches full scale.
What is judged over ``SPAN_S`` needs several of these in a row to begin and to end.

Thread: the pusher; ``figures`` may be read from any.
"""

import math
from typing import NamedTuple

from capstand.audio.block import AudioFormat
from capstand.config.schema import CaptureConfig
from capstand.dsp.measure import Channel, Window

LOOK_S = 2.0
SPAN_S = 5.0
SPANS_TO_BEGIN = 2
SPANS_TO_END = 6
FINEST_BITS = 16
"""Cards of 16 bits call themselves 24 or 32: their full scale is that of 16."""
LOWEST_HZ = 25
SHORTEST_RUN = 3


class Limits(NamedTuple):
    """From where on an offset (as a share of full scale) and clipped peaks a second are too much;
    never where infinite."""

    dc: float
    clipped_per_s: float

    @classmethod
    def of(cls, capture: CaptureConfig) -> "Limits":
        dc_dbfs, clips = capture.dc_warn_dbfs, capture.clip_warn_per_s
        return cls(10 ** (dc_dbfs / 20) if dc_dbfs else math.inf, clips or math.inf)


class ChannelFigures(NamedTuple):
    """One channel. ``peak`` and ``dc`` are shares of full scale; ``constant_s``: for how long every
    sample has been ``value``. None before the first span is over.
    """

    peak: float
    constant_s: float
    value: float
    dc: float | None = None
    clipped_per_s: float | None = None
    is_offset: bool = False
    is_clipping: bool = False


class _Hold:
    """Too much in a row begins it, enough of little ends it."""

    def __init__(self, spans_to_end: int) -> None:
        self.on = False
        self._count = 0
        self._spans_to_end = spans_to_end

    def update(self, value: float, limit: float) -> None:
        changes = value < limit / 2 if self.on else value >= limit
        self._count = self._count + 1 if changes else 0
        if self._count >= (self._spans_to_end if self.on else SPANS_TO_BEGIN):
            self.on, self._count = not self.on, 0


class Defects:
    """``figures`` of each channel; None before the first look."""

    def __init__(self, audio: AudioFormat, limits: Limits) -> None:
        self.figures: tuple[ChannelFigures, ...] | None = None
        channels, bits = audio.channels, min(audio.sample.bits, FINEST_BITS)
        self._limits = limits
        self._bits = bits
        self._rate_hz = audio.rate_hz
        step = 2.0 ** (1 - bits)
        self.full_scale = 1.0 - step
        # A sine of amplitude 1 is above 1 − 1.5 step, which is rounded up, for 2 √(3 step) / 2πf.
        stay_s = math.sqrt(3 * step) / (math.pi * LOWEST_HZ)
        self._run = max(SHORTEST_RUN, math.ceil(stay_s * audio.rate_hz))
        self._unseen = audio.rate_hz * LOOK_S  # frames since the last look
        self._close = False  # something may be wrong: looks at each window
        self._constant = [0] * channels  # frames
        self._value = [math.nan] * channels
        self._span = self._seen = 0  # frames that passed, and those of them that were looked at
        self._sums = [0.0] * channels
        self._runs = [0] * channels
        self._offset = [_Hold(SPANS_TO_BEGIN) for _ in range(channels)]
        self._clipping = [_Hold(SPANS_TO_END) for _ in range(channels)]

    def window(self, window: Window, frames: int) -> None:
        """All samples of so many frames."""
        self._span += frames
        self._unseen += frames
        clipped = window.peak >= self.full_scale
        if clipped or self._close or self._unseen >= LOOK_S * self._rate_hz:
            self._unseen = 0
            self._examine(window.channels(len(self._value)), frames, clipped)
        if self._span >= SPAN_S * self._rate_hz:
            self._evaluate()

    def _examine(self, channels: list[Channel], frames: int, clipped: bool) -> None:
        self._seen += frames
        close = False
        for at, (high, low, mean, long_stays) in enumerate(channels):
            self._sums[at] += mean * frames
            close = close or abs(mean) >= self._limits.dc / 2
            if high == low:
                known = self._constant[at] if high == self._value[at] else 0
                self._constant[at], self._value[at] = known + frames, high
                close = True
            else:
                self._constant[at], self._value[at] = 0, math.nan
                if clipped and max(high, -low) >= self.full_scale:
                    self._runs[at] += long_stays(self._bits, self._run)
        self._close = close
        before = self.figures or (None,) * len(channels)
        self.figures = tuple(
            ChannelFigures(
                max(high, -low),
                self._constant[at] / self._rate_hz,
                self._value[at],
                *(() if (last := before[at]) is None else last[3:]),
            )
            for at, (high, low, *_) in enumerate(channels)
        )

    def _evaluate(self) -> None:
        span_s = self._span / self._rate_hz
        if self.figures is not None and self._seen:
            dc = [one / self._seen for one in self._sums]
            per_s = [count / span_s for count in self._runs]
            figures = []
            for at, one in enumerate(self.figures):
                self._offset[at].update(abs(dc[at]), self._limits.dc)
                self._clipping[at].update(per_s[at], self._limits.clipped_per_s)
                figures.append(
                    one._replace(
                        dc=dc[at],
                        clipped_per_s=per_s[at],
                        is_offset=self._offset[at].on,
                        is_clipping=self._clipping[at].on,
                    )
                )
            self.figures = tuple(figures)
        self._span = self._seen = 0
        self._sums = [0.0] * len(self._sums)
        self._runs = [0] * len(self._runs)
