"""A stream, seen from main: the process that takes its sound in, and its live sinks.

    process of the stream: card → Intake → ring (main's memory) and files
    process of a live sink:                  ├→ push
    process of the chain:                    └→ processors → processed ring, and likewise from there

What the processes say of themselves is checked before it is believed. The ring outlasts the process
that writes it: where that one ends before its time, hangs, or a thread in it stands still, another
goes on with the frame index, the clock and the books, and what is missing is a gap.

Thread: main; but ``release``, ``resume`` and ``rests`` any, ``drain`` and ``close`` of a stream
that a reload ends by one that waits for it.
"""

import os
import time
from collections.abc import Mapping, Sequence
from itertools import chain as joined
from pathlib import Path

from capstand.accounting.stats import Gap, Health, StreamStats
from capstand.audio.block import NS_PER_S
from capstand.audio.ring import Reader, Ring
from capstand.audio.wake import WakeUp
from capstand.config.plan import host_of, same_capture, same_chain, sink_plan
from capstand.config.registry import SINKS, SOURCES, SinkContext, describe_failure
from capstand.config.schema import SinkConfig, StreamConfig
from capstand.host import realtime
from capstand.host.backoff import Backoff
from capstand.processes.child import Task
from capstand.processes.page import CALLS, DOING, Doing
from capstand.processes.supervisor import LIMITS_S, ProcessState, Supervisor
from capstand.sinks.live import LiveSink, SinkFactory
from capstand.stream.blank import BLANK, blank_report
from capstand.stream.chaining import Chaining, Heard
from capstand.stream.handover import (
    ABANDON_S,
    LEAVE_S,
    ProgressTracker,
    RemovedSink,
    SinkSnapshot,
    events_of,
)
from capstand.stream.health import Assessment, assess
from capstand.stream.orders import End, Exchange, Processed, Release, Resume, RetryNow, Stop
from capstand.stream.parting import Parting, brought_up_to_date, places, without
from capstand.stream.report import (
    DISK_S,
    RUNTIME,
    STATE,
    LastReport,
    Phase,
    Report,
    ResumePoint,
    SinkEvent,
    StreamWord,
    word_places,
)
from capstand.stream.trial_open import TrialOpen
from capstand.text import clean, typed

MOST_VALUES = 20_000
"""Of a report."""
LIVE_GATHER_MS = 10
MOST_GATHER_MS = 100
LIMITS = LIMITS_S | {Doing.CLOSING: 30.0}
AGAIN_S = (0.2, 2.0)
"""However often a library has ended it, it is back soon after the device is well."""
TRY_AFTER_NS = 2 * NS_PER_S
"""So long may opening keep the whole process from showing itself before another one tries it."""
MODULES = ("capstand.stream.worker",)


