"""The inside of ``capstand tap``: a reader of a stream's ring, in a process of its own.

    ring ═ Reader ─ Tap (silence where some is missing) ─ a form (WAV, FLAC, as it is) ═ stdout

The daemon hands over the ring, open for reading only, and keeps nothing of it: the ring is looked
at every ``POLL_MS``, without an eventfd, so that its writer never learns how many taps there are
and how fast. Where nothing new has come for ``QUIET_NS`` the daemon is asked again: the stream may
be in a gap, may have another ring since a reload, or may be gone. In a long gap silence is written
while it lasts, so that who listens in real time is not flooded with it afterwards.

What the daemon handed over is checked before it is believed. Thread: main.
"""

import io
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from capstand.audio import ring, wav
from capstand.audio.block import NS_PER_S, AudioFormat, Block, SampleFormat
from capstand.audio.ring import Reader
from capstand.cli.places import understood
from capstand.errors import CapstandError
from capstand.host import console, control
from capstand.text import clean

POLL_MS = 30
QUIET_NS = 2 * NS_PER_S
SLOW = 0.001
"""By how much less than time goes a long gap is filled while it lasts: clocks differ, and there
must not be more silence than gap."""
TELL_NS = NS_PER_S
PIECE_FRAMES = 4096
"""Of silence at once."""
MOST_HZ = 10_000_000
FLAC_BITS, FLAC_CHANNELS = 24, 8
NONSENSE = "the stream's memory makes no sense; restart the daemon if it was upgraded"


class Missing(NamedTuple):
    """Frames: those that were captured, and written over before they were read here; and those of
    the stream's gaps."""

    missed: int = 0
    lost: int = 0


