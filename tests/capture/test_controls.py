"""The controls of a card that is captured from: set before its first frame, after each replug, and
while sound flows."""

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capstand.capture.alsa import AlsaSource
from capstand.capture.failover import Failover
from capstand.capture.source import Adjustable, NegotiatedParams
from capstand.capture.synthetic import SyntheticSource
from capstand.config.controls import Setting
from capstand.config.schema import CaptureConfig
from capstand.errors import DeviceError
from tests.fakecard import FakeCard
from tests.fakecard.mixer import Mixer
from tests.patience import PATIENCE_S

MIC = (("Mic", Setting("80%", True)),)
AT_80, MUTED = ([24, 24], [1]), ([10, 10], [0])


@pytest.fixture
def mixer(fakemixer: Mixer) -> Mixer:
    fakemixer.volume("Mic Capture Volume", 10, 30)
    fakemixer.switch("Mic Capture Switch", False)
    return fakemixer


def values(mixer: Mixer) -> tuple[list[int], list[int]]:
    return mixer["Mic Capture Volume"], mixer["Mic Capture Switch"]


def as_plugged_in(mixer: Mixer) -> None:
    mixer["Mic Capture Volume"], mixer["Mic Capture Switch"] = 10, 0


class Card:
    """A source whose card's clock the test holds."""

    def __init__(self, card: FakeCard, *devices: str) -> None:
        card.virtual(0)
        self.card = card
        self.capture = CaptureConfig(
            devices or card.device, channels=1, format="S32_LE", rt_priority=0, controls=MIC
        )
        self.slot = memoryview(bytearray(self.capture.slot_bytes))
        self.source: AlsaSource | Failover = AlsaSource(self.capture)
        if devices:
            self.source = Failover([AlsaSource(self.capture, one) for one in devices], self.capture)

    def open(self) -> NegotiatedParams:
        return self.source.open()

    def read(self) -> int:
        """One period more; the first look starts the stream."""
        deadline = time.monotonic() + PATIENCE_S
        self.source.read(self.slot, 0)
        self.card.virtual(self.card.position + 480)
        while not (frames := self.source.read(self.slot, 100).frames):
            assert time.monotonic() < deadline
        return frames


@pytest.fixture
def made(fakecard: FakeCard) -> Iterator[Callable[..., Card]]:
    all_: list[Card] = []

    def make(*devices: str) -> Card:
        all_.append(Card(fakecard, *devices))
        return all_[-1]

    yield make
    for one in all_:
        one.source.close()


def test_they_are_set_before_the_first_frame(made: Callable[..., Card], mixer: Mixer) -> None:
    card = made()
    card.open()
    assert card.card.starts == 0
    assert values(mixer) == AT_80
    (state,) = card.source.controls
    assert state == ("Mic", "80%, on", "33%, off", "80%, on", None)
    assert card.read() == 480


def test_a_replugged_card_has_them_again(made: Callable[..., Card], mixer: Mixer) -> None:
    """A card that comes back has its own defaults."""
    card = made()
    card.open()
    card.read()
    card.card.disconnect()
    with pytest.raises(DeviceError):
        card.read()
    as_plugged_in(mixer)
    with pytest.raises(DeviceError):
        card.open()
    assert values(mixer) == MUTED
    card.card.reconnect()
    card.open()
    assert values(mixer) == AT_80 and card.source.controls[0].before == "33%, off"


def test_who_changes_them_meanwhile_is_left_alone(made: Callable[..., Card], mixer: Mixer) -> None:
    """Until the card is opened again: so one can find a level by ear with alsamixer."""
    card = made()
    card.open()
    mixer["Mic Capture Volume"] = 3
    opens = mixer.control.opens
    for _ in range(5):
        card.read()
    assert mixer["Mic Capture Volume"] == [3, 3] and mixer.control.opens == opens
    card.open()
    assert values(mixer) == AT_80 and card.source.controls[0].before == "10%, on"


def test_other_settings_lose_no_frame(made: Callable[..., Card], mixer: Mixer) -> None:
    """Between two reads, with the device open; and they are those of the next open."""
    card = made()
    card.open()
    card.read()
    card.source.adjust((("Mic", Setting("50%")),))
    assert values(mixer) == AT_80
    assert card.read() == 480
    assert mixer["Mic Capture Volume"] == [15, 15]
    assert card.source.controls == (("Mic", "50%", "80%, on", "50%, on", None),)
    assert (card.card.opens, card.card.starts, card.card.frames_lost) == (1, 1, 0)
    as_plugged_in(mixer)
    card.open()
    assert values(mixer) == ([15, 15], [0])
    card.source.adjust(())
    card.read()
    assert not card.source.controls and values(mixer) == ([15, 15], [0])


@pytest.mark.parametrize("fault", ["missing", "refused", "closed"])
def test_what_is_wrong_with_them_stops_no_sound(
    made: Callable[..., Card], mixer: Mixer, fault: str
) -> None:
    """It is told by name, and capture goes on."""
    if fault == "missing":
        mixer.control.count = 0
    elif fault == "refused":
        mixer.element("Mic Capture Volume").refusal = errno.EPERM
    else:
        mixer.control.open_errno = errno.EACCES
    card = made()
    card.open()
    assert card.read() == 480
    (state,) = card.source.controls
    told = {
        "missing": "the card has no such control",
        "refused": "the card did not take 80%, on and has 33%, off",
        "closed": "fake has no controls that can be opened: Permission denied",
    }
    assert (state.name, state.fault) == ("Mic", told[fault])


def test_a_device_without_controls_is_told(made: Callable[..., Card], fakecard: FakeCard) -> None:
    """Such as a PCM of the user's own under whose name ALSA knows none."""
    card = made()
    card.open()
    (state,) = card.source.controls
    assert state.fault is not None
    assert state.fault.startswith("fake has no controls that can be opened: No such file")
    assert card.read() == 480


def test_the_card_in_use_of_several(
    tmp_path: Path, made: Callable[..., Card], mixer: Mixer, fakecard_plugin: Path
) -> None:
    """A lesser card that is taken has its own state; new settings reach each when it is opened."""
    FakeCard(tmp_path, "better", fakecard_plugin).disconnect()
    card = made("better", "fake")
    assert "fake" in card.open().device
    assert values(mixer) == AT_80 and card.source.controls[0].fault is None
    card.source.adjust((("Mic", Setting(on=False)),))
    card.read()
    assert values(mixer) == ([24, 24], [0]) and card.source.controls[0].wanted == "off"


def test_which_sources_have_controls(made: Callable[..., Card]) -> None:
    assert isinstance(made().source, Adjustable)
    assert not isinstance(SyntheticSource(CaptureConfig("synthetic")), Adjustable)
