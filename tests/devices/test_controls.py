"""The controls of a card: listed, set, and held against what the card has then."""

import errno
import json
from pathlib import Path

import pytest

from capstand.config.controls import ControlState, Setting
from capstand.devices import controls, listing
from capstand.devices.controls import apply, mixer_of, read
from tests.fakecard import FakeCard
from tests.fakecard.mixer import Mixer
from tests.soundcards import Slots

DB = (-16.0, 1.5)
"""The lowest of a volume and its step."""


@pytest.fixture
def mixer(fakemixer: Mixer) -> Mixer:
    """As a USB microphone has them, and a card with a choice of inputs."""
    fakemixer.volume("Mic Playback Volume", 3, 100)
    fakemixer.switch("Mic Playback Switch", True)
    fakemixer.volume("Mic Capture Volume", 10, 30, db=DB)
    fakemixer.switch("Mic Capture Switch", False)
    fakemixer.switch("Auto Gain Control Playback Switch", True)
    fakemixer.volume("Mic Boost Volume", 1, 3, db=(0, 10))
    fakemixer.choice("Input Source", 0, "Mic", "Line", "80%")
    fakemixer.volume("Capture Volume", 0, 7, channels=1)
    fakemixer.volume("Capture Volume", 0, 7, channels=1, index=1)
    return fakemixer


def set_to(name: str, text: str | None = None, on: bool | None = None) -> ControlState:
    (state,) = apply("fake", [(name, Setting(text, on))])
    return state


def test_a_volume_in_percent(mixer: Mixer) -> None:
    """Of the side that captures, on all channels; what is played stays as it is."""
    mixer.element("Mic Capture Volume").value[0] = 3
    assert set_to("Mic", "80%") == (
        "Mic",
        "80%",
        "10%/33% (-11.5 dB), off",
        "80% (20 dB), off",
        None,
    )
    assert mixer["Mic Capture Volume"] == [24, 24]
    assert mixer["Mic Playback Volume"] == [3, 3]


@pytest.mark.parametrize(
    ("db", "step", "after"),
    [
        ("-1 dB", 10, "33% (-1 dB)"),
        ("-1.7dB", 10, "33% (-1 dB)"),
        ("-1.8 db", 9, "30% (-2.5 dB)"),
        ("+3.5 dB", 13, "43% (3.5 dB)"),
        ("-60 dB", 0, "0% (-16 dB)"),
        ("40 dB", 30, "100% (29 dB)"),
    ],
)
def test_a_volume_in_decibels(mixer: Mixer, db: str, step: int, after: str) -> None:
    """The card's nearest step, and within its bounds; what it took is told."""
    mixer["Mic Capture Volume"] = 20
    assert set_to("Mic", db)[1:] == (db, "67% (14 dB), off", f"{after}, off", None)
    assert mixer["Mic Capture Volume"] == [step, step]


def test_percent_is_rounded_to_the_cards_steps(mixer: Mixer) -> None:
    """A card of eight steps has no 50 %; that is told, and no fault."""
    assert set_to("Capture", "50%") == ("Capture", "50%", "0%", "57%", None)
    assert mixer["Capture Volume"] == [4]


def test_a_switch(mixer: Mixer) -> None:
    """The one that captures where there is one; a microphone's automatic gain is among what is
    played on USB cards, and found."""
    assert set_to("Mic", on=True).after == "33% (-1 dB), on"
    assert (mixer["Mic Capture Switch"], mixer["Mic Playback Switch"]) == ([1], [1])
    assert set_to("Auto Gain Control", on=False)[1:] == ("off", "on", "off", None)
    assert mixer["Auto Gain Control Playback Switch"] == [0]


def test_a_volume_and_a_switch_at_once(mixer: Mixer) -> None:
    assert set_to("Mic", "100%", True)[1:] == (
        *("100%, on", "33% (-1 dB), off"),
        *("100% (29 dB), on", None),
    )


