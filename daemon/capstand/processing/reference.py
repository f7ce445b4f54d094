"""What a loudspeaker plays, as the microphone's clock has it: the reference of echo cancellation.

Both cards have a crystal of their own, and both clocks are known in CLOCK_MONOTONIC. So the sound
of the far side is kept with the time of each frame, and for a block of the near side it is read at
the times of that block's frames, between its own frames by a windowed sinc. Nothing drifts and
nothing has to settle: what one block begins with, the times of the next say again. They are only
followed softly (``FOLLOW_S``), since a clock corrects itself by microseconds from block to block,
and a canceller hears that; a difference above ``JUMP_S`` is a gap or another clock, and is taken.

What has not come yet, or was lost, is silence. The sinc is cut at half the lower of both rates.

Thread: the chain's.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from capstand.audio.block import NS_PER_S
from capstand.processing.processor import Samples
from capstand.processing.sidechain import Sidechain, SidechainReader
from capstand.processing.whole import mended

TAPS = 24
PHASES = 256
KAISER = 8.0
FOLLOW_S = 2.0
JUMP_S = 0.001
KEPT_S = 4.0


class Reference:
    """Mono sound of ``far_hz``, given out at ``near_hz``. ``missing``: frames that were asked for
    and not there, because they had not come or were lost."""

    def __init__(self, far_hz: int, near_hz: int) -> None:
        self.missing = 0
        self._near_hz = near_hz
        self._kept = np.zeros(round(KEPT_S * far_hz), np.float32)
        self._came = np.zeros(len(self._kept), bool)
        self._margin = _reach(far_hz, near_hz)
        self._table = _sinc(far_hz, near_hz)
        self._end = 0  # frames of the far side so far, lost ones counted
        self._anchor_ns = 0  # when the frame that comes next is sampled
        self._ns_per_frame = NS_PER_S / far_hz
        self._position: float | None = None  # of the far side, for the next near frame

    def put(self, block: Samples, captured_at_ns: int, ns_per_frame: float) -> None:
        """A block of the far side, any number of channels. What is between it and the one before
        was lost."""
        samples = mended(block).mean(axis=1, dtype=np.float32)
        if self._end:
            lost = round((captured_at_ns - self._anchor_ns) / ns_per_frame)
            if lost > JUMP_S * NS_PER_S / ns_per_frame:
                self._write(np.zeros(min(lost, len(self._kept)), np.float32), came=False)
                self._end += max(0, lost - len(self._kept))
        self._write(samples)
        self._anchor_ns = captured_at_ns + round(len(samples) * ns_per_frame)
        self._ns_per_frame = ns_per_frame

    def _write(self, samples: npt.NDArray[np.float32], came: bool = True) -> None:
        samples = samples[-len(self._kept) :]
        at = self._end % len(self._kept)
        first = min(len(samples), len(self._kept) - at)
        self._kept[at : at + first] = samples[:first]
        self._kept[: len(samples) - first] = samples[first:]
        self._came[at : at + first] = self._came[: len(samples) - first] = came
        self._end += len(samples)

    def take(self, at_ns: int, frames: int, ns_per_frame: float) -> Samples:
        """What was played while ``frames`` were captured, the first of them at ``at_ns``; one
        channel."""
        if not self._end:
            self.missing += frames
            return np.zeros((frames, 1), np.float32)
        step = ns_per_frame / self._ns_per_frame
        told = self._end + (at_ns - self._anchor_ns) / self._ns_per_frame
        begin = told if self._position is None else self._position
        error = told - begin
        if abs(error) * self._ns_per_frame > JUMP_S * NS_PER_S:
            begin = told
        else:
            step += error / (FOLLOW_S * self._near_hz)
        self._position = begin + frames * step
        return self._read(begin + step * np.arange(frames))[:, np.newaxis]

    def _read(self, positions: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        whole = np.floor(positions).astype(np.int64)
        phase = np.rint((positions - whole) * PHASES).astype(np.int64)
        reach = self._margin
        there = (whole >= self._end - len(self._kept) + reach) & (whole < self._end - reach)
        there &= self._came.take(whole, mode="wrap")
        missing = len(whole) - int(np.count_nonzero(there))
        self.missing += missing
        first, last = int(whole[0]) + 1 - reach, int(whole[-1]) + reach
        around = self._kept.take(np.arange(first, last + 1), mode="wrap")
        near = sliding_window_view(around, 2 * reach)[whole - whole[0]]
        read: npt.NDArray[np.float32] = np.einsum("ft,ft->f", near, self._table[phase])
        if missing:
            read[~there] = 0
        return read

    def restart(self) -> None:
        """The near side's times begin anew."""
        self._position = None


class SidechainReference(Reference):
    """Fed by a sidechain: what has come until now is put in before any is taken."""

    def __init__(self, far: Sidechain, near_hz: int) -> None:
        super().__init__(far.audio.rate_hz, near_hz)
        self._reader = SidechainReader(far)

    def take(self, at_ns: int, frames: int, ns_per_frame: float) -> Samples:
        for block, moment in self._reader.read():
            self.put(block, *moment)
        return super().take(at_ns, frames, ns_per_frame)


def _reach(far_hz: int, near_hz: int) -> int:
    """Frames of the far side on either side of a time that count for it."""
    return round(TAPS / 2 * max(1.0, far_hz / near_hz))


def _sinc(far_hz: int, near_hz: int) -> npt.NDArray[np.float32]:
    """A row of weights for each place between two frames, the last that of the next frame."""
    reach = _reach(far_hz, near_hz)
    cut = 0.92 * min(1.0, near_hz / far_hz)
    away = np.arange(1 - reach, reach + 1) - np.arange(PHASES + 1)[:, np.newaxis] / PHASES
    inside = np.clip(1 - (away / reach) ** 2, 0, None)
    window = np.i0(KAISER * np.sqrt(inside)) / np.i0(KAISER)
    weights = cut * np.sinc(cut * away) * window
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
