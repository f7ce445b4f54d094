"""The clock against the truth: simulated stamps of which the true times are known.

Three other laws run on the same stamps for comparison, as written down in facts about the field:
FFmpeg's timefilter, zita-ajbridge's delay-locked loop, and GStreamer's, which is the raw stamp.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.audio.block import NS_PER_S
from capstand.audio.clock import MIN_WINDOW, RATE_LIMIT, WINDOW_S, Clock
from capstand.audio.ring import Ring
from capstand.capture.capturer import Capturer
from capstand.errors import DeviceError
from tests.line import Script, capture
from tests.rings import reader_of

Times = npt.NDArray[np.float64]
S = 1e9
T0 = 5_000_000_000_000  # an uptime of 83 minutes


@dataclass(frozen=True)
class Card:
    """A simulated card: when frame k·period was truly there, and when the stamps say so."""

    rate_hz: int
    period: int
    true_ns: Times
    stamp_ns: Times


def card(
    ppm: float,
    jitter_us: float = 80.0,
    outliers: float = 0.01,
    seconds: float = 180.0,
    period_s: float = 0.01,
    rate_hz: int = 48_000,
    seed: int = 7,
) -> Card:
    """Stamps late by an exponential time of that mean; a share of them 1 to 8 ms more."""
    rng = np.random.default_rng(seed)
    period = round(rate_hz * period_s)
    count = round(seconds * rate_hz / period)
    length = period * S / (rate_hz * (1 + ppm * 1e-6))
    true: Times = T0 + np.arange(1, count + 1, dtype=np.float64) * length
    late: Times = rng.exponential(jitter_us * 1000, count)
    late += (rng.random(count) < outliers) * rng.uniform(1e6, 8e6, count)
    return Card(rate_hz, period, true, true + late)


def through_clock(sim: Card) -> tuple[Times, Times]:
    """For each period: the clock's time of its end, and the drift it tells, right after it."""
    clock = Clock(sim.rate_hz, sim.period)
    times, drifts = np.empty(len(sim.stamp_ns)), np.empty(len(sim.stamp_ns))
    for number, stamp in enumerate(sim.stamp_ns.tolist()):
        frame = (number + 1) * sim.period
        clock.observe(frame, round(stamp))
        times[number], drifts[number] = clock.time_of(frame), clock.drift_ppm
    return times, drifts


def through_ffmpeg(sim: Card, bandwidth_hz: float = 1.5) -> Times:
    """FFmpeg's law: o = 2π·bw·period, gains max(1 − e^(−√2·o), 1/n) and 1 − e^(−o²)."""
    length = sim.period * S / sim.rate_hz
    omega = 2 * math.pi * bandwidth_hz * sim.period / sim.rate_hz
    second, third = 1 - math.exp(-math.sqrt(2) * omega), 1 - math.exp(-(omega**2))
    stamps = sim.stamp_ns.tolist()
    out, cycle = [stamps[0]], stamps[0]
    for number, stamp in enumerate(stamps[1:], start=2):
        cycle += length
        error = stamp - cycle
        cycle += max(second, 1 / number) * error
        length += third * error
        out.append(cycle)
    return np.array(out)


def through_zita(sim: Card, bandwidth_hz: float = 0.1) -> Times:
    """zita's law: w = 2π·bw·period, gains 1.6·w and w²."""
    length = sim.period * S / sim.rate_hz
    omega = 2 * math.pi * bandwidth_hz * sim.period / sim.rate_hz
    stamps = sim.stamp_ns.tolist()
    out, following = [], stamps[0]
    for stamp in stamps:
        error = stamp - following
        out.append(following)
        following += length + 1.6 * omega * error
        length += omega**2 * error
    return np.array(out)


def through_nothing(sim: Card) -> Times:
    """GStreamer's law: the stamp itself."""
    return sim.stamp_ns


def errors_us(sim: Card, times: Times, after_s: float) -> tuple[float, float]:
    """Root mean square and maximum of the error against truth from ``after_s`` on, with bias."""
    late = (times - sim.true_ns)[round(after_s * sim.rate_hz / sim.period) :] / 1000
    return float(np.sqrt(np.mean(late**2))), float(np.abs(late).max())


