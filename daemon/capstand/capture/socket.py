"""The way in for one local program at a time: a Unix socket. docs/own-audio.md has the protocol.

Whoever connects is looked at (SO_PEERCRED): root, the daemon's own user, members of the groups
``audio`` and ``capstand`` are let in, others are told why not. So is a second program while a first
one writes; but one that has been silent for ``IDLE_NS`` makes way for it. No more than ``BACKLOG``
are looked at for each period, so that a crowd costs no more than that.

What goes back to the program are short lines. None is waited for: a program that does not read them
misses some, and nothing else.

Thread: capture; ``wake`` is for any.
"""

import contextlib
import errno
import os
import socket
import stat
import time
from pathlib import Path

from capstand.capture import wire
from capstand.capture.program import ProgramSource
from capstand.capture.types.socket import SocketConfig, path_of
from capstand.config.schema import CaptureConfig
from capstand.errors import DeviceError
from capstand.host.control import is_served
from capstand.host.peer import GROUPS, Peer, ids, peer_of

TELL_NS = 250_000_000
IDLE_NS = 5_000_000_000
BACKLOG = 8


class SocketSource(ProgramSource):
    """A source as ``capture`` asks for it."""

    def __init__(self, capture: CaptureConfig) -> None:
        setup: SocketConfig = capture.source or SocketConfig()
        self._path = path_of(capture)
        super().__init__(capture, f"socket:{self._path}", setup.live)
        self._listener: socket.socket | None = None
        self._listening = False  # it is waited for
        self._members: frozenset[int] = frozenset()
        self._writer: socket.socket | None = None
        self._peer: Peer | None = None
        self._told_ns = 0
        self._was_held = False

    def _prepare(self, now_ns: int) -> None:
        if self._listener is None:
            self._listener = self._listen()
            self._members = ids()
        self._watch_listener(wanted=True)

    def _listen(self) -> socket.socket:
        path = self._path
        if is_served(path):
            raise DeviceError(f"{self.name}: another program listens there", errno.EADDRINUSE)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(path.lstat().st_mode):
                    path.unlink()
            listener.bind(str(path))
            _let_all_connect(path)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise DeviceError(
                f"{self.name}: no socket can be made there: {error.strerror}",
                error.errno or errno.EIO,
                refused=True,
            ) from None
        return listener

    def _watch_listener(self, *, wanted: bool) -> None:
        if self._listener is not None and wanted is not self._listening:
            self._watch(self._listener.fileno(), also=wanted)
            self._listening = wanted

    def _knocked(self, descriptor: int) -> None:
        assert self._listener is not None
        self._watch_listener(wanted=False)  # until the next turn
        for _ in range(BACKLOG):
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            self._receive_guest(link)

    def _receive_guest(self, link: socket.socket) -> None:
        """Lets one in, or tells it why not."""
        link.setblocking(False)
        try:
            peer = peer_of(link)
        except OSError:
            link.close()
            return
        if why := self._objection(peer):
            _send_away(link, why)
            return
        if self._writer is not None:
            self._refuse("another program has taken over, since nothing came for 5 s")
        self._writer, self._peer = link, peer
        self._told_ns, self._was_held = time.monotonic_ns(), False
        self._take_in(link.fileno())
        self._tell(wire.takes(self.audio))

    def _objection(self, peer: Peer) -> str | None:
        if not peer.is_of(self._members):
            groups = " and ".join(GROUPS)
            return f"uid {peer.uid} may not bring sound; members of the groups {groups} may"
        busy = self._descriptor is not None and not self._inlet.ended
        if busy and time.monotonic_ns() - self._heard_ns < IDLE_NS:
            return f"{self._who()} writes already; one program at a time"
        return None

    def _went(self, now_ns: int) -> None:
        self._watch_listener(wanted=True)
        self._was_held = self._was_held or self._inlet.was_held
        if now_ns - self._told_ns >= TELL_NS:
            self._tell(wire.at(self._inlet.went, held=self._was_held))
            self._told_ns, self._was_held = now_ns, False

    def _missing(self) -> str:
        return "no program is connected"

    def _who(self) -> str:
        peer = self._peer
        return "the program" if peer is None else f"the program {peer.pid} of uid {peer.uid}"

    def _ended(self) -> str:
        who, inlet = self._who(), self._inlet
        torn = f" and a torn frame of {inlet.torn} bytes" if inlet.torn else ""
        self._tell(wire.end(inlet.went))
        self._disconnect()
        return f"{who} has closed the connection after {inlet.went} frames{torn}"

    def _refuse(self, why: str) -> None:
        self._tell(wire.refusal(why))
        self._disconnect()

    def _disconnect(self) -> None:
        self._let_go()
        if self._writer is not None:
            self._writer.close()
        self._writer = self._peer = None

    def _tell(self, line: bytes) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _shut(self) -> None:
        self._refuse("the stream takes no sound any more")
        if self._listener is not None:
            self._watch_listener(wanted=False)
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._listener.close()
            self._listener = None


def _send_away(link: socket.socket, why: str) -> None:
    with contextlib.suppress(OSError):
        link.send(wire.refusal(why), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    link.close()


def _let_all_connect(path: Path) -> None:
    """Who connects is looked at. Not by the umask, which all threads share, and not through a link
    that took the socket's place."""
    found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_ISSOCK(os.fstat(found).st_mode):
            Path(f"/proc/self/fd/{found}").chmod(0o666)
    finally:
        os.close(found)
