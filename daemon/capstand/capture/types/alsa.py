"""The type "alsa": a card, or what else ALSA captures from; several in order of preference.

Every device is of this type that is of no other.
"""

from typing import TYPE_CHECKING

from capstand.config.registry import SourceType
from capstand.config.schema import CaptureConfig

if TYPE_CHECKING:
    from capstand.capture.source import Source


def _make(capture: CaptureConfig) -> "Source":
    from capstand.capture.failover import Failover
    from capstand.capture.flowing import FlowingAlsaSource  # brings libasound

    sources = [FlowingAlsaSource(capture, name) for name in capture.devices]
    return sources[0] if len(sources) == 1 else Failover(sources, capture)


TYPE = SourceType(
    None, page="devices.md", make=_make, loads=("capstand.capture.flowing",), rest=True
)
