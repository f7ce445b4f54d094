"""What a connection promises while the SDK misbehaves: on the real wrapper and the stand-in.

Every scenario runs in a process of its own, and in each of them no thread may end with an
exception and the stand-in may see nothing that a caller must never do (``see`` looks after both).
"""

import logging
import os
import random
import shutil
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from capstand.agora import CustomAudioSource, channel_session
from capstand.agora.sdk import rtc as sdk
from capstand.agora.sdk.codes import AgoraError, Code
from capstand.agora.tokens import renewal as token_keeper
from capstand.agora.tokens import token as tokens
from capstand.agora.tokens.sources import LocalTokens, TokenFile, TokenSource
from capstand.host import walltime
from capstand.host.backoff import Backoff
from tests.agora import StandIn, native_command, native_get, run
from tests.patience import PATIENCE_S

APP_ID = "0123456789abcdef0123456789abcdef"
CERTIFICATE = "fedcba9876543210fedcba9876543210"
CHANNEL, UID = "studio", 1001
SILENCE = bytes(960)
WAIT_S = PATIENCE_S
CONNECT, DISCONNECT = "agora_rtc_conn_connect", "agora_rtc_conn_disconnect"
DESTROY, RENEW = "agora_rtc_conn_destroy", "agora_rtc_conn_renew_token"
PUBLISH, RELEASE = "agora_local_user_publish_audio", "agora_service_release"


def see(
    scenario: Callable[..., object], standin: StandIn, *arguments: object, script: str = ""
) -> Any:
    """What the scenario returns, after a look at what must never happen."""
    seen = run(watched, standin, scenario.__name__, *arguments, script=script)
    assert seen["raised"] == []
    assert standin.violations() == []
    return seen["result"]


# In the scenario's process


def watched(name: str, *arguments: object) -> dict[str, Any]:
    raised: list[str] = []
    threading.excepthook = lambda args: raised.append(repr(args.exc_value))
    sys.unraisablehook = lambda args: raised.append(repr(args.exc_value))
    result = globals()[name](*arguments)
    return {"result": result, "raised": raised}


def here() -> Path:
    return Path(os.environ["STANDIN_LOG"]).parent


def opened(scale: float = 0.02, app_id: str = APP_ID) -> CustomAudioSource:
    channel_session.JITTER = (0.75 * scale, 1.25 * scale)  # pauses, so much shorter
    source = CustomAudioSource(app_id, here() / "agora")
    source.set_external_audio_source(True, 48000, 1)
    return source


def joined(scale: float = 0.02, token: str | TokenSource = "") -> CustomAudioSource:
    source = opened(scale)
    assert source.join_channel(token, CHANNEL, UID, wait_s=WAIT_S), source.summary()
    return source


def until(what: str, holds: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"never came: {what}")
        time.sleep(0.005)


def state(source: CustomAudioSource) -> str:
    figures = source.figures(time.monotonic_ns())
    return "" if figures is None else figures.state


def joins(source: CustomAudioSource) -> int:
    figures = source.figures(time.monotonic_ns())
    return 0 if figures is None else figures.joins


def comes(source: CustomAudioSource, *states: str) -> None:
    until(f"{' or '.join(states)}, not {source.summary()}", lambda: state(source) in states)


def rejoined(source: CustomAudioSource, number: int) -> None:
    until(
        f"join {number}, not {source.summary()}",
        lambda: joins(source) == number and state(source) == "JOINED",
    )


def inside(source: CustomAudioSource) -> channel_session.ChannelSession:
    assert source._connection is not None
    return source._connection


def push(source: CustomAudioSource) -> int:
    """The code of a push, 0 where it was taken."""
    try:
        source.push_external_audio_frame_raw_data(SILENCE)
    except AgoraError as error:
        return int(error.code)
    return 0


@contextmanager
def pushing(source: CustomAudioSource, pace_s: float = 0.01) -> Iterator[Counter[int]]:
    """A thread pushes meanwhile; counts the codes."""
    codes: Counter[int] = Counter()
    end = threading.Event()

    def body() -> None:
        while not end.is_set():
            codes[push(source)] += 1
            time.sleep(pace_s)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield codes
    finally:
        end.set()
        thread.join()


def told() -> list[str]:
    """What the daemon logs from now on."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logging.getLogger("capstand").addHandler(Handler())
    logging.getLogger("capstand").setLevel(logging.DEBUG)
    return lines


def made(lifetime_s: int = 3600, ago_s: float = 0, **other: Any) -> str:
    values: dict[str, Any] = {"app_id": APP_ID, "channel": CHANNEL, "uid": UID, **other}
    return tokens.build(
        values["app_id"],
        CERTIFICATE,
        values["channel"],
        values["uid"],
        lifetime_s,
        time.time() - ago_s,
    )


class Log(StandIn):
    """The stand-in's log, read in the process that writes it."""

    def __init__(self) -> None:
        self.log = Path(os.environ["STANDIN_LOG"])


def renewed(times: int) -> None:
    until(f"renewal {times}", lambda: len(Log().calls(RENEW)) >= times)


def clock(sure: bool) -> None:
    walltime.clock_sure = lambda root=Path("/"): sure


def write(name: str, text: str) -> TokenFile:
    """A token file that is there at once, as a careful program writes it."""
    path = here() / name
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.rename(path)
    return TokenFile(str(path))


