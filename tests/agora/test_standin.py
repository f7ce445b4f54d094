"""What the stand-in promises, shown with Agora's real Python wrapper on top of it.

A scenario is a top-level function that run() runs in a process of its own; the test beside it reads
the stand-in's log. Buffer tests hold the buffer's clock, the others wait for events, not for time.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_S

from . import (
    StandIn,
    build,
    load,
    native_advance,
    native_command,
    native_get,
    place,
    run,
    sdist,
    wrapper,
    wrong_architecture,
)

MS = 1_000_000
TOKEN = "007ePROBE+token/with==signs"
CONNECTION_EVENTS = (
    "on_connecting",
    "on_connected",
    "on_disconnected",
    "on_reconnecting",
    "on_reconnected",
    "on_connection_failure",
    "on_connection_lost",
    "on_token_privilege_will_expire",
    "on_token_privilege_did_expire",
    "on_connection_license_validation_failure",
    "on_error",
    "on_warning",
)
USER_EVENTS = (
    "on_audio_track_publish_start",
    "on_audio_track_publish_success",
    "on_audio_track_publication_failure",
    "on_audio_track_unpublished",
    "on_local_audio_track_statistics",
)


class Session:
    """One service and one connection of the wrapper, used as a careful program would."""

    def __init__(self, scenario: str = "CHORUS") -> None:
        self.sdk = load()
        base = self.sdk.agora_base
        self.events: queue.Queue[tuple[str, Any, int]] = queue.Queue()
        self.service = self.sdk.agora_service.AgoraService()
        kind = base.AudioScenarioType[f"AUDIO_SCENARIO_{scenario}"]
        config = base.AgoraServiceConfig(appid="app", audio_scenario=kind, log_path="log")
        self.service.initialize(config)
        profile = base.AudioProfileType.AUDIO_PROFILE_MUSIC_STANDARD_STEREO
        publish = base.RtcConnectionPublishConfig(audio_profile=profile, audio_scenario=kind)
        self.conn = self.service.create_rtc_connection(base.RTCConnConfig(), publish)
        if self.conn is not None and self.conn.local_user is not None:
            self.observers = (
                self._observer("rtc_connection_observer.IRTCConnectionObserver", CONNECTION_EVENTS),
                self._observer("local_user_observer.IRTCLocalUserObserver", USER_EVENTS),
            )

    def _observer(self, base: str, names: tuple[str, ...]) -> Any:
        def recorder(name: str) -> Callable[..., None]:
            def record(_self: Any, *arguments: Any) -> None:
                self.events.put((name, arguments, threading.get_native_id()))

            return record

        module, name = base.split(".")
        parent = getattr(getattr(self.sdk, module), name)
        return type("Recorder", (parent,), {name: recorder(name) for name in names})()

    def connect(self, uid: str = "42") -> int:
        self.conn.register_observer(self.observers[0])
        self.conn.register_local_user_observer(self.observers[1])
        return int(self.conn.connect(TOKEN, "room", uid))

    def wait(self, name: str) -> tuple[Any, ...]:
        """The arguments of the next callback of this name, past any other."""
        while True:
            found, arguments, self.tid = self.events.get(timeout=PATIENCE_S)
            if found == name:
                return tuple(arguments)

    def join(self) -> None:
        assert self.connect() == 0
        self.wait("on_connected")

    def publish(self) -> None:
        assert self.conn.publish_audio() == 0
        self.wait("on_audio_track_publish_success")

    def push(self, ms: int = 10, rate: int = 48000, pts: int = 0) -> int:
        return int(self.conn.push_audio_pcm_data(bytearray(rate * ms // 500 * 2), rate, 2, pts))

    def leave(self) -> None:
        assert self.conn.disconnect() == 0
        self.wait("on_disconnected")
        self.release()

    def release(self) -> None:
        self.conn.release()
        self.service.release()


# The wrapper on the stand-in


def a_call() -> dict[str, Any]:
    session = Session()
    native_command("mark created")
    assert session.connect() == 0
    _, info, reason = session.wait("on_connected")
    native_command("mark joined")
    session.publish()
    session.conn._audio_track.set_max_buffer_audio_frame_number(30)
    results = [
        session.conn.push_audio_pcm_data(bytearray(range(240)) * 8, 48000, 2, 10),
        session.conn.push_audio_pcm_data(bytearray(range(160)) * 4, 16000, 1, 20),
    ]
    native_command("mark pushed")
    assert session.conn.disconnect() == 0
    session.wait("on_disconnected")
    native_command("mark left")
    session.release()
    return {
        "results": results,
        "info": [info.channel_id, info.local_user_id, info.internal_uid, info.state, reason],
        "alive": native_get("alive_handles"),
    }


@pytest.fixture(scope="module")
def called(
    standin_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StandIn, dict[str, Any]]:
    """The same whole call for several tests."""
    standin = StandIn(standin_folder, tmp_path_factory.mktemp("call"))
    return standin, run(a_call, standin, script="set connect_ms 40")


INITIALISE = """service_create service_initialize service_create_media_node_factory
    service_enable_extension service_get_agora_parameter parameter_set_int parameter_set_parameters
    service_enable_extension parameter_set_parameters"""
CREATE = """rtc_conn_create rtc_conn_get_local_user rtc_conn_get_agora_parameter
    media_node_factory_create_audio_pcm_data_sender service_create_custom_audio_track_pcm
    local_audio_track_set_max_bufferd_frame_number local_audio_track_set_send_delay_ms
    local_audio_track_set_enabled local_audio_track_set_enabled local_user_set_audio_scenario
    local_user_set_audio_encoder_config rtc_conn_create_data_stream"""
JOIN = "rtc_conn_register_observer local_user_register_observer rtc_conn_connect"
RUN = "local_user_publish_audio local_audio_track_set_max_bufferd_frame_number"
DISCONNECT = "local_user_unpublish_audio local_user_unregister_observer rtc_conn_disconnect"
RELEASE = """rtc_conn_unregister_observer rtc_conn_destroy local_audio_track_destroy
    audio_pcm_data_sender_destroy service_release media_node_factory_destroy"""


def test_the_wrapper_makes_the_native_calls_of_the_documented_phases_in_order(
    called: tuple[StandIn, dict[str, Any]],
) -> None:
    """Between the marks of a whole call lie exactly the calls of each phase."""
    standin, _ = called
    phases: list[list[str]] = [[]]
    for line in standin.lines():
        if "mark" in line:
            phases.append([])
        elif "call" in line:
            phases[-1].append(line["call"].removeprefix("agora_"))
    expected = [f"{INITIALISE} {CREATE}", JOIN, RUN, DISCONNECT, RELEASE]
    assert phases == [phase.split() for phase in expected]
    assert standin.marks == ["created", "joined", "pushed", "left"]
    assert standin.names() == [f"agora_{name}" for phase in phases for name in phase]


def test_the_log_holds_what_was_passed(called: tuple[StandIn, dict[str, Any]]) -> None:
    """Configuration, names and token arrive as given, in structures of the documented layout."""
    standin, _ = called
    initialize = standin.calls("agora_service_initialize")[0].args
    assert initialize["app_id"] == "app"
    assert initialize["log_file_path"] == "log"
    assert initialize["audio_scenario"] == 7
    assert initialize["area_code"] == 0xFFFFFFFF
    assert initialize["log_file_size_kb"] == 5120
    connect = standin.calls("agora_rtc_conn_connect")[0]
    assert connect.args == {"conn": 4, "token": TOKEN, "channel": "room", "uid": "42"}
    assert connect.ret == 0
    create = standin.calls("agora_rtc_conn_create")[0].args
    assert (create["auto_subscribe_audio"], create["client_role_type"]) == (0, 1)
    assert standin.calls("agora_local_user_set_audio_encoder_config")[0].args["profile"] == 3
    assert standin.calls("agora_local_audio_track_set_max_bufferd_frame_number")[0].args == {
        "track": 8,
        "frames": 100_000,
    }


def test_pushes_are_recorded_byte_for_byte(called: tuple[StandIn, dict[str, Any]]) -> None:
    """A push is recorded with rate, channels, timestamps, result and every byte."""
    standin, result = called
    assert result["results"] == [0, 0]
    first, second = standin.pushes()
    assert first[1:9] == (10, 0, 480, 2, 2, 48000, 0, 7)
    assert first.data == bytes(range(240)) * 8
    assert second[1:9] == (20, 0, 320, 2, 1, 16000, 0, 7)
    assert second.data == bytes(range(160)) * 4
    assert first.ns < second.ns


def test_callbacks_come_from_a_thread_of_the_library(
    called: tuple[StandIn, dict[str, Any]],
) -> None:
    """Callbacks come from one foreign thread, on_connected no earlier than connect_ms."""
    standin, result = called
    made = standin.callbacks()
    names = ["connecting", "connected", "pubstart", "pubsuccess", "disconnected"]
    assert [callback.name for callback in made] == names
    assert {(callback.thread, callback.tid) for callback in made} == {("agora-cb", made[0].tid)}
    assert made[0].tid not in {call.tid for call in standin.calls()}
    assert made[1].ns - standin.calls("agora_rtc_conn_connect")[0].ns >= 40 * MS
    assert result["info"] == ["room", "42", 42, 3, 1]
    assert made[-1].args["value"] == 5


def test_a_careful_program_is_not_blamed(called: tuple[StandIn, dict[str, Any]]) -> None:
    """A whole call leaves no violation and no live handle; a late buffer size is a warning."""
    standin, result = called
    assert standin.violations() == []
    assert result["alive"] == 0
    assert [w for w in standin.warnings() if "observer" not in w] == [
        "agora_local_audio_track_set_max_bufferd_frame_number: ignored, as the track is published"
    ]


# Traps of the wrapper: why capstand does not believe it


def initialize_twice() -> list[Any]:
    sdk = load()
    results: list[Any] = []
    for script in ("set init_ret -7 1", "set ext_ret -4"):
        native_command(script)
        service = sdk.agora_service.AgoraService()
        results.append(service.initialize(sdk.agora_base.AgoraServiceConfig(appid="app")))
        results.append(service.inited)
    return results


def test_initialize_returns_the_result_of_something_else(standin: StandIn) -> None:
    """Trap 1: initialize() hides a failed initialisation and reports a failed extension."""
    assert run(initialize_twice, standin) == [0, False, -4, True]
    warned = "agora_service_initialize: initialised more than once in one process"
    assert standin.warnings() == [warned]


def pushes_of_rates() -> list[Any]:
    session = Session()
    push = session.conn.push_audio_pcm_data
    frame = session.sdk.agora_base.PcmAudioFrame()
    frame.data = bytearray(441 * 4)
    frame.sample_rate, frame.number_of_channels, frame.bytes_per_sample = 44100, 2, 2
    frame.timestamp, frame.present_time_ms, frame.samples_per_channel = 5, 7, 441
    return [
        [push(bytearray(rate * 4), rate, 2) for rate in (44100, 22050, 11025)],
        [push(bytearray(rate * 4), rate, 2) for rate in (8000, 16000, 32000, 48000, 96000)],
        session.conn._audio_sender.send_audio_pcm_data(frame),
    ]


def test_the_wrapper_refuses_rates_of_the_compact_disc(standin: StandIn) -> None:
    """Trap 2: 44100 Hz and its parts are −1002 for any length; the sender itself takes them."""
    assert run(pushes_of_rates, standin) == [[-1002] * 3, [0] * 5, 0]
    assert [push.rate_hz for push in standin.pushes()] == [8000, 16000, 32000, 48000, 96000, 44100]
    assert standin.pushes()[-1][1:5] == (7, 5, 441, 2)


def import_wrapper() -> list[Any]:
    try:
        load()
    except (AttributeError, SystemExit) as error:
        return [type(error).__name__, str(error)]
    return []


def test_a_library_without_a_symbol_is_an_attribute_error(tmp_path: Path) -> None:
    """build() can leave symbols out, and place() installs what is broken, too."""
    library = build(tmp_path / "library", without=["agora_rtc_conn_renew_token"])
    standin = StandIn(place(tmp_path / "sdk", library), tmp_path)
    kind, text = run(import_wrapper, standin)
    assert kind == "AttributeError"
    assert "agora_rtc_conn_renew_token" in text


def test_a_library_for_another_machine_is_a_system_exit(
    tmp_path: Path, standin_folder: Path
) -> None:
    """wrong_architecture() gives what the wrapper downloads on a machine it does not know."""
    installed = standin_folder / "agora" / "agora_sdk" / "libagora_rtc_sdk.so"
    (tmp_path / "library").mkdir()
    for name in (installed.name, "libaosl.so"):
        (tmp_path / "library" / name).write_bytes(installed.with_name(name).read_bytes())
    library = wrong_architecture(tmp_path / "library" / installed.name)
    standin = StandIn(place(tmp_path / "sdk", library), tmp_path)
    assert run(import_wrapper, standin) == ["SystemExit", "1"]
    image = wrong_architecture(library, "armv7l").read_bytes()
    assert (image[:5], image[18:20]) == (b"\x7fELF\x01", b"\x28\x00")


# Misuse


def misuses() -> list[int]:
    native_command("set no_such_thing 1")
    session = Session()
    session.join()
    session.publish()
    sender, conn = session.conn._audio_sender.sender_handle, session.conn.conn_handle
    track = session.conn._audio_track.track_handle
    session.leave()
    send = session.sdk.audio_pcm_data_sender.agora_audio_pcm_data_sender_send
    rtc = session.sdk.rtc_connection
    return [
        send(sender, bytes(1920), 0, 0, 480, 2, 2, 48000),
        rtc.agora_rtc_conn_connect(conn, b"t", b"c", b"0"),
        rtc.agora_rtc_conn_disconnect(sender),
        rtc.agora_rtc_conn_renew_token(None, b"t"),
        rtc.agora_rtc_conn_renew_token(4711, b"t"),
        rtc.agora_local_audio_track_set_total_extra_send_ms(track, 5),
    ]


def test_a_call_on_what_is_gone_is_refused_and_written_down(standin: StandIn) -> None:
    """Destroyed, wrong, NULL and unknown handles give −1000 and a violation, no crash.

    So does a misspelt command, that no test goes on without it.
    """
    assert run(misuses, standin) == [-1000] * 6
    assert standin.violations() == [
        "set no_such_thing 1: the stand-in cannot do this command",
        "agora_audio_pcm_data_sender_send: destroyed handle, sender wanted",
        "agora_rtc_conn_connect: destroyed handle, conn wanted",
        "agora_rtc_conn_disconnect: destroyed handle, conn wanted",
        "agora_rtc_conn_renew_token: NULL handle, conn wanted",
        "agora_rtc_conn_renew_token: unknown handle, conn wanted",
        "agora_local_audio_track_set_total_extra_send_ms: destroyed handle, handle wanted",
    ]


def renew_in_callback() -> int:
    session = Session()
    results: queue.Queue[int] = queue.Queue()
    type(session.observers[0]).on_connected = lambda _self, conn, _info, _reason: results.put(
        conn.renew_token("again")
    )
    session.connect()
    result = results.get(timeout=PATIENCE_S)
    session.leave()
    return result


def test_a_call_out_of_a_callback_is_a_violation(standin: StandIn) -> None:
    """An SDK call inside one of its callbacks works, but is written down."""
    assert run(renew_in_callback, standin) == 0
    assert standin.violations() == ["agora_rtc_conn_renew_token: SDK call inside a callback"]


def release_under_a_push() -> int:
    session = Session()
    session.join()
    session.publish()
    native_command("set hang_push_ms 60000")
    with ThreadPoolExecutor(1) as pool:
        push = pool.submit(session.push)
        while native_get("pushes") == 0:
            time.sleep(0.001)
        session.leave()
        native_command("wake")
        return push.result()


def test_a_release_under_a_running_push_is_a_violation(standin: StandIn) -> None:
    """The push that loses its sender on the way is refused, the destroy is written down."""
    assert run(release_under_a_push, standin) == -1000
    assert standin.violations() == [
        "agora_audio_pcm_data_sender_destroy: sender destroyed while a push into it runs"
    ]


def leave_under_a_callback(obstinate: bool) -> None:
    session = Session()
    entered, left = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        entered.set()
        while not (left.is_set() if obstinate else native_get("warnings")):
            time.sleep(0.001)

    type(session.observers[1]).on_audio_track_publish_success = hold
    session.join()
    assert session.conn.publish_audio() == 0
    assert entered.wait(PATIENCE_S)
    assert session.conn.disconnect() == 0
    left.set()
    session.wait("on_disconnected")
    session.release()


@pytest.mark.parametrize(("obstinate", "wait_ms"), [(False, 60_000), (True, 50)])
def test_an_observer_is_not_taken_away_under_its_callback(
    standin: StandIn, obstinate: bool, wait_ms: int
) -> None:
    """Taking an observer away waits for its callback; one that holds that up is a violation."""
    run(leave_under_a_callback, standin, obstinate, script=f"set callback_wait_ms {wait_ms}")
    call = "agora_local_user_unregister_observer"
    assert f"{call}: its observer's callback is running" in standin.warnings()
    held = [f"{call}: observer taken away while its callback runs"]
    assert standin.violations() == (held if obstinate else [])


# The send buffer, on a clock that the test moves


def depth() -> float:
    return native_get("depth_ms")


def published(frames: int, send_delay_ms: int) -> Session:
    native_command("set virtual 1")
    session = Session()
    session.conn._audio_track.set_max_buffer_audio_frame_number(frames)
    session.conn._audio_track.set_send_delay_ms(send_delay_ms)
    session.join()
    session.publish()
    return session


def fills_and_drains() -> None:
    session = published(frames=10, send_delay_ms=30)
    assert [session.push(10), session.push(10)] == [0, 0]
    native_advance(500 * MS)
    assert depth() == 20  # it waits for the send delay
    assert session.push(20) == 0
    native_advance(9 * MS)
    assert depth() == 40
    native_advance(1 * MS)
    assert depth() == 30
    native_advance(25 * MS)
    assert depth() == 10
    assert (native_get("drained_frames"), native_get("holes")) == (3, 0)
    assert native_get("max_depth_ms") == 40


def dries_out() -> None:
    session = published(frames=10, send_delay_ms=20)
    session.push(20)
    native_advance(20 * MS)
    assert (depth(), native_get("holes")) == (0, 0)
    native_advance(10 * MS)
    assert (native_get("holes"), native_get("hole_ms")) == (1, 0)
    native_advance(25 * MS)
    assert native_get("hole_ms") == 25
    session.push(10)
    native_advance(100 * MS)
    assert (depth(), native_get("holes")) == (10, 1)  # it fills up to the delay again
    session.push(10)
    native_advance(5 * MS)
    assert (depth(), native_get("hole_ms")) == (10, 130)  # and keeps to the SDK's own ticks
    session.conn.disconnect()
    native_advance(1000 * MS)
    assert (depth(), native_get("holes"), native_get("hole_ms")) == (10, 1, 130)


def overflows() -> None:
    session = published(frames=5, send_delay_ms=10)
    assert [session.push(20), session.push(40), session.push(30), session.push(10)] == [
        0,
        -12,
        0,
        -12,
    ]
    assert (depth(), native_get("refused")) == (50, 2)
    native_advance(10 * MS)
    assert [session.push(10), session.push(10)] == [0, -12]
    assert session.conn.interrupt_audio() == -1000  # trap 12
    assert depth() == 0
    session.conn._audio_track.set_enabled(False)
    assert [session.push(50), session.push(50), depth()] == [0, 0, 0]
    session.conn._audio_track.set_enabled(True)
    assert [session.push(40), session.push(5), session.push(0)] == [0, -2, -2]
    assert depth() == 40


def drifts() -> list[float]:
    session = published(frames=100, send_delay_ms=10)
    handle = session.conn._audio_sender.sender_handle
    send = session.sdk.audio_pcm_data_sender.agora_audio_pcm_data_sender_send
    silence = bytes(1920 * 2)

    def pass_minutes(minutes: int) -> int:
        for _ in range(minutes * 3000):
            assert send(handle, silence, 0, 0, 960, 2, 2, 48000) == 0
            native_advance(20 * MS)
        return int(Path("/proc/self/statm").read_text().split()[1])

    native_command("set ppm -300")
    pages = pass_minutes(10)
    pages = pass_minutes(10) - pages
    fast = [depth(), native_get("holes")]
    session.conn.interrupt_audio()
    native_command("reset; set ppm 300")
    pass_minutes(10)
    return [*fast, native_get("holes"), pages]


@pytest.mark.parametrize("scenario", [fills_and_drains, dries_out, overflows])
def test_the_send_buffer(standin: StandIn, scenario: Callable[[], None]) -> None:
    """One 10-ms frame leaves per 10 ms from the send delay on; full is −12, dry is a hole."""
    run(scenario, standin)
    assert standin.violations() == []


def test_drift_fills_the_buffer_or_dries_it_out(standin: StandIn) -> None:
    """300 ppm are 360 ms in 20 minutes, or a hole in 33 to 67 s; pushes cost no memory."""
    depth_ms, none, holes, pages = run(drifts, standin, env={"STANDIN_PCM": ""})
    assert 350 <= depth_ms <= 370
    assert none == 0
    assert 8 <= holes <= 19
    assert pages < 250
    assert standin.pushes() == []


# Scripts


def refusals() -> dict[str, Any]:
    session = Session()
    found: dict[str, Any] = {"connect": [session.connect()]}
    found["connect"] += [session.conn.connect(TOKEN, "", "1"), session.conn.connect(TOKEN, "r", "")]
    found["again"] = session.conn.connect(TOKEN, "room", "1")
    _, info, reason = session.wait("on_connection_failure")
    found["failure"] = [info.state, reason]
    found["rejoin"] = session.conn.connect(TOKEN, "room", "0")
    _, info, reason = session.wait("on_connected")
    found["uid"] = [info.local_user_id, reason]
    found["publish"] = [session.conn.publish_audio(), session.conn.publish_audio()]
    found["publication"] = session.wait("on_audio_track_publication_failure")[-1]
    found["renew"] = [session.conn.renew_token("a"), session.conn.renew_token("b")]
    found["push"] = [session.push() for _ in range(4)]
    session.leave()
    return found


def test_every_result_can_be_scripted_for_so_many_calls(standin: StandIn) -> None:
    """A setting with a count comes back to normal after so many uses."""
    script = """set connect_ret -2 1; set connect_reason 6 1; set publish_ret -1 1
        set publish_fail 3; set renew_ret -8 1; set push_ret -12 3"""
    assert run(refusals, standin, script=script) == {
        "connect": [-2, -2, 0],
        "again": -8,
        "failure": [5, 6],
        "rejoin": 0,
        "uid": ["1004", 1],
        "publish": [-1, 0],
        "publication": 3,
        "renew": [-8, 0],
        "push": [-12, -12, -12, 0],
    }
    assert [push.ret for push in standin.pushes()] == [-12, -12, -12, 0]


def objects() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in ("conn_create", "sender", "track", "param", "service"):
        native_command(f"set {kind}_null 1 1")
        try:
            conn = Session().conn
            found[kind] = "conn" if conn.conn_handle is None else conn._audio_track
        except AttributeError as error:
            found[kind] = str(error)[:19]
    return found


def test_objects_can_fail_to_exist(standin: StandIn) -> None:
    """Each creating call can give NULL; what the wrapper makes of it is its own affair."""
    none = "'NoneType' object h"
    assert run(objects, standin) == {
        "conn_create": "conn",
        "sender": none,
        "track": None,
        "param": none,
        "service": none,
    }


def hangs() -> list[float]:
    session = Session()
    took = []
    session.connect()
    session.wait("on_connected")
    session.publish()
    for call in (session.push, lambda: session.conn.renew_token("t"), session.conn.disconnect):
        before = time.monotonic()
        assert call() == 0
        took.append(time.monotonic() - before)
    session.wait("on_disconnected")
    session.release()
    return took


def test_calls_can_hang(standin: StandIn) -> None:
    """A call can keep its caller waiting; the log tells at once that it does."""
    script = ";".join(f"set hang_{call}_ms 60 1" for call in ("push", "renew", "disconnect"))
    assert all(took >= 0.06 for took in run(hangs, standin, script=script))
    hung = [line["in"] for line in standin.lines() if "hang" in line]
    assert hung == [
        "agora_audio_pcm_data_sender_send",
        "agora_rtc_conn_renew_token",
        "agora_rtc_conn_disconnect",
    ]


def plays() -> list[Any]:
    session = Session()
    session.join()
    seen: list[Any] = []
    while not seen or seen[-1][0] != "on_connection_failure":
        name, arguments, _ = session.events.get(timeout=PATIENCE_S)
        plain = [a for a in arguments[1:] if isinstance(a, (int, str))]
        seen.append([name, plain, getattr(arguments[-1], "sent_bitrate", None)])
    assert session.conn.connect(TOKEN, "room", "1") == 0
    session.wait("on_reconnecting")
    session.leave()
    return seen


def test_a_timeline_is_played_after_every_join(standin: StandIn) -> None:
    """Events come in the order of their times, whatever the order they are written in."""
    timeline = """willexpire:2,reconnecting:1,reconnected:3,didexpire:4,error=7:5,warning=8:6,
        license=9:7,stats=33:8,lost:9,failed=16:10""".replace("\n", "")
    assert run(plays, standin, script=f'set on_connected "{timeline}"') == [
        ["on_reconnecting", [2], None],
        ["on_token_privilege_will_expire", [TOKEN], None],
        ["on_reconnected", [15], None],
        ["on_token_privilege_did_expire", [], None],
        ["on_error", [7, "from the stand-in"], None],
        ["on_warning", [8, "from the stand-in"], None],
        ["on_connection_license_validation_failure", [9], None],
        ["on_local_audio_track_statistics", [], 33],
        ["on_connection_lost", [], None],
        ["on_connection_failure", [16], None],
    ]
    states = {callback.name: callback.args["state"] for callback in standin.callbacks()}
    assert states["reconnecting"] == states["lost"] == 4
    assert (states["failed"], states["disconnected"]) == (5, 1)


def statistics() -> list[int]:
    session = Session()
    session.join()
    session.publish()
    session.wait("on_local_audio_track_statistics")
    session.push(500)
    native_advance(300 * MS)
    rates = [0]
    while len(rates) < 3 or rates[-1]:
        stats = session.wait("on_local_audio_track_statistics")[1]
        if stats.sent_bitrate != rates[-1]:
            rates.append(stats.sent_bitrate)
    native_command("set stats_mute 1")
    session.leave()
    return rates


def test_statistics_tell_what_was_really_sent(standin: StandIn) -> None:
    """sent_bitrate is that of the audio which left the buffer: nothing pushed, nothing sent."""
    assert run(statistics, standin, script="set stats_ms 5; set virtual 1") == [0, 64, 0]


def ai_server() -> list[Any]:
    session = Session("AI_SERVER")
    session.join()
    session.publish()
    asked: queue.Queue[int] = queue.Queue()
    missing = "on_aiqos_capability_missing"

    def answer(_self: Any, _conn: Any, kind: int) -> int:
        asked.put(kind)
        return -1

    setattr(type(session.observers[0]), missing, answer)
    native_command("play capabilities=1:0,capabilities=0:1")
    kind = int(asked.get(timeout=PATIENCE_S))
    results = [session.push(1000), native_get("depth_ms")]
    session.leave()
    return [kind, asked.qsize(), *results]


def test_the_ai_scenario_has_another_track(standin: StandIn) -> None:
    """AI_SERVER, the wrapper's default, makes a direct track and asks for capabilities."""
    assert run(ai_server, standin) == [3, 0, 0, 0]
    names = standin.names()
    assert "agora_service_create_direct_custom_audio_track_pcm" in names
    assert "agora_service_create_custom_audio_track_pcm" not in names
    assert standin.violations() == []


