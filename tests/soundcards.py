"""Sound cards to plug in and out without hardware: a tree as sysfs has it, and ``hw:N`` behind it.

``Slots`` builds both below a directory: what ``/sys`` tells of the cards that are plugged in, and
an ALSA configuration in which ``hw:N`` is the fake card (tests/fakecard) that has that number now.
"""

from itertools import count
from pathlib import Path

from tests.fakecard import FakeCard

XHCI = "pci0000:00/0000:00:14.0"
"""The USB controller of most PCs, in /sys/devices."""

HW = """
pcm.!hw {{
    @args [ CARD DEV ]
    @args.CARD {{ type string }}
    @args.DEV {{ type integer default 0 }}
    type fakecap
    ctl {{ @func concat strings [ "{folder}/hw" $CARD ".link" ] }}
}}
"""


class Slots:
    """The cards of a machine; ``root`` stands for /."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sound = root / "sys/class/sound"
        self.sound.mkdir(parents=True)
        (root / "dev/snd").mkdir(parents=True)
        self._devices: dict[int, Path] = {}
        self._gone = count()

    def plug(
        self,
        number: int,
        usb: str | None = None,
        *,
        port: str = "1-1",
        serial: str | None = None,
        identity: str = "Device",
        captures: tuple[int, ...] = (0,),
        card: FakeCard | None = None,
        controller: str = XHCI,
        interface: str = "1.0",
    ) -> None:
        """A card appears under that number; ``usb`` is VID:PID, ``port`` such as 1-1.4 implies its
        hubs, below the USB controller at that place of sysfs.
        """
        place = self.root / "sys/devices" / controller
        if usb is None:
            place = top = self.root / f"sys/devices/platform/card.{number}"
        else:
            bus, path = port.split("-")
            self._controller(place)
            place = place / f"usb{bus}"
            hop(place, "1d6b:0002", place.parent.name)
            hops = path.split(".")
            for depth in range(1, len(hops)):
                place = place / f"{bus}-{'.'.join(hops[:depth])}"
                hop(place, "05e3:0608", None)
            place = top = place / port
            hop(place, usb, serial)
            place = place / f"{port}:{interface}"
        card_folder = place / "sound" / f"card{number}"
        card_folder.mkdir(parents=True)
        (card_folder / "id").write_text(f"{identity}\n")
        (self.sound / f"card{number}").symlink_to(card_folder)
        for device in captures:
            pcm = card_folder / f"pcmC{number}D{device}c"
            pcm.mkdir()
            (self.sound / pcm.name).symlink_to(pcm)
            self.node(number, device).touch()
        (self.root / f"dev/snd/controlC{number}").touch()
        (self.sound / f"controlC{number}").symlink_to(card_folder)
        self._devices[number] = top
        if card is not None:
            self._link(number, f"{card.device}.ctl")

    def _controller(self, place: Path) -> None:
        """The devices from the root down to the controller, each with its subsystem."""
        place.mkdir(parents=True, exist_ok=True)
        for folder in (place, *place.parents):
            if folder.name == "devices":
                return
            link = folder / "subsystem"
            kind = "pci" if folder.name.count(":") == 2 else "platform"
            bridge = folder.name.startswith("pci") or folder.name == "platform"
            if not bridge and not link.is_symlink():
                link.symlink_to(self.root / "sys/bus" / kind)

    def udev(self, link: str, number: int) -> None:
        """As udev does, a link in /dev/snd to the control node of a card."""
        path = self.root / "dev/snd" / link
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(f"../controlC{number}")

    def node(self, number: int, device: int) -> Path:
        """The capture device's file."""
        return self.root / f"dev/snd/pcmC{number}D{device}c"

    def unplug(self, number: int) -> None:
        for link in self.sound.glob(f"*[dC]{number}*"):
            link.unlink()
        for node in (self.root / "dev/snd").glob(f"*C{number}*"):
            node.unlink()
        # Kept, so that no inode is ever used again; sysfs sees to that by itself.
        self._devices.pop(number).rename(self.root / f"gone{next(self._gone)}")
        self._link(number, "nowhere/none.ctl")  # opening it fails with ENOENT

    def _link(self, number: int, target: str) -> None:
        link = self.root / f"hw{number}.link"
        link.unlink(missing_ok=True)
        link.symlink_to(self.root / target)

    def clear(self) -> None:
        for number in list(self._devices):
            self.unplug(number)

    def alsa(self, card: FakeCard) -> dict[str, str]:
        """The environment in which ``hw:N`` is whichever card has that number; after the last
        FakeCard was made.
        """
        path = self.root / "slots.conf"
        path.write_text(
            Path(card.env["ALSA_CONFIG_PATH"]).read_text() + HW.format(folder=self.root)
        )
        return {"ALSA_CONFIG_PATH": str(path)}


def hop(folder: Path, usb: str, serial: str | None) -> None:
    """A USB device, a hub or not."""
    folder.mkdir(parents=True, exist_ok=True)
    vendor, product = usb.split(":")
    (folder / "idVendor").write_text(f"{vendor}\n")
    (folder / "idProduct").write_text(f"{product}\n")
    if serial is not None:
        (folder / "serial").write_text(f"{serial}\n")
