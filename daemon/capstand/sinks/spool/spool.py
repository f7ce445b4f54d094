"""A queue of blocks on disk, in segment files; nothing that was synced is lost in a crash.

Each frame that enters has a position: the number of frames that entered before it, over all runs.
A segment file is named by the position of its first frame and holds records (``record.py``), one
block each. What an interrupted write left at the end of the newest segment is cut off at opening.

``commit`` notes in the file ``position`` up to where everything is delivered, and in ``cursor`` a
word of the sink's own; segments before are removed. The note has two slots, written in turn and in
place, so that a power cut leaves one of them and a full disk is no hindrance. What was appended
while the note says "empty" and was never committed is void: its process still had it all, and
the place that belongs to it is not known.

CLOCK_MONOTONIC begins anew at each boot, so a record also has the wall time of its first frame. A
block of an earlier boot comes back with the ``captured_at_ns`` that this wall time would have now.

Thread: none of its own; the owner's lock is held in each call.
"""

import contextlib
import errno
import json
import os
import re
import stat
import time
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path

from capstand.audio.block import NS_PER_S, AudioFormat, Block
from capstand.sinks.disk import sync_file, sync_folder
from capstand.sinks.spool.record import HEAD_BYTES, Record, RecordReader, packed
from capstand.text import clean

SEGMENT_BYTES = 4_000_000
SEGMENT_NS = 60 * NS_PER_S
SLOT_BYTES = 4096
_IN_THE_WAY = (errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENOENT)
NOTES = 20


