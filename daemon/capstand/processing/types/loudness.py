"""The type "loudness": a meter, which leaves the sound as it is (``processing/loudness.py``)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice

if TYPE_CHECKING:
    from capstand.processing.processor import Processor


class LoudnessConfig(NamedTuple):
    """Nothing to set: it measures where it stands."""

    type: Annotated[str, Choice(("loudness",))]


def _make(settings: LoudnessConfig, shape: Shape) -> "Processor":
    from capstand.processing.loudness import LoudnessStage  # brings numpy

    return LoudnessStage(shape)


def _problems(settings: LoudnessConfig, shape: Shape) -> Iterator[tuple[str, str]]:
    from capstand.dsp import ebur128

    if ebur128.library() is None:
        yield "type", ebur128.MISSING


TYPE = ProcessorType(
    LoudnessConfig, page="processing.md", make=_make, problems=_problems, hosted=True
)