def test_an_item(mixer: Mixer) -> None:
    """By its text, which may look like a volume."""
    assert set_to("Input Source", "Line")[2:] == ("Mic", "Line", None)
    assert set_to("Input Source", "80%")[2:] == ("Line", "80%", None)
    assert mixer["Input Source"] == [2]


def test_one_of_several_controls_of_a_name(mixer: Mixer) -> None:
    assert set_to("Capture,1", "100%").after == "100%"
    first, second = [one for one in mixer.control.element if one.name == b"Capture Volume"]
    assert (first.value[0], second.value[0]) == (0, 7)


@pytest.mark.parametrize(
    ("name", "text", "on", "fault"),
    [
        (
            *("Micro", "1%", None),
            'the card has no such control; it has "Mic", "Mic Boost", "Capture", "Capture,1", '
            '"Auto Gain Control", "Input Source"',
        ),
        ("mic", "1%", None, "the card has no such control"),
        ("Mic,1", "1%", None, "the card has no such control"),
        (
            *("Input Source", "Phono", None),
            'it takes one of "Mic", "Line", "80%"',
        ),
        ("Input Source", None, True, "cannot be switched; it takes one of"),
        (
            *("Capture", "-6 dB", None),
            'tells no dB; it takes a volume such as "80%"',
        ),
        ("Mic Boost", "80", None, '"80" is not for it; it takes a volume such as "80%" or "-6 dB"'),
        ("Auto Gain Control", "50%", None, '"50%" is not for it; it takes true or false'),
    ],
)
def test_what_a_card_has_not_is_told(
    mixer: Mixer, name: str, text: str | None, on: bool | None, fault: str
) -> None:
    """With what there is instead; nothing of it is set, and the other controls are."""
    before = [list(one.value) for one in mixer.control.element]
    wrong, right = apply("fake", [(name, Setting(text, on)), ("Mic", Setting("100%"))])
    assert wrong.fault is not None and wrong.fault.startswith(fault)
    assert wrong.before == wrong.after and right.fault is None
    assert mixer["Mic Capture Volume"] == [30, 30]
    mixer["Mic Capture Volume"] = 10
    assert [list(one.value) for one in mixer.control.element] == before


@pytest.mark.parametrize(
    ("element", "name", "setting", "has"),
    [
        ("Mic Capture Volume", "Mic", Setting("80%"), "80% and has 33% (-1 dB), off"),
        ("Mic Capture Switch", "Mic", Setting(on=True), "on and has 33% (-1 dB), off"),
    ],
)
def test_what_a_card_refuses_is_told(
    mixer: Mixer, element: str, name: str, setting: Setting, has: str
) -> None:
    """pyalsaaudio does not say so; what the card has then does."""
    mixer.element(element).refusal = errno.EPERM
    (state,) = apply("fake", [(name, setting)])
    assert state.fault == f"the card did not take {has}"
    assert mixer.control.writes


def test_an_item_that_is_refused(mixer: Mixer) -> None:
    mixer.element("Input Source").refusal = errno.EPERM
    fault = set_to("Input Source", "Line").fault
    assert fault == "the card refused Line: Operation not permitted"


def test_controls_that_cannot_be_opened(mixer: Mixer) -> None:
    """Each of the settings says why."""
    mixer.control.open_errno = errno.EACCES
    states = apply("fake", [("Mic", Setting("1%")), ("Capture", Setting("1%"))])
    denied = "fake has no controls that can be opened: Permission denied"
    assert [one.fault for one in states] == [denied, denied]
    (state,) = apply("null", [("Mic", Setting("1%"))])
    assert state.fault is not None and "Invalid CTL null" in state.fault


HOSTILE = (b"\x1b[2JMic", "Mi\u202ec".encode(), b"Caf\xe9", b'M"ic\n[x]')


