"""What systemd is told: READY, RELOADING, STATUS, WATCHDOG, STOPPING, ERRNO. Silent outside a unit.

Telling takes a descriptor and may fail for want of one; that is no reason to stop capturing.

Thread: main only, because systemd-python holds Python's lock while it sends.
"""

import time

from systemd.daemon import notify


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
            _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

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
        _notify("STOPPING=1\nSTATUS=stopping: draining and closing files")

    def failed(self, errno: int, line: str) -> None:
        _notify(f"ERRNO={errno}\nSTATUS={line}")


def _notify(what: str) -> bool:
    try:
        notify(what)
    except OSError:
        return False
    return True
