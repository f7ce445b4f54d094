"""A sink in a process of its own: what happens to it happens to it alone, and is in the books."""

import json
import logging
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from capstand.audio.block import Block
from capstand.audio.clock import Clock
from capstand.config.schema import AgoraSink
from capstand.errors import SinkBusy, SinkError
from capstand.host import signals
from capstand.sinks import remote
from capstand.sinks.outlet import Outlet
from capstand.sinks.remote import RemoteSink
from capstand.sinks.wire import ANSWER, MOST_VALUES, Outcome, Plan, receive_answer
from capstand.sinks.worker import _Named
from capstand.stream.stream import Stream
from tests import line, peer
from tests.patience import PATIENCE_S

FRAMES = 10
SECRET = "0df1ad5e7c9b4e8aa2f0c1d3b5e79a6c"


class Place(NamedTuple):
    """Where a test's peers keep what they take, and all sinks that were made there."""

    file: Path
    made: list[RemoteSink]

    def sink(self, acts: dict[int, str] | None = None, name: str = "far") -> RemoteSink:
        plan = Plan("tests.peer:Peer", (self.file.with_suffix(f".{name}"), acts or {}, SECRET))
        return self.of(plan, name)

    def of(self, plan: Plan, name: str = "far") -> RemoteSink:
        one = RemoteSink("mic", name, plan, Clock(48000, FRAMES))
        self.made.append(one)
        return one

    def got(self, name: str = "far") -> list[peer.Got]:
        return peer.got(self.file.with_suffix(f".{name}"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    one = Place(tmp_path / "got", [])
    yield one
    for sink in one.made:
        pid = pid_of(sink)
        sink.abandon()
        sink._end()
        assert pid is None or gone(pid)


def pid_of(sink: RemoteSink) -> int | None:
    pid = sink.figures(0)["pid"]
    assert pid is None or isinstance(pid, int)
    return pid


def gone(pid: int) -> bool:
    """Whether a process ends before patience does."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], PATIENCE_S)[0])
    finally:
        os.close(descriptor)


def block(number: int, frames: int = FRAMES) -> Block:
    return Block(number * FRAMES, frames, number + 7, random.Random(number).randbytes(frames * 4))


def drive(outlet: Outlet) -> None:
    """What the outlet's thread does, without its pauses."""
    outlet.finish()
    while not (outlet.try_open() and outlet.feed()):
        pass
    outlet._end()


def balanced(outlet: Outlet) -> bool:
    return outlet.entered == outlet.delivered + outlet.dropped + outlet.queued


def test_every_block_arrives_to_the_byte(place: Place) -> None:
    """Whatever its length, each block comes whole, once and in order, with its frame, its time, and
    what the stream's clock knows of the card's rate."""
    sink = place.sink()
    clock = Clock(48000, 480)
    for number in range(200):
        clock.observe(number * 480, 10_000_000 * number + number * 300)
    sink._pace = clock
    blocks = [block(number, frames) for number, frames in enumerate((1, 480, 0, 8191, 3_000_000))]
    sink.open()
    for one in blocks:
        sink.write(one)
    sink.close()
    assert [(one.first_frame, one.captured_at_ns, one.samples) for one in place.got()] == [
        (one.first_frame, one.captured_at_ns, one.samples) for one in blocks
    ]
    assert {(one.ns_per_frame, one.drift_ppm, one.settled) for one in place.got()} == {
        (clock.ns_per_frame, clock.drift_ppm, clock.settled)
    }
    assert clock.drift_ppm != 0


def test_how_the_sink_is_can_be_read_here(place: Place) -> None:
    """Detail, concern and figures are the sink's own, about once a second and when it was closed;
    the frames it inserted are known with every answer, and never go back in a new process."""
    sink = place.sink({20: "exit 0"})
    assert (sink.detail, sink.concern, pid_of(sink)) == ("not started yet", None, None)
    sink.open()
    assert (sink.detail, sink.concern) == ("0 blocks", "it is only a test")
    sink.write(block(0))
    sink.write(block(1))
    assert sink.inserted_frames == 2
    sink.flush()
    assert sink.detail == "2 blocks"
    assert sink.figures(0) == {"secret_length": len(SECRET), "pid": pid_of(sink)}
    with pytest.raises(SinkError):
        sink.write(block(2))
    assert (sink.detail, sink.concern, sink.inserted_frames) == ("not running", None, 2)
    sink.close()
    sink.open()
    sink.write(block(3))
    sink.close()
    assert (sink.detail, sink.inserted_frames, pid_of(sink)) == ("1 blocks", 3, None)


def test_a_busy_sink_goes_on(place: Place) -> None:
    """What the sink took of a block it was too busy for is counted as delivered, and the process
    stays."""
    sink = place.sink({10: "busy 4", 20: "busy 0"})
    sink.open()
    before = pid_of(sink)
    sink.write(block(0))
    for number, taken in ((1, 4), (2, 0)):
        with pytest.raises(SinkBusy, match=r"^the peer is full$") as caught:
            sink.write(block(number))
        assert caught.value.taken == taken
    sink.write(block(3))
    assert pid_of(sink) == before
    assert [len(one.samples) for one in place.got()] == [40, 16, 0, 40]


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("fail", "the peer hung up"),
        ("kill", "its process was ended by SIGKILL; a new one is started"),
        ("crash", "its process was ended by SIGSEGV; a new one is started"),
        ("exit 3", "its process ended with status 3; a new one is started"),
        ("bug", "KeyError: 'a bug'; the log has more"),
        (
            "babble",
            "its process answered nonsense (an answer of 4294967295 bytes) and was killed; a"
            " new one is started",
        ),
    ],
)
def test_what_ends_a_sink_is_told_and_healed(place: Place, act: str, words: str) -> None:
    """A refusal, a crash, an end, a bug: the outlet hears what it was, the block counts as failed,
    and the next block goes to a new process."""
    outlet = Outlet("far", place.sink({10: act}), 1000)
    for number in range(3):
        outlet.put(block(number))
    assert outlet.try_open() and not outlet.feed()
    assert (outlet.trouble, outlet.failures, outlet.state) == (words, 1, "waiting")
    drive(outlet)
    assert (outlet.delivered, outlet.failed, outlet.trouble) == (20, 10, None)
    first, second = place.got()
    assert (first.first_frame, second.first_frame) == (0, 20)
    assert first.pid != second.pid and gone(first.pid)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (ANSWER.pack(Outcome.DONE, 0, 0, 0), None),
        (ANSWER.pack(Outcome.BUSY, 7, 2**40, 14) + b'{"words": "x"}', None),
        (ANSWER.pack(9, 0, 0, 0), ValueError),
        (ANSWER.pack(Outcome.DONE, 0, 0, 2) + b"[]", ValueError),
        (ANSWER.pack(Outcome.DONE, 0, 0, 2) + b"{]", ValueError),
        (ANSWER.pack(Outcome.DONE, 0, 0, 2) + b"\xff\xff", ValueError),
        (ANSWER.pack(Outcome.DONE, 0, 0, 14) + b'{"figures": 1}', ValueError),
        (ANSWER.pack(Outcome.DONE, 0, 0, 2**31), ValueError),
        (ANSWER.pack(Outcome.DONE, 0, 0, 9) + b"{}", EOFError),
        (ANSWER.pack(Outcome.DONE, 0, 0, 0)[:-1], EOFError),
        (b"", EOFError),
    ],
)
def test_an_answer_is_checked(answer: bytes, error: type[Exception] | None) -> None:
    """An answer from a process that native code has torn is refused, whatever is wrong with it."""
    here, there = socket.socketpair()
    with here, there:
        there.sendall(answer)
        there.shutdown(socket.SHUT_WR)
        if error is None:
            assert receive_answer(here).outcome in (Outcome.DONE, Outcome.BUSY)
        else:
            with pytest.raises(error):
                receive_answer(here)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"figures": ' * 20_000,
        b'{"figures": {"x": ' + b"9" * 5000 + b"}}",
        b'{"detail": "\xff"}',
    ],
)
def test_no_answer_raises_what_is_not_expected(body: bytes) -> None:
    """However JSON is abused, it is nonsense like any other."""
    here, there = socket.socketpair()
    with here, there:
        sending = threading.Thread(
            target=there.sendall, args=(ANSWER.pack(Outcome.DONE, 0, 0, len(body)) + body,)
        )
        sending.start()
        with pytest.raises(ValueError):
            receive_answer(here)
        sending.join()


