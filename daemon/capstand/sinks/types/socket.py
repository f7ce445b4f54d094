"""The type "socket": a Unix socket where local programs get the stream (``sinks/socket.py``)."""

from collections.abc import Iterator
from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.config.registry import Resource, SinkContext, SinkType
from capstand.config.rules import Choice, Text, Whole
from capstand.config.schema import AbsolutePath, Input, Name, StreamConfig

if TYPE_CHECKING:
    from capstand.sinks.live import SinkFactory

LONGEST_PATH = 107
"""Bytes that the kernel takes for the name of a socket."""


class SocketSinkConfig(NamedTuple):
    """Programs that connect read the stream."""

    type: Annotated[str, Choice(("socket",))]
    name: Name = "socket"
    path: AbsolutePath | None = None
    container: Annotated[str, Choice(("raw", "wav"))] = "raw"
    gaps: Annotated[str, Choice(("silence", "skip"))] = "silence"
    readers: Annotated[int, Whole(1, 64)] = 8
    buffer_ms: Annotated[int, Whole(100, 60_000)] = 2000
    input: Input | None = None
    group: (
        Annotated[str, Text(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", "the name of a group")] | None
    ) = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.path is not None and len(self.path.encode()) > LONGEST_PATH:
            yield (
                "path",
                f"it has {len(self.path.encode())} bytes, and the name of a socket may have "
                f"{LONGEST_PATH}",
            )
        if self.group is not None:
            from capstand.host.peer import group_id

            if group_id(self.group) is None:
                yield (
                    "group",
                    f'this machine has no group "{self.group}"; make it (sudo groupadd '
                    f"{self.group}) or take another (getent group)",
                )


def _make(sink: SocketSinkConfig, at: SinkContext) -> "SinkFactory":
    from capstand.sinks.live import SinkFactory  # not to check a configuration

    path = Path(sink.path) if sink.path else at.runtime / f"{at.stream}-{sink.name}.sock"
    return SinkFactory("capstand.sinks.socket:StreamSocket", (sink, path, at.capture.audio))


def _resources(sink: SocketSinkConfig) -> Iterator[Resource]:
    """Its path; where none is given, the names of stream and sink make one."""
    if sink.path is None:
        yield Resource(("name", sink.name))
    else:
        path = normpath(sink.path)
        told = f'"{path}" is taken by sink {{}} already; each sink needs its own'
        yield Resource(("path", path), "path", told.format, anywhere=True)


def _problems(sink: SocketSinkConfig, stream: StreamConfig) -> Iterator[tuple[str, str]]:
    least_ms = 4 * stream.capture.period_ms
    if sink.buffer_ms < least_ms:
        yield (
            "buffer_ms",
            f"{sink.buffer_ms} is less than 4 periods of {stream.capture.period_ms:g} ms; "
            f"take {least_ms:g} or more",
        )


TYPE = SinkType(
    SocketSinkConfig,
    page="listening.md",
    live=True,
    make=_make,
    resources=_resources,
    problems=_problems,
)
