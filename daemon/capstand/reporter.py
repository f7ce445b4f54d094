"""Says what the other threads only count: log lines and ledger events, each change once.

Thread: main.
"""

import logging
import time

from capstand.health import Health
from capstand.ledger import Ledger, wall_time
from capstand.logs import say
from capstand.stats import Cause, SinkStats, StreamStats
from capstand.stream import Stream

TOTAL_S = 300.0
DROP_S = 10.0
"""A sink that is away misses sound all the time; the books get a line so often."""


class Reporter:
    """Tells the changes of one stream; remembers what it has told."""

    def __init__(self, stream: Stream, ledger: Ledger) -> None:
        self._stream = stream
        self._ledger = ledger
        self._gaps = 0
        self._opens = 0
        self._health = Health.STARTING.value
        self._trouble: str | None = None
        self._sink_states: dict[str, str | None] = {}
        self._dropped: dict[str, tuple[int, float]] = {}  # frames told, when the next are due
        self._inserted: dict[str, int] = {}
        self._refusals: list[str] = []
        self._total_due = time.monotonic() + TOTAL_S
        self._fields = {"STREAM": stream.name, "DEVICE": stream.config.capture.wanted}

    def _write(self, event: str, **what: object) -> None:
        self._ledger.write(self._stream.name, event, **what)

    def begin(self) -> None:
        capture = self._stream.config.capture
        self._write("start", device=capture.wanted, format=str(capture.audio))

    def look(self, stats: StreamStats) -> None:
        stream, capturer = self._stream, self._stream.capturer
        for text in stream.refusals():
            if text not in self._refusals:
                self._refusals.append(text)
                say(logging.WARNING, text, **self._fields)
        grant = capturer.last_grant
        if capturer.opens > self._opens and grant is not None:
            self._opens = capturer.opens
            self._fields["DEVICE"] = grant.device
            counted = "to the frame" if grant.exact else "by estimate from time"
            rate = grant.format.rate_hz
            say(
                logging.INFO,
                "%s: capturing from %s, %s, period %g ms, buffer %g ms, losses are counted %s",
                *(stream.name, grant.device, grant.format, grant.period_frames * 1000 / rate),
                *(grant.buffer_frames * 1000 / rate, counted),
                **self._fields,
            )
            self._write("grant", device=grant.device, exact=grant.exact)
        self._tell_gaps(stats)
        self._tell_trouble(stats)
        if time.monotonic() >= self._total_due:
            self._total_due = time.monotonic() + TOTAL_S
            self._write_total("total", stats)

    def _tell_gaps(self, stats: StreamStats) -> None:
        table = self._stream.capturer.tally.gaps
        count = table.count
        if count == self._gaps:
            return
        for gap in table.since(self._gaps):
            self._write(
                "gap",
                first_frame=gap.first_frame,
                frames=gap.frames,
                since=wall_time(gap.at_ns),
                cause=gap.cause.name.lower(),
                exact=gap.exact,
            )
            milliseconds = gap.frames * 1000 / stats.rate_hz
            verb = "dropped" if gap.cause is Cause.RING_FULL else "lost"
            say(
                logging.WARNING,
                f"%s: {verb}{'' if gap.exact else ' about'} %d frames (%.0f ms) at frame %d: %s",
                *(stats.name, gap.frames, milliseconds, gap.first_frame, gap.cause.words),
                LOST_FRAMES=gap.frames,
                FIRST_FRAME=gap.first_frame,
                CAUSE=gap.cause.name,
                **self._fields,
            )
        self._gaps = count
        self._write_total("total", stats)

    def _tell_trouble(self, stats: StreamStats) -> None:
        trouble = self._stream.capturer.trouble
        text = str(trouble) if trouble else None
        if text != self._trouble:
            self._trouble = text
            if text is None:
                say(logging.INFO, f"{stats.name}: sound is back", **self._fields)
            else:
                say(logging.ERROR, f"{stats.name}: {text}", **self._fields)
        if stats.health == Health.STALLED.value != self._health:
            say(logging.ERROR, f"{stats.name}: {stats.trouble}", **self._fields)
        self._health = stats.health
        for sink in stats.sinks:
            self._tell_drops(stats, sink)
            self._tell_inserts(sink)
            before = self._sink_states.get(sink.name)
            if sink.trouble == before:
                continue
            self._sink_states[sink.name] = sink.trouble
            if sink.trouble is None:
                say(
                    logging.INFO,
                    f"{stats.name}: sink {sink.name} works again",
                    SINK=sink.name,
                    **self._fields,
                )
            elif before is None:
                say(
                    logging.ERROR,
                    f"{stats.name}: sink {sink.name}: {sink.trouble}",
                    SINK=sink.name,
                    **self._fields,
                )

    def _tell_drops(self, stats: StreamStats, sink: SinkStats, finally_: bool = False) -> None:
        """Sound that a sink missed since it was last told, because it failed or was too slow."""
        told, due = self._dropped.get(sink.name, (0, 0.0))
        missed, now = sink.dropped_frames - told, time.monotonic()
        if not missed or (now < due and not finally_):
            return
        self._dropped[sink.name] = sink.dropped_frames, now + DROP_S
        self._write("drop", sink=sink.name, frames=missed, reason=sink.trouble or "too slow")
        say(
            logging.WARNING,
            "%s: sink %s missed %d frames (%.0f ms)",
            *(stats.name, sink.name, missed, missed * 1000 / stats.rate_hz),
            SINK=sink.name,
            **self._fields,
        )

    def _tell_inserts(self, sink: SinkStats) -> None:
        """Silence that a live sink put in place of what is missing."""
        inserted = sink.inserted_frames - self._inserted.get(sink.name, 0)
        if inserted:
            self._inserted[sink.name] = sink.inserted_frames
            self._write("insert", sink=sink.name, frames=inserted)

    def _write_total(self, event: str, stats: StreamStats) -> None:
        self._write(
            event,
            produced_frames=stats.produced_frames,
            captured_frames=stats.captured_frames,
            lost_frames=stats.lost_frames,
            lost_exact=stats.lost_exact,
            sinks=[
                {
                    "name": sink.name,
                    "delivered_frames": sink.delivered_frames,
                    "dropped_frames": sink.dropped_frames,
                    "inside_frames": sink.inside_frames,
                    "inserted_frames": sink.inserted_frames,
                }
                for sink in stats.sinks
            ],
            balanced=stats.balanced,
        )

    def end(self, stats: StreamStats, hung: list[str]) -> None:
        self._tell_gaps(stats)
        for sink in stats.sinks:
            self._tell_drops(stats, sink, finally_=True)
            self._tell_inserts(sink)
        self._write_total("stop", stats)
        if hung:
            say(logging.ERROR, "%s: did not end in time: %s", stats.name, ", ".join(hung))
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
