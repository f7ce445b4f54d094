"""One JSON object per line over a unix socket: the guest agent's protocol and the qemu monitor's
(QMP).
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any


class WireError(RuntimeError):
    """The other side refused a command, or did not answer in time."""


class Wire:
    """Calls commands on the far end of a socket that qemu listens on; usable from several
    threads.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._buffer = b""
        self._lock = threading.Lock()

    def close(self) -> None:
        self._socket.close()

    def call(self, command: str, /, *, timeout_s: float = 30, **arguments: object) -> Any:
        """The command's return value. Argument names are written with _ for -."""
        request: dict[str, object] = {"execute": command}
        if arguments:
            named = {name.replace("_", "-"): value for name, value in arguments.items()}
            request["arguments"] = named
        with self._lock:
            deadline = time.monotonic() + timeout_s
            self._socket.settimeout(timeout_s)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while True:
                answer = self._line(deadline)
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise WireError(f"{command}: {answer['error'].get('desc', answer['error'])}")

    def synchronise(self, timeout_s: float) -> bool:
        """Whether the agent answers within the time; drops what it still had to say to earlier
        calls.
        """
        number = secrets.randbelow(1 << 31)
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        with self._lock:
            deadline = time.monotonic() + timeout_s
            self._socket.settimeout(timeout_s)
            try:
                self._socket.sendall(b"\xff" + json.dumps(request).encode() + b"\n")
                while self._line(deadline).get("return") != number:
                    pass
            except (WireError, TimeoutError, BrokenPipeError):
                return False
        return True

    def _line(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise WireError("no answer in time")
            self._socket.settimeout(left_s)
            try:
                received = self._socket.recv(1 << 20)
            except TimeoutError:
                continue
            except OSError as error:
                raise WireError(f"connection lost: {error}") from error
            if not received:
                raise WireError("connection closed by qemu")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        # The agent marks the answer to a synchronisation with a byte that JSON cannot hold.
        answer: dict[str, Any] = json.loads(line.rpartition(b"\xff")[2] or b"{}")
        return answer
