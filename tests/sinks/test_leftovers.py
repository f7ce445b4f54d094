"""What is found in a recordings' or a spool's folder: only what nobody writes is taken, and what is
in the way costs itself alone."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from capstand.audio.block import NS_PER_S
from capstand.sinks import disk
from capstand.sinks.recording.leftover import LOOK_NS, QUIET_NS
from capstand.sinks.spool import record
from capstand.sinks.spool.record import HEAD_BYTES
from tests.sinks.test_disks import notes
from tests.sinks.test_recording import DYING, PERIOD, STAMP, Desk, descriptors, heard, same
from tests.sinks.test_spool import FRAMES, fill, rest, sound, spool

Nobody = Callable[[], AbstractContextManager[Path]]
PART = f"mic-{STAMP}.wav.part"


@pytest.fixture(autouse=True)
def no_leak() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


def left(folder: Path, name: str = PART, seconds: int = 1) -> bytes:
    """A leftover with sound, as a killed process leaves it; its samples."""
    desk = Desk(folder / "made")
    samples = desk.write(*range(0, 8000 * seconds, PERIOD))
    desk.sink.close()
    (path,) = (folder / "made").iterdir()
    path.rename(folder / name)
    (folder / "made").rmdir()
    (folder / "made.note").unlink(missing_ok=True)
    return samples


# Two writers


def test_what_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    """A recording that is being written keeps its name and its content; both end up whole."""
    one = Desk(tmp_path)
    samples = one.write(0)
    two = Desk(tmp_path)
    assert two.names() == [PART]
    other = two.write(PERIOD)
    two.sink.flush()
    samples += one.write(PERIOD)
    one.sink.flush()
    assert len(one.names()) == 2
    one.sink.close()
    two.sink.close()
    names = one.names()
    assert names == [f"mic-{STAMP}.wav", "mic-20261122T031500.350Z.wav"]
    assert same(tmp_path / names[0], samples)
    assert same(tmp_path / names[1], other)
    assert notes(one) == notes(two) == []


def test_two_that_begin_at_once_get_names_of_their_own(tmp_path: Path) -> None:
    """Two machines that begin in the same millisecond do not write into one file."""
    one, two = Desk(tmp_path), Desk(tmp_path)
    first, second = one.write(0), two.write(0)
    two.sink.close()
    one.sink.close()
    assert one.names() == [f"mic-{STAMP}-2.wav", f"mic-{STAMP}.wav"]
    assert same(tmp_path / f"mic-{STAMP}.wav", first)
    assert same(tmp_path / f"mic-{STAMP}-2.wav", second)


def test_what_nobody_writes_any_more_is_taken_while_recording(tmp_path: Path) -> None:
    """A leftover of one who died later gets its name without a new start."""
    samples = left(tmp_path)
    holder = os.open(tmp_path / PART, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    desk = Desk(tmp_path)
    desk.write(PERIOD)
    desk.clock.ns += 1000 * NS_PER_S  # a lock that is held says enough, for ever
    desk.sink.flush()
    assert PART in desk.names()
    os.close(holder)
    desk.clock.ns += LOOK_NS
    desk.sink.flush()
    desk.sink.close()
    assert same(tmp_path / f"mic-{STAMP}.wav", samples)
    assert len(desk.names()) == 2


@pytest.mark.parametrize("locks", ["another machine's", "none"])
def test_where_locks_say_nothing_only_what_stands_still_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    """On a share a free lock is no proof: what changes is left alone for as long as it does; what
    has not changed for longer than a recording ever rests gets its name."""
    if locks == "none":
        monkeypatch.setattr(disk, "may_lock", lambda _: False)
    else:
        monkeypatch.setattr(disk, "is_local", lambda _: False)
    left(tmp_path)
    desk = Desk(tmp_path)
    for _ in range(30):
        with (tmp_path / PART).open("ab") as file:
            file.write(bytes(4000))
        desk.clock.ns += QUIET_NS // 2
        desk.sink.flush()
        assert desk.names() == [PART]
    desk.clock.ns += QUIET_NS - 1
    desk.sink.flush()
    assert desk.names() == [PART]
    desk.clock.ns += LOOK_NS
    desk.sink.flush()
    assert desk.names() == [f"mic-{STAMP}.wav"]
    assert len(heard(tmp_path / f"mic-{STAMP}.wav")) // 2 == 8000 + 30 * 1000


def test_its_own_leftover_on_a_share_is_taken_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run wrote on a share when it ended, the next run on this machine knows for its own;
    another machine does not, and what somebody holds is left alone even then."""
    monkeypatch.setattr(disk, "is_local", lambda _: False)
    share, word = tmp_path / "share", tmp_path / "share.note"
    first = Desk(share)
    first.write(*range(0, 8000, PERIOD))
    first.sink.flush()
    assert word.read_text() == f"mic-{STAMP}.wav"
    Desk(share)
    assert first.names() == [PART]
    assert first.sink._segment is not None
    os.close(first.sink._segment._descriptor)  # its process is gone
    os.close(first.sink._segment._folder)
    mine = word.read_text()
    word.write_text("mic-20200101T000000.000Z.wav")
    Desk(share)
    assert first.names() == [PART]
    word.write_text(mine)
    Desk(share)
    assert first.names() == [f"mic-{STAMP}.wav"]
    first.sink._segment = None


def test_a_recording_that_got_its_name_from_another_goes_on(tmp_path: Path) -> None:
    """One that stood still for so long that another named it loses nothing when it goes on."""
    desk = Desk(tmp_path)
    samples = desk.write(0)
    desk.sink.flush()
    (tmp_path / PART).rename(tmp_path / f"mic-{STAMP}.wav")
    samples += desk.write(PERIOD)
    desk.sink.flush()
    desk.sink.close()
    assert desk.sink.account()[:2] == (2 * PERIOD, 0)
    assert same(tmp_path / f"mic-{STAMP}.wav", samples)


