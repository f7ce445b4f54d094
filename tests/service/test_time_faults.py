"""Clocks that are set, slewed or stand still: the timeline is CLOCK_MONOTONIC's and keeps its head.

Wall time is for people alone. NTP's slew does reach CLOCK_MONOTONIC, as a rate that changes from
one moment to the next. While the machine is suspended neither CLOCK_MONOTONIC nor the card goes on.
All on virtual time.
"""

import random
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import soundfile

import capstand
from capstand.accounting.stats import Cause
from capstand.audio.block import NS_PER_S
from capstand.audio.clock import Clock
from capstand.audio.ring import Ring
from capstand.capture.capturer import Capturer
from capstand.capture.source import UNKNOWN, Reading
from capstand.capture.synthetic import SyntheticSource, VirtualTime
from capstand.errors import DeviceError
from capstand.sinks.recording.recording import Recording
from capstand.sinks.types.file import FileSinkConfig
from tests.audio.test_clock import Row
from tests.dsp.test_ratelock import Run
from tests.line import Line, Script, capture
from tests.rings import reader_of

S = NS_PER_S
RATE_HZ = 48_000
SLEW_PPM = 500.0
START_S = 1_795_317_300  # 2026-11-22T03:15:00Z
T0 = 10**13


class Slewed:
    """A card of +30 ppm, and a CLOCK_MONOTONIC that goes ``ppm`` faster or slower from ``at_s``."""

    def __init__(self, ppm: float, at_s: float, period_ms: float, jitter_us: float = 80.0) -> None:
        self.period = round(RATE_HZ * period_ms / 1000)
        self.now_ns = float(T0)
        self.frame = 0
        self._ppm = ppm
        self._at_ns = T0 + at_s * S
        self._jitter_ns = jitter_us * 1000
        self._random = random.Random(5)

    def next(self) -> int:
        """The stamp of the end of the next period."""
        ppm = 30.0 + (self._ppm if self.now_ns >= self._at_ns else 0.0)
        self.frame += self.period
        self.now_ns += self.period * S / (RATE_HZ * (1 + ppm * 1e-6))
        late = self._random.expovariate(1 / self._jitter_ns)
        if self._random.random() < 0.01:
            late += self._random.uniform(1e6, 8e6)
        return round(self.now_ns + late)


@pytest.mark.parametrize("ppm", [SLEW_PPM, -SLEW_PPM])
@pytest.mark.parametrize(
    ("period_ms", "worst_us"), [(1.0, 500), (10.0, 500), (100.0, 1000), (1000.0, 8000)]
)
def test_a_slew_is_followed(ppm: float, period_ms: float, worst_us: float) -> None:
    """When NTP changes the rate by 500 ppm from one moment to the next, times are off by at most
    1 ms (with periods of 1 s, 8 ms), the loop does not start again, and soon all is as before."""
    card = Slewed(ppm, 60, period_ms)
    clock = Clock(RATE_HZ, card.period)
    worst = late = 0.0
    while card.now_ns < T0 + 180 * S:
        stamp_ns = card.next()
        clock.observe(card.frame, stamp_ns)
        error_us = abs(clock.time_of(card.frame) - card.now_ns) / 1000
        if card.now_ns > T0 + 60 * S:
            worst = max(worst, error_us)
        if card.now_ns > T0 + 90 * S and period_ms < 1000:
            late = max(late, error_us)
    assert worst <= worst_us
    assert late <= 100
    assert clock.relocks == 0
    assert clock.drift_ppm == pytest.approx(30 + ppm, abs=5)


