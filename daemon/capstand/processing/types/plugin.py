"""The type "plugin": a LADSPA plugin of this machine (``processing/plugin.py``)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import Shape
from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Number, Text

if TYPE_CHECKING:
    from capstand.processing.processor import Processor

FILE = Text(
    r"/[^\0-\x1f\x7f]{1,4000}|[^/.\0-\x1f\x7f][^/\0-\x1f\x7f]{0,250}",
    'the name of a plugin\'s file, such as "amp_1181", or its absolute path',
)
WORDS = Text(r"[^\0-\x1f\x7f]{0,100}", "a name of up to 100 characters")


class Control(NamedTuple):
    """What one of its control ports is set to."""

    port: Annotated[str, WORDS]
    value: Annotated[float, Number(-1e9, 1e9)]


class PluginConfig(NamedTuple):
    """``label``: which one, where its file has several; else the first."""

    type: Annotated[str, Choice(("plugin",))]
    plugin: Annotated[str, FILE]
    label: Annotated[str, WORDS] = ""
    control: tuple[Control, ...] = ()


def _make(settings: PluginConfig, shape: Shape) -> "Processor":
    from capstand.processing.plugin import PluginStage  # brings numpy

    return PluginStage(settings, shape)


def _problems(settings: PluginConfig, shape: Shape) -> Iterator[tuple[str, str]]:
    """Only where the file is: to look into it would run it, and that is for the chain's process."""
    from capstand.processing.ladspa import PluginError, find

    try:
        find(settings.plugin)
    except PluginError as error:
        yield "plugin", str(error)


TYPE = ProcessorType(PluginConfig, page="processing-speech.md", make=_make, problems=_problems)
