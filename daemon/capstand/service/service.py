"""The daemon as a whole: start in order, watch, tell, stop in reverse order.

Thread: main. It waits only for signals, the control socket, udev's word and its own tick, and
touches no samples. What may take longer has threads of its own: the ledger, the reservation of
cards, and each stream that a reload ends.
"""

import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from errno import EADDRINUSE
from pathlib import Path
from typing import Any

from capstand import __version__
from capstand.accounting.ledger import Ledger, keep
from capstand.accounting.stats import Health, StreamStats
from capstand.audio.block import NS_PER_S
from capstand.config.registry import SOURCES
from capstand.config.schema import Config, StreamConfig
from capstand.devices.hotplug import Hotplug
from capstand.errors import CapstandError
from capstand.host import bug, realtime, signals, walltime
from capstand.host.control import NAME, ControlServer
from capstand.host.logs import RepeatFilter, log_event
from capstand.host.notify import Notifier
from capstand.host.peer import Peer
from capstand.processes import forkserver
from capstand.service.display import LiveLine, status_line
from capstand.service.reload import BUSY_S, Reload
from capstand.service.reporter import Reporter
from capstand.service.running import Running
from capstand.sharing.device_release import DeviceRelease
from capstand.sharing.live_settings import LiveSettings
from capstand.sharing.order import named
from capstand.sharing.reservation_manager import ReservationManager, session_address
from capstand.sharing.tapping import tap
from capstand.stream.stream import Stream

TICK_S = 0.5
WELL_TICK_NS = 2 * NS_PER_S
"""A look at all that there is costs as much as six blocks of one stream, so while all is well the
short look at who calls has to do; the death of a process wakes main."""
ILL_TICK_S = 0.25
LIVE_TICK_S = 0.1
NOTIFY_NS = 1_000_000_000
STOP_S = 2.5
LONGEST_BEGIN_S = 5.0
LEDGER_S = 4.0
"""A memory card may take seconds for the last lines; systemd waits for TimeoutStopSec in all."""