@pytest.mark.parametrize("ppm", [SLEW_PPM, -SLEW_PPM])
def test_a_slew_makes_no_gap_and_falsifies_none(ppm: float) -> None:
    """Through a slew no frame is missing, times of blocks increase, and an outage of 5 s in it is
    booked to within a millisecond of what it was."""
    card = Slewed(ppm, 60, 10.0)
    setup = capture()

    def rows() -> Iterator[Row | None]:
        for number in range(9000):
            if number == 6500:  # five seconds into the slew
                yield None
                card.now_ns += 5 * S
            stamp_ns = card.next()
            yield round(card.now_ns), card.period, 0, stamp_ns, card.period

    source = Script(setup, rows())
    clock, ring = Clock(RATE_HZ, card.period), Ring(200, 1)
    reader = reader_of(ring, setup.audio)
    capturer = Capturer(source, clock, ring, 0, lambda: source.now_ns)
    capturer.open()
    last_ns = 0
    while True:
        try:
            capturer.step(0)
        except DeviceError as error:
            assert capturer.tally.gaps.count == 0
            capturer.fail(error)
            capturer.open()
            continue
        except StopIteration:
            break
        (block,) = reader.blocks()
        assert block.captured_at_ns > last_ns
        last_ns = block.captured_at_ns
    ring.close()
    (gap,) = capturer.tally.gaps.since(0)
    assert gap.cause is Cause.REOPENED
    frames = 5 * RATE_HZ * (1 + (30 + ppm) * 1e-6)
    assert gap.frames == pytest.approx(frames, abs=48)


def test_a_slew_leaves_a_live_queue_alone() -> None:
    """Through two slews, there and back, a live channel's queue neither runs dry nor grows."""
    run = Run(lambda at_s: SLEW_PPM if 120 < at_s < 300 else 0.0)
    run.seconds(60)
    depths = run.seconds(400)
    assert run.drain.holes == 0
    assert max(abs(depth - 40) for depth in depths) < 10
    assert max(abs(depth - 40) for depth in depths[-60:]) < 2


def test_only_what_people_read_comes_from_the_wall_clock() -> None:
    """Wall time is read where names, log lines, books and the ends of tokens are made, and nowhere
    else: a clock that is set moves no frame."""
    root = Path(capstand.__file__).parent
    reads = re.compile(r"time\.time(_ns)?\b|datetime\.now|CLOCK_REALTIME|utcnow")
    users = {
        str(one.relative_to(root)) for one in root.rglob("*.py") if reads.search(one.read_text())
    }
    assert users <= {
        "sinks/recording/recording.py",
        "sinks/recording/retention.py",  # how old a recording is, with care
        "sinks/spool/spool.py",
        "accounting/ledger.py",
        "host/logs.py",
        "sharing/device_release.py",
        "agora/sdk/install.py",
        "agora/tokens/token.py",
        "agora/tokens/renewal.py",
        "agora/tokens/sources.py",
        "agora/channel_session.py",
        "agora/connection_state.py",
    }


class Suspending(SyntheticSource):
    """A card of a machine that is suspended once: CLOCK_MONOTONIC and the card stand still, what
    lay in the buffer is gone, and the stream is found SUSPENDED 0.3 s after the machine awoke.
    """

    RESUME_NS = 300_000_000
    suspended_ns = 0

    def read(self, slot: memoryview, timeout_ms: int) -> Reading:
        if self.suspended_ns:
            self.suspended_ns = 0
            self._time.wait_until(self._time.now_ns() + self.RESUME_NS)
            self.restart()
            reading = super().read(slot, timeout_ms)
            assert reading.lost == UNKNOWN
            reading.cause = Cause.SUSPENDED
            return reading
        return super().read(slot, timeout_ms)


