"""The capture thread: device → clock → ring, and nothing else.

While sound flows it waits for the device alone, takes no lock, writes no log and keeps no growing
memory: it counts, and the main thread tells. A device that fails is closed and opened again for
ever; the frames that it would have produced meanwhile are a gap, measured by the clock, so the
frame index and the timeline go on. Only frames that arrive prove life: a device that is open and
brings none for ``STALL_S`` is opened again too; it is asked several times, because a process that
was itself stopped must not take its own absence for the card's.

Thread: ``run`` is the capture thread; the attributes may be read from any.
"""

import threading
import time
from collections.abc import Callable

from capstand.block import NS_PER_S
from capstand.capture.source import UNKNOWN, Grant, Source
from capstand.clock import Clock
from capstand.errors import DeviceError
from capstand.realtime import prepare_thread
from capstand.ring import Ring
from capstand.stats import Cause, Tally

STALL_S = 2.0
STALL_READS = 5
POLL_MS = 200
HASTY_NS = 1_000_000
HASTY_PAUSE_S = 0.005
RETRY_S = 0.5
REFUSED_RETRY_S = 5.0


class Capturer:
    """Moves every period of ``source`` into ``ring`` and keeps the books of the device's side.

    ``grant`` is None while the device is not open, and then ``trouble`` says why.
    """

    def __init__(
        self,
        source: Source,
        clock: Clock,
        ring: Ring,
        priority: int,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.tally = Tally()
        self.grant: Grant | None = None
        self.last_grant: Grant | None = None
        self.trouble: DeviceError | None = None
        self.refusal: str | None = None
        self.stalls = 0
        self.opens = 0
        self.last_frame_ns = 0  # when frames last arrived
        self.captured_at_ns = 0  # when the newest block was sampled
        self.seen_ns = now_ns()  # when the thread last showed that it lives
        self.pause_s = 0.0  # how long it said it would be away then
        self._source = source
        self._clock = clock
        self._ring = ring
        self._priority = priority
        self._now_ns = now_ns
        self._stopped = threading.Event()  # waited for only while nothing can be captured
        self._roused = threading.Event()  # the same
        self._stopping = False
        self._reopened = False
        self._empty = 0  # reads in a row that brought nothing

    def run(self) -> None:
        """The thread's body; ends after ``stop``."""
        self.refusal = prepare_thread("capture", self._priority)
        while not self._stopping:
            self._roused.wait(self.attempt())
            self._roused.clear()
        self._source.close()
        self.grant = None

    def attempt(self) -> float:
        """Opens the device and captures until it fails or ``stop``; returns the pause to make."""
        try:
            self.open()
            while not self._stopping:
                asked_ns = self._now_ns()
                if self.step(POLL_MS) == 0 and self._now_ns() - asked_ns < HASTY_NS:
                    # A descriptor in error ends each wait at once; at real-time priority that
                    # would take the whole processor.
                    self._stopped.wait(HASTY_PAUSE_S)
        except DeviceError as error:
            return self.fail(error)
        return 0.0

    def open(self) -> None:
        self.seen_ns = self._now_ns()
        grant = self._source.open()
        self.opens += 1
        self._reopened = True
        self.last_frame_ns = self._now_ns()
        self.pause_s = 0.0
        self._empty = 0
        self.grant = self.last_grant = grant

    def fail(self, error: DeviceError) -> float:
        """The device failed: let it go, remember why; returns the pause to make in seconds."""
        self._source.close()
        self.grant = None
        self.trouble = error
        self.pause_s = REFUSED_RETRY_S if error.refused else RETRY_S
        self.seen_ns = self._now_ns()
        return self.pause_s

    def step(self, timeout_ms: int) -> int:
        """One period from the device into the ring; returns its frames, 0 when none came."""
        ring = self._ring
        slot = ring.slot()
        reading = self._source.read(slot, timeout_ms)
        frames = reading.frames
        now_ns = self.seen_ns = self._now_ns()
        if frames == 0:
            self._empty += 1
            silent = now_ns - self.last_frame_ns > STALL_S * NS_PER_S
            if silent and self._empty >= STALL_READS and not self._stopping:
                self.stalls += 1
                raise DeviceError(
                    f"the device is open but has brought no frame for {STALL_S:g} s; opening it "
                    "again; if this goes on, unplug it and plug it in again"
                )
            return 0
        tally, clock = self.tally, self._clock
        lost = reading.lost
        if lost or self._reopened:
            if reading.grant is not None:
                self.grant = self.last_grant = reading.grant
                self.opens, reading.grant = self.opens + 1, None
            self._account(lost, reading.cause, reading.stamp_ns, reading.ahead)
        first = tally.produced
        stamp_ns = reading.stamp_ns
        if stamp_ns:
            clock.observe(first + reading.ahead, stamp_ns)
        elif not clock.started:
            clock.observe(first + frames, now_ns)
        captured_at_ns = clock.time_of(first)
        if captured_at_ns <= self.captured_at_ns:
            captured_at_ns = self.captured_at_ns + 1
        self.captured_at_ns = captured_at_ns
        tally.turn += 1
        tally.produced = first + frames
        tally.captured += frames
        if not ring.publish(first, frames, captured_at_ns):
            tally.ring_dropped += frames
            tally.gaps.note(first, frames, captured_at_ns, Cause.RING_FULL, True)
        tally.turn += 1
        self.last_frame_ns = now_ns
        self._empty = 0
        self.trouble = None
        return frames

    def _account(self, lost: int, cause: Cause, stamp_ns: int, ahead: int) -> None:
        """Books a gap before the frames just read; after a new start, sets the clock on again."""
        tally, clock = self.tally, self._clock
        exact = lost != UNKNOWN and not self._reopened
        if not exact:
            stamp_ns = stamp_ns or self._now_ns()
            if self._reopened:
                cause = Cause.REOPENED if lost != UNKNOWN else cause
            lost = 0
            if clock.started:
                first_ns = stamp_ns - round(ahead * clock.ns_per_frame)
                lost = max(0, clock.frame_at(first_ns) - tally.produced)
            self._reopened = False
        if lost:
            at_ns = clock.time_of(tally.produced) if clock.started else stamp_ns
            tally.gaps.note(tally.produced, lost, at_ns, cause, exact)
            tally.turn += 1
            tally.produced += lost
            if exact:
                tally.lost_exact += lost
            else:
                tally.lost_estimated += lost
            tally.turn += 1
        if not exact:
            clock.restart(tally.produced + ahead, stamp_ns)

    def stop(self) -> None:
        """Makes ``run`` end soon. Any thread."""
        self._stopping = True
        self._stopped.set()
        self._roused.set()
        self._source.wake()

    def hasten(self) -> None:
        """Makes a pause before the next attempt end now. Any thread."""
        self._roused.set()
