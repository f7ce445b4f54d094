"""One stream's ledger file: appended, rotated, compressed, and kept for a bounded time and size.

``STREAM.jsonl`` is written; past ``LIMIT_BYTES`` it is renamed to ``STREAM.jsonl.000012`` and then
compressed beside it, to ``.gz``. Each step leaves files that the next start takes up: numbers only
grow, a compressed file gets its name when it is whole and on the disk, and only then the plain one
goes. Numbers say which file is older, because a wall clock may be set.

What a write took is known from what it returned, so no line is written twice: a line that fits only
in part is taken back, and lines that could not be made safe are looked for before they are written
again. A lock, where the file system has one, keeps two daemons on one folder apart.

Thread: the ledger's.
"""

import errno
import fcntl
import os
import re
import stat
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from capstand.text import clean

LIMIT_BYTES = 4_000_000
LOCK_S = 1.0
CHUNK_BYTES = 262_144
LARGEST_BYTES = 4 * LIMIT_BYTES
"""What is larger is not as we wrote it. To read it as a whole would hold up all ledgers."""
DAY_S = 86_400
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EROFS)
"""A file system without fdatasync; a read-only one has nothing to make safe."""
NO_LEDGER = (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.ENOTDIR)
"""What has the file's name cannot be a ledger: a link, a directory, another user's file."""


class Archive(NamedTuple):
    """A file that is full; ``number`` is the order."""

    number: int
    path: Path
    size: int
    ended_s: float

    @property
    def packed(self) -> bool:
        return self.path.suffix == ".gz"


class Forgotten(NamedTuple):
    """What was deleted, and why."""

    file: str
    size: int
    lines: int
    first_at: str | None
    last_at: str | None
    reason: str


