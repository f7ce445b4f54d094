"""The inside of a live sink's process: it reads the stream's ring itself and pushes each block.

    ring (shared memory) → Reader → the sink's ``write``

No queue and no socket lie on the way of a block; the ring's eventfd wakes the thread. What the ring
had no room for until this thread came to it is booked as dropped, and it goes on with the present:
old sound is of no use to a live channel. The books are words of the Page and hold at every moment,
also after a kill: what was captured since the sink joined and is neither delivered nor dropped was
under way, and counts as dropped as soon as the next process joins.

A sink that fails says why and ends the process; the supervisor starts another after a pause. Short
blocks are gathered, since each costs what a long one does; a gap ends a gathered block.

Thread: main, which is the push thread, with a real-time priority below that of capture.
"""

import importlib
import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import Any

from capstand.audio.block import NS_PER_S, AudioFormat, Block
from capstand.audio.ring import Reader
from capstand.errors import SinkBusy, SinkError
from capstand.host import realtime
from capstand.processes.child import FAILED, DaemonLink
from capstand.processes.page import Doing
from capstand.sinks.gathering import Gathering
from capstand.sinks.sink import Sink
from capstand.text import clean

FLUSH_NS = NS_PER_S
TELL_NS = NS_PER_S // 5
"""Troubles that come and go are told so often at most."""


class SinkWord(IntEnum):
    """The books of a live sink in its Page; frames of the stream."""

    TAKES = 1  # 1 from when the sink has joined until it is closed
    JOINED_FRAME = 2  # the first frame that was meant for it
    JOINED_CAPTURED = 3  # what the stream had captured before that
    DELIVERED = 4
    DROPPED = 5
    MISSED = 6  # of these, what it was lapped by
    INSERTED = 7


def run(
    link: DaemonLink,
    descriptors: tuple[int, int],
    audio: AudioFormat,
    gather_frames: int,
    made_by: str,
    arguments: tuple[Any, ...],
) -> int:
    """Does the work of a Task; returns the process' status. ``descriptors`` are those of the ring
    and of the eventfd that the ring sets for each block. ``made_by`` is the sink's class as
    "module:class", because the daemon does not import it; the stream's Pace comes behind its
    ``arguments``.
    """
    ring, wake = descriptors
    reader = Reader(ring, audio)

    def make() -> Sink:
        module, _, name = made_by.partition(":")
        sink: Sink = getattr(importlib.import_module(module), name)(*arguments, reader)
        return sink

    return Push(link, reader, wake, gather_frames).run(make)


class Push:
    """Opens the sink and feeds it from ``reader`` until told to stop or it fails."""

    def __init__(self, link: DaemonLink, reader: Reader, wake: int, gather_frames: int) -> None:
        self._link = link
        self._words = link.page.words
        self._reader = reader
        self._wake = wake
        self._gathering = Gathering(gather_frames)
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
            self._tell()
            self._feed(sink)
        except SinkError as error:
            self._trouble = clean.line(error)
        self._words[SinkWord.TAKES] = 0
        try:
            self._close()
        except SinkError as error:
            self._trouble = self._trouble or clean.line(error)
        self._tell()
        return FAILED if self._until is None else 0

    def _join(self) -> None:
        words, reader = self._words, self._reader
        with suppress(BlockingIOError):  # a process before this one may have left it full
            os.eventfd_read(self._wake)
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
        reader, wake = self._reader, self._wake
        with select.epoll() as poll:
            poll.register(wake, select.EPOLLIN | select.EPOLLET)  # each time it is set; not read
            poll.register(self._link, select.EPOLLIN)
            while self._until is None or reader.number < self._until:
                now_ns = self._does(Doing.WAITING)
                for ready, _ in poll.poll(max(0, flush_ns - now_ns) / NS_PER_S, 2):
                    if ready != wake:
                        self._hear()
                self._drain(sink)
                if time.monotonic_ns() >= flush_ns:
                    flush_ns = self._does(Doing.FLUSHING) + FLUSH_NS
                    sink.flush()
                    self._link.repeats.tell()
                    self._tell()
        for rest in self._gathering.rest():
            self._deliver(sink, rest)

    def _hear(self) -> None:
        message = self._link.receive()
        if message is not None:
            self._until = message

    def _drain(self, sink: Sink) -> None:
        """All that is there, as far as it is meant for this sink."""
        reader = self._reader
        while self._until is None or reader.number < self._until:
            block = reader.read()
            if block is None:
                return
            if reader.missed != self._missed:
                missed, self._missed = reader.missed - self._missed, reader.missed
                self._words[SinkWord.MISSED] += missed
                self._words[SinkWord.DROPPED] += missed
            if not block.frames:
                continue
            for ready in self._gathering.put(block):
                self._deliver(sink, ready)

    def _deliver(self, sink: Sink, block: Block) -> None:
        words = self._words
        self._does(Doing.WRITING)
        try:
            sink.write(block)
        except SinkBusy as busy:
            words[SinkWord.DELIVERED] += busy.taken
            words[SinkWord.DROPPED] += block.frames - busy.taken
            self._trouble = clean.line(busy)
        else:
            words[SinkWord.DELIVERED] += block.frames
            self._trouble = None
        words[SinkWord.INSERTED] = self._inserted_before + sink.inserted_frames
        if self._trouble is not self._told:
            self._tell_soon()

    def _tell_soon(self) -> None:
        if (self._trouble is None) != (self._told is None):
            now_ns = time.monotonic_ns()
            if now_ns - self._told_ns >= TELL_NS:
                self._tell()

    def _tell(self) -> None:
        sink = self._sink
        said: dict[str, object] = {"trouble": self._trouble}
        now_ns = time.monotonic_ns()
        if sink is not None:
            said |= {"detail": sink.detail, "concern": sink.concern}
            said["figures"] = sink.figures(now_ns)
        if self._link.tell(**said):
            self._told, self._told_ns = self._trouble, now_ns

    def _close(self) -> None:
        sink = self._sink
        self._does(Doing.CLOSING)
        if sink is not None:
            sink.close()
            self._words[SinkWord.INSERTED] = self._inserted_before + sink.inserted_frames

    def _does(self, doing: Doing) -> int:
        now_ns = time.monotonic_ns()
        self._link.page.does(doing, now_ns)
        return now_ns
