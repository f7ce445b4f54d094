"""The ledger on disk: one line per event, and a disk that refuses is no reason to stop."""

import errno
import fcntl
import json
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from capstand.accounting import file as ledger_file
from capstand.accounting import ledger as module
from capstand.accounting.days import DayTotals, DayTotalsFile
from capstand.accounting.file import LIMIT_BYTES, LedgerFile
from capstand.accounting.ledger import BACKLOG, SUM_S, Ledger, RetentionLimits
from tests.patience import PATIENCE_S

DAY_S = 86_400


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path: Path, lines: int) -> bool:
    return path.read_bytes().count(b"\n") == lines


def until(state: Callable[[], bool]) -> None:
    """Waits for a state of another thread's."""
    deadline = time.monotonic() + PATIENCE_S
    while not state():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_events_are_lines_in_order(tmp_path: Path) -> None:
    """Each event is one line of JSON with its times, in the file of its stream, in order."""
    ledger = Ledger(tmp_path / "ledger")
    for number in range(100):
        ledger.write("mic", "gap", frames=number)
    ledger.write("line", "start", device="hw:0\n")
    ledger.close(PATIENCE_S)
    found = events(ledger.path("mic"))
    assert [(one["event"], one["frames"]) for one in found] == [("gap", n) for n in range(100)]
    times = [one["monotonic_ns"] for one in found]
    assert times == sorted(times)
    assert all(one["at"].endswith("+00:00") for one in found)
    (start,) = ledger.path("line").read_text().splitlines()
    assert json.loads(start)["device"] == "hw:0\n"
    assert ledger.trouble is None


def test_what_has_nothing_to_write_rests(tmp_path: Path) -> None:
    """Before its first line, too, and on a machine that has been up for years."""
    looks = 0

    def now_s() -> float:
        nonlocal looks
        looks += 1
        return 1e9

    ledger = Ledger(tmp_path, now_s=now_s)
    until(lambda: looks > 0)
    time.sleep(0.1)  # one that never rests looks some ten thousand times
    assert looks < 10
    ledger.write("mic", "start")
    ledger.close(PATIENCE_S)
    assert [event["event"] for event in events(ledger.path("mic"))] == ["start"]


def test_a_file_that_is_far_too_large_holds_no_ledger_up(tmp_path: Path) -> None:
    """What has grown to gigabytes by somebody else is put by as it is, and counts as what it takes:
    it is the first that is forgotten."""
    with (tmp_path / "mic.jsonl").open("wb") as file:
        file.truncate(3_000_000_000)
    one = LedgerFile(tmp_path, "mic")
    one.rotate()
    one.compress()
    (archive,) = one.archives()
    assert not archive.packed and archive.size == 3_000_000_000
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".new"] == []
    (gone,) = one.forget(366, 200_000_000, None)
    assert (gone.file, gone.reason) == ("mic.jsonl.000001", "more than 200 MB")


def test_what_has_been_written_rests_until_it_is_time_to_tidy(tmp_path: Path) -> None:
    """With no line waiting there is nothing to do for hours; a line that comes is due at once."""
    book = module._Book(tmp_path, "mic")
    in_one_second_steps(book, 1e9, "start")
    assert book.due_s(1e9) == 1e9
    book.put(1e9, module.KEEP, lambda: None, tidy=True)
    assert book.due_s(1e9) == 1e9 + module.TIDY_S
    in_one_second_steps(book, 1e9 + 1, "stop")
    assert book.due_s(1e9 + 1) == 1e9 + 1


@pytest.mark.parametrize("packed", [False, True])
def test_no_more_is_read_of_a_large_archive_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """However much it unpacks to, it holds the other ledgers up no longer than a file of ours."""
    path = tmp_path / "mic.jsonl.000001"
    path.write_bytes(b'{"event": "gap"}\n' * 100_000)
    book = LedgerFile(tmp_path, "mic")
    if packed:
        book.compress()
    monkeypatch.setattr(ledger_file, "LARGEST_BYTES", 10_000)
    (gone,) = book.forget(1, 10, None)
    assert 0 < gone.lines < 1_000


