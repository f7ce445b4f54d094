"""A stream in a process of its own: what hangs, aborts or is killed in it costs it alone."""

import contextlib
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import soundfile

from capstand.accounting.stats import Cause, Gap, SinkStats, StreamStats
from capstand.config.schema import CaptureConfig, SpoolConfig, StreamConfig
from capstand.processes import forkserver
from capstand.processes.page import CALLS
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.chaining import Chaining
from capstand.stream.queues import GATHER_MS
from capstand.stream.stream import Stream
from tests.counts import counts
from tests.fakecard import FakeCard
from tests.patience import PATIENCE_S, gone

UNDER_WAY = {"wav": 2 * GATHER_MS * 48, "flac": 2 * 48_000}
"""Frames: what a write, or a FLAC's header once a second, adds at once, and is not told yet."""


class Streams:
    """Streams with real processes, looked after as the daemon does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[Stream] = []
        self.gaps: dict[str, list[Gap]] = {}
        self.left: defaultdict[str, list[SinkStats]] = defaultdict(list)
        self.troubles: dict[str, list[str]] = {}
        self.ended: dict[str, StreamStats] = {}

    def start(self, card: FakeCard, name: str, **how: Any) -> Stream:
        """``how`` it is recorded, unless as usual."""
        sink = FileSinkConfig("file", str(self.folder / name), name="disk", **how)
        capture = CaptureConfig(card.device, buffer_ms=4000.0, rt_priority=0)
        stream = Stream(StreamConfig(name, capture, (sink,)), self.folder / "state")
        self.all.append(stream)
        self.gaps[name], self.troubles[name] = [], []
        stream.start()
        return stream

    def poll(self) -> None:
        for one in self.all:
            report = one.report(time.monotonic_ns())
            assert report.stats.balanced, report.stats
            self.gaps[one.name] += report.gaps
            self.left[one.name] += [left.sink for left in report.left]
            trouble = report.trouble
            if trouble and trouble not in self.troubles[one.name][-1:]:
                self.troubles[one.name].append(trouble)

    def until(self, state: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        self.poll()
        while not state():
            assert time.monotonic() < deadline, [one.stats(0) for one in self.all]
            time.sleep(0.01)
            self.poll()

    def flow(self, stream: Stream, frames: int = 4800) -> None:
        """So many frames more of it."""
        enough = stream.stats(time.monotonic_ns()).captured_frames + frames
        self.until(lambda: stream.stats(time.monotonic_ns()).captured_frames >= enough)

    def end(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        for one in self.all:
            assert one.drain(deadline) == []
        for one in self.all:
            assert one.close(deadline) == []
        self.poll()
        self.ended = {one.name: one.stats(0) for one in self.all}
        for one in self.all:
            assert self.ended[one.name].sinks[0].in_flight_frames == 0, self.ended[one.name]
            one.dispose()
        self.all.clear()


@pytest.fixture
def streams(tmp_path: Path, fakecard: FakeCard) -> Iterator[Streams]:
    forkserver.shared.end()  # the next one finds the card by the environment
    one = Streams(tmp_path)
    yield one
    for left in one.all:
        left.process.abandon()
    forkserver.shared.end()


@pytest.fixture
def other(tmp_path: Path, fakecard_plugin: Path, fakecard: FakeCard) -> FakeCard:
    return FakeCard(tmp_path, "other", plugin=fakecard_plugin)


def numbers(folder: Path) -> list[list[int]]:
    """The frame numbers in each file, in order."""
    files = sorted(one for one in folder.iterdir() if one.suffix in (".wav", ".flac"))
    found = []
    for file in files:
        heard = soundfile.read(file, dtype="int16", always_2d=True)[0].view(np.uint16)
        found.append((heard[:, 0].astype(np.int64) | heard[:, 1].astype(np.int64) << 16).tolist())
    return found


def test_the_sound_is_taken_in_by_its_own_process(streams: Streams, fakecard: FakeCard) -> None:
    """Every frame is in the file, the books are those of the process, and main has opened nothing
    and loaded no library for sound."""
    stream = streams.start(fakecard, "mic")
    streams.flow(stream)
    pid = stream.process.pid
    assert pid is not None and pid != os.getpid()
    assert Path(f"/proc/{pid}/comm").read_text() == "stream:mic\n"
    streams.until(lambda: stream.stats(0).opens)
    stats = stream.stats(time.monotonic_ns())
    assert (stats.health, stats.trouble, stats.opens) == ("OK", None, 1)
    streams.end()
    (file,) = numbers(streams.folder / "mic")
    ended = streams.ended["mic"]
    assert len(file) == ended.captured_frames == ended.sinks[0].delivered_frames
    assert set(np.diff(file)) == {1}


def test_main_looks_closely_at_a_stream_where_anything_is_new(
    streams: Streams, fakecard: FakeCard
) -> None:
    """It is calm while sound comes into its ring and no process has called; not while a sink, a
    chain or a release is under way, nor once its process stands still."""
    stream = streams.start(fakecard, "mic")
    streams.flow(stream)

    def asked() -> bool:
        """Once more has come."""
        before, deadline = stream._present.published, time.monotonic() + PATIENCE_S
        while stream._present.published == before:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return stream.is_calm()

    streams.until(asked)
    stream.process.page.words[CALLS] += 1
    assert not asked()
    streams.until(asked)
    new: list[tuple[Any, Any, Any]] = [
        (stream._live, "live", SimpleNamespace(is_calm=lambda: False)),
        (stream._parting.sinks, "gone", None),
        (stream._released, "desktop", "left to pulseaudio"),
    ]
    for parts, name, part in new:
        parts[name] = part
        assert not asked()
        del parts[name]
        streams.until(asked)
    stream._chain = cast("Chaining", SimpleNamespace(is_hosted=False))
    assert not asked()
    stream._chain = None
    streams.until(asked)
    assert stream.process.pid is not None
    os.kill(stream.process.pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE_S
    while stream.is_calm():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(stream.process.pid, signal.SIGCONT)
    streams.until(asked)
    streams.end()


def test_a_killed_process_costs_its_own_stream_alone(
    streams: Streams, fakecard: FakeCard, other: FakeCard
) -> None:
    """At random moments: the other loses nothing; its own frame index goes on, what is missing is
    one estimated gap each, and every frame in its files lies where the books say."""
    mic, well = streams.start(fakecard, "mic"), streams.start(other, "well")
    streams.flow(mic)
    streams.flow(well)
    dice = random.Random(5)
    rounds = counts(4, 30)
    for _ in range(rounds):
        streams.flow(mic, dice.randrange(480, 9600))
        pid, opens = mic.process.pid, mic.stats(0).opens
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        streams.until(lambda opens=opens: mic.stats(0).opens > opens)  # type: ignore[misc]
        streams.flow(mic)
    streams.end()
    assert streams.ended["well"].lost_frames == 0 and streams.troubles["well"] == []
    assert set(streams.troubles["mic"]) == {
        "its process was ended by SIGKILL; a new one is starting"
    }
    gaps = [one for one in streams.gaps["mic"] if one.cause is Cause.PROCESS]
    assert len(gaps) == rounds and not any(gap.exact for gap in gaps)
    lost = sum(one.frames for one in streams.gaps["mic"])
    assert lost == streams.ended["mic"].lost_frames
    assert lost == pytest.approx(fakecard.frames_lost, abs=480 * rounds)
    files = numbers(streams.folder / "mic")
    assert all(set(np.diff(file)) <= {1} for file in files)  # one may hold a single frame
    heard = [number for file in files for number in file]
    assert len(set(heard)) == len(heard)


def test_a_loss_that_nobody_was_told_of_is_in_the_books(
    streams: Streams, fakecard: FakeCard
) -> None:
    """The process is killed between a loss and its next report: the gap is there all the same, with
    its place, its cause and its length, once."""
    stream = streams.start(fakecard, "mic")
    for _ in range(rounds := counts(3, 20)):
        streams.flow(stream)
        pid, opens, told = stream.process.pid, stream.stats(0).opens, len(streams.gaps["mic"])
        assert pid is not None
        lost = stream.stats(0).lost_frames
        fakecard.overrun()
        deadline = time.monotonic() + PATIENCE_S
        while stream.stats(0).lost_frames == lost:  # read from the ring; no report is heard
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        streams.until(lambda opens=opens: stream.stats(0).opens > opens)  # type: ignore[misc]
        streams.flow(stream)
        overrun, died = streams.gaps["mic"][told:]
        assert (overrun.cause, died.cause) == (Cause.OVERRUN, Cause.PROCESS)
        assert overrun.first_frame + overrun.frames <= died.first_frame
        assert overrun.at_ns < died.at_ns
    streams.end()
    ended, gaps = streams.ended["mic"], streams.gaps["mic"]
    assert sum(gap.frames for gap in gaps) == ended.lost_frames
    assert len(gaps) == ended.gaps == 2 * rounds
    assert ended.lost_estimated_frames == sum(gap.frames for gap in gaps if not gap.exact)


@pytest.mark.parametrize("killed", ["before", "in time", "unasked", "afterwards"])
def test_a_sink_that_is_to_leave_does_so_also_where_its_process_dies(
    streams: Streams, fakecard: FakeCard, killed: str
) -> None:
    """Killed before main changes the sink, and main knows it or does not; or with the order unread;
    or just after it was read. The sink has left, with books that say what is in its files; another
    of its name goes on with books of its own."""
    stream = streams.start(fakecard, "mic", gaps="skip")
    dice = random.Random(11)
    for number in range(counts(4, 30)):
        streams.flow(stream, dice.randrange(480, 48_000))
        config, pid, opens = stream.config, stream.process.pid, stream.stats(0).opens
        assert pid is not None
        (sink,) = config.sink
        assert isinstance(sink, FileSinkConfig)
        wanted = config._replace(sink=(sink._replace(segment_s=100 + number),))
        stream.retry_now()
        stream.process.wait(PATIENCE_S)  # there is a report, which main has not heard
        if killed == "before":
            os.kill(pid, signal.SIGKILL)
            streams.until(lambda pid=pid: stream.process.pid != pid)  # type: ignore[misc]
        elif killed == "in time":
            os.kill(pid, signal.SIGKILL)
            assert gone(pid)
        elif killed == "unasked":
            os.kill(pid, signal.SIGSTOP)
        stream.exchange(wanted)
        assert stream.leaving == ["disk"]
        (fresh,) = stream.stats(0).sinks
        assert (fresh.state, fresh.since_frame, fresh.captured_frames) == ("opening", None, 0)
        if killed == "afterwards":
            time.sleep(dice.random() * 0.02)
        if killed in ("unasked", "afterwards"):
            os.kill(pid, signal.SIGKILL)
        streams.until(
            lambda opens=opens: stream.stats(0).opens > opens and not stream.leaving  # type: ignore[misc]
        )
        assert len(streams.left["mic"]) == number + 1
    streams.flow(stream)
    streams.end()
    there = [frame for file in numbers(streams.folder / "mic") for frame in file]
    assert len(set(there)) == len(there)
    books = [*streams.left["mic"], *streams.ended["mic"].sinks]
    assert all(one.balanced and not one.in_flight_frames for one in books)
    delivered = sum(one.delivered_frames for one in books)
    begun = 480 if killed == "afterwards" else 0  # by the next one, of which main had not heard yet
    most = delivered + len(books) * (UNDER_WAY["wav"] + begun)
    assert delivered <= len(there) <= most
    joined = [one.since_frame for one in books if one.since_frame is not None]
    assert joined == sorted(set(joined))


@pytest.mark.parametrize("how", ["wav", "flac", "spooled", "away"])
def test_the_books_of_a_sink_outlast_its_process(
    streams: Streams, fakecard: FakeCard, how: str
) -> None:
    """Killed at random moments: each frame that counts as delivered is in a file, once; what waited
    in a spool comes; at the end each is delivered or dropped, and of those that are dropped no
    more is in a file after all than what was under way at each kill. What a person sees to be
    delivered never becomes less."""
    how_spooled = SpoolConfig(str(streams.folder / "spool")) if how in ("spooled", "away") else None
    folder = streams.folder / "mic"
    if how == "away":
        folder.write_text("in the way")
    container = "flac" if how == "flac" else "wav"
    stream = streams.start(
        fakecard, "mic", container=container, gaps="skip", spool=how_spooled, queue_ms=20_000
    )
    most = spooled = 0

    def flows(frames: int) -> bool:
        nonlocal most, spooled
        (sink,) = stream.stats(time.monotonic_ns()).sinks
        assert sink.delivered_frames >= most and sink.balanced
        assert min(sink.dropped_frames, sink.in_flight_frames) >= 0
        most = sink.delivered_frames
        spooled = sink.figures.get("spool", {}).get("spooled_frames", 0)
        return sink.captured_frames >= frames and (how != "away" or spooled > 0 or frames == 0)

    dice, end = random.Random(7), 0
    rounds = counts(3, 20)
    for _ in range(rounds):
        end += dice.randrange(9600, 120_000)
        streams.until(lambda end=end: flows(end))  # type: ignore[misc]
        pid, opens = stream.process.pid, stream.stats(0).opens
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        streams.until(lambda opens=opens: flows(0) and stream.stats(0).opens > opens)  # type: ignore[misc]
    if how == "away":
        assert most == 0
        waited = spooled
        folder.unlink()
        streams.until(lambda: flows(0) and most >= waited > 0)
    streams.flow(stream, 48_000)
    streams.end()
    (sink,) = streams.ended["mic"].sinks
    there = [number for file in numbers(folder) for number in file]
    assert len(set(there)) == len(there)
    assert sink.delivered_frames + sink.dropped_frames == sink.captured_frames
    assert (
        sink.delivered_frames <= len(there) <= sink.delivered_frames + rounds * UNDER_WAY[container]
    )


def test_what_a_sink_has_delivered_is_seen_at_once(streams: Streams, fakecard: FakeCard) -> None:
    """Main looks where the process writes it down, and need not be told. What cannot be is not
    believed."""
    stream = streams.start(fakecard, "mic")
    streams.flow(stream)

    def delivered() -> int:
        (sink,) = stream.stats(time.monotonic_ns()).sinks
        assert sink.balanced
        return sink.delivered_frames

    before, deadline = delivered(), time.monotonic() + PATIENCE_S
    while delivered() <= before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    streams.poll()
    assert stream.process.pid is not None
    os.kill(stream.process.pid, signal.SIGSTOP)
    words, at, told = stream.process.page.words, stream._last.words["disk"], stream._last.stats
    right = words[at]
    for wrong in (-1, 0, told.captured_frames + 2**40, 2**63 - 1):
        words[at] = wrong
        assert delivered() == told.sinks[0].delivered_frames
    words[at] = right
    assert stream._report is not None
    for place in (0, 1, CALLS, CALLS + 1, -9):
        stream._report.words["disk"] = place
        assert delivered() == told.sinks[0].delivered_frames
    stream._report.words["disk"] = at
    os.kill(stream.process.pid, signal.SIGCONT)
    streams.end()


@pytest.mark.parametrize("fault", ["hangs", "aborts"])
def test_an_open_that_does_not_come_back_costs_its_own_stream_alone(
    streams: Streams,
    fakecard: FakeCard,
    other: FakeCard,
    fault: str,
) -> None:
    """The other loses nothing, and when the card is well again there is sound, though that call
    never comes back."""
    mic, well = streams.start(fakecard, "mic"), streams.start(other, "well")
    streams.flow(mic)
    streams.flow(well)
    fakecard.open_fault(fault)
    fakecard.disconnect()
    streams.until(lambda: streams.troubles["mic"])
    fakecard.reconnect()
    if fault == "aborts":
        streams.until(lambda: len(streams.troubles["mic"]) > 1)
    streams.flow(well, 3 * 48_000)
    fakecard.open_fault()
    streams.flow(mic)
    streams.end()
    assert streams.ended["well"].lost_frames == 0 and streams.troubles["well"] == []
    told = " ".join(streams.troubles["mic"])
    assert ("SIGABRT" if fault == "aborts" else "hung while opening the device") in told
    assert streams.ended["mic"].lost_frames == pytest.approx(fakecard.frames_lost, abs=960)


def test_a_thread_that_stands_still_is_ended(streams: Streams, fakecard: FakeCard) -> None:
    """A process that is stopped as a whole shows no sign of life; another goes on."""
    stream = streams.start(fakecard, "mic")
    streams.flow(stream)
    pid = stream.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    streams.until(lambda: stream.process.pid not in (pid, None))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    streams.flow(stream)
    streams.end()
    assert "did not respond for 10 s" in " ".join(streams.troubles["mic"])


def test_release_and_resume(streams: Streams, fakecard: FakeCard) -> None:
    """It rests only once the card is closed, also for a process that has just begun."""
    stream = streams.start(fakecard, "mic")
    streams.flow(stream)
    stream.release("operator", "released to others")
    assert not stream.rests
    streams.until(lambda: stream.rests)
    assert stream.stats(0).released == "released to others"
    pid = stream.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    streams.until(lambda: stream.process.pid not in (pid, None))
    streams.until(lambda: stream.rests)
    opens = fakecard.opens
    stream.resume("operator")
    streams.flow(stream)
    assert fakecard.opens == opens + 1
    streams.end()
    assert {one.cause for one in streams.gaps["mic"]} <= {Cause.RELEASED, Cause.PROCESS}
