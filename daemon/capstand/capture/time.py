"""The clock that sources live by which have none of their own; tests give them another one.

Thread: that of the source; ``wake`` is for any.
"""

import os
import select
import time
import weakref
from typing import Protocol


class Time(Protocol):
    """What is needed of a clock."""

    def now_ns(self) -> int: ...

    def wait_until(self, at_ns: int) -> bool:
        """Waits; False if woken before."""

    def wake(self) -> None: ...


class MonotonicTime:
    """The machine's own CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wake).atexit = False
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self.now_ns = time.monotonic_ns

    def wait_until(self, at_ns: int) -> bool:
        wait_ms = max(0.0, (at_ns - time.monotonic_ns()) / 1e6)
        return not self._poll.poll(wait_ms)

    def wake(self) -> None:
        os.eventfd_write(self._wake, 1)
