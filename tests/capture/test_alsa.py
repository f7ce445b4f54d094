"""AlsaSource and the capture thread's steps on a real ALSA PCM in user space (tests/fakecard).

Most tests hold the card's clock, so frames come when the test says so. Where the length of a gap is
measured by time, the card runs on CLOCK_MONOTONIC and the test allows for what the host itself took
away meanwhile. Loss counted by the kernel's pointers is for the guest: this card has none.
"""

import errno
import gc
import itertools
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capstand.accounting.stats import Cause
from capstand.audio.block import NS_PER_S, SampleFormat
from capstand.audio.clock import Clock
from capstand.audio.ring import Ring
from capstand.audio.wake import WakeUp
from capstand.capture.alsa import AlsaSource
from capstand.capture.capturer import STALL_READS, STALL_S, Capturer
from capstand.capture.kernel import RUNNING
from capstand.capture.source import UNKNOWN
from capstand.config.schema import CaptureConfig
from capstand.errors import DeviceError
from capstand.stream.pusher import Pusher
from tests.fakecard import FORMATS, FakeCard, counter
from tests.line import Counters
from tests.patience import PATIENCE_S
from tests.rings import reader_of

PERIOD = 480


def asked(card: FakeCard, **keys: object) -> CaptureConfig:
    setup = {"device": card.device, "format": "S32_LE", "channels": 1, "rt_priority": 0} | keys
    return CaptureConfig(**setup)  # type: ignore[arg-type]


class Reader:
    """A source and its capturer, one step at a time; keeps all that came."""

    def __init__(self, setup: CaptureConfig) -> None:
        self.setup = setup
        self.now_ns = time.monotonic_ns
        self.source = AlsaSource(setup)
        self.clock = Clock(setup.rate_hz, setup.period_frames)
        self.ring = Ring(setup.ring_slots, 2 * setup.period_frames * setup.audio.frame_bytes)
        self.reader = reader_of(self.ring, setup.audio)
        self.capturer = Capturer(self.source, self.clock, self.ring, 0, self._now)
        self.indices: list[int] = []
        self.numbers: list[int] = []
        self.blocks: list[tuple[int, int, int]] = []  # first frame, frames, time

    def _now(self) -> int:
        return self.now_ns()

    def open(self) -> None:
        self.capturer.open()

    def step(self, timeout_ms: int = 0) -> int:
        frames = self.capturer.step(timeout_ms)
        for block in self.reader.blocks():
            self.blocks.append((block.first_frame, block.frames, block.captured_at_ns))
            self.indices += range(block.first_frame, block.first_frame + block.frames)
            found = counter(block.samples, self.setup.format, self.setup.audio.channels)
            self.numbers += found.tolist()
        return frames

    def run(self, frames: int) -> None:
        """Until that many frames more have come; ten seconds of nothing are a failure."""
        wanted, deadline = len(self.indices) + frames, time.monotonic() + PATIENCE_S
        while len(self.indices) < wanted:
            if self.step(200):
                deadline = time.monotonic() + PATIENCE_S
            assert time.monotonic() < deadline, "the card kept silent"

    def offsets(self) -> Counters:
        """Card's number minus frame index, of every frame."""
        return np.array(self.numbers, np.int64) - np.array(self.indices, np.int64)

    def close(self) -> None:
        self.source.close()
        self.ring.close()


@pytest.fixture
def readers() -> Iterator[list[Reader]]:
    opened: list[Reader] = []
    yield opened
    for one in opened:
        one.close()


def reader(readers: list[Reader], setup: CaptureConfig) -> Reader:
    readers.append(Reader(setup))
    return readers[-1]


def held(card: FakeCard, readers: list[Reader], **keys: object) -> Reader:
    """A reader of a card whose clock the test holds; the stream runs, no frame has come."""
    card.virtual(0)
    one = reader(readers, asked(card, **keys))
    one.open()
    assert one.step() == 0
    return one


