"""libasound beside pyalsaaudio: what it says of its own faults, and what a device can do.

libasound tells a fault of its configuration (a brace that is missing, a PCM that nobody defined, a
plug-in that is not installed) only to an error handler, by printf's means; what is returned is a
bare errno. A handler per thread gets the arguments as a va_list, which C's own vsnprintf reads.
The global handler, which would get them unreadable, is left alone, and then prints to stderr: so
each thread calls ``record_errors`` before it calls anything of libasound.

What a device can do is the whole of its configuration space, which only one that has not been
configured tells: pyalsaaudio always asks one that it has just set to its own defaults, and
some (snd-aloop) then offer just these. So a PCM of our own is opened for a moment.

Thread: any; with Python's lock released.
"""

import ctypes
import errno
import os
import threading
from typing import NamedTuple, get_type_hints

from capstand.audio.block import SampleFormat
from capstand.config.schema import MOST_CHANNELS, CaptureConfig
from capstand.text import clean

MOST_LINES = 16
RATES_HZ = (
    *(8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000),
    *(128_000, 176_400, 192_000, 250_000, 256_000, 352_800, 384_000, 500_000, 705_600, 768_000),
)
"""Rates that are asked for one by one where a device has some and not all between two bounds."""

_RULES = get_type_hints(CaptureConfig, include_extras=True)
ASKABLE_HZ = _RULES["rate_hz"].__metadata__[0][:2]
ASKABLE_CHANNELS = (1, MOST_CHANNELS)
"""The bounds of what a configuration may ask for."""

_PLAYBACK, _CAPTURE, _NONBLOCK = 0, 1, 1
_INTERLEAVED, _TRIAL_US = 3, 100_000
_LINE_BYTES = 400
_HANDLER = ctypes.CFUNCTYPE(
    None, *(ctypes.c_char_p, ctypes.c_int) * 2, ctypes.c_char_p, ctypes.c_void_p
)
asound = ctypes.CDLL("libasound.so.2")
asound.snd_pcm_format_name.restype = ctypes.c_char_p
_libc = ctypes.CDLL(None)
_vsnprintf = _libc.vsnprintf
_vsnprintf.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]
_heard = threading.local()


def _note(
    _file: bytes, _line: int, _function: bytes, _error: int, template: bytes, values: int
) -> None:
    lines: list[str] = getattr(_heard, "lines", [])
    buffer = ctypes.create_string_buffer(_LINE_BYTES)
    _vsnprintf(buffer, _LINE_BYTES, template, values)
    text = buffer.value.decode(errors="replace")
    if len(lines) == MOST_LINES:
        lines.pop()  # the first ones are the cause, and the last one is told too
    lines.append(clean.line(text.strip()))


_keep = _HANDLER(_note)


def record_errors() -> None:
    """From now on what libasound has to say in this thread is kept for ``last_errors``, not
    printed."""
    _heard.lines = []
    asound.snd_lib_error_set_local(_keep)


def last_errors() -> str:
    """What libasound said since ``record_errors``: the first thing, which is the cause, the file
    that it would have to do with, and the last thing, in one line."""
    lines: list[str] = getattr(_heard, "lines", [])
    chosen = [
        *lines[:1],
        *(line for line in lines if "may be old or corrupted" in line),
        *lines[-1:],
    ]
    return "; ".join(dict.fromkeys(chosen))


def refresh_configuration() -> None:
    """Makes ALSA look again: else a card plugged in later is never found by its name."""
    asound.snd_config_update_free_global()


class Abilities(NamedTuple):
    """What a device can do, also beyond what a configuration may ask for: ``rates_hz`` are single
    rates, or two bounds where ``continuous``; ``formats`` are those that capstand knows, and
    ``others`` those that it does not.
    """

    rates_hz: tuple[int, ...]
    continuous: bool
    channels: tuple[int, ...]
    formats: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def askable_hz(self) -> tuple[int, ...]:
        """The rates that a configuration may ask for."""
        low, high = ASKABLE_HZ
        if self.continuous:
            low, high = max(low, self.rates_hz[0]), min(high, self.rates_hz[-1])
            return (low, high) if low <= high else ()
        return tuple(one for one in self.rates_hz if low <= one <= high)

    @property
    def askable_channels(self) -> tuple[int, ...]:
        low, high = ASKABLE_CHANNELS
        return tuple(channel for channel in self.channels if low <= channel <= high)

    def __str__(self) -> str:
        """ "44100, 48000 Hz; 1 to 2 channels; S16_LE", and what of it cannot be asked for."""
        between = " to " if self.continuous else ", "
        rates = between.join(map(str, self.askable_hz))
        channels = _span(self.askable_channels)
        return "; ".join(
            (
                f"{rates} Hz"
                if rates
                else f"{between.join(map(str, self.rates_hz))} Hz, where a configuration may ask "
                f"for {ASKABLE_HZ[0]} to {ASKABLE_HZ[1]}",
                f"{channels} channel{'' if channels == '1' else 's'}"
                if channels
                else f"{_span(self.channels)} channels, where a configuration may ask for "
                f"{ASKABLE_CHANNELS[0]} to {ASKABLE_CHANNELS[1]}",
                ", ".join(self.formats)
                or f"only formats that capstand does not take ({', '.join(self.others)})",
            )
        )

    @property
    def usable(self) -> bool:
        """Whether there is anything that a configuration may ask for."""
        return bool(self.askable_hz and self.askable_channels and self.formats)


