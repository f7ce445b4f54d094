"""The type "synthetic": the simulated card (``capture/synthetic.py``); it needs no hardware."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.config.registry import SourceType
from capstand.config.rules import Choice, Number, Whole
from capstand.config.schema import AbsolutePath, CaptureConfig

if TYPE_CHECKING:
    from capstand.capture.synthetic import SyntheticSource

SIGNALS = ("tone", "silence", "noise", "file", "counter")
FAULTS = ("overrun", "unplug", "stall")


class FaultConfig(NamedTuple):
    """One thing that happens to the simulated card: when, for how long, how often again."""

    kind: Annotated[str, Choice(FAULTS)]
    at_s: Annotated[float, Number(0, 1e9)]
    for_s: Annotated[float, Number(0.001, 1e6)]
    every_s: Annotated[float, Number(0, 1e9)] = 0.0


class SyntheticConfig(NamedTuple):
    """How the simulated card behaves."""

    signal: Annotated[str, Choice(SIGNALS)] = "tone"
    tone_hz: Annotated[int, Whole(1, 96_000)] = 440
    level_dbfs: Annotated[float, Number(-120, 0)] = -20.0
    file: AbsolutePath = "/"
    ppm: Annotated[float, Number(-20_000, 20_000)] = 0.0
    jitter_us: Annotated[float, Number(0, 100_000)] = 0.0
    seed: Annotated[int, Whole(0, 2**31)] = 1
    faults: tuple[FaultConfig, ...] = ()

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.signal == "file" and self.file == "/":
            yield "signal", '"file" needs the key file, the absolute path of a WAV or FLAC file'


def _make(capture: CaptureConfig) -> "SyntheticSource":
    from capstand.capture.synthetic import SyntheticSource  # brings numpy and libsndfile

    return SyntheticSource(capture)


TYPE = SourceType(SyntheticConfig, page="devices.md", make=_make, alone=False, simulated=True)
