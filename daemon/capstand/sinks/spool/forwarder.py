"""Hands a backlog on to its sink, which may fail, hang, and come back.

Once the sink is back it gets all that waits in order, what is on disk at a pace, until it has
caught up. Tries to open it follow each other with growing, jittered pauses, without end.

Threads: ``run`` is the forwarder's own, and so is ``turn``; ``start``, ``end`` and what they are
asked are the sink queue's. Calls to the sink are made without the lock of the backlog, so a sink
that hangs does not hold up what comes in. One that hangs at the end is left behind: whatever comes
of its call later does not count.
"""

import threading
from collections.abc import Callable
from enum import Enum, auto

from capstand.audio.block import NS_PER_S
from capstand.audio.wake import WakeUp
from capstand.errors import SinkError
from capstand.host.backoff import Backoff
from capstand.host.realtime import prepare_thread
from capstand.sinks.sink import Checkpoint, Sink, nobody
from capstand.sinks.sink_queue import describe_error
from capstand.sinks.spool.backlog import Backlog
from capstand.sinks.spool.record import Record

SLOW_NS = NS_PER_S
SLACK_NS = NS_PER_S // 5


class Stage(Enum):
    RUNNING = auto()
    ENDING = auto()
    LEFT = auto()


class Forwarder:
    """``pace_hz`` is how fast the sink gets what is on disk, in frames a second; it is flushed
    each ``flush_s``. ``lock`` guards the backlog; ``priority`` is that of the thread.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        backlog: Backlog,
        lock: threading.Lock,
        *,
        pace_hz: float,
        flush_s: float,
        backoff: Backoff,
        priority: int,
        now_ns: Callable[[], int],
    ) -> None:
        self.trouble: str | None = None  # until the sink has taken a block
        self.wake = WakeUp()
        self._name = name
        self._sink = sink
        self._backlog = backlog
        self._lock = lock
        self._pace_hz = pace_hz
        self._flush_ns = round(flush_s * NS_PER_S)
        self._backoff = backoff
        self._priority = priority
        self._now_ns = now_ns
        self._thread: threading.Thread | None = None
        self._stage = Stage.RUNNING  # the sink queue's
        self._opened = False
        self._run = b""  # the one that captured the block written last
        self._retry_ns = self._flushed_ns = self._due_ns = 0
        self._call_ns = 0  # when the sink was called, 0 while it is not
        self._changed: Callable[[], None] = nobody

    @property
    def away(self) -> str | None:
        """Why the sink is: it failed, and has not been opened again yet. Any thread."""
        return None if self._opened else self.trouble

    def obstacle(self, now_ns: int) -> str | None:
        """What keeps sound from the sink. Any thread."""
        trouble, called_ns = self.trouble, self._call_ns
        slow = called_ns and now_ns - called_ns > SLOW_NS
        if trouble is None and slow and self._backlog.spooling:
            return f"no response for {(now_ns - called_ns) // NS_PER_S} s"
        return trouble

    def watch(self, changed: Callable[[], None]) -> None:
        """``changed`` is called after each step."""
        self._changed = changed

    # Its life

    def start(self) -> None:
        """Also after ``end``. Raises SinkError while the sink still hangs."""
        if self._thread is not None and self._stage is not Stage.LEFT:
            return
        if not self.join(0):
            raise SinkError("the sink is still stuck in an earlier call")
        with self._lock:
            self._backlog.put_back()
        self._opened = False
        self._stage = Stage.RUNNING
        thread = threading.Thread(target=self.run, name=f"forward:{self._name}", daemon=True)
        thread.start()
        self._thread = thread

    def end(self, wait_s: float) -> None:
        """Delivers what is in memory alone and closes the sink, or leaves it behind."""
        if self._stage is Stage.RUNNING:
            self._stage = Stage.ENDING
        self.wake.set()
        self.join(wait_s)
        with self._lock:
            self._stage = Stage.LEFT

    def join(self, wait_s: float) -> bool:
        """Whether its thread has ended by then."""
        if self._thread is None:
            return True
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def run(self) -> None:
        """The thread's body; ends after ``end``."""
        prepare_thread(f"fwd:{self._name}", self._priority)
        while self._stage is not Stage.LEFT:
            self.wake.clear()
            pause_s = self.turn()
            flowing = self._opened and self._backlog.in_memory
            if self._stage is not Stage.RUNNING and not flowing:
                break
            if pause_s:
                self.wake.wait(pause_s)
        self.finish()

    def turn(self) -> float:
        """Does what is due: opens the sink, writes a block, makes it safe; returns for how many
        seconds nothing is.
        """
        now_ns = self._now_ns()
        if not self._opened and now_ns < self._retry_ns:
            return (self._retry_ns - now_ns) / NS_PER_S
        self._call_ns = now_ns
        try:
            if not self._opened:
                self._open()
            elif now_ns - self._flushed_ns >= self._flush_ns:
                self._make_safe()
            elif self._backlog.from_disk and now_ns < self._due_ns:
                return (self._due_ns - now_ns) / NS_PER_S
            elif (record := self._take()) is not None:
                self._write(record)
            elif self._backlog.spooling:
                self._catch_up()
            else:
                return (self._flushed_ns + self._flush_ns - now_ns) / NS_PER_S
        except Exception as error:  # noqa: BLE001  of a sink anything may come
            self._fail(error)
        finally:
            self._call_ns = 0
        return 0.0

    def finish(self) -> None:
        """Closes the sink in order."""
        if not self._opened:
            return
        try:
            self._sink.close()
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return
        self._commit(None)

    # The sink, call by call

    def _open(self) -> None:
        if self._backlog.checkpoint.cursor:
            self._sink.rewind(self._backlog.checkpoint.cursor)
        self._sink.open()
        self._opened = True
        self._flushed_ns = self._now_ns()
        self._apply(self._backlog.opened)

    def _take(self) -> Record | None:
        with self._lock:
            return self._backlog.take()

    def _write(self, record: Record) -> None:
        paced = self._backlog.spooling
        if record.run != self._run:  # frame indices begin anew: so do files
            self._begin_anew()
            self._run = record.run
        self._sink.prepare(record.block)
        self._commit(self._sink.checkpoint(), only_new_cursor=True)
        self._sink.write(record.block)
        self._apply(self._backlog.written)
        self.trouble = None
        self._backoff.reset()
        if self._sink.checkpoint() is None:
            self._commit(None, only_new_cursor=True)
        if paced:
            start_ns = max(self._due_ns, self._now_ns() - SLACK_NS)
            self._due_ns = start_ns + round(record.block.frames * NS_PER_S / self._pace_hz)

    def _make_safe(self) -> None:
        self._sink.flush()
        self._flushed_ns = self._now_ns()
        self._commit(self._sink.checkpoint())

    def _begin_anew(self) -> None:
        """Closes and opens the sink; all it was given is safe then."""
        if not self._backlog.given_frames:
            return
        self._sink.close()
        self._commit(None)
        self._open()

    def _catch_up(self) -> None:
        """The spool has been read to its end; when all of it is safe, it is left alone."""
        self._make_safe()
        if self._backlog.all_written:
            self._begin_anew()
        self._apply(self._backlog.leave_disk, self._now_ns())

    def _fail(self, error: Exception) -> None:
        """What is not safe comes again; until then the sink waits."""
        self._opened = False
        trouble = describe_error(self._name, error)
        try:
            self._sink.close()
        except Exception as also:  # noqa: BLE001
            also_said = describe_error(self._name, also)
            trouble += f"; {also_said}" if also_said != trouble else ""
        self._apply(self._backlog.put_back)
        self.trouble = trouble
        self._retry_ns = self._now_ns() + round(self._backoff.next_s() * NS_PER_S)

    def _commit(self, checkpoint: Checkpoint | None, only_new_cursor: bool = False) -> None:
        self._apply(self._backlog.commit, checkpoint, only_new_cursor)

    def _apply(self, step: Callable[..., None], *what: object) -> None:
        """Not what comes of a call after it was left behind."""
        with self._lock:
            if self._stage is not Stage.LEFT:
                step(*what)
        self._changed()
