"""Channels that are taken from a card with more: each frame once, nothing mixed, in order."""

import errno
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from capstand.audio.block import SampleFormat
from capstand.audio.clock import Clock
from capstand.audio.ring import Ring
from capstand.capture.alsa import AlsaSource
from capstand.capture.capturer import Capturer
from capstand.capture.failover import Failover
from capstand.capture.pick import Pick
from capstand.capture.source import Source
from capstand.config.schema import CaptureConfig
from capstand.errors import DeviceError
from tests.capture.test_alsa import Pointers
from tests.fakecard import FakeCard
from tests.patience import PATIENCE_S
from tests.rings import reader_of

PERIOD = 480


def setup(**keys: object) -> CaptureConfig:
    standard = {"device": "fake", "rt_priority": 0, "buffer_ms": 5000.0}
    return CaptureConfig(**standard | keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("pick", [(1,), (4,), (2, 1), (4, 2, 3), (1, 2, 3, 4)])
@pytest.mark.parametrize("sample", list(SampleFormat), ids=lambda one: one.alsa_name)
def test_samples_are_taken_as_they_are(sample: SampleFormat, pick: tuple[int, ...]) -> None:
    """In every format the picked channels come out byte for byte, in the order wished; what lies
    behind them in the slot is left alone."""
    frames = 7
    whole = np.random.default_rng(1).integers(0, 256, (frames, 4, sample.size_bytes), np.uint8)
    slot = bytearray(b"\xaa" * 200)
    capture = setup(pick=pick, channels=4, format=sample.alsa_name)
    one = Pick.of(capture, 4)
    if pick == (1, 2, 3, 4):
        assert one is None, "all of them are no copy"
        return
    assert one is not None
    length = one.put(memoryview(slot), whole.tobytes())
    expected = whole[:, [channel - 1 for channel in pick]].tobytes()
    assert bytes(slot[:length]) == expected
    assert set(slot[length:]) == {0xAA}


class Reader:
    """A source of S16_LE, whose channels of even number have the low half of a frame's number and
    whose others the high half, with its capturer; keeps all that came."""

    def __init__(self, capture: CaptureConfig, source: Source | None = None) -> None:
        self.capture = capture
        self.source = source or AlsaSource(capture)
        self.ring = Ring(capture.ring_slots, capture.slot_bytes)
        self.reader = reader_of(self.ring, capture.audio)
        clock = Clock(capture.rate_hz, capture.period_frames)
        self.capturer = Capturer(self.source, clock, self.ring, 0)
        self.data = b""

    def run(self, frames: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
        """So many frames more, and all of them since the beginning."""
        wanted = self.capturer.tally.captured + frames
        for _ in range(round(PATIENCE_S * 100)):
            self.capturer.step(100)
            self.data += b"".join(block.samples for block in self.reader.blocks())
            if self.capturer.tally.captured >= wanted:
                break
        found = np.frombuffer(self.data, "<u2").reshape(-1, self.capture.audio.channels)
        assert len(found) == self.capturer.tally.captured >= wanted
        return found


@pytest.fixture
def readers() -> Iterator[list[Reader]]:
    opened: list[Reader] = []
    yield opened
    for one in opened:
        one.source.close()
        one.ring.close()


def opened(readers: list[Reader], capture: CaptureConfig) -> Reader:
    readers.append(Reader(capture))
    readers[-1].capturer.open()
    return readers[-1]


@pytest.mark.parametrize(
    ("channels", "pick", "offered", "opened_with"),
    [
        (None, (1,), (8, 8), 8),
        (None, (2, 1), (1, 32), 2),
        (None, (6,), (4, 32), 6),
        (None, (1,), (1, 32), 2),
        (None, (1,), (1, 1), 1),
        (4, (3,), (1, 32), 4),
    ],
)
def test_the_card_is_opened_with_enough_channels(
    channels: int | None,
    pick: tuple[int, ...],
    offered: tuple[int, int],
    opened_with: int,
    fakecard: FakeCard,
    readers: list[Reader],
) -> None:
    """The card is opened with ``channels``; without, with as few as hold all of them, but
    two rather than one where ALSA would mix. What is picked is heard, each frame once."""
    fakecard.restrict(channels=offered)
    one = opened(readers, setup(channels=channels, pick=pick))
    assert isinstance(one.source, AlsaSource) and one.source._channels == opened_with
    grant = one.capturer.params
    assert grant is not None and grant.format.channels == len(pick)
    found = one.run(20 * PERIOD)
    count = len(found)
    for at, channel in enumerate(pick):
        if channel % 2:
            assert np.array_equal(found[:, at], np.arange(count) & 0xFFFF)
        else:
            assert not found[:, at].any(), "the high half of a small number"


def test_what_the_kernel_counts_is_picked_too(fakecard: FakeCard, readers: list[Reader]) -> None:
    """Where losses are counted by the kernel's pointers frames are picked in the same way."""
    fakecard.restrict(channels=(8, 8))
    one = opened(readers, setup(pick=(3,)))
    assert isinstance(one.source, AlsaSource)
    one.run(1)
    one.source._kernel = Pointers(one.source)  # type: ignore[assignment]
    found = one.run(50 * PERIOD)[:, 0]
    assert np.array_equal(found, np.arange(len(found)) & 0xFFFF)


def test_alsa_mixes_nothing_into_a_picked_channel(
    fakecard: FakeCard, readers: list[Reader]
) -> None:
    """Through ALSA's plug, which would make one channel of a card's two by their mean, the first
    one is heard alone; which is seen where the second one has no more the value 0."""
    fakecard.restrict(channels=(2, 2))
    fakecard.virtual(0)
    one = opened(readers, setup(device="plug:fake", pick=(1,)))
    one.capturer.step(0)
    begin = 3 * 65536
    for position in range(begin, begin + 20 * PERIOD, PERIOD):
        fakecard.virtual(position)
        while one.capturer.step(1):
            pass
    fakecard.virtual(None)
    found = one.run(20 * PERIOD)[:, 0].astype(int)
    assert set(np.diff(found[PERIOD:]) % 65536) == {1}


def test_a_channel_that_the_card_has_not(fakecard: FakeCard, readers: list[Reader]) -> None:
    """A pick beyond what the card has is refused with both numbers."""
    fakecard.restrict(channels=(1, 4))
    with pytest.raises(DeviceError, match="channel 5 is picked and it has 4; set pick to") as no:
        opened(readers, setup(pick=(1, 5)))
    assert no.value.refused and no.value.errno == errno.EINVAL


def test_a_card_without_the_rate_says_that(fakecard: FakeCard, readers: list[Reader]) -> None:
    """Where the card cannot do the rate, that is what is told, not something about channels."""
    fakecard.restrict(rates=(44_100, 44_100))
    with pytest.raises(DeviceError, match="requested rate_hz 48000, the card granted 44100"):
        opened(readers, setup(pick=(1,)))


def test_a_card_with_more_channels_names_pick(fakecard: FakeCard, readers: list[Reader]) -> None:
    """Who asks for fewer channels than the card has is told of ``pick``."""
    fakecard.restrict(channels=(8, 8))
    with pytest.raises(
        DeviceError,
        match=r"requested channels 2, the card granted 8; .* pick = "
        r"\[1\] takes",
    ):
        opened(readers, setup())


def test_each_card_of_a_list_has_its_own_channels(
    tmp_path: Path,
    fakecard_plugin: Path,
    fakecard: FakeCard,
    readers: list[Reader],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a list of cards each is opened with what it has; the stream's channels are the same."""
    other = FakeCard(tmp_path, "other", fakecard_plugin)
    monkeypatch.setenv("ALSA_CONFIG_PATH", other.env["ALSA_CONFIG_PATH"])
    fakecard.restrict(channels=(8, 8))
    other.restrict(channels=(4, 4))
    capture = setup(device=("fake", "other"), pick=(3, 1))
    sources = [AlsaSource(capture, name) for name in capture.devices]
    readers.append(Reader(capture, Failover(sources, capture)))
    one = readers[-1]
    one.capturer.open()
    one.run(5 * PERIOD)
    fakecard.disconnect()
    with pytest.raises(DeviceError) as gone:
        one.run(100 * PERIOD)
    one.capturer.fail(gone.value)
    one.capturer.open()
    one.run(5 * PERIOD)
    assert [source._channels for source in sources] == [8, 4]
    tally = one.capturer.tally
    assert tally.produced == tally.captured + tally.lost_estimated + tally.lost_exact
