"""The capture thread: device → clock → ring, and nothing else.

While sound flows it waits for the device alone, takes no lock, writes no log and keeps no growing
memory: it counts, and the main thread tells. A device that fails is closed and opened again for
ever; the frames that it would have produced meanwhile are a gap, measured by the clock, so the
frame index and the timeline go on.

Only frames that arrive prove life. A device that is open and brings none for ``STALL_S`` (or two
and a half periods, if they are long) is healed by the mildest step that helps: its stream is
stopped and started; then it is closed and opened; then a person is told what to do, while it is
opened again and again. It is asked several times first, because a process that was itself stopped
must not take its own absence for the card's. An I/O error gets the first step too.

What a stalled process finds in the device's buffer may be more than the ring holds: it is read at
eight times its speed, a quarter of the ring at once, so that those who read the ring keep up.

Others may ask for the device (``release``): it is closed between two blocks and left closed until
all who asked have given it back (``resume``). That is a declared wait, and a gap like any other.

Thread: ``run`` is the capture thread; the attributes may be read from any.
"""

import os
import threading
import time
from collections.abc import Callable
from errno import EIO

from capstand.accounting.stats import Cause, StreamStats, Tally, gap_code
from capstand.audio.block import NS_PER_S
from capstand.audio.clock import Clock
from capstand.audio.ring import Ring
from capstand.capture.release import OPERATOR
from capstand.capture.source import UNKNOWN, Flowing, NegotiatedParams, Reading, Source
from capstand.capture.truerate import TrueRate, too_fast
from capstand.errors import DeviceError
from capstand.host.realtime import prepare_thread

STALL_S = 2.0
STALL_PERIODS = 2.5
STALL_READS = 5
POLL_MS = 200
HASTY_NS = 1_000_000
HASTY_PAUSE_S = 0.005
LEAST_SHORT_S = 0.001
REOPEN_PAUSES_S = (0.05, 0.1, 0.2, 0.5)  # a device that comes or is let go is often a moment late
REFUSED_RETRY_S = 5.0
REST_S = 1.0
CATCH_UP_SPEED = 8
RATE_LOOK_S = 0.25
"""How often the true rate of the device is looked at."""
OPEN_S = 30.0
"""A card that does not answer may take so long to be opened, by the kernel's patience with it."""


