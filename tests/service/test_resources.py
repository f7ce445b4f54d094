"""A machine that runs short: disks that refuse, descriptors, memory and threads that are not there.

Each is tried on the real daemon. Capture goes on, the other sinks are left alone, what stopped goes
on by itself when there is room again, the books balance, and one line says what to do. Where that
cannot be, the process ends with an error, so that systemd starts it anew: it is never deaf.
"""

import contextlib
import json
import logging
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from capstand.accounting.ledger import Ledger
from capstand.audio.block import AudioFormat, Block, SampleFormat
from capstand.host import bug
from capstand.host.notify import Notifier
from capstand.sinks import disk
from capstand.sinks.sink_queue import SinkQueue
from tests.counts import counts
from tests.fakecard import FakeCard
from tests.figures import figure
from tests.line import Keep
from tests.patience import PATIENCE_S
from tests.service.test_service import Daemon, DaemonEnded

BYTES_PER_S = 48000 * 2 * 2
CONFIGURATION = """
[[stream]]
name = "mic"
[stream.capture]
device = "synthetic"
buffer_ms = 10000
synthetic = {{signal = "counter"}}
[[stream.sink]]
type = "file"
name = "bad"
path = "{bad}"
min_free_mb = 0
segment_s = 1
queue_ms = {queue_ms}
[[stream.sink]]
type = "file"
name = "good"
path = "{good}"
min_free_mb = 0
"""
CAPTURED = """
[[stream]]
name = "mic"
[stream.capture]
device = "{device}"
format = "S32_LE"
channels = 1
buffer_ms = 2000
[[stream.sink]]
type = "file"
path = "{folder}"
min_free_mb = 0
"""


class Place:
    """A daemon with one sink on a disk of its own and one beside it. The short queue of the first
    is to run over; where it must not, a busy machine needs a longer one."""

    def __init__(self, folder: Path, bad: Path, queue_ms: int = 500) -> None:
        self.folder = folder
        self.bad = bad
        text = CONFIGURATION.format(bad=bad, good=folder / "good", queue_ms=queue_ms)
        self.daemon = Daemon(folder, text)
        self.hear("READY=1")
        self.pids = self.daemon.process.pid, self.status()["pid"]
        """The daemon's and the stream's."""

    def hear(self, wanted: str) -> str:
        return self.daemon.hear(wanted)

    def hear_well(self) -> str:
        """Listens until a status names no sink that waits."""
        while True:
            line = self.hear("STATUS=")
            if "bad: mic-" in line and "recording is paused" not in line and "ledger:" not in line:
                return line

    def limit(self, what: int, soft: int) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):  # the stream's may have ended meanwhile
                hard = resource.prlimit(pid, what)[1]
                resource.prlimit(pid, what, (soft, hard))

    def status(self) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(self.folder / "run/control.sock"))
            client.sendall(b'{"ask": "status"}\n')
            got = b""
            while chunk := client.recv(65536):
                got += chunk
        (stream,) = json.loads(got)["streams"]
        return dict(stream)

    def recorded(self) -> int:
        """Bytes that the good sink has."""
        return sum(one.stat().st_size for one in (self.folder / "good").iterdir())

    def record(self, seconds: float) -> None:
        """Until the good sink has so much more sound, or the daemon ended."""
        deadline, enough = time.monotonic() + PATIENCE_S, self.recorded() + seconds * BYTES_PER_S
        while self.recorded() < enough and self.daemon.process.poll() is None:
            time.sleep(0.02)
            assert time.monotonic() < deadline, "deaf"

    def end(self) -> tuple[dict[str, Any], str]:
        """Stops it; the last line of the books, and the log."""
        assert self.daemon.end() == 0
        assert self.daemon.process.stderr is not None
        log = self.daemon.process.stderr.read()
        lines = ledger(self.folder)
        books = json.loads(lines[-1])
        for line in lines:
            json.loads(line)  # none is torn
        assert books["event"] == "stop" and books["balanced"] is True
        bad, good = books["sinks"]
        assert (good["dropped_frames"], good["in_flight_frames"]) == (0, 0)
        assert bad["in_flight_frames"] == 0
        return books, log


