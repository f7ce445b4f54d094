"""One program at a time brings its sound through a Unix socket; real sockets and processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstand.accounting.stats import Cause
from capstand.audio.block import NS_PER_S, SampleFormat
from capstand.capture import socket as tested
from capstand.capture import wire
from capstand.capture.types.socket import SocketConfig
from capstand.config.schema import CaptureConfig
from capstand.host.peer import ids
from tests.capture.programs import AUDIO, Held, Rig, Writer, counted, in_order
from tests.patience import PATIENCE_S

NOBODY = 65_534


def socket_capture(**keys: object) -> CaptureConfig:
    """A long buffer, because a busy machine keeps a program waiting."""
    capture = CaptureConfig(device="socket", rt_priority=0, buffer_ms=1500.0)
    return capture._replace(**keys)  # type: ignore[arg-type]


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In a runtime directory that all may enter."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("RUNTIME_DIRECTORY", folder)
        yield Path(folder) / "push.sock"


Rigged = Callable[[CaptureConfig], Rig]


@pytest.fixture
def rigged(path: Path) -> Iterator[Rigged]:
    """Makes a Rig; in the end nothing of all that is left."""
    before = Held.now()
    rigs: list[Rig] = []

    def make(capture: CaptureConfig) -> Rig:
        rigs.append(Rig(capture))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()
    rigs.clear()
    assert not path.exists()
    assert before.nothing_more()


@pytest.fixture
def rig(rigged: Rigged) -> Rig:
    return rigged(socket_capture())


@pytest.fixture
def writer(rig: Rig, path: Path) -> Iterator[Writer]:
    """A program that is let in."""
    one = Writer(path)
    assert one.line() == "ok S16_LE 48000 2"
    yield one
    one.close()


def test_every_frame_comes_once_and_in_order(rig: Rig, writer: Writer) -> None:
    """Of a program that writes as fast as it may: it is told that it is held, and how much became
    part of the stream; then others may come."""
    writer.head()
    for first in range(0, 48_000, 1000):
        writer.block(first, 1000)
    writer.socket.shutdown(socket.SHUT_WR)
    lines = list(iter(writer.line, ""))
    rig.captured(48_000)
    assert lines[-1] == "end 48000"
    counts = [int(line.split()[1]) for line in lines[:-1]]
    assert counts == sorted(counts) and all(line.startswith("at ") for line in lines[:-1])
    assert any(line.endswith(" held") for line in lines[:-1])
    assert in_order(rig.numbers, 0, 48_000) and not rig.gaps
    assert abs(rig.clock.drift_ppm) < 300
    told = rig.trouble("has closed the connection after 48000 frames")
    assert f"the program {os.getpid()} of uid {os.geteuid()} " in told


def test_a_second_stream_of_sound_follows_after_a_gap(rig: Rig, writer: Writer, path: Path) -> None:
    """What lies between two programs is lost by the clock, and the index goes on."""
    writer.socket.sendall(counted(0, 4_803) + b"torn")
    assert writer.finish() == "end 4804"
    rig.trouble("closed the connection after 4804 frames")
    at_ns = time.monotonic_ns()
    rig.until(lambda: time.monotonic_ns() > at_ns + 300_000_000)
    second = Writer(path)
    second.socket.sendall(counted(0, 9_600))
    assert second.finish() == "end 9600"
    second.close()
    rig.captured(14_404)
    before, after = rig.pieces
    assert before.first_frame == 0 and in_order(before.numbers[:-1], 0, 4803)
    assert in_order(after.numbers, 0, 9600)
    (gap,) = rig.gaps
    assert (gap.first_frame, gap.cause, gap.exact) == (4804, Cause.REOPENED, False)
    assert gap.frames == after.first_frame - 4804 > 0


def test_a_gap_is_exact_where_the_program_says_so(rig: Rig, writer: Writer) -> None:
    """An index that leaps by 700 frames is a gap of 700 frames at this very frame."""
    writer.head()
    writer.block(1_000_000, 5001)
    writer.block(1_005_701, 5000)
    assert writer.finish() == "end 10001"
    rig.captured(10_001)
    (gap,) = rig.gaps
    assert gap[:2] == (5001, 700) and gap.exact and gap.cause is Cause.DECLARED
    assert [(piece.first_frame, len(piece.numbers)) for piece in rig.pieces] == [
        (0, 5001),
        (5701, 5000),
    ]
    assert rig.capturer.last_params is not None and rig.capturer.last_params.exact


def test_a_frames_time_is_the_programs_own(rig: Rig, writer: Writer) -> None:
    """Blocks that come late are where their times say."""
    writer.head(live=True)
    began_ns = time.monotonic_ns() - NS_PER_S
    for number in range(50):
        writer.block(number * 480, 480, began_ns + number * 10_000_000)
    assert writer.finish() == "end 24000"
    rig.captured(24_000)
    for first, at_ns, _ in rig.blocks:
        assert abs(at_ns - began_ns - first * NS_PER_S // 48_000) < 100_000


def test_a_program_that_stalls_leaves_a_gap_by_time(rig: Rig, writer: Writer) -> None:
    """It stays connected, the trouble says for how long nothing came, and sound follows when it
    does."""
    writer.socket.sendall(counted(0, 9600))
    rig.captured(9600)
    told = rig.trouble("has brought nothing for")
    assert told.endswith("waiting") and f"the program {os.getpid()}" in told
    writer.socket.sendall(counted(9600, 9600))
    assert writer.finish() == "end 19200"
    rig.captured(19_200)
    assert in_order(rig.numbers, 0, 19_200)
    (gap,) = rig.gaps
    assert gap.first_frame == 9600 and not gap.exact
    assert gap.frames > 48_000  # it stalled for longer than the buffer of 1.5 s


def test_a_slow_trickle_is_sound_too(rig: Rig, writer: Writer) -> None:
    """Bytes that come one by one make frames."""
    data = wire.head(AUDIO, live=True) + wire.block(700, 0) + counted(0, 700)
    for at in range(0, len(data), 7):
        writer.socket.sendall(data[at : at + 7])
    assert writer.finish() == "end 700"
    assert in_order(rig.numbers, 0, 700)


def test_a_second_program_is_refused_with_a_sentence(rig: Rig, writer: Writer, path: Path) -> None:
    """While the first one writes; that one does not notice."""
    writer.head()
    writer.block(0, 1000)
    rig.captured(960)
    second = Writer(path)
    told = second.last()
    second.close()
    assert told == (
        f"error: the program {os.getpid()} of uid {os.geteuid()} writes already; one program at "
        "a time"
    )
    writer.block(1000, 9000)
    assert writer.finish() == "end 10000"
    rig.captured(10_000)
    assert in_order(rig.numbers, 0, 10_000)


def test_one_that_is_silent_for_long_makes_way(
    rig: Rig, writer: Writer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that hangs does not keep its successor out."""
    monkeypatch.setattr(tested, "IDLE_NS", 0)
    second = Writer(path)
    assert second.line() == "ok S16_LE 48000 2"
    assert writer.last() == "error: another program has taken over, since nothing came for 5 s"
    second.socket.sendall(counted(0, 960))
    assert second.finish() == "end 960"
    second.close()
    assert in_order(rig.numbers, 0, 960)


