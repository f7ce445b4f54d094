"""A live sink in a process of its own: what happens to it happens to it alone, and is in the books.

The process is real, and so is the ring; the test is the writer and, in ``until``, the daemon's main
thread. Blocks that are written while no process takes them are dropped: a live sink begins with the
present.
"""

import gc
import json
import logging
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from capstand.accounting.stats import SinkStats
from capstand.audio.block import AudioFormat, SampleFormat
from capstand.audio.ring import Reader, Ring
from capstand.audio.wake import Paced, WakeUp
from capstand.host import signals
from capstand.processes import forkserver
from capstand.processes.child import DaemonLink, _Fields
from capstand.processes.page import Doing
from capstand.processes.supervisor import LIMITS_S
from capstand.sinks.live import LiveSink, SinkFactory
from capstand.sinks.push import Push, SinkWord
from capstand.sinks.sink_queue import SinkQueue
from capstand.sinks.types.agora import AgoraSinkConfig
from capstand.stream.handover import SinkSnapshot
from capstand.stream.intake import Intake
from tests import line, peer
from tests.patience import PATIENCE_S, gone

FRAMES = 10
AUDIO = AudioFormat(48_000, 2, SampleFormat.S16_LE)
FRAME_BYTES = AUDIO.frame_bytes
SECRET = "0df1ad5e7c9b4e8aa2f0c1d3b5e79a6c"


class Rate:
    """A Pace."""

    ns_per_frame = 20833.25
    drift_ppm = 4.5
    settled = True


def samples(frame: int, frames: int) -> bytes:
    return random.Random(frame).randbytes(frames * FRAME_BYTES)


class Far:
    """A ring and one live sink that reads it."""

    def __init__(self, file: Path, plan: SinkFactory, limits_s: dict[Doing, float]) -> None:
        self.ring = Ring(64, 4000 * FRAME_BYTES)
        self.frame = self.captured = 0
        self.file = file
        self.sink = LiveSink("mic", "far", plan, self.ring, AUDIO, 0, LIMITS_S | limits_s)
        if plan.gather_frames:
            self.ring.wakes(paced=(Paced(self.sink.wake, plan.gather_frames),))
        else:
            self.ring.wakes(self.sink.wake)
        self.told: list[str] = []

    def write(self, frames: int = FRAMES, blocks: int = 1) -> None:
        for _ in range(blocks):
            self.ring.slot()[: frames * FRAME_BYTES] = samples(self.frame, frames)
            self.ring.publish(self.frame, frames, self.frame + 7, self.captured, Rate())
            self.frame += frames
            self.captured += frames

    def poll(self) -> None:
        self.sink.poll(time.monotonic_ns())
        trouble = self.sink.trouble
        if trouble is not None and trouble not in self.told[-1:]:
            self.told.append(trouble)
        books = self.books()
        assert books.balanced and min(books.delivered_frames, books.dropped_frames) >= 0

    def until(self, state: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        self.poll()
        while not state():
            assert time.monotonic() < deadline, (self.sink.state, self.told, self.books())
            time.sleep(0.005)
            self.poll()

    def open(self) -> None:
        self.until(lambda: self.sink.state == "open")

    def taken(self, frames: int) -> None:
        """Until so many frames have been taken, one way or the other."""
        self.until(lambda: self.sink.taken >= frames)

    def end(self) -> bool:
        self.sink.finish()
        return self.sink.join(time.monotonic() + PATIENCE_S)

    def books(self) -> SinkStats:
        return SinkSnapshot.of(self.sink).stats(self.captured, 48_000, 0)

    def got(self) -> list[peer.Got]:
        return peer.got(self.file)

    @property
    def pid(self) -> int:
        self.until(lambda: self.sink.process.pid)  # its page may show it before the forkserver does
        pid = self.sink.process.pid
        assert pid is not None
        return pid


Make = Callable[..., Far]


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Make]:
    """Makes a sink whose peer does what ``acts`` says, or of another plan."""
    made: list[Far] = []

    def make(
        acts: dict[int, str] | None = None, plan: SinkFactory | None = None, **limits_s: float
    ) -> Far:
        file = tmp_path / f"got{len(made)}"
        plan = plan or SinkFactory("tests.peer:Peer", (file, acts or {}, SECRET))
        made.append(Far(file, plan, {Doing[name]: limit for name, limit in limits_s.items()}))
        return made[-1]

    yield make
    for one in made:
        pid = one.sink.process.pid
        one.sink.force_close()
        one.sink.close()
        one.ring.close()
        assert pid is None or gone(pid)


