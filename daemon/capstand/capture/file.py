"""A sound file as a source: once or again and again, paced by CLOCK_MONOTONIC.

Nothing of a file is lost because its reader was late: then what is due comes at once, up to the
stream's buffer. Beyond that, as after a suspend, the file goes on where it was, and the time in
between is a gap.

Thread: capture; ``wake`` is for any.
"""

import numpy as np
import soundfile

from capstand.accounting.stats import Cause
from capstand.audio.block import NS_PER_S
from capstand.capture.pick import Pick
from capstand.capture.source import UNKNOWN, NegotiatedParams, Reading
from capstand.capture.time import MonotonicTime, Time
from capstand.capture.types.file import FileConfig
from capstand.config.schema import CaptureConfig
from capstand.dsp.convert import from_int32
from capstand.errors import DeviceError


class FileSource:
    """A source as ``capture`` asks for it."""

    batch_ms = 0
    wary = False

    def __init__(self, capture: CaptureConfig, clock: Time | None = None) -> None:
        setup: FileConfig = capture.source
        self._capture = capture
        self._setup = setup
        self.name = f"file:{setup.path}"
        self._audio = capture.audio._replace(channels=capture.least_channels)
        self._pick = Pick.of(capture, self._audio.channels)
        self._time: Time = clock or MonotonicTime()
        self._reading = Reading()
        self._reading.edge = True
        self._file: soundfile.SoundFile | None = None
        self._position = 0  # where in the file the next frame is
        self._played = 0
        self._over = False
        self._began_ns = 0  # when the frame ``_counted`` of 0 was due
        self._counted = 0
        self._stood = False
        self._stopping = False

    def open(self) -> NegotiatedParams:
        if self._over:
            raise self._end()
        if self._file is None:
            self._file = self._open()
        self._begin(self._time.now_ns())
        capture = self._capture
        return NegotiatedParams(
            self.name, capture.audio, capture.period_frames, capture.buffer_frames, exact=True
        )

    def _open(self) -> soundfile.SoundFile:
        path, audio = self._setup.path, self._audio
        try:
            file = soundfile.SoundFile(path)
        except (soundfile.SoundFileError, OSError) as error:
            raise DeviceError(
                f"{self.name}: cannot be read as a sound file: {error}", refused=True
            ) from None
        fault = None
        if (file.samplerate, file.channels) != (audio.rate_hz, audio.channels):
            fault = (
                f"has {file.samplerate} Hz and {file.channels} channels, the stream takes "
                f"{audio.rate_hz} Hz and {audio.channels}; set rate_hz and channels to the file's"
            )
        elif not file.frames:
            fault = "holds no sound"
        elif not file.seekable():
            fault = "is not a regular file; for a FIFO use the type pipe"
        if fault:
            file.close()
            raise DeviceError(f"{self.name}: {fault}", refused=True)
        file.seek(min(self._position, file.frames))
        return file

    def _begin(self, now_ns: int) -> None:
        self._began_ns, self._counted = now_ns, 0

    def _due_ns(self, frames: int) -> int:
        return self._began_ns + -(-(self._counted + frames) * NS_PER_S // self._audio.rate_hz)

    def read(self, slot: memoryview, timeout_ms: int) -> Reading:
        reading, clock = self._reading, self._time
        reading.frames = reading.lost = 0
        period, rate_hz = self._capture.period_frames, self._audio.rate_hz
        now_ns = clock.now_ns()
        until_ns = now_ns + timeout_ms * 1_000_000
        while (due_ns := self._due_ns(period)) > now_ns:
            if self._stopping or now_ns >= until_ns:
                return reading
            clock.wait_until(min(due_ns, until_ns))
            now_ns = clock.now_ns()
        late = (now_ns - due_ns) * rate_hz // NS_PER_S
        if late > self._capture.buffer_frames:
            self._begin(now_ns - period * NS_PER_S // rate_hz)
            reading.lost, reading.cause, late = UNKNOWN, Cause.OVERRUN, 0
        if self._stood:
            reading.lost, reading.cause, self._stood = UNKNOWN, Cause.STALLED, False
        samples = self._samples(period)
        frames = len(samples) // self._audio.frame_bytes
        if not frames:
            self._over = True
            raise self._end()
        if self._pick is None:
            slot[: len(samples)] = samples
        else:
            self._pick.put(slot, samples)
        self._counted += frames
        self._played += frames
        reading.frames, reading.avail = frames, frames + late
        reading.stamp_ns = self._due_ns(late)
        return reading

    def _samples(self, wanted: int) -> bytes:
        """The next frames of the file, fewer only at its end for good."""
        assert self._file is not None
        parts, missing = [], wanted
        while missing:
            try:
                part = self._file.read(missing, dtype="int32", always_2d=True)
                if not len(part) and (not self._setup.repeat or self._position == 0):
                    break
                self._position += len(part)
                if len(part) < missing and self._setup.repeat:
                    self._file.seek(0)
                    self._position = 0
            except (soundfile.SoundFileError, OSError) as error:
                raise DeviceError(f"{self.name}: cannot be read on: {error}") from None
            parts.append(part)
            missing -= len(part)
        return from_int32(np.concatenate(parts).reshape(-1), self._audio.sample) if parts else b""

    def _end(self) -> DeviceError:
        return DeviceError(
            f"{self.name}: was played to its end, {self._played} frames; repeat = true in "
            "[stream.capture.file] plays it again and again"
        )

    def restart(self) -> None:
        self._stood = True

    def advice(self) -> str:
        return "look after the disk that the file is on"

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def wake(self) -> None:
        self._stopping = True
        self._time.wake()
