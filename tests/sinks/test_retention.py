"""What is kept of recordings: the oldest go first, and nothing that is not ours to remove."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from capstand.audio.block import NS_PER_S
from capstand.config.schema import CaptureConfig, SpoolConfig
from capstand.sinks.recording.retention import DAY_S, Retention
from capstand.sinks.spool.spooled import Spooled
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.intake import Intake
from tests.line import config
from tests.sinks.test_recording import PERIOD, WALL_NS, Clock, Desk

SIZE = 8192


class Shelf:
    """A directory of recordings with what keeps it in order; time passes when the test says so."""

    def __init__(self, folder: Path, keep_days: float = 0.0, keep_gb: float = 0.0) -> None:
        self.folder = folder
        self.clock = Clock()
        self.wall_ahead_ns = 0
        self.removed: list[tuple[str, str]] = []
        self.told: list[str] = []
        self.retention = Retention(
            "mic",
            folder,
            keep_days,
            keep_gb,
            lambda name, size, reason: self.removed.append((name, reason)),
            self.told.append,
            now_ns=self.clock.now_ns,
            wall_ns=self.wall_ns,
        )

    def wall_ns(self) -> int:
        return self.clock.wall_ns() + self.wall_ahead_ns

    def put(self, days_ago: float, form: str = "mic-{}.wav", changed: float | None = None) -> str:
        """A recording begun so many days before the tests' wall time and changed then, or so many
        days before it."""
        at_s = WALL_NS / NS_PER_S - days_ago * DAY_S
        name = form.format(datetime.fromtimestamp(at_s, UTC).strftime("%Y%m%dT%H%M%S.000Z"))
        path = self.folder / name
        path.write_bytes(bytes(SIZE))
        then_s = at_s if changed is None else WALL_NS / NS_PER_S - changed * DAY_S
        os.utime(path, (then_s, then_s))
        return name

    def names(self) -> set[str]:
        return {one.name for one in self.folder.iterdir()}


def test_by_default_all_is_kept(tmp_path: Path) -> None:
    """Without a limit nothing is looked for."""
    shelf = Shelf(tmp_path)
    assert not shelf.retention.wanted
    shelf.put(10_000)
    shelf.retention.sweep(None)
    assert len(shelf.names()) == 1 and shelf.removed == []


@pytest.mark.parametrize(
    "form", ["mic-{}.wav", "mic-{}.flac", "mic-{}-2.wav", "mic-{}-recovered.wav"]
)
def test_what_is_older_than_keep_days_goes(tmp_path: Path, form: str) -> None:
    """Recordings whose end is longer ago than that are removed, the oldest first, each told."""
    shelf = Shelf(tmp_path, keep_days=7)
    older, old, kept = shelf.put(30, form), shelf.put(7.1, form), shelf.put(6.9, form)
    shelf.retention.sweep(None)
    assert shelf.names() == {kept}
    assert shelf.removed == [(older, "keep_days"), (old, "keep_days")]
    assert shelf.told == [] and shelf.retention.kept_bytes == SIZE


def test_what_is_more_than_keep_gb_goes(tmp_path: Path) -> None:
    """The oldest are removed until the rest, that which is being written included, is no more."""
    shelf = Shelf(tmp_path, keep_gb=3 * SIZE / 1e9)
    names = [shelf.put(days) for days in (5, 4, 3, 2)]
    writing = shelf.put(0, "mic-{}.wav.part")
    shelf.retention.sweep(None)
    assert shelf.names() == {*names[2:], writing}
    assert shelf.removed == [(name, "keep_gb") for name in names[:2]]


def test_of_those_made_in_one_hour_the_name_says_the_order(tmp_path: Path) -> None:
    """Files that were copied here keep the order of their names."""
    shelf = Shelf(tmp_path, keep_gb=SIZE / 1e9)
    names = [shelf.put(days, changed=days / 10_000) for days in (2, 9, 5)]
    shelf.retention.sweep(None)
    assert shelf.removed == [(names[1], "keep_gb"), (names[2], "keep_gb")]


NOT_OURS = [
    "mic-2-{}.wav",
    "mi-{}.wav",
    "Mic-{}.wav",
    "mic-{}.wav.part",
    "mic-{}.flac.part",
    "mic-{}.wav.bak",
    "mic-{}.mp3",
    "mic-{}-mix.wav",
    "xmic-{}.wav",
    "mic-{}.wav\n",
    "mic-{}.wav.aside",
]


@pytest.mark.parametrize("keep", [{"keep_days": 1.0}, {"keep_gb": 1e-9}])
def test_only_what_this_stream_recorded_goes(tmp_path: Path, keep: dict[str, float]) -> None:
    """Other streams' recordings, what is being written, other names, links and directories stay."""
    shelf = Shelf(tmp_path, **keep)
    kept = {shelf.put(99, form) for form in NOT_OURS}
    kept |= {"mic-notes.wav", "mic-20261322T000000.wav"}
    for name in ("mic-notes.wav", "mic-20261322T000000.wav"):
        (tmp_path / name).touch()
    (tmp_path / "mic-20200101T000000.000Z.wav").mkdir()
    (tmp_path / "mic-20200102T000000.000Z.wav").symlink_to(tmp_path / "mic-notes.wav")
    kept |= {"mic-20200101T000000.000Z.wav", "mic-20200102T000000.000Z.wav"}
    writing = shelf.put(98)
    shelf.retention.sweep(writing)
    assert shelf.names() == kept | {writing}
    assert shelf.removed == [] and shelf.told == []


