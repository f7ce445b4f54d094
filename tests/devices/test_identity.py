"""A device is the one that its name means, at every open, whatever number it has got."""

import errno
import grp
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.capture import alsa
from capstand.capture.alsa import AlsaSource
from capstand.config.decode import decode
from capstand.config.schema import CaptureConfig, Config
from capstand.devices import libasound
from capstand.devices.identity import bus_of, cards, locate, name_of
from capstand.errors import ConfigError, DeviceError
from tests.fakecard import FakeCard
from tests.soundcards import XHCI, Slots

MIC = "0d8c:0014"
XHCI_PORT = "usb-port:pci-0000:00:14.0-usb-0:"
SEED = 20261122


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    return Slots(tmp_path)


def device(slots: Slots, name: str) -> str:
    place = locate(name, slots.root)
    assert place is not None
    return place.device


def refusal(slots: Slots, name: str) -> DeviceError:
    with pytest.raises(DeviceError) as refused:
        locate(name, slots.root)
    assert "\n" not in str(refused.value)
    return refused.value


# Where a name leads


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("usb:0d8c:0014", "hw:3,0"),
        ("usb:0D8C:0014", "hw:3,0"),
        ("usb:0d8c:0014:A_1", "hw:3,0"),
        ("usb:0d8c:0014:A_1,2", "hw:3,2"),
        ("usb:0d8c:0014,2", "hw:3,2"),
        (f"{XHCI_PORT}1.4", "hw:3,0"),
        (f"{XHCI_PORT}1.4,2", "hw:3,2"),
        (f"{XHCI_PORT}1.4.2", "hw:1,0"),
        ("usb:046d:0825", "hw:1,0"),
        ("card:Device", "hw:3,0"),
        ("card:Line", "hw:0,1"),
        ("card:Line,6", "hw:0,6"),
    ],
)
def test_a_name_leads_to_its_card(slots: Slots, name: str, found: str) -> None:
    """Vendor and product, serial number, port and id each mean one card, behind hubs too; without
    a number it is the first device of the card that captures."""
    slots.plug(0, identity="Line", captures=(1, 6))
    slots.plug(1, "046d:0825", port="1-1.4.2", identity="U0x46d0x825")
    slots.plug(3, MIC, port="1-1.4", serial="A 1", captures=(0, 2))
    assert device(slots, name) == found


@pytest.mark.parametrize("name", ["hw:0", "hw:CARD=Device,DEV=0", "plughw:1", "default", "usbmic"])
def test_a_name_of_alsas_own_is_left_to_alsa(slots: Slots, name: str) -> None:
    """What has none of the prefixes is not looked up."""
    slots.plug(0, MIC)
    assert locate(name, slots.root) is None


@pytest.mark.parametrize("name", ["usb:0d8c:0014", f"{XHCI_PORT}2", "card:Mic", "card:Mic,1"])
def test_a_device_that_is_not_there_is_waited_for(slots: Slots, name: str) -> None:
    """What is not plugged in is waited for by its name, in one line, and is no fault for good."""
    slots.plug(0, "046d:0825", port="1-1")
    error = refusal(slots, name)
    assert str(error).startswith(f"waiting for {name} (not plugged in)")
    assert not error.refused
    slots.clear()
    assert str(refusal(slots, name)) == str(error)
    assert str(refusal(Slots(slots.root / "without"), name)) == str(error)


def test_another_of_the_same_kind_is_named(slots: Slots) -> None:
    """When the serial number that is asked for is away and another is there, the line says so."""
    slots.plug(0, MIC, serial="B2")
    error = refusal(slots, f"usb:{MIC}:A1")
    assert f"waiting for usb:{MIC}:A1 (not plugged in; usb:{MIC}:B2 is)" in str(error)


def test_a_card_without_the_device_says_what_it_has(slots: Slots) -> None:
    """A card that is there and does not capture, or not with that number, is told apart."""
    slots.plug(0, MIC, port="1-1", captures=())
    slots.plug(1, MIC, port="1-2", captures=(0, 3))
    assert str(refusal(slots, f"{XHCI_PORT}1")).endswith("card 0 (Device) has no capture device")
    assert str(refusal(slots, f"{XHCI_PORT}2,1")).endswith("no capture device 1; it has 0, 3")


