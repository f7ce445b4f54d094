"""One file of a recording: WAV (``wav.py``) or FLAC (``flac.py``).

It is written as ``NAME.part`` and gets its name when it is whole. A flush brings the header up to
date and syncs the data, so that what a crash leaves can be read; ``cut`` takes back what is to come
again. It keeps to the directory in which it was begun, also when a disk is mounted over it. While
it is written it is locked, so that nobody takes it for a leftover.

Thread: the recording's.
"""

import contextlib
import errno
import fcntl
import json
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from capstand.audio.block import AudioFormat
from capstand.sinks import disk
from capstand.sinks.recording.flac import FlacFile, end_flac
from capstand.sinks.recording.folder import DEFAULT_MODE, Access
from capstand.sinks.recording.wav import WavFile, repair_wav

HEADER_BYTES = 112
"""A segment that is no longer has no sound; the headers of WAV have 44 to 92, that of FLAC 86."""
_FLAC_HELD = 4608
"""So many frames at most the encoder holds back, to fill a block."""
_SPARE_BYTES = 8192
"""For headers, and for a FLAC of noise, which is a little larger than the noise."""
_NAMES = 1000


class Segment:
    """One file being written, ``stem`` with a number where that name is taken; ``refused`` says
    why it did not get its mode or group, ``failed`` that a write did not succeed, ``appends`` that
    nothing in it can be written anew: a WAV leaves its length open then, a FLAC is refused.

    After a write that failed, the file ends with the write before.
    """

    def __init__(
        self, folder: Path, stem: str, container: str, audio: AudioFormat, large: bool,
        access: Access,
    ) -> None:  # fmt: skip
        self.refused: OSError | None = None
        self.appends = False
        self.unnamed: OSError | None = None  # why it is whole and still has no name
        self._audio = audio
        self._flac = container == "flac"
        self._dirty = False
        self.failed = False
        self._safe = 0
        with contextlib.ExitStack() as undo:
            self._folder = disk.open_folder(folder)
            undo.callback(os.close, self._folder)
            with contextlib.ExitStack() as undo_file:
                self.name, self._descriptor = self._create(stem, container, os.O_RDWR)
                undo_file.callback(os.unlink, self.name + ".part", dir_fd=self._folder)
                undo_file.callback(os.close, self._descriptor)
                self._limit = self._try_out(container)
                if not self.appends:
                    undo.push(undo_file.pop_all())
            if self.appends:
                self.name, self._descriptor = self._create(stem, container, os.O_WRONLY)
                undo.callback(os.unlink, self.name + ".part", dir_fd=self._folder)
                undo.callback(os.close, self._descriptor)
            try:
                access.give(self._descriptor)
            except OSError as error:
                self.refused = error
            self._file = self._begin(large)
            undo.pop_all()

    def _begin(self, large: bool) -> WavFile | FlacFile:
        if self._flac:
            return FlacFile(self._descriptor, self._audio)
        return WavFile(self._descriptor, self._audio, large=large, appends=self.appends)

    @property
    def frames(self) -> int:
        return self._file.frames

    @property
    def found(self) -> int:
        """Frames that would be found in it, were it left as it is."""
        return self._file.found

    def __str__(self) -> str:
        return f"{self.name}, {self.frames / self._audio.rate_hz:.0f} s"

    def _create(self, stem: str, container: str, access: int) -> tuple[str, int]:
        for number in range(1, _NAMES):
            name = f"{stem}{f'-{number}' if number > 1 else ''}.{container}"
            if is_there(name, self._folder):
                continue
            flags = access | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            try:
                descriptor = os.open(f"{name}.part", flags, DEFAULT_MODE, dir_fd=self._folder)
            except FileExistsError:
                continue
            if lock(descriptor) is not False and is_there(f"{name}.part", self._folder):
                return name, descriptor
            os.close(descriptor)  # another start took it for a leftover before it was locked
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), f"{stem}.{container}")

    def _try_out(self, container: str) -> int:
        """How large the file may get. Raises OSError where nothing can be written anew and a
        recording would lack its length.
        """
        os.pwrite(self._descriptor, b"\0\0", 0)
        try:
            os.pwrite(self._descriptor, b"\1", 0)
            read = os.pread(self._descriptor, 2, 0)
            limit = disk.largest_file(self._descriptor)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
                raise
            read = b""
        if read == b"\1\0":
            return limit
        if container == "flac":
            raise OSError(errno.ESPIPE, "the file system cannot rewrite data")
        self.appends = True
        return disk.UNLIMITED

    def has_room(self, frames: int) -> bool:
        """Whether so many frames more stay within what a file may have."""
        if self._flac:
            size = os.fstat(self._descriptor).st_size
            waiting = self.frames - self._safe + _FLAC_HELD
            return size + (waiting + frames) * self._file.frame_bytes + _SPARE_BYTES <= self._limit
        return (self.frames + frames) * self._file.frame_bytes + _SPARE_BYTES <= self._limit

    def write(self, samples: bytes, frames: int) -> None:
        try:
            self._file.write(samples, frames)
        except BaseException:
            self.failed = True
            raise
        self._dirty = True

    def silence(self, frames: int) -> None:
        chunk = self._audio.rate_hz
        zeros = self._audio.sample.silence(min(frames, chunk) * self._audio.channels)
        while frames:
            part = min(frames, chunk)
            self.write(zeros[: part * self._audio.frame_bytes], part)
            frames -= part

    def flush(self, found: Callable[[], None]) -> int:
        """Header up to date, data on the disk; returns how many frames are safe. ``found`` is
        called when more is found in it, before the disk is waited for."""
        if self._dirty:
            safe = self._file.flush()
            found()
            disk.sync_file(self._descriptor)
            self._safe = safe
            self._dirty = False
        return self._safe

    def cursor(self, frames: int) -> str:
        """Where the segment is and how long, right after a flush or the beginning; nothing where
        it cannot be taken back."""
        if self.appends:
            return ""
        return json.dumps([self.name, frames, os.fstat(self._descriptor).st_size])

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def is_shared(self) -> bool:
        """Whether other machines may write there too."""
        return not disk.is_local(self._descriptor)

    def device(self) -> int:
        """Of the disk that it is on."""
        return os.fstat(self._folder).st_dev

    def finish(self) -> int:
        """Closes the file and gives it its name; without sound, removes it. Returns how many of its
        frames are safe in it, all unless a write or the closing failed. Raises OSError where none
        is known to be but those of the last flush; it is left to the next start then.
        """
        part = self.name + ".part"
        try:
            try:
                kept = self._file.close()
                disk.sync_file(self._descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.close(self._descriptor)
                raise
            # What fails from here on costs no sound.
            there = is_there(part, self._folder)
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            if not there and not is_there(self.name, self._folder):  # another may have named it
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), part)
            try:
                if not kept and there:
                    os.unlink(part, dir_fd=self._folder)
                elif there:
                    self.name = name_it(self._folder, self.name)
                disk.sync_folder(self._folder)
            except OSError as error:
                self.unnamed = error if is_there(part, self._folder) else None
        finally:
            os.close(self._folder)
        return kept

    def probe(self) -> None:
        """Raises OSError where the file can take no more."""
        end = os.fstat(self._descriptor).st_size
        os.pwrite(self._descriptor, bytes(4096), end)
        os.ftruncate(self._descriptor, end)


