"""The daemon as a whole: start in order, watch, tell, stop in reverse order.

Thread: main. It waits only for signals, the control socket and its own tick, touches no samples,
and says what the other threads only count: gaps, faults, recoveries.
"""

import logging
import os
import selectors
import signal
import socket
import time
from pathlib import Path

from capstand import __version__, realtime
from capstand.config import Config
from capstand.control import NAME, ControlServer
from capstand.display import LiveLine, status_line
from capstand.errors import CapstandError
from capstand.health import Health
from capstand.ledger import Ledger
from capstand.logs import Repeats, say
from capstand.notify import Notifier
from capstand.stats import StreamStats
from capstand.stream import Stream

TICK_S = 0.25
LIVE_TICK_S = 0.1
NOTIFY_NS = 1_000_000_000
TOTAL_S = 300.0
STOP_S = 1.7


class Service:
    """All streams of a configuration, run until a signal or ``seconds`` have passed."""

    def __init__(
        self, config: Config, state: Path, runtime: Path, live: LiveLine, repeats: Repeats
    ) -> None:
        self._streams = [Stream(one) for one in config.stream]
        self._ledger = Ledger(state / "ledger")
        self._ledger_trouble: str | None = None
        self._watched = {one.name: _Watched(one, self._ledger) for one in self._streams}
        self._runtime = runtime
        self._live = live
        self._repeats = repeats
        self._notifier = Notifier()
        self._selector = selectors.DefaultSelector()
        self._control: ControlServer | None = None
        self._notify_due_ns = 0
        self._stopping = ""

    def run(self, seconds: float | None = None) -> int:
        """Returns the exit status: 0, or 1 when the daemon could not start."""
        wake = self._catch_signals()
        refused = realtime.prepare_process()
        try:
            self._control = ControlServer(
                self._runtime / NAME, self._selector, {"status": self.answer_status}
            )
        except (CapstandError, OSError) as error:
            number = error.errno if isinstance(error, OSError) and error.errno else 98
            say(logging.ERROR, "cannot start: %s", error)
            self._notifier.failed(number, f"cannot start: {error}")
            return 1
        if refused:
            say(logging.WARNING, refused)
        for stream in self._streams:
            self._watched[stream.name].begin()
            stream.start()
        for stream in self._streams:
            stream.start_meter()
        realtime.freeze_heap()
        self._watch(None if seconds is None else time.monotonic() + seconds)
        self._stop()
        self._control.close()
        wake.close()
        return 0

    def _watch(self, end: float | None) -> None:
        """Until told to stop: look, tell, feed the watchdog."""
        tick_s = LIVE_TICK_S if self._live.active else TICK_S
        due = time.monotonic()
        while not self._stopping:
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                key.data()
            now = time.monotonic()
            if end is not None and now >= end:
                self._stopping = "the time asked for is over"
            if now >= due:
                due = now + tick_s
                self._tick()

    def _tick(self) -> None:
        now_ns = time.monotonic_ns()
        all_stats = []
        alive = True
        for stream in self._streams:
            stats = stream.stats(now_ns)
            all_stats.append(stats)
            self._watched[stream.name].look(stats)
            alive = alive and stats.health != Health.STALLED.value
        if all(one.health != Health.STARTING.value for one in all_stats):
            self._notifier.ready()
        if now_ns >= self._notify_due_ns:
            self._notify_due_ns = now_ns + NOTIFY_NS
            self._notifier.status(status_line(all_stats))
            if alive:
                self._notifier.alive()
        self._live.draw(all_stats)
        self._repeats.tell()
        if self._ledger.trouble != self._ledger_trouble:
            self._ledger_trouble = self._ledger.trouble
            if self._ledger_trouble:
                say(logging.WARNING, self._ledger_trouble)
        if self._control is not None:
            self._control.expire()

    def _stop(self) -> None:
        self._notifier.stopping()
        self._live.clear()
        say(logging.INFO, "stopping: %s", self._stopping)
        deadline = time.monotonic() + STOP_S
        for stream in self._streams:
            stream.capturer.stop()
        for stream in self._streams:
            hung = stream.stop(deadline)
            self._watched[stream.name].end(stream.stats(time.monotonic_ns()), hung)
        self._ledger.close(0.2)
        self._repeats.tell(all_now=True)

    def answer_status(self) -> dict[str, object]:
        now_ns = time.monotonic_ns()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "streams": [one.stats(now_ns).as_json() for one in self._streams],
        }

    def _catch_signals(self) -> socket.socket:
        """SIGTERM and SIGINT end the watch at once; a second one is not needed."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

        def stop(number: int, _: object) -> None:
            self._stopping = signal.Signals(number).name

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        self._selector.register(reader, selectors.EVENT_READ, lambda: reader.recv(64))
        self._writer = writer
        return reader


class _Watched:
    """What the main thread remembers of a stream, to tell each change once."""

    def __init__(self, stream: Stream, ledger: Ledger) -> None:
        self._stream = stream
        self._ledger = ledger
        self._gaps = 0
        self._opens = 0
        self._health = Health.STARTING.value
        self._trouble: str | None = None
        self._sink_states: dict[str, str | None] = {}
        self._refusals: list[str] = []
        self._total_due = time.monotonic() + TOTAL_S
        self._fields = {"STREAM": stream.name, "DEVICE": stream.config.capture.device}

    def _write(self, event: str, **what: object) -> None:
        self._ledger.write(self._stream.name, event, **what)

    def begin(self) -> None:
        capture = self._stream.config.capture
        self._write("start", device=capture.device, format=str(capture.audio))

    def look(self, stats: StreamStats) -> None:
        stream, capturer = self._stream, self._stream.capturer
        for text in stream.refusals():
            if text not in self._refusals:
                self._refusals.append(text)
                say(logging.WARNING, text, **self._fields)
        grant = capturer.last_grant
        if capturer.opens > self._opens and grant is not None:
            self._opens = capturer.opens
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
                gap_at_ns=gap.at_ns,
                cause=gap.cause.name.lower(),
                exact=gap.exact,
            )
            milliseconds = gap.frames * 1000 / stats.rate_hz
            say(
                logging.WARNING,
                f"%s: {'lost' if gap.exact else 'lost about'} %d frames (%.0f ms) at frame %d: %s",
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
                }
                for sink in stats.sinks
            ],
            balanced=stats.balanced,
        )

    def end(self, stats: StreamStats, hung: list[str]) -> None:
        self._tell_gaps(stats)
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