@pytest.mark.parametrize("ppm", [-500, -50, 0, 50, 500])
def test_settled_error(ppm: float) -> None:
    """After 60 s of stamps 80 µs late in the mean, 1 % of them by up to 8 ms, times are within
    20 µs rms and 100 µs of the truth, bias included, and the rate is within 1 ppm."""
    sim = card(ppm)
    times, drifts = through_clock(sim)
    rms, largest = errors_us(sim, times, 60)
    assert rms <= 20
    assert largest <= 100
    assert np.abs(drifts[6000:] - ppm).max() <= 1


@pytest.mark.parametrize("ppm", [-100, 100])
def test_settled_error_of_bad_stamps(ppm: float) -> None:
    """After 120 s of stamps 1 ms late in the mean, times are within 50 µs rms and 100 µs."""
    sim = card(ppm, jitter_us=1000, seconds=300)
    rms, largest = errors_us(sim, through_clock(sim)[0], 120)
    assert rms <= 50
    assert largest <= 100


@pytest.mark.parametrize("law", [through_nothing, through_ffmpeg, through_zita])
@pytest.mark.parametrize("ppm", [-500, 50])
def test_better_than_others(law: Callable[[Card], Times], ppm: float) -> None:
    """On the same stamps the error is at most a fifth of that of FFmpeg's, zita's and no filter."""
    sim = card(ppm)
    ours, theirs = through_clock(sim)[0], law(sim)
    for own, other in zip(errors_us(sim, ours, 60), errors_us(sim, theirs, 60), strict=True):
        assert 5 * own <= other


@pytest.mark.parametrize("period_s", [0.001, 0.005, 0.02, 0.1, 1.0])
def test_any_period(period_s: float) -> None:
    """Periods of 1 ms to 1 s settle within 60 s to 50 µs rms and 200 µs."""
    sim = card(200, period_s=period_s, seconds=120)
    rms, largest = errors_us(sim, through_clock(sim)[0], 60)
    assert rms <= 50
    assert largest <= 200


@pytest.mark.parametrize("period_s", [0.001, 0.01, 1.0])
def test_first_frame(period_s: float) -> None:
    """The first stamp is enough to give a time to every frame, as late as that stamp was."""
    sim = card(0, period_s=period_s, seconds=1)
    clock = Clock(sim.rate_hz, sim.period)
    assert not clock.started
    clock.observe(sim.period, round(sim.stamp_ns[0]))
    assert clock.started
    assert clock.time_of(sim.period) == round(sim.stamp_ns[0])
    assert clock.time_of(0) == round(sim.stamp_ns[0] - sim.period * S / sim.rate_hz)


@pytest.mark.parametrize("gap_s", [0.05, 0.537, 5.0, 60.0])
def test_exact_gap_makes_no_step(gap_s: float) -> None:
    """Frames lost but counted leave the times of the frames around them where they were."""
    rng = random.Random(3)
    clock, period, ns = Clock(48_000, 480), 480, S / (48_000 * (1 + 80e-6))

    def error_ns(frame: int) -> float:
        clock.observe(frame, round(T0 + frame * ns + rng.expovariate(1 / 80_000)))
        return clock.time_of(frame) - (T0 + frame * ns)

    for number in range(6000):
        before = error_ns(number * period)
    start = 6000 * period + round(gap_s * 48_000)
    after = [error_ns(start + number * period) for number in range(200)]
    assert max(abs(one - before) for one in after) <= 50_000 + 1_000 * gap_s
    assert clock.relocks == 0


