"""How a configuration names a device: by what it is, so that it is found again under any number.

    usb:0d8c:0014            the USB device of this vendor and product, as lsusb prints them
    usb:0d8c:0014:A1B2       the one of them with this serial number
    usb-port:1-1.4           whatever is plugged into this port, as /sys/bus/usb/devices names it
    card:Device              the card with this id, the word in brackets in /proc/asound/cards

Each may end in ",N", the number of the PCM device on its card; without it the card's first one that
captures is meant. Anything else is a name of ALSA's own and left to ALSA.
"""

import re
from typing import NamedTuple

SHAPES: dict[str, tuple[str, str]] = {
    "usb:": (
        r"(?a)usb:([0-9A-Fa-f]{4}:[0-9A-Fa-f]{4})(?::([\w.-]{1,126}))?(?:,(\d{1,3}))?",
        "usb:VID:PID or usb:VID:PID:SERIAL, such as usb:0d8c:0014 (four hexadecimal digits each, "
        "as lsusb prints them; in a serial number _ stands for all but letters, digits, . _ -)",
    ),
    "usb-port:": (
        r"(?a)usb-port:(\d{1,3}-\d{1,3}(?:\.\d{1,3})*)(?:,(\d{1,3}))?",
        "usb-port:PORT, such as usb-port:1-1.4 (a name in /sys/bus/usb/devices)",
    ),
    "card:": (
        r"(?a)card:([\w-]{1,15})(?:,(\d{1,3}))?",
        "card:ID, such as card:Device (the word in brackets in /proc/asound/cards)",
    ),
}
"""By prefix: the pattern of a right name, and in words what it should look like."""


class Wanted(NamedTuple):
    """What a name asks for; None is what it leaves open."""

    usb: str | None = None
    serial: str | None = None
    port: str | None = None
    card_id: str | None = None
    device: int | None = None


def parse(name: str) -> Wanted | None:
    """What ``name`` asks for; None where that is ALSA's to know."""
    for prefix, (pattern, _) in SHAPES.items():
        found = re.fullmatch(pattern, name)
        if found is None:
            continue
        *what, number = found.groups()
        device = None if number is None else int(number)
        match prefix:
            case "usb:":
                return Wanted(usb=what[0].lower(), serial=what[1], device=device)
            case "usb-port:":
                return Wanted(port=what[0], device=device)
            case _:
                return Wanted(card_id=what[0], device=device)
    return None


def written(serial: str) -> str | None:
    """A serial number as names write it; None where there is nothing to write."""
    return re.sub(r"[^\w.-]", "_", serial.strip(), flags=re.ASCII) or None
