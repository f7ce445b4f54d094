"""Where blocks come from: the protocol between a device and the capture thread.

A source counts only what it can know. Frames that the device itself counted as lost are ``lost``;
where only time can tell (the stream was stopped, the device was away), ``lost`` is ``UNKNOWN`` and
the capturer works it out from the clock.
"""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from capstand.accounting.stats import Cause
from capstand.audio.block import AudioFormat
from capstand.config.controls import ControlState, Setting

UNKNOWN = -1


class NegotiatedParams(NamedTuple):
    """What the device agreed to. ``exact``: losses are counted from the device's own pointers.
    ``successor``: another device than before answers to the same name, in words; told until the
    next one does.
    """

    device: str
    format: AudioFormat
    period_frames: int
    buffer_frames: int
    exact: bool
    successor: str | None = None


class Reading:
    """What one read brought; one object per source, reused.

    ``frames``: frames put into the slot, 0 when nothing was there.
    ``lost``, ``cause``: frames lost right before those in the slot, and why.
    ``short``: the device has also delivered less than its rate there, by at most so many frames;
    the clock tells how many at the stamp, which is that of the look that shows it best.
    ``stamp_ns``, ``avail``: at ``stamp_ns`` the device had produced ``avail`` frames counted from
    the first one in the slot; ``stamp_ns`` 0 means there was no usable stamp.
    ``edge``: the device had just come to that, and so woke the reader; any other look may be late
    by as much as the device's pointer moves at once.
    ``params``: where the frames come from another device than those before, what that one agreed
    to; then ``lost`` is ``UNKNOWN``, and the reader sets it back to None.
    """

    __slots__ = ("avail", "cause", "edge", "frames", "lost", "params", "short", "stamp_ns")

    def __init__(self) -> None:
        self.frames = 0
        self.lost = self.short = 0
        self.cause = Cause.OVERRUN
        self.stamp_ns = 0
        self.avail = 0
        self.edge = False
        self.params: NegotiatedParams | None = None


class Source(Protocol):
    """A capture device. All calls come from the capture thread, but ``wake``.

    ``open`` and ``read`` raise DeviceError; after one, only ``close`` and ``open`` may follow.
    """

    batch_ms: int
    """So long, at most an eighth of its buffer, a device may be left alone while sound flows: where
    no sink is in a hurry, each wake-up costs more than what it does. Any thread."""
    wary: bool
    """The clock is in doubt about the device and wants to see each of its moves; no patience."""

    def open(self) -> NegotiatedParams:
        """Opens, configures and checks what was granted; the stream is ready to run."""

    def read(self, slot: memoryview, timeout_ms: int) -> Reading:
        """Waits for one period at most ``timeout_ms`` and puts it into ``slot``."""

    def restart(self) -> None:
        """Stops the stream; the next ``read`` sets it going, and what is missing is ``UNKNOWN``."""

    def advice(self) -> str:
        """What a person can do about a device that stays silent; asked when nothing comes."""

    def close(self) -> None:
        """Lets the device go; may be called at any time, also twice."""

    def wake(self) -> None:
        """Makes a waiting ``read`` return at once, from now on. Any thread."""


Flow = Generator[Reading, None, None]
Slot = Callable[[], memoryview]
"""Where the next period goes."""


@runtime_checkable
class Flowing(Protocol):
    """A source that can bring periods in a loop of its own, and several of them as one block."""

    block_frames: int
    """Who reads wants no less at once: so much may come as one block, but at most two periods of
    the configuration, and a quarter of the device's buffer. Any thread."""

    def flow(self, slot: Slot, timeout_ms: int) -> Flow | None:
        """What ``read`` would bring, each period in another ``slot()``, for as long as one follows
        the other and nothing else is to be told; none has a loss before it. Then ``read`` goes on.
        May be closed after any of them; None where there is nothing of that kind now. It raises
        DeviceError."""


@runtime_checkable
class Adjustable(Protocol):
    """A source that has controls, such as a card's capture volume."""

    controls: tuple[ControlState, ...]
    """As they were set last. Any thread."""

    def adjust(self, wanted: Sequence[tuple[str, Setting]]) -> None:
        """From now on, also after the next ``open``, these are wanted. Any thread."""
