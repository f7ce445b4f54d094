"""The type "limiter": no sample above a ceiling."""

from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Number

if TYPE_CHECKING:
    from capstand.processing.limiter import Limiter


class LimiterConfig(NamedTuple):
    type: Annotated[str, Choice(("limiter",))]
    ceiling_dbfs: Annotated[float, Number(-60, 0)] = -1.0
    lookahead_ms: Annotated[float, Number(0, 20)] = 1.5
    release_db_per_s: Annotated[float, Number(1, 10_000)] = 60.0


def _make(settings: LimiterConfig, shape: Shape) -> "Limiter":
    from capstand.processing.limiter import Limiter

    ceiling = 10 ** (settings.ceiling_dbfs / 20)
    return Limiter(ceiling, settings.lookahead_ms, settings.release_db_per_s, shape)


TYPE = ProcessorType(LimiterConfig, page="processing.md", make=_make, hosted=True)