class Tap:
    """What goes out of one ring: its blocks from now on and, where ``fill`` is wanted, silence
    where frames are missing. One that goes on where another ring ended is given when that one's
    next frame was ``due_ns``, and what is missing is counted by time. Raises ValueError for what is
    no ring of ``audio``; ``descriptor`` may be closed then."""

    def __init__(
        self, audio: AudioFormat, descriptor: int, fill: bool, due_ns: int | None = None
    ) -> None:
        slots = ring.check(descriptor, audio.frame_bytes)
        self.audio = audio
        self.identity = _identity(descriptor)
        self.missing = Missing()
        self.due_ns = due_ns
        self._reader = Reader(descriptor, audio, keep=slots // 2)
        self._fill = fill
        self._missed = 0  # of the reader, at the last block
        self._next_frame: int | None = None
        self._filled = 0  # frames of silence since the last block

    def sound(self) -> Iterator[bytes]:
        """All that is there, in pieces. Raises CapstandError for what cannot be."""
        for block in self._reader.blocks():
            silent = self._before(block) - self._filled
            self._filled = 0
            if self._fill:
                yield from self._silence(silent)
            yield block.samples

    def overdue(self, now_ns: int) -> Iterator[bytes]:
        """Silence for what should have come long ago."""
        if self.due_ns is None or not self._fill:
            return
        late_s = (now_ns - self.due_ns - QUIET_NS) / NS_PER_S
        frames = int(late_s * (1 - SLOW) * self.audio.rate_hz) - self._filled
        self._filled += max(0, frames)
        yield from self._silence(frames)

    def close(self) -> None:
        self._reader.close()

    def _before(self, block: Block) -> int:
        """How many frames are missing before a block; they are counted."""
        audio, reader = self.audio, self._reader
        frames, first = block.frames, self._next_frame is None
        if first:
            late_ns = 0 if self.due_ns is None else block.captured_at_ns - self.due_ns
            missing, missed = max(0, late_ns * audio.rate_hz // NS_PER_S), 0
        else:
            missing = block.first_frame - (self._next_frame or 0)
            missed = reader.missed - self._missed
        whole = frames > 0 and len(block.samples) == frames * audio.frame_bytes
        if not whole or not 0 <= missed <= missing:
            raise CapstandError(NONSENSE)
        self._missed = reader.missed
        self.missing = Missing(self.missing.missed + missed, self.missing.lost + missing - missed)
        self._next_frame = block.end_frame
        self.due_ns = block.captured_at_ns + frames * NS_PER_S // audio.rate_hz
        return missing

    def _silence(self, frames: int) -> Iterator[bytes]:
        while frames > 0:
            piece = min(frames, PIECE_FRAMES)
            yield self.audio.sample.silence(piece * self.audio.channels)
            frames -= piece


class Form(Protocol):
    """How sound is written."""

    begin: bytes

    def pack(self, samples: bytes) -> bytes: ...
    def end(self) -> bytes: ...


class Raw:
    begin = b""

    def __init__(self, audio: AudioFormat) -> None:
        console.print_error(f"capstand: raw samples: {audio}")

    def pack(self, samples: bytes) -> bytes:
        return samples

    def end(self) -> bytes:
        return b""


class Wav:
    def __init__(self, audio: AudioFormat) -> None:
        framed = wav.in_wav(audio)
        self.begin = wav.header(framed)
        self._from, self._to = audio.sample, framed.sample

    def pack(self, samples: bytes) -> bytes:
        if self._from is self._to:
            return samples
        from capstand.dsp.convert import convert  # brings numpy

        return convert(samples, self._from, self._to)

    def end(self) -> bytes:
        return b""


class Flac:
    """By libsndfile, which writes into memory: what it would change at the head in the end, the
    length, stays unknown, as is usual in a pipe."""

    begin = b""

    def __init__(self, audio: AudioFormat) -> None:
        sample = audio.sample
        if sample is SampleFormat.FLOAT_LE or sample.bits > FLAC_BITS:
            raise CapstandError(
                f"a FLAC holds {FLAC_BITS} bits at most, and the stream is {sample.alsa_name}; "
                "take --wav"
            )
        if audio.channels > FLAC_CHANNELS:
            raise CapstandError(
                f"a FLAC holds {FLAC_CHANNELS} channels at most, and the stream has "
                f"{audio.channels}; take --wav"
            )
        import soundfile

        self._sample = sample
        self._taken = _Taken()
        subtype = "PCM_24" if sample.bits > 16 else "PCM_16"
        self._file = soundfile.SoundFile(
            self._taken, "w", audio.rate_hz, audio.channels, subtype, format="FLAC"
        )

    def pack(self, samples: bytes) -> bytes:
        from capstand.dsp.convert import to_int32

        self._file.buffer_write(to_int32(samples, self._sample).tobytes(), "int32")
        return self._taken.fresh()

    def end(self) -> bytes:
        self._file.close()
        return self._taken.fresh()


class _Taken(io.RawIOBase):
    """What python-soundfile asks of a file; bytes only ever go to the end of it."""

    def __init__(self) -> None:
        self._at = self._end = 0
        self._fresh = bytearray()

    def fresh(self) -> bytes:
        """What was written since the last time."""
        fresh, self._fresh = bytes(self._fresh), bytearray()
        return fresh

    def write(self, data: object) -> int:
        raw = bytes(data)  # type: ignore[call-overload]
        more = raw[max(0, self._end - self._at) :]
        self._fresh += more
        self._at += len(raw)
        self._end = max(self._end, self._at)
        return len(raw)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, _: int = -1) -> bytes:
        return b""


FORMS: dict[str, type[Raw] | type[Wav] | type[Flac]] = {"raw": Raw, "wav": Wav, "flac": Flac}


class Tapping:
    """The stream ``name`` of the daemon at ``path``, "captured" or "processed" (None: as its sinks
    get it), written to ``out`` until that is closed. Raises CapstandError where it cannot be had.
    """

    def __init__(
        self, path: Path, name: str, form: str, fill: bool, out: int, input_: str | None = None
    ) -> None:
        self._path, self._name, self._input = path, name, input_
        self._fill = fill
        audio, descriptor = self._ask()
        with understood(path):
            self._tap = self._opened(audio, descriptor)
        self._form: Form = FORMS[form](audio)
        self._out = out
        self._earlier = Missing()  # with other rings
        self._told, self._told_ns = Missing(), 0
        self._quiet = False

    def run(self, seconds: float | None) -> None:
        """Until that much is written. Raises CapstandError when the stream ends, BrokenPipeError
        when the reader has gone."""
        self._write(self._form.begin)
        left = None if seconds is None else round(seconds * self._tap.audio.rate_hz)
        heard_ns = time.monotonic_ns()
        while left is None or left > 0:
            for piece in self._tap.sound():
                heard_ns, self._quiet = time.monotonic_ns(), False
                left = self._give(piece, left)
            now_ns = time.monotonic_ns()
            if now_ns - heard_ns >= QUIET_NS:
                heard_ns = now_ns
                self._look_again()
            for piece in self._tap.overdue(now_ns):
                left = self._give(piece, left)
            self._tell(now_ns)
            self._wait()

    def finish(self) -> None:
        """The end of what is written, and of what is to be told."""
        self._tell(self._told_ns + TELL_NS)
        missed, lost = self._told
        if missed or lost:
            console.print_error(
                f"capstand: {self._name}: in all {missed} frames missed, {lost} lost"
            )
        self._write(self._form.end())

    def _ask(self) -> tuple[AudioFormat, int]:
        answer, descriptor = control.ask_for_descriptor(
            self._path, "tap", stream=self._name, input=self._input
        )
        try:
            with understood(self._path):
                rate_hz, channels = answer["rate_hz"], answer["channels"]
                if not type(rate_hz) is type(channels) is int:
                    raise TypeError(f"{rate_hz} Hz, {channels} channels")
                if not (0 < rate_hz <= MOST_HZ and channels > 0):
                    raise ValueError(f"{rate_hz} Hz, {channels} channels")
                return AudioFormat(rate_hz, channels, SampleFormat[answer["format"]]), descriptor
        except CapstandError:
            os.close(descriptor)
            raise

    def _opened(self, audio: AudioFormat, descriptor: int, due_ns: int | None = None) -> Tap:
        try:
            return Tap(audio, descriptor, self._fill, due_ns)
        finally:
            os.close(descriptor)

    def _look_again(self) -> None:
        """Nothing has come for a while: the same stream, another one, or none?"""
        tap = self._tap
        try:
            audio, descriptor = self._ask()
        except CapstandError as error:
            raise CapstandError(f"{self._name} has ended: {error}") from None
        if _identity(descriptor) == tap.identity:
            os.close(descriptor)
            if not self._quiet:
                self._quiet = True
                self._say("no sound comes; waiting for it (`capstand status` says why)")
        elif audio != tap.audio:
            os.close(descriptor)
            raise CapstandError(
                f"{self._name} has ended: since a reload it is {audio}, and it was {tap.audio}"
            )
        else:
            with understood(self._path):
                self._tap = self._opened(audio, descriptor, tap.due_ns)
            tap.close()
            self._earlier = self._all_missing(tap)
            self._say("the stream was started anew; going on with it")

    def _give(self, piece: bytes, left: int | None) -> int | None:
        """Writes as much of it as is wanted; returns how many frames still are."""
        if left is not None:
            frame_bytes = self._tap.audio.frame_bytes
            piece = piece[: left * frame_bytes]
            left -= len(piece) // frame_bytes
        if piece:
            self._write(self._form.pack(piece))
        return left

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._out, rest) :]
            except BlockingIOError:  # whoever shares it with us may have made it so
                select.select([], [self._out], [])

    def _wait(self) -> None:
        """A while; raises BrokenPipeError once the reader has gone."""
        poll = select.poll()
        poll.register(self._out, 0)
        if poll.poll(POLL_MS):
            raise BrokenPipeError

    def _all_missing(self, tap: Tap) -> Missing:
        return Missing(*map(sum, zip(self._earlier, tap.missing, strict=True)))

    def _tell(self, now_ns: int) -> None:
        """What is missing since the last time, but not too often."""
        now = self._all_missing(self._tap)
        if now == self._told or now_ns - self._told_ns < TELL_NS:
            return
        missed, lost = now.missed - self._told.missed, now.lost - self._told.lost
        rate_hz = self._tap.audio.rate_hz
        if missed:
            self._say(
                f"{missed} frames missed ({missed / rate_hz:.3g} s): stdout was not read in time"
            )
        if lost:
            self._say(f"{lost} frames lost ({lost / rate_hz:.3g} s): a gap of the stream")
        self._told, self._told_ns = now, now_ns

    def _say(self, words: str) -> None:
        console.print_error(f"capstand: {clean.line(self._name)}: {words}")


def _identity(descriptor: int) -> tuple[int, int]:
    """Of a memory, whatever descriptor it has."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
