"""The pump: captured ring → Chain → processed ring, block by block.

All that it needs to know can be read from the two rings, so any pump, also one of another process,
goes on where the one before ended (``resume``).

It runs without a chain, too: then it passes on what was captured, as late as the chain would have.
A chain that comes later is listened to first and faded in.

Threads: ``run`` is the pump thread; ``offer``, ``set``, ``finish``, ``abandon`` and ``hangs`` are
its minder's (``run.py``).
"""

import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from capstand.audio.block import Shape
from capstand.audio.ring import Reader
from capstand.audio.wake import WakeUp
from capstand.dsp.convert import to_float32
from capstand.host import realtime
from capstand.host.starved import waited_for_cpu_ns
from capstand.processing.chain import Chain, be_silent
from capstand.processing.delay import DelayLine
from capstand.processing.fade import Crossfade, Fade
from capstand.processing.passage import Batch, Batches, Rings
from capstand.processing.processor import Moment, Samples
from capstand.processing.stage import EDGE_MS, FADE_MS, LISTEN_MS, Sidechains, Stage

LOOK_S = 0.015
LOOKS = 3
"""A block that is under way at so many looks in a row hangs: after 45 ms."""
CHANGE_LOOK_S = 0.5
"""New processors may take their time to be made."""
STARVED_SHARE = 0.5


class Abandoned(BaseException):
    """In a pump that is no longer wanted; no processor catches it by ``except Exception``."""


