"""``capstand push``: a program that brings the sound of a stream, as any other could.

It writes as fast as the daemon takes it, which holds it back to real time, and hears meanwhile how
much has become part of the stream. The daemon is asked for the socket and for the format.
"""

import argparse
import contextlib
import os
import re
import select
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capstand.cli import places
from capstand.cli.parsing import add_runtime, lined
from capstand.errors import CapstandError
from capstand.host import console
from capstand.text import clean

if TYPE_CHECKING:
    from capstand.audio.block import AudioFormat
    from capstand.cli.parsing import Commands

BLOCK_FRAMES = 4096
CHUNK_BYTES = 65_536
GREETING_S = 10.0
ANSWER_S = 30.0
"""So long the daemon may be silent after all was sent; it tells how far it is all the time."""
DRAW_S = 0.2
BAR_WIDTH = 24


def add(commands: "Commands") -> None:
    push = commands.add_parser(
        "push",
        help="bring the sound of a stream: a file, or what another program writes",
        formatter_class=lined,
        description="""\
Writes a sound file, or raw sound from stdin, into a stream whose device is "socket", in real time;
returns when all of it is part of the stream. One program at a time. For root, the daemon's own
user, and members of the groups audio and capstand.""",
        epilog="""\
The file must have the stream's rate and channels; raw sound also its format (interleaved frames).

examples:
  capstand push --stream mic file.wav
  ffmpeg -i talk.mp3 -f s16le -ar 48000 -ac 2 - | capstand push --stream mic --raw -
  arecord -t raw -f S16_LE -r 48000 -c 2 | capstand push --stream mic --raw --live -""",
    )
    push.add_argument("file", metavar="FILE", help="WAV, FLAC, …; with --raw also - for stdin")
    push.add_argument("--stream", metavar="STREAM", required=True, help="the stream's name")
    push.add_argument("--raw", action="store_true", help="the bytes are the samples, as they are")
    push.add_argument(
        "--live",
        action="store_true",
        help="with --raw: it comes in real time by itself, and its pace is the stream's clock",
    )
    add_runtime(push)
    push.set_defaults(act=act)


def act(chosen: argparse.Namespace) -> int:
    from capstand.audio.block import AudioFormat, SampleFormat
    from capstand.host import control

    if chosen.live and not chosen.raw:
        raise CapstandError("--live is for raw sound; add --raw, or leave it out")
    if chosen.file == "-" and not chosen.raw:
        raise CapstandError("from stdin comes raw sound only; add --raw")
    path = places.socket(chosen)
    answer = control.ask(path, "push", stream=chosen.stream)
    with places.understood(path):
        audio = AudioFormat(
            int(answer["rate_hz"]), int(answer["channels"]), SampleFormat[answer["format"]]
        )
        entrance, trouble = Path(answer["path"]), answer["trouble"]
    name = "stdin" if chosen.file == "-" else clean.line(chosen.file, 200)
    sound: _File | _Raw
    if chosen.raw:
        sound = _Raw(chosen.file, name, audio)
    else:
        sound = _File(chosen.file, name, chosen.stream, audio)
    with contextlib.closing(sound), _Link(entrance, chosen.stream, trouble) as link:
        taken = _bring(sound, link, audio, live=chosen.live)
    if sound.torn:
        raise CapstandError(
            f"{name} ends within a frame: {sound.torn} bytes were left out, {taken} frames taken; "
            f"is it {audio}?"
        )
    print(f"{chosen.stream}: {taken} frames taken ({taken / audio.rate_hz:.1f} s)")
    return 0


def _bring(sound: "_File | _Raw", link: "_Link", audio: "AudioFormat", *, live: bool) -> int:
    """Returns how many frames were taken, which are all. Raises CapstandError."""
    from capstand.capture import wire

    bar = _Bar(link.stream, sound.frames, audio.rate_hz)
    link.greet()
    link.send(wire.head(audio, live=live), bar)
    sent = 0
    for samples in sound.blocks(link, bar):
        frames = len(samples) // audio.frame_bytes
        link.send(wire.block(frames, sent) + samples, bar)
        sent += frames
    link.finish(bar)
    bar.clear()
    if link.taken != sent:
        raise CapstandError(f"{link.stream}: {link.taken} of {sent} frames were taken")
    return sent


