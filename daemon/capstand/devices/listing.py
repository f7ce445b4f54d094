"""Which capture devices are there, what they can do, and who holds them (``capstand devices``)."""

import errno
import json
import re
from pathlib import Path
from typing import NamedTuple

from capstand.audio.block import SampleFormat
from capstand.config.registry import SOURCES
from capstand.devices import controls, identity, libasound, node
from capstand.devices.controls import CardControl
from capstand.devices.holder import holder_of
from capstand.devices.libasound import Abilities
from capstand.errors import DeviceError
from capstand.text import clean

KNOWN = [one.alsa_name for one in SampleFormat]


class Device(NamedTuple):
    """A card's capture device. ``device`` is the line for the configuration, the most lasting name
    that means no other card; ``note`` is what to know of it.

    ``rates_hz`` is a list of single rates, or of two bounds where ``rates_continuous``; the lists
    are empty while another program holds the device (``holder``) or it cannot be opened
    (``trouble``). ``controls`` are those of the card, with its first device, that may change what
    is captured.
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
    other_formats: tuple[str, ...] = ()
    controls: tuple[CardControl, ...] = ()

    @property
    def can(self) -> Abilities | None:
        """None while another program holds it or it cannot be opened."""
        if not self.rates_hz:
            return None
        return Abilities(
            tuple(self.rates_hz),
            self.rates_continuous,
            tuple(self.channels),
            tuple(self.formats),
            self.other_formats,
        )

    @property
    def unusable(self) -> str | None:
        """Why it cannot be taken now; None where it can."""
        if self.holder:
            return f"in use by {self.holder}"
        if self.trouble or self.can is None:
            return self.trouble or "reports no capabilities"
        return None if self.can.usable else f"offers {self.can}"

    def __str__(self) -> str:
        words = str(self.can) if self.can and not self.holder else self.unusable
        lines = [self.name, words, *([self.note] if self.note else [])]
        lines += [control.line for control in self.controls]
        return "\n    ".join([self.device, *map(str, lines)])

    def as_json(self) -> dict[str, object]:
        return self._asdict() | {"controls": [one.as_json() for one in self.controls]}


def find(root: Path = Path("/")) -> list[Device]:
    """Every capture device of every card, by sysfs or the nodes; opens each for a moment."""
    libasound.record_errors()
    libasound.refresh_configuration()
    there = identity.cards(root)
    pcms = _pcm_names(root)
    return [
        _clean(_examine(root, there, card, number, pcms.get((card.number, number))))
        for card in there
        for number in card.captures
    ]


def _clean(device: Device) -> Device:
    """A device says itself what it is called."""
    return Device._make(clean.line(one) if isinstance(one, str) else one for one in device)


def _pcm_names(root: Path) -> dict[tuple[int, int], str]:
    """As /proc/asound/pcm has them; a container may hide it."""
    try:
        text = (root / "proc/asound/pcm").read_text(errors="replace")
    except OSError:
        return {}
    lines = re.findall(r"(?m)^(\d+)-(\d+): ([^:\n]*):", text)
    return {(int(card), int(number)): clean.line(name.strip()) for card, number, name in lines}


def _examine(
    root: Path, there: list[identity.Card], card: identity.Card, number: int, pcm_name: str | None
) -> Device:
    named, note = identity.name_of(card, there)
    if number != min(card.captures):
        named += f",{number}"
    control = root / f"dev/snd/controlC{card.number}"
    names = node.card_names(control)
    pcm_name = pcm_name or node.capture_name(control, number)
    holder = holder_of(str(card.number), number, root)
    trouble = None
    can = Abilities((), False, (), (), ())
    if holder is None:
        try:
            identity.reach(named, card, number, root)
            can = libasound.abilities(f"hw:{card.number},{number}")
        except DeviceError as error:
            trouble = str(error).removeprefix(f"waiting for {named}: ")
        except OSError as error:
            trouble = _trouble(error)
    return Device(
        device=named,
        card=card.number,
        id=card.id,
        name=", ".join(filter(None, (names.long_name if names else card.id, pcm_name))),
        rates_hz=list(can.rates_hz),
        rates_continuous=can.continuous,
        channels=list(can.channels),
        formats=list(can.formats),
        holder=holder,
        trouble=trouble,
        note=note,
        other_formats=can.others,
        controls=_controls(card) if number == min(card.captures) else (),
    )


def _controls(card: identity.Card) -> tuple[CardControl, ...]:
    """None where they cannot be opened; another program that has the device does not matter."""
    try:
        there = controls.read(f"hw:{card.number}")
    except OSError:
        return ()
    finally:
        libasound.record_errors()  # what it said of them is not about the next device
    return tuple(one for one in there if one.about_capture)


def _trouble(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "in use by another program"
    if error.errno == errno.EPERM:
        return f"cannot be opened: {error.strerror}; the unit or the container denies access"
    said = libasound.last_errors()
    return f"cannot be opened: {error.strerror}" + (f"; ALSA says: {said}" if said else "")


def default_configuration(found: list[Device], folder: Path) -> str:
    """A configuration for the first device that can be used, else for the simulated card."""
    usable = next((one for one in found if one.unusable is None), None)
    if usable is not None and usable.can is not None:
        lines = [
            f'device = "{usable.device}"',
            f"rate_hz = {_preferred_rate(usable.can)}",
            f"channels = {_preferred_channels(usable.can)}",
            f'format = "{_preferred_format(usable.can)}"',
        ]
    else:
        lines = [f'device = "{SOURCES.simulated}"']
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


def passed_over(found: list[Device]) -> list[str]:
    """Which devices the first configuration does not take, and why: those before the one taken."""
    return [
        f"{one.device} ({one.name}) skipped: {one.unusable}"
        for one in found[: next((at for at, one in enumerate(found) if not one.unusable), None)]
    ]


def _preferred_rate(can: Abilities) -> int:
    """48000 where it can be had, else the nearest that a configuration may ask for."""
    rates = can.askable_hz
    if can.continuous:
        return min(max(48_000, rates[0]), rates[-1])
    return min(rates, key=lambda one: abs(one - 48_000))


def _preferred_channels(can: Abilities) -> int:
    return 2 if 2 in can.askable_channels else min(can.askable_channels)


def _preferred_format(can: Abilities) -> str:
    """16 bits where they can be had, rather more than less."""
    return min(can.formats, key=lambda one: (SampleFormat[one].bits < 16, KNOWN.index(one)))
