"""The intake of a stream: one capture device and what is recorded of it, in a process of its own.

    source → Capturer → Ring ─┬→ Pusher → SinkQueue → a recording, maybe with a spool in front of it
                              ├→ live sinks, which read the ring in processes of their own
                              └→ chain of processors, in a process of its own
                                   └→ processed ring → a second Pusher → SinkQueue → …

``start`` goes from the sinks to the device, ``drain`` and ``close`` from the device to the sinks,
so that nothing captured is left without a way on. ``exchange`` gives it other sinks while sound
flows: the device, the clock and the frame index go on. They also go on from the ``ResumePoint`` of
a process that ended before its time.

Thread: main of its process (``worker.py``); but ``start_meter`` is called by one that loads the
meter and ends.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

from capstand.accounting.stats import StreamPosition, StreamStats
from capstand.audio.clock import Clock
from capstand.audio.ring import Reader, Ring
from capstand.audio.wake import Paced, WakeUp
from capstand.capture.capturer import Capturer
from capstand.capture.failover import Failover
from capstand.capture.source import Adjustable, Flowing, Source
from capstand.config.plan import chain_pace, same_capture, same_chain, sink_plan
from capstand.config.registry import SINKS, SOURCES, describe_failure
from capstand.config.schema import (
    CaptureConfig,
    QueuedSinkConfig,
    SinkConfig,
    StreamConfig,
)
from capstand.errors import CapstandError
from capstand.sinks.sink_queue import SinkQueue
from capstand.stream.handover import (
    ABANDON_S,
    LEAVE_S,
    RemovedSink,
)
from capstand.stream.meters import Meters
from capstand.stream.overview import Overview
from capstand.stream.pusher import Pusher
from capstand.stream.queues import BATCH_MS, batch_ms, make_queue
from capstand.stream.report import (
    DISK_S,
    RUNTIME,
    STATE,
    LastReport,
    Report,
    ResumePoint,
    word_places,
)

JOIN_S = 1.0
CAPTURE_BATCH_MS = 50


class Chained(NamedTuple):
    """The chain of a stream, seen from here: descriptors of the ``memory`` of the processed ring,
    and of eventfds: ``wake`` is set for each captured block; ``push`` and ``quarter_full`` are
    those of this stream's pusher."""

    memory: int
    wake: int
    push: int
    quarter_full: int


