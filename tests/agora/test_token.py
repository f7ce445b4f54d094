"""Tokens: what is read from one, when it is refused, when the next is due.

The reference is Agora's own library, agoraiotools; tokens of either side are read by the other.
"""

import binascii
import contextlib
import copy
import importlib
import logging
import pickle
import struct
import time
import traceback
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstand.agora.tokens import token
from capstand.agora.tokens.token import Token, TokenError
from capstand.errors import SinkError
from capstand.host import walltime

APP_ID = "970ca35de60c44645bbae8a215061b33"
CERTIFICATE = "5cfd2fd1755d40ecb72977518be15d3b"
NOW_S = 1_700_000_000
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its older parts warn of themselves
    agora2: Any = importlib.import_module("agoraiotools.AccessToken2")
    builder: Any = importlib.import_module("agoraiotools.RtcTokenBuilder2").RtcTokenBuilder2


def reference(
    channel: str = "lobby",
    uid: int | str = 7,
    lifetime_s: int = 3600,
    privileges: dict[int, int] | None = None,
    others: tuple[Any, ...] = (),
) -> str:
    """A token made by Agora's library, issued at NOW_S with salt 1."""
    made = agora2.AccessToken(APP_ID, CERTIFICATE, issue_ts=NOW_S, expire=lifetime_s)
    made._AccessToken__salt = 1
    rtc = agora2.ServiceRtc(channel, uid)
    for privilege, privilege_life_s in (privileges or {1: lifetime_s, 2: lifetime_s}).items():
        rtc.add_privilege(privilege, privilege_life_s)
    for service in (rtc, *others):
        made.add_service(service)
    return str(made.build())


def packed(body: bytes, signature: bytes = bytes(32)) -> str:
    """A token of these bytes, whatever they are."""
    raw = zlib.compress(struct.pack("<H", len(signature)) + signature + body)
    return "007" + binascii.b2a_base64(raw, newline=False).decode()


def unpacked(text: str) -> bytes:
    """What follows the signature."""
    return zlib.decompress(binascii.a2b_base64(text[3:]))[34:]


def judge(text: str, now_s: float = NOW_S, *, sure: bool = True, **other: Any) -> None:
    wanted: dict[str, Any] = {"app_id": APP_ID, "channel": "lobby", "uid": 7} | other
    token.check_valid(token.parse(text), now_s=now_s, clock_sure=sure, **wanted)


# Reading


def test_what_agoras_library_makes_is_read() -> None:
    """App id, channel, uid, issue, life and privileges are those Agora's library wrote."""
    read = token.parse(reference(privileges={1: 100, 2: 200, 3: 300, 4: 0}))
    assert (read.app_id, read.channel, read.uid) == (APP_ID, "lobby", "7")
    assert (read.issued_s, read.lifetime_s) == (NOW_S, 3600)
    assert read.privileges == {1: 100, 2: 200, 3: 300, 4: 0}


def test_agoras_everyday_builder_is_read() -> None:
    """A publisher's token of RtcTokenBuilder2 lasts as long as was asked, from now."""
    before_s = int(time.time())
    text = builder.build_token_with_uid(APP_ID, CERTIFICATE, "lobby", 0, 1, 600)
    read = token.parse(text)
    assert read.privileges == {1: 0, 2: 0, 3: 0, 4: 0}
    assert before_s + 600 <= read.expires_s <= time.time() + 600
    token.check_valid(read, APP_ID, "lobby", 12345, time.time(), clock_sure=True)


@pytest.mark.parametrize(
    ("lifetime_s", "privileges", "ends_after_s"),
    [
        (3600, {1: 3600, 2: 3600}, 3600),
        (3600, {1: 600, 2: 3600}, 600),
        (3600, {1: 3600, 2: 60}, 60),
        (3600, {1: 7200, 2: 7200}, 3600),
        (3600, {1: 0, 2: 0}, 3600),
        (3600, {1: 0, 2: 60}, 60),
        (3600, {1: 0, 2: 0, 3: 5, 4: 5}, 3600),
    ],
)
def test_a_token_ends_with_the_first_thing_needed(
    lifetime_s: int, privileges: dict[int, int], ends_after_s: int
) -> None:
    """The end is the earliest of token, joining and publishing audio; 0 is as the token."""
    read = token.parse(reference(lifetime_s=lifetime_s, privileges=privileges))
    assert read.expires_s == NOW_S + ends_after_s


