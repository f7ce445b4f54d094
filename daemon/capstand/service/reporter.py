"""Says what the other threads only count: log lines and ledger events, each change once.

Thread: main.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from capstand.accounting.ledger import Ledger, wall_time
from capstand.accounting.stats import SIMULATED, Gap, SinkStats, StreamStats
from capstand.config.schema import Stream as StreamConfig
from capstand.host import realtime
from capstand.host.logs import say, tell_held_back
from capstand.stream.chaining import PROCESSING
from capstand.stream.defect import Defect
from capstand.stream.health import Health
from capstand.stream.report import Granted, Left, Report, SinkEvent

TOTAL_S = 300.0
GAP_TOTAL_S = 60.0
"""After a gap the sums are written, but no more often than this."""
DROP_S = 10.0
"""A sink that is away misses sound all the time; the books get a line so often."""


class _Told:
    """What has been told of one sink."""

    def __init__(self) -> None:
        self.joined = False
        self.trouble: str | None = None
        self.concern: str | None = None
        self.dropped = 0
        self.drops_due = 0.0
        self.inserted = 0
        self.replaced = False  # the stream's process was, since the last drop


class Reporter:
    """Tells the changes of one stream; remembers what it has told."""

    def __init__(self, stream: StreamConfig, ledger: Ledger) -> None:
        self._name = stream.name
        self._capture = stream.capture
        self._ledger = ledger
        self._gaps = 0
        self._gap_frames = 0
        self._opens = 0
        self._restarts = 0
        self._successor: str | None = None
        self._zeros = self._wrong_rate = False
        self._defects: dict[str, Defect] = {}
        self._health = Health.STARTING.value
        self._trouble: str | None = None
        self._told: dict[str, _Told] = defaultdict(_Told)
        self._released: str | None = None
        self._parted: dict[str, _Told] = {}  # of sinks that leave; others may have their names
        self._refusals: list[str] = []
        self._gap_total_due = 0.0
        self._total_due = time.monotonic() + TOTAL_S
        self._day = _today()
        self._pid: int | None = None
        self._processing: str | None = None
        self._fields = {"STREAM": stream.name, "DEVICE": stream.capture.wanted}

    def _write(self, event: str, **what: object) -> None:
        self._ledger.write(self._name, event, **what)

    def begin(self) -> None:
        self._write("start", device=self._capture.wanted, format=str(self._capture.audio))

    def look(self, report: Report) -> None:
        stats, granted = report.stats, report.granted
        for text in report.refusals:
            if text not in self._refusals:
                self._refusals.append(text)
                if "priority" not in realtime.announced:
                    say(logging.WARNING, "%s", text, KIND="refusal", **self._fields)
        if stats.opens > self._opens and granted is not None:
            self._opens = stats.opens
            self._tell_granted(report, granted)
        if None not in (self._pid, stats.pid) and stats.pid != self._pid:
            for told in self._told.values():
                told.replaced = True
        self._pid = stats.pid or self._pid
        for one in report.left:
            self._leave(one, stats)
        self._tell_gaps(report)
        self._tell_released(stats)
        self._tell_trouble(report)
        self._tell_sinks_own(report.events)
        self._tell_concerns(report.concerns)
        if (day := _today()) != self._day:
            before, self._day = self._day, day
            self._write_total("total", stats, closes=before)
        elif time.monotonic() >= self._total_due:
            self._write_total("total", stats)

    def _tell_granted(self, report: Report, granted: Granted) -> None:
        """A device was opened."""
        name, rate_hz = self._name, granted.rate_hz
        self._fields["DEVICE"] = granted.device
        counted = "to the frame" if granted.exact else "by estimate from time"
        say(
            logging.INFO,
            "%s: capturing from %s, %s, period %g ms, buffer %g ms, losses are counted %s",
            *(name, granted.device, granted.format, granted.period_frames * 1000 / rate_hz),
            *(granted.buffer_frames * 1000 / rate_hz, counted),
            **self._fields,
        )
        if report.short_buffer is not None:
            say(logging.WARNING, "%s: %s", name, report.short_buffer, **self._fields)
        changed = granted.successor != self._successor
        if granted.successor is not None and changed:
            fields = {"KIND": "successor", **self._fields}
            say(logging.WARNING, "%s: %s", name, granted.successor, **fields)
        self._successor = granted.successor
        if report.stats.simulated:
            say(logging.WARNING, "%s: %s", name, SIMULATED, **self._fields)
        said = {"successor": granted.successor} if changed and granted.successor else {}
        self._write("grant", device=granted.device, exact=granted.exact, **said)

    def _tell_gaps(self, report: Report) -> None:
        stats, seen = report.stats, report.gaps
        count = stats.gaps
        if count == self._gaps:
            return
        self._tell_overwritten(count - self._gaps - len(seen), seen, stats.lost_frames)
        for gap in seen:
            self._write(
                "gap",
                first_frame=gap.first_frame,
                frames=gap.frames,
                since=wall_time(gap.at_ns),
                cause=gap.cause.name.lower(),
                exact=gap.exact,
            )
            milliseconds = gap.frames * 1000 / stats.rate_hz
            say(
                logging.WARNING,
                "%s: %s %d frames (%.0f ms) at frame %d: %s",
                *(stats.name, "lost" if gap.exact else "lost about", gap.frames, milliseconds),
                *(gap.first_frame, gap.cause.words),
                LOST_FRAMES=gap.frames,
                FIRST_FRAME=gap.first_frame,
                CAUSE=gap.cause.name,
                **self._fields,
            )
        self._gaps = count
        now = time.monotonic()
        if now >= self._gap_total_due:
            self._write_total("total", stats)
        else:
            self._total_due = min(self._total_due, self._gap_total_due)

    def _tell_overwritten(self, missed: int, seen: Sequence[Gap], lost: int) -> None:
        """Gaps that came faster than they could be told: their number and their frames."""
        if missed > 0:
            frames = max(0, lost - self._gap_frames - sum(one.frames for one in seen))
            self._gap_frames += frames
            self._write("gap", frames=frames, cause="unknown", exact=False, count=missed)
            say(
                logging.WARNING,
                "%s: %d frames are missing in %d more gaps, which came too fast to be told apart",
                *(self._name, frames, missed),
                LOST_FRAMES=frames,
                **self._fields,
            )
        self._gap_frames += sum(one.frames for one in seen)

    def _tell_released(self, stats: StreamStats) -> None:
        """Only to the journal: the books are told by those who release and resume."""
        if stats.released != self._released:
            self._released = stats.released
            text = stats.released or "taking the device back"
            say(logging.INFO, "%s: %s", stats.name, text, KIND="released", **self._fields)

    def _tell_trouble(self, report: Report) -> None:
        stats, text = report.stats, report.trouble
        if stats.restarts > self._restarts:  # it may have helped before anybody looked
            self._restarts, self._trouble = stats.restarts, report.restarted
            fields = {"KIND": "restart", **self._fields}
            say(logging.WARNING, "%s: %s", stats.name, self._trouble, **fields)
        self._tell_zeros(report.only_zeros)
        self._tell_rate(report.wrong_rate)
        self._tell_defects(report.defects)
        self._tell_processing(report.processing)
        if text != self._trouble:
            self._trouble = text
            if text is None:
                say(logging.INFO, "%s: sound is back", stats.name, **self._fields)
            else:
                say(logging.ERROR, "%s: %s", stats.name, text, KIND="device", **self._fields)
        if stats.health == Health.STALLED.value != self._health:
            fields = {"KIND": "stalled", **self._fields}
            say(logging.ERROR, "%s: %s", stats.name, stats.trouble, **fields)
        self._health = stats.health
        for sink in stats.sinks:
            told = self._told[sink.name]
            self._tell_join(sink, told)
            self._tell_drops(stats, sink, told)
            self._tell_inserts(sink, told)
            before = told.trouble
            if sink.trouble == before:
                continue
            told.trouble = sink.trouble
            if sink.trouble is None:
                say(
                    logging.INFO,
                    "%s: sink %s works again",
                    *(stats.name, sink.name),
                    SINK=sink.name,
                    **self._fields,
                )
            elif before is None:
                say(
                    logging.ERROR,
                    "%s: sink %s: %s",
                    *(stats.name, sink.name, sink.trouble),
                    KIND="trouble",
                    SINK=sink.name,
                    **self._fields,
                )

    def _tell_zeros(self, zeros: str | None) -> None:
        """The beginning and the end of a sound that is nothing but zeros."""
        name = self._name
        if zeros is not None and not self._zeros:
            say(logging.WARNING, "%s: %s", name, zeros, KIND="zeros", **self._fields)
        elif zeros is None and self._zeros:
            say(logging.INFO, "%s: there is sound again, not only zeros", name, **self._fields)
        self._zeros = zeros is not None

    def _tell_defects(self, defects: Sequence[Defect]) -> None:
        """The beginning of a channel's defect, that further channels have it too, and its end."""
        name, before = self._name, self._defects
        self._defects = {one.kind: one for one in defects}
        for kind, one in self._defects.items():
            if kind not in before or not set(one.channels) <= set(before[kind].channels):
                say(logging.WARNING, "%s: %s", name, one.words, KIND=kind, **self._fields)
        for kind, one in before.items():
            if kind not in self._defects:
                say(logging.INFO, "%s: %s", name, one.over, KIND=kind, **self._fields)

    def _tell_processing(self, words: str | None) -> None:
        """That the chain's process ended, and that another one works. What a processor does wrong
        that process has told."""
        ended = words if words is not None and words.startswith(PROCESSING) else None
        before, self._processing = self._processing, ended
        if ended is not None and ended != before:
            fields = {"KIND": "processing", **self._fields}
            say(logging.WARNING, "%s: %s", self._name, ended, **fields)
        elif ended is None and before is not None:
            say(logging.INFO, "%s: its processing runs again", self._name, **self._fields)

    def _tell_rate(self, rate: str | None) -> None:
        """The beginning and the end of a rate that is not the card's nominal one."""
        name = self._name
        if rate is not None and not self._wrong_rate:
            say(logging.WARNING, "%s: %s", name, rate, **self._fields)
        elif rate is None and self._wrong_rate:
            say(logging.INFO, "%s: the card runs at its nominal rate again", name, **self._fields)
        self._wrong_rate = rate is not None

    def _tell_join(self, sink: SinkStats, told: _Told) -> None:
        """A sink that came while sound flowed, and its first frame."""
        if sink.since_frame and not told.joined:
            told.joined = True
            self._write("join", sink=sink.name, first_frame=sink.since_frame)

    def _tell_drops(
        self, stats: StreamStats, sink: SinkStats, told: _Told, finally_: bool = False
    ) -> None:
        """Sound that a sink missed since it was last told, because it failed or was too slow."""
        missed, now = sink.dropped_frames - told.dropped, time.monotonic()
        if not missed or (now < told.drops_due and not finally_):
            return
        told.dropped, told.drops_due = sink.dropped_frames, now + DROP_S
        slow = "too slow" if sink.state == "open" else sink.state
        reason = sink.trouble or ("its stream's process ended" if told.replaced else slow)
        told.replaced = False
        self._write("drop", sink=sink.name, frames=missed, reason=reason)
        say(
            logging.WARNING,
            "%s: sink %s missed %d frames (%.0f ms)",
            *(stats.name, sink.name, missed, missed * 1000 / stats.rate_hz),
            SINK=sink.name,
            **self._fields,
        )

    def _tell_inserts(self, sink: SinkStats, told: _Told) -> None:
        """Silence that a live sink put in place of what is missing."""
        inserted = sink.inserted_frames - told.inserted
        if inserted:
            told.inserted = sink.inserted_frames
            self._write("insert", sink=sink.name, frames=inserted)

    def _tell_sinks_own(self, events: Iterable[SinkEvent]) -> None:
        for sink, event, what in events:
            self._write(event, sink=sink, **what)
            if event == "note":
                say(
                    logging.WARNING,
                    "%s: sink %s: %s",
                    *(self._name, sink, what["reason"]),
                    SINK=sink,
                    **self._fields,
                )

    def _tell_concerns(self, concerns: Mapping[str, str | None]) -> None:
        """What ails a sink although it takes what comes: its begin and its end."""
        for name, concern in concerns.items():
            told = self._told[name]
            if (concern is None) != (told.concern is None):
                level = logging.INFO if concern is None else logging.WARNING
                words = concern or "all is well again"
                fields = {"KIND": "concern", "SINK": name, **self._fields}
                say(level, "%s: sink %s: %s", self._name, name, words, **fields)
            told.concern = concern

    def _write_total(self, event: str, stats: StreamStats, **what: object) -> None:
        now = time.monotonic()
        self._total_due, self._gap_total_due = now + TOTAL_S, now + GAP_TOTAL_S
        self._write(
            event,
            **what,
            produced_frames=stats.produced_frames,
            captured_frames=stats.captured_frames,
            lost_frames=stats.lost_frames,
            lost_exact=stats.lost_exact,
            device_lost_ms_last_hour=stats.device_lost_ms_last_hour,
            gaps=stats.gaps,
            restarts=stats.restarts,
            opens=stats.opens,
            sinks=[{"name": sink.name, **_figures(sink)} for sink in stats.sinks],
            balanced=stats.balanced,
        )

    def part(self, sink: str) -> None:
        """The sink is about to leave; from now on another may have its name."""
        self._parted[sink] = self._told.pop(sink, _Told())

    def _leave(self, left: Left, stats: StreamStats) -> None:
        """The last figures of a sink that has left."""
        sink, told = left.sink, self._parted.pop(left.sink.name)
        self._tell_join(sink, told)
        self._tell_drops(stats, sink, told, finally_=True)
        self._tell_inserts(sink, told)
        self._tell_sinks_own(left.events)
        self._write(
            "leave",
            sink=sink.name,
            end_frame=left.end_frame,
            **_figures(sink),
            balanced=sink.balanced,
        )
        if left.hung:
            say(
                logging.ERROR,
                "%s: sink %s did not end in time and is given up",
                *(stats.name, sink.name),
                SINK=sink.name,
                **self._fields,
            )
        say(
            logging.INFO,
            "%s: sink %s was taken out: %d frames delivered, %d dropped (%s)",
            *(stats.name, sink.name, sink.delivered_frames, sink.dropped_frames, sink.detail),
            SINK=sink.name,
            **self._fields,
        )

    def end(self, report: Report, hung: list[str]) -> None:
        stats = report.stats
        for one in report.left:
            self._leave(one, stats)
        self._tell_gaps(report)
        for sink in stats.sinks:
            self._tell_drops(stats, sink, self._told[sink.name], finally_=True)
            self._tell_inserts(sink, self._told[sink.name])
        self._tell_sinks_own(report.events)
        self._write_total("stop", stats)
        tell_held_back(STREAM=stats.name)
        if hung:
            hanging = ", ".join(hung)
            say(logging.ERROR, "%s: did not end in time: %s", stats.name, hanging, **self._fields)
        say(
            logging.INFO,
            "%s: %d frames produced = %d captured + %d lost; %s",
            *(stats.name, stats.produced_frames, stats.captured_frames, stats.lost_frames),
            "; ".join(
                f"{one.name}: {one.delivered_frames} delivered, {one.dropped_frames} dropped, "
                f"{one.inside_frames} inside ({one.detail})"
                for one in stats.sinks
            ),
            LOST_FRAMES=stats.lost_frames,
            **self._fields,
        )


def _today() -> str:
    return wall_time(time.monotonic_ns())[:10]


def _figures(sink: SinkStats) -> dict[str, object]:
    spool = {"spool": sink.figures["spool"]} if "spool" in sink.figures else {}
    return spool | {
        "since_frame": sink.since_frame,
        "captured_frames": sink.captured_frames,
        "delivered_frames": sink.delivered_frames,
        "dropped_frames": sink.dropped_frames,
        "inside_frames": sink.inside_frames,
        "inserted_frames": sink.inserted_frames,
    }