@pytest.mark.parametrize("channels", [1, 2, 32])
@pytest.mark.parametrize("format", FORMATS)
def test_frames(format: str, channels: int, fakecard: FakeCard, readers: list[Reader]) -> None:
    """In every format and width each frame arrives once, in order and with its own index."""
    one = held(fakecard, readers, format=format, channels=channels)
    for number in range(1, 21):
        fakecard.virtual(number * PERIOD)
        assert one.step() == PERIOD
        assert one.step() == 0
    assert one.indices == list(range(20 * PERIOD))
    begins_again = 256 if format == "U8" else None  # the others have room for all of them
    expected = [n % begins_again if begins_again else n for n in one.indices]
    assert [n % begins_again if begins_again else n for n in one.numbers] == expected
    assert one.capturer.tally.gaps.count == 0


def test_frames_in_real_time(fakecard: FakeCard, readers: list[Reader]) -> None:
    """On the card's own clock a hundred periods follow each other in index and in time."""
    one = reader(readers, asked(fakecard, rate_hz=192_000, buffer_ms=5000.0))
    one.open()
    one.run(100 * one.setup.period_frames)
    assert one.indices == one.numbers
    times = [at_ns for _, _, at_ns in one.blocks]
    assert all(first < second for first, second in itertools.pairwise(times))


def test_a_backlog_is_read_period_by_period(fakecard: FakeCard, readers: list[Reader]) -> None:
    """A reader that was held up, but not for longer than the buffer, loses nothing."""
    one = held(fakecard, readers, buffer_ms=500.0)
    fakecard.virtual(40 * PERIOD + 17)
    assert [one.step() for _ in range(41)] == [PERIOD] * 40 + [0]
    assert one.indices == one.numbers


def test_patience_lets_periods_gather(fakecard: FakeCard, readers: list[Reader]) -> None:
    """With patience a device that was emptied is left alone, and then several periods are read;
    they are frames like any other, and the clock is told of each position once.
    """
    fakecard.granularity = 2 * PERIOD
    one = reader(readers, asked(fakecard, buffer_ms=2000.0))
    one.source.batch_ms = 100
    one.open()
    seen: list[tuple[int, int]] = []
    observe = one.clock.observe

    def note(frame: int, stamp_ns: int, edge: bool | None = None) -> bool:
        seen.append((frame, stamp_ns))
        return observe(frame, stamp_ns, edge)

    one.clock.observe = note  # type: ignore[method-assign]
    one.run(100 * PERIOD)
    assert one.indices == one.numbers
    assert len(one.blocks) >= 100 and all(frames == PERIOD for _, frames, _ in one.blocks)
    frames = [frame for frame, _ in seen]
    assert frames == sorted(set(frames))
    assert len(seen) <= 51


def test_two_periods_at_once(fakecard: FakeCard, readers: list[Reader]) -> None:
    """Where who reads wants no less, and the buffer is long enough, two periods are one block, and
    a plug-in is left alone until they are whole; the clock still sees edges of its own, once each.
    """
    one = reader(readers, asked(fakecard))
    one.source.block_frames = 5 * PERIOD
    one.open()
    seen: list[tuple[int, bool | None]] = []
    observe = one.clock.observe

    def note(frame: int, stamp_ns: int, edge: bool | None = None) -> bool:
        seen.append((frame, edge))
        return observe(frame, stamp_ns, edge)

    one.clock.observe = note  # type: ignore[method-assign]
    one.run(100 * PERIOD)
    assert one.indices == one.numbers
    assert [frames for _, frames, _ in one.blocks[1:]] == [2 * PERIOD] * (len(one.blocks) - 1)
    frames = [frame for frame, _ in seen]
    assert frames == sorted(set(frames))
    edges = sum(bool(edge) for _, edge in seen)
    assert len(seen) // 8 <= edges <= len(seen) // 2 + 2


@pytest.mark.parametrize("buffer_periods, blocks", [(3, 1), (4, 1), (7, 1), (8, 2), (50, 2)])
def test_a_block_leaves_room_in_the_buffer(
    buffer_periods: int, blocks: int, fakecard: FakeCard, readers: list[Reader]
) -> None:
    """More than a period is no more than a quarter of it."""
    fakecard.grant(period_frames=PERIOD, buffer_frames=buffer_periods * PERIOD)
    one = held(fakecard, readers)
    one.source.block_frames = 2 * PERIOD
    for number in range(1, 9):
        fakecard.virtual(number * PERIOD)
        assert one.step() == (blocks * PERIOD if not number % blocks else 0)
    assert one.indices == one.numbers


