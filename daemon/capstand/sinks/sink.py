"""Where blocks go: the protocol between a sink queue and a peer (a disk, a channel, a server).

All calls come from one thread but where it says so: the sink queue's; behind a spool
(``spool/forwarder.py``) the forwarder's; in a process of its own (``push.py``) always that process'
main thread. A sink may block for as long as its peer does, in a process of its own for 10 s; it
sees every gap as a jump of ``first_frame``.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from capstand.audio.block import Block
from capstand.errors import SinkError


class Checkpoint(NamedTuple):
    """How much of what a sink was given since ``open`` is safe with the peer, in frames of blocks;
    ``cursor`` is the sink's own word for where that is.
    """

    safe_frames: int
    cursor: str


class Account(NamedTuple):
    """What became of the frames that a sink took to deliver later, as far as it is known: so many
    would count as delivered if this process were killed now (``kept``; None: ``delivered``), and
    so many that a process before it took, for the same books, still wait (``resumed``; None: that
    is not known yet).
    """

    delivered: int
    dropped: int
    kept: int | None = None
    resumed: int | None = 0


Event = tuple[str, dict[str, object]]
"""A line for the ledger: its name and what else it says."""


class Sink(Protocol):
    """A peer that takes blocks. ``open``, ``write`` and ``flush`` raise SinkError; then the sink is
    closed and opened again, in a new process where it has one of its own.
    """

    inserted_frames: int = 0
    """Silence put in place of missing sound, in frames of the stream. Any thread."""
    on_disk: bool = False
    """What it takes is kept on a disk: at the end it is waited for longer than a channel."""

    @property
    def concern(self) -> str | None:
        """What is wrong although blocks are taken, in words for a person. Any thread."""
        return None

    @property
    def detail(self) -> str:
        """One phrase for the status line, such as the file being written. Any thread."""

    def open(self) -> None:
        """Gets ready; after a SinkError it is tried again later."""

    def write(self, block: Block) -> None:
        """Delivers the whole block, or raises and has delivered nothing of it.

        SinkBusy means that the connection to the peer goes on and only this block is dropped.
        """

    def flush(self) -> None:
        """About once a second: makes what was written safe."""

    def close(self) -> None:
        """Ends cleanly; also after an error. Raises SinkError when what was written is in doubt."""

    def abandon(self) -> None:
        """The daemon ends and has waited long enough: what hangs is let go of. Main thread."""
        return None

    def checkpoint(self) -> Checkpoint | None:
        """After any call that did not raise. None: what is written is delivered, and the sink
        cannot take anything back.
        """
        return None

    def prepare(self, block: Block) -> None:
        """Gets to where the block will go, such as a new file; ``checkpoint`` then says where.

        May be left out before a ``write``. Raises SinkError.
        """
        return

    def rewind(self, cursor: str) -> None:
        """Before ``open``: takes back what was written after a mark, since it will come again; also
        in a new process. Raises SinkError.
        """
        return

    def account(self) -> Account | None:
        """For a sink that delivers later than it takes. Any thread."""
        return None

    def watch_account(self, changed: Callable[[], None]) -> None:
        """``changed`` is to be called where the ``account`` has changed and no call says so."""
        return

    def events(self) -> Iterable[Event]:
        """What happened since the last call. Main thread."""
        return ()

    def figures(self, now_ns: int) -> dict[str, object]:
        """What else there is to know, for ``capstand status --json``. Any thread."""
        return {}


def nobody() -> None:
    """Watches an account for which no one has asked yet."""


class BrokenSink(Sink):
    """Stands for one whose type, from another distribution, could not make it."""

    detail = ""

    def __init__(self, reason: str, _pace: object = None) -> None:
        self._reason = reason

    def open(self) -> None:
        raise SinkError(self._reason)

    def write(self, block: Block) -> None:
        raise SinkError(self._reason)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