@pytest.mark.parametrize("period_s", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("lost_s", [0.001, 0.05, 0.5, 3.0])
def test_what_never_came_is_found(lost_s: float, period_s: float) -> None:
    """Of a device that goes on behind its time the clock says within 6 windows, to 0.1 ms, how much
    never came. With that in the index the line goes on as it was, and so does the drift."""
    sim = card(-120, outliers=0, seconds=max(60, 120 * period_s), period_s=period_s)
    clock = Clock(sim.rate_hz, sim.period)
    for number, stamp in enumerate(sim.stamp_ns.tolist()):
        clock.observe((number + 1) * sim.period, round(stamp))
    before, found = clock.drift_ppm, 0
    window = max(MIN_WINDOW, math.ceil(WINDOW_S / period_s))
    more = card(-120, outliers=0, seconds=12 * window * period_s, period_s=period_s, seed=8)
    done, shift = len(sim.stamp_ns), sim.true_ns[-1] - T0 + lost_s * S
    for number, stamp in enumerate(more.stamp_ns.tolist(), start=1):
        clock.observe((done + number) * sim.period + found, round(stamp + shift))
        found += clock.take_missing()
        assert found or number <= 6 * window
        assert abs(clock.drift_ppm - before) < 2
    assert clock.relocks == 0
    assert found == pytest.approx(lost_s * sim.rate_hz * (1 - 120e-6), abs=5)


@pytest.mark.parametrize("lead_s", [0.002, 0.05, 3.0])
def test_relocks_where_the_device_is_ahead(lead_s: float) -> None:
    """A device that goes on ahead of its time has lost nothing: the loop starts again there."""
    sim = card(-120, outliers=0, seconds=40)
    clock = Clock(sim.rate_hz, sim.period)
    sim.stamp_ns[3000:] -= lead_s * S
    for number, stamp in enumerate(sim.stamp_ns.tolist()):
        clock.observe((number + 1) * sim.period, round(stamp))
        assert clock.take_missing() == 0
    assert clock.relocks == 1
    assert abs(clock.time_of(len(sim.true_ns) * sim.period) - sim.true_ns[-1] + lead_s * S) < 1e6


def looks(
    ppm: float, step: int, period: int, jitter_us: float, seconds: float, edges: bool, seed: int
) -> Iterator[tuple[int, int]]:
    """Position and stamp of each look at a pointer that moves by ``step`` frames at a time: as the
    device wakes a reader who waits for a period, or by the reader's own time, every period."""
    rng, per_ns = random.Random(seed), 48_000 * (1 + ppm * 1e-6) / S
    begin, now, at, read = T0 - 7e6, float(T0), 0.0, 0
    while now < T0 + seconds * S:
        if edges:
            due = begin - (-(read + period) // step) * step / per_ns
            now = max(at, due)
        else:
            now += period / 48_000 * S
        at = now + rng.expovariate(1 / (jitter_us * 1000))
        at += (rng.random() < 0.01) * rng.uniform(1e6, 8e6)
        position = int((at - begin) * per_ns) // step * step
        if position - read >= period:
            read += (position - read) // period * period
            yield position, round(at)


@pytest.mark.parametrize("jitter_us", [5, 80, 1000])
@pytest.mark.parametrize("period", [240, 480, 960])
@pytest.mark.parametrize("step", [1, 48, 176, 192, 441, 479, 480, 481, 800, 960])
def test_settled_is_said_of_what_is_true(step: int, period: int, jitter_us: float) -> None:
    """Of a pointer that moves in steps of up to 20 ms, also such as beat slowly with the period,
    the drift is within 5 ppm of the truth wherever it is said to have settled. That is said within
    a minute where the device wakes the reader and stamps are good, and never of looks at any time.
    """
    for seed, ppm in enumerate((-500.0, -10.0, 3.0, 50.0)):
        for edges in (True, False):
            clock, said = Clock(48_000, period), 0
            for frame, stamp_ns in looks(ppm, step, period, jitter_us, 60, edges, seed):
                clock.observe(frame, stamp_ns, edges)
                if clock.settled:
                    said += 1
                    assert abs(clock.drift_ppm - ppm) <= 5
            assert said or not edges or jitter_us == 1000
            assert edges or not said


@pytest.mark.parametrize(("step", "period"), [(192, 480), (441, 480), (960, 480), (800, 240)])
@pytest.mark.parametrize("ppm", [-10.0, 50.0, 505.0])
def test_steps_are_seen_without_being_told(step: int, period: int, ppm: float) -> None:
    """Where nothing is known of what set a look off, steps that are no part of the period are found
    by their pattern, and nothing is said to have settled before it is true."""
    clock = Clock(48_000, period)
    for frame, stamp_ns in looks(ppm, step, period, 20, 400, False, 1):
        clock.observe(frame, stamp_ns)
        if clock.settled:
            assert abs(clock.drift_ppm - ppm) <= 5


def test_looks_at_any_time_do_no_harm_beside_edges() -> None:
    """A patient reader, who waits for the device only now and then, knows its rate as well."""
    edges = [(*look, True) for look in looks(77.0, 192, 480, 20, 120, True, 1)][::20]
    others = [(*look, False) for look in looks(77.0, 192, 2400, 20, 120, False, 2)]
    clock = Clock(48_000, 480)
    for frame, stamp_ns, edge in sorted(edges + others, key=lambda one: one[1]):
        clock.observe(frame, stamp_ns, edge)
    assert clock.settled
    assert clock.drift_ppm == pytest.approx(77.0, abs=2)


class OneByOne(Clock):
    """Works off each observation at once."""

    def observe(self, frame: int, stamp_ns: int, edge: bool | None = None) -> bool:
        self._wanted = 1
        return super().observe(frame, stamp_ns, edge)


@given(st.integers(0, 1 << 32), st.sampled_from([48, 480, 4800]))
@settings(max_examples=60)
def test_working_off_together_changes_nothing(seed: int, period: int) -> None:
    """Observations wait until they may fill a window: whoever asks for a time, a loss or the pace
    hears the same as if none had waited, whatever happens between."""
    chance = random.Random(seed)
    clocks = Clock(48_000, period), OneByOne(48_000, period)
    frame, late_ns, ppm, edges = 0, 0, chance.uniform(-300, 300), chance.choice([0, 1, 2])
    for _ in range(chance.choice([30, 600])):
        frame += period if chance.random() < 0.97 else chance.randrange(1, 3 * period)
        late_ns += round(chance.uniform(0, 5e6)) if chance.random() < 0.004 else 0
        jitter_ns = chance.expovariate(1 / 80_000)
        stamp_ns = T0 + late_ns + round(frame * S / 48_000 * (1 + ppm * 1e-6) + jitter_ns)
        edge = (None, True, chance.random() < 0.5)[edges]
        act = chance.random()
        for one in clocks:
            if act < 0.003:
                one.restart(frame, stamp_ns)
            elif act < 0.006:
                one.loosen()
        more, until_frame = clocks[0].patience
        news, _ = (one.observe(frame, stamp_ns, edge) for one in clocks)
        assert news == (more <= 0 or frame >= until_frame)
        together, alone = (
            (one.time_of(frame), one.ns_per_frame, one.settled, one.ambiguous, one.relocks)
            for one in clocks
        )
        assert together == alone
        assert clocks[0].take_missing() == clocks[1].take_missing()


def test_outliers_do_not_relock() -> None:
    """Late stamps, even one in ten by up to 8 ms, are never taken for a stand-still."""
    sim = card(30, outliers=0.1)
    clock = Clock(sim.rate_hz, sim.period)
    for number, stamp in enumerate(sim.stamp_ns.tolist()):
        clock.observe((number + 1) * sim.period, round(stamp))
    assert clock.relocks == 0


def test_one_early_stamp_a_window_does_no_harm() -> None:
    """A stamp of a broken driver that comes 5 ms early once a second leaves times within 200 µs."""
    sim = card(30, outliers=0)
    sim.stamp_ns[100::100] -= 5e6
    assert errors_us(sim, through_clock(sim)[0], 60)[1] <= 200


Row = tuple[int, int, int, int, int]
EVENTS = st.one_of(
    st.tuples(st.just("run"), st.integers(1, 150)),
    st.tuples(st.just("gap"), st.integers(1, 1_000_000)),  # frames
    st.tuples(st.just("stall"), st.integers(50, 3000)),  # ms
    st.tuples(st.just("restart"), st.integers(1, 10_000)),  # ms
    st.tuples(st.just("late"), st.integers(1, 500)),  # ms
    st.tuples(st.just("early"), st.integers(1, 500)),  # ms
)


def life(
    events: list[tuple[str, int]],
    rate_hz: int,
    period: int,
    ppm: float,
    jitter_us: float,
    seed: int,
) -> Iterator[Row | None]:
    """What a device of that rate brings while it lives through ``events``."""
    rng = random.Random(seed)
    ns = S / (rate_hz * (1 + ppm * 1e-6))
    now, lost, off = float(T0), 0, 0.0
    for kind, amount in events:
        match kind:
            case "gap":
                now, lost = now + amount * ns, lost + amount
            case "stall":
                now += amount * 1e6
            case "restart":
                now += amount * 1e6
                yield None
            case "late":
                off = amount * 1e6
            case "early":
                off = -amount * 1e6
        for _ in range(amount if kind == "run" else 1):
            now += period * ns
            jitter = rng.expovariate(1 / (jitter_us * 1000)) if jitter_us else 0.0
            yield round(now), period, lost, round(now + jitter + off), period
            lost, off = 0, 0.0


@settings(max_examples=150, deadline=None)
@given(
    events=st.lists(EVENTS, min_size=1, max_size=25),
    rate_hz=st.sampled_from([8000, 44_100, 48_000, 192_000]),
    period_ms=st.sampled_from([1, 5, 10, 100, 1000]),
    ppm=st.floats(-1000, 1000),
    jitter_us=st.sampled_from([0.0, 5.0, 80.0, 1000.0]),
    seed=st.integers(0, 2**16),
)
def test_timeline_never_goes_back(
    events: list[tuple[str, int]],
    rate_hz: int,
    period_ms: int,
    ppm: float,
    jitter_us: float,
    seed: int,
) -> None:
    """Whatever stamps a device brings, through gaps, stalls and restarts, the times of successive
    blocks increase, frames map to times and back to themselves, and drift stays within 1 %."""
    setup = capture(rate_hz=rate_hz, period_ms=float(period_ms), buffer_ms=10_000.0)
    period = setup.period_frames
    source = Script(setup, life([*events, ("run", 5)], rate_hz, period, ppm, jitter_us, seed))
    clock, ring = Clock(rate_hz, period), Ring(200, 1)
    reader = reader_of(ring, setup.audio)
    capturer = Capturer(source, clock, ring, 0, lambda: source.now_ns)
    capturer.open()
    last_frame = last_ns = -1
    try:
        while True:
            try:
                capturer.step(0)
            except DeviceError as error:
                capturer.fail(error)
                capturer.open()
                continue
            except StopIteration:
                break
            (block,) = reader.blocks()
            assert block.first_frame > last_frame
            assert block.captured_at_ns > last_ns
            last_frame, last_ns = block.first_frame, block.captured_at_ns
            for frame in (block.first_frame, block.first_frame + period - 1):
                assert clock.frame_at(clock.time_of(frame)) == frame
            assert abs(clock.ns_per_frame / clock.nominal_ns - 1) <= RATE_LIMIT + 1e-12
    finally:
        ring.close()


@pytest.mark.parametrize("ppm", [-9900, -5000, 5000, 8500])
def test_a_card_that_is_off_by_up_to_a_hundredth_is_followed(ppm: float) -> None:
    """The clock says that it follows 1 %, so it learns the rate instead of starting again and
    again; beyond that ``truerate.py`` tells."""
    clock, rng = Clock(48_000, 480), random.Random(1)
    frame_ns = NS_PER_S / (48_000 * (1 + ppm * 1e-6))
    for frame in range(480, 60 * 48_000, 480):
        clock.observe(frame, 5 * NS_PER_S + round(frame * frame_ns + rng.expovariate(1 / 5e4)))
    assert clock.settled and clock.drift_ppm == pytest.approx(ppm, abs=2)
    assert clock.time_of(frame) == pytest.approx(5 * NS_PER_S + frame * frame_ns, abs=50_000)
    assert clock.relocks <= 3


@pytest.mark.parametrize("ppm", [-50_000, 50_000])
def test_no_card_is_believed_to_be_off_by_more_than_a_hundredth(ppm: float) -> None:
    """Whoever keeps step with the clock is safe from a device that says nonsense."""
    clock = Clock(48_000, 480)
    frame_ns = NS_PER_S / (48_000 * (1 + ppm * 1e-6))
    for frame in range(480, 30 * 48_000, 480):
        clock.observe(frame, T0 + round(frame * frame_ns))
        assert abs(clock.ns_per_frame / clock.nominal_ns - 1) <= RATE_LIMIT + 1e-12


@pytest.mark.parametrize("slew_ppm", [-500.0, 500.0])
def test_a_slew_of_the_machines_clock_is_followed_at_once(slew_ppm: float) -> None:
    """NTP changes the rate of CLOCK_MONOTONIC from one moment to the next: five seconds later the
    drift is within 50 ppm, times stay within 1 ms, and nothing is taken for a loss or a step."""
    sim = card(20, outliers=0, seconds=140)
    clock = Clock(sim.rate_hz, sim.period)
    for number, (stamp, true) in enumerate(zip(sim.stamp_ns, sim.true_ns, strict=True), start=1):
        late = max(0.0, true - T0 - 120 * S) * slew_ppm * -1e-6
        clock.observe(number * sim.period, round(stamp + late))
        assert abs(clock.time_of(number * sim.period) - true - late) < 1e6
        if true > T0 + 125 * S:
            assert abs(clock.drift_ppm - 20 - slew_ppm) < 50
    assert clock.relocks == 0 and clock.missing == 0


def test_more_looks_in_doubt_make_no_loss_of_half_a_second_of_lateness() -> None:
    """Of a reader who looks every second period, and twenty times as often while the clock is in
    doubt: a window lasts as long as before, so three of them are no less sure."""
    clock, rng, frame, doubts = Clock(48_000, 480), random.Random(1), 0, 0
    while frame < 62 * 48_000:
        frame += 48 if clock.ambiguous else 960
        late = 5e6 if 60 * 48_000 <= frame < 60.5 * 48_000 else 0.0
        clock.observe(frame, T0 + round(frame * clock.nominal_ns + late + rng.expovariate(1 / 8e4)))
        doubts += clock.ambiguous
        assert clock.missing == clock.relocks == 0
    assert doubts > 100


def test_what_was_settled_is_not_after_a_restart() -> None:
    """The line from which the rate is told begins anew with the device, though the loop is sure
    long before."""
    sim = card(20, outliers=0, seconds=80)
    clock = Clock(sim.rate_hz, sim.period)
    for number, stamp in enumerate(sim.stamp_ns.tolist(), start=1):
        if number == 6000:
            assert clock.settled
            clock.restart(number * sim.period, round(stamp))
        clock.observe(number * sim.period, round(stamp))
        assert not clock.settled or number < 6000


def test_a_clock_goes_on_from_another() -> None:
    """It has the rate and the place in time that the other one had come to, and no step follows."""
    before, period = Clock(48_000, 480), 480
    at_ns, per_frame = 10**9, NS_PER_S / 48_000 * (1 - 100e-6)
    for number in range(1, 3000):
        before.observe(number * period, at_ns + round(number * period * per_frame), True)
    frame = 2999 * period
    after = Clock(48_000, period)
    after.continue_from(frame, before.time_of(frame), before.ns_per_frame)
    assert after.started
    assert after.ns_per_frame == pytest.approx(before.ns_per_frame, rel=1e-9)
    assert after.ns_per_frame == pytest.approx(per_frame, rel=5e-6)
    assert after.time_of(frame) == pytest.approx(before.time_of(frame), abs=1)
    for number in range(3000, 3200):
        after.observe(number * period, at_ns + round(number * period * per_frame), True)
    assert after.relocks == 0 and after.missing == 0
    assert after.ns_per_frame == pytest.approx(per_frame, rel=20e-6)
