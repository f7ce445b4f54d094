"""The type "alsa": an ALSA playback device, a snd-aloop or a loudspeaker (``sinks/alsa.py``)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.config import naming
from capstand.config.registry import Resource, SinkContext, SinkType
from capstand.config.rules import Choice, Flag, Whole
from capstand.config.schema import ALSA_NAME, Input, Name, StreamConfig

if TYPE_CHECKING:
    from capstand.sinks.live import SinkFactory

MARGIN_MS = 10
"""So much is in the device, at least, when the next block comes."""


class AlsaSinkConfig(NamedTuple):
    """A device that plays the stream."""

    type: Annotated[str, Choice(("alsa",))]
    device: Annotated[str, ALSA_NAME]
    name: Name = "alsa"
    latency_ms: Annotated[int, Whole(20, 2000)] = 100
    rate_lock: Annotated[bool, Flag()] = True
    input: Input | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if naming.parse(self.device) is not None:
            yield (
                "device",
                f'"{self.device}" is how a device that captures is named; name one that plays as '
                "ALSA does, such as hw:CARD=Loopback,DEV=0 (`aplay -L`)",
            )
        elif wrong := naming.fault(self.device):
            yield "device", wrong


def _make(sink: AlsaSinkConfig, at: SinkContext) -> "SinkFactory":
    from capstand.sinks.live import SinkFactory  # not to check a configuration

    return SinkFactory("capstand.sinks.alsa:AlsaPlayback", (sink, at.capture.audio))


def _resources(sink: AlsaSinkConfig) -> Iterator[Resource]:
    told = f'"{sink.device}" is played by sink {{}} already; each sink needs its own device'
    yield Resource((sink.device,), "device", told.format, anywhere=True)


def _problems(sink: AlsaSinkConfig, stream: StreamConfig) -> Iterator[tuple[str, str]]:
    capture = stream.capture
    least_ms = capture.period_ms + MARGIN_MS
    if sink.latency_ms < least_ms:
        yield (
            "latency_ms",
            f"{sink.latency_ms} is less than capture.period_ms + {MARGIN_MS}; the device would run "
            f"dry between two periods; take {least_ms:g} or more",
        )
    if sink.device in capture.devices:
        yield (
            "device",
            f'"{sink.device}" is what this stream captures from; with a snd-aloop play into '
            "DEV=0 and let other programs record from DEV=1",
        )


TYPE = SinkType(
    AlsaSinkConfig,
    page="listening.md",
    live=True,
    make=_make,
    resources=_resources,
    problems=_problems,
)
