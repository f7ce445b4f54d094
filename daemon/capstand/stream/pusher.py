"""The pusher: reads the ring and passes each block to the sinks that work in the daemon; it waits
for none.

It copies a block out of the ring once, measures its level, and puts the same immutable value into
each sink's queue. Each wake-up costs more than what it does, and disks are in no hurry, so it rests
between its turns, until a quarter of the ring is full at the latest. Between two blocks the sinks
may be exchanged for others. Thread: ``run`` is the push thread, which has real-time priority just
below capture, because on a busy machine an ordinary thread that holds Python's lock delays all
others.
"""

import select
from collections.abc import Sequence
from typing import TYPE_CHECKING

from capstand.accounting.stats import StreamPosition
from capstand.audio.ring import Reader
from capstand.audio.wake import Doorbell, WakeUp
from capstand.host.realtime import lower_priority, prepare_thread
from capstand.sinks.sink_queue import SinkQueue

if TYPE_CHECKING:
    from capstand.dsp.level import Meter

FIRST_REST_MS = 10


class Pusher:
    """Moves blocks from the ``reader`` of a ring to ``sink_queues``, up to ``batch_ms`` at a time;
    blocks may be short, so it rests no longer than half of the ring takes.

    ``captured`` is how far it has come in the frames that the stream captured; of these, the ones
    that the ring had no room for until it came to them are ``missed``. ``meter`` may come later
    than the sound: loading numpy takes longer than opening a card.
    """

    def __init__(
        self,
        reader: Reader,
        meter: "Meter | None",
        sink_queues: Sequence[SinkQueue],
        priority: int,
        batch_ms: int,
        wake: WakeUp | None = None,
        quarter_full: WakeUp | None = None,
    ) -> None:
        self.meter = meter
        self.refusal: str | None = None
        self.batch_ms = batch_ms
        self.wake = wake or Doorbell()  # by the ring, for each block
        # for each quarter of it, and by those who want something
        self.quarter_full = quarter_full or WakeUp()
        self._reader = reader
        self._sink_queues = sink_queues
        self._wanted = sink_queues  # written by main, taken over between two blocks
        self._missed = 0
        self._priority = priority
        self._stopping = False

    @property
    def captured(self) -> int:
        return self._reader.captured

    @property
    def missed(self) -> int:
        return self._reader.missed

    @property
    def waiting(self) -> int:
        """Blocks that it has not taken up."""
        return self._reader.waiting

    @property
    def is_behind(self) -> bool:
        """Whether so much waits as never does where it is not held up."""
        return bool(2 * self._reader.waiting > self._reader.slots)

    @property
    def place(self) -> StreamPosition:
        """Before the next block; not while ``run`` runs."""
        return StreamPosition(self._reader.next_frame, self._reader.captured)

    def run(self) -> None:
        """The thread's body; after ``stop`` it empties the ring and ends."""
        self.refusal = prepare_thread("push", lower_priority(self._priority, 10))
        wait = select.poll()
        wait.register(self.wake, select.POLLIN)
        wait.register(self.quarter_full, select.POLLIN)
        rest = select.poll()
        rest.register(self.quarter_full, select.POLLIN)
        stopping, rest_ms = False, FIRST_REST_MS
        while not stopping:
            self.wake.expect()
            if not self._reader.waiting and not self._stopping:
                wait.poll()
            self.wake.clear()
            self.quarter_full.clear()
            stopping = self._stopping
            quarters = 4 * self.step() // self._reader.slots
            if not stopping:
                rest_ms = self.rest_ms(rest_ms, quarters)
                rest.poll(rest_ms)

    def rest_ms(self, last_ms: int, quarters: int) -> int:
        """How long to rest after a rest of ``last_ms``, in which so many quarters of the ring were
        filled."""
        next_ms = 2 * last_ms if quarters < 1 else last_ms if quarters < 2 else last_ms // 2
        return max(1, min(self.batch_ms, next_ms))

    def step(self) -> int:
        """Passes on all that is in the ring; returns the number of blocks."""
        count = 0
        if self._wanted is not self._sink_queues:
            if not self._sink_queues:  # what waits was meant for nobody
                count = self._pass_on()
            self._exchange(self._wanted)
        return count + self._pass_on()

    def _pass_on(self) -> int:
        reader, sink_queues, count = self._reader, self._sink_queues, 0
        while (block := reader.read()) is not None:
            count += 1
            if reader.missed != self._missed:
                for sink_queue in sink_queues:
                    sink_queue.missed += reader.missed - self._missed
                self._missed = reader.missed
            if not block.frames:
                continue
            for sink_queue in sink_queues:
                sink_queue.put(block)
            if self.meter is not None:
                self.meter.update(block.samples)
        return count

    def _exchange(self, wanted: Sequence[SinkQueue]) -> None:
        mark = self.place
        before, self._sink_queues = self._sink_queues, wanted
        for sink_queue in wanted:
            if sink_queue not in before:
                sink_queue.since = mark
        for sink_queue in before:
            if sink_queue not in wanted:
                sink_queue.until = mark
                sink_queue.finish()

    def exchange(self, sink_queues: Sequence[SinkQueue], batch_ms: int) -> None:
        """From the next block on ``sink_queues`` instead of those before; the ones that are no
        longer among them are finished. Any thread."""
        self.batch_ms = batch_ms
        self._wanted = tuple(sink_queues)
        self.quarter_full.set()

    def stop(self) -> None:
        """Makes ``run`` end once the ring is empty; the capturer must have ended. Any thread."""
        self._stopping = True
        self.quarter_full.set()
