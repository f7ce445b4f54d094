"""Which card a name means, right now: by what sysfs says of the cards that are there.

Card numbers, and the ids of cards of one kind (``Device``, ``Device_1``), follow the order of
appearance, so they mean something else after a replug. A name (``config/naming.py``) is therefore
resolved at every open, to ``hw:N,D``, and again after it: a ``Location`` includes the card's
directory in sysfs with its inode, which no later card under the same number has. If both places are
the same, that card was there all the while, so it is the one that was opened.

What is there is what /sys/class/sound shows, which a container has too, and what can be opened is
what /dev/snd has: these may differ there. Without sysfs the nodes tell of a card's number and id.

A port's name is that of udev's builtin path_id: the USB controller's place, then the ports. udev
takes the nearest platform device, and some controllers have one whose number is given in the order
of probing (xhci-hcd.1.auto); then the one above it that has an address is better. Each name that a
port has is understood, the first one is shown.

Nothing is kept between two calls. ``root`` is for tests. Thread: any (capture, reserve, and main
for listing).
"""

import grp
import os
import re
from collections.abc import Iterator
from errno import EACCES, ENODEV, ENOENT
from pathlib import Path
from typing import NamedTuple

from capstand.config.naming import DeviceSpec, normalise_serial, parse
from capstand.devices.node import card_names
from capstand.errors import DeviceError

ROOT = Path("/")


class Card(NamedTuple):
    """A card that is there. ``captures``: the numbers of its PCM devices that capture;
    ``sysfs_id``: its place in sysfs and the inode of that. ``port`` is the USB port as the kernel
    numbers it, ``ports`` are its lasting names, ``interface`` is which one of the USB device the
    card is.
    """

    number: int
    id: str
    usb: str | None
    serial: str | None
    port: str | None
    captures: tuple[int, ...]
    sysfs_id: tuple[str, int]
    ports: tuple[str, ...] = ()
    interface: str | None = None

    def matches(self, wanted: DeviceSpec) -> bool:
        return (
            wanted.usb in (None, self.usb)
            and wanted.serial in (None, self.serial)
            and wanted.port in (None, *self.ports)
            and wanted.interface in (None, self.interface)
            and wanted.bus_port in (None, self.port)
            and wanted.card_id in (None, self.id)
        )

    def __str__(self) -> str:
        return f"card {self.number} ({self.id})"


class Location(NamedTuple):
    """Where a named device is: ``device`` is what ALSA calls it now; ``port`` and ``serial`` are
    those of a USB card.
    """

    device: str
    sysfs_id: tuple[str, int]
    port: str | None = None
    serial: str | None = None

    def instead_of(self, before: "Location", name: str) -> str | None:
        """In words, that ``name`` means another device than before, as far as can be seen: cards
        of one kind without serial numbers differ by their ports alone."""
        if (self.port, self.serial) == (before.port, before.serial):
            return None
        now, then = self._seen_as(), before._seen_as()
        if self.serial is not None and self.serial == before.serial:
            return f"{name} is plugged in elsewhere: {now}; previously {then}"
        if self.serial is None and before.serial is None:
            return (
                f"{name} is another card of the same model, or was moved: {now}; previously {then}"
            )
        return f"{name} is another card now: {now}; previously {then}"

    def _seen_as(self) -> str:
        serial = f", serial number {self.serial}" if self.serial else ""
        return f"port {self.port}{serial}" if self.port else f"{self.device}, not on USB"


def has_sound(root: Path = ROOT) -> bool:
    """Whether there is anything that tells which cards there are."""
    return any((root / one).is_dir() for one in ("sys/class/sound", "dev/snd", "proc/asound"))


def cards(root: Path = ROOT) -> list[Card]:
    """Every card that is there, by number; one that vanishes meanwhile is not."""
    sysfs = root / "sys/class/sound"
    nodes = root / "dev/snd"
    folder = sysfs if sysfs.is_dir() else nodes
    try:
        names = [one.name for one in folder.iterdir()]
    except OSError:
        return []
    captures: dict[int, list[int]] = {}
    for name in names:
        if pcm := re.fullmatch(r"pcmC(\d+)D(\d+)c", name, re.ASCII):
            captures.setdefault(int(pcm[1]), []).append(int(pcm[2]))
    prefix = "card" if folder is sysfs else "controlC"
    numbers = sorted(
        int(name.removeprefix(prefix))
        for name in names
        if re.fullmatch(rf"{prefix}\d+", name, re.A)
    )
    look = _card if folder is sysfs else _card_of_nodes
    found = []
    for number in numbers:
        try:
            found.append(look(folder, number, tuple(sorted(captures.get(number, ())))))
        except OSError:
            continue
    return found