def test_a_card_without_its_node_is_waited_for(slots: Slots) -> None:
    """A card that the kernel has and whose node is not in this /dev is waited for; that is no
    question of rights, and the line says what it is in a container."""
    slots.plug(1, MIC)
    for node in (slots.node(1, 0), slots.root / "dev/snd/controlC1"):
        node.unlink()
        error = refusal(slots, f"usb:{MIC}")
        assert f"the kernel has the card, but {node} is missing" in str(error)
        assert "--volume /dev/snd:/dev/snd" in str(error)
        assert "group" not in str(error)
        assert not error.refused
        node.touch()
    assert device(slots, f"usb:{MIC}") == "hw:1,0"


def test_who_lacks_the_group_is_told_which(tmp_path: Path) -> None:
    """A node that its group may open, and we may not, is told with that group, by number where the
    system has no name for it; one that udev has not given away yet is no question of ours."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    slots = Slots(folder)
    slots.plug(0, MIC)
    told = []
    for gid in (grp.getgrnam("audio").gr_gid, 4711, 0):
        for node in (slots.node(0, 0), folder / "dev/snd/controlC0"):
            os.chown(node, 0, gid)
            node.chmod(0o660)
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            try:
                locate(f"usb:{MIC}", folder)
            except DeviceError as error:
                os.write(writing, str(error).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writing)
        told.append(os.read(reading, 4096).decode())
        os.close(reading)
    shutil.rmtree(folder)
    node = folder / "dev/snd/pcmC0D0c"
    assert all(one.startswith(f"waiting for usb:{MIC}: {node} cannot be opened") for one in told)
    assert "add the user to the group audio and log in again" in told[0]
    assert "--group-add 4711" in told[1]
    assert "change its group to audio (udev does" in told[2]


# Ports

PI_4 = "platform/scb/fd500000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0"
PI_3 = "platform/soc/3f980000.usb"
PI_5 = "platform/axi/1000120000.pcie/1f00200000.usb/xhci-hcd.0"
PI_5_OTHER = "platform/axi/1000120000.pcie/1f00300000.usb/xhci-hcd.1"


@pytest.mark.parametrize(
    ("controller", "port", "names"),
    [
        ("pci0000:00/0000:00:14.0", "1-1.4", ["pci-0000:00:14.0-usb-0:1.4"]),
        ("pci0000:00/0000:00:1c.0/0000:02:00.0", "3-2", ["pci-0000:02:00.0-usb-0:2"]),
        (PI_3, "1-1.1.3", ["platform-3f980000.usb-usb-0:1.1.3"]),
        (
            PI_4,
            "1-1.3",
            ["platform-fd500000.pcie-pci-0000:01:00.0-usb-0:1.3", "pci-0000:01:00.0-usb-0:1.3"],
        ),
        (PI_5, "1-2", ["platform-1f00200000.usb-usb-0:2", "platform-xhci-hcd.0-usb-0:2"]),
        ("platform/vhci_hcd.0", "3-1", ["platform-vhci_hcd.0-usb-0:1"]),
        ("platform/soc@0/32f10100.usb", "2-1.2", ["platform-32f10100.usb-usb-0:1.2"]),
    ],
)
def test_a_port_goes_by_its_controllers_place(
    slots: Slots, controller: str, port: str, names: list[str]
) -> None:
    """A port is named as udev's ID_PATH names it, on a PC and on boards, behind any hubs. Where
    udev takes a device whose number follows the order of probing, the name shown is the address
    above it, and udev's is understood."""
    slots.plug(4, MIC, port=port, controller=controller)
    (card,) = cards(slots.root)
    assert name_of(card, [card])[0] == f"usb-port:{names[0]}"
    for name in names:
        for written in (f"usb-port:{name}", f"usb-port:{name}:1.0", f"usb-port:{name},0"):
            assert configured(written) == written
            assert device(slots, written) == "hw:4,0"
    assert refusal(slots, f"usb-port:{names[0]}:1.2").errno == errno.ENODEV


