"""One WAV: written, cut off, and its sizes put right after a crash.

A header keeps room for the sizes of RF64 where the file may pass 4 GiB (EBU Tech 3306: a JUNK chunk
that becomes ds64); it is an ordinary WAV until then. Written here and not by libsndfile: samples go
to the file as they were captured, in one call of the system, whose error is the reason that is
told; and the usual recording does without that library's memory.

Thread: the recording's.
"""

import contextlib
import os
import struct

from capstand.audio import wav
from capstand.audio.block import AudioFormat


class WavFile:
    """A new file behind ``descriptor``, which stays open; ``large`` may pass 4 GiB. In one that
    ``appends`` nothing can be written anew: its length stays open, "to the end of the file".
    """

    def __init__(
        self, descriptor: int, audio: AudioFormat, *, large: bool = False, appends: bool = False
    ) -> None:
        self.frames = 0
        self._sample = audio.sample
        self._audio = wav.in_wav(audio)
        self.frame_bytes = self._audio.frame_bytes
        self._descriptor = descriptor
        self._large = large and not appends
        self._appends = appends
        head = self._header()
        self._begin = self._end = len(head)
        _write_all(descriptor, head)

    @property
    def found(self) -> int:
        """Frames that whoever recovers the file finds."""
        return self.frames

    def write(self, samples: bytes, frames: int) -> None:
        """Raises OSError; the file ends with the write before then."""
        if self._sample is not self._audio.sample:
            from capstand.dsp.convert import convert  # brings numpy

            samples = convert(samples, self._sample, self._audio.sample)
        try:
            _write_all(self._descriptor, samples)
        except BaseException:
            self._cut()
            raise
        self._end += len(samples)
        self.frames += frames

    def flush(self) -> int:
        """Brings the header up to date; all frames are safe once the file is synced."""
        if not self._appends:
            os.pwrite(self._descriptor, self._header(), 0)
        return self.frames

    def close(self) -> int:
        """Returns how many frames are in the file, which somebody else may have cut off."""
        if self._appends:
            return self.frames
        self._cut()
        self.flush()
        data_bytes = self._end - self._begin
        if data_bytes % 2:
            _write_all(self._descriptor, b"\0")
        held = os.fstat(self._descriptor).st_size - self._begin
        return min(self.frames, max(0, held) // self.frame_bytes)

    def _cut(self) -> None:
        """What a write that failed has left behind."""
        if not self._appends:
            with contextlib.suppress(OSError):
                if os.fstat(self._descriptor).st_size > self._end:
                    os.ftruncate(self._descriptor, self._end)
                os.lseek(self._descriptor, self._end, os.SEEK_SET)

    def _header(self) -> bytes:
        return wav.header(self._audio, None if self._appends else self.frames, large=self._large)


def wav_data(descriptor: int) -> tuple[int, int, int]:
    """Where the sound of a WAV begins, bytes per frame, and where an RF64 keeps its sizes or has
    room for them (0: nowhere). Raises struct.error where there is none.
    """
    head = os.pread(descriptor, 4096, 0)
    at, align, ds64 = 12, 0, 0
    while head[at : at + 4] != b"data":
        kind, size = struct.unpack_from("<4sI", head, at)
        if kind == b"fmt ":
            align = struct.unpack_from("<H", head, at + 20)[0]
        elif kind in (b"ds64", b"JUNK") and at == 12 and size >= wav.DS64_BYTES:
            ds64 = at + 8
        at += 8 + size + size % 2
    return at + 8, align, ds64


def repair_wav(descriptor: int) -> None:
    """Makes the sizes in the header cover all that is in the file (whole frames)."""
    length = os.fstat(descriptor).st_size
    at, align, ds64 = wav_data(descriptor)
    frames = (length - at) // align
    data_bytes = frames * align
    riff_bytes = at - 8 + data_bytes
    if ds64 and (riff_bytes > wav.MOST or os.pread(descriptor, 4, 0) == b"RF64"):
        os.pwrite(descriptor, b"\xff" * 4, at - 4)
        os.pwrite(descriptor, struct.pack("<QQQ", riff_bytes, data_bytes, frames), ds64)
        os.pwrite(descriptor, b"ds64", ds64 - 8)
        os.pwrite(descriptor, b"RF64" + b"\xff" * 4, 0)
    else:
        os.pwrite(descriptor, struct.pack("<I", min(riff_bytes, wav.MOST)), 4)
        os.pwrite(descriptor, struct.pack("<I", min(data_bytes, wav.MOST)), at - 4)


def _write_all(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])
