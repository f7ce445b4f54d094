"""The type "socket": one local program at a time brings the sound (``capture/socket.py``)."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.config.registry import SourceType
from capstand.config.rules import Flag, Text
from capstand.config.schema import PATH, CaptureConfig
from capstand.host import rights

if TYPE_CHECKING:
    from capstand.capture.socket import SocketSource

MOST_BYTES = 107
"""The kernel's limit of a socket's address."""


class SocketConfig(NamedTuple):
    """Where programs connect, and whether they keep real time themselves (raw sound only; what
    describes itself says so)."""

    path: Annotated[
        str,
        Text(
            rf"{PATH}|[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}",
            "an absolute path, or a plain name in the directory of the control socket, "
            "such as mic.sock",
        ),
    ] = "push.sock"
    live: Annotated[bool, Flag()] = True

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(self.path.encode()) > MOST_BYTES:
            yield "path", f"the path has more than {MOST_BYTES} bytes, the most that sockets take"
        if self.path in ("/", "control.sock"):
            yield "path", f'"{self.path}" is already used; choose another name'


def path_of(capture: CaptureConfig) -> Path:
    """Where the socket is; in the process that serves it or in its parent."""
    setup: SocketConfig = capture.source or SocketConfig()
    return rights.runtime() / setup.path


def _make(capture: CaptureConfig) -> "SocketSource":
    from capstand.capture.socket import SocketSource

    return SocketSource(capture)


def _resource(capture: CaptureConfig) -> tuple[str, str]:
    return "socket.path", (capture.source or SocketConfig()).path


TYPE = SourceType(
    SocketConfig, page="own-audio.md", make=_make, alone=False, resource=_resource, entrance=path_of
)
