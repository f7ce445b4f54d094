"""A live sink, seen from the daemon: its process is looked after, its books are read.

The process reads the ring itself (``push.py``). What it says of itself is checked before it is
believed: books that shrink, or that hold more than was captured, are those of a process in which
something went wild; it is ended, and the books go on from what was last believed.

Thread: main.
"""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from capstand.accounting.stats import SinkCounters, SinkState, StreamPosition
from capstand.audio.block import AudioFormat
from capstand.audio.ring import Reader, Ring
from capstand.audio.wake import WakeUp
from capstand.processes.child import Task
from capstand.processes.page import DOING, Doing
from capstand.processes.supervisor import LIMITS_S, ProcessState, Supervisor
from capstand.processing.orders import Work
from capstand.sinks.push import CHAIN, Hosts, HostWord, SinkWord
from capstand.sinks.sink import Event
from capstand.sinks.sink_queue import Joinable

JOINED = (SinkWord.JOINED_FRAME, SinkWord.JOINED_CAPTURED)
MODULES, HOST_MODULES = ("capstand.sinks.push",), ("capstand.processing.hosted",)
COUNTERS = (SinkWord.DELIVERED, SinkWord.DROPPED, SinkWord.MISSED, SinkWord.INSERTED)


class SinkFactory(NamedTuple):
    """How a sink is made in its process: its class, "module:class", and its arguments; and so many
    frames it wants at once, 0 for each block as it comes."""

    made_by: str
    arguments: tuple[object, ...]
    gather_frames: int = 0


class Hosting(NamedTuple):
    """What a sink's process needs to host the chain that fills its ring: ``captured`` is the ring
    that the chain reads, ``descriptors`` are those of ``push.run`` behind the sink's own."""

    work: Work
    captured: int
    descriptors: tuple[int, ...]


