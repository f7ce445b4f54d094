"""The daemon as a whole: start in order, watch, tell, stop in reverse order.

Thread: main. It waits only for signals, the control socket and its own tick, and touches no
samples.
"""

import logging
import os
import selectors
import signal
import socket
import threading
import time
from errno import EADDRINUSE
from pathlib import Path

from capstand import __version__, realtime
from capstand.config import Config
from capstand.control import NAME, ControlServer
from capstand.display import LiveLine, status_line
from capstand.errors import CapstandError
from capstand.health import Health
from capstand.hotplug import Hotplug
from capstand.ledger import Ledger
from capstand.logs import Repeats, say
from capstand.notify import Notifier
from capstand.reporter import Reporter
from capstand.stream import Stream

TICK_S = 0.25
LIVE_TICK_S = 0.1
NOTIFY_NS = 1_000_000_000
STOP_S = 2.5
SPENT_S = 300.0
"""So long a process runs at least before it ends because of a sink, for the sake of the others."""


class Service:
    """All streams of a configuration, run until a signal or ``seconds`` have passed."""

    def __init__(
        self, config: Config, state: Path, runtime: Path, live: LiveLine, repeats: Repeats
    ) -> None:
        self._streams = [Stream(one, state) for one in config.stream]
        self._ledger = Ledger(state / "ledger")
        self._ledger_trouble: str | None = None
        self._reporters = {one.name: Reporter(one, self._ledger) for one in self._streams}
        self._runtime = runtime
        self._live = live
        self._repeats = repeats
        self._notifier = Notifier()
        self._selector = selectors.DefaultSelector()
        self._control: ControlServer | None = None
        self._notify_due_ns = 0
        self._settled = False
        self._began = time.monotonic()
        self._stopping = ""
        self._failed = False

    def run(self, seconds: float | None = None) -> int:
        """Returns the exit status: 0, or 1 when the daemon could not start or has to start anew."""
        wake = self._catch_signals()
        refused = realtime.prepare_process()
        try:
            self._control = ControlServer(
                self._runtime / NAME, self._selector, {"status": self.answer_status}
            )
        except CapstandError as error:
            return self._cannot_start(EADDRINUSE, str(error))
        except OSError as error:
            return self._cannot_start(
                error.errno or EADDRINUSE,
                f"{self._runtime}: {error.strerror}; --runtime names a directory it may write to",
            )
        if refused:
            say(logging.WARNING, refused)
        hotplug = self._listen()
        for stream in self._streams:
            self._reporters[stream.name].begin()
            stream.start()
        self._watch(None if seconds is None else time.monotonic() + seconds)
        self._stop()
        self._control.close()
        if hotplug is not None:
            hotplug.close()
        wake.close()
        return 1 if self._failed else 0

    def _listen(self) -> Hotplug | None:
        """Where udev's word cannot be had, each stream's own poll finds a device a little later."""
        try:
            hotplug = Hotplug()
        except OSError as error:
            say(logging.INFO, f"no word from udev ({error.strerror}); devices are looked for")
            return None

        def hear() -> None:
            try:
                heard = hotplug.heard()
            except OSError as error:
                say(logging.WARNING, f"no more word from udev: {error}; devices are looked for")
                self._selector.unregister(hotplug)
                hotplug.close()
                return
            if heard:
                for stream in self._streams:
                    stream.hasten()

        self._selector.register(hotplug, selectors.EVENT_READ, hear)
        return hotplug

    def _cannot_start(self, errno: int, why: str) -> int:
        say(logging.ERROR, f"cannot start: {why}")
        self._notifier.failed(errno, f"cannot start: {why}")
        return 1

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
            self._reporters[stream.name].look(stats)
            alive = alive and stats.health != Health.STALLED.value
        if all(one.health != Health.STARTING.value for one in all_stats):
            self._notifier.ready()
        if now_ns >= self._notify_due_ns:
            self._notify_due_ns = now_ns + NOTIFY_NS
            self._notifier.status(status_line(all_stats))
            if alive:
                self._notifier.alive()
        if time.monotonic() - self._began > SPENT_S:
            self._end_if_spent()
        if not self._settled and all(one.captured_frames or one.trouble for one in all_stats):
            self._settled = True
            threading.Thread(target=self._settle, name="settle", daemon=True).start()
        self._live.draw(all_stats)
        self._repeats.tell()
        if self._ledger.trouble != self._ledger_trouble:
            self._ledger_trouble = self._ledger.trouble
            if self._ledger_trouble:
                say(logging.WARNING, self._ledger_trouble)
        if self._control is not None:
            self._control.expire()

    def _end_if_spent(self) -> None:
        """A library that only a new process can heal: systemd starts one."""
        for stream in self._streams:
            reason = stream.spent()
            if reason is not None and not self._stopping:
                self._stopping = f"starting again: {reason}"
                self._failed = True

    def _settle(self) -> None:
        """Once sound flows: what takes long to load, and the end of start-up's garbage.

        In a thread of its own that ends, because main must go on answering meanwhile.
        """
        for stream in self._streams:
            stream.start_meter()
        realtime.freeze_heap()

    def _stop(self) -> None:
        self._notifier.stopping()
        self._live.clear()
        say(logging.INFO, "stopping: %s", self._stopping)
        deadline = time.monotonic() + STOP_S
        for stream in self._streams:
            stream.capturer.stop()
        hung = {stream.name: stream.drain(deadline) for stream in self._streams}
        for stream in self._streams:
            hung[stream.name] += stream.close(deadline)
            stats = stream.stats(time.monotonic_ns())
            self._reporters[stream.name].end(stats, hung[stream.name])
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
