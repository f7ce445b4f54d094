"""A processor: one stage of a chain, float32 frames in and out.

Blocks are numpy arrays of shape (frames, channels), C-contiguous, full scale ±1.0. A stage keeps
its state from block to block, so that where a block ends is never heard. It may be anybody's: what
it raises, and what comes out of it that cannot be, is the chain's to find and to bypass.

One that has to know when its sound was captured has a method ``at``, besides: the chain calls it
before each ``process`` with the values of a ``Moment``. One that works and yet is not of the use it
should be says why in ``concern``, a line or None: the stream is DEGRADED for as long.

Thread: the one whose chain it is; ``figures`` any.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from capstand.audio.block import Shape as Shape

Samples = npt.NDArray[np.float32]


class Moment(NamedTuple):
    """When the first frame of a block was captured, and the pace of its stream's clock."""

    captured_at_ns: int
    ns_per_frame: float


class Processor(Protocol):
    """One stage, made for the Shape of what comes in. It may raise anything."""

    delay_frames: int
    """By how much its sound comes later, in frames of what comes out; the same while it lives."""

    def process(self, block: Samples) -> Samples:
        """(frames, channels in) to (frames, channels out): as many frames, or of a resampler those
        that are ready. It may work in place, and use the array it returns again at the next call.
        """
        ...

    def reset(self) -> None:
        """What follows does not belong to what came before, as after a gap: forget it."""
        ...

    def change(self, settings: Any) -> bool:
        """Takes other settings of its type from the next block on, without a click. False: it has
        to be made anew, and the chain fades from the old one to the new one."""
        ...

    def figures(self) -> dict[str, object]:
        """What there is to know, for ``capstand status --json``; cheap."""
        ...
