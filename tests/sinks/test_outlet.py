"""Outlets: a sink's trouble stays its own, and every frame is in the books."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.audio.block import Block
from capstand.errors import SinkBusy, SinkError
from capstand.sinks import outlet as outlet_module
from capstand.sinks.outlet import Outlet
from capstand.sinks.sink import Sink
from tests.patience import PATIENCE_S

FRAMES = 10


class Peer(Sink):
    """A sink that notes what it is told, fails when told to and hangs until told otherwise."""

    detail = "peer"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.got: list[int] = []
        self.failing: set[str] = set()
        self.busy: dict[int, int] = {}  # by first frame: how many frames are taken all the same
        self.hanging = threading.Event()
        self.hanging.set()
        self.reached = threading.Semaphore(0)
        self.changed = threading.Condition()

    def open(self) -> None:
        self._do("open")

    def write(self, block: Block) -> None:
        self.reached.release()
        assert self.hanging.wait(PATIENCE_S)
        self._do("write")
        if block.first_frame in self.busy:
            raise SinkBusy("busy", self.busy[block.first_frame])
        with self.changed:
            self.got.append(block.first_frame)
            self.changed.notify_all()

    def flush(self) -> None:
        self._do("flush")

    def close(self) -> None:
        self._do("close")

    def _do(self, call: str) -> None:
        self.calls.append(call)
        if call in self.failing:
            raise SinkError(f"{call} refused")

    def wait_for(self, count: int) -> None:
        """Until so many blocks were taken."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.got) >= count, PATIENCE_S)


def block(number: int) -> Block:
    return Block(number * FRAMES, FRAMES, number, bytes(4 * FRAMES))


