"""The inside of a stream's process: its main thread, which obeys, tells, and touches no sound.

Twice a second, or four times where something ails it, it looks how all is. It tells main so
(``Report``) after each order, at each look that finds anything new or not as it should be, and now
and then while all is well; what has happened since the last report is kept until it could be sent.
What takes long to load is loaded once sound flows, by a thread that ends.

Threads: main; those of the Intake.
"""

import json
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from capstand.audio.block import NS_PER_S
from capstand.audio.ring import Ring
from capstand.audio.wake import WakeUp
from capstand.config.plan import same_chain
from capstand.config.schema import StreamConfig
from capstand.errors import DeviceError
from capstand.host import bug, realtime
from capstand.host.logs import log_event
from capstand.processes.child import FAILED, DaemonLink
from capstand.processes.page import Doing
from capstand.stream.handover import ABANDON_S
from capstand.stream.intake import Chained, Intake, make_source
from capstand.stream.orders import End, Exchange, Processed, Release, Resume, RetryNow, Stop
from capstand.stream.report import CAN_BE_OPENED, Phase, Report, ResumePoint, StreamWord

LOOK_MS = 500
ILL_LOOK_MS = 250
FIRST_LOOK_MS = 100
"""Until sound flows."""
WELL_TELL_NS = 2 * NS_PER_S
"""A report costs as much as three blocks of sound."""
BUSY_POLL_MS = 10
"""While something is waited for, such as a device that is to be closed."""
LOAD_RETRY_S = 10.0
END_S = 2.5


def run(
    link: DaemonLink,
    descriptors: tuple[int, ...],
    config: StreamConfig,
    state: Path,
    runtime: Path,
    past: ResumePoint | None,
    released: dict[str, str],
    gathers: tuple[int, ...],
    runs: dict[str, bytes],
) -> int:
    """Does the work of a Task; returns the process' status. ``descriptors`` are those of the ring,
    of the chain, where there is one, and of the eventfds of live sinks of the ring, as an
    ``Exchange`` has them."""
    memory, *others = descriptors
    chained, live = _apart(config, others)
    capture = config.capture
    realtime.set_switch_interval(1, bool(live))
    ring = Ring(capture.ring_slots, capture.slot_bytes, memory)
    intake = Intake(config, state, runtime, ring, past, link.page.words, chained, runs)
    intake.wakes(*map(WakeUp, live), gathers=gathers)
    for who, words in released.items():
        intake.release(who, words)
    return StreamWorker(link, intake).run()


def _apart(config: StreamConfig, descriptors: list[int]) -> tuple[Chained | None, list[int]]:
    """Those of the chain, and those of live sinks."""
    if not config.process:
        return None, descriptors
    many = len(Chained._fields)
    return Chained(*descriptors[:many]), descriptors[many:]


def try_open(link: DaemonLink, descriptors: tuple[int, ...], config: StreamConfig) -> int:
    """Whether the device can be opened: where the process that is to capture hangs in that, this
    one tries it instead, says so, and waits to be ended."""
    source = make_source(config.capture)
    link.page.does(Doing.OPENING, time.monotonic_ns())
    try:
        source.open()
    except DeviceError:
        return FAILED
    source.close()
    link.tell(detail=CAN_BE_OPENED)
    poll = select.poll()
    poll.register(link, select.POLLIN)
    while not poll.poll(LOOK_MS):
        link.page.does(Doing.WAITING, time.monotonic_ns())
    return 0


