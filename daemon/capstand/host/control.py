"""The control socket: ``capstand status``, ``reload``, ``set``, ``release``, … ask the daemon here.

One line of JSON each way over a Unix stream socket: ``{"ask": "status"}`` is answered and the
connection closed. Whatever else comes in is refused with ``{"error": ...}``; a client that is slow,
silent or sends too much is dropped, and the daemon never waits for one.

Questions are harmless and anybody's. An order (``{"ask": "release", "stream": "mic"}``) changes
something, so it is told who gives it, as the kernel says (SO_PEERCRED), and it may need a
while: then it returns a function that is asked again and again until it has the answer. An answer
may bring a descriptor (SCM_RIGHTS), which is closed here once it is sent. One that was not taken
stays in flight, and the kernel lets a user have only so many of those: so its connection is kept,
as one of the few of its user, until it is taken.

Threads: ``control``, at ordinary priority, has the socket and all that a stranger can make costly:
connections, JSON, answers that are slow to be taken. Main, which has a real-time priority, only
works out the answers, and no more than ``RATE`` a second for each user. Who asks more often waits;
who keeps ``PER_USER`` questions open is refused the next one, and told to ask again. Other users
notice neither.

    client ═ control ─ asked → main
                     ← answered ─
"""

import contextlib
import errno
import fcntl
import json
import os
import queue
import selectors
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from capstand.errors import CapstandError
from capstand.host import bug
from capstand.host.peer import Peer, peer_of
from capstand.host.ratelimit import RateLimit, RateLimits
from capstand.host.realtime import prepare_thread
from capstand.text import clean

MAX_REQUEST = 1024
MAX_CLIENTS = 32
PER_USER = 8
RATE, BURST = 20.0, 40.0
"""Answers a second and user; `capstand reload` looks ten times a second."""
CONNECT_RATE, CONNECT_BURST = 200.0, 50.0
"""Connections a second, of all users: to turn one away costs something too."""
BACKLOG = 64
CLIENT_S = 2.0
ORDER_S = 5.0
TAKE_S = 5.0
"""So long a client may take to take its answer."""
BUSY_S = 0.1
"""After which a client that was turned away asks again."""
ROOM_S = 0.05
"""So often a descriptor is looked for where none is left."""
TURN_S = 0.5
"""So often the thread looks after what is late."""
IDLE_S = 10.0
"""So long it sleeps where nobody is there."""
MOST_BYTES = 32_000_000
NAME = "control.sock"
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Response = dict[str, Any]


class Handed(NamedTuple):
    """An answer that brings a descriptor, which now belongs to the server."""

    answer: Response
    descriptor: int


Order = Callable[[Mapping[str, Any], Peer], Response | Handed | Callable[[], Response | None]]


class _Client:
    """A connection; ``request`` is None until it has asked, ``answer`` until it is answered."""

    def __init__(self, link: socket.socket, peer: Peer, deadline_s: float, spare: bool) -> None:
        self.link = link
        self.peer = peer
        self.deadline_s = deadline_s
        self.spare = spare
        self.got = b""
        self.request: Mapping[str, Any] | None = None
        self.asked = False  # main has it
        self.answer: memoryview | None = None
        self.descriptor: int | None = None  # to be sent with it
        self.keeps = False  # until what it was handed is taken


