"""The type "pipe": what a FIFO brings, or the stdout of a program that capstand keeps running
(``capture/pipe.py``)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.config.registry import SourceType
from capstand.config.rules import Flag, OneOrSome, Text
from capstand.config.schema import AbsolutePath, CaptureConfig

if TYPE_CHECKING:
    from capstand.capture.source import Source

MOST_WORDS = 256
WORD = Text(r"[^\0]{1,4096}", "a word of a command; each stands in quotation marks of its own")


class PipeConfig(NamedTuple):
    """``path`` of a FIFO, or ``command``, the program and each of its arguments. ``live``: it keeps
    real time itself (raw sound only)."""

    path: AbsolutePath = "/"
    command: Annotated[str | tuple[str, ...], OneOrSome(WORD, MOST_WORDS)] = ()
    live: Annotated[bool, Flag()] = True

    @property
    def words(self) -> tuple[str, ...]:
        return (self.command,) if isinstance(self.command, str) else self.command

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.words and self.path != "/":
            yield "command", "there is a path already; a pipe is one of the two, delete the other"
        elif self.words and " " in self.words[0] and len(self.words) == 1:
            yield (
                "command",
                f'"{self.words[0][:60]}" is not a program: write each word apart, '
                'such as ["ffmpeg", "-i", "…"], or ["sh", "-c", "…"] for a shell',
            )


def _make(capture: CaptureConfig) -> "Source":
    from capstand.capture.pipe import CommandSource, FifoSource

    setup: PipeConfig = capture.source
    return CommandSource(capture, setup) if setup.words else FifoSource(capture, setup)


def _problems(capture: CaptureConfig) -> Iterator[tuple[str, str]]:
    setup: PipeConfig = capture.source or PipeConfig()
    if not setup.words and setup.path == "/":
        yield (
            "pipe",
            "the table has neither path nor command; write [stream.capture.pipe] with path, the "
            "FIFO, or command, the program",
        )


def _resource(capture: CaptureConfig) -> tuple[str, str] | None:
    setup: PipeConfig = capture.source or PipeConfig()
    return None if setup.path == "/" else ("pipe.path", setup.path)


TYPE = SourceType(
    PipeConfig,
    page="own-audio.md",
    make=_make,
    alone=False,
    problems=_problems,
    resource=_resource,
)
