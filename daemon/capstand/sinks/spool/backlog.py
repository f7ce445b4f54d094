"""What waits for a sink, in order, and what became of each frame of it.

    put → window (memory) → take → in flight → written → unsynced → commit → delivered
        ↘ spool (disk)    ↗

Each frame has a position: the number of frames that came before it, over all runs. While the sink
keeps up the disk is not touched. When it is away, or so slow that the window is full, what it has
not made safe goes into the spool, and after that all that comes. When all of that is safe with the
sink, the spool is emptied and left alone again.

A frame is delivered once the sink says that it is safe (its mark); what was written after that is
put back when the sink fails, and the sink has to take it back, as far as it can
(``checkpoint.cursor``). Position and place are noted on disk together, so this holds across ``kill
-9`` too.

A spool that cannot be written is a concern. Then sound is kept in the window, and beyond that it is
dropped and counted.

Thread: none of its own; the owner's lock is held in each call that changes something. Times come
as arguments; the age of what is in the spool is the spool's own business.
"""

import contextlib
from collections import deque
from collections.abc import Iterator

from capstand.audio.block import NS_PER_S, Block
from capstand.sinks.sink import Checkpoint, Event
from capstand.sinks.spool.record import Record
from capstand.sinks.spool.spool import Spool

EVENTS = 1000


class FrameCount:
    """Frames that came, and what became of them."""

    def __init__(self) -> None:
        self.taken = self.delivered = self.dropped = 0

    @property
    def waiting(self) -> int:
        gone = self.delivered + self.dropped  # first: another thread may add to ``taken``
        return self.taken - gone


