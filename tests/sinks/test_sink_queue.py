"""Outlets: a sink's trouble stays its own, and every frame is in the books."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.accounting.stats import SinkState, SinkStats, StreamPosition
from capstand.audio.block import AudioFormat, Block, SampleFormat
from capstand.errors import SinkBusy, SinkError
from capstand.host.backoff import Backoff
from capstand.sinks.sink import Account, Sink
from capstand.sinks.sink_queue import SinkQueue
from tests.patience import PATIENCE_S

FRAMES = 10
AUDIO = AudioFormat(1000, 2, SampleFormat.S16_LE)


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
    return Block(number * FRAMES, FRAMES, number, bytes(4 * FRAMES), AUDIO)


def feed(sink_queue: SinkQueue, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        sink_queue.put(block(number))


def balanced(sink_queue: SinkQueue) -> bool:
    return sink_queue.entered == sink_queue.delivered + sink_queue.dropped + sink_queue.queued


@pytest.fixture
def threads() -> Iterator[list[threading.Thread]]:
    """Threads that have to have ended when the test has."""
    started: list[threading.Thread] = []
    yield started
    for one in started:
        one.join(PATIENCE_S)
        assert not one.is_alive()


def start(sink_queue: SinkQueue, threads: list[threading.Thread]) -> threading.Thread:
    thread = threading.Thread(target=sink_queue.run)
    threads.append(thread)
    thread.start()
    return thread


def test_blocks_arrive_in_order() -> None:
    """What is put in comes out once and in order."""
    peer = Peer()
    sink_queue = SinkQueue("a", peer, 1000)
    assert sink_queue.try_open()
    feed(sink_queue, 5)
    assert sink_queue.queued == 5 * FRAMES
    sink_queue.step()
    assert peer.got == [0, 10, 20, 30, 40]
    assert (sink_queue.entered, sink_queue.delivered, sink_queue.queued) == (50, 50, 0)


def test_a_full_queue_drops_the_oldest() -> None:
    """A queue never holds more than its limit; the newest sound is kept."""
    peer = Peer()
    sink_queue = SinkQueue("a", peer, 3 * FRAMES)
    assert sink_queue.try_open()
    for number in range(8):
        sink_queue.put(block(number))
        assert sink_queue.queued <= 3 * FRAMES
        assert balanced(sink_queue)
    assert sink_queue.overflowed == 5 * FRAMES
    sink_queue.step()
    assert peer.got == [50, 60, 70]
    assert (sink_queue.delivered, sink_queue.dropped, sink_queue.queued) == (30, 50, 0)


def test_what_is_missed_until_a_sink_is_open_does_not_tell_against_it() -> None:
    """Frames that a full queue dropped before the sink was opened are known apart from those it was
    too slow for."""
    sink_queue = SinkQueue("a", Peer(), 3 * FRAMES)
    feed(sink_queue, 8)
    assert sink_queue.try_open()
    assert (sink_queue.overflowed, sink_queue.slow) == (50, 0)
    feed(sink_queue, 2, 8)
    assert (sink_queue.overflowed, sink_queue.slow) == (70, 20)
    sink_queue.finish()
    sink_queue.run()
    assert sink_queue.slow == 0  # it is no longer open


def test_a_failed_write_is_booked_and_the_sink_closed() -> None:
    """A block the sink refused counts as failed, the sink is closed, and ``trouble`` says why."""
    peer = Peer()
    sink_queue = SinkQueue("a", peer, 1000)
    assert sink_queue.try_open()
    feed(sink_queue, 3)
    peer.failing = {"write"}
    assert sink_queue.feed() is False
    assert (sink_queue.state, sink_queue.trouble, sink_queue.failures) == (
        "waiting",
        "write refused",
        1,
    )
    assert (sink_queue.failed, sink_queue.queued) == (10, 20)
    assert peer.calls[-1] == "close"
    assert balanced(sink_queue)


def test_a_busy_sink_misses_the_block_and_stays_open() -> None:
    """A peer that takes nothing just now costs the block, less what it took, and nothing else."""
    peer = Peer()
    sink_queue = SinkQueue("a", peer, 1000)
    assert sink_queue.try_open()
    feed(sink_queue, 3)
    peer.busy = {0: 0, 10: 4}
    sink_queue.step()
    assert peer.got == [20] and "close" not in peer.calls
    assert (sink_queue.delivered, sink_queue.failed, sink_queue.failures) == (4 + 10, 10 + 6, 0)
    assert (sink_queue.state, sink_queue.trouble) == ("open", None)
    assert balanced(sink_queue)


def test_a_busy_sink_says_why_until_it_takes_a_block() -> None:
    """``trouble`` has the sink's own words for as long as it is busy."""
    peer = Peer()
    sink_queue = SinkQueue("a", peer, 1000)
    assert sink_queue.try_open()
    peer.busy = {0: 0}
    told = []
    for number in range(2):
        feed(sink_queue, 1, number)
        sink_queue.step()
        told.append(sink_queue.trouble)
    assert told == ["busy", None]