def test_a_killed_process_leaves_its_lock_open(tmp_path: Path) -> None:
    """After ``kill -9`` the next start takes the leftover at once."""
    dead = subprocess.run(
        [sys.executable, "-c", DYING, tmp_path, "wav", "S16_LE", "3600"],
        cwd=Path(__file__).parents[2],
        check=False,
        timeout=120,
    )
    assert dead.returncode < 0
    Desk(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == [f"mic-{STAMP}.wav"]


def test_a_name_that_is_taken_is_not_written_over(tmp_path: Path) -> None:
    """Leftovers whose name is taken, even by a link that leads nowhere, get another."""
    for number in range(3):
        left(tmp_path)
        if not number:
            (tmp_path / f"mic-{STAMP}.wav").symlink_to("nowhere")
        Desk(tmp_path)
    names = sorted(one.name for one in tmp_path.iterdir())
    tails = ("-recovered-2", "-recovered-3", "-recovered", "")
    assert names == [f"mic-{STAMP}{tail}.wav" for tail in tails]
    assert (tmp_path / f"mic-{STAMP}.wav").is_symlink()


# What is in the way


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path)


def link(path: Path) -> None:
    (path.parent / "victim").write_bytes(b"RIFF" * 1000)
    path.symlink_to("victim")


def directory(path: Path) -> None:
    path.mkdir()
    (path / "inside").touch()


ODD: list[Callable[[Path], object]] = [dangling, loop, link, directory, os.mkfifo]


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_leftover_costs_itself_alone(
    tmp_path: Path, odd: Callable[[Path], object]
) -> None:
    """A link, a directory or a FIFO of a leftover's name is told once and left as it is; the others
    are taken, and the recording goes on, even under that name."""
    odd(tmp_path / PART)
    samples = left(tmp_path, "mic-20261122T000000.000Z.wav.part")
    desk = Desk(tmp_path)
    desk.sink.close()
    desk.sink.open()
    new = desk.write(0)
    desk.sink.close()
    assert notes(desk) == [f"{tmp_path}/{PART}: not a regular file; left unchanged"]
    assert os.path.lexists(tmp_path / PART)
    assert same(tmp_path / "mic-20261122T000000.000Z.wav", samples)
    assert same(tmp_path / f"mic-{STAMP}-2.wav", new) or same(tmp_path / f"mic-{STAMP}.wav", new)
    if odd is link:
        assert (tmp_path / "victim").read_bytes() == b"RIFF" * 1000


def test_a_leftover_of_somebody_else_costs_itself_alone(nobody: Nobody) -> None:
    """What may not be opened is told once, and the others are taken."""
    with nobody() as folder:
        pass
    samples = left(folder, "mic-20261122T000000.000Z.wav.part")
    os.chown(folder / "mic-20261122T000000.000Z.wav.part", 65_534, 65_534)
    left(folder)
    with nobody():
        desk = Desk(folder)
        desk.sink.open()
    assert notes(desk) == [f"{folder}/{PART}: Permission denied; left unchanged"]
    assert same(folder / "mic-20261122T000000.000Z.wav", samples)
    assert (folder / PART).exists()


def test_names_that_are_no_text_are_passed_over(tmp_path: Path) -> None:
    """A file whose name is not UTF-8 is not ours and holds nothing up."""
    for name in (b"mic-\xff.wav.part", b"mic-" + b"\xd9\xa1" * 8 + b"T000000.000Z.wav.part"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(bytes(500))
    desk = Desk(tmp_path)
    samples = desk.write(0)
    desk.sink.close()
    assert same(tmp_path / f"mic-{STAMP}.wav", samples)
    assert len(desk.names()) == 3 and notes(desk) == []


def test_a_folder_that_may_not_be_listed_can_be_recorded_to(nobody: Nobody) -> None:
    """A drop box (-wx) takes recordings; what is left there cannot be seen."""
    with nobody() as place:
        box = place / "box"
        box.mkdir()
        box.chmod(0o333)
        desk = Desk(box)
        samples = desk.write(0)
        desk.sink.flush()
        desk.sink.close()
    assert same(box / f"mic-{STAMP}.wav", samples)


# In a spool's folder


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", [f"{0:016x}.spool", f"{FRAMES:016x}.spool", "position"])
def test_what_is_in_the_way_of_a_spool_costs_itself_alone(
    tmp_path: Path, odd: Callable[[Path], object], name: str
) -> None:
    """A link, a directory or a FIFO in a spool's folder, of any name that the spool wants, is told;
    what is spooled comes back whole, also in the next run."""
    odd(tmp_path / name)
    first = spool(tmp_path, limit_bytes=8 * (FRAMES * 2 + HEAD_BYTES))  # a block per file
    first.commit(0, "")
    fill(first, 3)
    first.close()
    again = spool(tmp_path)
    found = rest(again, 0)
    assert len(found) == 3 and sound(found)
    again.commit(again.end, "", empty=True)
    again.close()
    assert any(name in one for one in (*first.notes, *again.notes))
    if odd is link:
        assert (tmp_path / "victim").read_bytes() == b"RIFF" * 1000


def test_sound_of_a_later_version_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record in a format that this version does not know is skipped; the others are read."""
    first = spool(tmp_path)
    first.commit(0, "")
    with monkeypatch.context() as later:
        later.setattr(record, "_FORMATS", ["-"] * 20 + ["S16_LE"])
        fill(first, 1)
    fill(first, 2)
    first.close()
    again = spool(tmp_path)
    found = rest(again, 0)
    assert [one.position for one in found] == [FRAMES, 2 * FRAMES] and sound(found)
    again.close()
