"""Errors by whose fault they are: the operator's, the card's, the peer's.

Each says where, what was found, what was expected and what to do. A broken promise of our own
is an assert.
"""


class CapstandError(Exception):
    """The common root; its text is one line for a person."""


class ConfigError(CapstandError):
    """The operator's: every fault of a configuration file at once.

    ``faults`` holds one printable line each, in the order of the file.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class DeviceError(CapstandError):
    """The card's: ``errno`` where the system gave one, else 0.

    ``refused`` is true where waiting does not help: the card is there and cannot do what is asked.
    """

    def __init__(self, text: str, errno: int = 0, *, refused: bool = False) -> None:
        super().__init__(text)
        self.errno = errno
        self.refused = refused


class SinkError(CapstandError):
    """The peer's: a disk, a channel, a server."""


class SinkBusy(SinkError):
    """The peer takes nothing just now, but the connection to it goes on; the block is dropped.

    ``taken`` counts the frames of the block that were delivered all the same.
    """

    def __init__(self, text: str, taken: int = 0) -> None:
        super().__init__(text)
        self.taken = taken
