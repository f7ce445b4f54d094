"""The type "gain": louder or softer; a changed gain is reached without a step."""

from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Number

if TYPE_CHECKING:
    from capstand.processing.linear import Linear


class GainConfig(NamedTuple):
    type: Annotated[str, Choice(("gain",))]
    gain_db: Annotated[float, Number(-120, 60)]


def _make(settings: GainConfig, shape: Shape) -> "Linear":
    from capstand.processing.linear import Linear, filtering

    return Linear(filtering((), shape.channels, 10 ** (settings.gain_db / 20)), shape.rate_hz)


TYPE = ProcessorType(GainConfig, page="processing.md", make=_make, hosted=True)
