"""A Unix socket where local programs connect and read the stream, as raw PCM or as a WAV without
end, from the present on.

Nobody waits for a reader. What one has not taken yet waits in a buffer of its own; where that is
full, the oldest blocks of it are lost to this reader, whole frames and counted, and to no other. A
block is one piece of memory for all. In the books of the sink a frame is delivered when it was
offered to those who were there; who lost how much is in the figures.

Who connects is looked at as the kernel says (``host/peer.py``). One who may not listen, or for whom
there is no place, is closed without a byte: a word of explanation would be taken for sound.

Thread: main, in a process of its own (``push.py``). It has a turn with each block, and each second.
"""

import contextlib
import logging
import os
import select
import socket
import stat
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from capstand.audio import wav
from capstand.audio.block import NS_PER_S, AudioFormat, Block
from capstand.audio.clock import Pace
from capstand.audio.continuity import Continuity
from capstand.errors import SinkError
from capstand.host.control import is_served
from capstand.host.peer import GROUPS, Peer, peer_of
from capstand.sinks.sink import Sink
from capstand.sinks.types.socket import SocketSinkConfig

BACKLOG = 32
END_S = 1.0
"""So long readers have at the end to take what waits for them."""

log = logging.getLogger("capstand.socket")


class StreamSocket(Sink):
    """Offers one stream's blocks at ``path``, as ``setup`` says."""

    def __init__(
        self,
        setup: SocketSinkConfig,
        path: Path,
        audio: AudioFormat,
        pace: Pace,
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.inserted_frames = 0
        self._setup = setup
        self._path = path
        self._audio = audio
        framed = wav.in_wav(audio) if setup.container == "wav" else audio
        self._sample = framed.sample
        self._header = wav.header(framed) if setup.container == "wav" else b""
        self._now_ns = now_ns
        self._most_frames = setup.buffer_ms * audio.rate_hz // 1000
        self._groups = GROUPS if setup.group is None else (setup.group,)
        self._server: socket.socket | None = None
        self._inode = (0, 0)
        self._readers: list[_Reader] = []
        self._continuity = Continuity()
        self._lost_frames = 0  # of readers that have gone
        self._refused = self._turned_away = 0

    def open(self) -> None:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._make_way()
            os.fchmod(server.fileno(), 0o666)  # anybody may knock; who does is looked at
            umask = os.umask(0)
            try:
                server.bind(str(self._path))
            finally:
                os.umask(umask)
            status = self._path.lstat()
            self._inode = status.st_dev, status.st_ino
            server.listen(BACKLOG)
            self._server = server
        except OSError as error:
            raise SinkError(f"{self._path}: no socket can be made: {error.strerror}") from None
        finally:
            if self._server is None:
                server.close()

    def _make_way(self) -> None:
        """Removes the socket that a process before left behind. Raises OSError and SinkError."""
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise SinkError(
                f"{self._path} is there and is no socket; remove it or set another path"
            )
        if is_served(self._path):
            raise SinkError(f"{self._path}: another program listens there; set another path")
        self._path.unlink(missing_ok=True)

    def write(self, block: Block) -> None:
        self._accept()
        gap = self._continuity.follow(block)
        samples, frames = self._packed(block.samples), block.frames
        if gap > 0 and self._setup.gaps == "silence":
            silent = min(gap, self._most_frames // 2)
            self.inserted_frames += silent
            silence = self._sample.silence(silent * self._audio.channels)
            for reader in self._readers:
                reader.give(silence, silent)
        for reader in self._readers:
            reader.give(samples, frames)
        self._send()

    def _packed(self, samples: bytes) -> bytes:
        if self._sample is self._audio.sample:
            return samples
        from capstand.dsp.convert import convert  # brings numpy

        return convert(samples, self._audio.sample, self._sample)

    def _accept(self) -> None:
        """All who have knocked."""
        assert self._server is not None
        for _ in range(BACKLOG):
            try:
                link, _ = self._server.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("%s: nobody can be let in: %s", self._path, error.strerror)
                return
            link.setblocking(False)
            try:
                peer = peer_of(link)
            except OSError:
                link.close()
                continue
            self._let_in(link, peer)

    def _let_in(self, link: socket.socket, peer: Peer) -> None:
        if not peer.may(self._groups):
            self._refused += 1
            log.warning(
                "uid %d may not listen: root may, capstand's own user, and members of %s",
                peer.uid,
                " and ".join(self._groups),
            )
        elif len(self._readers) >= self._setup.readers and not self._forget_gone():
            self._turned_away += 1
            log.warning("all %d places of readers are taken", self._setup.readers)
        else:
            self._readers.append(_Reader(link, peer, self._most_frames, self._header))
            return
        link.close()

    def _forget_gone(self) -> bool:
        """Whether a place has become free."""
        poll = select.poll()
        for reader in self._readers:
            poll.register(reader.link, 0)
        gone = {descriptor for descriptor, _ in poll.poll(0)}  # closed at the other end
        for reader in [one for one in self._readers if one.link.fileno() in gone]:
            self._drop(reader)
        return bool(gone)

    def _send(self) -> None:
        for reader in [one for one in self._readers if not one.send()]:
            self._drop(reader)

    def _drop(self, reader: "_Reader") -> None:
        self._readers.remove(reader)
        self._lost_frames += reader.lost_frames
        reader.link.close()

    def flush(self) -> None:
        """Also while there is no sound, who comes is let in and who went is let go."""
        self._accept()
        self._forget_gone()
        self._send()

    def close(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        with contextlib.suppress(OSError):
            status = self._path.lstat()
            if (status.st_dev, status.st_ino) == self._inode:
                self._path.unlink()
        server.close()
        deadline_ns = self._now_ns() + round(END_S * NS_PER_S)
        while waiting := [one.link for one in self._readers if one.pending]:
            left_s = (deadline_ns - self._now_ns()) / NS_PER_S
            if left_s <= 0 or not select.select([], waiting, [], left_s)[1]:
                break
            self._send()
        for reader in list(self._readers):
            self._drop(reader)

    # For people

    @property
    def detail(self) -> str:
        count = len(self._readers)
        return f"{self._path}, {count or 'no'} reader{'' if count == 1 else 's'}"

    @property
    def concern(self) -> str | None:
        slow = [reader for reader in self._readers if reader.slow]
        if not slow:
            return None
        told = ", ".join(f"pid {one.peer.pid} lost {one.lost_frames} frames" for one in slow)
        return f"too slow to read: {told}"

    def figures(self, now_ns: int) -> dict[str, object]:
        return {
            "path": str(self._path),
            "readers": [reader.figures() for reader in self._readers],
            "lost_frames": self._lost_frames + sum(reader.lost_frames for reader in self._readers),
            "refused": self._refused,
            "turned_away": self._turned_away,
        }


class _Reader:
    """A program that reads; at most ``most_frames`` wait for it."""

    def __init__(self, link: socket.socket, peer: Peer, most_frames: int, header: bytes) -> None:
        self.link = link
        self.peer = peer
        self.pending: deque[tuple[bytes, int]] = deque()  # and how many frames each has
        self.lost_frames = 0
        self.slow = False  # it has lost some, and has not caught up since
        self._most = most_frames
        self._given = self._waiting = 0
        self._sent = 0  # bytes of the first one pending
        if header:
            self.pending.append((header, 0))

    def give(self, samples: bytes, frames: int) -> None:
        self.pending.append((samples, frames))
        self._given += frames
        self._waiting += frames
        while self._waiting > self._most:
            begun = self._sent > 0 or not self.pending[0][1]
            if len(self.pending) == begun:
                return  # all that waits is on its way
            _, gone = self.pending[begun]
            del self.pending[begun]
            self._waiting -= gone
            self.lost_frames += gone
            self.slow = True

    def send(self) -> bool:
        """As much as it takes; whether it is still there."""
        pending = self.pending
        while pending:
            samples, frames = pending[0]
            try:
                self._sent += self.link.send(memoryview(samples)[self._sent :])
            except BlockingIOError:
                return True
            except OSError:
                return False
            if self._sent < len(samples):
                return True
            pending.popleft()
            self._waiting -= frames
            self._sent = 0
        self.slow = False
        return True

    def figures(self) -> dict[str, object]:
        return {
            "pid": self.peer.pid,
            "uid": self.peer.uid,
            "sent_frames": self._given - self.lost_frames - self._waiting,
            "waiting_frames": self._waiting,
            "lost_frames": self.lost_frames,
        }
