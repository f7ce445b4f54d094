"""Gentle changes from block to block: a fade, and one sound that takes the place of another.

Thread: the chain's.
"""

import numpy as np

from capstand.processing.processor import Samples, Shape


class Fade:
    """Weights from 0 to 1 along half a cosine, over ``fade_ms``; ``wait_ms`` of zeros before."""

    def __init__(self, rate_hz: int, fade_ms: float, wait_ms: float = 0.0) -> None:
        frames = max(1, round(rate_hz * fade_ms / 1000))
        rising = 0.5 - 0.5 * np.cos(np.pi * (np.arange(frames) + 0.5) / frames)
        wait = np.zeros(round(rate_hz * wait_ms / 1000))
        self._weights = np.concatenate([wait, rising]).astype(np.float32).reshape(-1, 1)
        self._at = 0

    def take(self, frames: int) -> Samples:
        """Those of the next frames, as a column."""
        weights = self._weights[self._at : self._at + frames]
        self._at += frames
        missing = frames - len(weights)
        return np.pad(weights, ((0, missing), (0, 0)), constant_values=1.0) if missing else weights

    @property
    def begins(self) -> bool:
        return self._at == 0

    @property
    def done(self) -> bool:
        return self._at >= len(self._weights)


class Crossfade:
    """From one sound to another that runs beside it. Both have as many frames, though perhaps not
    at once, as two resamplers do."""

    def __init__(self, fade: Fade, shape: Shape) -> None:
        self._fade = fade
        self._old = self._new = np.empty((0, shape.channels), np.float32)

    @property
    def done(self) -> bool:
        return self._fade.done

    def mix(self, old: Samples, new: Samples) -> Samples:
        if len(old) != len(new) or len(self._old) or len(self._new):
            old, new = np.concatenate([self._old, old]), np.concatenate([self._new, new])
        frames = min(len(old), len(new))
        self._old, self._new = old[frames:], new[frames:].copy()
        mixed = old[:frames] + (new[:frames] - old[:frames]) * self._fade.take(frames)
        return np.concatenate([mixed, self._new]) if self.done else mixed
