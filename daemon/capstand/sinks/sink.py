"""Where blocks go: the protocol between an outlet and a peer (a disk, a channel, a server).

All calls but ``condition`` and ``figures`` come from the outlet's thread. A sink may block for as
long as its peer does; it sees every gap as a jump of ``first_frame``.
"""

from typing import NamedTuple, Protocol

from capstand.block import Block


class Condition(NamedTuple):
    """What ails a sink although it raises nothing, each in words for a person, or None.

    ``concern``: blocks are taken, but something is wrong. ``hung``: a call to the peer's library
    does not come back. ``spent``: that library can go on only in a new process.
    """

    concern: str | None = None
    hung: str | None = None
    spent: str | None = None


WELL = Condition()


class Sink(Protocol):
    """A peer that takes blocks. ``open``, ``write`` and ``flush`` raise SinkError."""

    inserted_frames: int = 0
    """Silence put in place of missing sound, in frames of the stream. Any thread."""

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

    def condition(self) -> Condition:
        """Any thread."""
        return WELL

    def figures(self, now_ns: int) -> dict[str, object]:
        """What else there is to know, for ``capstand status --json``. Any thread."""
        return {}
