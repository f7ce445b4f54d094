"""The type "noise-suppression": steady noise is turned down (``processing/suppression.py``)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice
from capstand.processing import engines
from capstand.processing.engines import ENGINES, SPEECH

if TYPE_CHECKING:
    from capstand.processing.processor import Processor

LEVELS = ("low", "moderate", "high", "very-high")
"""WebRTC's own names: 6, 12, 18 and 21 dB."""


class NoiseSuppressionConfig(NamedTuple):
    """How much, and by what."""

    type: Annotated[str, Choice(("noise-suppression",))]
    level: Annotated[str, Choice(LEVELS)] = "high"
    engine: Annotated[str, Choice(ENGINES)] = "auto"


def _make(settings: NoiseSuppressionConfig, shape: Shape) -> "Processor":
    from capstand.processing.suppression import suppression  # brings numpy and the engine

    return suppression(settings.engine, LEVELS.index(settings.level), shape)


def _problems(settings: NoiseSuppressionConfig, shape: Shape) -> Iterator[tuple[str, str]]:
    return engines.problems(settings.type, settings.engine, shape.rate_hz)


TYPE = ProcessorType(
    NoiseSuppressionConfig,
    page="processing-speech.md",
    make=_make,
    problems=_problems,
    extra=SPEECH,
    hosted=True,
)