@pytest.mark.parametrize(
    "other",
    [
        agora2.ServiceRtm("me"),
        agora2.ServiceFpa(),
        agora2.ServiceChat("me"),
        agora2.ServiceApaas("room", "me", 1),
    ],
    ids=lambda one: type(one).__name__,
)
def test_other_services_beside_audio_are_passed_over(other: Any) -> None:
    """A token that is also good for messaging and the like is read all the same."""
    other.add_privilege(1, 99)
    assert token.parse(reference(others=(other,))).channel == "lobby"
    with pytest.raises(TokenError, match="damaged: it ends too early"):
        token.parse(packed(unpacked(reference(others=(other,)))[:-1]))


def test_a_service_of_the_future_is_passed_over() -> None:
    """What Agora may add after the audio service does not make a token unreadable."""
    body = bytearray(unpacked(reference()))
    services_at = 2 + 32 + 12
    body[services_at : services_at + 2] = struct.pack("<H", 2)
    read = token.parse(packed(bytes(body) + struct.pack("<H", 99) + b"anything"))
    assert read.channel == "lobby"


# Refusing


def test_an_error_is_the_peers() -> None:
    """A TokenError is a SinkError, so that a sink queue tries again later."""
    assert issubclass(TokenError, SinkError)


BODY = unpacked(reference())
WHOLE = reference()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the token is empty; expected an AccessToken2, which starts with 007"),
        ("006" + APP_ID + "IAABCD", "old kind 006.*AccessToken2.*RtcTokenBuilder2"),
        (APP_ID, "an app id or a certificate, not a token.*needs no token"),
        ("hello", "not a valid token; expected an AccessToken2"),
        ("007", "ends too early"),
        ("007" + "A" * 10_000, "10003 characters; expected at most 4096"),
        (WHOLE + "\n", "not base64"),
        (WHOLE[:50] + " " + WHOLE[50:], "not base64"),
        (WHOLE[:50] + "ä" + WHOLE[51:], "not ASCII"),
        (WHOLE[:-4], "ends too early"),
        (WHOLE[:-1], "not base64"),
        (WHOLE + "AAAA", "not base64|trailing data"),
        ("007" + binascii.b2a_base64(b"no zlib stream", newline=False).decode(), "unpacked"),
        (packed(bytes(1_000_000)), "unpacks to more than 8192 bytes"),
        (packed(BODY + b"\0"), "it has trailing data"),
        (packed(BODY[:-1]), "ends too early"),
        (packed(BODY, signature=bytes(31)), "signature is not 32 bytes long"),
        (packed(BODY.replace(APP_ID.encode(), b"x" * 32)), "app id is not 32 hexadecimal"),
        (packed(BODY.replace(b"lobby", b"\xff" * 5)), "not UTF-8"),
        (packed(BODY[:46] + struct.pack("<H", 2) + BODY[48:] * 2), "allows two channels"),
        (packed(BODY[:46] + struct.pack("<H", 0)), "another service of Agora"),
        (packed(BODY[:46] + struct.pack("<HH", 1, 99)), "another service of Agora"),
    ],
)
def test_what_is_no_token_is_refused_in_words(text: str, words: str) -> None:
    """Each way of being no token has its sentence, which holds nothing of what was given."""
    with pytest.raises(TokenError, match=words) as caught:
        token.parse(text)
    assert "\n" not in str(caught.value)
    assert not any(text[at : at + 12] in str(caught.value) for at in range(len(text) - 12))


@given(st.text() | st.text().map("007".__add__) | st.binary(max_size=300).map(packed))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    """Nothing else can come out, whatever goes in."""
    with contextlib.suppress(TokenError):
        assert token.parse(text).text == text


