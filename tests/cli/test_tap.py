"""``capstand tap`` beside a real daemon whose frames count themselves: every one once, in order, at
its place; what is missing is silence, and told to the frame."""

import ctypes
import fcntl
import json
import mmap
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.audio import ring
from capstand.audio.block import NS_PER_S, AudioFormat, SampleFormat
from capstand.audio.ring import MAGIC, Ring
from capstand.cli import main as cli
from capstand.cli import tapping
from capstand.cli.tapping import QUIET_NS, Missing, Tap
from capstand.errors import CapstandError
from capstand.host import control
from tests.patience import PATIENCE_S
from tests.service.test_service import Daemon

RATE_HZ, FRAMES = 48_000, 480
S16 = AudioFormat(RATE_HZ, 2, SampleFormat.S16_LE)
BUFFER_MS = 2000
RING_FRAMES = 2 * BUFFER_MS * RATE_HZ // 1000
CONFIG = f"""
[[stream]]
name = "mic"
[stream.capture]
device = "synthetic"
synthetic = {{{{signal = "counter"}}}}
buffer_ms = {BUFFER_MS}
[[stream.sink]]
type = "file"
path = "{{folder}}/sound"
min_free_mb = 0
"""


class Taps:
    """A daemon and the taps of it."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.folder = folder
        self.runtime = folder / "run"
        self.daemon = Daemon(folder, CONFIG.format(folder=folder) + more)
        self.started: list[subprocess.Popen[bytes]] = []
        self.daemon.hear("READY=1")

    def tap(self, *options: str, stdout: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "capstand", "tap", *options, "--runtime"]
        one = subprocess.Popen(
            [*command, str(self.runtime)], stdout=stdout, stderr=subprocess.PIPE, cwd=self.folder
        )
        self.started.append(one)
        return one

    def to_file(self, name: str, *options: str) -> tuple[subprocess.Popen[bytes], Path]:
        path = self.folder / name
        with path.open("wb") as out:
            return self.tap("mic", "--raw", *options, stdout=out), path

    @property
    def status(self) -> dict[str, Any]:
        answer = control.ask(self.runtime / control.NAME, "status", PATIENCE_S)
        stream: dict[str, Any] = answer["streams"][0]
        return stream

    def until(self, state: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not state():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def close(self) -> None:
        for one in self.started:
            if one.poll() is None:
                one.kill()
            one.communicate()
        self.daemon.close()


@pytest.fixture
def taps(tmp_path: Path) -> Iterator[Taps]:
    one = Taps(tmp_path)
    yield one
    one.close()


def values(raw: bytes) -> npt.NDArray[np.int64]:
    """The numbers of the frames; silence is 0."""
    return np.frombuffer(raw[: len(raw) // 4 * 4], "<u4").astype(np.int64)


def silent(raw: bytes) -> int:
    """Each frame is at its place; returns how many are silence."""
    heard = values(raw)
    there = heard != 0
    assert there.any()
    places = np.flatnonzero(there)
    assert set(heard[places] - places) == {heard[places[0]] - places[0]}
    return int((~there[places[0] : places[-1] + 1]).sum())


def told(err: bytes) -> tuple[int, int]:
    """Frames missed and lost, each as told when it happened; the end says the same."""
    text = err.decode()
    missed = sum(map(int, re.findall(r"(\d+) frames missed \(", text)))
    lost = sum(map(int, re.findall(r"(\d+) frames lost \(", text)))
    in_all = re.findall(r"in all (\d+) frames missed, (\d+) lost", text)
    assert in_all == ([(str(missed), str(lost))] if missed or lost else [])
    return missed, lost


def last_of(path: Path) -> int:
    """The number of the newest frame in a file that is being written."""
    size = path.stat().st_size // 4 * 4
    with path.open("rb") as file:
        file.seek(max(0, size - 4))
        raw = file.read(4)
    return int.from_bytes(raw, "little")


def end(one: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    one.send_signal(signal.SIGTERM)
    _, err = one.communicate(timeout=PATIENCE_S)
    return one.returncode, err


def test_a_slow_one_harms_nobody(taps: Taps) -> None:
    """Three at once and a recording beside them, and a fourth that is killed. One is not read: it
    misses frames, which are silence, and says how many; the others and the recording have all."""
    quick = [taps.to_file(f"quick{one}") for one in range(2)]
    slow, killed = taps.tap("mic", "--raw"), taps.tap("mic", "--raw")
    assert slow.stdout is not None and killed.stdout is not None
    for one in (slow, killed):
        assert one.stdout is not None
        assert select.select([one.stdout], [], [], PATIENCE_S)[0]
    killed.kill()
    taps.until(lambda: all(path.stat().st_size for _, path in quick))
    begun = taps.status["captured_frames"]
    taps.until(lambda: taps.status["captured_frames"] > begun + 1.5 * RING_FRAMES)
    got = bytearray()
    wanted = taps.status["captured_frames"]
    while not got or values(bytes(got)).max() < wanted:
        got += slow.stdout.read1(1 << 16)  # type: ignore[attr-defined]
    slow.send_signal(signal.SIGTERM)
    rest, err = slow.communicate(timeout=PATIENCE_S)
    missed, lost = told(err)
    assert slow.returncode == 0 and missed > 0 and b"stdout was not read in time" in err
    assert silent(bytes(got) + rest) == missed + lost
    for tap, path in quick:
        status, err = end(tap)
        missed, lost = told(err)
        assert (status, missed) == (0, 0)
        assert silent(path.read_bytes()) == lost
    assert taps.daemon.end() == 0
    stats = json.loads((taps.folder / "state/ledger/mic.jsonl").read_text().splitlines()[-1])
    (sink,) = stats["sinks"]
    assert (sink["dropped_frames"], stats["captured_frames"]) == (0, sink["delivered_frames"])


def test_it_goes_on_when_the_streams_process_is_killed(taps: Taps) -> None:
    """The memory is the same: what was lost meanwhile is a gap of its length."""
    tap, path = taps.to_file("mic")
    taps.until(lambda: path.stat().st_size)
    pid, there = taps.status["pid"], taps.status["captured_frames"]
    os.kill(pid, signal.SIGKILL)
    taps.until(lambda: last_of(path) > there + RATE_HZ)
    assert taps.status["pid"] != pid
    status, err = end(tap)
    missed, lost = told(err)
    assert (status, missed) == (0, 0) and lost > 0
    heard = values(path.read_bytes())
    places = np.flatnonzero(heard)
    begins = np.flatnonzero(np.diff(heard[places] - places))
    assert len(begins) == 1  # the card counts anew, from 0, which is no silence
    assert (heard[places[0] : places[-1]] == 0).sum() - 1 == lost


def test_it_outlives_a_reload_but_not_another_format(taps: Taps) -> None:
    """The stream is started anew with another ring: the tap takes that. With another format, and
    when the daemon ends, it ends in words."""
    tap, path = taps.to_file("mic")
    taps.until(lambda: path.stat().st_size > 4 * RATE_HZ)
    setup = taps.folder / "capstand.toml"
    setup.write_text(setup.read_text().replace("buffer_ms", "period_ms = 20\nbuffer_ms"))
    taps.daemon.process.send_signal(signal.SIGHUP)
    assert tap.stderr is not None
    assert b"raw samples" in tap.stderr.readline()
    assert b"started anew; going on" in tap.stderr.readline()
    size = path.stat().st_size
    taps.until(lambda: path.stat().st_size > size + 4 * RATE_HZ)
    setup.write_text(setup.read_text().replace("buffer_ms", 'format = "S32_LE"\nbuffer_ms'))
    taps.daemon.process.send_signal(signal.SIGHUP)
    assert tap.wait(PATIENCE_S) == 1
    said = tap.stderr.read()
    assert b"mic has ended: since a reload it is 48000 Hz, 2 ch, S32_LE, and it was" in said
    last = taps.tap("mic", stdout=subprocess.DEVNULL)
    taps.until(lambda: taps.status["format"] == "S32_LE")
    assert taps.daemon.end() == 0
    assert last.wait(PATIENCE_S) == 1
    assert last.stderr is not None and b"cannot reach the daemon" in last.stderr.read()


def test_forms(taps: Taps) -> None:
    """Of --seconds exactly so much; as other programs read it."""
    raw = taps.tap("mic", "--raw", "--seconds", "0.5")
    flac = taps.tap("mic", "--flac", "--seconds", "0.5")
    wav = taps.tap("mic", "--seconds", "0.5")
    outs = [one.communicate(timeout=PATIENCE_S) for one in (raw, flac, wav)]
    assert [one.returncode for one in (raw, flac, wav)] == [0, 0, 0]
    heard = [outs[0][0], b"", outs[2][0][44:]]
    assert b"raw samples: 48000 Hz, 2 ch, S16_LE" in outs[0][1]
    (taps.folder / "mic.flac").write_bytes(outs[1][0])
    with soundfile.SoundFile(taps.folder / "mic.flac") as file:
        assert (file.samplerate, file.channels, file.subtype) == (RATE_HZ, 2, "PCM_16")
        file.seekable = lambda: False  # one of unknown length is read from its beginning only
        heard[1] = file.buffer_read(RATE_HZ // 2, dtype="int16")[:]
    if ffmpeg := shutil.which("ffmpeg"):
        command = [ffmpeg, "-v", "error", "-i", "-", "-f", "s16le", "-"]
        for at, form in ((1, outs[1][0]), (2, outs[2][0])):
            done = subprocess.run(command, input=form, capture_output=True, check=True)
            assert done.stderr == b""
            heard[at] = done.stdout
    for one in heard:
        assert len(one) == 2 * RATE_HZ
        assert set(np.diff(values(one))) == {1}


def test_the_sound_before_and_behind_the_processors(tmp_path: Path) -> None:
    """What its sinks get, or what is asked for; "processed" where nothing is done is refused."""
    taps = Taps(tmp_path, '[[stream.process]]\ntype = "channels"\npick = [2]\n')
    try:
        ends = ["--raw", "--seconds", "0.2"]
        both = [("usual",), ("--input", "processed"), ("--input", "captured")]
        outs = [taps.tap("mic", *ends, *one[: 2 * (one[0] != "usual")]) for one in both]
        told = [one.communicate(timeout=PATIENCE_S) for one in outs]
        assert [len(out) for out, _ in told] == [RATE_HZ // 5 * 2] * 2 + [RATE_HZ // 5 * 4]
        assert [b"1 ch" in err for _, err in told] == [True, True, False]
    finally:
        taps.close()


def test_what_is_not_processed_is_told(taps: Taps) -> None:
    _, err = taps.tap("mic", "--input", "processed").communicate(timeout=PATIENCE_S)
    assert b"mic has no [[stream.process]]; its sound is as captured" in err


def test_a_reader_that_goes_ends_it_quietly(taps: Taps) -> None:
    tap = taps.tap("mic")
    assert tap.stdout is not None and tap.stderr is not None
    assert tap.stdout.read(44).startswith(b"RIFF")
    tap.stdout.close()
    assert (tap.wait(PATIENCE_S), tap.stderr.read()) == (0, b"")


def test_what_cannot_be_tapped_is_told(
    taps: Taps, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, err = taps.tap("mice").communicate(timeout=PATIENCE_S)
    assert b"'mice' is not a stream of this daemon; it has mic" in err
    assert cli.main(["tap", "mic", "--runtime", str(tmp_path / "nowhere")]) == 1
    assert "cannot reach the daemon (No such file or directory)" in capfd.readouterr().err
    ours, terminal = pty.openpty()
    tap = taps.tap("mic", stdout=terminal)
    assert tap.wait(PATIENCE_S) == 1
    assert tap.stderr is not None and b"stdout is a terminal" in tap.stderr.read()
    os.close(ours)
    os.close(terminal)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_who_may_not_is_refused(taps: Taps) -> None:
    """Another user is refused; one who was handed the memory can neither write nor open it so."""
    path = taps.runtime / control.NAME
    _, memory = control.ask_for_descriptor(path, "tap", PATIENCE_S, stream="mic")
    seen, told = os.pipe()
    pid = os.fork()
    if not pid:
        os.chdir(taps.runtime)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: its /proc is its own
        tried: list[Callable[[], object]] = [
            lambda: control.ask_for_descriptor(Path(control.NAME), "tap", stream="mic"),
            lambda: os.write(memory, b"\0"),
            lambda: mmap.mmap(memory, 0),
            lambda: os.ftruncate(memory, 0),
            lambda: os.open(f"/proc/self/fd/{memory}", os.O_RDWR),
        ]
        for one in tried:
            try:
                one()
                os.write(told, b"done\n")
            except Exception as error:  # noqa: BLE001  it is told
                os.write(told, f"{type(error).__name__} {error}\n".encode())
        os._exit(0)
    os.close(told)
    with os.fdopen(seen) as file:
        refused, *others = file.read().splitlines()
    os.waitpid(pid, 0)
    os.close(memory)
    assert "uid 65534 may not tap a stream; only root" in refused
    assert len(others) == 4
    assert all(other.startswith(("OSError", "PermissionError")) for other in others), others


# A ring, without a daemon


class Rate:
    ns_per_frame = NS_PER_S / RATE_HZ
    drift_ppm = 0.0
    settled = True


class Tapped:
    """A ring that the test writes, and a tap of it."""

    def __init__(self, fill: bool = True) -> None:
        self.ring = Ring(16, FRAMES * 4)
        self.frame = self.captured = 0
        self.block()
        memory = self.ring.open_for_reading()
        self.tap = Tap(S16, memory, fill)
        os.close(memory)

    def block(self, lost: int = 0) -> None:
        self.frame += lost
        raw = np.arange(self.frame + 1, self.frame + 1 + FRAMES, dtype="<u4").tobytes()
        self.ring.slot()[: len(raw)] = raw
        at_ns = self.frame * NS_PER_S // RATE_HZ
        self.ring.publish(self.frame, FRAMES, at_ns, self.captured, Rate())
        self.frame += FRAMES
        self.captured += FRAMES

    def heard(self) -> bytes:
        return b"".join(self.tap.sound())


def test_a_long_gap_is_filled_while_it_lasts() -> None:
    """Silence comes as time goes, never more than the gap; when it is over, each frame is at its
    place."""
    one = Tapped()
    one.block()
    got = one.heard()
    end_ns = one.frame * NS_PER_S // RATE_HZ
    assert b"".join(one.tap.overdue(end_ns + QUIET_NS)) == b""
    for second in range(1, 61):
        piece = b"".join(one.tap.overdue(end_ns + QUIET_NS + second * NS_PER_S))
        assert 0.99 * RATE_HZ < len(piece) / 4 <= RATE_HZ and not any(piece)
        got += piece
    one.block(lost=63 * RATE_HZ)
    one.block()
    got += one.heard()
    assert silent(got) == 63 * RATE_HZ
    assert one.tap.missing == Missing(0, 63 * RATE_HZ)


def test_what_is_missing_may_be_left_out() -> None:
    one = Tapped(fill=False)
    one.block()
    one.block(lost=1000)
    assert list(np.diff(values(one.heard()))) == [1] * 479 + [1001] + [1] * 479
    for _ in range(40):
        one.block()
    one.block(lost=7)
    assert len(one.heard()) == 8 * FRAMES * 4
    assert one.tap.missing == Missing(33 * FRAMES, 1007)


def test_a_lapped_one_fills_what_it_missed() -> None:
    one = Tapped()
    one.block()
    got = one.heard()
    for _ in range(40):
        one.block()
    got += one.heard()
    assert silent(got) == one.tap.missing.missed == 32 * FRAMES


def memory(head: tuple[int, ...], content: bytes, sealed: bool = True) -> int:
    made = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    raw = np.array(head, "<i8").tobytes().ljust(ring.HEAD, b"\0")[: ring.HEAD] + content
    os.write(made, raw)
    if sealed:
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, ring.SEALS)
    return made


WHOLE = 4 * (ring.SLOT.size + 64)


@pytest.mark.parametrize(
    ("head", "size", "sealed", "why"),
    [
        ((MAGIC, 4, 64, 1), WHOLE, False, "not sealed"),
        ((MAGIC + 1, 4, 64, 1), WHOLE, True, "layout"),
        ((MAGIC, 0, 64, 1), WHOLE, True, "no sizes"),
        ((MAGIC, 4, -64, 1), WHOLE, True, "no sizes"),
        ((MAGIC, 4, 64, -1), WHOLE, True, "no sizes"),
        ((MAGIC, 1 << 62, 64, 1), WHOLE, True, "not the size"),
        ((MAGIC, 4, 64, 1), WHOLE - 1, True, "not the size"),
        ((MAGIC, 4, 64, 9), WHOLE, True, "not where it should be"),
    ],
)
def test_what_is_no_ring_is_refused(
    head: tuple[int, ...], size: int, sealed: bool, why: str
) -> None:
    made = memory(head, bytes(size), sealed)
    with pytest.raises(ValueError, match=why):
        Tap(S16, made, True)
    os.close(made)
    with Path(os.devnull).open() as other, pytest.raises(ValueError):
        Tap(S16, other.fileno(), True)


@given(st.binary(min_size=WHOLE, max_size=WHOLE), st.integers(0, 12), st.integers(0, 12))
@settings(max_examples=200, deadline=None)
def test_memory_of_nonsense_is_told(content: bytes, published: int, more: int) -> None:
    """Whatever is in it, and whatever it becomes: the tap goes on or ends in words."""
    made = memory((MAGIC, 4, 64, published), content)
    try:
        tap = Tap(S16, made, True)
        os.pwrite(made, (published + more).to_bytes(8, "little"), 24)
        for _ in zip(range(100), tap.sound(), strict=False):
            pass
        tap.close()
    except (ValueError, CapstandError):
        pass
    finally:
        os.close(made)


def test_a_flac_is_refused_where_it_would_lose_bits() -> None:
    with pytest.raises(CapstandError, match="24 bits at most, and the stream is S32_LE"):
        tapping.Flac(AudioFormat(RATE_HZ, 2, SampleFormat.S32_LE))
    with pytest.raises(CapstandError, match="8 channels at most, and the stream has 9"):
        tapping.Flac(AudioFormat(RATE_HZ, 9, SampleFormat.S16_LE))
