"""Devices: what is found, who holds it, and a first configuration that always fits."""

import errno
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.audio.block import SampleFormat
from capstand.capture.alsa import AlsaSource
from capstand.config.decode import decode
from capstand.config.schema import CaptureConfig, Config
from capstand.devices import address, libasound
from capstand.devices.holder import holder_of
from capstand.devices.identity import locate
from capstand.devices.libasound import Abilities
from capstand.devices.listing import Device, default_configuration, find, passed_over
from capstand.errors import DeviceError
from capstand.sinks.types.file import FileSinkConfig
from tests.fakecard import FakeCard
from tests.soundcards import Slots

MIC = Device(
    device="hw:CARD=Mic,DEV=0",
    card=0,
    id="Mic",
    name="USB Mic",
    rates_hz=[44_100, 48_000],
    rates_continuous=False,
    channels=[1, 2],
    formats=["S16_LE", "S24_3LE"],
    holder=None,
    trouble=None,
)
HELD = MIC._replace(rates_hz=[], channels=[], formats=[], holder="arecord (pid 812)")


def first(*found: Device) -> Config:
    return decode(default_configuration(list(found), Path("/rec")), "built-in", Config)


# A first configuration


@pytest.mark.parametrize(
    ("device", "rate_hz", "channels", "sample"),
    [
        (MIC, 48_000, 2, "S16_LE"),
        (MIC._replace(rates_hz=[16_000, 44_100]), 44_100, 2, "S16_LE"),
        (MIC._replace(rates_hz=[8000, 192_000], rates_continuous=True), 48_000, 2, "S16_LE"),
        (MIC._replace(rates_hz=[8000, 16_000], rates_continuous=True), 16_000, 2, "S16_LE"),
        (MIC._replace(rates_hz=[96_000, 768_000], rates_continuous=True), 96_000, 2, "S16_LE"),
        (MIC._replace(rates_hz=[96_000, 384_000, 768_000]), 96_000, 2, "S16_LE"),
        (MIC._replace(channels=[1]), 48_000, 1, "S16_LE"),
        (MIC._replace(channels=list(range(6, 65))), 48_000, 6, "S16_LE"),
        (MIC._replace(formats=["S32_LE", "S24_3LE"]), 48_000, 2, "S24_3LE"),
    ],
)
def test_the_first_card_is_taken_as_it_can(
    device: Device, rate_hz: int, channels: int, sample: str
) -> None:
    """Without a configuration the card gives 48 kHz, stereo, 16 bits, or what comes nearest."""
    (stream,) = first(device).stream
    capture = stream.capture
    assert (stream.name, capture.device) == ("mic", device.device)
    assert (capture.rate_hz, capture.channels, capture.format) == (rate_hz, channels, sample)
    assert stream.sink == (FileSinkConfig(type="file", path="/rec"),)


@pytest.mark.parametrize(
    "found",
    [
        [],
        [HELD],
        [HELD._replace(holder=None, trouble="cannot be opened: no such device")],
        [MIC._replace(formats=[])],
        [MIC._replace(rates_hz=[3_840_000])],
        [MIC._replace(rates_hz=[4000, 6000], rates_continuous=True)],
        [MIC._replace(channels=[64])],
    ],
    ids=["none", "held", "broken", "other formats", "too fast", "too slow", "too wide"],
)
def test_without_a_card_that_fits_the_simulated_one_is_taken(found: list[Device]) -> None:
    """Where no card is usable the first configuration plays a tone."""
    (stream,) = first(*found).stream
    assert (stream.name, stream.capture.device) == ("tone", "synthetic")


def test_a_card_that_is_held_is_passed_over() -> None:
    """The first card that can be used is taken, not the first one."""
    other = MIC._replace(device="hw:CARD=Two,DEV=0")
    assert first(HELD, other).stream[0].capture.device == other.device


