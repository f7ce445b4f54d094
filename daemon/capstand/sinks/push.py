"""The inside of a live sink's process: it reads the stream's ring itself and pushes each block.

    ring (shared memory) → Reader → the sink's ``write``

No queue and no socket lie on the way of a block; the ring's eventfd wakes the thread. What the ring
had no room for until this thread came to it is booked as dropped, and it goes on with the present:
old sound is of no use to a live channel. The books are words of the Page and hold at every moment,
also after a kill: what was captured since the sink joined and is neither delivered nor dropped was
under way, and counts as dropped as soon as the next process joins.

A sink that fails says why and ends the process; the supervisor starts another after a pause. Where
it wants more than a block at once, since each costs what a long one does, it is woken as seldom,
and what is there then goes on as one; a gap ends that.

A chain whose only listener it is may be hosted here (``processing/hosted.py``): then it is that one
which reads the ring. Main and this process agree by two words on who writes to the processed ring:
each first writes its own, then makes a system call, then reads the other's.

Thread: main, which is the push thread, with a real-time priority below that of capture.
"""

import importlib
import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from capstand.audio.block import NS_PER_S, AudioFormat, Block
from capstand.audio.ring import Reader
from capstand.errors import SinkBusy, SinkError
from capstand.host import realtime
from capstand.processes.child import FAILED, DaemonLink
from capstand.processes.page import DOING, Doing
from capstand.processing.orders import Work
from capstand.sinks.gathering import Gathering
from capstand.sinks.sink import Sink
from capstand.text import clean

if TYPE_CHECKING:
    from capstand.processing.hosted import Hosted

FLUSH_NS = NS_PER_S
TELL_NS = NS_PER_S // 5
"""Troubles that come and go are told so often at most."""
FIGURES_NS = 3 * FLUSH_NS // 2
"""Figures alone are told with every second flush."""
IN_STEP_S = 0.1
"""So long it waits for the end of a block that began before it."""
CHAIN = "chain"
"""Of the figures those of the chain that is hosted."""


class SinkWord(IntEnum):
    """The books of a live sink in its Page; frames of the stream."""

    TAKES = 1  # 1 from when the sink has joined until it is closed
    JOINED_FRAME = 2  # the first frame that was meant for it
    JOINED_CAPTURED = 3  # what the stream had captured before that
    DELIVERED = 4
    DROPPED = 5
    MISSED = 6  # of these, what it was lapped by
    INSERTED = 7


DELIVERED, INSERTED = int(SinkWord.DELIVERED), int(SinkWord.INSERTED)
WAITING, WRITING = int(Doing.WAITING), int(Doing.WRITING)
"""For each block: to find one in its class costs as much as the work with it."""


class HostWord(IntEnum):
    """What else is there, for a chain that this process may host."""

    HOSTS = 8  # a Hosts
    MAY_HOST = 9  # main's: 0 as soon as the chain is wanted elsewhere


class Hosts(IntEnum):
    """Whether it writes to the processed ring."""

    NOT_YET = 0
    NOW = 1
    NO_MORE = 2


def run(
    link: DaemonLink,
    descriptors: tuple[int, ...],
    audio: AudioFormat,
    gather_frames: int,
    made_by: str,
    arguments: tuple[Any, ...],
    chain: Work | None = None,
) -> int:
    """Does the work of a Task; returns the process' status. ``descriptors`` are those of the ring
    and of the eventfd that the ring sets for each block; where it hosts a ``chain`` also the
    eventfd that the captured ring sets, and those of a ``Hosted``. ``made_by`` is the sink's class
    as "module:class", because the daemon does not import it; the stream's Pace comes behind its
    ``arguments``.
    """
    ring, *wakes = descriptors
    hosted = None if chain is None else _host(chain, (ring, *wakes[2:]))
    reader = hosted or Reader(ring, audio)

    def make() -> Sink:
        module, _, name = made_by.partition(":")
        sink: Sink = getattr(importlib.import_module(module), name)(*arguments, reader)
        return sink

    return Push(link, reader, wakes[:2], gather_frames, hosted).run(make)