def test_patience_ends_with_the_thread(fakecard: FakeCard, readers: list[Reader]) -> None:
    """A stop does not wait for a patient reader."""
    one = reader(readers, asked(fakecard, buffer_ms=10_000.0))
    one.source.batch_ms = 60_000
    one.open()
    one.run(PERIOD)
    one.source.wake()
    began = time.monotonic()
    one.step()
    assert time.monotonic() - began < 30


def test_patience_knows_the_buffer(fakecard: FakeCard, readers: list[Reader]) -> None:
    """However patient, a reader is back when an eighth of the buffer is full."""
    one = reader(readers, asked(fakecard, buffer_ms=4000.0))
    one.source.batch_ms = 60_000
    one.open()
    one.run(200 * PERIOD)
    assert one.indices == one.numbers
    assert one.capturer.tally.gaps.count == 0


def test_a_position_that_moves_in_steps(fakecard: FakeCard, readers: list[Reader]) -> None:
    """A device whose position moves by 700 frames at a time brings whole periods all the same."""
    fakecard.granularity = 700
    one = held(fakecard, readers)
    sizes = []
    for position in range(0, 12 * PERIOD, 100):
        fakecard.virtual(position)
        sizes.append(one.step())
    assert set(sizes) == {0, PERIOD}
    assert one.indices == one.numbers == list(range(len(one.indices)))
    assert len(one.indices) > 10 * PERIOD


def test_a_short_first_read_is_not_lost(fakecard: FakeCard, readers: list[Reader]) -> None:
    """Frames that came while the stream was started are a block of their own, not a gap."""
    for _ in range(500):
        fakecard.virtual(None)
        one = reader(readers, asked(fakecard, rate_hz=192_000, buffer_ms=5000.0))
        one.open()
        start = fakecard.starts
        first = one.step()
        if 0 < first < one.setup.period_frames:
            break
        one.close()
        readers.remove(one)
    assert fakecard.starts == start + 1
    assert 0 < first < one.setup.period_frames, "the card was never quick enough for this test"
    for _ in range(5):
        one.run(one.setup.period_frames)
    assert one.blocks[1][0] == first
    assert one.offsets().min() == one.offsets().max()
    assert one.capturer.tally.produced == one.capturer.tally.captured == len(one.numbers)


def lose(one: Reader, card: FakeCard) -> tuple[int, int]:
    """Runs on over a fault; returns the card's loss and how far the books are from it."""
    one.run(20 * one.setup.period_frames)
    return card.frames_lost, abs(one.capturer.tally.lost_estimated - card.frames_lost)


def late_frames(one: Reader, began_ns: int) -> float:
    """By how much the host may have falsified one measured gap: all the time the fault took."""
    return (time.monotonic_ns() - began_ns) * one.setup.rate_hz / 1e9


def test_an_overrun_is_estimated(fakecard: FakeCard, readers: list[Reader]) -> None:
    """After an overrun the gap is what the card lost, to the period, and marked as an estimate."""
    one = reader(readers, asked(fakecard, buffer_ms=1500.0))
    one.open()
    one.run(150 * PERIOD)
    assert not one.offsets().any()
    one.capturer.step(0)
    time.sleep(1.8)  # the reader is away for longer than the buffer
    starts, began_ns = fakecard.starts, time.monotonic_ns()
    while fakecard.starts == starts:
        one.step(200)
    allowed = PERIOD + late_frames(one, began_ns)
    true, off = lose(one, fakecard)
    assert fakecard.overruns >= 1
    assert true >= 1500 * 48
    assert off <= allowed
    gaps = one.capturer.tally.gaps.since(0)
    assert {(gap.cause, gap.exact) for gap in gaps} == {(Cause.OVERRUN, False)}
    assert sum(gap.frames for gap in gaps) == one.capturer.tally.lost_estimated
    assert one.capturer.tally.lost_exact == 0
    assert (
        abs(abs(int(one.offsets()[-1])) - off) <= 1
    )  # a card's frame may begin between two of ours