def test_a_sink_that_could_not_be_opened_gets_what_waited() -> None:
    """What was queued meanwhile is kept for it."""
    peer = Peer()
    sink_queue = SinkQueue("a", peer, 1000)
    feed(sink_queue, 3)
    assert sink_queue.try_open()
    feed(sink_queue, 1, 3)
    sink_queue.step()
    assert (peer.got, sink_queue.failed) == ([0, 10, 20, 30], 0)
    assert balanced(sink_queue)


def test_trouble_ends_with_the_first_block_delivered() -> None:
    """A sink that can be opened again is not well before it has taken a block."""
    peer = Peer()
    sink_queue = SinkQueue("a", peer, 1000)
    peer.failing = {"open"}
    assert sink_queue.try_open() is False
    assert (sink_queue.state, sink_queue.trouble) == ("waiting", "open refused")
    feed(sink_queue, 2)
    peer.failing = set()
    assert sink_queue.try_open()
    assert (sink_queue.state, sink_queue.trouble) == ("open", "open refused")
    sink_queue.step()
    assert sink_queue.trouble is None
    assert (sink_queue.delivered, sink_queue.dropped) == (20, 0)


def test_trouble_names_also_what_failed_at_closing() -> None:
    """When closing fails too, both reasons are told."""
    peer = Peer()
    sink_queue = SinkQueue("a", peer, 1000)
    assert sink_queue.try_open()
    feed(sink_queue, 1)
    peer.failing = {"write", "close"}
    assert sink_queue.feed() is False
    assert sink_queue.trouble == "write refused; close refused"


def test_a_sink_that_failed_is_opened_again(threads: list[threading.Thread]) -> None:
    """A sink that fails is tried again for ever; once it works its queue is delivered."""
    peer = Peer()
    peer.failing = {"open"}
    sink_queue = SinkQueue("a", peer, 1000, backoff=Backoff(0.001, 0.002))
    feed(sink_queue, 3)
    start(sink_queue, threads)
    while sink_queue.failures < 3:
        assert threads[0].is_alive()
    peer.failing = set()
    peer.wait_for(3)
    sink_queue.finish()
    threads[0].join(PATIENCE_S)
    assert peer.got == [0, 10, 20]
    assert (sink_queue.state, sink_queue.trouble, sink_queue.dropped) == ("closed", None, 0)


def test_a_sink_that_opens_and_refuses_is_not_tried_without_a_pause(
    threads: list[threading.Thread],
) -> None:
    """Between two tries there is a pause also when only the writing fails."""
    peer = Peer()
    peer.failing = {"write"}
    sink_queue = SinkQueue("a", peer, 1000, backoff=Backoff(1000.0, 1000.0))
    feed(sink_queue, 5)
    start(sink_queue, threads)
    assert peer.reached.acquire(timeout=PATIENCE_S)
    while sink_queue.state != "waiting":
        assert threads[0].is_alive()
    sink_queue.finish()
    threads[0].join(PATIENCE_S)
    assert peer.calls == ["open", "write", "close", "close"]
    assert (sink_queue.failures, sink_queue.failed) == (1, 50)