class Pump:
    """Woken by ``wake`` as sound comes in; gathers ``gather_frames``; sets ``ended`` when it
    ends. ``delay_frames`` are those of the chain that it stands in for until it has one."""

    def __init__(
        self,
        rings: Rings,
        wake: WakeUp,
        ended: WakeUp,
        gather_frames: int,
        priority: int,
        chain: Chain | None,
        delay_frames: int = 0,
    ) -> None:
        self.delay_frames = delay_frames if chain is None else chain.delay_frames
        self._rings = rings
        self._wake = wake
        self._ended = ended
        self._priority = priority
        self._reader = Reader(rings.captured, rings.audio, keep=None)
        self._batches = Batches(self._reader, gather_frames)
        self._chain = chain
        self._offered: Chain | None = None
        self._settings: tuple[Sequence[Any], Sidechains] | None = None
        self._until: int | None = None
        self._line: DelayLine | None = None
        self._come: Crossfade | None = None
        self._step: tuple[Samples, Fade] | None = None
        self._to = np.arange(rings.channels) % rings.audio.channels
        self._next_frame: int | None = None
        self._lock = threading.Lock()
        self._abandoned = False
        self._busy_since_ns = 0
        self._look_s = LOOK_S
        self._seen = (0, 0, 0)  # which block was under way, at how many looks, how long it waited
        self.thread = threading.Thread(target=self._run, name="chain", daemon=True)

    @property
    def missed(self) -> int:
        """Frames of which the captured ring held nothing any more."""
        return self._reader.missed

    # Its minder's

    def offer(self, chain: Chain) -> None:
        """Is faded in."""
        self._offered = chain

    def set(self, settings: Sequence[Any], sidechains: Sidechains, gather_frames: int) -> None:
        """From the next block on."""
        self._settings, self._batches.frames = (settings, sidechains), gather_frames
        self._wake.set()

    def finish(self, until: int) -> None:
        """It ends before the captured block of that number."""
        self._until = until
        self._wake.set()

    def hangs(self) -> bool:
        """At a look: whether a block is under way for too long. A thread that had to wait for a
        processor of the machine does not hang."""
        since_ns = self._busy_since_ns
        if not since_ns:
            return False
        before_ns, looks, waited_ns = self._seen
        now_waited_ns = waited_for_cpu_ns()
        starved = now_waited_ns - waited_ns > STARVED_SHARE * LOOK_S * 1e9
        looks = 1 if since_ns != before_ns else looks if starved else looks + 1
        self._seen = since_ns, looks, now_waited_ns
        return looks >= LOOKS

    def abandon(self) -> bool:
        """It hangs, and shows nothing any more, should it come back. False: it has come back."""
        with self._lock:
            self._abandoned = bool(self._busy_since_ns)
            return self._abandoned

    def under_way(self) -> Stage | None:
        """Where it hangs. Its frames say so, so that nobody has to note it block by block."""
        frame = sys._current_frames().get(self.thread.ident or 0)
        while frame is not None:
            if frame.f_code is Stage._processed.__code__:
                stage: Stage = frame.f_locals["self"]
                return stage
            frame = frame.f_back
        return None

    # The thread

    def _run(self) -> None:
        realtime.prepare_thread("chain", self._priority)
        be_silent()
        try:
            self._resume()
            self._feed()
        except Abandoned:
            pass
        finally:
            self._ended.set()

    def _resume(self) -> None:
        """Where the processed ring ends, after what the chain's delay holds."""
        rings = self._rings
        done = Reader(rings.processed, rings.out)
        captured, next_frame = done.captured, done.next_frame
        begun, last = bool(done.number), None
        if captured:
            done.go_back(captured - 1)
            block = done.read()
            if block is not None and block.frames:
                last = to_float32(block.samples, rings.audio.sample)[-rings.channels :]
        done.close()
        if self._chain is None:
            self._line = DelayLine(self.delay_frames, rings.audio.channels)
        self._reader.go_back(max(0, captured - (self.delay_frames + 1 if begun else 0)))
        self._reader.missed = 0
        if not begun:
            return
        if self._line is None:
            self._next_frame = -1  # it knows nothing of what came before
        else:
            self._next_frame = next_frame
        while self._reader.captured < captured:
            heard = self._reader.read()
            if heard is None or self._reader.captured > captured:
                break
            if self._line is not None:
                self._line.feed(rings.floats(heard.samples))
                if last is not None and self._reader.captured == captured:
                    step = last.reshape(1, -1) - self._line.read()[-1:, self._to]
                    self._step = step, Fade(rings.audio.rate_hz, EDGE_MS)
        if self._reader.captured != captured:  # the ring does not hold it any more
            self._reader.go_back(captured)
            self._step = None
        self._reader.missed = 0

    def _feed(self) -> None:
        wait = select.poll()
        wait.register(self._wake, select.POLLIN)
        while self._until is None or self._reader.number < self._until:
            wait.poll()
            self._wake.clear()
            if self._settings is not None and self._chain is not None:
                self._change()
            self._drain()
        if (batch := self._batches.rest()) is not None:
            self._process(batch)

    def _drain(self) -> None:
        """All that is there, as far as it makes whole batches."""
        while (batch := self._batches.take(self._until)) is not None:
            self._process(batch)

    def _process(self, batch: Batch) -> None:
        if self._abandoned:
            raise Abandoned
        rings, reader, block = self._rings, self._reader, batch.block
        gap = self._next_frame is not None and block.first_frame != self._next_frame
        self._next_frame = block.end_frame
        now_ns = time.monotonic_ns()
        self._begin(now_ns, LOOK_S)
        moment = Moment(block.captured_at_ns, reader.ns_per_frame)
        out = self._through(rings.floats(block.samples), now_ns, moment, gap)
        processed = rings.processed_block(block, out, self.delay_frames)
        with self._lock:
            self._came_back()
            rings.publish(processed, batch.captured_before, reader)

    def _begin(self, now_ns: int, look_s: float) -> None:
        """What now comes may hang: from now on the minder looks."""
        self._busy_since_ns = now_ns
        signal.setitimer(signal.ITIMER_REAL, look_s, look_s)

    def _came_back(self) -> None:
        """With the lock."""
        if self._abandoned:
            raise Abandoned
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._busy_since_ns = 0

    def _change(self) -> None:
        settings, self._settings = self._settings, None
        assert self._chain is not None and settings is not None
        self._begin(time.monotonic_ns(), CHANGE_LOOK_S)
        self._chain.change(*settings)
        with self._lock:
            self._came_back()
        self.delay_frames = self._chain.delay_frames

    # The sound

    def _through(self, block: Samples, now_ns: int, moment: Moment, gap: bool) -> Samples:
        if self._chain is None and self._offered is not None:
            self._come_in(self._offered)
        chain, line = self._chain, self._line
        if chain is not None and self._come is None:
            out = chain.process(block, now_ns, moment, gap=gap)
            self.delay_frames = chain.delay_frames
            return out
        assert line is not None
        if gap:
            line.clear()
            self._step = None
        line.feed(block)
        plain = line.read()[:, self._to]
        if chain is None or self._come is None:
            return self._continued(plain)
        out = self._come.mix(plain, chain.process(block, now_ns, moment, gap=gap))
        if self._come.done:
            self._come = self._line = None
        return self._continued(out)

    def _come_in(self, chain: Chain) -> None:
        rings = self._rings
        self._chain, self._offered = chain, None
        if chain.delay_frames != self.delay_frames or self._line is None:
            self.delay_frames = chain.delay_frames
            self._line = DelayLine(chain.delay_frames, rings.audio.channels)
        fade = Fade(rings.audio.rate_hz, FADE_MS, LISTEN_MS)
        self._come = Crossfade(fade, Shape(rings.audio.rate_hz, rings.channels))

    def _continued(self, out: Samples) -> Samples:
        """What was last heard was something else: the difference dies away."""
        if self._step is None:
            return out
        step, fade = self._step
        out = out + step * (1 - fade.take(len(out)))
        if fade.done:
            self._step = None
        return out
