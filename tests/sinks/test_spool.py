"""The spool's queue on disk: in order, within bounds, and whole after a crash at any byte."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.audio.block import NS_PER_S, AudioFormat, Block, SampleFormat
from capstand.sinks.spool import spool as spool_module
from capstand.sinks.spool.record import HEAD_BYTES, Record
from capstand.sinks.spool.spool import Spool

AUDIO = AudioFormat(8000, 1, SampleFormat.S16_LE)
FRAMES = 100
WALL_NS = 1_795_317_300_250_000_000
ROOM = 1_000_000


class Clock:
    """Monotonic and wall time that pass when the test says so."""

    def __init__(self) -> None:
        self.ns = 10 * NS_PER_S

    def now_ns(self) -> int:
        return self.ns

    def wall_ns(self) -> int:
        return WALL_NS + self.ns


def block(position: int, frames: int = FRAMES) -> Block:
    """A block whose samples say where it stands."""
    samples = b"".join((position + n & 0xFFFF).to_bytes(2, "little") for n in range(frames))
    return Block(position + 7, frames, 1000 + position, samples, AUDIO)


def spool(folder: Path, limit_bytes: int = ROOM, clock: Clock | None = None) -> Spool:
    clock = clock or Clock()
    one = Spool(folder, AUDIO, limit_bytes, 3600, now_ns=clock.now_ns, wall_ns=clock.wall_ns)
    one.open()
    return one


def fill(queue: Spool, count: int, frames: int = FRAMES) -> None:
    for _ in range(count):
        queue.append(queue.end, block(queue.end, frames))


def rest(queue: Spool, position: int | None = None) -> list[Record]:
    """All that can be read from a position on."""
    position = queue.position if position is None else position
    found = []
    while (record := queue.read(position)) is not None:
        found.append(record)
        position = record.end
    return found


def sound(records: list[Record]) -> bool:
    """Each record holds what stood there, and they are in order."""
    ends = [0, *(record.end for record in records)]
    return all(
        one.block == block(one.position, one.block.frames) and one.position >= end
        for one, end in zip(records, ends, strict=False)
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where there is such a place: syncing is not what is tested."""
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with TemporaryDirectory(dir=place) as one:
        yield Path(one)


def test_what_goes_in_comes_out(folder: Path) -> None:
    """Blocks come back in order as they were put in, over many segments."""
    queue = spool(folder, 8 * 2000)
    fill(queue, 50)
    assert len(list(folder.glob("*.spool"))) > 3
    records = rest(queue)
    assert sound(records)
    assert sum(record.block.frames for record in records) == 50 * FRAMES
    assert {record.run for record in records} == {queue.run}


def test_reading_keeps_up_with_writing(folder: Path) -> None:
    """A reader that has come to the end goes on with what is added then."""
    queue = spool(folder, 8 * 1000)
    for number in range(30):
        assert queue.read(queue.end) is None
        fill(queue, 1)
        record = queue.read(number * FRAMES)
        assert record is not None and record.block == block(number * FRAMES)


def test_what_is_delivered_is_removed(folder: Path) -> None:
    """A commit removes the segments before it; when all is delivered no segment stays."""
    queue = spool(folder, 8 * 1000)
    fill(queue, 20)
    before = len(list(folder.glob("*.spool")))
    queue.commit(15 * FRAMES, "there")
    assert 1 <= len(list(folder.glob("*.spool"))) < before
    assert sound(rest(queue)) and len(rest(queue)) == 5
    queue.clear()
    assert list(folder.glob("*.spool")) == []
    fill(queue, 1)
    assert len(rest(queue)) == 1


def test_a_later_run_goes_on_where_the_last_one_was(folder: Path) -> None:
    """The position may lie within a block; what was noted for the sink comes back with it."""
    queue = spool(folder)
    queue.commit(0, "begun")
    fill(queue, 5)
    queue.commit(2 * FRAMES + 30, "half-way")
    later = spool(folder)
    assert (later.position, later.end, later.cursor) == (230, 500, "half-way")
    first, *others = rest(later)
    assert first.position == 230
    assert first.block.first_frame == 237
    assert first.block.captured_at_ns == 1200 + 30 * NS_PER_S // AUDIO.rate_hz
    assert first.block.samples == block(200).samples[60:]
    assert sound(others) and len(others) == 2
    fill(later, 1)
    assert {one.run for one in rest(later)} == {queue.run, later.run}