def test_every_block_arrives_to_the_byte(far: Make) -> None:
    """Whatever its length, each block comes whole, once and in order, with its frame, its time, and
    what the stream's clock knows of the card's rate."""
    one = far()
    one.open()
    lengths = (1, 480, 3, 4000, 10)
    for frames in lengths:
        one.write(frames)
    assert one.end()
    got, frame = one.got(), 0
    for block, frames in zip(got, lengths, strict=True):
        assert (block.first_frame, block.captured_at_ns) == (frame, frame + 7)
        assert block.samples == samples(frame, frames)
        frame += frames
    pace = Rate.ns_per_frame, Rate.drift_ppm, Rate.settled
    assert {(block.ns_per_frame, block.drift_ppm, block.settled) for block in got} == {pace}
    books = one.books()
    assert (books.delivered_frames, books.dropped_frames, books.since_frame) == (frame, 0, 0)
    assert (one.sink.state, one.sink.trouble, one.told) == ("closed", None, [])


def test_a_wake_up_that_was_driven_to_its_end_wakes_the_next_process(far: Make) -> None:
    """Whatever a process before it did to the eventfd: it can be set again once this one joins."""
    one = far()
    os.eventfd_write(one.sink.wake.descriptor, 2**64 - 2)
    one.open()
    assert select.select([one.sink.wake], [], [], 0)[0] == []


def test_what_was_captured_before_it_joined_was_not_meant_for_it(far: Make) -> None:
    """To load and to join takes time; the books begin with the first frame that it could take."""
    one = far()
    one.write(blocks=20)
    one.poll()
    assert (one.books().since_frame, one.books().captured_frames) == (None, 0)
    one.open()
    since = one.frame
    one.write(blocks=3)
    assert one.end()
    books = one.books()
    assert (books.since_frame, books.captured_frames, books.delivered_frames) == (since, 30, 30)


