"""The ledger on disk: one line of JSON per event, so that in the morning the books can be read.

``start`` and ``stop`` of a run, ``grant`` when a device was opened, every ``gap`` with its first
frame, length, time, cause and whether it was counted or estimated, and ``total`` with the sums
every few minutes. A file that has grown to ``LIMIT_BYTES`` becomes ``.1`` and a new one begins. A
disk that refuses is told once; the counting goes on in memory. Thread: main.
"""

import contextlib
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

LIMIT_BYTES = 4_000_000


class LedgerFile:
    """Appends events of one stream; ``trouble`` says why the last one could not be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None

    def write(self, event: str, **what: object) -> None:
        """``at`` is wall time for people, ``monotonic_ns`` is the order of things."""
        line = json.dumps(
            {
                "event": event,
                "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "monotonic_ns": time.monotonic_ns(),
                **what,
            }
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                if self.path.stat().st_size > LIMIT_BYTES:
                    self.path.replace(self.path.with_suffix(".jsonl.1"))
            descriptor = os.open(
                self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644
            )
            try:
                os.write(descriptor, line.encode() + b"\n")
            finally:
                os.close(descriptor)
            self.trouble = None
        except OSError as error:
            self.trouble = f"{self.path}: {error.strerror}; the ledger is kept in memory only"