def test_a_hung_sink_holds_up_nobody(threads: list[threading.Thread]) -> None:
    """While one sink hangs put() returns, its queue keeps the newest, another sink gets all."""
    hung, well = Peer(), Peer()
    hung.hanging.clear()
    slow, fast = SinkQueue("slow", hung, 3 * FRAMES), SinkQueue("fast", well, 10_000)
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
    sink_queue = SinkQueue("a", peer, 10_000)
    feed(sink_queue, 50)
    sink_queue.finish()
    start(sink_queue, threads).join(PATIENCE_S)
    assert (sink_queue.delivered, sink_queue.queued, sink_queue.state) == (500, 0, "closed")
    assert peer.calls == ["open", *["write"] * 50, "close"]


def test_finish_ends_a_wait_at_once(threads: list[threading.Thread]) -> None:
    """A sink queue that waits for its next try ends at once, and what it held counts as failed."""
    peer = Peer()
    peer.failing = {"open"}
    sink_queue = SinkQueue("a", peer, 1000, backoff=Backoff(1000.0, 1000.0))
    start(sink_queue, threads)
    feed(sink_queue, 4)
    sink_queue.finish()
    threads[0].join(PATIENCE_S)
    assert (sink_queue.failed, sink_queue.delivered, sink_queue.queued) == (40, 0, 0)
    assert sink_queue.state == "closed"
    assert balanced(sink_queue)


def test_trouble_at_the_last_closing_is_told(threads: list[threading.Thread]) -> None:
    """When the sink cannot be closed in order, ``trouble`` says so after the end."""
    peer = Peer()
    peer.failing = {"close"}
    sink_queue = SinkQueue("a", peer, 1000)
    feed(sink_queue, 1)
    sink_queue.finish()
    start(sink_queue, threads).join(PATIENCE_S)
    assert (sink_queue.state, sink_queue.trouble, sink_queue.delivered) == (
        "closed",
        "close refused",
        10,
    )


def test_a_flush_comes_between_blocks() -> None:
    """What was written is made safe when it is due, also under a steady stream of blocks."""
    peer = Peer()
    sink_queue = SinkQueue("a", peer, 1000, flush_s=0.0)
    assert sink_queue.try_open()
    feed(sink_queue, 1)
    peer.failing = {"flush"}
    assert sink_queue.feed() is False
    assert sink_queue.trouble == "flush refused"
    assert (sink_queue.queued, sink_queue.dropped) == (10, 0)


def test_a_flush_comes_while_nothing_else_does(threads: list[threading.Thread]) -> None:
    """An idle sink is flushed each time it is due, not more often, and takes the next block."""
    peer = Peer()
    sink_queue = SinkQueue("a", peer, 1000, flush_s=0.02)
    began_s = time.monotonic()
    start(sink_queue, threads)
    while peer.calls.count("flush") < 3:
        assert threads[0].is_alive()
    feed(sink_queue, 1)
    peer.wait_for(1)
    flushes, passed_s = peer.calls.count("flush"), time.monotonic() - began_s
    sink_queue.finish()
    threads[0].join(PATIENCE_S)
    assert flushes <= passed_s / 0.02
    assert (sink_queue.failures, sink_queue.delivered) == (0, 10)


def test_small_blocks_are_gathered(threads: list[threading.Thread]) -> None:
    """A sink that is not in a hurry gets its first block at once, then larger ones, each without a
    gap, and none is kept.
    """
    peer = Peer()
    taken: list[Block] = []
    peer.write = taken.append  # type: ignore[method-assign,assignment]
    sink_queue = SinkQueue("peer", peer, 1000, gather_frames=3 * FRAMES)
    for number in (0, 1, 2, 3, 4, 6, 7, 8, 9):
        sink_queue.put(Block(number * FRAMES, FRAMES, number, bytes([number]) * FRAMES, AUDIO))
        assert balanced(sink_queue)
    thread = start(sink_queue, threads)
    sink_queue.finish()
    thread.join(PATIENCE_S)

    assert [(one.first_frame, one.frames, one.captured_at_ns) for one in taken] == [
        (0, 10, 0),
        (10, 30, 1),
        (40, 10, 4),
        (60, 30, 6),
        (90, 10, 9),
    ]
    assert [set(one.samples) for one in taken] == [{0}, {1, 2, 3}, {4}, {6, 7, 8}, {9}]
    assert sink_queue.delivered == sink_queue.entered == 90 and sink_queue.queued == 0