def fill(folder: Path) -> Path:
    """Takes all there is of a disk."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast


@pytest.fixture
def places() -> Iterator[list[Place]]:
    opened: list[Place] = []
    yield opened
    for one in opened:
        one.daemon.close()


def test_a_disk_that_fills_up_and_is_emptied(
    tmp_path: Path, small_disk: Path, places: list[Place]
) -> None:
    """Recordings and ledger on a disk that is full: STATUS says so and what to do, the other sink
    misses nothing; when there is room recording goes on by itself, and no line of the ledger is
    missing or torn."""
    (tmp_path / "state").symlink_to(small_disk)
    place = Place(tmp_path, small_disk / "rec")
    places.append(place)
    place.hear_well()
    ballast = fill(small_disk)
    line = place.hear("sink bad: ")
    assert re.search(r"No space left on device; recording is paused; check that|0 MB free", line)
    ballast.unlink()
    place.hear_well()
    books, log = place.end()
    assert books["sinks"][0]["delivered_frames"] > 0
    assert "error: mic: sink bad: " in log and "mic: sink bad recovered" in log


def test_a_disk_that_is_read_only(tmp_path: Path, small_disk: Path, places: list[Place]) -> None:
    """On a read-only disk neither recording nor ledger can be written; STATUS says how to mend it,
    and once it is mounted for writing both go on, with every line since the start."""
    (small_disk / "rec").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    (tmp_path / "state").symlink_to(small_disk)
    place = Place(tmp_path, small_disk / "rec")
    places.append(place)
    line = place.hear("sink bad: ")
    assert "Read-only file system" in line and "mount -o remount,rw" in line
    place.hear("ledger: ")
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    place.hear_well()
    books, log = place.end()
    assert books["sinks"][0]["delivered_frames"] > 0
    assert "ledger: writable again" in log
    assert [one["event"] for one in place.daemon.ledger()][:2] == ["start", "opened"]


def test_a_file_may_not_grow(tmp_path: Path, places: list[Place]) -> None:
    """With RLIMIT_FSIZE below a segment's size recording goes on in a new file each time, and no
    frame is lost at a file's end."""
    place = Place(tmp_path, tmp_path / "rec", queue_ms=20_000)
    places.append(place)
    place.hear_well()
    limit = 100_000
    place.limit(resource.RLIMIT_FSIZE, limit)
    deadline = time.monotonic() + PATIENCE_S
    while len(list((tmp_path / "rec").glob("*.wav"))) < 5:
        time.sleep(0.02)
        assert time.monotonic() < deadline, "no new file is begun"
    books, _ = place.end()
    bad = books["sinks"][0]
    assert (bad["delivered_frames"], bad["dropped_frames"]) == (books["captured_frames"], 0)
    files = sorted((tmp_path / "rec").iterdir())
    assert all(file.stat().st_size <= limit for file in files[1:])
    assert sum(soundfile.info(file).frames for file in files) == bad["delivered_frames"]


def test_no_descriptor_is_free(tmp_path: Path, places: list[Place]) -> None:
    """With every descriptor taken, capture and the sink whose file is open go on; the next segment
    of the other waits and says what to raise; with descriptors all goes on, status too."""
    place = Place(tmp_path, tmp_path / "rec")
    places.append(place)
    place.hear_well()
    place.limit(resource.RLIMIT_NOFILE, 3)
    with socket.socket(socket.AF_UNIX) as knocking:
        knocking.connect(str(tmp_path / "run/control.sock"))
        knocking.sendall(b'{"ask": "status"}\n')
        spent, began = sum(map(cpu_s, place.pids)), time.monotonic()
        place.record(3)  # nothing can be heard without a descriptor, not even by systemd
        assert sum(map(cpu_s, place.pids)) - spent < 0.8 * (time.monotonic() - began), "busy turns"
    place.limit(resource.RLIMIT_NOFILE, 1024)
    line = place.hear_well()
    assert "bad: mic-" in line
    stats = place.status()
    assert stats["balanced"] is True
    _, log = place.end()
    assert "Too many open files" in log and "raise LimitNOFILE= in the unit" in log


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


SLOW = """
import sys, time

class Slow:
    def find_spec(self, name, *rest):
        if name == "soundfile":
            sys.meta_path.remove(self)
            time.sleep(8)

sys.meta_path.insert(0, Slow())
"""


