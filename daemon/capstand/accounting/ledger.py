"""The ledger on disk: one line of JSON per event, so that losses can be looked up later.

``start`` and ``stop`` of a run, ``opened`` when a device was opened, ``sink_added`` and
``sink_removed`` for a sink that came or went meanwhile, every ``gap`` with its first frame, length,
time, cause and whether it was counted or estimated, every ``drop`` of sound that a sink missed,
``spool_begin``, ``spool_drop`` and ``spool_end`` where sound waits on disk for its sink, every
``release`` of a device to another program and its ``resume``, and ``total`` with the sums every few
minutes. What is written is on the disk at once, for a power cut; a line that one tore is ended by
the next.

A full file is compressed and kept for ``keep_days``, as far as ``max_mb`` go (``file.py``); what is
deleted leaves a line ``forgotten``. The sums of a day are never deleted (``days.py``). Some events
can be caused by others, such as ``release``, and must not push out the rest: each kind has an
allowance of lines, and what comes beyond it, or while the disk does not take lines, is summed up in
one line a minute: ``count``, and the sum of its ``frames``.

A disk that refuses is told once; lines wait in memory, up to ``BACKLOG`` of a stream. Each stream
has its own file and its own trouble.

Threads: ``write`` is for those that must not wait for a disk, main above all; it takes a lock that
nobody holds for longer than it takes to queue a line. A thread of its own writes.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from capstand.accounting.days import DayTotalsFile
from capstand.accounting.file import LedgerFile
from capstand.config.schema import LedgerConfig
from capstand.host import bug
from capstand.host.logs import log_event
from capstand.text import clean

BACKLOG = 10_000
RETRY_S = 2.0
SUM_S = 60.0
TIDY_S = 6 * 3600.0
DAY_S = 86_400.0
LONGEST_TEXT = 500
MOST_SUMS = 256
GAP_ALLOWANCE = (50_000, 10_000)
ALLOWANCE = {"gap released": (1_000, 500), "total": (5_000, 2_000)}
OTHER_ALLOWANCE = (1_000, 500)
"""Lines of one kind at once, and so many more a day; gaps by their cause. What members of the group
audio can cause, at its limit for a year, is less than the default ``max_mb``; a night with a gap
each second has a line for each."""
STEADY = ("start", "stop", "forgotten")
SAVED_WITH = (b'{"event": "total"', b'{"event": "stop"')

Entry = dict[str, Any]


class RetentionLimits(NamedTuple):
    """For how long each stream's ledger is kept, and in how much room."""

    days: int = 366
    max_bytes: int = 200_000_000


KEEP = RetentionLimits()


def keep(config: LedgerConfig) -> RetentionLimits:
    return RetentionLimits(config.keep_days, config.max_mb * 1_000_000)


