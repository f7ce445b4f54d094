"""Tokens of Agora: what one allows, for whom and until when.

A token (AccessToken2) is "007" and the base64 of a zlib stream, little-endian, ``string`` being a
16-bit length and that many bytes::

    string signature | string app id | u32 issued | u32 life | u32 salt | u16 services |
    { u16 type | u16 n | n × { u16 privilege, u32 life } | what the type adds } × services

Service 1 is RTC and adds the channel and the uid. Lives are seconds since issue; the life of a
privilege may be 0: then it lasts as long as the token. Uid "" or "0" is any uid, channel "" is any
channel, and "*" in either stands for any characters. All this is read without the certificate;
whether the signature is right only Agora can say.

The text of a token is a secret. No error names it and no Token shows it. Thread: any; nothing here
blocks or keeps state.
"""

import binascii
import struct
import time
import zlib
from typing import NoReturn

from capstand.errors import SinkError

KIND = "007"
OLD_KIND = "006"
MAX_TEXT = 4096
MAX_UNPACKED = 8192
MAX_LIFE_S = 86_400
"""Agora honours no token for longer than a day."""
JOIN = 1
PUBLISH_AUDIO = 2
RENEW_AT = 0.8
RENEW_AHEAD_S = 600.0
SHORT_LIFE_S = 1200
WRONG_CLOCK_S = 300.0

_RTC = 1
_ADDS = {_RTC: (2, 0), 2: (1, 0), 4: (0, 0), 5: (1, 0), 7: (2, 2)}
"""What a type of service adds to its privileges: so many strings, then so many bytes."""
_SIGNATURE_BYTES = 32
_ID_CHARACTERS = 32
_HEX = frozenset("0123456789abcdefABCDEF")


class TokenError(SinkError):
    """A token that is none, not ours, over, or not to be had. The text never holds a secret."""


class Token:
    """What a token says. Printing shows neither the secret nor the whole app id.

    ``text``: the secret. ``issued_s``: unix seconds. ``lifetime_s``: seconds since issue, of the
    token as a whole. ``channel``, ``uid``: as in the token. ``privileges``: lives in seconds since
    issue by number of privilege, 0 for as long as the token.
    """

    __slots__ = ("app_id", "channel", "issued_s", "lifetime_s", "privileges", "text", "uid")

    def __init__(
        self,
        text: str,
        *,
        app_id: str,
        issued_s: int,
        lifetime_s: int,
        channel: str,
        uid: str,
        privileges: dict[int, int],
    ) -> None:
        self.text = text
        self.app_id = app_id
        self.issued_s = issued_s
        self.lifetime_s = lifetime_s
        self.channel = channel
        self.uid = uid
        self.privileges = privileges

    @property
    def expires_s(self) -> int:
        """When joining or publishing audio ends, the earlier of them, in unix seconds."""
        lives = [
            self.privileges.get(JOIN, 0),
            self.privileges.get(PUBLISH_AUDIO, 0),
            self.lifetime_s,
        ]
        return self.issued_s + min([life for life in lives[:2] if life] + lives[2:])

    def __repr__(self) -> str:
        return (
            f"<Token app {self.app_id[:4]}…, channel {_shown(self.channel)}, "
            f"uid {_shown(self.uid)}, life {self.lifetime_s} s>"
        )

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Token is a secret and is neither copied nor stored")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__getstate__()


def parse(text: str) -> Token:
    """Reads a token. Raises TokenError for anything that is not exactly one."""
    _check_kind(text)
    fields = _Fields(_unpacked(text[len(KIND) :]))
    if len(fields.counted()) != _SIGNATURE_BYTES:
        raise _broken(f"its signature is not {_SIGNATURE_BYTES} bytes long")
    app_id = fields.counted().decode("latin-1")
    if not _is_id(app_id):
        raise _broken("its app id is not 32 hexadecimal digits")
    issued_s, lifetime_s, _ = (fields.u32() for _ in range(3))
    channel, uid, privileges = _rtc_service(fields)
    return Token(
        text,
        app_id=app_id,
        issued_s=issued_s,
        lifetime_s=lifetime_s,
        channel=channel,
        uid=uid,
        privileges=privileges,
    )


