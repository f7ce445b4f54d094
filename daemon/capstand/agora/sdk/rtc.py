"""The SDK behind the interface: one service per process, and calls (connections) made from it.

Agora's README allows one service per process, initialised once. The order of the calls, and what
the wrapper hides, decide the shape of this file:

* ``initialize`` returns the result of something else; ``inited`` tells.
* The track is made with room for 1000 s of sound; the bound is set right after, before publishing.
* ``push_audio_pcm_data`` refuses 44.1 kHz by a rounding error, counts items instead of bytes and
  makes a reference cycle; the sender underneath is called directly (5 µs instead of 31).
* What the SDK may still look at after a call has returned (pushed samples, the structures through
  which it calls back) is kept a while longer.
* A callback that comes while Python is being taken down is a crash, so before that (``end``) the
  callbacks of a connection that hangs in the SDK are made to lead to a function of C. A process
  made by fork has the SDK's memory without its threads and must not touch it.

Threads: the control thread of each connection makes all calls but ``send``, which comes from the
thread that pushes. Callbacks come from threads of the SDK: an observer here only posts.
"""

import ctypes
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from capstand.agora.sdk.codes import AgoraError, Code
from capstand.agora.sdk.native import Native, load
from capstand.errors import SinkError

KEPT_FRAMES = 64
"""So many pushed frames stay alive: whether the SDK copies before it returns is undocumented."""
KEPT_CALLS = 16
MUTE_S = 0.1
"""For callbacks that were under way when theirs were taken out."""
LOG_KB = 5 * 1024
AREAS = {
    "global": "AREA_CODE_GLOB",
    "cn": "AREA_CODE_CN",
    "na": "AREA_CODE_NA",
    "eu": "AREA_CODE_EU",
    "as": "AREA_CODE_AS",
    "jp": "AREA_CODE_JP",
    "in": "AREA_CODE_IN",
}
PROFILES = {
    "default": "AUDIO_PROFILE_DEFAULT",
    "speech": "AUDIO_PROFILE_SPEECH_STANDARD",
    "music": "AUDIO_PROFILE_MUSIC_STANDARD",
    "music_stereo": "AUDIO_PROFILE_MUSIC_STANDARD_STEREO",
    "music_high": "AUDIO_PROFILE_MUSIC_HIGH_QUALITY",
    "music_high_stereo": "AUDIO_PROFILE_MUSIC_HIGH_QUALITY_STEREO",
    "iot": "AUDIO_PROFILE_IOT",
}
SCENARIOS = {
    "default": "AUDIO_SCENARIO_DEFAULT",
    "game_streaming": "AUDIO_SCENARIO_GAME_STREAMING",
    "chatroom": "AUDIO_SCENARIO_CHATROOM",
    "chorus": "AUDIO_SCENARIO_CHORUS",
    "meeting": "AUDIO_SCENARIO_MEETING",
}

Post = Callable[[str, int], None]
"""Takes what the SDK said: the callback's name without ``on_``, and its number or 0."""


class NativeFailure(SinkError):
    """The SDK failed in a way that only a new process can heal."""


class Settings(NamedTuple):
    """What the service is made of; the same for every connection of a process.

    ``folder`` is where the SDK keeps its log and data.
    """

    app_id: str
    folder: Path
    area: str = "global"
    scenario: str = "default"


class Track(NamedTuple):
    """What a connection sends. ``send_delay_ms`` of sound are collected before sending starts, at
    most ``buffer_ms`` are held; both are whole numbers of 10 ms.
    """

    profile: str = "default"
    scenario: str = "default"
    send_delay_ms: int = 40
    buffer_ms: int = 500


