"""The inside of a chain's process: it minds the pump, which does all that has to do with sound.

    captured ring → Pump → processed ring     (the thread "chain")
    main          ⇄ minder                    (this one)

What a processor raises is its stage's to catch. One that does not return is found by a timer, which
the pump sets for each block, and whose signal wakes this thread: it leaves that pump to itself, and
another one goes on without a chain, from where the rings say. After a pause, longer each time, it
makes a new chain. One that holds Python's lock keeps this thread from showing itself, and main ends
the process; so it ends of an abort, or of memory. The process after that begins without a chain,
too: ``Word.TRIES`` outlasts it.

Threads: main, which is the minder's; "chain".
"""

import contextlib
import ctypes
import logging
import os
import resource
import select
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

from capstand.audio.block import NS_PER_S
from capstand.audio.wake import WakeUp
from capstand.host import bug, realtime
from capstand.host.logs import log_event
from capstand.processes.child import FAILED, DaemonLink
from capstand.processes.page import Doing
from capstand.processing.chain import Chain, concern_of
from capstand.processing.orders import Finish, Set, SidechainFormat, Word, Work
from capstand.processing.passage import Rings
from capstand.processing.pump import Abandoned, Pump
from capstand.processing.sidechain import Sidechain

TELL_MS = 250
RETRY_S, MOST_RETRY_S = 1.0, 300.0
STEADY_NS = 60 * NS_PER_S
"""A chain that has worked for so long is tried again soon, should it fail once more."""
RETURN_NS = 10 * NS_PER_S
"""A thread that has not come back by then does not come back."""
MOST_BYTES = 1 << 30
"""Of memory, beyond what the process has when it begins: more fails in the processor that wants
it."""
OOM_SCORE = "500"
HANGS = "did not return within 50 ms"


def run(line: DaemonLink, descriptors: tuple[int, ...], work: Work) -> int:
    """Does the work of a Task; returns the process' status. ``descriptors``: the captured ring, the
    processed one, the eventfd that the captured one sets; then those of a Set."""
    captured, processed, wake, *given = descriptors
    _bound_memory()
    realtime.set_switch_interval(1, True)
    rings = Rings.of(work, captured, processed)
    minder = Minder(line, rings, WakeUp(wake), work)
    minder.take(work.sidechains, given)
    return minder.run()