class Backlog:
    """At most ``window_frames`` of sound in memory, the rest in ``spool``."""

    def __init__(self, spool: Spool, window_frames: int) -> None:
        self.spool = spool
        self.resumed: int | None = None  # of ours, left by a process before; None: not known yet
        self.own = FrameCount()  # of this run
        self.inherited = FrameCount()  # of earlier ones
        self.checkpoint = Checkpoint(0, "")  # what the sink said last, since it was opened
        self.concern: str | None = None  # the disk's
        self.events: deque[Event] = deque(maxlen=EVENTS)
        self._limit = window_frames
        self._window: deque[Record] = deque()  # to be written next
        self._in_flight: Record | None = None  # being written
        self._unsynced: deque[Record] = deque()  # written, not safe yet
        self._end = 0  # the position of the next block that comes
        self._own_from = 0  # positions before it are those of earlier runs
        self._noted = 0  # of our own delivered ones, those that the disk knows of
        self._usable = False  # the spool has been opened
        self._begun: tuple[int, int] | None = None  # spooling: from which position on, since when
        self._next = 0  # spooling: the next position to read from disk

    @property
    def spooling(self) -> bool:
        """Whether the spool is in use: all that comes goes there."""
        return self._begun is not None

    @property
    def from_disk(self) -> bool:
        """What ``take`` returns next comes from the disk."""
        return self.spooling and not self._window

    @property
    def in_memory(self) -> bool:
        """What ``take`` returns next is nowhere but in memory."""
        return bool(self._window) and not self.spooling

    @property
    def spooled_frames(self) -> int:
        """What waits while the spool is in use, earlier runs' included. Any thread."""
        return self.own.waiting + self.inherited.waiting if self.spooling else 0

    @property
    def given_frames(self) -> int:
        """What the sink was given since it was opened."""
        return self.checkpoint.safe_frames + sum(record.block.frames for record in self._unsynced)

    @property
    def all_written(self) -> bool:
        """The spool has been read to its end, but not all of it is safe."""
        return bool(self._unsynced) and self._all_taken

    @property
    def _all_taken(self) -> bool:
        return not self._window and self._next == self._end

    def kept(self, beyond: int) -> int:
        """Of our own frames, those that a process after this one will not give to the sink again,
        which has so many ``beyond`` those that are safe with it. Any thread."""
        return self._noted if self.spooling else self.own.delivered + beyond

    # What comes

    def load(self, now_ns: int) -> None:
        """Opens the spool, if it is not open; what an earlier run left there comes first."""
        if self._usable or self._unsynced or self._in_flight is not None:
            return
        try:
            self.spool.open()
        except OSError as error:
            self._spool_fails(error)
            return
        self._usable = True
        self.concern = None
        waiting, self._window = self._window, deque()
        self._end, self._next = self.spool.end, self.spool.position
        self._own_from = self.spool.begin_of_run()
        self.inherited.taken = self._own_from - self._next
        self.resumed = self._end - self._own_from
        self.own.taken += self.resumed
        if frames := self._end - self._next:
            self._begun = self._next, now_ns
            self._noted = self.own.delivered
            if not self.checkpoint.cursor:
                self.checkpoint = self.checkpoint._replace(cursor=self.spool.cursor)
            whose = "run" if self.inherited.taken else "process of this run"
            self._log_event("spool_begin", reason=f"left by an earlier {whose}", frames=frames)
        for record in waiting:
            if not self._keep(record.block):
                self.own.dropped += record.block.frames

    def put(self, block: Block, away: str | None, now_ns: int) -> bool:
        """Whether there is room for the block; ``away`` says why the sink is, None: it is not."""
        waiting = self._end - self._window[0].position if self._window else 0
        full = waiting > 0 and waiting + block.frames > self._limit
        if not self.spooling and self._usable and (away is not None or full):
            self._begin(away, now_ns)
        taken = (self.spooling or not full) and self._keep(block)
        if taken:
            self.own.taken += block.frames
        return taken

    def sync(self, away: str | None, now_ns: int) -> None:
        """About once a second: makes safe what is on the disk, and drops what is too old there."""
        self.load(now_ns)
        with self._watched():
            if away is not None and self._usable and self.in_memory:
                self._begin(away, now_ns)
            if self.spooling:
                while (reason := self.spool.excess(0)) == "age":
                    self._lose(self.spool.drop_oldest(), reason)
                self.spool.sync()
            elif self._usable and (
                self.spool.position < self.spool.end or (self.concern and away is None)
            ):
                self.spool.clear()  # the disk refused when it was due; it is not needed now
                self.concern = None

    def close(self, away: str | None, now_ns: int) -> None:
        """What has not been delivered stays in the spool for the next run."""
        held = self._held()
        if held and not self.spooling and self._usable:
            self._begin(away, now_ns)
        if not self.spooling:
            self.own.dropped += sum(record.block.frames for record in held)
            self._window.clear()
            self._unsynced.clear()
            self._in_flight = None
        with self._watched():
            self.spool.close()

    # What goes

    def opened(self) -> None:
        """The sink has been opened, and has taken back what comes again."""
        self.checkpoint = Checkpoint(0, "")

    def take(self) -> Record | None:
        """What the sink is to be given now."""
        if self._window:
            self._in_flight = self._window.popleft()
        elif self.spooling:
            record = self._in_flight = self.spool.read(self._next)
            self._lose(self._end if record is None else record.position, self.spool.missed)
            if record is not None:
                self._next = record.end
        return self._in_flight

    def written(self) -> None:
        """The sink was given what was taken."""
        assert self._in_flight is not None
        self._unsynced.append(self._in_flight)
        self._in_flight = None

    def commit(self, checkpoint: Checkpoint | None, only_new_cursor: bool = False) -> None:
        """Counts what the sink says is safe as delivered, None: all that it was given. While the
        spool is in use that is noted there, if wanted only when the place is another."""
        if checkpoint is None:
            checkpoint = Checkpoint(self.given_frames, "")
        self._deliver(checkpoint.safe_frames - self.checkpoint.safe_frames)
        self.checkpoint = checkpoint
        if self.spooling and not (only_new_cursor and checkpoint.cursor == self.spool.cursor):
            with self._watched():
                self.spool.commit(self._safe(), checkpoint.cursor)
                self._noted = self.own.delivered

    def put_back(self) -> None:
        """The sink has failed: what is not safe is to be written anew."""
        self._window = deque(self._held())
        self._unsynced.clear()
        self._in_flight = None

    def leave_disk(self, now_ns: int) -> None:
        """The spool is out of use, if all is safe."""
        if self._begun is None or self._unsynced or not self._all_taken:
            return
        (position, at_ns), self._begun = self._begun, None
        with self._watched():
            self.spool.clear()
            seconds = round((now_ns - at_ns) / NS_PER_S, 1)
            self._log_event("spool_end", frames=self._end - position, seconds=seconds)

    # Within

    def _held(self) -> list[Record]:
        """What has not been made safe and is in memory, in order."""
        in_flight = [] if self._in_flight is None else [self._in_flight]
        return [*self._unsynced, *in_flight, *self._window]

    def _safe(self) -> int:
        """All before this position is safe with the sink."""
        for record in self._held():
            return record.position
        return self._next if self.spooling else self._end

    def _begin(self, away: str | None, now_ns: int) -> None:
        """From now on everything goes to the disk, what the sink has not made safe first."""
        safe = self._safe()
        try:
            for record in self._held():
                self.spool.append(record.position, record.block)
            self.spool.sync()
            self.spool.commit(safe, self.checkpoint.cursor)
        except OSError as error:
            self._spool_fails(error)
            with contextlib.suppress(OSError):
                self.spool.clear()
            return
        self.concern = None
        self._next = self._end
        self._noted = self.own.delivered
        self._begun = safe, now_ns
        self._log_event("spool_begin", reason=away or "the sink is too slow")

    def _keep(self, block: Block) -> bool:
        """False: the spool did not take it."""
        if not self.spooling:
            self._window.append(Record(self._end, self.spool.run, block))
        else:
            try:
                while (reason := self.spool.excess(len(block.samples))) is not None:
                    self._lose(self.spool.drop_oldest(), reason)
                self.spool.append(self._end, block)
            except OSError as error:
                self._spool_fails(error)
                return False
            self.concern = None
        self._end += block.frames
        return True

    def _deliver(self, frames: int) -> None:
        while frames > 0:
            first = self._unsynced[0]
            count = min(frames, first.block.frames)
            frame_count = self.own if first.position >= self._own_from else self.inherited
            frame_count.delivered += count
            if count == first.block.frames:
                self._unsynced.popleft()
            else:
                self._unsynced[0] = first.after(count)
            frames -= count

    def _lose(self, position: int, reason: str) -> None:
        """What was to be read from the disk before that position will not be."""
        frames = position - self._next
        if frames <= 0:
            return
        own = max(0, position - max(self._own_from, self._next))
        self.own.dropped += own
        self.inherited.dropped += frames - own
        self._next = position
        self._log_event("spool_drop", frames=frames, reason=reason)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._spool_fails(error)

    def _spool_fails(self, error: OSError) -> None:
        self.concern = (
            f"spool {self.spool.folder}: {error.strerror or error}; what the sink cannot accept "
            "is dropped; check that the directory exists, is writable and has space"
        )

    def _log_event(self, event: str, **what: object) -> None:
        self.events.append((event, what))
