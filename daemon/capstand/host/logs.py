"""Log lines: to the journal with fields (STREAM=, DEVICE=, LOST_FRAMES=, SINK=), or plain.

A fault that repeats is said once, then counted: at most one line a minute for each kind of message,
stream, sink and channel. The line says how many there were and carries the fields of all of them,
so a search such as ``LOST_FRAMES=480`` finds every one. A kind is a template: values are arguments
and fields, never part of it. Texts among the arguments that differ in more than numbers are told
apart, up to ``MOST_TEXTS`` of a kind.

The journal is written to directly, as datagrams that are never waited for: systemd-python's journal
module holds Python's lock while it blocks, so a stalled journald would stop capture. A line that
cannot be sent is counted and the count goes with the next one. Threads: any but capture and push
while they run; mostly main, and in a sink's process those that look after a channel.
"""

import contextlib
import logging
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from capstand.text import clean

JOURNAL_SOCKET = "/run/systemd/journal/socket"
REPEAT_S = 60.0
MAX_FIELD = 4096
KIND_FIELDS = ("STREAM", "SINK", "CHANNEL", "KIND")
MOST_TEXTS = 4
MOST_KINDS = 256
MOST_KEPT = 100
MOST_CHARACTERS = 20_000
"""So many lines are held back, and then told before their minute is over: an entry with the fields
of all of them has to fit into one datagram."""
LONGEST_SHAPE = 200
MAX_MESSAGE = 16 * MAX_FIELD  # a traceback

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
log = logging.getLogger("capstand")


def setup(before: Callable[[], None] = lambda: None, journal: bool | None = None) -> "RepeatFilter":
    """Sends the log where the process was started from: journal under systemd, else stderr.

    ``before`` is called ahead of each plain line (to clear a live line).
    """
    handler: logging.Handler
    if journal if journal is not None else _started_by_systemd():
        handler = JournalHandler()
    else:
        handler = PlainHandler(before)
    repeats = RepeatFilter()
    handler.addFilter(repeats)
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    return repeats


def log_event(level: int, message: str, *args: object, **fields: object) -> None:
    """One line; ``message`` is a template, and with STREAM, SINK, CHANNEL and KIND the key for
    repeats.
    """
    log.log(level, message, *args, extra={"fields": fields})


class _Kept:
    """Lines of one kind that were held back: their number, the last one, the fields of all."""

    def __init__(self) -> None:
        self.count = 0
        self.record: logging.LogRecord | None = None
        self._values: dict[str, dict[str, object]] = {}
        self._size = 0

    @property
    def full(self) -> bool:
        """Whether one more would be more than an entry takes."""
        return self.count + 1 >= MOST_KEPT or self._size >= MOST_CHARACTERS

    def add(self, record: logging.LogRecord) -> None:
        self.count += 1
        self.record = record
        self._note(record)

    def _note(self, record: logging.LogRecord) -> None:
        for name, value in getattr(record, "fields", {}).items():
            values, text = self._values.setdefault(name, {}), str(value)[:MAX_FIELD]
            if text not in values:
                values[text] = value
                self._size += len(name) + len(text)

    def join(self, record: logging.LogRecord, more: int) -> None:
        """Lets ``record`` stand for ``more`` others too."""
        self._note(record)
        record.fields = {
            name: tuple(values.values()) if len(values) > 1 else next(iter(values.values()))
            for name, values in self._values.items()
        }
        if more:
            record.args, record.msg = (), f"{_text(record)} (and {more} more like it)"


