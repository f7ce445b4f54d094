"""The type "vad": a gate, or a mark, for speech (``processing/vad.py``)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Number
from capstand.processing import engines
from capstand.processing.engines import ENGINES, SPEECH

if TYPE_CHECKING:
    from capstand.processing.processor import Processor


class VadConfig(NamedTuple):
    """What is speech, and what happens then; ``threshold`` has a default for each engine."""

    type: Annotated[str, Choice(("vad",))]
    mode: Annotated[str, Choice(("mark", "gate"))] = "mark"
    threshold: Annotated[float, Number(0.01, 1)] | None = None
    hold_ms: Annotated[float, Number(0, 10_000)] = 300.0
    fade_ms: Annotated[float, Number(1, 1000)] = 10.0
    lookahead_ms: Annotated[float, Number(0, 500)] = 40.0
    engine: Annotated[str, Choice(ENGINES)] = "auto"


def _make(settings: VadConfig, shape: Shape) -> "Processor":
    from capstand.processing.vad import VoiceActivity  # brings numpy and the engine

    return VoiceActivity(settings, shape)


def _problems(settings: VadConfig, shape: Shape) -> Iterator[tuple[str, str]]:
    return engines.problems(settings.type, settings.engine, shape.rate_hz)


TYPE = ProcessorType(
    VadConfig,
    page="processing-speech.md",
    make=_make,
    problems=_problems,
    extra=SPEECH,
    hosted=True,
)
