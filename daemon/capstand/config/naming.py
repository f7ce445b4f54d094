"""How a configuration names a device: by what it is, so that it is found again under any number.

    usb:0d8c:0014            the USB device of this vendor and product, as lsusb prints them
    usb:0d8c:0014:A1B2       the one of them with this serial number
    usb-port:pci-0000:00:14.0-usb-0:1.4
                             whatever is plugged into this port: the place of the USB controller and
                             the ports from there on, as in udev's ID_PATH. A bus number, as in
                             1-1.4, is another one after a reboot.
    card:Device              the card with this id, the word in brackets in /proc/asound/cards
    /dev/snd/by-path/...     the card that this link of udev's leads to; by-id likewise

Each may end in ",N", the number of the PCM device on its card; without it the card's first one that
captures is meant.

Anything else is a name of ALSA's own and left to ALSA, if it has one of ``ALSA_SHAPES``. For ALSA
a name is a piece of its configuration, in which quotes, braces and escapes have a meaning, and some
of the PCMs that come with it write a file, run a command or open what their arguments say. So this
is a list of what may be said, not of what may not: no sign with a meaning of its own but ``:,=``,
and arguments only for PCMs that are known to take a card's or a sound server's. All else is for a
PCM of one's own in /etc/asound.conf, which has a plain name.
"""

import re
from typing import NamedTuple

_NUMBER = r"(?:,(\d{1,3}))?"
_PORT = r"[\w.:@+-]{1,200}?-usb(?:v[123])?-0:\d{1,3}(?:\.\d{1,3})*"

SHAPES: dict[str, tuple[str, str]] = {
    "usb:": (
        rf"(?a)usb:([0-9A-Fa-f]{{4}}:[0-9A-Fa-f]{{4}})(?::([\w.-]{{1,126}}))?{_NUMBER}",
        "usb:VID:PID or usb:VID:PID:SERIAL, such as usb:0d8c:0014 (four hexadecimal digits each, "
        "as lsusb prints them; in a serial number _ stands for all but letters, digits, . _ -)",
    ),
    "usb-port:": (
        rf"(?a)usb-port:(?:({_PORT})(?::(\d{{1,3}}\.\d{{1,3}}))?"
        rf"|(\d{{1,3}}-\d{{1,3}}(?:\.\d{{1,3}})*)){_NUMBER}",
        "usb-port:PORT, such as usb-port:pci-0000:00:14.0-usb-0:1.4 (as `capstand devices` prints "
        "it; a name in /dev/snd/by-path)",
    ),
    "card:": (
        rf"(?a)card:([\w-]{{1,15}}){_NUMBER}",
        "card:ID, such as card:Device (the word in brackets in /proc/asound/cards)",
    ),
    "/dev/snd/by-": (
        rf"(?a)/dev/snd/(by-(?:path|id)/[\w.:@+#=-]{{1,220}}){_NUMBER}",
        "a link in /dev/snd/by-path or /dev/snd/by-id",
    ),
}
"""By prefix: the pattern of a right name, and in words what it should look like."""

_PLAIN = r"(?!\d+$)\w[\w-]{0,63}"
_OF_CARDS = (
    r"(?:hw|plughw|default|sysdefault|dsnoop|front|rear|center_lfe|side|surround\d\d|iec958|spdif"
    r"|hdmi|modem|phoneline|usbstream)"
)
_ARGUMENT = r"(?:[A-Z][A-Z0-9_]{0,15}=)?[\w-]{1,64}"
_OF_SERVERS = r"(?:pulse|pipewire|bluealsa)"
_SERVER_ARGUMENT = r"(?:[A-Z][A-Z0-9_]{0,15}=)?[\w.:@+-]{1,200}"
_CARD = rf"{_OF_CARDS}:{_ARGUMENT}(?:,{_ARGUMENT}){{0,5}}"

ALSA_SHAPES = (
    _PLAIN,
    _CARD,
    rf"{_OF_SERVERS}:{_SERVER_ARGUMENT}(?:,{_SERVER_ARGUMENT}){{0,8}}",
    rf"plug:(?:SLAVE=)?(?:{_PLAIN}|{_OF_CARDS}:{_ARGUMENT})",
)
"""What reaches libasound as it is; nothing else does."""