def test_an_answer_is_cleaned() -> None:
    """A text of it may be shown anywhere, a number of it told as JSON, and it has no more than
    MOST_VALUES of them."""
    body = (
        b'{"detail": "\\udcff\\u0000\\n\\u001b[2J", "figures": {"a": NaN, "b": [' + b"1," * 50_000
    )
    body += b"1]}}"
    here, there = socket.socketpair()
    with here, there:
        sending = threading.Thread(
            target=there.sendall, args=(ANSWER.pack(Outcome.DONE, 0, 0, len(body)) + body,)
        )
        sending.start()
        said = receive_answer(here).said
        sending.join()
    assert said["detail"] == "\\udcff\\x00 \\x1b[2J"
    assert said["figures"]["a"] is None
    assert len(said["figures"]["b"]) < MOST_VALUES


def test_nothing_may_follow_an_answer() -> None:
    """What comes behind an answer would be taken for the next one."""
    here, there = socket.socketpair()
    with here, there:
        there.sendall(ANSWER.pack(Outcome.DONE, 0, 0, 0) + b"x")
        with pytest.raises(ValueError, match="1 bytes behind an answer"):
            receive_answer(here)


def test_an_answer_that_drips_has_one_deadline() -> None:
    """A process that says its answer byte by byte has the same time for it as any other."""
    here, there = socket.socketpair()
    ended = threading.Event()

    def drip() -> None:
        there.sendall(ANSWER.pack(Outcome.DONE, 0, 0, 100_000))
        for _ in range(500):
            if ended.wait(0.02):
                break
            there.sendall(b" ")
        there.shutdown(socket.SHUT_WR)

    with here, there:
        here.settimeout(PATIENCE_S)
        dripping = threading.Thread(target=drip)
        dripping.start()
        with pytest.raises(TimeoutError):
            receive_answer(here, 0.2)
        assert here.gettimeout() == PATIENCE_S
        ended.set()
        dripping.join()


