"""Log lines: to the journal with fields (STREAM=, DEVICE=, LOST_FRAMES=, SINK=), or plain.

A fault that repeats is said once, then counted: at most one line a minute for each kind of message,
stream, sink and channel, and the line says how many there were.

The journal is written to directly, as datagrams that are never waited for: systemd-python's journal
module holds Python's lock while it blocks, so a stalled journald would stop capture. A line that
cannot be sent is counted and the count goes with the next one. Threads: any but capture and push
while they run; mostly main, and in a sink's process those that look after a channel.
"""

import contextlib
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

JOURNAL_SOCKET = "/run/systemd/journal/socket"
REPEAT_S = 60.0
MAX_FIELD = 4096

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
log = logging.getLogger("capstand")


def setup(before: Callable[[], None] = lambda: None, journal: bool | None = None) -> "Repeats":
    """Sends the log where the process was started from: journal under systemd, else stderr.

    ``before`` is called ahead of each plain line (to clear a live line).
    """
    handler: logging.Handler
    if journal if journal is not None else _started_by_systemd():
        handler = JournalHandler()
    else:
        handler = PlainHandler(before)
    repeats = Repeats()
    handler.addFilter(repeats)
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    return repeats


def say(level: int, message: str, *args: object, **fields: object) -> None:
    """One line; ``message`` is a template, and with STREAM and SINK the key for repeats."""
    log.log(level, message, *args, extra={"fields": fields})


class Repeats(logging.Filter):
    """Lets a message through once per ``REPEAT_S`` and counts the others."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._said: dict[tuple[object, ...], float] = {}
        self._kept: dict[tuple[object, ...], tuple[int, logging.LogRecord]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "counted", False):
            return True
        fields: dict[str, Any] = getattr(record, "fields", {})
        key = (record.msg, *(fields.get(name) for name in ("STREAM", "SINK", "CHANNEL")))
        now = self._now()
        if now - self._said.get(key, -REPEAT_S) < REPEAT_S:
            count, _ = self._kept.get(key, (0, record))
            self._kept[key] = (count + 1, record)
            return False
        self._said[key] = now
        count, _ = self._kept.pop(key, (0, record))
        if count:
            _append(record, count)
        return True

    def tell(self, *, all_now: bool = False) -> None:
        """Says what was held back and is due; called now and then, and at the end."""
        now = self._now()
        for key, (_, record) in list(self._kept.items()):
            if all_now or now - self._said[key] >= REPEAT_S:
                count, _ = self._kept.pop(key, (0, record))
                if not count:
                    continue  # another thread has just said it
                self._said[key] = now
                if count > 1:
                    _append(record, count - 1)
                record.counted = True
                log.handle(record)


def _append(record: logging.LogRecord, count: int) -> None:
    record.args, record.msg = (), f"{record.getMessage()} (and {count} more like it)"


class PlainHandler(logging.Handler):
    """Lines for a terminal or a file."""

    def __init__(self, before: Callable[[], None]) -> None:
        super().__init__()
        self._before = before

    def emit(self, record: logging.LogRecord) -> None:
        word = {logging.WARNING: "warning: ", logging.ERROR: "error: "}.get(record.levelno, "")
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        with contextlib.suppress(OSError):  # a terminal that is gone, a log on a full disk
            self._before()
            sys.stderr.write(f"{stamp} {word}{record.getMessage()}\n")
            sys.stderr.flush()


class JournalHandler(logging.Handler):
    """Entries with fields, in journald's native protocol."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._missed = 0

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = {
            "MESSAGE": record.getMessage(),
            "PRIORITY": _PRIORITY.get(record.levelno, 5),
            "SYSLOG_IDENTIFIER": "capstand",
            **getattr(record, "fields", {}),
        }
        if self._missed:
            fields["MISSED_LINES"] = self._missed
        try:
            self._socket.sendto(b"".join(_encoded(*one) for one in fields.items()), self._path)
            self._missed = 0
        except OSError:
            self._missed += 1


def _encoded(key: str, value: object) -> bytes:
    raw = str(value).encode(errors="replace")[:MAX_FIELD]
    if b"\n" in raw:
        return key.encode() + b"\n" + struct.pack("<Q", len(raw)) + raw + b"\n"
    return key.encode() + b"=" + raw + b"\n"


def _started_by_systemd() -> bool:
    """Whether stderr is the journal's stream (then JOURNAL_STREAM names its device and inode)."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    mine = f"{status.st_dev}:{status.st_ino}"
    return os.environ.get("JOURNAL_STREAM") == mine and Path(JOURNAL_SOCKET).exists()
