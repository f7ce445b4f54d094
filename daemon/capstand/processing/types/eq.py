"""The type "eq": an equaliser of up to 32 bands, each a filter of second order."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Number

if TYPE_CHECKING:
    from capstand.processing.linear import Linear

WITH_GAIN = ("peak", "low-shelf", "high-shelf")
KINDS = (*WITH_GAIN, "notch", "band-pass", "high-pass", "low-pass")
MOST_BANDS = 32


class Band(NamedTuple):
    kind: Annotated[str, Choice(KINDS)]
    frequency_hz: Annotated[float, Number(1, 384_000)]
    gain_db: Annotated[float, Number(-40, 40)] = 0.0
    q: Annotated[float, Number(0.1, 100)] = 0.707

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.gain_db and self.kind not in WITH_GAIN:
            yield "gain_db", f'a "{self.kind}" has none; delete the key, or take "peak"'


class EqConfig(NamedTuple):
    type: Annotated[str, Choice(("eq",))]
    band: tuple[Band, ...]

    def problems(self) -> Iterator[tuple[str, str]]:
        if not 1 <= len(self.band) <= MOST_BANDS:
            yield "band", f"found {len(self.band)} bands, expected 1 to {MOST_BANDS}"


def _make(settings: EqConfig, shape: Shape) -> "Linear":
    from capstand.processing.biquads import second_order
    from capstand.processing.linear import Linear, filtering

    sections = tuple(
        second_order(one.kind, one.frequency_hz, shape.rate_hz, one.q, one.gain_db)
        for one in settings.band
    )
    return Linear(filtering(sections, shape.channels), shape.rate_hz)


def _problems(settings: EqConfig, shape: Shape) -> Iterator[tuple[str, str]]:
    for number, one in enumerate(settings.band):
        if one.frequency_hz * 2 >= shape.rate_hz:
            yield (
                f"band.{number}.frequency_hz",
                f"{one.frequency_hz:g} is not below half the rate, {shape.rate_hz / 2:g}",
            )


TYPE = ProcessorType(EqConfig, page="processing.md", make=_make, problems=_problems, hosted=True)
