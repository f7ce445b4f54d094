"""The ring against a model, and real processes against each other.

What a reader got and what it says it missed are together all there was since it joined: in any
order of calls, and for readers that are slow, stopped or killed while the writer goes on.
"""

import gc
import itertools
import json
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.audio.block import AudioFormat, SampleFormat
from capstand.audio.ring import HEAD, PUBLISHED, SLOT, Reader, Ring
from capstand.audio.wake import WakeUp
from capstand.sinks.sink_queue import SinkQueue
from capstand.stream.pusher import FIRST_REST_MS, Pusher
from tests.line import Keep
from tests.patience import PATIENCE_S
from tests.rings import reader_of

AUDIO = AudioFormat(48_000, 2, SampleFormat.S16_LE)
FRAME_BYTES = AUDIO.frame_bytes
SLOT_FRAMES = 8


class Rate(NamedTuple):
    """A Pace."""

    ns_per_frame: float = 20833.25
    drift_ppm: float = 4.5
    settled: bool = True


class Writer:
    """Writes blocks whose samples are numbers that count all frames, with gaps between blocks."""

    def __init__(self, slots: int) -> None:
        self.ring = Ring(slots, SLOT_FRAMES * FRAME_BYTES)
        self.frame = self.captured = 0
        self.blocks: list[tuple[int, int]] = []  # first frame and frames of each

    def write(self, frames: int, gap: int = 0, code: int = 0) -> None:
        self.frame += gap
        numbers = range(self.captured, self.captured + frames)
        struct.pack_into(f"<{frames}I", self.ring.slot(), 0, *numbers)
        self.ring.publish(self.frame, frames, 1000 * self.frame, self.captured, Rate(), code)
        self.blocks.append((self.frame, frames))
        self.frame += frames
        self.captured += frames

    def reader(self, keep: int = 1) -> Reader:
        descriptor = self.ring.open_for_reading()
        reader = Reader(descriptor, AUDIO, keep)
        os.close(descriptor)
        return reader


@pytest.fixture
def writer() -> Iterator[Writer]:
    writer = Writer(8)
    yield writer
    writer.ring.close()


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(1, SLOT_FRAMES), st.integers(0, 3)),
            st.tuples(st.just("read"), st.integers(0, 2), st.integers(1, 12)),
        ),
        max_size=120,
    )
)
def test_got_and_missed_are_all(steps: list[tuple[str, int, int]]) -> None:
    """Three readers at their own pace: each block comes once, whole and in order, and what was
    missed is known to the frame."""
    writer = Writer(8)
    readers = [writer.reader(keep) for keep in (1, 3, 6)]
    got = [0] * 3
    for what, first, second in steps:
        if what == "write":
            writer.write(first, second)
            continue
        reader = readers[first]
        for block in itertools.islice(reader.blocks(), second):
            before = got[first] + reader.missed
            numbers = struct.unpack(f"<{block.frames}I", block.samples)
            assert numbers == tuple(range(before, before + block.frames))
            assert (block.first_frame, block.frames) in writer.blocks
            assert block.captured_at_ns == 1000 * block.first_frame
            got[first] += block.frames
            assert reader.captured == got[first] + reader.missed
            assert reader.next_frame == block.end_frame
    for reader, before in zip(readers, got, strict=True):
        frames = before + sum(block.frames for block in reader.blocks())
        assert frames + reader.missed == reader.captured == writer.captured
        assert reader.waiting == 0
    writer.ring.close()


@given(
    blocks=st.lists(
        st.tuples(st.integers(1, SLOT_FRAMES), st.integers(0, 3), st.integers(0, 30)),
        min_size=4,
        max_size=24,
    ),
    known=st.integers(0, 8),
)
def test_what_is_missing_between_blocks_outlasts_the_writer(
    blocks: list[tuple[int, int, int]], known: int
) -> None:
    """From whatever block on somebody knows nothing: each loss in the ring at its place, with its
    length, its time, and the code of its cause. Older ones are one sum, of which nothing is
    known."""
    writer = Writer(8)
    captured = next_frame = 0
    losses = []
    for number, (frames, gap, code) in enumerate(blocks):
        if number == known:
            captured, next_frame = writer.captured, writer.frame
        first = writer.frame
        writer.write(frames, gap, code)
        if gap and number >= known:
            at_ns = 1000 * (first + gap) - round(gap * Rate().ns_per_frame)
            losses.append((number, (first, gap, at_ns, code)))
    if known >= len(blocks):
        captured, next_frame = writer.captured, writer.frame
    reader = writer.reader()
    found = [tuple(one) for one in reader.missing(captured, next_frame)]
    oldest = len(blocks) - writer.ring.slots
    summed = sum(loss[1] for number, loss in losses if known < oldest and number <= oldest)
    if summed:
        first, frames, _, code = found.pop(0)
        assert (first + frames, frames, code) == (writer.blocks[oldest][0], summed, 0)
    assert found == [loss for number, loss in losses if not summed or number > oldest]
    writer.ring.close()