def test_a_sink_may_want_more_than_a_block_at_once(far: Make, tmp_path: Path) -> None:
    """It is woken when so much is there, and gets that as one block; a gap ends it, and so does the
    end. What it is woken for waits for nothing: not even what is shorter because it joined in the
    middle."""
    file = tmp_path / "gathered"
    one = far(plan=SinkFactory("tests.peer:Peer", (file, {}, ""), 3 * FRAMES))
    one.write()  # before it joined
    one.open()
    one.write(blocks=2)
    one.taken(20)
    one.write(blocks=3)
    one.taken(50)
    one.write()
    one.frame += 5
    one.write(blocks=2)
    one.taken(80)
    one.write(blocks=2)
    assert one.end()
    got = [(block.first_frame, len(block.samples) // FRAME_BYTES) for block in peer.got(file)]
    assert got == [(10, 20), (30, 30), (60, 10), (75, 20), (95, 20)]
    assert one.books().delivered_frames == 100


def test_what_it_gets_first_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink that wants more than a block at once begins where what is gathered for it ends, so
    that its first push is as long as all others."""
    monkeypatch.setattr("capstand.sinks.push.IN_STEP_S", PATIENCE_S)
    ring, wake = Ring(64, FRAMES * FRAME_BYTES), WakeUp()
    ring.wakes(paced=(Paced(wake, 3 * FRAMES),))

    def write() -> None:
        frame = ring.published * FRAMES
        ring.publish(frame, FRAMES, frame, frame, Rate())

    write()
    write()
    descriptor = ring.open_for_reading()
    reader = Reader(descriptor, AUDIO)
    words = [0] * 64
    words[SinkWord.JOINED_FRAME] = -1
    link = cast(DaemonLink, SimpleNamespace(page=SimpleNamespace(words=words)))
    push = Push(link, reader, [wake.fileno()], 3 * FRAMES)
    later = threading.Timer(0.05, write)
    later.start()
    push._join()
    later.join()
    assert reader.next_frame == words[SinkWord.JOINED_FRAME] == 3 * FRAMES
    reader.close()
    os.close(descriptor)
    ring.close()


def test_how_the_sink_is_can_be_read_here(far: Make) -> None:
    """Detail, concern and figures are the sink's own; the frames it inserted are in its page, and
    never go back in a new process."""
    one = far({20: "exit 0"})
    assert (one.sink.detail, one.sink.concern) == ("not started yet", None)
    one.until(lambda: one.sink.detail == "0 blocks")
    assert one.sink.concern == "it is only a test"
    assert one.sink.figures(0) == {"secret_length": len(SECRET), "pid": one.pid}
    one.write(blocks=2)
    one.until(lambda: one.sink.inserted_frames == 2)
    one.until(lambda: one.sink.detail == "2 blocks")
    one.write()
    one.until(lambda: one.sink.failures)
    assert [one.sink.detail, one.sink.concern] == ["not running", None]
    one.open()
    one.write()
    assert one.end()
    assert (one.sink.detail, one.sink.inserted_frames) == ("1 blocks", 3)


def test_a_sink_is_calm_while_it_gets_on_and_does_not_call(far: Make) -> None:
    """Main looks closely at one that has not begun, stands still, or has told what cannot wait."""
    one = far({20: "busy 0"})
    assert not one.sink.is_calm()
    one.open()
    one.until(lambda: one.sink.process.is_calm)
    assert not one.sink.is_calm(), "it has delivered nothing yet"
    one.write()
    one.taken(FRAMES)
    assert one.sink.is_calm()
    assert not one.sink.is_calm(), "it stands still"
    one.write(blocks=2)
    deadline = time.monotonic() + PATIENCE_S
    while one.sink.process.is_calm:
        assert time.monotonic() < deadline, "it has called nobody"
        time.sleep(0.005)
    assert not one.sink.is_calm() and one.sink.trouble is None, "nobody has heard it yet"
    one.until(lambda: one.sink.trouble == "the peer is full")
    assert one.end()


def test_a_busy_sink_goes_on(far: Make) -> None:
    """What the sink took of a block it was too busy for is counted as delivered, and the process
    stays; its words are told, until it takes a block."""
    one = far({10: "busy 4", 20: "busy 0"})
    one.open()
    before = one.pid
    one.write(blocks=3)
    one.until(lambda: one.sink.trouble == "the peer is full")
    assert one.sink.state == "open"
    one.write()
    one.until(lambda: one.sink.trouble is None)
    assert one.pid == before and one.end()
    assert [len(block.samples) for block in one.got()] == [40, 16, 0, 40]
    assert (one.books().delivered_frames, one.books().dropped_frames) == (24, 16)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("fail", "the peer hung up"),
        ("kill", "its process was ended by SIGKILL; a new one is starting"),
        ("crash", "its process was ended by SIGSEGV; a new one is starting"),
        ("exit 5", "its process ended with status 5; a new one is starting"),
        ("bug", "KeyError: 'a bug' (at peer.py:"),
        ("babble", "its process sent an invalid reply and was killed; a new one is starting"),
        ("scribble", "its counters are inconsistent, and it was killed; a new one is starting"),
    ],
)
def test_what_ends_a_sink_is_told_and_healed(far: Make, act: str, words: str) -> None:
    """A refusal, a crash, an end, a bug, nonsense: it is told what it was, what was under way and
    what came until the next process joined is dropped, and that goes on with the present."""
    one = far({10: act})
    one.open()
    first = one.pid
    one.write(blocks=2)
    one.until(lambda: one.sink.failures)
    assert one.told[-1].startswith(words)
    assert (one.sink.failures, one.sink.state) == (1, "waiting")
    one.write(blocks=5)
    one.open()
    one.write(blocks=2)
    one.until(lambda: one.sink.trouble is None)
    assert one.end()
    assert [block.first_frame for block in one.got()] == [0, 70, 80]
    books = one.books()
    assert books.delivered_frames + books.dropped_frames == 90
    # Of books that make no sense only what was believed before counts.
    assert books.delivered_frames == 30 or (act, books.delivered_frames) == ("scribble", 20)
    assert one.got()[0].pid == first != one.got()[1].pid and gone(first)


def failed(one: Far, times: int) -> bool:
    return one.sink.failures >= times


def test_the_books_of_a_killed_process_go_on(far: Make) -> None:
    """Twenty kills at any moment: every frame is delivered or dropped, and what counts as delivered
    is what the peers got."""
    one = far()
    dice = random.Random(7)
    for _ in range(20):
        one.open()
        one.write(blocks=dice.randrange(1, 30))
        if dice.random() < 0.5:
            one.taken(one.sink.taken + FRAMES)
        os.kill(one.pid, signal.SIGKILL)
        deaths = one.sink.failures + 1
        one.until(partial(failed, one, deaths))
        one.sink.process.well()  # no longer a pause each time
    one.open()
    assert one.end()
    books = one.books()
    got = sum(len(block.samples) // FRAME_BYTES for block in one.got())
    assert books.delivered_frames + books.dropped_frames == books.captured_frames
    assert got - 20 * FRAMES <= books.delivered_frames <= got


@pytest.mark.parametrize("act", ["hang", "stop"])
def test_a_call_that_hangs_is_ended(far: Make, act: str) -> None:
    """A sink that does not come back from a call, or a process that shows itself no more, is killed
    when its time is over, and words say in which call it was."""
    one = far({0: act}, WRITING=0.2, WAITING=2.5)
    one.open()
    pid = one.pid
    if act == "stop":
        one.until(lambda: one.sink.process.page.doing[0] is Doing.WAITING)
        os.kill(pid, signal.SIGSTOP)
    else:
        one.write()
    one.until(lambda: one.sink.failures)
    done = (
        "did not respond for 2.5 s"
        if act == "stop"
        else ("did not return from writing within 0.2 s")
    )
    assert one.told == [f"its process {done} and was killed; a new one is starting"]
    assert gone(pid)


def test_one_that_is_too_slow_is_lapped(far: Make) -> None:
    """It misses what the ring had no room for, and goes on with the present; that is told apart
    from what its peer refused."""
    one = far()
    one.open()
    os.kill(one.pid, signal.SIGSTOP)
    one.until(lambda: ") T" in Path(f"/proc/{one.pid}/stat").read_text())
    one.write(blocks=200)
    os.kill(one.pid, signal.SIGCONT)
    one.until(lambda: one.sink.slow)
    assert one.end()
    books = one.books()
    assert books.dropped_frames == one.sink.slow > 1900 - 64 * FRAMES
    assert books.delivered_frames + books.dropped_frames == 2000
    assert one.got()[-1].first_frame == 1990


def test_what_cannot_be_made_is_told(far: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be imported, made, opened or started is told in words, and tried again."""
    for plan, words in (
        (
            SinkFactory("tests.nowhere:Peer", ()),
            "ModuleNotFoundError: No module named 'tests.nowhere'",
        ),
        (SinkFactory("tests.peer:Peer", ()), "TypeError: Peer.__init__() missing 3 "),
        (SinkFactory("tests.peer:Peer", (Path(), {-1: "fail"}, "")), "the peer hung up"),
        (
            SinkFactory("tests.peer:Peer", (Path(), {-1: "exit 9"}, "")),
            "its process ended with status 9;",
        ),
    ):
        one = far(plan=plan)
        one.until(partial(failed, one, 2))
        assert one.told[0].startswith(words)
        assert one.books().since_frame is None
    forkserver.shared.end()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    one = far()
    one.poll()
    words = "/nowhere/python cannot be started: No such file or directory; out of memory?"
    assert one.told == [words]


def test_what_a_sink_tells_of_itself_is_clean(far: Make) -> None:
    """Detail, concern, figures and errors of a sink may hold anything: lone surrogates, NUL, line
    ends, escapes, any number of values. What arrives is bounded and can be printed anywhere."""
    much = far(plan=SinkFactory("tests.peer:Loud", (2000,)))
    much.until(lambda: much.sink.concern is not None)
    assert list(much.sink.figures(0)) == ["pid"]
    one = far(plan=SinkFactory("tests.peer:Loud", (100,)))
    one.until(lambda: one.sink.concern is not None)
    for text in (one.sink.detail, one.sink.concern):
        assert text is not None and text.isprintable()
        assert text == "\\udcff\\x00 STOPPING=1\\x1b[2J\\u202e" + "x" * 300
    figures = one.sink.figures(0)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["nan"] is None and figures["text"] == one.sink.detail
    one.open()
    one.write()
    one.until(lambda: one.sink.failures)
    assert one.told[-1].isprintable() and len(one.told[-1]) < 3000


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[]",
        b"{]",
        b"\xff\xff",
        b'{"figures": 1}',
        b"[" * 100_000,
        b'{"figures": ' * 10_000,
        b'{"figures": {"x": ' + b"9" * 5000 + b"}}",
        b'{"detail": "\xff"}',
    ],
)
def test_a_message_is_checked(far: Make, said: bytes) -> None:
    """However it is abused, it is nonsense like any other, and its process goes."""
    one = far()
    one.open()
    supervised, pid = one.sink.process, one.pid
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setblocking(False)
    channel, supervised._channel = supervised._channel, here
    there.send(said)
    one.until(lambda: supervised.deaths or not said)
    there.close()
    assert channel is not None
    channel.close()
    assert not said or gone(pid)
    if said:
        assert one.told[-1] == (
            "its process sent an invalid reply and was killed; a new one is starting"
        )


