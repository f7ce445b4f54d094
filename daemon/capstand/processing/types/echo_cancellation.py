"""The type "echo-cancellation": what a loudspeaker plays is taken out (``processing/echo.py``)."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Number
from capstand.config.schema import Name
from capstand.processing.engines import INSTALL_WEBRTC, SPEECH, WEBRTC_HZ, has_webrtc

if TYPE_CHECKING:
    from capstand.processing.processor import Processor
    from capstand.processing.sidechain import Sidechain


class EchoCancellationConfig(NamedTuple):
    """``reference``: the stream that captures what is played; the sound waits ``hold_ms`` for it,
    by default as long as its period needs."""

    type: Annotated[str, Choice(("echo-cancellation",))]
    reference: Name
    hold_ms: Annotated[float, Number(20, 1000)] | None = None


def _make(settings: EchoCancellationConfig, shape: Shape, far: "Sidechain") -> "Processor":
    from capstand.processing.echo import EchoCancellation, hold_ms  # brings numpy and the engine
    from capstand.processing.reference import SidechainReference

    reference = SidechainReference(far, shape.rate_hz)
    return EchoCancellation(reference, shape, settings.hold_ms or hold_ms(far.period_ms))


def _problems(settings: EchoCancellationConfig, shape: Shape) -> Iterator[tuple[str, str]]:
    if shape.rate_hz not in WEBRTC_HZ:
        yield (
            "type",
            f"{settings.type} takes {', '.join(map(str, WEBRTC_HZ))} Hz and gets {shape.rate_hz} "
            "Hz; put a resample in front of it, or set capture.rate_hz = 48000",
        )
    elif not has_webrtc():
        yield "type", f"{settings.type} needs pywebrtc-audio; {INSTALL_WEBRTC}"


def _sidechains(settings: EchoCancellationConfig) -> Mapping[str, str]:
    return {"reference": settings.reference}


TYPE = ProcessorType(
    EchoCancellationConfig,
    page="processing-speech.md",
    make=_make,
    problems=_problems,
    extra=SPEECH,
    sidechains=_sidechains,
)