def stand_still(one: Reader, card: FakeCard) -> None:
    """The card stands still for more than half a buffer, and somebody looks."""
    card.stall()
    until_ns = time.monotonic_ns() + one.setup.buffer_frames * NS_PER_S // one.setup.rate_hz
    while time.monotonic_ns() < until_ns:
        one.step(10)


def test_a_stall_that_ends_in_an_overrun(fakecard: FakeCard, readers: list[Reader]) -> None:
    """A card that stood still while it was read, and then overran, has a gap of the stall. (Before
    it a machine that is late may have overruns of its own.)"""
    one = reader(readers, asked(fakecard, buffer_ms=100.0))
    one.open()
    one.run(20 * PERIOD)
    before = one.capturer.tally.gaps.count
    stand_still(one, fakecard)
    fakecard.overrun()
    fakecard.stall(False)
    one.run(20 * PERIOD)
    assert fakecard.overruns >= 1
    assert Cause.STALLED in [gap.cause for gap in one.capturer.tally.gaps.since(before)]


def test_a_restarted_stream_that_overruns(fakecard: FakeCard, readers: list[Reader]) -> None:
    """A stream that was started again because it stood still may overrun at once; the gap is of the
    stall."""
    one = reader(readers, asked(fakecard, buffer_ms=4000.0))
    one.open()
    one.run(20 * PERIOD)
    one.source.restart()
    fakecard.overrun()
    one.run(20 * PERIOD)
    assert fakecard.overruns == 1
    assert [gap.cause for gap in one.capturer.tally.gaps.since(0)] == [Cause.STALLED]


class Pointers:
    """A kernel's pointers over the fake card, as ``KernelPcm`` would tell them."""

    state, ambiguous, appl_ptr = RUNNING, False, 0

    def __init__(self, source: AlsaSource) -> None:
        self._source = source
        self.avail = self.missed = self.stamp_ns = 0

    def status(self) -> None:
        pcm = self._source._pcm
        assert pcm is not None
        self.state, self.stamp_ns, self.avail = pcm.state(), time.monotonic_ns(), pcm.avail()
        self.hw_ptr = self._source._taken + self.avail

    def lapped(self, appl_ptr: int) -> bool:
        return False

    def free_hw(self) -> None:
        pass


@pytest.mark.parametrize(
    ("missed", "cause"), [(UNKNOWN, Cause.STALLED), (4 * PERIOD, Cause.OVERRUN)]
)
def test_turns_that_cannot_be_counted_are_of_a_stall(
    missed: int, cause: Cause, fakecard: FakeCard, readers: list[Reader]
) -> None:
    """Where pointers and stamps do not tell how much was missed the device stood still, and the gap
    says so; whole turns are an overrun."""
    one = reader(readers, asked(fakecard))
    one.open()
    one.run(PERIOD)
    one.source._kernel = pointers = Pointers(one.source)  # type: ignore[assignment]
    pointers.missed = missed
    one.run(100 * PERIOD)
    if missed == UNKNOWN:
        one.source._lost = 0
        one.source._lose(2 * PERIOD, Cause.OVERRUN)  # left behind while it was in doubt
        pointers.missed = UNKNOWN
        one.run(PERIOD)
    assert {gap.cause for gap in one.capturer.tally.gaps.since(0)} <= {cause}
    assert one.source._cause is cause


def test_a_suspended_machine(fakecard: FakeCard, readers: list[Reader]) -> None:
    """After a suspend the stream is started again and the gap says why."""
    one = reader(readers, asked(fakecard, buffer_ms=5000.0))
    one.open()
    one.run(100 * PERIOD)
    fakecard.suspend()
    time.sleep(0.1)  # the machine sleeps
    began_ns, starts = time.monotonic_ns(), fakecard.starts
    while fakecard.starts == starts:
        one.step(200)
    allowed = PERIOD + late_frames(one, began_ns)
    true, off = lose(one, fakecard)
    assert true >= 90 * 48
    assert off <= allowed
    assert [gap.cause for gap in one.capturer.tally.gaps.since(0)] == [Cause.SUSPENDED]


