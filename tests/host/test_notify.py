"""What systemd is told, at its socket: one field a line, none of them forged, nobody waited for."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstand.host.notify import MAX_BYTES, Notifier

PATIENCE_S = 10.0


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(tmp_path / "notify"))
        one.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield one


@given(st.text(st.characters(exclude_categories=()), max_size=300))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_forges_a_field(systemd: socket.socket, text: str) -> None:
    """Whatever a status tells, it is the one field of its datagram; nothing raises."""
    Notifier().status(f"mic: {text}")
    got = systemd.recv(65536).decode()
    assert got.startswith("STATUS=") and got.isprintable()
    Notifier().failed(5, text)
    errno, status = systemd.recv(65536).decode().split("\n")
    assert errno == "ERRNO=5" and status.startswith("STATUS=") and status.isprintable()


@pytest.mark.parametrize(
    "text", ["a\nSTOPPING=1", "\udcff\nWATCHDOG=trigger", "a\x00b", "ü" * 9000]
)
def test_what_is_told_is_one_field_that_systemd_takes(systemd: socket.socket, text: str) -> None:
    """A line of its own, a lone surrogate, a NUL and a text that is too long are told all the
    same; systemd ignores a datagram of more than 4096 bytes."""
    Notifier().status(text)
    got = systemd.recv(65536)
    assert got.count(b"\n") == 0 and b"\0" not in got and len(got) <= MAX_BYTES < 4096


def test_a_manager_that_does_not_listen_is_not_waited_for(systemd: socket.socket) -> None:
    """When its socket is full nothing more is sent; what has changed since is told when it reads
    again."""
    script = (
        "from capstand.host.notify import Notifier; notifier = Notifier()\n"
        "for number in range(2000): notifier.status(str(number))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    notifier = Notifier()
    told = systemd.recv(65536)
    assert told == b"STATUS=0"
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            told = systemd.recv(65536)
    assert told != b"STATUS=1999"
    notifier.status("1999")
    assert systemd.recv(65536) == b"STATUS=1999"


@pytest.mark.parametrize(
    "path", ["relative", "/dev/null", "/nowhere/notify", "@capstand-none", "/" + "x" * 300]
)
def test_a_socket_that_is_none_is_not_minded(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Whatever NOTIFY_SOCKET names, telling it raises nothing."""
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    notifier = Notifier()
    notifier.ready()
    notifier.status("x")
    notifier.alive()
    notifier.stopping()
    notifier.failed(1, "x")
