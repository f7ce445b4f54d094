"""What waits for a sink, call by call: window, spool and books, without a thread or a clock."""

import errno
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from capstand.audio.block import NS_PER_S
from capstand.sinks.sink import Checkpoint
from capstand.sinks.spool.backlog import Backlog
from capstand.sinks.spool.spool import Spool
from tests.sinks.test_spool import AUDIO, FRAMES, ROOM, Clock, block

AWAY = "the sink is away"


def backlog(folder: Path, spool: Spool | None = None) -> Backlog:
    """With a window of five blocks."""
    one = Backlog(spool or Spool(folder, AUDIO, ROOM, 3600), 5 * FRAMES)
    one.load(0)
    return one


def put(queue: Backlog, count: int, away: str | None = None) -> int:
    """How many of so many blocks are taken."""
    return sum(queue.put(block(queue.own.taken), away, 0) for _ in range(count))


def give(queue: Backlog, count: int) -> list[int]:
    """The sink is given so many blocks; where each begins."""
    positions = []
    for _ in range(count):
        record = queue.take()
        assert record is not None
        queue.written()
        positions.append(record.position)
    return positions


def full(*_: object) -> None:
    """Takes the place of a call to the spool."""
    raise OSError(errno.ENOSPC, "No space left on device")


def events(queue: Backlog) -> list[tuple[str, object]]:
    return [(name, what.get("reason", what.get("frames"))) for name, what in queue.events]


@pytest.fixture
def folder() -> Iterator[Path]:
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with TemporaryDirectory(dir=place) as one:
        yield Path(one) / "spool"


def test_the_window_is_used_to_its_last_frame(folder: Path) -> None:
    """A window that is just full needs no disk, whatever was delivered before; one block more does,
    with all that waits."""
    queue = backlog(folder)
    put(queue, 3)
    give(queue, 3)
    queue.commit(None)
    assert put(queue, 5) == 5 and queue.in_memory and queue.spooled_frames == 0
    assert put(queue, 1) == 1 and queue.spooling and queue.spooled_frames == 6 * FRAMES
    assert events(queue) == [("spool_begin", "the sink is too slow")]


def test_without_a_disk_a_full_window_takes_no_more(folder: Path) -> None:
    """What the disk and the window refuse is not taken; what is in the window at the end is
    dropped."""
    folder.write_text("in the way")
    queue = backlog(folder)
    assert put(queue, 7, AWAY) == 5 and queue.own.taken == 5 * FRAMES
    assert queue.concern is not None and not queue.spooling
    give(queue, 2)
    queue.take()
    queue.close(AWAY, 0)
    assert queue.own.dropped == 5 * FRAMES
    assert queue.take() is None and queue.given_frames == 0


def test_what_was_not_safe_is_given_again_before_what_is_on_disk(folder: Path) -> None:
    """After a failure the sink gets what is not safe, to the frame, then what waited in memory,
    then what waits on disk."""
    queue = backlog(folder)
    put(queue, 4)
    assert give(queue, 2) == [0, 100]
    queue.commit(Checkpoint(FRAMES + 30, "there"))
    assert queue.own.delivered == FRAMES + 30 and queue.given_frames == 2 * FRAMES
    queue.take()
    queue.put_back()
    put(queue, 1, AWAY)
    assert queue.spooling and not queue.from_disk and not queue.in_memory
    assert (queue.spool.position, queue.spool.cursor) == (130, "there")
    queue.opened()
    assert queue.given_frames == 0
    assert give(queue, 3) == [130, 200, 300]
    assert queue.from_disk
    assert give(queue, 1) == [400] and queue.take() is None