@pytest.mark.parametrize("word", list(SinkWord))
@pytest.mark.parametrize("value", [-1, 1, 2**62, -(2**62)])
def test_books_that_cannot_be_are_not_believed(far: Make, word: SinkWord, value: int) -> None:
    """Whatever native code writes into the page, the books balance at every look and never shrink;
    what shows is a process that is ended."""
    one = far()
    one.open()
    one.write(blocks=5)
    one.taken(50)
    before = one.books()
    one.sink._words[word] += value
    for _ in range(3):
        one.poll()
        one.write()
    after = one.books()
    assert after.balanced
    assert after.delivered_frames >= before.delivered_frames
    assert after.dropped_frames >= before.dropped_frames
    assert after.since_frame == before.since_frame


def test_the_process_is_told_nothing_it_need_not_know(
    far: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No setting stands in command line or environment, where others can read it; systemd's socket
    and watchdog are the daemon's alone, and so is every other descriptor. ``ps`` shows whose sink
    it is."""
    for name in forkserver.NOT_TOLD:
        monkeypatch.setenv(name, "1")
    forkserver.shared.end()
    one = far()
    with (tmp_path / "open").open("w") as another:
        os.set_inheritable(another.fileno(), True)
        one.open()
        process = Path(f"/proc/{one.pid}")
        open_ones = [str(each.readlink()) for each in (process / "fd").iterdir()]
        assert another.name not in open_ones
        kinds = sorted(each.split(":")[0].split(" ")[0] for each in open_ones[3:])
        assert set(kinds) == {"/memfd", "anon_inode", "socket"} and kinds.count("socket") == 1
    flags = {
        (process / "fdinfo" / each.name).read_text().split()[3]
        for each in (process / "fd").iterdir()
        if "capstand-ring" in str(each.readlink())
    }
    assert {int(each, 8) & os.O_ACCMODE for each in flags} == {os.O_RDONLY}
    shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    assert SECRET.encode() not in shown and str(one.file).encode() not in shown
    assert not any(name.encode() in shown for name in forkserver.NOT_TOLD)
    assert (process / "comm").read_text() == "push:far\n"


def test_only_the_daemon_ends_it(far: Make) -> None:
    """Signals that a terminal or systemd sends to all processes at once do not end it: first what
    was captured is delivered."""
    one = far()
    one.open()
    pid = one.pid
    for number in (*signals.ENDING, signal.SIGHUP, *signals.IGNORED, signals.FIRST_REAL_TIME):
        os.kill(pid, number)
    one.write()
    assert one.end()
    assert len(one.got()) == 1 and gone(pid)


ORPHAN = """
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from capstand.audio.block import AudioFormat, SampleFormat
from capstand.audio.ring import Ring
from capstand.sinks.live import LiveSink, SinkFactory
from tests.sinks.test_live import Far
acts = {0: "hang"} if sys.argv[2] == "hang" else {}
far = Far(Path(sys.argv[1]), SinkFactory("tests.peer:Peer", (Path(sys.argv[1]), acts, "")), {})
far.open()
if acts:
    far.write()
    time.sleep(0.1)
print(far.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["idle", "hang"])
def test_it_ends_with_the_daemon(tmp_path: Path, state: str) -> None:
    """Where the daemon is killed its sinks' processes end too, whether they wait or hang."""
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path / "got"), state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        daemon.kill()
    assert gone(pid)