def test_a_reader_in_time_misses_nothing(writer: Writer) -> None:
    """One block less than the slots and the one under way may wait for it."""
    reader = writer.reader()
    for _ in range(6):
        writer.write(2)
    assert [block.first_frame for block in reader.blocks()] == [0, 2, 4, 6, 8, 10]
    assert reader.missed == 0


def test_a_reader_knows_when_it_has_the_newest(writer: Writer) -> None:
    """So it need not ask once more before it waits; a lapped one too."""
    reader = writer.reader()
    for blocks in (3, 1, 20):
        for _ in range(blocks):
            writer.write(2)
        newest: list[bool] = []
        while not newest or not newest[-1]:
            assert reader.read() is not None
            newest.append(reader.newest)
        assert reader.read() is None
        assert len(newest) == (blocks if blocks < 8 else 1)


def test_a_lapped_reader_wants_the_present(writer: Writer) -> None:
    """Where it says nothing else, that is one block."""
    descriptor = writer.ring.open_for_reading()
    reader = Reader(descriptor, AUDIO)
    os.close(descriptor)
    for _ in range(10):
        writer.write(2)
    assert [block.first_frame for block in reader.blocks()] == [18]


@pytest.mark.parametrize(("keep", "first"), [(1, 18), (4, 12)])
def test_a_lapped_reader_goes_on_with_the_newest(writer: Writer, keep: int, first: int) -> None:
    """As many of them as it wants; the others are missed."""
    reader = writer.reader(keep)
    for _ in range(10):
        writer.write(2)
    assert next(reader.blocks()).first_frame == first
    assert reader.missed == first


def test_what_was_before_is_not_meant_for_who_joins(writer: Writer) -> None:
    """It begins with the next block, and knows where the stream was."""
    for _ in range(20):
        writer.write(3, gap=2)
    reader = writer.reader()
    assert (reader.captured, reader.next_frame, reader.waiting) == (60, 100, 0)
    assert reader.read() is None
    writer.write(1)
    block = reader.read()
    assert block is not None and block.first_frame == 100
    assert (reader.missed, reader.captured) == (0, 61)


def test_the_pace_comes_along(writer: Writer) -> None:
    """Who keeps step with the card asks the reader how fast it runs."""
    reader = writer.reader()
    writer.write(1)
    reader.read()
    assert (reader.ns_per_frame, reader.drift_ppm, reader.settled) == Rate()
    assert reader.settled is True


def test_who_joins_knows_the_pace_and_when_the_next_frame_is_due(writer: Writer) -> None:
    """As the newest block has them; before there is one, nothing is known."""
    early = writer.reader()
    assert (early.due_ns, early.ns_per_frame, early.drift_ppm, early.settled) == (0, 0, 0, False)
    writer.write(3, gap=50)
    writer.write(4)
    reader = writer.reader()
    assert reader.due_ns == 53_000 + round(4 * Rate().ns_per_frame)
    assert (reader.ns_per_frame, reader.drift_ppm, reader.settled) == Rate()
    writer.ring.publish(57, 1, 57_000, 7, Rate(settled=False))
    reader.join()
    assert reader.settled is False


