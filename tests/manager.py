"""The service manager's side of sd_notify: it listens at any time, as systemd does. Somebody who
listens only now and then holds the daemon up, because a full socket makes the one who tells wait.
"""

import queue
import socket
import threading
import time
from pathlib import Path

from tests.patience import PATIENCE_S


class Manager:
    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._told: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while text := self._socket.recv(65536).decode():
            self._told.put((time.monotonic(), text))

    def next(self, patience_s: float = PATIENCE_S) -> tuple[float, str]:
        """What was told next, and when; queue.Empty where nothing is."""
        return self._told.get(timeout=patience_s)

    def forget(self) -> None:
        """What was told until now."""
        while not self._told.empty():
            self._told.get()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RD)
        self._thread.join()
        self._socket.close()
