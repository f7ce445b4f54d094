"""One stream with a chain and real processes, what goes wild in it, and sinks that note all."""

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from capstand.accounting.stats import StreamStats
from capstand.capture.types.synthetic import SyntheticConfig
from capstand.config.registry import PROCESSORS, SINKS
from capstand.config.schema import CaptureConfig, StreamConfig
from capstand.processes import forkserver
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.stream import Stream
from tests.foreign import install
from tests.patience import PATIENCE_S

RATE = 48_000
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


class TrustedConfig(NamedTuple):
    type: Annotated[str, Choice(("trusted",))]
    told_by: str = "/nonexistent"
    delay_frames: int = 0


TRUSTED = ProcessorType(TrustedConfig, "wild.md", Beast, hosted=True)


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
        while os.path.exists(self._path + ".wait"):
            time.sleep(0.01)
        self._file = open(self._path, "ab", buffering=0)

    def write(self, block):
        head = block.first_frame, block.frames, block.captured_at_ns, len(block.samples)
        self._file.write(struct.pack("@qqqq", *head) + block.samples)

    def flush(self):
        pass

    def close(self):
        self._file.close()


GATHERS = {"greedy": 10**9, "negative": -1, "worded": "many"}
WIRE = SinkType(
    Wire,
    "wild.md",
    True,
    lambda sink, at: SinkFactory("wild:Writer", (sink.path,), GATHERS.get(sink.name, 0)),
)
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

    def wild(self, delay_frames: int = 0, name: str = "wild") -> Any:
        return PROCESSORS[name].schema(name, str(self.told_by), delay_frames)

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
        "capstand.processors": {"wild": "wild:TYPE", "trusted": "wild:TRUSTED"},
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
        for name in ("wild", "trusted", "wire"):
            registry._found.pop(name, None)
        registry.rescan()


def sink_of(stats: StreamStats, name: str) -> Any:
    return next(sink for sink in stats.sinks if sink.name == name)


def numbers(samples: Any) -> Any:
    """The card's numbers of these frames."""
    halves = samples.view(np.uint16).astype(np.int64)
    return halves[:, 0] | halves[:, 1] << 16
