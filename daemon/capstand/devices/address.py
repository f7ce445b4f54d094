"""Which card one of ALSA's own names speaks of, such as ``hw:CARD=Mic,DEV=0`` or ``dsnoop:1``.

Names that capstand resolves itself are the business of ``identity.py``. Nothing is kept between two
calls: a card may have another number when it is back. Thread: any.
"""

import os
import re
from errno import ENODEV
from pathlib import Path

from capstand.config.naming import parse
from capstand.devices import identity
from capstand.devices.identity import ROOT


def place_of(device: str) -> tuple[str, int] | None:
    """The card, by number or id, and the device's number on it that an ALSA name speaks of; None
    for one that names no card, such as ``default`` or a PCM of the user's own."""
    named = re.match(r"[^:{}]*:(?:CARD=)?([^,={}]+)(?:,(?:DEV=)?(\d+))?(?:,|$)", device)
    return (named[1], int(named[2] or 0)) if named else None


def is_hardware(device: str) -> bool:
    """Whether ALSA opens the card itself: what dsnoop shares, for one, is not to be had alone."""
    return re.match(r"(plug)?hw:", device) is not None


def card_number(card: str, root: Path = ROOT) -> int | None:
    """The number that a card, by number or id, has now; None when it is away."""
    if found := identity.card_called(card, root):
        return found.number
    asound = root / "proc/asound"
    try:
        name = (
            f"card{card}" if (asound / f"card{card}").exists() else (asound / card).readlink().name
        )
    except (OSError, ValueError):
        return None
    number = re.fullmatch(r"card(\d+)", name, re.ASCII)
    return int(number[1]) if number else None


def card_of(name: str, root: Path = ROOT) -> int | None:
    """The number of the one card that a name, ours or ALSA's, means now; None where that is none or
    two, or no card is taken for itself."""
    if parse(name) is not None:
        return identity.card_of(name, root)
    place = place_of(name) if is_hardware(name) else None
    return card_number(place[0], root) if place else None


def bus_of(device: str, root: Path = ROOT) -> str:
    """What the card is on, "usb" for one; "" where it is not a card's own device as it is."""
    number = card_of(device, root) if device.startswith("hw:") else None
    return "" if number is None else identity.bus_of(number, root)


def probe_open(device: str, label: str, root: Path = ROOT) -> None:
    """Raises OSError or DeviceError where the kernel would not open a card's own device, which for
    people is ``label``; looks at no other, nor where nothing tells which cards there are."""
    place = place_of(device) if is_hardware(device) else None
    if place is None or not identity.has_sound(root):
        return
    number = card_number(place[0], root)
    if number is None:
        raise OSError(ENODEV, os.strerror(ENODEV))
    if card := identity.card_called(str(number), root):
        identity.reach(label, card, place[1], root)
    node = root / f"dev/snd/pcmC{number}D{place[1]}c"
    os.close(os.open(node, os.O_RDWR | os.O_NONBLOCK))
