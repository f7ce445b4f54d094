"""Automatic gain: speech comes to a target level, from below and from above, and noise does not.

Measured every 100 ms, all channels together. The quietest 100 ms of the last seconds are the noise,
so what never pauses (a fan, a test tone) is noise. What is ``ABOVE_DB`` above that is speech, and
its mean power over ``MEMORY_S`` its level. The gain goes to what that lacks of the target, by
``db_per_s``, never above ``max_gain_db``, and only so high that the noise stays below
``noise_dbfs``. Nothing else moves it, so a pause does not.

The target is reached, within 2 dB, after the time that the gain takes at ``db_per_s`` and 5 s more.
It is slow on purpose, and lets peaks be: a limiter comes behind it.

Own lines: of the libraries at hand WebRTC's has no target and never turns down, and libspeexdsp's
works on 16 bits and holds the level 19 dB below the target that it was given (both measured).

Thread: the chain's.
"""

import math
from collections import deque
from typing import Any

import numpy as np

from capstand.processing.processor import Samples, Shape
from capstand.processing.whole import mended

HOP_S = 0.1
NOISE_S = 5.0
ABOVE_DB = 4.0
HEARD_DBFS = -70.0
SILENT_DBFS = -100.0
"""Below it is no noise but nothing at all: a mute switch, a gap."""
MEMORY_S = 3.0


class AutomaticGain:
    """``gain_db`` is what it has come to. No delay."""

    stays_finite = True
    delay_frames = 0

    def __init__(self, settings: Any, shape: Shape) -> None:
        self.gain_db = 0.0
        self._shape = shape
        self._hop_frames = round(HOP_S * shape.rate_hz)
        self._hops: deque[float] = deque(maxlen=round(NOISE_S / HOP_S))
        self._before = SILENT_DBFS  # the hop before this one
        self._whole = False  # whether the last hop has sound before it
        self._noise_dbfs = SILENT_DBFS
        self._speech = 0.0  # power, the mean of so many hops
        self._heard = 0
        self._from = self._to = 1.0  # the gain where this hop began, and where it ends
        self._settings = settings
        self._begin_hop()

    def process(self, block: Samples) -> Samples:
        block = mended(block)
        out = np.empty_like(block)
        at = 0
        while at < len(block):
            count = min(len(block) - at, self._hop_frames - self._frames)
            self._part(block[at : at + count], out[at : at + count])
            at += count
            if self._frames == self._hop_frames:
                self._end_hop()
        return out

    def _part(self, samples: Samples, out: Samples) -> None:
        flat = samples.reshape(-1)
        self._power += float(flat.dot(flat))
        if self._from == self._to:
            np.multiply(samples, np.float32(self._to), out=out)
        else:
            step = (self._to - self._from) / self._hop_frames
            first = self._from + step * (self._frames + 1)
            ramp = first + step * np.arange(len(samples))
            np.multiply(samples, ramp.astype(np.float32)[:, np.newaxis], out=out)
        self._frames += len(samples)

    def _begin_hop(self) -> None:
        self._frames, self._power = 0, 0.0

    def _end_hop(self) -> None:
        power = self._power / (self._hop_frames * self._shape.channels)
        level = _db(power)
        self._note_noise(level)
        if self._whole and level > max(HEARD_DBFS, self._noise_dbfs + ABOVE_DB):
            self._heard = min(self._heard + 1, round(MEMORY_S / HOP_S))
            self._speech += (power - self._speech) / self._heard
        self._begin_hop()
        step = self._settings.db_per_s * HOP_S
        self.gain_db += min(step, max(-step, self._wanted_db() - self.gain_db))
        self._from, self._to = self._to, 10 ** (self.gain_db / 20)

    def _note_noise(self, level: float) -> None:
        """A hop counts that has sound before it and after it: one that a mute switch or a gate has
        cut is no noise."""
        silent, was_silent = level <= SILENT_DBFS, self._before <= SILENT_DBFS
        if self._whole and not silent:
            self._hops.append(self._before)
        self._whole = not (silent or was_silent)
        self._before = level
        heard = (*self._hops, level) if self._whole else self._hops
        self._noise_dbfs = min(heard, default=SILENT_DBFS)

    def _wanted_db(self) -> float:
        if not self._heard:
            return self.gain_db
        settings = self._settings
        wanted = settings.target_dbfs - _db(self._speech)
        quiet = max(0.0, settings.noise_dbfs - self._noise_dbfs)
        return float(max(-settings.max_cut_db, min(wanted, settings.max_gain_db, quiet)))

    def reset(self) -> None:
        """Levels and gain are those of the room, before a gap and after it; only this hop is
        begun anew."""
        self._begin_hop()
        self._from = self._to

    def change(self, settings: Any) -> bool:
        self._settings = settings
        return True

    def figures(self) -> dict[str, object]:
        return {
            "gain_db": round(self.gain_db, 1),
            "speech_dbfs": round(_db(self._speech), 1) if self._heard else None,
            "noise_dbfs": round(self._noise_dbfs, 1),
        }


def _db(power: float) -> float:
    return 10 * math.log10(power + 1e-20)
