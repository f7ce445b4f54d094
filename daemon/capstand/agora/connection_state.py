"""The life of a connection as a table: state and event → next state and what to do.

IDLE          nothing is wanted
JOINING       a token is fetched, the SDK connects
JOINED        the channel hears us
RECONNECTING  the SDK has lost the network and tries by itself; what is pushed is dropped
LOST          given up and torn down; joined again after a pause of 0.5 s, growing to 30 s
REFUSED       a person must act (wrong app id, banned, expired token ...); tried again after
              minutes, or as soon as a new token is there
LEAVING       the SDK disconnects; then IDLE

What the table does not name changes nothing: callbacks of the SDK come late and twice. Pure.
"""

from enum import Enum, auto

from capstand.agora.sdk.codes import Remedy, reason_of


class ConnectionState(Enum):
    IDLE = auto()
    JOINING = auto()
    JOINED = auto()
    RECONNECTING = auto()
    LOST = auto()
    REFUSED = auto()
    LEAVING = auto()


class Event(Enum):
    JOIN = auto()
    """Joining is wanted."""
    CONNECTED = auto()
    """The SDK joined, or joined again by itself."""
    INTERRUPTED = auto()
    """The SDK reconnects by itself."""
    BROKEN = auto()
    """The connection failed; another may work."""
    EXPIRED = auto()
    """The token is at its end or refused; another may work."""
    DENIED = auto()
    """Only a person can help."""
    DUE = auto()
    """The pause is over."""
    FRESH = auto()
    """A token has come that was not tried yet."""
    LEAVE = auto()
    """Leaving is wanted."""
    LEFT = auto()
    """The SDK has disconnected, or was waited for long enough."""


class Action(Enum):
    OPEN = auto()
    """Get a token, then connect."""
    PUBLISH = auto()
    """Publish the track; only then sound may be pushed."""
    HOLD = auto()
    """Nothing may be pushed."""
    CLOSE = auto()
    """Take the sender from the pushing threads, disconnect, release."""
    PAUSE = auto()
    """Wait, each time longer."""
    LONG_PAUSE = auto()
    """Wait for minutes."""


S, E, D = ConnectionState, Event, Action
_Moves = dict[tuple[ConnectionState, Event], tuple[ConnectionState, tuple[Action, ...]]]

_ENDS: _Moves = {
    (state, event): (after, (D.CLOSE, pause))
    for state in (S.JOINING, S.JOINED, S.RECONNECTING)
    for event, after, pause in (
        (E.BROKEN, S.LOST, D.PAUSE),
        (E.EXPIRED, S.LOST, D.PAUSE),
        (E.DENIED, S.REFUSED, D.LONG_PAUSE),
    )
}
TABLE: _Moves = _ENDS | {
    (S.IDLE, E.JOIN): (S.JOINING, (D.OPEN,)),
    (S.JOINING, E.CONNECTED): (S.JOINED, (D.PUBLISH,)),
    (S.JOINED, E.INTERRUPTED): (S.RECONNECTING, (D.HOLD,)),
    (S.RECONNECTING, E.CONNECTED): (S.JOINED, ()),
    (S.LOST, E.DUE): (S.JOINING, (D.OPEN,)),
    (S.LOST, E.DENIED): (S.REFUSED, (D.LONG_PAUSE,)),
    (S.REFUSED, E.DUE): (S.JOINING, (D.OPEN,)),
    (S.REFUSED, E.FRESH): (S.JOINING, (D.OPEN,)),
    (S.JOINING, E.LEAVE): (S.LEAVING, (D.CLOSE,)),
    (S.JOINED, E.LEAVE): (S.LEAVING, (D.CLOSE,)),
    (S.RECONNECTING, E.LEAVE): (S.LEAVING, (D.CLOSE,)),
    (S.LOST, E.LEAVE): (S.IDLE, ()),
    (S.REFUSED, E.LEAVE): (S.IDLE, ()),
    (S.LEAVING, E.LEFT): (S.IDLE, ()),
}


def move(state: ConnectionState, event: Event) -> tuple[ConnectionState, tuple[Action, ...]]:
    """Where ``event`` leads from ``state`` and what is to be done on the way."""
    return TABLE.get((state, event), (state, ()))


def event_of(reason: int) -> Event:
    """What the SDK's reason for the end of a connection means for us."""
    named = reason_of(reason)
    remedy = named.remedy if named is not None else Remedy.AGAIN
    return {
        Remedy.AGAIN: Event.BROKEN,
        Remedy.NEW_TOKEN: Event.EXPIRED,
        Remedy.PERSON: Event.DENIED,
    }[remedy]