def locate(name: str, root: Path = ROOT) -> Location | None:
    """Where the device of that name is; None for a name of ALSA's own.

    Raises DeviceError where it is not there, where the name fits two, or where its nodes cannot be
    opened: ALSA would find that out too, but by reading its whole configuration first.
    """
    wanted = parse(name)
    if wanted is None:
        return None
    there = cards(root)
    matching = _matching(wanted, there, root)
    if wanted.bus_port is not None:
        now = "".join(f"; {name_of(one, there)[0]} is plugged in there now" for one in matching[:1])
        raise DeviceError(
            f"{name} uses a USB bus number, which changes at a reboot{now}; write the port as "
            "`capstand devices` prints it",
            refused=True,
        )
    if not matching:
        raise _away(name, wanted, there, root)
    if len(matching) > 1:
        raise DeviceError(
            f"{name} fits {' and '.join(map(str, matching))}; use the name of one: "
            + " or ".join(name_of(one, there)[0] for one in matching),
            refused=True,
        )
    (card,) = matching
    number = wanted.device if wanted.device is not None else min(card.captures, default=None)
    reach(name, card, number, root)
    port = next(iter(card.ports), card.port)
    return Location(f"hw:{card.number},{number}", card.sysfs_id, port, card.serial)


def reach(name: str, card: Card, number: int | None, root: Path = ROOT) -> None:
    """Raises DeviceError, with what to do, where a card that is there has no such capture device,
    or its nodes are missing or not ours to open."""
    if number is None or number not in card.captures:
        device = "capture device" if number is None else f"capture device {number}"
        instead = f"; it has {', '.join(map(str, card.captures))}" if card.captures else ""
        raise DeviceError(f"waiting for {name}: {card} has no {device}{instead}", ENODEV)
    for node in (f"pcmC{card.number}D{number}c", f"controlC{card.number}"):
        path = root / "dev/snd" / node
        try:
            mode = path.stat()
        except FileNotFoundError:
            raise DeviceError(
                f"waiting for {name}: the kernel has the card, but {path} is missing; udev "
                "creates it in a moment, but a container keeps the nodes it started with: pass it "
                "the whole directory (--volume /dev/snd:/dev/snd)",
                ENOENT,
            ) from None
        except OSError as error:
            raise DeviceError(f"waiting for {name}: {path}: {error.strerror}", EACCES) from None
        if not os.access(path, os.R_OK | os.W_OK):
            raise DeviceError(
                f"waiting for {name}: {path} cannot be opened (permission denied); "
                f"{joining(mode.st_gid)}",
                EACCES,
            )


def joining(gid: int | None = None) -> str:
    """What helps who may not open a node: joining its group, which another system may have given
    another number."""
    group = "audio"
    if gid is not None:
        try:
            group = grp.getgrgid(gid).gr_name
        except (KeyError, OSError):
            group = str(gid)
    if gid == 0:
        return "change its group to audio (udev does that; for a container, on the host)"
    return (
        f"add the user to the group {group} and log in again (in a container: --group-add "
        f"{gid if gid is not None else group})"
    )


def card_called(called: str, root: Path = ROOT) -> Card | None:
    """The card that has this number or id now."""
    return next((card for card in cards(root) if called in (str(card.number), card.id)), None)


def bus_of(number: int, root: Path = ROOT) -> str:
    """The kernel's name of the bus that a card is on; "" where it cannot be told."""
    try:
        return (root / f"sys/class/sound/card{number}/device/subsystem").readlink().name
    except OSError:
        return ""


def card_of(name: str, root: Path = ROOT) -> int | None:
    """The number of the one card that a name of ours fits now; None where that is none or two."""
    wanted = parse(name)
    if wanted is None or wanted.bus_port is not None:
        return None
    matching = _matching(wanted, cards(root), root)
    return matching[0].number if len(matching) == 1 else None


def name_of(card: Card, there: list[Card]) -> tuple[str, str | None]:
    """The most lasting name that means this card and none of the others, and what to know of it."""
    others = [one for one in there if one != card]
    if card.usb is not None and card.serial is not None:
        if _only(name := f"usb:{card.usb}:{card.serial}", others):
            return name, None
        why = f"another {card.usb} has the same serial number, {card.serial}"
    else:
        why = "no serial number"
    for port in card.ports:
        for name in (f"usb-port:{port}", f"usb-port:{port}:{card.interface}"):
            if _only(name, others):
                return name, f"{why}: this names the port, so keep it plugged in there"
    stem = re.sub(r"_\d+$", "", card.id)
    twins = any(re.sub(r"_\d+$", "", other.id) == stem for other in others)
    why = "cards of one model get such ids in order of appearance" if twins else ""
    return f"card:{card.id}", why or None


def _only(name: str, others: list[Card]) -> bool:
    wanted = parse(name)
    return wanted is not None and not any(other.matches(wanted) for other in others)


def _matching(wanted: DeviceSpec, there: list[Card], root: Path) -> list[Card]:
    if wanted.link is None:
        return [one for one in there if one.matches(wanted)]
    try:
        target = (root / "dev/snd" / wanted.link).readlink().name
    except OSError:  # without udev: its names for USB are known
        port = parse(f"usb-port:{wanted.link.removeprefix('by-path/')}")
        return [one for one in there if port is not None and one.matches(port)]
    found = [one for one in there if target == f"controlC{one.number}"]
    # udev gives a link that two devices of one kind want to either of them.
    twins = [one for one in there for card in found if _twins(one, card)]
    return twins if wanted.link.startswith("by-id/") and len(twins) > 1 else found


