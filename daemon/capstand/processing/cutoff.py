"""Butterworth filters by their cutoff: what the types "high-pass" and "low-pass" have in common.

The type is the kind of the filter.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from capstand.audio.block import Shape

if TYPE_CHECKING:
    from capstand.processing.linear import Linear


class Cutoff(Protocol):
    """The settings of one."""

    @property
    def type(self) -> str: ...
    @property
    def cutoff_hz(self) -> float: ...
    @property
    def order(self) -> int: ...


def make(settings: Cutoff, shape: Shape) -> "Linear":
    from capstand.processing.biquads import butterworth  # brings numpy
    from capstand.processing.linear import Linear, filtering

    sections = butterworth(settings.type, settings.order, settings.cutoff_hz, shape.rate_hz)
    return Linear(filtering(sections, shape.channels), shape.rate_hz)


def problems(settings: Cutoff, shape: Shape) -> Iterator[tuple[str, str]]:
    if settings.cutoff_hz * 2 >= shape.rate_hz:
        yield (
            "cutoff_hz",
            f"{settings.cutoff_hz:g} is not below half the rate, {shape.rate_hz / 2:g}",
        )
