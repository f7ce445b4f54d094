"""A chain in a process of its own, between two rings: what it does to sound, and what misbehaves in
it costs nobody else a frame."""

import os
import random
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from capstand.accounting.ledger import Ledger
from capstand.accounting.stats import StreamStats
from capstand.capture.types.synthetic import SyntheticConfig
from capstand.config.registry import PROCESSORS, SINKS
from capstand.config.schema import CaptureConfig, Config, StreamConfig
from capstand.host.peer import Peer
from capstand.processes import forkserver
from capstand.sharing.live_settings import LiveSettings
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.stream import Stream
from tests.counts import counts
from tests.foreign import install
from tests.patience import PATIENCE_S
from tests.processing.signals import settings

RATE = 48_000
ROOT = Peer(pid=1, uid=0, groups=frozenset())
EDGE_FRAMES = 2 * 240
"""What fades at a gap."""
WILD = '''
"""A processor that does what a file tells it, once it is there; and live sinks that write all."""

import ctypes
import os
import struct
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from capstand.config.rules import Choice, Whole
from capstand.config.registry import ProcessorType, SinkType
from capstand.config.schema import Input, Name
from capstand.sinks.live import SinkFactory
from capstand.sinks.sink import Sink


class Wild(NamedTuple):
    type: Annotated[str, Choice(("wild",))]
    told_by: str = "/nonexistent"
    delay_frames: int = 0


class Beast:
    def __init__(self, settings, shape):
        self._path = Path(settings.told_by)
        self.delay_frames = settings.delay_frames
        self._line = np.zeros((self.delay_frames, shape.channels), np.float32)

    def process(self, block):
        try:
            does = self._path.read_text()
        except OSError:
            does = ""
        once, _, does = does.rpartition(" ")
        if once:
            self._path.unlink()
        match does:
            case "raises":
                raise RuntimeError("wild")
            case "sleeps":
                time.sleep(1)
            case "spins":
                while True:
                    pass
            case "hangs":
                ctypes.PyDLL(None).usleep(3_600_000_000)
            case "aborts":
                os.abort()
            case "shape":
                return block[1:]
            case "nan":
                return np.full_like(block, np.nan)
            case "memory":
                np.ones(1 << 28).sum()
        both = np.concatenate([self._line, block])
        self._line = both[len(block):]
        return np.ascontiguousarray(both[: len(block)])

    def reset(self):
        self._line[:] = 0

    def change(self, settings):
        return False

    def figures(self):
        return {}


TYPE = ProcessorType(Wild, "wild.md", Beast)


class Wire(NamedTuple):
    type: Annotated[str, Choice(("wire",))]
    path: str
    name: Name = "wire"
    input: Input | None = None


class Writer(Sink):
    """Each block: first frame, frames, time stamp, samples."""

    detail = "rolling"

    def __init__(self, path, pace=None):
        self._path = path

    def open(self):
        self._file = open(self._path, "ab", buffering=0)

    def write(self, block):
        head = block.first_frame, block.frames, block.captured_at_ns, len(block.samples)
        self._file.write(struct.pack("@qqqq", *head) + block.samples)

    def flush(self):
        pass

    def close(self):
        self._file.close()


WIRE = SinkType(Wire, "wild.md", True, lambda sink, at: SinkFactory("wild:Writer", (sink.path,)))
'''


