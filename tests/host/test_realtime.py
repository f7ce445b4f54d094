"""Priority, locked memory, names and signals: asked for, and said so where refused."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from capstand.audio.block import AudioFormat, SampleFormat
from capstand.audio.clock import Clock
from capstand.audio.ring import Ring
from capstand.capture.capturer import Capturer
from capstand.capture.source import NegotiatedParams, Reading
from capstand.config.schema import CaptureConfig, SpoolConfig
from capstand.host import realtime
from capstand.host.realtime import prepare_thread
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.intake import Intake
from tests.line import config
from tests.patience import PATIENCE_S

NOBODY = 65534

RUN_A_STREAM = """
import json, os, resource, sys, threading, time
from pathlib import Path
import ctypes, numpy, soundfile, capstand.capture.synthetic, capstand.dsp.level, queue, random
from capstand.capture.types.synthetic import SyntheticConfig
from capstand.config.schema import CaptureConfig, StreamConfig
from capstand.sinks.types.file import FileSinkConfig
from capstand.host.realtime import freeze_heap, prepare_process
from capstand.stream.intake import Intake
resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable again: /proc/self is its own
refused = prepare_process()
stream = Intake(StreamConfig(
    name="mic",
    capture=CaptureConfig(
        device="synthetic", rt_priority=70, source=SyntheticConfig(signal="counter")
    ),
    sink=(FileSinkConfig(type="file", name="disk", path=sys.argv[1], min_free_mb=0),),
))
freeze_heap()
stream.start()
deadline = time.monotonic() + 30
while stream.stats(time.monotonic_ns()).sinks[0].delivered_frames < 4800:
    assert time.monotonic() < deadline
    time.sleep(0.01)
threads = {}
for task in Path("/proc/self/task").iterdir():
    fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
    policy = os.sched_getscheduler(int(task.name))
    threads[fields["Name"].strip()] = [int(fields["SigBlk"], 16), policy]