def lock(descriptor: int) -> bool | None:
    """Locks an open file for as long as it is open; False if another has, None where that is not
    known.
    """
    if not disk.may_lock(descriptor):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def name_it(folder: int, name: str) -> str:
    """Gives ``name``.part its name, or the next that is free, which is returned. Raises OSError."""
    stem, dot, kind = name.rpartition(".")
    for number in range(_NAMES):
        tail = f"-recovered{f'-{number}' if number > 1 else ''}" if number else ""
        if not is_there(free := f"{stem}{tail}{dot}{kind}", folder):
            os.rename(f"{name}.part", free, src_dir_fd=folder, dst_dir_fd=folder)
            return free
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)


def is_there(name: str, folder: int) -> bool:
    """A link that leads nowhere is there too."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_file(path: Path) -> bool:
    """Whether an ordinary file is there, and no link to one. Raises OSError."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def cut(file: Path, frames: int, size: int) -> None:
    """Cuts a segment off after so many frames, which end at that size; without sound, removes it.
    The next ``open`` gives it its name. Raises FileNotFoundError where no file is there: a link may
    lead anywhere, and is none.
    """
    if not is_file(file):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
    if frames == 0:
        file.unlink()
        return
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(file, flags), "r+b") as open_file:
        descriptor = open_file.fileno()
        if os.fstat(descriptor).st_size < size:
            return
        os.ftruncate(descriptor, size)
        if ".flac" in file.suffixes:
            end_flac(descriptor, frames)
        else:
            with contextlib.suppress(struct.error, ZeroDivisionError):
                repair_wav(descriptor)
        disk.sync_file(descriptor)
