"""The ledger of a stream, and frozen snapshots of it.

Two invariants hold at every moment and after shutdown:

    produced = captured + lost                    (the device's frames)
    captured = delivered + dropped + in flight    (for each sink, since it joined the stream)

Every counter has one writing thread and only grows. A snapshot reads downstream first, so what is
still inside can only be over-counted by what arrived meanwhile, never negative.
"""

import time
from array import array
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple


class Cause(IntEnum):
    """Why frames are missing."""

    OVERRUN = 0
    OVERWRITTEN = 1
    STOPPED = 2
    SUSPENDED = 3
    REOPENED = 4
    STALLED = 5
    RELEASED = 6
    SWITCHED = 7
    DEVICE = 8
    PROCESS = 9
    DECLARED = 10

    @property
    def description(self) -> str:
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Cause.OVERRUN: "overrun: the card's buffer was not read in time",
    Cause.OVERWRITTEN: "overrun while the buffer was being read",
    Cause.STOPPED: "the driver stopped the stream",
    Cause.SUSPENDED: "the machine was suspended",
    Cause.REOPENED: "the device was away or stood still",
    Cause.STALLED: "the device stood still",
    Cause.SWITCHED: "another device was taken, one that is preferred",
    Cause.RELEASED: "the device was released to another program",
    Cause.PROCESS: "the stream's process had ended and was started again",
    Cause.DECLARED: "the program that brings the sound says that they are missing",
    Cause.DEVICE: "the card delivered less than its rate: bus errors?",
}


class Gap(NamedTuple):
    """Frames missing from the stream: first index, length, time of the first, cause.

    ``exact`` is false where the length was worked out from time instead of counted by the kernel.
    """

    first_frame: int
    frames: int
    at_ns: int
    cause: Cause
    exact: bool

    @classmethod
    def from_code(cls, first_frame: int, frames: int, at_ns: int, code: int) -> "Gap":
        """``code`` is a ``gap_code``; any other number stands for a process that has died."""
        known = gap_code(min(Cause), exact=False) <= code <= gap_code(max(Cause), exact=True)
        cause = Cause((code >> 1) - 1) if known else Cause.PROCESS
        return cls(first_frame, frames, at_ns, cause, known and bool(code & 1))


def gap_code(cause: int, exact: bool) -> int:
    """A gap's cause and exactness in one number, which is never 0."""
    return cause + 1 << 1 | exact


class GapTable:
    """Gaps on their way from the capture thread to the main thread, without a lock.

    A row is written before the count that shows it. A reader that comes later than ``ROWS`` gaps
    finds the oldest overwritten; totals in the tally are not affected.
    """

    ROWS = 1024

    def __init__(self) -> None:
        self._rows = array("q", bytes(8 * 5 * self.ROWS))
        self.count = 0

    def note(self, first_frame: int, frames: int, at_ns: int, cause: int, exact: bool) -> None:
        base = 5 * (self.count % self.ROWS)
        rows = self._rows
        rows[base] = first_frame
        rows[base + 1] = frames
        rows[base + 2] = at_ns
        rows[base + 3] = cause
        rows[base + 4] = exact
        self.count += 1

    def since(self, seen: int, until: int | None = None) -> list[Gap]:
        """The gaps from number ``seen`` on, up to number ``until`` or the newest."""
        gaps = []
        end = self.count if until is None else until
        for number in range(max(seen, self.count - self.ROWS + 1), end):
            base = 5 * (number % self.ROWS)
            frame, frames, at_ns, cause, exact = self._rows[base : base + 5]
            gaps.append(Gap(frame, frames, at_ns, Cause(cause), bool(exact)))
        return gaps


class Count(NamedTuple):
    """The device's side of the books at one moment, in frames."""

    produced: int
    captured: int
    lost_exact: int
    lost_estimated: int
    lost_by_device: int  # of the estimated ones, those of the cause DEVICE
    gaps: int