CHILD = """
import os, socket, sys
groups, path = [int(one) for one in sys.argv[2:]], sys.argv[1]
os.setgroups(groups)
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as link:
    link.connect(path)
    print(link.makefile().readline(), end="")
"""


@pytest.mark.parametrize("member", [False, True])
def test_only_who_may_use_the_sound_card_is_let_in(rig: Rig, path: Path, member: bool) -> None:
    """Others are told which groups may; what they write is nothing."""
    if os.geteuid() != 0:
        pytest.skip("to be somebody else needs root")
    rig.trouble("no program is connected")
    groups = sorted(ids())[:1] if member else []
    if member and not groups:
        pytest.skip("the groups audio and capstand are missing")
    told = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), *map(str, groups)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    refused = "error: uid 65534 may not bring sound; members of the groups audio and capstand may\n"
    assert told == ("ok S16_LE 48000 2\n" if member else refused)


def test_a_killed_program_leaves_whole_frames(rig: Rig, path: Path) -> None:
    """What it wrote before is there once and in order, and the next program is let in."""
    rig.trouble("no program is connected")
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tests.capture.programs import Writer, counted\n"
        f"writer = Writer(Path({str(path)!r}))\n"
        "at = 0\nwhile True:\n    writer.socket.sendall(counted(at, 1001))\n    at += 1001\n"
    )
    root = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", code], cwd=root)
    rig.captured(20_000)
    child.send_signal(signal.SIGKILL)
    child.wait(PATIENCE_S)
    told = rig.trouble("has closed the connection after")
    assert f"the program {child.pid} " in told
    captured = rig.capturer.tally.count().captured
    assert f"after {captured} frames" in told
    assert in_order(rig.numbers, 0, captured)
    after = Writer(path)
    assert after.line().startswith("ok ")
    after.close()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (wire.head(AUDIO._replace(rate_hz=44_100), live=True), "says 44100 Hz, 2 ch, S16_LE; this"),
        (
            wire.head(AUDIO._replace(sample=SampleFormat.S32_LE), live=True),
            "says 48000 Hz, 2 ch, S32_LE; this stream takes 48000 Hz, 2 ch, S16_LE",
        ),
        (
            wire.head(AUDIO, live=True) + wire.block(700, 0) + counted(0, 700) + b"x" * 24,
            "expected a block and found the bytes 78 78 78 78",
        ),
    ],
)
def test_what_is_no_sound_is_told_to_its_writer(
    rig: Rig, writer: Writer, data: bytes, told: str
) -> None:
    """And to the operator; what came before the fault is in the stream."""
    writer.socket.sendall(data)
    assert told in (last := writer.last()) and last.startswith("error: ")
    assert told in rig.trouble("wrote what cannot be taken")
    assert in_order(rig.numbers, 0, 700 if len(data) > 100 else 0)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    begin=st.sampled_from([b"", wire.MAGIC, wire.head(AUDIO, live=True)]),
    parts=st.lists(st.binary(max_size=4000), max_size=3),
)
def test_hostile_bytes_keep_no_honest_program_out(
    begin: bytes, parts: list[bytes], shared_rig: tuple[Rig, Path]
) -> None:
    """Whatever came before, the next program brings each of its frames once."""
    rig, path = shared_rig
    hostile = Writer(path)
    try:
        for part in [begin, *parts]:
            hostile.socket.sendall(part)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it was sent away
    hostile.close()
    while True:
        honest = Writer(path)
        if honest.line().startswith("ok "):
            break
        honest.close()
    honest.head()
    honest.block(0, 1500)
    assert honest.finish() == "end 1500"
    honest.close()
    assert in_order(rig.numbers[-1500:], 0, 1500)


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, Path]]:
    path = tmp_path_factory.mktemp("socket") / "mic.sock"
    rig = Rig(socket_capture(source=SocketConfig(str(path))))
    yield rig, path
    rig.close()