def _bound_memory() -> None:
    """So that what is wild in it costs nobody else."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return
    most = pages * resource.getpagesize() + MOST_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


class Minder:
    """Keeps a pump running, with a chain where that works."""

    def __init__(self, line: DaemonLink, rings: Rings, wake: WakeUp, work: Work) -> None:
        self._line = line
        self._words = line.page.words
        self._rings = rings
        self._wake = wake
        self._settings = work.settings
        self._sidechains: dict[str, Sidechain] = {}
        self._gather_frames = work.gather_frames
        self._priority = work.priority
        self._missed_before = self._words[Word.MISSED]
        self._chain: Chain | None = None
        self._chain_since_ns = 0
        self._hung: list[threading.Thread] = []
        self._hangs: dict[int, int] = {}  # by the number of the stage
        self._fault: str | None = None  # why there is no chain
        self._retry_at_ns = 0
        self._finish: Finish | None = None
        self._failed: str | None = None
        self._told: object = None
        self._told_ns = 0
        self._ended = WakeUp()  # by a pump
        self._alarms, wakes = socket.socketpair()
        wakes.setblocking(False)
        self._alarms.setblocking(False)
        self._wakes = wakes

    def take(self, sidechains: tuple[SidechainFormat, ...], given: list[int]) -> None:
        """The descriptors of a Set. A sidechain with the same ring as before is the one before."""
        told, *others = map(WakeUp, given[len(sidechains) :])
        self._rings.ring.wakes(*others, rests=(told,))
        before, self._sidechains = self._sidechains, {}
        for (stream, audio, period_ms), descriptor in zip(sidechains, given, strict=False):
            made, had = Sidechain(descriptor, audio, period_ms), before.get(stream)
            self._sidechains[stream] = had if had and had.has_ring(descriptor) else made

    def run(self) -> int:
        line, words = self._line, self._words
        threading.excepthook = self._thread_died
        signal.signal(signal.SIGALRM, _nothing)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))
        if words[Word.TRIES]:
            self._without("its process ended")
        else:
            self._make()
        self._pump = self._begin(self._chain)
        poll = select.poll()
        poll.register(line, select.POLLIN)
        poll.register(self._alarms, select.POLLIN)
        poll.register(self._ended, select.POLLIN)
        while self._pump.thread.is_alive() and self._failed is None:
            now_ns = self._does(Doing.WAITING)
            for ready, _ in poll.poll(TELL_MS):
                if ready == self._alarms.fileno():
                    self._alarms.recv(64)
                    if self._pump.hangs():
                        self._take_over()
                elif ready == self._ended.fileno():
                    self._ended.clear()
                else:
                    self._obey(line.receive())
            self._look(now_ns)
            self._tell(now_ns)
            line.repeats.tell()
        self._tell(time.monotonic_ns(), at_last=True)
        return FAILED if self._failed is not None else 0

    def _obey(self, order: object) -> None:
        match order:
            case Set(settings, gather_frames, sidechains):
                if settings != self._settings:
                    self._hangs.clear()
                self._settings, self._gather_frames = settings, gather_frames
                self.take(sidechains, self._line.taken())
                self._pump.set(settings, self._sidechains, gather_frames)
            case Finish():
                self._finish = order
                self._pump.finish(order.number)

    def _begin(self, chain: Chain | None) -> Pump:
        delay = self._words[Word.DELAY]
        wakes = self._wake, self._ended
        pump = Pump(self._rings, *wakes, self._gather_frames, self._priority, chain, delay)
        if self._finish is not None:
            pump.finish(self._finish.number)
        pump.thread.start()
        self._wake.set()
        return pump

    def _make(self) -> Chain:
        """May take its time, and is not in the way of sound."""
        self._does(Doing.OPENING)
        self._words[Word.TRIES] += 1
        shape, settings = self._rings.shape, self._settings
        self._chain = Chain(settings, shape, self._say, self._sidechains)
        self._words[Word.DELAY] = self._chain.delay_frames
        self._chain_since_ns = time.monotonic_ns()
        self._fault = None
        return self._chain

    def _without(self, why: str) -> None:
        """The sound goes on as it was captured, until another chain is made."""
        self._chain, self._fault = None, why
        tries = self._words[Word.TRIES]
        wait_s = min(MOST_RETRY_S, RETRY_S * 2 ** max(0, min(tries - 1, 20)))
        self._retry_at_ns = time.monotonic_ns() + round(wait_s * NS_PER_S)
        self._say(f"all processors are bypassed: {why}; next try in {wait_s:.1f} s")

    def _take_over(self) -> None:
        pump = self._pump
        stage = pump.under_way()
        if not pump.abandon():
            return
        self._missed_before += pump.missed
        number = stage.number if stage else 0
        self._hangs[number] = self._hangs.get(number, 0) + 1
        self._chain = None
        self._pump = self._begin(None)
        thread = pump.thread
        self._hung.append(thread)
        with contextlib.suppress(OSError):  # what spins for ever is in nobody's way
            os.sched_setscheduler(thread.native_id or 0, os.SCHED_IDLE, os.sched_param(0))
        ident, error = ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Abandoned)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, error)
        self._without(f"{stage.name if stage else 'a processor'} {HANGS}")

    def _look(self, now_ns: int) -> None:
        self._words[Word.MISSED] = self._missed_before + self._pump.missed
        self._hung = [one for one in self._hung if one.is_alive()]
        if self._chain is not None:
            self._words[Word.DELAY] = self._chain.delay_frames
            if now_ns - self._chain_since_ns > STEADY_NS:
                self._words[Word.TRIES] = 0
        elif now_ns >= self._retry_at_ns and self._finish is None:
            if not self._hung:
                self._pump.offer(self._make())
                self._say("processors are tried again")
            elif now_ns > self._retry_at_ns + RETURN_NS:
                self._failed = "a processor has not returned; its process is made anew"

    def _say(self, words: str) -> None:
        log_event(logging.WARNING, "%s", words, KIND="process")

    def _tell(self, now_ns: int, at_last: bool = False) -> None:
        stages = self._stages()
        concern = self._fault and f"all processors are bypassed: {self._fault}"
        if concern is None:
            concern = concern_of(stages)
        told = concern, self._failed
        if told == self._told and now_ns - self._told_ns < NS_PER_S and not at_last:
            return
        rate_hz = self._rings.audio.rate_hz
        figures = {
            "delay_ms": round(self._pump.delay_frames * 1000 / rate_hz, 3),
            "missed_frames": self._words[Word.MISSED],
            "stages": stages,
        }
        said = {"detail": "running", "concern": concern, "figures": figures}
        if self._line.tell(trouble=self._failed, **said):
            self._told, self._told_ns = told, now_ns

    def _stages(self) -> list[dict[str, object]]:
        chain = self._chain
        stages: list[dict[str, Any]] = (
            [
                {
                    "type": setting.type,
                    "bypassed": True,
                    "faults": 0,
                    "fault": self._fault,
                    "delay_frames": None,  # the sum, delay_ms, is the last chain's
                }
                for setting in self._settings
            ]
            if chain is None
            else chain.figures()
        )
        for number, one in enumerate(stages, 1):
            one["faults"] += self._hangs.get(number, 0)
        return stages

    def _thread_died(self, died: threading.ExceptHookArgs) -> None:
        """A pump that ends of an error: another process goes on. In the thread that dies."""
        if died.exc_value is not None and died.exc_type is not Abandoned:
            self._failed = (
                f"starting again: {bug.log_unexpected('thread chain ended', died.exc_value)}"
            )

    def _does(self, doing: Doing) -> int:
        now_ns = time.monotonic_ns()
        self._line.page.does(doing, now_ns)
        return now_ns


def _nothing(*_: object) -> None:
    """That it is called at all wakes the thread."""
