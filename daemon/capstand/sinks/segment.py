"""One file of a recording, by libsndfile: WAV, RF64 where it can pass 4 GiB, or FLAC.

It is written as ``NAME.part`` and gets its name when it is whole. A flush brings the header up to
date and syncs the data, so that what a crash leaves can be read; ``recover`` gives it its name, and
``cut`` takes back what is to come again.

Thread: the recording's.
"""

import contextlib
import json
import os
import struct
from pathlib import Path

from capstand.block import AudioFormat, SampleFormat
from capstand.sinks.disk import sync_folder

HEADER_BYTES = 112
"""The longest header of a segment without sound (RF64); that of WAV is 44, of FLAC 86."""
FLAC_LENGTH = 2**36 - 1
_UPDATE_HEADER_NOW, _RF64_AUTO_DOWNGRADE = 0x1060, 0x1210
_SUBTYPES = {16: "PCM_16", 24: "PCM_24", 32: "PCM_32"}


class Segment:
    """One file being written."""

    def __init__(self, path: Path, part: Path, audio: AudioFormat, large: bool) -> None:
        self.path = path
        self.frames = 0
        self._part = part
        self._audio = audio
        self._flac = path.suffix == ".flac"
        self._dirty = False
        self._safe = 0
        import soundfile

        self._descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            self._file = soundfile.SoundFile(
                self._descriptor,
                "w",
                samplerate=audio.rate_hz,
                channels=audio.channels,
                subtype=_SUBTYPES[audio.sample.bits],
                format="FLAC" if self._flac else "RF64" if large else "WAV",
                closefd=False,
            )
        except RuntimeError:
            os.close(self._descriptor)
            part.unlink()
            raise
        if large and not self._flac:
            self._command(_RF64_AUTO_DOWNGRADE, 1)

    def __str__(self) -> str:
        return f"{self.path.name}, {self.frames / self._audio.rate_hz:.0f} s"

    def write(self, samples: bytes, frames: int) -> None:
        match self._audio.sample:
            case SampleFormat.S16_LE:
                self._file.buffer_write(samples, "int16")
            case SampleFormat.S32_LE:
                self._file.buffer_write(samples, "int32")
            case packed:
                from capstand.dsp.convert import to_int32

                self._file.buffer_write(to_int32(samples, packed).tobytes(), "int32")
        self.frames += frames
        self._dirty = True

    def silence(self, frames: int) -> None:
        chunk = self._audio.rate_hz
        zeros = bytes(min(frames, chunk) * self._audio.frame_bytes)
        while frames:
            part = min(frames, chunk)
            self.write(zeros[: part * self._audio.frame_bytes], part)
            frames -= part

    def flush(self) -> int:
        """Header up to date, data on the disk; returns how many frames are safe."""
        if self._dirty:
            self._safe = self.frames
            if self._flac:
                self._safe = self._state_flac_length()
            else:
                self._command(_UPDATE_HEADER_NOW, 0)
            os.fdatasync(self._descriptor)
            self._dirty = False
        return self._safe

    def place(self, frames: int) -> str:
        """Where the segment is and how long, right after a flush or the beginning."""
        return json.dumps([self.path.name, frames, os.fstat(self._descriptor).st_size])

    def finish(self) -> None:
        """Closes the file and gives it its name; without sound, removes it."""
        kept = self.frames
        try:
            try:
                self._file.close()
            finally:
                if self._flac:
                    kept = self._state_flac_length()
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
        if kept:
            self._part.rename(self.path)
        else:
            self._part.unlink()
        sync_folder(self.path.parent)

    def probe(self) -> None:
        """Raises OSError where the file can take no more."""
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


def recover(part: Path) -> None:
    """Gives a segment that an earlier run left behind its name; one without sound is removed."""
    if part.stat().st_size <= HEADER_BYTES:
        part.unlink()
        return
    if part.name.endswith(".wav.part"):
        with part.open("r+b") as file, contextlib.suppress(struct.error, ZeroDivisionError):
            repair_wav(file.fileno())
    path = part.with_name(part.name.removesuffix(".part"))
    if path.exists():
        path = path.with_name(f"{path.stem}-recovered{path.suffix}")
    part.rename(path)
    sync_folder(path.parent)


def cut(file: Path, frames: int, size: int) -> None:
    """Cuts a segment off after so many frames, which end at that size; without sound, removes it.
    The next ``open`` gives it its name.
    """
    if frames == 0:
        file.unlink()
        return
    with file.open("r+b") as open_file:
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
        os.fsync(descriptor)


def repair_wav(descriptor: int) -> None:
    """Makes the sizes in the header cover all that is in the file (whole frames)."""
    length = os.fstat(descriptor).st_size
    head = os.pread(descriptor, 4096, 0)
    at, align, ds64 = 12, 0, 0
    while head[at : at + 4] != b"data":
        kind, size = struct.unpack_from("<4sI", head, at)
        if kind == b"fmt ":
            align = struct.unpack_from("<H", head, at + 20)[0]
        elif kind == b"ds64":
            ds64 = at + 8
        at += 8 + size + size % 2
    data_bytes = (length - at - 8) // align * align
    riff_bytes = at + data_bytes
    if head[:4] == b"RF64":
        sizes = struct.pack("<QQQ", riff_bytes, data_bytes, data_bytes // align)
        os.pwrite(descriptor, sizes, ds64)
    else:
        os.pwrite(descriptor, struct.pack("<I", min(riff_bytes, 2**32 - 1)), 4)
        os.pwrite(descriptor, struct.pack("<I", min(data_bytes, 2**32 - 1)), at + 4)