class RepeatFilter(logging.Filter):
    """Lets a message through once per ``REPEAT_S`` and counts the others."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._lock = threading.Lock()  # never held while a line is sent
        self._said: dict[_Key, float] = {}  # in the order of the times
        self._kept: dict[_Key, _Kept] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "counted", False):
            return True
        with self._lock:
            now = self._now()
            key = self._key(record, now)
            kept = self._kept.get(key)
            if self._fresh(key, now) and not (kept and kept.full):
                self._kept.setdefault(key, _Kept()).add(record)
                return False
            pushed_out = self._make_room(key)
            self._mark(key, now)
            if kept is not None:
                del self._kept[key]
                kept.join(record, kept.count)
        self._tell(pushed_out)
        return True

    def tell(self, *, all_now: bool = False, **fields: object) -> None:
        """Says what was held back and is due, of lines that have these fields; called now and
        then, and at the end.
        """
        wanted = fields.items()
        while True:
            with self._lock:
                now = self._now()
                due = [
                    (record.created, key)
                    for key, kept in self._kept.items()
                    if (record := kept.record) is not None
                    and (all_now or not self._fresh(key, now))
                    and wanted <= getattr(record, "fields", {}).items()
                ]
                if not due:
                    self._forget(now)
                    return
                _, key = min(due, key=lambda one: one[0])
                kept = self._kept.pop(key)
                self._mark(key, now)
            self._tell([kept])

    def _tell(self, several: "list[_Kept]") -> None:
        for kept in several:
            record = kept.record
            assert record is not None
            kept.join(record, kept.count - 1)
            record.counted = True
            record.created = time.time()  # the log stays in the order of its times
            log.handle(record)

    # Under the lock

    def _key(self, record: logging.LogRecord, now: float) -> "_Key":
        fields: dict[str, Any] = getattr(record, "fields", {})
        kind = (_shape(record.msg), *(str(fields.get(name)) for name in KIND_FIELDS))
        args = record.args if isinstance(record.args, tuple) else ()
        texts = tuple(_shape(arg) for arg in args if not isinstance(arg, int | float))
        if (kind, texts) in self._said:
            return kind, texts
        others = sum(one[0] == kind and self._fresh(one, now) for one in self._said)
        return (kind, texts) if others < MOST_TEXTS else (kind, ())

    def _fresh(self, key: "_Key", now: float) -> bool:
        return now - self._said.get(key, -REPEAT_S) < REPEAT_S

    def _mark(self, key: "_Key", now: float) -> None:
        self._said.pop(key, None)
        self._said[key] = now

    def _make_room(self, key: "_Key") -> "list[_Kept]":
        """Forgets the oldest where there are too many; what was held back of it is to be told."""
        if key in self._said or len(self._said) < MOST_KINDS:
            return []
        oldest = next(iter(self._said))
        del self._said[oldest]
        return [self._kept.pop(oldest)] if oldest in self._kept else []

    def _forget(self, now: float) -> None:
        for key in [one for one in self._said if not self._fresh(one, now)]:
            if key not in self._kept:
                del self._said[key]


_Key = tuple[tuple[str, ...], tuple[str, ...]]


def _shape(value: object) -> str:
    """A text without what is only a number in it."""
    return re.sub(r"[0-9]+", "0", str(value)[:LONGEST_SHAPE])


def tell_held_back(**fields: object) -> None:
    """Says now what is held back of lines with these fields: before the last line of a stream."""
    for handler in log.handlers:
        for one in handler.filters:
            if isinstance(one, RepeatFilter):
                one.tell(all_now=True, **fields)


class PlainHandler(logging.Handler):
    """Lines for a terminal or a file."""

    def __init__(self, before: Callable[[], None]) -> None:
        super().__init__()
        self._before = before

    def emit(self, record: logging.LogRecord) -> None:
        word = {logging.WARNING: "warning: ", logging.ERROR: "error: "}.get(record.levelno, "")
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        # A terminal that is gone, a log on a full disk, a stream that was closed.
        with contextlib.suppress(OSError, ValueError):
            self._before()
            sys.stderr.write(f"{stamp} {word}{_message(record)}\n")
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
            "MESSAGE": _message(record),
            "PRIORITY": _PRIORITY.get(record.levelno, 5),
            "SYSLOG_IDENTIFIER": "capstand",
            **getattr(record, "fields", {}),
        }
        if self._missed:
            fields["MISSED_LINES"] = self._missed
        try:
            entry = b"".join(_encoded(*one) for one in _each(fields))
            self._socket.sendto(entry, self._path)
            self._missed = 0
        except OSError:
            self._missed += 1


def _each(fields: dict[str, object]) -> Iterator[tuple[str, object]]:
    """A field may have several values; journald keeps, and finds, each of them."""
    for name, value in fields.items():
        for one in value if isinstance(value, tuple) else (value,):
            yield name, one


def _message(record: logging.LogRecord) -> str:
    """One clean line, and below it, set in, a traceback if it has one (``bug.tell``)."""
    text = _text(record)
    if not getattr(record, "has_traceback", False):
        return clean.line(text, MAX_FIELD)
    return clean.lines(text).replace("\n", "\n    ")


def _text(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  a template and values that do not fit are a bug, no silence
        return f"{record.msg} {record.args}"


def _encoded(key: str, value: object) -> bytes:
    if key == "MESSAGE":
        raw = str(value).encode()[:MAX_MESSAGE]
    else:
        raw = clean.field(value, MAX_FIELD).encode()
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
