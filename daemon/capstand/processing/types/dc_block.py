"""The type "dc-block": takes out a constant offset, and as little else as can be."""

from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Number

if TYPE_CHECKING:
    from capstand.processing.linear import Linear


class DcBlockConfig(NamedTuple):
    """A high-pass of first order."""

    type: Annotated[str, Choice(("dc-block",))]
    cutoff_hz: Annotated[float, Number(0.1, 100)] = 5.0


def _make(settings: DcBlockConfig, shape: Shape) -> "Linear":
    from capstand.processing.biquads import butterworth
    from capstand.processing.linear import Linear, filtering

    sections = butterworth("high-pass", 1, settings.cutoff_hz, shape.rate_hz)
    return Linear(filtering(sections, shape.channels), shape.rate_hz)


TYPE = ProcessorType(DcBlockConfig, page="processing.md", make=_make, hosted=True)
