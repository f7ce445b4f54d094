"""The control socket: honest questions are answered, everything else is harmless."""

import contextlib
import json
import os
import resource
import select
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstand.errors import CapstandError
from capstand.host import control
from capstand.host.control import (
    BACKLOG,
    BURST,
    CLIENT_S,
    CONNECT_BURST,
    CONNECT_RATE,
    MAX_REQUEST,
    PER_USER,
    RATE,
    TAKE_S,
    ControlServer,
    Handed,
    ask,
)
from capstand.host.peer import Peer
from capstand.host.ratelimit import RateLimits
from capstand.text import clean
from tests.patience import PATIENCE_S

ANSWER = {"version": "1", "streams": [{"name": "mic"}]}


class Daemon:
    """Both threads of a server, driven by the test; its time is ``now_s``."""

    def __init__(
        self,
        path: Path,
        answer: dict[str, Any] = ANSWER,
        orders: dict[str, control.Order] | None = None,
    ) -> None:
        self.path = path
        self.now_s = 0.0
        self.answered = 0
        self.answer = answer
        self.selector = selectors.DefaultSelector()
        self.server = ControlServer(
            path, self.selector, {"status": self._status}, orders, now=lambda: self.now_s
        )

    def _status(self) -> dict[str, Any]:
        self.answered += 1
        return self.answer

    def turn(self) -> None:
        """Handles all that is ready now."""
        self.server.turn(0)
        turns = 0
        while self.selector.select(0) or self.server._selector.select(0):
            for key, _ in self.selector.select(0):
                key.data()
            self.server.turn(0)
            turns += 1
            assert turns < 100_000, "it turns for nothing"

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(PATIENCE_S)
        client.connect(str(self.path))
        self.now_s += 1 / CONNECT_RATE
        self.turn()
        return client

    def say(self, raw: bytes) -> dict[str, Any]:
        """What a client is answered that sends these bytes and no more."""
        self.now_s += 1 / RATE
        with self.connect() as client:
            client.sendall(raw)
            client.shutdown(socket.SHUT_WR)
            self.turn()
            return dict(json.loads(read(client)))

    def close(self) -> None:
        self.server.close()
        self.selector.close()


