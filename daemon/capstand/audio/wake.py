"""Waking a thread that waits, in any process, by an eventfd.

It is closed when nobody refers to it any more: whoever still holds it may write to it.
"""

import os
import select
import weakref
from contextlib import suppress


class WakeUp:
    """Readable from ``set`` until ``clear``; ``descriptor`` is another's, which is its own now."""

    expected = True
    """Whether somebody may wait for it."""

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.descriptor = descriptor
        weakref.finalize(self, os.close, self.descriptor).atexit = False

    def fileno(self) -> int:
        return self.descriptor

    def set(self) -> None:
        try:  # noqa: SIM105  for each block; suppress would run two functions of Python's
            os.eventfd_write(self.descriptor, 1)
        except BlockingIOError:  # somebody counted it up to its end
            pass

    def clear(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)

    def expect(self) -> None:
        """It is about to be waited for."""

    def wait(self, timeout_s: float) -> bool:
        """Whether it was set by then; it stays so."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))


class Doorbell(WakeUp):
    """One whose reader is a thread of the same process and calls ``expect`` before it looks whether
    something is there and waits; else ``set``, called behind something new, costs no system call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.expected = False

    def expect(self) -> None:
        self.expected = True

    def set(self) -> None:
        if self.expected:
            self.expected = False
            super().set()


class Paced:
    """Sets ``wake`` whenever ``frames`` more have come: whoever brings some takes them from
    ``left``, and calls ``set`` once that is none."""

    def __init__(self, wake: WakeUp, frames: int) -> None:
        self.left = frames
        self._wake = wake
        self._frames = frames

    def set(self) -> None:
        self.left = max(1, self.left + self._frames)
        self._wake.set()
