"""The SDK's numbers, with names and meanings, and the errors capstand makes of them.

Source: Agora's public headers (AgoraBase.h, agora_base.h) and the documentation of the Python
wrapper for the numbers below −999.
"""

from enum import IntEnum

from capstand.errors import SinkError


class Code(IntEnum):
    """Result of a call; everything but OK is below 0."""

    OK = 0
    FAILED = -1
    INVALID_ARGUMENT = -2
    NOT_READY = -3
    NOT_SUPPORTED = -4
    REFUSED = -5
    BUFFER_TOO_SMALL = -6
    NOT_INITIALIZED = -7
    INVALID_STATE = -8
    NO_PERMISSION = -9
    TIMED_OUT = -10
    CANCELED = -11
    TOO_OFTEN = -12
    BIND_SOCKET = -13
    NET_DOWN = -14
    JOIN_CHANNEL_REJECTED = -17
    LEAVE_CHANNEL_REJECTED = -18
    ALREADY_IN_USE = -19
    ABORTED = -20
    RESOURCE_LIMITED = -22
    INVALID_APP_ID = -101
    INVALID_CHANNEL_NAME = -102
    NO_SERVER_RESOURCES = -103
    TOKEN_EXPIRED = -109
    INVALID_TOKEN = -110
    CONNECTION_INTERRUPTED = -111
    CONNECTION_LOST = -112
    NOT_IN_CHANNEL = -113
    CLIENT_IS_BANNED = -123
    NO_OBJECT = -1000
    NO_SENDER = -1001
    NOT_WHOLE_MILLISECONDS = -1002

    @property
    def meaning(self) -> str:
        return _MEANINGS.get(self, self.name.lower().replace("_", " "))


_MEANINGS = {
    Code.FAILED: "the SDK gave no reason",
    Code.INVALID_ARGUMENT: "invalid argument",
    Code.NOT_READY: "not ready: the channel is not joined",
    Code.NOT_SUPPORTED: "not supported",
    Code.REFUSED: "refused",
    Code.NOT_INITIALIZED: "the SDK is not initialised",
    Code.INVALID_STATE: "wrong order of calls",
    Code.TOO_OFTEN: "too often: the send buffer is full; push again after 30 to 50 ms",
    Code.JOIN_CHANNEL_REJECTED: "joining was rejected",
    Code.INVALID_APP_ID: "the app id is invalid",
    Code.INVALID_CHANNEL_NAME: "the channel name is invalid",
    Code.TOKEN_EXPIRED: "the token has expired",
    Code.INVALID_TOKEN: "the token is invalid",
    Code.NOT_IN_CHANNEL: "no channel is joined",
    Code.NO_OBJECT: "the SDK's object does not exist",
    Code.NO_SENDER: "the SDK's audio sender does not exist",
    Code.NOT_WHOLE_MILLISECONDS: "the wrapper takes whole milliseconds only",
}


def describe_code(number: int) -> str:
    """A result in words, for numbers without a name too: "−12 TOO_OFTEN: too often ..."."""
    try:
        code = Code(number)
    except ValueError:
        return f"{number}, unknown to Agora's headers"
    return f"{number} {code.name}: {code.meaning}"


class Remedy(IntEnum):
    """What a reason for the end of a connection asks for."""

    AGAIN = 0
    """Join again soon."""
    NEW_TOKEN = 1
    """Join again with a new token."""
    PERSON = 2
    """A person must change something; rejoining soon does not help."""


class Reason(IntEnum):
    """Why the state of a connection changed."""

    CONNECTING = 0
    JOIN_SUCCESS = 1
    INTERRUPTED = 2
    BANNED_BY_SERVER = 3
    JOIN_FAILED = 4
    LEAVE_CHANNEL = 5
    INVALID_APP_ID = 6
    INVALID_CHANNEL_NAME = 7
    INVALID_TOKEN = 8
    TOKEN_EXPIRED = 9
    REJECTED_BY_SERVER = 10
    SETTING_PROXY_SERVER = 11
    RENEW_TOKEN = 12
    CLIENT_IP_ADDRESS_CHANGED = 13
    KEEP_ALIVE_TIMEOUT = 14
    REJOIN_SUCCESS = 15
    LOST = 16
    ECHO_TEST = 17
    CLIENT_IP_ADDRESS_CHANGED_BY_USER = 18
    SAME_UID_LOGIN = 19
    TOO_MANY_BROADCASTERS = 20
    LICENSE_VALIDATION_FAILURE = 21

    @property
    def remedy(self) -> Remedy:
        if self in (Reason.INVALID_TOKEN, Reason.TOKEN_EXPIRED):
            return Remedy.NEW_TOKEN
        return Remedy.PERSON if self in _ADVICE else Remedy.AGAIN


_ADVICE = {
    Reason.BANNED_BY_SERVER: "banned from the channel; lift the ban in Agora's console",
    Reason.INVALID_APP_ID: "the app id is invalid; compare app_id with Agora's console",
    Reason.INVALID_CHANNEL_NAME: "the channel name is invalid; change channel",
    Reason.REJECTED_BY_SERVER: "rejected by the server; is the uid in the channel already, or the "
    "project disabled?",
    Reason.SAME_UID_LOGIN: "another client joined with the same uid; give each its own uid",
    Reason.TOO_MANY_BROADCASTERS: "the channel has too many broadcasters",
    Reason.LICENSE_VALIDATION_FAILURE: "Agora's licence was rejected; see Agora's console",
}
_WORDS = {
    Reason.INTERRUPTED: "the network is interrupted",
    Reason.JOIN_FAILED: "joining failed; is the network up?",
    Reason.INVALID_TOKEN: "the token is invalid for this app id, channel and uid",
    Reason.TOKEN_EXPIRED: "the token has expired",
    Reason.KEEP_ALIVE_TIMEOUT: "the server does not respond",
    Reason.LOST: "connection lost",
}


def reason_of(number: int) -> Reason | None:
    """The named reason, or None for a number that Agora's headers do not name."""
    try:
        return Reason(number)
    except ValueError:
        return None


def describe_reason(number: int) -> str:
    """A reason in words, with what to do where a person must act."""
    reason = reason_of(number)
    if reason is None:
        return f"reason {number}, unknown to Agora's headers"
    named = _ADVICE.get(reason) or _WORDS.get(reason) or reason.name.lower().replace("_", " ")
    return f"{named} (reason {number} {reason.name})"


class AgoraError(SinkError):
    """A call that was refused, by the SDK or before it got there.

    ``code`` is the SDK's number; ``taken`` counts the frames of the pushed buffer that were sent or
    kept all the same (0 unless the SDK refused in the middle of a buffer).
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({describe_code(code)})")
        self.code = code
        self.taken = 0

    @property
    def retry_after_ms(self) -> int | None:
        """When to push again; None where pushing again the same way does not help."""
        return 40 if self.code == Code.TOO_OFTEN else None