class Desk:
    """A stream into recordings, on a machine whose wall clock is the test's."""

    def __init__(self, folder: Path, source: SyntheticSource | None = None) -> None:
        self.folder = folder
        self.time = VirtualTime()
        self.ahead_ns = START_S * S - self.time.now_ns()
        card = capture(rate_hz=8000, period_ms=100.0)
        self.source = Suspending(card, self.time)
        setup = FileSinkConfig(type="file", path=str(folder), min_free_mb=0)
        recording = Recording(
            "mic",
            setup,
            card.audio,
            now_ns=self.time.now_ns,
            wall_ns=lambda: self.time.now_ns() + self.ahead_ns,
        )
        self.line = Line(card, [recording], self.time, self.source)

    def run(self, seconds: float) -> None:
        end = self.time.now_ns() + seconds * S
        while self.time.now_ns() < end:
            self.line.capture()
            self.line.push()
            self.line.deliver()

    def files(self) -> list[tuple[float, float]]:
        """Wall time in the name, from START on, and length of each recording, in seconds."""
        self.line.stream.sink_queues[0].sink.close()
        assert self.line.stats().balanced
        return [
            (_named(one) - START_S, soundfile.info(one).duration)
            for one in sorted(self.folder.iterdir(), key=_named)
        ]


def _named(path: Path) -> float:
    return datetime.strptime(path.name[4:-4], "%Y%m%dT%H%M%S.%f%z").timestamp()


def close(*rows: tuple[float, float]) -> list[object]:
    """Such files, to 2 ms and a period."""
    return [(pytest.approx(name, abs=0.002), pytest.approx(s, abs=0.1)) for name, s in rows]


@pytest.mark.parametrize(
    ("step_s", "expected"),
    [(3600, [(0, 10), (3610, 10)]), (-3600, [(-3590, 10), (0, 10)])],
)
def test_a_wall_clock_that_is_set(
    tmp_path: Path, step_s: int, expected: list[tuple[float, float]]
) -> None:
    """When the wall clock is set by an hour no frame is lost and no time of a block moves; the next
    block begins a recording whose name is true by the new time."""
    desk = Desk(tmp_path)
    desk.run(10)
    desk.ahead_ns += step_s * S
    desk.run(10)
    assert desk.files() == close(*expected)
    stats = desk.line.stats()
    assert (stats.lost_frames, stats.gaps) == (0, 0)
    assert desk.line.stream.clock.relocks == 0


def test_small_corrections_of_the_wall_clock_leave_a_recording_whole(tmp_path: Path) -> None:
    """A wall clock that is corrected by less than a minute begins no new recording."""
    desk = Desk(tmp_path)
    for _ in range(5):
        desk.run(4)
        desk.ahead_ns += 10 * S
    assert desk.files() == close((0, 20))


def test_a_machine_that_was_suspended(tmp_path: Path) -> None:
    """After a night of suspend sound is back at once; only what the card did not bring while the
    machine awoke is a gap, the hours asleep are none; the recording after it has its own name."""
    desk = Desk(tmp_path)
    desk.run(10)
    desk.ahead_ns += 8 * 3600 * S  # asleep: only the wall clock goes on
    desk.source.suspended_ns = 1
    desk.run(10)
    stats = desk.line.stats()
    (gap,) = desk.line.gaps
    assert (gap.cause, gap.exact) == (Cause.SUSPENDED, False)
    assert gap.frames == pytest.approx(0.3 * 8000, abs=2)
    assert (stats.restarts, stats.opens) == (0, 1)
    assert desk.files() == close((0, 10), (8 * 3600 + 10.3, 9.7))


def test_a_card_that_is_gone_after_a_suspend(tmp_path: Path) -> None:
    """A USB card that has to be found anew after a suspend costs the time until it is there again,
    and no second more."""
    desk = Desk(tmp_path)
    desk.run(10)
    desk.ahead_ns += 8 * 3600 * S
    desk.line.stream.capturer.fail(DeviceError("gone"))
    desk.time.wait_until(desk.time.now_ns() + 2 * S)
    desk.run(10)
    (gap,) = desk.line.gaps or desk.line.stream.capturer.tally.gaps.since(0)
    assert (gap.cause, gap.exact) == (Cause.REOPENED, False)
    assert gap.frames == pytest.approx(2 * 8000, abs=2)
    assert desk.files() == close((0, 10), (8 * 3600 + 12, 10))
