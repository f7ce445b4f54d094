"""The ring against a model, and two real threads against each other.

What is proved here does not lean on Python's global lock. The writer may fill a slot only on credit
that the kernel's counter ``freed`` granted it, the reader may look only at what ``published``
granted; the model test holds exactly that: memory handed to the writer is never memory the reader
still holds, in any order of calls. An eventfd read that sees a write also sees all that was stored
before it, so with threads that truly run at once the same contract carries the samples across.
"""

import gc
import itertools
import os
import select
import struct
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from capstand.audio.ring import Ring, Slot
from capstand.stream.pusher import FIRST_REST_MS, Pusher
from tests.patience import PATIENCE_S

FRAME_BYTES = 4
SLOT_FRAMES = 8


class RingModel(RuleBasedStateMachine):
    """A deque of blocks and a count of free slots: all that a ring is."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = Ring(3, SLOT_FRAMES * FRAME_BYTES)
        self.queue: deque[tuple[int, int, int, bytes]] = deque()
        self.granted = 0  # taken, not yet looked at
        self.held: list[Slot] = []  # looked at, not yet released
        self.contents: list[bytes] = []
        self.next = 0
        self.dropped = self.expected_drops = 0

    @rule(frames=st.integers(1, SLOT_FRAMES))
    def write(self, frames: int) -> None:
        slot = self.ring.slot()
        assert len(slot) == SLOT_FRAMES * FRAME_BYTES
        samples = struct.pack("<I", self.next) * frames
        slot[: len(samples)] = samples
        room = len(self.queue) + self.granted + len(self.held) < 3
        assert self.ring.publish(self.next, frames, self.next * 10) is room
        if room:
            self.queue.append((self.next, frames, self.next * 10, samples))
        else:
            self.dropped += 1
        self.next += frames

    @precondition(lambda self: not self.granted)
    @rule()
    def take(self) -> None:
        self.granted = self.ring.take()
        assert self.granted == len(self.queue)
        self.taken = [self.queue.popleft() for _ in range(self.granted)]

    @precondition(lambda self: self.granted)
    @rule(share=st.integers(1, 3))
    def peek(self, share: int) -> None:
        count = min(share, self.granted)
        for slot in self.ring.peek(count, FRAME_BYTES):
            first, frames, at_ns, samples = self.taken.pop(0)
            assert (slot.first_frame, slot.frames, slot.captured_at_ns) == (first, frames, at_ns)
            self.held.append(slot)
            self.contents.append(samples)
        self.granted -= count

    @precondition(lambda self: self.held)
    @rule(share=st.integers(1, 3))
    def release(self, share: int) -> None:
        count = min(share, len(self.held))
        self.ring.release(count)
        del self.held[:count], self.contents[:count]

    @invariant()
    def held_blocks_are_never_written_to(self) -> None:
        assert [bytes(slot.samples) for slot in self.held] == self.contents

    @invariant()
    def readable_when_there_is_something_to_take(self) -> None:
        waiting, _, _ = select.select([self.ring], [], [], 0)
        assert bool(waiting) is bool(self.queue)

    def teardown(self) -> None:
        self.ring.close()


RingModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class TestRing(RingModel.TestCase):  # type: ignore[misc,valid-type]
    """In any order of calls the ring is a queue of bounded length that drops the newest block."""


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring(4, 16)
    yield ring
    ring.close()


def put(ring: Ring, number: int) -> bool:
    ring.slot()[:16] = struct.pack("<2q", number, number)
    return ring.publish(number, 1, number)


def test_full_ring_drops_the_newest(ring: Ring) -> None:
    """A full ring refuses the newest block and keeps all older ones."""
    assert [put(ring, number) for number in range(6)] == [True] * 4 + [False] * 2
    assert [slot.first_frame for slot in ring.peek(ring.take(), 16)] == [0, 1, 2, 3]


def test_dropping_costs_the_writer_nothing_it_could_wait_for(ring: Ring) -> None:
    """A writer without a reader goes on for ever, into the scratch slot."""
    for number in range(4):
        put(ring, number)
    scratch = ring.slot()
    assert all(not put(ring, number) for number in range(4, 1000))
    assert struct.unpack("<2q", scratch) == (999, 999)


def test_released_slots_are_filled_again(ring: Ring) -> None:
    """Each slot given back lets the writer publish one block more, after those still held."""
    for number in range(4):
        put(ring, number)
    held = list(ring.peek(ring.take(), 16))
    assert not put(ring, 4)
    ring.release(2)
    assert [put(ring, number) for number in (5, 6, 7)] == [True, True, False]
    assert [bytes(one.samples) for one in held[2:]] == [struct.pack("<2q", n, n) for n in (2, 3)]
    assert [one.first_frame for one in ring.peek(ring.take(), 16)] == [5, 6]


def test_an_empty_ring_grants_nothing(ring: Ring) -> None:
    """``take`` of an empty ring is 0 at once, and a block is granted once only."""
    assert ring.take() == 0
    put(ring, 1)
    assert (ring.take(), ring.take()) == (1, 0)


def test_a_block_shows_only_its_own_frames(ring: Ring) -> None:
    """A block shorter than its slot shows nothing of the block before it."""
    for number in range(4):
        put(ring, number)
    list(ring.peek(ring.take(), 16))
    ring.release(4)
    ring.slot()[:4] = b"abcd"
    ring.publish(9, 1, 9)
    assert [bytes(slot.samples) for slot in ring.peek(ring.take(), 4)] == [b"abcd"]


def test_close_gives_back_both_descriptors() -> None:
    """A closed ring leaves no descriptor open."""
    gc.collect()  # what earlier tests left behind gives its descriptors back now
    before = len(list(Path("/proc/self/fd").iterdir()))
    rings = [Ring(2, 2) for _ in range(20)]
    for one in rings:
        one.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def busy_switching() -> Iterator[None]:
    """Threads take turns every 10 µs, so that they meet in the middle of everything."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("busy_switching")
