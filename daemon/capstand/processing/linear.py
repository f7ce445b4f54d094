"""What mixes channels and filters them: gain, channels and all filters are of this one class.

All of them are linear, and a filter does the same to every channel, so any row of them is one
matrix between the channels followed by one cascade of sections: the chain joins neighbours to one
processor, and a gain costs nothing where a filter follows it.

A filter is computed without a loop over samples. The cascade is one state space (x: samples, s:
states, n of them). A block is cut into M rows of L samples; then, with everything that follows
from the coefficients worked out beforehand,

    inner  = rows of samples · K               what each row adds to the states
    states = [first state, inner] · W          those at the beginning of each row, and the last
    output = [rows of samples, states] · T     T: impulse response, what a state rings on with

are three products of matrices, exact to double precision. They are worked out for blocks of 10, 20
and 40 ms; what remains of another length goes through shorter rows one by one.

Thread: the chain's.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from capstand.processing.biquads import Biquad
from capstand.processing.processor import Samples, Shape

Matrix = npt.NDArray[np.float64]
LENGTHS_MS = (40, 20, 10)
MOST_SECTIONS = 8
"""A longer cascade is computed in parts: the cost of a row's states grows by their square."""
ROW = 32
TINY = 1e-20
"""States below are set to 0: what rings on in silence would get so small that it is slow."""
TINY_BLOCKS = 16


class Response(NamedTuple):
    """``matrix`` (channels in, channels out), then ``sections`` on each channel."""

    matrix: Matrix
    sections: tuple[Biquad, ...] = ()

    def then(self, other: "Response") -> "Response":
        return Response(self.matrix @ other.matrix, self.sections + other.sections)


def mixing(rows: Sequence[Sequence[float]]) -> Response:
    """``rows``: for each channel that comes out, the gains of all that come in."""
    return Response(np.array(rows, np.float64).T)


def filtering(sections: tuple[Biquad, ...], channels: int, gain: float = 1.0) -> Response:
    return Response(np.eye(channels) * gain, sections)


class Linear:
    """A Response to frames at a rate. Never works in place, and sound stays finite in it."""

    delay_frames = 0
    stays_finite = True

    def __init__(self, response: Response, rate_hz: int) -> None:
        self.response = response
        self._rate_hz = rate_hz
        self._steps: list[_Filter | Callable[[Samples], Samples]] | None = None
        self._folded = 1.0  # the gain that the filters have taken over

    def then(self, other: "Linear") -> "Linear":
        """Both as one."""
        return Linear(self.response.then(other.response), self._rate_hz)

    def process(self, block: Samples) -> Samples:
        for step in self._steps or self.prepare():
            block = step(block)
        return block

    def prepare(self) -> "list[_Filter | Callable[[Samples], Samples]]":
        """Works out the matrices, which takes some milliseconds."""
        if self._steps is None:
            matrix, sections = self.response
            gain = _common_gain(matrix)
            if gain is None:
                self._steps = [_Mixer(matrix)]
            elif sections:
                self._steps, self._folded = [], gain
                sections = (sections[0].times(gain), *sections[1:])
            else:
                self._steps = [] if gain == 1.0 else [_Gain(gain)]
            shape = Shape(self._rate_hz, matrix.shape[1])
            for at in range(0, len(sections), MOST_SECTIONS):
                self._steps.append(_Filter(sections[at : at + MOST_SECTIONS], shape))
        return self._steps

    def continue_from(self, other: "Linear") -> None:
        """The sound that the other one's filters hold is in these from now on, as far as they are
        alike: a gain that changes beside a filter does not disturb it."""
        ours, theirs = (
            [step for step in one.prepare() if isinstance(step, _Filter)] for one in (self, other)
        )
        for mine, its in zip(ours, theirs, strict=False):
            if mine.state.shape == its.state.shape and other._folded:
                mine.state[...] = its.state * (self._folded / other._folded)

    def reset(self) -> None:
        for step in self.prepare():
            if isinstance(step, _Filter):
                step.reset()

    def change(self, settings: Any) -> bool:
        return False

    def figures(self) -> dict[str, object]:
        return {}