def test_a_hung_sink_holds_up_neither_the_others_nor_the_end(tmp_path: Path) -> None:
    """Beside a sink that hangs for ever the other gets every block; it is let go of, its process is
    gone, and the books are closed to the frame."""
    card = line.capture(buffer_ms=10_000.0)
    stream = Intake(line.config(card))
    well, plan = line.Keep(), SinkFactory("tests.peer:Peer", (tmp_path / "got", {-2: "hang"}, ""))
    hung = LiveSink("mic", "hung", plan, stream.ring, card.audio, 0)
    line.give(stream, SinkQueue("well", well, 1 << 30))
    stream.wakes(hung.wake, gathers=[0])
    stream.start()
    deadline = time.monotonic() + PATIENCE_S
    while hung.process.page.doing[0] is not Doing.WRITING or stream.pusher.captured < 48 * 300:
        hung.poll(time.monotonic_ns())
        assert time.monotonic() < deadline
        time.sleep(0.005)
    pid = hung.process.pid
    assert pid is not None
    began = time.monotonic()
    assert stream.drain(began + PATIENCE_S) == []
    assert stream.close(time.monotonic() + PATIENCE_S) == []
    hung.finish()
    assert not hung.join(time.monotonic() + 0.2)
    hung.force_close()
    assert gone(pid)
    stats = stream.stats(time.monotonic_ns())
    away = SinkSnapshot.of(hung).stats(stats.captured_frames, 48_000, 0)
    assert stats.balanced and away.balanced and away.in_flight_frames == away.delivered_frames == 0
    assert stats.sinks[0].in_flight_frames == 0
    assert stats.sinks[0].delivered_frames == stats.captured_frames
    assert sum(block.frames for block in well.blocks) == stats.captured_frames