def test_what_a_sink_tells_of_itself_is_clean(place: Place) -> None:
    """Detail, concern, figures and errors of a sink may hold anything: lone surrogates, NUL, line
    ends, escapes, any number of values. What arrives is bounded and can be printed anywhere."""
    sink = place.of(Plan("tests.peer:Loud", ()))
    sink.open()
    for text in (sink.detail, sink.concern):
        assert text is not None and text.isprintable()
        assert text == "\\udcff\\x00 STOPPING=1\\x1b[2J\\u202e" + "x" * 300
    figures = sink.figures(0)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["nan"] is None and figures["text"] == sink.detail
    assert len(json.dumps(figures)) < 1_000_000
    with pytest.raises(SinkError) as failed:
        sink.write(block(0))
    assert str(failed.value).isprintable() and len(str(failed.value)) < 3000
    sink.close()


@pytest.mark.parametrize("act", ["hang", "stop"])
@pytest.mark.parametrize("frames", [FRAMES, 1_000_000], ids=["short", "longer than the socket"])
def test_a_call_that_hangs_is_ended(
    place: Place, monkeypatch: pytest.MonkeyPatch, act: str, frames: int
) -> None:
    """A sink that does not come back, or does not even read, is killed when its time is over, and
    words say in which call it was."""
    monkeypatch.setattr(remote, "ANSWER_S", 0.2)
    sink = place.sink({0: act})
    sink.open()
    pid = pid_of(sink)
    assert pid is not None
    if act == "stop":
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(SinkError) as caught:
        sink.write(block(0, frames))
    assert str(caught.value) == (
        "its process did not come back from write within 0.2 s and was killed; a new one is started"
    )
    assert gone(pid)
    sink.close()  # is not told twice