def test_text_from_outside_is_bounded(tmp_path: Path) -> None:
    """However long a reason is, its line is short."""
    ledger = Ledger(tmp_path)
    ledger.write("mic", "drop", reason="x" * 1_000_000)
    ledger.close(PATIENCE_S)
    assert ledger.path("mic").stat().st_size < 1000


# Files


def test_a_full_file_is_compressed_beside_the_one_that_is_written(tmp_path: Path) -> None:
    """A file past its limit gets a number and is compressed whole; the new one has its name."""
    ledger = Ledger(tmp_path)
    old = b'{"event": "old"}\n' * (LIMIT_BYTES // 17 + 1)
    ledger.path("mic").write_bytes(old)
    ledger.write("mic", "total")
    packed = tmp_path / "mic.jsonl.000001.gz"
    until(packed.exists)
    ledger.write("mic", "stop")
    ledger.close(PATIENCE_S)
    assert not (tmp_path / "mic.jsonl.000001").exists()
    plain = zlib.decompress(packed.read_bytes(), wbits=31)
    assert plain.startswith(old) and len(plain.splitlines()) == len(old.splitlines()) + 1
    assert [event["event"] for event in events(ledger.path("mic"))] == ["stop"]


def full_at(folder: Path, number: int, ended_s: float, lines: int = 10) -> Path:
    path = folder / f"mic.jsonl.{number:06d}.gz"
    line = b'{"event": "gap", "at": "2025-01-0%d"}\n'
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(b"".join(line % (1 + n) for n in range(lines - 1)) + line % 9)
    path.write_bytes(packed + packer.flush())
    os.utime(path, (ended_s, ended_s))
    return path


def test_what_is_older_than_keep_days_goes_and_is_told(tmp_path: Path) -> None:
    """A full file goes when its last line is too old, and a line says what went."""
    now_s = time.time()
    old, young = full_at(tmp_path, 7, now_s - 11 * DAY_S), full_at(tmp_path, 8, now_s - 9 * DAY_S)
    size = old.stat().st_size
    ledger = Ledger(tmp_path, RetentionLimits(days=10), clock_sure=lambda: True)
    ledger.write("mic", "start")
    until(lambda: not old.exists())
    ledger.close(PATIENCE_S)
    assert young.exists()
    _, line = events(ledger.path("mic"))
    del line["at"], line["monotonic_ns"]
    assert line == {
        "event": "forgotten",
        "file": "mic.jsonl.000007.gz",
        "size": size,
        "lines": 10,
        "first_at": "2025-01-01",
        "last_at": "2025-01-09",
        "reason": "older than 10 days",
    }


def test_a_clock_that_may_be_wrong_deletes_nothing(tmp_path: Path) -> None:
    """A machine that starts in 2099 still has its ledger when its clock is right again."""
    book = LedgerFile(tmp_path, "mic")
    full_at(tmp_path, 1, 1.0)
    assert list(book.forget(10, 10**9, None)) == []
    assert len(list(book.forget(10, 10**9, 100 * DAY_S))) == 1


def test_the_oldest_goes_where_all_is_too_large(tmp_path: Path) -> None:
    """By number, whatever their dates say: a wall clock may have been set."""
    book = LedgerFile(tmp_path, "mic")
    paths = [full_at(tmp_path, number, 10.0 - number) for number in (1, 2, 3)]
    sizes = [path.stat().st_size for path in paths]
    (gone,) = book.forget(10**6, sum(sizes) - 1, 20.0)
    assert (gone.file, gone.reason) == ("mic.jsonl.000001.gz", "more than 0 MB")
    assert [path.exists() for path in paths] == [False, True, True]


def test_one_stream_does_not_push_out_another(tmp_path: Path) -> None:
    """The room is each stream's own; names that begin alike are not the same."""
    other = tmp_path / "mic-2.jsonl.000001.gz"
    other.write_bytes(b"x" * 10_000)
    assert list(LedgerFile(tmp_path, "mic").forget(1, 10, 1e12)) == []
    assert other.exists()


@pytest.mark.parametrize("left", ["plain", "half packed", "both"])
def test_an_interrupted_rotation_is_taken_up(tmp_path: Path, left: str) -> None:
    """After a power cut at any step all lines are there once."""
    plain = tmp_path / "mic.jsonl.000001"
    plain.write_bytes(b'{"event": "gap"}\n' * 1000)
    if left == "half packed":
        (tmp_path / "mic.jsonl.000001.new").write_bytes(b"\x1f\x8bhalf")
    if left == "both":
        (tmp_path / "mic.jsonl.000001.gz").write_bytes(b"whole, but nobody knows")
    LedgerFile(tmp_path, "mic").compress()
    (packed,) = tmp_path.iterdir()
    assert packed.name == "mic.jsonl.000001.gz"
    assert zlib.decompress(packed.read_bytes(), wbits=31) == b'{"event": "gap"}\n' * 1000


def test_the_file_of_an_older_release_is_taken_over(tmp_path: Path) -> None:
    """What was called .1 is the oldest, compressed."""
    (tmp_path / "mic.jsonl.1").write_bytes(b"{}\n")
    book = LedgerFile(tmp_path, "mic")
    book.compress()
    (tmp_path / "mic.jsonl").write_bytes(b"x" * (LIMIT_BYTES + 1))
    book.rotate()
    assert [archive.path.name for archive in book.archives()] == [
        "mic.jsonl.1.gz",
        "mic.jsonl.000002",
    ]


def test_a_file_that_cannot_be_compressed_is_told_and_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ones after it are compressed, and the error is raised at the end."""
    for number in (1, 2):
        (tmp_path / f"mic.jsonl.00000{number}").write_bytes(b"{}\n")
    pack = ledger_file._pack

    def refuse_first(path: Path, fresh: Path) -> None:
        if path.name.endswith("1"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        pack(path, fresh)

    monkeypatch.setattr(ledger_file, "_pack", refuse_first)
    with pytest.raises(OSError, match="Input/output error"):
        LedgerFile(tmp_path, "mic").compress()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["mic.jsonl.000001", "mic.jsonl.000002.gz"]


def test_the_end_of_a_file_is_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that the beginning of the part or a power cut has torn is none; it is known whether
    the part is all, and nothing is known of a file that cannot be read."""
    path = tmp_path / "mic.jsonl"
    path.write_bytes(b"one\ntwo\nthr")
    assert ledger_file.read_tail(path) == ([b"one\n", b"two\n"], True)
    assert ledger_file.read_tail(path, 11) == ([b"one\n", b"two\n"], True)
    assert ledger_file.read_tail(path, 10) == ([b"two\n"], False)
    assert ledger_file.read_tail(tmp_path / "absent") == ([], False)

    def fail(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    assert ledger_file.read_tail(path) == ([], False)


def test_what_replaces_a_file_is_safe_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves the old content or the new, both whole."""
    path = tmp_path / "mic.open.json"
    path.write_bytes(b"old")
    sync, steps = os.fdatasync, []

    def note(descriptor: int) -> None:
        sync(descriptor)
        steps.append((path.read_bytes(), os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fdatasync", note)
    ledger_file.replace(path, b"new")
    assert steps == [(b"old", 3)] and path.read_bytes() == b"new"


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """Links, directories and names that are not ours are neither packed nor deleted."""
    (tmp_path / "mic.jsonl.000001").mkdir()
    (tmp_path / "mic.jsonl.000002").symlink_to("/etc/passwd")
    (tmp_path / "mic.jsonl.old").write_text("x")
    book = LedgerFile(tmp_path, "mic")
    book.compress()
    assert list(book.forget(1, 1, 1e12)) == []
    assert len(list(tmp_path.iterdir())) == 3


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    """What comes after a line that a power cut tore is a line of its own."""
    ledger = Ledger(tmp_path)
    ledger.path("mic").write_bytes(b'{"event": "start"}\n{"event": "ga')
    ledger.write("mic", "start")
    ledger.write("mic", "stop")
    ledger.close(PATIENCE_S)
    lines = ledger.path("mic").read_text().splitlines()
    assert lines[1] == '{"event": "ga'
    assert [json.loads(lines[at])["event"] for at in (0, 2, 3)] == ["start", "start", "stop"]


# A disk that refuses


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    """Where the ledger cannot be written, ``trouble`` says where and why."""
    (tmp_path / "ledger").write_text("no directory")
    ledger = Ledger(tmp_path / "ledger")
    ledger.write("mic", "start")
    ledger.close(PATIENCE_S)
    assert ledger.trouble == (
        f"{tmp_path}/ledger/mic.jsonl: File exists; its lines are kept in memory; check that the "
        "disk is writable and has space"
    )


@pytest.mark.parametrize("what", ["directory", "link", "pipe"])
def test_what_cannot_be_a_ledger_is_put_aside(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A directory, a dangling link or a pipe of that name is renamed, which is told, and the ledger
    goes on."""
    path = tmp_path / "mic.jsonl"
    if what == "directory":
        path.mkdir()
    elif what == "link":
        path.symlink_to(tmp_path / "absent")
    else:
        os.mkfifo(path)
    ledger = Ledger(tmp_path)
    ledger.write("mic", "start")
    ledger.close(PATIENCE_S)
    assert ledger.trouble is None
    assert [event["event"] for event in events(path)] == ["start"]
    assert os.path.lexists(tmp_path / "mic.jsonl.aside-1")
    assert "renamed to mic.jsonl.aside-1" in caplog.text
    assert not (tmp_path / "absent").exists()


def test_one_ledger_that_cannot_be_written_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stream's file has its own trouble."""
    write = os.write
    inodes: list[int] = []

    def refuse(descriptor: int, content: bytes) -> int:
        if b'"device": "bad"' in content:
            inodes.append(os.fstat(descriptor).st_ino)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", refuse)
    ledger = Ledger(tmp_path)
    ledger.write("bad", "start", device="bad")
    until(lambda: bool(inodes))
    for number in range(10):
        ledger.write("mic", "gap", frames=number)
    ledger.close(PATIENCE_S)
    assert [event["frames"] for event in events(ledger.path("mic"))] == list(range(10))
    assert "bad.jsonl: Input/output error" in str(ledger.trouble)


def taken(book: LedgerFile, lines: deque[bytes]) -> list[bytes]:
    """What ``append`` told as written until it returned or failed."""
    told: list[bytes] = []
    with suppress(OSError):
        book.append(lines, told.append)
    return told


def test_a_line_whose_sync_failed_is_not_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a write took is in the file; only the sync is done again."""
    book, lines = LedgerFile(tmp_path, "mic"), deque([b"1\n", b"2\n"])
    sync = os.fdatasync

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    assert taken(book, lines) == [b"1\n", b"2\n"]
    lines.append(b"3\n")
    assert taken(book, lines) == []
    assert list(lines) == [b"3\n"]
    monkeypatch.setattr(os, "fdatasync", sync)
    assert taken(book, lines) == [b"3\n"]
    assert (tmp_path / "mic.jsonl").read_bytes() == b"1\n2\n3\n"


def test_lines_that_a_failed_sync_lost_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may forget what it could not make safe; the sums of the day count it once."""
    book, lines = LedgerFile(tmp_path, "mic"), deque([b"1\n", b"2\n"])
    sync = os.fdatasync

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    assert taken(book, lines) == [b"1\n", b"2\n"]
    os.truncate(tmp_path / "mic.jsonl", 2)
    monkeypatch.setattr(os, "fdatasync", sync)
    lines.append(b"3\n")
    assert taken(book, lines) == [b"3\n"]
    kept = (tmp_path / "mic.jsonl").read_bytes().split()
    assert sorted(set(kept)) == [b"1", b"2", b"3"]
    lines.extend([b"4\n", b"5\n"])
    assert taken(book, lines) == [b"4\n", b"5\n"]


def test_a_file_system_that_cannot_sync_is_as_good_as_it_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no fdatasync the ledger is written all the same."""

    def none(_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fdatasync", none)
    ledger = Ledger(tmp_path)
    ledger.write("mic", "start")
    ledger.close(PATIENCE_S)
    assert ledger.trouble is None


def test_a_write_that_takes_a_part_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full in the midst of a line: that line waits, the ones before are there."""
    book, lines = LedgerFile(tmp_path, "mic"), deque([b"one\n", b"two\n"])
    write = os.write
    monkeypatch.setattr(os, "write", lambda where, what: write(where, what[:6]))
    assert taken(book, lines) == [b"one\n"]
    assert (tmp_path / "mic.jsonl").read_bytes() == b"one\n"
    monkeypatch.setattr(os, "write", write)
    assert taken(book, lines) == [b"two\n"]
    assert (tmp_path / "mic.jsonl").read_bytes() == b"one\ntwo\n"


def test_a_slow_disk_gets_the_last_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``close`` waits for a disk that is at work, as long as it is told to."""
    sync, at_work, go_on = os.fdatasync, threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        at_work.set()
        go_on.wait(PATIENCE_S)
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    ledger = Ledger(tmp_path)
    ledger.write("mic", "start")
    assert at_work.wait(PATIENCE_S)
    ledger.write("mic", "stop")
    ledger.close(0.01)
    go_on.set()
    ledger.close(PATIENCE_S)
    assert [event["event"] for event in events(ledger.path("mic"))] == ["start", "stop"]


def test_lines_that_are_lost_at_the_end_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What could not be written by then is counted, for each stream."""
    (tmp_path / "ledger").touch()
    ledger = Ledger(tmp_path / "ledger")
    for number in range(3):
        ledger.write("mic", "drop", frames=number, reason=str(number))
    ledger.close(PATIENCE_S)
    (told,) = [record.getMessage() for record in caplog.records if "lost" in record.getMessage()]
    assert told.startswith(f"{tmp_path}/ledger/mic.jsonl: 3 ledger lines were lost")


def test_two_daemons_share_a_folder(tmp_path: Path) -> None:
    """Each line is there once and whole, also across rotations."""
    ledgers = [Ledger(tmp_path) for _ in range(2)]
    ledgers[0].path("mic").write_bytes(b"{}\n" * (LIMIT_BYTES // 3 + 1))
    for number in range(200):
        for which, one in enumerate(ledgers):
            one.write("mic", "gap", frames=number, by=which)
    for ledger in ledgers:
        ledger.close(PATIENCE_S)
    book = LedgerFile(tmp_path, "mic")
    book.compress()
    old = b"".join(
        zlib.decompress(archive.path.read_bytes(), wbits=31) for archive in book.archives()
    )
    lines = [*old.splitlines(), *(tmp_path / "mic.jsonl").read_bytes().splitlines()]
    found = sorted(
        (one["by"], one["frames"]) for one in map(json.loads, lines) if one.get("event") == "gap"
    )
    assert found == [(which, number) for which in (0, 1) for number in range(200)]


def test_a_lock_that_another_does_not_give_back_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines wait; nobody but us can hold it, since others may not open it."""
    monkeypatch.setattr(ledger_file, "LOCK_S", 0.02)
    lock = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    ledger = Ledger(tmp_path)
    ledger.write("mic", "start")
    ledger.close(PATIENCE_S)
    assert "locked by another capstand" in str(ledger.trouble)
    os.close(lock)


def test_a_lock_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    """One bad file costs itself."""
    (tmp_path / ".lock").mkdir()
    ledger = Ledger(tmp_path)
    ledger.write("mic", "start")
    ledger.close(PATIENCE_S)
    assert ledger.trouble is None


# What others can cause, and what waits


class Time:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def in_one_second_steps(book: "module._Book", time_s: float, event: str, **what: object) -> None:
    book.release(time_s, everything=False)
    book.take({"event": event, "at": f"t{time_s:g}", "monotonic_ns": 0, **what}, time_s)


def lines_of(book: "module._Book") -> list[dict[str, Any]]:
    return [json.loads(line) for line in book._lines]


def test_a_night_with_a_gap_each_second_has_a_line_for_each(tmp_path: Path) -> None:
    """All 28,800 are there, with their frames."""
    ledger = Ledger(tmp_path)
    for number in range(28_800):
        ledger.write("mic", "gap", frames=number, cause="overrun", exact=True)
        if number % 5_000 == 0:
            until(lambda: not ledger._books["mic"]._lines)
    ledger.close(PATIENCE_S)
    book = LedgerFile(tmp_path, "mic")
    book.compress()
    old = b"".join(
        zlib.decompress(archive.path.read_bytes(), wbits=31) for archive in book.archives()
    )
    lines = [*old.splitlines(), *(tmp_path / "mic.jsonl").read_bytes().splitlines()]
    assert [json.loads(line)["frames"] for line in lines] == list(range(28_800))


@pytest.mark.parametrize("event", ["release", "resume", "opened", "drop", "anything"])
def test_whoever_causes_events_cannot_push_out_the_rest(tmp_path: Path, event: str) -> None:
    """100 a second for a day are some 2,500 lines, and their count and sum are exact."""
    book = module._Book(tmp_path, "mic")
    count = 0
    for second in range(86_400):
        for _ in range(3):
            in_one_second_steps(book, float(second), event, frames=2)
            count += 1
    book.release(86_400.0, everything=True)
    found = lines_of(book)
    assert len(found) < 3_000
    assert sum(one.get("count", 1) for one in found) == count
    assert sum(one["frames"] for one in found) == 2 * count


def test_an_allowance_grows_back_and_no_higher_than_it_was() -> None:
    """Of most kinds 1,000 lines at once and 500 more a day."""

    def lines_at(time_s: float) -> int:
        return sum(limit.takes(time_s) for _ in range(3_000))

    limit = module._RateLimit("drop", 0.0)
    assert lines_at(0.0) == 1_000
    assert lines_at(DAY_S / 2) == 250
    assert lines_at(1.5 * DAY_S) == 500
    assert lines_at(100 * DAY_S) == 1_000


def test_a_card_that_is_handed_about_hides_no_gap(tmp_path: Path) -> None:
    """Who may release a card may make gaps of that cause, and their lines cost no other cause
    any."""
    book = module._Book(tmp_path, "mic")
    for _ in range(60_000):
        in_one_second_steps(book, 1.0, "gap", frames=1, cause="released", exact=False)
    in_one_second_steps(book, 1.0, "gap", frames=480, cause="overrun", exact=True)
    found = lines_of(book)
    assert len(found) == 1_001
    assert found[-1]["cause"] == "overrun" and "count" not in found[-1]


def test_a_disk_that_is_full_keeps_no_half_packed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain file stays as it is, and what is too old goes all the same."""
    plain = tmp_path / "mic.jsonl.000002"
    plain.write_bytes(b"{}\n")
    old = full_at(tmp_path, 1, 1.0)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "utime", full)
    ledger = Ledger(tmp_path, RetentionLimits(days=10), clock_sure=lambda: True)
    ledger.write("mic", "start")
    until(lambda: not old.exists())
    ledger.close(PATIENCE_S)
    assert plain.read_bytes() == b"{}\n"
    assert not list(tmp_path.glob("*.new"))


def test_sums_keep_causes_and_sinks_apart(tmp_path: Path) -> None:
    """What is summed up is of one cause and one sink, and has the first frame of the first."""
    book = module._Book(tmp_path, "mic")
    for cause in ("overrun", "released"):
        kind = f"gap {cause}"
        book._rate_limits[kind] = module._RateLimit(kind, 0.0)
        book._rate_limits[kind]._left = 0.0
    for number in range(4):
        cause = ("overrun", "released")[number % 2]
        in_one_second_steps(book, 1.0, "gap", frames=10, first_frame=number, cause=cause)
    in_one_second_steps(book, 1.0 + SUM_S, "gap", frames=1, first_frame=9, cause="overrun")
    sums = lines_of(book)[:2]
    found = [(one["cause"], one["count"], one["frames"], one["first_frame"]) for one in sums]
    assert found == [("overrun", 2, 20, 0), ("released", 2, 20, 1)]


def test_what_does_not_fit_into_memory_is_summed_up(tmp_path: Path) -> None:
    """While a disk hangs the frames of all gaps are counted, however many."""
    book = module._Book(tmp_path, "mic")
    for number in range(BACKLOG + 5_000):
        in_one_second_steps(book, number / 10, "gap", frames=1, cause="overrun", exact=True)
    in_one_second_steps(book, 5_000.0, "stop")
    assert len(book._lines) == BACKLOG + 1
    book._lines.clear()
    book.release(10_000.0, everything=False)
    (line,) = lines_of(book)
    assert (line["count"], line["frames"]) == (5_000, 5_000)


def test_sums_are_bounded(tmp_path: Path) -> None:
    """Reasons that are never the same do not grow the memory."""
    book = module._Book(tmp_path, "mic")
    for number in range(20_000):
        in_one_second_steps(book, 1.0, "drop", frames=1, reason=f"reason {number}")
    assert len(book._sums) <= module.MOST_SUMS + 1
    book.release(1.0, everything=True)
    assert sum(one["frames"] for one in lines_of(book)) == 20_000


# The days


def total(at: str, produced: int, *, event: str = "total", **sinks: int) -> dict[str, Any]:
    return {
        "event": event,
        "at": at,
        "monotonic_ns": produced,
        "produced_frames": produced,
        "captured_frames": produced,
        "lost_frames": 0,
        "sinks": [{"name": name, "delivered_frames": value} for name, value in sinks.items()],
    }


def start(at: str) -> dict[str, Any]:
    return {"event": "start", "at": at, "monotonic_ns": 0}


def gap(at: str, frames: int, cause: str = "overrun", **what: object) -> dict[str, Any]:
    return {
        "event": "gap",
        "at": at,
        "monotonic_ns": frames,
        "frames": frames,
        "cause": cause,
        "exact": True,
        **what,
    }


def test_a_day_is_one_line_of_sums(tmp_path: Path) -> None:
    """Frames of all its runs, gaps by cause, sinks, and how often it was started."""
    book = DayTotalsFile(tmp_path, "mic")
    for event in (
        start("2025-11-25T10"),
        gap("2025-11-25T10", 5),
        gap("2025-11-25T10", 30, "released", count=3),
        total("2025-11-25T11", 100, file=90),
        total("2025-11-25T12", 150, file=150),
        start("2025-11-25T13"),
        gap("2025-11-25T13", 7, exact=False),
        total("2025-11-25T14", 20, file=20),
        total("2025-11-26T00", 25, file=24),
    ):
        book.add(event)
    book.save()
    (line,) = events(tmp_path / "days/mic.jsonl")
    assert line == {
        "day": "2025-11-25",
        "produced_frames": 170,
        "captured_frames": 170,
        "lost_frames": 0,
        "restarts": 0,
        "opens": 0,
        "events": {"start": 2, "gap": 5, "total": 3},
        "gaps": {
            "overrun": {"count": 2, "frames": 12, "estimated_frames": 7},
            "released": {"count": 3, "frames": 30, "estimated_frames": 0},
        },
        "sinks": {"file": {"delivered_frames": 170, "dropped_frames": 0, "inserted_frames": 0}},
    }
    assert json.loads((tmp_path / "days/mic.open.json").read_text())["produced_frames"] == 5


def test_a_total_that_closes_a_day_counts_for_it(tmp_path: Path) -> None:
    """The first total after midnight has the frames of the day before."""
    book = DayTotalsFile(tmp_path, "mic")
    book.add(start("2025-11-25T23"))
    book.add(total("2025-11-26T00", 100) | {"closes": "2025-11-25"})
    book.add(total("2025-11-26T00", 130))
    book.save()
    (line,) = events(tmp_path / "days/mic.jsonl")
    assert (line["day"], line["produced_frames"]) == ("2025-11-25", 100)
    assert json.loads((tmp_path / "days/mic.open.json").read_text())["produced_frames"] == 30


def test_a_day_goes_on_after_a_restart(tmp_path: Path) -> None:
    """The sums of a day are those of all runs, each saved any number of times."""
    for _ in range(3):
        book = DayTotalsFile(tmp_path, "mic")
        book.replay([], whole=True)
        book.add(start("2025-11-25"))
        book.add(total("2025-11-25", 10))
        book.save()
        book.save()
        book.add(total("2025-11-25", 12, event="stop"))
        book.save()
    book.add(start("2025-11-26"))
    book.save()
    (line,) = events(tmp_path / "days/mic.jsonl")
    assert (line["produced_frames"], line["events"]["start"]) == (36, 3)


@pytest.mark.parametrize("rotated", [False, True])
def test_what_a_crash_took_of_the_sums_is_made_good(tmp_path: Path, rotated: bool) -> None:
    """Lines of the ledger that came after the last sums were saved are counted at the start."""
    book = DayTotalsFile(tmp_path, "mic")
    saved = [start("2025-11-25T1"), gap("2025-11-25T2", 1), total("2025-11-25T3", 10)]
    lost = [gap("2025-11-25T4", 2), gap("2025-11-25T5", 3)]
    for event in saved:
        book.add(event)
    book.save()
    lines = [json.dumps(one).encode() for one in (lost if rotated else saved + lost)]
    book = DayTotalsFile(tmp_path, "mic")
    book.replay([*lines, b"torn {"], whole=True)
    book.add(start("2025-11-26"))
    book.save()
    (line,) = events(tmp_path / "days/mic.jsonl")
    assert line["gaps"]["overrun"] == {"count": 3, "frames": 6, "estimated_frames": 0}
    assert line["produced_frames"] == 10


def test_the_ledger_makes_good_once_what_a_crash_took(tmp_path: Path) -> None:
    """Its first lines add what the last run wrote after its sums were saved, and no others do."""
    saved, lost = [start("2025-11-25T1"), total("2025-11-25T2", 10)], gap("2025-11-25T3", 2)
    days = DayTotalsFile(tmp_path, "mic")
    for event in saved:
        days.add(event)
    days.save()
    ledger = Ledger(tmp_path)
    ledger.path("mic").write_bytes(
        b"".join(json.dumps(one).encode() + b"\n" for one in (*saved, lost))
    )
    for number, name in enumerate(("start", "gap", "stop"), start=4):
        ledger.write("mic", name, frames=1, cause="overrun", exact=True)
        until(partial(written, ledger.path("mic"), number))
    ledger.close(PATIENCE_S)
    (line,) = events(tmp_path / "days/mic.jsonl")
    assert (line["day"], line["events"]) == ("2025-11-25", {"start": 1, "total": 1, "gap": 1})
    today = json.loads((tmp_path / "days/mic.open.json").read_text())
    assert today["events"] == {"start": 1, "gap": 1, "stop": 1}


def test_a_day_that_ended_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut between the two steps of a day's end does not repeat its line."""
    book = DayTotalsFile(tmp_path, "mic")
    book.add(start("2025-11-25"))
    book.save()
    book.add(start("2025-11-26"))

    def cut(*_: object) -> None:
        raise OSError(errno.EIO, "power cut")

    monkeypatch.setattr("capstand.accounting.days.replace", cut)
    with pytest.raises(OSError, match="power cut"):
        book.save()
    monkeypatch.undo()
    book.save()
    assert [event["day"] for event in events(tmp_path / "days/mic.jsonl")] == ["2025-11-25"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\0" * 100, b'{"day": 1}', b'{"day": "x", "counters": {}}',
     b"[" * 100_000],
)  # fmt: skip
def test_sums_that_are_damaged_are_begun_anew(tmp_path: Path, content: bytes) -> None:
    """A file of sums that a disk has spoilt costs itself."""
    (tmp_path / "days").mkdir()
    (tmp_path / "days/mic.open.json").write_bytes(content)
    ledger = Ledger(tmp_path)
    ledger.write("mic", "start")
    ledger.write("mic", "stop")
    ledger.close(PATIENCE_S)
    assert ledger.trouble is None
    assert json.loads((tmp_path / "days/mic.open.json").read_text())["events"]["start"] == 1


def test_sums_that_cannot_be_written_do_not_stop_the_ledger(tmp_path: Path) -> None:
    """A file where the folder of the days should be costs the sums alone."""
    (tmp_path / "days").write_text("no directory")
    ledger = Ledger(tmp_path)
    ledger.write("mic", "start")
    ledger.write("mic", "stop")
    ledger.close(PATIENCE_S)
    assert ledger.trouble is None
    assert len(events(ledger.path("mic"))) == 2


def test_names_in_the_sums_are_bounded() -> None:
    """However many causes and sinks there are, a day's line stays short."""
    sums = DayTotals("2025-11-25")
    for number in range(1000):
        sums.add(gap("2025-11-25", 1, f"cause {number}"))
        sums.add({"event": f"event {number}", "at": "2025-11-25"})
    line = json.loads(sums.line())
    assert len(line["gaps"]) == len(line["events"]) == 65
    assert sum(one["frames"] for one in line["gaps"].values()) == 1000
    assert sum(line["events"].values()) == 2000
