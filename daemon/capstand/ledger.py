"""The ledger on disk: one line of JSON per event, so that in the morning the books can be read.

``start`` and ``stop`` of a run, ``grant`` when a device was opened, every ``gap`` with its first
frame, length, time, cause and whether it was counted or estimated, every ``drop`` of sound that a
sink missed, every ``release`` of a device to another program and its ``resume``, and ``total`` with
the sums every few minutes. A file that has grown to ``LIMIT_BYTES`` becomes ``.1`` and a new one
begins. A disk that refuses is told once; the counting goes on in memory.

Threads: ``write`` is for those that must not wait for a disk, main above all; a thread of its own
writes.
"""

import contextlib
import json
import os
import queue
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

LIMIT_BYTES = 4_000_000
BACKLOG = 10_000


class Ledger:
    """The ledger files of all streams in ``folder``; ``trouble`` says why one cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trouble: str | None = None
        self._lines: queue.SimpleQueue[tuple[Path, bytes] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def path(self, stream: str) -> Path:
        return self.folder / f"{stream}.jsonl"

    def write(self, stream: str, event: str, **what: object) -> None:
        """``at`` is wall time for people, ``monotonic_ns`` is the order of things."""
        line = json.dumps(
            {
                "event": event,
                "at": wall_time(now_ns := time.monotonic_ns()),
                "monotonic_ns": now_ns,
                **what,
            }
        )
        if self._lines.qsize() < BACKLOG:
            self._lines.put((self.path(stream), line.encode() + b"\n"))
        else:
            self.trouble = f"{self.folder}: the disk hangs; the ledger is kept in memory only"

    def close(self, timeout_s: float) -> None:
        """Writes what is left, as far as that goes in time."""
        self._lines.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._lines.get()) is not None:
            path, line = item
            try:
                _append(path, line)
                self.trouble = None
            except OSError as error:
                self.trouble = f"{path}: {error.strerror}; the ledger is kept in memory only"


def wall_time(at_ns: int) -> str:
    """A moment of CLOCK_MONOTONIC as wall time (UTC, ISO 8601), for people."""
    age_ns = time.monotonic_ns() - at_ns
    at_s = (time.time_ns() - age_ns) / 1e9
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LIMIT_BYTES:
            path.replace(path.with_suffix(".jsonl.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
