"""What a FIFO brings, and a child that is kept running; real pipes and processes."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capstand.accounting.stats import Cause
from capstand.capture import pipe as tested
from capstand.capture import wire
from capstand.capture.types.pipe import PipeConfig
from capstand.config.schema import CaptureConfig
from capstand.host import orphans
from tests.capture.programs import AUDIO, Held, Rig, children, counted, in_order
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
COUNT = """\
import os, sys, time
from tests.capture.programs import counted
first, frames = int(sys.argv[1]), int(sys.argv[2])
sys.stdout.buffer.write(counted(first, frames))
sys.stdout.flush()
"""


def pipe_capture(setup: PipeConfig, **keys: object) -> CaptureConfig:
    capture = CaptureConfig(device="pipe", rt_priority=0, buffer_ms=1500.0, source=setup)
    return capture._replace(**keys)  # type: ignore[arg-type]


def child(code: str, *arguments: object) -> PipeConfig:
    """A Python program."""
    return PipeConfig(command=(sys.executable, "-c", code, *map(str, arguments)))


@pytest.fixture
def rigged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    """Makes a Rig; in the end no descriptor and no child is left."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before = Held.now()
    rigs: list[Rig] = []

    def make(setup: PipeConfig, **keys: object) -> Rig:
        rigs.append(Rig(pipe_capture(setup, **keys)))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()
    wait_until(before.nothing_more)  # what a child said last is still read


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    return tmp_path / "mic.fifo"


# FIFO


def test_a_fifo_without_a_writer_is_waited_for(rigged: Callable[..., Rig], fifo: Path) -> None:
    """It is made, and a writer that comes is heard from its first frame on."""
    rig = rigged(PipeConfig(str(fifo)))
    assert rig.trouble("no program writes there").endswith("waiting")
    assert fifo.is_fifo()
    with fifo.open("wb") as writer:
        writer.write(counted(0, 10_001) + b"to")
    rig.captured(10_001)
    rig.trouble("no program writes there any more, after 10001 frames and a torn frame of 2 bytes")
    assert in_order(rig.numbers, 0, 10_001)


def test_a_second_writer_follows_the_first(rigged: Callable[..., Rig], fifo: Path) -> None:
    """As if it were a device that was away; frames may describe themselves."""
    rig = rigged(PipeConfig(str(fifo)))
    rig.trouble("no program writes there")
    with fifo.open("wb") as writer:
        writer.write(counted(0, 4800))
    rig.trouble("any more, after 4800 frames")
    with fifo.open("wb") as writer:
        writer.write(wire.head(AUDIO, live=False) + wire.block(4800, 7) + counted(4800, 4800))
        writer.write(wire.block(480, 4907) + counted(9600, 480))
    rig.captured(10_080)
    assert in_order(rig.numbers, 0, 10_080)
    assert [(gap.cause, gap.exact) for gap in rig.gaps][-1] == (Cause.DECLARED, True)
    assert rig.gaps[-1].frames == 100


def test_a_silent_writer_keeps_its_fifo(rigged: Callable[..., Rig], fifo: Path) -> None:
    """It is told, and goes on when it goes on; its write does not fail meanwhile."""
    rig = rigged(PipeConfig(str(fifo)))
    rig.trouble("no program writes there")
    with fifo.open("wb", buffering=0) as writer:
        writer.write(counted(0, 4800))
        rig.captured(4800)
        rig.trouble("the program that writes there has brought nothing for")
        writer.write(counted(4800, 4800))
        rig.captured(9600)
    assert in_order(rig.numbers, 0, 9600)
    assert [gap.exact for gap in rig.gaps] == [False]


def test_what_is_no_fifo_is_refused(rigged: Callable[..., Rig], tmp_path: Path) -> None:
    """Nothing of it is read."""
    path = tmp_path / "file"
    path.write_bytes(bytes(40_000))
    rig = rigged(PipeConfig(str(path)))
    rig.trouble("is not a FIFO; remove it, or name another path")
    assert rig.capturer.trouble is not None and rig.capturer.trouble.refused
    missing = rigged(PipeConfig(str(tmp_path / "no/where")))
    missing.trouble("cannot be opened: No such file or directory")