def test_two_threads() -> None:
    """Of 200,000 blocks between two threads each is read whole, once and in order, or was dropped
    and counted; published and dropped make what was written."""
    total, slots = 200_000, 16
    ring = Ring(slots, 64)
    dropped: list[int] = []
    read: list[int] = []
    torn: list[int] = []
    pattern = struct.Struct("<8q")
    written = threading.Event()

    def write() -> None:
        for number in range(total):
            pattern.pack_into(ring.slot(), 0, *(number + word for word in range(8)))
            if not ring.publish(number, 8, number):
                dropped.append(number)
                if len(dropped) % 8 == 0:
                    os.sched_yield()
        written.set()

    def look() -> None:
        poll = select.poll()
        poll.register(ring, select.POLLIN)
        while True:
            last_look = written.is_set()
            count = ring.take()
            for slot in ring.peek(count, 8):
                number = slot.first_frame
                read.append(number)
                words = pattern.unpack_from(slot.samples)
                if words != tuple(range(number, number + 8)) or slot.captured_at_ns != number:
                    torn.append(number)
                ring.release(1)
            if last_look and not count:
                return
            if not count:
                poll.poll(1)

    threads = [threading.Thread(target=write), threading.Thread(target=look)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(PATIENCE_S)
    assert not any(one.is_alive() for one in threads)
    assert torn == []
    assert all(first < second for first, second in itertools.pairwise(read))
    assert len(read) + len(dropped) == total
    assert sorted(read + dropped) == list(range(total))
    assert len(read) > slots
    ring.close()


def test_steady_state_keeps_nothing() -> None:
    """100,000 blocks on their way leave no more memory behind than the first thousand did."""
    ring = Ring(8, 64)

    def pass_on(blocks: int) -> None:
        for number in range(0, blocks, 10):
            for one in range(10):  # two of ten are dropped
                ring.slot()[:8] = b"8 octets"
                ring.publish(10**9 + number + one, 2, 10**15 + number)
            for _ in ring.peek(ring.take(), 4):
                pass
            ring.release(8)

    pass_on(1000)
    gc.collect()
    before = sys.getallocatedblocks()
    pass_on(100_000)
    gc.collect()
    assert sys.getallocatedblocks() - before < 50
    ring.close()


@pytest.mark.parametrize("blocks_per_s", [1, 10, 100, 375, 750, 1500, 3000])
def test_the_reader_never_rests_until_the_ring_is_full(blocks_per_s: int) -> None:
    """Of a card with a buffer of two short periods the blocks are short, and so is the ring."""
    ring = Ring(100, SLOT_FRAMES * FRAME_BYTES)
    pusher = Pusher(ring, FRAME_BYTES, None, (), 0, patience_ms=200)
    rest_ms, rests = FIRST_REST_MS, []
    for _ in range(100):
        filled = rest_ms * blocks_per_s // 1000
        rests.append(rest_ms)
        assert filled <= 0.75 * ring.slots
        rest_ms = pusher.rest_ms(rest_ms, 4 * filled // ring.slots)
    assert max(rests[50:]) == (200 if blocks_per_s < 125 else max(rests[50:]))
    assert min(rests[50:]) >= min(200, 12_000 // blocks_per_s)
    ring.close()
