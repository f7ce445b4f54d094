"""The ledger on disk: one line of JSON per event, so that in the morning the books can be read.

``start`` and ``stop`` of a run, ``grant`` when a device was opened, ``join`` and ``leave`` of a
sink that came or went meanwhile, every ``gap`` with its first frame, length, time, cause and
whether it was counted or estimated, every ``drop`` of sound that a sink missed, ``spool_begin``,
``spool_drop`` and ``spool_end`` where sound waits on disk for its sink, every ``release`` of a
device to another program and its ``resume``, and ``total`` with the sums every few minutes. A file
that has grown to ``LIMIT_BYTES`` becomes ``.1`` and a new one begins. A disk that refuses is told
once; the lines wait in memory, up to ``BACKLOG`` of them, and are written when it takes them. What
is written is on the disk at once, for a power cut; a line that one tore is ended by the next.

Threads: ``write`` is for those that must not wait for a disk, main above all; a thread of its own
writes.
"""

import contextlib
import errno
import json
import os
import queue
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

LIMIT_BYTES = 4_000_000
BACKLOG = 10_000
RETRY_S = 2.0


class Ledger:
    """The ledger files of all streams in ``folder``; ``trouble`` says why one cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trouble: str | None = None
        self._lines: queue.SimpleQueue[tuple[Path, bytes] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
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
            self.trouble = f"{self.folder}: the disk has hung for too long; lines are missing"

    def close(self, timeout_s: float) -> None:
        """Writes what is left, as far as that goes in time and at the first try."""
        self._closing.set()
        self._lines.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._lines.get()) is not None:
            while not self._written(*item):
                if self._closing.wait(RETRY_S):
                    break

    def _written(self, path: Path, line: bytes) -> bool:
        try:
            _append(path, line, sync=self._lines.empty())
        except (OSError, MemoryError) as error:
            reason = error.strerror if isinstance(error, OSError) else "out of memory"
            self.trouble = (
                f"{path}: {reason}; its lines wait in memory; "
                "check that the disk has room and may be written"
            )
            return False
        self.trouble = None
        return True


def wall_time(at_ns: int) -> str:
    """A moment of CLOCK_MONOTONIC as wall time (UTC, ISO 8601), for people."""
    age_ns = time.monotonic_ns() - at_ns
    at_s = (time.time_ns() - age_ns) / 1e9
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")


def _append(path: Path, line: bytes, sync: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LIMIT_BYTES:
            path.replace(path.with_suffix(".jsonl.1"))
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o644)
    try:
        length = os.fstat(descriptor).st_size
        if length and os.pread(descriptor, 1, length - 1) != b"\n":
            line = b"\n" + line
        written = os.write(descriptor, line)
        if written < len(line):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if sync:
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