def test_hostile_names_are_cleaned_and_match_nothing(fakemixer: Mixer) -> None:
    """A device says itself what its controls are called; what is not UTF-8 would end the process in
    pyalsaaudio."""
    for name in HOSTILE:
        fakemixer.volume(name + b" Capture Volume", 1, 7)
    fakemixer.choice(b"Source", 0, b"\x1b[31mA", b"\xff")
    fault = set_to("Mic", "1%").fault or ""
    lines = [one.line for one in read("fake")]
    for shown in [fault, *lines, json.dumps([one.as_json() for one in read("fake")])]:
        assert shown.isprintable() and shown.encode()
    assert "\\\\x1b[2JMic" in fault and "Caf\\\\udce9" in fault
    assert set_to("Caf\\udce9", "1%").before is None
    state = set_to("\x1b[2JMic", "100%")  # which no configuration can hold
    assert state.after == "100%"
    assert len(set_to("x" * 60, "1%").fault or "") <= controls.LONGEST_FAULT


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("hw:1,0", "hw:1"),
        ("plughw:CARD=Mic,DEV=0", "hw:Mic"),
        ("sysdefault:CARD=Mic", "hw:Mic"),
        ("pulse", "pulse"),
        ("shared", "shared"),
    ],
)
def test_whose_controls_they_are(device: str, name: str) -> None:
    """The card's, or those that ALSA's configuration defines under the PCM's own name."""
    assert mixer_of(device) == name


def test_devices_shows_them_as_lines_for_the_configuration(
    tmp_path: Path, fakecard_plugin: Path, fakemix_plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the card, those that may change what is captured; also while another program has it."""
    slots, card = Slots(tmp_path), FakeCard(tmp_path, "mic0", fakecard_plugin)
    slots.plug(0, "0d8c:0014", identity="Mic", captures=(0, 1), card=card)
    rc = Path(slots.alsa(card)["ALSA_CONFIG_PATH"])
    mixer = Mixer(tmp_path, fakemix_plugin, "hw", rc)
    monkeypatch.setenv("ALSA_CONFIG_PATH", mixer.env["ALSA_CONFIG_PATH"])
    mixer.volume("PCM Playback Volume", 1, 3)
    mixer.volume("Mic Capture Volume", 10, 30, db=DB)
    mixer.switch("Mic Capture Switch", True)
    mixer.switch("Auto Gain Control Playback Switch", False)
    mixer.choice("Input Source", 1, "Mic", "Line")
    mixer.volume("Capture Volume", 0, 7, channels=1)
    first, second = listing.find(tmp_path)
    assert str(first).split("\n    ")[4:] == [
        '"Mic" = ["33%", true]  # -16 to 29 dB, now -1 dB',
        '"Capture" = "0%"  # 8 steps',
        '"Auto Gain Control" = false',
        '"Input Source" = "Line"  # of "Mic", "Line"',
    ]
    assert second.controls == ()
    shown = json.loads(json.dumps(first.as_json()))["controls"]
    assert shown[0] == {
        "name": "Mic",
        "volume_percent": [33, 33],
        "volume_db": -1.0,
        "volume_db_range": [-16.0, 29.0],
        "switch": [True, True],
        "item": None,
        "items": None,
    }
    assert shown[3]["item"] == "Line" and shown[3]["items"] == ["Mic", "Line"]


def test_a_card_without_controls(fakemixer: Mixer) -> None:
    assert read("fake") == []
    assert set_to("Mic", "1%").fault == "the card has no such control"


def test_a_control_without_values(fakemixer: Mixer) -> None:
    """A driver may describe a volume of no steps, and a control of no channels."""
    fakemixer.volume("Mic Capture Volume", 0, 0)
    fakemixer.volume("Line Capture Volume", 0, 7, channels=0)
    fakemixer.switch("Boost Capture Switch", True, channels=0)
    there = {one.name: (str(one), one.about_capture) for one in read("fake")}
    assert there == {"Mic": ("0%", True), "Line": ("", False), "Boost": ("", False)}
    assert set_to("Mic", "80%").after == "0%"
    assert set_to("Line", "80%").fault == '"80%" is not for it; it cannot be set'


def test_a_mixer_without_an_end_is_read_so_far(
    mixer: Mixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "_MOST_CONTROLS", 2)
    assert len(read("fake")) == 2