@pytest.mark.parametrize("seen", ["before", "after"])
def test_who_joins_while_the_ring_goes_round_looks_again(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    """What it knows is of the newest block, whether its slot was written over before the look or
    right behind it."""
    writer.write(2)
    reader = writer.reader()
    look = reader._slot

    def late(number: int) -> tuple[Any, ...]:
        monkeypatch.undo()
        found = look(number)
        for _ in range(9):
            writer.write(2)
        return found if seen == "after" else look(number)

    monkeypatch.setattr(reader, "_slot", late)
    reader.join()
    assert (reader.number, reader.captured, reader.next_frame) == (10, 20, 20)


def test_who_rests_is_woken_at_each_quarter() -> None:
    """When the next quarter of the ring is full, and for no block before."""
    writer, rest, each = Writer(16), WakeUp(), WakeUp()
    writer.ring.wakes(each, rests=(rest,))
    for number in range(1, 33):
        writer.write(1)
        assert each.wait(0) and rest.wait(0) == (number % 4 == 0)
        each.clear()
        rest.clear()
    writer.ring.close()


def test_another_writer_goes_on_in_the_same_memory(writer: Writer) -> None:
    """Where the one before it ended; who reads does not notice."""
    reader = writer.reader()
    writer.write(2)
    other = Writer.__new__(Writer)
    other.ring = Ring(8, SLOT_FRAMES * FRAME_BYTES, os.dup(writer.ring.descriptor))
    other.frame, other.captured, other.blocks = writer.frame, writer.captured, []
    assert other.ring.published == 1
    other.write(3)
    assert [(block.first_frame, block.frames) for block in reader.blocks()] == [(0, 2), (2, 3)]
    assert reader.missed == 0
    other.ring.close()


def test_a_block_that_is_written_over_while_it_is_copied_is_missed(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count is looked at again behind the copy."""
    reader = writer.reader()
    writer.write(2)

    class Late:
        size = SLOT.size

        def unpack_from(self, memory: mmap.mmap, at: int) -> tuple[Any, ...]:
            found = SLOT.unpack_from(memory, at)
            monkeypatch.undo()
            for _ in range(9):
                writer.write(2)
            return found

    monkeypatch.setattr("capstand.audio.ring.SLOT", Late())
    block = reader.read()
    assert block is not None and block.first_frame == 18
    assert reader.missed == 18


def test_a_slot_that_is_not_there_yet_is_waited_for(writer: Writer) -> None:
    """The count alone proves nothing where memory is seen in another order than it was written."""
    reader = writer.reader()
    writer.write(2)
    at = HEAD
    kept = writer.ring._memory[at : at + SLOT.size]
    writer.ring._memory[at : at + SLOT.size] = SLOT.pack(-1, 0, 0, 0, 0, 0.0, 0.0, 0)
    assert reader.read() is None
    writer.ring._memory[at : at + SLOT.size] = kept
    block = reader.read()
    assert block is not None and (block.first_frame, reader.missed) == (0, 0)


def test_readers_cannot_write(writer: Writer) -> None:
    """Their descriptor allows no writable map of the memory, and the one they have is none."""
    descriptor = writer.ring.open_for_reading()
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(descriptor, b"x", 0)
    os.close(descriptor)
    with pytest.raises(TypeError):
        writer.reader()._memory[0] = 1


def test_each_block_wakes_each_reader(writer: Writer) -> None:
    """Also one whose counter somebody drove to its end, and that costs the writer nothing."""
    wakes = [WakeUp() for _ in range(3)]
    os.eventfd_write(wakes[1].descriptor, 2**64 - 2)
    writer.ring.wakes(*wakes[:2])
    writer.write(1)
    ready, _, _ = select.select(wakes, [], [], 0)
    assert ready == wakes[:2]
    writer.ring.wakes()
    wakes[0].clear()
    writer.write(1)
    assert select.select(wakes[:1], [], [], 0)[0] == []


def test_who_rests_is_woken_by_each_quarter(writer: Writer) -> None:
    """That is soon enough for one that takes half a ring at a time, and seldom."""
    rests = WakeUp()
    writer.ring.wakes(rests=(rests,))
    woken = []
    for number in range(16):
        writer.write(1)
        if select.select([rests], [], [], 0)[0]:
            rests.clear()
            woken.append(number)
    assert woken == [1, 3, 5, 7, 9, 11, 13, 15]


def test_close_gives_back_all_descriptors() -> None:
    """A closed ring and a closed reader leave no descriptor open."""
    gc.collect()  # what earlier tests left behind gives its descriptors back now
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        writer = Writer(8)
        writer.reader().close()
        writer.ring.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_steady_state_keeps_nothing(writer: Writer) -> None:
    """100,000 blocks on their way leave no more memory behind than the first thousand did. What
    else is in this process may take some meanwhile (xdist's worker is sent which tests to run
    next), but not each time."""
    reader = writer.reader()

    def pass_on(blocks: int) -> None:
        for number in range(blocks):
            writer.ring.publish(10**9 + number, 1, 10**15, 10**9 + number, Rate())
            reader.read()

    pass_on(1000)
    grown: list[int] = []
    while len(grown) < 5 and (not grown or grown[-1] >= 50):
        gc.collect()
        before = sys.getallocatedblocks()
        pass_on(100_000)
        gc.collect()
        grown.append(sys.getallocatedblocks() - before)
    assert grown[-1] < 50, grown


READER = """
import json, os, select, struct, sys, time
from capstand.audio.block import AudioFormat, SampleFormat
from capstand.audio.ring import Reader
descriptor, wake, sleep_us = map(int, sys.argv[1:])
reader = Reader(descriptor, AudioFormat(48_000, 2, SampleFormat.S16_LE))
got = torn = 0
expected = reader.captured
poll = select.poll()
poll.register(wake, select.POLLIN)
print(json.dumps({"joined": reader.captured}), flush=True)
while True:
    poll.poll()
    os.eventfd_read(wake)
    for block in reader.blocks():
        numbers = struct.unpack(f"<{block.frames}I", block.samples)
        first = reader.captured - block.frames
        torn += numbers != tuple(range(first, first + block.frames)) or first < expected
        expected = first + block.frames
        got += block.frames
        if sleep_us:
            time.sleep(sleep_us / 1e6)
        if not block.first_frame:
            print(json.dumps({"got": got, "missed": reader.missed, "captured": reader.captured,
                              "torn": torn}), flush=True)
"""


class Process:
    """A reader in a process of its own; it reports at each block whose first frame is 0."""

    def __init__(self, writer: Writer, sleep_us: int = 0) -> None:
        self.wake = WakeUp()
        descriptor = writer.ring.open_for_reading()
        given = descriptor, self.wake.descriptor
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER, *map(str, given), str(sleep_us)],
            stdout=subprocess.PIPE,
            pass_fds=given,
            text=True,
        )
        os.close(descriptor)
        self.joined = self.told()["joined"]

    def told(self) -> dict[str, int]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {}

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


def test_one_writer_and_readers_in_processes_of_their_own() -> None:
    """One in time, one slow, one stopped and continued, one killed in the middle: each of those
    that live got and missed all there was, nothing torn, nothing twice; the writer notices none."""
    writer = Writer(32)
    quick, slow, stopped = Process(writer), Process(writer, 2000), Process(writer)
    killed = Process(writer)
    everyone = [quick, slow, stopped, killed]
    writer.ring.wakes(*(one.wake for one in everyone))
    try:
        for number in range(6000):
            writer.write(1 + number % SLOT_FRAMES, gap=1)
            if number == 1000:
                stopped.process.send_signal(signal.SIGSTOP)
            if number == 2000:
                killed.process.kill()
            if number == 4000:
                stopped.process.send_signal(signal.SIGCONT)
            if number % 20 == 0:
                time.sleep(0.001)
        alive = [quick, slow, stopped]
        for one in alive:
            while True:  # until it has come to a block that is to be reported, and this is the last
                writer.frame = -1
                writer.write(1, gap=1)
                said = one.told()
                if said["captured"] > writer.captured - 1000:
                    break
            assert said["torn"] == 0
            assert said["got"] + said["missed"] == said["captured"] - one.joined
            assert said["got"] > 0
        assert said["missed"] > 0  # it was stopped while 2,000 blocks went by
    finally:
        for one in everyone:
            one.close()
        writer.ring.close()


@pytest.mark.parametrize("blocks_per_s", [1, 10, 100, 375, 750, 1500, 3000])
def test_the_pusher_never_rests_until_the_ring_is_full(blocks_per_s: int) -> None:
    """Of a card with a buffer of two short periods the blocks are short, and so is the ring."""
    ring = Ring(100, SLOT_FRAMES * FRAME_BYTES)
    pusher = Pusher(reader_of(ring, AUDIO), None, (), 0, batch_ms=200)
    rest_ms, rests = FIRST_REST_MS, []
    for _ in range(100):
        filled = rest_ms * blocks_per_s // 1000
        rests.append(rest_ms)
        assert filled <= 0.75 * ring.slots
        rest_ms = pusher.rest_ms(rest_ms, 4 * filled // ring.slots)
    assert max(rests[50:]) == (200 if blocks_per_s < 125 else max(rests[50:]))
    assert min(rests[50:]) >= min(200, 12_000 // blocks_per_s)
    ring.close()


def test_what_waits_for_nobody_is_not_for_the_first_sink(writer: Writer) -> None:
    """A pusher that has nobody may be far behind: who is added hears the present, and has missed
    nothing."""
    pusher = Pusher(reader_of(writer.ring, AUDIO), None, (), 0, batch_ms=200)
    writer.captured = 100  # before the ring's first block
    writer.write(3, gap=7)
    writer.write(4)
    sink, second = SinkQueue("first", Keep(), 1 << 20), SinkQueue("second", Keep(), 1 << 20)
    pusher.exchange([sink], batch_ms=200)
    pusher.step()
    assert sink.since == (writer.frame, 107)
    writer.write(5)
    pusher.exchange([sink, second], batch_ms=200)
    pusher.step()
    assert (sink.missed, sink.entered) == (0, 5)
    assert second.since == sink.since
    assert (second.missed, second.entered) == (0, 5)


def test_the_count_is_one_word(writer: Writer) -> None:
    """It lies aligned, so that no reader sees half of it."""
    writer.write(1)
    assert struct.unpack_from("@q", writer.ring._memory, 8 * PUBLISHED)[0] == 1
    assert (8 * PUBLISHED) % 8 == HEAD % 64 == SLOT.size % 64 == 0