deadline = time.monotonic() + 20
hung = stream.drain(deadline) + stream.close(deadline)
stats = stream.stats(time.monotonic_ns())
print(json.dumps({
    "memory": refused,
    "refusals": stream.overview.refusals(),
    "threads": threads,
    "hung": hung,
    "balanced": stats.balanced,
    "health": stats.health,
    "captured": stats.captured_frames,
}))
"""


@pytest.fixture(scope="module")
def unprivileged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a stream says of itself in a process that may neither lock memory nor have priority."""
    out = tmp_path_factory.mktemp("nobody")
    if os.geteuid() == 0:  # the program gives up its rights itself; its way to the files is open
        os.chown(out, NOBODY, NOBODY)
        for parent in out.parents:
            if parent.name.startswith(("pytest-", "popen-")):
                parent.chmod(parent.stat().st_mode | 0o011)
    done = subprocess.run(
        [sys.executable, "-c", RUN_A_STREAM, out],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_refused_priority_is_a_sentence(unprivileged: dict[str, object]) -> None:
    """A refused priority is said once for each thread, with the reason and how to grant it."""
    refusals = unprivileged["refusals"]
    assert isinstance(refusals, list)
    capture, push = refusals
    for name, priority, text in (("capture", 70, capture), ("push", 60, push)):
        assert text.startswith(f"thread {name} has no real-time priority {priority}: ")
        assert "Operation not permitted" in text
        assert "LimitRTPRIO=80" in text


def test_refused_memory_is_a_sentence(unprivileged: dict[str, object]) -> None:
    """Memory that cannot be locked is said with the reason and how to grant it."""
    text = str(unprivileged["memory"])
    assert text.startswith("memory is not locked: ")
    assert "LimitMEMLOCK=infinity" in text


def test_refusals_do_not_stop_capture(unprivileged: dict[str, object]) -> None:
    """Capture goes on without priority and without locked memory."""
    assert unprivileged["balanced"] is True
    assert unprivileged["hung"] == []
    assert int(str(unprivileged["captured"])) >= 4800


def test_threads_have_names(unprivileged: dict[str, object]) -> None:
    """``ps -L`` shows what each thread is for."""
    threads = unprivileged["threads"]
    assert isinstance(threads, dict)
    assert {"capture", "push", "sink:disk"} <= set(threads)


def test_threads_take_no_signals(unprivileged: dict[str, object]) -> None:
    """No signal interrupts a thread of the line; all of them go to the main thread."""
    threads = unprivileged["threads"]
    assert isinstance(threads, dict)
    for name in ("capture", "push", "sink:disk"):
        blocked, policy = threads[name]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            assert blocked >> (number - 1) & 1
        assert policy == os.SCHED_OTHER


@pytest.mark.parametrize(
    ("streams", "low_latency", "interval_s"),
    [
        (1, True, 0.0001),
        (4, True, 0.0004),
        (64, True, 0.005),
        (1, False, 0.005),
        (64, False, 0.005),
    ],
)
def test_threads_take_turns(streams: int, low_latency: bool, interval_s: float) -> None:
    """A thread that holds Python's lock gives it up after 0.1 ms where a sink is in a hurry, later
    the more streams there are, and after 5 ms where none is.
    """
    before = sys.getswitchinterval()
    try:
        realtime.set_switch_interval(streams, low_latency)
        assert sys.getswitchinterval() == pytest.approx(interval_s)
    finally:
        sys.setswitchinterval(before)


def prepared(name: str, priority: int) -> tuple[str | None, int, int, str]:
    """What a thread so prepared was refused, its policy, its priority and its name."""
    found: list[tuple[str | None, int, int, str]] = []

    def body() -> None:
        refusal = prepare_thread(name, priority)
        thread = threading.get_native_id()
        comm = Path(f"/proc/self/task/{thread}/comm").read_text().strip()
        policy, param = os.sched_getscheduler(thread), os.sched_getparam(thread)
        found.append((refusal, policy, param.sched_priority, comm))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return found[0]


def test_fifo_where_it_is_allowed() -> None:
    """A thread that is not refused has SCHED_FIFO at the priority it asked for, and what it starts
    does not have it.
    """
    refusal, policy, priority, _ = prepared("capture", 7)
    if refusal:
        pytest.skip("SCHED_FIFO is not allowed here")
    assert (policy, priority) == (os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, 7)


def test_priority_0_asks_for_nothing() -> None:
    """Priority 0 leaves the thread to ordinary scheduling, and that is no refusal."""
    assert prepared("push", 0)[:3] == (None, os.SCHED_OTHER, 0)


def test_priorities_below() -> None:
    """Threads behind capture come below it, but never fall to ordinary unless capture is."""
    assert [realtime.lower_priority(priority, 20) for priority in (70, 21, 20, 5, 0)] == [
        50,
        1,
        1,
        1,
        0,
    ]


def test_long_names_are_cut() -> None:
    """A name longer than the kernel's 15 characters is cut, not refused."""
    assert prepared("sink:a-long-name-of-a-disk", 0)[3] == "sink:a-long-nam"


def test_memory_is_locked_where_it_is_allowed() -> None:
    """A process that is not refused has its memory locked."""
    code = """
import capstand.host.realtime as realtime
refused = realtime.prepare_process()
locked = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmLck")]
print(refused, locked[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    refused, locked = done.stdout.rsplit(maxsplit=1)
    if refused.strip() != "None":
        pytest.skip("locking memory is not allowed here")
    assert int(locked) > 0


class Hasty:
    """A source whose waits end at once with nothing, as a descriptor in error does."""

    batch_ms = 0
    wary = False

    def __init__(self, reads: int) -> None:
        self.left = reads
        self.blocked: list[int] = []
        self.stop: Callable[[], None] = lambda: None
        self._reading = Reading()

    def open(self) -> NegotiatedParams:
        return NegotiatedParams(
            "hasty", AudioFormat(48_000, 2, SampleFormat.S16_LE), 480, 24_000, True
        )

    def read(self, slot: memoryview, timeout_ms: int) -> Reading:
        self.blocked.append(resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw)
        self.left -= 1
        if self.left == 0:
            self.stop()
        return self._reading

    def restart(self) -> None:
        pass

    def advice(self) -> str:
        return ""

    def close(self) -> None:
        pass

    def wake(self) -> None:
        pass


def test_a_device_in_error_does_not_take_the_processor() -> None:
    """Where every wait ends at once, the real-time thread still gives way between two of them. By
    the capturer's clock none takes any time: a machine that stands still makes a wait a long one.
    """
    source = Hasty(20)
    clock, ring = Clock(48_000, 480), Ring(4, 1920)
    capturer = Capturer(source, clock, ring, priority=0, now_ns=lambda: 1)
    source.stop = capturer.stop
    thread = threading.Thread(target=capturer.run)
    thread.start()
    thread.join(PATIENCE_S)

    assert not thread.is_alive()
    assert all(later > earlier for earlier, later in pairwise(source.blocked))


def test_every_thread_of_a_stream_asks_for_a_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One ordinary thread that holds Python's lock on a busy machine would hold up capture."""
    asked: dict[str, int] = {}
    monkeypatch.setattr(realtime, "set_fifo", asked.__setitem__)
    sink = FileSinkConfig(
        "file", str(tmp_path / "disk"), "disk", spool=SpoolConfig(str(tmp_path / "spool"))
    )
    stream = Intake(config(CaptureConfig("synthetic", rt_priority=70), [sink]))
    stream.start()
    deadline = time.monotonic() + 20
    while len(asked) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert stream.drain(deadline) + stream.close(deadline) == []
    assert asked == {"capture": 70, "push": 60, "sink:disk": 1, "fwd:disk": 1}