class Running:
    """One stream with real processes, looked after as the daemon does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told_by = folder / "told"
        self.concerns: list[str] = []
        self.troubles: list[str] = []
        self.ended: StreamStats | None = None
        self.stream: Stream | None = None

    def config(self, *process: Any, signal: str = "counter", sinks: Any = None) -> Any:
        if sinks is None:
            sinks = (self.file("raw", input="captured"), self.file("done"))
        capture = CaptureConfig(
            "synthetic", source=SyntheticConfig(signal), rt_priority=0, buffer_ms=4000.0
        )
        return StreamConfig("mic", capture, sinks, process)

    def file(self, name: str, **keys: Any) -> FileSinkConfig:
        return FileSinkConfig("file", str(self.folder / name), name=name, **keys)

    def wild(self, delay_frames: int = 0) -> Any:
        return PROCESSORS["wild"].schema("wild", str(self.told_by), delay_frames)

    def wire(self, name: str, **keys: Any) -> Any:
        return SINKS["wire"].schema("wire", str(self.folder / name), name, **keys)

    def start(self, config: StreamConfig) -> Stream:
        self.stream = Stream(config, self.folder / "state")
        self.stream.start()
        self.flow()
        return self.stream

    def look(self) -> None:
        assert self.stream is not None
        report = self.stream.report(time.monotonic_ns())
        assert report.stats.balanced, report.stats
        for seen, words in ((self.concerns, report.processing), (self.troubles, report.trouble)):
            if words and words not in seen[-1:]:
                seen.append(words)

    def stats(self) -> StreamStats:
        assert self.stream is not None
        return self.stream.stats(time.monotonic_ns())

    def delivered(self, sink: str) -> int:
        return next(one.delivered_frames for one in self.stats().sinks if one.name == sink)

    def until(self, state: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        self.look()
        while not state():
            assert time.monotonic() < deadline, (self.stats(), self.concerns)
            time.sleep(0.01)
            self.look()

    def flow(self, frames: int = 9600) -> None:
        """So many frames more in every sink."""
        names = [sink.name for sink in self.stats().sinks]
        goals = {name: self.delivered(name) + frames for name in names}
        self.until(lambda: all(self.delivered(name) >= goal for name, goal in goals.items()))

    def tell(self, what: str) -> None:
        hidden = self.told_by.with_suffix(".new")
        hidden.write_text(what)
        hidden.rename(self.told_by)

    @property
    def stalled(self) -> bool:
        """Whether the machine gave us so little time that the chain was bypassed, or that the
        card's sound was lost."""
        return bool(self.concerns or self.troubles or (self.ended and self.ended.gaps))

    @property
    def concern(self) -> str | None:
        assert self.stream is not None
        return self.stream.report(time.monotonic_ns()).processing

    def process(self) -> dict[str, Any]:
        found = self.stats().process
        assert found is not None
        return found

    def end(self) -> StreamStats:
        """Drained: nothing is left inside."""
        stream, deadline = self.stream, time.monotonic() + PATIENCE_S
        assert stream is not None
        assert stream.drain(deadline) == []
        assert stream.close(deadline) == []
        self.look()
        self.ended = self.stats()
        assert all(sink.in_flight_frames == 0 for sink in self.ended.sinks), self.ended
        assert self.ended.balanced
        stream.dispose()
        self.stream = None
        return self.ended

    def stamps(self, wire: str) -> list[tuple[int, int, Any]]:
        """Of each block that a live sink got: first frame, time stamp, samples."""
        raw, at, found = (self.folder / wire).read_bytes(), 0, []
        while at < len(raw):
            first_frame, frames, stamp_ns, size = struct.unpack_from("@qqqq", raw, at)
            samples = np.frombuffer(raw[at + 32 : at + 32 + size], "<i2").reshape(frames, -1)
            found.append((first_frame, stamp_ns, samples))
            at += 32 + size
        return found

    def samples(self, sink: str) -> Any:
        """All that was recorded, from the first frame on."""
        files = sorted((self.folder / sink).glob("*.wav"))
        parts = [soundfile.read(file, dtype="int16", always_2d=True)[0] for file in files]
        return np.concatenate(parts)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    points = {
        "capstand.processors": {"wild": "wild:TYPE"},
        "capstand.sinks": {"wire": "wild:WIRE"},
    }
    install(tmp_path / "wild", "wild", WILD, points)
    monkeypatch.syspath_prepend(str(tmp_path / "wild"))
    PROCESSORS.rescan()
    SINKS.rescan()
    forkserver.shared.end()  # the next one finds the module
    one = Running(tmp_path)
    yield one
    if one.stream is not None:
        one.stream.process.abandon()
        if one.stream._chain is not None:
            one.stream._chain.process.abandon()
    forkserver.shared.end()
    for registry in (PROCESSORS, SINKS):
        registry._found.pop("wild", None)
        registry._found.pop("wire", None)
        registry.rescan()