def test_unplugged_and_plugged_in_again(fakecard: FakeCard, readers: list[Reader]) -> None:
    """A card that was pulled fails with ENODEV until it is back; the index goes on over the gap."""
    one = reader(readers, asked(fakecard))
    one.open()
    one.run(100 * PERIOD)
    fakecard.disconnect()
    with pytest.raises(DeviceError, match="is it plugged in") as gone:
        one.run(100 * PERIOD)
    assert gone.value.errno == errno.ENODEV
    assert not gone.value.refused
    assert one.capturer.fail(gone.value) > 0
    with pytest.raises(DeviceError) as still_gone:
        one.open()
    assert still_gone.value.errno == errno.ENODEV
    one.capturer.fail(still_gone.value)
    time.sleep(0.1)
    fakecard.reconnect()
    began_ns = time.monotonic_ns()
    one.open()
    one.step(0)
    allowed = PERIOD + late_frames(one, began_ns)
    true, off = lose(one, fakecard)
    (gap,) = one.capturer.tally.gaps.since(0)
    assert (gap.cause, gap.exact) == (Cause.REOPENED, False)
    assert true >= 90 * 48
    assert off <= allowed
    assert one.capturer.trouble is None


def test_a_busy_card(fakecard: FakeCard, readers: list[Reader]) -> None:
    """A card that another has open fails with EBUSY, which waiting can help."""
    reader(readers, asked(fakecard)).open()
    second = reader(readers, asked(fakecard))
    with pytest.raises(DeviceError, match="another program has it open") as busy:
        second.open()
    assert busy.value.errno == errno.EBUSY
    assert not busy.value.refused
    readers[0].source.close()
    second.open()


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "add the user to the group audio and log in again"),
        (errno.EPERM, "DeviceAllow=char-alsa rw, or --device-cgroup-rule='c 116:* rw'"),
    ],
)
def test_a_card_that_may_not_be_opened(
    number: int, advice: str, fakecard: FakeCard, readers: list[Reader]
) -> None:
    """Whoever lacks the group is told so; a unit or a container that keeps devices away is another
    matter, which the kernel tells apart."""
    fakecard.open_error(number)
    one = reader(readers, asked(fakecard))
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with pytest.raises(DeviceError) as refused:
            one.open()
        if "udev is setting it up" not in str(refused.value) or time.monotonic() > deadline:
            break
    assert advice in str(refused.value)
    assert refused.value.errno == number
    assert not refused.value.refused


def test_a_card_that_is_not_there(readers: list[Reader]) -> None:
    """A device without a card fails with what to look at."""
    one = reader(readers, CaptureConfig(device="hw:CARD=NoSuchCard", rt_priority=0))
    with pytest.raises(DeviceError, match=r"hw:CARD=NoSuchCard cannot be opened: .*plugged in"):
        one.open()


@pytest.mark.parametrize(
    ("limit", "key", "granted", "offered"),
    [
        ({"rates": (44_100, 44_100)}, "rate_hz 48000", "granted 44100", "44100 Hz"),
        ({"channels": (2, 8)}, "channels 1", "granted 2", "2 to 8 channels"),
        ({"formats": ["S16_LE", "S24_3LE"]}, "format S32_LE", "granted", "S16_LE, S24_3LE"),
    ],
)
def test_a_card_that_cannot(
    limit: dict[str, object],
    key: str,
    granted: str,
    offered: str,
    fakecard: FakeCard,
    readers: list[Reader],
) -> None:
    """A card that grants something else is refused with what was asked, granted and offered."""
    fakecard.restrict(**limit)  # type: ignore[arg-type]
    one = reader(readers, asked(fakecard))
    with pytest.raises(DeviceError) as cannot:
        one.open()
    text = str(cannot.value)
    assert cannot.value.refused
    assert f"requested {key}" in text
    assert granted in text
    assert offered in text.split("offers ")[1]
    one.capturer.fail(cannot.value)
    fakecard.restrict()
    one.open()


def test_the_grant_is_what_the_card_agreed_to(fakecard: FakeCard, readers: list[Reader]) -> None:
    """The grant tells period and buffer as the card has them, and that losses are estimated."""
    one = held(fakecard, readers, period_ms=20.0, buffer_ms=200.0)
    grant = one.capturer.params
    assert grant is not None
    assert (grant.device, grant.exact) == (fakecard.device, False)
    assert (grant.period_frames, grant.buffer_frames) == (960, 9600)
    assert grant.format.sample is SampleFormat.S32_LE