class Sdk:
    """The service of this process. Raises NativeUnavailable or NativeFailure."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.native: Native = load()
        self._lock = threading.Lock()  # the wrapper has none
        self._open: set[RtcConnection] = set()
        self._released: deque[RtcConnection] = deque(maxlen=KEPT_CALLS)
        self._ended = False
        native, folder = self.native, settings.folder
        try:
            for name in ("log", "data", "config"):
                (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(
                f"{error.filename}: {error.strerror}; Agora's SDK keeps its log and data there; "
                "--state names another directory"
            ) from None
        self._service = native.AgoraService()
        config = native.AgoraServiceConfig(
            appid=settings.app_id,
            enable_audio_processor=1,
            enable_audio_device=0,
            enable_video=0,
            area_code=getattr(native.AreaCode, AREAS[settings.area]).value,
            audio_scenario=_scenario(native, settings.scenario),
            log_path=str(folder / "log" / "agora.log"),
            log_file_size_kb=LOG_KB,
            data_dir=str(folder / "data"),
            config_dir=str(folder / "config"),
        )
        with suppress(AttributeError):  # the wrapper goes on with what the SDK did not give it
            if self._service.service_handle is not None:
                self._service.initialize(config)
        if not self._service.inited:
            raise NativeFailure(
                f"Agora's SDK could not be initialised; is app_id right? {folder}/log has its log"
            )

    def connection(self, track: Track, post: Post) -> "RtcConnection":
        """A connection that is not connected yet. Raises NativeFailure."""
        with self._lock:
            if self._ended:
                raise NativeFailure("the process is ending")
            connection = RtcConnection(self)
            self._open.add(connection)  # for good where making it fails half-way
            connection.make(self._service, track, post)
        return connection

    def release(self, connection: "RtcConnection") -> None:
        with self._lock:
            connection.release()
            self._open.remove(connection)
            self._released.append(connection)

    def end(self) -> None:
        """At the end of the process: nothing calls back any more. The service is released, but not
        while a connection hangs in it or is half made.
        """
        free = self._lock.acquire(timeout=MUTE_S)
        self._ended = True
        hanging = tuple(self._open)
        for connection in hanging:
            connection.mute()
        if hanging:
            time.sleep(MUTE_S)
        elif free:
            self._service.release()
        if free:
            self._lock.release()


_made: list[Sdk] = []  # none or one
_making = threading.Lock()
_begun_in: set[int] = set()  # the process that began to make it, also where that failed


def sdk(settings: Settings) -> Sdk:
    """The service of this process, made at the first call. Raises SinkError.

    A service that exists with other settings is an AgoraError: there can be only one.
    """
    if _begun_in - {os.getpid()}:
        raise NativeFailure(
            "Agora's SDK was started before this process was forked, and does not run in it; start "
            "a new program (exec), or join only after forking"
        )
    with _making:
        if not _made:
            _begun_in.add(os.getpid())
            _made.append(Sdk(settings))
    (made,) = _made
    if made.settings != settings:
        differing = [
            name
            for name in settings._fields
            if getattr(settings, name) != getattr(made.settings, name)
        ]
        raise AgoraError(
            Code.ALREADY_IN_USE,
            f"the SDK runs once per process, with one {', '.join(differing)} for all connections",
        )
    return made


def end() -> None:
    """The last in a process that may have an SDK; see ``Sdk.end``."""
    for made in tuple(_made):
        made.end()


def forked() -> None:
    """In a process made by fork: the SDK is the other process's."""
    _made.clear()


