"""What a RemoteSink and the process of its sink say to each other over a socket.

The daemon asks, the sink's process answers, one question at a time:

    question  QUESTION | OPEN: the pickled Plan; WRITE: the samples; FLUSH, CLOSE: nothing
    answer    ANSWER   | JSON with words for a person and how the sink is, or nothing

The daemon is trusted. An answer is not, because native code may have written where it should not:
what it says is checked, and what makes no sense is a ValueError.
"""

import importlib
import socket
import time
from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple

from capstand.audio.clock import Pace
from capstand.sinks.sink import Sink
from capstand.text import clean

QUESTION = Struct("<BIqIqdd?")
"""Question, bytes that follow, first_frame, frames, captured_at_ns, and the three of CarriedPace;
all but the first two are for WRITE."""
ANSWER = Struct("<BIqI")
"""Outcome, frames taken (for BUSY), frames inserted so far, bytes that follow."""
LONGEST_ANSWER = 1_000_000
MOST_VALUES = 10_000
"""Of what a sink tells of itself; what is more is left out."""
AT_ONCE = 16384
"""Most questions and answers come whole with one call; only one is under way at a time."""


class Question(IntEnum):
    OPEN = 1
    WRITE = 2
    FLUSH = 3
    CLOSE = 4


class Outcome(IntEnum):
    DONE = 1
    BUSY = 2
    """SinkBusy."""
    FAILED = 3
    """SinkError."""
    BROKEN = 4
    """Any other exception: the process ends."""


class Plan(NamedTuple):
    """How a sink is made: its class as "module:class", because the daemon does not import it, and
    its arguments; the stream's Pace comes behind them.
    """

    made_by: str
    arguments: tuple[object, ...] = ()

    def make(self, pace: Pace) -> Sink:
        module, _, name = self.made_by.partition(":")
        sink: Sink = getattr(importlib.import_module(module), name)(*self.arguments, pace)
        return sink


class CarriedPace:
    """The pace of the stream's clock, as each block brings it along."""

    ns_per_frame = 0.0
    drift_ppm = 0.0
    settled = False


class Answer(NamedTuple):
    outcome: Outcome
    taken: int
    inserted_frames: int
    said: dict[str, Any]


def send(channel: socket.socket, head: bytes, payload: bytes = b"") -> None:
    sent = channel.sendmsg([head, payload])
    if sent < len(head) + len(payload):
        channel.sendall((head + payload)[sent:])


def receive_question(channel: socket.socket) -> tuple[tuple[Any, ...], bytes]:
    """The fields of its head, and what follows. Raises EOFError."""
    received = _filled(channel, channel.recv(AT_ONCE), QUESTION.size)
    fields = QUESTION.unpack_from(received)
    return fields, _filled(channel, received[QUESTION.size :], fields[1])


def receive_answer(channel: socket.socket, limit_s: float | None = None) -> Answer:
    """All of it within ``limit_s``, which is the channel's timeout until the first bytes are here.

    Raises EOFError, TimeoutError, and ValueError for what is no answer.
    """
    end_s = None if limit_s is None else time.monotonic() + limit_s
    received = _filled(channel, channel.recv(AT_ONCE), ANSWER.size, end_s)
    outcome, taken, inserted_frames, length = ANSWER.unpack_from(received)
    if length > LONGEST_ANSWER:
        raise ValueError(f"an answer of {length} bytes")
    received = _filled(channel, received[ANSWER.size :], length, end_s)
    if len(received) > length:
        raise ValueError(f"{len(received) - length} bytes behind an answer")
    said: object = {}
    if length:
        said = clean.tree(clean.parsed(received), MOST_VALUES)
    if not (isinstance(said, dict) and isinstance(said.get("figures", {}), dict)):
        raise ValueError("an answer that is no table")
    return Answer(Outcome(outcome), taken, inserted_frames, said)


def _filled(
    channel: socket.socket, received: bytes, size: int, end_s: float | None = None
) -> bytes:
    """``received`` and what is missing of ``size`` bytes, until ``end_s``."""
    if len(received) >= size:
        return received
    before_s = channel.gettimeout()
    try:
        while len(received) < size:
            if end_s is not None:
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError
                channel.settimeout(left_s)
            more = channel.recv(size - len(received), socket.MSG_WAITALL)
            if not more:
                raise EOFError
            received += more
    finally:
        channel.settimeout(before_s)
    return received