@given(at=st.integers(0, len(BODY) - 1), value=st.integers(0, 255), cut=st.integers(0, len(BODY)))
def test_a_damaged_token_is_a_token_or_refused(at: int, value: int, cut: int) -> None:
    """Neither a changed byte nor a missing end leads anywhere else."""
    changed = BODY[:at] + bytes([value]) + BODY[at + 1 :]
    for body in (changed, changed[:cut], changed + BODY[:cut]):
        with contextlib.suppress(TokenError):
            repr(token.parse(packed(body)))


def test_the_worst_token_is_refused_quickly() -> None:
    """Tens of thousands of announced services or privileges cost no time."""
    start = time.perf_counter()
    for body in (
        BODY[:46] + struct.pack("<H", 65535) + struct.pack("<HH", 4, 0) * 2000,
        BODY[:46] + struct.pack("<HHH", 1, 1, 65535) + bytes(7000),
    ):
        with pytest.raises(TokenError):
            token.parse(packed(body))
    assert time.perf_counter() - start < 0.5


# Keeping the secret


def test_printing_a_token_shows_no_secret() -> None:
    """Neither str, repr, format, logging nor a traceback shows the text or the whole app id."""
    read = token.parse(reference())
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s %r", (read, read), None)
    try:
        _ = 1 // 0
    except ZeroDivisionError as error:
        locals_shown = "".join(
            traceback.TracebackException.from_exception(error, capture_locals=True).format()
        )
    shown = [str(read), repr(read), f"{read}", f"{[read]}", record.getMessage(), locals_shown]
    for one in shown:
        assert read.text[3:20] not in one
        assert APP_ID[:8] not in one
    assert repr(read) == "<Token app 970c…, channel 'lobby', uid '7', life 3600 s>"


def test_a_token_is_neither_copied_nor_stored() -> None:
    """Pickle and copy refuse, and there is no __dict__ to walk through."""
    read = token.parse(reference())
    for refused in (
        lambda: pickle.dumps(read),
        lambda: copy.copy(read),
        lambda: copy.deepcopy(read),
        read.__getstate__,
        lambda: vars(read),
    ):
        with pytest.raises(TypeError) as caught:
            refused()
        assert read.text[3:20] not in str(caught.value)


def test_a_strange_channel_is_shown_harmlessly() -> None:
    """Control characters of a token do not reach a terminal, nor more than 64 characters."""
    read = token.parse(reference(channel="\x1b[2J" + "x" * 500, uid="a\nb"))
    assert "\x1b" not in repr(read)
    assert "\n" not in repr(read)
    assert len(repr(read)) < 200
    with pytest.raises(TokenError) as caught:
        judge(read.text)
    assert "\x1b" not in str(caught.value)


# Making


def test_a_token_made_here_is_agoras_to_the_byte() -> None:
    """With the same issue and salt the text, signature included, is that of Agora's library."""
    assert token.build(APP_ID, CERTIFICATE, "lobby", 7, 3600, NOW_S, salt=1) == reference()
    assert token.build(APP_ID, CERTIFICATE, "lobby", 0, 60, NOW_S + 0.9, salt=1) == reference(
        uid=0, lifetime_s=60
    )


@given(
    channel=st.text(st.characters(codec="utf-8"), min_size=1, max_size=15),
    uid=st.integers(0, 2**32 - 1),
    lifetime_s=st.integers(1, 86_400),
    salt=st.integers(1, 99_999_999) | st.none(),
)
def test_what_is_made_is_read_by_both(
    channel: str, uid: int, lifetime_s: int, salt: int | None
) -> None:
    """Whatever the channel, uid and life, both sides read what was asked for."""
    text = token.build(APP_ID, CERTIFICATE, channel, uid, lifetime_s, NOW_S, salt)
    read = token.parse(text)
    assert (read.channel, read.uid) == (channel, str(uid) if uid else "")
    assert read.expires_s == NOW_S + lifetime_s
    token.check_valid(read, APP_ID, channel, uid, NOW_S, clock_sure=True)
    theirs = agora2.AccessToken()
    assert theirs.from_string(text)
    assert theirs._AccessToken__app_id.decode() == APP_ID
    rtc = theirs._AccessToken__service[1]
    assert rtc._ServiceRtc__channel_name.decode() == channel
    assert rtc._Service__privileges == {1: lifetime_s, 2: lifetime_s}


