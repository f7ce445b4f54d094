"""Recordings: WAV (RF64 where a segment can pass 4 GiB) or FLAC segments in a directory.

A segment is written as ``NAME.part`` and gets its name when it is whole. Once a second what was
written is made safe: the header is brought up to date and the data synced, so a segment can be read
up to the last second after ``kill -9`` or a power cut; the next start finds it and gives it its
name. libsndfile writes the formats.

Gaps are filled with silence, so that the file's time stays true, or left out. A gap of more than
``LONG_GAP_S`` starts a new segment instead, whose name says its own time, and so does a wall clock
that has been set by as much since the segment began (or a machine that was suspended). The name
carries the time (UTC) at which its first frame was sampled: ``mic-20261122T031500.250Z.wav``.

Thread: the outlet's, behind a spool the forwarder's; libsndfile and numpy are loaded in it, so that
they do not hold up the start of capture.
"""

import contextlib
import json
import os
import re
import struct
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from capstand.block import NS_PER_S, AudioFormat, Block, SampleFormat
from capstand.config import FileSink
from capstand.errors import SinkError
from capstand.sinks.disk import advice
from capstand.sinks.sink import Mark, Sink

LONG_GAP_S = 60.0
RESUME_MB = 16
"""So much more than the reserve must be free before recording goes on, or it would flutter."""
MB = 1_000_000
WAV_LIMIT = 2**32 - 2**20
STAMP = r"\d{8}T\d{6}\.\d{3}Z"
"""A name must match as a whole: the segments of stream mic-2 are not those of stream mic."""
HEADER_BYTES = 112
"""The longest header of a segment without sound (RF64); that of WAV is 44, of FLAC 86."""
FLAC_LENGTH = 2**36 - 1
_UPDATE_HEADER_NOW, _RF64_AUTO_DOWNGRADE = 0x1060, 0x1210
_SUBTYPES = {16: "PCM_16", 24: "PCM_24", 32: "PCM_32"}


