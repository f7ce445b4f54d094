"""What main tells the process of a stream; sent by pickle, since main is trusted."""

from typing import NamedTuple

from capstand.config.schema import StreamConfig


class Exchange(NamedTuple):
    """Other sinks, processors or settings of the card's controls. The descriptors that come along
    are those of the chain (``intake.Chained``), where there is one, and the eventfds of all live
    sinks of the captured ring, which want so many frames at once (0: each block). ``runs`` are
    those of the other sinks, of an Intake."""

    config: StreamConfig
    gathers: tuple[int, ...]
    runs: dict[str, bytes]


class Release(NamedTuple):
    who: str
    words: str


class Resume(NamedTuple):
    who: str


class RetryNow(NamedTuple):
    pass


class Stop(NamedTuple):
    """The device is wanted no more; an End follows."""


class Processed(NamedTuple):
    """After an End, where there is a chain: that has ended."""


class End(NamedTuple):
    """Drain and close, within so many seconds from now."""

    within_s: float
