"""Several devices as one source, in order of preference: the first that is there is taken.

While a lesser one is in use, better ones are tried now and then: at once when a sound device came
(``retry_now``), else after a pause that doubles. Trying takes nothing from the one in use. A better
one is opened beside it, which a card that is away, busy or cannot do what is asked does not even
get to, and then has to bring a period: only frames prove life. Only then is the lesser one read to
its end, at a block boundary, and closed. What the better one brought so far was captured already,
from the other; it is thrown away, and a period more, so that no moment is heard twice. The frames
that fall between, at most two periods and what closing takes, are a gap by time, ``SWITCHED``.

A device that was opened and brought nothing goes behind the others the next time.

Thread: capture; ``retry_now`` and ``wake`` are for any.
"""

import time
from collections.abc import Callable, Sequence

from capstand.accounting.stats import Cause
from capstand.audio.block import NS_PER_S
from capstand.capture.source import (
    UNKNOWN,
    Adjustable,
    Flow,
    Flowing,
    NegotiatedParams,
    Reading,
    Slot,
    Source,
)
from capstand.config.controls import ControlState, Setting
from capstand.config.schema import CaptureConfig
from capstand.errors import DeviceError

SHORTEST_PAUSE_NS = 10 * NS_PER_S
LONGEST_PAUSE_NS = 300 * NS_PER_S
TRIAL_NS = 2 * NS_PER_S
"""So long a better device may take to bring its first period."""


class Failover:
    """``sources``, the best one first, all to be asked for the same."""

    def __init__(
        self,
        sources: Sequence[Source],
        capture: CaptureConfig,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._sources = sources
        self._now_ns = now_ns
        self._unheard = memoryview(bytearray(capture.slot_bytes))
        self._at = 0  # the source in use
        self._open = False
        self._brought = False  # it has brought frames since it was opened
        self._silent: set[int] = set()  # those that brought nothing when they were in use
        self._better: tuple[int, NegotiatedParams] | None = None  # on trial
        self._proven = False  # it has brought frames
        self._until_ns = 0  # the end of its trial
        # of a source just taken over, until it brings frames
        self._arrived: NegotiatedParams | None = None
        self._retry_requested = False
        self._pause_ns = SHORTEST_PAUSE_NS
        self._due_ns = 0

    def open(self) -> NegotiatedParams:
        self.close()
        self._retry_requested = False
        errors = []
        for at in sorted(range(len(self._sources)), key=lambda at: (at in self._silent, at)):
            try:
                params = self._sources[at].open()
            except DeviceError as error:
                self._sources[at].close()
                errors.append(error)
                continue
            self._at, self._open, self._brought = at, True, False
            self._pause_ns = SHORTEST_PAUSE_NS
            self._due_ns = self._now_ns() + self._pause_ns
            return params
        raise DeviceError(
            "; ".join(str(error) for error in errors),
            errors[0].errno,
            refused=all(error.refused for error in errors),
        )

    def close(self) -> None:
        if self._open and not self._brought:
            if len(self._silent) == len(self._sources) - 1:
                self._silent.clear()
            self._silent.add(self._at)
        self._open = False
        self._better = self._arrived = None
        for source in self._sources:
            source.close()

    def wake(self) -> None:
        for source in self._sources:
            source.wake()

    @property
    def batch_ms(self) -> int:
        return self._sources[0].batch_ms

    @batch_ms.setter
    def batch_ms(self, batch_ms: int) -> None:
        for source in self._sources:
            source.batch_ms = batch_ms

    @property
    def block_frames(self) -> int:
        flowing = (one.block_frames for one in self._sources if isinstance(one, Flowing))
        return max(flowing, default=0)

    @block_frames.setter
    def block_frames(self, block_frames: int) -> None:
        for source in self._sources:
            if isinstance(source, Flowing):
                source.block_frames = block_frames

    @property
    def wary(self) -> bool:
        return self._sources[self._at].wary

    @wary.setter
    def wary(self, wary: bool) -> None:
        self._sources[self._at].wary = wary

    @property
    def controls(self) -> tuple[ControlState, ...]:
        """Of the source in use."""
        source = self._sources[self._at]
        return source.controls if isinstance(source, Adjustable) else ()

    def adjust(self, wanted: Sequence[tuple[str, Setting]]) -> None:
        for source in self._sources:
            if isinstance(source, Adjustable):
                source.adjust(wanted)

    def restart(self) -> None:
        self._sources[self._at].restart()

    def advice(self) -> str:
        return self._sources[self._at].advice()

    def retry_now(self) -> None:
        """A sound device came or went: try the better ones now."""
        self._retry_requested = True

    def read(self, slot: memoryview, timeout_ms: int) -> Reading:
        wait_ms = timeout_ms
        if self._at:
            if self._better is not None:
                wait_ms = self._probe(timeout_ms)
            elif self._retry_requested or self._now_ns() >= self._due_ns:
                self._open_better()
        reading = self._sources[self._at].read(slot, wait_ms)
        if reading.frames:
            self._brought = True
            if self._arrived is not None:
                reading.lost, reading.cause = UNKNOWN, Cause.SWITCHED
                reading.params, self._arrived = self._arrived, None
        elif self._better is not None and self._proven:
            self._take_over(timeout_ms)
        return reading

    def flow(self, slot: Slot, timeout_ms: int) -> Flow | None:
        source = self._sources[self._at]
        if self._at == 0 and isinstance(source, Flowing):
            return source.flow(slot, timeout_ms)
        return None

    def _open_better(self) -> None:
        pause_ns = SHORTEST_PAUSE_NS if self._retry_requested else 2 * self._pause_ns
        self._retry_requested, self._pause_ns = False, min(pause_ns, LONGEST_PAUSE_NS)
        self._due_ns = self._now_ns() + self._pause_ns
        for at in range(self._at):
            try:
                self._better = at, self._sources[at].open()
            except DeviceError:
                self._sources[at].close()
                continue
            self._proven = False
            self._until_ns = self._now_ns() + TRIAL_NS
            return

    def _probe(self, timeout_ms: int) -> int:
        """Reads from the better one and throws it away; how long the one in use may be waited for:
        not at all once the better one has proved alive.
        """
        assert self._better is not None
        source = self._sources[self._better[0]]
        try:
            self._proven = bool(source.read(self._unheard, 0).frames) or self._proven
            if self._proven:
                return 0
            if self._now_ns() < self._until_ns:
                return timeout_ms
        except DeviceError:
            pass
        source.close()
        self._better = None
        return timeout_ms

    def _take_over(self, timeout_ms: int) -> None:
        """The one in use has been read to its end: closes it and goes on with the better one."""
        assert self._better is not None
        self._sources[self._at].close()
        self._at, self._arrived = self._better
        self._better, self._brought = None, False
        self._silent.discard(self._at)
        self._due_ns = self._now_ns() + self._pause_ns
        source = self._sources[self._at]
        while source.read(self._unheard, 0).frames:
            pass
        source.read(self._unheard, timeout_ms)
