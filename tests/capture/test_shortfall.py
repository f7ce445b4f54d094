"""What a card never delivered is found by time, at its place; nothing else is taken for it.

A model of a card on virtual time: its pointer follows data and moves in steps, stamps are late, the
bus loses packets. It is read as `AlsaSource` reads, by a reader who leaves it alone for 50 ms and
is woken by the card now and then. Crystal, NTP and the bus are functions of time.
"""

import math
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.accounting.stats import Cause, Gap
from capstand.audio.block import NS_PER_S
from capstand.audio.clock import Clock
from capstand.audio.ring import Ring
from capstand.capture.capturer import Capturer
from capstand.capture.shortfall import PAUSE_MS, Shortfall
from capstand.capture.source import NegotiatedParams, Reading
from capstand.stream.intake import Intake
from tests.counts import FULL
from tests.figures import figure
from tests.line import capture, config

RATE = 48_000
PERIOD = 480
BUFFER = 24_000
HOUR = 3600.0
DAY_S = 24 * HOUR if FULL else 600.0
WEEK_S = 7 * 24 * HOUR if FULL else 2 * HOUR


class Card:
    """A card of ``ppm(at_s)``, whose pointer moves by ``step`` frames; ``losses`` are (at_s, for_s)
    in order, and what the card makes meanwhile is lost."""

    wary = False
    batch_ms = 50

    def __init__(
        self,
        ppm: Callable[[float], float],
        step: int = 48,
        jitter_us: float = 20.0,
        losses: Iterable[tuple[float, float]] = (),
        seed: int = 1,
    ) -> None:
        self.now_s = 0.0
        self.lost = 0.0  # in truth, in frames
        self._ppm, self._step, self._jitter_s = ppm, step, jitter_us * 1e-6
        self._losses = iter(losses)
        self._loss = next(self._losses, (math.inf, 0.0))
        self._random = random.Random(seed)
        self._made = 0.0  # delivered in full, beyond the pointer's steps
        self._read = 0
        self._shortfall = Shortfall(RATE)
        self._reading = Reading()
        self._drained = False
        self._rests = 0

    def now_ns(self) -> int:
        return 10**12 + round(self.now_s * NS_PER_S)

    def open(self) -> NegotiatedParams:
        return NegotiatedParams("model", capture().audio, PERIOD, BUFFER, exact=True)

    def _go(self, seconds: float) -> None:
        """Time passes, and frames are made; what the bus is silent for is lost."""
        end = self.now_s + seconds
        rate = RATE * (1 + self._ppm(self.now_s) * 1e-6)
        while self._loss[0] < end:
            at, length = self._loss
            self._made += max(0.0, at - self.now_s) * rate
            silent = min(end, at + length) - max(self.now_s, at)
            self.lost += silent * rate
            self.now_s = max(self.now_s, at) + silent
            if at + length > end:
                return
            self._loss = next(self._losses, (math.inf, 0.0))
        self._made += (end - self.now_s) * rate
        self.now_s = end

    @property
    def pointer(self) -> int:
        return int(self._made) // self._step * self._step

    def _look(self) -> None:
        self.stamp_ns = self.now_ns() + round(self._random.uniform(0, self._jitter_s) * NS_PER_S)
        self._shortfall.observe(self.stamp_ns, self.pointer)

    def _wait(self) -> bool:
        """Until the card wakes the reader, or a look all the same."""
        for _ in range(4):
            due = -(-(self._read + PERIOD) // self._step) * self._step - self._made
            if due <= 0:
                return True
            self._go(min(0.2, max(due / RATE * 1.0005, 1e-6)))
        return False

    def read(self, slot: memoryview, timeout_ms: int) -> Reading:
        reading = self._reading
        reading.frames = reading.lost = reading.short = 0
        reading.edge = False
        if self._drained:
            self._rests = (self._rests + 1) % 4
            if self._rests and not self.wary:
                self._go(0.05)
            else:
                reading.edge = self._wait()
        self._look()
        while self._shortfall.suspicious and self.pointer - self._read < BUFFER * 0.75:
            self._go(PAUSE_MS / 1000)
            self._look()
        if self.pointer - self._read < PERIOD:
            self._drained = True
            return reading
        reading.stamp_ns, reading.avail = self.stamp_ns, self.pointer - self._read
        if self._shortfall.found:
            self._shortfall.found = False
            reading.stamp_ns = self._shortfall.stamp_ns
            reading.avail = self._shortfall.count - self._read
            reading.short = self._shortfall.most_frames
        self._read += PERIOD
        self._drained = self.pointer - self._read < PERIOD
        reading.frames = PERIOD
        return reading

    def restart(self) -> None:
        pass

    def advice(self) -> str:
        return "none"

    def close(self) -> None:
        pass

    def wake(self) -> None:
        pass


class Line:
    def __init__(self, card: Card) -> None:
        self.card = card
        self.clock, self.ring = Clock(RATE, PERIOD), Ring(200, PERIOD * 8)
        self.capturer = Capturer(card, self.clock, self.ring, 0, card.now_ns)
        self.capturer.open()
        self.gaps: list[Gap] = []
        self.drifts: list[float] = []

    def run(self, until_s: float) -> None:
        table = self.capturer.tally.gaps
        next_s = 60.0
        while self.card.now_s < until_s:
            self.capturer.step(200)
            if len(self.gaps) < table.count:
                self.gaps += table.since(len(self.gaps))
            if self.card.now_s > next_s:
                self.drifts.append(self.clock.drift_ppm)
                next_s += 10

    def close(self) -> None:
        self.ring.close()


@given(
    lags_us=st.lists(st.sampled_from([0, 50, 400, 2_900, 3_100, 9_000, 40_000]), min_size=200),
    ppm=st.sampled_from([-2000.0, 0.0, 300.0]),
)
@settings(max_examples=60, deadline=None)
def test_a_look_raises_a_doubt_beyond_the_line(lags_us: list[int], ppm: float) -> None:
    """Until its end, what a line says of looks to come is what is found of them."""
    shortfall, line = Shortfall(RATE), None
    for number, lag_us in enumerate(lags_us):
        count = number * PERIOD
        stamp_ns = NS_PER_S + round(count * NS_PER_S / RATE * (1 - ppm * 1e-6)) + lag_us * 1000
        if line is None or stamp_ns > line.until_ns:
            line = shortfall.line
        if line is None:
            assert shortfall.suspicious or shortfall.found or not number
        expected = line is not None and (
            stamp_ns - line.since_ns > line.slack_ns + (count - line.since_count) * line.frame_ns
        )
        shortfall.observe(stamp_ns, count)
        if line is not None:
            assert shortfall.suspicious == expected
        if shortfall.suspicious or shortfall.found:
            line, shortfall.found = None, False


def test_a_silent_bus_is_a_gap_at_its_place() -> None:
    """Silences of 10 ms to 1.5 s: one gap each of cause ``device``, to the millisecond, within
    60 ms of the place, and the drift is not bent."""
    silences = [(30.0 + 10 * n, length) for n, length in enumerate((0.01, 0.03, 0.3, 0.9, 1.5))]
    line = Line(Card(lambda _: 80.0, losses=silences))
    line.run(90)
    line.close()
    assert [gap.cause for gap in line.gaps] == [Cause.DEVICE] * len(silences)
    for gap, (at_s, length) in zip(line.gaps, silences, strict=True):
        assert gap.frames == pytest.approx(length * RATE, abs=48)
        assert gap.at_ns == pytest.approx(10**12 + at_s * NS_PER_S, abs=60e6)
    assert line.clock.drift_ppm == pytest.approx(80, abs=2)


@pytest.mark.parametrize("lost_ms", [1, 2, 3, 5, 10, 20])
def test_each_small_loss_is_booked_soon(lost_ms: int) -> None:
    """Thirty losses of one length, with the lateness of a USB card's stamps: each is booked within
    2 s and to the millisecond."""
    losses = [(40 + 7.3 * n, lost_ms / 1000) for n in range(30)]
    line = Line(Card(lambda _: 33.0, jitter_us=71, losses=losses, seed=3))
    line.run(39)
    for at_s, length in losses:
        booked = len(line.gaps)
        line.run(at_s + length + 2)
        (gap,) = line.gaps[booked:]
        assert gap.frames == pytest.approx(length * RATE, abs=48)
    line.close()
    assert line.clock.drift_ppm == pytest.approx(33, abs=2)


@pytest.mark.parametrize("apart_ms", [20, 71, 150])
def test_losses_that_follow_each_other_add_up(apart_ms: int) -> None:
    """Ten packets of 1 ms, one after the other in up to a second and a half, at any moment: what is
    booked is what was lost, to one packet, and the drift is not bent. No rate that is known changes
    so fast."""
    rng = random.Random(apart_ms)
    for seed in range(20):
        begin_s = 25 + 2 * rng.random()
        losses = [(begin_s + number * apart_ms / 1000, 0.001) for number in range(10)]
        line = Line(Card(lambda _: 33.0, jitter_us=71, losses=losses, seed=seed))
        line.run(begin_s + 6)
        line.close()
        assert sum(gap.frames for gap in line.gaps) == pytest.approx(line.card.lost, abs=50)
        assert {gap.cause for gap in line.gaps} == {Cause.DEVICE}
        assert line.clock.drift_ppm == pytest.approx(33, abs=5)


@pytest.mark.parametrize("step", [48, 240, 480, 960])
@pytest.mark.parametrize("ppm", [-500.0, 500.0])
@pytest.mark.parametrize("kind", ["steady", "warming", "slewed"])
def test_no_false_gap(kind: str, ppm: float, step: int) -> None:
    """In a day of 1 ms of jitter, pointers that move by 1 to 20 ms, a crystal that drifts by 1 ppm
    a minute and NTP that slews the clock by 500 ppm, no gap is booked."""
    turn = {
        "steady": lambda at_s: ppm,
        "warming": lambda at_s: ppm + 30 * math.asin(math.sin(at_s / 60 / 30)),
        "slewed": lambda at_s: ppm + (500.0 if at_s % 1800 > 1200 else 0.0),
    }[kind]
    line = Line(Card(turn, step, jitter_us=1000))
    line.run(DAY_S)
    line.close()
    figure(f"false gaps, {kind}, {ppm:g} ppm, steps of {step / 48:g} ms", f"{len(line.gaps)}")
    assert line.gaps == []


def test_ten_packets_an_hour_add_up() -> None:
    """Ten lost packets of 1 ms an hour add up to what was lost within 2 ms, and bend no drift."""
    rng = random.Random(3)
    at, losses = 60.0, []
    while (at := at + rng.expovariate(10 / HOUR) + 0.01) < WEEK_S - 20:
        losses.append((at, 0.001))
    line = Line(Card(lambda _: -40.0, losses=losses))
    line.run(WEEK_S)
    line.close()
    booked, bent = line.capturer.tally.lost_by_device, max(abs(drift + 40) for drift in line.drifts)
    figure(
        f"{WEEK_S / HOUR:g} h with ten lost packets an hour",
        f"{booked} frames booked, {line.card.lost:.0f} lost, drift off by {bent:.2f} ppm at most",
    )
    assert booked == pytest.approx(line.card.lost, abs=96)
    assert bent < 3


def test_a_card_that_lies_about_its_rate_loses_nothing() -> None:
    """A card 3, 8 or 67 % slower than it says is no bus that loses sound."""
    for ppm in (-30_000.0, -81_250.0, -666_667.0):
        line = Line(Card(lambda _, ppm=ppm: ppm))  # type: ignore[misc]
        line.run(60)
        line.close()
        assert line.gaps == []
        assert line.capturer.true_rate.rate_hz is not None


def test_a_bus_that_loses_again_and_again_is_told() -> None:
    """One silence, however long, is booked and past; losses of 10 ms and more in an hour, in three
    of its minutes, say for an hour what to look at."""
    stream = Intake(config(capture()))
    tally, minute = stream.capturer.tally, 60 * NS_PER_S
    tally.lost_by_device += RATE
    assert stream.overview.bus.concern(stream.capturer.tally.lost_by_device, 10 * minute) is None
    assert stream.stats(10 * minute).device_lost_ms_last_hour == 1000
    assert stream.overview.bus.concern(stream.capturer.tally.lost_by_device, 80 * minute) is None
    for number in range(3):
        tally.lost_by_device += 4 * 48
        told = stream.overview.bus.concern(
            stream.capturer.tally.lost_by_device, (80 + number) * minute
        )
    assert told is not None
    assert "12 ms" in told
    assert "cable" in told
    assert (
        stream.overview.bus.concern(stream.capturer.tally.lost_by_device, 139 * minute) is not None
    )
    assert stream.overview.bus.concern(stream.capturer.tally.lost_by_device, 140 * minute) is None
    stream.dispose()
