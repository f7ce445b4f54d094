"""`systemctl reload`: what differs is put into force, and nothing else notices.

First the plan, for any two configurations; then streams that run, with the threads and files they
have in the daemon, and a signal whose frame n sounds as n; then the daemon itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.accounting.ledger import Ledger
from capstand.audio.block import Block
from capstand.capture.synthetic import VirtualTime
from capstand.capture.types.synthetic import FaultConfig, SyntheticConfig
from capstand.config import plan
from capstand.config import schema as config
from capstand.config.controls import Setting
from capstand.config.schema import CaptureConfig, Config, SpoolConfig, StreamConfig
from capstand.errors import CapstandError
from capstand.host.logs import RepeatFilter, log
from capstand.host.notify import Notifier
from capstand.host.peer import Peer
from capstand.service import running
from capstand.service.display import LiveLine
from capstand.service.reload import Reload
from capstand.service.reporter import Reporter
from capstand.service.service import Service
from capstand.sinks.recording.segment import Segment
from capstand.sinks.sink import Event
from capstand.sinks.sink_queue import SinkQueue
from capstand.sinks.types.agora import AgoraSinkConfig
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream import handover
from capstand.stream.handover import SinkSnapshot
from capstand.stream.intake import Intake
from tests.counts import counts
from tests.fakecard import FakeCard
from tests.fakecard.mixer import Mixer
from tests.figures import figure
from tests.line import Keep, Line, capture
from tests.patience import PATIENCE_S
from tests.service.test_service import Daemon

APP_ID = "0123456789abcdef0123456789abcdef"


# The plan

SINKS: st.SearchStrategy[FileSinkConfig | AgoraSinkConfig] = st.sampled_from(
    [
        *(
            FileSinkConfig("file", path, segment_s=length_s)
            for path in ("/a", "/b", "/a/")
            for length_s in (60.0, 90.0)
        ),
        *(AgoraSinkConfig("agora", APP_ID, channel) for channel in ("studio", "hall")),
    ]
)
CAPTURES = st.sampled_from(
    [
        CaptureConfig("hw:0"),
        CaptureConfig("hw:0", controls=(("Mic", Setting("80%")),)),
        CaptureConfig("hw:1"),
        CaptureConfig("hw:1", channels=1),
    ]
)
STREAMS = st.builds(
    lambda capture, sinks: StreamConfig(
        "mic", capture, tuple(sink._replace(name=name) for name, sink in sinks.items())
    ),
    CAPTURES,
    st.dictionaries(st.sampled_from(["x", "y", "z"]), SINKS, min_size=1),
)
CONFIGS = st.dictionaries(st.sampled_from(["mic", "room", "hall"]), STREAMS).map(
    lambda named: Config(tuple(stream._replace(name=name) for name, stream in named.items()))
)


@settings(max_examples=100, deadline=None)
@given(old=CONFIGS, new=CONFIGS)
def test_the_plan_leads_from_any_configuration_to_any_other(old: Config, new: Config) -> None:
    """Carried out, the plan makes the new configuration of the old one; what is the same in both
    is in no part of it, and a stream is taken down only if it is gone or its capture changed by
    more than the card's controls. Those leave its sinks alone."""
    todo = plan.plan(old, new)
    before = {one.name: one for one in old.stream}
    running = dict(before)
    for name in todo.stop:
        del running[name]
    for stream in todo.start:
        assert stream.name not in running
        running[stream.name] = stream
    for stream in todo.exchange:
        change = plan.sink_plan(running[stream.name], stream)
        assert set(change.kept) | set(change.removed) == set(running[stream.name].sink)
        assert set(change.kept) | set(change.added) == set(stream.sink)
        assert not set(change.kept) & (set(change.removed) | set(change.added))
        assert set(change.kept) == set(running[stream.name].sink) & set(stream.sink)
        controls = stream.capture.controls
        capture = running[stream.name].capture._replace(controls=controls)
        running[stream.name] = StreamConfig(stream.name, capture, stream.sink)
    assert running == {one.name: one for one in new.stream}

    touched = {*todo.stop, *(one.name for one in (*todo.start, *todo.exchange))}
    for stream in new.stream:
        assert (stream.name in touched) == (before.get(stream.name) != stream)
        captures = [one.capture for one in (before.get(stream.name), stream) if one]
        if len({one._replace(controls=()) for one in captures}) < len(captures):
            assert stream.name not in todo.stop
    told = plan.describe(old, new)
    assert sorted(line.split(":")[0] for line in told) == sorted(touched)


@given(old=STREAMS, new=STREAMS)
def test_a_sink_waits_for_the_one_that_leaves_its_place(
    old: StreamConfig, new: StreamConfig
) -> None:
    """Of two sinks with one directory, or one channel and uid, the new one opens second."""
    change = plan.sink_plan(old, new)
    for sink in change.added:
        for gone in change.removed:
            assert isinstance(sink, FileSinkConfig | AgoraSinkConfig)
            assert isinstance(gone, FileSinkConfig | AgoraSinkConfig)
            same = type(sink) is type(gone) and (
                sink.path.rstrip("/") == gone.path.rstrip("/")
                if isinstance(sink, FileSinkConfig) and isinstance(gone, FileSinkConfig)
                else sink[2:4] == gone[2:4]  # channel and uid
            )
            assert (gone in change.before(sink)) == same


