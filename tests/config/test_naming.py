"""A name that is not one is told with the one that was meant."""

import pytest

from capstand.config.naming import fault, note, parse


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        # arecord -l, in English and German
        ("card 1: Device [USB Audio Device], device 0: USB Audio [USB Audio]", "card:Device"),
        ("card 1: PCH [HDA Intel PCH], device 2: ALC [ALC]", "card:PCH,2"),
        ("Karte 1: Device [USB], Gerät 0: USB Audio [USB Audio]", "card:Device"),
        # /proc/asound
        (" 1 [Device         ]: USB-Audio - USB PnP Sound Device", "card:Device"),
        ("01-00: USB Audio : USB Audio : capture 1", "hw:1,0"),
        # a card's long name
        (
            "C-Media Electronics Inc. USB PnP Sound Device at usb-0000:00:14.0-1.4, full speed",
            "usb-port:pci-0000:00:14.0-usb-0:1.4",
        ),
        ("USB Mic at usb-3f980000.usb-1.2, high speed", "usb-port:platform-3f980000.usb-usb-0:1.2"),
        # lsusb
        ("Bus 001 Device 004: ID 0d8c:0014 C-Media Electronics, Inc.", "usb:0d8c:0014"),
        ("0d8c:0014", "usb:0d8c:0014"),
        # nodes and numbers
        ("/dev/snd/pcmC1D0c", "hw:1,0"),
        ("/dev/snd/controlC2", "hw:2"),
        ("1", "hw:1"),
        ("1,0", "hw:1,0"),
        # quotes of a shell, blanks, capitals, options
        ("plug:'hw:1,0'", "plughw:1,0"),
        ('plug:{SLAVE="hw:1,0"}', "plughw:1,0"),
        ("'hw:1,0'", "hw:1,0"),
        ("hw:1,0 ", "hw:1,0"),
        ("hw: 1, 0", "hw:1,0"),
        ("HW:1", "hw:1"),
        ("PlugHW:CARD=Mic", "plughw:CARD=Mic"),
        ("-D hw:1", "hw:1"),
        # udev's
        ("pci-0000:00:14.0-usb-0:1.4:1.0", "usb-port:pci-0000:00:14.0-usb-0:1.4:1.0"),
        ("by-id/usb-C-Media-00", "/dev/snd/by-id/usb-C-Media-00"),
        # PCMs of one's own, and a sound server's sources
        ("pcm.shared", "shared"),
        ("pcm.!default", "default"),
        ("alsa_input.usb-C-Media-00.mono", "pulse:alsa_input.usb-C-Media-00.mono"),
    ],
)
def test_what_is_printed_elsewhere_is_told_as_a_name(given: str, meant: str) -> None:
    """A line of another program, a path or a slip is refused with the name to write, which is
    right itself."""
    told = fault(given)
    assert told is not None
    assert f'did you mean "{meant}"?' in told
    assert fault(meant) is None


@pytest.mark.parametrize(
    "given",
    ["USB PnP Sound Device", "rate_convert:SLAVE=hw", "mic.left", "dmix:{x}", "Ä", "@x", ""],
)
def test_a_name_without_a_better_one_says_where_to_find_one(given: str) -> None:
    """What nobody can guess is told with the command that lists names, and the way for plug-ins."""
    told = fault(given)
    assert told is not None
    assert "`capstand devices` prints" in told
    assert "/etc/asound.conf" in told
    assert "did you mean" not in told


@pytest.mark.parametrize(
    ("name", "numbered"),
    [
        *(("hw:1", True), ("plughw:0,0", True), ("hw:CARD=1,DEV=0", True), ("dsnoop:2", True)),
        *(
            ("hw:CARD=Device", False),
            ("card:1", False),
            ("default", False),
            ("usb:0d8c:0014", False),
        ),
    ],
)
def test_a_number_of_a_card_is_noted(name: str, numbered: bool) -> None:
    """A name that goes by a card's number is right, and comes with a note that it does not last."""
    assert fault(name) is None
    told = note(name)
    assert (told is not None) == numbered
    if told:
        assert "`capstand devices` prints a stable name" in told


def test_the_name_of_a_port_keeps_its_parts() -> None:
    """A port has a controller with any colons, ports, perhaps an interface and a device."""
    wanted = parse("usb-port:platform-fd500000.pcie-pci-0000:01:00.0-usb-0:1.3.2:1.2,3")
    assert wanted is not None
    assert wanted.port == "platform-fd500000.pcie-pci-0000:01:00.0-usb-0:1.3.2"
    assert (wanted.interface, wanted.device) == ("1.2", 3)
