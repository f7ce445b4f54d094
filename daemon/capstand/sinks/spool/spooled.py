"""A sink that is never away: while the one behind it is, the sound waits on disk.

    outlet → Spooled → window (memory) → forwarder's thread → sink
                     ↘ spool (disk)  ↗

While the sink is well a block goes through the window, and the disk is not touched. When the sink
fails, or is so slow that the window is full, what it has not made safe goes into the spool, and
after it all that follows. Once it is back it gets all that in order, at ``speed`` times real time,
until it has caught up; then the disk is left alone again. Tries to open it follow each other with
growing, jittered pauses, without end.

No frame is lost or comes twice: a block is delivered once the sink says that it is safe (``mark``);
what was written after that comes again, and the sink is first told to take it back (``rewind``).
Position and mark are noted together, so this holds across ``kill -9`` too. A sink without marks has
delivered what it has written; after a crash of capstand it may get what it got in the last second
again.

A spool that cannot be written is a concern. Then sound is kept in the window, and beyond that it is
dropped and counted, as without a spool.

Threads: ``write``, ``flush`` and ``close`` are the outlet's; ``turn`` is the forwarder's; one lock.
Calls to the sink are made without it, so a sink that hangs does not hold up the spooling.
"""

import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from capstand.accounting.stats import span
from capstand.audio.block import NS_PER_S, Block
from capstand.errors import SinkBusy, SinkError
from capstand.host.realtime import prepare_thread
from capstand.sinks.outlet import FLUSH_S, RETRY_S, in_words
from capstand.sinks.sink import Account, Event, Mark, Sink
from capstand.sinks.spool.record import Record
from capstand.sinks.spool.spool import Spool

CLOSE_S = 1.0
SLOW_NS = NS_PER_S
SLACK_NS = NS_PER_S // 5
EVENTS = 1000


