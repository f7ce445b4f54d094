"""What programs write, on its way to the stream: each frame once, at its time, whatever comes."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstand.accounting.stats import Cause
from capstand.audio.block import NS_PER_S
from capstand.audio.clock import Clock
from capstand.capture import wire
from capstand.capture.inlet import Inlet
from capstand.capture.source import UNKNOWN, Reading
from capstand.capture.wire import WireError
from tests.capture.programs import AUDIO, counted, in_order
from tests.line import Counters, capture, counters

PERIOD, BUFFER = 480, 24_000
START_NS = 7 * NS_PER_S
MS = 1_000_000


class Taken:
    """All that an Inlet hands on until a time, and when."""

    def __init__(self, live: bool, channels: int = 2) -> None:
        self.audio = AUDIO._replace(channels=channels)
        self.intake = Inlet(self.audio, PERIOD, BUFFER, live, START_NS)
        self.now_ns = START_NS
        self.clock = Clock(48_000, PERIOD)
        self.samples = bytearray()
        self.gaps: list[tuple[int, int]] = []
        self.produced = 0
        self._slot = memoryview(bytearray(PERIOD * self.audio.frame_bytes))

    def put(self, data: bytes, edge: bool = True) -> None:
        self.intake.put(memoryview(data), self.now_ns, edge)

    def until(self, end_ns: int) -> None:
        """Hands on what is due until then."""
        reading, intake = Reading(), self.intake
        while (due := intake.due_ns(self.now_ns)) is not None and due <= end_ns:
            self.now_ns = max(self.now_ns, due)
            self.samples += intake.take(self._slot, reading, self.now_ns)
            assert 0 < reading.frames <= PERIOD
            if reading.lost:
                self.gaps.append((self.produced, reading.lost))
            self.produced += max(0, reading.lost)
            if reading.stamp_ns:
                self.clock.observe(self.produced + reading.avail, reading.stamp_ns, reading.edge)
            self.produced += reading.frames
        self.now_ns = max(self.now_ns, end_ns)

    @property
    def numbers(self) -> Counters:
        return counters(bytes(self.samples), capture())


def described(pieces: list[tuple[int, int]], live: bool = True) -> bytes:
    """Blocks of (first_frame, frames), counted from the writer's 1000th frame on."""
    blocks = [wire.block(count, 1000 + first) + counted(first, count) for first, count in pieces]
    return wire.head(AUDIO, live=live) + b"".join(blocks)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@given(st.booleans(), st.integers(0, 3000), st.integers(0, 3), st.lists(st.integers(0), max_size=9))
def test_raw_frames_go_on_once_and_in_order(
    live: bool, frames: int, torn: int, places: list[int]
) -> None:
    """However they are cut into pieces; a torn frame at the end is told and nothing else."""
    taken = Taken(live)
    for part in cut(counted(0, frames) + b"x" * torn, places):
        taken.put(part)
        taken.until(taken.now_ns + 30 * MS)
    taken.intake.end()
    taken.until(taken.now_ns + NS_PER_S)
    assert in_order(taken.numbers, 0, frames) and not taken.gaps
    assert taken.intake.torn == torn and taken.intake.due_ns(taken.now_ns) is None


@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 1200)), min_size=1, max_size=6),
    st.lists(st.integers(0), max_size=9),
)
def test_frames_said_to_be_missing_are_a_gap_to_the_frame(
    pieces: list[tuple[int, int]], places: list[int]
) -> None:
    """Where the writer's index leaps, exactly so many are lost, right there."""
    first, blocks, gaps = 0, list[tuple[int, int]](), []
    for lost, frames in pieces:
        if blocks and lost:
            gaps.append((first, lost))
        first += lost if blocks else 0
        blocks.append((first, frames))
        first += frames
    taken = Taken(live=True)
    for part in cut(described(blocks), places):
        taken.put(part)
        taken.until(taken.now_ns + 400 * MS)
    taken.intake.end()
    taken.until(taken.now_ns + NS_PER_S)
    assert taken.gaps == gaps and taken.produced == first
    assert taken.numbers.tolist() == [n for at, count in blocks for n in range(at, at + count)]