def test_a_sink_that_cannot_be_made_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be imported, made, opened or started is a SinkError, in words."""
    for plan, words in (
        (Plan("tests.nowhere:Peer"), "ModuleNotFoundError: No module named 'tests.nowhere'; the"),
        (Plan("tests.peer:Peer"), r"TypeError: Peer.__init__\(\) missing 3 "),
        (Plan("tests.peer:Peer", (Path(), {-1: "fail"}, "")), "the peer hung up"),
        (Plan("tests.peer:Peer", (Path(), {-1: "exit 9"}, "")), "ended with status 9; a new one"),
    ):
        sink = place.of(plan)
        with pytest.raises(SinkError, match=words):
            sink.open()
        sink.close()
        assert pid_of(sink) is None
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(SinkError, match="/nowhere/python cannot be started: No such file"):
        place.sink().open()


def test_the_process_is_told_nothing_it_need_not_know(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No setting stands in command line or environment, where others can read it; systemd's socket
    and watchdog are the daemon's alone, and so is every other descriptor. ``ps`` shows whose sink
    it is."""
    for name in remote.NOT_TOLD:
        monkeypatch.setenv(name, "1")
    sink = place.sink()
    with (place.file.parent / "open").open("w") as another:
        os.set_inheritable(another.fileno(), True)
        sink.open()
        process = Path(f"/proc/{pid_of(sink)}")
        open_ones = {str(one.readlink()).split(":")[0] for one in (process / "fd").iterdir()}
        assert another.name not in open_ones
        assert len(list((process / "fd").iterdir())) == 4 and "socket" in open_ones
    shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    assert SECRET.encode() not in shown and str(place.file).encode() not in shown
    assert not any(name.encode() in shown for name in remote.NOT_TOLD)
    assert (process / "comm").read_text() == "sink:far\n"
    assert b"capstand.sinks.worker" in shown and b"mic\0far" in shown


def test_only_the_daemon_ends_it(place: Place) -> None:
    """Signals that a terminal or systemd sends to all processes at once do not end it: first what
    was captured is delivered."""
    sink = place.sink()
    sink.open()
    pid = pid_of(sink)
    assert pid is not None
    for number in (*signals.ENDING, signal.SIGHUP, *signals.IGNORED, signals.FIRST_REAL_TIME):
        os.kill(pid, number)
    sink.write(block(0))
    sink.close()
    assert len(place.got()) == 1 and gone(pid)