class Tally:
    """What the capture thread counts; it alone writes.

    ``sequence`` is odd while several counters change together, so a reader can tell and try again.
    """

    __slots__ = (
        "captured",
        "gaps",
        "lost_by_device",
        "lost_estimated",
        "lost_exact",
        "produced",
        "sequence",
    )

    def __init__(self) -> None:
        self.sequence = 0
        self.produced = 0  # frame index of the next frame
        self.captured = 0
        self.lost_exact = 0
        self.lost_estimated = 0
        self.lost_by_device = 0
        self.gaps = GapTable()

    def continue_from(self, before: "StreamStats", captured: int, next_frame: int) -> None:
        """With the counters of another one, which may have told its last losses to nobody: how
        many frames are lost is known, not how."""
        lost_exact = before.lost_frames - before.lost_estimated_frames
        self.captured, self.produced = captured, next_frame
        self.lost_exact = min(lost_exact, next_frame - captured)
        self.lost_estimated = next_frame - captured - self.lost_exact
        self.gaps.count = before.gaps

    def count(self) -> Count:
        """All counters as of one moment. Any thread."""
        while True:
            sequence = self.sequence
            count = Count(
                self.produced,
                self.captured,
                self.lost_exact,
                self.lost_estimated,
                self.lost_by_device,
                self.gaps.count,
            )
            if sequence == self.sequence and not sequence & 1:
                return count
            time.sleep(0)


class StreamPosition(NamedTuple):
    """A place between two blocks: the next frame's index, and how many were captured before it."""

    frame: int
    captured: int


class SinkCounters(NamedTuple):
    """A sink's side of the books at one moment, to be read before the device's. It gets what the
    stream captures from ``since`` to ``until``: None before it has joined, and while it stays.
    """

    since: StreamPosition | None
    until: StreamPosition | None
    delivered: int
    dropped: int
    inserted: int

    def captured(self, captured: int) -> int:
        """Of the ``captured`` frames of the stream, those that are meant for it."""
        if self.since is None:
            return 0
        if self.until is not None:
            captured = min(captured, self.until.captured)
        return captured - self.since.captured


class SinkState(StrEnum):
    OPENING = "opening"
    OPEN = "open"
    WAITING = "waiting"
    """For the next try."""
    CLOSED = "closed"


class SinkStats(NamedTuple):
    """One sink's side of the books, and its state; ``figures`` are those of its kind.

    ``captured_frames`` are the stream's from ``since_frame`` on, which is 0 for a sink that was
    there when the stream began, and None for one that is still to join.
    """

    name: str
    state: SinkState
    trouble: str | None
    detail: str
    since_frame: int | None
    captured_frames: int
    delivered_frames: int
    dropped_frames: int
    in_flight_frames: int
    inserted_frames: int
    queue_ms: float
    figures: dict[str, Any]

    @property
    def balanced(self) -> bool:
        parts = self.delivered_frames + self.dropped_frames + self.in_flight_frames
        return self.in_flight_frames >= 0 and self.captured_frames == parts


class Health(StrEnum):
    """How a stream is; ``stream/health.py`` judges it."""

    STARTING = "STARTING"
    OK = "OK"
    DEGRADED = "DEGRADED"
    STALLED = "STALLED"
    FAILED = "FAILED"


SIMULATED = "simulated sound, not a microphone"


class StreamStats(NamedTuple):
    """One stream at one moment; the keys of ``capstand status --json``. ``released`` says to whom
    and until when the device is left, None while it is ours to open."""

    name: str
    health: Health
    trouble: str | None
    device: str
    format: str
    rate_hz: int
    channels: int
    produced_frames: int
    captured_frames: int
    lost_frames: int
    lost_exact: bool
    lost_estimated_frames: int
    gaps: int
    restarts: int
    opens: int
    zeros_s: float
    drift_ppm: float | None
    drift_settled: bool
    level_dbfs: float | None
    peak_dbfs: float | None
    captured_at_ns: int
    sinks: tuple[SinkStats, ...]
    released: str | None = None
    ring_dropped_frames: int = 0  # captured, and lost on the way to the sinks; each counts them too
    device_lost_ms_last_hour: float = 0.0  # what the card did not deliver, found by time
    notice: str | None = None  # that the card is another one, or granted less, and what that means
    channel_levels: list[dict[str, Any]] | None = None
    pid: int | None = None  # of the process that takes its sound in
    simulated: bool = False  # what is heard comes from no card
    process: dict[str, Any] | None = None  # the chain of processors: its stages and their delay
    loudness: dict[str, float] | None = None  # of what is captured, where it is measured
    controls: dict[str, dict[str, str | None]] | None = None  # of the card, those that are set

    @property
    def balanced(self) -> bool:
        """The two invariants."""
        return self.produced_frames == self.captured_frames + self.lost_frames and all(
            sink.balanced and sink.captured_frames <= self.captured_frames for sink in self.sinks
        )

    def as_json(self) -> dict[str, Any]:
        sinks = [sink._asdict() for sink in self.sinks]
        return self._asdict() | {"sinks": sinks, "balanced": self.balanced}


def span(seconds: float) -> str:
    """A length of time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