def read(client: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    got = b""
    while chunk := client.recv(65536):
        got += chunk
    return got


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(tmp_path / "run" / "control.sock")
    yield one
    one.close()


def honest(daemon: Daemon) -> bool:
    return daemon.say(b'{"ask": "status"}\n') == ANSWER


def test_status_is_asked_and_answered(daemon: Daemon) -> None:
    """ask() gets what the daemon's main thread answers, over a real socket."""
    got: list[dict[str, Any]] = []
    client = threading.Thread(target=lambda: got.append(ask(daemon.path, "status", PATIENCE_S)))
    client.start()
    while client.is_alive():
        daemon.turn()
        client.join(0.01)
    assert got == [ANSWER]


def test_what_is_handed_over_is_taken_or_keeps_its_place(tmp_path: Path) -> None:
    """A descriptor that nobody takes stays in flight, and its client one of the few of its user;
    where it is taken, or the client goes, the place is free. None is left open here."""

    def hand(*_: object) -> Handed:
        return Handed({"stream": "mic"}, os.open(os.devnull, os.O_RDONLY))

    daemon = Daemon(tmp_path / "control.sock", orders={"tap": hand})
    before = len(list(Path("/proc/self/fd").iterdir()))
    clients = []
    for _ in range(PER_USER):
        clients.append(daemon.connect())
        clients[-1].sendall(b'{"ask": "tap"}\n')
        daemon.now_s += 10 * TAKE_S
        daemon.turn()
    assert (
        len(list(Path("/proc/self/fd").iterdir())) == before + 2 * PER_USER
    )  # both ends, nothing else
    with daemon.connect() as one:
        assert b"too many requests" in read(one)
    raw, (got,), *_ = socket.recv_fds(clients[0], 65536, 4)
    assert json.loads(raw) == {"stream": "mic"} and os.read(got, 1) == b""
    os.close(got)
    clients[1].close()
    daemon.now_s += TAKE_S
    daemon.turn()
    assert len(daemon.server._clients) == PER_USER - 2
    assert honest(daemon)
    for one in clients:
        one.close()
    daemon.now_s += TAKE_S
    daemon.turn()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    daemon.close()


def test_anybody_may_ask(daemon: Daemon) -> None:
    """The socket is open to every user of the machine."""
    assert daemon.path.stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize(
    "raw",
    [
        b"\n",
        b"hello\n",
        b"\xff\xfe\x00\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b'"status"\n',
        b'{"ask": "stop"}\n',
        b'{"ask": ["status"]}\n',
        b'{"ask": {}}\n',
        b'{"ask": null}\n',
        b'{"ask": 1e999}\n',
        b'{"ask"',
        b"[" * 1000 + b"\n",
        b'{"a":' * 200 + b"\n",
        b"1" * 1000 + b"\n",
    ],
)
def test_what_is_no_question_is_refused(daemon: Daemon, raw: bytes) -> None:
    """Whatever is not a question gets one line that says what is expected."""
    assert daemon.say(raw) == {"error": 'expected one line of JSON, {"ask": one of status}'}
    assert honest(daemon)


def test_too_long_a_question_is_refused_unread(daemon: Daemon) -> None:
    """A client that sends more than a question can be is refused and cut off."""
    with daemon.connect() as client:
        client.setblocking(False)
        for _ in range(2 * MAX_REQUEST // 64):
            client.send(b"x" * 64)
        daemon.turn()
        client.settimeout(PATIENCE_S)
        got = b""
        try:
            got = read(client)
        except ConnectionResetError:
            got = got or b'{"error": "cut off"}'
    assert "error" in json.loads(got)
    assert honest(daemon)


@given(st.binary(max_size=2000))
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_bytes_leave_the_daemon_well(daemon: Daemon, raw: bytes) -> None:
    """After any bytes at all the next honest client is answered."""
    with daemon.connect() as client:
        client.sendall(raw)
        daemon.turn()
    daemon.turn()
    assert honest(daemon)


def test_a_silent_client_is_dropped(daemon: Daemon) -> None:
    """A client that says nothing, or half a line, is dropped when its time is over."""
    with daemon.connect() as silent, daemon.connect() as half:
        half.sendall(b'{"ask": "sta')
        daemon.turn()
        daemon.now_s += CLIENT_S
        daemon.turn()
        assert read(silent) == b""
        assert read(half) == b""
    assert honest(daemon)


def test_a_client_in_time_is_not_dropped(daemon: Daemon) -> None:
    """A question may come in pieces, as long as its time is not over."""
    with daemon.connect() as client:
        for piece in (b'{"ask', b'": "sta', b'tus"}'):
            client.sendall(piece)
            daemon.turn()
        client.sendall(b"\n")
        daemon.turn()
        assert json.loads(read(client)) == ANSWER


def test_a_crowd_is_turned_away(daemon: Daemon) -> None:
    """Of more clients than PER_USER the oldest silent ones go: who asks at once is answered."""
    with ExitStack() as crowd:
        clients = [crowd.enter_context(daemon.connect()) for _ in range(3 * PER_USER)]
        for early in clients[:-PER_USER]:
            assert read(early) == b""
        assert honest(daemon)
        daemon.now_s += CLIENT_S
        assert honest(daemon)


def test_a_client_that_leaves_is_forgotten(daemon: Daemon) -> None:
    """A client that is gone before its answer holds nothing up, however many there are."""
    for _ in range(3 * PER_USER):
        daemon.now_s += 1 / RATE
        client = daemon.connect()
        client.sendall(b'{"ask": "status"}\n')
        client.close()
        daemon.turn()
    assert honest(daemon)


def test_a_second_daemon_is_refused(daemon: Daemon) -> None:
    """Where a daemon answers, a second one does not start, and is told what to do."""
    with pytest.raises(CapstandError) as refused:
        Daemon(daemon.path)
    assert str(refused.value) == (
        f"{daemon.path}: another capstand is running there; stop it (systemctl stop capstand) or "
        "give this one its own --runtime directory"
    )
    daemon.turn()
    assert honest(daemon)


def test_a_busy_daemon_is_not_taken_for_a_dead_one(daemon: Daemon) -> None:
    """A daemon whose queue of clients is full keeps its socket."""
    with ExitStack() as crowd:
        for _ in range(4 * BACKLOG):
            client = crowd.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.setblocking(False)
            try:
                client.connect(str(daemon.path))
            except BlockingIOError:
                break
        else:
            pytest.fail("the queue of clients never filled")
        with pytest.raises(CapstandError, match="another capstand is running there"):
            Daemon(daemon.path)
    for _ in range(4):  # who has gone is let in, and out
        daemon.now_s += CONNECT_BURST / CONNECT_RATE
        daemon.turn()
    assert honest(daemon)


def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    """The socket of a daemon that was killed does not keep the next one from starting."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
        dead.listen()
    daemon = Daemon(path)
    assert honest(daemon)
    daemon.close()
    assert not path.exists()


def test_nobody_there_is_told(tmp_path: Path) -> None:
    """ask() says where it asked, why there is no answer and what to do."""
    with pytest.raises(CapstandError) as failed:
        ask(tmp_path / "control.sock", "status")
    assert str(failed.value) == (
        f"{tmp_path}/control.sock: cannot reach the daemon (No such file or directory); is it "
        "running (`systemctl status capstand`)? --runtime selects another directory"
    )


@pytest.mark.parametrize("answer", [b"", b"no JSON\n"])
def test_an_answer_that_is_none_is_told(tmp_path: Path, answer: bytes) -> None:
    """A peer that closes at once, or speaks something else, is no capstand."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1024)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(CapstandError, match="cannot reach the daemon"):
            ask(path, "status", PATIENCE_S)
        thread.join()


@pytest.mark.parametrize("length", [219_000, 5_000_000])
def test_an_answer_of_any_length_arrives_whole(tmp_path: Path, length: int) -> None:
    """An answer that is longer than what a socket holds comes in pieces, as they are taken."""
    entry = {"name": "x" * 900}
    daemon = Daemon(tmp_path / "s", {"streams": [entry] * (length // 900)})
    got: list[dict[str, Any]] = []
    client = threading.Thread(target=lambda: got.append(ask(daemon.path, "status", PATIENCE_S)))
    client.start()
    while client.is_alive():
        daemon.turn()
        client.join(0.01)
    assert got == [daemon.answer]
    daemon.close()


def test_a_client_that_does_not_take_its_answer_is_dropped(tmp_path: Path) -> None:
    """Who asks for a long answer and reads a little of it now and then has TAKE_S for the whole,
    and holds nobody up."""
    daemon = Daemon(tmp_path / "s", {"streams": ["x" * 900] * 3000})
    with daemon.connect() as slow:
        slow.sendall(b'{"ask": "status"}\n')
        daemon.turn()
        for _ in range(3):
            assert slow.recv(10)
            daemon.now_s += TAKE_S / 4
            daemon.turn()
            assert daemon.server._clients
        daemon.now_s += TAKE_S / 4
        daemon.turn()
        assert not daemon.server._clients
    daemon.close()


def test_an_answer_that_drips_has_one_deadline(tmp_path: Path) -> None:
    """Bytes that come one by one do not make ask() wait longer than it was told to."""
    path = tmp_path / "s"
    ended = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()

        def drip() -> None:
            client, _ = server.accept()
            with client, contextlib.suppress(OSError):
                for _ in range(500):
                    if ended.wait(0.02):
                        break
                    client.sendall(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        with pytest.raises(CapstandError, match=r"no complete reply within 0\.2 s"):
            ask(path, "status", 0.2)
        ended.set()
        thread.join()


def test_who_asks_too_often_waits_and_others_do_not(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Main answers one user BURST times at once and then RATE times a second, whatever is asked;
    another user is answered meanwhile."""
    everybody = iter([0] * int(BURST) + [0] * PER_USER + [1000, 0])
    monkeypatch.setattr(control, "peer_of", lambda _: Peer(1, next(everybody), frozenset()))
    with ExitStack() as stack:

        def asks() -> socket.socket:
            client = stack.enter_context(daemon.connect())
            client.sendall(b'{"ask": "status"}\n')
            daemon.turn()
            return client

        spent = 0.0
        for _ in range(int(BURST)):
            before = daemon.now_s
            assert json.loads(read(asks())) == ANSWER
            spent += daemon.now_s - before
        free = int(spent * RATE)  # what was allowed anew meanwhile
        waiting = [asks() for _ in range(PER_USER)]
        in_turn = daemon.answered
        assert int(BURST) <= in_turn <= int(BURST) + free + 1 + int(PER_USER * RATE / CONNECT_RATE)
        assert json.loads(read(asks())) == ANSWER  # another user
        daemon.now_s += 1 / RATE
        daemon.turn()
        assert daemon.answered == in_turn + 2
        del waiting


def test_one_question_too_many_is_told_to_come_again(daemon: Daemon) -> None:
    """Where PER_USER questions of a user wait, the next one is refused; ask() comes again by
    itself."""
    daemon.server._allowed = RateLimits(RATE, 0.0)
    with ExitStack() as stack:
        for _ in range(PER_USER):
            client = stack.enter_context(daemon.connect())
            client.sendall(b'{"ask": "status"}\n')
            daemon.turn()
        refused = json.loads(read(stack.enter_context(daemon.connect())))
        assert refused["busy"] is True and "too many requests from uid" in refused["error"]
        daemon.server._allowed = RateLimits(RATE, BURST)
        got: list[dict[str, Any]] = []
        late = threading.Thread(target=lambda: got.append(ask(daemon.path, "status", PATIENCE_S)))
        late.start()
        while late.is_alive():
            daemon.turn()
            late.join(0.01)
        assert got == [ANSWER]


def test_a_flood_of_connections_is_let_in_slowly(daemon: Daemon) -> None:
    """However many connect, so many are looked at in a moment; the others wait outside."""
    with ExitStack() as stack:
        for _ in range(int(CONNECT_BURST)):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(daemon.path))
        daemon.turn()
        outside = stack.enter_context(socket.socket(socket.AF_UNIX))
        outside.settimeout(PATIENCE_S)
        outside.connect(str(daemon.path))
        outside.sendall(b'{"ask": "status"}\n')
        daemon.turn()
        assert daemon.answered == 0
        daemon.now_s += 1 / CONNECT_RATE
        daemon.turn()
        assert json.loads(read(outside)) == ANSWER


def test_status_is_answered_when_no_descriptor_is_left(daemon: Daemon) -> None:
    """One descriptor is kept for who asks what is wrong when there is none left, again and again;
    what was let in by it is let out before the next."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
        highest = max(int(one.name) for one in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        held: list[int] = []
        stack.callback(lambda: list(map(os.close, held)))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for client in clients:
            client.settimeout(PATIENCE_S)
            client.connect(str(daemon.path))
            client.sendall(b'{"ask": "status"}\n')
        for client in clients:
            deadline = time.monotonic() + PATIENCE_S
            while not select.select([client], [], [], 0.01)[0]:
                daemon.turn()
                assert time.monotonic() < deadline
            daemon.turn()
            assert json.loads(read(client)) == ANSWER
    assert honest(daemon)


@pytest.mark.parametrize(
    "trouble",
    ["\udcff", "a\x00b", "\x1b[2J", "x" * 100_000, "\u202eabc", "a\nb", float("nan"), 1 << 70],
)
def test_an_answer_is_json_whatever_it_tells(daemon: Daemon, trouble: object) -> None:
    """What travels is JSON that every reader takes, and no text in it steers a terminal."""
    daemon.answer = {"trouble": trouble, str(trouble): [trouble, {"deep": trouble}]}
    with daemon.connect() as client:
        client.sendall(b'{"ask": "status"}\n')
        daemon.turn()
        raw = read(client)
    assert b"NaN" not in raw and len(raw) < 10_000
    told = json.loads(raw)["trouble"]
    assert told is None or (told.isprintable() and len(told) <= clean.LONGEST)


def test_a_question_that_cannot_be_answered_costs_nobody_else(daemon: Daemon) -> None:
    """An error in working out an answer is the answer."""
    nothing: dict[str, object] = {}
    daemon.server._answers["broken"] = lambda: {"x": nothing["missing"]}
    assert "KeyError" in daemon.say(b'{"ask": "broken"}\n')["error"]
    assert honest(daemon)


@pytest.mark.parametrize(
    "answer", ["[]", "5", "null", "[" * 100_000, '{"a": ' * 50_000, "1" * 10_000, "\udcff"]
)
def test_an_answer_of_another_shape_is_told(tmp_path: Path, answer: str) -> None:
    """ask() takes nothing but a table, however it is nested."""
    raw = answer.encode(errors="surrogatepass")
    refused = pytest.raises(CapstandError, match="cannot reach the daemon")
    with replying(tmp_path / "s", raw) as path, refused:
        ask(path, "status", PATIENCE_S)


def test_an_answer_without_end_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than MOST_BYTES is no answer."""
    monkeypatch.setattr(control, "MOST_BYTES", 100_000)
    refused = pytest.raises(CapstandError, match="a reply of more than 100000 bytes")
    with replying(tmp_path / "s", b" " * 1_000_000) as path, refused:
        ask(path, "status", PATIENCE_S)


@contextlib.contextmanager
def replying(path: Path, answer: bytes) -> Iterator[Path]:
    """A server that says ``answer`` to all who ask."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client, contextlib.suppress(OSError):
                        client.recv(1024)
                        client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_peer_that_keeps_silent_is_told(tmp_path: Path) -> None:
    """A daemon that hangs is told after the time the question was given."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(CapstandError, match="cannot reach the daemon"):
            ask(path, "status", 0.01)
