"""Loudness and true peak as EBU R 128 has them, by libebur128 (``ebur128.py``).

The library was the cheapest of those measured: 4 µs for 10 ms of loudness, 40 for true peaks. It is
used in its histogram mode, because the integrated measure otherwise keeps each 100 ms for ever. A
NaN stays in it for good, so what is no number is silence here, and a state that shows one all the
same is made anew.

A stream has a meter only where its configuration says ``loudness = true``: the integrated measure
and the highest true peak are about all that came before, so a meter that began when somebody asks
would have nothing to say; and what nobody wants costs nothing.

Thread: one at a time, a stream's pusher or the chain's; what was read may be had from any.
"""

import math
from ctypes import byref, c_double, c_void_p
from typing import NamedTuple
from weakref import finalize

import numpy as np
import numpy.typing as npt

from capstand.audio.block import AudioFormat
from capstand.config.schema import CaptureConfig
from capstand.dsp import ebur128

FLOOR = -120.0
"""LUFS and dB of what is silent, or not long enough yet."""
_LOUDNESS, _TRUE_PEAK, _HISTOGRAM = 1 | 2 | 4, 16 | 32, 64
_LEFT = 1
_SANE = 1e12
_LOUDEST = 8.0  # +18 dBFS; what is beyond is no sound


LEAD_FRAMES = 32
"""More than the filter of the true peak is long, in frames."""
LOOK_S = 1.0
QUIET_S, QUIET_END_S = 60.0, 3.0
"""Speech has pauses; and a first word ends it."""
LOUD_S, LOUD_END_S = 10.0, 10.0
OVER_END_S = 30.0


class Loudness(NamedTuple):
    """LUFS of the last 0.4 s, the last 3 s, and all since the start; the highest true peak of any
    channel since the one before was told, in dB of full scale. ``FLOOR`` where there is nothing;
    None for a peak that is not measured."""

    momentary_lufs: float
    short_term_lufs: float
    integrated_lufs: float
    true_peak_dbtp: float | None


