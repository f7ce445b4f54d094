"""What a person can do about a card that is open and silent: in words, with its place in sysfs.

Unbinding a driver from its device and binding it again is to a card what pulling the plug is, from
far away. capstand does not do it: it takes root, and other programs may be using the card.

Thread: capture, while nothing is captured.
"""

from pathlib import Path

from capstand.devices import address
from capstand.text import clean

FALLBACK = "replug the device; if it belongs to a sound server, restart that"


def advice(device: str, root: Path = Path("/")) -> str:
    """For the ALSA device of that name, such as ``hw:CARD=Mic,DEV=0``."""
    named = address.place_of(device)
    number = address.card_number(named[0], root) if named else None
    if number is None:
        return FALLBACK
    try:
        place = (root / f"sys/class/sound/card{number}/device").resolve(strict=True)
        if (place.parent / "idVendor").exists():
            usb = place.parent  # the card is an interface of it
            product = clean.line((usb / "product").read_text(errors="replace").strip())
            what, driver = f"USB device {usb.name} ({product})", Path("/sys/bus/usb/drivers/usb")
            place = usb
        else:
            what = f"device {place.name}"
            driver = Path("/") / (place / "driver").resolve(strict=True).relative_to(root.resolve())
    except OSError:
        return FALLBACK
    name = place.name
    return f"replug {what}, or as root: echo {name} > {driver}/unbind; echo {name} > {driver}/bind"
