"""Which capture devices are there, what they can do, and who holds them (``capstand devices``)."""

import contextlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import alsaaudio

from capstand.block import SampleFormat
from capstand.capture import identity
from capstand.capture.alsa import refresh_configuration
from capstand.capture.holder import holder_of

KNOWN = [one.alsa_name for one in SampleFormat]
LOWEST_HZ, HIGHEST_HZ, MOST_CHANNELS = 8000, 192_000, 32  # what a configuration may ask for


class Device(NamedTuple):
    """A card's capture device. ``device`` is the line for the configuration, the most lasting name
    that means no other card; ``note`` is what to know of it.

    ``rates_hz`` is a list of single rates, or of two bounds where ``rates_continuous``; the lists
    are empty while another program holds the device (``holder``) or it cannot be opened
    (``trouble``).
    """

    device: str
    card: int
    id: str
    name: str
    rates_hz: list[int]
    rates_continuous: bool
    channels: list[int]
    formats: list[str]
    holder: str | None
    trouble: str | None
    note: str | None = None

    def __str__(self) -> str:
        if self.holder or self.trouble:
            can = f"held by {self.holder}" if self.holder else str(self.trouble)
        else:
            rates = (" to " if self.rates_continuous else ", ").join(map(str, self.rates_hz))
            channels = ", ".join(map(str, self.channels))
            can = f"{rates} Hz; {channels} channels; {', '.join(self.formats)}"
        note = f"\n    {self.note}" if self.note else ""
        return f"{self.device}\n    {self.name}\n    {can}{note}"


def find(root: Path = Path("/")) -> list[Device]:
    """Every capture device of every card, by /proc/asound; opens each for a moment."""
    try:
        lines = (root / "proc/asound/pcm").read_text(errors="replace").splitlines()
    except OSError:
        return []
    refresh_configuration()
    there = identity.cards(root)
    found = []
    for line in lines:
        match = re.match(r"(\d+)-(\d+): ([^:]*):", line)
        if match and ": capture" in line:
            found.append(_look(root, there, int(match[1]), int(match[2]), match[3].strip()))
    return found


def _look(root: Path, there: list[identity.Card], card: int, number: int, pcm_name: str) -> Device:
    device, card_id, note = f"hw:{card},{number}", str(card), None
    named = device
    for one in there:
        if one.number == card:
            named, note = identity.name_of(one, there)
            card_id = one.id
            if number != min(one.captures, default=number):
                named += f",{number}"
    try:
        name = f"{alsaaudio.card_name(card)[1]}, {pcm_name}"
    except alsaaudio.ALSAAudioError:
        name = pcm_name
    holder = holder_of(str(card), number, root)
    trouble = None
    rates: list[int] = []
    channels: list[int] = []
    formats: list[str] = []
    continuous = False
    if holder is None:
        try:
            pcm = alsaaudio.PCM(
                type=alsaaudio.PCM_CAPTURE, mode=alsaaudio.PCM_NONBLOCK, device=device
            )
            with contextlib.closing(pcm):
                granted = pcm.getrates()
                continuous = isinstance(granted, tuple)
                rates = list(granted) if isinstance(granted, list | tuple) else [granted]
                channels = list(pcm.getchannels())
                formats = [one for one in pcm.getformats() if one in KNOWN]
        except alsaaudio.ALSAAudioError as error:
            trouble = f"cannot be opened: {str(error).rsplit(' [', 1)[0]}"
    return Device(
        device=named,
        card=card,
        id=card_id,
        name=name,
        rates_hz=rates,
        rates_continuous=continuous,
        channels=channels,
        formats=formats,
        holder=holder,
        trouble=trouble,
        note=note,
    )


def default_configuration(found: list[Device], folder: Path) -> str:
    """A configuration for the first device that can be used, else for the simulated card."""
    usable = [
        (one, rate, channels)
        for one in found
        if one.formats and one.channels and one.rates_hz
        for rate, channels in [(_preferred_rate(one), _preferred_channels(one))]
        if rate and channels
    ]
    if usable:
        device, rate, channels = usable[0]
        audio = next(one for one in KNOWN if one in device.formats)
        lines = [
            f'device = "{device.device}"',
            f"rate_hz = {rate}",
            f"channels = {channels}",
            f'format = "{audio}"',
        ]
    else:
        lines = ['device = "synthetic"']
    return "\n".join(
        [
            "[[stream]]",
            f'name = "{"mic" if usable else "tone"}"',
            "[stream.capture]",
            *lines,
            "[[stream.sink]]",
            'type = "file"',
            f"path = {json.dumps(str(folder), ensure_ascii=False)}",
            "",
        ]
    )


def _preferred_rate(device: Device) -> int | None:
    """48000 where it can be had, else the nearest or highest that a configuration may ask for."""
    rates = device.rates_hz
    if device.rates_continuous:
        low, high = max(LOWEST_HZ, rates[0]), min(HIGHEST_HZ, rates[-1])
        return min(max(48_000, low), high) if low <= high else None
    fitting = [one for one in rates if LOWEST_HZ <= one <= HIGHEST_HZ]
    return 48_000 if 48_000 in fitting else max(fitting, default=None)


def _preferred_channels(device: Device) -> int | None:
    fitting = [one for one in device.channels if 1 <= one <= MOST_CHANNELS]
    return 2 if 2 in fitting else min(fitting, default=None)