def _span(numbers: tuple[int, ...]) -> str:
    """ "1, 2, 4 to 8"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(
        ", ".join(map(str, run)) if len(run) < 3 else f"{run[0]} to {run[-1]}" for run in runs
    )


def abilities(device: str, *, playback: bool = False) -> Abilities:
    """Of its capture or its playback; opens the device for a moment. Raises OSError."""
    pcm = ctypes.c_void_p()
    side = _PLAYBACK if playback else _CAPTURE
    checked(asound.snd_pcm_open(ctypes.byref(pcm), device.encode(), side, _NONBLOCK))
    try:
        return _asked(pcm)
    finally:
        asound.snd_pcm_close(pcm)


def channel_counts(device: str, rate_hz: int, sample: SampleFormat) -> tuple[int, ...]:
    """How many channels the device can have at that rate and in that format; none where it has not
    these. Opens it for a moment. Raises OSError."""
    pcm = ctypes.c_void_p()
    checked(asound.snd_pcm_open(ctypes.byref(pcm), device.encode(), _CAPTURE, _NONBLOCK))
    try:
        space = ctypes.create_string_buffer(asound.snd_pcm_hw_params_sizeof())
        checked(asound.snd_pcm_hw_params_any(pcm, space))
        if (
            asound.snd_pcm_hw_params_set_format(pcm, space, sample.alsa_number) < 0
            or asound.snd_pcm_hw_params_set_rate(pcm, space, rate_hz, 0) < 0
        ):
            return ()
        return tuple(
            count
            for count in range(1, ASKABLE_CHANNELS[1] + 1)
            if asound.snd_pcm_hw_params_test_channels(pcm, space, count) == 0
        )
    finally:
        asound.snd_pcm_close(pcm)


def try_out(device: str, rate_hz: int, channels: int, sample: SampleFormat) -> None:
    """Configures the device for a moment: a USB card that hangs leaves each question unanswered for
    5 s, and pyalsaaudio asks with Python's lock in its hand. Raises OSError, but not where the card
    answers that it cannot do that."""
    pcm = ctypes.c_void_p()
    checked(asound.snd_pcm_open(ctypes.byref(pcm), device.encode(), _CAPTURE, _NONBLOCK))
    try:
        setup = (sample.alsa_number, _INTERLEAVED, channels, rate_hz, 1, _TRIAL_US)
        if (result := asound.snd_pcm_set_params(pcm, *setup)) != -errno.EINVAL:
            checked(result)
    finally:
        asound.snd_pcm_close(pcm)
        record_errors()


def _asked(pcm: ctypes.c_void_p) -> Abilities:
    space = ctypes.create_string_buffer(asound.snd_pcm_hw_params_sizeof())
    checked(asound.snd_pcm_hw_params_any(pcm, space))

    def can(question: str, *values: int) -> bool:
        return bool(getattr(asound, f"snd_pcm_hw_params_test_{question}")(pcm, space, *values) == 0)

    low, high = _bound(space, "rate_min"), _bound(space, "rate_max")
    continuous = low < high and can("rate", low + 1, 0)
    some = (low, *(one for one in RATES_HZ if low < one < high and can("rate", one, 0)), high)
    least, most = _bound(space, "channels_min"), _bound(space, "channels_max")
    channels = range(least, min(most, max(least, ASKABLE_CHANNELS[1])) + 1)
    formats = {
        asound.snd_pcm_format_name(number).decode(): number
        for number in range(64)
        if can("format", number) and asound.snd_pcm_format_name(number)
    }
    known = [one.alsa_name for one in SampleFormat]
    return Abilities(
        rates_hz=(low, high) if continuous else tuple(dict.fromkeys(some)),
        continuous=continuous,
        channels=tuple(channel for channel in channels if can("channels", channel)),
        formats=tuple(one for one in known if one in formats),
        others=tuple(one for one in formats if one not in known),
    )


def _bound(space: ctypes.Array[ctypes.c_char], which: str) -> int:
    value, direction = ctypes.c_uint(), ctypes.c_int()
    ask = getattr(asound, f"snd_pcm_hw_params_get_{which}")
    places = (ctypes.byref(value), ctypes.byref(direction))
    checked(ask(space, *places[: 2 if which.startswith("rate") else 1]))
    return value.value


def checked(result: int) -> None:
    """Raises OSError for what libasound answers to say so."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