def test_a_sink_that_delivers_later_says_what_became_of_it() -> None:
    """Then what it was given does not count as delivered, but what it says has been; what never
    came to it is dropped besides."""
    peer = Peer()
    sink_queue = SinkQueue("a", peer, 2 * FRAMES)
    feed(sink_queue, 5)
    assert sink_queue.try_open()
    sink_queue.step()
    assert sink_queue.books() == (20, 30)
    peer.account = lambda: Account(7, 4)  # type: ignore[method-assign]
    assert sink_queue.books() == (7, 34)
    assert sink_queue.counters() == (StreamPosition(0, 0), None, 7, 34, 0)


BEFORE = SinkStats("a", SinkState.OPEN, None, "", 40, 60, 30, 10, 20, 0, 0.0, {})


def test_the_books_of_one_that_ended_before_its_time_go_on() -> None:
    """What it delivered stays so; the rest of what it was meant to get is dropped."""
    told: list[tuple[int, int]] = []
    sink_queue = SinkQueue("a", Peer(), 1000)
    sink_queue.tells = lambda *what: told.append(what)
    sink_queue.continue_from(BEFORE, StreamPosition(40, 15), 95)  # of the 80 that were meant for it
    assert sink_queue.books() == (30, 50)
    assert sink_queue.counters().since == StreamPosition(40, 15)
    assert sink_queue.try_open()
    feed(sink_queue, 2)
    sink_queue.step()
    assert told == [(40, 40), (50, 50)]
    assert sink_queue.books() == (50, 50)


@pytest.mark.parametrize(
    ("account", "books", "tells"),
    [
        (Account(0, 0, resumed=None), (30, 10), (30, 30)),
        (Account(0, 0, resumed=35), (30, 15), (30, 30)),
        (Account(9, 4, kept=12, resumed=35), (39, 19), (39, 42)),
        (Account(0, 0, resumed=60), (20, 0), (20, 20)),
    ],
)
def test_what_waits_in_a_spool_is_not_dropped(
    account: Account, books: tuple[int, int], tells: tuple[int, int]
) -> None:
    """Of 80 frames that were meant for it: nothing more than was known is dropped before the spool
    can be read; then what does not wait there; and what waits there was not delivered, whatever was
    said. It tells what it has delivered, and what it would have, were it killed now."""
    peer = Peer()
    peer.account = lambda: account  # type: ignore[method-assign]
    told: list[tuple[int, int]] = []
    sink_queue = SinkQueue("a", peer, 1000)
    sink_queue.tells = lambda *what: told.append(what)
    sink_queue.continue_from(BEFORE, StreamPosition(40, 15), 95)
    sink_queue.tell()
    assert (sink_queue.books(), told) == (books, [tells])


def test_it_tells_after_each_call_and_when_the_sink_says_so() -> None:
    """Also after one that failed, and after the end; no more once it is closed."""
    peer = Peer()
    listeners: list[Callable[[], None]] = []
    peer.watch_account = listeners.append  # type: ignore[method-assign, assignment]
    sink_queue = SinkQueue("a", peer, 1000, flush_s=0.0)
    heard: list[str] = []

    def tells(delivered: int, kept: int) -> None:
        heard.append(peer.calls[-1])
        if heard[-1] == "flush":
            peer.failing = {"flush"}

    sink_queue.tells = tells
    peer.busy = {10: 1}
    feed(sink_queue, 2)
    assert sink_queue.try_open()
    sink_queue.step()
    listeners[0]()
    assert heard == ["write", "write", "write"]
    assert not sink_queue.feed()
    assert heard[3:] == ["flush", "close"]
    sink_queue.finish()
    sink_queue.run()
    assert heard[5:] == ["close", "close"]
    sink_queue.close()
    listeners[1]()
    assert len(listeners) == 2 and len(heard) == 7


