"""A source that other programs write into: how it waits, reads, and tells that nothing comes.

The way in is ``_descriptor``, which a socket, a FIFO or a child process gives. Whatever comes
passes an ``Inlet``, which hands on a period when it is due. A program that is silent for
longer than the stream's buffer, for ``STALL_MS`` at most, is a device that is away: the capturer
opens again and again, and what is missing when sound is back is worked out by the clock.

What others connect to stays while that happens (``_away``), so that none is turned away between two
tries; it goes when the device is released, or the stream ends.

Thread: capture; ``wake`` is for any.
"""

import os
import select
import time
import weakref
from typing import NoReturn

from capstand.audio.block import NS_PER_S
from capstand.capture.inlet import Inlet
from capstand.capture.pick import Pick
from capstand.capture.source import NegotiatedParams, Reading
from capstand.capture.wire import WireError
from capstand.config.schema import CaptureConfig
from capstand.errors import DeviceError

CHUNK_BYTES = 65_536
STALL_MS = (200.0, 1500.0)
"""At least, because a busy machine keeps a program so long; at most, because the capturer's own
patience ends soon after."""
WAIT_MS = 500
"""So long one try to open waits; a release waits for it."""


class ProgramSource:
    """What is alike for all ways in. ``name`` is for people, ``live`` is in ``Inlet``."""

    batch_ms = 0  # what comes is handed on at once
    wary = False

    def __init__(self, capture: CaptureConfig, name: str, live: bool) -> None:
        self.name = name
        self.audio = capture.audio._replace(channels=capture.least_channels)
        self._live = live
        self._capture = capture
        self._pick = Pick.of(capture, self.audio.channels)
        whole = capture.period_frames * self.audio.frame_bytes if self._pick else 0
        self._whole = memoryview(bytearray(whole))
        self._chunk = memoryview(bytearray(CHUNK_BYTES))
        shortest, longest = STALL_MS
        self._stall_ns = round(min(longest, max(shortest, capture.buffer_ms)) * 1_000_000)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wake).atexit = False
        self._waiting, self._resting = select.poll(), select.poll()
        self._waiting.register(self._wake, select.POLLIN)
        self._resting.register(self._wake, select.POLLIN)
        self._stopping = False
        self._reading = Reading()
        self._descriptor: int | None = None
        self._inlet = self._new_inlet()
        self._fault: WireError | None = None  # what ended it
        self._heard_ns = 0  # when something came or went on last
        self._is_away = False

    # The way in, for those who inherit

    def _prepare(self, now_ns: int) -> None:
        """Makes it possible for a program to write. Raises DeviceError."""
        raise NotImplementedError

    def _knocked(self, descriptor: int) -> None:
        """Something other than ``_descriptor`` that is waited for is readable."""
        raise NotImplementedError

    def _receive(self, into: memoryview) -> int:
        """Bytes of what is there, 0 at the end. Raises BlockingIOError, and OSError as the end."""
        assert self._descriptor is not None
        return os.readv(self._descriptor, [into])

    def _missing(self) -> str:
        """What is missing while there is no program."""
        raise NotImplementedError

    def _who(self) -> str:
        """The program."""
        raise NotImplementedError

    def _went(self, now_ns: int) -> None:
        """A period went on."""

    def _ended(self) -> str:
        """The program has closed its end and all went on: lets go of it; returns what it was."""
        raise NotImplementedError

    def _refuse(self, why: str) -> None:
        """Lets go of a program that writes what cannot be taken."""
        raise NotImplementedError

    def _shut(self) -> None:
        """Nobody can write any more; may be called at any time."""
        raise NotImplementedError

    # Source

    def open(self) -> NegotiatedParams:
        self._is_away = False
        now_ns = time.monotonic_ns()
        until_ns = now_ns + WAIT_MS * 1_000_000
        self._prepare(now_ns)
        while True:
            if self._descriptor is not None and self._due_ns(now_ns) is not None:
                break
            if self._descriptor is not None and self._inlet.ended:
                self._over()
            if self._stopping or now_ns >= until_ns:
                self._away(self._missing() if self._descriptor is None else self._silent(now_ns))
            now_ns = self._wait(until_ns, now_ns, resting=False)
        capture = self._capture
        return NegotiatedParams(
            self.name,
            capture.audio,
            capture.period_frames,
            capture.buffer_frames,
            exact=bool(self._inlet.framed),
        )

    def read(self, slot: memoryview, timeout_ms: int) -> Reading:
        reading = self._reading
        reading.frames = reading.lost = 0
        now_ns = time.monotonic_ns()
        deadline_ns = now_ns + timeout_ms * 1_000_000
        while True:
            due_ns = self._due_ns(now_ns)
            if due_ns is not None and due_ns <= now_ns:
                self._hand_on(slot, now_ns)
                return reading
            if self._stopping or now_ns >= deadline_ns:
                return reading
            if due_ns is not None:
                now_ns = self._wait(min(deadline_ns, due_ns), now_ns, resting=True)
                continue
            if self._inlet.ended:
                self._over()
            silent_ns = self._heard_ns + self._stall_ns
            now_ns = self._wait(min(deadline_ns, silent_ns), now_ns, resting=False)
            if now_ns >= self._heard_ns + self._stall_ns and self._descriptor is not None:
                self._away(self._silent(now_ns))

    def restart(self) -> None:
        self._inlet.stand()

    def advice(self) -> str:
        return f"look after {self._who()}"

    def close(self) -> None:
        if self._is_away:
            self._is_away = False
        else:
            self._shut()

    def wake(self) -> None:
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    # All of them

    def _new_inlet(self) -> Inlet:
        capture = self._capture
        return Inlet(
            self.audio,
            capture.period_frames,
            capture.buffer_frames,
            self._live,
            time.monotonic_ns(),
        )

    def _take_in(self, descriptor: int) -> None:
        """A program is there: what it writes comes from ``descriptor``."""
        self._inlet, self._fault = self._new_inlet(), None
        self._descriptor = descriptor
        self._heard_ns = time.monotonic_ns()
        self._waiting.register(descriptor, select.POLLIN)

    def _let_go(self) -> None:
        """``_descriptor`` is about to be closed."""
        if self._descriptor is not None:
            self._waiting.unregister(self._descriptor)
            self._descriptor = None

    def _watch(self, descriptor: int, *, also: bool) -> None:
        """Whether ``_knocked`` is to be called for it."""
        for one in (self._waiting, self._resting):
            if also:
                one.register(descriptor, select.POLLIN)
            else:
                one.unregister(descriptor)

    def _due_ns(self, now_ns: int) -> int | None:
        try:
            return self._inlet.due_ns(now_ns)
        except WireError as error:
            self._reject(error)

    def _hand_on(self, slot: memoryview, now_ns: int) -> None:
        if self._pick is None:
            self._inlet.take(slot, self._reading, now_ns)
        else:
            self._pick.put(slot, self._inlet.take(self._whole, self._reading, now_ns))
        self._heard_ns = now_ns
        self._went(now_ns)

    def _wait(self, until_ns: int, now_ns: int, *, resting: bool) -> int:
        """Until something comes, at most so long; returns the time then."""
        poll = self._resting if resting else self._waiting
        asked_ns = now_ns
        ready = poll.poll(max(0.0, (until_ns - now_ns) / 1e6))
        now_ns = time.monotonic_ns()
        for descriptor, _ in ready:
            if descriptor == self._wake:
                self._stopping = True
            elif descriptor == self._descriptor:
                self._hear(now_ns, edge=now_ns - asked_ns > 100_000)
            else:
                self._knocked(descriptor)
        return now_ns

    def _hear(self, now_ns: int, edge: bool) -> None:
        """Takes what is there, as far as there is room."""
        inlet = self._inlet
        while room := min(inlet.room, CHUNK_BYTES):
            try:
                count = self._receive(self._chunk[:room])
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if not count:
                inlet.end()
                return
            self._heard_ns = now_ns
            try:
                inlet.put(self._chunk[:count], now_ns, edge)
            except WireError as error:  # what came before it goes on first
                self._fault = error
                inlet.end()
                return
            if count < room:
                return

    def _silent(self, now_ns: int) -> str:
        silent_s = (now_ns - self._heard_ns) / NS_PER_S
        for_s = f"{silent_s:.1f}" if silent_s < 1 else "more than 1"
        return f"{self._who()} has brought nothing for {for_s} s"

    def _away(self, why: str) -> NoReturn:
        self._is_away = True
        raise DeviceError(f"{self.name}: {why}; waiting")

    def _over(self) -> NoReturn:
        """All that came went on, and nothing follows."""
        if self._fault is not None:
            self._reject(self._fault)
        self._away(self._ended())

    def _reject(self, error: WireError) -> NoReturn:
        who = self._who()
        self._refuse(str(error))
        self._away(f"{who} wrote what cannot be taken: {error}")
