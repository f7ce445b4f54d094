"""A sink queue: the bounded queue and the thread in front of one sink.

A slow or hung sink fills its own queue and nothing else. Rule for a full queue: the oldest block is
dropped, so that what comes back hears the present. A sink that fails is closed and opened again
with growing pauses, indefinitely; the queue keeps the newest sound. Whatever a sink raises is
taken for a SinkError: a bug in one of them must not silence the stream. A sink that is busy stays
open and misses the block.

Small blocks can be gathered into larger ones on the way: a disk wants five writes a second, not a
hundred, and each costs a wake-up of this thread. A gap ends a gathered block; the first block of
all waits for no other.

Books, each counter with one writing thread: ``missed``, ``entered`` and ``overflowed`` (push
thread), ``taken``, ``delivered`` and ``failed`` (sink thread). A sink queue may join and leave a
stream that runs; ``since`` and ``until`` (push thread) say from where to where it was fed. Thread:
``run`` is the sink thread, the rest of its life is main's.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from capstand.accounting.stats import SinkCounters, SinkState, SinkStats, StreamPosition
from capstand.audio.block import NS_PER_S, Block
from capstand.errors import SinkBusy, SinkError
from capstand.host import bug
from capstand.host.backoff import Backoff
from capstand.host.realtime import prepare_thread
from capstand.sinks.gathering import Gathering
from capstand.sinks.sink import Account, Event, Sink, nobody
from capstand.text import clean

BACKOFF_S = (0.5, 30.0)
FLUSH_S = 1.0


class Joinable(Protocol):
    """What ends at some time."""

    def join(self, deadline: float) -> bool: ...


class _Carried(NamedTuple):
    """Of the frames that were ``meant`` for the sink in processes before this one, those that were
    delivered, and those that were known to be dropped."""

    delivered: int
    dropped: int
    meant: int


class SinkQueue:
    """Feeds ``sink`` from a queue of at most ``queue_frames`` frames, ``gather_frames`` at a time;
    ``priority`` is that of its thread, ``backoff`` gives the pauses between two tries to open the
    sink, which is flushed each ``flush_s``.

    ``trouble`` says why it waits.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        queue_frames: int,
        gather_frames: int = 0,
        *,
        priority: int = 0,
        backoff: Backoff | None = None,
        flush_s: float = FLUSH_S,
    ) -> None:
        self.name = name
        self.sink = sink
        self.state = SinkState.OPENING
        self.trouble: str | None = None
        self.failures = 0
        # None until the pusher has taken it up
        self.since: StreamPosition | None = StreamPosition(0, 0)
        self.until: StreamPosition | None = None
        self.missed = 0  # what the ring had no room for until the pusher came to it
        self.entered = 0
        self.overflowed = 0
        self.overflowed_shut = 0  # of these, until it was opened last; sink thread
        self.delivered = 0
        self.failed = 0
        self.abandoned = 0  # frames a hung sink kept at shutdown; main thread
        self._limit = queue_frames
        self._priority = priority
        self._gathering = Gathering(gather_frames)  # push thread
        self._queue: queue.SimpleQueue[Block | None] = queue.SimpleQueue()
        self.taken = 0  # out of the queue
        self._halt = threading.Event()
        self._backoff = backoff or Backoff(*BACKOFF_S)
        self._flush_s = flush_s
        self._flushed_ns = 0
        self._thread: threading.Thread | None = None
        self._carried = _Carried(0, 0, 0)
        self.tells: Callable[[int, int], None] = tell_nobody
        """How much is delivered by now, and how much would be if this process were killed."""
        self._telling = threading.Lock()
        sink.watch_account(self.tell)

    @property
    def dropped(self) -> int:
        return self.missed + self.failed + self.overflowed + self.abandoned

    def books(self) -> tuple[int, int]:
        """Frames delivered and dropped; those that a sink took to deliver later count when it
        has.
        """
        account = self._account()
        delivered, dropped = self._before(account.resumed)
        return delivered + account.delivered, dropped + self.dropped + account.dropped

    def _account(self) -> Account:
        return self.sink.account() or Account(self.delivered, 0)

    def _before(self, resumed: int | None) -> tuple[int, int]:
        """Frames delivered and dropped in processes before this one. What still waits is neither,
        also where the page said that it was delivered."""
        delivered, dropped, meant = self._carried
        if resumed is None:
            return delivered, dropped
        delivered = min(delivered, meant - resumed)
        return delivered, meant - resumed - delivered

    def tell(self) -> None:
        """Any thread."""
        with self._telling:  # or what is older might be told last
            account = self._account()
            delivered, _ = self._before(account.resumed)
            kept = account.delivered if account.kept is None else account.kept
            self.tells(delivered + account.delivered, delivered + kept)

    def counters(self) -> SinkCounters:
        return SinkCounters(self.since, self.until, *self.books(), self.sink.inserted_frames)

    @property
    def queued(self) -> int:
        """Frames waiting in the queue."""
        return self.entered - self.overflowed - self.taken

    @property
    def slow(self) -> int:
        """Frames that it lost because it was too slow, since it was opened last."""
        return self.overflowed - self.overflowed_shut if self.state is SinkState.OPEN else 0

    @property
    def on_disk(self) -> bool:
        return self.sink.on_disk

    @property
    def detail(self) -> str:
        return self.sink.detail

    @property
    def concern(self) -> str | None:
        return self.sink.concern

    def figures(self, now_ns: int) -> dict[str, object]:
        return self.sink.figures(now_ns)

    def events(self) -> Iterable[Event]:
        return self.sink.events()

    def continue_from(self, before: SinkStats, since: StreamPosition, captured: int) -> None:
        """With the books of another that ended before its time, when so many frames were
        ``captured``: what it was given and did not deliver is gone, but for what the sink finds in
        its spool."""
        meant = captured - since.captured
        self.since = since
        self._carried = _Carried(before.delivered_frames, before.dropped_frames, meant)

    # Its life

    def start(self, stream: str, after: Sequence[Joinable] = (), wait_s: float = 0.0) -> None:
        """Starts its thread; the sink is opened when those ``after`` which it comes have ended, or
        have had ``wait_s`` each to do so."""
        name = f"sink:{self.name} {stream}"
        self._thread = threading.Thread(
            target=self.run, args=(list(after), wait_s), name=name, daemon=True
        )
        self._thread.start()

    def poll(self, now_ns: int) -> None:
        """It looks after itself."""

    def join(self, deadline: float) -> bool:
        """Whether it has ended by then (time.monotonic)."""
        if self._thread is None:
            return True  # it could not even be started
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def force_close(self) -> None:
        """It did not stop in time: what hangs in it is let go of."""
        self.sink.abandon()

    def close(self) -> None:
        """It holds nothing of the system's, and its sink does not hold it."""
        self.sink.watch_account(nobody)
        self.tells = tell_nobody

    def put(self, block: Block) -> None:
        """Push thread: never waits."""
        self.entered += block.frames
        while self.queued > self._limit:
            try:
                oldest = self._queue.get_nowait()
            except queue.Empty:
                break
            assert oldest is not None
            self.overflowed += oldest.frames
        for ready in self._gathering.put(block):
            self._queue.put(ready)
        if self.entered == block.frames:
            self._put_rest()

    def _put_rest(self) -> None:
        for rest in self._gathering.rest():
            self._queue.put(rest)

    def run(self, after: list[Joinable] | None = None, wait_s: float = 0.0) -> None:
        """The thread's body; ends after ``finish``, when the queue is empty. ``after`` is emptied:
        who has ended is not kept for as long as this one runs."""
        prepare_thread(f"sink:{self.name}", self._priority)
        while after:
            after.pop(0).join(time.monotonic() + wait_s)
        while not (self.try_open() and self.feed()):
            if self._halt.wait(self._backoff.next_s()):
                break
        self._end()

    def try_open(self) -> bool:
        """Opens the sink; on SinkError remembers why and returns False."""
        self.state = SinkState.OPENING
        try:
            self.sink.open()
        except Exception as error:  # noqa: BLE001  of a sink anything may come
            self._fail(error)
            return False
        self.overflowed_shut = self.overflowed
        self.state = SinkState.OPEN
        self._flushed_ns = time.monotonic_ns()
        return True

    def feed(self) -> bool:
        """Delivers until the sink fails (False) or the end of the queue is reached (True)."""
        try:
            while True:
                due_s = self._flush_s - (time.monotonic_ns() - self._flushed_ns) / NS_PER_S
                if due_s <= 0:
                    self.sink.flush()
                    self.tell()
                    self._flushed_ns = time.monotonic_ns()
                    continue
                try:
                    block = self._queue.get(timeout=due_s)
                except queue.Empty:
                    continue
                if block is None:
                    return True
                self.deliver(block)
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return False

    def step(self) -> None:
        """Delivers what is queued now, without waiting (for a sink driven without its thread)."""
        while not self._queue.empty():
            block = self._queue.get_nowait()
            if block is not None:
                self.deliver(block)

    def deliver(self, block: Block) -> None:
        """Writes one block and books it. Raises SinkError, but not SinkBusy; the block is booked as
        failed in both cases.
        """
        self.taken += block.frames
        try:
            self.sink.write(block)
        except SinkBusy as busy:
            self.delivered += busy.taken
            self.failed += block.frames - busy.taken
            self.trouble = clean.line(busy)
            self.tell()
            return
        except Exception:
            self.failed += block.frames
            raise
        self.delivered += block.frames
        self.tell()
        if self.trouble is not None:
            self.trouble = None
            self._backoff.reset()

    def _fail(self, error: Exception) -> None:
        self.failures += 1
        self.trouble = describe_error(self.name, error)
        self.state = SinkState.WAITING
        try:
            self.sink.close()
        except Exception as also:  # noqa: BLE001
            self.trouble = f"{self.trouble}; {describe_error(self.name, also)}"
        self.tell()

    def _drop_queued(self) -> None:
        while not self._queue.empty():
            block = self._queue.get_nowait()
            if block is not None:
                self.taken += block.frames
                self.failed += block.frames

    def _end(self) -> None:
        """What is still queued can no longer be delivered; the sink is closed."""
        self._drop_queued()
        try:
            self.sink.close()
        except Exception as error:  # noqa: BLE001
            self.trouble = describe_error(self.name, error)
        self.tell()
        self.state = SinkState.CLOSED

    def finish(self) -> None:
        """No block follows: deliver what is queued and end. The pusher's thread, or after it."""
        self._put_rest()
        self._queue.put(None)
        self._halt.set()

    def abandon(self) -> None:
        """The sink hangs and is given up: what it still holds counts as dropped."""
        self.abandoned = self.entered - self.overflowed - self.delivered - self.failed


def describe_error(sink: str, error: Exception) -> str:
    """What a sink raised, for a person; what nobody foresaw is told with its traceback too."""
    if isinstance(error, SinkError):
        return clean.line(error)
    return f"unexpected {bug.log_unexpected(f'sink {sink}', error, SINK=sink)}; tried again"


def tell_nobody(delivered: int, kept: int) -> None:
    pass
