"""The control socket: ``capstand status`` asks the running daemon here.

One line of JSON each way over a Unix stream socket: ``{"ask": "status"}`` is answered and the
connection closed. Whatever else comes in is refused with ``{"error": ...}``; a client that is slow,
silent or sends too much is dropped, and the daemon never waits for one. Everybody may ask; orders,
such as ``reload``, are taken from root and from the daemon's own user only. Thread: main.
"""

import contextlib
import errno
import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capstand.errors import CapstandError

MAX_REQUEST = 1024
MAX_CLIENTS = 8
CLIENT_S = 2.0
NAME = "control.sock"


class ControlServer:
    """Serves ``answers`` (question → function that gives the answer) on ``path``; ``orders`` are
    questions that change something, which not everybody may ask.
    """

    def __init__(
        self,
        path: Path,
        selector: selectors.BaseSelector,
        answers: dict[str, Callable[[], dict[str, Any]]],
        orders: dict[str, Callable[[], dict[str, Any]]] | None = None,
    ) -> None:
        self.path = path
        self._selector = selector
        self._answers = answers
        self._orders = orders or {}
        self._clients: dict[socket.socket, tuple[bytes, float]] = {}
        self._listening = True
        path.parent.mkdir(parents=True, exist_ok=True)
        if _answers_already(path):
            raise CapstandError(
                f"{path}: another capstand answers there; stop it (systemctl stop capstand) "
                "or give this one its own --runtime directory"
            )
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._server.bind(str(path))
        path.chmod(0o666)  # asking is harmless
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
        if got:
            with contextlib.suppress(OSError):
                client.send(json.dumps(self._answer(got, client)).encode() + b"\n")
        self._drop(client)

    def _answer(self, request: bytes, client: socket.socket) -> dict[str, Any]:
        known = ", ".join(self._answers | self._orders)
        try:
            question = json.loads(request)["ask"]
            answer = (self._answers | self._orders)[question]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"error": f'expected one line of JSON, {{"ask": one of {known}}}'}
        if question in self._orders and not _may_order(client):
            return {"error": f"{question} is for root and for the daemon's own user; try sudo"}
        return answer()

    def expire(self) -> None:
        """Drops clients that took too long, listens again after a want of descriptors; called now
        and then.
        """
        if not self._listening:
            self._listening = True
            self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        now = time.monotonic()
        for client, (_, deadline) in list(self._clients.items()):
            if now > deadline:
                self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        del self._clients[client]
        client.close()

    def close(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        if self._listening:
            self._selector.unregister(self._server)
        self._server.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


def ask(path: Path, question: str, timeout_s: float = 5.0) -> dict[str, Any]:
    """Asks the daemon at ``path``. Raises CapstandError when none answers."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout_s)
            client.connect(str(path))
            client.sendall(json.dumps({"ask": question}).encode() + b"\n")
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
    return answer


def _may_order(client: socket.socket) -> bool:
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user in (0, os.geteuid())


def _answers_already(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (BlockingIOError, TimeoutError):
            return True  # somebody listens and is busy
        except OSError:
            return False
    return True