class Capturer:
    """Moves every period of ``source`` into ``ring`` and keeps the books of the device's side.

    ``params`` is None while the device is not open, and then ``trouble`` says why.
    """

    def __init__(
        self,
        source: Source,
        clock: Clock,
        ring: Ring,
        priority: int,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.tally = Tally()
        self.params: NegotiatedParams | None = None
        self.last_params: NegotiatedParams | None = None
        self.trouble: DeviceError | None = None
        self.refusal: str | None = None
        self.stalls = 0  # how often the device fell silent
        self.restarts = 0
        self.restarted = ""  # why the last time
        self.opens = 0
        self.stall_timeout_ns = round(STALL_S * NS_PER_S)  # so long a silent device is waited for
        self.last_frame_ns = 0  # when frames last arrived
        self.captured_at_ns = 0  # when the newest block was sampled
        self.seen_ns = now_ns()  # when the thread last showed that it lives
        self.pause_s = 0.0  # how long it said it would be away then
        self._source = source
        self._clock = clock
        self.true_rate = TrueRate(clock.rate_hz)
        self._rate_look = round(RATE_LOOK_S * clock.rate_hz)
        self._unrated = 0  # frames since its last look
        self._ring = ring
        self._priority = priority
        self._now_ns = now_ns
        self._released: dict[str, str] = {}  # who asked for the device: in words, for a person
        self.resting = threading.Event()  # set while the device is closed because of that
        self._absence = Cause.REOPENED  # why the device was away when it is open again
        self._stopped = threading.Event()  # waited for only while nothing can be captured
        self._stirred = threading.Event()  # the same, when there may be something to do again
        self._stopping = False
        self._reopened = False
        self._empty = 0  # reads in a row that brought nothing
        self._observed = -1  # the newest frame of which the clock knows
        self._healing = 0  # steps taken against a silence that goes on
        self._failures = 0  # attempts in a row
        self._burst = 0  # blocks read while the device held more
        self._gap_code = 0  # of the gap before the next block

    def continue_from(
        self, before: StreamStats, captured: int, next_frame: int, at_ns: int, ns_per_frame: float
    ) -> None:
        """With the frame index, the clock and the counters of another one, whose process ended
        before its time."""
        self.tally.continue_from(before, captured, next_frame)
        self.opens, self.restarts = before.opens, before.restarts
        if ns_per_frame:
            self._clock.continue_from(next_frame, at_ns, ns_per_frame)
            self.captured_at_ns = at_ns - 1
        self._absence = Cause.PROCESS

    def run(self) -> None:
        """The thread's body; ends after ``stop``."""
        self.refusal = prepare_thread("capture", self._priority)
        while not self._stopping:
            self._stirred.wait(self.attempt())
            self._stirred.clear()
        self._source.close()
        self.params = None
        self.resting.set()  # for good

    def attempt(self) -> float:
        """Opens the device and captures until it fails, is released or ``stop``; returns the pause
        to make."""
        self.resting.clear()  # before the look: who releases now finds it set only once it is true
        try:
            if not self._released:
                self.open()
            while not self._stopping and not self._released:
                asked_ns = self.seen_ns
                if self.step(POLL_MS):
                    self.flow(POLL_MS)
                elif self._now_ns() - asked_ns < HASTY_NS:
                    # A descriptor in error ends each wait at once; at real-time priority that
                    # would take the whole processor.
                    self._stopped.wait(HASTY_PAUSE_S)
        except DeviceError as error:
            return self.fail(error)
        return self.rest() if self._released else 0.0

    def rest(self) -> float:
        """The device is released: leave it closed; returns the pause to make in seconds."""
        self._source.close()
        self.params = None
        self._absence = Cause.RELEASED
        self.pause_s = REST_S
        self._failures = 0
        self.seen_ns = self._now_ns()
        self.resting.set()
        return self.pause_s

    def open(self) -> None:
        self.seen_ns, self.pause_s = self._now_ns(), OPEN_S
        params = self._source.open()
        self.opens += 1
        self._reopened = True
        self.last_frame_ns = self._now_ns()
        self.pause_s = 0.0
        self._empty = self._failures = 0
        period_ns = params.period_frames * NS_PER_S // params.format.rate_hz
        self.stall_timeout_ns = round(max(STALL_S * NS_PER_S, STALL_PERIODS * period_ns))
        self.true_rate.opened(params.buffer_frames, self.last_frame_ns)
        self.params = self.last_params = params

    def fail(self, error: DeviceError) -> float:
        """The device failed: let it go, remember why; returns the pause to make in seconds."""
        self._source.close()
        self.params = None
        self.trouble = error
        pause_s = REOPEN_PAUSES_S[min(self._failures, len(REOPEN_PAUSES_S) - 1)]
        self.pause_s = REFUSED_RETRY_S if error.refused else pause_s
        self._failures += 1
        self.seen_ns = self._now_ns()
        return self.pause_s

    def step(self, timeout_ms: int) -> int:
        """One period from the device into the ring; returns its frames, 0 when none came."""
        ring = self._ring
        try:
            reading = self._source.read(ring.slot(), timeout_ms)
        except DeviceError as error:
            self._read_failed(error)
            return 0
        frames = reading.frames
        now_ns = self.seen_ns = self._now_ns()
        if frames == 0:
            self._empty += 1
            silent = now_ns - self.last_frame_ns > self.stall_timeout_ns
            if silent and self._empty >= STALL_READS and not self._stopping:
                self._heal()
            return 0
        tally, clock = self.tally, self._clock
        self._rate(frames, now_ns)
        lost = reading.lost
        if lost or self._reopened:
            if reading.params is not None:
                self.params = self.last_params = reading.params
                self.opens, reading.params = self.opens + 1, None
                self.true_rate.opened(self.params.buffer_frames, now_ns)
            self._account(lost, reading.cause, reading.stamp_ns, reading.avail)
        stamp_ns = reading.stamp_ns
        if reading.short:
            self._account_short(reading)
        if stamp_ns:
            at = tally.produced + reading.avail
            if at != self._observed:  # several periods of one look are one observation
                self._observed = at
                if not self._unrated:
                    self.true_rate.observe(at, stamp_ns)
                if clock.observe(at, stamp_ns, reading.edge):
                    self._follow_clock()
        elif not clock.started:
            clock.observe(tally.produced + frames, now_ns)
        first = tally.produced
        captured_at_ns = clock.time_of(first)
        if captured_at_ns <= self.captured_at_ns:
            captured_at_ns = self.captured_at_ns + 1
        self.captured_at_ns = captured_at_ns
        tally.sequence += 1
        tally.produced = first + frames
        tally.captured += frames
        tally.sequence += 1
        ring.publish(first, frames, captured_at_ns, tally.captured - frames, clock, self._gap_code)
        self._gap_code = 0
        if reading.avail < 2 * frames:
            self._burst = 0
        else:
            self._burst += 1
            if self._burst >= ring.slots // 4:
                self._burst = 0
                quarter_s = ring.slots // 4 * frames / clock.rate_hz
                self._stopped.wait(quarter_s / CATCH_UP_SPEED)
        self.last_frame_ns = now_ns
        self._empty = self._healing = 0
        self.trouble = None
        return frames

    def flow(self, timeout_ms: int) -> None:
        """Many a ``step``, all of one kind, in one loop, right after one that brought frames: what
        is called for each period, with cold caches, costs more than it does. What is seen is for
        the clock to judge when that may bring something new."""
        source, ring, tally, clock = self._source, self._ring, self.tally, self._clock
        flow = source.flow(ring.slot, timeout_ms) if isinstance(source, Flowing) else None
        if flow is None or not clock.started:
            return
        looks, until_frame = clock.patience
        anchor_frame, anchor_ns, rest_ns, ns_per_frame = clock.line
        publish, captured_at_ns = ring.publish, self.captured_at_ns
        seen: list[tuple[int, int, bool]] = []
        failure, unrated = None, tally.captured
        try:
            for reading in flow:
                frames, stamp_ns, before = reading.frames, reading.stamp_ns, tally.captured
                at = tally.produced + reading.avail
                seen.append((at, stamp_ns, reading.edge))
                if len(seen) > looks or at >= until_frame:
                    self.captured_at_ns = captured_at_ns
                    self._judge(seen, before - unrated)
                    unrated = before
                    looks, until_frame = clock.patience
                    anchor_frame, anchor_ns, rest_ns, ns_per_frame = clock.line
                first = tally.produced
                at_ns = anchor_ns + round((first - anchor_frame) * ns_per_frame + rest_ns)
                captured_at_ns = at_ns if at_ns > captured_at_ns else captured_at_ns + 1
                tally.sequence += 1
                tally.produced = first + frames
                tally.captured = before + frames
                tally.sequence += 1
                publish(first, frames, captured_at_ns, before, clock, self._gap_code)
                self._gap_code = 0
                if self._stopping or self._released:
                    break
        except DeviceError as error:
            failure = error
        flow.close()
        self.captured_at_ns = captured_at_ns
        self._judge(seen, tally.captured - unrated)
        if failure is not None:
            self._read_failed(failure)

    def _judge(self, seen: list[tuple[int, int, bool]], frames: int) -> None:
        """Has the clock look at what was ``seen``, which is taken out; what it finds missing is
        lost before the next frame. ``frames`` more have come."""
        if not seen:
            return
        news = [self._clock.observe(*look) for look in seen]
        self._observed, stamp_ns, _ = seen[-1]
        seen.clear()
        self._burst = 0
        self.seen_ns = self.last_frame_ns = stamp_ns
        self._rate(frames, stamp_ns)
        if not self._unrated:
            self.true_rate.observe(self._observed, stamp_ns)
        if any(news):
            self._follow_clock()

    def _read_failed(self, error: DeviceError) -> None:
        """An I/O error is healed by the mildest step, once; raises any other."""
        if error.errno != EIO or self._healing:
            raise error
        self._restart(f"the device says: {os.strerror(EIO)}")

    def _rate(self, frames: int, now_ns: int) -> None:
        """So many more came. Raises DeviceError where time does not allow for as many."""
        self._unrated += frames
        if self._unrated >= self._rate_look:
            unrated, self._unrated = self._unrated, 0
            if self.true_rate.outrun(unrated, now_ns):
                raise too_fast(self.params.device if self.params else "the device")

    def _follow_clock(self) -> None:
        """It has something new to say."""
        clock = self._clock
        if clock.missing:
            self._lose(clock.take_missing(), Cause.DEVICE, exact=False)
        self._source.wary = clock.ambiguous

    def _heal(self) -> None:
        """The next step against a device that is open and silent; raises to have it reopened."""
        silent_s = self.stall_timeout_ns / NS_PER_S
        silent = f"the device is open but delivered no frame for {silent_s:g} s"
        if self._healing == 0:
            self.stalls += 1
            self._restart(silent)
            return
        self._healing += 1
        if self._healing == 2:
            raise DeviceError(f"{silent}, restarting the stream did not help; reopening it")
        raise DeviceError(
            f"{silent}, reopening did not help either; still retrying; {self._source.advice()}"
        )

    def _restart(self, why: str) -> None:
        """The mildest step: stops the stream and sets it going again."""
        self._healing = 1
        self.restarted = f"{why}; restarting its stream"
        self.trouble = DeviceError(self.restarted)
        self.restarts += 1
        self._source.restart()
        self.last_frame_ns = self._now_ns()
        self._empty = 0

    def _account(self, lost: int, cause: Cause, stamp_ns: int, avail: int) -> None:
        """Books a gap before the frames just read; after a new start, sets the clock on again."""
        tally, clock = self.tally, self._clock
        exact = lost != UNKNOWN and not self._reopened
        if not exact:
            stamp_ns = stamp_ns or self._now_ns()
            if self._reopened:
                cause = self._absence if lost != UNKNOWN else cause
                self._absence = Cause.REOPENED
            lost = 0
            if clock.started:
                first_ns = stamp_ns - round(avail * clock.ns_per_frame)
                lost = max(0, clock.frame_at(first_ns) - tally.produced)
            self._reopened = False
        if lost:
            self._lose(lost, cause, exact, stamp_ns)
        if not exact:
            clock.restart(tally.produced + avail, stamp_ns)
            self.true_rate.restart()

    def _account_short(self, reading: Reading) -> None:
        """Books what never came, by the clock, which goes on as it went."""
        clock, rate = self._clock, self.true_rate.rate_hz
        if not clock.started or rate is not None:
            return
        lost = clock.frame_at(reading.stamp_ns) - self.tally.produced - reading.avail
        lost = min(lost, reading.short)
        if lost >= LEAST_SHORT_S * clock.rate_hz:
            self._lose(lost, Cause.DEVICE, exact=False)
            clock.loosen()

    def _lose(self, lost: int, cause: Cause, exact: bool, stamp_ns: int = 0) -> None:
        """Books a gap before the next frame."""
        tally, clock = self.tally, self._clock
        at_ns = clock.time_of(tally.produced) if clock.started else stamp_ns
        tally.sequence += 1
        tally.gaps.note(tally.produced, lost, at_ns, cause, exact)
        tally.produced += lost
        if exact:
            tally.lost_exact += lost
        else:
            tally.lost_estimated += lost
        if cause is Cause.DEVICE:
            tally.lost_by_device += lost
        tally.sequence += 1
        self._gap_code = gap_code(cause, exact)  # a second gap before one block is never exact

    @property
    def released(self) -> str | None:
        """To whom the device is left, in words; None while it is ours to open. Any thread."""
        asked = self._released.copy()
        return asked.get(OPERATOR) or next(iter(asked.values()), None)

    def is_released_to(self, who: str) -> bool:
        return who in self._released

    def release(self, who: str, words: str) -> None:
        """``who`` gets the device: it is closed once ``resting`` is set. Any thread."""
        self._released[who] = words
        self._stirred.set()

    def resume(self, who: str) -> None:
        """``who`` gives the device back: it is opened at once if no other has it. Any thread."""
        if self._released.pop(who, None) is not None:
            self._stirred.set()

    def stop(self) -> None:
        """Makes ``run`` end soon. Any thread."""
        self._stopping = True
        self._stopped.set()
        self._stirred.set()
        self._source.wake()

    def retry_now(self) -> None:
        """There is news of the device: tries at once, and begins again with short pauses. Any
        thread."""
        self._failures = 0
        self._stirred.set()
