"""What a stream tells of itself at one look: its figures, and what has happened since the last one.

Plain values only, so that they can be sent, and checked by their types where they arrive. What has
happened is told once: who looks has to pass it on.
"""

from collections.abc import Iterable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from capstand.accounting.stats import Gap, SinkStats, StreamStats
from capstand.processes.page import CALLS
from capstand.stream.defect import Defect
from capstand.stream.health import View

DISK_S = 6.0
"""A memory card may take seconds to write; what is not on it by then is lost and booked."""
CAN_BE_OPENED = "the device can be opened"
STATE, RUNTIME = Path("/var/lib/capstand"), Path("/run/capstand")


class Granted(NamedTuple):
    """What the device that was opened last agreed to, of a Grant; ``format`` in words."""

    device: str
    format: str
    rate_hz: int
    period_frames: int
    buffer_frames: int
    exact: bool
    successor: str | None


class SinkEvent(NamedTuple):
    """What a sink has for the ledger."""

    sink: str
    event: str
    what: dict[str, Any]


class LastReport(NamedTuple):
    """The last word on a sink that was taken out: its books, the frame at which it was, what it had
    for the ledger, and whether it was given up."""

    sink: SinkStats
    end_frame: int | None
    events: tuple[SinkEvent, ...]
    hung: bool


class StreamWord(IntEnum):
    """The words of a stream's Page."""

    RESTS = 1  # the number of the newest order, where the device is closed since it was released
    FIRST = 8  # of those that show what sinks have delivered, and would have were it killed now


WORDS_PER_SINK = 2


def word_places(
    sinks: Iterable[str], before: Mapping[str, int], taken: Iterable[int] = ()
) -> dict[str, int]:
    """Where the words of each sink begin: where they were ``before``, or at the first free ones;
    those at ``taken`` belong to sinks that leave."""
    kept = {name: before[name] for name in sinks if name in before}
    every = range(StreamWord.FIRST, CALLS - WORDS_PER_SINK + 1, WORDS_PER_SINK)
    free = iter(sorted(set(every) - set(kept.values()) - set(taken)))
    return {name: kept.get(name) or next(free) for name in sinks}


class Phase(IntEnum):
    RUNNING = 0
    DRAINED = 1  # nothing more comes into the ring; a chain may still have it to process
    ENDED = 2


class ResumePoint(NamedTuple):
    """Where a stream's process ended before its time: its last figures; and what the ring says,
    which is newer: how much had been ``captured``, the index of the ``next_frame``, when that was
    due, and the pace."""

    stats: StreamStats
    captured: int
    next_frame: int
    at_ns: int
    ns_per_frame: float


class Report(NamedTuple):
    """``gaps``, ``events`` and ``left`` have happened since the last report. ``trouble`` is the
    device's; ``concerns`` are those of the sinks, by name; ``view`` is what health is judged by;
    ``words`` says in which words of the Page each sink shows what it has delivered; ``hung``
    names what did not end in time, ``failed`` says why the process ends by itself, ``processing``
    what is wrong with the chain; ``orders`` is how many its process had obeyed."""

    stats: StreamStats
    granted: Granted | None
    trouble: str | None
    restarted: str
    refusals: tuple[str, ...]
    short_buffer: str | None
    only_zeros: str | None
    wrong_rate: str | None
    defects: tuple[Defect, ...]
    concerns: dict[str, str | None]
    gaps: tuple[Gap, ...]
    events: tuple[SinkEvent, ...]
    left: tuple[LastReport, ...]
    view: View
    words: dict[str, int]
    phase: Phase = Phase.RUNNING
    hung: tuple[str, ...] = ()
    failed: str | None = None
    processing: str | None = None
    orders: int = 0
