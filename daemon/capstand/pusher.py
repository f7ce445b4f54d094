"""The pusher: takes blocks out of the ring and passes them to every outlet; it waits for none.

It copies a block out of its slot once, measures its level, and puts the same immutable value into
each outlet's queue. Thread: ``run`` is the push thread, which has real-time priority just below
capture, because on a busy machine an ordinary thread that holds Python's lock delays all others.
"""

import os
import select
from collections.abc import Sequence
from typing import TYPE_CHECKING

from capstand.block import Block
from capstand.realtime import below, prepare_thread
from capstand.ring import Ring
from capstand.sinks.outlet import Outlet

if TYPE_CHECKING:
    from capstand.dsp.level import Meter

BATCH = 8
"""Slots are given back at least this often, so that a long backlog does not keep the ring full."""


class Pusher:
    """Moves blocks from ``ring`` to ``outlets`` and counts ``taken`` frames; where none of them is
    in a hurry, ``patience_ms`` at a time, because each wake-up costs more than what it does.

    ``meter`` may come later than the sound: loading numpy takes longer than opening a card.
    """

    def __init__(
        self,
        ring: Ring,
        frame_bytes: int,
        meter: "Meter | None",
        outlets: Sequence[Outlet],
        priority: int,
        patience_ms: int = 0,
    ) -> None:
        self.meter = meter
        self.taken = 0
        self.refusal: str | None = None
        self._ring = ring
        self._frame_bytes = frame_bytes
        self._outlets = outlets
        self._priority = priority
        self._patience_ms = patience_ms
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def run(self) -> None:
        """The thread's body; after ``stop`` it empties the ring and ends."""
        self.refusal = prepare_thread("push", below(self._priority, 10))
        wait = select.poll()
        wait.register(self._ring, select.POLLIN)
        wait.register(self._stop, select.POLLIN)
        rest = select.poll()
        rest.register(self._stop, select.POLLIN)
        stopping = False
        while not stopping:
            stopping = any(one == self._stop for one, _ in wait.poll())
            self.step()
            if self._patience_ms and not stopping:
                rest.poll(self._patience_ms)

    def step(self) -> int:
        """Passes on all that is in the ring; returns the number of blocks."""
        count = self._ring.take()
        ring, outlets = self._ring, self._outlets
        held = 0
        for slot in ring.peek(count, self._frame_bytes):
            samples = bytes(slot.samples)
            held += 1
            if held == BATCH:
                ring.release(held)
                held = 0
            block = Block(slot.first_frame, slot.frames, slot.captured_at_ns, samples)
            for outlet in outlets:
                outlet.put(block)
            self.taken += slot.frames
            if self.meter is not None:
                self.meter.update(samples)
        ring.release(held)
        return count

    def stop(self) -> None:
        """Makes ``run`` end once the ring is empty; the capturer must have ended. Any thread."""
        os.eventfd_write(self._stop, 1)