class LedgerFile:
    """The files of ``stream`` in ``folder``; ``aside`` is called with the new name of what stood
    in the file's place and is no ledger.
    """

    def __init__(
        self, folder: Path, stream: str, aside: Callable[[str], None] = lambda _: None
    ) -> None:
        self.path = folder / f"{stream}.jsonl"
        self._aside = aside
        self._unsynced: list[bytes] = []
        self._unsynced_at = (0, 0)  # inode and offset
        self._again = 0  # so many lines were told as written and have to be written again

    def append(self, lines: deque[bytes], written: Callable[[bytes], None]) -> None:
        """Takes each line out once it is in the file, and tells ``written``; returns when all are
        safe. Raises OSError: what is left in ``lines`` is not in the file.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.parent):
            descriptor = self._open()
            try:
                self._find_unsynced(descriptor, lines)
                while lines:
                    self._write(descriptor, lines, written)
                self._sync(descriptor)
            finally:
                os.close(descriptor)

    @property
    def full(self) -> bool:
        try:
            return self.path.lstat().st_size > LIMIT_BYTES
        except OSError:
            return False

    def rotate(self) -> None:
        """Raises OSError."""
        with locked(self.path.parent):
            if not self.full:
                return  # another daemon has done it
            number = max((archive.number for archive in self.archives()), default=0) + 1
            self.path.rename(self.path.with_name(f"{self.path.name}.{number:06d}"))
            sync_folder(self.path.parent)

    def archives(self) -> list[Archive]:
        """The oldest first. A number stands twice where compressing was interrupted."""
        name = re.compile(re.escape(self.path.name) + r"\.(\d{1,9})(\.gz)?")
        found = []
        with suppress(FileNotFoundError), os.scandir(self.path.parent) as entries:
            for entry in entries:
                if match := name.fullmatch(entry.name):
                    with suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            size, ended_s = status.st_size, status.st_mtime
                            found.append(Archive(int(match[1]), Path(entry.path), size, ended_s))
        return sorted(found)

    def compress(self) -> None:
        """All that is full and not compressed, but for what is far too large. A file that cannot be
        costs itself; the last error is raised at the end.
        """
        failed: OSError | None = None
        for archive in self.archives():
            if not archive.packed and archive.size <= LARGEST_BYTES:
                try:
                    _compress(archive.path)
                except OSError as error:
                    failed = error
        if failed is not None:
            raise failed

    def forget(self, keep_days: int, max_bytes: int, now_s: float | None) -> Iterator[Forgotten]:
        """Deletes what ended longer ago than ``keep_days``, then the oldest, until all take no
        more than ``max_bytes``. ``now_s`` is wall time, None where that is not known to be right.
        """
        archives = self.archives()
        total = sum(archive.size for archive in archives)
        with suppress(OSError):
            total += self.path.lstat().st_size
        for archive in archives:
            if now_s is not None and now_s - archive.ended_s > keep_days * DAY_S:
                reason = f"older than {keep_days} days"
            elif total > max_bytes:
                reason = f"more than {max_bytes // 1_000_000} MB"
            else:
                continue
            lines, first_at, last_at = _content(archive)
            with suppress(OSError):  # what cannot be deleted costs itself
                archive.path.unlink()
                total -= archive.size
                yield Forgotten(archive.path.name, archive.size, lines, first_at, last_at, reason)

    def tail(self, most: int = CHUNK_BYTES) -> tuple[list[bytes], bool]:
        """The last whole lines of the file, and whether these are all of it."""
        return read_tail(self.path, most)

    # Inside

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        try:
            return open_plain(self.path, flags)
        except OSError as error:
            if error.errno not in NO_LEDGER:
                raise
            self._put_aside(error)
        return open_plain(self.path, flags | os.O_EXCL)

    def _put_aside(self, error: OSError) -> None:
        """What has the file's name gets another one. Where that cannot be done either, ``error``
        says more.
        """
        for number in range(1, 1000):
            name = f"{self.path.name}.aside-{number}"
            if os.path.lexists(self.path.with_name(name)):
                continue
            try:
                self.path.rename(self.path.with_name(name))
            except OSError:
                break
            self._aside(name)
            return
        raise error

    def _write(
        self, descriptor: int, lines: deque[bytes], written: Callable[[bytes], None]
    ) -> None:
        """As many lines as one write takes."""
        batch: list[bytes] = []
        size = done = 0
        while lines and size < CHUNK_BYTES:
            batch.append(lines.popleft())
            size += len(batch[-1])
        try:
            length, head = _end_of(descriptor)
            count = os.write(descriptor, head + b"".join(batch))
            if not self._unsynced:
                self._unsynced_at = os.fstat(descriptor).st_ino, length + len(head)
            whole = min(count, len(head))
            while done < len(batch) and whole + len(batch[done]) <= count:
                whole += len(batch[done])
                done += 1
            self._took(batch[:done], written)
            if whole < count:
                os.ftruncate(descriptor, length + whole)
            if count < len(head) + size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            lines.extendleft(reversed(batch[done:]))

    def _took(self, batch: list[bytes], written: Callable[[bytes], None]) -> None:
        self._unsynced += batch
        again = min(self._again, len(batch))
        self._again -= again
        for line in batch[again:]:
            written(line)

    def _sync(self, descriptor: int) -> None:
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            if error.errno not in NO_SYNC:
                raise
        self._unsynced.clear()

    def _find_unsynced(self, descriptor: int, lines: deque[bytes]) -> None:
        """After a sync that failed: lines that are still in the file only need another sync."""
        if not self._unsynced:
            return
        inode, offset = self._unsynced_at
        content = b"".join(self._unsynced)
        here = os.fstat(descriptor).st_ino == inode
        if here and os.pread(descriptor, len(content), offset) != content:
            lines.extendleft(reversed(self._unsynced))
            self._again += len(self._unsynced)
            self._unsynced.clear()
        else:  # where it is another file, the other daemon has rotated it, content and all
            self._sync(descriptor)


def append_line(path: Path, line: bytes) -> None:
    """Adds a line that is there as a whole afterwards, and safe. Raises OSError."""
    descriptor = open_plain(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        length, head = _end_of(descriptor)
        if os.write(descriptor, head + line) < len(head + line):
            os.ftruncate(descriptor, length)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with suppress(OSError):
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _end_of(descriptor: int) -> tuple[int, bytes]:
    """Where a file ends, and what has to come before the next line: a power cut tears lines."""
    length = os.fstat(descriptor).st_size
    torn = length and os.pread(descriptor, 1, length - 1) != b"\n"
    return length, b"\n" if torn else b""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other daemons out, where that can be had. Raises OSError where another does not end."""
    try:
        lock = open_plain(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        yield  # another user's, a full disk: better a ledger without a lock than none
        return
    try:
        deadline = time.monotonic() + LOCK_S
        while not _locked(lock):
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, "locked by another capstand")
            time.sleep(0.01)
        yield
    finally:
        os.close(lock)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