def test_a_block_of_an_earlier_boot_has_its_true_wall_time(folder: Path) -> None:
    """After a reboot, when CLOCK_MONOTONIC begins anew, a block's time says its wall time still;
    within one boot it is left alone, though the wall clock was set."""
    clock = Clock()
    queue = spool(folder, clock=clock)
    queue.commit(0, "")
    clock.ns += 100 * NS_PER_S
    at_ns = clock.ns - 3 * NS_PER_S
    queue.append(0, block(0)._replace(captured_at_ns=at_ns))
    wall_ns = clock.wall_ns() - 3 * NS_PER_S

    clock.ns += 1000 * NS_PER_S
    set_back = Spool(folder, AUDIO, ROOM, 1e6, now_ns=clock.now_ns, wall_ns=lambda: WALL_NS)
    set_back.open()
    (same,) = rest(set_back)
    assert same.block.captured_at_ns == at_ns

    clock.ns = NS_PER_S  # the machine has started again, half an hour later
    booted = WALL_NS + 3000 * NS_PER_S
    later = Spool(
        folder,
        AUDIO,
        ROOM,
        1e6,
        now_ns=clock.now_ns,
        wall_ns=lambda: booted + clock.ns,
        boot=b"another!",
    )
    later.open()
    (found,) = rest(later)
    assert booted + found.block.captured_at_ns == wall_ns


@pytest.mark.parametrize("sample", list(SampleFormat), ids=lambda one: one.alsa_name)
def test_every_format_comes_back_as_it_went_in(folder: Path, sample: SampleFormat) -> None:
    """Sound of each format waits as it is, also for the next run, half a block apart; no other
    format is taken for it."""
    audio = AudioFormat(48_000, 3, sample)
    sound_of = random.Random(5).randbytes(FRAMES * audio.frame_bytes)
    queue = Spool(folder, audio, ROOM, 3600)
    queue.open()
    queue.append(0, Block(7, FRAMES, NS_PER_S, sound_of, audio))
    queue.commit(30, "half-way")
    later = Spool(folder, audio, ROOM, 3600)
    later.open()
    (found,) = rest(later)
    assert (found.block.first_frame, found.block.frames) == (37, FRAMES - 30)
    assert found.block.samples == sound_of[30 * audio.frame_bytes :]
    for other in SampleFormat:
        if other is not sample:
            stranger = Spool(folder, audio._replace(sample=other), ROOM, 3600)
            stranger.open()
            assert stranger.read(stranger.position) is None


def test_sound_of_another_format_is_not_taken_for_its_own(folder: Path) -> None:
    """What was captured at another rate is passed over, and told as what it is, once."""
    queue = spool(folder)
    queue.commit(0, "")
    fill(queue, 3)
    other = Spool(folder, AUDIO._replace(rate_hz=16_000), ROOM, 3600)
    other.open()
    assert other.end - other.position == 3 * FRAMES
    assert other.read(0) is None and other.missed == "another format"
    other.read(0)
    assert list(other.notes) == [
        f"{folder}: sound of 8000 Hz, 1 ch, S16_LE is spooled there but 16000 Hz, 1 ch, S16_LE is "
        "captured now; skipped"
    ]


def test_it_never_holds_more_than_its_limit(folder: Path) -> None:
    """When it is full the oldest segment goes; what stays is in order and reaches the end."""
    limit = 20_000
    queue = spool(folder, limit)
    for _ in range(300):
        while queue.excess(2 * FRAMES) == "size":
            queue.drop_oldest()
        fill(queue, 1)
        size = sum(one.stat().st_size for one in folder.glob("*.spool"))
        assert size <= limit
        assert size > limit * 3 // 4 or queue.end < 100 * FRAMES
    assert sound(rest(queue))
    assert rest(queue)[-1].end == queue.end == 300 * FRAMES


def test_what_is_too_old_goes(folder: Path) -> None:
    """A segment whose newest sound is older than the limit is in excess, also an earlier run's."""
    clock = Clock()
    queue = spool(folder, clock=clock)
    queue.commit(0, "")
    fill(queue, 3)
    clock.ns += 3599 * NS_PER_S
    fill(queue, 3)
    assert queue.excess(0) is None
    clock.ns += 2 * NS_PER_S
    assert queue.excess(0) == "age"
    assert queue.drop_oldest() == 300
    assert queue.excess(0) is None
    assert [one.position for one in rest(queue)] == [300, 400, 500]


def test_what_was_begun_and_not_committed_is_void(folder: Path) -> None:
    """A crash between the first block and the first commit leaves a spool that was never begun."""
    queue = spool(folder)
    fill(queue, 2)
    queue.commit(0, "begun")
    queue.clear()
    fill(queue, 4)
    queue.sync()
    later = spool(folder)
    assert later.position == later.end
    assert rest(later) == [] and list(folder.glob("*.spool")) == []


@pytest.mark.parametrize("harm", ["missing", "torn", "garbage"])
def test_the_note_survives_a_power_cut(folder: Path, harm: str) -> None:
    """Of two notes one is always whole; without any, all that is there counts as not delivered."""
    queue = spool(folder)
    queue.commit(0, "a")
    fill(queue, 4)
    queue.commit(100, "b")
    queue.commit(200, "c")
    note = folder / "position"
    raw = note.read_bytes()
    if harm == "missing":
        note.unlink()
    elif harm == "torn":
        at = raw.index(b'"c"') // spool_module.SLOT_BYTES * spool_module.SLOT_BYTES
        note.write_bytes(raw[:at] + bytes(20) + raw[at + 20 :])
    else:
        note.write_bytes(b"\xff" * len(raw))
    later = spool(folder)
    expected = (100, "b") if harm == "torn" else (0, "")
    assert (later.position, later.cursor) == expected
    assert rest(later)[-1].end == 400