ORPHAN = """
import sys
from pathlib import Path
from capstand.audio.block import Block
from capstand.audio.clock import Clock
from capstand.sinks.remote import RemoteSink
from capstand.sinks.wire import Plan
acts = {0: "hang"} if sys.argv[2] == "hang" else {}
sink = RemoteSink("mic", "far", Plan("tests.peer:Peer", (Path(sys.argv[1]), acts, "")),
                  Clock(48000, 10))
sink.open()
print(sink.figures(0)["pid"], flush=True)
if acts:
    sink.write(Block(0, 10, 0, bytes(40)))
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


def wait_until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_hung_sink_holds_up_neither_the_others_nor_the_end(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a sink that hangs for ever the other gets every block, the stream ends in time and
    names it, its process is gone, and the books are closed to the frame."""
    monkeypatch.setattr(remote, "ANSWER_S", PATIENCE_S)
    stream = Stream(line.config(line.capture()))
    hung, well = place.sink({0: "hang"}, "hung"), place.sink({}, "well")
    stream.outlets[:] = [Outlet("hung", hung, 1 << 30), Outlet("well", well, 1 << 30)]
    stream.start()
    wait_until(lambda: stream.outlets[0].taken and stream.outlets[1].delivered > 48 * 300)
    pid = pid_of(hung)
    assert pid is not None
    began = time.monotonic()
    assert stream.drain(began + 1.0) == []
    assert stream.close(began + 1.0) == ["sink hung"]
    assert time.monotonic() - began < 60
    assert gone(pid)
    stats = stream.stats(time.monotonic_ns())
    assert stats.balanced and [one.inside_frames for one in stats.sinks] == [0, 0]
    assert stats.sinks[0].delivered_frames == 0
    assert stats.sinks[1].delivered_frames == stats.captured_frames
    assert sum(len(one.samples) // 4 for one in place.got("well")) == stats.captured_frames


def test_abandoned_while_it_is_opened(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink the daemon does not wait for any longer is ended at once, and starts no more."""
    sink = place.sink({-1: "hang"})
    errors: list[str] = []

    def open_() -> None:
        try:
            sink.open()
        except SinkError as error:
            errors.append(str(error))

    opening = threading.Thread(target=open_)
    opening.start()
    wait_until(lambda: pid_of(sink))
    sink.abandon()
    opening.join(PATIENCE_S)
    open_()
    assert errors == ["its process was ended by SIGKILL; a new one is started"] * 2


@pytest.mark.parametrize("seed", range(2))
def test_whatever_happens_every_frame_is_in_the_books(
    place: Place, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Through any order of refusals, busy peers, crashes and hangs, what was put in was delivered,
    or dropped, or waits; and what counts as delivered is what the peers got."""
    monkeypatch.setattr(remote, "ANSWER_S", 5.0)
    dice = random.Random(seed)
    kinds = ["busy 3", "busy 10", "fail", "kill", "hang", "exit 0", "bug", "babble"]
    frames = dice.sample(range(5 * FRAMES, 100 * FRAMES, FRAMES), len(kinds))
    acts = dict(zip(frames, kinds, strict=True))
    outlet = Outlet("far", place.sink(acts), 95 * FRAMES)
    for number in range(100):
        outlet.put(block(number))
        assert balanced(outlet)
    drive(outlet)
    assert balanced(outlet) and outlet.queued == 0
    got = place.got()
    assert outlet.delivered == sum(len(one.samples) // 4 for one in got)
    assert outlet.failed == 6 * FRAMES + 7
    assert outlet.overflowed == 5 * FRAMES
    for one in got:
        assert one.samples == block(one.first_frame // FRAMES).samples[: len(one.samples)]


def test_its_log_lines_say_whose_they_are(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """What a sink logs goes where the daemon's lines go, and carries STREAM and SINK."""
    sink = place.sink()
    sink.open()
    sink.close()
    assert "warning: the peer is opened" in capfd.readouterr().err
    record = logging.LogRecord("capstand.agora", logging.INFO, "", 0, "joined", (), None)
    record.__dict__["fields"] = {"CHANNEL": "studio"}
    assert _Named("mic", "far").filter(record)
    assert record.__dict__["fields"] == {"STREAM": "mic", "SINK": "far", "CHANNEL": "studio"}


def test_what_goes_wrong_in_its_process_is_logged_clean(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing there writes a traceback of its own: neither the sink's call, nor a thread, nor a
    function that C calls. Lines are clean, and a secret that was read is in none."""
    outlet = Outlet("far", place.sink({0: "bugs"}), 1000)
    outlet.put(block(0))
    assert outlet.try_open() and not outlet.feed()
    drive(outlet)
    told = capfd.readouterr().err
    for where in ("the sink's process ended", "thread looks after it ended", "in a callback"):
        assert f"{where}: ValueError: a (secret)\\x1b[2J" in told
    for text in (told, str(outlet.trouble)):
        assert peer.SECRET not in text and "\x1b[2J" not in text
    assert all(one[:1] in " 012" for one in told.splitlines())  # a time, or set in below one


def test_the_daemon_itself_loads_no_library_of_a_channel() -> None:
    """A stream with a channel is made and started without Agora's code, numpy or libsoxr in the
    daemon."""
    sink = AgoraSink(type="agora", app_id="0" * 32, channel="studio")
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from capstand.config.schema import AgoraSink, Capture, Stream as Config\n"
        "from capstand.stream.stream import Stream\n"
        f"stream = Stream(Config('mic', Capture('hw:9'), ({sink!r},)), Path('/nowhere'))\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in "
        "('agora', 'numpy', 'soxr', 'soundfile') or name.startswith('capstand.agora')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