class Intake:
    """The threads of one configured stream that take its sound in, and their books; live sinks
    among its ``config`` are looked after elsewhere. ``state`` is the directory for what has to be
    kept, ``runtime`` that for sockets; in ``words``, of a Page, each sink shows what it has
    delivered; ``runs`` are those of the books of each, of a Spool.
    """

    def __init__(
        self,
        config: StreamConfig,
        state: Path = STATE,
        runtime: Path = RUNTIME,
        ring: Ring | None = None,
        past: ResumePoint | None = None,
        words: memoryview | None = None,
        chained: Chained | None = None,
        runs: Mapping[str, bytes] | None = None,
    ) -> None:
        capture, audio = config.capture, config.capture.audio
        self.config = config
        self.name = config.name
        self._leaving: list[RemovedSink] = []
        self._folders = state, runtime
        self.clock = Clock(audio.rate_hz, capture.period_frames)
        self.ring = ring or Ring(capture.ring_slots, capture.slot_bytes)
        self.source = make_source(capture)
        self.capturer = Capturer(self.source, self.clock, self.ring, capture.rt_priority)
        runs = runs or {}
        self.sink_queues = [
            make_queue(config, one, self._folders, runs.get(one.name)) for one in config.queued
        ]
        memory = self.ring.open_for_reading()
        self.pusher = Pusher(
            Reader(memory, audio, keep=None),
            None,
            self._outlets_on("captured"),
            capture.rt_priority,
            batch_ms(config.on("captured")),
        )
        os.close(memory)
        self._chain_wake: WakeUp | None = None
        self.processed_pusher: Pusher | None = None
        """That of the processed ring."""
        if chained is not None:
            self._follow(chained)
        self.wakes(gathers=())
        self.meters = Meters(capture)
        self._threads: dict[str, threading.Thread] = {}
        self.overview = Overview(self)
        self._left: list[LastReport] = []
        self._words = words
        self._places: dict[str, int] = {}  # of the words, by sink
        self._taken: dict[RemovedSink, int] = {}  # those of sinks that leave
        if past is not None:
            self._continue_from(past)
        self._show()

    def _continue_from(self, past: ResumePoint) -> None:
        """Where a process before this one ended, with its books."""
        stats = past.stats
        self.capturer.continue_from(*past)
        self.overview.gaps_told = stats.gaps
        before = {one.name: one for one in stats.sinks}
        processed = self._outlets_on("processed")
        for sink_queue in self.sink_queues:
            sink_queue.since = place = StreamPosition(past.next_frame, past.captured)
            if self.processed_pusher is not None and sink_queue in processed:
                sink_queue.since = place = self.processed_pusher.place
            sink = before.get(sink_queue.name)
            if sink is not None and sink.since_frame is not None:
                since = StreamPosition(
                    sink.since_frame, stats.captured_frames - sink.captured_frames
                )
                sink_queue.continue_from(sink, since, place.captured)

    def _outlets_on(self, input_: str) -> list[SinkQueue]:
        processed = {one.name for one in self.config.on("processed").sink}
        wanted = input_ == "processed"
        return [
            sink_queue
            for sink_queue in self.sink_queues
            if (sink_queue.name in processed) == wanted
        ]

    def _follow(self, chained: Chained) -> None:
        """A new chain: its ring gets a pusher."""
        config = self.config
        self._chain_wake = WakeUp(chained.wake)
        self.processed_pusher = Pusher(
            Reader(chained.memory, config.processed_audio, keep=None),
            None,
            self._outlets_on("processed"),
            config.capture.rt_priority,
            batch_ms(config.on("processed")),
            WakeUp(chained.push),
            WakeUp(chained.quarter_full),
        )
        os.close(chained.memory)

    def wakes(self, *live: WakeUp, gathers: Sequence[int]) -> None:
        """The live sinks that read the ring: it wakes them, each when as many more frames are there
        as its ``gathers`` says; and where there are some, or behind the chain, the card is asked
        for each block as soon as it is there."""
        wanted = [*zip(live, gathers, strict=True)]
        each = [wake for wake, frames in wanted if not frames]
        paced = [Paced(wake, frames) for wake, frames in wanted if frames]
        if self._chain_wake is not None:
            paced.append(Paced(self._chain_wake, chain_pace(self.config).wake_frames))
        quarter = self.pusher.quarter_full
        self.ring.wakes(*each, self.pusher.wake, rests=(quarter,), paced=tuple(paced))
        in_a_hurry = live or any(SINKS[one.type].live for one in self.config.sink)
        self.source.batch_ms = 0 if in_a_hurry else CAPTURE_BATCH_MS
        if isinstance(self.source, Flowing):
            chain = () if self._chain_wake is None else (chain_pace(self.config).wake_frames,)
            self.source.block_frames = min((*gathers, *chain), default=0) if in_a_hurry else 0

    def start(self) -> None:
        for sink_queue in self.sink_queues:
            sink_queue.start(self.name)
        self._spawn("push", self.pusher.run)
        if self.processed_pusher is not None:
            self._spawn("push-processed", self.processed_pusher.run)
        self._spawn("capture", self.capturer.run)

    def retry_now(self) -> None:
        """A sound device came or went: what waits for one tries again at once."""
        if isinstance(self.source, Failover):
            self.source.retry_now()
        self.capturer.retry_now()

    def release(self, who: str, words: str) -> None:
        """``who`` gets the device, which is closed once ``rests``. Any thread."""
        self.capturer.release(who, words)

    def resume(self, who: str) -> None:
        """``who`` gives it back. Any thread."""
        self.capturer.resume(who)

    def is_released_to(self, who: str) -> bool:
        return self.capturer.is_released_to(who)

    @property
    def rests(self) -> bool:
        """Whether the device is closed because it was released."""
        return self.capturer.resting.is_set()

    def listen_to(self, streams: Sequence[object]) -> None:
        """What listens is not in this process."""

    def ring_of(self, input_: str) -> Ring:
        """The captured one, whatever is asked for."""
        return self.ring

    tapped = ring_of

    def _show(self) -> None:
        """How much each sink has delivered can be read at any time, also after a kill."""
        words = self._words
        if words is None:
            return
        names = [sink_queue.name for sink_queue in self.sink_queues]
        self._places = word_places(names, self._places, self._taken.values())
        for sink_queue in self.sink_queues:
            sink_queue.tells = partial(_write, words, self._places[sink_queue.name])
            sink_queue.tell()

    def exchange(
        self,
        config: StreamConfig,
        chained: Chained | None = None,
        runs: Mapping[str, bytes] | None = None,
    ) -> None:
        """Other sinks for the same capture, from the next block on, and other settings of its
        controls. What a removed sink was given and what an added one gets are all the frames there
        are; the added one begins to collect at once, and opens when a removed one has left its
        place. ``chained`` is for another chain than before."""
        assert same_capture(self.config, config)
        if config.capture.controls != self.config.capture.controls:
            assert isinstance(self.source, Adjustable)
            self.source.adjust(config.capture.controls)
        change = sink_plan(_only_queued(self.config), _only_queued(config))
        before = self.config
        running: dict[SinkConfig, SinkQueue] = dict(
            zip(self.config.queued, self.sink_queues, strict=True)
        )
        leaving = {sink: RemovedSink(running[sink]) for sink in change.removed}
        for sink in change.added:
            run = (runs or {}).get(sink.name)
            running[sink] = make_queue(config, cast(QueuedSinkConfig, sink), self._folders, run)
            running[sink].since = None
        for sink in change.removed:
            if sink.name in self._places:
                self._taken[leaving[sink]] = self._places.pop(sink.name)
            self.overview.progress.forget(sink.name)
        self.config = config
        self.sink_queues = [running[sink] for sink in config.queued]
        self._leaving += leaving.values()
        self._show()
        self.pusher.exchange(self._outlets_on("captured"), batch_ms(config.on("captured")))
        self._exchange_chain(before, chained)
        for sink in change.added:
            after = [leaving[one].feed for one in change.before(sink)]
            running[sink].start(self.name, after, LEAVE_S)

    def _exchange_chain(self, before: StreamConfig, chained: Chained | None) -> None:
        config, pusher = self.config, self.processed_pusher
        if pusher is not None and same_chain(before, config):
            sink_queues = self._outlets_on("processed")
            pusher.exchange(sink_queues, batch_ms(config.on("processed")))
            return
        if pusher is not None:
            pusher.exchange((), BATCH_MS)
            pusher.stop()
        self.processed_pusher = self._chain_wake = None
        if chained is not None:
            self._follow(chained)
            assert self.processed_pusher is not None
            for sink_queue in self._outlets_on("processed"):
                sink_queue.since = self.processed_pusher.place
            self._spawn("push-processed", self.processed_pusher.run)

    @property
    def leaving(self) -> list[str]:
        """The sinks that were taken out and have not ended."""
        return [one.name for one in self._leaving]

    def reap_removed(self, deadline: float | None = None) -> list[str]:
        """The removed sinks that have ended, or are given up, are in the next report; names those
        that were given up."""
        over = [one for one in self._leaving if one.over(deadline)]
        if over:
            self._leaving = [one for one in self._leaving if one not in over]
            for one in over:
                self._taken.pop(one, None)
        captured = self.capturer.tally.count().captured
        self._left += [one.last_word(captured, self.config.capture.rate_hz) for one in over]
        return [one.name for one in over if one.hung]

    def stop(self) -> None:
        """The device is wanted no more; ``drain`` waits for that."""
        self.capturer.stop()

    def drain(self, deadline: float) -> list[str]:
        """Stops the device and empties the ring, until ``deadline`` (time.monotonic); the sinks
        are told that nothing follows. Names the threads that hung."""
        hung = []
        self.capturer.stop()
        if not self._join("capture", min(deadline, time.monotonic() + JOIN_S)):
            hung.append("capture")
        self.pusher.stop()
        if not self._join("push", min(deadline, time.monotonic() + JOIN_S)):
            hung.append("push")
        for one in self._outlets_on("captured"):
            one.finish()
        return hung

    def drain_processed(self, deadline: float) -> list[str]:
        """The same for what is behind the chain, which has ended."""
        hung = []
        if self.processed_pusher is not None:
            self.processed_pusher.stop()
            if not self._join("push-processed", min(deadline, time.monotonic() + JOIN_S)):
                hung.append("push-processed")
        for one in self._outlets_on("processed"):
            one.finish()
        return hung

    def close(self, deadline: float) -> list[str]:
        """Waits for the sinks to take what they have and to close, for a disk ``DISK_S`` longer;
        names those that hung."""
        disks = [sink_queue for sink_queue in self.sink_queues if sink_queue.on_disk]
        others = [sink_queue for sink_queue in self.sink_queues if sink_queue not in disks]
        return self._join_all(others, deadline) + self._join_all(disks, deadline + DISK_S)

    def _join_all(self, feeds: Sequence[SinkQueue], deadline: float) -> list[str]:
        hung = [feed for feed in feeds if not feed.join(deadline)]
        for one in hung:
            one.force_close()
        for one in hung:  # one time for all: systemd kills the daemon after TimeoutStopSec
            if not one.join(deadline + ABANDON_S):
                one.abandon()
        return [f"sink {one.name}" for one in hung]

    def dispose(self) -> None:
        """Gives back what it took of the system; none of its threads may have hung."""
        for sink_queue in self.sink_queues:
            sink_queue.close()
        self.ring.close()

    def stats(self, now_ns: int) -> StreamStats:
        """The books at this moment."""
        return self.overview.stats(now_ns)

    def report(self, now_ns: int) -> Report:
        """The books, how all is, and what has happened since the last report."""
        left, self._left = self._left, []
        return self.overview.report(now_ns, tuple(left), self._places)

    def is_calm(self) -> bool:
        """Whether a report can wait: nothing has happened since the last one."""
        return self.overview.is_calm(time.monotonic_ns()) and not self._left

    def start_meter(self) -> None:
        """Once sound flows."""
        if self.pusher.meter is None:
            self.pusher.meter = self.meters.load()

    def _spawn(self, name: str, body: Callable[[], None]) -> None:
        thread = threading.Thread(target=body, name=f"{name} {self.name}", daemon=True)
        self._threads[name] = thread
        thread.start()

    def _join(self, name: str, deadline: float) -> bool:
        thread = self._threads.get(name)
        if thread is None:
            return True  # it could not even be started
        thread.join(max(0.0, deadline - time.monotonic()))
        return not thread.is_alive()


def _write(words: memoryview, at: int, delivered: int, kept: int) -> None:
    words[at], words[at + 1] = delivered, kept


def _only_queued(config: StreamConfig) -> StreamConfig:
    return config._replace(sink=tuple(config.queued))


def make_source(capture: CaptureConfig) -> Source:
    """Raises CapstandError where its type, from another distribution, fails."""
    kind = SOURCES.of(capture.device)
    try:
        source: Source = kind.make(capture)
    except Exception as error:  # noqa: BLE001
        raise CapstandError(f"{capture.wanted}: {describe_failure(kind, error)}") from None
    return source