class Ledger:
    """The ledger files of all streams in ``folder``; ``trouble`` says why one cannot be written.

    ``clock_sure`` says whether wall time is known to be right: nothing is deleted for its age by a
    clock that may be wrong.
    """

    def __init__(
        self,
        folder: Path,
        kept: RetentionLimits = KEEP,
        clock_sure: Callable[[], bool] = lambda: False,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.kept = kept
        self._clock_sure = clock_sure
        self._now_s = now_s
        self._books: dict[str, _Book] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def path(self, stream: str) -> Path:
        return self.folder / f"{stream}.jsonl"

    @property
    def trouble(self) -> str | None:
        return next((book.trouble for book in tuple(self._books.values()) if book.trouble), None)

    def write(self, stream: str, event: str, **what: object) -> None:
        """``at`` is wall time for people, ``monotonic_ns`` is the order of things."""
        entry = {"event": event, **_now(), **_bounded(what)}
        with self._changed:
            if stream not in self._books:
                self._books[stream] = _Book(self.folder, stream)
            self._books[stream].take(entry, self._now_s())
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Writes what is left, as far as that goes in time and at the first try."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        for stream, book in self._books.items():
            if left := book.waiting:
                log_event(
                    logging.ERROR,
                    "%s: %d ledger lines were lost; they could not be written in time",
                    *(self.path(stream), left),
                    STREAM=stream,
                )

    def _run(self) -> None:
        while True:
            with self._changed:
                closing, now_s = self._closing, self._now_s()
                due = [
                    book for book in self._books.values() if closing or book.due_s(now_s) <= now_s
                ]
                for one in due:
                    one.release(now_s, everything=closing)
                if not due and not closing:
                    ahead = (book.due_s(now_s) for book in self._books.values())
                    self._changed.wait(max(0.0, min(ahead, default=now_s + TIDY_S) - now_s))
                    continue
            for one in due:
                try:
                    one.put(now_s, self.kept, self._wall_s, tidy=not closing)
                except Exception as error:  # noqa: BLE001  one stream's ledger is not all of them
                    one.fail(bug.log_unexpected("ledger", error), now_s)
            if closing:
                return

    def _wall_s(self) -> float | None:
        return time.time() if self._clock_sure() else None


class _Book:
    """What waits for one stream's file. ``take`` and ``release`` are under the ledger's lock, the
    rest is for its thread.
    """

    def __init__(self, folder: Path, stream: str) -> None:
        self.trouble: str | None = None
        self._stream = stream
        self._lines: deque[bytes] = deque()
        self._sums: dict[tuple[object, ...], _Sum] = {}
        self._rate_limits: dict[str, _RateLimit] = {}
        self._file = LedgerFile(folder, stream, self._put_aside)
        self._days = DayTotalsFile(folder, stream)
        self._retry_s = 0.0
        self._tidy_s = 0.0
        self._begun = False
        self._save = False

    # From any thread

    @property
    def waiting(self) -> int:
        return len(self._lines)

    def take(self, entry: Entry, now_s: float) -> None:
        event = entry["event"]
        key = (event, *(entry.get(name) for name in ("sink", "cause", "exact", "reason")))
        if event not in STEADY:
            key = key if key in self._sums or len(self._sums) < MOST_SUMS else (event,)
            kind = f"{event} {entry.get('cause', '')}".strip()
            rate_limit = self._rate_limits.setdefault(kind, _RateLimit(kind, now_s))
            held = key in self._sums or len(self._lines) >= BACKLOG
            if held or not rate_limit.takes(now_s):
                self._sums.setdefault(key, _Sum(now_s)).add(entry)
                return
        self._lines.append(_encoded(entry))

    def due_s(self, now_s: float) -> float:
        """When there is something to do."""
        ready = [one.due_s for one in self._sums.values()] if len(self._lines) < BACKLOG else []
        first = now_s if self._lines else min(ready, default=self._tidy_s)
        return max(first, self._retry_s)

    def release(self, now_s: float, *, everything: bool) -> None:
        """Lines for the sums whose time has come."""
        for key, one in list(self._sums.items()):
            if everything or (now_s >= one.due_s and len(self._lines) < BACKLOG):
                del self._sums[key]
                self._lines.append(_encoded(one.entry()))

    # The ledger's thread

    def put(
        self, now_s: float, kept: RetentionLimits, wall_s: Callable[[], float | None], *, tidy: bool
    ) -> None:
        if not self._begun:
            self._begun = True
            self._days.replay(*self._file.tail())
        try:
            self._file.append(self._lines, self._written)
        except (OSError, MemoryError) as error:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else ""
            self.fail(reason or "out of memory", now_s)
            return
        self.trouble, self._retry_s = None, 0.0
        self._save_days()
        if tidy and (now_s >= self._tidy_s or self._file.full):
            self._tidy_s = now_s + TIDY_S
            self._tidy(kept, wall_s())

    def fail(self, reason: str, now_s: float) -> None:
        self._retry_s = now_s + RETRY_S
        self.trouble = (
            f"{self._file.path}: {reason}; its lines are kept in memory; check that the disk is "
            "writable and has space"
        )

    def _written(self, line: bytes) -> None:
        self._days.add(clean.parsed(line))
        self._save = self._save or line.startswith(SAVED_WITH)

    def _save_days(self) -> None:
        """Where it fails the sums wait in memory until the next total."""
        if not self._save:
            return
        self._save = False
        try:
            self._days.save()
        except OSError as error:
            log_event(
                logging.WARNING,
                "%s: the daily totals cannot be written: %s; will retry at the next total",
                *(self._days.path, error.strerror),
                STREAM=self._stream,
            )

    def _tidy(self, kept: RetentionLimits, wall_s: float | None) -> None:
        """What cannot be done now is tried again later; the ledger goes on in any case."""
        try:
            if self._file.full:
                self._save = True
                self._save_days()
                self._file.rotate()
            self._file.compress()
        except OSError as error:
            log_event(
                logging.WARNING,
                "%s: old lines cannot be compressed: %s; will retry in 6 h",
                *(self._file.path, error.strerror),
                STREAM=self._stream,
            )
        for one in self._file.forget(kept.days, kept.max_bytes, wall_s):
            self._lines.append(_encoded({"event": "forgotten", **_now(), **one._asdict()}))

    def _put_aside(self, name: str) -> None:
        log_event(
            logging.WARNING,
            "%s was not a usable ledger file (a directory, a link or another user's file); "
            "renamed to %s",
            *(self._file.path, name),
            STREAM=self._stream,
        )


class _RateLimit:
    """How many lines of a kind may still come; what is not used grows back."""

    def __init__(self, kind: str, now_s: float) -> None:
        other = GAP_ALLOWANCE if kind.startswith("gap") else OTHER_ALLOWANCE
        self._most, self._a_day = ALLOWANCE.get(kind, other)
        self._left = float(self._most)
        self._seen_s = now_s

    def takes(self, now_s: float) -> bool:
        grown = (now_s - self._seen_s) * self._a_day / DAY_S
        self._left, self._seen_s = min(self._most, self._left + grown), now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


class _Sum:
    """Events of one kind in one line: the last one's fields, the first one's beginning, the sum of
    the frames.
    """

    def __init__(self, now_s: float) -> None:
        self.due_s = now_s + SUM_S
        self._count = 0
        self._frames = 0
        self._first: Entry = {}
        self._last: Entry = {}

    def add(self, entry: Entry) -> None:
        self._count += entry.get("count", 1)
        self._frames += entry.get("frames", 0)
        self._first = self._first or entry
        self._last = entry

    def entry(self) -> Entry:
        """As of now, because lines stand in the order of their times."""
        times = {"first_at": self._first["at"], "last_at": self._last["at"]}
        begin: Entry = {
            key: self._first[key] for key in ("first_frame", "since") if key in self._first
        }
        frames = {"frames": self._frames} if "frames" in self._last else {}
        return {**self._last, **_now(), **begin, **frames, "count": self._count, **times}


def wall_time(at_ns: int) -> str:
    """A moment of CLOCK_MONOTONIC as wall time (UTC, ISO 8601), for people."""
    age_ns = time.monotonic_ns() - at_ns
    at_s = (time.time_ns() - age_ns) / 1e9
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")


def _now() -> Entry:
    now_ns = time.monotonic_ns()
    return {"at": wall_time(now_ns), "monotonic_ns": now_ns}


def _bounded(what: Entry) -> Entry:
    """Text from outside is cut where it is no longer of use to a reader."""
    return {
        key: value[:LONGEST_TEXT] if isinstance(value, str) else value
        for key, value in what.items()
    }


def _encoded(entry: Entry) -> bytes:
    return json.dumps(entry).encode() + b"\n"