class ControlServer:
    """Serves ``answers`` (question → function that gives the answer) and ``orders`` on ``path``.

    An order may raise CapstandError; its text is the answer. ``selector`` is main's, which must
    call ``expire`` now and then. ``start`` begins the thread, whose turns are ``turn``.
    """

    def __init__(
        self,
        path: Path,
        selector: selectors.BaseSelector,
        answers: dict[str, Callable[[], Response]],
        orders: dict[str, Order] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._answers = answers
        self._orders = orders or {}
        self._now = now
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_served(path):
            raise CapstandError(
                f"{path}: another capstand is running there; stop it (systemctl stop capstand) or "
                "give this one its own --runtime directory"
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
        self._server.listen(BACKLOG)

        # Main's
        self._main = selector
        self._waiting: dict[_Client, tuple[Callable[[], Response | None], float]] = {}
        # Between the two
        self._asked: queue.SimpleQueue[_Client] = queue.SimpleQueue()
        self._answered: queue.SimpleQueue[tuple[_Client, Response | Handed]] = queue.SimpleQueue()
        self._to_main = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._to_control = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        # The thread's
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._clients: dict[_Client, None] = {}  # in the order they came
        self._allowed = RateLimits(RATE, BURST)  # by uid
        self._connections = RateLimit(CONNECT_RATE, CONNECT_BURST, now())
        self._listening = True
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        self._selector.register(self._to_control, selectors.EVENT_READ, self._woken)
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        selector.register(self._to_main, selectors.EVENT_READ, self._hear)

    def start(self) -> None:
        self._thread.start()

    # Main

    def _hear(self) -> None:
        """Works out what was asked until now."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._to_main)
        while True:
            try:
                client = self._asked.get_nowait()
            except queue.Empty:
                return
            answer = self._answer(client)
            if callable(answer):
                self._waiting[client] = (answer, time.monotonic() + ORDER_S)
            else:
                self._tell(client, answer)

    def _answer(self, client: _Client) -> Response | Handed | Callable[[], Response | None]:
        assert client.request is not None
        question = client.request["ask"]
        try:
            if question in self._answers:
                return self._answers[question]()
            return self._orders[question](client.request, client.peer)
        except (CapstandError, OSError) as error:
            return {"error": str(error)}
        except Exception as error:  # noqa: BLE001  a question is not worth the sound
            return {"error": f"unexpected {bug.log_unexpected(f'control: {question}', error)}"}

    def _tell(self, client: _Client, answer: Response | Handed) -> None:
        self._answered.put((client, answer))
        os.eventfd_write(self._to_control, 1)

    @property
    def waits(self) -> bool:
        """Whether an order is under way that ``expire`` will answer."""
        return bool(self._waiting)

    def expire(self) -> None:
        """Answers orders that are done, or not in time; called now and then."""
        now_s = time.monotonic()
        for client, (ready, deadline_s) in list(self._waiting.items()):
            answer = ready()
            if answer is None and now_s <= deadline_s:
                continue
            del self._waiting[client]
            late = {"error": f"not done after {ORDER_S:g} s; see `capstand status`"}
            self._tell(client, answer or late)

    def close(self) -> None:
        self._stopping = True
        os.eventfd_write(self._to_control, 1)
        if self._thread.is_alive():
            self._thread.join(TURN_S)
        self._main.unregister(self._to_main)
        for _, answer in self._all_answered():
            if isinstance(answer, Handed):
                os.close(answer.descriptor)
        for client in list(self._clients):
            self._drop(client)
        self._selector.close()
        self._server.close()
        for one in (self._to_main, self._to_control, self._spare):
            if one is not None:
                os.close(one)
        with contextlib.suppress(OSError):
            self.path.unlink()

    # The thread

    def _run(self) -> None:
        prepare_thread("control", 0)
        while not self._stopping:
            try:
                self.turn(TURN_S if self._clients else IDLE_S)
            except Exception as error:  # noqa: BLE001  who asks must not end what captures
                bug.log_unexpected("control socket", error)
                for client in list(self._clients):
                    self._drop(client)
                time.sleep(TURN_S)

    def turn(self, timeout_s: float) -> None:
        """Waits for something to do, at most so long, and does it."""
        for key, _ in self._selector.select(min(timeout_s, self._pause_s())):
            key.data()
        for client, answer in self._all_answered():
            if client in self._clients:
                self._send(client, answer)
            elif isinstance(answer, Handed):
                os.close(answer.descriptor)
        self._hand_out()
        now_s = self._now()
        for client in list(self._clients):
            if now_s >= client.deadline_s:
                self._drop_once_taken(client)
        self._listen(self._connections.wait_s(now_s) == 0 and self._has_room())

    def _all_answered(self) -> Iterator[tuple[_Client, Response | Handed]]:
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._answered.get_nowait()

    def _pause_s(self) -> float:
        """Until somebody's allowance lets something be done."""
        now_s = self._now()
        waits = [] if self._listening else [self._connections.wait_s(now_s) or ROOM_S]
        for client in self._clients:
            if client.request is not None and not client.asked:
                waits.append(max(0.001, self._allowed.wait_s(client.peer.uid, now_s)))
        return min(waits, default=IDLE_S)

    def _has_room(self) -> bool:
        """Whether a descriptor for the next client is there, be it the spare one."""
        if self._spare is None and not any(client.spare for client in self._clients):
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return self._spare is not None

    def _listen(self, wanted: bool) -> None:
        """Who knocks where nobody may be let in would keep us busy for nothing."""
        if wanted and not self._listening:
            self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        elif self._listening and not wanted:
            self._selector.unregister(self._server)
        self._listening = wanted

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._to_control)

    def _accept(self) -> None:
        spare = False
        try:
            link, _ = self._server.accept()
        except OSError as error:
            if error.errno not in NO_ROOM or self._spare is None:
                return
            os.close(self._spare)  # status is asked most where something has run out
            self._spare, spare = None, True
            try:
                link, _ = self._server.accept()
            except OSError:
                return
        self._connections.take()
        link.setblocking(False)
        try:
            peer = peer_of(link)
        except OSError:
            link.close()
            return
        client = _Client(link, peer, self._now() + CLIENT_S, spare)
        if not self._has_place(client):
            with contextlib.suppress(OSError):
                link.send(_line({"error": f"too many requests from uid {peer.uid}", "busy": True}))
            link.close()
            return
        self._clients[client] = None
        self._selector.register(link, selectors.EVENT_READ, lambda: self._read(client))
        self._read(client)

    def _has_place(self, client: _Client) -> bool:
        """Where there are too many, the oldest that has not asked goes; an honest one asks at once,
        and one that has asked is answered.
        """
        own = [one for one in self._clients if one.peer.uid == client.peer.uid]
        crowd = own if len(own) >= PER_USER else list(self._clients)
        if len(own) < PER_USER and len(crowd) < MAX_CLIENTS:
            return True
        for one in crowd:
            if one.request is None:
                self._read(one)
            if one not in self._clients or one.request is not None:
                continue
            self._drop(one)
            return True
        return False

    def _read(self, client: _Client) -> None:
        if client not in self._clients:
            return  # it had to go in this very turn
        try:
            chunk = client.link.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        client.got += chunk
        if b"\n" not in client.got and chunk and len(client.got) <= MAX_REQUEST:
            return
        if not client.got:
            self._drop(client)
            return
        self._selector.unregister(client.link)
        client.request = self._request(client.got)
        if client.request is None:
            known = ", ".join([*self._answers, *self._orders])
            self._send(client, {"error": f'expected one line of JSON, {{"ask": one of {known}}}'})

    def _request(self, raw: bytes) -> Mapping[str, Any] | None:
        try:
            request = clean.parsed(raw)
            if request["ask"] in self._answers or request["ask"] in self._orders:
                return dict(request)
        except (ValueError, KeyError, TypeError):
            pass
        return None

    def _hand_out(self) -> None:
        """To main goes what its user's allowance lets through, in the order it was asked."""
        now_s, handed = self._now(), False
        for client in self._clients:
            if client.request is None or client.asked:
                continue
            if self._allowed.take(client.peer.uid, now_s):
                client.asked, handed = True, True
                client.deadline_s = now_s + 2 * ORDER_S
                self._asked.put(client)
            else:
                client.deadline_s = now_s + CLIENT_S
        if handed:
            os.eventfd_write(self._to_main, 1)

    def _send(self, client: _Client, answer: Response | Handed) -> None:
        client.asked = True
        if isinstance(answer, Handed):
            answer, client.descriptor = answer
        client.deadline_s = self._now() + TAKE_S
        client.answer = memoryview(_line(answer))
        self._selector.register(client.link, selectors.EVENT_WRITE, lambda: self._send_more(client))
        self._send_more(client)

    def _send_more(self, client: _Client) -> None:
        """An answer may be longer than what a socket holds."""
        if client not in self._clients:
            return
        assert client.answer is not None
        try:
            client.answer = client.answer[self._sent(client, client.answer) :]
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        if not client.answer:
            self._drop_once_taken(client)

    def _sent(self, client: _Client, answer: memoryview) -> int:
        """How many bytes; raises OSError."""
        if client.descriptor is None:
            return client.link.send(answer)
        sent = socket.send_fds(client.link, [answer], [client.descriptor])
        os.close(client.descriptor)
        client.descriptor, client.keeps = None, True
        return sent

    def _drop_once_taken(self, client: _Client) -> None:
        """Now, or what was handed to it waits in its socket: that is looked at again."""
        if not client.keeps or not _waits(client.link):
            self._drop(client)
            return
        client.deadline_s = self._now() + TURN_S
        with contextlib.suppress(KeyError):
            self._selector.unregister(client.link)

    def _drop(self, client: _Client) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.link)
        self._clients.pop(client, None)
        client.link.close()
        if client.descriptor is not None:
            os.close(client.descriptor)
            client.descriptor = None