def test_two_tokens_are_never_the_same() -> None:
    """The salt is drawn anew for each."""
    made = {token.build(APP_ID, CERTIFICATE, "lobby", 7, 3600, NOW_S) for _ in range(10)}
    assert len(made) == 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"app_id": "mine"}, "app id is not 32"),
        ({"certificate": "secret"}, "App Certificate is not 32"),
        ({"channel": ""}, "1 to 63 bytes"),
        ({"channel": "ä" * 32}, "1 to 63 bytes"),
        ({"uid": -1}, "expected an integer from 0"),
        ({"uid": 2**32}, "expected an integer from 0"),
        ({"lifetime_s": 0}, "expected 1 to 86400 s"),
        ({"lifetime_s": 86_401}, "expected 1 to 86400 s"),
    ],
)
def test_values_agora_would_refuse_make_no_token(change: dict[str, Any], words: str) -> None:
    """Each names what is wrong, and the certificate is not repeated."""
    wanted: dict[str, Any] = {"app_id": APP_ID, "certificate": CERTIFICATE}
    wanted |= {"channel": "lobby", "uid": 7, "lifetime_s": 3600, "now_s": NOW_S}
    with pytest.raises(TokenError, match=words) as caught:
        token.build(**(wanted | change))
    assert "secret" not in str(caught.value)


# Judging


def test_the_right_token_passes() -> None:
    """App id, channel, uid, privileges and time are all as they must be."""
    judge(reference())
    judge(reference(), NOW_S + 3599.9)


def test_a_token_for_another_app_id_is_refused() -> None:
    """The sentence shows the start of both and what to do."""
    with pytest.raises(TokenError, match=r"another app id \(970c…, configured is ffff…\); request"):
        judge(reference(), app_id="f" * 32)


@pytest.mark.parametrize("pattern", ["lobby", "*", "", "lob*", "*by", "l*b*y", "lobby*", "l**y"])
def test_a_token_may_be_for_many_channels(pattern: str) -> None:
    """Agora's wildcards: "*" is any characters, an empty channel is any."""
    judge(reference(channel=pattern))


@pytest.mark.parametrize("pattern", ["Lobby", "lobb", "lobby2", "lob*x", "*lob", "lobby*y", "x*y"])
def test_a_token_for_another_channel_is_refused(pattern: str) -> None:
    """Case counts, and so does every character outside a wildcard."""
    with pytest.raises(TokenError, match=r"for channel '.+', not for 'lobby'; request one"):
        judge(reference(channel=pattern))


@pytest.mark.parametrize("uid", [7, "7", 0, "0", "", "*"])
def test_a_token_may_be_for_any_uid(uid: int | str) -> None:
    """Uid 0, none at all and "*" are any."""
    judge(reference(uid=uid))


@pytest.mark.parametrize(("uid", "wanted"), [(8, 7), (7, 0), ("77", 7), ("me", 7), ("8*", 7)])
def test_a_token_for_another_uid_is_refused(uid: int | str, wanted: int) -> None:
    """A uid that Agora draws (0) is not covered by a token for one."""
    with pytest.raises(TokenError, match=f"for uid '.+', not for {wanted}; request one"):
        judge(reference(uid=uid), uid=wanted)


@pytest.mark.parametrize(("privileges", "lacks"), [({1: 0}, "publish audio"), ({2: 0}, "join")])
def test_a_token_without_the_right_is_refused(privileges: dict[int, int], lacks: str) -> None:
    """A listener's token does not allow to publish."""
    with pytest.raises(TokenError, match=f"does not allow to {lacks}.*for a publisher"):
        judge(reference(privileges=privileges))