def build(
    app_id: str,
    certificate: str,
    channel: str,
    uid: int,
    lifetime_s: int,
    now_s: float,
    salt: int | None = None,
) -> str:
    """A token to join ``channel`` and publish audio, for development only.

    The App Certificate belongs on a server, never on a device. ``uid`` 0 is any uid; ``lifetime_s``
    counts from ``now_s`` (unix seconds). Raises TokenError where Agora would refuse the values.
    """
    import hmac
    import secrets

    if not _is_id(app_id):
        raise TokenError("the app id is not 32 hexadecimal digits; copy it from Agora's console")
    if not _is_id(certificate):
        raise TokenError(
            "the App Certificate is not 32 hexadecimal digits; copy it from Agora's console"
        )
    if not 1 <= len(channel.encode()) < 64:
        raise TokenError(f"channel {_shown(channel)} must have 1 to 63 bytes; use another name")
    if not 0 <= uid < 2**32:
        raise TokenError(f"uid {uid}: expected an integer from 0 to {2**32 - 1}")
    if not 1 <= lifetime_s <= MAX_LIFE_S:
        raise TokenError(f"lifetime {lifetime_s} s: expected 1 to {MAX_LIFE_S} s; use 3600")
    if salt is None:
        salt = 1 + secrets.randbelow(99_999_999)
    issued = struct.pack("<I", int(now_s))
    salted = struct.pack("<I", salt)
    body = b"".join(
        (
            _string(app_id),
            issued,
            struct.pack("<I", lifetime_s),
            salted,
            struct.pack("<HHH", 1, _RTC, 2),
            struct.pack("<HIHI", JOIN, lifetime_s, PUBLISH_AUDIO, lifetime_s),
            _string(channel),
            _string(str(uid) if uid else ""),
        )
    )
    key = hmac.digest(salted, hmac.digest(issued, certificate.encode(), "sha256"), "sha256")
    signature = hmac.digest(key, body, "sha256")
    packed = zlib.compress(struct.pack("<H", len(signature)) + signature + body)
    return KIND + binascii.b2a_base64(packed, newline=False).decode()


def check_valid(
    token: Token, app_id: str, channel: str, uid: int, now_s: float, clock_sure: bool
) -> None:
    """Raises TokenError when Agora would refuse ``token`` here and now.

    ``now_s`` is unix seconds. Expiry is judged only by a clock that is known to be right
    (``clock_sure``) and not plainly before the token was issued.
    """
    if token.app_id != app_id:
        raise TokenError(
            f"the token is for another app id ({token.app_id[:4]}…, configured is {app_id[:4]}…); "
            "request one for this app id, or correct app_id"
        )
    if token.channel and not _covers(token.channel, channel):
        raise TokenError(
            f"the token is for channel {_shown(token.channel)}, not for {_shown(channel)}; "
            "request one for this channel, or correct channel"
        )
    if token.uid not in ("", "0") and not _covers(token.uid, str(uid)):
        raise TokenError(
            f"the token is for uid {_shown(token.uid)}, not for {uid}; "
            "request one for this uid or for uid 0 (any), or correct uid"
        )
    for privilege, name in ((JOIN, "join a channel"), (PUBLISH_AUDIO, "publish audio")):
        if privilege not in token.privileges:
            raise TokenError(
                f"the token does not allow to {name}; request one for a publisher (host)"
            )
    if _believed(token, now_s, clock_sure) and now_s >= token.expires_s:
        ended = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(token.expires_s))
        raise TokenError(
            f"the token expired {_span(now_s - token.expires_s)} ago, at {ended} UTC; provide a "
            "new one"
        )


