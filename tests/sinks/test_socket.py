"""The stream at a Unix socket: every reader gets every frame, or loses whole ones, and knows it.

Sockets are real; who reads when is the test's to say, so nothing waits for a clock.
"""

import io
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from capstand.audio.block import NS_PER_S, AudioFormat, Block, SampleFormat
from capstand.config.decode import decode
from capstand.config.schema import Config
from capstand.dsp.convert import convert, to_int32
from capstand.errors import ConfigError, SinkError
from capstand.sinks.socket import StreamSocket
from capstand.sinks.types.socket import SocketSinkConfig
from capstand.stream.stream import Stream
from tests import line
from tests.patience import PATIENCE_S

RATE_HZ, FRAMES = 48_000, 480
S16 = AudioFormat(RATE_HZ, 2, SampleFormat.S16_LE)


class Rate:
    """A Pace."""

    ns_per_frame = NS_PER_S / RATE_HZ
    drift_ppm = 0.0
    settled = True


def numbers(frame: int, frames: int, width: int = 4) -> bytes:
    """Frame n has the value n + 1, so that silence is none of them, in its first 4 bytes."""
    raw = np.zeros((frames, width), np.uint8)
    raw[:, :4] = np.arange(frame + 1, frame + frames + 1, dtype="<u4").view(np.uint8).reshape(-1, 4)
    return raw.tobytes()


class Served:
    """A sink, what it is given, and who reads."""

    def __init__(
        self, path: Path, audio: AudioFormat = S16, frames: int = FRAMES, **setup: Any
    ) -> None:
        self.path = path
        self.frames = frames
        self.audio, self.width = audio, audio.frame_bytes
        self.frame = 0
        self.sink = StreamSocket(SocketSinkConfig("socket", **setup), path, audio, Rate())
        self.sink.open()
        self.readers: list[socket.socket] = []

    def blocks(self, count: int = 1, lost: int = 0) -> None:
        self.frame += lost
        for _ in range(count):
            samples = numbers(self.frame, self.frames, self.width)
            self.sink.write(Block(self.frame, self.frames, 0, samples, self.audio))
            self.frame += self.frames

    def connect(self) -> socket.socket:
        reader = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        reader.connect(str(self.path))
        reader.settimeout(PATIENCE_S)
        self.readers.append(reader)
        return reader

    def figures(self) -> dict[str, Any]:
        return self.sink.figures(0)

    def of(self, place: int = 0) -> dict[str, int]:
        """The figures of a reader."""
        found: dict[str, int] = self.figures()["readers"][place]
        return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def make(audio: AudioFormat = S16, **setup: Any) -> Served:
        made.append(Served(tmp_path / "mic.sock", audio, **setup))
        return made[-1]

    yield make
    for one in made:
        for reader in one.readers:
            reader.close()
        one.sink.close()


Make = Callable[..., Served]


def there(reader: socket.socket) -> bytes:
    """All that has come; what the kernel holds, without waiting."""
    reader.setblocking(False)
    got = b""
    while True:
        try:
            more = reader.recv(1 << 20)
        except BlockingIOError:
            return got
        if not more:
            return got
        got += more


def to_the_end(reader: socket.socket) -> bytes:
    reader.setblocking(True)
    return b"".join(iter(lambda: reader.recv(1 << 20), b""))


def values(raw: bytes, width: int = 4) -> npt.NDArray[np.int64]:
    octets = np.frombuffer(raw, np.uint8).reshape(-1, width)[:, :4]
    return np.ascontiguousarray(octets).view("<u4").reshape(-1).astype(np.int64)


# Every byte


def test_each_gets_every_frame_from_when_it_came(served: Make) -> None:
    """Several at once, one of them later: all bytes, in order; and at the end what waits, and an
    end."""
    one = served()
    first, second = one.connect(), one.connect()
    got: dict[socket.socket, bytes] = {first: b"", second: b""}
    for number in range(100):
        one.blocks()
        if number == 49:
            third = one.connect()
            got[third] = b""
        for reader in got:
            got[reader] += there(reader)
    assert [one.of(place)["sent_frames"] for place in range(3)] == [48_000, 48_000, 24_000]
    assert one.sink.detail == f"{one.path}, 3 readers" and one.sink.concern is None
    one.sink.close()
    for reader, since in ((first, 0), (second, 0), (third, 24_000)):
        assert got[reader] + to_the_end(reader) == numbers(since, 48_000 - since)
    assert not one.path.exists()


def test_a_stream_without_a_reader_flows(served: Make) -> None:
    """There is nothing to wait for."""
    one = served()
    one.blocks(1000)
    assert one.sink.detail == f"{one.path}, no readers"
    assert one.figures()["lost_frames"] == 0


