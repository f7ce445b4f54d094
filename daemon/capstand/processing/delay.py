"""A delay line: what went in, so many frames later. Thread: the chain's."""

from typing import Any

import numpy as np

from capstand.processing.processor import Samples


class DelayLine:
    """Holds the newest block and the ``delay_frames`` before it."""

    def __init__(self, delay_frames: int, channels: int) -> None:
        self.delay_frames = delay_frames
        self._held = np.zeros((delay_frames, channels), np.float32)
        self._end = delay_frames
        self._frames = 0

    def feed(self, block: Samples) -> None:
        self._frames = len(block)
        end = self._end + self._frames
        if end > len(self._held):
            self._rewind()
            end = self._end + self._frames
        self._held[self._end : end] = block
        self._end = end

    def read(self) -> Samples:
        """As many frames as were fed last; they are the line's own, and not to be changed."""
        first = self._end - self._frames - self.delay_frames
        return self._held[first : first + self._frames]

    def clear(self) -> None:
        self._held[: self._end] = 0.0

    def _rewind(self) -> None:
        """The delay back to the beginning, with room for some blocks."""
        kept, delay = self._held[self._end - self.delay_frames : self._end], self.delay_frames
        room = delay + max(delay, 4 * self._frames)
        if room > len(self._held):
            self._held = np.zeros((room, kept.shape[1]), np.float32)
        self._held[:delay] = kept
        self._end = delay


class Delay:
    """The processor."""

    stays_finite = True

    def __init__(self, delay_frames: int, channels: int) -> None:
        self.delay_frames = delay_frames
        self._line = DelayLine(delay_frames, channels)

    def process(self, block: Samples) -> Samples:
        self._line.feed(block)
        return self._line.read().copy()

    def reset(self) -> None:
        self._line.clear()

    def change(self, settings: Any) -> bool:
        return False

    def figures(self) -> dict[str, object]:
        return {}
