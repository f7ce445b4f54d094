"""What the journal gets to hear of a sink: each change once."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capstand.accounting.ledger import Ledger
from capstand.accounting.stats import Cause, Gap, GapTable
from capstand.errors import DeviceError
from capstand.host.logs import RepeatFilter, log
from capstand.service import reporter as module
from capstand.service.reporter import Reporter
from tests.line import Keep, Line, capture


class Ailing(Keep):
    """A sink that takes every block and says what is wrong all the same."""

    concern: str | None = None


def test_a_concern_of_a_sink_is_told_when_it_begins_and_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words that change meanwhile, such as a number in them, are no news."""
    sink = Ailing()
    line = Line(capture(), [sink])
    reporter = Reporter(line.stream.config, Ledger(tmp_path))
    said: list[str] = []
    monkeypatch.setattr(
        "capstand.service.reporter.log_event",
        lambda _, text, *words, **__: said.append(text % words),
    )
    for concern in (None, "nothing is sent for 10 s", "nothing is sent for 11 s", None, None):
        sink.concern = concern
        reporter.update(line.report())
    assert said == [
        "mic: sink sink0: nothing is sent for 10 s",
        "mic: sink sink0: recovered",
    ]


def test_a_card_in_the_place_of_another_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the new one is opened; and again when another takes its place."""
    line, ledger = Line(capture(), [Keep()]), Ledger(tmp_path)
    reporter, capturer = Reporter(line.stream.config, ledger), line.stream.capturer
    said: list[str] = []
    monkeypatch.setattr(
        "capstand.service.reporter.log_event",
        lambda _, text, *words, **__: said.append(text % words),
    )
    line.capture()
    for successor in (None, "another one now: port 2", "another one now: port 2", "port 1"):
        assert capturer.params is not None
        capturer.params = capturer.last_params = capturer.params._replace(successor=successor)
        reporter.update(line.report())
        capturer.opens += 1
    assert [one for one in said if "port" in one] == ["mic: another one now: port 2", "mic: port 1"]
    told = [book.get("successor") for book in books(ledger, "opened")]
    assert told == [None, "another one now: port 2", None, "port 1"]


# Gaps


class Journal(logging.Handler):
    """Keeps the entries that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.entries.append(record)

    def lost(self) -> list[int]:
        """All values of LOST_FRAMES that a search would find."""
        found: list[int] = []
        for entry in self.entries:
            value = getattr(entry, "fields", {}).get("LOST_FRAMES", ())
            found += value if isinstance(value, tuple) else (value,)
        return found


@pytest.fixture
def journal() -> Iterator[Journal]:
    one = Journal()
    one.addFilter(RepeatFilter())
    before = log.handlers[:], log.level
    log.handlers[:] = [one]
    log.setLevel(logging.INFO)
    yield one
    log.handlers[:] = before[0]
    log.setLevel(before[1])


def gaps(line: Line, *frames: int, cause: Cause = Cause.OVERRUN) -> None:
    """The device loses so many frames, each time after it brought some."""
    tally = line.stream.capturer.tally
    for count in frames:
        tally.gaps.note(tally.produced, count, line.time.now_ns(), cause, exact=True)
        tally.produced += count
        tally.lost_exact += count


def books(ledger: Ledger, event: str) -> list[dict[str, object]]:
    ledger.close(10)
    lines = ledger.path("mic").read_text().splitlines()
    return [one for one in map(json.loads, lines) if one["event"] == event]


def test_every_gap_is_in_the_ledger_and_found_in_the_journal(
    tmp_path: Path, journal: Journal
) -> None:
    """Eleven gaps within a second are two lines of the journal before the last one, and a search
    by the frames of any of them finds its line."""
    line, ledger = Line(capture(), []), Ledger(tmp_path)
    reporter = Reporter(line.stream.config, ledger)
    reporter.begin()
    for number in range(11):
        gaps(line, 480 + number)
        reporter.update(line.report())
    reporter.end(line.report(), [])
    assert journal.lost()[:11] == [480 + number for number in range(11)]
    assert [entry.getMessage() for entry in journal.entries] == [
        "mic: lost 480 frames (10 ms) at frame 0: overrun: the card's buffer was not read in time",
        "mic: lost 490 frames (10 ms) at frame 4845: overrun: the card's buffer was not read in "
        "time (and 9 more like it)",
        "mic: 5335 frames produced = 0 captured + 5335 lost; ",
    ]
    assert [book["frames"] for book in books(ledger, "gap")] == [480 + n for n in range(11)]


def test_sums_do_not_follow_each_gap(tmp_path: Path, journal: Journal) -> None:
    """After a gap come the sums, but no more often than once a minute."""
    line, ledger = Line(capture(), []), Ledger(tmp_path)
    reporter = Reporter(line.stream.config, ledger)
    for _ in range(100):
        gaps(line, 480)
        reporter.update(line.report())
    assert reporter._total_due <= time.monotonic() + module.GAP_TOTAL_S
    assert len(books(ledger, "total")) == 1


def test_gaps_that_come_too_fast_are_summed_up(tmp_path: Path, journal: Journal) -> None:
    """More gaps than the table holds between two looks: their frames are in the books all the
    same."""
    line, ledger = Line(capture(), []), Ledger(tmp_path)
    reporter = Reporter(line.stream.config, ledger)
    gaps(line, *[3] * (GapTable.ROWS + 500))
    reporter.update(line.report())
    gaps(line, 5)
    reporter.update(line.report())
    found = books(ledger, "gap")
    assert (found[0]["count"], found[0]["frames"], found[0]["cause"]) == (501, 1503, "unknown")
    assert len(found) == 1 + (GapTable.ROWS - 1) + 1
    assert sum(int(str(one["frames"])) for one in found) == 3 * (GapTable.ROWS + 500) + 5


def test_a_gap_that_comes_while_gaps_are_told_is_told_once(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The capture thread goes on meanwhile."""
    line, ledger = Line(capture(), []), Ledger(tmp_path)
    reporter = Reporter(line.stream.config, ledger)
    since = GapTable.since

    def meanwhile(table: GapTable, *which: int) -> list[Gap]:
        if table.count < 3:
            gaps(line, 7)
        return since(table, *which)

    monkeypatch.setattr(GapTable, "since", meanwhile)
    gaps(line, 5)
    for _ in range(3):
        reporter.update(line.report())
    assert [book["frames"] for book in books(ledger, "gap")] == [5, 7, 7]


def test_the_day_is_closed_by_a_total(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the date changes, by midnight or because the clock was set, the sums are written for
    the day that is over."""
    line, ledger = Line(capture(), []), Ledger(tmp_path)
    monkeypatch.setattr(module, "_today", lambda: "2025-11-25")
    reporter = Reporter(line.stream.config, ledger)
    reporter.update(line.report())
    monkeypatch.setattr(module, "_today", lambda: "2025-11-26")
    reporter.update(line.report())
    reporter.update(line.report())
    monkeypatch.undo()
    assert [book["closes"] for book in books(ledger, "total")] == ["2025-11-25"]


def test_a_process_that_holds_the_card_is_told_once_whatever_its_number(
    tmp_path: Path, journal: Journal
) -> None:
    """200 changes of a pid are one line and a count."""
    line = Line(capture(), [])
    reporter = Reporter(line.stream.config, Ledger(tmp_path))
    for pid in range(200):
        line.stream.capturer.trouble = DeviceError(f"hw:0 is used by arecord (pid {pid})")
        reporter.update(line.report())
    assert len(journal.entries) <= 3
