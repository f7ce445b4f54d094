"""The inside of a stream's process: its main thread, which obeys, tells, and touches no sound.

Four times a second, and after each order, it tells main how all is (``Report``); what has happened
since the last one is kept until it could be sent. What takes long to load is loaded once sound
flows, by a thread that ends.

Threads: main; those of the Intake.
"""

import json
import os
import select
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from capstand.audio.ring import Ring
from capstand.audio.wake import WakeUp
from capstand.config.plan import same_chain
from capstand.config.schema import Stream as StreamConfig
from capstand.errors import DeviceError
from capstand.host import bug, realtime
from capstand.processes.child import FAILED, Line
from capstand.processes.page import Doing
from capstand.stream.handover import ABANDON_S
from capstand.stream.intake import Chained, Intake, make_source
from capstand.stream.orders import End, Exchange, Hasten, Processed, Release, Resume, Stop
from capstand.stream.report import CAN_BE_OPENED, Past, Phase, Report, Word

TELL_MS = 250
HURRY_MS = 10
"""While something is waited for, such as a device that is to be closed."""
SETTLE_RETRY_S = 10.0
END_S = 2.5


def run(
    line: Line,
    descriptors: tuple[int, ...],
    config: StreamConfig,
    state: Path,
    runtime: Path,
    past: Past | None,
    released: dict[str, str],
) -> int:
    """Does the work of a Task; returns the process' status. ``descriptors`` are those of the ring,
    of the chain, where there is one, and of the eventfds of live sinks of the ring."""
    memory, *others = descriptors
    chained, live = _apart(config, others)
    capture = config.capture
    realtime.share_lock(1, bool(live))
    ring = Ring(capture.ring_slots, capture.slot_bytes, memory)
    intake = Intake(config, state, runtime, ring, past, line.page.words, chained)
    intake.wakes(*map(WakeUp, live))
    for who, words in released.items():
        intake.release(who, words)
    return Body(line, intake).run()


def _apart(config: StreamConfig, descriptors: list[int]) -> tuple[Chained | None, list[int]]:
    """Those of the chain, and those of live sinks."""
    if not config.process:
        return None, descriptors
    many = len(Chained._fields)
    return Chained(*descriptors[:many]), descriptors[many:]


def try_open(line: Line, descriptors: tuple[int, ...], config: StreamConfig) -> int:
    """Whether the device can be opened: where the process that is to capture hangs in that, this
    one tries it instead, says so, and waits to be ended."""
    source = make_source(config.capture)
    line.page.does(Doing.OPENING, time.monotonic_ns())
    try:
        source.open()
    except DeviceError:
        return FAILED
    source.close()
    line.tell(detail=CAN_BE_OPENED)
    poll = select.poll()
    poll.register(line, select.POLLIN)
    while not poll.poll(TELL_MS):
        line.page.does(Doing.WAITING, time.monotonic_ns())
    return 0


class Body:
    """Runs ``intake`` until main has it ended."""

    def __init__(self, line: Line, intake: Intake) -> None:
        self._line = line
        self._intake = intake
        self._orders = 0
        self._end: End | None = None
        self._unsent: bytes | None = None
        self._settle_due = 0.0
        self._failed: str | None = None
        self._processed = False

    def run(self) -> int:
        line, intake = self._line, self._intake
        threading.excepthook = self._thread_died
        poll = select.poll()
        poll.register(line, select.POLLIN)
        intake.start()
        if intake.config.capture.priority:  # until here nothing was in a hurry
            realtime.be_real_time(f"stream:{intake.name}", realtime.LOWEST)
        while self._end is None:
            line.page.does(Doing.WAITING, time.monotonic_ns())
            poll.poll(HURRY_MS if self._waits else TELL_MS)
            while (order := line.receive()) is not None:
                self._obey(order)
                self._orders += 1
            intake.see_off()
            line.page.words[Word.RESTS] = self._orders if intake.rests else 0
            line.repeats.tell()
            self._tell(self._report(Phase.RUNNING))
        line.page.does(Doing.CLOSING, time.monotonic_ns())
        deadline = time.monotonic() + self._end.within_s
        hung = intake.drain(deadline)
        self._tell(self._report(Phase.DRAINED, hung))
        if intake.second is not None and self._failed is None:
            self._wait_for_chain(deadline + 2 * ABANDON_S)
        hung += intake.drain_processed(deadline + 2 * ABANDON_S)
        hung += intake.close(deadline)
        intake.see_off(deadline)
        self._tell_at_last(self._report(Phase.ENDED, hung))
        return FAILED if self._failed else 0

    def _wait_for_chain(self, deadline: float) -> None:
        """Main has it ended meanwhile."""
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        while not self._processed and (left_s := deadline - time.monotonic()) > 0:
            self._tell(None)  # what could not be sent
            if poll.poll(min(HURRY_MS if self._unsent else TELL_MS, 1000 * left_s)):
                self._obey(self._line.receive())

    def _thread_died(self, died: threading.ExceptHookArgs) -> None:
        """A thread that ends of an error leaves a stream that is deaf: better none, and a new one.

        In the thread that dies.
        """
        name = died.thread.name.split()[0] if died.thread else "unknown"
        if died.exc_value is not None:
            words = bug.tell(f"thread {name} ended", died.exc_value)
            self._failed = f"starting again: thread {name} ended of {words}"
            self._end = End(END_S)

    @property
    def _waits(self) -> bool:
        intake = self._intake
        return bool(intake.leaving) or (intake.capturer.released is not None and not intake.rests)

    def _obey(self, order: object) -> None:
        intake = self._intake
        match order:
            case Exchange(config):
                chained, given = _apart(config, self._line.taken())
                live = [WakeUp(one) for one in given]
                realtime.share_lock(1, bool(live))
                if chained is not None and same_chain(intake.config, config):
                    for one in chained:
                        os.close(one)
                    chained = None
                intake.exchange(config, chained)
                intake.wakes(*live)
            case Release(who, words):
                intake.release(who, words)
            case Resume(who):
                intake.resume(who)
            case Hasten():
                intake.hasten()
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
        self._settle_once(report)
        return json.dumps(
            report._replace(phase=phase, hung=tuple(hung), failed=self._failed)
        ).encode()

    def _tell(self, raw: bytes | None) -> None:
        self._unsent = self._unsent or raw
        if self._unsent is not None and self._line.send(self._unsent):
            self._unsent = None

    def _tell_at_last(self, raw: bytes | None) -> None:
        """The last word is waited for: a busy main hears it later."""
        poll = select.poll()
        poll.register(self._line, select.POLLOUT)
        self._tell(raw)
        while self._unsent is not None:
            poll.poll()
            self._tell(None)

    def _settle_once(self, report: Report) -> None:
        """Once sound flows: what takes long to load, and the end of start-up's garbage. With a
        priority, because it holds Python's lock for most of its time."""
        stats, now = report.stats, time.monotonic()
        flows = stats.captured_frames or stats.trouble
        if self._intake.pusher.meter is not None or not flows or now < self._settle_due:
            return
        self._settle_due = now + SETTLE_RETRY_S
        threading.Thread(target=self._load, name="settle", daemon=True).start()

    def _load(self) -> None:
        intake = self._intake
        real_time = bool(intake.config.capture.priority)
        realtime.prepare_thread("settle", realtime.LOWEST if real_time else 0)
        try:
            intake.start_meter()
            realtime.freeze_heap()
        except Exception as error:  # noqa: BLE001  the level is not worth the sound
            bug.tell("the level meter cannot be loaded", error)