def renew_after_s(token: Token, now_s: float, clock_sure: bool) -> float:
    """Seconds from now until a new token should be had, 0 or more.

    That is at 80 % of the life or 10 minutes before its end, whichever is earlier; at 80 % where
    the life is under 20 minutes. ``now_s`` is unix seconds; a clock that is not to be believed
    counts the whole life from now.
    """
    lifetime_s = min(token.expires_s - token.issued_s, MAX_LIFE_S)
    ahead_s = lifetime_s * RENEW_AT
    if lifetime_s >= SHORT_LIFE_S:
        ahead_s = min(ahead_s, lifetime_s - RENEW_AHEAD_S)
    if not _believed(token, now_s, clock_sure):
        return ahead_s
    return min(max(0.0, token.issued_s + ahead_s - now_s), ahead_s)


class _Fields:
    """Takes fields off the front of ``data``; raises TokenError where it ends too early."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise _broken("it ends too early")
        self._at += count
        return taken

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "little")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def counted(self) -> bytes:
        return self.take(self.u16())

    @property
    def left(self) -> int:
        return len(self._data) - self._at


def _check_kind(text: str) -> None:
    expected = f"expected an AccessToken2, which starts with {KIND}"
    if not text:
        raise TokenError(f"the token is empty; {expected}")
    if text.startswith(OLD_KIND):
        raise TokenError(
            f"this is a token of the old kind {OLD_KIND}; {expected}: have the token server use "
            "RtcTokenBuilder2"
        )
    if _is_id(text):
        raise TokenError(
            f"this is an app id or a certificate, not a token; {expected}; a project without App "
            "Certificate needs no token at all"
        )
    if not text.startswith(KIND):
        raise TokenError(f"not a valid token; {expected}")
    if len(text) > MAX_TEXT:
        raise TokenError(f"not a valid token: {len(text)} characters; expected at most {MAX_TEXT}")


def _unpacked(text: str) -> bytes:
    if not text.isascii():
        raise _broken("it holds characters that are not ASCII")
    try:
        packed = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise _broken("after 007 it is not base64") from None
    unzip = zlib.decompressobj()
    try:
        data = unzip.decompress(packed, MAX_UNPACKED + 1)
    except zlib.error:
        raise _broken("its content cannot be unpacked") from None
    if len(data) > MAX_UNPACKED:
        raise _broken(f"it unpacks to more than {MAX_UNPACKED} bytes")
    if not unzip.eof:
        raise _broken("it ends too early")
    if unzip.unused_data:
        raise _broken("it has trailing data")
    return data


def _rtc_service(fields: _Fields) -> tuple[str, str, dict[int, int]]:
    """Channel, uid and privileges; reads to the end, or to a type of service not known here."""
    found: tuple[str, str, dict[int, int]] | None = None
    for _ in range(fields.u16()):
        kind = fields.u16()
        if kind not in _ADDS:
            break
        privileges = {fields.u16(): fields.u32() for _ in range(fields.u16())}
        strings, more = _ADDS[kind]
        added = [fields.counted() for _ in range(strings)]
        fields.take(more)
        if kind == _RTC:
            if found is not None:
                raise _broken("it allows two channels")
            found = _decoded(added[0]), _decoded(added[1]), privileges
    else:
        if fields.left:
            raise _broken("it has trailing data")
    if found is None:
        raise TokenError(
            "the token is for another service of Agora, not for audio (RTC); "
            "request one made with RtcTokenBuilder2"
        )
    return found


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _broken("its channel or uid is not UTF-8") from None


def _broken(what: str) -> TokenError:
    return TokenError(f"the token is damaged: {what}; copy it again, the whole line")


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<H", len(raw)) + raw


def _is_id(text: str) -> bool:
    return len(text) == _ID_CHARACTERS and all(one in _HEX for one in text)


def _covers(pattern: str, name: str) -> bool:
    """Whether ``name`` is ``pattern``, in which each * stands for any characters."""
    first, *others = pattern.split("*")
    if not others:
        return name == pattern
    *inner, last = others
    if not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in inner:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return at <= end


def _believed(token: Token, now_s: float, sure: bool) -> bool:
    return sure and now_s >= token.issued_s - WRONG_CLOCK_S


def _shown(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:64] + "…")


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