@pytest.mark.parametrize("state", ["alone", "silent", "full"])
def test_a_stop_waits_for_no_program(rigged: Rigged, path: Path, state: str) -> None:
    """Be there none, one that is silent, or one whose writes are held."""
    rig = rigged(socket_capture())
    rig.trouble("no program is connected")
    if state == "alone":
        rig.stop()
        return
    writer = Writer(path)
    assert writer.line() == "ok S16_LE 48000 2"
    if state == "full":
        writer.head()
        writer.block(0, 60_000)
        writer.socket.setblocking(False)
        rig.until(lambda: _full(writer))
        writer.socket.settimeout(PATIENCE_S)
    rig.stop()
    assert writer.last() == "error: the stream takes no sound any more"
    writer.close()


def _full(writer: Writer) -> bool:
    try:
        writer.socket.send(bytes(60_000))
    except BlockingIOError:
        return True
    return False


def test_a_release_closes_the_socket_until_it_is_resumed(
    rig: Rig, writer: Writer, path: Path
) -> None:
    """Who writes is told; afterwards programs are let in again."""
    writer.socket.sendall(counted(0, 4800))
    rig.captured(4800)
    rig.capturer.release("operator", "released")
    assert writer.last() == "error: the stream takes no sound any more"
    rig.until(rig.capturer.resting.is_set)
    assert not path.exists()
    rig.capturer.resume("operator")
    again = Writer(path)
    assert again.line() == "ok S16_LE 48000 2"
    again.close()


def test_only_a_dead_socket_makes_room(rigged: Rigged, path: Path) -> None:
    """One that nobody serves is replaced; another program's, and what is no socket, is told."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    rigged(socket_capture()).trouble("no program is connected")
    other = rigged(socket_capture(source=SocketConfig("other.sock")))
    other.trouble("no program is connected")
    twice = rigged(socket_capture(source=SocketConfig("other.sock")))
    assert "another program listens there" in twice.trouble("other.sock")
    (path.parent / "file").write_text("kept")
    refused = rigged(socket_capture(source=SocketConfig("file")))
    assert "no socket can be made there: Address already in use" in refused.trouble("file")
    assert refused.capturer.trouble is not None and refused.capturer.trouble.refused
    assert (path.parent / "file").read_text() == "kept"


def test_channels_are_picked_of_what_comes(rigged: Rigged, path: Path) -> None:
    """As of a card: the program brings all that hold them."""
    rig = rigged(socket_capture(pick=(2,)))
    writer = Writer(path)
    assert writer.line() == "ok S16_LE 48000 2"
    frames = np.array([[n, 7 * n] for n in range(4000)], "<u2")
    writer.socket.sendall(frames.tobytes())
    assert writer.finish() == "end 4000"
    writer.close()
    rig.captured(4000)
    assert rig.numbers.tolist() == [7 * n & 0xFFFF for n in range(4000)]