def test_a_card_that_stands_still(fakecard: FakeCard, readers: list[Reader]) -> None:
    """A card that is open and brings nothing for two seconds has its stream started again; if that
    does not help it is opened again, and goes on."""
    one = held(fakecard, readers)
    fakecard.virtual(PERIOD)
    now = 10**12
    one.now_ns = lambda: now
    assert one.step() == PERIOD
    now += round(STALL_S * 1e9)
    assert one.step() == 0
    now += 1
    for _ in range(STALL_READS - 2):  # the reader may itself have been away: it asks again
        assert one.step() == 0
    starts, opens = fakecard.starts, fakecard.opens
    assert one.step() == 0
    assert str(one.capturer.trouble).endswith("no frame for 2 s; restarting its stream")
    assert one.step() == 0
    assert (fakecard.starts, fakecard.opens) == (starts + 1, opens)
    now += round(STALL_S * 1e9) + 1
    for _ in range(STALL_READS - 2):
        assert one.step() == 0
    with pytest.raises(DeviceError, match="no frame for 2 s, restarting the stream") as still:
        one.step()
    assert not still.value.refused
    assert one.capturer.stalls == 1
    one.capturer.fail(still.value)
    assert one.capturer.params is None
    one.open()
    one.step()
    fakecard.virtual(2 * PERIOD)
    one.run(PERIOD)
    assert one.numbers == list(range(2 * PERIOD))


@pytest.mark.parametrize("device", ["null", "plug:null"])
def test_a_source_that_is_faster_than_time(device: str, readers: list[Reader]) -> None:
    """A source that brings as much as anybody reads is refused, and nothing of it is taken."""
    one = reader(readers, CaptureConfig(device=device, rt_priority=0))
    one.open()
    with pytest.raises(DeviceError, match="faster than real time, so it is not a sound card") as no:
        one.run(4 * 48_000)
    assert no.value.refused
    assert one.indices == []


class Backlog:
    """A PCM that has so many blocks at once when it is started."""

    def __init__(self, pcm: Any, blocks: int) -> None:
        self._pcm, self._blocks, self.given = pcm, blocks, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pcm, name)

    def read(self) -> tuple[int, bytes]:
        if not self._blocks:
            frames, samples = self._pcm.read()
            self.given += max(0, frames)
            return frames, samples
        self._blocks -= 1
        self.given += PERIOD
        return PERIOD, bytes(4 * PERIOD)


def test_a_source_with_a_backlog_at_its_start(fakecard: FakeCard, readers: list[Reader]) -> None:
    """A source that has some blocks at once when it is started, and then brings them in time, is
    no such source. What was read to find that out is booked behind the first block, to the frame;
    on a slow machine, where time has passed, it is less than the whole backlog."""
    one = reader(readers, asked(fakecard))
    one.open()
    one.source._pcm = backlog = Backlog(one.source._pcm, 4)
    one.run(10 * PERIOD)
    (gap,) = one.capturer.tally.gaps.since(0)
    assert (gap.first_frame, gap.exact) == (PERIOD, True)
    assert PERIOD <= gap.frames < 4 * PERIOD
    assert one.capturer.tally.captured + gap.frames == backlog.given


def test_a_source_that_becomes_faster_than_time(fakecard: FakeCard, readers: list[Reader]) -> None:
    """So is one that begins as a card would, before it takes a processor for itself."""
    one = reader(readers, asked(fakecard, rate_hz=8000, buffer_ms=500.0))
    one.open()
    one.run(800)
    position = fakecard.position
    with pytest.raises(DeviceError, match="faster than real time") as no:
        for _ in range(10_000):
            position += 80
            fakecard.virtual(position)
            one.step()
    assert no.value.refused
    assert len(one.indices) < 8000 * 60


S16 = {"format": "S16_LE", "channels": 2}


