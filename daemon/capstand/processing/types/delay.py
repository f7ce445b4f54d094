"""The type "delay": the sound so much later, as where a camera is slower than a microphone."""

from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Number

if TYPE_CHECKING:
    from capstand.processing.delay import Delay


class DelayConfig(NamedTuple):
    type: Annotated[str, Choice(("delay",))]
    delay_ms: Annotated[float, Number(0, 5000)]


def _make(settings: DelayConfig, shape: Shape) -> "Delay":
    from capstand.processing.delay import Delay

    return Delay(round(settings.delay_ms * shape.rate_hz / 1000), shape.channels)


TYPE = ProcessorType(DelayConfig, page="processing.md", make=_make, hosted=True)