def sink_of(stats: StreamStats, name: str) -> Any:
    return next(sink for sink in stats.sinks if sink.name == name)


def numbers(samples: Any) -> Any:
    """The card's numbers of these frames."""
    halves = samples.view(np.uint16).astype(np.int64)
    return halves[:, 0] | halves[:, 1] << 16


def balanced_and_alike(running: Running, faults: int = 1) -> None:
    """Every captured frame is in the raw recording; in the processed one it is the same, or it was
    missed, which a machine that is busy for two seconds may do, and is booked."""
    ended = running.end()
    raw, done = running.samples("raw"), running.samples("done")
    missed = sink_of(ended, "done").dropped_frames
    assert sink_of(ended, "raw").delivered_frames == ended.captured_frames
    assert ended.captured_frames <= len(raw) <= ended.produced_frames
    assert len(raw) - missed <= len(done) <= len(raw)
    wrong = (raw[: len(done)] != done).any(axis=1).sum()
    edges = EDGE_FRAMES * (ended.gaps + (faults if missed else 0))
    assert wrong <= missed + edges


def test_a_chain_that_changes_nothing_is_exact(running: Running) -> None:
    """To the bit, and every frame of it, at the same index; what is captured is also all there."""
    running.start(running.config(settings("gain", gain_db=0.0)))
    running.flow(48_000)
    ended = running.end()
    raw, done = running.samples("raw"), running.samples("done")
    assert len(raw) == ended.produced_frames
    assert np.array_equal(raw, done) or running.stalled
    assert [sink.dropped_frames for sink in ended.sinks] == [0, 0] or running.stalled


def test_the_gain_is_exact(running: Running) -> None:
    """Half as loud, rounded to the nearest, however the blocks are cut."""
    running.start(running.config(settings("gain", gain_db=-6.0), signal="noise"))
    running.flow(48_000)
    running.end()
    raw, done = running.samples("raw"), running.samples("done")
    assert len(raw) == len(done) or running.stalled
    assert np.abs(done[:4800] - raw[:4800] * 10 ** (-6 / 20)).max() < 0.51
    assert np.abs(done - raw[: len(done)] * 10 ** (-6 / 20)).max() < 0.51 or running.stalled


def test_channels_that_come_out_are_the_sinks(running: Running) -> None:
    """Stereo goes in, and a mono recording comes out."""
    running.start(running.config(settings("channels", pick=(2,))))
    running.end()
    raw, done = running.samples("raw"), running.samples("done")
    assert done.shape[1] == 1
    assert np.array_equal(done[:, 0], raw[:, 1]) or running.stalled


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("raises", "process 1 (wild) is bypassed: RuntimeError: wild"),
        ("shape", "process 1 (wild) is bypassed: gave (1919, 2)"),
        ("nan", "process 1 (wild) is bypassed: gave what is not finite"),
        ("sleeps", "process 1 (wild) did not return within 50 ms"),
        ("spins", "process 1 (wild) did not return within 50 ms"),
        ("hangs", "its process showed no sign of life for 1 s"),
        ("aborts", "its process was ended by SIGABRT"),
        ("memory", "process 1 (wild) is bypassed: MemoryError"),
    ],
)
def test_what_misbehaves_is_bypassed(running: Running, does: str, words: str) -> None:
    """The raw recording has every frame, and the processed one, too: the sound goes on as it was
    captured, exactly, and later through the processor again."""
    running.start(running.config(running.wild()))
    running.tell(f"once {does}")
    running.until(lambda: any(words in concern for concern in running.concerns))
    running.flow()
    running.until(lambda: not running.concern)
    running.flow()
    if does not in ("hangs", "aborts"):
        (stage,) = running.process()["stages"]
        assert stage["faults"] >= 1 and not stage["bypassed"]
    balanced_and_alike(running)