class LiveSink:
    """Sink ``name`` of ``stream``, fed from ``ring`` by a process of its own, which hosts the chain
    as well where there is a ``hosting``, until ``unhost``."""

    on_disk = False

    def __init__(
        self,
        stream: str,
        name: str,
        plan: SinkFactory,
        ring: Ring,
        audio: AudioFormat,
        priority: int,
        limits_s: Mapping[Doing, float] = LIMITS_S,
        hosting: Hosting | None = None,
    ) -> None:
        self.name = name
        self.wake = WakeUp()
        self._memory = ring.open_for_reading()
        self._present = Reader(self._memory, audio)
        self._source = None if hosting is None else Reader(hosting.captured, hosting.work.audio)
        self._given = self._memory, self.wake.fileno()
        self.gather_frames = plan.gather_frames
        self._work = audio, plan.gather_frames, *plan[:2]
        fields = {"STREAM": stream, "SINK": name}
        task = Task("capstand.sinks.push:run", self._work, fields, f"push:{name}", priority)
        modules = MODULES if hosting is None else (*MODULES, *HOST_MODULES)
        self.process = Supervisor(task, self._given, limits_s, modules=modules)
        self._words = self.process.page.words
        if hosting is not None:
            self._words[HostWord.MAY_HOST] = 1
            self.host(hosting)
        self._words[SinkWord.JOINED_FRAME] = -1
        self._books = dict.fromkeys(SinkWord, 0) | {
            SinkWord.JOINED_FRAME: -1
        }  # as they were believed last
        self._looked = 0  # what had been captured then
        self._done = 0  # what it was through with when it was asked whether it is calm
        self._deaths = 0
        self.died_processing = False
        self._after: Sequence[Joinable] = ()
        self._after_s = 0.0
        self.until: StreamPosition | None = None
        self._closed = False

    # What a person sees

    @property
    def state(self) -> SinkState:
        match self.process.state:
            case ProcessState.ENDED:
                return SinkState.CLOSED
            case ProcessState.ABSENT:
                return SinkState.WAITING if self.process.deaths else SinkState.OPENING
            case _:
                return SinkState.OPEN if self._words[SinkWord.TAKES] else SinkState.OPENING

    @property
    def trouble(self) -> str | None:
        return self.process.trouble

    @property
    def failures(self) -> int:
        return self.process.deaths

    @property
    def detail(self) -> str:
        return self.process.detail

    @property
    def concern(self) -> str | None:
        return self.process.concern

    def figures(self, now_ns: int) -> dict[str, object]:
        figures = self.process.figures | {"pid": self.process.pid}
        figures.pop(CHAIN, None)
        return figures

    @property
    def inserted_frames(self) -> int:
        return self._books[SinkWord.INSERTED]

    def events(self) -> Iterable[Event]:
        return ()

    def is_calm(self) -> bool:
        """Whether a look can wait: it has got on since it was asked last, and has not called."""
        words = self._words
        done = words[SinkWord.DELIVERED] + words[SinkWord.DROPPED]
        moved, self._done = done != self._done, done
        return moved and self.process.is_calm

    # Its life

    def start(self, stream: str, after: Sequence[Joinable] = (), wait_s: float = 0.0) -> None:
        """From now on it is looked after; it begins when those ``after`` which it comes have ended,
        or have had ``wait_s`` to do so."""
        self._after, self._after_s = after, time.monotonic() + wait_s

    def poll(self, now_ns: int) -> None:
        now_s = time.monotonic()
        if now_s < self._after_s and not all(one.join(now_s) for one in self._after):
            return
        self._after = ()
        process = self.process
        process.poll(now_ns)
        if process.deaths != self._deaths:
            self._deaths = process.deaths
            self.died_processing = process.page.words[DOING] & 7 == Doing.PROCESSING
            self._words[SinkWord.TAKES] = self._words[HostWord.HOSTS] = 0
        self._check(now_ns)

    def finish(self) -> None:
        """Nothing follows what is in the ring now: it delivers that and ends."""
        present = self._source or self._present
        present.join()
        self.until = StreamPosition(present.next_frame, present.captured)
        self.process.stop(present.number)
        self.wake.set()

    def join(self, deadline: float) -> bool:
        """Whether it has ended by then (time.monotonic)."""
        if self._closed:
            return True  # who comes after it may ask later than main, which let go of it
        ended = self.process.join(deadline)
        self.poll(time.monotonic_ns())
        return ended

    def force_close(self) -> None:
        """It did not stop in time: it is ended, and what it had counts as dropped."""
        self.process.abandon()
        self._words[SinkWord.TAKES] = self._words[HostWord.HOSTS] = 0
        self.poll(time.monotonic_ns())

    def abandon(self) -> None:
        """Nothing of it is left."""

    def close(self) -> None:
        self._closed = True
        self._present.close()
        if self._source is not None:
            self._source.close()
        self.process.close()
        os.close(self._memory)

    # The chain that it hosts

    def host(self, hosting: Hosting) -> None:
        """So begins its next process."""
        arguments = *self._work, hosting.work
        self.process.task = self.process.task._replace(arguments=arguments)
        self.process.descriptors = *self._given, *hosting.descriptors

    def unhost(self) -> None:
        """The chain is wanted in a process of its own; not once the sink was told to ``finish``."""
        self._words[HostWord.MAY_HOST] = 0
        self.wake.set()
        self.process.task = self.process.task._replace(arguments=self._work)
        self.process.descriptors = self._given
        if self._source is not None:
            self._source.close()
            self._source = None

    @property
    def hosts(self) -> bool:
        """Whether its process writes to the ring that it reads, or will."""
        if self._closed or not self.process.running:
            return False
        says = self._words[HostWord.HOSTS]
        return says == Hosts.NOW or (says == Hosts.NOT_YET and bool(self._words[HostWord.MAY_HOST]))

    @property
    def chain_figures(self) -> dict[str, object]:
        """What the chain that it hosts told last."""
        figures = self.process.figures.get(CHAIN)
        return figures if isinstance(figures, dict) else {}

    # The books

    @property
    def taken(self) -> int:
        return self._books[SinkWord.DELIVERED] + self._books[SinkWord.DROPPED]

    @property
    def slow(self) -> int:
        """Frames that it lost because it was too slow."""
        return self._books[SinkWord.MISSED]

    @property
    def queued(self) -> int:
        """Frames in the ring that it has not yet delivered."""
        books = self._books
        if not books[SinkWord.TAKES]:
            return 0
        done = books[SinkWord.JOINED_CAPTURED] + books[SinkWord.DELIVERED] + books[SinkWord.DROPPED]
        return max(0, self._looked - done)

    def counters(self) -> SinkCounters:
        """As of the last look. A sink that takes nothing has nothing inside: what was captured
        before the look is dropped."""
        books = self._books
        if books[SinkWord.JOINED_FRAME] < 0:
            return SinkCounters(None, self.until, 0, 0, 0)
        since = StreamPosition(books[SinkWord.JOINED_FRAME], books[SinkWord.JOINED_CAPTURED])
        delivered, dropped = books[SinkWord.DELIVERED], books[SinkWord.DROPPED]
        counters = SinkCounters(since, self.until, delivered, dropped, books[SinkWord.INSERTED])
        if books[SinkWord.TAKES]:
            return counters
        return counters._replace(dropped=max(dropped, counters.captured(self._looked) - delivered))

    def _check(self, now_ns: int) -> None:
        """What the page says is believed where it can be true; else the process goes."""
        present, words, before = self._present, self._words, self._books
        newest = self._source or present
        newest.join()
        self._looked = newest.captured  # before the look: what came later is not judged
        said = {word: words[word] for word in SinkWord}
        present.join()
        joined = before[SinkWord.JOINED_FRAME] < 0 or all(
            said[one] == before[one] for one in JOINED
        )
        grown = all(said[word] >= before[word] for word in COUNTERS)
        done = said[SinkWord.DELIVERED] + said[SinkWord.DROPPED]
        if said[SinkWord.JOINED_FRAME] >= 0:
            done += said[SinkWord.JOINED_CAPTURED]
        possible = done <= present.captured and said[SinkWord.JOINED_FRAME] <= present.next_frame
        if joined and grown and possible and said[SinkWord.TAKES] in (0, 1):
            self._books = said
            if said[SinkWord.DELIVERED] > before[SinkWord.DELIVERED]:
                self.process.well()
            return
        if self.process.running:
            self.process.kill(now_ns, "its counters are inconsistent, and it was killed")
            self._deaths = self.process.deaths
        for word, value in before.items():
            words[word] = value
        words[SinkWord.TAKES] = before[SinkWord.TAKES] = words[HostWord.HOSTS] = 0