def _host(chain: Work, descriptors: Sequence[int]) -> "Hosted":
    from capstand.processing.hosted import Hosted  # loads what computes

    return Hosted(chain, descriptors)


class Push:
    """Opens the sink and feeds it from ``reader``, which is ``hosted`` where it hosts a chain,
    until told to stop or it fails; ``wakes``, and with a chain that of the captured ring behind it.
    """

    def __init__(
        self,
        link: DaemonLink,
        reader: "Reader | Hosted",
        wakes: Sequence[int],
        gather_frames: int,
        hosted: "Hosted | None" = None,
    ) -> None:
        self._link = link
        self._words = link.page.words
        self._reader = reader
        self._hosted = hosted
        self._wakes = tuple(wakes)
        self._gathering = Gathering(gather_frames) if gather_frames else None
        self._missed = 0
        self._inserted_before = self._words[SinkWord.INSERTED]
        self._trouble: str | None = None
        self._told: str | None = None
        self._told_ns = 0
        self._until: int | None = None  # the number of the first block that is not for it
        self._sink: Sink | None = None

    def run(self, make: Callable[[], Sink]) -> int:
        try:
            self._does(Doing.OPENING)
            self._sink = sink = make()
            sink.open()
            realtime.freeze_heap()
            self._join()
            self._trouble = None
            self._tell_now()
            self._feed(sink)
        except SinkError as error:
            self._trouble = clean.line(error)
        self._words[SinkWord.TAKES] = 0
        self._words[HostWord.HOSTS] = Hosts.NO_MORE
        try:
            self._close()
        except SinkError as error:
            self._trouble = self._trouble or clean.line(error)
        self._tell_now()
        return FAILED if self._until is None else 0

    def _join(self) -> None:
        words, reader = self._words, self._reader
        if self._hosted is not None:
            words[HostWord.HOSTS] = Hosts.NOW
        with suppress(BlockingIOError):  # a process before this one may have left it full
            os.eventfd_read(self._wakes[0])
        if self._gathering is not None and self._hosted is None:
            select.select(self._wakes[:1], (), (), IN_STEP_S)  # so that its first block is whole
        if self._hosted is not None and not words[HostWord.MAY_HOST]:
            self._let_chain_go(self._hosted)
        reader.join()
        if words[SinkWord.JOINED_FRAME] < 0:
            words[SinkWord.JOINED_FRAME] = reader.next_frame
            words[SinkWord.JOINED_CAPTURED] = reader.captured
        before = reader.captured - words[SinkWord.JOINED_CAPTURED]
        words[SinkWord.DROPPED] = before - words[SinkWord.DELIVERED]
        words[SinkWord.TAKES] = 1

    def _feed(self, sink: Sink) -> None:
        """Until told to stop."""
        flush_ns = time.monotonic_ns() + FLUSH_NS
        reader, link, words, now = self._reader, self._link.fileno(), self._words, time.monotonic_ns
        with select.epoll() as poll:
            edges = select.EPOLLIN | select.EPOLLET  # each time it is set: it is not read
            for wake in self._wakes if self._hosted is not None else self._wakes[:1]:
                poll.register(wake, edges)
            poll.register(link, select.EPOLLIN)
            while self._until is None or reader.number < self._until:
                now_ns = now()
                words[DOING] = now_ns << 3 | WAITING  # as ``_does`` does, which is a call
                if now_ns >= flush_ns:
                    flush_ns = now_ns + FLUSH_NS
                    self._flush(sink)
                    continue
                found = poll.poll((flush_ns - now_ns) / NS_PER_S, 3)
                if self._hosted is not None and not self._words[HostWord.MAY_HOST]:
                    poll.unregister(self._wakes[1])
                    if (last := self._let_chain_go(self._hosted)) is not None:
                        self._pass_on(sink, last)
                for ready, _ in found:
                    if ready == link:
                        self._hear()
                self._drain(sink)
                if self._hosted is not None and self._hosted.has_news:
                    self._hosted.has_news = False
                    self._tell_now()
        if self._hosted is not None and (last := self._hosted.rest()) is not None:
            self._pass_on(sink, last)
        if self._gathering is not None:
            for rest in self._gathering.rest():
                self._deliver(sink, rest)

    def _flush(self, sink: Sink) -> None:
        now_ns = self._does(Doing.FLUSHING)
        sink.flush()
        self._link.repeats.tell()
        if self._trouble != self._told:
            self._tell_now()
        elif now_ns - self._told_ns > FIGURES_NS:
            self._tell()

    def _hear(self) -> None:
        message, hosted = self._link.receive(), self._hosted
        if isinstance(message, int):
            self._until = message
            if hosted is not None:
                hosted.until = message
        elif message is not None and hosted is not None:
            hosted.set(message)

    def _drain(self, sink: Sink) -> None:
        """All that is there, as far as it is meant for this sink."""
        reader, until, gathering = self._reader, self._until, self._gathering
        processes = self._hosted is not None
        while until is None or reader.number < until:
            if processes:
                self._does(Doing.PROCESSING)
            block = reader.read()
            if block is None:
                break
            if reader.missed != self._missed:
                self._book_missed()
            if not block.frames:
                continue
            if gathering is None:
                self._deliver(sink, block)
            else:
                for ready in gathering.put(block):
                    self._deliver(sink, ready)
            if reader.newest:  # the next one wakes this thread
                break
        if gathering is not None:
            for rest in gathering.rest():
                self._deliver(sink, rest)

    def _book_missed(self) -> None:
        missed, self._missed = self._reader.missed - self._missed, self._reader.missed
        self._words[SinkWord.MISSED] += missed
        self._words[SinkWord.DROPPED] += missed

    def _pass_on(self, sink: Sink, block: Block) -> None:
        """What a chain that goes had left."""
        self._book_missed()
        for ready in (block,) if self._gathering is None else self._gathering.put(block):
            self._deliver(sink, ready)

    def _let_chain_go(self, hosted: "Hosted") -> Block | None:
        """It is wanted in a process of its own, which begins behind the block that is returned."""
        last = hosted.leave()
        self._hosted = None
        self._words[HostWord.HOSTS] = Hosts.NO_MORE
        return last

    def _deliver(self, sink: Sink, block: Block) -> None:
        words = self._words
        words[DOING] = time.monotonic_ns() << 3 | WRITING
        try:
            sink.write(block)
        except SinkBusy as busy:
            words[DELIVERED] += busy.taken
            words[SinkWord.DROPPED] += block.frames - busy.taken
            self._trouble = clean.line(busy)
        else:
            words[DELIVERED] += block.frames
            self._trouble = None
        words[INSERTED] = self._inserted_before + sink.inserted_frames
        if (self._trouble is None) != (self._told is None):
            self._tell_soon()

    def _tell_soon(self) -> None:
        if time.monotonic_ns() - self._told_ns >= TELL_NS:
            self._tell_now()

    def _tell_now(self) -> None:
        self._tell()
        self._link.call()

    def _tell(self) -> None:
        sink = self._sink
        said: dict[str, object] = {"trouble": self._trouble}
        now_ns = time.monotonic_ns()
        if sink is not None:
            said |= {"detail": sink.detail, "concern": sink.concern}
            chain = {CHAIN: self._hosted.figures()} if self._hosted is not None else {}
            said["figures"] = sink.figures(now_ns) | chain
        if self._link.tell(**said):
            self._told, self._told_ns = self._trouble, now_ns

    def _close(self) -> None:
        sink = self._sink
        self._does(Doing.CLOSING)
        if sink is not None:
            sink.close()
            self._words[SinkWord.INSERTED] = self._inserted_before + sink.inserted_frames

    def _does(self, doing: int) -> int:
        now_ns = time.monotonic_ns()
        self._words[DOING] = now_ns << 3 | doing  # as Page.does
        return now_ns