def test_a_recording_that_moves_waits_for_its_spool() -> None:
    """A sink whose directory changes keeps the folder of its spool, and two may not use it."""
    there, other = SpoolConfig("/spool"), SpoolConfig("/other")
    old = StreamConfig(
        "mic", CaptureConfig("hw:0"), (FileSinkConfig("file", "/a", "disk", spool=there),)
    )
    for sink, waits in (
        (FileSinkConfig("file", "/b", "disk", spool=there._replace(path="/spool/")), True),
        (FileSinkConfig("file", "/b", "disk", spool=other), False),
        (FileSinkConfig("file", "/b", "more", spool=there), False),
        (FileSinkConfig("file", "/b", "disk"), False),
    ):
        change = plan.sink_plan(old, old._replace(sink=(sink,)))
        assert change.before(sink) == list(old.sink if waits else ())


# The exchange of sinks, turn by turn

TURNS = st.lists(
    st.tuples(
        st.sampled_from(["capture", "capture", "push", "deliver", "exchange"]), st.integers(1, 40)
    ),
    min_size=5,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(turns=TURNS, every_s=st.sampled_from([0.0, 1.0]), queue_ms=st.sampled_from([100, 100_000]))
def test_sinks_come_and_go_at_any_moment(
    turns: list[tuple[str, int]], every_s: float, queue_ms: int
) -> None:
    """Whenever one sink takes another's place, through losses and a full ring, the books of each
    balance after every turn, and the blocks of all of them, one after the other, are those that the
    sink got which was always there."""
    fault = FaultConfig(kind="overrun", at_s=0.3, for_s=0.5, every_s=every_s)
    setup = SyntheticConfig(signal="counter", faults=(fault,))
    card = capture(rate_hz=8000, format="S32_LE", channels=1, buffer_ms=100.0, source=setup)
    always, one = Keep(), Keep()
    line = Line(card, [always, one], VirtualTime(), queue_frames=1 << 30)
    stream, others = line.stream, [one]
    left: list[SinkQueue] = []
    for turn, times in turns:
        if turn == "exchange":
            gone = stream.sink_queues[1]
            left.append(gone)
            others.append(Keep())
            fresh = SinkQueue("sink1", others[-1], queue_ms * 8)
            fresh.since = None
            stream.sink_queues = [stream.sink_queues[0], fresh]
            stream.pusher.exchange(stream.sink_queues, 0)
            assert line.stats().balanced
            line.push()
            gone.try_open()
            assert gone.feed()
            continue
        for _ in range(times):
            getattr(line, turn)()
            assert line.stats().balanced
    line.push()
    line.deliver()
    stats = line.stats()
    assert stats.balanced
    books = [SinkSnapshot.of(gone).stats(stats.captured_frames, 8000, 0) for gone in left]
    books.append(stats.sinks[1])
    assert all(each.balanced for each in books)
    assert sum(each.captured_frames for each in books) == stats.captured_frames
    starts = [each.since_frame for each in books]
    assert starts == sorted(starts, key=lambda frame: frame or 0)
    if not any(each.overflowed for each in (stream.sink_queues[1], *left)):
        assert [block for keep in others for block in keep.blocks] == always.blocks


# Streams that run


def stream_text(name: str, *sinks: str, device: str = "synthetic", **keys: object) -> str:
    lines = [
        f'[[stream]]\nname = "{name}"\n[stream.capture]\ndevice = "{device}"',
        "rt_priority = 0",
    ]
    keys = {"buffer_ms": 10_000} | keys  # a busy machine stands still, which is not the matter here
    lines += ['format = "S32_LE"', *(f"{key} = {json.dumps(keys[key])}" for key in keys)]
    if "channels" not in keys:
        lines.append("channels = 1")
    if device == "synthetic":
        lines.append('[stream.capture.synthetic]\nsignal = "counter"')
    return "\n".join([*lines, *sinks]) + "\n"


def sink_text(name: str, path: Path, **keys: object) -> str:
    more = "".join(f"\n{key} = {json.dumps(keys[key])}" for key in keys)
    return (
        f'[[stream.sink]]\ntype = "file"\nname = "{name}"\npath = "{path}"\nmin_free_mb = 0{more}'
    )


class Running:
    """The streams of a configuration with all their threads, and the reload in this one."""

    def __init__(self, folder: Path, text: str) -> None:
        self.path = folder / "capstand.toml"
        self.path.write_text(text)
        loaded = config.load(self.path)
        state = folder / "state"
        self.ledger = Ledger(state / "ledger")
        self.streams: list[running.Running] = [Intake(one, state) for one in loaded.stream]
        self.reporters = {one.name: Reporter(one.config, self.ledger) for one in self.streams}
        self.begun: list[tuple[str, int]] = []
        self.reload = Reload(
            self.path,
            loaded,
            self.streams,
            self.reporters,
            state,
            self.ledger,
            Notifier(),
            self.begins,
            Intake,
        )
        for stream in self.streams:
            self.reporters[stream.name].begin()
            stream.start()

    def __getitem__(self, name: str) -> Intake:
        stream = next(one for one in self.streams if one.name == name)
        assert isinstance(stream, Intake)
        return stream

    def begins(self, fresh: Sequence[running.Running]) -> None:
        assert set(fresh) <= set(self.streams)
        self.begun += [(one.name, self[one.name].capturer.opens) for one in fresh]

    def turn(self) -> None:
        """What main does again and again."""
        self.reload.poll()
        for stream in self.streams:
            report = stream.report(time.monotonic_ns())
            assert report.stats.balanced, report
            self.reporters[stream.name].update(report)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, [stream.stats(0) for stream in self.streams]
            self.turn()
            time.sleep(0.002)

    def change(self, text: str) -> list[str]:
        """Reloads this; returns the faults, or what was told."""
        self.path.write_text(text)
        number = self.reload.ask()
        self.until(lambda: self.reload.done == number)
        return self.reload.refused or self.reload.changes

    def hear(self, name: str, milliseconds: int = 60) -> None:
        """Until the stream's sinks were given so much more."""
        pusher = self[name].pusher
        enough = pusher.captured + milliseconds * 48
        self.until(lambda: pusher.captured >= enough)

    def end(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        drained = [stream.drain(deadline) for stream in self.streams]
        self.reload.close(deadline)
        for stream, hung in zip(self.streams, drained, strict=True):
            late = stream.close(deadline)
            self.reporters[stream.name].end(stream.report(time.monotonic_ns()), hung + late)
            stream.dispose()
        self.streams.clear()
        self.ledger.close(PATIENCE_S)

    def events(self, name: str, kind: str) -> list[dict[str, Any]]:
        """Once the ledger's thread has written what it was given until now."""
        deadline = time.monotonic() + PATIENCE_S
        while any(book.waiting for book in tuple(self.ledger._books.values())):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        lines = self.ledger.path(name).read_text().splitlines()
        return [one for one in map(json.loads, lines) if one["event"] == kind]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[str], Running]]:
    made: list[Running] = []

    def make(text: str) -> Running:
        made.append(Running(tmp_path, text))
        return made[-1]

    yield make
    for one in made:
        if one.streams:
            one.end()


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What goes to the journal."""
    lines: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Listening()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lines
    log.removeHandler(handler)
    log.setLevel(level)


def recorded(*folders: Path) -> npt.NDArray[np.int64]:
    """The frame numbers in all recordings of these folders, sorted by where they begin."""
    files = [path for folder in folders for path in folder.iterdir()]
    assert {path.suffix for path in files} == {".wav"}, files
    heard = [soundfile.read(path, dtype="int32", always_2d=True)[0][:, 0] for path in files]
    heard.sort(key=lambda numbers: int(numbers[0]))
    return np.concatenate(heard).astype(np.int64)


def whole(numbers: npt.NDArray[np.int64]) -> bool:
    """Every frame is there, once and in order."""
    return bool((np.diff(numbers) == 1).all())


def open_files() -> list[str]:
    """What this process has open, by name."""
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            names.append(str(entry.readlink()))
    return names


def idents(stream: Intake) -> dict[str, int | None]:
    return {name: thread.ident for name, thread in stream._threads.items()}


def test_a_changed_sink_costs_no_frame(run: Callable[[str], Running], tmp_path: Path) -> None:
    """When one of two recordings moves to another directory, the capture, the frame index and the
    other go on in the same threads and the same file; of the one that moved, every frame is in the
    old file or in the new one, exactly once, and both have their books."""
    keep, old, new = (tmp_path / name for name in ("keep", "old", "new"))
    running = run(stream_text("mic", sink_text("keep", keep), sink_text("move", old)))
    running.hear("mic")
    threads = idents(running["mic"])
    told = running.change(stream_text("mic", sink_text("keep", keep), sink_text("move", new)))
    assert told == ["mic: sink move changed"]
    running.hear("mic")
    after = idents(running["mic"])
    assert {name: after[name] for name in after if name != "sink:move"} == {
        name: threads[name] for name in threads if name != "sink:move"
    }
    running.end()

    (stop,) = running.events("mic", "stop")
    (leave,) = running.events("mic", "sink_removed")
    (join,) = running.events("mic", "sink_added")
    assert len(list(keep.iterdir())) == len(list(old.iterdir())) == len(list(new.iterdir())) == 1
    assert whole(recorded(keep)) and len(recorded(keep)) == stop["captured_frames"]
    assert (recorded(old, new) == recorded(keep)).all()
    assert leave["end_frame"] == join["first_frame"] == leave["delivered_frames"]
    assert leave["balanced"] is stop["balanced"] is True
    first, second = stop["sinks"]
    assert (first["since_frame"], second["since_frame"]) == (0, join["first_frame"])
    assert second["captured_frames"] + leave["captured_frames"] == stop["captured_frames"]
    assert second["delivered_frames"] == second["captured_frames"]


def test_a_recording_that_stays_in_its_directory_is_ended_first(
    run: Callable[[str], Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where old and new sink share a directory, the new one opens when the old one has closed, or
    it would take the old one's file for one that a crash left behind; what is captured meanwhile
    waits, and not a frame is missing."""
    folder, held = tmp_path / "sound", threading.Event()
    running = run(stream_text("mic", sink_text("disk", folder)))
    running.hear("mic")
    old = running["mic"].sink_queues[0].sink
    close = old.close
    monkeypatch.setattr(old, "close", lambda: (held.wait(PATIENCE_S), close()))
    running.path.write_text(stream_text("mic", sink_text("other", folder, segment_s=60)))
    number = running.reload.ask()
    running.until(lambda: running["mic"].sink_queues[0].name == "other")
    (new,) = running["mic"].sink_queues
    running.until(lambda: new.entered > 48 * 300)
    assert (new.state, new.taken) == ("opening", 0)
    held.set()
    running.until(lambda: running.reload.done == number)
    running.hear("mic")
    running.end()
    (stop,) = running.events("mic", "stop")
    numbers = recorded(folder)
    assert len(list(folder.iterdir())) == 2
    assert whole(numbers) and len(numbers) == stop["captured_frames"]