@pytest.mark.parametrize("sample", list(SampleFormat))
def test_a_wav_without_end_can_be_read(served: Make, sample: SampleFormat) -> None:
    """A header that says what follows, and all samples of it to the bit, as libsndfile reads them;
    what a WAV cannot hold comes in a format that can."""
    audio = AudioFormat(RATE_HZ, 2, sample)
    rng = np.random.default_rng(3)
    wide = rng.integers(-(2**31), 2**31, 2 * FRAMES).astype("<i4").tobytes()
    noise = convert(wide, SampleFormat.S32_LE, sample)
    one = served(audio, container="wav")
    reader = one.connect()
    for number in range(3):
        one.sink.write(Block(number * FRAMES, FRAMES, 0, noise, audio))
    raw = there(reader)
    floats = sample is SampleFormat.FLOAT_LE
    got, rate_hz = soundfile.read(
        io.BytesIO(raw), dtype="float32" if floats else "int32", always_2d=True
    )
    assert (rate_hz, got.shape) == (RATE_HZ, (3 * FRAMES, 2))
    wanted = np.frombuffer(noise, "<f4") if floats else to_int32(noise, sample)
    assert np.array_equal(got.reshape(3, -1), np.tile(wanted, (3, 1)))


@pytest.mark.parametrize("gaps", ["silence", "skip"])
def test_a_gap_is_silence_or_left_out(served: Make, gaps: str) -> None:
    """Silence of its length, counted; of a long gap no more than half of the buffer."""
    one = served(gaps=gaps)
    reader = one.connect()
    one.blocks()
    one.blocks(lost=1000)
    got = values(there(reader))
    silent = 1000 if gaps == "silence" else 0
    assert not got[FRAMES : FRAMES + silent].any() and len(got) == 2 * FRAMES + silent
    assert got[FRAMES + silent] == 1000 + FRAMES + 1
    assert one.sink.inserted_frames == silent
    one.blocks(lost=10_000_000)
    assert one.sink.inserted_frames - silent == (RATE_HZ if gaps == "silence" else 0)
    got = values(there(reader))
    while one.of()["waiting_frames"]:
        one.sink.flush()
        got = np.concatenate([got, values(there(reader))])
    assert len(got) == FRAMES + one.sink.inserted_frames - silent and one.of()["lost_frames"] == 0


# One that is slow, or goes


@pytest.mark.parametrize("frames", [FRAMES, 24_000])  # the latter are sent in parts
@pytest.mark.parametrize("sample", [SampleFormat.S16_LE, SampleFormat.S24_3LE])
def test_a_slow_reader_loses_whole_frames_and_no_other_does(
    served: Make, frames: int, sample: SampleFormat
) -> None:
    """Who does not read for 20 s: what its buffer has no room for is lost to it, oldest first,
    counted to the frame. The others get all, and it goes on with what is new."""
    one = served(S16._replace(sample=sample), frames=frames, buffer_ms=1000)
    slow, quick = one.connect(), one.connect()
    heard = bytearray()
    for _ in range(20 * RATE_HZ // frames):
        one.blocks()
        heard += there(quick)
    assert heard == numbers(0, 20 * RATE_HZ, one.width)
    of = one.of()
    assert of["waiting_frames"] <= RATE_HZ < of["lost_frames"]
    assert of["sent_frames"] + of["waiting_frames"] + of["lost_frames"] == 20 * RATE_HZ
    assert (
        one.sink.concern == f"too slow to read: pid {os.getpid()} lost {of['lost_frames']} frames"
    )
    assert one.of(1)["lost_frames"] == one.of(1)["waiting_frames"] == 0
    got = there(slow)
    while one.of()["waiting_frames"]:
        one.blocks()
        got += there(slow)
    got += there(slow)
    got_frames = values(got, one.width)
    assert (got_frames[0], got_frames[-1]) == (1, one.frame)
    lost = np.diff(got_frames) - 1
    assert lost.min() >= 0 and lost.sum() == one.of()["lost_frames"] == one.figures()["lost_frames"]
    assert one.sink.concern is None


def test_at_the_end_readers_get_what_waits(served: Make) -> None:
    """More than the kernel holds; one that does not read is not waited for."""
    one = served(frames=12_000, buffer_ms=60_000)
    late, never = one.connect(), one.connect()
    one.blocks(40)
    assert one.of()["waiting_frames"] > 12_000
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(to_the_end(late)))
    thread.start()
    one.sink.close()
    thread.join()
    assert got == [numbers(0, one.frame)]
    assert 0 < len(to_the_end(never)) < one.frame * S16.frame_bytes


def test_a_killed_reader_goes_and_harms_nobody(served: Make) -> None:
    """It is let go of with the next block, and also where no sound flows; the others get all."""
    one = served()
    quick = one.connect()
    code = (
        "import socket, sys\n"
        "reader = socket.socket(socket.AF_UNIX)\n"
        "reader.connect(sys.argv[1])\n"
        "while reader.recv(1000): print('read', flush=True)"
    )
    got = b""
    for sounds in (True, False):
        killed = subprocess.Popen([sys.executable, "-c", code, one.path], stdout=subprocess.PIPE)
        assert killed.stdout is not None
        while not select.select([killed.stdout], [], [], 0.01)[0]:
            one.blocks()
            got += there(quick)
        assert len(one.figures()["readers"]) == 2
        killed.kill()
        killed.wait()
        killed.stdout.close()
        if sounds:
            one.blocks()
        else:
            one.sink.flush()
        assert len(one.figures()["readers"]) == 1
    got += there(quick)
    assert got == numbers(0, one.frame)