def test_a_killed_chain_goes_on_where_it_was(running: Running) -> None:
    """At random moments, several times; capture and the raw recording do not notice."""
    running.start(running.config(running.wild()))
    dice, rounds = random.Random(5), counts(4, 30)
    for _ in range(rounds):
        running.flow(dice.randrange(480, 9600))
        pid = running.process()["pid"]
        os.kill(pid, signal.SIGKILL)
        running.until(lambda pid=pid: running.process()["pid"] not in (pid, None))  # type: ignore[misc]
        running.flow()
    assert running.process()["restarts"] >= rounds
    balanced_and_alike(running, rounds)


def test_a_killed_stream_takes_the_processed_sound_along(running: Running) -> None:
    """The chain goes on with what the next process of the stream captures; all is booked."""
    stream = running.start(running.config(running.wild()))
    pid = stream.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    running.until(lambda: stream.process.pid not in (pid, None))
    running.flow()
    ended = running.end()
    for sink in ended.sinks:
        assert sink.delivered_frames + sink.dropped_frames == ended.captured_frames


def test_what_is_not_processed_at_the_end_is_booked(running: Running) -> None:
    """The chain's process hangs while the stream is stopped."""
    stream = running.start(running.config(running.wild()))
    running.tell("hangs")
    running.until(lambda: not running.told_by.exists() or running.concerns)
    deadline = time.monotonic() + 1.0
    assert stream.drain(deadline) in ([], ["its processors"])
    assert stream.close(time.monotonic() + PATIENCE_S) == []
    running.look()
    ended = running.stats()
    assert all(sink.in_flight_frames == 0 for sink in ended.sinks)
    assert sink_of(ended, "raw").delivered_frames == ended.captured_frames
    stream.dispose()
    running.stream = None


def test_a_live_sink_and_a_recording_get_the_same(running: Running) -> None:
    """Of one chain, the live one within 20 ms; a third gets the captured sound."""
    sinks = (
        *(running.file("raw", input="captured"), running.file("done")),
        *(running.wire("live"), running.wire("plain", input="captured")),
    )
    running.start(running.config(settings("channels", swap=True), sinks=sinks))
    running.flow(48_000)
    running.end()
    done, raw = running.samples("done"), running.samples("raw")
    assert len(running.stamps("live")[-1][2]) <= 960
    if running.stalled:
        return
    assert np.array_equal(done, raw[:, ::-1])
    for name, whole in (("live", done), ("plain", raw)):
        blocks = running.stamps(name)
        assert blocks
        for first_frame, _, samples in blocks:
            assert np.array_equal(samples, whole[first_frame : first_frame + len(samples)])


def test_time_stamps_are_those_of_the_sound(running: Running) -> None:
    """A processor delays by 10 ms and says so: each frame has the stamp at which it was captured,
    and the status says how late it comes."""
    sinks = running.wire("late"), running.wire("plain", input="captured")
    running.start(running.config(running.wild(480), sinks=sinks))
    running.flow(24_000)
    running.until(lambda: running.process()["delay_ms"] == 10.0)
    running.end()
    plain = {first: stamp for first, stamp, _ in running.stamps("plain")}
    compared = 0
    for first_frame, stamp, samples in running.stamps("late"):
        number = int(numbers(samples)[0])
        if number and number in plain and not running.stalled:
            assert number == first_frame - 480
            assert abs(plain[number] - stamp) < 1_000_000
            compared += 1
    assert compared > 10 or running.stalled