def _common_gain(matrix: Matrix) -> float | None:
    """Of a matrix that gives every channel the same gain and mixes nothing."""
    rows, columns = matrix.shape
    gain = float(matrix[0, 0])
    return gain if rows == columns and np.array_equal(matrix, gain * np.eye(rows)) else None


def fitting(buffer: Samples, frames: int) -> Samples:
    """The buffer, or another like it, of so many frames."""
    return buffer if len(buffer) == frames else np.empty((frames, buffer.shape[1]), np.float32)


def multiply(block: Samples, gains: "npt.NDArray[np.floating[Any]]", out: Samples) -> None:
    """Each frame by a gain of its own: channel by channel, of one kind of number, numpy takes half
    as long as for all in one call."""
    factors = gains.astype(np.float32, copy=False)
    for number in range(block.shape[1]):
        np.multiply(block[:, number], factors, out=out[:, number])


class _Gain:
    def __init__(self, gain: float) -> None:
        self._gain = np.float32(gain)
        self._out = np.empty((0, 0), np.float32)

    def __call__(self, block: Samples) -> Samples:
        if self._out.shape != block.shape:
            self._out = np.empty_like(block)
        return np.multiply(block, self._gain, out=self._out)


class _Mixer:
    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix.astype(np.float32)
        self._out = np.empty((0, matrix.shape[1]), np.float32)

    def __call__(self, block: Samples) -> Samples:
        self._out = fitting(self._out, len(block))
        return np.matmul(block, self._matrix, out=self._out)


class _System(NamedTuple):
    """A cascade as one state space, for rows: s' = s·A + x·B, y = s·C + x·D."""

    a: Matrix
    b: Matrix
    c: Matrix
    d: float

    @property
    def order(self) -> int:
        return len(self.b)


def _system(sections: Sequence[Biquad]) -> _System:
    """Transposed direct form II, one section behind the other."""
    whole = _System(np.zeros((0, 0)), np.zeros(0), np.zeros(0), 1.0)
    for section in sections:
        b0, b1, b2, a1, a2 = section
        order = section.order
        a = np.array([[-a1, -a2], [1.0, 0.0]])[:order, :order]
        b = np.array([b1 - a1 * b0, b2 - a2 * b0])[:order]
        c = np.array([1.0, 0.0])[:order]
        size = whole.order + order
        joined = np.zeros((size, size))
        joined[: whole.order, : whole.order] = whole.a
        joined[: whole.order, whole.order :] = np.outer(whole.c, b)
        joined[whole.order :, whole.order :] = a
        whole = _System(
            joined,
            np.concatenate([whole.b, whole.d * b]),
            np.concatenate([whole.c * b0, c]),
            whole.d * b0,
        )
    return whole


class _Rows:
    """What rows of ``length`` samples and fewer need: ``inner`` (K), ``ringing`` over ``states``
    (T), and ``powers`` of A."""

    def __init__(self, system: _System, length: int) -> None:
        order = system.order
        self.powers = np.empty((length + 1, order, order))
        self.powers[0] = np.eye(order)
        for number in range(length):
            self.powers[number + 1] = self.powers[number] @ system.a
        self.inner = np.stack([system.b @ power for power in self.powers[length - 1 :: -1]])
        rung = (self.powers[:length] @ system.c).T  # (order, length): what a state rings on with
        response = np.concatenate([[system.d], system.b @ rung[:, :-1]])
        lag = np.arange(length) - np.arange(length)[:, None]
        self.ringing = np.concatenate([np.where(lag >= 0, response[lag], 0.0), rung])