def feed(outlet: Outlet, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        outlet.put(block(number))


def balanced(outlet: Outlet) -> bool:
    return outlet.entered == outlet.delivered + outlet.dropped + outlet.queued


@pytest.fixture
def threads() -> Iterator[list[threading.Thread]]:
    """Threads that have to have ended when the test has."""
    started: list[threading.Thread] = []
    yield started
    for one in started:
        one.join(PATIENCE_S)
        assert not one.is_alive()


def start(outlet: Outlet, threads: list[threading.Thread]) -> threading.Thread:
    thread = threading.Thread(target=outlet.run)
    threads.append(thread)
    thread.start()
    return thread


def test_blocks_arrive_in_order() -> None:
    """What is put in comes out once and in order."""
    peer = Peer()
    outlet = Outlet("a", peer, 1000)
    assert outlet.try_open()
    feed(outlet, 5)
    assert outlet.queued == 5 * FRAMES
    outlet.step()
    assert peer.got == [0, 10, 20, 30, 40]
    assert (outlet.entered, outlet.delivered, outlet.queued) == (50, 50, 0)


def test_a_full_queue_drops_the_oldest() -> None:
    """A queue never holds more than its limit; the newest sound is kept."""
    peer = Peer()
    outlet = Outlet("a", peer, 3 * FRAMES)
    assert outlet.try_open()
    for number in range(8):
        outlet.put(block(number))
        assert outlet.queued <= 3 * FRAMES
        assert balanced(outlet)
    assert outlet.overflowed == 5 * FRAMES
    outlet.step()
    assert peer.got == [50, 60, 70]
    assert (outlet.delivered, outlet.dropped, outlet.queued) == (30, 50, 0)


def test_what_is_missed_until_a_sink_is_open_does_not_tell_against_it() -> None:
    """Frames that a full queue dropped before the sink was opened are known apart from those it was
    too slow for."""
    outlet = Outlet("a", Peer(), 3 * FRAMES)
    feed(outlet, 8)
    assert outlet.try_open()
    assert (outlet.overflowed, outlet.overflowed_shut) == (50, 50)
    feed(outlet, 2, 8)
    assert (outlet.overflowed, outlet.overflowed_shut) == (70, 50)


def test_a_failed_write_is_booked_and_the_sink_closed() -> None:
    """A block the sink refused counts as failed, the sink is closed, and ``trouble`` says why."""
    peer = Peer()
    outlet = Outlet("a", peer, 1000)
    assert outlet.try_open()
    feed(outlet, 3)
    peer.failing = {"write"}
    assert outlet.feed() is False
    assert (outlet.state, outlet.trouble, outlet.failures) == ("waiting", "write refused", 1)
    assert (outlet.failed, outlet.queued) == (10, 20)
    assert peer.calls[-1] == "close"
    assert balanced(outlet)


def test_a_busy_sink_misses_the_block_and_stays_open() -> None:
    """A peer that takes nothing just now costs the block, less what it took, and nothing else."""
    peer = Peer()
    outlet = Outlet("a", peer, 1000)
    assert outlet.try_open()
    feed(outlet, 3)
    peer.busy = {0: 0, 10: 4}
    outlet.step()
    assert peer.got == [20] and "close" not in peer.calls
    assert (outlet.delivered, outlet.failed, outlet.failures) == (4 + 10, 10 + 6, 0)
    assert (outlet.state, outlet.trouble) == ("open", None)
    assert balanced(outlet)


def test_a_busy_sink_says_why_until_it_takes_a_block() -> None:
    """``trouble`` has the sink's own words for as long as it is busy."""
    peer = Peer()
    outlet = Outlet("a", peer, 1000)
    assert outlet.try_open()
    peer.busy = {0: 0}
    told = []
    for number in range(2):
        feed(outlet, 1, number)
        outlet.step()
        told.append(outlet.trouble)
    assert told == ["busy", None]


def test_a_sink_that_could_not_be_opened_gets_what_waited() -> None:
    """What was queued meanwhile is kept for it."""
    peer = Peer()
    outlet = Outlet("a", peer, 1000)
    feed(outlet, 3)
    assert outlet.try_open()
    feed(outlet, 1, 3)
    outlet.step()
    assert (peer.got, outlet.failed) == ([0, 10, 20, 30], 0)
    assert balanced(outlet)


def test_trouble_ends_with_the_first_block_delivered() -> None:
    """A sink that can be opened again is not well before it has taken a block."""
    peer = Peer()
    outlet = Outlet("a", peer, 1000)
    peer.failing = {"open"}
    assert outlet.try_open() is False
    assert (outlet.state, outlet.trouble) == ("waiting", "open refused")
    feed(outlet, 2)
    peer.failing = set()
    assert outlet.try_open()
    assert (outlet.state, outlet.trouble) == ("open", "open refused")
    outlet.step()
    assert outlet.trouble is None
    assert (outlet.delivered, outlet.dropped) == (20, 0)


def test_trouble_names_also_what_failed_at_closing() -> None:
    """When closing fails too, both reasons are told."""
    peer = Peer()
    outlet = Outlet("a", peer, 1000)
    assert outlet.try_open()
    feed(outlet, 1)
    peer.failing = {"write", "close"}
    assert outlet.feed() is False
    assert outlet.trouble == "write refused; close refused"


def test_a_sink_that_failed_is_opened_again(
    threads: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink that fails is tried again for ever; once it works its queue is delivered."""
    monkeypatch.setattr(outlet_module, "RETRY_S", (0.001, 0.002))
    peer = Peer()
    peer.failing = {"open"}
    outlet = Outlet("a", peer, 1000)
    feed(outlet, 3)
    start(outlet, threads)
    while outlet.failures < 3:
        assert threads[0].is_alive()
    peer.failing = set()
    peer.wait_for(3)
    outlet.finish()
    threads[0].join(PATIENCE_S)
    assert peer.got == [0, 10, 20]
    assert (outlet.state, outlet.trouble, outlet.dropped) == ("closed", None, 0)


def test_a_sink_that_opens_and_refuses_is_not_tried_without_a_pause(
    threads: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two tries there is a pause also when only the writing fails."""
    monkeypatch.setattr(outlet_module, "RETRY_S", (1000.0, 1000.0))
    peer = Peer()
    peer.failing = {"write"}
    outlet = Outlet("a", peer, 1000)
    feed(outlet, 5)
    start(outlet, threads)
    assert peer.reached.acquire(timeout=PATIENCE_S)
    while outlet.state != "waiting":
        assert threads[0].is_alive()
    outlet.finish()
    threads[0].join(PATIENCE_S)
    assert peer.calls == ["open", "write", "close", "close"]
    assert (outlet.failures, outlet.failed) == (1, 50)


def test_a_hung_sink_holds_up_nobody(threads: list[threading.Thread]) -> None:
    """While one sink hangs put() returns, its queue keeps the newest, another sink gets all."""
    hung, well = Peer(), Peer()
    hung.hanging.clear()
    slow, fast = Outlet("slow", hung, 3 * FRAMES), Outlet("fast", well, 10_000)
    start(slow, threads)
    start(fast, threads)
    slow.put(block(0))
    fast.put(block(0))
    assert hung.reached.acquire(timeout=PATIENCE_S)  # from here on it holds block 0
    for number in range(1, 100):
        for one in (slow, fast):
            one.put(block(number))
    well.wait_for(100)
    assert hung.got == []
    assert slow.entered == 1000
    assert slow.queued in range(2 * FRAMES, 4 * FRAMES + 1)
    hung.hanging.set()
    for one in (slow, fast):
        one.finish()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert fast.delivered == 1000
    assert (hung.got[0], hung.got[-2:]) == (0, [980, 990])
    assert slow.entered == slow.delivered + slow.overflowed


def test_finish_delivers_what_is_queued(threads: list[threading.Thread]) -> None:
    """finish() ends the thread after the last block; then the sink is closed once."""
    peer = Peer()
    outlet = Outlet("a", peer, 10_000)
    feed(outlet, 50)
    outlet.finish()
    start(outlet, threads).join(PATIENCE_S)
    assert (outlet.delivered, outlet.queued, outlet.state) == (500, 0, "closed")
    assert peer.calls == ["open", *["write"] * 50, "close"]


def test_finish_ends_a_wait_at_once(
    threads: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outlet that waits for its next try ends at once, and what it held counts as failed."""
    monkeypatch.setattr(outlet_module, "RETRY_S", (1000.0, 1000.0))
    peer = Peer()
    peer.failing = {"open"}
    outlet = Outlet("a", peer, 1000)
    start(outlet, threads)
    feed(outlet, 4)
    outlet.finish()
    threads[0].join(PATIENCE_S)
    assert (outlet.failed, outlet.delivered, outlet.queued) == (40, 0, 0)
    assert outlet.state == "closed"
    assert balanced(outlet)


def test_trouble_at_the_last_closing_is_told(threads: list[threading.Thread]) -> None:
    """When the sink cannot be closed in order, ``trouble`` says so after the end."""
    peer = Peer()
    peer.failing = {"close"}
    outlet = Outlet("a", peer, 1000)
    feed(outlet, 1)
    outlet.finish()
    start(outlet, threads).join(PATIENCE_S)
    assert (outlet.state, outlet.trouble, outlet.delivered) == ("closed", "close refused", 10)


def test_a_flush_comes_between_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is made safe when it is due, also under a steady stream of blocks."""
    monkeypatch.setattr(outlet_module, "FLUSH_S", 0.0)
    peer = Peer()
    outlet = Outlet("a", peer, 1000)
    assert outlet.try_open()
    feed(outlet, 1)
    peer.failing = {"flush"}
    assert outlet.feed() is False
    assert outlet.trouble == "flush refused"
    assert (outlet.queued, outlet.dropped) == (10, 0)


def test_small_blocks_are_gathered(threads: list[threading.Thread]) -> None:
    """A sink that is not in a hurry gets its first block at once, then larger ones, each without a
    gap, and none is kept.
    """
    peer = Peer()
    taken: list[Block] = []
    peer.write = taken.append  # type: ignore[method-assign,assignment]
    outlet = Outlet("peer", peer, 1000, gather_frames=3 * FRAMES)
    for number in (0, 1, 2, 3, 4, 6, 7, 8, 9):
        outlet.put(Block(number * FRAMES, FRAMES, number, bytes([number]) * FRAMES))
        assert balanced(outlet)
    thread = start(outlet, threads)
    outlet.finish()
    thread.join(PATIENCE_S)

    assert [(one.first_frame, one.frames, one.captured_at_ns) for one in taken] == [
        (0, 10, 0),
        (10, 30, 1),
        (40, 10, 4),
        (60, 30, 6),
        (90, 10, 9),
    ]
    assert [set(one.samples) for one in taken] == [{0}, {1, 2, 3}, {4}, {6, 7, 8}, {9}]
    assert outlet.delivered == outlet.entered == 90 and outlet.queued == 0


def test_abandon_closes_the_books(threads: list[threading.Thread]) -> None:
    """What a hung sink keeps at the end counts as dropped."""
    peer = Peer()
    peer.hanging.clear()
    outlet = Outlet("a", peer, 1000)
    start(outlet, threads)
    feed(outlet, 5)
    assert peer.reached.acquire(timeout=PATIENCE_S)
    outlet.abandon()
    assert outlet.abandoned == 50
    assert outlet.entered == outlet.delivered + outlet.dropped
    peer.hanging.set()
    outlet.finish()


EVENTS = st.lists(st.sampled_from(["put", "put", "put", "step", "fail", "open", "heal"]))


@given(EVENTS, st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_the_books_balance_whatever_happens(events: list[str], limit: int) -> None:
    """entered = delivered + dropped + queued after every event, and nothing comes twice."""
    peer = Peer()
    outlet = Outlet("a", peer, limit * FRAMES)
    number = 0
    for event in events:
        match event:
            case "put":
                outlet.put(block(number))
                number += 1
            case "fail":
                peer.failing = {"write"}
            case "heal":
                peer.failing = set()
            case "open":
                outlet.try_open()
            case _:
                try:
                    outlet.step()
                except SinkError:
                    assert peer.failing
        assert balanced(outlet)
        assert outlet.queued <= limit * FRAMES
    assert outlet.entered == number * FRAMES
    assert outlet.delivered == len(peer.got) * FRAMES
    assert peer.got == sorted(set(peer.got))