class Given:
    """Hands out what the test put there; nothing tells when that changes."""

    def __init__(self, text: str) -> None:
        self.label = "a token of the test"
        self.text = text
        self.asked = 0

    def fetch(self) -> str:
        self.asked += 1
        return self.text

    def fingerprint(self) -> object:
        return None


# Threads and the SDK's own reconnecting


def a_full_life() -> dict[str, int]:
    source = joined()
    native_command("set stats_ms 50")
    with pushing(source) as codes:
        until("pushes", lambda: codes[0] > 3)
        native_command("play error=7:0,warning:0,reconnecting:0")
        until("an interruption", lambda: codes[Code.NOT_READY])
        native_command("play reconnected:0")
        assert source.wait_joined(WAIT_S)
        source.renew_token(made())
        renewed(1)
        figures = source.figures
        until("statistics", lambda: (f := figures(0)) is not None and f.sent_kbps is not None)
        native_command("play lost:0")
        rejoined(source, 2)
        before = codes[0]
        until("pushes again", lambda: codes[0] > before + 3)
        assert source.leave_channel(WAIT_S)
    return {str(code): count for code, count in codes.items()}


def test_one_thread_calls(standin: StandIn) -> None:
    """Callbacks come from the SDK's threads; every call but the push comes from one other thread,
    and none from a callback."""
    codes = see(a_full_life, standin)
    calls = standin.calls()
    at_end = calls[-2:]  # at the end of the process
    assert [call.name for call in at_end] == [RELEASE, "agora_media_node_factory_destroy"]
    assert {call.thread for call in calls[:-2]} == {f"agora:{CHANNEL}"}
    (control,) = {call.tid for call in calls[:-2]}
    assert control not in {callback.tid for callback in standin.callbacks()}
    assert len({callback.tid for callback in standin.callbacks()}) == 2
    assert codes["0"] == len([pushe for pushe in standin.pushes() if pushe.ret == 0])
    assert len(standin.calls(RENEW)) == 1


def interrupted() -> dict[str, Any]:
    source = joined()
    for _ in range(4):
        push(source)
    first = push(source)
    native_command("play reconnecting:0")
    comes(source, "RECONNECTING")
    during, words = [push(source) for _ in range(3)], source.summary()
    trouble = source.condition().trouble
    native_command("play reconnected:0")
    assert source.wait_joined(WAIT_S)
    until("an empty buffer", lambda: inside(source).depth_ms() == 0)
    after = push(source)
    figures = source.figures(time.monotonic_ns())
    kept = figures and (figures.joins, figures.holes)
    native_command("play reconnecting:0")  # and never again
    comes(source, "RECONNECTING")
    channel_session.RECONNECT_S = 0.1
    native_command("play reconnected:0,reconnecting:1")
    rejoined(source, 2)
    source.leave_channel()
    return {
        "codes": [first, *during, after],
        "words": words,
        "trouble": trouble,
        "kept": kept,
    }


def test_sdk_reconnects(standin: StandIn) -> None:
    """While the SDK reconnects by itself pushes are refused, then it goes on without a new join;
    where it takes too long a new connection is made."""
    got = see(interrupted, standin)
    assert got["codes"] == [0, -3, -3, -3, 0]
    assert got["words"] == got["trouble"]
    assert got["words"].startswith(f"reconnecting to {CHANNEL}: the network is interrupted")
    assert got["kept"] == [1, 0]
    assert len(standin.calls(CONNECT)) == len(standin.calls(PUBLISH)) == 2
    assert len(standin.pushes()) == 6


# Losses


def losses(scale: float, times: int) -> list[float]:
    pauses: list[float] = []
    next_s = Backoff.next_s

    def recorded(self: Backoff) -> float:
        pauses.append(next_s(self))
        return pauses[-1]

    Backoff.next_s = recorded  # type: ignore[method-assign]
    channel_session.TICK_S = 0.02
    source = joined(scale)
    for number in range(times):
        if number == times - 1:
            channel_session.STABLE_S = 0.1
            until(
                "a stable time", lambda: inside(source)._pause._base_s == channel_session.PAUSE_S[0]
            )
        native_command("play lost:0")
        rejoined(source, number + 2)
        assert push(source) == 0
    source.leave_channel()
    return pauses


def test_lost_and_joined_again(standin: StandIn) -> None:
    """A lost connection is torn down in the right order and made anew, after jittered pauses that
    double and begin small again after a stable time."""
    scale, times = 0.04, 6
    pauses = see(losses, standin, scale, times)
    calls = [call for call in standin.calls() if call.name not in ("agora_rtc_conn_get_sid",)]
    names = [call.name for call in calls]
    lives = "\n".join(names).split(CONNECT)
    assert len(lives) == times + 2
    for life in lives[1:-1]:
        assert life.split() == [
            PUBLISH,
            "agora_local_user_unpublish_audio",
            "agora_local_user_unregister_observer",
            DISCONNECT,
            "agora_rtc_conn_unregister_observer",
            DESTROY,
            "agora_local_audio_track_destroy",
            "agora_audio_pcm_data_sender_destroy",
            *names[names.index("agora_rtc_conn_create") : names.index(CONNECT)],
        ]
    assert len({call.args["conn"] for call in standin.calls(CONNECT)}) == times + 1
    grown = [0.5 * scale * 2**number for number in range(times - 1)]
    ratios = [pause / plain for pause, plain in zip(pauses, [*grown, grown[0]], strict=True)]
    assert all(0.75 <= ratio <= 1.25 for ratio in ratios)
    assert len({round(ratio, 4) for ratio in ratios}) > 1
    ends = [call.ns for call in calls if call.name == "agora_audio_pcm_data_sender_destroy"]
    starts = [call.ns for call in standin.calls(CONNECT)]
    for end, start, pause in zip(ends, starts[1:], pauses, strict=False):
        assert (start - end) / 1e9 >= pause - 0.001