@given(
    st.lists(
        st.builds(
            Device,
            device=st.from_regex(r"hw:CARD=[A-Za-z0-9_]{1,15},DEV=[0-9]{1,2}", fullmatch=True),
            card=st.integers(0, 31),
            id=st.text(max_size=5),
            name=st.text(max_size=5),
            rates_hz=st.lists(st.integers(1, 800_000), min_size=2, max_size=2).map(sorted),
            rates_continuous=st.booleans(),
            channels=st.lists(st.integers(1, 10_000), max_size=3, unique=True).map(sorted),
            formats=st.lists(st.sampled_from([one.alsa_name for one in SampleFormat]), max_size=2),
            holder=st.none(),
            trouble=st.none(),
        ),
        max_size=3,
    )
)
@settings(max_examples=40, deadline=None)
def test_the_first_configuration_is_right_for_any_cards(found: list[Device]) -> None:
    """Whatever the cards offer, what is made of it is a right configuration."""
    assert len(first(*found).stream) == 1


@pytest.mark.parametrize("folder", ["/a b", '/a"b', "/a\\b", "/ä/𝄞", "/a'b#"])
def test_the_directory_may_have_any_name(folder: str) -> None:
    """The directory for recordings is written so that it reads back as it is."""
    config = decode(default_configuration([MIC], Path(folder)), "built-in", Config)
    assert config.stream[0].sink == (FileSinkConfig(type="file", path=folder),)


# What is shown


def test_a_device_is_shown_as_the_line_to_configure() -> None:
    """A device is its line for the configuration, its name and what it can do, or why it cannot."""
    assert str(MIC) == (
        "hw:CARD=Mic,DEV=0\n    USB Mic\n    44100, 48000 Hz; 1, 2 channels; S16_LE, S24_3LE"
    )
    assert str(HELD) == "hw:CARD=Mic,DEV=0\n    USB Mic\n    in use by arecord (pid 812)"
    wide = MIC._replace(rates_hz=[8000, 192_000], rates_continuous=True)
    assert str(wide).splitlines()[2].startswith("    8000 to 192000 Hz; ")


# What /proc tells

PCM = """\
00-00: USB Audio : USB Audio : capture 1
01-00: ALC257 Analog : ALC257 Analog : playback 1 : capture 1
01-03: HDMI 0 : HDMI 0 : playback 1
a line of another kernel
"""