_WRITTEN_ELSEWHERE: tuple[tuple[str, str], ...] = (
    # `arecord -l`, in any language; /proc/asound/cards; /proc/asound/pcm
    (r"\D+ \d+: ([\w-]+) \[.*\], \D+ 0: .*", r"card:\1"),
    (r"\D+ \d+: ([\w-]+) \[.*\], \D+ (\d+): .*", r"card:\1,\2"),
    (r"\D+ \d+: ([\w-]+) \[[^\]]*\]", r"card:\1"),
    (r"\d+ \[([\w-]+) *\]: .*", r"card:\1"),
    (r"0*(\d+)-0*(\d+): .*", r"hw:\1,\2"),
    # lsusb
    (r"(?:.*\bID )?([0-9A-Fa-f]{4}:[0-9A-Fa-f]{4})(?: .*)?", r"usb:\1"),
    # a card's long name
    (
        r".* at usb-([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.\d)-([\d.]+), .*",
        r"usb-port:pci-\1-usb-0:\2",
    ),
    (r".* at usb-([\w.:@-]+)-([\d.]+), .*", r"usb-port:platform-\1-usb-0:\2"),
    # nodes, and numbers alone
    (r"/dev/snd/pcmC(\d+)D(\d+)[cp]", r"hw:\1,\2"),
    (r"/dev/snd/controlC(\d+)", r"hw:\1"),
    (r"(\d+)", r"hw:\1"),
    (r"(\d+),(\d+)", r"hw:\1,\2"),
    # a shell's quotes, a plug around a card
    (r"""plug:\{?(?:SLAVE=)?["']?hw:([\w=,-]+)["']?\}?""", r"plughw:\1"),
    # udev's path alone
    (rf"({_PORT}(?::\d+\.\d+)?)", r"usb-port:\1"),
    (r"((?:by-path|by-id)/.*)", r"/dev/snd/\1"),
    # a definition in /etc/asound.conf, a source of a sound server
    (rf"pcm\.!?({_PLAIN})", r"\1"),
    (r"((?:alsa|bluez)_(?:input|source)\..*)", r"pulse:\1"),
)


class DeviceSpec(NamedTuple):
    """What a name asks for; None is what it leaves open. ``bus_port`` is a port by the number of
    its bus, which means another port after a reboot.
    """

    usb: str | None = None
    serial: str | None = None
    port: str | None = None
    interface: str | None = None
    bus_port: str | None = None
    card_id: str | None = None
    link: str | None = None
    device: int | None = None


def parse(name: str) -> DeviceSpec | None:
    """What ``name`` asks for; None where that is ALSA's to know."""
    for prefix, (pattern, _) in SHAPES.items():
        found = re.fullmatch(pattern, name)
        if found is None:
            continue
        *what, number = found.groups()
        device = None if number is None else int(number)
        match prefix:
            case "usb:":
                return DeviceSpec(usb=what[0].lower(), serial=what[1], device=device)
            case "usb-port:":
                port, interface, bus_port = what
                return DeviceSpec(port=port, interface=interface, bus_port=bus_port, device=device)
            case "card:":
                return DeviceSpec(card_id=what[0], device=device)
            case _:
                return DeviceSpec(link=what[0], device=device)
    return None


def fault(name: str) -> str | None:
    """What is wrong with a name, and how to write it; None where it may be looked up, or be given
    to ALSA."""
    wanted = parse(name)
    if wanted is not None:
        return _bus_number(name, wanted.bus_port) if wanted.bus_port is not None else None
    shown = f'"{name}"' if len(name) <= 60 else f'"{name[:57]}..."'
    for prefix, (_, words) in SHAPES.items():
        if name.lower().startswith(prefix):
            return f"{shown}: expected {words}"
    if re.search(r"\b(file|tee)\s*:|\|", name):
        return (
            f"{shown}: ALSA would run a command or write a file for this name; name a card, or a "
            "PCM defined in /etc/asound.conf"
        )
    if _is_alsas(name):
        return None
    meant = _meant(name)
    hint = f'; did you mean "{meant}"?' if meant else ""
    return (
        f"{shown}: not a device name{hint}; expected what `capstand devices` prints, a "
        "card as ALSA names it, such as hw:CARD=Mic,DEV=0, or the plain name of a PCM defined in "
        "/etc/asound.conf (anything with quotes, braces, other arguments or plug-ins goes there)"
    )


def note(name: str) -> str | None:
    """What to know of a name that is right: that it goes by a number which does not last."""
    numbered = re.match(rf"{_OF_CARDS}:(?:CARD=)?(\d+)(?:,|$)", name, re.ASCII)
    if numbered is None:
        return None
    return (
        f"{name} is whichever card has number {numbered[1]} now; numbers change at a replug or "
        "reboot; `capstand devices` prints a stable name"
    )


def _bus_number(name: str, bus_port: str) -> str:
    return (
        f'"{name}" goes by the number of a USB bus, which is another one after a reboot; write the '
        "port by its controller, as `capstand devices` prints it: "
        f"usb-port:pci-0000:00:14.0-usb-0:{bus_port.partition('-')[2]}, for example"
    )


def _meant(name: str) -> str | None:
    """The name that somebody had in mind who wrote ``name``, if it is a right one."""
    bare = name.strip("\"' \t").removeprefix("-D").strip("\"' ")
    tidy = re.sub(r"\s*([:,=])\s*", r"\1", bare)
    head, colon, rest = tidy.partition(":")
    candidates = [bare, tidy, head.lower() + colon + rest] if ":" in tidy else [bare]
    for pattern, written_so in _WRITTEN_ELSEWHERE:
        if found := re.fullmatch(pattern, bare, re.ASCII):
            candidates.append(found.expand(written_so))
    return next(
        (
            candidate
            for candidate in candidates
            if candidate != name and (parse(candidate) is not None or _is_alsas(candidate))
        ),
        None,
    )


def _is_alsas(name: str) -> bool:
    return any(re.fullmatch(alsa_shape, name, re.ASCII) for alsa_shape in ALSA_SHAPES)


def normalise_serial(serial: str) -> str | None:
    """A serial number as names write it; None where there is nothing to write."""
    return re.sub(r"[^\w.-]", "_", serial.strip(), flags=re.ASCII) or None