def _waits(link: socket.socket) -> bool:
    """Whether the other end has something to take."""
    raw = fcntl.ioctl(link, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(raw, sys.byteorder) > 0


def _line(answer: object) -> bytes:
    return json.dumps(clean.tree(answer), allow_nan=False).encode() + b"\n"


def ask(path: Path, question: str, timeout_s: float = 5.0, **what: Any) -> dict[str, Any]:
    """Asks the daemon at ``path``, which has ``timeout_s`` for all of it. Raises CapstandError when
    none answers, or it refuses.

    What is answered is cleaned: whoever made that socket need not be a capstand.
    """
    return _answered(path, question, timeout_s, what, None)


def ask_for_descriptor(
    path: Path, question: str, timeout_s: float = 5.0, **what: Any
) -> tuple[dict[str, Any], int]:
    """The same for an answer that brings a descriptor, which the caller closes."""
    got: list[int] = []
    try:
        answer = _answered(path, question, timeout_s, what, got)
        if len(got) != 1:
            raise CapstandError(f"{path}: the answer brought no sound; is it another version's?")
        return answer, got.pop()
    finally:
        for one in got:
            os.close(one)


def _answered(
    path: Path, question: str, timeout_s: float, what: dict[str, Any], descriptors: list[int] | None
) -> dict[str, Any]:
    deadline_s = time.monotonic() + timeout_s
    request = json.dumps({"ask": question, **what}).encode() + b"\n"
    try:
        while True:
            answer = clean.tree(clean.parsed(_asked(path, request, deadline_s, descriptors)))
            if not isinstance(answer, dict):
                raise ValueError("the reply is not an object")
            if not answer.get("busy") or time.monotonic() + BUSY_S > deadline_s:
                break
            time.sleep(BUSY_S)
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        if isinstance(error, TimeoutError | BlockingIOError):
            reason = f"no complete reply within {timeout_s:g} s"
        raise CapstandError(
            f"{path}: cannot reach the daemon ({clean.line(reason)}); is it running (`systemctl "
            "status capstand`)? --runtime selects another directory"
        ) from None
    if "error" in answer:
        raise CapstandError(str(answer["error"]))
    return answer


def _asked(path: Path, request: bytes, deadline_s: float, descriptors: list[int] | None) -> bytes:
    """What one connection brings; where ``descriptors`` are wanted, a line. Raises OSError and
    ValueError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        # Where many knock, connect() waits; with a timeout of Python's it would fail at once.
        whole = max(1, int((deadline_s - time.monotonic()) * 1_000_000))
        limit = struct.pack("ll", *divmod(whole, 1_000_000))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        client.connect(str(path))
        client.settimeout(_left_s(deadline_s))
        with contextlib.suppress(BrokenPipeError):  # who is turned away is told so unasked
            client.sendall(request)
        got = bytearray()
        while chunk := _received(client, bool(got), descriptors):
            got += chunk
            if len(got) > MOST_BYTES:
                raise ValueError(f"a reply of more than {MOST_BYTES} bytes")
            if descriptors and got.endswith(b"\n"):
                break
            client.settimeout(_left_s(deadline_s))
    return bytes(got)


def _received(client: socket.socket, begun: bool, descriptors: list[int] | None) -> bytes:
    """What is next; one who answered without having read the question resets the connection."""
    try:
        if descriptors is None:
            return client.recv(65536)
        chunk, more, *_ = socket.recv_fds(client, 65536, 1, socket.MSG_CMSG_CLOEXEC)
        descriptors += more
        return chunk
    except ConnectionResetError:
        if begun:
            return b""
        raise


def _left_s(deadline_s: float) -> float:
    """Raises TimeoutError."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


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