def test_changed_settings_lose_nothing_and_make_no_step(running: Running) -> None:
    """A reload to half the level, while the chain runs: by and by, and with the same process."""
    before = running.config(settings("gain", gain_db=0.0), signal="tone")
    after = before._replace(process=(settings("gain", gain_db=-6.0),))
    stream = running.start(before)
    pid, own = running.process()["pid"], stream.process.pid
    stream.exchange(after)
    running.flow(24_000)
    assert (running.process()["pid"], stream.process.pid) == (pid, own) or running.stalled
    ended = running.end()
    raw = running.samples("raw")[:, 0].astype(float)
    done = running.samples("done")[:, 0].astype(float)
    if running.stalled:
        return
    assert len(done) == len(raw) == ended.captured_frames
    half = 10 ** (-6 / 20)
    assert np.abs(done[-4800:] - half * raw[-4800:]).max() < 0.51
    assert np.abs(done[:480] - raw[:480]).max() == 0
    assert np.abs(np.diff(done)).max() <= np.abs(np.diff(raw)).max() + 2


def test_what_is_set_while_it_runs_loses_nothing_and_makes_no_step(running: Running) -> None:
    """A gain, a filter and a switch, one after the other and while the one before still fades; the
    processes and the files stay, and what comes out is a sine all the time."""
    chain = settings("high-pass", cutoff_hz=20.0), settings("gain", gain_db=0.0)
    before = running.config(*chain, settings("channels", pick=(1, 2)), signal="tone")
    stream = running.start(before)
    pid, own = running.process()["pid"], stream.process.pid
    config = Config((before,))
    live = LiveSettings(lambda: [stream], lambda: config, None, Ledger(running.folder / "ledger"))
    for key, value in (
        *(("gain.gain_db", "-6"), ("high-pass.cutoff_hz", "400"), ("channels.pick", "[2, 1]")),
        *(("high-pass.order", "4"), ("gain.gain_db", "-3"), ("high-pass.cutoff_hz", "200")),
    ):
        assert live.set({"stream": "mic", "key": key, "value": value}, ROOT)["set"]
        running.flow(960)
    running.flow(24_000)
    assert [one["key"] for one in live.changes(stream)] == [
        *("high-pass.cutoff_hz", "high-pass.order", "gain.gain_db", "channels.pick"),
    ]
    assert (running.process()["pid"], stream.process.pid) == (pid, own) or running.stalled
    ended = running.end()
    assert len(list((running.folder / "done").glob("*.wav"))) == 1
    raw = running.samples("raw")[:, 0].astype(float)
    done = running.samples("done")[:, 0].astype(float)
    if running.stalled:
        return
    assert len(done) == len(raw) == ended.captured_frames
    assert sink_of(ended, "done").delivered_frames == ended.captured_frames
    assert np.abs(np.diff(done)).max() <= np.abs(np.diff(raw)).max() + 4
    assert np.abs(np.diff(done, 2)).max() <= np.abs(np.diff(raw, 2)).max() + 4
    high = 440 / 200
    share = 10 ** (-3 / 20) / np.sqrt(1 + high**-8)
    assert np.abs(done[-4800:]).max() == pytest.approx(share * np.abs(raw[-4800:]).max(), rel=0.002)


def test_chains_and_inputs_come_and_go(running: Running) -> None:
    """Capture goes on and loses nothing; every sink's own books are right, and of the recordings no
    frame is anything but the card's."""
    plain = running.config(sinks=(running.file("raw"), running.file("done")))
    chained = running.config(settings("channels", swap=True))
    mono = chained._replace(process=(settings("channels", pick=(1,)),))
    swapped = chained._replace(sink=(running.file("raw"), running.file("done", input="captured")))
    stream = running.start(plain)
    pid = stream.process.pid
    for config in (chained, mono, swapped, plain, chained):
        stream.exchange(config)
        running.until(lambda: not (stream.reap_removed() or stream.leaving))
        running.flow()
        running.until(lambda: not stream._former)
    assert stream.process.pid == pid or running.troubles
    assert not running.end().lost_frames or running.troubles
