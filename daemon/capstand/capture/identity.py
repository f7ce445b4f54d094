"""Which card a name means, right now: by what sysfs says of the cards that are there.

Card numbers, and the ids of cards of one kind (``Device``, ``Device_1``), follow the order of
appearance, so they mean something else after a replug. A name (``capstand.naming``) is therefore
resolved at every open, to ``hw:N,D``, and again after it: a ``Place`` includes the card's directory
in sysfs with its inode, which no later card under the same number has. If both places are the same,
that card was there all the while, so it is the one that was opened.

Nothing is kept between two calls. ``root`` is for tests. Thread: any (capture, reserve, and main
for listing).
"""

import os
import re
from errno import EACCES, ENODEV
from pathlib import Path
from typing import NamedTuple

from capstand.errors import DeviceError
from capstand.naming import Wanted, parse, written

ROOT = Path("/")


class Card(NamedTuple):
    """A card that is there. ``captures``: the numbers of its PCM devices that capture; ``birth``:
    its place in sysfs and the inode of that.
    """

    number: int
    id: str
    usb: str | None
    serial: str | None
    port: str | None
    captures: tuple[int, ...]
    birth: tuple[str, int]

    def fits(self, wanted: Wanted) -> bool:
        return (
            wanted.usb in (None, self.usb)
            and wanted.serial in (None, self.serial)
            and wanted.port in (None, self.port)
            and wanted.card_id in (None, self.id)
        )

    def __str__(self) -> str:
        return f"card {self.number} ({self.id})"


class Place(NamedTuple):
    """Where a named device is: ``device`` is what ALSA calls it now."""

    device: str
    birth: tuple[str, int]


def cards(root: Path = ROOT) -> list[Card]:
    """Every card that is there, by number; one that vanishes meanwhile is not."""
    folder = root / "sys/class/sound"
    try:
        names = [one.name for one in folder.iterdir()]
    except OSError:
        return []
    captures: dict[int, list[int]] = {}
    for name in names:
        if pcm := re.fullmatch(r"pcmC(\d+)D(\d+)c", name, re.ASCII):
            captures.setdefault(int(pcm[1]), []).append(int(pcm[2]))
    numbers = sorted(int(name[4:]) for name in names if re.fullmatch(r"card\d+", name, re.ASCII))
    found = []
    for number in numbers:
        try:
            found.append(_card(folder, number, tuple(sorted(captures.get(number, ())))))
        except OSError:
            continue
    return found


def locate(name: str, root: Path = ROOT) -> Place | None:
    """Where the device of that name is; None for a name of ALSA's own.

    Raises DeviceError where it is not there, where the name fits two, or where udev has not given
    us its nodes yet: ALSA would find that out too, but by reading its whole configuration first.
    """
    wanted = parse(name)
    if wanted is None:
        return None
    there = cards(root)
    fitting = [one for one in there if one.fits(wanted)]
    if not fitting:
        near = "; ".join(
            f"{name_of(one, there)[0]} is"
            for one in there
            if wanted.serial is not None and one.usb == wanted.usb
        )
        raise DeviceError(
            f"waiting for {name} (not plugged in{f'; {near}' if near else ''}); "
            "`capstand devices` lists what is there",
            ENODEV,
        )
    if len(fitting) > 1:
        raise DeviceError(
            f"{name} fits {' and '.join(str(one) for one in fitting)}; name the one that is meant: "
            + " or ".join(name_of(one, there)[0] for one in fitting),
            refused=True,
        )
    (card,) = fitting
    number = wanted.device if wanted.device is not None else min(card.captures, default=None)
    if number is None or number not in card.captures:
        device = "capture device" if number is None else f"capture device {number}"
        instead = f"; it has {', '.join(map(str, card.captures))}" if card.captures else ""
        raise DeviceError(f"waiting for {name}: {card} has no {device}{instead}", ENODEV)
    for node in (f"pcmC{card.number}D{number}c", f"controlC{card.number}"):
        path = root / "dev/snd" / node
        if not os.access(path, os.R_OK | os.W_OK):
            raise DeviceError(
                f"waiting for {name}: {path} may not be opened; put the user into the group audio",
                EACCES,
            )
    return Place(f"hw:{card.number},{number}", card.birth)


def card_of(name: str, root: Path = ROOT) -> int | None:
    """The number of the one card that a name of ours fits now; None where that is none or two."""
    wanted = parse(name)
    fitting = [one.number for one in cards(root) if wanted is not None and one.fits(wanted)]
    return fitting[0] if len(fitting) == 1 else None


def name_of(card: Card, there: list[Card]) -> tuple[str, str | None]:
    """The most lasting name that means this card and none of the others, and what to know of it."""
    others = [one for one in there if one != card]
    if card.usb is not None and card.serial is not None:
        if all((one.usb, one.serial) != (card.usb, card.serial) for one in others):
            return f"usb:{card.usb}:{card.serial}", None
        why = f"another {card.usb} has its serial number, {card.serial}, too"
    else:
        why = "it has no serial number"
    if card.port is not None and all(one.port != card.port for one in others):
        return f"usb-port:{card.port}", f"{why}: this names the port, leave it plugged in there"
    stem = re.sub(r"_\d+$", "", card.id)
    twins = any(re.sub(r"_\d+$", "", one.id) == stem for one in others)
    why = "cards of one kind get such ids in the order they appear" if twins else ""
    return f"card:{card.id}", why or None


def _card(folder: Path, number: int, captures: tuple[int, ...]) -> Card:
    """Raises OSError where the card has gone."""
    place = (folder / f"card{number}").resolve(strict=True)
    identity = _read(place / "id") or str(number)
    birth = (str(place), place.stat().st_ino)
    for above in place.parents:  # card1, sound, the interface, the device
        if above == folder.parent.parent:
            break
        vendor, product = _read(above / "idVendor"), _read(above / "idProduct")
        if vendor and product:
            serial = written(_read(above / "serial") or "")
            usb = f"{vendor}:{product}".lower()
            return Card(number, identity, usb, serial, above.name, captures, birth)
    return Card(number, identity, None, None, None, captures, birth)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