class Spooled(Sink):
    """``sink`` with a ``spool`` of sound at ``rate_hz``; the window holds ``window_frames``;
    ``priority`` is that of the forwarder's thread."""

    on_disk = True

    def __init__(
        self,
        name: str,
        sink: Sink,
        spool: Spool,
        *,
        rate_hz: int,
        speed: float,
        window_frames: int,
        priority: int = 0,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.sink = sink
        self.trouble: str | None = None  # the sink's
        self.taken = self.delivered = self.dropped = 0  # frames of this run
        self.inherited = self.inherited_delivered = self.inherited_dropped = 0
        self._spool = spool
        self._rate_hz = rate_hz
        self._speed = speed
        self._limit = window_frames
        self._priority = priority
        self._now_ns = now_ns
        self._lock = threading.Condition()
        self._name = name
        self._thread = self._forwarder()
        # Under the lock:
        self._window: deque[Record] = deque()  # to be written next
        self._in_hand: Record | None = None  # being written
        self._unsafe: deque[Record] = deque()  # written, not safe yet
        self._end = 0  # the position of the next block from the outlet
        self._own = 0  # positions before it are those of earlier runs
        self._usable = False
        self._spooling = False
        self._next = 0  # while spooling: the next position to read from disk
        self._begun = (0, 0)  # the spool: at which position, when
        self._failing = False
        self._closing = False
        self._left = False  # the forwarder hangs and was left behind
        self._mark = Mark(0, "")
        self._spool_trouble: str | None = None
        self._events: deque[Event] = deque(maxlen=EVENTS)
        # The forwarder's:
        self._opened = False
        self._run = spool.run  # of the block written last
        self._written = 0  # frames since the sink was opened
        self._rewind: str | None = None
        self._retry_s = RETRY_S[0]
        self._retry_ns = self._flushed_ns = self._due_ns = 0
        self._call_ns = 0  # when the sink was called, 0 while it is not

    # What the outlet calls

    def open(self) -> None:
        """Also after a ``close``, which an unforeseen error of our own brings."""
        self.load()
        with self._lock:
            if self._thread.ident and not self._left:
                return
            if self._thread.is_alive():
                raise SinkError("the sink still hangs in an earlier call")
            if self._left:
                self._hold_again()
                self._opened = self._closing = self._left = False
                self._thread = self._forwarder()
        self._thread.start()

    def _forwarder(self) -> threading.Thread:
        return threading.Thread(target=self.run, name=f"forward:{self._name}", daemon=True)

    def load(self) -> None:
        """Opens the spool; what an earlier run left there comes first."""
        with self._lock:
            if self._usable or self._unsafe or self._in_hand is not None:
                return
            try:
                self._spool.open()
            except OSError as error:
                self._spool_fails(error)
                return
            self._usable = True
            self._spool_trouble = None
            shift = self._spool.end - (self._end - sum(one.block.frames for one in self._window))
            waiting = [one._replace(position=one.position + shift) for one in self._window]
            self._own = self._spool.end
            self._end += shift
            self._next = self._spool.position
            inherited = self._own - self._next
            if not inherited:
                self._window = deque(waiting)
                return
            self.inherited = inherited
            self._spooling = True
            self._begun = self._next, self._now_ns()
            if not self._opened and self._rewind is None:
                self._rewind = self._spool.place
            self._tell("spool_begin", reason="an earlier run left it", frames=inherited)
            self._window.clear()
            self._end = self._own
            for one in waiting:
                if not self._append(one.block):
                    self.dropped += one.block.frames

    def write(self, block: Block) -> None:
        with self._lock:
            full = bool(self._window) and self._waiting() + block.frames > self._limit
            if not self._spooling and self._usable and (self._failing or full):
                self._begin()
            if self._spooling:
                taken = self._append(block)
            else:
                taken = not full
                if taken:
                    self._window.append(Record(self._end, self._spool.run, block))
                    self._end += block.frames
            if taken:
                self.taken += block.frames
            self._lock.notify()
            words = self._words()
        if words is not None or not taken:
            raise SinkBusy(words or "it is too slow", block.frames if taken else 0)

    def flush(self) -> None:
        if not self._usable:
            self.load()
        with self._lock, self._watched():
            if self._failing and not self._spooling and self._usable and self._window:
                self._begin()
            if self._spooling:
                while (reason := self._spool.excess(0)) == "age":
                    self._drop(reason)
                self._spool.sync()
            elif self._usable and (
                self._spool.position < self._spool.end
                or (self._spool_trouble and not self._failing)
            ):
                self._spool.clear()  # the disk refused when it was due; it is not needed now
                self._spool_trouble = None

    def close(self) -> None:
        """Ends the forwarder; what it has not delivered stays in the spool for the next run."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        if self._thread.ident:
            self._thread.join(CLOSE_S)
        with self._lock:
            self._left = True
            if not self._spooling and self._usable and self._held():
                self._begin()
            if not self._spooling:
                self.dropped += sum(one.block.frames for one in self._held())
                self._window.clear()
                self._unsafe.clear()
                self._in_hand = None
            with self._watched():
                self._spool.close()

    # The books, and what there is to say; any thread

    @property
    def inserted_frames(self) -> int:  # type: ignore[override]
        return self.sink.inserted_frames

    @property
    def spooled_frames(self) -> int:
        """What waits while the spool is in use, earlier runs' included."""
        return self._own_inside() + self._inherited_inside() if self._spooling else 0

    def _own_inside(self) -> int:
        gone = self.delivered + self.dropped
        return self.taken - gone

    def _inherited_inside(self) -> int:
        return self.inherited - self.inherited_delivered - self.inherited_dropped

    @property
    def detail(self) -> str:
        words = "waiting" if self._failing else self.sink.detail
        if self._spooling:
            words += f", {span(self.spooled_frames / self._rate_hz)} spooled"
        return words

    def account(self) -> Account:
        return Account(self.delivered, self.dropped)

    @property
    def concern(self) -> str | None:
        return self._spool_trouble or self.sink.concern

    def figures(self, now_ns: int) -> dict[str, object]:
        return {
            **self.sink.figures(now_ns),
            "spool": {
                "spooled_frames": self.spooled_frames,
                "inherited_frames": self._inherited_inside(),
                "inherited_delivered_frames": self.inherited_delivered,
                "inherited_dropped_frames": self.inherited_dropped,
                "trouble": self._spool_trouble,
            },
        }

    def events(self) -> Iterator[Event]:
        with contextlib.suppress(IndexError):
            while True:
                yield self._events.popleft()
        with contextlib.suppress(IndexError):
            while True:
                yield "note", {"reason": self._spool.notes.popleft()}
        yield from self.sink.events()

    # The spool; under the lock

    def _held(self) -> list[Record]:
        """What has not been made safe and is in memory, in order."""
        in_hand = [] if self._in_hand is None else [self._in_hand]
        return [*self._unsafe, *in_hand, *self._window]

    def _safe(self) -> int:
        """All before this position is safe with the sink."""
        for one in self._held():
            return one.position
        return self._next if self._spooling else self._end

    def _waiting(self) -> int:
        return self._end - self._window[0].position if self._window else 0

    def _begin(self) -> None:
        """From now on everything goes to the disk, what the sink has not made safe first."""
        held = self._held()
        try:
            for one in held:
                self._spool.append(one.position, one.block)
            self._spool.sync()
            self._spool.commit(held[0].position if held else self._end, self._mark.place)
        except OSError as error:
            self._spool_fails(error)
            with contextlib.suppress(OSError):
                self._spool.clear()
            return
        self._spooling = True
        self._spool_trouble = None
        self._next = self._end
        self._begun = self._safe(), self._now_ns()
        self._tell("spool_begin", reason=self.trouble or "the sink is too slow")

    def _append(self, block: Block) -> bool:
        """False: the spool did not take it."""
        try:
            while (reason := self._spool.excess(len(block.samples))) is not None:
                self._drop(reason)
            self._spool.append(self._end, block)
        except OSError as error:
            self._spool_fails(error)
            return False
        self._spool_trouble = None
        self._end += block.frames
        return True

    def _drop(self, reason: str) -> None:
        self._lose(self._spool.drop_oldest(), reason)

    def _lose(self, position: int, reason: str) -> None:
        """What was to be read from the disk before that position will not be."""
        frames = position - self._next
        if frames <= 0:
            return
        own = max(0, position - max(self._own, self._next))
        self.dropped += own
        self.inherited_dropped += frames - own
        self._next = position
        self._tell("spool_drop", frames=frames, reason=reason)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._spool_fails(error)

    def _spool_fails(self, error: OSError) -> None:
        self._spool_trouble = (
            f"spool {self._spool.folder}: {error.strerror or error}; what the sink cannot take is "
            "dropped; check that the directory exists, is writable and has room"
        )

    def _words(self) -> str | None:
        """What keeps sound from the sink."""
        words = self.trouble
        called_ns = self._call_ns
        if words is None and called_ns and self._now_ns() - called_ns > SLOW_NS:
            seconds = (self._now_ns() - called_ns) // NS_PER_S
            words = f"it has not answered for {seconds} s" if self._spooling else None
        if words is not None and self._spool_trouble is not None:
            return f"{words}; {self._spool_trouble}"
        if words is not None and self._spooling:
            return f"{words}; {span(self.spooled_frames / self._rate_hz)} spooled"
        return words

    def _tell(self, event: str, **what: object) -> None:
        self._events.append((event, what))

    # The forwarder

    def run(self) -> None:
        """The thread's body; ends after ``close``."""
        prepare_thread(f"fwd:{self._name}", self._priority)
        while not self._left:
            pause_s = self.turn()
            with self._lock:
                flowing = self._opened and bool(self._window)
                if self._closing and (self._spooling or not flowing):
                    break
                if pause_s and not flowing:
                    self._lock.wait(pause_s)
        self._end_well()

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
            elif now_ns - self._flushed_ns >= FLUSH_S * NS_PER_S:
                self._make_safe()
            elif self._spooling and not self._window and now_ns < self._due_ns:
                return (self._due_ns - now_ns) / NS_PER_S
            elif (record := self._take()) is not None:
                self._write(record)
            elif self._spooling:
                self._catch_up()
            else:
                return FLUSH_S - (now_ns - self._flushed_ns) / NS_PER_S
        except Exception as error:  # noqa: BLE001  of a sink anything may come
            self._fail(error)
        finally:
            self._call_ns = 0
        return 0.0

    def _open(self) -> None:
        if self._rewind:
            self.sink.rewind(self._rewind)
        self._rewind = None
        self.sink.open()
        self._opened = True
        self._written = 0
        self._flushed_ns = self._now_ns()
        with self._lock:
            self._mark = Mark(0, "")
            self._failing = False

    def _take(self) -> Record | None:
        with self._lock:
            if self._window:
                self._in_hand = self._window.popleft()
            elif self._spooling:
                self._in_hand = self._spool.read(self._next)
                if self._in_hand is None:
                    self._lose(self._end, self._spool.missed)
                else:
                    self._lose(self._in_hand.position, self._spool.missed)
                    self._next = self._in_hand.end
            return self._in_hand

    def _write(self, record: Record) -> None:
        spooled = self._spooling
        if record.run != self._run:  # frame indices begin anew: so do files
            self._begin_anew()
            self._run = record.run
        self.sink.prepare(record.block)
        self._settle(only_new_place=True)
        self.sink.write(record.block)
        self._written += record.block.frames
        with self._lock:
            if self._left:
                return
            self._unsafe.append(record)
            self._in_hand = None
        self.trouble = None
        self._retry_s = RETRY_S[0]
        if self.sink.mark() is None:
            self._settle(only_new_place=True)
        if spooled:
            length_ns = record.block.frames * NS_PER_S / self._rate_hz
            start_ns = max(self._due_ns, self._now_ns() - SLACK_NS)
            self._due_ns = start_ns + round(length_ns / self._speed)

    def _make_safe(self) -> None:
        self.sink.flush()
        self._flushed_ns = self._now_ns()
        self._settle()

    def _settle(self, only_new_place: bool = False) -> None:
        """Books what the sink says is safe; while spooling, notes it on disk."""
        mark = self.sink.mark()
        with self._lock:
            if self._left:
                return
            if mark is None:
                mark = Mark(self._written, "")
            self._book(mark.safe_frames - self._mark.safe_frames)
            self._mark = mark
            if self._spooling and not (only_new_place and mark.place == self._spool.place):
                with self._watched():
                    self._spool.commit(self._safe(), mark.place)

    def _book(self, frames: int) -> None:
        while frames > 0:
            first = self._unsafe[0]
            count = min(frames, first.block.frames)
            if first.position >= self._own:
                self.delivered += count
            else:
                self.inherited_delivered += count
            if count == first.block.frames:
                self._unsafe.popleft()
            else:
                self._unsafe[0] = first.after(count, self._rate_hz)
            frames -= count

    def _begin_anew(self) -> None:
        """Closes and opens the sink; all it was given is safe then."""
        if not self._written:
            return
        self.sink.close()
        self._settle_closed()
        self._opened = False
        self._open()

    def _settle_closed(self) -> None:
        """After the sink was closed in order."""
        with self._lock:
            if not self._left:
                self._book(sum(one.block.frames for one in self._unsafe))
                self._mark = Mark(self._written, "")
                if self._spooling:
                    with self._watched():
                        self._spool.commit(self._safe(), "")

    def _catch_up(self) -> None:
        """The spool has been read to its end; when all of it is safe, it is left alone."""
        self._make_safe()
        if self._unsafe and self._next == self._end:
            self._begin_anew()
        with self._lock:
            if not self._unsafe and not self._window and self._next == self._end:
                with self._watched():
                    self._spooling = False
                    self._spool.clear()
                    position, at_ns = self._begun
                    seconds = round((self._now_ns() - at_ns) / NS_PER_S, 1)
                    self._tell("spool_end", frames=self._end - position, seconds=seconds)

    def _fail(self, error: Exception) -> None:
        """What is not safe comes again; until then the sink waits."""
        self._opened = False
        trouble = in_words(self._name, error)
        try:
            self.sink.close()
        except Exception as also:  # noqa: BLE001
            also_said = in_words(self._name, also)
            trouble += f"; {also_said}" if also_said != trouble else ""
        with self._lock:
            self._hold_again()
            self.trouble = trouble
            self._failing = True
        self._retry_ns = self._now_ns() + round(self._retry_s * random.uniform(0.75, 1.25) * 1e9)
        self._retry_s = min(RETRY_S[1], self._retry_s * 2)

    def _hold_again(self) -> None:
        """What is not safe is to be written anew; under the lock."""
        self._window = deque(self._held())
        self._unsafe.clear()
        self._in_hand = None
        self._rewind = self._mark.place if self._rewind is None else self._rewind

    def _end_well(self) -> None:
        if not self._opened:
            return
        try:
            self.sink.close()
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return
        self._settle_closed()
