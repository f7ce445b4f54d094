"""The type "file": a sound file in real time, once or repeated (``capture/file.py``)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.config.registry import SourceType
from capstand.config.rules import Flag
from capstand.config.schema import AbsolutePath, CaptureConfig

if TYPE_CHECKING:
    from capstand.capture.file import FileSource


class FileConfig(NamedTuple):
    """A WAV or FLAC file of the stream's rate and channels."""

    path: AbsolutePath
    repeat: Annotated[bool, Flag()] = False


def _make(capture: CaptureConfig) -> "FileSource":
    from capstand.capture.file import FileSource  # brings numpy and libsndfile

    return FileSource(capture)


def _problems(capture: CaptureConfig) -> Iterator[tuple[str, str]]:
    if capture.source is None:
        yield "file", "the table is missing; write [stream.capture.file] with path, the sound file"


TYPE = SourceType(FileConfig, page="own-audio.md", make=_make, alone=False, problems=_problems)
