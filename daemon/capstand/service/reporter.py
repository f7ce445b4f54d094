"""Says what the other threads only count: log lines and ledger events, each change once.

Thread: main.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from capstand.accounting.ledger import Ledger, wall_time
from capstand.accounting.stats import SIMULATED, Gap, Health, SinkState, SinkStats, StreamStats
from capstand.config.schema import StreamConfig
from capstand.host import realtime
from capstand.host.logs import log_event, tell_held_back
from capstand.stream.chaining import PROCESSING
from capstand.stream.defect import Defect
from capstand.stream.parting import DIED
from capstand.stream.report import Granted, LastReport, Report, SinkEvent

TOTAL_S = 300.0
GAP_TOTAL_S = 60.0
"""After a gap the sums are written, but no more often than this."""
DROP_S = 10.0
"""A sink that is away misses sound all the time; the books get a line so often."""


class _Reported:
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
        self._health = Health.STARTING
        self._trouble: str | None = None
        self._reported: dict[str, _Reported] = defaultdict(_Reported)
        self._released: str | None = None
        self._parted: dict[str, _Reported] = {}  # of sinks that leave; others may have their names
        self._refusals: list[str] = []
        self._gap_total_due = 0.0
        self._total_due = time.monotonic() + TOTAL_S
        self._day = _today()
        self._pid: int | None = None
        self._processing: str | None = None
        self._controls: dict[str, dict[str, str | None]] = {}
        self._fields = {"STREAM": stream.name, "DEVICE": stream.capture.wanted}

    def _write(self, event: str, **what: object) -> None:
        self._ledger.write(self._name, event, **what)

    def begin(self) -> None:
        self._write("start", device=self._capture.wanted, format=str(self._capture.audio))

    def update(self, report: Report) -> None:
        stats, granted = report.stats, report.granted
        for text in report.refusals:
            if text not in self._refusals:
                self._refusals.append(text)
                if "priority" not in realtime.announced:
                    log_event(logging.WARNING, "%s", text, KIND="refusal", **self._fields)
        if stats.opens > self._opens and granted is not None:
            self._opens = stats.opens
            self._tell_granted(report, granted)
        if None not in (self._pid, stats.pid) and stats.pid != self._pid:
            for reported in self._reported.values():
                reported.replaced = True
        self._pid = stats.pid or self._pid
        for one in report.left:
            self._leave(one, stats)
        self._tell_controls(stats)
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
        counted = "exactly" if granted.exact else "by estimate"
        log_event(
            logging.INFO,
            "%s: capturing from %s, %s, period %g ms, buffer %g ms, losses counted %s",
            *(name, granted.device, granted.format, granted.period_frames * 1000 / rate_hz),
            *(granted.buffer_frames * 1000 / rate_hz, counted),
            **self._fields,
        )
        if report.short_buffer is not None:
            log_event(logging.WARNING, "%s: %s", name, report.short_buffer, **self._fields)
        changed = granted.successor != self._successor
        if granted.successor is not None and changed:
            fields = {"KIND": "successor", **self._fields}
            log_event(logging.WARNING, "%s: %s", name, granted.successor, **fields)
        self._successor = granted.successor
        if report.stats.simulated:
            log_event(logging.WARNING, "%s: %s", name, SIMULATED, **self._fields)
        said = {"successor": granted.successor} if changed and granted.successor else {}
        self._write("opened", device=granted.device, exact=granted.exact, **said)

    def _tell_controls(self, stats: StreamStats) -> None:
        """What was changed on the card, also by a replug, and what it did not take."""
        before, self._controls = self._controls, stats.controls or {}
        for name, one in self._controls.items():
            fields = {"KIND": f"control {name}", **self._fields}
            last = before.get(name, {})
            if one["fault"] is not None and one["fault"] != last.get("fault"):
                log_event(
                    logging.WARNING,
                    "%s: control %s: %s",
                    *(self._name, name, one["fault"]),
                    **fields,
                )
            elif one["fault"] is None and one != last and one["is"] != one["was"]:
                log_event(
                    logging.INFO,
                    "%s: control %s set to %s: was %s, is %s",
                    *(self._name, name, one["wanted"], one["was"], one["is"]),
                    **fields,
                )

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
            log_event(
                logging.WARNING,
                "%s: %s %d frames (%.0f ms) at frame %d: %s",
                *(stats.name, "lost" if gap.exact else "lost about", gap.frames, milliseconds),
                *(gap.first_frame, gap.cause.description),
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
            log_event(
                logging.WARNING,
                "%s: %d frames were lost in %d more gaps, too fast to list separately",
                *(self._name, frames, missed),
                LOST_FRAMES=frames,
                **self._fields,
            )
        self._gap_frames += sum(one.frames for one in seen)

    def _tell_released(self, stats: StreamStats) -> None:
        """Only to the journal: the books are told by those who release and resume."""
        if stats.released != self._released:
            self._released = stats.released
            text = stats.released or "reopening the device"
            log_event(logging.INFO, "%s: %s", stats.name, text, KIND="released", **self._fields)

    def _tell_trouble(self, report: Report) -> None:
        stats, text = report.stats, report.trouble
        if stats.restarts > self._restarts:  # it may have helped before anybody looked
            self._restarts, self._trouble = stats.restarts, report.restarted
            fields = {"KIND": "restart", **self._fields}
            log_event(logging.WARNING, "%s: %s", stats.name, self._trouble, **fields)
        self._tell_zeros(report.only_zeros)
        self._tell_rate(report.wrong_rate)
        self._tell_defects(report.defects)
        self._tell_processing(report.processing)
        if text != self._trouble:
            self._trouble = text
            if text is None:
                log_event(logging.INFO, "%s: sound recovered", stats.name, **self._fields)
            else:
                log_event(logging.ERROR, "%s: %s", stats.name, text, KIND="device", **self._fields)
        if stats.health is Health.STALLED is not self._health:
            fields = {"KIND": "stalled", **self._fields}
            log_event(logging.ERROR, "%s: %s", stats.name, stats.trouble, **fields)
        self._health = stats.health
        for sink in stats.sinks:
            reported = self._reported[sink.name]
            self._tell_join(sink, reported)
            self._tell_drops(stats, sink, reported)
            self._tell_inserts(sink, reported)
            before = reported.trouble
            if sink.trouble == before:
                continue
            reported.trouble = sink.trouble
            if sink.trouble is None:
                log_event(
                    logging.INFO,
                    "%s: sink %s recovered",
                    *(stats.name, sink.name),
                    SINK=sink.name,
                    **self._fields,
                )
            elif before is None:
                log_event(
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
            log_event(logging.WARNING, "%s: %s", name, zeros, KIND="zeros", **self._fields)
        elif zeros is None and self._zeros:
            log_event(logging.INFO, "%s: the signal is no longer all zeros", name, **self._fields)
        self._zeros = zeros is not None

    def _tell_defects(self, defects: Sequence[Defect]) -> None:
        """The beginning of a channel's defect, that further channels have it too, and its end."""
        name, before = self._name, self._defects
        self._defects = {defect.kind: defect for defect in defects}
        for kind, one in self._defects.items():
            if kind not in before or not set(one.channels) <= set(before[kind].channels):
                log_event(logging.WARNING, "%s: %s", name, one.message, KIND=kind, **self._fields)
        for kind, one in before.items():
            if kind not in self._defects:
                log_event(logging.INFO, "%s: %s", name, one.cleared, KIND=kind, **self._fields)

    def _tell_processing(self, words: str | None) -> None:
        """That the chain's process ended, and that another one works. What a processor does wrong
        that process has told."""
        ended = words if words is not None and words.startswith(PROCESSING) else None
        before, self._processing = self._processing, ended
        if ended is not None and ended != before:
            fields = {"KIND": "processing", **self._fields}
            log_event(logging.WARNING, "%s: %s", self._name, ended, **fields)
        elif ended is None and before is not None:
            log_event(logging.INFO, "%s: its processing runs again", self._name, **self._fields)

    def _tell_rate(self, rate: str | None) -> None:
        """The beginning and the end of a rate that is not the card's nominal one."""
        name = self._name
        if rate is not None and not self._wrong_rate:
            log_event(logging.WARNING, "%s: %s", name, rate, **self._fields)
        elif rate is None and self._wrong_rate:
            log_event(
                logging.INFO, "%s: the card is back at its nominal rate", name, **self._fields
            )
        self._wrong_rate = rate is not None

    def _tell_join(self, sink: SinkStats, reported: _Reported) -> None:
        """A sink that came while sound flowed, and its first frame."""
        if sink.since_frame and not reported.joined:
            reported.joined = True
            self._write("sink_added", sink=sink.name, first_frame=sink.since_frame)

    def _tell_drops(
        self, stats: StreamStats, sink: SinkStats, reported: _Reported, finally_: bool = False
    ) -> None:
        """Sound that a sink missed since it was last told, because it failed or was too slow."""
        missed, now = sink.dropped_frames - reported.dropped, time.monotonic()
        if not missed or (now < reported.drops_due and not finally_):
            return
        reported.dropped, reported.drops_due = sink.dropped_frames, now + DROP_S
        slow = "too slow" if sink.state is SinkState.OPEN else sink.state
        reason = sink.trouble or (DIED if reported.replaced else slow)
        reported.replaced = False
        self._write("drop", sink=sink.name, frames=missed, reason=reason)
        log_event(
            logging.WARNING,
            "%s: sink %s dropped %d frames (%.0f ms)",
            *(stats.name, sink.name, missed, missed * 1000 / stats.rate_hz),
            SINK=sink.name,
            **self._fields,
        )

    def _tell_inserts(self, sink: SinkStats, reported: _Reported) -> None:
        """Silence that a live sink put in place of what is missing."""
        inserted = sink.inserted_frames - reported.inserted
        if inserted:
            reported.inserted = sink.inserted_frames
            self._write("insert", sink=sink.name, frames=inserted)

    def _tell_sinks_own(self, events: Iterable[SinkEvent]) -> None:
        for sink, event, what in events:
            self._write(event, sink=sink, **what)
            if event == "note":
                log_event(
                    logging.WARNING,
                    "%s: sink %s: %s",
                    *(self._name, sink, what["reason"]),
                    SINK=sink,
                    **self._fields,
                )

    def _tell_concerns(self, concerns: Mapping[str, str | None]) -> None:
        """What ails a sink although it takes what comes: its begin and its end."""
        for name, concern in concerns.items():
            reported = self._reported[name]
            if (concern is None) != (reported.concern is None):
                level = logging.INFO if concern is None else logging.WARNING
                words = concern or "recovered"
                fields = {"KIND": "concern", "SINK": name, **self._fields}
                log_event(level, "%s: sink %s: %s", self._name, name, words, **fields)
            reported.concern = concern

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
        self._parted[sink] = self._reported.pop(sink, _Reported())

    def _leave(self, left: LastReport, stats: StreamStats) -> None:
        """The last figures of a sink that has left."""
        sink, reported = left.sink, self._parted.pop(left.sink.name)
        self._tell_join(sink, reported)
        self._tell_drops(stats, sink, reported, finally_=True)
        self._tell_inserts(sink, reported)
        self._tell_sinks_own(left.events)
        self._write(
            "sink_removed",
            sink=sink.name,
            end_frame=left.end_frame,
            **_figures(sink),
            balanced=sink.balanced,
        )
        if left.hung:
            log_event(
                logging.ERROR,
                "%s: sink %s did not stop in time and was abandoned",
                *(stats.name, sink.name),
                SINK=sink.name,
                **self._fields,
            )
        log_event(
            logging.INFO,
            "%s: sink %s was removed: %d frames delivered, %d dropped (%s)",
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
            self._tell_drops(stats, sink, self._reported[sink.name], finally_=True)
            self._tell_inserts(sink, self._reported[sink.name])
        self._tell_sinks_own(report.events)
        self._write_total("stop", stats)
        tell_held_back(STREAM=stats.name)
        if hung:
            hanging = ", ".join(hung)
            log_event(
                logging.ERROR, "%s: did not stop in time: %s", stats.name, hanging, **self._fields
            )
        log_event(
            logging.INFO,
            "%s: %d frames produced = %d captured + %d lost; %s",
            *(stats.name, stats.produced_frames, stats.captured_frames, stats.lost_frames),
            "; ".join(
                f"{one.name}: {one.delivered_frames} delivered, {one.dropped_frames} dropped, "
                f"{one.in_flight_frames} in flight ({one.detail})"
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
        "in_flight_frames": sink.in_flight_frames,
        "inserted_frames": sink.inserted_frames,
    }