class Recording(Sink):
    """Writes one stream's blocks into segments as ``setup`` says."""

    detail = "no segment yet"

    def __init__(
        self,
        stream: str,
        setup: FileSink,
        audio: AudioFormat,
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.segments = 0
        self._stream = stream
        self._setup = setup
        self._audio = audio
        self._folder = Path(setup.path)
        self._now_ns = now_ns
        self._wall_ns = wall_ns
        self._limit = round(setup.segment_s * audio.rate_hz)
        self._segment: _Segment | None = None
        self._next_frame = 0
        self._written_ns = 0
        self._wall_ahead_ns = 0  # wall time minus monotonic time when the segment began
        self._given = 0  # frames of blocks since open
        self._unsafe: deque[tuple[int, int]] = deque()  # blocks: end in the segment, frames
        self._mark = Mark(0, "")

    def open(self) -> None:
        self._given = 0
        self._unsafe.clear()
        self._mark = Mark(0, "")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for part in sorted(self._folder.glob(f"{self._stream}-*.part")):
                if re.fullmatch(rf"{self._stream}-{STAMP}(-\d+)?\.(wav|flac)\.part", part.name):
                    _recover(part)
        except OSError as error:
            raise self._failure(error) from None
        self._guard(self._setup.min_free_mb + RESUME_MB)

    def prepare(self, block: Block) -> None:
        try:
            self._prepare(block)
        except (OSError, RuntimeError, AssertionError) as error:
            raise self._failure(self._cause(error)) from None

    def _cause(self, error: Exception) -> Exception:
        """libsndfile only says that the system failed; a write by hand says why."""
        if self._segment is not None and not isinstance(error, OSError):
            try:
                self._segment.probe()
            except OSError as plain:
                return plain
        return error

    def write(self, block: Block) -> None:
        try:
            self._write(block, self._prepare(block))
        except (OSError, RuntimeError, AssertionError) as error:
            raise self._failure(self._cause(error)) from None

    def _prepare(self, block: Block) -> "_Segment":
        segment = self._segment
        if segment is not None:
            gap = block.first_frame - self._next_frame
            stepped_ns = self._wall_ns() - self._now_ns() - self._wall_ahead_ns
            stepped = abs(stepped_ns) > LONG_GAP_S * NS_PER_S
            if stepped or not 0 <= gap <= LONG_GAP_S * self._audio.rate_hz:
                self._finish()
                segment = None
            elif gap and self._setup.gaps == "silence":
                segment.silence(gap)
        self._next_frame = block.first_frame
        return segment or self._begin(block)

    def _write(self, block: Block, segment: "_Segment") -> None:
        segment.write(block.samples, block.frames)
        self._next_frame = block.first_frame + block.frames
        self._written_ns = self._now_ns()
        self._given += block.frames
        self._unsafe.append((segment.frames, block.frames))
        if segment.frames >= self._limit:
            self._finish()

    def flush(self) -> None:
        if self._segment is None:
            return
        try:
            self._note(self._segment, self._segment.flush())
            self.detail = str(self._segment)
            if self._now_ns() - self._written_ns > LONG_GAP_S * NS_PER_S:
                self._finish()
        except (OSError, RuntimeError) as error:
            raise self._failure(error) from None
        self._guard(self._setup.min_free_mb)

    def close(self) -> None:
        try:
            self._finish()
        except (OSError, RuntimeError) as error:
            raise self._failure(error) from None

    def mark(self) -> Mark:
        return self._mark

    def _note(self, segment: "_Segment", safe: int) -> None:
        """So many of a segment's frames are safe; a FLAC may end in the middle of a block."""
        while self._unsafe and self._unsafe[0][0] <= safe:
            self._unsafe.popleft()
        held = sum(min(frames, end - safe) for end, frames in self._unsafe)
        self._mark = Mark(self._given - held, segment.place(safe))

    def rewind(self, place: str) -> None:
        """Cuts the segment that was being written then off where it was safe."""
        if not place:
            return
        name, frames, size = json.loads(place)
        path = self._folder / name
        part = path.with_name(name + ".part")
        try:
            for file in (part, path):
                if file.exists():
                    _cut(file, frames, size)
                    break
        except OSError as error:
            raise self._failure(error) from None

    def _begin(self, block: Block) -> "_Segment":
        self._wall_ahead_ns = self._wall_ns() - self._now_ns()
        age_ns = self._now_ns() - block.captured_at_ns
        started = datetime.fromtimestamp((self._wall_ns() - age_ns) / NS_PER_S, UTC)
        stamp = started.strftime("%Y%m%dT%H%M%S.") + f"{started.microsecond // 1000:03}Z"
        name = f"{self._stream}-{stamp}"
        number = 1
        while True:
            tail = f"-{number}" if number > 1 else ""
            path = self._folder / f"{name}{tail}.{self._setup.container}"
            part = path.with_name(path.name + ".part")
            if not path.exists() and not part.exists():
                break
            number += 1
        beyond = (LONG_GAP_S + 2) * self._audio.rate_hz  # a gap and a period past the limit
        largest = (self._limit + beyond) * self._audio.frame_bytes
        self._segment = _Segment(path, part, self._audio, largest > WAV_LIMIT)
        self.segments += 1
        self.detail = str(self._segment)
        self._note(self._segment, 0)
        return self._segment

    def _finish(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            self.detail = str(segment)
            segment.finish()
            self._unsafe.clear()
            self._mark = Mark(self._given, "")

    def _guard(self, wanted_mb: int) -> None:
        """Raises SinkError when the disk has less than that free."""
        try:
            disk = os.statvfs(self._folder)
        except OSError as error:
            raise self._failure(error) from None
        free_mb = disk.f_bavail * disk.f_frsize // MB
        if free_mb < wanted_mb:
            raise SinkError(
                f"{self._folder}: {free_mb} MB free; recording waits until {wanted_mb} MB are "
                f"(min_free_mb is {self._setup.min_free_mb}); delete something"
            )

    def _failure(self, error: Exception) -> SinkError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return SinkError(
            f"{self._folder}: {reason or 'the disk took only a part'}; recording waits; "
            f"{advice(error)}"
        )


class _Segment:
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
        _sync_folder(self.path.parent)

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


def _recover(part: Path) -> None:
    """Gives a segment that an earlier run left behind its name; one without sound is removed."""
    if part.stat().st_size <= HEADER_BYTES:
        part.unlink()
        return
    if part.name.endswith(".wav.part"):
        with part.open("r+b") as file, contextlib.suppress(struct.error, ZeroDivisionError):
            _repair_wav(file.fileno())
    path = part.with_name(part.name.removesuffix(".part"))
    if path.exists():
        path = path.with_name(f"{path.stem}-recovered{path.suffix}")
    part.rename(path)
    _sync_folder(path.parent)


def _cut(file: Path, frames: int, size: int) -> None:
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
                _repair_wav(descriptor)
        os.fsync(descriptor)


def _repair_wav(descriptor: int) -> None:
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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
