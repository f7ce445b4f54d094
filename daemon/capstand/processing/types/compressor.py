"""The type "compressor": loud sound softer, by a ratio above a threshold."""

from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Number

if TYPE_CHECKING:
    from capstand.processing.compressor import Compressor


class CompressorConfig(NamedTuple):
    type: Annotated[str, Choice(("compressor",))]
    threshold_dbfs: Annotated[float, Number(-100, 0)] = -20.0
    ratio: Annotated[float, Number(1, 100)] = 3.0
    knee_db: Annotated[float, Number(0, 40)] = 6.0
    attack_ms: Annotated[float, Number(0, 1000)] = 10.0
    release_ms: Annotated[float, Number(0, 10_000)] = 150.0
    makeup_db: Annotated[float, Number(0, 40)] = 0.0


def _make(settings: CompressorConfig, shape: Shape) -> "Compressor":
    from capstand.processing.compressor import Compressor, Curve

    curve = Curve(settings.threshold_dbfs, settings.ratio, settings.knee_db)
    return Compressor(curve, settings.attack_ms, settings.release_ms, settings.makeup_db, shape)


TYPE = ProcessorType(CompressorConfig, page="processing.md", make=_make, hosted=True)