class StreamWorker:
    """Runs ``intake`` until main has it ended."""

    def __init__(self, link: DaemonLink, intake: Intake) -> None:
        self._link = link
        self._intake = intake
        self._orders = 0
        self._end: End | None = None
        self._unsent: bytes | None = None
        self._load_due = 0.0
        self._failed: str | None = None
        self._processed = False
        self._told = 0  # the turn in which it told last
        self._in_terminal = sys.stderr.isatty()  # there the live line is drawn

    def run(self) -> int:
        link, intake = self._link, self._intake
        threading.excepthook = self._thread_died
        poll = select.poll()
        poll.register(link, select.POLLIN)
        calm = True
        intake.start()
        if intake.config.capture.rt_priority:  # until here nothing was in a hurry
            realtime.set_fifo(f"stream:{intake.name}", realtime.LOWEST)
        while self._end is None:
            link.page.does(Doing.WAITING, time.monotonic_ns())
            first = intake.pusher.meter is None
            pause_ms = LOOK_MS if calm else ILL_LOOK_MS
            obeyed = self._orders
            if poll.poll(BUSY_POLL_MS if self._waits else FIRST_LOOK_MS if first else pause_ms):
                while (order := link.receive()) is not None:
                    self._obey(order)
                    self._orders += 1
            intake.reap_removed()
            link.page.words[StreamWord.RESTS] = self._orders if intake.rests else 0
            link.repeats.tell()
            told = self._unsent is None and self._orders == obeyed
            calm = told and not self._waits and intake.is_calm()
            turn = time.monotonic_ns() // WELL_TELL_NS  # that of all streams, for main's sake
            if not calm or first or turn != self._told or self._in_terminal:
                self._told = turn
                self._tell(self._report(Phase.RUNNING))
                link.call()
        link.page.does(Doing.CLOSING, time.monotonic_ns())
        deadline = time.monotonic() + self._end.within_s
        hung = intake.drain(deadline)
        self._tell(self._report(Phase.DRAINED, hung))
        if intake.processed_pusher is not None and self._failed is None:
            self._wait_for_chain(deadline + 2 * ABANDON_S)
        hung += intake.drain_processed(deadline + 2 * ABANDON_S)
        hung += intake.close(deadline)
        intake.reap_removed(deadline)
        self._tell_at_last(self._report(Phase.ENDED, hung))
        return FAILED if self._failed else 0

    def _wait_for_chain(self, deadline: float) -> None:
        """Main has it ended meanwhile."""
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        while not self._processed and (left_s := deadline - time.monotonic()) > 0:
            self._tell(None)  # what could not be sent
            if poll.poll(min(BUSY_POLL_MS if self._unsent else LOOK_MS, 1000 * left_s)):
                self._obey(self._link.receive())

    def _thread_died(self, died: threading.ExceptHookArgs) -> None:
        """A thread that ends of an error leaves a stream that is deaf: better none, and a new one.

        In the thread that dies.
        """
        name = died.thread.name.split()[0] if died.thread else "unknown"
        if died.exc_value is not None:
            words = bug.log_unexpected(f"thread {name} crashed", died.exc_value)
            self._failed = f"restarting: thread {name} crashed: {words}"
            self._end = End(END_S)

    @property
    def _waits(self) -> bool:
        intake = self._intake
        return bool(intake.leaving) or (intake.capturer.released is not None and not intake.rests)

    def _obey(self, order: object) -> None:
        intake = self._intake
        match order:
            case Exchange(config, gathers, runs):
                chained, given = _apart(config, self._link.taken())
                live = [WakeUp(one) for one in given]
                realtime.set_switch_interval(1, bool(live))
                if chained is not None and same_chain(intake.config, config):
                    for one in chained:
                        os.close(one)
                    chained = None
                intake.exchange(config, chained, runs)
                intake.wakes(*live, gathers=gathers)
            case Release(who, words):
                intake.release(who, words)
            case Resume(who):
                intake.resume(who)
            case RetryNow():
                intake.retry_now()
            case Stop():
                intake.stop()
            case Processed():
                self._processed = True
            case End():
                self._end = order

    def _report(self, phase: Phase, hung: Sequence[str] = ()) -> bytes | None:
        """None while an earlier one waits to be sent: what happens is then in the next one."""
        if self._unsent is not None:
            return None
        report = self._intake.report(time.monotonic_ns())
        self._load_meter_once(report)
        return json.dumps(
            report._replace(phase=phase, hung=tuple(hung), failed=self._failed, orders=self._orders)
        ).encode()

    def _tell(self, raw: bytes | None) -> None:
        self._unsent = self._unsent or raw
        if self._unsent is not None and self._link.send(self._unsent):
            self._unsent = None

    def _tell_at_last(self, raw: bytes | None) -> None:
        """The last word is waited for: a busy main hears it later."""
        poll = select.poll()
        poll.register(self._link, select.POLLOUT)
        self._tell(raw)
        while self._unsent is not None:
            poll.poll()
            self._tell(None)

    def _load_meter_once(self, report: Report) -> None:
        """Once sound flows: what takes long to load, and the end of start-up's garbage. With a
        priority, because it holds Python's lock for most of its time."""
        stats, now = report.stats, time.monotonic()
        flows = stats.captured_frames or stats.trouble
        if self._intake.pusher.meter is not None or not flows or now < self._load_due:
            return
        self._load_due = now + LOAD_RETRY_S
        threading.Thread(target=self._load_meter, name="load", daemon=True).start()

    def _load_meter(self) -> None:
        intake = self._intake
        real_time = bool(intake.config.capture.rt_priority)
        realtime.prepare_thread("load", realtime.LOWEST if real_time else 0)
        try:
            intake.start_meter()
            if intake.meters.unmeasured:
                fields = {"KIND": "loudness", "STREAM": intake.name}
                log_event(
                    logging.WARNING, "%s: %s", intake.name, intake.meters.unmeasured, **fields
                )
            realtime.freeze_heap()
        except Exception as error:  # noqa: BLE001  the level is not worth the sound
            bug.log_unexpected("the level meter cannot be loaded", error)