@pytest.mark.parametrize(
    ("kitchen", "garden"),
    [(XHCI, "pci0000:00/0000:00:1a.0"), (PI_4, PI_3), (PI_5, PI_5_OTHER)],
)
@pytest.mark.parametrize("port", ["1", "1.4", "2.1.3"])
def test_a_name_outlasts_a_reboot_that_numbers_the_buses_anew(
    tmp_path: Path, kitchen: str, garden: str, port: str
) -> None:
    """Two like microphones at like ports of two controllers keep their names when the buses, and
    the devices of the controllers, get other numbers."""
    named: list[dict[str, str]] = []
    for boot, buses in enumerate(((1, 3), (3, 1))):
        slots = Slots(tmp_path / str(boot))
        places = [kitchen, garden]
        if boot:  # probed in the other order
            places = [kitchen.replace("hcd.0", "hcd.1"), garden.replace("hcd.1", "hcd.0")]
        for number, (identity, bus, place) in enumerate(
            zip(("Kitchen", "Garden"), buses, places, strict=True)
        ):
            slots.plug(number, MIC, port=f"{bus}-{port}", identity=identity, controller=place)
        there = cards(slots.root)
        named.append({one.id: name_of(one, there)[0] for one in there})
        for one in there:
            assert device(slots, named[0][one.id]) == f"hw:{one.number},0"
    assert named[0] == named[1]


@pytest.mark.parametrize("name", ["usb-port:1-1.4", "usb-port:3-1.4,0"])
def test_a_port_by_the_number_of_its_bus_is_refused(slots: Slots, name: str) -> None:
    """A bus number means another port after a reboot: it opens nothing, and the line says what to
    write, for the card that is there now by name."""
    slots.plug(0, MIC, port="1-1.4")
    error = refusal(slots, name)
    assert error.refused
    assert "which changes at a reboot" in str(error)
    shown = f"{XHCI_PORT}1.4 is plugged in there now" in str(error)
    assert shown == (name == "usb-port:1-1.4")
    with pytest.raises(ConfigError, match=r"write the port by its controller.*-usb-0:1\.4"):
        configured(name)


def test_two_cards_of_one_usb_device_are_told_apart_by_interface(slots: Slots) -> None:
    """A device may be two cards: then the name to paste has the interface in it."""
    slots.plug(0, MIC, port="1-2", serial="A1", interface="1.0")
    slots.plug(1, MIC, port="1-2", serial="A1", interface="1.2", identity="Device_1")
    there = cards(slots.root)
    names = [name_of(one, there)[0] for one in there]
    assert names == [f"{XHCI_PORT}2:1.0", f"{XHCI_PORT}2:1.2"]
    assert [device(slots, name) for name in names] == ["hw:0,0", "hw:1,0"]
    assert "fits card 0 (Device) and card 1 (Device_1)" in str(refusal(slots, f"usb:{MIC}:A1"))


def test_the_ports_of_usb_2_and_usb_3_of_one_controller_are_told_apart(slots: Slots) -> None:
    """A controller has two buses whose ports have the same numbers: a name that fits both is
    refused, and the one to paste has the revision of USB in it, as udev has it."""
    slots.plug(0, MIC, port="1-1")
    slots.plug(1, "0fd9:0066", port="2-1", identity="Cam")
    for bus, protocol in ((1, "01"), (2, "03")):
        (slots.root / f"sys/devices/{XHCI}/usb{bus}/bDeviceProtocol").write_text(f"{protocol}\n")
    there = cards(slots.root)
    names = [name_of(one, there)[0] for one in there]
    assert names == [f"usb-port:pci-0000:00:14.0-usbv{one}-0:1" for one in (2, 3)]
    assert [device(slots, name) for name in names] == ["hw:0,0", "hw:1,0"]
    assert "use the name of one" in str(refusal(slots, f"{XHCI_PORT}1"))


# Links of udev's