@pytest.mark.parametrize("batch_ms", [0, 50])
@pytest.mark.parametrize("granted", [44, 48, 64, 100, 441, 700])
def test_a_period_that_is_not_the_one_asked_for(
    granted: int, batch_ms: int, fakecard: FakeCard, readers: list[Reader]
) -> None:
    """A card with a period of its own brings blocks of about the length asked for, in order, and
    the buffer is as long as asked for in time, not in periods; the clock still sees the moments at
    which the card moves."""
    fakecard.grant(period_frames=granted)
    one = reader(readers, asked(fakecard, buffer_ms=4000.0, **S16))
    one.source.batch_ms = batch_ms
    one.open()
    grant = one.capturer.params
    assert grant is not None and grant.period_frames == granted
    assert grant.buffer_frames == pytest.approx(one.setup.buffer_frames, rel=0.1)
    edges: list[bool | None] = []
    observe = one.clock.observe

    def note(frame: int, stamp_ns: int, edge: bool | None = None) -> bool:
        edges.append(edge)
        return observe(frame, stamp_ns, edge)

    one.clock.observe = note  # type: ignore[method-assign]
    one.run(100 * PERIOD)
    assert one.indices == list(range(len(one.indices)))
    assert not np.diff(one.offsets()).any()
    assert max(frames for _, frames, _ in one.blocks) <= 2 * PERIOD
    assert len(one.blocks) < 250, "most are as long as asked for"
    assert any(edges)


def test_a_buffer_that_is_short_all_the_same(fakecard: FakeCard, readers: list[Reader]) -> None:
    """A block is never longer than half of the card's buffer."""
    fakecard.grant(period_frames=48, buffer_frames=480)
    one = reader(readers, asked(fakecard, **S16))
    one.open()
    fakecard.virtual(fakecard.position)
    begin = fakecard.position
    while one.step():
        pass
    for number in range(1, 9):
        fakecard.virtual(begin + number * 240)
        while one.step():
            pass
    assert not np.diff(one.offsets()).any()
    assert len(one.indices) >= 7 * 240


class Breath(threading.Event):
    """The capturer's, on whose breaths the push thread is done with all that is there."""

    def __init__(self, done: Callable[[], bool]) -> None:
        super().__init__()
        self._done = done
        self.taken: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.taken.append(timeout)
        deadline = time.monotonic() + PATIENCE_S
        while not self._done():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return False


