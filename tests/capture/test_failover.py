"""Several devices in order of preference: the first that is there; a better one when it is back."""

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from capstand.accounting.stats import Cause
from capstand.audio.clock import Clock
from capstand.audio.ring import Ring
from capstand.capture.capturer import STALL_READS, STALL_S, Capturer
from capstand.capture.failover import LONGEST_PAUSE_NS, SHORTEST_PAUSE_NS, TRIAL_NS, Failover
from capstand.capture.flowing import FlowingAlsaSource
from capstand.config.schema import CaptureConfig
from capstand.errors import DeviceError
from tests.fakecard import FakeCard, counter
from tests.patience import PATIENCE_S
from tests.rings import reader_of

PERIOD = 480


class Listener:
    """A capturer on two cards, ``best`` and ``spare``, with a clock that can be put forward."""

    def __init__(self, best: FakeCard, spare: FakeCard) -> None:
        self.ahead_ns = 0
        capture = CaptureConfig(
            device=(best.device, spare.device),
            format="S32_LE",
            channels=1,
            buffer_ms=5000.0,  # a machine that stands still overruns no card
            rt_priority=0,
        )
        sources = [FlowingAlsaSource(capture, name) for name in capture.devices]
        self.source = Failover(sources, capture, self.now_ns)
        self.clock = Clock(capture.rate_hz, capture.period_frames)
        self.ring = Ring(capture.ring_slots, 2 * PERIOD * capture.audio.frame_bytes)
        self.reader = reader_of(self.ring, capture.audio)
        self.capturer = Capturer(self.source, self.clock, self.ring, 0, self.now_ns)
        self.blocks: list[tuple[int, int, str, list[int]]] = []  # first, time, device, numbers

    def now_ns(self) -> int:
        return time.monotonic_ns() + self.ahead_ns

    @property
    def device(self) -> str:
        assert self.capturer.params is not None
        return self.capturer.params.device

    def step(self, timeout_ms: int = 200) -> int:
        frames = self.capturer.step(timeout_ms)
        for block in self.reader.blocks():
            numbers = counter(block.samples, "S32_LE", 1).tolist()
            self.blocks.append((block.first_frame, block.captured_at_ns, self.device, numbers))
        return frames

    def run(self, periods: int) -> None:
        """Until so many periods more have come; ten seconds without one are a failure."""
        wanted, deadline = len(self.blocks) + periods, time.monotonic() + PATIENCE_S
        while len(self.blocks) < wanted:
            if self.step():
                deadline = time.monotonic() + PATIENCE_S
            assert time.monotonic() < deadline, "no sound"

    def run_until(self, device: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.device != device:
            self.step()
            assert time.monotonic() < deadline, f"still {self.device}"

    def lose(self) -> DeviceError:
        """Runs until the device in use fails, and lets it go."""
        with pytest.raises(DeviceError) as failed:
            self.run(10_000)
        self.capturer.fail(failed.value)
        return failed.value


@pytest.fixture
def best(tmp_path: Path, fakecard_plugin: Path) -> FakeCard:
    return FakeCard(tmp_path, "best", fakecard_plugin)


@pytest.fixture
def spare(tmp_path: Path, best: FakeCard, fakecard_plugin: Path) -> FakeCard:
    return FakeCard(tmp_path, "spare", fakecard_plugin)


@pytest.fixture
def one(best: FakeCard, spare: FakeCard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    for name, value in spare.env.items():
        monkeypatch.setenv(name, value)
    listener = Listener(best, spare)
    yield listener
    listener.source.close()
    listener.ring.close()


def on_the_spare(one: Listener, best: FakeCard) -> None:
    """Sound comes from the spare one, because the best one is away."""
    best.disconnect()
    one.capturer.open()
    one.run(50)
    assert one.device == "spare"


def test_the_first_that_is_there_is_taken(one: Listener, best: FakeCard) -> None:
    """The best one where it can be opened, and the next one where it cannot."""
    one.capturer.open()
    one.run(1)
    assert one.device == "best"
    best.disconnect()
    assert "No such device" in str(one.lose())
    one.capturer.open()
    one.run(1)
    assert one.device == "spare"
    assert {gap.cause for gap in one.capturer.tally.gaps.since(0)} == {Cause.REOPENED}


def test_only_the_best_one_flows(one: Listener, best: FakeCard) -> None:
    """While another is in use each period is an occasion to try a better one."""
    one.capturer.open()
    one.run(50)
    sound = one.source.flow(one.ring.slot, 200)
    assert sound is not None
    assert next(sound).frames == PERIOD
    sound.close()
    best.disconnect()
    one.lose()
    one.capturer.open()
    one.run(50)
    assert one.source.flow(one.ring.slot, 200) is None


def test_when_none_is_there_each_is_named(one: Listener, best: FakeCard, spare: FakeCard) -> None:
    """Without any of them the error has the reason of each; it is for good only if all are."""
    best.disconnect()
    spare.restrict(rates=(8000, 8000))
    with pytest.raises(DeviceError, match=r"best .*No such device.*; spare: .*8000") as none:
        one.capturer.open()
    assert not none.value.refused
    best.reconnect()
    best.restrict(rates=(8000, 8000))
    with pytest.raises(DeviceError) as none:
        one.capturer.open()
    assert none.value.refused


def test_a_better_one_that_is_back_is_taken_over_at_a_block_boundary(
    one: Listener, best: FakeCard, spare: FakeCard
) -> None:
    """When the best one is back it is taken over: whole blocks of the one, then whole blocks of the
    other, each in order; the gap between is booked as such, and the books hold to the frame."""
    on_the_spare(one, best)
    best.reconnect()
    one.source.retry_now()
    began_ns = time.monotonic_ns()
    one.run_until("best")
    host_frames = (time.monotonic_ns() - began_ns) * 48e-6
    one.run(50)

    devices = [device for _, _, device, _ in one.blocks]
    switch = devices.index("best")
    assert devices == ["spare"] * switch + ["best"] * (len(devices) - switch)
    for part in (one.blocks[:switch], one.blocks[switch:]):
        numbers = [number for *_, block in part for number in block]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert all(len(block) == PERIOD for *_, block in part[1:])
    assert all(first[1] < second[1] for first, second in pairwise(one.blocks))
    tally = one.capturer.tally
    (gap,) = tally.gaps.since(0)
    last, *_, numbers = one.blocks[switch - 1]
    assert (gap.cause, gap.exact) == (Cause.SWITCHED, False)
    assert (gap.first_frame, one.blocks[switch][0]) == (
        last + len(numbers),
        last + len(numbers) + gap.frames,
    )
    assert gap.frames < 3 * PERIOD + host_frames
    assert tally.produced == tally.captured + tally.lost_estimated
    assert tally.captured == sum(len(block) for *_, block in one.blocks)
    assert tally.lost_estimated == gap.frames
    assert one.capturer.opens == 2
    other = CaptureConfig(device="spare", format="S32_LE", channels=1, rt_priority=0)
    released = FlowingAlsaSource(other)
    released.open()  # would be busy if it had been kept
    released.close()


@pytest.mark.parametrize("why", ["busy", "cannot", "silent", "dies"])
def test_a_better_one_that_does_not_work_takes_no_sound_away(
    one: Listener, best: FakeCard, why: str
) -> None:
    """A better one that is busy, cannot do what is asked, opens and stays silent, or fails at once
    is let go again; the one in use goes on without a frame missing, and a later try succeeds."""
    on_the_spare(one, best)
    best.reconnect()
    match why:
        case "busy":
            best.open_error(16)
        case "cannot":
            best.restrict(rates=(8000, 8000))
        case "silent":
            best.virtual(best.position)
        case "dies":
            best.virtual(best.position)
    one.source.retry_now()
    one.run(3)
    if why == "dies":
        best.disconnect()
        one.run(3)
        best.reconnect()
    one.ahead_ns += TRIAL_NS
    one.run(20)
    assert one.device == "spare"
    numbers = [number for *_, block in one.blocks for number in block]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert one.capturer.tally.gaps.count == 0

    best.open_error(0)
    best.restrict()
    best.virtual(None)
    one.source.retry_now()
    one.run_until("best")


def test_without_word_a_better_one_is_tried_ever_more_seldom(one: Listener, best: FakeCard) -> None:
    """Where nobody says that a device came, the better ones are tried after a pause that doubles up
    to a limit; word of a device makes it short again."""
    on_the_spare(one, best)
    pause_ns = SHORTEST_PAUSE_NS
    for _ in range(8):
        refusals = best.refusals
        one.ahead_ns += pause_ns - SHORTEST_PAUSE_NS // 2
        one.run(1)
        assert best.refusals == refusals
        one.ahead_ns += SHORTEST_PAUSE_NS // 2
        one.run(1)
        assert best.refusals == refusals + 1
        pause_ns = min(2 * pause_ns, LONGEST_PAUSE_NS)
    one.source.retry_now()
    one.run(1)
    refusals = best.refusals
    best.reconnect()
    one.ahead_ns += SHORTEST_PAUSE_NS
    one.run_until("best")
    assert best.refusals == refusals


def test_one_that_is_there_and_brings_nothing_goes_behind_the_others(
    one: Listener, best: FakeCard, spare: FakeCard
) -> None:
    """A device that was opened and never brought a frame is passed over the next time, until it has
    proved alive; if all are like that they take turns."""
    best.virtual(0)
    spare.virtual(0)
    order = []
    for _ in range(4):
        one.capturer.open()
        order.append(one.device)
        with pytest.raises(DeviceError, match="no frame") as stalled:
            for _ in range(2 * STALL_READS):  # at first its stream is started again
                one.ahead_ns += round(STALL_S * 1e9) + 1
                one.step(0)
        one.capturer.fail(stalled.value)
    assert order == ["best", "spare", "best", "spare"]
    spare.virtual(None)
    one.capturer.open()
    one.capturer.fail(DeviceError("it was not to be"))
    one.capturer.open()
    one.run(20)
    assert one.device == "spare"
    best.virtual(None)
    one.source.retry_now()
    one.run_until("best")