def test_links_of_udev_lead_to_their_cards(slots: Slots) -> None:
    """What udev puts into /dev/snd/by-path and by-id is understood, with a device's number too."""
    slots.plug(2, MIC, port="1-1.4", serial="A1", captures=(0, 1))
    slots.plug(0, identity="PCH")
    slots.udev("by-path/pci-0000:00:14.0-usb-0:1.4:1.0", 2)
    slots.udev("by-path/pci-0000:00:1f.3", 0)
    slots.udev("by-id/usb-C-Media_USB_Mic_A1-00", 2)
    for link, found in (
        ("by-path/pci-0000:00:14.0-usb-0:1.4:1.0", "hw:2,0"),
        ("by-path/pci-0000:00:14.0-usb-0:1.4:1.0,1", "hw:2,1"),
        ("by-path/pci-0000:00:1f.3", "hw:0,0"),
        ("by-id/usb-C-Media_USB_Mic_A1-00", "hw:2,0"),
    ):
        assert configured(f"/dev/snd/{link}") == f"/dev/snd/{link}"
        assert device(slots, f"/dev/snd/{link}") == found
    assert "not plugged in" in str(refusal(slots, "/dev/snd/by-id/usb-Other-00"))


def test_a_path_of_udev_is_understood_where_udev_made_no_links(slots: Slots) -> None:
    """A container may lack udev's links: a USB port is known without them, and anything else is
    told with what to write instead."""
    slots.plug(2, MIC, port="1-1.4")
    assert device(slots, "/dev/snd/by-path/pci-0000:00:14.0-usb-0:1.4:1.0") == "hw:2,0"
    told = str(refusal(slots, "/dev/snd/by-id/usb-C-Media-00"))
    assert "by-id is missing; udev creates it" in told
    assert f"take {XHCI_PORT}1.4" in told


def test_a_link_by_id_that_two_devices_want_is_refused(slots: Slots) -> None:
    """udev gives such a link to one of two like devices: it is not known to which."""
    slots.plug(0, MIC, port="1-1")
    slots.plug(1, MIC, port="1-2", identity="Device_1")
    slots.udev("by-id/usb-C-Media_USB_Mic-00", 1)
    error = refusal(slots, "/dev/snd/by-id/usb-C-Media_USB_Mic-00")
    assert error.refused
    assert str(error).endswith(f"{XHCI_PORT}1 or {XHCI_PORT}2")
    slots.unplug(0)
    assert device(slots, "/dev/snd/by-id/usb-C-Media_USB_Mic-00") == "hw:1,0"


# Two of a kind


@pytest.mark.parametrize(
    ("serials", "names"),
    [
        (("A1", "B2"), (f"usb:{MIC}:A1", f"usb:{MIC}:B2")),
        ((None, None), (f"{XHCI_PORT}1.3", f"{XHCI_PORT}1.4")),
        (("X", "X"), (f"{XHCI_PORT}1.3", f"{XHCI_PORT}1.4")),
        (("A1", None), (f"usb:{MIC}:A1", f"{XHCI_PORT}1.4")),
    ],
)
def test_two_that_fit_are_an_error_that_tells_them_apart(
    slots: Slots, serials: tuple[str | None, str | None], names: tuple[str, str]
) -> None:
    """Two devices of one model are never guessed at: both are named, with a name for each that
    does tell them apart, and each of these leads to its own."""
    slots.plug(1, MIC, port="1-1.3", serial=serials[0])
    slots.plug(2, MIC, port="1-1.4", serial=serials[1], identity="Device_1")
    error = refusal(slots, f"usb:{MIC}")
    assert error.refused
    assert "card 1 (Device) and card 2 (Device_1)" in str(error)
    assert str(error).endswith(f"{names[0]} or {names[1]}")
    assert [device(slots, name) for name in names] == ["hw:1,0", "hw:2,0"]