TRANSIENT = (2, 4, 14, 16)


def transient() -> list[str]:
    lines = told()
    source = opened(0.01)
    for reason in TRANSIENT:
        native_command(f"set connect_reason {reason} 2")
        source.join_channel("", CHANNEL, UID, wait_s=WAIT_S)
        comes(source, "JOINED")
        assert source.leave_channel(WAIT_S)
    return lines


def test_transient_failures(standin: StandIn) -> None:
    """A join that fails for a reason that may pass is tried again and again."""
    lines = see(transient, standin)
    assert len(standin.calls(CONNECT)) == len(standin.calls(DESTROY)) == 3 * len(TRANSIENT)
    for reason in TRANSIENT:
        assert len([line for line in lines if f"(reason {reason} " in line]) == 2


FATAL = {
    3: "lift the ban",
    6: "compare app_id",
    7: "change channel",
    10: "is the uid in the channel already",
    19: "give each its own uid",
    20: "too many broadcasters",
    21: "see Agora's console",
}


def fatal(reasons: Sequence[int]) -> dict[str, Any]:
    source = opened(0.01)
    found: dict[str, Any] = {}
    for reason in reasons:
        native_command(f"set connect_reason {reason} 1")
        source.join_channel("", CHANNEL, UID, wait_s=0)
        comes(source, "REFUSED")
        found[str(reason)] = [source.summary(), source.condition().trouble, push(source)]
        comes(source, "JOINED")
        assert source.leave_channel(WAIT_S)
    source.join_channel("", CHANNEL, UID, wait_s=WAIT_S)
    native_command("play license=5:0")
    comes(source, "REFUSED")
    found["license"] = source.summary()
    rejoined(source, 2)
    assert source.leave_channel(WAIT_S)
    return found


def test_fatal_failures(standin: StandIn) -> None:
    """Where only a person can help, the words say what to do, and joining is tried again after a
    long pause, which is when it works as soon as the reason is gone."""
    found = see(fatal, standin, list(FATAL))
    assert "licence was rejected (5)" in found.pop("license")
    for reason, advice in FATAL.items():
        words, trouble, code = found[str(reason)]
        assert words == trouble and advice in words and code == Code.NOT_READY
        assert words.startswith(f"not in {CHANNEL}: ") and words.endswith("every few minutes")
    connects = [call.ns / 1e9 for call in standin.calls(CONNECT)]
    for first, second in zip(connects[::2], connects[1::2], strict=True):
        assert second - first >= 60 * 0.01 * 0.75


def hindered() -> list[str]:
    lines = told()
    source = opened()
    channel_session.LEAVE_S = 0.1
    for hindrance, number in (
        ("set connect_silent 1 2", 1),
        ("set connect_ret -2 2", 1),
        ("set connect_ret -8 2", 1),
        ("set publish_ret -1 2", 1),
        ("set publish_fail 3 2", 3),
        ("set disconnect_silent 1 2;set connect_reason 4 2", 1),
        ("set disconnect_ret -1 2;set connect_reason 4 2", 1),
    ):
        channel_session.JOIN_S = 0.2 if "connect_silent" in hindrance else WAIT_S
        native_command(hindrance)
        source.join_channel("", CHANNEL, UID, wait_s=0)
        rejoined(source, number)
        assert push(source) == 0
        lines.append(hindrance)
        assert source.leave_channel(WAIT_S)
    return lines


def test_hindered_joins(standin: StandIn) -> None:
    """A join that is not answered, is refused by its result, or cannot publish, is torn down and
    tried again; so is one whose teardown goes wrong too."""
    lines = see(hindered, standin)
    assert len(standin.calls(CONNECT)) == len(standin.calls(DESTROY)) == 7 * 3
    wrong = iter(lines)
    for hindrance, words in (
        ("set connect_silent 1 2", "no reply for"),
        ("set connect_ret -2 2", "-2 INVALID_ARGUMENT"),
        ("set connect_ret -8 2", "-8 INVALID_STATE"),
        ("set publish_ret -1 2", "publishing was refused: -1 FAILED"),
        ("set publish_fail 3 2", "publishing failed: -3"),
    ):
        said = []
        for line in wrong:
            if line == hindrance:
                break
            said.append(line)
        assert len([line for line in said if words in line]) == 2, said


# Tokens


def token_refused() -> dict[str, Any]:
    channel_session.LONG_PAUSE_S = (1e6, 1e6)
    first, second = made(), made()
    native_command("set connect_reason 8 1")
    source = opened()
    source.join_channel(write("token", first), CHANNEL, UID, wait_s=0)
    comes(source, "REFUSED")
    words = source.summary()
    write("token", second)
    comes(source, "JOINED")
    source.leave_channel()
    return {"tokens": [first, second], "words": words}


