"""The ring between the capture thread and the pusher: preallocated slots, one writer, one reader.

Two eventfds carry all the synchronisation, so nothing here relies on Python's global lock or on
the memory model of the processor: ``published`` counts the blocks the reader may look at,
``freed`` those the writer may fill again. Each side takes exactly as many slots as the kernel's
counter granted it, and a system call orders memory. The writer asks the kernel for free slots only
when its own credit has run out, so in steady state it makes one call a block.

Rule for a full ring: the newest block is dropped, because the reader may be looking at all others.
The writer fills a scratch slot instead, and goes on reading the device. Before that it may ``wait``
a moment for a slot, which wakes a reader that rests by a third eventfd, ``pressed``.

Threads: ``slot``, ``full``, ``wait`` and ``publish`` belong to the writer; ``take``, ``release``
and ``relax`` to the reader.
"""

import os
import select
from array import array
from collections.abc import Iterator
from typing import NamedTuple


class Slot(NamedTuple):
    """A block as it lies in the ring; ``samples`` is valid until it is released."""

    first_frame: int
    frames: int
    captured_at_ns: int
    samples: memoryview


class Ring:
    """``slots`` blocks of up to ``slot_bytes`` bytes each."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        assert slots >= 1 and slot_bytes >= 1
        self.slots = slots
        self.slot_bytes = slot_bytes
        store = memoryview(bytearray((slots + 1) * slot_bytes))
        self._rows = [store[i * slot_bytes : (i + 1) * slot_bytes] for i in range(slots + 1)]
        self._marks = array("q", bytes(8 * 3 * slots))  # first frame, frames, captured at
        self._published = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._freed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.pressed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._room = select.poll()
        self._room.register(self._freed, select.POLLIN)
        self._write = 0  # the writer's position and credit
        self._credit = slots
        self._read = 0  # the reader's position

    def fileno(self) -> int:
        """Becomes readable when blocks are there to take."""
        return self._published

    def slot(self) -> memoryview:
        """Where the next block goes; the scratch slot when the ring is full."""
        if self._credit == 0:
            try:
                self._credit = os.eventfd_read(self._freed)
            except BlockingIOError:
                return self._rows[self.slots]
        return self._rows[self._write]

    @property
    def full(self) -> bool:
        """Whether the last ``slot`` was the scratch slot."""
        return self._credit == 0

    def wait(self, timeout_ms: int) -> bool:
        """Waits for a free slot; false if none came."""
        os.eventfd_write(self.pressed, 1)
        return bool(self._room.poll(timeout_ms))

    def relax(self) -> None:
        """The reader is awake: the writer need not press any more."""
        try:
            os.eventfd_read(self.pressed)
        except BlockingIOError:
            return

    def publish(self, first_frame: int, frames: int, captured_at_ns: int) -> bool:
        """Hands the filled slot to the reader; False if it was the scratch slot (block dropped)."""
        if self._credit == 0:
            return False
        at = self._write
        marks = self._marks
        marks[3 * at] = first_frame
        marks[3 * at + 1] = frames
        marks[3 * at + 2] = captured_at_ns
        self._credit -= 1
        self._write = at + 1 if at + 1 < self.slots else 0
        os.eventfd_write(self._published, 1)
        return True

    def take(self) -> int:
        """How many blocks are there; each has to be looked at with ``peek`` and released."""
        try:
            return os.eventfd_read(self._published)
        except BlockingIOError:
            return 0

    def peek(self, count: int, frame_bytes: int) -> Iterator[Slot]:
        """The next ``count`` blocks, in order; ``count`` is what ``take`` granted."""
        for _ in range(count):
            at = self._read
            first_frame, frames, captured_at_ns = self._marks[3 * at : 3 * at + 3]
            samples = self._rows[at][: frames * frame_bytes]
            self._read = at + 1 if at + 1 < self.slots else 0
            yield Slot(first_frame, frames, captured_at_ns, samples)

    def release(self, count: int) -> None:
        """Gives the slots of ``count`` blocks back to the writer."""
        if count:
            os.eventfd_write(self._freed, count)

    def close(self) -> None:
        """Both threads must have ended."""
        os.close(self._published)
        os.close(self._freed)
        os.close(self.pressed)
