"""The type "dither": to fewer bits, the last in a chain whose sound is stored with so many."""

from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Whole

if TYPE_CHECKING:
    from capstand.processing.dither import Dither


class DitherConfig(NamedTuple):
    type: Annotated[str, Choice(("dither",))]
    bits: Annotated[int, Whole(8, 20)] = 16


def _make(settings: DitherConfig, shape: Shape) -> "Dither":
    from capstand.processing.dither import Dither

    return Dither(settings.bits, shape)


TYPE = ProcessorType(DitherConfig, page="processing.md", make=_make, hosted=True)