@given(
    st.sampled_from([b"", wire.MAGIC, described([]), described([(0, 100)])]),
    st.binary(max_size=200),
    st.lists(st.integers(0), max_size=5),
)
def test_hostile_bytes_are_refused_or_are_sound(
    begin: bytes, rest: bytes, places: list[int]
) -> None:
    """Nothing but WireError comes of any bytes, and what went on is what came before."""
    taken = Taken(live=True)
    try:
        for part in cut(begin + rest, places):
            taken.put(part)
        taken.intake.end()
        taken.until(taken.now_ns + NS_PER_S)
    except WireError:
        taken.intake.end()
        taken.until(taken.now_ns + NS_PER_S)
    assert taken.intake.went == taken.intake.came <= (len(begin) + len(rest)) // 4
    if begin.endswith(counted(0, 100)):
        assert in_order(taken.numbers[:100], 0, 100)


def test_one_that_is_not_live_is_held_to_the_nominal_rate() -> None:
    """However fast it writes, it gets ahead of time by two periods only; the clock reads 0 ppm."""
    taken, sent = Taken(live=False), 0
    for second in range(1, 31):
        while taken.now_ns < START_NS + second * NS_PER_S:
            room = taken.intake.room // 4
            taken.put(counted(sent, room), edge=False)
            sent += room
            taken.until(taken.now_ns + 100 * MS)
        assert taken.produced == pytest.approx(48_000 * second + 2 * PERIOD, abs=PERIOD)
    assert abs(taken.clock.drift_ppm) < 0.5 and in_order(taken.numbers, 0, taken.produced)


