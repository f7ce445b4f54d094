"""The sums of each day: one line of JSON per stream and day (UTC) that is never deleted.

``days/STREAM.jsonl`` has the days that are over, ``days/STREAM.open.json`` the one that is not. The
sums are made of the ledger's own lines as they are written, and put on disk with each ``total`` and
``stop``. What a crash took of them is made good at the next start from the ledger's last lines.
Frames come from the totals, so those of the last minutes of a run that crashed are missing here as
they are in the ledger. Where the wall clock was set back a day may have several lines.

Thread: the ledger's.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from capstand.accounting.file import append_line, locked, open_plain, read_tail, replace
from capstand.text import clean

STREAM_SUMS = ("produced_frames", "captured_frames", "lost_frames", "restarts", "opens")
SINK_SUMS = ("delivered_frames", "dropped_frames", "inserted_frames")
MOST_DAYS = 400
MOST_NAMES = 64
"""So many sinks, causes and kinds of events a day has; more are one, ``others``."""
OTHERS = "others"

Json = dict[str, Any]


class DayTotals:
    """What is summed of one day; ``counters`` holds the run's counters as of its last total."""

    def __init__(self, day: str, counters: dict[str, int] | None = None) -> None:
        self.day = day
        self.last: list[object] = []
        self.counters = dict(counters or {})
        self._sums: Json = {"events": {}, "gaps": {}, "sinks": {}}
        self._sums |= dict.fromkeys(STREAM_SUMS, 0)

    def add(self, event: Json) -> None:
        """One line of the ledger. What is not as the ledger writes it counts as an event only."""
        name, count = str(event.get("event")), _whole(event.get("count"), 1)
        _entry(self._sums["events"], name, 0)
        self._sums["events"][_known(self._sums["events"], name)] += count
        self.last = [event.get("monotonic_ns"), event.get("at")]
        if name == "start":
            self.counters.clear()
        elif name == "gap":
            self._add_gap(event, count)
        elif name in ("total", "stop"):
            for key in STREAM_SUMS:
                self._sums[key] += self._grown(key, event.get(key))
            sinks = event.get("sinks")
            for one in sinks if isinstance(sinks, list) else ():
                if isinstance(one, dict):
                    self._add_sink(str(one.get("name")), one)
        elif name == "sink_added":
            self._forget(str(event.get("sink")))
        elif name == "sink_removed":
            self._add_sink(str(event.get("sink")), event)
            self._forget(str(event.get("sink")))

    def _add_gap(self, event: Json, count: int) -> None:
        sums = _entry(self._sums["gaps"], str(event.get("cause")), {})
        frames = _whole(event.get("frames"), 0)
        estimated = 0 if event.get("exact") else frames
        for key, value in (("count", count), ("frames", frames), ("estimated_frames", estimated)):
            sums[key] = sums.get(key, 0) + value

    def _add_sink(self, name: str, figures: Json) -> None:
        sums = _entry(self._sums["sinks"], name, {})
        for key in SINK_SUMS:
            sums[key] = sums.get(key, 0) + self._grown(f"{name} {key}", figures.get(key))

    def _grown(self, counter: str, value: object) -> int:
        """By how much a counter grew since the last total; a smaller one has begun anew."""
        now, before = _whole(value, 0), self.counters.get(counter, 0)
        self.counters[counter] = now
        return now - before if now >= before else now

    def _forget(self, sink: str) -> None:
        for key in SINK_SUMS:
            self.counters.pop(f"{sink} {key}", None)

    def merge(self, later: "DayTotals") -> None:
        _merge(self._sums, later._sums)
        self.last, self.counters = later.last, dict(later.counters)

    def line(self) -> bytes:
        return json.dumps({"day": self.day, **self._sums}).encode() + b"\n"

    def state(self) -> bytes:
        own = {"day": self.day, **self._sums}
        return json.dumps(own | {"last": self.last, "counters": self.counters}).encode() + b"\n"

    @classmethod
    def from_state(cls, text: bytes) -> "DayTotals | None":
        """None for what this program did not write."""
        with suppress(ValueError, TypeError, AttributeError, KeyError):
            state = clean.parsed(text)
            counters = {str(key): int(value) for key, value in state["counters"].items()}
            made = cls(str(state["day"]), counters)
            made.last = list(state["last"])
            _merge(made._sums, {key: state[key] for key in made._sums})
            return made
        return None


class DayTotalsFile:
    """The days of one stream below ``folder``."""

    def __init__(self, folder: Path, stream: str) -> None:
        self.path = folder / "days" / f"{stream}.jsonl"
        self._open = self.path.with_suffix(".open.json")
        self._fresh: list[DayTotals] = []  # not on disk yet, in order

    def replay(self, lines: list[bytes], whole: bool) -> None:
        """Adds what the last run wrote to its ledger and not here. ``lines`` are the ledger's
        last, ``whole`` says that there are no others.
        """
        stored = self._stored()
        if stored is None:
            return
        events = [event for event in map(_event, lines) if event is not None]
        marks = [[one.get("monotonic_ns"), one.get("at")] for one in events]
        if stored.last in marks:
            after = len(marks) - marks[::-1].index(stored.last)
        else:
            after = 0 if whole else len(marks)
        self._fresh.append(DayTotals(stored.day, stored.counters))
        self._fresh[0].last = stored.last
        for event in events[after:]:
            self.add(event)

    def add(self, event: Json) -> None:
        day = str(event.get("closes") or event.get("at"))[:10]
        newest = self._fresh[-1] if self._fresh else None
        if newest is None or newest.day != day:
            newest = DayTotals(day, newest.counters if newest else None)
            self._fresh.append(newest)
            del self._fresh[:-MOST_DAYS]
        newest.add(event)

    def save(self) -> None:
        """Puts on disk what was added. Raises OSError; nothing is lost then, nor counted twice."""
        if not self._fresh:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.parent):
            stored = self._stored()
            for fresh in self._fresh:
                if stored is not None and stored.day == fresh.day:
                    stored.merge(fresh)
                    continue
                if stored is not None:
                    self._end(stored)
                stored = fresh
            assert stored is not None
            replace(self._open, stored.state())
        self._fresh = [DayTotals(stored.day, stored.counters)]
        self._fresh[0].last = stored.last

    def _stored(self) -> DayTotals | None:
        try:
            descriptor = open_plain(self._open, os.O_RDONLY)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return DayTotals.from_state(file.read(1_000_000))

    def _end(self, sums: DayTotals) -> None:
        """A day is over; its line may be there already, where the next step was interrupted."""
        lines, _ = read_tail(self.path)
        if sums.line() in lines[-1:]:
            return
        append_line(self.path, sums.line())


def _event(line: bytes) -> Json | None:
    with suppress(ValueError):
        event = clean.parsed(line)
        return event if isinstance(event, dict) else None
    return None


def _whole(value: object, other: int) -> int:
    return value if type(value) is int and value >= 0 else other


def _known(table: Json, name: str) -> str:
    return name if name in table else OTHERS


def _entry(table: Json, name: str, empty: Any) -> Any:
    if name not in table and len(table) >= MOST_NAMES:
        name = OTHERS
    return table.setdefault(name, empty)


def _merge(into: Json, more: Json) -> None:
    for key, value in more.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = into.get(key, 0) + _whole(value, 0)
