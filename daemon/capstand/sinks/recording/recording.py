"""Recordings: WAV (RF64 where a segment can pass 4 GiB) or FLAC segments in a directory.

Once a second what was written is made safe, so a segment can be read up to the last second after
``kill -9`` or a power cut; the next start finds it and gives it its name (``leftover.py``). How a
segment is written is in ``segment.py``. Delivered is what is safe in a file; of a WAV all that was
written outlasts its process, of a FLAC what its header says.

Gaps are filled with silence, so that the file's time stays true, or left out. A gap of more than
``LONG_GAP_S`` starts a new segment instead, whose name says its own time, and so does a wall clock
that has been set by as much since the segment began (or a machine that was suspended), a disk that
was mounted or unmounted there, and a file that may grow no further. The name carries the time (UTC)
at which its first frame was sampled: ``mic-20261122T031500.250Z.wav``.

Thread: the sink queue's, behind a spool the forwarder's; a FLAC's libsndfile and numpy are loaded
in it, so that they do not hold up the start of capture. Old recordings are removed in another
(``retention.py``).
"""

import contextlib
import errno
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from capstand.audio.block import NS_PER_S, AudioFormat, Block
from capstand.audio.continuity import Continuity
from capstand.errors import SinkError
from capstand.sinks import disk
from capstand.sinks.recording import folder
from capstand.sinks.recording.leftover import Leftovers
from capstand.sinks.recording.retention import DAY_S, GB, Retention
from capstand.sinks.recording.segment import Segment, cut
from capstand.sinks.sink import Account, Checkpoint, Event, Sink, nobody
from capstand.sinks.types.file import FileSinkConfig
from capstand.text import clean

LONG_GAP_S = 60.0
RESUME_MB = 16
"""So much more than the reserve must be free before recording goes on, or it would flutter."""
MB = 1_000_000
WAV_LIMIT = 2**32 - 2**20
EVENTS = 1000
NOTES = 100
FULL = 0.8
"""From this share of the disk on, the status says so and how long the rest will last."""
MEASURED_NS = 60 * NS_PER_S
_FAULTS = (OSError, RuntimeError, AssertionError)
"""What the system, and for a FLAC libsndfile and python-soundfile may bring."""


