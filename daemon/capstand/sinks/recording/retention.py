"""What is kept of a stream's recordings in a directory: so many days, so many gigabytes.

The oldest go first: only regular files whose whole name is one that a recording of this stream
gets, never one that is being written. Each is told; one that cannot be removed costs itself.

How old a recording is, its name and its last change say, whichever is later: what a machine without
a clock records before it hears the time has an old name. By days nothing goes while the clock
may be wrong: before it was ever set, far in the future, or within a day after it was set by more
than an hour, unless it is known to be right.

Thread: one for each sweep, at most one at a time; removing a large file may take seconds.
"""

import contextlib
import math
import os
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from capstand.audio.block import NS_PER_S
from capstand.host import bug, walltime
from capstand.host.realtime import prepare_thread
from capstand.sinks import disk
from capstand.sinks.recording.leftover import STAMP

DAY_S = 86_400
GB = 1_000_000_000
EVERY_NS = 60 * NS_PER_S
SOONEST_NS = 5 * NS_PER_S
SHARE = 20
"""A sweep may take so large a part of the time: one in 20."""
AT_ONCE = 200
REST = 100
STEP_NS = 3600 * NS_PER_S
EARLIEST_S = datetime(2001, 1, 1, tzinfo=UTC).timestamp()
"""A clock that has never been set begins in 1970, or in 2000."""
LATEST_S = datetime(2076, 1, 1, tzinfo=UTC).timestamp()
"""One whose battery is empty may say anything."""


class _File(NamedTuple):
    order: tuple[float, float, str]
    name: str
    bytes: int
    newest_s: float


class Retention:
    """``kept_bytes`` is what the last sweep left, None before it; ``removed`` is called with each
    file's name, bytes and the reason, ``told`` with what could not be done.
    """

    def __init__(
        self,
        stream: str,
        folder: Path,
        keep_days: float,
        keep_gb: float,
        removed: Callable[[str, int, str], None],
        told: Callable[[str], None],
        *,
        priority: int = 0,
        now_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.kept_bytes: int | None = None
        self._stream = stream
        self._folder = folder
        self._keep_s = keep_days * DAY_S
        self._keep_bytes = round(keep_gb * GB)
        self._removed = removed
        self._told = told
        self._priority = priority
        self._now_ns = now_ns
        self._wall_ns = wall_ns
        self._pattern = re.compile(
            rf"(?a){re.escape(stream)}-({STAMP})(-\d+)?(-recovered(-\d+)?)?\.(wav|flac)(\.part)?"
        )
        self._thread: threading.Thread | None = None
        self._due_ns = self._soonest_ns = now_ns()
        self._ahead_ns = wall_ns() - now_ns()  # the wall clock's, to see it set
        self._steady_ns: int | None = None  # since when it has not been, if it ever was

    @property
    def wanted(self) -> bool:
        return bool(self._keep_s or self._keep_bytes)

    def start_if_due(self, writing: str | None, soon: bool = False) -> None:
        """Starts a sweep if one is due, or ``soon`` because a file was finished; never waits."""
        now_ns = self._now_ns()
        self._watch_clock(now_ns)
        if soon:
            self._due_ns = min(self._due_ns, now_ns)
        if (
            not self.wanted
            or now_ns < max(self._due_ns, self._soonest_ns)
            or (self._thread is not None and self._thread.is_alive())
        ):
            return
        self._due_ns = now_ns + EVERY_NS
        self._thread = threading.Thread(
            target=self._run, args=(writing,), name=f"keep:{self._stream}", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as error:  # no thread is to be had: later then
            self._thread = None
            self._told(f"{self._folder}: nothing was removed: {error}")

    def _watch_clock(self, now_ns: int) -> None:
        ahead_ns = self._wall_ns() - now_ns
        if abs(ahead_ns - self._ahead_ns) > STEP_NS:
            self._steady_ns = now_ns
        self._ahead_ns = ahead_ns

    def _run(self, writing: str | None) -> None:
        prepare_thread(f"keep:{self._stream}", self._priority)
        try:
            self.sweep(writing)
        except OSError as error:
            self._told(f"{self._folder}: nothing was removed: {error.strerror or error}")
        except Exception as error:  # noqa: BLE001  it must not end the daemon
            bug.log_unexpected(f"removing old recordings of {self._stream}", error)

    def sweep(self, writing: str | None) -> None:
        """Removes what is too old or too much. Raises OSError where the directory is away."""
        began_ns = self._now_ns()
        folder = disk.open_folder(self._folder)
        try:
            files, total = self._found(folder, writing)
            oldest_s = self._oldest_s()
            count = 0
            for file in sorted(files):
                old = file.newest_s < oldest_s
                if not old and not (self._keep_bytes and total > self._keep_bytes):
                    continue
                if count == AT_ONCE:
                    self._due_ns = 0
                    break
                try:
                    os.unlink(file.name, dir_fd=folder)
                except FileNotFoundError:
                    total -= file.bytes
                except OSError as error:
                    total -= file.bytes  # or those that can be removed would all go in its place
                    why = error.strerror or str(error)
                    self._told(f"{self._folder}/{file.name} cannot be removed: {why}")
                else:
                    count += 1
                    total -= file.bytes
                    self._removed(file.name, file.bytes, "keep_days" if old else "keep_gb")
            self.kept_bytes = total
        finally:
            os.close(folder)
        now_ns = self._now_ns()
        self._soonest_ns = now_ns + max(SOONEST_NS, SHARE * (now_ns - began_ns))

    def _found(self, folder: int, writing: str | None) -> tuple[list[_File], int]:
        """What may be removed, and the bytes of all there is."""
        files, total = [], 0
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries, 1):
                if number % REST == 0:
                    time.sleep(0.001)  # a thread with real-time priority must rest
                match = self._pattern.fullmatch(entry.name)
                if match is None:
                    continue
                with contextlib.suppress(OSError):
                    if not entry.is_file(follow_symlinks=False):
                        continue
                    about = entry.stat(follow_symlinks=False)
                    size = about.st_blocks * 512 or about.st_size
                    total += size
                    if match[6] or entry.name == writing:
                        continue
                    stamp_s = _seconds(match[1])
                    newest_s = max(stamp_s, about.st_mtime)
                    hour = newest_s // 3600
                    if newest_s < EARLIEST_S:
                        hour = newest_s = math.inf  # of a clock that was not set: nobody knows
                    files.append(_File((hour, stamp_s, entry.name), entry.name, size, newest_s))
        return files, total

    def _oldest_s(self) -> float:
        """What is older than that (Unix time) has been kept for long enough."""
        if not self._keep_s or not self._clock_is_believed():
            return 0.0
        return self._wall_ns() / NS_PER_S - self._keep_s

    def _clock_is_believed(self) -> bool:
        wall_s = self._wall_ns() / NS_PER_S
        if not EARLIEST_S < wall_s < LATEST_S:
            return False
        if self._steady_ns is None or self._now_ns() - self._steady_ns > DAY_S * NS_PER_S:
            return True
        return walltime.clock_sure()


def _seconds(stamp: str) -> float:
    """The time in a name; 0 where it is none."""
    try:
        return datetime.strptime(stamp, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