def silent_join() -> list[str]:
    session = Session()
    assert session.connect() == 0
    native_command("play connected:0")
    session.wait("on_connected")
    assert session.conn.disconnect() == 0
    time.sleep(0.05)
    session.release()
    return [event[0] for event in session.events.queue]


def test_a_join_and_a_leave_can_stay_without_answer(standin: StandIn) -> None:
    """With connect_silent and disconnect_silent no callback comes but those that are played."""
    script = "set connect_silent 1; set disconnect_silent 1"
    assert run(silent_join, standin, script=script) == []
    assert [callback.name for callback in standin.callbacks()] == ["connected"]


def publishes_until_failed() -> int:
    session = Session()
    session.join()
    session.publish()
    *_, reason = session.wait("on_connection_failure")
    session.leave()
    return int(reason)


def test_a_process_is_steered_from_outside(standin: StandIn) -> None:
    """command() reaches a process through its FIFO and returns when it is carried out."""
    with ThreadPoolExecutor(1) as pool:
        scenario = pool.submit(run, publishes_until_failed, standin)
        standin.command("mark here")
        while not standin.callbacks("pubsuccess"):
            assert not scenario.done(), scenario.result()
            time.sleep(0.005)
        assert standin.report()["alive_handles"] > 0
        with pytest.raises(ValueError, match="cannot do 'play nothing:1'"):
            standin.command("play nothing:1")
        standin.command("reset; play failed=3:0")
        assert scenario.result() == 3
    assert standin.marks == ["here"]


# The harness


def says(text: str) -> None:
    print(text)
    raise SystemExit(3)


def never_ends() -> None:
    threading.Event().wait()


def test_run_tells_what_a_failed_process_said(standin: StandIn) -> None:
    """A failure and a timeout carry the output; a hung process is aborted with its stacks."""
    with pytest.raises(RuntimeError, match=r"says ended with 3:\nhelp me"):
        run(says, standin, "help me")
    with pytest.raises(TimeoutError, match=r"(?s)more than 1 s.*Aborted"):
        run(never_ends, standin, timeout_s=1)


def test_the_sdist_can_be_given(
    tmp_path: Path, standin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CAPSTAND_TEST_AGORA_SDIST names the file to use, which must be the one that is known."""
    given = tmp_path / "given.tar.gz"
    given.write_bytes(sdist().read_bytes())
    monkeypatch.setenv("CAPSTAND_TEST_AGORA_SDIST", str(given))
    assert sdist.__wrapped__() == given
    given.write_bytes(b"something else")
    with pytest.raises(RuntimeError, match="is not the known one"):
        sdist.__wrapped__()
    assert (wrapper() / "agora" / "__init__.py").exists()
    assert not (wrapper() / "agora" / "agora_sdk").exists()