def test_sinks_are_added_and_removed(run: Callable[[str], Running], tmp_path: Path) -> None:
    """An added sink begins with the next block, a removed one ends with a whole file; frames that
    both got are the same ones."""
    one, two = tmp_path / "one", tmp_path / "two"
    running = run(stream_text("mic", sink_text("one", one)))
    running.hear("mic")
    both = stream_text("mic", sink_text("two", two), sink_text("one", one))
    assert running.change(both) == ["mic: sink two new"]
    running.hear("mic")
    assert [sink.name for sink in running["mic"].stats(0).sinks] == ["two", "one"]
    told = running.change(stream_text("mic", sink_text("two", two)))
    assert told == ["mic: sink one removed"]
    assert whole(recorded(one))
    running.hear("mic")
    running.end()
    (stop,) = running.events("mic", "stop")
    assert [sink["name"] for sink in stop["sinks"]] == ["two"]
    first, second = recorded(one), recorded(two)
    assert whole(second) and first[0] < second[0] < first[-1] < second[-1]


def test_streams_are_added_and_removed(run: Callable[[str], Running], tmp_path: Path) -> None:
    """A new stream starts, a removed one stops with its last frame in its file and its books
    closed; the one beside them does not notice."""
    mic = stream_text("mic", sink_text("disk", tmp_path / "mic"))
    room, hall = (stream_text(n, sink_text("disk", tmp_path / n)) for n in ("room", "hall"))
    running = run(mic + room)
    running.hear("room")
    threads = idents(running["mic"])
    assert running.change(hall + mic) == ["room: removed", "hall: new"]
    assert [stream.name for stream in running.streams] == ["hall", "mic"]
    assert set(running.reporters) == {"hall", "mic"}
    assert idents(running["mic"]) == threads
    (stop,) = running.events("room", "stop")
    assert stop["balanced"] is True
    assert stop["sinks"][0]["delivered_frames"] == stop["captured_frames"]
    assert len(recorded(tmp_path / "room")) == stop["captured_frames"]
    running.hear("hall")
    running.end()
    assert whole(recorded(tmp_path / "mic")) and whole(recorded(tmp_path / "hall"))


