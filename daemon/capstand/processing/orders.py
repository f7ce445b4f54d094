"""What main and the process of a chain have in common: orders, sent by pickle, since main is
trusted, and the words of its Page. Loads nothing that computes."""

from enum import IntEnum
from typing import Any, NamedTuple

from capstand.audio.block import AudioFormat


class Word(IntEnum):
    """The words of a chain's Page."""

    TRIES = 1  # chains that were begun since one had worked for a minute
    DELAY = 2  # of the last chain, in frames
    MISSED = 3  # frames of which the captured ring held nothing any more


class SidechainFormat(NamedTuple):
    """Another stream that a chain listens to; its captured ring's descriptor comes along."""

    stream: str
    audio: AudioFormat
    period_ms: float


class Work(NamedTuple):
    """What a chain's process is given: the ``audio`` that is captured, and how the processed ring
    is laid out."""

    settings: tuple[Any, ...]
    audio: AudioFormat
    slots: int
    slot_bytes: int
    gather_frames: int
    priority: int
    sidechains: tuple[SidechainFormat, ...] = ()


class Set(NamedTuple):
    """Other settings, and readers of the processed ring: the descriptors that come along are those
    of the ``sidechains``, then the eventfds of the pusher, the one for each quarter first, and of
    all live sinks; none for a chain that is hosted, which wakes the same ones as before."""

    settings: tuple[Any, ...]
    gather_frames: int
    sidechains: tuple[SidechainFormat, ...] = ()


class Finish(NamedTuple):
    """End before the captured block of this number."""

    number: int
