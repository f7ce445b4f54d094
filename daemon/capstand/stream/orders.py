"""What main tells the process of a stream; sent by pickle, since main is trusted."""

from typing import NamedTuple

from capstand.config.schema import Stream as StreamConfig


class Exchange(NamedTuple):
    """Other sinks. The descriptors that come along are the eventfds of all live ones."""

    config: StreamConfig


class Release(NamedTuple):
    who: str
    words: str


class Resume(NamedTuple):
    who: str


class Hasten(NamedTuple):
    pass


class Stop(NamedTuple):
    """The device is wanted no more; an End follows."""


class End(NamedTuple):
    """Drain and close, within so many seconds from now."""

    within_s: float