def proc(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


HOLDER = {
    "asound/card0/pcm0c/sub0/status": "closed\n",
    "asound/card0/pcm0c/sub1/status": "state: RUNNING\nowner_pid   : 813\ntrigger_time: 1.0\n",
    "813/status": "Name:\tarecord\nTgid:\t812\nPid:\t813\n",
    "813/comm": "worker\n",
    "812/comm": "arecord\n",
}


def test_every_capture_device_is_found(tmp_path: Path) -> None:
    """Each capture device of each card is found, by the name that lasts longest; a device that is
    not its card's first has its number in it."""
    proc(tmp_path, {"asound/pcm": PCM + "01-02: Line : Line : capture 1\n"})
    slots = Slots(tmp_path)
    slots.plug(0, "0d8c:0014", port="1-1.4", identity="Mic")
    slots.plug(1, identity="PCH", captures=(0, 2))
    found = find(tmp_path)
    assert [(one.device, one.card, one.id) for one in found] == [
        ("usb-port:pci-0000:00:14.0-usb-0:1.4", 0, "Mic"),
        ("card:PCH", 1, "PCH"),
        ("card:PCH,2", 1, "PCH"),
    ]
    assert str(found[0]).endswith(
        "no serial number: this names the port, so keep it plugged in there"
    )
    assert found[1].note is None
    assert "USB Audio" in found[0].name


@pytest.fixture
def plugged(
    tmp_path: Path, fakecard_plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Slots, FakeCard]:
    """One card that can be opened, in a tree without /proc."""
    slots, card = Slots(tmp_path), FakeCard(tmp_path, "mic0", fakecard_plugin)
    slots.plug(0, "0d8c:0014", identity="Device", card=card)
    for key, value in slots.alsa(card).items():
        monkeypatch.setenv(key, value)
    return slots, card


@pytest.mark.parametrize("masked", ["absent", "empty", "partial"])
def test_a_container_without_proc_asound_has_its_cards(
    plugged: tuple[Slots, FakeCard], masked: str
) -> None:
    """Docker and others mask /proc/asound: what is there is what sysfs and /dev/snd show, and it is
    listed and opened by number, by id and by name."""
    slots, _ = plugged
    if masked != "absent":
        proc(slots.root, {"asound/version": "x"} if masked == "partial" else {})
        (slots.root / "proc/asound").mkdir(parents=True, exist_ok=True)
    (found,) = find(slots.root)
    assert found.unusable is None
    for name in ("hw:0", "hw:CARD=Device,DEV=0", "plughw:0", found.device, "card:Device"):
        source = AlsaSource(CaptureConfig(device=name, rt_priority=0), name, slots.root)
        if not name.startswith(("plughw", "hw:CARD")):  # this hw: of the tests knows numbers only
            assert "hw:0" in source.open().device
        address.probe_open(name, name, slots.root)
        source.close()


def test_without_sysfs_the_nodes_tell_what_is_there(plugged: tuple[Slots, FakeCard]) -> None:
    """Where not even /sys is mounted a card is known by its nodes, by number; a name that needs
    sysfs is told what is missing and what to take instead."""
    slots, _ = plugged
    shutil.rmtree(slots.root / "sys")
    (found,) = find(slots.root)
    assert (found.device, found.unusable) == ("card:0", None)
    source = AlsaSource(CaptureConfig(device="hw:0", rt_priority=0), "hw:0", slots.root)
    assert source.open().device == "hw:0"
    source.close()
    with pytest.raises(DeviceError, match=r"mount it .* or take card:0"):
        locate("usb:0d8c:0014", slots.root)
    assert default_configuration([found], Path("/rec")).count("card:0") == 1


def test_a_device_tells_all_that_it_can(plugged: tuple[Slots, FakeCard]) -> None:
    """What is listed is the whole of what a device can do, not what some program sets first."""
    slots, card = plugged
    (found,) = find(slots.root)
    assert (found.rates_hz, found.rates_continuous) == ([8000, 768_000], True)
    assert found.channels == list(range(1, 33))
    known = [one.alsa_name for one in SampleFormat]
    assert found.formats == known and "S20_3LE" in known
    assert f"8000 to 768000 Hz; 1 to 32 channels; {', '.join(known)}" in str(found)
    card.restrict(rates=(44_100, 44_100), channels=(1, 1), formats=["S32_LE"])
    (found,) = find(slots.root)
    assert "44100 Hz; 1 channel; S32_LE" in str(found)


def test_a_device_that_is_missing_its_node_says_so(plugged: tuple[Slots, FakeCard]) -> None:
    """A card that sysfs shows and this /dev has no node of is listed with what to do; it is not
    opened."""
    slots, card = plugged
    slots.node(0, 0).unlink()
    (found,) = find(slots.root)
    assert found.trouble is not None
    assert "is missing; udev creates it in a moment, but a container" in found.trouble
    assert card.opens == 0


def test_a_device_that_cannot_be_opened_says_why(plugged: tuple[Slots, FakeCard]) -> None:
    """A device that does not open is shown with the reason, and reports no capabilities."""
    slots, card = plugged
    for number, words in (
        (errno.EBUSY, "in use by another program"),
        (errno.EPERM, "the unit or the container denies access"),
        (errno.ENODEV, "cannot be opened: No such device"),
    ):
        card.open_error(number)
        (found,) = find(slots.root)
        assert found.trouble is not None
        assert words in found.trouble
        assert (found.rates_hz, found.channels, found.formats) == ([], [], [])
        assert found.trouble in str(found)


def test_a_device_that_is_held_is_left_alone(plugged: tuple[Slots, FakeCard]) -> None:
    """A device that a program holds is not opened; the program is named."""
    slots, card = plugged
    proc(slots.root, HOLDER)
    (held,) = find(slots.root)
    assert (held.holder, held.trouble) == ("arecord (pid 812)", None)
    assert card.opens == 0


def test_what_is_passed_over_is_told(plugged: tuple[Slots, FakeCard]) -> None:
    """The first configuration takes the first card that can be used; each before it is named with
    the reason, and so is every one where the simulated card has to do."""
    slots, card = plugged
    slots.plug(1, "046d:0825", port="1-2", identity="Cam", card=card)
    proc(slots.root, HOLDER)
    found = find(slots.root)
    assert default_configuration(found, Path("/rec")).count(found[1].device) == 1
    assert passed_over(found) == [
        f"{found[0].device} ({found[0].name}) skipped: in use by arecord (pid 812)"
    ]
    card.restrict(rates=(4000, 4000))
    card.open_error(errno.EACCES)
    found = find(slots.root)
    assert 'device = "synthetic"' in default_configuration(found, Path("/rec"))
    assert [one.partition(": ")[2] for one in passed_over(found)] == [
        "in use by arecord (pid 812)",
        "cannot be opened: Permission denied",
    ]
    assert passed_over([MIC]) == []


def test_what_cannot_be_asked_for_is_not_offered() -> None:
    """A rate or a number of channels beyond what a configuration may say is not told as one to
    take."""
    highest = libasound.ASKABLE_HZ[1]
    wide = Abilities((8000, 9_000_000), True, tuple(range(1, 200)), ("S16_LE",), ())
    assert str(wide) == f"8000 to {highest} Hz; 1 to 32 channels; S16_LE"
    single = Abilities((4000, 48_000, 9_000_000), False, (2, 4, 6, 8, 9, 10), ("S16_LE",), ())
    assert str(single) == "48000 Hz; 2, 4, 6, 8 to 10 channels; S16_LE"


def test_a_holder_that_calls_itself_anything_is_one_line(tmp_path: Path) -> None:
    """A process chooses its name: what of it is no text is written out."""
    proc(tmp_path, HOLDER | {"812/comm": "x\nSTOPPING=1\x1b[2J\n"})
    proc(tmp_path, {"812/cgroup": "0::/user.slice/a\x1b[2J.scope\n"})
    assert holder_of("0", 0, tmp_path) == r"x STOPPING=1\x1b[2J (pid 812, a\x1b[2J.scope)"


def test_a_card_of_no_use_says_what_a_configuration_may_ask_for() -> None:
    """A card that is free and reports no capabilities that can be asked for is told with both."""
    for card, words in (
        (MIC._replace(rates_hz=[4000]), "offers 4000 Hz, where a configuration may ask for 8000"),
        (MIC._replace(channels=[64]), "64 channels, where a configuration may ask for 1 to 32"),
        (
            MIC._replace(formats=[], other_formats=("DSD_U8",)),
            "only formats that capstand does not take (DSD_U8)",
        ),
    ):
        assert card.unusable is not None
        assert words in card.unusable


@pytest.mark.parametrize("pcm", [None, "", "\n", "\0\xff\n"])
def test_no_sound_card_is_no_error(tmp_path: Path, pcm: str | None) -> None:
    """A machine without sound has no devices, whatever /proc has to say, and that is all."""
    proc(tmp_path, {} if pcm is None else {"asound/pcm": pcm})
    assert find(tmp_path) == []


def test_the_holder_is_named_by_process(tmp_path: Path) -> None:
    """Who holds a device is told as program and process, though a thread of it opened it."""
    proc(tmp_path, HOLDER)
    assert holder_of("0", 0, tmp_path) == "arecord (pid 812)"
    assert holder_of("0", 1, tmp_path) is None
    assert holder_of("1", 0, tmp_path) is None


def test_a_card_may_be_asked_for_by_its_id(tmp_path: Path) -> None:
    """A card's id leads to the holder as its number does."""
    proc(tmp_path, HOLDER)
    (tmp_path / "proc/asound/Mic").symlink_to("card0")
    assert holder_of("Mic", 0, tmp_path) == "arecord (pid 812)"


def test_a_holder_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    """A process that ended while it was looked up is not named."""
    proc(tmp_path, {name: text for name, text in HOLDER.items() if name.startswith("asound")})
    assert holder_of("0", 0, tmp_path) is None