def test_refused_token(standin: StandIn) -> None:
    """A token that Agora refuses is not tried again; another one in the file is, at once."""
    got = see(token_refused, standin)
    assert [call.args["token"] for call in standin.calls(CONNECT)] == got["tokens"]
    assert "the token is invalid for this app id, channel and uid (reason 8" in got["words"]
    assert got["words"].count("no other token") == 1
    assert f"token file {standin.directory}/token has no other token" in got["words"]


def was_asked(given: Given, times: int) -> bool:
    return given.asked >= times


def asked_in_vain() -> list[str]:
    channel_session.LONG_PAUSE_S = (1.0, 1.0)
    given = Given(made())
    source = opened()
    native_command("set connect_reason 8")
    source.join_channel(given, CHANNEL, UID, wait_s=0)
    words = []
    for number in (2, 4, 6):
        until("another try", partial(was_asked, given, number))
        comes(source, "REFUSED")
        words.append(source.summary())
    words = [line for line in words if line.endswith("every few minutes")]
    native_command("set connect_reason 1")
    given.text = made()
    comes(source, "JOINED")
    source.leave_channel()
    return words


def test_refused_token_stays(standin: StandIn) -> None:
    """As long as a source has only the refused token it is tried once after each long pause (the
    project may have been changed), and the words do not grow."""
    words = see(asked_in_vain, standin)
    assert len(set(words)) == 1 and len(words) > 1
    tried = [call.args["token"] for call in standin.calls(CONNECT)]
    assert len(tried) >= 4 and len(set(tried)) == 2


def token_over() -> None:
    (here() / "certificate").write_text(CERTIFICATE)
    source = opened()
    native_command("set connect_reason 9 1")
    local = LocalTokens(APP_ID, str(here() / "certificate"), CHANNEL, UID, 600)
    source.join_channel(local, CHANNEL, UID, wait_s=0)
    rejoined(source, 1)
    native_command("play didexpire:0")
    rejoined(source, 2)
    native_command("play disconnected=9:0")
    rejoined(source, 3)
    source.leave_channel()


def test_expired_token(standin: StandIn) -> None:
    """Where the token has ended, a new one is fetched and the channel is joined anew with it."""
    see(token_over, standin)
    connects = standin.calls(CONNECT)
    assert len({call.args["token"] for call in connects}) == len(connects) == 4
    assert len({call.args["conn"] for call in connects}) == 4
    assert len(standin.calls(DESTROY)) == 4
    assert standin.calls(RENEW) == []


def renewals() -> dict[str, Any]:
    clock(True)
    token_keeper.RENEW_AGAIN_S = 0.2
    texts = [made() for _ in range(3)]
    given = Given(texts[0])
    source = joined(token=given)
    notes = []

    def note(what: str) -> None:
        notes.append([what, source.condition().concern, state(source), joins(source)])

    given.text = texts[1]
    native_command("play willexpire:0")
    renewed(1)
    note("renewed")
    given.text = texts[2]
    native_command("set renew_ret -8 1;play willexpire:0")
    until("a concern", lambda: source.condition().concern)
    note("refused")
    until("another try", lambda: source.condition().concern is None)
    note("tried again")
    native_command("play willexpire:0")
    until("a concern", lambda: source.condition().concern)
    note("nothing newer")
    given.text = made()
    until("a renewal", lambda: source.condition().concern is None)
    note("newer")
    given.text = made(channel="other")
    native_command("play willexpire:0")
    until("a concern", lambda: source.condition().concern)
    note("other channel")
    ends = (figures := source.figures(0)) and figures.token_ends_s
    assert source.leave_channel()
    return {"texts": texts, "notes": notes, "ends": ends}


def test_renewal(standin: StandIn) -> None:
    """A token that ends soon is renewed once with a new one; where there is none, or it is refused,
    that is a concern, is tried again, and the connection stands."""
    got = see(renewals, standin)
    assert [call.args["token"] for call in standin.calls(RENEW)][:3] == [
        got["texts"][1],
        got["texts"][2],
        got["texts"][2],
    ]
    assert len(standin.calls(RENEW)) == 4
    assert len(standin.calls(CONNECT)) == 1
    assert {tuple(note[2:]) for note in got["notes"]} == {("JOINED", 1)}
    concerns = {what: concern for what, concern, *_ in got["notes"]}
    assert concerns["renewed"] is concerns["tried again"] is concerns["newer"] is None
    assert "-8 INVALID_STATE" in concerns["refused"]
    assert concerns["nothing newer"] == "a token of the test has no newer token yet"
    assert "not renewed: a token of the test: the token is for channel" in concerns["other channel"]
    assert 3500 < got["ends"] - time.time() <= 3600


def renewed_in_time() -> dict[str, Any]:
    clock(True)
    token_keeper.RENEW_AGAIN_S, channel_session.TICK_S = 0.2, 0.05
    given = Given(made(lifetime_s=20, ago_s=14.5))
    began_ns = time.monotonic_ns()  # before the wall clock is read: a machine may be late between
    due_s = tokens.renew_after_s(tokens.parse(given.text), time.time(), True)
    due_ns = began_ns + int(due_s * 1e9)
    source = joined(token=given)
    given.text = made()
    renewed(1)
    source.leave_channel()
    # a file; nobody says that its token ends
    texts = [made() for _ in range(4)]
    source = joined(token=write("token", texts[0]))
    write("token", texts[1])
    renewed(2)
    before = inside(source)._tokens._used
    write("token", texts[1])
    until("a look at the file", lambda: inside(source)._tokens._used != before)
    concerns = []
    for _ in range(20):
        concerns.append(source.condition().concern)
        time.sleep(0.01)
    write("token", texts[2])
    native_command("play willexpire:0")
    renewed(3)
    native_command("play reconnecting:0")
    comes(source, "RECONNECTING")
    source.renew_token(texts[3])
    renewed(4)
    native_command("play reconnected:0")
    assert source.wait_joined(WAIT_S)
    concerns.append(source.condition().concern)
    source.leave_channel()
    source = joined(token=texts[0])
    source.renew_token(texts[1])
    renewed(5)
    source.renew_token(texts[2])
    renewed(6)
    source.leave_channel()
    return {"texts": texts, "concerns": concerns, "due_ns": due_ns}