def open_plain(path: Path, flags: int, mode: int = 0o644) -> int:
    """Opens an ordinary file and nothing else: no link, no pipe, no device."""
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    descriptor = os.open(path, flags, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENODEV, "not a regular file")
    return descriptor


def sync_folder(folder: Path) -> None:
    """Makes names safe, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_tail(path: Path, most: int = CHUNK_BYTES) -> tuple[list[bytes], bool]:
    """The last whole lines of a file, with their ends, and whether these are all of it."""
    try:
        descriptor = open_plain(path, os.O_RDONLY)
    except OSError:
        return [], False
    try:
        length = os.fstat(descriptor).st_size
        start = max(0, length - most)
        content = os.pread(descriptor, most, start)
    except OSError:
        return [], False
    finally:
        os.close(descriptor)
    lines = content.splitlines(keepends=True)
    if start:
        del lines[:1]
    return [line for line in lines if line.endswith(b"\n")], start == 0


def replace(path: Path, content: bytes) -> None:
    """Writes a small file whole, or not at all. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    with suppress(FileNotFoundError):
        fresh.unlink()
    descriptor = open_plain(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        with suppress(OSError):
            os.fdatasync(descriptor)
    fresh.rename(path)
    sync_folder(path.parent)


def _compress(path: Path) -> None:
    fresh = path.with_name(path.name + ".new")
    with suppress(FileNotFoundError):
        fresh.unlink()
    try:
        _pack(path, fresh)
    except OSError:
        with suppress(OSError):  # a full disk needs no half a file
            fresh.unlink()
        raise
    fresh.rename(path.with_name(path.name + ".gz"))
    sync_folder(path.parent)
    path.unlink()


def _pack(path: Path, fresh: Path) -> None:
    source = open_plain(path, os.O_RDONLY)
    with os.fdopen(source, "rb") as plain:
        target = open_plain(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(target, "wb") as file:
            packer = zlib.compressobj(6, wbits=31)
            while chunk := plain.read(CHUNK_BYTES):
                file.write(packer.compress(chunk))
            file.write(packer.flush())
            file.flush()
            with suppress(OSError):
                os.fsync(target)
        status = os.fstat(source)
    os.utime(fresh, ns=(status.st_atime_ns, status.st_mtime_ns))


def _content(archive: Archive) -> tuple[int, str | None, str | None]:
    """How many lines it has, and the times of the first and the last; as far as it can be read."""
    count, pending = 0, b""
    first = last = b""
    with suppress(OSError, zlib.error):
        for chunk in _chunks(archive):
            lines = (pending + chunk).split(b"\n")
            pending = lines.pop()[:CHUNK_BYTES]
            if lines:
                first = first or lines[0]
                last = lines[-1]
                count += len(lines)
    return count, _time_in(first), _time_in(last)


def _chunks(archive: Archive) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31) if archive.packed else None
    left = LARGEST_BYTES
    with os.fdopen(open_plain(archive.path, os.O_RDONLY), "rb") as file:
        while left > 0 and (chunk := file.read(CHUNK_BYTES // 16)):
            content = unpacker.decompress(chunk, left) if unpacker else chunk
            left -= len(content)
            yield content


def _time_in(line: bytes) -> str | None:
    with suppress(ValueError):
        event = clean.parsed(line)
        if isinstance(event, dict) and isinstance(event.get("at"), str):
            return str(event["at"])[:40]
    return None