class Service:
    """All streams of a configuration, run until a signal or ``seconds`` have passed."""

    def __init__(
        self,
        config: Config,
        state: Path,
        runtime: Path,
        live: LiveLine,
        repeats: RepeatFilter,
        path: Path | None = None,
        make: Callable[[StreamConfig, Path, Path], Running] = Stream,
    ) -> None:
        self._streams = [make(one, state, runtime) for one in config.stream]
        self._ledger = Ledger(state / "ledger", keep(config.ledger), walltime.clock_sure)
        self._ledger_trouble: str | None = None
        self._reporters = {
            stream.name: Reporter(stream.config, self._ledger) for stream in self._streams
        }
        self._reserved = tuple(self._streams)
        self._reservations = ReservationManager(
            lambda: self._reserved, self._ledger, session_address
        )
        self._device_release = DeviceRelease(
            lambda: self._streams, self._ledger, self._reservations.wake
        )
        self._runtime = runtime
        self._live = live
        self._repeats = repeats
        self._notifier = Notifier()
        self._reload = Reload(
            path,
            config,
            self._streams,
            self._reporters,
            state,
            self._ledger,
            self._notifier,
            self._begins,
            make,
            runtime,
        )
        self._settings = LiveSettings(
            lambda: self._streams, lambda: self._reload.running, path, self._ledger
        )
        self._selector = selectors.DefaultSelector()
        self._control: ControlServer | None = None
        self._notify_due_ns = 0
        self._look_due_ns = 0
        # how each stream was, when STATUS was told
        self._told: list[tuple[Health, str | None]] = []
        self._stopping = ""
        self._failed = False
        self._news = False
        self._begun = 0.0

    def run(self, seconds: float | None = None) -> int:
        """Returns the exit status: 0, or 1 when the daemon could not start or has to start anew."""
        wake = self._catch_signals()
        refused = realtime.prepare_process()
        try:
            self._control = ControlServer(
                self._runtime / NAME,
                self._selector,
                {"status": self.answer_status},
                {
                    "reload": self.answer_reload,
                    "release": self._device_release.release,
                    "resume": self._device_release.resume,
                    "set": self._settings.set,
                    "push": self.answer_push,
                    "tap": lambda request, peer: tap(request, peer, self._streams),
                },
            )
        except CapstandError as error:
            return self._cannot_start(EADDRINUSE, str(error))
        except OSError as error:
            return self._cannot_start(
                error.errno or EADDRINUSE,
                f"{self._runtime}: {error.strerror or error}; "
                "choose a writable directory with --runtime",
            )
        threading.excepthook = self._thread_died
        self._reservations.start()
        hotplug = self._listen()
        try:
            self._control.start()
            for stream in self._streams:
                self._reporters[stream.name].begin()
                stream.listen_to(self._streams)
                stream.start()
            # Until sound is captured nothing is in a hurry, and other services start too.
            if refusal := realtime.in_one_line(refused, self._keep_up()):
                log_event(logging.WARNING, "%s", refusal, KIND="refusal")
            realtime.freeze_heap()
            self._watch(seconds)
        except Exception as error:  # noqa: BLE001  files and books are closed even then
            self._end_of("main", error)
        self._stop()
        self._control.close()
        if hotplug is not None:
            hotplug.close()
        signals.end_of_catching()
        wake.close()
        return 1 if self._failed else 0

    def _keep_up(self, name: str = "main") -> str | None:
        """The calling thread has a priority where a stream has one; returns what was refused."""
        wanted = any(stream.config.capture.rt_priority for stream in tuple(self._streams))
        return realtime.set_fifo(name, realtime.LOWEST) if wanted else None

    def _begins(self, fresh: Sequence[Running]) -> None:
        """Streams of a new configuration are about to start. Until now the cards of those that
        ended were kept, so that nobody took them in between."""
        self._reserved = tuple(self._streams)
        if fresh:
            self._reservations.hold(fresh)

    def _listen(self) -> Hotplug | None:
        """Where udev's word cannot be had, each stream's own poll finds a device a little later."""
        try:
            hotplug = Hotplug()
        except OSError as error:
            why = error.strerror
            log_event(logging.INFO, "udev unavailable (%s); polling for devices", why)
            return None

        def hear() -> None:
            try:
                heard = hotplug.heard()
            except OSError as error:
                log_event(logging.WARNING, "udev failed: %s; polling for devices", error)
                self._selector.unregister(hotplug)
                hotplug.close()
                return
            if heard:
                for stream in self._streams:
                    stream.retry_now()

        self._selector.register(hotplug, selectors.EVENT_READ, hear)
        return hotplug

    def _cannot_start(self, errno: int, why: str) -> int:
        log_event(logging.ERROR, "cannot start: %s", why)
        self._notifier.failed(errno, f"cannot start: {why}")
        return 1

    def _thread_died(self, died: threading.ExceptHookArgs) -> None:
        """A thread that ends of an error leaves a daemon that is deaf: better none, and a new one.

        In the thread that dies.
        """
        name = died.thread.name if died.thread else "unknown"
        if died.exc_value is not None:
            self._end_of(name, died.exc_value)

    def _end_of(self, thread: str, error: BaseException) -> None:
        line = bug.log_unexpected(f"thread {thread} crashed", error)
        self._failed = True
        self._stopping = f"restarting: thread {thread} crashed: {line}"

    def _watch(self, seconds: float | None) -> None:
        """Until told to stop: look, tell, feed the watchdog. ``seconds`` count from when all
        streams have begun."""
        begun = time.monotonic() + LONGEST_BEGIN_S
        assert self._control is not None
        due = time.monotonic()
        self._selector.register(forkserver.shared.news, selectors.EVENT_READ, self._hear_news)
        while not self._stopping:
            wait_s = max(0.0, due - time.monotonic())
            if self._reload.busy or self._control.waits:
                wait_s = min(wait_s, BUSY_S)
            for key, _ in self._selector.select(wait_s):
                key.data()
            self._control.expire()
            if not self._stopping and self._reload.poll():
                self._notify_due_ns = self._look_due_ns = 0
                self._keep_up()
            now = time.monotonic()
            if self._begun:
                begun = min(begun, self._begun)
            if seconds is not None and now >= begun + seconds:
                self._stopping = "--seconds elapsed"
            if self._news or (now >= due and not self._is_calm()):
                self._news = False
                due = now + self._tick()
            elif now >= due:
                due = now + TICK_S

    def _hear_news(self) -> None:
        """A process has begun or ended."""
        forkserver.shared.heard()
        self._news = True

    def _is_calm(self) -> bool:
        """Whether all was well at the last look, and no process calls since."""
        now_ns = time.monotonic_ns()
        self._device_release.poll(now_ns)
        calm = [stream.is_calm() for stream in self._streams]
        return now_ns < self._look_due_ns and all(calm)

    def _tick(self) -> float:
        """Returns after how many seconds the next one is due."""
        now_ns = time.monotonic_ns()
        all_stats = []
        alive = True
        for stream in self._streams:
            report = stream.report(now_ns)
            stats = report.stats
            all_stats.append(stats)
            self._reporters[stream.name].update(report)
            alive = alive and stats.health is not Health.STALLED
        if all_stats and all(all_stat.health is not Health.STARTING for all_stat in all_stats):
            self._notifier.ready()
            self._begun = self._begun or time.monotonic()
        how = [(all_stat.health, all_stat.trouble) for all_stat in all_stats]
        if now_ns >= self._notify_due_ns or how != self._told:
            self._notify_due_ns, self._told = now_ns + NOTIFY_NS, how
            trouble = self._ledger.trouble
            ledger = f" | ledger: {trouble}" if trouble else ""
            self._notifier.status(self._reload.status_prefix + status_line(all_stats) + ledger)
            if alive:
                self._notifier.alive()
        self._live.draw(all_stats)
        self._repeats.tell()
        if self._ledger.trouble != self._ledger_trouble:
            self._ledger_trouble = self._ledger.trouble
            log_event(logging.WARNING, "ledger: %s", self._ledger_trouble or "writable again")
        if self._live.active:
            return LIVE_TICK_S
        well = all(health is Health.OK for health, _ in how)
        self._look_due_ns = now_ns + WELL_TICK_NS if well else 0
        return TICK_S if well else ILL_TICK_S

    def _stop(self) -> None:
        self._notifier.stopping()
        self._live.clear()
        log_event(logging.INFO, "stopping: %s", self._stopping)
        deadline = time.monotonic() + STOP_S
        # With a supervisor a stop is no failure, whatever was there to record.
        at_hand = "NOTIFY_SOCKET" not in os.environ and not self._failed
        for stream in self._streams:
            stream.stop()
        hung = {stream.name: stream.drain(deadline) for stream in self._streams}
        self._reload.close(deadline)  # meanwhile the sinks take what they have
        for stream in self._streams:
            hung[stream.name] += stream.close(deadline)
            report = stream.report(time.monotonic_ns())
            stats = report.stats
            self._reporters[stream.name].end(report, hung[stream.name])
            none = not any(sink.delivered_frames or sink.in_flight_frames for sink in stats.sinks)
            if at_hand and stats.sinks and none:
                log_event(logging.ERROR, "%s: nothing was recorded: %s", stream.name, _why(stats))
                self._failed = True
        self._reservations.stop()
        self._ledger.close(LEDGER_S)
        self._repeats.tell(all_now=True)

    def answer_status(self) -> dict[str, object]:
        now_ns = time.monotonic_ns()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "reload": self._reload.answer(),
            "streams": [self._status_of(stream, now_ns) for stream in self._streams],
        }

    def _status_of(self, stream: Running, now_ns: int) -> dict[str, Any]:
        status = stream.stats(now_ns).as_json()
        if status["process"] is not None:
            status["process"] = status["process"] | {"changes": self._settings.changes(stream)}
        return status

    def answer_reload(self, request: Mapping[str, Any], peer: Peer) -> dict[str, object]:
        """The number of the request; `status` says when it is done, and what came of it."""
        if peer.uid not in (0, os.geteuid()):
            raise CapstandError("reload needs root or the daemon's own user; try sudo")
        return {"reload": self._reload.ask()}

    def answer_push(self, request: Mapping[str, Any], peer: Peer) -> dict[str, object]:
        """Where a program brings the sound of a stream, and what that stream takes. Raises
        CapstandError where none is brought."""
        stream = named(request, self._streams)
        capture = stream.config.capture
        path = SOURCES.of(capture.device).entrance(capture)
        if path is None:
            raise CapstandError(
                f"{stream.name} captures from {capture.wanted}; no program can bring its sound; "
                f'that takes device = "{SOURCES.entered}" in its [stream.capture]'
            )
        audio = capture.audio._replace(channels=capture.least_channels)
        return {
            "path": str(path),
            "rate_hz": audio.rate_hz,
            "channels": audio.channels,
            "format": audio.sample.alsa_name,
            "trouble": stream.stats(time.monotonic_ns()).trouble,
        }

    def _catch_signals(self) -> socket.socket:
        """What ends the watch ends it at once; a second signal is not needed. SIGHUP is a reload,
        but in a terminal, where it says that the terminal is gone."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

        def stop(name: str) -> None:
            self._stopping = name

        def hang_up(name: str) -> None:
            if at_terminal:
                stop(name)
            else:
                self._reload.ask()

        at_terminal = sys.stderr.isatty()
        signals.catch(stop, hang_up)
        self._selector.register(reader, selectors.EVENT_READ, lambda: reader.recv(64))
        self._writer = writer
        return reader


def _why(stats: StreamStats) -> str:
    troubles = (stats.trouble, *(sink.trouble for sink in stats.sinks))
    return next(filter(None, troubles), f"it was {stats.health} when stopped")