class Recording(Sink):
    """Writes one stream's blocks into segments as ``setup`` says; ``priority`` is that of the
    thread that removes old ones. ``note`` is a file on a disk of this machine: on a share the name
    of the segment being written is kept there, so that the next run knows its own leftover.
    """

    on_disk = True

    def __init__(
        self,
        stream: str,
        setup: FileSinkConfig,
        audio: AudioFormat,
        *,
        priority: int = 0,
        note: Path | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.segments = 0
        self._file_words = "no segment yet"
        self._disk_words = self._mount_words = ""
        self._stream = stream
        self._setup = setup
        self._audio = audio
        self._folder = Path(setup.path)
        self._access = folder.Access(int(setup.mode, 8) if setup.mode else None, setup.group_id)
        self._now_ns = now_ns
        self._wall_ns = wall_ns
        self._limit = round(setup.segment_s * audio.rate_hz)
        self._segment: Segment | None = None
        self._device: int | None = None  # the disk that was last written to
        self._on_disk = False  # that was not the root's
        self._continuity = Continuity()
        self._written_ns = 0
        self._wall_ahead_ns = 0  # wall time minus monotonic time when the segment began
        self._given = 0  # frames of blocks since open
        self._found = 0  # of these, what would be found in files if this process were killed
        self._changed: Callable[[], None] = nobody
        self._unsynced: deque[tuple[int, Block]] = deque()  # blocks and their ends in the segment
        self._checkpoint = Checkpoint(0, "")
        self._delivered = self._delivered_before = self._dropped = 0
        self._taken_back: str | None = None  # a place that is to be rewound to, once it is there
        self._mine: str | None = None  # the segment of that place
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self._noted: set[str] = set()
        self._note_file = note
        self._leftovers = Leftovers(stream, self._note, now_ns)
        self._retention = Retention(
            stream,
            self._folder,
            setup.keep_days,
            setup.keep_gb,
            self._removed,
            self._note,
            priority=priority,
            now_ns=now_ns,
            wall_ns=wall_ns,
        )
        self._ended = False  # a segment, since old ones were looked for
        self._bytes = 0  # of the segments before this one, since the disk was entered
        self._entered: tuple[int, int] | None = None  # when, and the bytes free then

    @property
    def detail(self) -> str:
        return self._file_words + self._mount_words + self._disk_words

    def open(self) -> None:
        self._given = self._found = 0
        self._delivered_before = self._delivered
        self._unsynced.clear()
        self._checkpoint = Checkpoint(0, "")
        try:
            self._enter()
        except OSError as error:
            raise self._failure(error) from None
        self._retention.start_if_due(None)
        self._guard(self._setup.min_free_mb + RESUME_MB)

    def _enter(self) -> None:
        """Gets to the directory on the disk where it is to be, and sees to what is left there."""
        self._wait_for_disk()
        if (refused := folder.make(self._folder, self._access)) is not None:
            self._note_access(refused)
        if self._taken_back is not None:
            self._take_back(self._taken_back)
        device = folder.device(self._folder)
        self._leftovers.recover(self._folder, None, self._mine, self._left_by_last_run())
        doubt = folder.doubt(self._folder) if self._setup.mount == "auto" else None
        self._mount_words = f"; {doubt}" if doubt else ""
        if doubt:
            self._note(f"{self._folder}: {doubt}")
        if device != self._device:
            self._bytes, self._entered = 0, None
        self._device = device
        self._on_disk = not folder.is_on_root(self._folder)

    def _left_by_last_run(self) -> str | None:
        with contextlib.suppress(OSError, ValueError):
            if self._note_file is not None and not self.segments:
                with self._note_file.open() as file:
                    return file.read(255)
        return None

    def _leave_word(self, segment: Segment) -> None:
        """Not synced: no recording waits for another disk."""
        if self._note_file is not None and segment.is_shared():
            with contextlib.suppress(OSError):
                self._note_file.parent.mkdir(parents=True, exist_ok=True)
                self._note_file.write_text(segment.name)

    def _wait_for_disk(self) -> None:
        """Raises SinkError while the disk is away. With "auto" one that was there is missed."""
        wanted = self._setup.mount
        if wanted != "auto":
            folder.wait_for_mount(self._folder, wanted)
        elif self._on_disk and folder.is_on_root(self._folder):
            raise SinkError(
                f"{self._folder}: the disk that was mounted there was removed; recording is "
                "paused; mount it, or set mount = false"
            )

    def prepare(self, block: Block) -> None:
        try:
            self._prepare(block)
        except _FAULTS as error:
            raise self._failure(self._cause(error)) from None

    def _cause(self, error: Exception) -> Exception:
        """libsndfile only says that the system failed; a write by hand says why."""
        if self._segment is None or isinstance(error, OSError):
            return error
        try:
            self._segment.probe()
        except OSError as plain:
            return plain
        return RuntimeError("the disk rejected a write, then accepted the next one")

    def write(self, block: Block) -> None:
        before = self._given
        try:
            try:
                self._put(block)
            except _FAULTS as error:
                self._begin_after(self._cause(error))
                self._put(block)
        except _FAULTS as error:
            self._given = before  # whose write fails counts as dropped, whatever is in the file
            raise self._failure(self._cause(error)) from None
        self._find()

    def _put(self, block: Block) -> None:
        segment = self._prepare(block)
        segment.write(block.samples, block.frames)
        self._continuity.follow(block)
        self._written_ns = self._now_ns()
        self._given += block.frames
        self._unsynced.append((segment.frames, block))
        if segment.frames >= self._limit:
            self._finish()

    def _prepare(self, block: Block) -> Segment:
        segment = self._segment
        if segment is not None:
            gap = self._continuity.missing(block)
            silence = gap if self._setup.gaps == "silence" else 0
            stepped_ns = self._wall_ns() - self._now_ns() - self._wall_ahead_ns
            stepped = abs(stepped_ns) > LONG_GAP_S * NS_PER_S
            long = not 0 <= gap <= LONG_GAP_S * self._audio.rate_hz
            full = segment.frames and not segment.has_room(silence + block.frames)
            if stepped or long or full:
                self._finish()
                segment = None
            elif silence:
                segment.silence(silence)
        self._continuity.next_frame = block.first_frame  # silence stands for what was missing
        return segment or self._begin(block)

    def _begin_after(self, error: Exception) -> None:
        """A file that may grow no further is finished, and what it did not take goes into the next
        one. Raises every other error."""
        segment = self._segment
        too_large = isinstance(error, OSError) and error.errno == errno.EFBIG
        if segment is None or not segment.frames or not too_large:
            raise error
        lost = self._closed()
        self._given -= sum(one.frames for one in lost)
        for block in lost:
            self._put(block)

    def flush(self) -> None:
        try:
            segment = self._segment
            if segment is not None:
                self._set_checkpoint(segment, segment.flush(self._is_found))
                self._file_words = str(segment)
                moved = folder.device(self._folder) != segment.device()
                if moved or self._now_ns() - self._written_ns > LONG_GAP_S * NS_PER_S:
                    self._finish()
                if moved:
                    self._note(
                        f"{self._folder}: a disk was mounted or unmounted there; {segment.name} is "
                        "on the one before"
                    )
                    return
            self._leftovers.recover_due(self._folder, segment.name if segment else None)
        except _FAULTS as error:
            raise self._failure(self._cause(error)) from None
        self._retention.start_if_due(segment.name if segment else None, soon=self._ended)
        self._ended = False
        self._guard(self._setup.min_free_mb)

    def close(self) -> None:
        try:
            self._finish()
        except _FAULTS as error:
            raise self._failure(error) from None
        finally:
            self._dropped += self._given - self._checkpoint.safe_frames
            self._given = self._checkpoint.safe_frames

    def checkpoint(self) -> Checkpoint:
        return self._checkpoint

    def account(self) -> Account:
        return Account(self._delivered, self._dropped, self._delivered_before + self._found)

    def watch_account(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def events(self) -> Iterator[Event]:
        with contextlib.suppress(IndexError):
            while True:
                yield self._events.popleft()

    def _set_checkpoint(self, segment: Segment, safe: int) -> None:
        """So many of a segment's frames are safe; a FLAC may end in the middle of a block."""
        while self._unsynced and self._unsynced[0][0] <= safe:
            self._unsynced.popleft()
        given = self._given - self._beyond(safe)
        self._checkpoint = Checkpoint(given, segment.cursor(safe))
        self._book()

    def _is_found(self) -> None:
        self._find()
        self._changed()

    def _find(self) -> None:
        if self._segment is not None:
            self._found = self._given - self._beyond(self._segment.found)

    def _beyond(self, frames: int) -> int:
        """Of the frames that were given, those that lie behind so many of the segment."""
        behind = (min(block.frames, end - frames) for end, block in self._unsynced)
        return sum(max(0, one) for one in behind)

    def _book(self) -> None:
        self._delivered = self._delivered_before + self._checkpoint.safe_frames

    def rewind(self, cursor: str) -> None:
        """Cuts the segment that was being written then off where it was safe."""
        if not cursor:
            return
        self._taken_back = cursor
        try:
            self._wait_for_disk()
            self._take_back(cursor)
        except OSError as error:
            raise self._failure(error) from None

    def _take_back(self, cursor: str) -> None:
        """Where the segment is not there, its disk may come later."""
        name, frames, size = clean.parsed(cursor)
        if Path(name).name != name:
            self._taken_back = None  # nothing of ours leads out of the directory
            return
        self._mine = name
        for one in (f"{name}.part", name):
            with contextlib.suppress(FileNotFoundError):
                cut(self._folder / one, frames, size)
                self._taken_back = None
                break

    def _begin(self, block: Block) -> Segment:
        if folder.device(self._folder) != self._device:
            self._enter()
        self._wall_ahead_ns = self._wall_ns() - self._now_ns()
        age_ns = self._now_ns() - block.captured_at_ns
        started = datetime.fromtimestamp((self._wall_ns() - age_ns) / NS_PER_S, UTC)
        stamp = started.strftime("%Y%m%dT%H%M%S.") + f"{started.microsecond // 1000:03}Z"
        beyond = (LONG_GAP_S + 2) * self._audio.rate_hz  # a gap and a period past the limit
        largest = (self._limit + beyond) * self._audio.frame_bytes
        self._segment = segment = Segment(
            self._folder,
            f"{self._stream}-{stamp}",
            self._setup.container,
            self._audio,
            largest > WAV_LIMIT,
            self._access,
        )
        if segment.refused is not None:
            self._note_access(segment.refused)
        if segment.appends:
            self._note(
                f"{self._folder}: the file system cannot rewrite data, so recordings have no "
                "length in their header; mount it with a cache (rclone: --vfs-cache-mode writes)"
            )
        self._leave_word(segment)
        self.segments += 1
        self._file_words = str(segment)
        self._set_checkpoint(segment, 0)
        return segment

    def _finish(self) -> None:
        """Closes the segment. Raises OSError where not all of it is in the file."""
        segment = self._segment
        failed = segment is not None and segment.failed
        if self._closed() and not failed:  # what failed before was told then
            raise OSError(errno.EIO, "the end of a file could not be written")

    def _closed(self) -> list[Block]:
        """Closes the segment; returns what is not in the file after all."""
        segment, self._segment = self._segment, None
        if segment is None:
            return []
        self._file_words = str(segment)
        self._ended = True
        size = segment.size()
        kept = segment.finish()
        self._bytes += size
        if segment.unnamed is not None:
            why = segment.unnamed.strerror or segment.unnamed
            self._note(
                f"{self._folder}/{segment.name}.part is complete but could not be renamed: {why}"
            )
        lost = []
        for end, block in self._unsynced:
            missing = min(block.frames, end - kept)
            if missing > 0:
                lost.append(block.after(block.frames - missing))
        self._unsynced.clear()
        self._found = self._given - sum(one.frames for one in lost)
        self._checkpoint = Checkpoint(self._found, "")
        self._book()
        return lost

    def _guard(self, wanted_mb: int) -> None:
        """Raises SinkError when the disk has less than that free."""
        try:
            room = disk.room(self._folder)
        except OSError as error:
            raise self._failure(error) from None
        if room is None:
            if self._setup.min_free_mb:
                self._note(
                    f"{self._folder}: the file system does not report free space, so min_free_mb "
                    "has no effect"
                )
            return
        self._disk_words = self._room_words(room)
        if room.free // MB < wanted_mb:
            raise SinkError(
                f"{self._folder}: {room.free // MB} MB free; recording is paused until "
                f"{wanted_mb} MB are free (min_free_mb = {self._setup.min_free_mb}); delete "
                "something"
            )

    def _room_words(self, room: disk.Room) -> str:
        """From ``FULL`` on: how full the disk is, and how long the rest lasts at this rate."""
        now_ns = self._now_ns()
        if self._entered is None:
            self._entered = now_ns, room.free
        if room.used < FULL:
            return ""
        words = f"; the disk is {100 * room.used:.0f} % full"
        began_ns, free_then = self._entered
        elapsed_s = (now_ns - began_ns) / NS_PER_S
        if now_ns - began_ns < MEASURED_NS:
            return words
        own = self._bytes + (self._segment.size() if self._segment else 0)
        rate = max(own, free_then - room.free) / elapsed_s  # others write there too
        left = max(0, room.free - self._setup.min_free_mb * MB)
        if rate <= 0 or self._is_kept_within(left, own / elapsed_s):
            return words
        return f"{words}, {_days(left / rate / DAY_S)} left at this rate"

    def _is_kept_within(self, left: int, rate: float) -> bool:
        """Whether what is removed makes room for all that is to come."""
        kept = self._retention.kept_bytes
        if kept is None:
            return False
        limits = []
        if self._setup.keep_gb:
            limits.append(self._setup.keep_gb * GB)
        if self._setup.keep_days:
            limits.append(self._setup.keep_days * DAY_S * rate)
        return bool(limits) and min(limits) - kept < left

    def _removed(self, name: str, size: int, key: str) -> None:
        self._events.append(("remove", {"file": name, "bytes": size, "reason": key}))

    def _note(self, words: str) -> None:
        """Something to tell, once."""
        if words not in self._noted and len(self._noted) < NOTES:
            self._noted.add(words)
            self._events.append(("note", {"reason": words}))

    def _note_access(self, error: OSError) -> None:
        group = f"; is the user a member of {self._setup.group}?" if self._setup.group else ""
        self._note(
            f"{self._folder}: cannot set mode and group: {error.strerror or error}; recording "
            f"goes on{group}"
        )

    def _failure(self, error: Exception) -> SinkError:
        reason, advice = disk.explain(error, self._folder)
        return SinkError(f"{self._folder}: {reason}; recording is paused; {advice}")


def _days(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} h"