def test_renewal_without_being_asked(standin: StandIn) -> None:
    """A token is renewed when most of its life is over, when its file changes, and when the program
    hands over another; a file written again with the same token is no concern."""
    got = see(renewed_in_time, standin)
    texts = got["texts"]
    calls = standin.calls(RENEW)
    assert [call.args["token"] for call in calls[1:]] == [*texts[1:], *texts[1:3]]
    assert calls[0].ns > got["due_ns"] - 1e6
    assert set(got["concerns"]) == {None}
    assert len(standin.calls(CONNECT)) == 3


def not_tried() -> dict[str, Any]:
    output = os.open(here() / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    kept = os.dup(1), os.dup(2)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    for name in ("capstand", "agora"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    clock(True)
    texts = {
        "channel": made(channel="another"),
        "uid": made(uid=7),
        "app_id": made(app_id=APP_ID[::-1]),
        "ended": made(lifetime_s=60, ago_s=120),
        "damaged": made()[:-9],
    }
    source, said, shown = opened(), {}, []

    def look() -> None:
        shown.extend([source.summary(), repr(source.condition()), repr(source.figures(0))])
        shown.append(repr(vars(source)))
        try:
            source.push_external_audio_frame_raw_data(SILENCE)
        except AgoraError as error:
            whole = traceback.TracebackException.from_exception(error, capture_locals=True)
            shown.append("".join(whole.format()))

    for name, text in texts.items():
        source.join_channel(write("token", text), CHANNEL, UID, wait_s=0)
        comes(source, "REFUSED")
        said[name] = source.summary()
        look()
        source.leave_channel()
    native_command("mark nothing tried")
    clock(False)
    source.join_channel(write("token", texts["ended"]), CHANNEL, UID, wait_s=WAIT_S)
    comes(source, "JOINED")
    look()
    for number in range(2):
        texts[f"renewed {number}"] = made()
        native_command("set renew_ret -8 1" if number else "set renew_ret 0")
        write("token", texts[f"renewed {number}"])
        native_command("play willexpire:0,error=5:0")
        renewed(number + 1)
        look()
    native_command("set connect_reason 8;play didexpire:0")
    comes(source, "REFUSED")
    look()
    source.leave_channel()
    print("the end", flush=True)
    for old, new in zip(kept, (1, 2), strict=True):
        os.dup2(old, new)
    return {"texts": texts, "said": said, "shown": "\n".join(shown)}


def test_useless_tokens(standin: StandIn) -> None:
    """A token for something else, or one that has ended by a clock that is right, is not tried, and
    the words say why; no token is in any log, output, phrase or traceback."""
    got = see(not_tried, standin)
    first = next(line for line in standin.lines() if line.get("mark") == "nothing tried")
    assert first["ns"] < standin.calls(CONNECT)[0].ns
    assert standin.calls(CONNECT)[0].args["token"] == got["texts"]["ended"]
    for name, words in {
        "channel": "the token is for channel 'another', not for 'studio'",
        "uid": "the token is for uid '7', not for 1001",
        "app_id": "the token is for another app id",
        "ended": "the token expired 6",
        "damaged": "the token is damaged",
    }.items():
        assert words in got["said"][name]
        assert f"token file {standin.directory}/token: " in got["said"][name]
    output = (standin.directory / "output").read_text()
    assert "the end" in output and "capstand.agora" in output
    for text in got["texts"].values():
        for place in (output, got["shown"], *got["said"].values()):
            assert text not in place and text[20:60] not in place


class Faulty(Given):
    def fetch(self) -> str:
        super().fetch()
        if self.asked == 1:
            raise ValueError(self.text)
        return self.text


def fetch_fails() -> int:
    threading.excepthook = lambda args: None
    source = opened()
    source.join_channel(Faulty(made()), CHANNEL, UID, wait_s=WAIT_S)
    comes(source, "JOINED")
    number = joins(source)
    source.leave_channel()
    return number


def test_source_with_a_fault(standin: StandIn) -> None:
    """A source of tokens that raises what it must not is asked again."""
    assert see(fetch_fails, standin) == 1


# Proof of sending


def statistics() -> dict[str, Any]:
    channel_session.TICK_S = 0.05
    native_command("set stats_ms 50")
    source = joined()
    inside(source).proof.proof_s = 0.4
    with pushing(source):
        figures = source.figures
        until("a bit rate", lambda: (f := figures(0)) is not None and (f.sent_kbps or 0) > 30)
        native_command("set bitrate 0")
        until("a concern", lambda: source.condition().concern)
        concern = source.condition().concern
        native_command("set bitrate 64")
        until("no concern", lambda: source.condition().concern is None)
    until("nothing sent", lambda: (f := figures(0)) is not None and f.sent_kbps == 0)
    looks = len(Log().callbacks("stats"))
    until("a second of that", lambda: len(Log().callbacks("stats")) > looks + 20)
    quiet = source.condition().concern  # nothing is pushed, so nothing must be sent
    inside(source).proof.silent_s = 0.5
    native_command("set stats_mute 1;play reconnecting:0,reconnected:20")
    rejoined(source, 2)
    native_command("set stats_mute 0")
    until("statistics", lambda: (f := figures(0)) is not None and f.sent_kbps is not None)
    native_command("set stats_mute 1")
    rejoined(source, 3)
    spent = source.condition().needs_new_process
    until("the end of it", lambda: source.condition().needs_new_process)
    again = source.condition().needs_new_process
    source.leave_channel()
    return {"concern": concern, "quiet": quiet, "spent": [spent, again]}


def test_statistics(standin: StandIn) -> None:
    """What the SDK says it sends is shown; nothing sent while pushing is a concern; statistics that
    stop are cured by a new join, and if that does not help, only by a new process."""
    got = see(statistics, standin)
    assert got["concern"].startswith(f"in {CHANNEL}, but the SDK's statistics show nothing sent")
    assert got["quiet"] is None
    assert got["spent"] == [
        None,
        "Agora's SDK stopped reporting statistics, after a rejoin too",
    ]


# A native side that hangs or fails


def is_hung(source: CustomAudioSource, call: str) -> bool:
    return f" {call} " in (source.condition().hung or "")


def hangs() -> list[Any]:
    channel_session.HUNG_S = 0.2
    found: list[Any] = []
    source = opened()
    for setting, call, cause in (
        ("hang_connect_ms", "connect", ""),
        ("hang_publish_ms", "publish_audio", ""),
        ("hang_renew_ms", "renew_token", "play willexpire:0"),
        ("hang_disconnect_ms", "disconnect", "play lost:0"),
        ("hang_destroy_ms", "release", "play lost:0"),
    ):
        given = Given("")
        if not cause:
            native_command(f"set {setting} 60000 1")
        source.join_channel(given, CHANNEL, UID, wait_s=0)
        if cause:
            comes(source, "JOINED")
            given.text = made()
            native_command(f"set {setting} 60000 1;{cause}")
        until(f"{call} hangs", partial(is_hung, source, call))
        hung, words = source.condition().hung, source.summary()
        start = time.monotonic()
        code = push(source) if call != "renew_token" else 0
        left = source.leave_channel(0.3)
        took_s = time.monotonic() - start
        native_command(f"mark {setting};wake")
        until("its end", lambda: native_get("alive_handles") <= 3)
        assert source.leave_channel()
        found.append([call, hung, words, code, left, took_s])
    return found


def test_hung_calls(standin: StandIn) -> None:
    """A call that does not come back is named, and nothing else waits for it."""
    for call, hung, words, code, left, took_s in see(hangs, standin):
        assert hung.startswith(f"Agora's SDK has not returned from {call} for"), call
        assert CHANNEL in words
        assert code == (0 if call == "renew_token" else Code.NOT_READY)
        assert not left and took_s < 30
    assert standin.calls()[-2].name == RELEASE


def hung_to_the_end() -> bool:
    source = joined()
    native_command("set hang_disconnect_ms 600000 1")
    return source.leave_channel(0.1)


def test_end_while_hung(standin: StandIn) -> None:
    """A process ends although a connection hangs in the SDK, and releases nothing beneath it."""
    start = time.monotonic()
    assert see(hung_to_the_end, standin) is False
    assert time.monotonic() - start < WAIT_S
    assert standin.calls(RELEASE) == standin.calls(DISCONNECT) == []


def hung_push(bytes_: int) -> list[Any]:
    channel_session.HUNG_S = 0.2
    source = joined()
    inside(source).gate.wait_s = 0.2
    codes: list[int] = []

    def body() -> None:
        try:
            source.push_external_audio_frame_raw_data(bytes(bytes_))
            codes.append(0)
        except AgoraError as error:
            codes.append(error.code)

    native_command("set hang_push_ms 60000 1")
    thread = threading.Thread(target=body)
    thread.start()
    until("push hangs", lambda: source.condition().hung)
    hung = source.condition().hung
    start = time.monotonic()
    left = source.leave_channel(0.3)
    took_s = time.monotonic() - start
    native_command("mark wake;wake")
    thread.join(WAIT_S)
    until("its end", lambda: native_get("alive_handles") <= 3)
    return [hung, left, took_s, codes]


def test_hung_push(standin: StandIn) -> None:
    """A push that does not come back is named; the connection is released only after it."""
    hung, left, took_s, codes = see(hung_push, standin, 960)
    assert hung.startswith("Agora's SDK has not returned from push for")
    assert not left and took_s < 30 and codes == [0]
    mark = next(line["ns"] for line in standin.lines() if line.get("mark") == "wake")
    assert standin.calls(DISCONNECT)[0].ns > mark


def test_hung_push_and_rest(standin: StandIn) -> None:
    """So it is where sound is left over that leaving would send."""
    hung, left, took_s, codes = see(hung_push, standin, 960 + 480)
    assert hung and not left and took_s < 30 and codes == [0]


def fault() -> list[Any]:
    threading.excepthook = lambda args: None
    source = joined()

    def fails(self: sdk.RtcConnection, token: str) -> int:
        raise RuntimeError("a fault of the wrapper")

    sdk.RtcConnection.renew = fails  # type: ignore[method-assign]
    source.renew_token(made())
    until("the end of it", lambda: source.condition().needs_new_process)
    return [source.condition().needs_new_process, source.leave_channel(WAIT_S)]


def test_fault(standin: StandIn) -> None:
    """A fault in what looks after the connection is not silent: a new process is asked for."""
    assert see(fault, standin) == ["the connection's control thread crashed; see the log", True]


def failures(settings: Sequence[str]) -> list[Any]:
    found = []
    source = opened(0.01)
    for setting in settings:
        native_command(f"set {setting} 1")
        source.join_channel("", CHANNEL, UID, wait_s=0)
        comes(source, "REFUSED")
        found.append([source.condition().needs_new_process, source.summary()])
        comes(source, "JOINED")
        assert push(source) == 0 and source.condition().needs_new_process is None
        assert source.leave_channel(WAIT_S)
    return found


def test_native_failures(standin: StandIn) -> None:
    """Where the SDK cannot make what a connection needs, the words say why and that a new process
    is needed; joining goes on, in case."""
    settings = ["conn_create_null 1", "sender_null 1", "track_null 1"]
    for spent, words in see(failures, standin, settings):
        assert spent == "Agora's SDK made no connection, track or sender"
        assert spent in words


def test_initialize_fails(standin: StandIn) -> None:
    """Where the SDK cannot be initialised, the words say why and what to look at."""
    ((spent, words),) = see(failures, standin, ["init_ret -7"])
    assert "could not be initialised" in spent
    assert "is app_id right" in spent and spent in words


def test_no_service(standin: StandIn) -> None:
    """An SDK that makes no service at all is never called with nothing."""
    ((spent, words),) = see(failures, standin, ["service_null 1"])
    assert "could not be initialised" in spent and spent in words


def sounds() -> int:
    source = joined()
    assert push(source) == 0
    source.leave_channel()
    return 0


def test_other_result(standin: StandIn) -> None:
    """The result of something else than the initialisation keeps nobody from joining."""
    see(sounds, standin, script="set ext_ret -4; set param_null 1 1")
    assert {call.ret for call in standin.calls("agora_service_enable_extension")} <= {-4}
    assert len(standin.pushes()) == 1


# Several sources, leaving, and the end


def two_sources() -> dict[str, Any]:
    first = joined()
    stranger = opened(app_id=APP_ID[::-1])
    stranger.join_channel("", "other", 5, wait_s=0)
    comes(stranger, "REFUSED")
    words = stranger.summary()
    assert stranger.leave_channel(WAIT_S)
    second = opened()
    assert second.join_channel("", "second", 2, wait_s=WAIT_S)
    with pushing(first) as one:
        with pushing(second) as other:
            until("both", lambda: one[0] > 3 and other[0] > 3)
            assert second.leave_channel(WAIT_S)
        before = one[0]
        until("the first goes on", lambda: one[0] > before + 5)
        assert set(one) <= {0, Code.TOO_OFTEN}
    assert (state(first), joins(first)) == ("JOINED", 1)
    assert first.leave_channel(WAIT_S)
    return {"words": words}


def test_two_sources(standin: StandIn) -> None:
    """Sources with the same settings live side by side in one process, one with another app id is
    refused in words, and the service is released once, at the end."""
    words = see(two_sources, standin)["words"]
    assert "the SDK runs once per process, with one app_id for all connections" in words
    assert [call.args["channel"] for call in standin.calls(CONNECT)] == [CHANNEL, "second"]
    assert len(standin.calls("agora_service_initialize")) == len(standin.calls(RELEASE)) == 1
    assert len({pushe.sender_id for pushe in standin.pushes()}) == 2
    assert standin.names()[-2] == RELEASE


class Slow(Given):
    """A server that takes its time."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.end = threading.Event()

    def fetch(self) -> str:
        self.asked += 1
        self.end.wait(2 * WAIT_S)
        return self.text


def leaving() -> list[Any]:
    source, found = opened(), []
    channel_session.LONG_PAUSE_S = channel_session.PAUSE_S = (1e6, 1e6)
    for wanted, before, after in (
        ("JOINING", "set connect_silent 1 1", ""),
        ("JOINED", "", ""),
        ("RECONNECTING", "", "play reconnecting:0"),
        ("LOST", "", "play lost:0"),
        ("LOST", "set connect_reason 4 1", ""),
        ("REFUSED", "set connect_reason 3 1", ""),
        ("JOINED", "", ""),
    ):
        native_command(before)
        source.join_channel("", CHANNEL, UID, wait_s=0)
        if after:
            assert source.wait_joined(WAIT_S)
            native_command(after)
        comes(source, wanted)
        if wanted == "JOINING":
            until("connect", lambda: Log().calls(CONNECT))
        start = time.monotonic()
        left = source.leave_channel(WAIT_S)
        found.append([wanted, left, time.monotonic() - start, source.summary()])
    slow = Slow("")
    source.join_channel(slow, CHANNEL, UID, wait_s=0)
    until("a fetch", lambda: slow.asked)
    start = time.monotonic()
    left = source.leave_channel(WAIT_S)
    found.append(["JOINING, fetching", left, time.monotonic() - start, source.summary()])
    slow.end.set()
    return found


def test_leaving(standin: StandIn) -> None:
    """Leaving is quick and clean in every state, and the same source can join again."""
    for wanted, left, took_s, words in see(leaving, standin):
        assert left and took_s < 30, wanted
        assert words == f"left {CHANNEL}"
    created, destroyed = standin.calls("agora_rtc_conn_create"), standin.calls(DESTROY)
    assert [call.ret for call in created] == [call.args["conn"] for call in destroyed]
    assert standin.names()[-2] == RELEASE
    assert [line for line in standin.warnings() if "destroyed" in line] == []


def storm(seed: int) -> dict[str, int]:
    dice = random.Random(seed)
    channel_session.JOIN_S = channel_session.RECONNECT_S = 0.3
    channel_session.PAUSE_S = (0.5, 2.0)
    native_command("set stats_ms 20; set connect_ms 5")
    source = opened()
    end = time.monotonic() + 5
    with pushing(source, 0) as codes:
        while time.monotonic() < end:
            events = ",".join(
                f"{event}:{dice.randrange(60)}"
                for event in dice.choices(
                    (
                        "reconnecting",
                        "reconnected",
                        "connected",
                        "lost",
                        "failed=14",
                        "failed=9",
                        "disconnected=2",
                        "pubfailed=1",
                        "willexpire",
                        "error=3",
                    ),
                    k=dice.randrange(5),
                )
            )
            native_command(f'set on_connected "{events}"')
            native_command(f"set connect_reason {dice.choice((1, 1, 1, 4, 16))} 1")
            native_command(f"set connect_silent {int(dice.random() < 0.1)} 1")
            local = LocalTokens(APP_ID, str(here() / "certificate"), CHANNEL, UID, 600)
            (here() / "certificate").write_text(CERTIFICATE)
            source.join_channel(local, CHANNEL, UID, wait_s=dice.random() * 0.3)
            time.sleep(dice.random() * 0.3)
            if dice.random() < 0.3:
                source.renew_token(made())
            assert source.leave_channel(WAIT_S)
    return {str(code): count for code, count in codes.items()}


def test_storm(standin: StandIn) -> None:
    """Whatever happens to the connection while a thread pushes: no push is lost from the books,
    none meets what is released, and each is refused with an AgoraError or taken."""
    codes = see(storm, standin, 42)
    assert codes["0"] == len([pushe for pushe in standin.pushes() if pushe.ret == 0]) > 0
    assert set(codes) <= {"0", str(int(Code.NOT_READY)), "-12", "-113"}
    assert len(standin.calls(CONNECT)) > 5
    assert len(standin.calls("agora_rtc_conn_create")) == len(standin.calls(DESTROY))


def late_callbacks() -> dict[str, Any]:
    posts: list[sdk.Post] = []
    call = sdk.Sdk.connection

    def kept(self: sdk.Sdk, track: sdk.Track, post: sdk.Post) -> sdk.RtcConnection:
        posts.append(post)
        return call(self, track, post)

    sdk.Sdk.connection = kept  # type: ignore[method-assign]
    source = joined()
    native_command("play connected:0,connected:0,reconnected:0")
    native_command("play lost:0,lost:0,disconnected=2:0,failed=3:0,didexpire:0")
    rejoined(source, 2)
    for name, number in (
        ("disconnected", 5),
        ("connection_failure", 3),
        ("connection_lost", 0),
        ("reconnecting", 2),
        ("token_did_expire", 0),
        ("token_will_expire", 0),
        ("license_failure", 1),
        ("publication_failure", 1),
        ("statistics", 4321),
    ):
        posts[0](name, number)
    native_command("play connected:0,connected:0,reconnected:0,error=77:0")
    lines = told()
    posts[1]("error", 78)
    until("all of that", lambda: any("error 78" in line for line in lines))
    found = [state(source), joins(source), push(source)]
    figures = source.figures(0)
    kbps = figures and figures.sent_kbps
    assert source.leave_channel(WAIT_S)
    for post in posts:
        post("connected", 1)
        post("disconnected", 5)
    return {"found": found, "kbps": kbps, "calls": len(posts)}


def test_late_callbacks(standin: StandIn) -> None:
    """Callbacks that come twice, late, or from a connection that is gone change nothing."""
    got = see(late_callbacks, standin)
    assert got == {"found": ["JOINED", 2, 0], "kbps": got["kbps"], "calls": 2}
    assert got["kbps"] != 4321
    assert len(standin.calls(CONNECT)) == len(standin.calls(PUBLISH)) == 2


def library_missing(folder: str) -> dict[str, Any]:
    empty = here() / "empty"
    empty.mkdir()
    os.environ["CAPSTAND_AGORA"] = str(empty)
    source = opened(0.01)
    source.join_channel("", CHANNEL, UID, wait_s=0)
    comes(source, "REFUSED")
    words, condition = source.summary(), source.condition()
    shutil.copytree(Path(folder) / "agora", here() / "copy")
    (here() / "copy").rename(empty / "agora")
    comes(source, "JOINED")
    code = push(source)
    source.leave_channel()
    return {"words": words, "spent": condition.needs_new_process, "code": code}


def test_library_missing(standin: StandIn) -> None:
    """Without Agora's library the words say how to get it; once it is there, joining works."""
    got = see(library_missing, standin, str(standin.folder))
    assert "capstand agora install" in got["words"]
    assert got["spent"] is None
    assert got["code"] == 0
