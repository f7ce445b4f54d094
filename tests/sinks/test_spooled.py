"""A sink with a spool: each frame reaches it once and in order, however long it was away."""

import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.accounting.stats import SinkState, SinkStats, StreamPosition, span
from capstand.audio.block import NS_PER_S, AudioFormat, Block, SampleFormat
from capstand.errors import SinkError
from capstand.host.backoff import Backoff
from capstand.sinks.sink import Account, Checkpoint, Sink
from capstand.sinks.sink_queue import SinkQueue
from capstand.sinks.spool.spool import Spool
from capstand.sinks.spool.spooled import CLOSE_S, Spooled
from tests.figures import figure
from tests.patience import PATIENCE_S
from tests.sinks.test_spool import Clock

AUDIO = AudioFormat(1000, 2, SampleFormat.S32_LE)  # eight bytes a frame: room for its number
FRAMES = 200
TICK_NS = FRAMES * NS_PER_S // AUDIO.rate_hz


class Tape:
    """What a peer holds, beyond the life of a process: the numbers of the frames, in pieces."""

    def __init__(self) -> None:
        self.pieces: list[list[int]] = []

    def numbers(self) -> list[int]:
        return [one for piece in self.pieces for one in piece]


class Recorder(Sink):
    """Writes onto a tape; fails when told to, in the middle of a block; holds the newest
    ``unsafe`` frames back, as an encoder would. ``marks``: it can take things back.
    """

    detail = "recorder"

    def __init__(self, tape: Tape, unsafe: int = 0, marks: bool = True) -> None:
        self.tape = tape
        self.away = False
        self.calls: list[str] = []
        self.times: list[int] = []
        self._unsafe = unsafe
        self._marks = marks
        self._given = 0
        self._mark = Checkpoint(0, "")
        self._open = False
        self._before = 0  # safe when it was opened last

    def open(self) -> None:
        self._do("open")
        self._before += self._mark.safe_frames
        self._given = 0
        self._mark = Checkpoint(0, "")
        self._open = False

    def prepare(self, block: Block) -> None:
        if not self._open:
            self._do("begin")
            self.tape.pieces.append([])
            self._open = True
            self._note(0)

    def write(self, block: Block) -> None:
        self.prepare(block)
        numbers = np.frombuffer(block.samples, "<i8").tolist()
        if self.away:
            self.tape.pieces[-1] += numbers[: len(numbers) // 2]
        self._do("write")
        self.tape.pieces[-1] += numbers
        self._given += len(numbers)

    def flush(self) -> None:
        self._do("flush")
        if self._open:
            self._note(max(0, len(self.tape.pieces[-1]) - self._unsafe))

    def close(self) -> None:
        self._do("close")
        self._open = False
        self._mark = Checkpoint(self._given, "")

    def checkpoint(self) -> Checkpoint | None:
        return self._mark if self._marks else None

    def account(self) -> Account | None:
        """All that was written stays on the tape."""
        safe = self._before + self._mark.safe_frames
        return Account(safe, 0, self._before + self._given) if self._marks else None

    def rewind(self, cursor: str) -> None:
        self._do("rewind")
        if cursor:
            piece, length = json.loads(cursor)
            del self.tape.pieces[piece][length:]

    def _note(self, length: int) -> None:
        lacking = len(self.tape.pieces[-1]) - length
        cursor = json.dumps([len(self.tape.pieces) - 1, length])
        self._mark = Checkpoint(self._given - lacking, cursor)

    def _do(self, call: str) -> None:
        self.calls.append(call)
        if self.away:
            raise SinkError(f"{call} refused")


class Rig:
    """A spooled sink whose threads' turns are taken by hand; a crash leaves tape and folder, and
    where only the process was killed the word it left of what was delivered."""

    def __init__(
        self,
        folder: Path,
        unsafe: int = 0,
        marks: bool = True,
        limit_bytes: int = 100_000_000,
        window: int = 5 * FRAMES,
        max_age_s: float = 1e6,
        close_s: float = CLOSE_S,
    ) -> None:
        self.folder = folder
        self.clock = Clock()
        self.tape = Tape()
        self.block = FRAMES
        self.number = 0  # of the next frame, over all runs
        self._made = unsafe, marks, limit_bytes, window, max_age_s, close_s
        self.run_id = b"run of 8"
        self.first = 0
        self.told = 0, 0
        self.start()

    def start(self) -> None:
        """A new process."""
        unsafe, marks, limit_bytes, window, max_age_s, close_s = self._made
        clock = self.clock
        self.spool = Spool(
            *(self.folder, AUDIO, limit_bytes, max_age_s),
            run=self.run_id,
            now_ns=clock.now_ns,
            wall_ns=clock.wall_ns,
        )
        self.sink = Recorder(self.tape, unsafe, marks)
        self.spooled = Spooled(
            "file",
            self.sink,
            self.spool,
            rate_hz=AUDIO.rate_hz,
            catch_up_speed=4.0,
            window_frames=window,
            close_s=close_s,
            now_ns=clock.now_ns,
        )
        self.backlog, self.forwarder = self.spooled.backlog, self.spooled.forwarder
        self.sink_queue = SinkQueue("file", self.spooled, 1 << 30)
        self.sink_queue.tells = self._hear
        self.spooled.load()
        self.sink_queue.state = SinkState.OPEN

    def _hear(self, delivered: int, kept: int) -> None:
        self.told = delivered, kept

    def put(self, frames: int = FRAMES) -> None:
        """The sink queue's thread: time passes, and one block comes."""
        numbers = np.arange(self.number, self.number + frames, dtype="<i8")
        at_ns = self.clock.ns
        self.clock.ns += TICK_NS
        self.sink_queue.put(
            Block(self.number - self.first, frames, at_ns, numbers.tobytes(), AUDIO)
        )
        self.number += frames
        self.sink_queue.step()

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.forwarder.turn()

    def run(self, seconds: float) -> None:
        """Both threads for so long: sound comes in, the forwarder does all that is due."""
        end_ns = self.clock.ns + round(seconds * NS_PER_S)
        while self.clock.ns < end_ns:
            for _ in range(self.block // FRAMES - 1):
                self.clock.ns += TICK_NS
                self.work()
            flushes = self.clock.ns // NS_PER_S
            self.put(self.block)
            if self.clock.ns // NS_PER_S != flushes or self.block > FRAMES:
                self.flush()
            self.work()

    def flush(self) -> None:
        self.spooled.flush()
        self.sink_queue.tell()

    def work(self) -> None:
        for _ in range(50):
            if self.forwarder.turn():
                break

    def come_back(self) -> None:
        """The sink is well, and it goes on until it has been tried again."""
        self.sink.away = False
        while self.forwarder.away is not None:
            self.run(0.1)

    def settle(self) -> None:
        """The sink is well and no sound comes: until nothing is left to do; then the end."""
        self.sink.away = False
        for _ in range(50_000):
            self.clock.ns += NS_PER_S // 20
            self.turn(3)
            if not self.backlog.in_memory and not self.backlog.spooling:
                return self.forwarder.finish()
        raise AssertionError("the spool is never emptied")

    def crash(self) -> None:
        """``kill -9``, and a new start."""
        self.run_id, self.first = os.urandom(8), self.number
        self._start_anew()

    def kill(self) -> None:
        """The process alone, whose books another one continues: all frames that there were were
        meant for the sink, and nothing was known to be dropped."""
        before = SinkStats(
            *("file", SinkState.OPEN, None, "", 0, self.number, self.told[1], 0),
            *(self.number - self.told[1], 0, 0.0, {}),
        )
        self._start_anew()
        self.sink_queue.continue_from(before, StreamPosition(0, 0), self.number)
        self.sink_queue.tell()

    def _start_anew(self) -> None:
        left = self.folder.with_name(self.folder.name + "-left")
        shutil.copytree(self.folder, left)
        self.spool.close()
        shutil.rmtree(self.folder)
        left.rename(self.folder)
        self.start()

    @property
    def balanced(self) -> bool:
        """This run's: entered = delivered + dropped + inside, with what is known to be inside."""
        delivered, dropped = self.sink_queue.books()
        inside = self.sink_queue.entered - delivered - dropped - self.sink_queue.queued
        backlog = self.backlog
        own_from = backlog._own_from
        held = sum(one.block.frames for one in backlog._held() if one.position >= own_from)
        if backlog.spooling:
            held += max(0, backlog._end - max(own_from, backlog._next))
        return inside == held


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where there is such a place: syncing is not what is tested."""
    with memory() as one:
        yield Path(one) / "spool"


def memory() -> "TemporaryDirectory[str]":
    return TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def events(rig: Rig) -> list[str]:
    return [name for name, _ in rig.spooled.events()]


def test_a_sink_that_is_well_leaves_the_disk_alone(folder: Path) -> None:
    """While nothing is wrong the spool's folder does not change, and nothing is held for long."""
    rig = Rig(folder)
    rig.run(3)
    before = {one: one.stat().st_mtime_ns for one in folder.iterdir()}
    rig.run(30)
    assert {one: one.stat().st_mtime_ns for one in folder.iterdir()} == before
    assert rig.number - len(rig.tape.numbers()) == 0
    assert rig.sink_queue.entered - rig.sink_queue.books()[0] <= 1.2 * AUDIO.rate_hz
    assert events(rig) == []
    assert rig.spooled.account().dropped == 0


@pytest.mark.parametrize(
    ("away_s", "unsafe"), [(1, 0), (1, 777), (10, 0), (10, 777), (60, 0), (3600, 777)]
)
def test_the_sound_of_an_outage_follows(folder: Path, away_s: int, unsafe: int) -> None:
    """A sink that was away for a second or an hour has every frame afterwards, once and in order,
    four times as fast as it was captured; meanwhile the status says how much waits."""
    rig = Rig(folder, unsafe)
    rig.block = FRAMES if away_s <= 60 else 5 * FRAMES
    rig.run(5)
    rig.sink.away = True
    rig.run(away_s)
    spooled_s = rig.backlog.spooled_frames / AUDIO.rate_hz
    assert away_s <= spooled_s <= away_s + 3
    assert rig.spooled.detail == f"waiting, {span(spooled_s)} spooled"
    assert str(rig.sink_queue.trouble).endswith(f"; {span(spooled_s)} spooled")
    rig.come_back()
    spooled_s = rig.backlog.spooled_frames / AUDIO.rate_hz
    rig.run(spooled_s / 6)
    assert away_s < 60 or 0.45 < rig.backlog.spooled_frames / AUDIO.rate_hz / spooled_s < 0.6
    rig.run(spooled_s / 4 + 2)
    assert rig.backlog.spooled_frames == 0
    assert rig.spooled.detail == "recorder"
    assert rig.sink_queue.trouble is None
    assert rig.tape.numbers() == list(range(rig.number))
    assert list(folder.glob("*.spool")) == []
    told = dict(rig.spooled.events())
    assert list(told) == ["spool_begin", "spool_end"]
    assert str(told["spool_begin"]["reason"]).endswith(" refused")
    assert int(str(told["spool_end"]["frames"])) >= away_s * AUDIO.rate_hz
    assert rig.sink_queue.dropped == 0 and rig.balanced
    figure(f"sink away for {away_s} s", "0 frames lost, all delivered, in order (virtual time)")


def test_tries_follow_each_other_with_growing_pauses(folder: Path) -> None:
    """A sink that stays away is opened again after half a second, later every 30 s or so."""
    rig = Rig(folder)
    rig.sink.away = True
    rig.run(600)
    opens = rig.sink.calls.count("open")
    assert 600 / 30 / 1.25 <= opens <= 600 / 30 / 0.75 + 8
    rig.come_back()
    rig.run(250)
    assert rig.tape.numbers() == list(range(rig.number))


def test_a_sink_that_is_too_slow_is_spooled_too(folder: Path) -> None:
    """While a call to the sink does not come back, the sound goes to disk, also what it was just
    given; nothing is lost when it does come back."""
    rig = Rig(folder)
    rig.run(3)
    entered, leave = threading.Event(), threading.Event()
    write = rig.sink.write

    def hang(block: Block) -> None:
        entered.set()
        assert leave.wait(PATIENCE_S)
        write(block)

    rig.sink.write = hang  # type: ignore[method-assign]
    rig.put()
    hanging = threading.Thread(target=lambda: rig.turn(3))
    hanging.start()
    assert entered.wait(PATIENCE_S)
    for _ in range(50):
        rig.put()
        assert rig.balanced
    assert 8 < rig.backlog.spooled_frames / AUDIO.rate_hz < 12
    assert "no response for" in str(rig.sink_queue.trouble)
    assert rig.sink_queue.dropped == 0
    leave.set()
    hanging.join()
    rig.sink.write = write  # type: ignore[method-assign]
    rig.run(20)
    assert rig.backlog.spooled_frames == 0 and rig.sink_queue.trouble is None
    assert rig.tape.numbers() == list(range(rig.number))


def test_a_long_block_needs_no_window(folder: Path) -> None:
    """A block longer than the window is no reason to use the spool."""
    rig = Rig(folder, window=FRAMES // 2)
    rig.run(3)
    assert events(rig) == [] and rig.tape.numbers() == list(range(rig.number))


def test_an_error_that_nobody_foresaw_is_trouble_like_any_other(folder: Path) -> None:
    """A fault of the sink's own is told and tried again, and the sound that comes meanwhile is
    kept."""
    rig = Rig(folder)
    rig.run(2)
    write, rig.sink.write = rig.sink.write, None  # type: ignore[method-assign,assignment]
    rig.run(20)
    assert "unexpected TypeError" in str(rig.forwarder.trouble)
    rig.sink.write = write  # type: ignore[method-assign]
    rig.come_back()
    rig.run(60)
    assert rig.sink_queue.dropped == 0
    assert rig.tape.numbers() == list(range(rig.number))


def test_the_oldest_sound_goes_when_the_spool_is_full(folder: Path) -> None:
    """A spool never grows beyond its size: the oldest is dropped, booked and told."""
    limit = 400_000
    rig = Rig(folder, limit_bytes=limit)
    rig.run(3)
    rig.sink.away = True
    for _ in range(100):
        rig.run(2)
        assert sum(one.stat().st_size for one in folder.glob("*.spool")) <= limit
        assert rig.balanced
    rig.come_back()
    rig.run(50)
    told = list(rig.spooled.events())
    dropped = [what for name, what in told if name == "spool_drop"]
    assert {what["reason"] for what in dropped} == {"size"}
    numbers = rig.tape.numbers()
    assert numbers == sorted(set(numbers))
    lost = rig.number - len(numbers)
    assert rig.backlog.own.dropped == lost == sum(int(str(what["frames"])) for what in dropped)
    assert (np.diff(numbers) - 1).sum() == lost
    assert rig.balanced


def test_sound_that_is_too_old_goes(folder: Path) -> None:
    """What has waited for longer than the limit is dropped, to within a minute."""
    rig = Rig(folder, max_age_s=120)
    rig.run(2)
    rig.sink.away = True
    rig.run(600)
    assert 120 <= rig.backlog.spooled_frames / AUDIO.rate_hz <= 120 + 62
    assert {what["reason"] for name, what in rig.spooled.events() if name == "spool_drop"} == {
        "age"
    }
    rig.settle()
    assert (
        rig.sink_queue.entered == sum(rig.sink_queue.books()) and rig.backlog.own.dropped > 400_000
    )


def test_a_spool_that_cannot_be_written_is_a_concern(folder: Path) -> None:
    """Without its folder the sink works as without a spool: a short outage waits in memory, a long
    one is dropped and counted; with the folder there again, it spools."""
    folder.write_text("in the way")
    rig = Rig(folder)
    rig.run(3)
    assert f"spool {folder}: " in str(rig.spooled.concern)
    rig.sink.away = True
    rig.run(20)
    assert rig.sink_queue.dropped > 15 * AUDIO.rate_hz
    assert rig.balanced
    folder.unlink()
    rig.run(20)
    assert rig.spooled.concern is None
    dropped = rig.sink_queue.dropped
    rig.come_back()
    rig.run(30)
    numbers = rig.tape.numbers()
    assert numbers == sorted(set(numbers)) and rig.number - len(numbers) == dropped
    assert rig.balanced


def test_a_spool_that_fills_its_disk_drops_and_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes no more costs what it refuses, which is said and counted; what it holds is
    delivered, and the sink then gets the present."""
    rig = Rig(folder)
    rig.run(3)
    rig.sink.away = True
    rig.run(20)
    write, full = os.write, True

    def refuse(file: int, raw: bytes) -> int:
        return write(file, raw[:100] if full else raw)

    monkeypatch.setattr(os, "write", refuse)
    rig.run(20)
    assert "No space left on device" in str(rig.sink_queue.trouble)
    assert "No space left on device" in str(rig.spooled.concern)
    assert rig.sink_queue.dropped == 20 * AUDIO.rate_hz and rig.balanced
    rig.come_back()
    rig.run(10)
    assert rig.backlog.spooled_frames == 0
    rig.run(1)
    assert rig.sink_queue.trouble is None
    assert rig.spooled.concern is None  # nothing waits for the disk any more
    numbers = rig.tape.numbers()
    assert numbers == sorted(set(numbers))
    assert rig.number - len(numbers) == rig.sink_queue.dropped
    assert rig.balanced
    full = False
    rig.sink.away = True
    rig.run(20)
    assert rig.spooled.concern is None
    rig.settle()
    assert rig.number - len(rig.tape.numbers()) == rig.sink_queue.dropped


def test_what_an_earlier_run_left_comes_first(folder: Path) -> None:
    """After a restart in the middle of an outage the earlier run's sound is delivered first, into
    a file of its own, and booked apart."""
    rig = Rig(folder)
    rig.run(3)
    rig.sink.away = True
    rig.run(30)
    left = rig.backlog.spooled_frames
    rig.crash()
    rig.sink.away = True
    rig.run(10)
    figures = rig.spooled.figures(0)["spool"]
    assert isinstance(figures, dict)
    assert figures["inherited_frames"] == left
    assert rig.backlog.spooled_frames == left + 10 * AUDIO.rate_hz
    assert rig.sink_queue.entered == 10 * AUDIO.rate_hz and rig.balanced
    rig.come_back()
    rig.run(30)
    assert rig.tape.numbers() == list(range(rig.number))
    assert any(piece[0] == rig.first for piece in rig.tape.pieces)
    assert (rig.backlog.inherited.delivered, rig.backlog.inherited.dropped) == (left, 0)
    assert rig.balanced


def test_a_spool_that_is_mounted_late_brings_nothing_twice(folder: Path) -> None:
    """Where what an earlier run left can be reached only after this one has tried the sink, the
    sink takes back what was not safe of it all the same."""
    rig = Rig(folder, unsafe=777)
    rig.run(3)
    rig.sink.away = True
    rig.run(5)
    rig.come_back()
    rig.run(0.6)
    rig.crash()
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    folder.write_text("in the way")
    rig.start()
    rig.sink.away = True
    rig.run(0.6)
    assert rig.spooled.concern is not None and rig.forwarder.away is not None
    folder.unlink()
    elsewhere.rename(folder)
    rig.flush()
    assert rig.backlog.inherited.taken > 0 and rig.sink_queue.dropped == 0
    rig.settle()
    assert rig.tape.numbers() == list(range(rig.number))


def test_a_sink_without_marks_gets_at_most_the_last_second_again(folder: Path) -> None:
    """Where a sink cannot take anything back nothing is lost, and a crash repeats no more than
    what was delivered since the last note, once a second."""
    rig = Rig(folder, marks=False)
    rig.run(2)
    rig.sink.away = True
    rig.run(30)
    rig.come_back()
    rig.run(3)
    again = len(rig.tape.numbers())
    rig.crash()
    rig.settle()
    rig.run(3)
    numbers = rig.tape.numbers()
    assert again < len(numbers) and sorted(set(numbers)) == list(range(rig.number))
    assert len(numbers) - rig.number <= 2 * 4 * AUDIO.rate_hz


def test_the_end_of_the_process_leaves_nothing_undone(folder: Path) -> None:
    """At the end a sink that is well has all; of one that is away the rest lies in the spool, and
    the books call it inside."""
    rig = Rig(folder)
    rig.spooled.open()
    rig.run(1)
    rig.spooled.close()
    assert rig.tape.numbers() == list(range(rig.number))
    assert rig.sink_queue.books() == (rig.number, 0)

    rig.start()
    rig.sink.away = True
    rig.spooled.open()
    rig.put()
    rig.put()
    rig.spooled.close()
    assert rig.sink_queue.books() == (0, 0)
    assert rig.backlog.spooled_frames == 2 * FRAMES
    rig.start()
    rig.settle()
    assert rig.tape.numbers() == list(range(rig.number))


def test_a_sink_that_hangs_at_the_end_is_left_behind(folder: Path) -> None:
    """The end does not wait for a call that does not come back; what it held is in the spool, and
    the next run delivers it once."""
    rig = Rig(folder, close_s=0.05)
    entered, leave = threading.Event(), threading.Event()
    write = rig.sink.write

    def hang(block: Block) -> None:
        write(block)
        entered.set()
        assert leave.wait(PATIENCE_S)

    rig.sink.write = hang  # type: ignore[method-assign]
    rig.spooled.open()
    for _ in range(3):
        rig.put()
    assert entered.wait(PATIENCE_S)
    rig.spooled.close()
    assert rig.sink_queue.books() == (0, 0)
    left_behind = rig.forwarder
    rig.start()
    rig.settle()
    assert rig.tape.numbers() == list(range(rig.number))
    leave.set()
    assert left_behind.join(PATIENCE_S)


def test_a_block_wakes_the_forwarder(folder: Path) -> None:
    """A block is handed on at once, however long the forwarder meant to rest."""
    rig = Rig(folder)
    spooled = Spooled(
        "file",
        rig.sink,
        rig.spool,
        rate_hz=1000,
        catch_up_speed=4.0,
        window_frames=5000,
        flush_s=1e5,
    )
    spooled.open()
    for number in range(1, 6):
        numbers = np.arange(number, dtype="<i8")
        spooled.write(Block(0, number, number, numbers.tobytes(), AUDIO))
        deadline = time.monotonic() + PATIENCE_S
        while rig.tape.numbers()[-number:] != numbers.tolist():
            assert time.monotonic() < deadline
            time.sleep(0.001)
    spooled.close()


@pytest.mark.parametrize("away", [False, True])
def test_an_unforeseen_error_of_its_own_does_not_end_the_delivery(folder: Path, away: bool) -> None:
    """The outlet closes it then, and opens it again; one block is missed, the others come once."""
    rig = Rig(folder, unsafe=333)
    rig.sink.away = away
    spooled, sink_queue = rig.spooled, SinkQueue("file", rig.spooled, 1 << 30)
    write, sink_queue._backoff = spooled.write, Backoff(0.01, 0.01)

    def stumble(block: Block) -> None:
        spooled.write = write  # type: ignore[method-assign]
        raise RuntimeError("unforeseen")

    thread = threading.Thread(target=sink_queue.run)
    thread.start()
    for number in range(9):
        if number == 3:
            spooled.write = stumble  # type: ignore[method-assign]
        first = number * FRAMES
        numbers = np.arange(first, first + FRAMES, dtype="<i8")
        sink_queue.put(Block(first, FRAMES, number + 1, numbers.tobytes(), AUDIO))
        deadline = time.monotonic() + PATIENCE_S
        while sink_queue.queued:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    rig.sink.away = False
    deadline = time.monotonic() + PATIENCE_S
    while 9 * FRAMES - 1 not in rig.tape.numbers():
        assert time.monotonic() < deadline
        rig.clock.ns += NS_PER_S // 20
        time.sleep(0.005)
    sink_queue.finish()
    thread.join(PATIENCE_S)
    assert not thread.is_alive() and sink_queue.failures == 1 and sink_queue.failed == FRAMES
    rig.start()
    rig.settle()
    assert rig.tape.numbers() == [*range(3 * FRAMES), *range(4 * FRAMES, 9 * FRAMES)]


@pytest.mark.parametrize("unsafe", [0, 777])
def test_a_crash_after_any_step_of_the_delivery(unsafe: int) -> None:
    """At whatever step of opening, writing, flushing and noting the process is killed, the next one
    delivers the rest, and nothing twice."""
    for steps in range(60):
        with memory() as temporary:
            rig = Rig(Path(temporary) / "spool", unsafe)
            rig.run(2)
            rig.sink.away = True
            rig.run(5)
            rig.sink.away = False
            rig.clock.ns += 60 * NS_PER_S
            for _ in range(steps):
                rig.clock.ns += NS_PER_S // 20
                rig.turn()
            rig.crash()
            rig.run(1)
            rig.settle()
            assert rig.tape.numbers() == list(range(rig.number)), steps


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "turn", "turn", "flush", "away", "back", "wait", "crash"]),
        st.integers(1, 12),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(acts=ACTS, unsafe=st.sampled_from([0, 150, 777]), small=st.booleans())
def test_once_and_in_order_whatever_happens(
    acts: list[tuple[str, int]], unsafe: int, small: bool
) -> None:
    """With any order of the threads' turns, outages, waits and crashes no frame comes twice or out
    of order; all that was on disk at a crash comes, and the books balance at each step."""
    with memory() as temporary:
        rig = Rig(
            Path(temporary) / "spool", unsafe, limit_bytes=80_000 if small else 10**8, window=1200
        )
        excused: set[int] = set()
        dropped = 0
        for act, times in acts:
            match act:
                case "put" | "turn":
                    for _ in range(times):
                        rig.put() if act == "put" else rig.turn()
                        assert rig.balanced
                case "flush":
                    rig.flush()
                case "wait":
                    rig.clock.ns += times * NS_PER_S // 2
                case "crash":
                    on_disk = rig.backlog.spooling and rig.spool._segments
                    begin = rig.spool._segments[0].begin if on_disk else rig.backlog._end
                    for one in rig.backlog._held():
                        if one.position < begin:  # what was in memory alone may be gone
                            excused |= set(np.frombuffer(one.block.samples, "<i8").tolist())
                    dropped += rig.backlog.own.dropped + rig.sink_queue.dropped
                    dropped += rig.backlog.inherited.dropped
                    rig.crash()
                case _:
                    rig.sink.away = act == "away"
            assert rig.balanced
        rig.settle()
        numbers = rig.tape.numbers()
        assert all(first < second for first, second in itertools.pairwise(numbers))
        missing = set(range(rig.number)) - set(numbers)
        dropped += rig.backlog.own.dropped + rig.backlog.inherited.dropped + rig.sink_queue.dropped
        assert len(missing - excused) <= dropped
        assert not small or dropped >= 0
        assert small or missing <= excused
        assert rig.sink_queue.entered == sum(rig.sink_queue.books())


@settings(max_examples=150, deadline=None)
@given(acts=ACTS, unsafe=st.sampled_from([0, 150, 777]), marks=st.booleans(), small=st.booleans())
def test_the_books_go_on_where_a_process_was_killed(
    acts: list[tuple[str, int]], unsafe: int, marks: bool, small: bool
) -> None:
    """Each frame is delivered or dropped at the end, and of those that count as delivered each is
    there; what is there and counts as dropped is what a write that failed had left and, where the
    spool was full, what was still in memory. What a process says is delivered never becomes less
    while it lives."""
    with memory() as temporary:
        folder = Path(temporary) / "spool"
        rig = Rig(folder, unsafe, marks, limit_bytes=80_000 if small else 10**8, window=1200)
        excused = 0
        for act, times in acts:
            match act:
                case "put" | "turn":
                    for _ in range(times):
                        before = rig.told[0]
                        rig.put() if act == "put" else rig.turn()
                        assert rig.told[0] >= before
                case "flush":
                    rig.flush()
                case "wait":
                    rig.clock.ns += times * NS_PER_S // 2
                case "crash":
                    excused += FRAMES // 2 + (1200 if small else 0)
                    rig.kill()
                case _:
                    rig.sink.away = act == "away"
            delivered, dropped = rig.sink_queue.books()
            assert min(delivered, dropped) >= 0 and delivered + dropped <= rig.number
        rig.settle()
        delivered, dropped = rig.sink_queue.books()
        numbers = rig.tape.numbers()
        assert delivered + dropped == rig.number
        assert delivered <= len(set(numbers)) <= delivered + excused
        assert not marks or len(set(numbers)) == len(numbers)


def test_threads_and_a_sink_that_comes_and_goes(folder: Path) -> None:
    """With all threads running and a sink that fails every few calls nothing is lost, comes twice
    or out of order, and the books balance at the end."""
    rig = Rig(folder, unsafe=333, window=20 * FRAMES)
    spooled = Spooled(
        "file",
        rig.sink,
        rig.spool,
        rate_hz=AUDIO.rate_hz,
        catch_up_speed=1e6,
        window_frames=20 * FRAMES,
        backoff=Backoff(0.001, 0.002),
        flush_s=0.003,
    )
    do, calls = rig.sink._do, itertools.count()

    def flutter(call: str) -> None:
        rig.sink.away = next(calls) % 37 > 30
        do(call)

    rig.sink._do = flutter  # type: ignore[method-assign]
    sink_queue = SinkQueue("file", spooled, 1 << 30)
    thread = threading.Thread(target=sink_queue.run)
    thread.start()
    for number in range(3000):
        first = number * FRAMES
        numbers = np.arange(first, first + FRAMES, dtype="<i8")
        sink_queue.put(Block(first, FRAMES, number + 1, numbers.tobytes(), AUDIO))
        delivered, dropped = sink_queue.books()
        assert delivered + dropped <= sink_queue.entered
    sink_queue.finish()
    thread.join(PATIENCE_S)
    assert not thread.is_alive() and spooled.forwarder.join(0)
    inside = sink_queue.entered - sum(sink_queue.books())
    assert inside == spooled.backlog.spooled_frames
    assert sink_queue.dropped == spooled.backlog.own.dropped == 0
    rig.sink._do = do  # type: ignore[method-assign]
    rig.number = 3000 * FRAMES
    rig.start()
    rig.settle()
    assert rig.tape.numbers() == list(range(rig.number))
