"""`systemctl reload`: the configuration is read again, and what differs is put into force.

The file is read and checked as a whole first; a wrong one changes nothing. What has to end is then
only told to: its last sound goes on to its disk or channel while main does its turns, and `poll`
sees when it is over, or gives it up. New streams begin when those that end have let go of their
devices; new sinks begin at once (``Stream.exchange``). Requests that come meanwhile are one
request for when it is done.

Threads: main; one that reads the file; one for each stream that ends, which waits for the stream's
own threads.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from capstand.accounting.ledger import Ledger, keep
from capstand.config import plan
from capstand.config import schema as config
from capstand.config.schema import Config, StreamConfig
from capstand.errors import CapstandError, ConfigError
from capstand.host import bug, realtime
from capstand.host.logs import log_event
from capstand.host.notify import Notifier
from capstand.service.reporter import Reporter
from capstand.service.running import Running
from capstand.stream.handover import LEAVE_S
from capstand.stream.report import RUNTIME
from capstand.stream.stream import Stream

READ_S = 10.0
BUSY_S = 0.01
"""While something ends, main looks so often."""


class Reload:
    """Keeps ``streams`` and ``reporters``, which are the service's own, as ``path`` says.

    ``asked`` counts the requests, ``done`` is the last one that was dealt with; ``refused`` holds
    the faults of the file for as long as it is wrong; ``running`` is what was read last and is in
    force, but for what `capstand set` has changed since.
    """

    def __init__(
        self,
        path: Path | None,
        running: Config,
        streams: list[Running],
        reporters: dict[str, Reporter],
        state: Path,
        ledger: Ledger,
        notifier: Notifier,
        begins: Callable[[Sequence[Running]], None] = lambda _: None,
        make: Callable[[StreamConfig, Path, Path], Running] = Stream,
        runtime: Path = RUNTIME,
    ) -> None:
        self.asked = 0
        self.done = 0
        self.refused: list[str] = []
        self.changes: list[str] = []
        self._path = path
        self.running = running
        self._streams = streams
        self._reporters = reporters
        self._folders = state, runtime
        self._ledger = ledger
        self._notifier = notifier
        self._begins = begins  # called before streams start
        self._make = make
        self._dealt_with = 0
        self._reading: _Reading | None = None
        self._late: threading.Thread | None = None
        self._ending: list[_Ending] = []
        self._to_start: list[Running] = []

    def ask(self) -> int:
        """Wants the file to be read again; returns the number of the request."""
        self.asked += 1
        return self.asked

    @property
    def busy(self) -> bool:
        return self.done != self.asked

    @property
    def status_prefix(self) -> str:
        """For the front of the status line: that the next start would fail is said until the file
        is right again."""
        if self.busy:
            return "reloading | "
        if not self.refused:
            return ""
        more = f" (and {len(self.refused) - 1} more)" if len(self.refused) > 1 else ""
        return f"reload refused: {self.refused[0]}{more} | "

    def answer(self) -> dict[str, object]:
        return {
            "asked": self.asked,
            "done": self.done,
            "refused": self.refused,
            "changes": self.changes,
        }

    def poll(self) -> bool:
        """One turn; True when it has brought a request to its end."""
        if not self.busy:
            return False
        if self._dealt_with == self.done:
            self._dealt_with = self.asked
            self._notifier.reloading()
            self._start_reading()
        if self._reading is not None:
            if not self._reading.over():
                return False
            reading, self._reading = self._reading, None
            self._begin(reading)
        if not self._over():
            return False
        self.done = self._dealt_with
        self._notifier.reloaded()
        return True

    def _start_reading(self) -> None:
        self.changes = []
        if self._path is None:
            self._refuse(
                ["capstand runs without a configuration file; start it with --config FILE"]
            )
            return
        if self._late is not None and self._late.is_alive():
            self._refuse(
                [f"{self._path}: cannot be read: an earlier reload is still waiting for it"]
            )
            return
        try:
            real_time = any(one.capture.rt_priority for one in self.running.stream)
            self._reading = _Reading(self._path, realtime.LOWEST if real_time else 0)
        except RuntimeError:
            self._refuse([f"{self._path}: cannot be read: no thread can be started"])

    def _begin(self, reading: "_Reading") -> None:
        self._late = reading.thread
        try:
            wanted = reading.config()
            present = self.running._replace(stream=tuple(one.config for one in self._streams))
            todo = plan.plan(present, wanted)
            self._to_start = [self._make(one, *self._folders) for one in todo.start]
        except ConfigError as error:
            self._refuse(error.faults)
            return
        except (OSError, CapstandError) as error:
            self._refuse([f"the new configuration cannot be applied: {error}"])
            return
        self.refused = []
        self.changes = plan.describe(present, wanted)
        log_event(logging.INFO, "reload: %s", "; ".join(self.changes) or "nothing changed")
        self.running = wanted
        self._ledger.kept = keep(wanted.ledger)
        for name in todo.stop:
            stream = next(one for one in self._streams if one.name == name)
            self._streams.remove(stream)
            self._ending.append(_Ending(stream, self._reporters.pop(name)))
        going_on = [*self._streams, *self._to_start]
        for stream in going_on:
            stream.listen_to(going_on)
        for one in todo.exchange:
            stream = next(running for running in self._streams if running.name == one.name)
            stream.exchange(one)
            for name in stream.leaving:
                self._reporters[stream.name].part(name)

    def _refuse(self, faults: list[str]) -> None:
        self.refused = faults
        for number, fault in enumerate(faults, 1):  # each is told, however alike they are
            log_event(logging.ERROR, "reload refused: %s", fault, KIND=f"fault {number}")

    def _over(self, deadline: float | None = None) -> bool:
        """Looks after what ends; whether all of it has ended and what is new has begun."""
        self._reap_sinks(deadline)
        for one in list(self._ending):
            if one.over(deadline):
                self._ending.remove(one)
                self.changes += one.report()
        if self._ending:
            return False
        fresh, self._to_start = self._to_start, []
        order = [one.name for one in self.running.stream]
        # In one step: other threads go through it, and sort() empties a list while it works.
        self._streams[:] = sorted(
            [*self._streams, *fresh], key=lambda stream: order.index(stream.name)
        )
        self._begins(fresh)
        for stream in fresh:
            self._reporters[stream.name] = Reporter(stream.config, self._ledger)
            self._reporters[stream.name].begin()
            stream.start()
        return not any(one.leaving for one in self._streams)

    def _reap_sinks(self, deadline: float | None) -> None:
        for stream in self._streams:
            self.changes += [
                f"{stream.name}: sink {name} did not stop in time and was abandoned"
                for name in stream.reap_removed(deadline)
            ]

    def close(self, deadline: float) -> None:
        """The process ends: what is new does not begin any more, what ends has until then."""
        self._to_start = []
        self._over(deadline)


class _Reading:
    """Reads the file in a thread of its own: a disk may hang, and a file may take long to refuse.
    It has the lowest real-time priority where streams have one, as all that hold Python's lock.
    """

    def __init__(self, path: Path, priority: int) -> None:
        self._path = path
        self._priority = priority
        self._deadline = time.monotonic() + READ_S
        self._outcome: Config | list[str] | None = None
        self.thread = threading.Thread(target=self._run, name="reading", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        realtime.prepare_thread("reading", self._priority)
        try:
            self._outcome = config.load(self._path)
        except ConfigError as error:
            self._outcome = error.faults
        except Exception as error:  # noqa: BLE001  a file is no reason to end
            self._outcome = [f"{self._path}: {bug.log_unexpected('reading', error)}"]

    def over(self) -> bool:
        return not self.thread.is_alive() or time.monotonic() > self._deadline

    def config(self) -> Config:
        """Raises ConfigError."""
        if self._outcome is None:
            raise ConfigError([f"{self._path}: cannot be read: not done within {READ_S:g} s"])
        if isinstance(self._outcome, list):
            raise ConfigError(self._outcome)
        return self._outcome


class _Ending:
    """A stream that is taken down, by a thread of its own."""

    def __init__(self, stream: Running, reporter: Reporter) -> None:
        self._stream = stream
        self._reporter = reporter
        self._hung = ["its end"]  # until that has come
        name = f"ending {stream.name}"
        self._thread = threading.Thread(target=self._take_down, name=name, daemon=True)
        self._thread.start()

    def _take_down(self) -> None:
        deadline = time.monotonic() + LEAVE_S
        hung = self._stream.drain(deadline)
        self._hung = hung + self._stream.close(deadline)

    def over(self, deadline: float | None) -> bool:
        if deadline is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive() or deadline is not None

    def report(self) -> list[str]:
        """Closes its books; returns what is wrong."""
        report = self._stream.report(time.monotonic_ns())
        self._reporter.end(report, self._hung)
        if not self._hung:
            self._stream.dispose()
            return []
        return [f"{self._stream.name}: did not stop in time: {', '.join(self._hung)}"]