@pytest.mark.parametrize(
    ("late_s", "ago"), [(0, "0 s"), (90, "90 s"), (900, "15 min"), (9000, "2 h"), (9e5, "10 days")]
)
def test_a_token_that_is_over_is_refused(late_s: float, ago: str) -> None:
    """From its last second on, saying since when."""
    with pytest.raises(TokenError, match=f"expired {ago} ago, at 2023-11-14 23:13:20 UTC; provide"):
        judge(reference(), NOW_S + 3600 + late_s)


def test_a_doubtful_clock_judges_no_expiry() -> None:
    """Neither an unsynchronised clock nor one plainly before the token's issue counts."""
    judge(reference(), NOW_S + 1e6, sure=False)
    judge(reference(lifetime_s=1), 0.0)
    judge(reference(lifetime_s=1), NOW_S - 301)
    with pytest.raises(TokenError, match="lobby"):
        judge(reference(channel="other"), 0.0, sure=False)


# Renewing


def life(lifetime_s: int) -> Token:
    return token.parse(reference(lifetime_s=lifetime_s))


@pytest.mark.parametrize(
    ("lifetime_s", "after_s"),
    [
        (60, 48),
        (600, 480),
        (1199, 959.2),
        (1200, 600),
        (3000, 2400),
        (3600, 2880),
        (86_400, 69_120),
    ],
)
def test_renewal_is_due_well_before_the_end(lifetime_s: int, after_s: float) -> None:
    """At 80 % of the life or 10 minutes before the end, whichever is earlier; short: at 80 %."""
    assert token.renew_after_s(life(lifetime_s), NOW_S, clock_sure=True) == pytest.approx(after_s)


def test_renewal_counts_from_the_issue() -> None:
    """A token that is not new is renewed sooner, an old one at once and never before now."""
    assert token.renew_after_s(life(3600), NOW_S + 880, clock_sure=True) == 2000
    assert token.renew_after_s(life(3600), NOW_S + 2880, clock_sure=True) == 0
    assert token.renew_after_s(life(3600), NOW_S + 1e9, clock_sure=True) == 0


def test_a_doubtful_clock_counts_the_whole_life_from_now() -> None:
    """So a wrong clock neither renews without end nor waits for ever."""
    for now_s, sure in ((NOW_S + 1e9, False), (0.0, False), (0.0, True), (NOW_S - 301, True)):
        assert token.renew_after_s(life(3600), now_s, clock_sure=sure) == 2880
    assert token.renew_after_s(life(3600), NOW_S - 200, clock_sure=True) == 2880


def test_a_life_beyond_a_day_is_taken_as_a_day() -> None:
    """Agora honours none for longer, so renewal does not wait for it."""
    assert token.renew_after_s(life(10**7), NOW_S, clock_sure=True) == 69_120


@given(lifetime_s=st.integers(0, 2**32 - 1), now_s=st.floats(-1e12, 1e12), sure=st.booleans())
def test_renewal_is_never_in_the_past_or_after_a_day(
    lifetime_s: int, now_s: float, sure: bool
) -> None:
    """Whatever token and clock say, a timer can be set with it."""
    assert 0 <= token.renew_after_s(life(lifetime_s), now_s, sure) <= 86_400


# The clock


def test_timesyncd_vouches_for_the_clock(tmp_path: Path) -> None:
    """Its file under /run is enough."""
    file = tmp_path / "run/systemd/timesync/synchronized"
    file.parent.mkdir(parents=True)
    file.touch()
    assert walltime.clock_sure(tmp_path)


def test_else_the_kernel_is_asked(tmp_path: Path) -> None:
    """Its STA_UNSYNC flag decides, and nothing is changed by asking."""
    import ctypes

    def kernel() -> tuple[int, bytes]:
        timex = ctypes.create_string_buffer(512)
        return ctypes.CDLL(None).adjtimex(timex), timex.raw[8:48]

    before = kernel()
    assert walltime.clock_sure(tmp_path) == (0 <= before[0] < 5)
    assert kernel() == before
