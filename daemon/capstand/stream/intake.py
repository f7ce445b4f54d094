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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

from capstand.accounting.stats import StreamPosition, StreamStats, span
from capstand.audio.block import NS_PER_S
from capstand.audio.clock import Clock
from capstand.audio.ring import Reader, Ring
from capstand.audio.wake import Paced, WakeUp
from capstand.capture.capturer import Capturer
from capstand.capture.failover import Failover
from capstand.capture.source import Adjustable, NegotiatedParams, Source
from capstand.capture.truerate import describe_rate
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
from capstand.stream.bus import BusLosses
from capstand.stream.handover import (
    ABANDON_S,
    LEAVE_S,
    ProgressTracker,
    RemovedSink,
    SinkSnapshot,
    events_of,
)
from capstand.stream.health import Assessment, View, assess
from capstand.stream.meters import Meters
from capstand.stream.pusher import Pusher
from capstand.stream.queues import BATCH_MS, batch_ms, make_queue
from capstand.stream.report import (
    DISK_S,
    RUNTIME,
    STATE,
    Granted,
    LastReport,
    Report,
    ResumePoint,
    StreamWord,
)
from capstand.text import clean

JOIN_S = 1.0
CAPTURE_BATCH_MS = 50
MINUTE_NS = 60 * NS_PER_S
LONGEST_NOTICE = 150
"""Of a control that could not be set, in a line with all streams; the journal has all of it."""
AWAY_NS = 2 * NS_PER_S
"""So long between two looks the process itself stood still, and what it saw says nothing."""


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
    delivered.
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
        self.sink_queues = [make_queue(config, one, self._folders) for one in config.queued]
        self._live: tuple[WakeUp, ...] = ()
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
        self.wakes()
        self.meters = Meters(capture)
        self._threads: dict[str, threading.Thread] = {}
        self._progress = ProgressTracker()
        self._looked_ns = self._back_ns = 0
        self.bus = BusLosses(audio.rate_hz)
        self._successor: tuple[str | None, int] = None, 0  # of whom was told, and since when
        self._gaps_told = 0
        self._left: list[LastReport] = []
        self._words = words
        self._places: dict[str, int] = {}  # of the words, by sink
        if past is not None:
            self._continue_from(past)
        self._show()

    def _continue_from(self, past: ResumePoint) -> None:
        """Where a process before this one ended, with its books."""
        stats = past.stats
        self.capturer.continue_from(*past)
        self._gaps_told = stats.gaps
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

    def wakes(self, *live: WakeUp) -> None:
        """The live sinks that read the ring: it wakes them, and where there are some, or behind the
        chain, the card is asked for each block as soon as it is there."""
        self._live = live
        paced: list[Paced] = []
        if self._chain_wake is not None:
            paced.append(Paced(self._chain_wake, chain_pace(self.config).wake_frames))
        quarter = self.pusher.quarter_full
        self.ring.wakes(*live, self.pusher.wake, rests=(quarter,), paced=tuple(paced))
        in_a_hurry = any(SINKS[one.type].live for one in self.config.sink)
        self.source.batch_ms = 0 if live or in_a_hurry else CAPTURE_BATCH_MS

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
        """How much each sink has delivered can be read after a kill: a word of the page each."""
        words = self._words
        if words is None:
            return
        names = [sink_queue.name for sink_queue in self.sink_queues]
        kept = {name: at for name, at in self._places.items() if name in names}
        free = iter(sorted(set(range(StreamWord.FIRST, len(words))) - set(kept.values())))
        self._places = {name: kept.get(name) or next(free) for name in names}
        for sink_queue in self.sink_queues:
            sink_queue.tells = partial(words.__setitem__, self._places[sink_queue.name])
            sink_queue.tells(sink_queue.counters().delivered)

    def exchange(self, config: StreamConfig, chained: Chained | None = None) -> None:
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
            running[sink] = make_queue(config, cast(QueuedSinkConfig, sink), self._folders)
            running[sink].since = None
        for sink in change.removed:
            self._progress.forget(sink.name)
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
        """The books at this moment; the sinks' side is read before the device's."""
        sides = [SinkSnapshot.of(sink_queue) for sink_queue in self.sink_queues]
        capturer, clock, audio = self.capturer, self.clock, self.config.capture.audio
        count = capturer.tally.count()
        assessment, meter = self.assessment(now_ns), self.pusher.meter
        params = capturer.last_params
        return StreamStats(
            name=self.name,
            health=assessment.health,
            trouble=assessment.reason,
            device=params.device if params and capturer.params else self.config.capture.wanted,
            format=audio.sample.alsa_name,
            rate_hz=audio.rate_hz,
            channels=audio.channels,
            produced_frames=count.produced,
            captured_frames=count.captured,
            lost_frames=count.lost_exact + count.lost_estimated,
            lost_exact=bool(params and params.exact) and count.lost_estimated == 0,
            lost_estimated_frames=count.lost_estimated,
            gaps=count.gaps,
            restarts=capturer.restarts,
            opens=capturer.opens,
            zeros_s=round(meter.zeros_s, 1) if meter else 0.0,
            drift_ppm=round(clock.drift_ppm, 2) if clock.started else None,
            drift_settled=clock.settled,
            level_dbfs=meter.level_dbfs if meter else None,
            peak_dbfs=meter.peak_dbfs if meter else None,
            captured_at_ns=capturer.captured_at_ns,
            sinks=tuple(side.stats(count.captured, audio.rate_hz, now_ns) for side in sides),
            released=capturer.released,
            ring_dropped_frames=self.pusher.missed,
            notice=self.notice(now_ns),
            channel_levels=self.meters.channel_levels(),
            loudness=self.meters.loudness_figures(),
            device_lost_ms_last_hour=round(
                self.bus.look(capturer.tally.lost_by_device, now_ns)[0], 1
            ),
            simulated=SOURCES.of(self.config.capture.device).simulated,
            controls=self._controls(),
        )

    def _controls(self) -> dict[str, dict[str, str | None]] | None:
        """Those of the card that are set by the configuration."""
        if not self.config.capture.controls or not isinstance(self.source, Adjustable):
            return None
        return {one.name: one.as_json() for one in self.source.controls}

    def _controls_fault(self) -> str | None:
        faults = {name: one["fault"] for name, one in (self._controls() or {}).items()}
        wrong = [name for name, fault in faults.items() if fault]
        if not wrong:
            return None
        more = f" (and {len(wrong) - 1} more controls)" if len(wrong) > 1 else ""
        return clean.line(f"control {wrong[0]}: {faults[wrong[0]]}", LONGEST_NOTICE) + more

    def report(self, now_ns: int) -> Report:
        """The books, how all is, and what has happened since the last report."""
        stats, capturer = self.stats(now_ns), self.capturer
        table, before = capturer.tally.gaps, self._gaps_told
        self._gaps_told = stats.gaps
        left, self._left = self._left, []
        return Report(
            stats=stats,
            granted=_granted(capturer.last_params),
            trouble=str(capturer.trouble) if capturer.trouble else None,
            restarted=capturer.restarted,
            refusals=tuple(self.refusals()),
            short_buffer=self.short_buffer(),
            only_zeros=self.only_zeros(),
            wrong_rate=self.wrong_rate(),
            defects=tuple(self.meters.defects()),
            concerns={sink_queue.name: sink_queue.concern for sink_queue in self.sink_queues},
            gaps=tuple(table.since(before, stats.gaps)) if stats.gaps != before else (),
            events=tuple(events_of(self.sink_queues)),
            left=tuple(left),
            view=self.view(now_ns),
            words=self._places,
        )

    def notice(self, now_ns: int) -> str | None:
        """What a person should know of the open card: what its grant lacks, and for a minute that
        it is another one than before; and which of its controls could not be set."""
        params = self.capturer.params
        if params is None:
            return None
        if params.successor != self._successor[0]:
            self._successor = params.successor, now_ns
        successor, since_ns = self._successor
        new = successor if now_ns - since_ns < MINUTE_NS else None
        told = self.short_buffer(), new, self.meters.unmeasured, self._controls_fault()
        return "; ".join(filter(None, told)) or None

    def short_buffer(self) -> str | None:
        """What it means that the open card granted a shorter buffer."""
        params, capture = self.capturer.params, self.config.capture
        if params is None or 2 * params.buffer_frames >= capture.buffer_frames:
            return None
        granted_ms = params.buffer_frames * 1000 / capture.rate_hz
        return (
            f"the card's buffer is {granted_ms:.3g} ms, not {capture.buffer_ms:g}; a busy machine "
            "loses frames sooner"
        )

    def assessment(self, now_ns: int) -> Assessment:
        return assess(self.view(now_ns))

    def view(self, now_ns: int) -> View:
        """What its health is judged by."""
        capturer, count = self.capturer, self.capturer.tally.count()
        trouble = capturer.trouble
        pushers = [one for one in (self.pusher, self.processed_pusher) if one is not None]
        waiting = count.captured - self.pusher.captured
        if now_ns - self._looked_ns > AWAY_NS:
            self._back_ns = now_ns
        self._looked_ns = now_ns
        here_ns = now_ns - self._back_ns
        defects = "; ".join(one.message for one in self.meters.defects()) or None
        bad_bus = self.bus.concern(capturer.tally.lost_by_device, now_ns)
        return View(
            open=capturer.params is not None,
            trouble=str(trouble) if trouble else None,
            refused=bool(trouble and trouble.refused),
            frames=count.captured,
            silent_ns=min(here_ns, now_ns - capturer.last_frame_ns),
            unseen_ns=min(here_ns, now_ns - capturer.seen_ns - round(capturer.pause_s * NS_PER_S)),
            push_still_ns=min(
                here_ns,
                max(
                    self._progress.still("push", self.pusher.captured, waiting > 0, now_ns),
                    self._second_still_ns(now_ns),
                ),
            ),
            loss_age_ns=self._progress.age(
                "loss",
                count.lost_exact + count.lost_estimated + sum(pusher.missed for pusher in pushers),
                now_ns,
            ),
            sinks=tuple(self._progress.view(sink_queue, now_ns) for sink_queue in self.sink_queues),
            stall_timeout_ns=capturer.stall_timeout_ns,
            concern=self.wrong_rate() or bad_bus or self.only_zeros() or defects,
            released=capturer.released,
        )

    def _second_still_ns(self, now_ns: int) -> int:
        pusher = self.processed_pusher
        if pusher is None:
            return 0
        return self._progress.still("push-processed", pusher.captured, pusher.waiting > 0, now_ns)

    def wrong_rate(self) -> str | None:
        """What to do about a card that runs at another rate than it says."""
        rate_hz = self.capturer.true_rate.rate_hz
        return None if rate_hz is None else describe_rate(self.config.capture.rate_hz, rate_hz)

    def start_meter(self) -> None:
        """Once sound flows."""
        if self.pusher.meter is None:
            self.pusher.meter = self.meters.load()

    def only_zeros(self) -> str | None:
        """What to look at when nothing but zeros has come for ``silence_warn_s``."""
        limit_s, meter = self.config.capture.silence_warn_s, self.pusher.meter
        if not limit_s or meter is None or meter.zeros_s < limit_s:
            return None
        return (
            f"only zeros for {span(meter.zeros_s)}: is the microphone muted, or the cable "
            "unplugged?"
        )

    def refusals(self) -> list[str]:
        return [text for text in (self.capturer.refusal, self.pusher.refusal) if text]

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


def _granted(params: NegotiatedParams | None) -> Granted | None:
    if params is None:
        return None
    audio, lengths = params.format, (params.period_frames, params.buffer_frames)
    return Granted(
        params.device, str(audio), audio.rate_hz, *lengths, params.exact, params.successor
    )


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
