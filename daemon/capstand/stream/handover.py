"""The books of a sink within its stream, and sinks that have been taken out of it.

A sink may join and leave while sound flows. Its books then count what the stream captured
meanwhile, from the frame at which it joined; what the full ring drops counts for the sinks of the
moment at which the exchange was asked for. One that has left delivers what it has, closes, and is
looked at until then, but not for ever. Thread: main.
"""

import threading
import time
from typing import NamedTuple

from capstand.accounting.stats import Count, SinkStats
from capstand.sinks.outlet import Mark, Outlet

LEAVE_S = 3.0
"""So long a sink that was taken out, or another that takes its place, waits for its closing."""
ABANDON_S = 0.5
"""So long one that was let go of may take to end after all."""


class Side(NamedTuple):
    """An outlet's counters as of one moment, to be read before the device's."""

    outlet: Outlet
    since: Mark | None
    delivered: int
    dropped: int
    queued: int
    state: str
    trouble: str | None

    @classmethod
    def of(cls, one: Outlet) -> "Side":
        return cls(one, one.since, *one.books(), one.queued, one.state, one.trouble)

    def books(self, count: Count, rate_hz: int, now_ns: int) -> SinkStats:
        """``count`` is the stream's, taken after this side."""
        outlet, since = self.outlet, self.since
        if since is None:  # no block has been meant for it yet
            return self.stats(None, 0, 0, rate_hz, now_ns)
        captured = count.captured - since.taken - outlet.ring_dropped_before
        ring_dropped = count.ring_dropped - outlet.ring_dropped_before
        return self.stats(since.frame, captured, ring_dropped, rate_hz, now_ns)

    def stats(
        self, since: int | None, captured: int, ring_dropped: int, rate_hz: int, now_ns: int
    ) -> SinkStats:
        sink = self.outlet.sink
        return SinkStats(
            name=self.outlet.name,
            state=self.state,
            trouble=self.trouble,
            detail=sink.detail,
            since_frame=since,
            captured_frames=captured,
            delivered_frames=self.delivered,
            dropped_frames=self.dropped + ring_dropped,
            inside_frames=captured - self.delivered - self.dropped - ring_dropped,
            inserted_frames=sink.inserted_frames,
            queue_ms=round(self.queued * 1000 / rate_hz, 1),
            figures=sink.figures(now_ns),
        )


class Leaving:
    """An outlet that its stream's pusher was told to let go; ``ring_dropped`` is the stream's."""

    def __init__(self, outlet: Outlet, thread: threading.Thread, ring_dropped: int) -> None:
        self.name = outlet.name
        self.outlet = outlet
        self.thread = thread
        self.hung = False
        self._ring_dropped = ring_dropped - outlet.ring_dropped_before
        self._deadline = time.monotonic() + LEAVE_S

    def over(self, deadline: float | None = None) -> bool:
        """Whether it has closed or is given up; waits for it where there is a ``deadline``."""
        if deadline is not None:
            self.thread.join(max(0.0, deadline - time.monotonic()))
        if not self.thread.is_alive():
            return True
        if deadline is None and time.monotonic() < self._deadline:
            return False
        if not self.hung:
            self.hung = True
            self.outlet.sink.abandon()
            self._deadline = time.monotonic() + ABANDON_S
            if deadline is None:
                return False
            self.thread.join(max(0.0, deadline + ABANDON_S - time.monotonic()))
        if self.thread.is_alive():
            self.outlet.abandon()
        return True

    def books(self, rate_hz: int, now_ns: int) -> SinkStats:
        """Its last figures."""
        side = Side.of(self.outlet)
        captured = self.outlet.entered + self._ring_dropped
        since = None if side.since is None else side.since.frame
        return side.stats(since, captured, self._ring_dropped, rate_hz, now_ns)