def test_a_changed_device_touches_its_own_stream_alone(
    run: Callable[[str], Running],
    tmp_path: Path,
    fakecard: FakeCard,
    fakecard_plugin: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With two cards: the stream whose rate changed is taken down, its card let go and opened
    again; the other card is not opened a second time, and not a frame of it is missing."""
    other = FakeCard(tmp_path, "other", fakecard_plugin)
    mic = stream_text("mic", sink_text("disk", tmp_path / "mic"), device=fakecard.device)
    room = stream_text("room", sink_text("disk", tmp_path / "room"), device=other.device)
    running = run(mic + room)
    running.hear("mic")
    running.hear("room")
    slower = stream_text(
        "room", sink_text("disk", tmp_path / "room"), device=other.device, rate_hz=44100
    )
    told = running.change(mic + slower)
    assert told == ["room: restarted, because its capture changed"]
    running.hear("mic")
    running.hear("room")
    assert (fakecard.opens, other.opens) == (1, 2)
    running.end()
    assert fakecard.frames_lost == 0
    assert whole(recorded(tmp_path / "mic"))
    assert [event["balanced"] for event in running.events("room", "stop")] == [True, True]
    rates = {soundfile.info(path).samplerate for path in (tmp_path / "room").iterdir()}
    assert rates == {44100, 48000}


def test_other_channels_are_picked_by_a_reload(
    run: Callable[[str], Running], tmp_path: Path, fakecard: FakeCard
) -> None:
    """A changed pick opens the card anew, and the recordings then have as many channels."""
    fakecard.restrict(channels=(8, 8))
    keys = {"device": fakecard.device, "channels": 8}
    running = run(stream_text("mic", sink_text("disk", tmp_path / "a"), pick=[3], **keys))  # type: ignore[arg-type]
    running.hear("mic")
    wider = stream_text("mic", sink_text("disk", tmp_path / "a"), pick=[8, 1], **keys)  # type: ignore[arg-type]
    assert running.change(wider) == ["mic: restarted, because its capture changed"]
    running.hear("mic")
    running.end()
    assert [event["balanced"] for event in running.events("mic", "stop")] == [True, True]
    assert {soundfile.info(path).channels for path in (tmp_path / "a").iterdir()} == {1, 2}


def test_a_sink_changes_under_a_card_without_a_loss(
    run: Callable[[str], Running], tmp_path: Path, fakecard: FakeCard
) -> None:
    """On an ALSA device, too, the frames of the old and the new recording are all that the card
    delivered."""
    device = fakecard.device
    running = run(stream_text("mic", sink_text("a", tmp_path / "a"), device=device))
    for name in ("b", "c", "d"):
        running.hear("mic")
        running.change(stream_text("mic", sink_text(name, tmp_path / name), device=device))
    running.hear("mic")
    running.end()
    (stop,) = running.events("mic", "stop")
    numbers = recorded(*(tmp_path / name for name in "abcd"))
    assert fakecard.opens == 1 and fakecard.frames_lost == 0
    assert whole(numbers) and len(numbers) == stop["captured_frames"]


def test_a_cards_controls_change_under_sound(
    run: Callable[[str], Running],
    tmp_path: Path,
    fakecard: FakeCard,
    fakemixer: Mixer,
    said: list[str],
) -> None:
    """Without a frame lost or a sink touched; what the card then has, and what it has not, is a
    line in the journal each, once."""
    fakemixer.volume("Mic Capture Volume", 0, 7)
    fakemixer.switch("Auto Gain Control Playback Switch", True)

    def text(*settings: str) -> str:
        controls = "\n".join(["[stream.capture.controls]", *settings])
        return stream_text("mic", controls, sink_text("a", tmp_path / "a"), device=fakecard.device)

    running = run(text('Mic = "50%"'))
    running.hear("mic")
    pushers = idents(running["mic"])
    other = text('Mic = "100%"', '"Auto Gain Control" = false', "Boost = true")
    assert running.change(other) == ["mic: controls of the card changed"]
    running.until(lambda: any("Boost" in line for line in said))
    running.hear("mic")
    assert (fakemixer["Mic Capture Volume"], running.change(text())) == (
        [7, 7],
        ["mic: controls of the card changed"],
    )
    running.hear("mic")
    assert running["mic"].stats(0).controls is None and idents(running["mic"]) == pushers
    running.end()
    assert [line for line in said if "control " in line] == [
        "mic: control Mic set to 50%: was 0%, is 57%",
        "mic: control Mic set to 100%: was 57%, is 100%",
        "mic: control Auto Gain Control set to off: was on, is off",
        'mic: control Boost: the card has no such control; it has "Mic", "Auto Gain Control"',
    ]
    (stop,) = running.events("mic", "stop")
    assert fakecard.opens == 1 and stop["lost_frames"] == 0
    assert whole(recorded(tmp_path / "a"))


def test_a_wrong_file_changes_nothing_and_says_why(
    run: Callable[[str], Running], tmp_path: Path, said: list[str]
) -> None:
    """Every fault is a line in the journal; the status line begins with the first until the file is
    right; threads and files are those of before."""
    good = stream_text("mic", sink_text("disk", tmp_path / "mic"))
    running = run(good)
    running.hear("mic")
    threads = idents(running["mic"])
    wrong = good.replace("rt_priority = 0", "rt_priority = 99\nchanels = 2")
    faults = running.change(wrong)
    assert len(faults) == 2 and all(str(running.path) in fault for fault in faults)
    assert [line for line in said if "refused" in line] == [
        f"reload refused: {fault}" for fault in faults
    ]
    assert running.reload.status_prefix == f"reload refused: {faults[0]} (and 1 more) | "
    running.hear("mic")
    assert idents(running["mic"]) == threads
    running.path.unlink()
    number = running.reload.ask()
    running.until(lambda: running.reload.done == number)
    assert "cannot be read" in running.reload.status_prefix
    assert running.change(good) == []
    assert running.reload.status_prefix == ""
    running.end()
    assert whole(recorded(tmp_path / "mic")) and len(list((tmp_path / "mic").iterdir())) == 1


def test_requests_that_come_together_are_one(
    run: Callable[[str], Running], tmp_path: Path, said: list[str]
) -> None:
    """What is asked for while a reload is under way is done once, after it, with the file as it is
    then."""
    texts = [stream_text("mic", sink_text("disk", tmp_path / name)) for name in "abc"]
    running = run(texts[0])
    running.hear("mic")
    running.path.write_text(texts[1])
    running.reload.ask()
    running.until(lambda: bool(running.reload.changes))
    assert running.reload.status_prefix == ("reloading | " if running.reload.busy else "")
    running.path.write_text(texts[2])
    numbers = [running.reload.ask() for _ in range(5)]
    running.until(lambda: running.reload.done == numbers[-1])
    assert [line for line in said if line.startswith("reload: ")] == [
        "reload: mic: sink disk changed"
    ] * 2
    running.hear("mic")
    running.end()
    numbers_heard = recorded(*(tmp_path / name for name in "abc"))
    assert whole(numbers_heard)


def test_a_file_that_does_not_come_keeps_nobody_waiting(
    run: Callable[[str], Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a disk hangs main goes on; the reload is given up, another is refused until the first
    has come back, and then it is as ever."""
    running = run(stream_text("mic", sink_text("disk", tmp_path / "a")))
    hangs, load = threading.Event(), config.load

    def hang(path: Path) -> config.Config:
        hangs.wait(PATIENCE_S)
        return load(path)

    monkeypatch.setattr(config, "load", hang)
    running.reload.ask()
    assert not running.reload.poll()
    running.hear("mic")
    assert running.reload.busy
    monkeypatch.setattr("capstand.service.reload.READ_S", 0.0)
    again = stream_text("mic", sink_text("disk", tmp_path / "b"))
    running.reload._reading._deadline = 0.0  # type: ignore[union-attr]
    running.until(lambda: not running.reload.busy)
    assert running.reload.refused == [f"{running.path}: cannot be read: not done within 0 s"]
    assert running.change(again) == [
        f"{running.path}: cannot be read: an earlier reload is still waiting for it"
    ]
    hangs.set()
    monkeypatch.setattr("capstand.service.reload.READ_S", PATIENCE_S)
    running.until(lambda: not running.reload._late.is_alive())  # type: ignore[union-attr]
    assert running.change(again) == ["mic: sink disk changed"]


class Hanging(Keep):
    """A sink whose peer never comes back from a write, until the test ends."""

    def __init__(self) -> None:
        super().__init__()
        self.held = threading.Event()
        self.enough = threading.Event()

    def write(self, block: Block) -> None:
        self.held.set()
        self.enough.wait(PATIENCE_S)
        super().write(block)


def test_a_removed_sink_that_hangs_is_given_up_and_told(
    run: Callable[[str], Running],
    tmp_path: Path,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It holds up the reload for some seconds at most, what it held is booked as dropped, and the
    recording beside it goes on."""
    monkeypatch.setattr(handover, "LEAVE_S", 0.2)
    keep = sink_text("keep", tmp_path / "keep")
    running = run(stream_text("mic", keep))
    running.change(stream_text("mic", keep, sink_text("hang", tmp_path / "hang")))
    hanging = Hanging()
    running["mic"].sink_queues[1].sink = hanging
    running.until(hanging.held.is_set)
    told = running.change(stream_text("mic", keep))
    assert told == [
        "mic: sink hang removed",
        "mic: sink hang did not stop in time and was abandoned",
    ]
    assert any("sink hang did not stop in time" in line for line in said)
    running.hear("mic")
    hanging.enough.set()
    running.end()
    (leave,) = running.events("mic", "sink_removed")
    assert leave["balanced"] is True and leave["dropped_frames"] > 0
    assert whole(recorded(tmp_path / "keep"))


class LastWord(Hanging):
    """It can be let go of, and has something for the ledger when it closes."""

    def abandon(self) -> None:
        self.enough.set()

    def close(self) -> None:
        self.last = [("spool_begin", {"frames": 7})]

    def events(self) -> list[Event]:
        said, self.last = getattr(self, "last", []), []
        return said


def test_a_removed_sink_that_hangs_is_let_go_of(
    run: Callable[[str], Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would hang in its process for ever ends, before another takes its place for long; what
    a sink has to tell when it closes is in the ledger."""
    monkeypatch.setattr(handover, "LEAVE_S", 0.2)
    monkeypatch.setattr(handover, "ABANDON_S", PATIENCE_S)
    keep = sink_text("keep", tmp_path / "keep")
    running = run(stream_text("mic", keep, sink_text("hang", tmp_path / "hang")))
    sink_queue = running["mic"].sink_queues[1]
    hanging = sink_queue.sink = LastWord()
    running.until(hanging.held.is_set)
    running.change(stream_text("mic", keep))
    assert sink_queue.state == "closed"
    running.end()
    (leave,) = running.events("mic", "sink_removed")
    assert leave["balanced"] is True and leave["dropped_frames"] == leave["in_flight_frames"] == 0
    (begin,) = running.events("mic", "spool_begin")
    assert (begin["sink"], begin["frames"]) == ("hang", 7)


def test_a_new_stream_waits_for_the_one_that_ends(
    run: Callable[[str], Running], tmp_path: Path
) -> None:
    """A stream that starts anew begins when the old one has let go of everything; meanwhile the
    others go on."""
    room = stream_text("room", sink_text("disk", tmp_path / "room"))
    mic = sink_text("disk", tmp_path / "mic")
    running = run(stream_text("mic", mic) + room)
    hanging = Hanging()
    running["mic"].sink_queues[0].sink = hanging
    running.until(hanging.held.is_set)
    running.path.write_text(stream_text("mic", mic, period_ms=20) + room)
    number = running.reload.ask()
    running.hear("room")
    assert [stream.name for stream in running.streams] == ["room"] and running.reload.busy
    hanging.enough.set()
    running.until(lambda: running.reload.done == number)
    assert [stream.name for stream in running.streams] == ["mic", "room"]
    assert running.begun == [("mic", 0)]  # whoever reserves cards knows it before it opens one
    running.hear("mic")


def test_what_the_ring_dropped_before_is_not_the_new_sinks(
    run: Callable[[str], Running], tmp_path: Path
) -> None:
    """Frames that were dropped while the pusher was held up count for the sinks of that time."""
    running = run(stream_text("mic", sink_text("disk", tmp_path / "a"), buffer_ms=40))
    held = threading.Event()

    class Held:
        level_dbfs = peak_dbfs = None
        zeros_s = 0.0

        def update(self, samples: bytes) -> None:
            held.wait(PATIENCE_S)

    pusher, tally = running["mic"].pusher, running["mic"].capturer.tally
    pusher.meter = Held()  # type: ignore[assignment]
    full = (running["mic"].ring.slots + 1) * 480
    running.until(lambda: tally.captured > pusher.captured + full)
    held.set()
    running.until(lambda: pusher.captured == tally.captured)
    dropped = pusher.missed
    running.change(stream_text("mic", sink_text("disk", tmp_path / "b"), buffer_ms=40))
    running.hear("mic")
    running.end()
    (leave,) = running.events("mic", "sink_removed")
    (stop,) = running.events("mic", "stop")
    (new,) = stop["sinks"]
    assert leave["dropped_frames"] >= dropped > 0
    assert leave["dropped_frames"] + new["dropped_frames"] == pusher.missed
    assert leave["captured_frames"] + new["captured_frames"] == stop["captured_frames"]


def test_the_end_of_the_process_does_not_wait_for_a_reload(
    run: Callable[[str], Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop in the middle of a reload closes what was about to end and what goes on, and starts
    nothing any more."""
    mic = stream_text("mic", sink_text("disk", tmp_path / "a"))
    room = stream_text("room", sink_text("disk", tmp_path / "room"))
    running = run(mic + room)
    running.hear("room")
    running.path.write_text(
        stream_text("mic", sink_text("disk", tmp_path / "b"))
        + stream_text("hall", sink_text("disk", tmp_path / "hall"))
    )
    ending, told_to_stop = running["room"], threading.Event()
    drain = ending.drain

    def slowly(deadline: float) -> list[str]:
        told_to_stop.wait(PATIENCE_S)
        return drain(deadline)

    monkeypatch.setattr(ending, "drain", slowly)
    running.reload.ask()
    running.until(lambda: bool(running.reload._ending))
    told_to_stop.set()
    running.end()
    assert not (tmp_path / "hall").exists()
    assert [event["balanced"] for event in running.events("room", "stop")] == [True]
    assert len(running.events("mic", "sink_removed")) == len(running.events("mic", "stop")) == 1
    folders = [folder for folder in (tmp_path / "a", tmp_path / "b") if folder.exists()]
    assert whole(recorded(*folders))


def test_at_the_end_all_that_hang_are_let_go_of_together(
    run: Callable[[str], Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share the time that is left, since systemd kills a daemon that takes too long."""
    monkeypatch.setattr("capstand.stream.stream.ABANDON_S", PATIENCE_S)
    names = ["x", "y", "z"]
    running = run(stream_text("mic", *(sink_text(name, tmp_path / name) for name in names)))
    stream = running["mic"]
    let_go: list[Hanging] = []

    class Waiting(Hanging):
        def abandon(self) -> None:
            let_go.append(self)
            if len(let_go) == len(names):
                for one in let_go:
                    one.enough.set()

    sinks = [Waiting() for _ in names]
    for sink_queue, sink in zip(stream.sink_queues, sinks, strict=True):
        sink_queue.sink = sink
    running.until(lambda: all(one.held.is_set() for one in sinks))
    stream.drain(time.monotonic() + PATIENCE_S)
    assert stream.close(time.monotonic()) == ["sink x", "sink y", "sink z"]
    assert [one.abandoned for one in stream.sink_queues] == [0, 0, 0]


def test_at_the_end_a_slow_disk_is_waited_for_longer_than_a_channel(
    run: Callable[[str], Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a channel beside it hangs, and is let go of, a disk that takes seconds to write goes on
    to the last frame, though the time of the stop is over."""
    sinks = [sink_text(one, tmp_path / one) for one in ("x", "y")]
    running = run(stream_text("mic", *sinks))
    stream = running["mic"]
    let_go = threading.Event()

    class Channel(Hanging):
        def abandon(self) -> None:
            let_go.set()
            self.enough.set()

    def slowly(segment: Segment) -> int:
        assert let_go.wait(PATIENCE_S)
        return finish(segment)

    channel = Channel()
    stream.sink_queues[0].sink = channel
    running.hear("mic")
    finish = Segment.finish
    monkeypatch.setattr(Segment, "finish", slowly)
    running.until(channel.held.is_set)
    stream.drain(time.monotonic() + PATIENCE_S)
    assert stream.close(time.monotonic()) == ["sink x"]
    taken = stream.stats(time.monotonic_ns())
    assert taken.balanced
    assert [sink.dropped_frames for sink in taken.sinks] == [0, 0]
    numbers = recorded(tmp_path / "y")
    assert whole(numbers) and len(numbers) == taken.captured_frames


def in_use() -> tuple[int, int]:
    """Threads and eventfds of this process."""
    return threading.active_count(), open_files().count("anon_inode:[eventfd]")


def level(ground: tuple[int, int]) -> bool:
    """Fewer are no leak: some of an earlier test's may have been there at first."""
    return all(now <= before for now, before in zip(in_use(), ground, strict=True))


def test_reload_after_reload_under_sound(run: Callable[[str], Running], tmp_path: Path) -> None:
    """After a hundred reloads, a third of them with wrong files, not a frame is lost: the untouched
    recording is one whole file, those of the changing sink hold every frame once, and no thread,
    descriptor or stream of the ones that ended is left."""
    rounds = counts(102, 600)
    keep = sink_text("keep", tmp_path / "keep")
    gone: list[weakref.ref[object]] = []

    def text(number: int) -> str:
        move = sink_text("move", tmp_path / "move", segment_s=60 + number)
        room = sink_text("disk", tmp_path / f"room{number % 4}")
        return stream_text("mic", keep, move) + stream_text("room", room, period_ms=10 + number % 2)

    running = run(text(0))
    running.hear("mic")
    ground = (0, 0)
    for number in range(1, rounds + 1):
        if number % 3 == 0:
            faults = running.change(text(number).replace("channels", "chanels"))
            assert len(faults) == 2
            continue
        gone += [weakref.ref(running["room"]), weakref.ref(running["mic"].sink_queues[1])]
        assert len(running.change(text(number))) == 2
        if not all(ground):
            ground = in_use()
        running.until(partial(level, ground))
    running.hear("mic")
    assert [one() for one in gone if one() is not None] == []
    running.end()

    assert not [name for name in open_files() if name.startswith(str(tmp_path))]
    (stop,) = running.events("mic", "stop")
    assert stop["lost_frames"] == 0 and stop["balanced"] is True
    (_,) = (tmp_path / "keep").iterdir()
    kept, moved = recorded(tmp_path / "keep"), recorded(tmp_path / "move")
    assert whole(kept) and len(kept) == stop["captured_frames"]
    assert (moved == kept).all()
    assert len(running.events("mic", "sink_removed")) == rounds - rounds // 3
    figure(f"{rounds} reloads in one process, a third bad", f"0 of {len(kept)} frames lost")
    assert all(event["balanced"] for event in running.events("room", "stop"))


# The daemon

GOOD = """
[[stream]]
name = "mic"
[stream.capture]
device = "synthetic"
buffer_ms = 10000
[[stream.sink]]
type = "file"
path = "{folder}/{name}"
min_free_mb = 0
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(tmp_path, GOOD.format(folder=tmp_path, name="sound"))
    yield one
    one.close()


def told_usec(said: str) -> int:
    first, second = said.split("\n")
    assert first == "RELOADING=1" and second.startswith("MONOTONIC_USEC=")
    return int(second.partition("=")[2])


def test_sighup_is_a_reload_that_systemd_can_follow(daemon: Daemon) -> None:
    """SIGHUP is answered by RELOADING=1 with the time, then READY=1; a wrong file stands in STATUS
    until it is right again, and the sound goes on in one recording."""
    setup = daemon.folder / "capstand.toml"
    right = setup.read_text()
    daemon.hear("READY=1")
    daemon.hear("dBFS")
    setup.write_text(right + 'typo = "x"\n')
    before_usec = time.monotonic_ns() // 1000
    daemon.process.send_signal(signal.SIGHUP)
    assert before_usec <= told_usec(daemon.hear("RELOADING=1")) <= time.monotonic_ns() // 1000
    assert daemon.hear("READY=1") == "READY=1"
    line = daemon.hear("STATUS=reload refused: ")
    assert "typo: unknown key" in line and " | mic: 48000 Hz" in line
    setup.write_text(right)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.hear("RELOADING=1")
    daemon.hear("READY=1")
    daemon.hear("STATUS=mic: 48000 Hz")
    assert daemon.end() == 0
    (_,) = (daemon.folder / "sound").iterdir()
    assert daemon.ledger()[-1]["lost_frames"] == 0


def test_capstand_reload_waits_and_answers(daemon: Daemon) -> None:
    """`capstand reload` ends when the change is in force, with 0 and what changed, or with 78 and
    every fault; `capstand status` says that the file is wrong."""

    def ask(command: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "capstand", command, "--runtime", str(daemon.folder / "run")],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    setup = daemon.folder / "capstand.toml"
    daemon.hear("READY=1")
    assert ask("reload") == (0, "nothing changed\n", "")
    setup.write_text(GOOD.format(folder=daemon.folder, name="elsewhere"))
    assert ask("reload") == (0, "mic: sink file changed\n", "")
    (file,) = (daemon.folder / "sound").iterdir()
    assert file.suffix == ".wav"
    setup.write_text("[[stream]]\nnme = 1\n")
    status, out, err = ask("reload")
    assert (status, out) == (78, "") and f"{setup}:2: stream." in err and "nme: unknown key" in err
    status, out, err = ask("status")
    assert (status, err) == (0, "") and out.startswith(f"reload refused: {setup}")
    assert daemon.end() == 0
    status, _, err = ask("reload")
    assert status == 1 and "cannot reach the daemon" in err


def test_a_daemon_without_a_file_has_nothing_to_read_again(
    run: Callable[[str], Running], tmp_path: Path
) -> None:
    """A reload of `capstand run` without a configuration is refused with a reason."""
    running = run(stream_text("mic", sink_text("disk", tmp_path / "mic")))
    running.reload._path = None
    number = running.reload.ask()
    running.until(lambda: running.reload.done == number)
    assert running.reload.refused == [
        "capstand runs without a configuration file; start it with --config FILE"
    ]


def test_reload_is_for_root_and_the_daemons_own_user(tmp_path: Path) -> None:
    """Another user of the machine is refused with a reason, and nothing is read."""
    setup = tmp_path / "capstand.toml"
    setup.write_text(stream_text("mic", sink_text("disk", tmp_path)))
    service = Service(
        config.load(setup), tmp_path, tmp_path, LiveLine(wanted=False), RepeatFilter(), setup
    )
    with pytest.raises(CapstandError, match="reload needs root or the daemon's own user"):
        service.answer_reload({}, Peer(1, 4321, frozenset()))
    assert service.answer_reload({}, Peer(1, os.geteuid(), frozenset())) == {"reload": 1}