@pytest.mark.parametrize("silent", [False, True])
def test_a_stop_waits_for_no_writer(rigged: Callable[..., Rig], fifo: Path, silent: bool) -> None:
    rig = rigged(PipeConfig(str(fifo)))
    rig.trouble("no program writes there")
    if not silent:
        rig.stop()
        return
    with fifo.open("wb"):
        rig.stop()


# Children


def test_what_a_child_brings_is_the_sound(rigged: Callable[..., Rig]) -> None:
    """Each frame once; then it is told how the child ended, and what it said last."""
    code = COUNT + "print('out of sound \\x1b[2J', file=sys.stderr)\nsys.exit(3)"
    rig = rigged(child(code, 0, 9600))
    rig.captured(9600)
    told = rig.trouble("has ended with status 3 after 9600 frames: out of sound")
    assert told.endswith("it is started again; waiting") and "\x1b" not in told
    assert in_order(rig.numbers[:9600], 0, 9600)


def test_one_that_dies_comes_back(
    rigged: Callable[..., Rig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed or ended, the next one's sound follows after a gap by time."""
    monkeypatch.setattr(tested, "FIRST_S", 0.05)
    code = (
        "from pathlib import Path\nimport os, signal, sys\n"
        "from tests.capture.programs import counted\n"
        f"seen = Path({str(tmp_path / 'seen')!r})\n"
        "first = 4800 * len(seen.read_text()) if seen.exists() else 0\n"
        "seen.open('a').write('x')\n"
        "sys.stdout.buffer.write(counted(first, 4800))\nsys.stdout.flush()\n"
        "first or os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    rig = rigged(child(code))
    rig.trouble("was ended by signal 9 after 4800 frames")
    rig.captured(3 * 4800)
    assert in_order(rig.numbers[: 3 * 4800], 0, 3 * 4800)
    assert {(gap.cause, gap.exact) for gap in rig.gaps} == {(Cause.REOPENED, False)}
    assert rig.pieces[1].first_frame > 4800


def test_one_that_only_fails_is_started_ever_more_seldom(rigged: Callable[..., Rig]) -> None:
    """The pauses between its starts grow."""
    rig = rigged(PipeConfig(command=("false",)))
    backoff = rig.source._backoff  # type: ignore[attr-defined]
    rig.trouble("false has ended with status 1 after 0 frames; it is started again")
    rig.until(lambda: backoff._base_s >= 4 * tested.FIRST_S, "no third start")


def test_one_that_is_silent_is_ended_and_started_again(
    rigged: Callable[..., Rig], tmp_path: Path
) -> None:
    """With all of its group, when it has brought nothing for as long as a card may."""
    code = (
        "import os, subprocess, sys, time\nfrom tests.capture.programs import counted\n"
        f"deeper = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(tmp_path / 'pids')!r}, 'a').write(f'{{deeper.pid}}\\n')\n"
        "sys.stdout.buffer.write(counted(0, 960))\nsys.stdout.flush()\ntime.sleep(1000)\n"
    )
    rig = rigged(child(code))
    rig.captured(2 * 960)
    first, *_ = (tmp_path / "pids").read_text().split()
    rig.until(lambda: gone(int(first)), "its own child lives on")
    assert rig.capturer.stalls >= 1 and in_order(rig.numbers[960:1920], 0, 960)


def test_what_a_child_leaves_behind_is_waited_for(rigged: Callable[..., Rig]) -> None:
    """A pipeline of a shell that is started again and again leaves no zombie, neither to the
    stream's process nor to the daemon: in a year they would be more than a system has numbers."""
    orphans.adopt()  # which a daemon has done anyway
    before = children()
    rig = rigged(PipeConfig(command=("sh", "-c", "sleep 1000 & sleep 1000 & exit 3")))
    backoff = rig.source._backoff  # type: ignore[attr-defined]
    rig.until(lambda: backoff._base_s >= 4 * tested.FIRST_S, "no third start")
    rig.stop()
    assert children() <= before


def test_a_release_ends_the_child_until_it_is_resumed(rigged: Callable[..., Rig]) -> None:
    code = (
        "import sys\nfrom tests.capture.programs import counted\nat = 0\n"
        "while True:\n    sys.stdout.buffer.write(counted(at, 480))\n    at += 480\n"
    )
    rig = rigged(child(code)._replace(live=False))
    rig.captured(4800)
    process = rig.source._child  # type: ignore[attr-defined]
    rig.capturer.release("operator", "released")
    rig.until(rig.capturer.resting.is_set)
    assert gone(process.pid)
    before = rig.capturer.tally.count().captured
    rig.capturer.resume("operator")
    rig.captured(before + 4800)
    assert [gap.cause for gap in rig.gaps] == [Cause.RELEASED]


def test_a_program_that_is_not_there_is_refused(rigged: Callable[..., Rig]) -> None:
    rig = rigged(PipeConfig(command=("capstand-no-such-program", "-x")))
    rig.trouble("capstand-no-such-program is not a program that can be run")
    assert rig.capturer.trouble is not None and rig.capturer.trouble.refused


def test_what_a_child_says_is_logged_and_bounded(
    rigged: Callable[..., Rig], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that floods its stderr fills no log, and the last line is known all the same."""
    monkeypatch.setattr(tested, "LINES_PER_S", 1e-6)
    flood = "for n in range(1000):\n    print(n, 'x' * 3000, file=sys.stderr)\n"
    with caplog.at_level(logging.WARNING, "capstand"):
        rig = rigged(child(f"import sys\n{flood}sys.stderr.write('the end')\nsys.exit(1)"))
        rig.trouble("has ended with status 1 after 0 frames: the end")
    lines = [record.getMessage() for record in caplog.records]
    assert 1 < len(lines) <= tested.LINES
    assert max(map(len, lines)) < tested.LONGEST_LINE + 100 and " says: 0 xxx" in lines[0]


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """Also where that is killed at once: the kernel sees to it."""
    path = tmp_path / "pid"
    code = (
        "import os, sys, time\nfrom tests.capture.programs import counted\n"
        f"open({str(path)!r}, 'w').write(f'{{os.getpid()}} {{os.getpgid(0)}}\\n')\n"
        "sys.stdout.buffer.write(counted(0, 96000))\nsys.stdout.flush()\n"
        "time.sleep(1000)\n"
    )
    parent = (
        "from tests.capture.test_pipe import Rig, child, pipe_capture\n"
        f"rig = Rig(pipe_capture(child({code!r})))\nrig.captured(480)\nprint('on', flush=True)\n"
        "rig.captured(10**9)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    pid, group = map(int, path.read_text().split())
    assert pid == group and not gone(pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: gone(pid))


def test_a_child_inherits_nothing_of_the_threads(
    rigged: Callable[..., Rig], tmp_path: Path
) -> None:
    """No blocked signal and no descriptor but its own three, and no favour when memory is short."""
    path = tmp_path / "found"
    code = (
        "import os, signal, sys, time\n"
        "found = [*signal.pthread_sigmask(signal.SIG_BLOCK, ()), os.listdir('/proc/self/fd')[:-1],"
        " signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL,"
        " open('/proc/self/oom_score_adj').read().strip()]\n"
        f"open({str(path)!r}, 'w').write(repr(found))\n"
        "sys.stdout.buffer.write(bytes(96000))\nsys.stdout.flush()\ntime.sleep(1000)"
    )
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        rigged(child(code)).captured(480)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert path.read_text() == "[['0', '1', '2'], True, '0']"


@pytest.mark.parametrize("begun", [False, True])
def test_a_stop_waits_for_no_child(rigged: Callable[..., Rig], begun: bool) -> None:
    """Whether or not it has brought something, and even where it ignores SIGTERM."""
    code = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"sys.stdout.buffer.write(bytes({4000 * begun}))\nsys.stdout.flush()\ntime.sleep(1000)"
    )
    rig = rigged(child(code))
    if begun:
        rig.captured(480)
    else:
        rig.until(lambda: rig.source._child is not None)  # type: ignore[attr-defined]
    rig.stop()


def gone(pid: int) -> bool:
    """Whether a process has ended; who is to wait for it does not matter."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)
