"""What the tests of processing measure with."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from capstand.audio.block import Shape
from capstand.config.registry import PROCESSORS
from capstand.processing.processor import Processor, Samples

RATE = 48_000
Values = npt.NDArray[np.float64]


def settings(kind: str, **keys: Any) -> Any:
    """As the configuration makes them."""
    return PROCESSORS[kind].schema(kind, **keys)


def made(kind: str, shape: Shape = Shape(RATE, 1), **keys: Any) -> Processor:  # noqa: B008
    one: Processor = PROCESSORS[kind].make(settings(kind, **keys), shape)
    return one


def column(values: Any) -> Samples:
    """Of one channel."""
    return np.asarray(values, np.float32).reshape(-1, 1)


def cut(sound: Samples, lengths: Sequence[int]) -> Iterable[Samples]:
    """Copies, block by block; the lengths come again and again."""
    at = number = 0
    while at < len(sound):
        frames = lengths[number % len(lengths)]
        yield sound[at : at + frames].copy()
        at += frames
        number += 1


def through(processor: Processor, sound: Samples, *lengths: int) -> Samples:
    with np.errstate(all="ignore"):  # as in the thread whose chain it is
        blocks = [processor.process(one).copy() for one in cut(sound, lengths or (480,))]
    return np.concatenate(blocks)


def noise(frames: int, channels: int = 1, level: float = 0.1, seed: int = 1) -> Samples:
    drawn = np.random.default_rng(seed).standard_normal((frames, channels))
    return (level * drawn).astype(np.float32)


def sine(frames: int, hz: float, level: float = 0.5, rate: int = RATE) -> Samples:
    return column(level * np.sin(2 * np.pi * hz / rate * np.arange(frames)))


def impulse(frames: int) -> Samples:
    return column(np.arange(frames) == 0)


def response_db(output: Samples, hz: Values, rate: int = RATE) -> Values:
    """Of an impulse response at frequencies of which each is a whole number of turns in it."""
    turns = np.abs(np.fft.rfft(output[:, 0].astype(np.float64)))
    return np.asarray(20 * np.log10(turns[np.rint(hz * len(output) / rate).astype(int)]))


def bend(sound: Samples) -> float:
    """The largest second difference: a click is a large one."""
    return float(np.abs(np.diff(sound.astype(np.float64), 2, axis=0)).max())


def step(sound: Samples) -> float:
    """The largest step from a frame to the next."""
    return float(np.abs(np.diff(sound.astype(np.float64), axis=0)).max())