def test_one_that_is_let_go_of_starts_no_more(far: Make) -> None:
    """Also in the middle of its opening."""
    one = far({-1: "hang"})
    one.until(lambda: one.sink.process.page.doing[0] is Doing.OPENING)
    pid = one.pid
    one.sink.finish()
    one.sink.force_close()
    assert gone(pid)
    one.poll()
    assert (one.sink.state, one.sink.process.running) == ("closed", False)


def test_its_log_lines_say_whose_they_are(far: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """What a sink logs goes where the daemon's lines go, and carries STREAM and SINK."""
    forkserver.shared.end()  # the next one writes where this test listens
    one = far()
    one.open()
    assert one.end()
    assert "warning: the peer is opened" in capfd.readouterr().err
    record = logging.LogRecord("capstand.agora", logging.INFO, "", 0, "joined", (), None)
    record.__dict__["fields"] = {"CHANNEL": "studio"}
    assert _Fields({"STREAM": "mic", "SINK": "far"}).filter(record)
    assert record.__dict__["fields"] == {"STREAM": "mic", "SINK": "far", "CHANNEL": "studio"}


def test_what_goes_wrong_in_its_process_is_logged_clean(
    far: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing there writes a traceback of its own: neither the sink's call, nor a thread, nor a
    function that C calls. Lines are clean, and a secret that was read is in none."""
    forkserver.shared.end()  # the next one writes where this test listens
    one = far({0: "bugs"})
    one.open()
    one.write()
    one.until(lambda: one.sink.failures)
    told = capfd.readouterr().err
    for where in ("the process ended", "thread looks after it crashed", "in a callback"):
        assert f"{where}: ValueError: a (secret)\\x1b[2J" in told
    for text in (told, *one.told):
        assert peer.SECRET not in text and "\x1b[2J" not in text
    assert all(each[:1] in " 012" for each in told.splitlines())  # a time, or set in below one


def test_the_daemon_itself_loads_no_library_of_a_channel() -> None:
    """A stream with a channel is made and started without Agora's code, numpy or libsoxr in the
    daemon."""
    sink = AgoraSinkConfig(type="agora", app_id="0" * 32, channel="studio")
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from capstand.stream.intake import Intake\n"
        "from capstand.config.schema import CaptureConfig, StreamConfig as Config\n"
        "from capstand.sinks.types.agora import AgoraSinkConfig\n"
        "from capstand.stream.stream import Stream\n"
        f"stream = Stream(Config('mic', CaptureConfig('hw:9'), ({sink!r},)), Path('/nowhere'))\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in "
        "('agora', 'numpy', 'soxr', 'soundfile') or name.startswith('capstand.agora')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_machine_without_descriptors_starts_it_later(
    far: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left half open, and it is tried again."""
    one = far()
    gc.collect()  # what other tests left must not hide what this one leaves
    before = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # numbers below may be free here
    try:
        one.poll()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "cannot be started: Too many open files" in one.told[-1]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    one.open()
