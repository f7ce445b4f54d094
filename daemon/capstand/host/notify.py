"""What systemd is told: READY, RELOADING, STATUS, WATCHDOG, STOPPING, ERRNO. Silent outside a unit.

Telling takes a descriptor and may fail for want of one; that is no reason to stop capturing.
Neither is a service manager that does not read what it is told: systemd-python would wait for it,
and hold Python's lock meanwhile, so nothing is sent to one that takes nothing. A line of a datagram
is a field of its own; what is told is one clean line, and no longer than systemd takes.

Thread: main only.
"""

import os
import select
import socket
import time

from systemd.daemon import notify

from capstand.text import clean

MAX_BYTES = 3500
"""systemd reads 4096 bytes of a datagram and ignores one that is longer."""


class Notifier:
    """Tells the service manager, each state once."""

    def __init__(self) -> None:
        self._ready = False
        self._status = ""

    def ready(self) -> None:
        if not self._ready:
            self._ready = _notify("READY=1")

    def reloading(self) -> None:
        """Until ``reloaded``. Not during the start, which a second READY would seem to end."""
        if self._ready:
            _notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """Where it cannot be told now, the next ``ready`` does."""
        if self._ready:
            self._ready = _notify("READY=1")

    def status(self, line: str) -> None:
        if line != self._status:
            self._status = line if _notify(f"STATUS={line}") else ""

    def alive(self) -> None:
        _notify("WATCHDOG=1")

    def stopping(self) -> None:
        _notify("STOPPING=1", "STATUS=stopping: draining and closing files")

    def failed(self, errno: int, line: str) -> None:
        _notify(f"ERRNO={errno}", f"STATUS={line}")


def _notify(*fields: str) -> bool:
    try:
        if not _takes():
            return False
        notify("\n".join(clean.field(field, MAX_BYTES) for field in fields))
    except (OSError, ValueError):
        return False
    return True


def _takes() -> bool:
    """Whether the service manager's socket has room now; true where it is no such socket."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
        probe.connect("\0" + path[1:] if path[0] == "@" else path)
        room = select.poll()
        room.register(probe, select.POLLOUT)
        return any(events & select.POLLOUT for _, events in room.poll(0))