class RtcConnection:
    """One connection with its track and its sender. ``within`` says in which of the SDK's functions
    the control thread is, and since when (ns), or is None.
    """

    def __init__(self, sdk: Sdk) -> None:
        self.within: tuple[str, int] | None = None
        self._native = sdk.native
        self._send = sdk.native.send
        self._kept: deque[bytes] = deque(maxlen=KEPT_FRAMES)
        self._structures: tuple[Any, ...] = ()

    def make(self, service: Any, track: Track, post: Post) -> None:
        """Raises NativeFailure."""
        native = self._native
        scenario = _scenario(native, track.scenario)
        profile = getattr(native.AudioProfileType, PROFILES[track.profile])
        try:
            self._conn = service.create_rtc_connection(
                native.RTCConnConfig(
                    auto_subscribe_audio=0,
                    auto_subscribe_video=0,
                    enable_audio_recording_or_playout=0,
                    client_role_type=native.ClientRoleType.CLIENT_ROLE_BROADCASTER,
                ),
                native.RtcConnectionPublishConfig(audio_profile=profile, audio_scenario=scenario),
            )
            made = self._conn._audio_track is not None and self._conn._audio_sender is not None
        except AttributeError:  # the wrapper goes on with what the SDK did not give it
            made = False
        if not made:
            raise NativeFailure("Agora's SDK made no connection, track or sender")
        self._sender = self._conn._audio_sender.sender_handle
        self._conn._audio_track.set_max_buffer_audio_frame_number(track.buffer_ms // 10)
        self._conn._audio_track.set_send_delay_ms(track.send_delay_ms)
        self._observers = _connection_observer(native, post), _user_observer(native, post)
        self._conn.register_observer(self._observers[0])
        self._conn.register_local_user_observer(self._observers[1])
        # The SDK may call back while it is being released; the wrapper lets go of these at once.
        self._structures = self._conn.con_observer_handle, self._conn.local_user.user_observer_inner

    def connect(self, token: str, channel: str, uid: int) -> int:
        with self._inside("connect"):
            return int(self._conn.connect(token, channel, str(uid)))

    def publish(self) -> int:
        with self._inside("publish_audio"):
            return int(self._conn.publish_audio())

    def renew(self, token: str) -> int:
        with self._inside("renew_token"):
            return int(self._conn.renew_token(token))

    def disconnect(self) -> int:
        with self._inside("disconnect"):
            return int(self._conn.disconnect())

    def release(self) -> None:
        with self._inside("release"):
            self._conn.release()

    def session(self) -> str:
        """Agora's id of the call, to be named to its support; may be empty."""
        return str(self._conn.get_sid() or "")

    def send(self, frame: bytes, frames: int, channels: int, rate_hz: int, pts_ms: int) -> int:
        """Hands over 10 ms of interleaved S16; the SDK's result."""
        self._kept.append(frame)
        return int(self._send(self._sender, frame, 0, pts_ms, frames, 2, channels, rate_hz))

    def mute(self) -> None:
        """The SDK's callbacks lead to a function of C from now on, for as long as there is memory.

        It finds them in our structures; whether the real one copies those is undocumented.
        """
        nothing = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value
        for structure in self._structures:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(structure))
            slots = ctypes.sizeof(structure) // ctypes.sizeof(ctypes.c_void_p)
            table = (ctypes.c_void_p * slots).from_address(ctypes.addressof(structure))
            for number in range(slots):
                table[number] = nothing

    @contextmanager
    def _inside(self, name: str) -> Iterator[None]:
        self.within = name, time.monotonic_ns()
        try:
            yield
        finally:
            self.within = None


def _scenario(native: Native, name: str) -> Any:
    return getattr(native.AudioScenarioType, SCENARIOS[name])


def _connection_observer(native: Native, post: Post) -> Any:
    """Posts what the SDK says about the connection; calls nothing and raises nothing."""

    class Observer(native.IRTCConnectionObserver):  # type: ignore[name-defined,misc]
        def on_connected(self, _conn: Any, _info: Any, reason: int) -> None:
            post("connected", reason)

        def on_disconnected(self, _conn: Any, _info: Any, reason: int) -> None:
            post("disconnected", reason)

        def on_reconnecting(self, _conn: Any, _info: Any, reason: int) -> None:
            post("reconnecting", reason)

        def on_reconnected(self, _conn: Any, _info: Any, reason: int) -> None:
            post("reconnected", reason)

        def on_connection_lost(self, _conn: Any, _info: Any) -> None:
            post("connection_lost", 0)

        def on_connection_failure(self, _conn: Any, _info: Any, reason: int) -> None:
            post("connection_failure", reason)

        def on_connection_license_validation_failure(self, _conn: Any, reason: int) -> None:
            post("license_failure", reason)

        def on_token_privilege_will_expire(self, _conn: Any, _token: str) -> None:
            post("token_will_expire", 0)

        def on_token_privilege_did_expire(self, _conn: Any) -> None:
            post("token_did_expire", 0)

        def on_error(self, _conn: Any, code: int, _message: str) -> None:
            post("error", code)

    return Observer()


def _user_observer(native: Native, post: Post) -> Any:
    """Posts what the SDK says about the track that is sent."""

    class Observer(native.IRTCLocalUserObserver):  # type: ignore[name-defined,misc]
        def on_local_audio_track_statistics(self, _user: Any, stats: Any) -> None:
            if stats is not None:
                post("statistics", stats.sent_bitrate)

        def on_audio_track_publication_failure(self, _user: Any, _track: Any, error: int) -> None:
            post("publication_failure", error)

    return Observer()
