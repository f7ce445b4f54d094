"""The type "high-pass": a Butterworth filter, 3 dB down at its cutoff."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Number, Whole

if TYPE_CHECKING:
    from capstand.processing.linear import Linear


class HighPassConfig(NamedTuple):
    """6 dB an octave for each ``order``."""

    type: Annotated[str, Choice(("high-pass",))]
    cutoff_hz: Annotated[float, Number(1, 384_000)] = 80.0
    order: Annotated[int, Whole(1, 8)] = 2


def _make(settings: HighPassConfig, shape: Shape) -> "Linear":
    from capstand.processing.biquads import butterworth
    from capstand.processing.linear import Linear, filtering

    sections = butterworth("high-pass", settings.order, settings.cutoff_hz, shape.rate_hz)
    return Linear(filtering(sections, shape.channels), shape.rate_hz)


def _problems(settings: HighPassConfig, shape: Shape) -> Iterator[tuple[str, str]]:
    if settings.cutoff_hz * 2 >= shape.rate_hz:
        yield (
            "cutoff_hz",
            f"{settings.cutoff_hz:g} is not below half the rate, {shape.rate_hz / 2:g}",
        )


TYPE = ProcessorType(HighPassConfig, page="processing.md", make=_make, problems=_problems)