def test_a_segment_that_was_deleted_costs_itself(folder: Path) -> None:
    """When somebody removes a segment the others are read."""
    queue = spool(folder, 8 * 1000)
    fill(queue, 20)
    second = sorted(folder.glob("*.spool"))[1]
    second.unlink()
    records = rest(queue)
    assert sound(records) and len(records) in range(15, 20)
    assert records[0].position == 0 and records[-1].end == queue.end


def test_what_is_in_the_way_costs_itself_and_is_told(folder: Path) -> None:
    """A directory where the note should be is renamed, one where a segment should be is passed
    over; each is told once, and the rest is read."""
    queue = spool(folder)
    queue.commit(0, "")
    fill(queue, 3)
    queue.close()
    (folder / "position").unlink()
    (folder / "position").mkdir()
    segment = folder / f"{1000:016x}.spool"
    segment.mkdir()
    later = spool(folder)
    later.open()
    assert sound(rest(later)) and later.end == 300
    position, other = later.notes
    assert position == f"{folder}/position: Is a directory; skipped"
    assert other.startswith(f"{segment}: ") and other.endswith("; skipped")
    assert len(list(folder.glob("position.aside-*"))) == 1


def test_a_full_disk_takes_no_part_of_a_block(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that fits in part is refused and taken back; with room again the queue goes on."""
    queue = spool(folder)
    queue.commit(0, "")
    fill(queue, 3)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, raw: write(file, raw[:150]))
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):
                fill(queue, 1)
    assert queue.end == 300
    fill(queue, 2)
    assert sound(rest(queue)) and len(rest(queue)) == 5
    assert len(rest(spool(folder))) == 5


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 400)),
        st.tuples(st.just("sync"), st.just(0)),
        st.tuples(st.just("commit"), st.integers(0, 1000)),
        st.tuples(st.just("reopen"), st.just(0)),
    ),
    min_size=3,
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(acts=ACTS, cut=st.floats(0, 1), junk=st.binary(max_size=40))
def test_a_crash_at_any_byte_loses_nothing_that_was_synced(
    acts: list[tuple[str, int]], cut: float, junk: bytes
) -> None:
    """Whatever is left of the newest file after the last sync, with or without rubbish behind it,
    all that was synced comes back, once, in order, from where the last commit was."""
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as temporary:
        folder = Path(temporary)
        queue = spool(folder, 8 * 3000)
        queue.commit(0, "begun")
        synced, safe = 0, {}
        for act, number in acts:
            if act == "append":
                if queue.position == queue.end:
                    queue.commit(queue.end, "begun")
                queue.append(queue.end, block(queue.end, number))
            elif act == "commit":
                queue.commit(min(queue.end, queue.position + number), f"at {number}")
            else:
                if act == "sync":
                    queue.sync()
                else:
                    queue = spool(folder, 8 * 3000)
                synced = queue.end
                safe = {one.name: one.stat().st_size for one in folder.glob("*.spool")}
        committed, end, place = queue.position, queue.end, queue.cursor
        copy = folder / "copy"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("copy"))
        files = sorted(copy.glob("*.spool"))
        if files:
            newest = files[-1]
            least, most = safe.get(newest.name, 0), newest.stat().st_size
            with newest.open("r+b") as file:
                file.truncate(least + round((most - least) * cut))
                file.seek(0, 2)
                file.write(junk)
        later = spool(copy, 8 * 3000)
        assert later.position == committed
        assert max(synced, committed) <= later.end <= end
        assert later.end == committed or later.cursor == place
        records = rest(later)
        assert sound(records[1:])
        at = committed
        for record in records:
            assert record.position == at
            at = record.end
        assert at == later.end
        fill(later, 3)
        assert sound(rest(later)[1:]) and rest(later)[-1].end == later.end


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255), again=st.booleans())
def test_a_wrong_byte_costs_its_record_alone(where: float, byte: int, again: bool) -> None:
    """Any one byte that went wrong on the disk costs the block it is in and no other."""
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as temporary:
        folder = Path(temporary)
        queue = spool(folder, 8 * 2000)
        queue.commit(0, "")
        fill(queue, 30)
        queue.sync()
        files = sorted(folder.glob("*.spool"))
        size = HEAD_BYTES + 2 * FRAMES
        at = int(where * 30 * size)
        for path in files:
            if at < path.stat().st_size:
                raw = bytearray(path.read_bytes())
                raw[at] ^= byte
                path.write_bytes(raw)
                break
            at -= path.stat().st_size
        records = rest(spool(folder, 8 * 2000) if again else queue)
        assert len(records) == 29
        assert sound(records)
