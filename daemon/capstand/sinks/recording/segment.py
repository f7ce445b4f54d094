"""One file of a recording, by libsndfile: WAV, RF64 where it can pass 4 GiB, or FLAC.

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
from pathlib import Path

from capstand.audio.block import AudioFormat, SampleFormat
from capstand.sinks import disk
from capstand.sinks.recording.append_only import AppendOnlyFile
from capstand.sinks.recording.folder import DEFAULT_MODE, Access

HEADER_BYTES = 112
"""The longest header of a segment without sound (RF64); that of WAV is 44, of FLAC 86."""
FLAC_LENGTH = 2**36 - 1
_FLAC_HELD = 4608
"""So many frames at most the encoder holds back, to fill a block."""
_SPARE_BYTES = 8192
"""For headers, and for a FLAC of noise, which is a little larger than the noise."""
_NAMES = 1000
_UPDATE_HEADER_NOW, _RF64_AUTO_DOWNGRADE = 0x1060, 0x1210
_BYTES = {"PCM_U8": 1, "PCM_S8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4}


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
        self.frames = 0
        self.refused: OSError | None = None
        self.appends = False
        self.unnamed: OSError | None = None  # why it is whole and still has no name
        self._audio = audio
        self._flac = container == "flac"
        self._subtype = subtype(audio.sample, container)
        self._frame_bytes = audio.channels * _BYTES[self._subtype]
        self._dirty = False
        self.failed = False
        self._safe = 0
        import soundfile

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
            self._file_end = AppendOnlyFile(self._descriptor)
            try:
                access.give(self._descriptor)
            except OSError as error:
                self.refused = error
            self._file = soundfile.SoundFile(
                self._file_end if self.appends else self._descriptor,
                "w",
                samplerate=audio.rate_hz,
                channels=audio.channels,
                subtype=self._subtype,
                format="FLAC" if self._flac else "RF64" if large and not self.appends else "WAV",
                closefd=False,
            )
            undo.pop_all()
        if large and not self._flac and not self.appends:
            self._command(_RF64_AUTO_DOWNGRADE, 1)

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
            return size + (waiting + frames) * self._frame_bytes + _SPARE_BYTES <= self._limit
        return (self.frames + frames) * self._frame_bytes + _SPARE_BYTES <= self._limit

    def write(self, samples: bytes, frames: int) -> None:
        try:
            match self._audio.sample:
                case SampleFormat.S16_LE:
                    self._file.buffer_write(samples, "int16")
                case SampleFormat.S32_LE:
                    self._file.buffer_write(samples, "int32")
                case SampleFormat.FLOAT_LE:
                    self._file.buffer_write(samples, "float32")
                case packed:
                    from capstand.dsp.convert import to_int32

                    values = to_int32(samples, packed)
                    self._file.buffer_write(values.tobytes(), "int32")
        except BaseException:
            self.failed = True
            raise
        self.frames += frames
        self._dirty = True

    def silence(self, frames: int) -> None:
        chunk = self._audio.rate_hz
        zeros = self._audio.sample.silence(min(frames, chunk) * self._audio.channels)
        while frames:
            part = min(frames, chunk)
            self.write(zeros[: part * self._audio.frame_bytes], part)
            frames -= part

    def flush(self) -> int:
        """Header up to date, data on the disk; returns how many frames are safe."""
        if self._dirty:
            safe = self.frames
            if self._flac:
                safe = self._state_flac_length()
            else:
                self._command(_UPDATE_HEADER_NOW, 0)
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
                kept = self._close()
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

    def _close(self) -> int:
        """Returns how many frames are in the file then."""
        if self.appends:
            self._file.close()
            return self.frames
        if self.failed and not self._flac:
            end = wav_data(self._descriptor)[0] + self.frames * self._frame_bytes
            if end < os.fstat(self._descriptor).st_size:
                os.ftruncate(self._descriptor, end)
        try:
            self._file.close()
        except RuntimeError:
            self.failed = True
        if self._flac:
            return self._state_flac_length()
        if self.failed:
            repair_wav(self._descriptor)
        at, align, _ = wav_data(self._descriptor)
        return min(self.frames, (os.fstat(self._descriptor).st_size - at) // align)

    def probe(self) -> None:
        """Raises OSError where the file can take no more."""
        if self._file_end.error is not None:
            raise self._file_end.error
        end = os.fstat(self._descriptor).st_size
        os.pwrite(self._descriptor, bytes(4096), end)
        os.ftruncate(self._descriptor, end)

    def _command(self, command: int, size: int) -> None:
        import soundfile

        # python-soundfile has no public way to these commands of libsndfile.
        soundfile._snd.sf_command(self._file._file, command, soundfile._ffi.NULL, size)

    def _state_flac_length(self) -> int:
        """Writes the number of complete frames into STREAMINFO, which libFLAC does only at the end,
        and not after an error; returns it.

        Readers that want a length (libsndfile) can read the file then; the 36-bit field ends at
        byte 26. The encoder holds back the last, incomplete block.
        """
        head = os.pread(self._descriptor, 26, 0)
        if len(head) < 26:
            return 0
        field = int.from_bytes(head[21:26], "big")
        if field & FLAC_LENGTH == self.frames:
            return self.frames
        block_frames = int.from_bytes(head[8:10], "big")
        whole = max(0, self.frames - 1) // block_frames * block_frames
        os.pwrite(self._descriptor, (field & ~FLAC_LENGTH | whole).to_bytes(5, "big"), 21)
        return whole


def subtype(sample: SampleFormat, container: str) -> str:
    """How libsndfile calls what holds these samples without loss."""
    if sample.alsa_name.startswith("FLOAT"):
        return "FLOAT"
    if sample.bits == 8:
        return "PCM_S8" if container == "flac" else "PCM_U8"
    return {16: "PCM_16", 20: "PCM_24", 24: "PCM_24", 32: "PCM_32"}[sample.bits]


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
            field = int.from_bytes(os.pread(descriptor, 5, 21), "big")
            length = (field & ~FLAC_LENGTH | frames).to_bytes(5, "big")
            os.pwrite(descriptor, length + bytes(16), 21)  # and no MD5 of the sound
        else:
            with contextlib.suppress(struct.error, ZeroDivisionError):
                repair_wav(descriptor)
        disk.sync_file(descriptor)


def wav_data(descriptor: int) -> tuple[int, int, int]:
    """Where the sound of a WAV begins, bytes per frame, and where an RF64 keeps its sizes. Raises
    struct.error where there is none.
    """
    head = os.pread(descriptor, 4096, 0)
    at, align, ds64 = 12, 0, 0
    while head[at : at + 4] != b"data":
        kind, size = struct.unpack_from("<4sI", head, at)
        if kind == b"fmt ":
            align = struct.unpack_from("<H", head, at + 20)[0]
        elif kind == b"ds64":
            ds64 = at + 8
        at += 8 + size + size % 2
    return at + 8, align, ds64


def repair_wav(descriptor: int) -> None:
    """Makes the sizes in the header cover all that is in the file (whole frames)."""
    length = os.fstat(descriptor).st_size
    at, align, ds64 = wav_data(descriptor)
    data_bytes = (length - at) // align * align
    riff_bytes = at - 8 + data_bytes
    if os.pread(descriptor, 4, 0) == b"RF64":
        sizes = struct.pack("<QQQ", riff_bytes, data_bytes, data_bytes // align)
        os.pwrite(descriptor, sizes, ds64)
    else:
        os.pwrite(descriptor, struct.pack("<I", min(riff_bytes, 2**32 - 1)), 4)
        os.pwrite(descriptor, struct.pack("<I", min(data_bytes, 2**32 - 1)), at - 4)