def test_a_buffer_that_is_much_longer_than_the_ring(
    fakecard: FakeCard, readers: list[Reader]
) -> None:
    """What a stalled process finds in it is read with breaths, in which a push thread that rests is
    woken: nothing is missed. While sound flows there is none."""
    fakecard.grant(period_frames=480, buffer_frames=480_000)
    one = held(fakecard, readers, **S16)
    pusher = Pusher(
        reader_of(one.ring, one.setup.audio, one.ring.slots // 2), None, (), 0, batch_ms=1
    )
    pusher.rest_ms = lambda *_: 3_600_000  # type: ignore[method-assign]
    one.ring.wakes(pusher.wake, rests=(pusher.quarter_full,))
    tally = one.capturer.tally
    quarter = one.ring.slots // 4 * 480
    breath = Breath(lambda: pusher.captured > tally.captured - quarter)
    one.capturer._stopped = breath
    thread = threading.Thread(target=pusher.run)
    thread.start()
    try:
        for blocks in range(1, 10):
            fakecard.virtual(blocks * 480)
            one.capturer.step(0)
        assert breath.taken == []
        fakecard.virtual(400_000)
        while one.capturer.step(0):
            pass
        assert tally.captured > 4 * one.ring.slots * 480 - 1000
        assert tally.count().lost_estimated == 0
    finally:
        pusher.stop()
        thread.join(PATIENCE_S)
    assert (pusher.captured, pusher.missed) == (tally.captured, 0)
    assert set(breath.taken) == {one.ring.slots // 4 * 0.01 / 8}


def test_a_push_thread_that_hangs_is_not_waited_for(
    fakecard: FakeCard, readers: list[Reader]
) -> None:
    """The device goes on being read; what the ring had no room for is booked when it comes back."""
    fakecard.grant(period_frames=480, buffer_frames=480_000)
    one = held(fakecard, readers, **S16)
    pusher = Pusher(
        reader_of(one.ring, one.setup.audio, one.ring.slots // 2), None, (), 0, batch_ms=0
    )
    one.capturer._stopped = Breath(lambda: True)
    fakecard.virtual((one.ring.slots + 20) * 480)
    while one.capturer.step(0):
        pass
    assert one.capturer.tally.captured == (one.ring.slots + 20) * 480
    assert pusher.step() == one.ring.slots // 2
    assert pusher.missed == (one.ring.slots // 2 + 20) * 480


@pytest.mark.parametrize("numbers", [(1,), (3,), (1, 4, 2)])
def test_a_plug_in_gets_all_of_its_descriptors(
    numbers: tuple[int, ...], fakecard: FakeCard, readers: list[Reader]
) -> None:
    """Whatever woke a read, or nothing at all, a plug-in is handed all of its descriptors in their
    order, also when their number changes; else it would end the process."""
    one = reader(readers, asked(fakecard))
    fakecard.describe(numbers[0])
    one.open()
    for number in numbers:
        fakecard.describe(number)
        one.run(3 * PERIOD)
        fakecard.stall()
        while one.step(1):
            pass
        fakecard.stall(False)
    one.source.wake()
    one.step(1)
    assert one.indices == list(range(len(one.indices)))


def test_wake_ends_a_read(fakecard: FakeCard, readers: list[Reader]) -> None:
    """A read that waits for a silent card returns when it is woken, and so does every later one."""
    one = held(fakecard, readers)
    waiting = threading.Thread(target=one.capturer.step, args=(3_600_000,), daemon=True)
    waiting.start()
    one.source.wake()
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    assert one.step(3_600_000) == 0


def test_stop_ends_the_thread(fakecard: FakeCard, readers: list[Reader]) -> None:
    """A capture thread at a silent card ends when it is told, and the card is free again."""
    fakecard.virtual(0)
    one = reader(readers, asked(fakecard))
    thread = threading.Thread(target=one.capturer.run, daemon=True)
    thread.start()
    one.capturer.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert one.capturer.params is None
    reader(readers, asked(fakecard)).open()


def test_closing_twice(fakecard: FakeCard, readers: list[Reader]) -> None:
    """A source may be closed before it was opened, and again after it was closed."""
    one = reader(readers, asked(fakecard))
    one.source.close()
    one.open()
    one.source.close()
    one.source.close()
    one.open()
    assert fakecard.opens == 2


def test_opening_leaves_nothing_open(fakecard: FakeCard, readers: list[Reader]) -> None:
    """Fifty openings, half of them refused, leave no descriptor behind."""
    one = reader(readers, asked(fakecard))

    def try_once(number: int) -> None:
        fakecard.restrict(rates=(8000, 8000) if number % 2 else (0, 0))
        try:
            one.open()
            one.step()
        except DeviceError as error:
            one.capturer.fail(error)
        one.source.close()

    try_once(0)
    try_once(1)
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(50):
        try_once(number)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert fakecard.opens == 52 + 26, "each that is refused is asked what it offers"


def test_the_clock_follows_the_card(fakecard: FakeCard, readers: list[Reader]) -> None:
    """Times of blocks increase and lie between the start of the stream and now."""
    one = reader(readers, asked(fakecard, rate_hz=192_000, buffer_ms=5000.0))
    one.open()
    began_ns = time.monotonic_ns()
    one.run(50 * one.setup.period_frames)
    times = [at_ns for _, _, at_ns in one.blocks]
    assert times == sorted(set(times))
    assert began_ns - 1e9 < times[0] < times[-1] < time.monotonic_ns()


def test_a_plug_in_is_told_at_each_wait_which_of_its_descriptors_are_ready() -> None:
    """All of them, in its order, whether the same are ready as the last time or others."""
    first, second = WakeUp(), WakeUp()

    class PlugIn:
        told: list[tuple[int, int]]

        def polldescriptors(self) -> list[tuple[int, int]]:
            return [(one.fileno(), select.POLLIN) for one in (first, second)]

        def polldescriptors_revents(self, found: list[tuple[int, int]]) -> None:
            self.told = found

    source, plug_in = AlsaSource(CaptureConfig(device="plugin")), PlugIn()
    source._pcm = plug_in
    for ready in ((), (first,), (first,), (second,), (first, second), ()):
        for one in (first, second):
            one.set() if one in ready else one.clear()
        source._wait(0)
        expected = [(one.fileno(), select.POLLIN * (one in ready)) for one in (first, second)]
        assert plug_in.told == expected
    source._pcm = None