def _twins(one: Card, other: Card) -> bool:
    """Whether two cards are alike in what udev makes a by-id link of."""
    return one.usb is not None and (one.usb, one.serial, one.interface) == (
        *(other.usb, other.serial, other.interface),
    )


def _away(name: str, wanted: DeviceSpec, there: list[Card], root: Path) -> DeviceError:
    known = " or ".join(name_of(one, there)[0] for one in there)
    instead = f", or take {known}" if known else ""
    if wanted.card_id is None and not (root / "sys/class").is_dir():
        return DeviceError(
            f"waiting for {name}: without {root / 'sys'} cards are only known by number and id; "
            f"mount it (read-only is enough){instead}",
            ENODEV,
        )
    if wanted.link is not None and not (root / "dev/snd" / wanted.link).parent.is_dir():
        folder = (root / "dev/snd" / wanted.link).parent
        return DeviceError(
            f"waiting for {name}: {folder} is missing; udev creates it, a container may lack "
            f"it{instead}",
            ENODEV,
        )
    near = "; ".join(
        f"{name_of(one, there)[0]} is"
        for one in there
        if wanted.serial is not None and one.usb == wanted.usb
    )
    return DeviceError(
        f"waiting for {name} (not plugged in{f'; {near}' if near else ''}); "
        "`capstand devices` lists what is there",
        ENODEV,
    )


def _card(folder: Path, number: int, captures: tuple[int, ...]) -> Card:
    """Raises OSError where the card has gone."""
    place = (folder / f"card{number}").resolve(strict=True)
    identity = _read(place / "id") or str(number)
    sysfs_id = (str(place), place.stat().st_ino)
    for above in place.parents:  # card1, sound, the interface, the device
        if above == folder.parent.parent:
            break
        vendor, product = _read(above / "idVendor"), _read(above / "idProduct")
        if vendor and product:
            serial = normalise_serial(_read(above / "serial") or "")
            return Card(
                number,
                identity,
                f"{vendor}:{product}".lower(),
                serial,
                above.name,
                captures,
                sysfs_id,
                tuple(dict.fromkeys(_ports(above))),
                _interface(place.relative_to(above).parts[0], above.name),
            )
    return Card(number, identity, None, None, None, captures, sysfs_id)


def _card_of_nodes(folder: Path, number: int, captures: tuple[int, ...]) -> Card:
    """The same where there is no sysfs. Raises OSError where the card has gone."""
    control = folder / f"controlC{number}"
    names = card_names(control)
    sysfs_id = (str(control), control.stat().st_ino)
    return Card(number, names.id if names else str(number), None, None, None, captures, sysfs_id)


# Ports


def _ports(device: Path) -> Iterator[str]:
    """The lasting names of the port of a USB device: the best one, udev's, udev's with the USB
    revision (one controller has the ports of USB 2 and of USB 3, numbered alike), and the
    controller's PCI address alone, of which there is one.
    """
    ports = device.name.partition("-")[2]
    hub = next(
        (parent for parent in device.parents if re.fullmatch(r"usb\d+", parent.name, re.A)), None
    )
    if hub is None or not ports:
        return
    better, plain = _controllers(hub.parent)
    for controller in (better, plain):
        if controller:
            yield f"{controller}-usb-0:{ports}"
    revision = {"00": 1, "01": 2, "02": 2, "03": 3}.get(_read(hub / "bDeviceProtocol") or "")
    if plain and revision:
        yield f"{plain}-usbv{revision}-0:{ports}"
    if (pci := plain.rfind("pci-")) > 0:
        yield f"{plain[pci:]}-usb-0:{ports}"


def _controllers(place: Path) -> tuple[str, str]:
    """A controller's place as udev writes it, and before it the one that does not count on the
    order in which platform devices were found.
    """
    better: list[str] = []
    plain: list[str] = []
    before = None
    for folder in (place, *place.parents):
        if folder.name in ("devices", ""):
            break
        kind = _subsystem(folder)
        if kind in ("pci", "platform", "acpi") and kind != before:
            plain.insert(0, f"{kind}-{folder.name}")
            better.insert(0, plain[0])
        elif kind == "platform" and _addressed(folder.name) and not _addressed(better[0][9:]):
            better[0] = f"{kind}-{folder.name}"
        before = kind
    return "-".join(better), "-".join(plain)


def _addressed(name: str) -> bool:
    """Whether a platform device goes by its address, as in 1f00200000.usb."""
    return re.match(r"[0-9a-f]{4,}\.", name) is not None


def _subsystem(folder: Path) -> str | None:
    """As the kernel says, or else by the shape of the name."""
    try:
        return (folder / "subsystem").readlink().name
    except OSError:
        if re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", folder.name):
            return "pci"
        inside = "/devices/platform/" in str(folder) and not folder.name.startswith("pci")
        return "platform" if inside else None


def _interface(folder: str, device: str) -> str | None:
    """Which interface of the device, as in 1-1.4:1.0."""
    found = re.fullmatch(rf"{re.escape(device)}:(\d{{1,3}}\.\d{{1,3}})", folder, re.ASCII)
    return found[1] if found else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
