"""The type "channels": which channels come out: picked, swapped, mixed, or by a matrix."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Flag, Number, Rows, Some, Whole

if TYPE_CHECKING:
    from capstand.processing.linear import Linear

MOST = 32


class ChannelsConfig(NamedTuple):
    """One of four keys says how."""

    type: Annotated[str, Choice(("channels",))]
    pick: Annotated[tuple[int, ...], Some(Whole(1, MOST), MOST, "[1]")] | None = None
    swap: Annotated[bool, Flag()] = False
    mix: Annotated[bool, Flag()] = False
    matrix: (
        Annotated[tuple[tuple[float, ...], ...], Rows(Number(-1000, 1000), MOST, "[[0.5, 0.5]]")]
        | None
    ) = None

    def problems(self) -> Iterator[tuple[str, str]]:
        given = [key for key in self._fields[1:] if getattr(self, key)]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            key = given[-1] if given else "pick"
            yield key, f"expected one of pick, swap, mix and matrix, found {found}"

    def rows(self, channels: int) -> tuple[tuple[float, ...], ...]:
        """For each channel that comes out, the gains of those that come in."""
        if self.matrix:
            return self.matrix
        if self.mix:
            return ((1 / channels,) * channels,)
        picked = self.pick or (2, 1)
        return tuple(tuple(float(one == at + 1) for at in range(channels)) for one in picked)


def _make(settings: ChannelsConfig, shape: Shape) -> "Linear":
    from capstand.processing.linear import Linear, mixing

    return Linear(mixing(settings.rows(shape.channels)), shape.rate_hz)


def _out(settings: ChannelsConfig, shape: Shape) -> Shape:
    return shape._replace(channels=len(settings.rows(shape.channels)))


def _problems(settings: ChannelsConfig, shape: Shape) -> Iterator[tuple[str, str]]:
    come = f"{shape.channels} channel{'s' if shape.channels > 1 else ''} come in"
    if settings.pick and max(settings.pick) > shape.channels:
        yield "pick", f"there is no channel {max(settings.pick)}: {come}"
    if settings.swap and shape.channels != 2:
        yield "swap", f"expected 2 channels to swap, and {come}; take pick"
    if settings.matrix and len(settings.matrix[0]) != shape.channels:
        yield "matrix", f"its rows have {len(settings.matrix[0])} numbers, and {come}"


TYPE = ProcessorType(
    ChannelsConfig, page="processing.md", make=_make, out=_out, problems=_problems, hosted=True
)