class _File:
    """A sound file's frames."""

    torn = 0

    def __init__(self, file: str, name: str, stream: str, audio: "AudioFormat") -> None:
        import soundfile

        self._name, self._audio = name, audio
        try:
            with Path(file).open("rb"):  # its own words for what is missing are none
                self._file = soundfile.SoundFile(file)
        except OSError as error:
            raise CapstandError(f"{name}: {error.strerror}") from None
        except soundfile.SoundFileError as error:
            raise CapstandError(
                f"{name}: cannot be read as a sound file ({clean.line(error, 200)}); "
                "--raw sends bytes as they are"
            ) from None
        found = self._file.samplerate, self._file.channels
        if found != (audio.rate_hz, audio.channels):
            self._file.close()
            raise CapstandError(
                f"{name} has {_words(*found)}, and {stream} takes "
                f"{_words(audio.rate_hz, audio.channels)}; convert it first: "
                f"ffmpeg -i IN -ar {audio.rate_hz} -ac {audio.channels} OUT.wav"
            )
        self.frames: int | None = self._file.frames

    def blocks(self, link: "_Link", bar: "_Bar") -> Iterator[bytes]:
        import soundfile

        from capstand.dsp.convert import from_int32

        while True:
            try:
                part = self._file.read(BLOCK_FRAMES, dtype="int32", always_2d=True)
            except soundfile.SoundFileError as error:
                raise CapstandError(f"{self._name}: cannot be read on: {error}") from None
            if not len(part):
                return
            yield from_int32(part.reshape(-1), self._audio.sample)

    def close(self) -> None:
        self._file.close()


class _Raw:
    """Frames as they are, from stdin or a file."""

    def __init__(self, file: str, name: str, audio: "AudioFormat") -> None:
        self.torn = 0
        self.frames: int | None = None
        self._frame_bytes = audio.frame_bytes
        if file == "-":
            self._descriptor, self._ours = sys.stdin.fileno(), False
            if sys.stdin.isatty():
                raise CapstandError("stdin is a terminal; expected raw sound from another program")
            return
        try:
            self._descriptor, self._ours = os.open(file, os.O_RDONLY | os.O_CLOEXEC), True
            status = os.fstat(self._descriptor)
        except OSError as error:
            raise CapstandError(f"{name}: {error.strerror}") from None
        if stat.S_ISDIR(status.st_mode):
            self.close()
            raise CapstandError(f"{name}: is a directory")
        if stat.S_ISREG(status.st_mode):
            self.frames = status.st_size // self._frame_bytes

    def blocks(self, link: "_Link", bar: "_Bar") -> Iterator[bytes]:
        rest = b""
        while True:
            link.wait_for(self._descriptor, bar)
            part = os.read(self._descriptor, CHUNK_BYTES)
            if not part:
                self.torn = len(rest)
                return
            rest += part
            whole = len(rest) - len(rest) % self._frame_bytes
            if whole:
                yield rest[:whole]
                rest = rest[whole:]

    def close(self) -> None:
        if self._ours:
            os.close(self._descriptor)


