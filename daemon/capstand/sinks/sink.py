"""Where blocks go: the protocol between an outlet and a peer (a disk, a channel, a server).

All calls come from the outlet's thread. A sink may block for as long as its peer does; it sees
every gap as a jump of ``first_frame``.
"""

from typing import Protocol

from capstand.block import Block


class Sink(Protocol):
    """A peer that takes blocks. ``open``, ``write`` and ``flush`` raise SinkError."""

    detail: str
    """One phrase for the status line, such as the file being written. Read by any thread."""

    def open(self) -> None:
        """Gets ready; after a SinkError it is tried again later."""

    def write(self, block: Block) -> None:
        """Delivers the whole block, or raises and has delivered nothing of it."""

    def flush(self) -> None:
        """About once a second: makes what was written safe."""

    def close(self) -> None:
        """Ends cleanly; also after an error. Raises SinkError when what was written is in doubt."""
