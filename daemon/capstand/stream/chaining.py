"""The chain of a stream, seen from main: the processed ring, and the process that writes it.

    process of the stream → captured ring → process of the chain → processed ring → sinks
                                            (``processing/run.py``)

Main keeps the processed ring, as it keeps the captured one: the process may end at any time, and
the next one goes on where the ring ends, from what the captured one still holds.

Where one live sink alone gets what comes out, the chain begins in that sink's process, its ``host``
(``processing/hosted.py``). It leaves it for good, for a process of its own, when others want that
sound, when the sink is taken out, or when a process ended while it processed. While the host is
away nothing is processed, as nobody would hear it.

Thread: main.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from capstand.audio.block import NS_PER_S
from capstand.audio.ring import Reader, Ring
from capstand.audio.wake import WakeUp
from capstand.config.plan import GATHER_MS, LIVE_GATHER_MS, chain_pace
from capstand.config.schema import LARGEST_PERIOD, MOST_RING_BYTES, RING_S, StreamConfig
from capstand.host import realtime
from capstand.host.backoff import Backoff
from capstand.host.starved import waited_for_cpu_ns
from capstand.processes.child import Task
from capstand.processes.page import DOING, Doing
from capstand.processes.supervisor import LIMITS_S, ProcessState, Supervisor
from capstand.processing.orders import Finish, Set, SidechainFormat, Word, Work
from capstand.sinks.live import Hosting, LiveSink

SILENT_NS = 9 * NS_PER_S // 10
"""Its process shows itself four times a second; for so long it may not. With the looks that it
takes to see that, less than the captured ring holds, so that another one misses nothing."""
MOST_LOOK_NS = 6 * NS_PER_S // 10
"""Between two looks; what is longer says something of us, or of the machine."""
RESTART_S = (0.02, 5.0)
"""The captured ring holds two seconds: who is back within them has missed nothing."""
HAND_OVER_S = 0.2
"""So long main waits for a host to write no more; else the next look finds out."""
PROCESSING = "processing: "
"""So begins what main says of the process itself."""
MODULES = ("capstand.processing.run",)


class Heard(Protocol):
    """A stream, as far as its sound is concerned."""

    name: str
    config: StreamConfig

    def ring_of(self, input_: str) -> Ring: ...
    def tapped(self, input_: str) -> Ring: ...


class Chaining:
    """What ``config`` says of processors; ``captured`` is the stream's ring."""

    def __init__(self, config: StreamConfig, captured: Ring) -> None:
        capture, rate_hz = config.capture, config.capture.rate_hz
        self.audio = config.processed_audio
        gather_frames = GATHER_MS * rate_hz // 1000
        slot_bytes = (gather_frames + LARGEST_PERIOD * capture.period_frames) * max(
            self.audio.frame_bytes, capture.audio.frame_bytes
        )
        slots = math.ceil(RING_S * 1000 / max(capture.period_ms, LIVE_GATHER_MS / 2))
        self.ring = Ring(max(4, min(slots, MOST_RING_BYTES // slot_bytes)), slot_bytes)
        self.memory = self.ring.open_for_reading()
        self.wake = WakeUp()  # by the captured ring
        self.push, self.told = WakeUp(), WakeUp()  # by this one, for the stream's process
        self._captured = captured.open_for_reading()
        self._source = Reader(self._captured, capture.audio)
        if self._source.captured:
            self._ends_here()  # what was captured before is not meant for it
        self._present = Reader(self.memory, self.audio)
        self._sidechains: dict[str, _Sidechain] = {}
        gather_frames = chain_pace(config).gather_frames
        priority = realtime.lower_priority(capture.rt_priority, 10)
        work = Work(
            *(config.process, capture.audio, self.ring.slots, slot_bytes),
            *(gather_frames, priority),
        )
        minder = realtime.lower_priority(capture.rt_priority, 9)
        fields = {"STREAM": config.name}
        task = Task("capstand.processing.run:run", (work,), fields, f"chain:{config.name}", minder)
        self.process = Supervisor(task, (), LIMITS_S, Backoff(*RESTART_S), MODULES)
        self._work = work
        self.host: LiveSink | None = None
        self._host_before: LiveSink | None = None  # that may still write
        self._leaves = False
        self._tapped = False
        self._moved = self._present.captured
        self._silent_ns = 0
        self._seen = (0, 0, -1)  # what it showed at the last look, when, how long it had waited

    def wakes(self, live: Sequence[WakeUp]) -> None:
        """The live sinks that read the processed ring; before the process begins."""
        given = self._captured, self.ring.descriptor, self.wake.fileno()
        self.process.descriptors = (*given, *self._given(live))

    def hosting(self) -> Hosting | None:
        """For a live sink that may host it; None where it has a process of its own."""
        if self.process.running or self._leaves:
            return None
        wake, told = self.wake.fileno(), self.told.fileno()
        given = wake, self._captured, self.ring.descriptor, told
        return Hosting(self._work, self._captured, given)

    def hosted_by(self, host: LiveSink) -> None:
        """From that one's start on."""
        self._host_before, self.host = self.host, host

    def holds_back(self, sink: LiveSink) -> bool:
        """Whether another sink still writes what this one would."""
        return sink is self.host and self._host_before is not None and self._host_before.hosts

    @property
    def is_hosted(self) -> bool:
        """Whether it needs no looks of its own: its host's are enough."""
        return self.host is not None and not self._leaves

    def tapped(self) -> None:
        """Somebody listens: it does not stay with a host that is away."""
        self._tapped = True

    def move_out(self, host_stays: bool) -> None:
        """To a process of its own, which begins once the host writes no more; a host that does not
        stay ends by itself."""
        host = self.host
        if host is None or self._leaves:
            return
        self._leaves = True
        if host_stays:
            host.unhost()
            deadline = time.monotonic() + HAND_OVER_S
            while host.hosts and time.monotonic() < deadline:
                time.sleep(0.002)
        self._take_over()

    def _take_over(self) -> None:
        if self.host is not None and not self.host.hosts:
            self.host = None
            if self._has_lost_its_place():
                self._ends_here()

    def _has_lost_its_place(self) -> bool:
        """Whether the captured ring no longer holds what comes next: its host was away for long.
        Nobody was to hear that, so who comes now has not missed it."""
        source = self._source
        source.go_back(self.captured)
        missed = source.missed
        source.read()
        lost = source.missed > missed
        source.join()
        return lost

    def _look_at(self, host: LiveSink) -> None:
        away = not host.process.running
        if away and (host.died_processing or self._tapped) and not self._leaves:
            if host.died_processing:
                self.process.page.words[Word.TRIES] += 1
            self.move_out(host_stays=True)
        elif self._leaves:
            self._take_over()

    def set(
        self, config: StreamConfig, live: Sequence[WakeUp], others: Mapping[str, Heard]
    ) -> None:
        """Other settings, live sinks, or streams to listen to, for the same kind of sound."""
        self._listen_to(frozenset(config.sidechains.values()), others)
        sidechains = tuple(one.format for one in self._sidechains.values())
        order = Set(config.process, chain_pace(config).gather_frames, sidechains)
        self._work = self._work._replace(**order._asdict())
        self.process.task = self.process.task._replace(arguments=(self._work,))
        self.wakes(live)
        if self.host is None:
            self.process.order(order, self._given(live))
        elif not self._leaves and (hosting := self.hosting()) is not None:
            self.host.host(hosting)
            self.host.process.order(order)

    def _listen_to(self, names: frozenset[str], others: Mapping[str, Heard]) -> None:
        """One that is not among the others is the one that it was."""
        for name in names & others.keys():
            before, heard = self._sidechains.get(name), others[name]
            if before is None or before.ring is not heard.ring_of("captured"):
                self._sidechains[name] = _Sidechain(heard)
                if before is not None:
                    before.close()
        for name in self._sidechains.keys() - names:
            self._sidechains.pop(name).close()

    def poll(self, now_ns: int) -> None:
        if self.host is not None:
            self._look_at(self.host)
            return
        self.process.poll(now_ns)
        self._present.join()
        if self._present.captured != self._moved:
            self._moved = self._present.captured
            self.process.well()
        if self.process.running and self._is_silent(now_ns):
            self.process.kill(now_ns, "its process showed no sign of life for 1 s and was killed")

    def _is_silent(self, now_ns: int) -> bool:
        """Whether it hangs: not where the machine gives it, or us, no time."""
        shown, (before, looked_ns, waited_ns) = self.process.page.words[DOING], self._seen
        if shown != before or shown & 7 != Doing.WAITING:
            self._silent_ns, self._seen = 0, (shown, now_ns, -1)
            return False
        now_waited_ns = waited_for_cpu_ns(self.process.pid)
        if waited_ns >= 0:
            passed_ns = min(now_ns - looked_ns, MOST_LOOK_NS) - (now_waited_ns - waited_ns)
            self._silent_ns += max(0, passed_ns)
        self._seen = shown, now_ns, now_waited_ns
        return self._silent_ns > SILENT_NS

    @property
    def captured(self) -> int:
        """How much of what was captured has come through, or was missed."""
        self._present.join()
        return self._present.captured

    @property
    def concern(self) -> str | None:
        """Why sound is not processed as it should be."""
        if self.host is not None:
            concern = self.host.chain_figures.get("concern")
            return None if concern is None else str(concern)
        if self.process.trouble is not None:
            return f"{PROCESSING}{self.process.trouble}"
        return self.process.concern

    def figures(self) -> dict[str, object]:
        """For ``capstand status --json``."""
        process, host = self.process, self.host
        if host is not None:
            told, missed = host.chain_figures, host.chain_figures.get("missed_frames", 0)
        else:
            told, missed = process.figures, process.page.words[Word.MISSED]
        return {
            "host": None if host is None else host.name,
            "pid": (process if host is None else host.process).pid,
            "restarts": process.deaths,
            "trouble": process.trouble,
            "missed_frames": missed,
            "delay_ms": told.get("delay_ms"),
            "stages": told.get("stages", []),
        }

    def finish(self) -> None:
        """Nothing more is captured: what is in the captured ring is processed, and it ends; a host
        does so when it is told to finish."""
        self._source.join()
        self.process.stop(Finish(self._source.number))

    def leave(self) -> None:
        """It is wanted no more, nor is what it has not processed."""
        self.process.stop(Finish(0))

    def over(self, deadline: float = 0.0) -> bool:
        """Whether it has ended by then (time.monotonic)."""
        return not (self.host and self.host.hosts) and self.process.join(deadline)

    def end(self, deadline: float) -> bool:
        """Waits for that; what it has not processed by then is missed by all sinks. False: it had
        to be ended."""
        if self.host is not None:
            return True
        ended = self.over(deadline)
        if not ended:
            self.process.abandon()
        self._source.join()
        if self.captured < self._source.captured:
            self._ends_here()
            self.push.set()
        return ended

    def close(self) -> None:
        """Gives back what it took of the system; its process has ended."""
        if self.process.state is not ProcessState.ENDED:
            self.process.abandon()
        self.process.close()
        self._present.close()
        self._source.close()
        self._listen_to(frozenset(), {})
        self.ring.close()
        os.close(self.memory)
        os.close(self._captured)

    def _given(self, live: Sequence[WakeUp]) -> list[int]:
        """The descriptors of a Set."""
        sidechains = [one.descriptor for one in self._sidechains.values()]
        return [*sidechains, *(one.fileno() for one in (self.told, self.push, *live))]

    def _ends_here(self) -> None:
        """Says to the processed ring's readers that they have missed what has been captured."""
        source = self._source
        last = Ring(self.ring.slots, self.ring.slot_bytes, os.dup(self.ring.descriptor))
        last.publish(source.next_frame, 0, source.due_ns, source.captured, source)
        last.close()


class _Sidechain:
    """What the chain's process is given of a stream; the descriptor is our own, so that the next
    process can be given it whatever has become of that stream."""

    def __init__(self, heard: Heard) -> None:
        capture = heard.config.capture
        self.format = SidechainFormat(heard.name, capture.audio, capture.period_ms)
        self.ring = heard.ring_of("captured")
        self.descriptor = self.ring.open_for_reading()

    def close(self) -> None:
        os.close(self.descriptor)