class _Link:
    """The connection: what is sent, and what is told meanwhile. ``taken`` frames are part of the
    stream; ``held``: they go on at real time, and writes wait.

    Its functions raise CapstandError once the daemon has sent us away.
    """

    def __init__(self, path: Path, stream: str, trouble: str | None) -> None:
        self.stream = stream
        self.taken = 0
        self.held = False
        self._trouble = trouble
        self._got = b""
        self._greeted = self._ended = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            reason = trouble or f"{path}: {error.strerror}"
            raise CapstandError(f"{stream} takes no sound now: {reason}") from None
        self._socket.setblocking(False)

    def __enter__(self) -> "_Link":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def greet(self) -> None:
        """Waits until we are let in."""
        until_s = time.monotonic() + GREETING_S
        while not self._greeted:
            if not self._poll(select.POLLIN, until_s - time.monotonic()):
                reason = self._trouble or "the daemon lets nobody in"
                raise CapstandError(f"{self.stream} takes no sound now: {reason}")

    def send(self, data: bytes, bar: "_Bar") -> None:
        left = memoryview(data)
        while left:
            if self._poll(select.POLLIN | select.POLLOUT, None) & select.POLLOUT:
                try:
                    left = left[self._socket.send(left) :]
                except BlockingIOError:
                    pass
                except OSError:
                    self._lost()
            bar.draw(self)

    def wait_for(self, descriptor: int, bar: "_Bar") -> None:
        """Until there is something to read from ``descriptor``."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(descriptor, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._socket.fileno() in ready:
                self._hear()
            bar.draw(self)
            if descriptor in ready:
                return

    def finish(self, bar: "_Bar") -> None:
        """Nothing follows: waits until everything was taken."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        while not self._ended:
            if not self._poll(select.POLLIN, ANSWER_S):
                raise CapstandError(
                    f"{self.stream}: nothing heard for {ANSWER_S:g} s, after {self.taken} frames "
                    "were taken"
                )
            bar.draw(self)

    def _poll(self, events: int, wait_s: float | None) -> int:
        poll = select.poll()
        poll.register(self._socket, events)
        ready = poll.poll(None if wait_s is None else max(0.0, wait_s * 1000))
        found = ready[0][1] if ready else 0
        if found & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self._hear()
        return found

    def _hear(self) -> None:
        try:
            got = self._socket.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            got = b""
        *lines, self._got = (self._got + got).split(b"\n")
        for line in lines:
            self._understand(line.decode(errors="replace"))
        if not got and not self._ended:
            self._lost()

    def _understand(self, line: str) -> None:
        if line.startswith("error: "):
            raise CapstandError(
                f"{self.stream}: {clean.line(line.removeprefix('error: '))}"
                + (f" ({self.taken} frames were taken)" if self.taken else "")
            )
        if line.startswith("ok "):
            self._greeted = True
        elif found := re.fullmatch(r"(at|end) (\d{1,19})(?: (held|free))?", line):
            self.taken, self.held = int(found[2]), found[3] == "held"
            self._ended = found[1] == "end"

    def _lost(self) -> Any:
        """The connection is gone; what was told last is why."""
        with contextlib.suppress(OSError):
            while got := self._socket.recv(CHUNK_BYTES):
                self._got += got
        *lines, self._got = self._got.split(b"\n")
        for line in lines:
            self._understand(line.decode(errors="replace"))
        if not self._ended:
            raise CapstandError(
                f"{self.stream}: the daemon has closed the connection after {self.taken} frames"
            )


class _Bar:
    """How far it is, in a terminal; nothing elsewhere. ``frames`` is None where nobody knows."""

    def __init__(self, stream: str, frames: int | None, rate_hz: int) -> None:
        self._active = sys.stderr.isatty()
        self._stream, self._frames, self._rate_hz = stream, frames, rate_hz
        self._due_s = 0.0

    def draw(self, link: _Link) -> None:
        now_s = time.monotonic()
        if not self._active or now_s < self._due_s:
            return
        self._due_s = now_s + DRAW_S
        text = f"{self._stream} "
        if self._frames:
            share = min(1.0, link.taken / self._frames)
            text += f"▕{'█' * round(share * BAR_WIDTH):<{BAR_WIDTH}}▏ {share:4.0%} "
        text += clock(link.taken / self._rate_hz)
        if self._frames:
            text += f" of {clock(self._frames / self._rate_hz)}"
        width = max(1, console.columns() - 1)
        self._write("\r\033[K" + clean.in_encoding(text, sys.stderr.encoding)[:width])

    def clear(self) -> None:
        if self._active:
            self._write("\r\033[K")

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):  # the terminal has gone
            self._active = False


def clock(seconds: float) -> str:
    """A length of time as a player shows it."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _words(rate_hz: int, channels: int) -> str:
    return f"{rate_hz} Hz and {channels} channel{'s' if channels > 1 else ''}"
