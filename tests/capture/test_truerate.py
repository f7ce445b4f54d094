"""The rate at which a device really runs, beyond what the clock follows."""

import random
from collections.abc import Iterator

import pytest

from capstand.audio.clock import Clock
from capstand.capture.truerate import TrueRate, describe_rate
from capstand.capture.types.synthetic import FaultConfig, SyntheticConfig
from tests.line import Keep, Line, capture

S = 1_000_000_000


def stamps(
    rate_hz: float, seconds: float, jitter_us: float = 80, begin_s: float = 100, frame: int = 0
) -> Iterator[tuple[int, int]]:
    """Every 10 ms of a device that really runs at ``rate_hz``, stamped late, 1 % by up to 50 ms."""
    chance = random.Random(3)
    for number in range(1, round(seconds * 100)):
        late_s = chance.expovariate(1e6 / jitter_us) + (chance.random() < 0.01) * 0.05
        yield frame + round(number * rate_hz / 100), round((begin_s + number / 100 + late_s) * S)


@pytest.mark.parametrize("off", [-0.5, -0.27, -0.08, -0.03, -0.015, 0.015, 0.03, 0.0884, 0.5, 1.0])
def test_another_rate_is_measured(off: float) -> None:
    """A card that is off by 1.5 % and more is known for it after 13 s, to half a percent."""
    meter = TrueRate(44_100)
    for frame, stamp_ns in stamps(44_100 * (1 + off), 13.5):
        meter.observe(frame, stamp_ns)
    assert meter.rate_hz == pytest.approx(44_100 * (1 + off), rel=0.005)


@pytest.mark.parametrize("ppm", [-500, 0, 500, 5000])
@pytest.mark.parametrize("jitter_us", [5, 80, 2000])
def test_no_false_alarm(ppm: float, jitter_us: float) -> None:
    """A card that the clock can follow is never spoken of, however bad its stamps."""
    meter = TrueRate(48_000)
    for frame, stamp_ns in stamps(48_000 * (1 + ppm * 1e-6), 600, jitter_us):
        meter.observe(frame, stamp_ns)
        assert meter.rate_hz is None


@pytest.mark.parametrize("stall_s", [0.05, 0.3, 1.9])
def test_stand_stills_are_no_rate(stall_s: float) -> None:
    """A card that stands still now and then, without an error, does not run at another rate."""
    meter, frame, begin_s, chance = TrueRate(48_000), 0, 100.0, random.Random(5)
    for _ in range(60):
        length_s = chance.uniform(2, 20)
        for position, stamp_ns in stamps(48_000, length_s, begin_s=begin_s, frame=frame):
            meter.observe(frame := position, stamp_ns)
            assert meter.rate_hz is None
        begin_s += length_s + stall_s


@pytest.mark.parametrize("off", [0.0, -0.015, 0.03])
@pytest.mark.parametrize("step", [192, 960])
def test_steps_are_no_rate(step: int, off: float) -> None:
    """A pointer that moves by 4 or 20 ms at a time neither makes a rate nor hides one."""
    meter = TrueRate(48_000)
    for frame, stamp_ns in stamps(48_000 * (1 + off), 60):
        meter.observe(frame // step * step, stamp_ns)
        assert off or meter.rate_hz is None
    assert meter.rate_hz == (pytest.approx(48_000 * (1 + off), rel=0.005) if off else None)


def test_a_rate_that_changes() -> None:
    """A rate that changes later is found, and so is its end."""
    meter, frame, begin_s, found = TrueRate(48_000), 0, 100.0, []
    for rate_hz in (48_000, 44_100, 48_000, 96_000):
        for position, stamp_ns in stamps(rate_hz, 30, begin_s=begin_s, frame=frame):
            meter.observe(frame := position, stamp_ns)
        begin_s += 30
        found.append(meter.rate_hz and round(meter.rate_hz, -3))
    assert found == [None, 44_000, None, 96_000]


@pytest.mark.parametrize(
    ("nominal", "rate", "words"),
    [
        (44_100, 32_003.0, "says 44100 Hz and delivers 32000 Hz: set rate_hz = 32000"),
        (44_100, 47_950.0, "says 44100 Hz and delivers 48000 Hz: set rate_hz = 48000"),
        (48_000, 46_563.0, "says 48000 Hz and delivers about 46560 Hz: it loses data"),
    ],
)
def test_words(nominal: int, rate: float, words: str) -> None:
    """A rate that a card may have is named with the key to set, any other with what else to try."""
    assert words in describe_rate(nominal, rate)


def run(seconds: float, **synthetic: object) -> Line:
    card = capture(source=SyntheticConfig(signal="silence", jitter_us=80.0, **synthetic))  # type: ignore[arg-type]
    line = Line(card, [Keep()])
    while line.time.now_ns() < (seconds + 1) * S:
        line.capture()
        line.push()
    return line


@pytest.mark.parametrize("ppm", [-20_000.0, 20_000.0])
def test_a_stream_says_it(ppm: float) -> None:
    """A stream whose card is 2 % off is degraded, with the rate and what to do in its status."""
    stats = run(15, ppm=ppm).stats()
    assert stats.health == "DEGRADED"
    assert stats.trouble is not None
    assert stats.trouble.startswith(
        f"the card says 48000 Hz and delivers about {48_000 * (1 + ppm * 1e-6):.0f} Hz"
    )
    assert not stats.drift_settled


@pytest.mark.parametrize("kind", ["overrun", "unplug", "stall"])
def test_faults_are_no_rate(kind: str) -> None:
    """Overruns, outages and stalls that come again and again say nothing of the rate."""
    fault = FaultConfig(kind=kind, at_s=2.0, for_s=3.0, every_s=9.0)
    line = run(120, ppm=-500.0, faults=(fault,))
    assert line.stream.overview.wrong_rate() is None


def test_a_backlog_is_not_faster_than_time() -> None:
    """What gathered in a sound server while the reader was away, up to a minute of it, may come at
    once; a source that goes on like that may not."""
    meter, now_ns = TrueRate(48_000), 10 * S
    meter.opened(24_000, now_ns)
    for _ in range(6000):
        now_ns += S // 100
        assert not meter.outrun(480, now_ns)
    assert not any(meter.outrun(480, now_ns + n * 20_000) for n in range(5900))
    now_ns += 5900 * 20_000
    assert any(meter.outrun(480, now_ns + n * 20_000) for n in range(1000))


def test_the_clock_is_not_asked() -> None:
    """What the clock believes of such a card is within its limit, so it cannot say it."""
    clock = Clock(44_100, 441)
    for frame, stamp_ns in stamps(32_000, 60):
        clock.observe(frame, stamp_ns)
    assert abs(clock.drift_ppm) < 11_000
    assert not clock.settled
