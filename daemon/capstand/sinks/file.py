"""Recordings: WAV (RF64 where a segment can pass 4 GiB) or FLAC segments in a directory.

Once a second what was written is made safe, so a segment can be read up to the last second after
``kill -9`` or a power cut; the next start finds it and gives it its name. How a segment is written
is in ``segment.py``.

Gaps are filled with silence, so that the file's time stays true, or left out. A gap of more than
``LONG_GAP_S`` starts a new segment instead, whose name says its own time, and so does a wall clock
that has been set by as much since the segment began (or a machine that was suspended). The name
carries the time (UTC) at which its first frame was sampled: ``mic-20261122T031500.250Z.wav``.

Thread: the outlet's, behind a spool the forwarder's; libsndfile and numpy are loaded in it, so that
they do not hold up the start of capture.
"""

import json
import os
import re
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from capstand.block import NS_PER_S, AudioFormat, Block
from capstand.config import FileSink
from capstand.errors import SinkError
from capstand.sinks.disk import advice
from capstand.sinks.segment import Segment, cut, recover
from capstand.sinks.sink import Mark, Sink

LONG_GAP_S = 60.0
RESUME_MB = 16
"""So much more than the reserve must be free before recording goes on, or it would flutter."""
MB = 1_000_000
WAV_LIMIT = 2**32 - 2**20
STAMP = r"\d{8}T\d{6}\.\d{3}Z"
"""A name must match as a whole: the segments of stream mic-2 are not those of stream mic."""


class Recording(Sink):
    """Writes one stream's blocks into segments as ``setup`` says."""

    detail = "no segment yet"
    on_disk = True

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
        self._segment: Segment | None = None
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
                    recover(part)
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

    def _prepare(self, block: Block) -> Segment:
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

    def _write(self, block: Block, segment: Segment) -> None:
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

    def _note(self, segment: Segment, safe: int) -> None:
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
                    cut(file, frames, size)
                    break
        except OSError as error:
            raise self._failure(error) from None

    def _begin(self, block: Block) -> Segment:
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
        self._segment = Segment(path, part, self._audio, largest > WAV_LIMIT)
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
