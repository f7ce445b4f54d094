"""The ledger: no frame is ever missing from the books, whatever happens and whoever looks.

First with the threads' turns in any order on virtual time, then with the threads themselves.
"""

import errno
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.accounting.stats import Cause, Count, Gap, GapTable, StreamStats, Tally, gap_code
from capstand.audio.block import NS_PER_S, Block
from capstand.capture.source import UNKNOWN, NegotiatedParams
from capstand.capture.synthetic import SyntheticSource, VirtualTime
from capstand.capture.types.synthetic import FaultConfig, SyntheticConfig
from capstand.errors import DeviceError, SinkError
from capstand.service.display import status_line, status_table
from capstand.sinks.sink_queue import SinkQueue
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.intake import Intake
from tests.line import Keep, Line, Script, capture, config, counters, give
from tests.patience import PATIENCE_S
from tests.rings import reader_of

FAULTS = st.builds(
    FaultConfig,
    kind=st.sampled_from(["overrun", "unplug", "stall"]),
    at_s=st.floats(0.05, 3),
    for_s=st.floats(0.01, 4),
    every_s=st.sampled_from([0.0, 5.0, 11.0]),
)
TURNS = st.lists(
    st.tuples(
        st.sampled_from(["capture", "capture", "push", "deliver", "fail"]), st.integers(1, 40)
    ),
    min_size=5,
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(
    faults=st.lists(FAULTS, max_size=4),
    turns=TURNS,
    queue_ms=st.integers(100, 1000),
    ppm=st.floats(-500, 500),
    jitter_us=st.sampled_from([0.0, 80.0, 1000.0]),
)
def test_any_order_of_turns(
    faults: list[FaultConfig],
    turns: list[tuple[str, int]],
    queue_ms: int,
    ppm: float,
    jitter_us: float,
) -> None:
    """After every turn of any thread the books balance for each sink, the gaps noted make what was
    lost and dropped, and every sink gets frames in order and as the card numbered them."""
    setup = SyntheticConfig(signal="counter", ppm=ppm, jitter_us=jitter_us, faults=tuple(faults))
    card = capture(rate_hz=8000, format="S32_LE", channels=1, buffer_ms=100.0, source=setup)
    failing = False
    sinks = [Keep(), Keep(lambda: failing)]
    line = Line(card, sinks, queue_frames=queue_ms * 8)
    for turn, times in turns:
        if turn == "fail":
            failing = not failing
            continue
        for _ in range(times):
            getattr(line, turn)()
            assert line.stats().balanced
    line.push()
    line.deliver()
    stats = line.stats()
    assert stats.balanced
    assert sum(gap.frames for gap in line.gaps) == stats.lost_frames
    assert {gap.cause for gap in line.gaps if gap.exact} <= {Cause.OVERRUN}
    for sink, books in zip(sinks, stats.sinks, strict=True):
        assert books.delivered_frames == sum(block.frames for block in sink.blocks)
        assert books.in_flight_frames == line.stream.sink_queues[stats.sinks.index(books)].queued
        for first, second in itertools.pairwise(sink.blocks):
            assert second.first_frame >= first.first_frame + first.frames
            assert second.captured_at_ns > first.captured_at_ns
    assert stats.sinks[0].in_flight_frames == 0
    # A card that stands still does not count on; what it did not deliver meanwhile, time tells.
    kinds = {fault.kind for fault in faults}
    still = [gap for gap in line.gaps if gap.cause is Cause.DEVICE]
    assert not still or kinds & {"stall", "unplug"}
    if "unplug" not in kinds and not line.stream.capturer.stalls:
        for block in sinks[0].blocks:
            numbers = counters(block.samples, card)
            stood = sum(one.frames for one in still if one.first_frame < block.first_frame)
            assert numbers[0] == block.first_frame - stood
            assert (np.diff(numbers) == 1).all()


@settings(max_examples=50, deadline=None)
@given(
    faults=st.lists(FAULTS, min_size=1, max_size=4),
    looks=st.lists(st.integers(1, 60), min_size=5, max_size=15),
    jitter_us=st.sampled_from([0.0, 1000.0]),
)
def test_what_the_ring_keeps_of_a_loss_is_what_is_told(
    faults: list[FaultConfig], looks: list[int], jitter_us: float
) -> None:
    """Who comes after the writer finds each gap that it noted since anybody looked, with its cause
    and whether it is exact; several before one block as one, which is exact if each of them is."""
    setup = SyntheticConfig(jitter_us=jitter_us, faults=tuple(faults))
    card = capture(rate_hz=8000, format="S16_LE", channels=1, buffer_ms=100.0, source=setup)
    line = Line(card, [])
    tally, seen = line.stream.capturer.tally, 0
    reader = reader_of(line.stream.ring, card.audio)
    for turns in looks:
        before = tally.count()
        for _ in range(turns):
            line.capture()
        told = tally.gaps.since(seen)
        seen = tally.gaps.count
        for missing in reader.missing(before.captured, before.produced):
            kept, end = Gap.from_code(*missing), missing.first_frame + missing.frames
            parts = [gap for gap in told if missing.first_frame <= gap.first_frame < end]
            told = [gap for gap in told if gap not in parts]
            assert sum(gap.frames for gap in parts) == kept.frames
            assert kept.cause is parts[-1].cause
            assert kept.exact == all(gap.exact for gap in parts)
        assert not told


def test_a_gap_comes_back_from_its_code() -> None:
    """Every cause, exact or not; a number that is no code is a process that has died, estimated."""
    for cause in Cause:
        for exact in (True, False):
            gap = Gap(7, 5, 3, cause, exact)
            assert Gap.from_code(7, 5, 3, gap_code(cause, exact)) == gap
    for code in (-(2**62), -1, 0, 1, gap_code(max(Cause), exact=True) + 1, 2**62):
        assert Gap.from_code(7, 5, 3, code) == Gap(7, 5, 3, Cause.PROCESS, exact=False)


def test_an_outage_is_measured_by_the_clock() -> None:
    """What an unplugged card would have produced is booked as an estimate, right to the period."""
    fault = FaultConfig(kind="unplug", at_s=30.0, for_s=20.0)
    setup = SyntheticConfig(signal="counter", ppm=300.0, faults=(fault,))
    card = capture(format="S32_LE", channels=1, source=setup)
    sink = Keep()
    line = Line(card, [sink])
    while line.time.now_ns() < 60e9:
        line.capture()
        line.push()
        line.deliver()
    stats = line.stats()
    (gap,) = line.gaps
    assert (gap.cause, gap.exact) == (Cause.REOPENED, False)
    assert stats.lost_estimated_frames == stats.lost_frames == gap.frames
    last = sink.blocks[-1]
    assert counters(last.samples, card)[0] == pytest.approx(last.first_frame, abs=2)


def test_a_short_block_counts_its_own_frames() -> None:
    """A device may bring less than a period; the next block follows without a gap."""
    card = capture()
    rows = [(10**9, 100, 0, 10**9, 100), (10**9 + 10**7, 480, 0, 10**9 + 10**7, 480)]
    sink = Keep()
    line = Line(card, [sink], source=Script(card, rows))
    for _ in rows:
        line.capture()
    line.push()
    line.deliver()
    assert [(block.first_frame, block.frames) for block in sink.blocks] == [(0, 100), (100, 480)]
    assert line.stats().lost_frames == 0


@pytest.mark.parametrize(("lost", "cause"), [(960, Cause.OVERRUN), (960, Cause.OVERWRITTEN)])
def test_a_loss_the_device_counted_is_exact(lost: int, cause: Cause) -> None:
    """Frames the device itself counted as lost are an exact gap of that length and cause."""
    card = capture()
    rows = [
        (10**9, 480, 0, 10**9, 480),
        (10**9 + 3 * 10**7, 480, lost, 10**9 + 3 * 10**7, 480),
    ]
    script = Script(card, rows)
    script._reading.cause = cause
    line = Line(card, [Keep()], source=script)
    line.capture()
    line.capture()
    stats = line.stats()
    (gap,) = line.gaps
    assert (gap.first_frame, gap.frames, gap.cause, gap.exact) == (480, lost, cause, True)
    assert gap.at_ns == 10**9
    assert (stats.lost_frames, stats.lost_estimated_frames) == (lost, 0)


def test_an_unknown_loss_is_an_estimate() -> None:
    """Where the device cannot say how much was lost, the clock does, and the books say so."""
    card = capture()
    start = [(10**9 + n * 10**7, 480, 0, 10**9 + n * 10**7, 480) for n in range(200)]
    after = 10**9 + 200 * 10**7 + 10**9
    line = Line(card, [Keep()], source=Script(card, [*start, (after, 480, UNKNOWN, after, 480)]))
    for _ in range(201):
        line.capture()
    stats = line.stats()
    assert stats.lost_frames == stats.lost_estimated_frames == pytest.approx(48_000, abs=48)
    assert not stats.lost_exact
    assert stats.balanced


def test_a_lapped_pusher_drops_and_loses_nothing() -> None:
    """What the ring has no room for until a held-up pusher comes to it is captured and dropped, and
    known as that; the pusher goes on with the newer half."""
    card = capture(buffer_ms=40.0)
    line = Line(card, [Keep()])
    for _ in range(card.ring_slots + 7):
        line.capture()
    line.stats()
    line.push()
    line.deliver()
    stats = line.stats()
    missed = (card.ring_slots // 2 + 7) * 480
    assert stats.balanced
    assert (stats.lost_frames, stats.gaps) == (0, 0)
    assert stats.sinks[0].dropped_frames == stats.ring_dropped_frames == missed
    assert stats.sinks[0].delivered_frames == stats.captured_frames - missed
    assert (stats.health, stats.trouble) == ("DEGRADED", "frames were just lost")
    assert f"lost 0, dropped {missed}" in status_line([stats])
    words = f"{missed} frames were captured but did not reach the sinks"
    assert words in status_table([stats.as_json()])


class Small(SyntheticSource):
    """A card that grants a buffer of its own."""

    def open(self) -> NegotiatedParams:
        return super().open()._replace(buffer_frames=2400)


@pytest.mark.parametrize(("asked_ms", "told"), [(500.0, True), (100.0, False), (60.0, False)])
def test_a_short_buffer_is_told(asked_ms: float, told: bool) -> None:
    """A card whose buffer is less than half of what was asked for is named in the status."""
    card = capture(buffer_ms=asked_ms)
    time = VirtualTime()
    line = Line(card, [Keep()], time, Small(card, time))
    line.capture()
    stats = line.stats()
    words = "the card's buffer is 50 ms, not 500; a busy machine loses frames sooner"
    assert stats.notice == (words if told else None)
    assert (words in status_line([stats])) is told
    assert (words in status_table([stats.as_json()])) is told


class Replaced(SyntheticSource):
    """A card in whose place another has come."""

    def open(self) -> NegotiatedParams:
        return super().open()._replace(successor="usb:1234:5678 is another card now")


def test_a_card_in_the_place_of_another_is_in_the_status_for_a_minute() -> None:
    """Long enough to be seen; the journal has it for good (tests/service/test_reporter.py)."""
    card, time = capture(), VirtualTime()
    line = Line(card, [Keep()], time, Replaced(card, time))
    line.capture()
    first = line.stats()
    assert first.notice == "usb:1234:5678 is another card now"
    assert "usb:1234:5678 is another card now" in status_line([first])
    while time.now_ns() < first.captured_at_ns + 50 * NS_PER_S:
        line.capture()
        line.push()
    assert line.stats().notice is not None
    while time.now_ns() < first.captured_at_ns + 62 * NS_PER_S:
        line.capture()
        line.push()
    assert line.stats().notice is None


def test_gap_table_keeps_the_newest() -> None:
    """A reader that comes late finds the newest thousand gaps, in order and whole."""
    table = GapTable()
    for number in range(5000):
        table.note(number, number + 1, number * 10, Cause.OVERWRITTEN, number % 2 == 0)
    gaps = table.since(0)
    assert [gap.first_frame for gap in gaps] == list(range(5000 - len(gaps), 5000))
    assert len(gaps) >= 1000
    assert table.since(4998) == gaps[-2:]
    assert all(
        (gap.frames, gap.at_ns) == (gap.first_frame + 1, gap.first_frame * 10) for gap in gaps
    )
    assert [gap.exact for gap in gaps[-2:]] == [True, False]


def test_tally_is_read_as_of_one_moment() -> None:
    """A count taken while another thread books is that before or after, never half of it."""
    tally, done = Tally(), threading.Event()
    seen: list[Count] = []

    def book() -> None:
        for _ in range(50_000):
            tally.sequence += 1
            tally.produced += 3
            tally.captured += 2
            tally.lost_exact += 1
            tally.sequence += 1
        done.set()

    thread = threading.Thread(target=book)
    thread.start()
    while not done.is_set():
        seen.append(tally.count())
    thread.join()
    assert all(one.produced == one.captured + one.lost_exact for one in seen)
    assert tally.count().produced == 150_000


class Slow(Keep):
    """A sink that holds up its thread, then fails, then holds it up again."""

    def __init__(self, enough: threading.Event) -> None:
        super().__init__()
        self._enough = enough
        self._writes = 0

    def write(self, block: Block) -> None:
        self._writes += 1
        if self._writes % 20 == 0:
            raise SinkError("the peer hung up")
        self._enough.wait(0.03)  # three periods: slower than the sound
        self.blocks.append(block)


def watched(stream: Intake, until: Callable[[StreamStats], bool]) -> list[StreamStats]:
    """Starts the stream, looks at its books all the time, stops it; at most for 30 s."""
    looks = []
    deadline = time.monotonic() + PATIENCE_S
    stream.start()
    try:
        while True:
            looks.append(stream.stats(time.monotonic_ns()))
            if until(looks[-1]) or time.monotonic() > deadline:
                break
            time.sleep(0)
    finally:
        assert (
            stream.drain(time.monotonic() + PATIENCE_S)
            + stream.close(time.monotonic() + PATIENCE_S)
            == []
        )
    looks.append(stream.stats(time.monotonic_ns()))
    stream.ring.close()
    return looks


def test_threads_and_bad_peers() -> None:
    """With all threads running, a card that overruns and is unplugged, a peer that is slow and
    fails and a good one, the books balance at every look and nothing is inside after the end."""
    faults = (
        FaultConfig(kind="overrun", at_s=0.2, for_s=0.15, every_s=0.7),
        FaultConfig(kind="unplug", at_s=0.5, for_s=0.2, every_s=2.1),  # a late machine misses some
    )
    card = capture(
        rate_hz=48_000,
        format="S32_LE",
        channels=1,
        buffer_ms=100.0,
        source=SyntheticConfig(signal="counter", ppm=200.0, jitter_us=80.0, faults=faults),
    )
    enough = threading.Event()
    stream = Intake(config(card))
    good, slow = Keep(), Slow(enough)
    give(stream, SinkQueue("good", good, 1 << 30), SinkQueue("slow", slow, 9600))

    def seen_enough(stats: StreamStats) -> bool:
        return (
            stats.lost_estimated_frames > 0
            and stats.lost_frames > stats.lost_estimated_frames
            and stats.sinks[1].dropped_frames > 0
            and stats.gaps >= 3
        )

    looks = watched(stream, seen_enough)
    enough.set()
    assert seen_enough(looks[-1])
    assert all(look.balanced for look in looks)
    assert all(
        first.captured_frames <= second.captured_frames
        and first.produced_frames <= second.produced_frames
        for first, second in itertools.pairwise(looks)
    )
    last = looks[-1]
    assert [one.in_flight_frames for one in last.sinks] == [0, 0]
    gaps = stream.capturer.tally.gaps.since(0)
    assert sum(gap.frames for gap in gaps) == last.lost_frames
    for sink, books in zip((good, slow), last.sinks, strict=True):
        assert books.delivered_frames == sum(one.frames for one in sink.blocks)
        for first, second in itertools.pairwise(sink.blocks):
            assert second.first_frame >= first.first_frame + first.frames
            assert second.captured_at_ns > first.captured_at_ns
    assert good.blocks[0].first_frame == 0
    outages = [gap.first_frame for gap in gaps if not gap.exact]
    for block in good.blocks:
        numbers = counters(block.samples, card)
        assert (np.diff(numbers) == 1).all()
        if block.first_frame < outages[0]:
            assert numbers[0] - block.first_frame == counters(good.blocks[0].samples, card)[0]


@pytest.mark.parametrize("gaps", ["silence", "skip"])
def test_threads_and_a_file(gaps: str, tmp_path: Path) -> None:
    """Every frame in a recording made through overruns lies where its number says: lost ones are
    silence, or are left out."""
    fault = FaultConfig(kind="overrun", at_s=0.15, for_s=0.25, every_s=0.5)
    card = capture(
        format="S32_LE",
        channels=2,
        buffer_ms=100.0,
        source=SyntheticConfig(signal="counter", ppm=-150.0, jitter_us=80.0, faults=(fault,)),
    )
    sink = FileSinkConfig(type="file", path=str(tmp_path), gaps=gaps, min_free_mb=0)
    stream = Intake(config(card, [sink]))
    looks = watched(stream, lambda stats: stats.gaps >= 3)
    last = looks[-1]
    assert all(look.balanced for look in looks)
    assert last.gaps >= 3
    assert last.sinks[0].in_flight_frames == 0
    (path,) = tmp_path.glob("*.wav")
    samples, rate_hz = soundfile.read(path, dtype="int32", always_2d=True)
    assert rate_hz == 48_000
    assert (samples[:, 0] == samples[:, 1]).all()
    numbers = samples[:, 0].astype(np.int64)
    start = int(numbers[0])
    if gaps == "silence":
        heard = np.flatnonzero(numbers)
        assert (numbers[heard] == start + heard).all()
        assert len(numbers) == last.produced_frames
        assert len(heard) in (last.captured_frames, last.captured_frames - 1)  # 0 may sound
    else:
        assert len(numbers) == last.captured_frames
        jumps = np.diff(numbers) - 1
        table = stream.capturer.tally.gaps.since(0)
        assert jumps[jumps > 0].tolist() == [one.frames for one in table]
        assert (jumps >= 0).all()


def test_a_stream_without_a_device_balances(tmp_path: Path) -> None:
    """A stream whose card was never there has empty books and ends when it is told."""
    card = capture(
        source=SyntheticConfig(faults=(FaultConfig(kind="unplug", at_s=0.0, for_s=1000.0),))
    )
    sink = FileSinkConfig(type="file", path=str(tmp_path), min_free_mb=0)
    stream = Intake(config(card, [sink]))
    looks = watched(stream, lambda stats: stats.trouble is not None)
    assert "unplugged" in str(looks[-2].trouble)
    assert all(look.balanced for look in looks)
    assert looks[-1].produced_frames == 0


def test_a_stall_is_opened_again() -> None:
    """A device that brings nothing for four seconds, though its stream was started again after two,
    is opened again, with a reason."""
    fault = FaultConfig(kind="stall", at_s=1.0, for_s=5.2)
    card = capture(source=SyntheticConfig(signal="counter", faults=(fault,)))
    line = Line(card, [Keep()], VirtualTime())
    troubles = set()
    while line.time.now_ns() < 10e9:
        line.capture()
        line.push()
        line.deliver()
        troubles.add(str(line.stream.capturer.trouble))
    assert line.stream.capturer.stalls == line.stream.capturer.restarts == 1
    assert line.stream.capturer.opens == 2
    assert line.stream.capturer.trouble is None
    assert any("no frame for 2 s" in trouble for trouble in troubles)
    assert line.stats().balanced


def test_devices_are_tried_soon_and_then_less_often() -> None:
    """A device that is away is tried again soon, then every half second, and soon again when there
    is news of it; one that cannot do what is asked is tried every 5 s."""
    card = capture()
    line = Line(card, [Keep()])
    capturer = line.stream.capturer
    away = DeviceError("away", errno.ENODEV)
    assert [capturer.fail(away) for _ in range(5)] == [0.05, 0.1, 0.2, 0.5, 0.5]
    capturer.retry_now()
    assert capturer.fail(away) == 0.05
    assert capturer.fail(DeviceError("cannot", errno.EINVAL, refused=True)) == 5.0
    assert capturer.params is None