def test_a_machine_slow_to_start_loses_nothing(
    tmp_path: Path, fakecard: FakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sound that comes while the machine takes 8 s to load what writes a FLAC is in it."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    text = CAPTURED.format(device=fakecard.device, folder=tmp_path / "rec")
    text = text.replace("S32_LE", "S16_LE").replace("channels = 1", "channels = 2")
    daemon = Daemon(tmp_path, text + 'container = "flac"\n')
    try:
        daemon.hear("READY=1")
        daemon.hear("file has accepted no data for ")
        daemon.hear("file: mic-")
        assert daemon.end() == 0
    finally:
        daemon.close()
    books = daemon.ledger()[-1]
    (sink,) = books["sinks"]
    assert (books["balanced"], books["lost_frames"], sink["dropped_frames"]) == (True, 0, 0)
    (path,) = (tmp_path / "rec").glob("*.flac")
    low, high = soundfile.read(path, dtype="int16")[0].view(np.uint16).astype(np.int64).T
    sound = low | high << 16
    assert len(sound) == sink["delivered_frames"] == books["captured_frames"] > 8 * 48000
    assert (np.diff(sound) == 1).all()


def test_no_memory_is_free(tmp_path: Path, places: list[Place]) -> None:
    """With no byte of address space to be had, the daemon captures on, or ends with an error and is
    started anew; it is never there and deaf."""
    rounds, went_on, lost = counts(1, 100), 0, 0
    for number in range(rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        place = Place(folder, folder / "rec")
        places.append(place)
        place.hear_well()
        place.limit(resource.RLIMIT_AS, 1 << 20)
        place.record(2)
        if place.daemon.process.poll() is not None:
            assert place.daemon.process.returncode == 1
            continue
        place.limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
        place.record(0.4)
        place.daemon.forget()
        try:
            place.hear_well()
        except DaemonEnded:  # it was at its end already when there was room again
            assert place.daemon.process.returncode == 1
            continue
        stats = place.status()
        assert stats["balanced"] is True
        lost += stats["lost_frames"]
        places.remove(place)
        place.daemon.close()
        went_on += 1
    figure("no address space for 2 s", f"{went_on} of {rounds} went on, {lost} frames lost")


def ledger(folder: Path) -> list[str]:
    return (folder / "state/ledger/mic.jsonl").read_text().splitlines()


DYING = """
import sys
from capstand.capture.synthetic import SyntheticSource
from capstand.stream.pusher import Pusher
from capstand.sinks.recording.recording import Recording
from capstand.service.reporter import Reporter

def die(*_):
    raise ZeroDivisionError("a bug")

kinds = {{"capture": SyntheticSource, "push": Pusher, "sink": Recording, "main": Reporter}}
thread = "{thread}"
kind = kinds[thread]
name = {{"capture": "read", "push": "step", "sink": "write", "main": "update"}}[thread]
right, calls = getattr(kind, name), iter(range(10**9))
first = 3 if thread == "main" else 8  # while all is well main looks seldom
setattr(kind, name, lambda *a: right(*a) if next(calls) not in range(first, first + 3) else die())
"""
"""Python runs it at the start of each process."""


def dying(tmp_path: Path, thread: str) -> subprocess.CompletedProcess[str]:
    """A daemon in which a bug shows in one thread after a while; at most 4 s of it."""
    setup = tmp_path / "capstand.toml"
    places = {"bad": tmp_path / "bad", "good": tmp_path / "good"}
    setup.write_text(CONFIGURATION.format(**places, queue_ms=500))
    (tmp_path / "sitecustomize.py").write_text(DYING.format(thread=thread))
    return subprocess.run(
        [
            *(sys.executable, "-m", "capstand", "run", "--config", str(setup), "--seconds"),
            *("4", "--runtime", str(tmp_path / "run")),
            *("--state", str(tmp_path / "state")),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("thread", ["capture", "push"])
def test_a_thread_that_dies_of_a_bug_is_started_again_with_its_stream(
    tmp_path: Path, thread: str
) -> None:
    """A bug in a thread of a stream ends that one's process, with an error, its traceback and whole
    files; another goes on with the books."""
    done = dying(tmp_path, thread)
    assert done.returncode == 0, done.stderr
    assert f"mic: restarting: thread {thread} crashed: ZeroDivisionError: a bug" in done.stderr
    assert "Traceback (most recent call last)" in done.stderr
    assert not list((tmp_path / "good").glob("*.part"))
    books = [json.loads(one) for one in ledger(tmp_path)]
    assert books[-1]["event"] == "stop" and books[-1]["balanced"] is True
    assert books[-1]["opens"] > 1


def test_a_main_thread_that_dies_of_a_bug_ends_the_daemon(tmp_path: Path) -> None:
    """A bug in main ends the daemon at once, with an error, its traceback, whole files and closed
    books; systemd starts a new one."""
    thread = "main"
    done = dying(tmp_path, thread)
    assert done.returncode == 1, done.stderr
    assert f"thread {thread}" in done.stderr and "ZeroDivisionError: a bug" in done.stderr
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert f"stopping: restarting: thread {thread}" in done.stderr
    assert not list((tmp_path / "good").glob("*.part"))
    books = [json.loads(one) for one in ledger(tmp_path)]
    assert books[-1]["event"] == "stop"


def test_a_sink_with_a_bug_is_tried_again(tmp_path: Path) -> None:
    """A bug in a sink costs the block and a pause, is told once, and the sink recovered."""
    done = dying(tmp_path, "sink")
    assert done.returncode == 0, done.stderr
    assert "unexpected ZeroDivisionError: a bug (at sitecustomize.py:" in done.stderr
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert "recovered" in done.stderr
    books = [json.loads(one) for one in ledger(tmp_path)]
    assert books[-1]["balanced"] is True


# In one process


@pytest.mark.parametrize(
    "error", [ValueError("x"), MemoryError(), OSError(24, "Too many open files")]
)
def test_whatever_a_sink_raises_is_booked(error: Exception) -> None:
    """Anything that comes out of a sink's open, write or close is a trouble of that sink alone."""

    class Wild(Keep):
        wild = True

        def open(self) -> None:
            if self.wild:
                raise error

        def write(self, block: Block) -> None:
            raise error

        def close(self) -> None:
            raise error

    sink = Wild()
    sink_queue = SinkQueue("wild", sink, 1000)
    assert sink_queue.try_open() is False
    assert sink_queue.trouble is not None
    assert sink_queue.trouble.startswith(f"unexpected {type(error).__name__}: ")
    sink.wild = False
    sink_queue.put(Block(0, 10, 1, bytes(40), AudioFormat(48_000, 2, SampleFormat.S16_LE)))
    sink_queue.finish()
    sink_queue.run()
    assert (sink_queue.entered, sink_queue.failed, sink_queue.delivered, sink_queue.queued) == (
        10,
        10,
        0,
        0,
    )
    assert sink_queue.state == "closed"


def test_a_bug_is_told_once_with_its_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same error from the same line is told with its traceback once, another one again."""

    def fail(what: type[Exception]) -> str:
        try:
            raise what("first\nsecond")
        except Exception as error:  # noqa: BLE001
            return bug.log_unexpected("here", error)

    monkeypatch.setattr(logging.getLogger("capstand"), "propagate", True)
    lines = [fail(KeyError), fail(KeyError), fail(IndexError)]
    assert all(line.count("\n") == 0 and "test_resources.py:" in line for line in lines)
    assert [record.getMessage().count("Traceback") for record in caplog.records] == [1, 1]


def test_a_ledger_line_is_whole_or_not_there(tmp_path: Path, small_disk: Path) -> None:
    """A disk that fills up in the midst of a line takes none of it; the line waits for room."""
    ledger = Ledger(small_disk)
    ledger.write("mic", "start")
    while not ledger.path("mic").exists():
        time.sleep(0.01)
    ballast = fill(small_disk)
    for number in range(100):  # the page at the end of the file still has room for some
        ledger.write("mic", "gap", frames=number)
    deadline = time.monotonic() + PATIENCE_S
    while ledger.trouble is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "No space left on device; its lines are kept in memory" in str(ledger.trouble)
    assert ledger.path("mic").read_text().endswith("\n")
    ballast.unlink()
    while ledger.trouble is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    ledger.close(PATIENCE_S)
    events = [json.loads(line) for line in ledger.path("mic").read_text().splitlines()]
    assert [event.get("frames") for event in events] == [None, *range(100)]


def test_systemd_that_cannot_be_told_is_told_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notification that fails for want of a descriptor raises nothing and is made up for."""
    path = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    notifier = Notifier()
    notifier.ready()
    notifier.status("one")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(PATIENCE_S)
        notifier.ready()
        notifier.status("one")
        assert [systemd.recv(100) for _ in range(2)] == [b"READY=1", b"STATUS=one"]
    path.unlink()
    notifier.reloading()
    notifier.reloaded()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(PATIENCE_S)
        notifier.ready()
        assert systemd.recv(100) == b"READY=1"


@pytest.mark.parametrize("number", sorted(disk._ADVICE))
def test_every_refusal_of_a_disk_says_what_to_do(number: int) -> None:
    """Each errno that a disk can give has its own advice."""
    assert disk.advice(OSError(number, os.strerror(number))) == disk._ADVICE[number]
    assert "check that" in disk.advice(RuntimeError("x"))
