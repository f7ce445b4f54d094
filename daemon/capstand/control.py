"""The control socket: ``capstand status``, ``reload``, ``release``, ``resume`` ask the daemon here.

One line of JSON each way over a Unix stream socket: ``{"ask": "status"}`` is answered and the
connection closed. Whatever else comes in is refused with ``{"error": ...}``; a client that is slow,
silent or sends too much is dropped, and the daemon never waits for one.

Questions are harmless and anybody's. An order (``{"ask": "release", "stream": "mic"}``) changes
something, so it is told who gives it, as the kernel knows him (SO_PEERCRED), and it may need a
while: then it returns a function that is asked again and again until it has the answer.

Thread: main.
"""

import contextlib
import errno
import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from capstand.errors import CapstandError

MAX_REQUEST = 1024
MAX_CLIENTS = 8
CLIENT_S = 2.0
ORDER_S = 5.0
NAME = "control.sock"
SO_PEERGROUPS = 59  # of asm-generic/socket.h; Python has no name for it

Answer = dict[str, Any]


class Peer(NamedTuple):
    """The process at the other end, as it was when it connected."""

    pid: int
    uid: int
    groups: frozenset[int]


Order = Callable[[Mapping[str, Any], Peer], Answer | Callable[[], Answer | None]]


class ControlServer:
    """Serves ``answers`` (question → function that gives the answer) and ``orders`` on ``path``.

    An order may raise CapstandError; its text is the answer.
    """

    def __init__(
        self,
        path: Path,
        selector: selectors.BaseSelector,
        answers: dict[str, Callable[[], Answer]],
        orders: dict[str, Order] | None = None,
    ) -> None:
        self.path = path
        self._selector = selector
        self._answers = answers
        self._orders = orders or {}
        self._clients: dict[socket.socket, tuple[bytes, float]] = {}
        self._listening = True
        self._waiting: dict[socket.socket, tuple[Callable[[], Answer | None], float]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_served(path):
            raise CapstandError(
                f"{path}: another capstand answers there; stop it (systemctl stop capstand) "
                "or give this one its own --runtime directory"
            )
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # Asking is harmless; who gives orders is looked at. A chmod of the path would follow a link
        # that took the socket's place.
        os.fchmod(self._server.fileno(), 0o666)
        umask = os.umask(0)
        try:
            self._server.bind(str(path))
        finally:
            os.umask(umask)
        self._server.listen(MAX_CLIENTS)
        selector.register(self._server, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._server.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._selector.unregister(self._server)  # who knocks would keep us busy for nothing
                self._listening = False
            return
        if len(self._clients) >= MAX_CLIENTS:
            self._make_room()
        client.setblocking(False)
        self._clients[client] = (b"", time.monotonic() + CLIENT_S)
        self._selector.register(client, selectors.EVENT_READ, lambda: self._read(client))

    def _make_room(self) -> None:
        """The oldest client goes, answered if it has asked; an honest one asks at once."""
        oldest = next(iter(self._clients))
        self._read(oldest)
        if oldest in self._clients:
            self._drop(oldest)

    def _read(self, client: socket.socket) -> None:
        if client not in self._clients:
            return  # it had to go in this very turn
        got, deadline = self._clients[client]
        try:
            chunk = client.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        got += chunk
        if b"\n" not in got and chunk and len(got) <= MAX_REQUEST:
            self._clients[client] = (got, deadline)
            return
        answer = self._answer(client, got) if got else None
        if callable(answer):
            self._forget(client)
            self._waiting[client] = (answer, time.monotonic() + ORDER_S)
            return
        if answer is not None:
            _send(client, answer)
        self._drop(client)

    def _answer(self, client: socket.socket, raw: bytes) -> Answer | Callable[[], Answer | None]:
        try:
            request = json.loads(raw)
            question = request["ask"]
            answer, order = self._answers.get(question), self._orders.get(question)
        except (ValueError, KeyError, TypeError, RecursionError):
            answer = order = None
        if answer is not None:
            return answer()
        if order is None:
            known = ", ".join([*self._answers, *self._orders])
            return {"error": f'expected one line of JSON, {{"ask": one of {known}}}'}
        try:
            return order(request, _peer(client))
        except (CapstandError, OSError) as error:
            return {"error": str(error)}

    def expire(self) -> None:
        """Answers orders that are done, drops clients that took too long, listens again after a
        want of descriptors; called now and then.
        """
        if not self._listening:
            self._listening = True
            self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        now = time.monotonic()
        for client, (ready, deadline) in list(self._waiting.items()):
            answer = ready()
            if answer is None and now <= deadline:
                continue
            _send(client, answer or {"error": f"not done after {ORDER_S:g} s; ask for the status"})
            del self._waiting[client]
            client.close()
        for client, (_, deadline) in list(self._clients.items()):
            if now > deadline:
                self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        self._forget(client)
        client.close()

    def _forget(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        del self._clients[client]

    def close(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        for client in self._waiting:
            client.close()
        self._waiting.clear()
        if self._listening:
            self._selector.unregister(self._server)
        self._server.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


def _send(client: socket.socket, answer: Answer) -> None:
    with contextlib.suppress(OSError):
        client.send(json.dumps(answer).encode() + b"\n")


def _peer(client: socket.socket) -> Peer:
    """Raises OSError where the kernel does not tell."""
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, gid = struct.unpack("iII", raw)
    groups = {gid}
    with contextlib.suppress(OSError):  # more than 256: the first is known at least
        more = client.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
        groups.update(one for (one,) in struct.iter_unpack("I", more))
    return Peer(pid, uid, frozenset(groups))


def ask(path: Path, question: str, timeout_s: float = 5.0, **what: Any) -> dict[str, Any]:
    """Asks the daemon at ``path``. Raises CapstandError when none answers, or it refuses."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout_s)
            client.connect(str(path))
            client.sendall(json.dumps({"ask": question, **what}).encode() + b"\n")
            chunks = []
            while chunk := client.recv(65536):
                chunks.append(chunk)
        answer: dict[str, Any] = json.loads(b"".join(chunks))
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise CapstandError(
            f"{path}: no capstand answers ({reason}); is it running? "
            "`systemctl status capstand` tells; --runtime names another directory"
        ) from None
    if isinstance(answer, dict) and "error" in answer:
        raise CapstandError(str(answer["error"]))
    return answer


def is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (BlockingIOError, TimeoutError):
            return True  # somebody listens and is busy
        except OSError:
            return False
    return True