def test_the_name_to_paste_says_what_it_depends_on(slots: Slots) -> None:
    """A serial number of its own needs no note; a port and a numbered id come with one."""
    slots.plug(0, MIC, port="1-1", serial="A1")
    slots.plug(1, "046d:0825", port="1-2")
    slots.plug(2, identity="Loopback")
    slots.plug(3, identity="Loopback_1")
    slots.plug(4, identity="PCH")
    there = cards(slots.root)
    named = dict(name_of(one, there) for one in there)
    assert list(named) == [
        *(f"usb:{MIC}:A1", f"{XHCI_PORT}2", "card:Loopback", "card:Loopback_1", "card:PCH")
    ]
    assert [bool(note) for note in named.values()] == [False, True, True, True, False]
    assert "no serial number" in str(named[f"{XHCI_PORT}2"])


PORTS = ("1-1.1", "1-1.4", "1-2", "2-1", "2-2.1.3")
KINDS = st.tuples(st.sampled_from([MIC, "046d:0825"]), st.sampled_from([None, "1", "A 1", "A_1"]))


@given(st.dictionaries(st.sampled_from(PORTS), KINDS, max_size=5), st.randoms())
@settings(max_examples=25, deadline=None)
def test_the_name_to_paste_means_that_card_alone(
    tmp_path_factory: pytest.TempPathFactory,
    plugged: dict[str, tuple[str, str | None]],
    chance: random.Random,
) -> None:
    """For any cards in any ports the name that is shown for each is right as a configuration, and
    after they were all plugged in again in another order it still means the same one."""
    slots = Slots(tmp_path_factory.mktemp("slots"))
    for number, (port, (usb, serial)) in enumerate(plugged.items()):
        slots.plug(number, usb, port=port, serial=serial, identity=f"Device_{number}")
    there = cards(slots.root)
    names = {str(one.port): name_of(one, there)[0] for one in there}
    slots.clear()
    order = chance.sample(sorted(plugged), len(plugged))
    for number, port in enumerate(order):
        usb, serial = plugged[port]
        slots.plug(number, usb, port=port, serial=serial, identity=f"Device_{number}")
    for port, name in names.items():
        assert configured(name) == name
        assert device(slots, name) == f"hw:{order.index(port)},0"


# Opening


def configured(name: str) -> object:
    """The name, through a configuration."""
    quoted = "".join(
        f"\\U{ord(one):08x}" if one in '"\\' or not one.isprintable() else one for one in name
    )
    text = (
        f'[[stream]]\nname = "m"\n[stream.capture]\ndevice = "{quoted}"\n'
        '[[stream.sink]]\ntype = "file"\npath = "/rec"\n'
    )
    return decode(text, "c.toml", Config).stream[0].capture.device


def source(slots: Slots, name: str) -> AlsaSource:
    return AlsaSource(CaptureConfig(device=name, rt_priority=0), root=slots.root)


@pytest.fixture
def three(
    slots: Slots, fakecard_plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, FakeCard]:
    """Three cards by the name that means each: two of one model, one without a serial number."""
    made = {
        name: FakeCard(slots.root, f"fake{number}", fakecard_plugin)
        for number, name in enumerate((f"usb:{MIC}:A1", f"usb:{MIC}:B2", f"{XHCI_PORT}1.4"))
    }
    for key, value in slots.alsa(made[f"{XHCI_PORT}1.4"]).items():
        monkeypatch.setenv(key, value)
    return made


def shuffle(slots: Slots, three: dict[str, FakeCard], chance: random.Random) -> None:
    """All are pulled and plugged in again: other numbers, those with serials in other ports; one
    may be missing.
    """
    slots.clear()
    numbers = chance.sample(range(8), 3)
    ports = chance.sample(["1-1.1", "1-1.2", "1-2", "3-1"], 3)
    missing = chance.choice([None, *three])
    for (name, card), number, port in zip(three.items(), numbers, ports, strict=True):
        serial = name.rpartition(":")[2] if name.startswith("usb:") else None
        where = port if serial else "1-1.4"
        if name != missing:
            slots.plug(number, MIC, port=where, serial=serial, card=card)


