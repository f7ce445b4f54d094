"""From one rate to another, as a stream: libsoxr in its variable-rate mode.

That mode gives out a steady number of frames per block (the ordinary one holds back up to 25 ms and
then gives all at once) and its ratio can be moved while it runs. The first frame out lies at the
same time as the first frame in; the last few milliseconds are inside until ``finish``.
"""

import numpy as np
import numpy.typing as npt
import soxr

Float32 = npt.NDArray[np.float32]


class Resampler:
    """Blocks of float32 of shape (frames, channels) from ``rate_hz`` to ``to_hz``."""

    def __init__(self, rate_hz: int, to_hz: int, channels: int) -> None:
        self._stream = soxr.ResampleStream(
            rate_hz, to_hz, channels, dtype="float32", quality="HQ", vr=True
        )
        self._channels = channels

    def process(self, block: Float32) -> Float32:
        """What this block makes it possible to know; now and then a frame more or less."""
        return self._shaped(self._stream.resample_chunk(block))

    def finish(self) -> Float32:
        """What is still inside, at the end of the sound."""
        nothing = np.zeros((0, self._channels), np.float32)
        return self._shaped(self._stream.resample_chunk(nothing, last=True))

    def _shaped(self, block: npt.NDArray[np.float32]) -> Float32:
        return block.reshape(-1, self._channels)