def test_one_that_talks_and_half_closes_still_listens(served: Make) -> None:
    """What a reader says is of no interest; one whose input has ended, as of nc, reads on."""
    one = served()
    reader = one.connect()
    reader.send(b"GET / HTTP/1.1\r\n\r\n")
    reader.shutdown(socket.SHUT_WR)
    one.blocks()
    one.sink.flush()
    one.blocks()
    assert there(reader) == numbers(0, 2 * FRAMES)


def test_there_are_so_many_places(served: Make) -> None:
    """Who comes beyond is closed without a byte; one who leaves frees a place."""
    one = served(readers=2)
    first, second, third = one.connect(), one.connect(), one.connect()
    one.blocks()
    assert to_the_end(third) == b"" and one.figures()["turned_away"] == 1
    first.close()
    fourth = one.connect()
    one.blocks()
    assert there(fourth) == numbers(FRAMES, FRAMES) and there(second) == numbers(0, 2 * FRAMES)


# Who may


def test_who_may_not_listen_hears_nothing(
    served: Make, nobody: Callable[[], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    """Another user who is in none of the groups is closed without a byte; a member of the group
    that is configured hears."""
    group = "nogroup"  # nobody's own
    cases: list[tuple[dict[str, Any], bytes]] = [({}, b""), ({"group": group}, numbers(0, FRAMES))]
    for setup, heard in cases:
        with nobody() as folder:
            pass
        one = Served(folder / "mic.sock", **setup)
        with nobody():
            reader = one.connect()
        one.blocks()
        one.sink.close()
        assert to_the_end(reader) == heard
        assert one.figures()["refused"] == (heard == b"")
        reader.close()


# The socket itself


def test_what_is_there_already(served: Make, tmp_path: Path) -> None:
    """A socket that a killed process left behind is taken over; one that another program serves,
    and what is no socket, is told and left alone; and what took its place is not removed."""
    path = tmp_path / "mic.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    one = served()
    with pytest.raises(SinkError, match="another program listens there; set another path"):
        served()
    reader = one.connect()
    one.blocks()
    assert there(reader) == numbers(0, FRAMES)
    path.unlink()
    path.write_text("a file")
    one.sink.close()
    with pytest.raises(SinkError, match="is there and is no socket; remove it"):
        served()
    assert path.read_text() == "a file"
    with pytest.raises(SinkError, match="no socket can be made: No such file or directory"):
        Served(tmp_path / "nowhere" / "mic.sock")


def test_a_reader_of_a_stream_outlives_its_process(tmp_path: Path) -> None:
    """As a daemon runs it: frames of the card, once and in order; a process that is killed ends its
    readers, the next one serves at the same path; a stop ends them with all that was captured."""
    stream = Stream(
        line.config(line.capture())._replace(sink=(SocketSinkConfig("socket"),)), tmp_path, tmp_path
    )
    (feed,) = stream.live
    path = tmp_path / "mic-socket.sock"
    got: list[bytes] = []

    def until(state: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not state():
            assert time.monotonic() < deadline, (feed.state, feed.trouble)
            stream.report(time.monotonic_ns())
            time.sleep(0.01)

    def read() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as reader:
            reader.connect(str(path))
            while more := reader.recv(1 << 16):
                got[-1] += more

    stream.start()
    for last in (False, True):
        until(lambda: feed.state == "open")
        got.append(b"")
        thread = threading.Thread(target=read)
        thread.start()
        until(lambda: len(got[-1]) > 40_000)
        if last:
            stream.drain(time.monotonic() + PATIENCE_S)
            stream.close(time.monotonic() + PATIENCE_S)
        else:
            assert feed.process.pid is not None
            os.kill(feed.process.pid, signal.SIGKILL)
            until(lambda: feed.failures)
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert set(np.diff(values(got[-1][: len(got[-1]) // 4 * 4]))) == {1}
    stats = stream.stats(time.monotonic_ns())
    assert stats.balanced and len(got[-1]) % 4 == 0
    assert values(got[-1])[-1] == stats.captured_frames - 1
    assert not path.exists()


# In the configuration


def faults(*sinks: str) -> list[str]:
    head = '[[stream]]\nname = "mic"\n[stream.capture]\ndevice = "hw:CARD=Mic"\nperiod_ms = 50\n'
    text = head + "".join(f'[[stream.sink]]\ntype = "socket"\n{sink}\n' for sink in sinks)
    with pytest.raises(ConfigError) as caught:
        decode(text, "c.toml", Config)
    return caught.value.faults


def test_what_a_configuration_may_not_say() -> None:
    twice = 'path = "/run/a/./b"\nname = "a"', 'path = "/run/a/b"'
    assert "is taken by sink 1 already" in faults(*twice)[0]
    assert "the name of a socket may have 107" in faults(f'path = "/{"x" * 107}"')[0]
    assert 'has no group "nowhere"' in faults('group = "nowhere"')[0]
    assert "is less than 4 periods of 50 ms" in faults("buffer_ms = 150")[0]
