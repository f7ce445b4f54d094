"""A sink within its stream: what both kinds have in common, its books, and its end.

A sink may join and leave while sound flows. Its books then count what the stream captured
meanwhile, from the frame at which it joined to the one at which it was taken out. One that has left
delivers what it has, closes, and is looked at until then, but for a bounded time. Thread: main.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from capstand.accounting.stats import SinkCounters, SinkState, SinkStats, StreamPosition
from capstand.sinks.sink import Event
from capstand.sinks.sink_queue import Joinable
from capstand.stream.health import SinkView
from capstand.stream.report import LastReport, SinkEvent

LEAVE_S = 3.0
"""So long a sink that was taken out, or another that takes its place, waits for its closing."""
ABANDON_S = 0.5
"""So long one that was let go of may take to end after all."""


class Feed(Joinable, Protocol):
    """What brings a stream's blocks to one sink: a SinkQueue in the daemon, or a LiveSink."""

    name: str

    @property
    def until(self) -> StreamPosition | None: ...
    @property
    def state(self) -> SinkState: ...
    @property
    def trouble(self) -> str | None: ...
    @property
    def detail(self) -> str: ...
    @property
    def concern(self) -> str | None: ...
    @property
    def failures(self) -> int: ...
    @property
    def on_disk(self) -> bool: ...
    @property
    def taken(self) -> int:
        """A figure that moves while it takes blocks."""

    @property
    def queued(self) -> int:
        """Frames that wait for it."""

    @property
    def slow(self) -> int:
        """Frames that it lost because it was too slow."""

    def figures(self, now_ns: int) -> dict[str, object]: ...
    def events(self) -> Iterable[Event]: ...
    def counters(self) -> SinkCounters: ...
    def start(self, stream: str, after: Sequence[Joinable] = (), wait_s: float = 0.0) -> None: ...
    def poll(self, now_ns: int) -> None: ...
    def force_close(self) -> None: ...
    def abandon(self) -> None: ...
    def close(self) -> None: ...


class SinkSnapshot(NamedTuple):
    """A sink's counters as of one moment, to be read before the device's."""

    feed: Feed
    counters: SinkCounters
    queued: int
    state: SinkState
    trouble: str | None

    @classmethod
    def of(cls, feed: Feed) -> "SinkSnapshot":
        return cls(feed, feed.counters(), feed.queued, feed.state, feed.trouble)

    def stats(self, captured: int, rate_hz: int, now_ns: int) -> SinkStats:
        """``captured`` is the stream's, read after this side."""
        feed, counters = self.feed, self.counters
        meant = counters.captured(captured)
        return SinkStats(
            name=feed.name,
            state=self.state,
            trouble=self.trouble,
            detail=feed.detail,
            since_frame=None if counters.since is None else counters.since.frame,
            captured_frames=meant,
            delivered_frames=counters.delivered,
            dropped_frames=counters.dropped,
            in_flight_frames=meant - counters.delivered - counters.dropped,
            inserted_frames=counters.inserted,
            queue_ms=round(self.queued * 1000 / rate_hz, 1),
            figures=feed.figures(now_ns),
        )


class ProgressTracker:
    """For how long counters have stood still, and how long ago they moved."""

    def __init__(self) -> None:
        self._moved: dict[str, tuple[int, int]] = {}

    def still(self, key: str, value: int, pending: bool, now_ns: int) -> int:
        """For how long a counter has not moved although something waits."""
        if not pending or self._moved.get(key, (None, 0))[0] != value:
            self._moved[key] = (value, now_ns)
        return now_ns - self._moved[key][1]

    def age(self, key: str, value: int, now_ns: int) -> int | None:
        """How long ago a counter last moved away from 0."""
        if self._moved.get(key, (0, 0))[0] != value:
            self._moved[key] = (value, now_ns)
        return now_ns - self._moved[key][1] if value else None

    def view(self, feed: Feed, now_ns: int) -> SinkView:
        return SinkView(
            feed.name,
            feed.trouble,
            self.still(f"out {feed.name}", feed.taken, feed.queued > 0, now_ns),
            self.age(f"drop {feed.name}", feed.slow, now_ns),
            feed.concern,
        )

    def forget(self, sink: str) -> None:
        """Another may have its name."""
        for counter in ("out", "drop"):
            self._moved.pop(f"{counter} {sink}", None)


def events_of(feeds: Iterable[Feed]) -> Iterator[SinkEvent]:
    """What sinks have for the ledger, such as the begin and end of a spool."""
    for feed in feeds:
        for event, what in feed.events():
            yield SinkEvent(feed.name, event, what)


class RemovedSink:
    """A sink that its stream was told to let go."""

    def __init__(self, feed: Feed) -> None:
        self.name = feed.name
        self.feed = feed
        self.hung = False
        self._deadline = time.monotonic() + LEAVE_S

    def over(self, deadline: float | None = None) -> bool:
        """Whether it has closed or is given up; waits for it where there is a ``deadline``."""
        feed = self.feed
        if feed.join(deadline or 0.0):
            return True
        if deadline is None and time.monotonic() < self._deadline:
            return False
        if not self.hung:
            self.hung = True
            feed.force_close()
            self._deadline = time.monotonic() + ABANDON_S
            if deadline is None:
                return False
        if not feed.join(deadline + ABANDON_S if deadline is not None else 0.0):
            feed.abandon()
        return True

    def last_word(self, captured: int, rate_hz: int) -> LastReport:
        """Its books, when so many frames of the stream were ``captured``; it is closed for good."""
        feed = self.feed
        stats = SinkSnapshot.of(feed).stats(captured, rate_hz, time.monotonic_ns())
        end_frame = None if feed.until is None else feed.until.frame
        left = LastReport(stats, end_frame, tuple(events_of([feed])), self.hung)
        feed.close()
        return left