class _Whole:
    """The products for blocks of one length."""

    def __init__(self, system: _System, frames: int, channels: int) -> None:
        order = system.order
        rows = _rows(frames, order)
        length = frames // rows
        tables = _Rows(system, length)
        self._k, self._t = tables.inner, tables.ringing
        powers = [np.eye(order)]
        for _ in range(rows):
            powers.append(powers[-1] @ tables.powers[length])
        w = np.zeros((rows + 1, order, rows + 1, order))
        for at in range(rows + 1):
            w[0, :, at] = powers[at]
            for earlier in range(at):
                w[earlier + 1, :, at] = powers[at - 1 - earlier]
        self._w = w.reshape((rows + 1) * order, -1)
        both = np.zeros((channels, rows, length + order))
        self._both = both.reshape(channels * rows, -1)
        self._samples, self._starts = both[:, :, :length], both[:, :, length:]
        inner = np.zeros((channels, rows + 1, order))
        self._inner = inner.reshape(channels, -1)
        self._first, self._added = inner[:, 0], inner[:, 1:]
        states = np.zeros_like(inner)
        self._states = states.reshape(channels, -1)
        self._begun, self._last = states[:, :-1], states[:, -1]
        self._output = np.zeros((channels * rows, length))
        self._by_row = self._output.reshape(channels, rows, length).transpose(1, 2, 0)
        self._cut = (rows, length, channels)
        self._given = np.empty((frames, channels), np.float32)
        self._given_by_row = self._given.reshape(self._cut)

    def run(self, block: Samples, state: Matrix) -> Samples:
        self._samples[...] = block.reshape(self._cut).transpose(2, 0, 1)
        self._first[...] = state
        np.matmul(self._samples, self._k, out=self._added)
        np.matmul(self._inner, self._w, out=self._states)
        self._starts[...] = self._begun
        np.matmul(self._both, self._t, out=self._output)
        self._given_by_row[...] = self._by_row
        state[...] = self._last
        return self._given


def _rows(frames: int, order: int) -> int:
    """Into how many rows to cut so that there is least to multiply."""

    def products(rows: int) -> float:
        return frames * (frames / rows + 2 * order) + (rows * order) ** 2

    return min((one for one in range(1, frames + 1) if frames % one == 0), key=products)


class _Filter:
    """A cascade on each channel; ``state`` (channels, order) goes from block to block."""

    def __init__(self, sections: Sequence[Biquad], shape: Shape) -> None:
        system = _system(sections)
        self.state = np.zeros((shape.channels, system.order))
        lengths = [shape.rate_hz * span // 1000 for span in LENGTHS_MS]
        self._whole = {
            frames: _Whole(system, frames, shape.channels) for frames in lengths if frames
        }
        self._rows = _Rows(system, ROW)
        self._out = np.empty((0, shape.channels), np.float32)
        self._blocks = 0

    def reset(self) -> None:
        self.state[:] = 0.0
        self._blocks = 0

    def __call__(self, block: Samples) -> Samples:
        self._blocks += 1
        if self._blocks % TINY_BLOCKS == 0:
            self.state[np.abs(self.state) < TINY] = 0.0
        whole = self._whole.get(len(block))
        return self._in_pieces(block) if whole is None else whole.run(block, self.state)

    def _in_pieces(self, block: Samples) -> Samples:
        self._out = out = fitting(self._out, len(block))
        at = 0
        for frames, whole in self._whole.items():
            while len(block) - at >= frames:
                out[at : at + frames] = whole.run(block[at : at + frames], self.state)
                at += frames
        rows = self._rows
        while at < len(block):
            frames = min(ROW, len(block) - at)
            samples = block[at : at + frames].T.astype(np.float64)
            ringing = rows.ringing[:, :frames]
            out[at : at + frames] = (samples @ ringing[:frames] + self.state @ ringing[ROW:]).T
            self.state[...] = self.state @ rows.powers[frames] + samples @ rows.inner[-frames:]
            at += frames
        return out
