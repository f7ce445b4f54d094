"""The sinks that a stream's process was told to let go, seen from main: until it says how they
ended, or has died.

Another sink may have the name of one that leaves, but neither its books nor its words in the page.
Thread: main.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from capstand.accounting.stats import SinkState, SinkStats, StreamStats
from capstand.config.schema import SinkConfig, spool_of
from capstand.processes.page import CALLS
from capstand.stream.blank import not_yet
from capstand.stream.report import WORDS_PER_SINK, LastReport, Report, StreamWord

DIED = "the stream's process died"


class Parted(NamedTuple):
    """One of them as it was then: its books, where in the page it goes on to show what it has
    delivered (None: nowhere), the stream's place, and whether it has a spool."""

    sink: SinkStats
    words: int | None
    captured: int
    end_frame: int
    spooled: bool

    def last_word(self, kept: int | None, captured: int) -> LastReport:
        """Of one whose process has died, when so much of the stream was ``captured``, and so many
        frames are kept of it. It was fed a moment longer than main knows. What it did not deliver
        is dropped, or may wait in its spool."""
        sink = brought_up_to_date(self.sink, max(0, captured - self.captured), kept)
        meant = max(self.sink.captured_frames, sink.delivered_frames + sink.dropped_frames)
        rest = meant - sink.delivered_frames - sink.dropped_frames
        sink = sink._replace(
            state=SinkState.CLOSED,
            trouble=sink.trouble or (DIED if rest else None),
            captured_frames=meant,
            dropped_frames=sink.dropped_frames + (0 if self.spooled else rest),
            in_flight_frames=rest if self.spooled else 0,
        )
        return LastReport(sink, self.end_frame, (), hung=False)


class Parting:
    """Of one stream; ``sinks`` by name."""

    def __init__(self) -> None:
        self.sinks: dict[str, Parted] = {}
        self.unheard = False
        """There was no process that could be told."""
        self._order = 0  # the number of the order, of those to its process

    def begin(
        self,
        removed: Iterable[SinkConfig],
        added: Iterable[SinkConfig],
        now: StreamStats,
        last: Report,
    ) -> Report:
        """They are about to leave, and others to come: the ``last`` report, as it is to be
        understood from here on. ``now`` are the books at this moment."""
        books, words = {one.name: one for one in now.sinks}, places(last)
        for one in removed:
            sink = books.get(one.name) or _fresh(one)
            place, spooled = (now.captured_frames, now.produced_frames), spool_of(one) is not None
            self.sinks[one.name] = Parted(sink, words.get(one.name), *place, spooled)
        sinks = [*without(self.sinks, last.stats.sinks), *map(_fresh, added)]
        return last._replace(stats=last.stats._replace(sinks=tuple(sinks)))

    def ordered(self, number: int, heard: bool) -> None:
        """That was the number of the order, which its process could be sent or not."""
        self._order, self.unheard = number, not heard

    def as_ordered(self, report: Report, last: Report) -> Report:
        """A new report; one of before the order knows less of these sinks than the ``last``."""
        if report.orders >= self._order:
            return report
        told = {one.name: one for one in without(self.sinks, report.stats.sinks)}
        sinks = [told.get(one.name, one) for one in last.stats.sinks]
        return report._replace(stats=report.stats._replace(sinks=tuple(sinks)))

    def left(self, name: str) -> None:
        self.sinks.pop(name, None)

    def end(self, words: Sequence[int], captured: int) -> list[LastReport]:
        """Their process has died, or never was, and left these words in its page."""
        left = [
            one.last_word(None if one.words is None else words[one.words + 1], captured)
            for one in self.sinks.values()
        ]
        self.sinks, self._order, self.unheard = {}, 0, False
        return left


def places(report: Report) -> dict[str, int]:
    """Where in the page each sink has words, as far as that can be."""
    most = CALLS - WORDS_PER_SINK
    return {name: at for name, at in report.words.items() if StreamWord.FIRST <= at <= most}


def without(names: Mapping[str, object], sinks: Iterable[SinkStats]) -> tuple[SinkStats, ...]:
    return tuple(one for one in sinks if one.name not in names)


def brought_up_to_date(sink: SinkStats, frames: int, delivered: int | None) -> SinkStats:
    """With so many frames more that are meant for it, and so many ``delivered`` in all where that
    can be."""
    if sink.since_frame is None:
        return sink
    captured, before = sink.captured_frames + frames, sink.delivered_frames
    at_most = captured - sink.dropped_frames
    now = delivered if delivered is not None and before <= delivered <= at_most else before
    return sink._replace(
        captured_frames=captured, delivered_frames=now, in_flight_frames=at_most - now
    )


def _fresh(sink: SinkConfig) -> SinkStats:
    return not_yet(sink.name)._replace(since_frame=None)
