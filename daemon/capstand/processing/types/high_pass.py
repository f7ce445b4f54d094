"""The type "high-pass": a Butterworth filter, 3 dB down at its cutoff."""

from typing import Annotated, NamedTuple

from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Number, Whole
from capstand.processing import cutoff


class HighPassConfig(NamedTuple):
    """6 dB an octave for each ``order``."""

    type: Annotated[str, Choice(("high-pass",))]
    cutoff_hz: Annotated[float, Number(1, 384_000)] = 80.0
    order: Annotated[int, Whole(1, 8)] = 2


TYPE = ProcessorType(
    HighPassConfig,
    page="processing.md",
    make=cutoff.make,
    problems=cutoff.problems,
    hosted=True,
)
