"""The pusher: takes blocks out of the ring and passes them to every outlet; it waits for none.

It copies a block out of its slot once, measures its level, and puts the same immutable value into
each outlet's queue. Between two blocks the outlets may be exchanged for others. Thread: ``run`` is
the push thread, which has real-time priority just below capture, because on a busy machine an
ordinary thread that holds Python's lock delays all others.
"""

import os
import select
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from capstand.audio.block import Block
from capstand.audio.ring import Ring
from capstand.host.realtime import below, prepare_thread
from capstand.sinks.outlet import Mark, Outlet

if TYPE_CHECKING:
    from capstand.dsp.level import Meter

FIRST_REST_MS = 10
BATCH = 8
"""Slots are given back at least this often, so that a long backlog does not keep the ring full."""


class Pusher:
    """Moves blocks from ``ring`` to ``outlets`` and counts ``taken`` frames; where none of them is
    in a hurry, ``patience_ms`` at a time, because each wake-up costs more than what it does; a full
    ring ends that rest. Blocks may be short, so it rests no longer than half of the ring takes.

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
        self.patience_ms = patience_ms
        self._outlets = outlets
        self._wanted = outlets  # written by main, taken over between two blocks
        self._next_frame = 0
        self._priority = priority
        self._stopping = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wake).atexit = False

    def run(self) -> None:
        """The thread's body; after ``stop`` it empties the ring and ends."""
        self.refusal = prepare_thread("push", below(self._priority, 10))
        wait = select.poll()
        wait.register(self._ring, select.POLLIN)
        wait.register(self._wake, select.POLLIN)
        rest = select.poll()
        rest.register(self._wake, select.POLLIN)
        rest.register(self._ring.pressed, select.POLLIN)
        stopping, rest_ms = False, FIRST_REST_MS
        while not stopping:
            if any(one == self._wake for one, _ in wait.poll()):
                os.eventfd_read(self._wake)
            stopping = self._stopping
            quarters = 4 * self.step() // self._ring.slots
            if self.patience_ms and not stopping:
                rest_ms = self.rest_ms(rest_ms, quarters)
                rest.poll(rest_ms)
                self._ring.relax()

    def rest_ms(self, last_ms: int, quarters: int) -> int:
        """How long to rest after a rest of ``last_ms``, in which so many quarters of the ring were
        filled."""
        next_ms = 2 * last_ms if quarters < 1 else last_ms if quarters < 2 else last_ms // 2
        return max(1, min(self.patience_ms, next_ms))

    def step(self) -> int:
        """Passes on all that is in the ring; returns the number of blocks."""
        if self._wanted is not self._outlets:
            self._exchange(self._wanted)
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
            self._next_frame = slot.first_frame + slot.frames
            if self.meter is not None:
                self.meter.update(samples)
        ring.release(held)
        return count

    def _exchange(self, wanted: Sequence[Outlet]) -> None:
        mark = Mark(self._next_frame, self.taken)
        before, self._outlets = self._outlets, wanted
        for outlet in wanted:
            if outlet not in before:
                outlet.since = mark
        for outlet in before:
            if outlet not in wanted:
                outlet.until_frame = mark.frame
                outlet.finish()

    def exchange(self, outlets: Sequence[Outlet], patience_ms: int) -> None:
        """From the next block on ``outlets`` instead of those before; the ones that are no longer
        among them are finished. Any thread."""
        self.patience_ms = patience_ms
        self._wanted = tuple(outlets)
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Makes ``run`` end once the ring is empty; the capturer must have ended. Any thread."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