@pytest.mark.parametrize("ppm", [-200, 200])
@pytest.mark.parametrize("chunk", [160, 1024, 9600])
def test_the_pace_of_a_live_one_is_the_clock(ppm: int, chunk: int) -> None:
    """What it writes goes on at once, whatever its pieces, and its drift is found."""
    taken = Taken(live=True)
    period_ns = chunk * NS_PER_S / 48_000 / (1 + ppm * 1e-6)
    for number in range(1, 60 * 48_000 // chunk):
        taken.until(START_NS + round(number * period_ns))
        taken.put(counted((number - 1) * chunk, chunk))
        taken.until(taken.now_ns)
        assert taken.intake.came - taken.intake.went < PERIOD
    assert taken.clock.drift_ppm == pytest.approx(ppm, abs=5)


def test_a_live_one_may_come_late_with_all_that_is_due() -> None:
    """Up to the buffer is handed on at once, and no frame is lost or late for good."""
    taken = Taken(live=True)
    for number in range(300):
        if number % 50 < 10:  # 100 ms late
            continue
        taken.until(START_NS + (number + 1) * 10 * MS)
        late = 11 if number % 50 == 10 else 1
        taken.put(counted((number + 1 - late) * PERIOD, late * PERIOD))
        taken.until(taken.now_ns)
        assert taken.intake.came == taken.intake.went
    assert in_order(taken.numbers, 0, 300 * PERIOD)


def test_a_live_one_that_is_too_fast_is_held() -> None:
    """It gets a buffer ahead and no further; then it has the nominal rate."""
    taken, sent = Taken(live=True), 0
    while taken.now_ns < START_NS + 60 * NS_PER_S:
        frames = min(960, taken.intake.room // 4)
        taken.put(counted(sent, frames))
        sent += frames
        taken.until(taken.now_ns + 10 * MS)
    assert taken.produced == pytest.approx(60 * 48_000 + BUFFER, abs=BUFFER // 50)
    assert abs(taken.clock.drift_ppm) < 5


@pytest.mark.parametrize("late_ms", [0, 30, 400])
def test_a_late_thread_of_ours_costs_no_time(late_ms: int) -> None:
    """What waits for it follows at once, and the clock goes on as it went."""
    taken, sent = Taken(live=False), 0
    for turn in range(400):
        frames = taken.intake.room // 4
        taken.put(counted(sent, frames), edge=False)
        sent += frames
        if turn % 40 == 39:
            taken.now_ns += late_ms * MS
        taken.until(taken.now_ns + 10 * MS)
    taken.until(taken.now_ns)
    passed = (taken.now_ns - START_NS) * 48 // MS
    assert taken.produced == pytest.approx(passed + 2 * PERIOD, abs=PERIOD)
    assert abs(taken.clock.drift_ppm) < 5 and not taken.clock.missing


def test_declared_gaps_are_part_of_the_clock() -> None:
    """The index counts what is missing, so the frames after a gap have their times too."""
    taken, index = Taken(live=True), 0
    taken.put(wire.head(AUDIO, live=True))
    for number in range(1, 3000):
        taken.until(START_NS + number * 10 * MS)
        index += PERIOD
        if number % 200 < 10:  # 100 ms are missing every 2 s
            continue
        taken.put(wire.block(PERIOD, index) + counted(index, PERIOD))
        taken.until(taken.now_ns)
    assert len(taken.gaps) == 14 and {lost for _, lost in taken.gaps} == {10 * PERIOD}
    assert abs(taken.clock.drift_ppm) < 5 and not taken.clock.missing
    ends_ns = taken.clock.time_of(taken.produced)
    assert ends_ns == pytest.approx(taken.now_ns, abs=MS)


def test_a_gap_takes_its_time() -> None:
    """A gap that is not over yet is waited for; a long one that cannot be is refused."""
    taken = Taken(live=False)
    taken.put(described([(0, PERIOD), (24_480, PERIOD)], live=False))
    taken.until(START_NS + 400 * MS)
    assert taken.produced == PERIOD
    taken.until(START_NS + 520 * MS)
    assert taken.gaps == [(PERIOD, 24_000)]
    taken.put(wire.block(PERIOD, 1000 + 1_000_000) + counted(0, PERIOD))
    with pytest.raises(WireError, match="for which no time was yet"):
        taken.until(taken.now_ns)


def test_a_writers_own_times_are_the_stamps() -> None:
    """A frame was sampled when its block says, however late it came."""
    taken = Taken(live=True)
    taken.put(wire.head(AUDIO, live=True))
    for number in range(1, 200):
        taken.until(START_NS + number * 10 * MS + number % 7 * MS)
        sampled_ns = START_NS + (number - 1) * 10 * MS
        taken.put(
            wire.block(PERIOD, number * PERIOD, sampled_ns) + counted(number * PERIOD, PERIOD)
        )
        taken.until(taken.now_ns)
    assert taken.clock.time_of(0) == pytest.approx(START_NS, abs=20_000)


def test_after_a_stop_the_loss_is_not_known() -> None:
    taken = Taken(live=True)
    taken.put(counted(0, PERIOD))
    taken.intake.stand()
    taken.until(taken.now_ns)
    assert taken.gaps == [(0, UNKNOWN)]


def changed(**fields: object) -> bytes:
    values: dict[str, object] = {
        "magic": wire.MAGIC, "version": 1, "channels": 2, "rate": 48_000, "flags": 1,
        "format": b"S16_LE", **fields,
    }  # fmt: skip
    return wire.HEAD.pack(*values.values())


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (changed(version=2), "the header has version 2; expected 1"),
        (changed(flags=6), "the header has flags 0x6; expected 0 or 1"),
        (changed(channels=1), "says 48000 Hz, 1 ch, S16_LE; this stream takes 48000 Hz, 2 ch"),
        (changed(rate=0), "the header says 0 Hz, 2 ch, S16_LE; this stream takes"),
        (changed(format=b"\xff\0;"), "this stream takes 48000 Hz, 2 ch, S16_LE"),
        (changed() + bytes(24), "expected a block and found the bytes 00 00 00 00"),
        (changed() + wire.block(0, 0), "a block has 0 frames; expected 1 to 65536"),
        (changed() + wire.block(65_537, 0), "a block has 65537 frames"),
        (changed() + wire.block(1, -1), "a block begins with frame -1"),
        (changed() + wire.block(1, 1 << 62 | 1), "expected 0 to 2^62"),
        (described([(5, 5), (9, 1)]), "a block begins with frame 1009 again; expected 1010"),
        (changed() + wire.block(1, 0, START_NS + 6 * MS), "expected ns of CLOCK_MONOTONIC"),
        (changed() + wire.block(1, 0, -1), "not within the last 10 s"),
        (
            changed() + wire.block(1, 0, 9) + b"1234" + wire.block(1, 1, 8),
            "a block has an earlier time than the one before",
        ),
        (described([(2 * n, 1) for n in range(102)]), "more gaps than 20 a second"),
    ],
)
def test_what_does_not_fit_is_told(data: bytes, told: str) -> None:
    """Each refusal says what was found and what was expected."""
    refused: Callable[[], None] = lambda: Taken(live=True).put(data)  # noqa: E731
    with pytest.raises(WireError) as caught:
        refused()
    assert told in str(caught.value)


def test_a_declared_gap_has_a_cause_of_its_own() -> None:
    taken, reading = Taken(live=True), Reading()
    taken.put(described([(0, PERIOD), (PERIOD + 5, PERIOD)]))
    slot = memoryview(bytearray(PERIOD * 4))
    for lost in (0, 5):
        assert taken.intake.due_ns(START_NS) is not None
        taken.intake.take(slot, reading, START_NS)
        assert (reading.lost, reading.cause) == (lost, Cause.DECLARED)
