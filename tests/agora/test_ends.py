"""A program with a channel that just ends: as it meant to, whatever the channel was doing.

The stand-in calls back from a thread of its own, up to the very end of the process.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from capstand.agora import CustomAudioSource
from capstand.agora.sdk.codes import AgoraError
from capstand.agora.tokens.sources import Fixed
from tests.agora import StandIn
from tests.counts import FULL

APP_ID = "0123456789abcdef0123456789abcdef"
AT_ONCE = 5
PATIENCE_S = 120.0
WAIT_S = 60.0
LATE = "set exit_ms 60"
"""Callbacks come when Python has been taken down: there each is a crash."""
ALWAYS = "set exit_ms 60; set stats_ms 1"
"""They come all the time."""
HUNG = 600_000

STATES = {
    "nothing": "",
    "starting": "",
    "fetching": "",
    "joining": "set connect_silent 1",
    "joined": "",
    "pushing": "",
    "mixing": "",
    "two": "",
    "reconnecting": "",
    "lost": "set connect_reason 4",
    "refused": "set connect_reason 6",
    "left": "",
    "hung in connect": f"set hang_connect_ms {HUNG}",
    "hung in publish": f"set hang_publish_ms {HUNG}",
    "hung in push": "",
    "hung in disconnect": f"set hang_disconnect_ms {HUNG}",
    "hung in destroy": f"set hang_destroy_ms {HUNG}",
    "deaf to disconnect": "set disconnect_silent 1",
}
ENDS = {
    "returns": 0,
    "exits": 3,
    "raises": 1,
    "interrupted": -signal.SIGINT,
    "exits in a thread": 0,
    "forks": 0,
}


class Slow(Fixed):
    """A token that does not come."""

    def fetch(self) -> str:
        time.sleep(HUNG)
        return ""


def program(state: str, end: str) -> None:
    """Brings a channel into ``state``, then ends so."""
    sources = in_state(state)
    ends_so(end)
    assert sources is not None  # they live until then


def in_state(state: str) -> list[CustomAudioSource]:
    if state == "nothing":
        return []
    source = opened(2 if state == "mixing" else 1)
    wait_s = 0.0 if state in ("starting", "fetching", "joining") else WAIT_S
    if state in ("lost", "refused", "hung in connect", "hung in publish"):
        source.join_channel("", "studio", 1001, wait_s=0.0)
        calls = {"hung in connect": "connect", "hung in publish": "publish_audio"}
        until(
            lambda: (
                here().names().count("agora_rtc_conn_destroy") > 0
                if state in ("lost", "refused")
                else within(source) == calls[state]
            )
        )
        return [source]
    source.join_channel(Slow("") if state == "fetching" else "", "studio", 1001, wait_s=wait_s)
    match state:
        case "starting":
            return [source]
        case "fetching":
            return [source]
        case "joining":
            until(lambda: "agora_rtc_conn_connect" in here().names())
        case "reconnecting":
            here().command("play reconnecting:1")
            until(lambda: not source.joined)
        case "two":
            other = opened(1)
            assert other.join_channel("", "other", 1002, wait_s=WAIT_S)
            return [source, other]
        case "left":
            assert source.leave_channel(WAIT_S)
        case "hung in push":
            here().command(f"set hang_push_ms {HUNG}")
            push_on(source)
            until(lambda: source.condition().trouble is None and sending(source))
        case "pushing" | "mixing":
            push_on(source)
            until(lambda: here().pcm.stat().st_size > 0)
        case "hung in disconnect" | "hung in destroy":
            assert not source.leave_channel(0.2)
    return [source]


def opened(sources: int) -> CustomAudioSource:
    source = CustomAudioSource(APP_ID, here().directory / "agora")
    source.set_external_audio_source(True, 48000, 1, source_number=sources)
    return source


def within(source: CustomAudioSource) -> str | None:
    assert source._connection is not None
    call = source._connection._connection
    return None if call is None or call.within is None else call.within[0]


def sending(source: CustomAudioSource) -> int:
    assert source._connection is not None
    return source._connection.gate.sending_since_ns


def push_on(source: CustomAudioSource) -> None:
    """From a thread that nobody ends."""

    def body() -> None:
        while True:
            with contextlib.suppress(AgoraError):
                source.push_external_audio_frame_raw_data(bytes(960))
            time.sleep(0.002)

    threading.Thread(target=body, daemon=True).start()


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def here() -> StandIn:
    return StandIn.of_this_process()


def ends_so(end: str) -> None:
    match end:
        case "exits":
            sys.exit(3)
        case "raises":
            raise RuntimeError("on purpose")
        case "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(WAIT_S)
        case "exits in a thread":
            thread = threading.Thread(target=sys.exit, args=(5,))
            thread.start()
            thread.join()
        case "forks":
            child = os.fork()
            if child == 0:
                sys.exit(4)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4


# The tests


class Ended(NamedTuple):
    """How a program ended, and what it said."""

    status: int
    said: str
    standin: StandIn


def ended(folder: Path, directory: Path, code: str, script: str) -> Ended:
    directory.mkdir()
    standin = StandIn(folder, directory)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        env={**os.environ, **standin.env, "STANDIN_SCRIPT": script},
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return Ended(done.returncode, done.stderr, standin)


def wrong(state: str, end: str, seen: Ended) -> list[str]:
    """What was not as it should be."""
    statuses = {ENDS[end]}
    if (state, end) == ("starting", "interrupted"):
        statuses.add(
            1
        )  # Python forgets the interrupt where another thread calls exec, as imports do
    found = [] if seen.status in statuses else [f"status {seen.status}"]
    expected = {"raises": "RuntimeError: on purpose", "interrupted": "KeyboardInterrupt"}
    said = [line for line in seen.said.splitlines() if not line.startswith("channel studio: ")]
    if said[-1:] != [one for one in [expected.get(end)] if one] or "ignored in" in seen.said:
        found.append(seen.said)
    found += seen.standin.violations()
    names = seen.standin.names()
    hung = state.startswith("hung") or state in ("nothing", "starting", "fetching")
    if not hung and names[-1] != "agora_media_node_factory_destroy":
        found.append(f"the last call was {names[-1]}")
    return found


def test_a_program_ends_as_it_means_to(standin: StandIn, tmp_path: Path) -> None:
    """In every state of the channel, by every way to end, five at once: no signal, nothing said
    but by the program, its own exit status; the channel is left and the SDK released, unless that
    hangs."""
    cases = list(itertools.product(STATES, ENDS))
    if FULL:
        cases += cases[::-1]  # an even number of them: each has both noises
    else:
        cases = cases[:: len(ENDS) + 1] + [("joined", end) for end in ENDS]

    def one(number: int) -> tuple[str, str, list[str]]:
        state, end = cases[number]
        code = f"from tests.agora.test_ends import program; program({state!r}, {end!r})"
        noise = ALWAYS if number % 2 else LATE
        seen = ended(standin.folder, tmp_path / str(number), code, f"{noise}; {STATES[state]}")
        return state, end, wrong(state, end, seen)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        seen = list(pool.map(one, range(len(cases))))
    failed = [f"{state}, {end}: {'; '.join(found)}" for state, end, found in seen if found]
    assert not failed, "\n".join(failed)
