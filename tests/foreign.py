"""Distributions that others could have installed: their metadata and their module, in a folder."""

from pathlib import Path

SINKS = """
from typing import Annotated, NamedTuple
from capstand.config.rules import Choice, Whole
from capstand.config.registry import Resource, SinkType
from capstand.config.schema import AbsolutePath, Name
from capstand.sinks.live import SinkFactory
from capstand.sinks.sink import Sink


class Tape(NamedTuple):
    type: Annotated[str, Choice(("tape",))]
    path: AbsolutePath
    name: Name = "tape"
    queue_ms: Annotated[int, Whole(100, 60_000)] = 10_000

    def problems(self):
        if self.path == "/dev/null":
            yield "path", "a tape is no bottomless pit; take a file"


class Wire(NamedTuple):
    type: Annotated[str, Choice(("wire",))]
    path: AbsolutePath
    name: Name = "wire"


class Writer(Sink):
    detail = "rolling"

    def __init__(self, path, pace=None):
        self._path = path

    def open(self):
        self._file = open(self._path, "wb", buffering=0)

    def write(self, block):
        self._file.write(block.samples)

    def flush(self):
        pass

    def close(self):
        self._file.close()


def places(sink):
    yield Resource((sink.path,), "path", lambda first: f"sink {first} writes there")


def coarse(sink, stream):
    if stream.capture.period_ms > 100:
        yield "capture.period_ms", "a tape cannot wait so long"


TAPE = SinkType(
    Tape, "tape.md", False, lambda sink, at: Writer(sink.path), places, coarse
)
WIRE = SinkType(Wire, "tape.md", True, lambda sink, at: SinkFactory("reel:Writer", (sink.path,)))
"""


SOURCE = """
from typing import Annotated, NamedTuple
from capstand.capture.synthetic import SyntheticSource
from capstand.capture.types.synthetic import SyntheticConfig
from capstand.config.rules import Number
from capstand.config.registry import SourceType


class Table(NamedTuple):
    ppm: Annotated[float, Number(-100, 100)] = 0.0


class Deck(SyntheticSource):
    def __init__(self, capture):
        table = capture.source or Table()
        super().__init__(capture._replace(source=SyntheticConfig("counter", ppm=table.ppm)))


def problems(capture):
    if capture.rate_hz > 48000:
        yield "rate_hz", "a deck is not so fast"


TYPE = SourceType(Table, "deck.md", Deck, problems=problems)
"""


def install(folder: Path, module: str, code: str, points: dict[str, dict[str, str]]) -> None:
    """``points``: by group and name, what an entry point leads to."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(code)
    metadata = folder / f"{module}-1.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.5\n")
    lines = [
        line
        for group, names in points.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in names.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join([*lines, ""]))
