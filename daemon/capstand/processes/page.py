"""A page of shared memory in which a process says what it is doing and what it has done.

It costs a store, no system call, and outlives the process: one that was killed leaves its last
word. The process alone writes while it lives, but for words that are said to be main's. Main reads,
and believes nothing that cannot be.
Each figure is one aligned word, so it is never seen half written.

Thread: any.
"""

import mmap
import os
from enum import IntEnum

SIZE = 4096
DOING = 0
"""The word for what the process is doing; the others, but the last, belong to what it is for."""
CALLS = SIZE // 8 - 1
"""The word that counts what main should hear at its next look: while all is well it hears only now
and then."""


class Doing(IntEnum):
    """What a process is at; each has a time after which it hangs."""

    STARTING = 0
    WAITING = 1  # for something to do; it shows itself every second
    OPENING = 2
    WRITING = 3
    FLUSHING = 4
    CLOSING = 5
    PROCESSING = 6


class Page:
    """The words of the page behind ``descriptor``, or of a new one."""

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create("capstand-page", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, SIZE)
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, SIZE)
        self.words = memoryview(self._memory).cast("q")

    def does(self, doing: Doing, now_ns: int) -> None:
        self.words[DOING] = now_ns << 3 | doing

    @property
    def doing(self) -> tuple[Doing, int]:
        """What, and since when; raises ValueError for what nobody does."""
        word = self.words[DOING]
        return Doing(word & 7), word >> 3

    def close(self) -> None:
        self.words.release()
        self._memory.close()
        os.close(self.descriptor)
