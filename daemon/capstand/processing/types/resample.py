"""The type "resample": another rate, by libsoxr."""

from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Whole

if TYPE_CHECKING:
    from capstand.processing.resampling import Resampling

COMMON_RATES = (8000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)


class ResampleConfig(NamedTuple):
    type: Annotated[str, Choice(("resample",))]
    rate_hz: Annotated[int, Whole(8000, 768_000, COMMON_RATES)]


def _make(settings: ResampleConfig, shape: Shape) -> "Resampling":
    from capstand.processing.resampling import Resampling

    return Resampling(settings.rate_hz, shape)


def _out(settings: ResampleConfig, shape: Shape) -> Shape:
    return shape._replace(rate_hz=settings.rate_hz)


TYPE = ProcessorType(ResampleConfig, page="processing.md", make=_make, out=_out, hosted=True)