def test_one_that_cannot_be_removed_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that stays (immutable, in use on a share) is told and no longer counted: of the next
    ones no more go because of it."""
    shelf = Shelf(tmp_path, keep_gb=2 * SIZE / 1e9)
    names = [shelf.put(days) for days in (5, 4, 3, 2)]
    unlink = os.unlink

    def refuse(name: str, *, dir_fd: int) -> None:
        if name == names[0]:
            raise PermissionError(1, "Operation not permitted")
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    shelf.retention.sweep(None)
    assert shelf.names() == {names[0], *names[2:]}
    assert shelf.retention.kept_bytes == 2 * SIZE
    assert shelf.told == [f"{tmp_path}/{names[0]} cannot be removed: Operation not permitted"]


@pytest.mark.parametrize("year", [1970, 2000])
def test_a_clock_that_was_never_set_removes_nothing_by_days(tmp_path: Path, year: int) -> None:
    """What is recorded before the time is known has an old name; it is not old, and while the clock
    stands there nothing is."""
    shelf = Shelf(tmp_path, keep_days=1)
    days = (datetime.fromtimestamp(WALL_NS / NS_PER_S, UTC) - datetime(year, 1, 1, tzinfo=UTC)).days
    kept = {shelf.put(days), shelf.put(300, changed=0.1), shelf.put(0.5)}
    shelf.retention.sweep(None)
    assert shelf.names() == kept
    shelf.wall_ahead_ns = -days * DAY_S * NS_PER_S
    shelf.put(20)
    shelf.retention.sweep(None)
    assert len(shelf.names()) == 4


def test_what_a_clock_that_was_never_set_named_goes_last(tmp_path: Path) -> None:
    """Nobody knows how old it is: by size the others go before it."""
    shelf = Shelf(tmp_path, keep_gb=SIZE / 1e9)
    names = [shelf.put(3), shelf.put(2)]
    unknown = shelf.put(20_000)
    shelf.retention.sweep(None)
    assert shelf.names() == {unknown}
    assert [one for one, _ in shelf.removed] == names


@pytest.mark.parametrize("years", [2, 80])
def test_a_clock_that_jumps_ahead_removes_nothing_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    """After the clock was set by more than an hour nothing goes by days until it has stood for a
    day, or is known to be right; far in the future it is not believed at all."""
    sure = False
    monkeypatch.setattr("capstand.host.walltime.clock_sure", lambda: sure)
    shelf = Shelf(tmp_path, keep_days=7)
    kept = {shelf.put(1), shelf.put(0.5)}
    shelf.retention._watch_clock(shelf.clock.now_ns())
    shelf.wall_ahead_ns = years * 365 * DAY_S * NS_PER_S
    shelf.clock.ns += NS_PER_S
    shelf.retention._watch_clock(shelf.clock.now_ns())
    shelf.retention.sweep(None)
    assert shelf.names() == kept
    shelf.clock.ns += (DAY_S - 60) * NS_PER_S
    shelf.retention.sweep(None)
    assert shelf.names() == kept
    sure = True
    shelf.retention.sweep(None)
    assert shelf.names() == (kept if years == 80 else set())
    sure = False
    shelf.put(1)
    shelf.clock.ns += 120 * NS_PER_S
    shelf.retention.sweep(None)
    assert bool(shelf.names()) == (years == 80)


def test_a_sweep_takes_a_thread_and_is_not_waited_for(tmp_path: Path) -> None:
    """``look`` starts at most one sweep, once a minute or when a file was finished, and not more
    often than one in twenty of the time."""
    shelf = Shelf(tmp_path, keep_days=7)

    def look(soon: bool = False) -> bool:
        before = shelf.retention._thread
        shelf.retention.start_if_due(None, soon)
        thread = shelf.retention._thread
        assert thread is not None
        thread.join(30)
        return thread is not before

    shelf.put(30)
    assert look() and shelf.names() == set()
    shelf.clock.ns += 6 * NS_PER_S
    assert not look()
    assert look(soon=True)
    assert not look(soon=True)  # but as soon as may be
    shelf.clock.ns += 6 * NS_PER_S
    assert look()
    shelf.clock.ns += 61 * NS_PER_S
    assert look()


def test_many_go_little_by_little(tmp_path: Path) -> None:
    """A sweep removes a bounded number, so that each can be told, and the next follows soon."""
    shelf = Shelf(tmp_path, keep_days=1)
    for number in range(450):
        shelf.put(10 + number / 1000)
    rounds = []
    for _ in range(4):
        shelf.retention.sweep(None)
        rounds.append(len(shelf.removed))
    assert rounds == [200, 400, 450, 450]
    assert [one for one, _ in shelf.removed] == sorted(one for one, _ in shelf.removed)


def test_a_folder_that_is_away_is_told(tmp_path: Path) -> None:
    """A sweep that cannot look at the directory says so and does no harm."""
    shelf = Shelf(tmp_path / "away", keep_days=1)
    shelf.retention._run(None)
    assert shelf.told == [f"{tmp_path}/away: nothing was removed: No such file or directory"]


def removals(sink: object) -> list[dict[str, object]]:
    return [what for event, what in sink.events() if event == "remove"]  # type: ignore[attr-defined]


def swept(desk: Desk) -> None:
    thread = desk.sink._retention._thread
    assert thread is not None
    thread.join(30)


def test_a_recording_keeps_its_directory_in_order(tmp_path: Path) -> None:
    """With keep_gb a recording that goes on for ever takes no more than that, and its ledger has a
    line for each file that went; the one being written stays."""
    desk = Desk(tmp_path, keep_gb=40_000 / 1e9, segment_s=0.5)
    swept(desk)  # else the clock's next step might be taken for the time that the sweep takes
    seen: list[dict[str, object]] = []
    for first in range(0, 120_000, PERIOD):
        desk.write(first)
        if first % 8000 == 0:
            desk.clock.ns += 6 * NS_PER_S
            desk.sink.flush()
            swept(desk)
            seen += removals(desk.sink)
    desk.sink.flush()
    swept(desk)
    desk.sink.close()
    seen += removals(desk.sink)
    files = list(tmp_path.iterdir())
    assert sum(file.stat().st_blocks * 512 for file in files) <= 80_000
    assert len(seen) > 10 and len(seen) + len(files) == desk.sink.segments
    assert {one["reason"] for one in seen} == {"keep_gb"}
    assert {str(one["file"]) for one in seen}.isdisjoint(file.name for file in files)


def test_room_is_made_while_recording_waits_for_it(tmp_path: Path) -> None:
    """A recording that waits for room still removes what is too old."""
    (tmp_path / "mic-20200101T000000.000Z.wav").write_bytes(bytes(SIZE))
    os.utime(tmp_path / "mic-20200101T000000.000Z.wav", (1_600_000_000, 1_600_000_000))
    desk = Desk(tmp_path, keep_days=7.0)
    swept(desk)
    assert desk.names() == []
    assert [removal["file"] for removal in removals(desk.sink)] == ["mic-20200101T000000.000Z.wav"]


def test_what_goes_behind_a_spool_is_told_too(tmp_path: Path) -> None:
    """A recording behind a spool tells its removals through it."""
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec/mic-20200101T000000.000Z.wav").write_bytes(bytes(SIZE))
    os.utime(tmp_path / "rec/mic-20200101T000000.000Z.wav", (1_600_000_000, 1_600_000_000))
    setup = FileSinkConfig(
        type="file",
        path=str(tmp_path / "rec"),
        min_free_mb=0,
        keep_days=7.0,
        spool=SpoolConfig(path=str(tmp_path / "spool")),
    )
    card = CaptureConfig(device="hw:CARD=NotThere", channels=2, rt_priority=0)
    sink = Intake(config(card, [setup]), tmp_path).sink_queues[0].sink
    assert isinstance(sink, Spooled)
    sink.sink.open()
    thread = sink.sink._retention._thread  # type: ignore[attr-defined]
    thread.join(30)
    assert [removal["file"] for removal in removals(sink)] == ["mic-20200101T000000.000Z.wav"]
    sink.sink.close()


def test_what_is_removed_keeps_the_status_quiet(tmp_path: Path) -> None:
    """A full disk is no matter where what is removed makes room for all that is to come."""
    desk = Desk(tmp_path, keep_gb=1e-3)
    swept(desk)
    assert desk.sink._is_kept_within(left=10_000_000, rate=1e6)
    assert not desk.sink._is_kept_within(left=100_000, rate=1e6)
    by_days = Desk(tmp_path, keep_days=10.0)
    swept(by_days)
    assert by_days.sink._is_kept_within(left=1_000_000, rate=1.0)
    assert not by_days.sink._is_kept_within(left=1_000_000, rate=2.0)
    assert not Desk(tmp_path).sink._is_kept_within(left=10**12, rate=0.0)


def test_nobody_elses_files_go(nobody: Callable[[], AbstractContextManager[Path]]) -> None:
    """In a directory with the sticky bit, as /tmp, another user's files stay, and it is told."""
    with nobody() as folder:
        pass
    folder.chmod(0o1777)
    shelf = Shelf(folder, keep_days=1)
    theirs, ours = shelf.put(9), shelf.put(8)
    os.chown(folder / ours, 65_534, 65_534)
    with nobody():
        shelf.retention.sweep(None)
    assert shelf.names() == {theirs}
    assert shelf.told == [f"{folder}/{theirs} cannot be removed: Operation not permitted"]
