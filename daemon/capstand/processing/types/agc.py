"""The type "agc": speech comes to a target level (``processing/agc.py``)."""

from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Number

if TYPE_CHECKING:
    from capstand.processing.processor import Processor


class AgcConfig(NamedTuple):
    """Where the level is to be, and how far and how fast the gain may go."""

    type: Annotated[str, Choice(("agc",))]
    target_dbfs: Annotated[float, Number(-60, -6)] = -23.0
    max_gain_db: Annotated[float, Number(0, 60)] = 30.0
    max_cut_db: Annotated[float, Number(0, 60)] = 20.0
    db_per_s: Annotated[float, Number(0.1, 60)] = 6.0
    noise_dbfs: Annotated[float, Number(-100, -20)] = -50.0


def _make(settings: AgcConfig, shape: Shape) -> "Processor":
    from capstand.processing.agc import AutomaticGain  # brings numpy

    return AutomaticGain(settings, shape)


TYPE = ProcessorType(AgcConfig, page="processing-speech.md", make=_make, hosted=True)
