"""A sink that is never away: while the one behind it is, the sound waits on disk.

    sink queue → Spooled → backlog (window in memory, spool on disk) → forwarder's thread → sink

No frame is lost or comes twice. A sink without marks has delivered what it has written; after a
crash of capstand it may get what it got in the last second again.

Threads: ``write``, ``flush`` and ``close`` are the sink queue's; the forwarder has its own; one
lock guards the backlog between them.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from capstand.accounting.stats import span
from capstand.audio.block import Block
from capstand.errors import SinkBusy
from capstand.host.backoff import Backoff
from capstand.sinks.sink import Account, Event, Sink
from capstand.sinks.sink_queue import BACKOFF_S, FLUSH_S
from capstand.sinks.spool.backlog import Backlog
from capstand.sinks.spool.forwarder import Forwarder
from capstand.sinks.spool.spool import Spool

CLOSE_S = 1.0


class Spooled(Sink):
    """``sink`` with a ``spool`` of sound at ``rate_hz``, which it gets ``catch_up_speed`` times as
    fast as it was captured; the window holds ``window_frames``; ``priority`` is that of the
    forwarder's thread, which is waited for at the end for ``close_s``.
    """

    on_disk = True

    def __init__(
        self,
        name: str,
        sink: Sink,
        spool: Spool,
        *,
        rate_hz: int,
        catch_up_speed: float,
        window_frames: int,
        priority: int = 0,
        backoff: Backoff | None = None,
        flush_s: float = FLUSH_S,
        close_s: float = CLOSE_S,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.sink = sink
        self._rate_hz = rate_hz
        self.backlog = Backlog(spool, window_frames)
        self._lock = threading.Lock()
        self.forwarder = Forwarder(
            name,
            sink,
            self.backlog,
            self._lock,
            pace_hz=rate_hz * catch_up_speed,
            flush_s=flush_s,
            backoff=backoff or Backoff(*BACKOFF_S),
            priority=priority,
            now_ns=now_ns,
        )
        self._close_s = close_s
        self._now_ns = now_ns

    # What the sink queue calls

    def open(self) -> None:
        """Also after a ``close``, which an unforeseen error of our own brings."""
        self.load()
        self.forwarder.start()

    def load(self) -> None:
        """Opens the spool; what an earlier run left there comes first."""
        with self._lock:
            self.backlog.load(self._now_ns())

    def write(self, block: Block) -> None:
        with self._lock:
            taken = self.backlog.put(block, self.forwarder.away, self._now_ns())
            obstacle = self._obstacle()
        self.forwarder.wake.set()
        if obstacle is not None or not taken:
            raise SinkBusy(obstacle or "it is too slow", block.frames if taken else 0)

    def flush(self) -> None:
        with self._lock:
            self.backlog.sync(self.forwarder.away, self._now_ns())

    def close(self) -> None:
        """Ends the forwarder; what it has not delivered stays in the spool for the next run."""
        self.forwarder.end(self._close_s)
        with self._lock:
            self.backlog.close(self.forwarder.away, self._now_ns())

    # What became of each frame, and what there is to report; any thread

    @property
    def inserted_frames(self) -> int:  # type: ignore[override]
        return self.sink.inserted_frames

    @property
    def detail(self) -> str:
        detail = self.sink.detail if self.forwarder.away is None else "waiting"
        return f"{detail}, {self._waiting}" if self.backlog.spooling else detail

    @property
    def _waiting(self) -> str:
        return f"{span(self.backlog.spooled_frames / self._rate_hz)} spooled"

    def _obstacle(self) -> str | None:
        """What keeps sound from the sink, and what becomes of it."""
        obstacle = self.forwarder.obstacle(self._now_ns())
        if obstacle is not None and self.backlog.concern is not None:
            return f"{obstacle}; {self.backlog.concern}"
        if obstacle is not None and self.backlog.spooling:
            return f"{obstacle}; {self._waiting}"
        return obstacle

    def account(self) -> Account:
        backlog, inner = self.backlog, self.sink.account()
        beyond = 0 if inner is None or inner.kept is None else max(0, inner.kept - inner.delivered)
        own = backlog.own
        return Account(own.delivered, own.dropped, backlog.kept(beyond), backlog.resumed)

    def watch_account(self, changed: Callable[[], None]) -> None:
        self.forwarder.watch(changed)
        self.sink.watch_account(changed)

    @property
    def concern(self) -> str | None:
        return self.backlog.concern or self.sink.concern

    def figures(self, now_ns: int) -> dict[str, object]:
        inherited = self.backlog.inherited
        return {
            **self.sink.figures(now_ns),
            "spool": {
                "spooled_frames": self.backlog.spooled_frames,
                "inherited_frames": inherited.waiting,
                "inherited_delivered_frames": inherited.delivered,
                "inherited_dropped_frames": inherited.dropped,
                "trouble": self.backlog.concern,
            },
        }

    def events(self) -> Iterator[Event]:
        with contextlib.suppress(IndexError):
            while True:
                yield self.backlog.events.popleft()
        with contextlib.suppress(IndexError):
            while True:
                yield "note", {"reason": self.backlog.spool.notes.popleft()}
        yield from self.sink.events()