def test_it_begins_when_those_before_it_have_ended() -> None:
    """Each of them in turn has the time it is given; only then the sink is opened."""

    class Before:
        def __init__(self) -> None:
            self.waited_s: list[float] = []

        def join(self, deadline: float) -> bool:
            assert peer.calls == []
            self.waited_s.append(deadline - time.monotonic())
            return False

    peer, before = Peer(), [Before(), Before()]
    sink_queue = SinkQueue("a", peer, 1000)
    sink_queue.finish()
    sink_queue.start("mic", before, 1000.0)
    assert sink_queue.join(time.monotonic() + PATIENCE_S)
    assert all(999 < one.waited_s.pop() <= 1000 and not one.waited_s for one in before)
    assert peer.calls == ["open", "close"]


def test_its_end_is_waited_for_until_a_deadline() -> None:
    """One that was never started has ended; one that hangs has not, and is let go of."""
    peer = Peer()
    let_go: list[str] = []
    peer.abandon = lambda: let_go.append("it")  # type: ignore[method-assign]
    sink_queue = SinkQueue("a", peer, 1000)
    assert sink_queue.join(0.0)
    peer.hanging.clear()
    feed(sink_queue, 1)
    sink_queue.start("mic")
    assert peer.reached.acquire(timeout=PATIENCE_S)
    sink_queue.finish()
    assert not sink_queue.join(time.monotonic() + 0.001)
    sink_queue.force_close()
    assert let_go == ["it"]
    peer.hanging.set()
    assert sink_queue.join(time.monotonic() + PATIENCE_S)
    assert sink_queue.delivered == 10


def test_what_nobody_foresaw_is_told_as_that() -> None:
    """Any error of a sink is one of its tries; one that is no SinkError says so."""
    peer = Peer()
    sink_queue = SinkQueue("a", peer, 1000)

    def stumble() -> None:
        raise KeyError("this")

    peer.open = stumble  # type: ignore[method-assign]
    assert sink_queue.try_open() is False
    assert sink_queue.trouble is not None and sink_queue.trouble.startswith("unexpected KeyError")


def test_abandon_closes_the_books(threads: list[threading.Thread]) -> None:
    """What a hung sink keeps at the end counts as dropped."""
    peer = Peer()
    peer.hanging.clear()
    sink_queue = SinkQueue("a", peer, 1000)
    start(sink_queue, threads)
    feed(sink_queue, 5)
    assert peer.reached.acquire(timeout=PATIENCE_S)
    sink_queue.abandon()
    assert sink_queue.abandoned == 50
    assert sink_queue.entered == sink_queue.delivered + sink_queue.dropped
    peer.hanging.set()
    sink_queue.finish()


EVENTS = st.lists(st.sampled_from(["put", "put", "put", "step", "fail", "open", "heal"]))


@given(EVENTS, st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_the_books_balance_whatever_happens(events: list[str], limit: int) -> None:
    """entered = delivered + dropped + queued after every event, and nothing comes twice."""
    peer = Peer()
    sink_queue = SinkQueue("a", peer, limit * FRAMES)
    number = 0
    for event in events:
        match event:
            case "put":
                sink_queue.put(block(number))
                number += 1
            case "fail":
                peer.failing = {"write"}
            case "heal":
                peer.failing = set()
            case "open":
                sink_queue.try_open()
            case _:
                try:
                    sink_queue.step()
                except SinkError:
                    assert peer.failing
        assert balanced(sink_queue)
        assert sink_queue.queued <= limit * FRAMES
    assert sink_queue.entered == number * FRAMES
    assert sink_queue.delivered == len(peer.got) * FRAMES
    assert peer.got == sorted(set(peer.got))
