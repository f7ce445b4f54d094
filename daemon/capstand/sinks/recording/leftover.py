"""What an earlier run left unfinished gets its name, but never what somebody still writes.

A recording that is being written is locked. Where a free lock says that nobody writes (a disk of
this machine), a leftover is taken at once; so is one that we know to be our own. Elsewhere (a
share, where another machine's lock may not be seen, or a file system without locks) it is taken
once it has not changed for ``QUIET_NS``: a recording changes every second, and one without sound
is closed after a minute. One that cannot be taken costs itself alone.

Thread: the recording's. Source: the directory.
"""

import contextlib
import errno
import os
import re
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from capstand.audio.block import NS_PER_S
from capstand.sinks import disk
from capstand.sinks.recording.segment import HEADER_BYTES, is_there, lock, name_it
from capstand.sinks.recording.wav import repair_wav

QUIET_NS = 90 * NS_PER_S
LOOK_NS = 10 * NS_PER_S
STAMP = r"\d{8}T\d{6}\.\d{3}Z"
"""A name must match as a whole: the segments of stream mic-2 are not those of stream mic."""


class _Seen(NamedTuple):
    size: int
    changed_ns: int  # the file's own time, only held against itself
    since_ns: int  # ours, monotonic


class Leftovers:
    """Those of one stream in one directory; ``told`` is called with what is the matter, once each.

    ``being_written`` are the names that were left alone.
    """

    def __init__(self, stream: str, told: Callable[[str], None], now_ns: Callable[[], int]) -> None:
        self._pattern = re.compile(rf"(?a){re.escape(stream)}-{STAMP}(-\d+)?\.(wav|flac)\.part")
        self._told = told
        self._now_ns = now_ns
        self._seen: dict[str, _Seen] = {}
        self._due_ns = 0

    def recover(
        self, folder: Path, own: str | None, certain: str | None = None, left: str | None = None
    ) -> None:
        """Takes all that nobody writes. ``own`` is the segment being written, ``certain`` the name
        of one that is ours whoever holds it, ``left`` of one that was ours when our last run ended.
        Raises OSError only where the directory is away.
        """
        self._due_ns = self._now_ns() + LOOK_NS
        descriptor = disk.open_folder(folder)
        try:
            found = []
            with contextlib.suppress(PermissionError):  # it may be written to, but not listed
                names = sorted(one.name for one in folder.iterdir())
                found = [one for one in names if self._pattern.fullmatch(one)]
                found = [one for one in found if one != f"{own}.part"]
            self._seen = {name: seen for name, seen in self._seen.items() if name in found}
            for name in found:
                try:
                    plain = name.removesuffix(".part")
                    self._take(descriptor, name, plain == certain, plain == left)
                except FileNotFoundError:
                    self._seen.pop(name, None)
                except OSError as error:
                    self._seen.pop(name, None)
                    self._told(f"{folder}/{name}: {error.strerror or error}; left unchanged")
        finally:
            os.close(descriptor)

    def recover_due(self, folder: Path, own: str | None) -> None:
        """The same, if it is due and one was left alone."""
        if self._seen and self._now_ns() >= self._due_ns:
            self.recover(folder, own)

    def _take(self, folder: int, name: str, certain: bool, left: bool) -> None:
        kind = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if not stat.S_ISREG(kind):  # to open a FIFO or a device may hang
            raise OSError("not a regular file")
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(name, os.O_RDWR | flags, dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            descriptor = os.open(name, os.O_RDONLY | flags, dir_fd=folder)  # as it is, then
        try:
            free = lock(descriptor)
            certain = certain or (bool(free) and disk.is_local(descriptor))
            certain = certain or (left and free is not False)
            if not certain and (free is False or not self._quiet(descriptor, name)):
                self._seen.setdefault(name, self._now(descriptor))
                return
            if is_there(name, folder):
                _recover(descriptor, folder, name)
            self._seen.pop(name, None)
        finally:
            os.close(descriptor)

    def _now(self, descriptor: int) -> _Seen:
        now = os.fstat(descriptor)
        return _Seen(now.st_size, now.st_mtime_ns, self._now_ns())

    def _quiet(self, descriptor: int, name: str) -> bool:
        """Whether it has not changed for long."""
        now, before = self._now(descriptor), self._seen.get(name)
        if before is None or before[:2] != now[:2]:
            self._seen[name] = now
            return False
        return now.since_ns - before.since_ns >= QUIET_NS


def _recover(descriptor: int, folder: int, name: str) -> None:
    """Gives a segment its name; one without sound is removed."""
    if os.fstat(descriptor).st_size <= _header_bytes(descriptor, name):
        os.unlink(name, dir_fd=folder)
        return
    if name.endswith(".wav.part"):
        try:
            repair_wav(descriptor)
        except (struct.error, ZeroDivisionError):
            pass  # it is no sound any more
        except OSError as error:
            if error.errno != errno.EBADF:  # it may only be read: its length stays open
                raise
    name_it(folder, name.removesuffix(".part"))
    disk.sync_folder(folder)


def _header_bytes(descriptor: int, name: str) -> int:
    """The length of a segment without sound; that of floats grows with their channels."""
    at = os.pread(descriptor, 4096, 0).find(b"data") if name.endswith(".wav.part") else -1
    return HEADER_BYTES if at < 0 else at + 8
