"""Waking a thread that waits, from any other, by an eventfd."""

import os
import weakref
from contextlib import suppress


class WakeUp:
    """Readable from ``set`` until ``clear``."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._close.atexit = False

    def fileno(self) -> int:
        return self._descriptor

    def set(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)

    def close(self) -> None:
        self._close()