def test_fifty_renumberings_open_no_wrong_card(
    slots: Slots, three: dict[str, FakeCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over fifty rounds of pulling all cards and plugging them in under other numbers, sometimes in
    the very moment of opening, each name opens its own card or none."""
    chance = random.Random(SEED)
    swaps = iter(chance.choice([False, False, True]) for _ in range(1000))
    refresh = libasound.refresh_configuration

    def meanwhile() -> None:  # between the look and the opening
        if next(swaps):
            shuffle(slots, three, chance)
        refresh()

    monkeypatch.setattr(alsa, "refresh_configuration", meanwhile)
    opened = dict.fromkeys(three, 0)
    for _ in range(50):
        shuffle(slots, three, chance)
        for name, card in three.items():
            one = source(slots, name)
            before = card.opens
            try:
                grant = one.open()
            except DeviceError:
                continue
            finally:
                one.close()
            assert card.opens == before + 1, f"{name} opened another card, {grant.device}"
            assert grant.device.startswith(f"{name} at hw:")
            opened[name] += 1
    assert all(opened.values())


def test_a_card_that_was_replaced_while_it_was_opened_is_let_go(
    slots: Slots, three: dict[str, FakeCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another card has taken the number between the look and the opening, it is closed again
    and the opening fails with the reason; the next one finds the right card."""
    wrong, right = three[f"usb:{MIC}:A1"], three[f"usb:{MIC}:B2"]
    slots.plug(1, MIC, serial="B2", card=right)

    def swap() -> None:
        slots.unplug(1)
        slots.plug(1, MIC, serial="A1", port="1-1", card=wrong)
        slots.plug(2, MIC, serial="B2", port="1-2", card=right)

    one = source(slots, f"usb:{MIC}:B2")
    monkeypatch.setattr(alsa, "refresh_configuration", swap)
    with pytest.raises(DeviceError, match="was replaced by another card") as replaced:
        one.open()
    assert not replaced.value.refused
    one.close()
    monkeypatch.undo()
    for key, value in slots.alsa(right).items():
        monkeypatch.setenv(key, value)
    assert one.open().device == f"usb:{MIC}:B2 at hw:2,0"
    one.close()
    other = source(slots, f"usb:{MIC}:A1")
    other.open()  # would be busy if it had been kept
    other.close()


def test_the_same_card_plugged_in_again_while_it_was_opened_is_opened_again(slots: Slots) -> None:
    """A card that went and came back under its old number is another than the one looked up."""
    slots.plug(1, MIC, serial="A1")
    before = locate(f"usb:{MIC}:A1", slots.root)
    slots.unplug(1)
    slots.plug(1, MIC, serial="A1")
    after = locate(f"usb:{MIC}:A1", slots.root)
    assert before is not None and after is not None
    assert before.device == after.device
    assert before != after


def test_a_card_says_what_bus_it_is_on(slots: Slots) -> None:
    """By sysfs; a card that tells nothing is on none that is known."""
    slots.plug(1, MIC)
    slots.plug(2)
    device = slots.sound / "card1" / "device"
    device.symlink_to(device.resolve().parents[1])
    (device / "subsystem").symlink_to(slots.root / "sys/bus/usb")
    assert [bus_of(number, slots.root) for number in (1, 2, 3)] == ["usb", "", ""]


TWINS = [
    ((None, "1-1"), (None, "1-1"), None),
    (
        (None, "1-1"),
        (None, "1-2"),
        "is another card of the same model, or was moved: port {2}; previously port {1}",
    ),
    (
        ("A1", "1-1"),
        ("A1", "1-2"),
        "is plugged in elsewhere: port {2}, serial number A1; previously port {1}",
    ),
    (
        ("A1", "1-1"),
        ("B2", "1-1"),
        "is another card now: port {1}, serial number B2; previously port {1}",
    ),
    (("A1", "1-1"), (None, "1-2"), "is another card now: port {2}; previously port {1}"),
]


@pytest.mark.parametrize(("first", "second", "told"), TWINS)
def test_a_twin_that_takes_over_is_told(
    first: tuple[str | None, str],
    second: tuple[str | None, str],
    told: str | None,
    slots: Slots,
    three: dict[str, FakeCard],
) -> None:
    """Who goes by vendor and product gets the next one that fits, and is told by port and serial
    number which one that is, and which one it was."""
    one, card = source(slots, f"usb:{MIC}"), three[f"usb:{MIC}:A1"]
    grants = []
    for serial, port in (first, second, second):
        slots.plug(1, MIC, serial=serial, port=port, card=card)
        grants.append(one.open())
        one.close()
        slots.unplug(1)
    ports = [f"pci-0000:00:14.0-usb-0:{number}" for number in range(3)]
    words = told and f"usb:{MIC} {told}".format("", ports[1], ports[2])
    assert grants[0].successor is None
    assert (grants[1].successor or "").startswith(words or "")
    assert (grants[1].successor is None) is (told is None)
    assert grants[2].successor == grants[1].successor


def test_udev_is_waited_for_before_a_person_is_told(
    slots: Slots, three: dict[str, FakeCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card that was just plugged in may not be opened for a moment; only after 2 s of that a word
    about groups is of use. Each time anew."""
    now_ns = 10**12
    monkeypatch.setattr("capstand.capture.alsa.time.monotonic_ns", lambda: now_ns)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    one = source(slots, f"usb:{MIC}")
    for _ in range(2):
        with pytest.raises(DeviceError, match="not plugged in"):
            one.open()
        slots.plug(1, MIC, card=three[f"usb:{MIC}:A1"])
        for after_s, words in (
            (0, "udev is setting it up"),
            (1.9, "udev"),
            (2.1, "cannot be opened"),
        ):
            now_ns += round(after_s * 1e9)
            with pytest.raises(DeviceError, match=words) as denied:
                one.open()
            assert denied.value.errno == errno.EACCES
            now_ns -= round(after_s * 1e9)
        slots.unplug(1)
        now_ns += 10**10


HOSTILE = st.sampled_from(
    ["usb:", "usb-port:", "card:", "USB:", "Card:", "usb:0d8c:0014:"]
).flatmap(lambda start: st.text(max_size=40).map(lambda rest: start + rest))


@given(HOSTILE)
@settings(max_examples=200, deadline=None)
def test_a_hostile_name_is_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    """Whatever follows a prefix, the configuration says what it should look like, or the device is
    not there; there is no third way."""
    try:
        name.encode()
        accepted = configured(name)
    except UnicodeEncodeError:
        return
    except ConfigError as error:
        assert all("such as" in fault for fault in error.faults)
        return
    assert accepted == name
    slots = Slots(tmp_path_factory.mktemp("slots"))
    slots.plug(0, MIC)
    one = source(slots, name)
    with pytest.raises(DeviceError, match="waiting for"):
        one.open()
    one.close()


@given(st.binary(max_size=60), st.binary(max_size=60))
@settings(max_examples=60, deadline=None)
def test_hostile_descriptors_do_no_harm(
    tmp_path_factory: pytest.TempPathFactory, serial: bytes, vendor: bytes
) -> None:
    """A device that calls itself anything at all is listed under a name that a configuration may
    hold, and the cards beside it are found."""
    slots = Slots(tmp_path_factory.mktemp("slots"))
    slots.plug(0, MIC, port="1-1", serial="")
    slots.plug(1, "046d:0825", port="1-2")
    (serial_file,) = slots.root.rglob("1-1/serial")
    serial_file.write_bytes(serial)
    (vendor_file,) = slots.root.rglob("1-2/idVendor")
    vendor_file.write_bytes(vendor)
    there = cards(slots.root)
    assert [one.number for one in there] == [0, 1]
    for one in there:
        name, _ = name_of(one, there)
        assert configured(name) == name
        assert device(slots, name) == f"hw:{one.number},0"


def test_a_card_that_vanishes_while_it_is_looked_at_is_not_there(slots: Slots) -> None:
    """A link in sysfs that leads nowhere any more is passed over."""
    slots.plug(0, MIC)
    (slots.sound / "card1").symlink_to(slots.root / "gone")
    assert [card.number for card in cards(slots.root)] == [0]