def test_the_disk_is_left_alone_once_all_is_safe(folder: Path) -> None:
    """Not before: neither while something is still to be read, nor while the sink may lose what it
    was given."""
    queue = backlog(folder)
    put(queue, 3, AWAY)
    queue.leave_disk(0)
    give(queue, 2)
    assert not queue.all_written
    queue.commit(None)
    queue.leave_disk(0)
    assert queue.spooling
    give(queue, 1)
    assert queue.all_written
    queue.leave_disk(0)
    assert queue.spooling
    queue.put_back()
    queue.leave_disk(0)
    assert queue.spooling and give(queue, 1) == [200]
    queue.commit(None)
    assert not queue.all_written
    queue.leave_disk(5 * NS_PER_S // 2)
    assert not queue.spooling and list(folder.glob("*.spool")) == []
    assert queue.events[-1] == ("spool_end", {"frames": 3 * FRAMES, "seconds": 2.5})


def test_a_new_place_is_noted_at_once_the_same_one_only_when_asked(folder: Path) -> None:
    """What is safe is noted on disk with its place: before each block if that is another than
    before, otherwise when the sink was flushed."""
    queue = backlog(folder)
    put(queue, 3, AWAY)
    give(queue, 2)
    queue.commit(Checkpoint(FRAMES, "a"), only_new_cursor=True)
    assert (queue.spool.position, queue.spool.cursor) == (FRAMES, "a")
    queue.commit(Checkpoint(2 * FRAMES, "a"), only_new_cursor=True)
    assert queue.spool.position == FRAMES and queue.own.delivered == 2 * FRAMES
    queue.commit(queue.checkpoint)
    assert queue.spool.position == 2 * FRAMES


def mounted_late(folder: Path) -> Backlog:
    """Its directory has just appeared; three blocks wait and the first is in flight."""
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    folder.write_text("in the way")
    queue = backlog(folder)
    put(queue, 3)
    queue.take()
    folder.unlink()
    elsewhere.rename(folder)
    return queue


def test_a_spool_that_can_be_reached_late_comes_first(folder: Path) -> None:
    """Where an earlier run left sound and its directory appears while this run's waits, the
    earlier comes first, the sink takes back what is not safe of it, and the books are apart. While
    the sink holds what is not safe, that is not looked for."""
    earlier = backlog(folder)
    put(earlier, 1, AWAY)
    earlier.commit(Checkpoint(0, "earlier"))
    put(earlier, 2)
    earlier.close(AWAY, 0)
    queue = mounted_late(folder)
    assert put(queue, 1, AWAY) == 1
    queue.sync(AWAY, 0)
    queue.written()
    queue.sync(AWAY, 0)
    assert not queue.spooling and queue.checkpoint == Checkpoint(0, "")
    queue.put_back()
    queue.sync(None, 0)
    assert queue.concern is None and queue.spooled_frames == 7 * FRAMES
    assert queue.checkpoint == Checkpoint(0, "earlier")
    assert events(queue) == [("spool_begin", "left by an earlier run")]
    assert give(queue, 7) == list(range(0, 7 * FRAMES, FRAMES))
    queue.commit(None)
    assert (queue.inherited.delivered, queue.own.delivered) == (3 * FRAMES, 4 * FRAMES)


def test_what_waits_and_finds_no_room_behind_an_earlier_run_is_dropped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses this run's sound when it appears late costs that sound, counted."""
    earlier = backlog(folder)
    put(earlier, 1, AWAY)
    earlier.close(AWAY, 0)
    queue = mounted_late(folder)
    queue.put_back()
    monkeypatch.setattr(queue.spool, "append", full)
    queue.sync(None, 0)
    assert queue.own.dropped == 3 * FRAMES and queue.spooled_frames == FRAMES


def test_the_end_touches_no_spool_that_was_not_opened(folder: Path) -> None:
    """What an earlier run left and this one could not load is whole after it."""
    earlier = backlog(folder)
    put(earlier, 2, AWAY)
    earlier.close(AWAY, 0)
    queue = mounted_late(folder)
    queue.close(AWAY, 0)
    assert queue.own.dropped == 3 * FRAMES and not queue.spooling
    later = backlog(folder)
    assert later.inherited.taken == 2 * FRAMES and give(later, 2) == [0, 100]


def test_an_end_with_nothing_left_leaves_the_disk_alone(folder: Path) -> None:
    """A backlog that is empty at the end begins no spool."""
    queue = backlog(folder)
    put(queue, 1)
    give(queue, 1)
    queue.commit(None)
    queue.close(None, 0)
    assert not queue.spooling and events(queue) == []


def test_what_is_too_old_goes_though_nothing_comes(folder: Path) -> None:
    """The age of what waits is looked at in each sync."""
    clock = Clock()
    queue = backlog(folder, Spool(folder, AUDIO, ROOM, 3600, now_ns=clock.now_ns))
    put(queue, 2, AWAY)
    clock.ns += 3601 * NS_PER_S
    queue.sync(AWAY, 0)
    assert queue.own.dropped == 2 * FRAMES and events(queue)[1:] == [("spool_drop", "age")]


def test_sound_is_safe_before_the_note_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the beginning what waited is synced, then noted; later each sync makes the rest safe."""
    queue = backlog(folder)
    put(queue, 1)
    calls: list[str] = []
    sync, commit = queue.spool.sync, queue.spool.commit

    def watched_sync() -> None:
        calls.append("sync")
        sync()

    def watched_commit(position: int, place: str) -> None:
        calls.append("commit")
        commit(position, place)

    monkeypatch.setattr(queue.spool, "sync", watched_sync)
    monkeypatch.setattr(queue.spool, "commit", watched_commit)
    put(queue, 1, AWAY)
    assert calls == ["sync", "commit"]
    queue.sync(AWAY, 0)
    assert calls == ["sync", "commit", "sync"]


def test_a_spool_that_could_not_be_emptied_is_emptied_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk refused at the end of an outage is made up for, though the sink is away
    again: none of it is delivered twice by a later run."""
    queue = backlog(folder)
    put(queue, 1, AWAY)
    give(queue, 1)
    queue.commit(Checkpoint(FRAMES, "a"), only_new_cursor=True)
    queue.commit(Checkpoint(FRAMES, "a"))
    put(queue, 1)
    give(queue, 1)
    queue.commit(Checkpoint(2 * FRAMES, "a"), only_new_cursor=True)
    with monkeypatch.context() as patch:
        patch.setattr(queue.spool, "clear", full)
        queue.leave_disk(0)
    assert not queue.spooling and queue.concern is not None
    assert queue.spool.position < queue.spool.end
    queue.sync(AWAY, 0)
    assert queue.concern is None and queue.spool.position == queue.spool.end


def test_a_concern_passes_when_the_disk_takes_sound_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While sound is spooled the disk is a concern from a block that it refuses to one that it
    takes."""
    queue = backlog(folder)
    put(queue, 1, AWAY)
    with monkeypatch.context() as patch:
        patch.setattr(queue.spool, "append", full)
        assert put(queue, 1, AWAY) == 0
    assert "No space left" in str(queue.concern) and queue.own.taken == FRAMES
    assert put(queue, 1, AWAY) == 1 and queue.concern is None


def test_this_runs_own_place_is_not_forgotten_for_an_earlier_one(folder: Path) -> None:
    """A sink that has to take something back of this run is not told to do so of the last."""
    earlier = backlog(folder)
    put(earlier, 1, AWAY)
    earlier.commit(Checkpoint(0, "earlier"))
    earlier.close(AWAY, 0)
    queue = Backlog(Spool(folder, AUDIO, ROOM, 3600), 5 * FRAMES)
    queue.commit(Checkpoint(0, "own"))
    queue.load(0)
    assert queue.spooling and queue.checkpoint.cursor == "own"


def test_what_is_lost_on_disk_is_booked_to_the_run_it_is_of(folder: Path) -> None:
    """When somebody empties the directory, each run's frames are booked as dropped by their own
    number, once."""
    earlier = backlog(folder)
    put(earlier, 3, AWAY)
    earlier.close(AWAY, 0)
    queue = backlog(folder)
    put(queue, 2)
    for path in folder.glob("*.spool"):
        path.unlink()
    assert queue.take() is None and queue.take() is None
    assert (queue.inherited.dropped, queue.own.dropped) == (3 * FRAMES, 2 * FRAMES)
    assert queue.inherited.waiting == queue.own.waiting == queue.spooled_frames == 0
    assert events(queue)[1:] == [("spool_drop", "damaged")]


def test_a_disk_that_refuses_the_beginning_keeps_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not all that waits fits on the disk, none of it stays there and all stays in memory;
    with room again the concern is gone."""
    queue = backlog(folder)
    put(queue, 3)
    append, room = queue.spool.append, 2

    def refuse(position: int, one: object) -> None:
        if position >= room * FRAMES:
            full()
        append(position, one)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(queue.spool, "append", refuse)
        queue.sync(AWAY, 0)
        assert not queue.spooling and "No space left" in str(queue.concern)
        assert list(folder.glob("*.spool")) == []
        assert put(queue, 1, AWAY) == 1 and queue.in_memory
    queue.sync(AWAY, 0)
    assert queue.concern is None and queue.spooled_frames == 4 * FRAMES
    queue.put_back()
    assert give(queue, 4) == [0, 100, 200, 300]


def test_a_concern_passes_when_nothing_waits_for_the_disk(folder: Path) -> None:
    """Once the sink is well, what the disk refused while it was away matters no more; while it is
    still away, it does."""
    queue = backlog(folder)
    queue.concern = "full"
    queue.sync(AWAY, 0)
    assert queue.concern == "full"
    queue.sync(None, 0)
    assert queue.concern is None


def test_what_is_on_disk_survives_each_sync(folder: Path) -> None:
    """What was put before a sync is found by the next process, which was not told of an end."""
    queue = backlog(folder)
    put(queue, 2)
    queue.sync(AWAY, 0)
    put(queue, 1)
    queue.sync(AWAY, 0)
    later = backlog(folder)
    assert later.spooled_frames == later.inherited.taken == 3 * FRAMES
    assert give(later, 3) == [0, 100, 200]