class Spool:
    """Keeps at most ``limit_bytes`` in ``folder``, in ``audio``'s format. ``run`` (8 bytes) is
    that of whoever has the books, in which one process may follow another; None: a new one.

    It holds the positions from ``position`` to ``end``. What is in the way there, such as a file
    that cannot be read, costs itself alone; ``notes`` says so, once each. ``missed`` says why the
    last ``read`` passed something over.

    Calls that write raise OSError when the
    disk refuses; what an ``append`` then left is taken back.
    """

    def __init__(
        self,
        folder: Path,
        audio: AudioFormat,
        limit_bytes: int,
        max_age_s: float,
        *,
        run: bytes | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
        boot: bytes | None = None,
    ) -> None:
        self.run = run or os.urandom(8)
        self.position = 0
        self.end = 0
        self.cursor = ""
        self.folder = folder
        self.missed = "damaged"
        self.notes: deque[str] = deque(maxlen=NOTES)
        self._noted_about: set[str] = set()
        self._audio = audio
        self._limit_bytes = limit_bytes
        self._segment_bytes = min(SEGMENT_BYTES, limit_bytes // 8)
        self._max_age_ns = round(max_age_s * NS_PER_S)
        self._now_ns = now_ns
        self._wall_ns = wall_ns
        self._boot = boot or _boot()
        self._segments: deque[_SpoolFile] = deque()
        self._bytes = 0
        self._tail: int | None = None  # descriptor of the newest segment, where this run wrote it
        self._synced = True
        self._turn = 0  # of the note's slots
        self._reader: RecordReader | None = None

    def open(self) -> None:
        """Takes up what an earlier run left, if anything."""
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._segments.clear()
        noted = self._noted()
        now_ns, wall_ns = self._now_ns(), self._wall_ns()
        for path in sorted(self.folder.iterdir()):
            if re.fullmatch(r"(?a)[0-9a-f]{16}\.spool", path.name):
                try:
                    RecordReader(path).close()
                    about = path.lstat()
                except OSError as error:
                    self._note(path, error)
                    continue
                newest_ns = now_ns - (wall_ns - about.st_mtime_ns)
                begin = int(path.stem, 16)
                self._segments.append(_SpoolFile(path, begin, about.st_size, newest_ns, newest_ns))
        end = self._cut_torn_tail()
        self._bytes = sum(segment.bytes for segment in self._segments)
        begin = self._segments[0].begin if self._segments else 0
        self.position, self.cursor, void = noted or (begin, "", False)
        self.position = max(self.position, 0 if void else begin)
        self.end = max(end, self.position)
        if void or self.position >= end:
            self.clear()
        elif noted is None:
            self.commit(self.position, "")

    def begin_of_run(self) -> int:
        """The position of the first frame that this ``run`` left, ``end`` where it left none. Each
        process begins a file."""
        for segment in self._segments:
            with contextlib.suppress(OSError):
                reader = RecordReader(segment.path)
                try:
                    found = reader.next(segment.bytes)
                finally:
                    reader.close()
                if found is not None and found[0].run == self.run:
                    return max(segment.begin, self.position)
        return self.end

    def _note(self, path: Path, error: OSError) -> None:
        words = f"{path}: {error.strerror or error}; skipped"
        self._say(words, words)

    def _say(self, about: str, words: str) -> None:
        """Once of each thing."""
        if about not in self._noted_about and len(self._noted_about) < NOTES:
            self._noted_about.add(about)
            self.notes.append(words)

    def _open(self, path: Path, flags: int) -> int:
        """Opens a file of the spool's own; what is in the way and cannot be opened, such as a
        directory or a link, is renamed. Raises OSError."""
        flags |= os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            file = os.open(path, flags, 0o640)
            if stat.S_ISREG(os.fstat(file).st_mode):
                return file
            os.close(file)
            raise OSError(errno.ENXIO, "not a regular file")
        except OSError as error:
            if error.errno not in _IN_THE_WAY or not os.path.lexists(path):
                raise
            path.rename(path.with_name(f"{path.name}.aside-{os.urandom(4).hex()}"))
            self._note(path, error)
        return os.open(path, flags, 0o640)

    def _noted(self) -> tuple[int, str, bool] | None:
        """The newest note that is whole: position, place, and whether the queue was empty then."""
        found = []
        for slot in range(2):
            with contextlib.suppress(ValueError):
                file = self._open(self.folder / "position", os.O_RDWR)
                try:
                    raw = os.pread(file, SLOT_BYTES, slot * SLOT_BYTES)
                finally:
                    os.close(file)
                check, _, text = raw.rstrip(b"\0").partition(b" ")
                if int(check, 16) == zlib.crc32(text):
                    found.append(clean.parsed(text))
        if not found:
            return None
        self._turn, position, cursor, empty = max(found)
        return position, cursor, empty

    def _cut_torn_tail(self) -> int:
        """Returns the end of the last whole record."""
        while self._segments:
            last = self._segments[-1]
            reader = RecordReader(last.path)
            try:
                end = sound_bytes = 0
                while (found := reader.next(last.bytes)) is not None:
                    end, sound_bytes = found[0].end, reader.at
            finally:
                reader.close()
            if sound_bytes:
                if sound_bytes < last.bytes:
                    _truncate(last.path, sound_bytes)
                last.bytes = sound_bytes
                return end
            self._remove(self._segments.pop())
        return 0

    def append(self, position: int, block: Block) -> None:
        """Adds a block; ``position`` is the end of the one before, or where the queue begins."""
        now_ns = self._now_ns()
        wall_ns = self._wall_ns() - (now_ns - block.captured_at_ns)
        record = packed(Record(position, self.run, block), wall_ns, self._boot)
        segment = self._segments[-1] if self._tail is not None else None
        if (
            segment is None
            or segment.bytes + len(record) > self._segment_bytes
            or now_ns - segment.began_ns > SEGMENT_NS
        ):
            segment = self._new_segment(position, now_ns)
        assert self._tail is not None
        try:
            if os.write(self._tail, record) < len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            try:
                os.ftruncate(self._tail, segment.bytes)
            except OSError:
                self._close_tail()
            raise
        segment.bytes += len(record)
        segment.newest_ns = now_ns
        self._bytes += len(record)
        self._synced = False
        self.end = position + block.frames

    def _new_segment(self, position: int, now_ns: int) -> "_SpoolFile":
        self._close_tail()
        path = self.folder / f"{position:016x}.spool"
        self._tail = self._open(path, os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
        sync_folder(self.folder)
        while self._segments and self._segments[-1].begin >= position:
            self._bytes -= self._segments.pop().bytes  # it could take no record
        segment = _SpoolFile(path, position, 0, now_ns, now_ns)
        self._segments.append(segment)
        return segment

    def sync(self) -> None:
        """Makes what was appended safe."""
        if self._tail is not None and not self._synced:
            sync_file(self._tail)
            self._synced = True

    def read(self, position: int) -> Record | None:
        """The first sound record that reaches beyond ``position``, without what is before it; None
        at the end.
        """
        self.missed = "damaged"
        while True:
            segment, newest = self._holding(position)
            if segment is None:
                return None
            try:
                reader = self._reader_of(segment, position)
                found = reader.next(segment.bytes)
            except OSError:
                found = None  # a bad sector, or it is gone: the rest of this segment is given up
            if found is None:
                if newest:
                    return None
                position = max(position, self._after(segment))
                continue
            record, wall_ns, boot = found
            reader.end = record.end
            if record.end <= position:
                continue
            audio = record.block.format
            if audio != self._audio:
                self.missed = "another format"
                self._say(
                    "format",
                    f"{self.folder}: sound of {audio} is spooled there but {self._audio} is "
                    "captured now; skipped",
                )
                position = record.end
                continue
            if boot != self._boot:
                at_ns = self._now_ns() - (self._wall_ns() - wall_ns)
                record = record._replace(block=record.block._replace(captured_at_ns=at_ns))
            skipped = position - record.position
            return record.after(skipped) if skipped > 0 else record

    def _reader_of(self, segment: "_SpoolFile", position: int) -> "RecordReader":
        reader = self._reader
        if reader is None or reader.path != segment.path or reader.end > position:
            if reader is not None:
                self._reader = None
                reader.close()
            reader = self._reader = RecordReader(segment.path)
        return reader

    def _holding(self, position: int) -> "tuple[_SpoolFile | None, bool]":
        """The segment a position is in, or the first after it; and whether it is the newest."""
        for number, one in enumerate(self._segments):
            newest = number == len(self._segments) - 1
            if newest or self._segments[number + 1].begin > position:
                return one, newest
        return None, True

    def _after(self, segment: "_SpoolFile") -> int:
        """Where the segment after this one begins."""
        return min(one.begin for one in self._segments if one.begin > segment.begin)

    def excess(self, more_bytes: int) -> str | None:
        """Why the oldest segment has to go before so many bytes are added: "size" or "age"."""
        if not self._segments:
            return None
        if self._bytes + HEAD_BYTES + more_bytes > self._limit_bytes:
            return "size"
        old = self._now_ns() - self._segments[0].newest_ns > self._max_age_ns
        return "age" if old else None

    def drop_oldest(self) -> int:
        """Gives up the oldest segment; returns the position at which the queue then begins."""
        begin = self._after(self._segments[0]) if len(self._segments) > 1 else self.end
        self.commit(max(begin, self.position), self.cursor)
        return begin

    def commit(self, position: int, cursor: str, empty: bool = False) -> None:
        """All before ``position`` is delivered; ``cursor`` is the sink's note of where that is."""
        self._turn += 1
        text = json.dumps([self._turn, position, cursor, empty]).encode()
        raw = (b"%08x " % zlib.crc32(text) + text).ljust(SLOT_BYTES, b"\0")
        assert len(raw) == SLOT_BYTES
        file = self._open(self.folder / "position", os.O_RDWR)
        try:
            if os.pwrite(file, raw, self._turn % 2 * SLOT_BYTES) < SLOT_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync_file(file)
        finally:
            os.close(file)
        self.position, self.cursor = position, cursor
        while len(self._segments) > 1 and self._segments[1].begin <= position:
            self._remove_oldest()
        if self._segments and self.end <= position:
            self._close_tail()
            self._remove_oldest()

    def clear(self) -> None:
        """Everything is delivered, or of no use: no segment stays."""
        self._close_tail()
        self.commit(self.end, "", empty=True)
        while self._segments:
            self._remove_oldest()

    def _remove_oldest(self) -> None:
        oldest = self._segments.popleft()
        self._bytes -= oldest.bytes
        self._remove(oldest)

    def _remove(self, segment: "_SpoolFile") -> None:
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:
            self._note(segment.path, error)

    def _close_tail(self) -> None:
        tail, self._tail = self._tail, None
        if tail is not None:
            try:
                sync_file(tail)
            finally:
                os.close(tail)
                self._synced = True

    def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
        self._close_tail()


class _SpoolFile:
    """One file: where it begins, its bytes, when it was begun and last written (monotonic)."""

    __slots__ = ("began_ns", "begin", "bytes", "newest_ns", "path")

    def __init__(self, path: Path, begin: int, size: int, began_ns: int, newest_ns: int) -> None:
        self.path = path
        self.begin = begin
        self.bytes = size
        self.began_ns = began_ns
        self.newest_ns = newest_ns


def _truncate(path: Path, size: int) -> None:
    """As os.truncate, which would follow a link."""
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def _boot() -> bytes:
    """Where the kernel does not say, each run counts as a boot of its own."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
        return bytes.fromhex(text.replace("-", "").strip())[:8]
    except (OSError, ValueError):
        return os.urandom(8)