class Stream:
    """One configured stream; ``state`` is the directory for what has to be kept, ``runtime`` that
    for sockets."""

    def __init__(self, config: StreamConfig, state: Path = STATE, runtime: Path = RUNTIME) -> None:
        capture = config.capture
        self.config = config
        self.name = config.name
        self._state, self._runtime = state, runtime
        self.ring = Ring(capture.ring_slots, capture.slot_bytes)
        self._memory = self.ring.open_for_reading()
        self._present = Reader(self._memory, capture.audio)
        self._published = 0  # when it was asked whether it is calm
        self._chain = Chaining(config, self.ring) if config.process else None
        self._former: list[Chaining] = []  # that are to end
        self._others: Mapping[str, Heard] = {}
        self._live = {one: self._live_sink(one) for one in config.sink if _is_live(one)}
        self._leaving: list[RemovedSink] = []  # live ones
        self._parting = Parting()  # the others
        self._given_up: list[str] = []
        self._released: dict[str, str] = {}
        self._ordered = 0
        self._past: ResumePoint | None = None
        self._runs = {one.name: os.urandom(8) for one in config.queued}
        self._deaths = 0
        self._trial: TrialOpen | None = None
        self._progress = ProgressTracker()
        self._report: Report | None = None
        self._gaps: list[Gap] = []
        self._events: list[SinkEvent] = []
        self._left: list[LastReport] = []
        modules = _modules(config)
        again = Backoff(*AGAIN_S)
        self.process = Supervisor(self._task(), (), LIMITS, again, modules, self._hear)
        self._give()

    @property
    def live(self) -> list[LiveSink]:
        return list(self._live.values())

    def ring_of(self, input_: str) -> Ring:
        """Of "captured" or, where there is a chain, "processed" sound."""
        return self._chain.ring if self._chain and input_ == "processed" else self.ring

    def tapped(self, input_: str) -> Ring:
        """The same for one who listens, of whom nothing else will be known."""
        if self._chain is not None and input_ == "processed":
            self._chain.tapped()
        return self.ring_of(input_)

    # Its life

    def start(self) -> None:
        for one in self._live.values():
            one.start(self.name)
        self._poll(time.monotonic_ns())

    def _poll(self, now_ns: int) -> None:
        process = self.process
        process.poll(now_ns)
        if (
            process.state is ProcessState.RUNNING
            and self._assessment(now_ns).health is Health.STALLED
        ):
            process.kill(now_ns, f"{self._assessment(now_ns).reason}; its process was ended")
        self._detect_hung_open(now_ns)
        if process.deaths != self._deaths:
            self._deaths = process.deaths
            self._died()
        if self._parting.unheard:
            self._left += self._parting.end(process.page.words, self._present.captured)
        chain = self._chain
        for one in self._live.values():
            if chain is None or not chain.holds_back(one):
                one.poll(now_ns)
        if chain is not None:
            chain.poll(now_ns)
        for former in self._former:
            former.poll(now_ns)
        self._let_chains_go()

    def _let_chains_go(self) -> None:
        for one in [one for one in self._former if one.over()]:
            self._former.remove(one)
            one.close()

    def _detect_hung_open(self, now_ns: int) -> None:
        process = self.process
        silent_ns = now_ns - (process.page.words[DOING] >> 3)
        hangs = process.running and silent_ns > TRY_AFTER_NS and not self._last.view.open
        if not hangs:
            if self._trial is not None:
                self._trial.close()
                self._trial = None
        elif self._trial is None:
            self._trial = TrialOpen(self.config, _modules(self.config))
        elif self._trial.succeeds(now_ns):
            process.kill(now_ns, "its process hung while opening the device")

    def retry_now(self) -> None:
        """A sound device came or went: what waits for one tries again at once."""
        self._order(RetryNow())

    def release(self, who: str, words: str) -> None:
        """``who`` gets the device, which is closed once it ``rests``. Any thread."""
        self._released[who] = words
        self._give()
        self._order(Release(who, words))

    def resume(self, who: str) -> None:
        """``who`` gives it back. Any thread."""
        if self._released.pop(who, None) is not None:
            self._give()
            self._order(Resume(who))

    def is_released_to(self, who: str) -> bool:
        return who in self._released

    @property
    def rests(self) -> bool:
        """Whether the device is closed because it was released."""
        if not self.process.running:
            return True
        return self.process.page.words[StreamWord.RESTS] == self._ordered

    def exchange(self, config: StreamConfig) -> None:
        """Other sinks for the same capture, or settings of the card's controls, while sound flows:
        the device, the clock and the frame index go on. An added sink opens when a removed one has
        left its place."""
        assert same_capture(self.config, config)
        change, before = sink_plan(self.config, config), self.config
        gone = [one for one in change.removed if not _is_live(one)]
        come = [one for one in change.added if not _is_live(one)]
        self._report = self._parting.begin(gone, come, self.stats(time.monotonic_ns()), self._last)
        if self._past is not None:  # a process is still to begin
            stats = self._past.stats
            stats = stats._replace(sinks=without(self._parting.sinks, stats.sinks))
            self._past = self._past._replace(stats=stats)
        parted = {one: self._live.pop(one) for one in change.removed if _is_live(one)}
        self.config = config
        if not same_chain(before, config):
            if self._chain is not None:
                self._chain.leave()
                self._former.append(self._chain)
            self._chain = Chaining(config, self.ring) if config.process else None
        added = {one: self._live_sink(one) for one in change.added if _is_live(one)}
        self._live = {one: (self._live | added)[one] for one in config.sink if _is_live(one)}
        self._settle_chain()
        self._leaving += map(RemovedSink, parted.values())
        for one in change.removed:
            self._progress.forget(one.name)
            self._runs.pop(one.name, None)
        for one in config.queued:
            self._runs.setdefault(one.name, os.urandom(8))
        self._give()
        order = Exchange(config, self._gathers(), dict(self._runs))
        given = [*self._chained(), *map(WakeUp.fileno, self._live_wakes("captured"))]
        number = self._ordered + 1
        self._parting.ordered(number, heard=self._order(order, given))
        if self._chain is not None:
            self._chain.set(config, self._live_wakes("processed"), self._others)
        for feed in parted.values():
            feed.finish()
        for sink, feed in added.items():
            after = [parted[one] for one in change.before(sink) if one in parted]
            feed.start(self.name, after, LEAVE_S)
        if self._chain is not None:
            self._chain.poll(time.monotonic_ns())  # at once: its live sinks wait

    def _settle_chain(self) -> None:
        """It has a process of its own where its host is none any more."""
        chain, host = self._chain, self._chain.host if self._chain else None
        if chain is None or host is None:
            return
        stays = host in self._live.values()
        if not stays or host.name != host_of(self.config):
            chain.move_out(host_stays=stays)

    def listen_to(self, streams: Sequence[Heard]) -> None:
        """All streams that there are: its processors may listen to any; before it starts, and
        before an ``exchange``."""
        self._others = {one.name: one for one in streams}
        if self._chain is not None and self.config.sidechains:
            self._chain.set(self.config, self._live_wakes("processed"), self._others)

    @property
    def leaving(self) -> list[str]:
        """The sinks that were taken out and have not ended."""
        return [one.name for one in self._leaving] + list(self._parting.sinks)

    def reap_removed(self, deadline: float | None = None) -> list[str]:
        """The removed sinks that have ended, or are given up, are in the next report; names those
        that were given up."""
        over = [one for one in self._leaving if one.over(deadline)]
        if over:
            self._leaving = [one for one in self._leaving if one not in over]
            self._present.join()
            captured, rate_hz = self._present.captured, self.config.capture.rate_hz
            self._left += [one.last_word(captured, rate_hz) for one in over]
        hung, self._given_up = self._given_up, []
        return hung + [one.name for one in over if one.hung]

    def stop(self) -> None:
        """The device is wanted no more; ``drain`` waits for that."""
        self._order(Stop())

    def drain(self, deadline: float) -> list[str]:
        """Stops the device and empties the ring, until ``deadline`` (time.monotonic); the sinks
        are told that nothing follows. Names what hung."""
        self.process.stop(End(max(0.0, deadline - time.monotonic())))
        self._wait(Phase.DRAINED, deadline + ABANDON_S)
        hung = []
        if self._chain is not None:
            self._chain.finish()
            if not self._chain.end(deadline + ABANDON_S):
                hung.append("its processors")
            self.process.order(Processed())
        for one in self._live.values():
            one.finish()
        return hung

    def close(self, deadline: float) -> list[str]:
        """Waits for the sinks to take what they have and to close, for a disk ``DISK_S`` longer;
        names those that hung."""
        live = list(self._live.values())
        hung = [one for one in live if not one.join(deadline)]
        for one in hung:
            one.force_close()
        names = [f"sink {one.name}" for one in hung]
        self._wait(Phase.ENDED, deadline + DISK_S + 2 * ABANDON_S)
        if self.process.join(time.monotonic() + ABANDON_S):
            return names + list(self._report.hung if self._report else ())
        self.process.abandon()
        return [*names, "its process"]

    def dispose(self) -> None:
        """Gives back what it took of the system; its processes have ended."""
        for one in self._live.values():
            one.close()
        if self._trial is not None:
            self._trial.close()
        self.process.close()
        for chain in [*self._former, *([self._chain] if self._chain else [])]:
            chain.close()
        self._former, self._chain = [], None
        self._present.close()
        self.ring.close()
        os.close(self._memory)

    # What a person sees

    def report(self, now_ns: int) -> Report:
        """Main's turn: looks after the processes; the books, how all is, and what has happened
        since the last report."""
        self._poll(now_ns)
        stats, last = self.stats(now_ns), self._last
        gaps, self._gaps = self._gaps, []
        events, self._events = self._events, []
        left, self._left = self._left, []
        live = self._live.values()
        return last._replace(
            stats=stats,
            trouble=self._trouble,
            processing=self._chain.concern if self._chain else None,
            concerns=last.concerns | {one.name: one.concern for one in live},
            gaps=tuple(gaps),
            events=(*events, *events_of(live)),
            left=tuple(left),
        )

    def is_calm(self) -> bool:
        """Whether the next report can wait: sound flows, and no process has called."""
        before, self._published = self._published, self._present.published
        return (
            self._published != before
            and self.process.is_calm
            and (self._chain is None or self._chain.is_hosted)
            and not (self._leaving or self._parting.sinks or self._former or self._released)
            and all(one.is_calm() for one in self._live.values())
        )

    def stats(self, now_ns: int) -> StreamStats:
        """The books at this moment; the live sinks' side is read before the ring's, which is newer
        than what the stream's process told last."""
        sides = {one.name: SinkSnapshot.of(one) for one in self._live.values()}
        delivered = self._words(0)
        present, base = self._present, self._last.stats
        present.join()
        captured, produced = present.captured, present.next_frame
        if produced < base.produced_frames:  # frames that were lost and followed by none yet
            captured, produced = base.captured_frames, base.produced_frames
        rate_hz = self.config.capture.rate_hz
        assessment = self._assessment(now_ns)
        since = captured - base.captured_frames
        sinks = {
            sink.name: brought_up_to_date(sink, since, delivered.get(sink.name))
            for sink in base.sinks
        }
        sinks |= {name: one.stats(captured, rate_hz, now_ns) for name, one in sides.items()}
        return base._replace(
            health=assessment.health,
            trouble=assessment.reason,
            produced_frames=produced,
            captured_frames=captured,
            lost_frames=produced - captured,
            sinks=tuple(sinks[one.name] for one in self.config.sink if one.name in sinks),
            released=next(iter(self._released.values()), None),
            pid=self.process.pid,
            process=self._chain.figures() if self._chain else None,
        )

    @property
    def _trouble(self) -> str | None:
        return self.process.trouble or self._last.trouble

    def _assessment(self, now_ns: int) -> Assessment:
        view = self._last.view
        live = tuple(self._progress.view(one, now_ns) for one in self._live.values())
        names = {one.name for one in self.config.sink}
        kept = tuple(sink for sink in view.sinks if sink.name in names)
        if self.process.trouble:
            view = BLANK._replace(frames=view.frames, trouble=self.process.trouble)
        chain = self._chain.concern if self._chain else None
        return assess(view._replace(sinks=kept + live, concern=view.concern or chain))

    # Inside

    @property
    def _last(self) -> Report:
        return self._report or blank_report(self.config)

    def _order(self, order: object, descriptors: Sequence[int] = ()) -> bool:
        """Whether there is a process to obey it."""
        sent = self.process.order(order, descriptors)
        self._ordered += sent
        return sent

    def _readers(self, input_: str) -> list[LiveSink]:
        """The live sinks that get this sound, and those that leave, as it may be theirs."""
        leaving = [one.feed for one in self._leaving if isinstance(one.feed, LiveSink)]
        on = self.config.on(input_).sink
        return [*(feed for sink, feed in self._live.items() if sink in on), *leaving]

    def _live_wakes(self, input_: str) -> list[WakeUp]:
        return [one.wake for one in self._readers(input_)]

    def _gathers(self) -> tuple[int, ...]:
        """Of an ``Exchange``."""
        return tuple(one.gather_frames for one in self._readers("captured"))

    def _chained(self) -> list[int]:
        """Of an ``intake.Chained``."""
        chain = self._chain
        if chain is None:
            return []
        return [chain.memory, *(one.fileno() for one in (chain.wake, chain.push, chain.told))]

    def _task(self) -> Task:
        folders = self._state, self._runtime
        released, runs = dict(self._released), dict(self._runs)
        arguments = self.config, *folders, self._past, released, self._gathers(), runs
        name = f"stream:{self.name}"
        return Task("capstand.stream.worker:run", arguments, {"STREAM": self.name}, name, 0)

    def _give(self) -> None:
        """What the next process is to do."""
        self.process.task = self._task()
        given = self.ring.descriptor, *self._chained()
        self.process.descriptors = *given, *map(WakeUp.fileno, self._live_wakes("captured"))
        if self._chain is not None:
            self._chain.wakes(self._live_wakes("processed"))

    def _hear(self, raw: bytes) -> None:
        """Raises ValueError for what cannot be."""
        report = typed.convert(clean.tree(clean.parsed(raw), MOST_VALUES), Report)
        if report.stats.name != self.name or not report.stats.balanced:
            raise ValueError(report)
        self._report = self._parting.as_ordered(report, self._last)
        self._gaps += report.gaps
        self._events += report.events
        self._left += report.left
        for one in report.left:
            self._parting.left(one.sink.name)
            if one.hung:
                self._given_up.append(one.sink.name)
        self.process.trouble = report.failed
        if report.stats.captured_frames:
            self.process.well()

    def _died(self) -> None:
        """Another one goes on from here."""
        present, self._ordered, kept = self._present, 0, self._words(1)
        present.join()
        words = self.process.page.words
        self._left += self._parting.end(words, present.captured)
        words[StreamWord.RESTS] = 0
        for at in range(StreamWord.FIRST, CALLS):
            words[at] = 0
        place = present.captured, present.next_frame, present.due_ns, present.ns_per_frame
        stats = self._last.stats
        since = max(0, present.captured - stats.captured_frames)
        sinks = [brought_up_to_date(one, since, kept.get(one.name)) for one in stats.sinks]
        stats = self._with_untold_gaps()._replace(sinks=tuple(sinks))
        fresh = word_places([one.name for one in self.config.queued], {})
        self._report = self._last._replace(phase=Phase.RUNNING, stats=stats, words=fresh)
        self._past = ResumePoint(stats, *place)
        self._give()

    def _with_untold_gaps(self) -> StreamStats:
        """The device's side of the books as of the ring's newest block. What was lost and is in no
        report is in the next one."""
        present, stats = self._present, self._last.stats
        captured, produced = present.captured, present.next_frame
        if captured < stats.captured_frames or produced < stats.produced_frames:
            return stats  # lost, and followed by no block
        missing = present.missing(stats.captured_frames, stats.produced_frames)
        gaps = [Gap.from_code(*one) for one in missing]
        self._gaps += gaps
        estimated = sum(one.frames for one in gaps if not one.exact)
        return stats._replace(
            produced_frames=produced,
            captured_frames=captured,
            lost_frames=produced - captured,
            lost_estimated_frames=stats.lost_estimated_frames + estimated,
            lost_exact=stats.lost_exact and not estimated,
            gaps=stats.gaps + len(gaps),
        )

    def _words(self, which: int) -> dict[str, int]:
        """What the page says of each sink, which its process may write wrongly."""
        words = self.process.page.words
        return {name: words[at + which] for name, at in places(self._last).items()}

    def _wait(self, phase: Phase, deadline: float) -> None:
        """Until it is so far, or has ended."""
        while self.process.running and time.monotonic() < deadline:
            self.process.wait(min(0.1, deadline - time.monotonic()))
            self.process.poll(time.monotonic_ns())
            if self._report is not None and self._report.phase >= phase:
                return

    def _live_sink(self, sink: SinkConfig) -> LiveSink:
        capture = self.config.heard_by(sink)
        kind, priority = SINKS[sink.type], realtime.lower_priority(capture.rt_priority, 10)
        try:
            around = SinkContext(self.name, capture, self._state, priority, self._runtime)
            plan: SinkFactory = kind.make(sink, around)
            wanted, most = plan.gather_frames, MOST_GATHER_MS * capture.rate_hz // 1000
            if not (isinstance(wanted, int) and 0 <= wanted <= most):
                raise ValueError(f"gather_frames: {wanted!r} is not 0 to {most}")
            if capture.period_ms < LIVE_GATHER_MS:
                least = LIVE_GATHER_MS * capture.rate_hz // 1000
                plan = plan._replace(gather_frames=max(least, plan.gather_frames))
        except Exception as error:  # noqa: BLE001
            words = f"{describe_failure(kind, error)}, then restart capstand"
            plan = SinkFactory("capstand.sinks.sink:BrokenSink", (words,))
        ring, chain = self.ring_of(self.config.input_of(sink)), self._chain
        hosts = chain is not None and sink.name == host_of(self.config)
        hosting = chain.hosting() if chain is not None and hosts else None
        made = LiveSink(
            *(self.name, sink.name, plan, ring, capture.audio, priority), hosting=hosting
        )
        if chain is not None and hosting is not None:
            chain.hosted_by(made)
        return made


def _modules(config: StreamConfig) -> tuple[str, ...]:
    """What is loaded before its process is forked."""
    sinks = [SINKS[one.type].loads for one in config.queued]
    return (*MODULES, *SOURCES.of(config.capture.device).loads, *joined.from_iterable(sinks))


def _is_live(sink: SinkConfig) -> bool:
    return SINKS[sink.type].live
