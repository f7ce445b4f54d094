"""The control socket: honest questions are answered, everything else is harmless."""

import json
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstand import control
from capstand.control import MAX_CLIENTS, MAX_REQUEST, ControlServer, ask
from capstand.errors import CapstandError
from tests.patience import PATIENCE_S

ANSWER = {"version": "1", "streams": [{"name": "mic"}]}


class Daemon:
    """The main thread's loop around a server, driven by the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.selector = selectors.DefaultSelector()
        self.server = ControlServer(path, self.selector, {"status": lambda: ANSWER})

    def turn(self) -> None:
        """Handles all that is ready now."""
        while ready := self.selector.select(0):
            for key, _ in ready:
                key.data()

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(PATIENCE_S)
        client.connect(str(self.path))
        self.turn()
        return client

    def say(self, raw: bytes) -> dict[str, Any]:
        """What a client is answered that sends these bytes and no more."""
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
        for key, _ in daemon.selector.select(0.05):
            key.data()
    client.join()
    assert got == [ANSWER]


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


def test_a_silent_client_is_dropped(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that says nothing, or half a line, is dropped when its time is over."""
    monkeypatch.setattr(control, "CLIENT_S", -1.0)
    with daemon.connect() as silent, daemon.connect() as half:
        half.sendall(b'{"ask": "sta')
        daemon.turn()
        daemon.server.expire()
        assert read(silent) == b""
        assert read(half) == b""
    assert honest(daemon)


def test_a_client_in_time_is_not_dropped(daemon: Daemon) -> None:
    """A question may come in pieces, as long as its time is not over."""
    with daemon.connect() as client:
        for piece in (b'{"ask', b'": "sta', b'tus"}'):
            client.sendall(piece)
            daemon.turn()
            daemon.server.expire()
        client.sendall(b"\n")
        daemon.turn()
        assert json.loads(read(client)) == ANSWER


def test_a_crowd_is_turned_away(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more clients than MAX_CLIENTS the oldest silent ones go: who asks at once is answered."""
    monkeypatch.setattr(control, "CLIENT_S", -1.0)
    with ExitStack() as crowd:
        clients = [crowd.enter_context(daemon.connect()) for _ in range(3 * MAX_CLIENTS)]
        for early in clients[:-MAX_CLIENTS]:
            assert read(early) == b""
        assert honest(daemon)
        daemon.server.expire()
        assert honest(daemon)


def test_a_client_that_leaves_is_forgotten(daemon: Daemon) -> None:
    """A client that is gone before its answer holds nothing up, however many there are."""
    for _ in range(3 * MAX_CLIENTS):
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
        f"{daemon.path}: another capstand answers there; stop it (systemctl stop capstand) "
        "or give this one its own --runtime directory"
    )
    daemon.turn()
    assert honest(daemon)


def test_a_busy_daemon_is_not_taken_for_a_dead_one(daemon: Daemon) -> None:
    """A daemon whose queue of clients is full keeps its socket."""
    with ExitStack() as crowd:
        for _ in range(4 * MAX_CLIENTS):
            client = crowd.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.setblocking(False)
            try:
                client.connect(str(daemon.path))
            except BlockingIOError:
                break
        else:
            pytest.fail("the queue of clients never filled")
        with pytest.raises(CapstandError, match="another capstand answers there"):
            Daemon(daemon.path)
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
        f"{tmp_path}/control.sock: no capstand answers (No such file or directory); is it running? "
        "`systemctl status capstand` tells; --runtime names another directory"
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
        with pytest.raises(CapstandError, match="no capstand answers"):
            ask(path, "status", PATIENCE_S)
        thread.join()


def test_a_peer_that_keeps_silent_is_told(tmp_path: Path) -> None:
    """A daemon that hangs is told after the time the question was given."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(CapstandError, match="no capstand answers"):
            ask(path, "status", 0.01)
