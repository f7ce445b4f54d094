"""What all orders about a stream have in common: who may give them, and which stream is meant.

They are obeyed for root, for the daemon's own user and for members of the groups ``audio`` and
``capstand``: whoever may open the card anyway. Thread: main.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from capstand.errors import CapstandError
from capstand.host.peer import GROUPS, Peer


class Named(Protocol):
    @property
    def name(self) -> str: ...


Of = TypeVar("Of", bound=Named)


def allowed(peer: Peer, order: str) -> None:
    """Raises CapstandError for one who has no business with the card."""
    if peer.may():
        return
    raise CapstandError(
        f"uid {peer.uid} may not {order} a stream; only root, capstand's own user and members of "
        f"the groups {' and '.join(GROUPS)}; try sudo"
    )


def named(request: Mapping[str, Any], among: Sequence[Of]) -> Of:
    """The stream that is meant; raises CapstandError where there is none of that name."""
    name = request.get("stream")
    streams = {one.name: one for one in among}
    if type(name) is not str or name not in streams:
        raise CapstandError(
            f"{shown(name)} is not a stream of this daemon; it has {', '.join(streams)}"
        )
    return streams[name]


def shown(value: object) -> str:
    """What a client sent, short and on one line."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