class LoudnessMeter:
    """Of interleaved float32 frames. Raises OSError where libebur128 is missing."""

    def __init__(self, rate_hz: int, channels: int, *, true_peak: bool = True) -> None:
        library = ebur128.library()
        if library is None:
            raise OSError(ebur128.MISSING)
        self._library = library
        self._shape = (channels, rate_hz)
        self._true_peak = true_peak
        self._peak = 0.0
        self._begin()

    def _begin(self) -> None:
        mode = _LOUDNESS | _HISTOGRAM | (_TRUE_PEAK if self._true_peak else 0)
        state = self._library.ebur128_init(*self._shape, mode)
        if not state:
            raise MemoryError("libebur128")
        self._state = c_void_p(state)
        self._fresh = True
        if self._shape[0] > 2:  # inputs of a card, and not the loudspeakers of a film
            for channel in range(self._shape[0]):
                self._library.ebur128_set_channel(self._state, channel, _LEFT)
        self._end = finalize(self, self._library.ebur128_destroy, byref(self._state))

    def restart(self) -> None:
        """What was heard so far is forgotten."""
        self._end()
        self._peak = 0.0
        self._begin()

    def close(self) -> None:
        """Frees its memory at once."""
        self._end()

    def update(self, block: npt.NDArray[np.float32]) -> None:
        """(frames, channels)."""
        flat = np.ascontiguousarray(block).reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            sane = np.dot(flat, flat) < _SANE
        if not sane:
            flat = np.where(np.abs(flat) < _LOUDEST, flat, np.float32(0))
        if self._fresh:
            self._fresh = False
            self._add(self._before(flat))
        self._add(flat)
        if self._true_peak:
            self._peak = max(self._peak, *map(self._channel_peak, range(self._shape[0])), 0.0)

    def _add(self, flat: npt.NDArray[np.float32]) -> None:
        frames = len(flat) // self._shape[0]
        self._library.ebur128_add_frames_float(self._state, flat.ctypes.data, frames)

    def _before(self, flat: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What may have come before the first sound, its mirror image: out of silence it would
        begin with a step that is not in it, whose overshoot tells a peak of 1 dB too much."""
        begin = flat.reshape(-1, self._shape[0])[: LEAD_FRAMES + 1]
        return np.ascontiguousarray(begin[:0:-1]).reshape(-1)

    def _channel_peak(self, channel: int) -> float:
        value = c_double()
        self._library.ebur128_prev_true_peak(self._state, channel, byref(value))
        return value.value

    def read(self) -> Loudness:
        """As it stands. The true peak begins anew."""
        momentary, short_term, integrated = map(self._ask, ("momentary", "shortterm", "global"))
        if any(map(math.isnan, (momentary, short_term, integrated, self._peak))):
            self.restart()
            momentary = short_term = integrated = FLOOR
        peak, self._peak = self._peak, 0.0
        decibel = max(FLOOR, round(20 * math.log10(peak), 1)) if peak > 1e-6 else FLOOR
        true_peak = decibel if self._true_peak else None
        return Loudness(momentary, short_term, integrated, true_peak)

    def _ask(self, which: str) -> float:
        value = c_double()
        getattr(self._library, f"ebur128_loudness_{which}")(self._state, byref(value))
        return value.value if math.isnan(value.value) else round(max(FLOOR, value.value), 2)


class RunningLoudness:
    """What goes on and on, read once a second. ``heard`` is None before, then the newest, and the
    highest true peak so far. Raises OSError where libebur128 is missing."""

    def __init__(self, rate_hz: int, channels: int) -> None:
        self.heard: tuple[Loudness, float] | None = None
        self._meter = LoudnessMeter(rate_hz, channels)
        self._rate_hz = rate_hz
        self._frames = 0

    def update(self, block: npt.NDArray[np.float32]) -> float:
        """Of shape (frames, channels). Where it was read, how many seconds that covers; else 0."""
        self._meter.update(block)
        self._frames += len(block)
        if self._frames < self._rate_hz * LOOK_S:
            return 0.0
        seconds, self._frames = self._frames / self._rate_hz, 0
        newest = self._meter.read()
        assert newest.true_peak_dbtp is not None
        highest = self.heard[1] if self.heard else FLOOR
        self.heard = newest, max(highest, newest.true_peak_dbtp)
        return seconds

    def figures(self) -> dict[str, float] | None:
        """For ``capstand status --json``. Any thread."""
        if (heard := self.heard) is None:
            return None
        return heard[0]._asdict() | {"max_true_peak_dbtp": heard[1]}


class LoudnessFigures(NamedTuple):
    """As of the last second: ``heard``; the highest true peak of what is reported now; and which of
    the limits are passed for long enough."""

    heard: Loudness
    reported_peak_dbtp: float
    is_quiet: bool
    is_loud: bool
    is_over: bool


class LoudnessWatch:
    """The loudness of what a stream captures, held against the limits of ``capture``; ``figures``
    are None for a second. Raises OSError where libebur128 is missing."""

    def __init__(self, audio: AudioFormat, capture: CaptureConfig) -> None:
        self.figures: LoudnessFigures | None = None
        self.running = RunningLoudness(audio.rate_hz, audio.channels)
        self._limits = capture.quiet_warn_lufs, capture.loud_warn_lufs, capture.true_peak_warn_dbtp
        self._quiet = _Lasting(QUIET_S, QUIET_END_S)
        self._loud = _Lasting(LOUD_S, LOUD_END_S)
        self._over = _Lasting(0.0, OVER_END_S)
        self._reported = FLOOR

    def window(self, values: npt.NDArray[np.float32], full: float) -> None:
        """Of shape (frames, channels), with this full scale."""
        seconds = self.running.update(values if full == 1.0 else values * np.float32(1 / full))
        if seconds and self.running.heard:
            self._judge(self.running.heard[0], seconds)

    def _judge(self, heard: Loudness, seconds: float) -> None:
        quiet_lufs, loud_lufs, over_dbtp = self._limits
        short, peak = heard.short_term_lufs, heard.true_peak_dbtp
        assert peak is not None
        was_over = self._over.on
        self._quiet.update(bool(quiet_lufs) and short < quiet_lufs, seconds)
        self._loud.update(bool(loud_lufs) and short > loud_lufs, seconds)
        self._over.update(bool(over_dbtp) and peak > over_dbtp, seconds)
        self._reported = max(self._reported, peak) if was_over else peak
        states = self._quiet.on, self._loud.on, self._over.on
        self.figures = LoudnessFigures(heard, self._reported, *states)


class _Lasting:
    """What has been so for ``begins_s`` without a break is ``on``, until it has not been so for
    ``ends_s``."""

    def __init__(self, begins_s: float, ends_s: float) -> None:
        self.on = False
        self._limits_s = begins_s, ends_s
        self._other_s = 0.0

    def update(self, there: bool, seconds: float) -> None:
        self._other_s = self._other_s + seconds if there != self.on else 0.0
        if self._other_s and self._other_s >= self._limits_s[self.on]:
            self.on, self._other_s = there, 0.0
