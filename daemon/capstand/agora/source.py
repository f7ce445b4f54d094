"""The custom audio source: record and process the sound yourself, push it into the channel.

The calls and their order are those of Agora's documentation of the custom audio source:

    source = CustomAudioSource(app_id, folder)
    source.set_external_audio_source(True, 48000, 1)     before joining
    source.join_channel(token, "studio", 1001)
    source.push_external_audio_frame_raw_data(data)      again and again, at the pace of the sound
    source.push_external_audio_frame_sample_buffer(buffer)
    source.leave_channel()
    source.set_external_audio_source(False, 48000, 1)

A call that is refused raises AgoraError with the SDK's code and changes nothing; none is refused
silently. The channel gets exact 10 ms frames at the declared rate and channels; 44.1, 22.05 and
11.025 kHz, which the SDK's wrapper refuses without a word, are resampled to 48 kHz.

Threads: each source id is pushed by one thread at a time; everything else by any one thread.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from capstand.agora.channel_session import ChannelSession, Condition
from capstand.agora.connection_state import ConnectionState
from capstand.agora.frames import MS, Frame, Framer, SampleBuffer
from capstand.agora.sdk.codes import AgoraError, Code
from capstand.agora.sdk.rtc import AREAS, PROFILES, SCENARIOS, Settings, Track
from capstand.agora.tokens.sources import Fixed, TokenSource
from capstand.audio.block import AudioFormat, SampleFormat

if TYPE_CHECKING:
    from capstand.agora.mixer import Mixer

AGORA_ID = "[0-9a-fA-F]{32}"
CHANNEL_NAME = r"[A-Za-z0-9 !#$%&()+\-:;<=.>?@\[\]^_{}|~,]{1,64}"
RATES = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000)
RESAMPLED = (11025, 22050, 44100)
TRACK_HZ = 48000
RAW_MS = (10, 60)
BUFFER_MS = 1000
"""A sample buffer is at most so long."""
SOURCES = 8
MAX_UID = 2**32 - 1


class SessionFigures(NamedTuple):
    """A connection at one moment. ``depth_ms`` is the estimated content of the SDK's send buffer,
    ``holes`` how often it ran dry while joined, for ``hole_ms`` in all; ``sent_kbps`` is what the
    SDK says it sends.
    """

    state: str
    channel: str
    uid: int
    joins: int
    depth_ms: float
    holes: int
    hole_ms: float
    sent_kbps: int | None
    token_ends_s: float | None
    session: str


class _Declared(NamedTuple):
    rate_hz: int
    channels: int
    sources: int
    publish: bool
    track_hz: int


class CustomAudioSource:
    """Sound of your own in one Agora channel.

    ``folder`` is where the SDK keeps log and data. ``profile`` None takes the one that fits the
    channels. ``send_delay_ms`` of sound are collected before sending starts, at most ``buffer_ms``
    wait in the SDK; both whole tens. ``app_id``, ``folder``, ``area`` and the first ``scenario``
    are the same for every source of a process, because the SDK runs once per process. Raises
    AgoraError.
    """

    def __init__(
        self,
        app_id: str,
        folder: Path,
        *,
        profile: str | None = None,
        scenario: str = "default",
        area: str = "global",
        send_delay_ms: int = 40,
        buffer_ms: int = 500,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not re.fullmatch(AGORA_ID, app_id):
            raise _invalid("app_id", app_id, "the 32 hexadecimal digits of Agora's console")
        for name, value, known in (
            ("profile", profile, (*PROFILES, None)),
            ("scenario", scenario, SCENARIOS),
            ("area", area, AREAS),
        ):
            if value not in known:
                words = ", ".join(str(one) for one in known)
                raise _invalid(name, value, f"one of {words}")
        if not (
            0 < send_delay_ms < buffer_ms <= 5000 and send_delay_ms % 10 == buffer_ms % 10 == 0
        ):
            raise _invalid(
                "send_delay_ms, buffer_ms",
                f"{send_delay_ms}, {buffer_ms}",
                "whole tens with 0 < send_delay_ms < buffer_ms ≤ 5000",
            )
        self._settings = Settings(app_id, folder, area, scenario)
        self._scenario = scenario
        self._profile = profile
        self._delay_ms = send_delay_ms
        self._buffer_ms = buffer_ms
        self._now_ns = now_ns
        self._declared: _Declared | None = None
        self._connection: ChannelSession | None = None
        self._framers: list[Framer] = []
        self._mixer: Mixer | None = None
        self._channel, self._uid = "", 0

    def set_external_audio_source(
        self,
        enabled: bool,
        sample_rate: int,
        channels: int,
        source_number: int = 1,
        local_playback: bool = False,
        publish: bool = True,
    ) -> None:
        """Declares what will be pushed; before joining, or after leaving.

        ``source_number`` sources, numbered from 0, are mixed. Without ``publish`` the channel is
        joined and hears nothing. Local playback needs a sound device of the SDK's own, which there
        is none of here. Raises AgoraError.
        """
        if self._connection is not None:
            raise AgoraError(
                Code.INVALID_STATE,
                "set_external_audio_source belongs before join_channel; leave_channel first",
            )
        if sample_rate not in RATES:
            raise _invalid("sample_rate", sample_rate, f"one of {', '.join(map(str, RATES))}")
        if channels not in (1, 2):
            raise _invalid("channels", channels, "1 or 2")
        if not 1 <= source_number <= SOURCES:
            raise _invalid("source_number", source_number, f"1 to {SOURCES}")
        if local_playback:
            raise AgoraError(
                Code.NOT_SUPPORTED,
                "local_playback: the SDK opens no sound device here; play the sound yourself",
            )
        track_hz = TRACK_HZ if sample_rate in RESAMPLED else sample_rate
        self._declared = (
            _Declared(sample_rate, channels, source_number, publish, track_hz) if enabled else None
        )

    def join_channel(
        self, token: str | TokenSource, channel: str, uid: int = 0, *, wait_s: float = 10.0
    ) -> bool:
        """Joins, and stays joined until ``leave_channel``: what is lost is joined again.

        ``token`` is its text ("" for a project without certificate; then ``renew_token`` is yours
        to call), or where tokens come from (see ``token_source``). ``uid`` 0 lets Agora choose.
        Waits up to ``wait_s`` and returns whether the channel is joined by then; joining goes on
        in any case. Raises AgoraError.
        """
        if self._connection is not None:
            raise AgoraError(Code.INVALID_STATE, f"{self._channel} is joined; leave_channel first")
        declared = self._need_declared()
        if not re.fullmatch(CHANNEL_NAME, channel):
            raise _invalid("channel", channel, "1 to 64 letters, digits and simple signs")
        if not 0 <= uid <= MAX_UID:
            raise _invalid("uid", uid, f"0 to {MAX_UID}")
        profile = self._profile or ("music_stereo" if declared.channels == 2 else "default")
        self._channel, self._uid = channel, uid
        self._connection = connection = ChannelSession(
            self._settings,
            Track(profile, self._scenario, self._delay_ms, self._buffer_ms),
            channel,
            uid,
            Fixed(token) if isinstance(token, str) else token,
            publish=declared.publish,
            now_ns=self._now_ns,
        )
        self._framers = [
            Framer(declared.track_hz, declared.channels) for _ in range(declared.sources)
        ]
        if declared.sources > 1:
            from capstand.agora.mixer import Mixer

            self._mixer = Mixer(declared.sources, self._send)
            self._mixer.start()
        connection.start()
        return connection.wait(wait_s, ConnectionState.JOINED)

    def wait_joined(self, timeout_s: float) -> bool:
        """Waits until the channel is joined; False when it is not by then."""
        return self._joined().wait(timeout_s, ConnectionState.JOINED)

    def renew_token(self, token: str) -> None:
        """A newer token, used at once where the channel is joined, else for the next try."""
        self._joined().offer(token)

    def leave_channel(self, timeout_s: float = 3.0) -> bool:
        """Sends what is still inside, waits until the channel should have heard it, and leaves;
        False when the SDK did not let go in time.
        """
        connection = self._connection
        if connection is None:
            return True
        until_s = time.monotonic() + timeout_s / 2
        if connection.state is ConnectionState.JOINED:
            self._send_rest(connection, until_s)
        if self._mixer is not None:
            self._mixer.stop()
            self._mixer = None
        if connection.state is ConnectionState.JOINED:
            left_s = max(0.0, until_s - time.monotonic())
            time.sleep(min(left_s, connection.depth_ms() / 1000))
        if not connection.leave(timeout_s):
            return False
        self._connection = None
        return True

    def _send_rest(self, connection: ChannelSession, until_s: float) -> None:
        """What waits for its 10 ms to be full, or to be mixed; for room in the buffer it waits."""
        declared = self._need_declared()
        if self._mixer is not None:
            for number, framer in enumerate(self._framers):
                self._mixer.put(number, framer.finish())
            self._mixer.drain(until_s)
            return
        for frame in self._framers[0].finish():
            while True:
                try:
                    _send(connection, declared, frame)
                    break
                except AgoraError as error:
                    if error.retry_after_ms is None or time.monotonic() >= until_s:
                        return
                    time.sleep(error.retry_after_ms / 1000)

    def push_external_audio_frame_raw_data(
        self, data: bytes | bytearray | memoryview, source_id: int = 0, timestamp: int = 0
    ) -> None:
        """Pushes 10 to 60 ms of interleaved S16 in the declared rate and channels.

        ``data`` is any object with a buffer of bytes or 16-bit integers; it is copied before the
        call returns. ``timestamp`` is when its first sample was captured, in ms of CLOCK_MONOTONIC,
        0 where nobody knows. Raises AgoraError, and then nothing was taken (but see ``taken``).
        """
        declared = self._need_declared()
        try:
            view = memoryview(data)
        except TypeError:
            raise _invalid("data", type(data).__name__, "an object with a buffer") from None
        if view.format not in ("B", "b", "c", "h", "<h") or not view.c_contiguous:
            raise _invalid(
                "data", f"a buffer of {view.format}", "contiguous bytes or 16-bit integers"
            )
        frames, rest = divmod(view.nbytes, 2 * declared.channels)
        if rest:
            raise _invalid(
                "data", f"{view.nbytes} bytes", f"whole frames of {2 * declared.channels} bytes"
            )
        shortest, longest = RAW_MS
        if not shortest <= frames * 1000 / declared.rate_hz <= longest:
            raise _invalid(
                "data",
                f"{frames} frames, {frames * 1000 / declared.rate_hz:g} ms",
                f"{shortest} to {longest} ms at {declared.rate_hz} Hz",
            )
        if timestamp < 0:
            raise _invalid("timestamp", timestamp, "ms of CLOCK_MONOTONIC, or 0")
        self._push(
            source_id,
            SampleBuffer(
                data if isinstance(data, bytes) else view.cast("B"),
                declared.rate_hz,
                declared.channels,
                SampleFormat.S16_LE,
                frames,
                timestamp * 1_000_000,
            ),
        )

    def push_external_audio_frame_sample_buffer(
        self, buffer: SampleBuffer, source_id: int = 0
    ) -> None:
        """Pushes sound that describes itself, up to a second of it, converted to what was declared.

        Raises AgoraError, and then nothing was taken (but see ``taken``).
        """
        view, form = memoryview(buffer.samples), buffer.sample
        expected = buffer.frames * buffer.channels * form.size_bytes
        if view.nbytes != expected or not view.c_contiguous:
            raise _invalid("buffer.samples", f"{view.nbytes} bytes", f"{expected} contiguous bytes")
        if not 1000 <= buffer.rate_hz <= 768_000 or not 1 <= buffer.channels <= 64:
            raise _invalid(
                "buffer", f"{buffer.rate_hz} Hz, {buffer.channels} channels", "a form of sound"
            )
        if not 0 < buffer.frames <= buffer.rate_hz * BUFFER_MS // 1000:
            raise _invalid("buffer.frames", buffer.frames, f"1 frame to {BUFFER_MS} ms")
        self._push(source_id, buffer)

    def push_block(
        self,
        samples: bytes,
        form: AudioFormat,
        frames: int,
        captured_at_ns: int,
        discontinuity: bool,
        in_flight_ms: float,
    ) -> None:
        """Pushes a block of our own to source 0, the only one: it is known to hold what it says,
        and ``in_flight_ms`` were in flight just now. Raises AgoraError as a push does.
        """
        declared, connection = self._declared, self._connection
        if connection is None or declared is None:
            raise AgoraError(Code.NOT_IN_CHANNEL, self.summary())
        rate_hz, channels, sample = form
        if in_flight_ms + frames * 1000 / rate_hz > self._buffer_ms:
            raise self._no_room(in_flight_ms)
        framer = self._framers[0]
        if framer.would_pass(samples, form):
            connection.send(samples, frames, channels, rate_hz, round(captured_at_ns / MS))
            return
        self._send_frames(
            connection,
            declared,
            framer,
            SampleBuffer(samples, rate_hz, channels, sample, frames, captured_at_ns, discontinuity),
        )

    @property
    def joined(self) -> bool:
        """Whether a push would be taken now."""
        connection = self._connection
        return connection is not None and connection.state is ConnectionState.JOINED

    def in_flight_ms(self, now_ns: int) -> float | None:
        """The sound that was pushed and has not left the SDK's send buffer: the estimate of its
        depth, and what waits for its 10 ms to be full (of source 0). None while no push would be
        taken.
        """
        connection = self._connection
        if connection is None or connection.state is not ConnectionState.JOINED:
            return None
        return connection.send_buffer.depth_ms(now_ns) + self._framers[0].held_ms

    def summary(self) -> str:
        """The state in one phrase, such as "in studio"."""
        if self._connection is not None:
            return self._connection.summary()
        return f"left {self._channel}" if self._channel else "no channel is joined"

    def condition(self) -> Condition:
        """What is wrong, if anything."""
        if self._connection is None:
            return Condition("no channel is joined", None, None, None)
        return self._connection.condition()

    def figures(self, now_ns: int) -> SessionFigures | None:
        """Figures of the connection; None while there is none."""
        connection = self._connection
        if connection is None:
            return None
        send_buffer = connection.send_buffer
        return SessionFigures(
            connection.state.name,
            self._channel,
            self._uid,
            connection.joins,
            round(send_buffer.depth_ms(now_ns), 1),
            send_buffer.holes,
            round(send_buffer.hole_ns / 1e6, 1),
            connection.proof.sent_kbps,
            connection.token_ends_s,
            connection.session,
        )

    # Inside

    def _push(self, source_id: int, buffer: SampleBuffer) -> None:
        declared, connection = self._need_declared(), self._joined()
        if not 0 <= source_id < declared.sources:
            raise _invalid("source_id", source_id, f"0 to {declared.sources - 1}")
        if connection.state is not ConnectionState.JOINED:
            raise AgoraError(Code.NOT_READY, connection.summary())
        framer, mixer = self._framers[source_id], self._mixer
        waiting_ms = connection.depth_ms() if mixer is None else 10 * mixer.waiting(source_id)
        waiting_ms += framer.held_ms
        if waiting_ms + buffer.frames * 1000 / buffer.rate_hz > self._buffer_ms:
            raise self._no_room(waiting_ms)
        if mixer is None:
            self._send_frames(connection, declared, framer, buffer)
        else:
            mixer.put(source_id, framer.put(buffer))

    def _no_room(self, in_flight_ms: float) -> AgoraError:
        return AgoraError(
            Code.TOO_OFTEN,
            f"{in_flight_ms:.0f} ms are already waiting in the send buffer of {self._buffer_ms} ms",
        )

    def _send_frames(
        self, connection: ChannelSession, declared: _Declared, framer: Framer, buffer: SampleBuffer
    ) -> None:
        held, track_hz, channels = framer.held, declared.track_hz, declared.channels
        for number, frame in enumerate(framer.put(buffer)):
            samples, pts_ms = frame
            try:
                connection.send(samples, track_hz // 100, channels, track_hz, pts_ms)
            except AgoraError as error:
                if number == 0:
                    framer.take_back(frame, held)
                else:
                    framer.drop()
                own = number - framer.earlier
                sent = own * track_hz // 100 - (0 if framer.earlier else held)
                taken = sent * buffer.rate_hz // track_hz
                error.taken = max(0, min(buffer.frames, taken))
                raise

    def _send(self, frame: Frame) -> None:
        """The mixer's way out."""
        connection, declared = self._connection, self._declared
        if connection is None or declared is None:
            raise AgoraError(Code.NOT_IN_CHANNEL, "the channel was left")
        _send(connection, declared, frame)

    def _joined(self) -> ChannelSession:
        if self._connection is None:
            raise AgoraError(Code.NOT_IN_CHANNEL, "no channel is joined; call join_channel first")
        return self._connection

    def _need_declared(self) -> _Declared:
        if self._declared is None:
            raise AgoraError(
                Code.INVALID_STATE,
                "no external source is enabled; call set_external_audio_source(True, ...) first",
            )
        return self._declared


def _send(connection: ChannelSession, declared: _Declared, frame: Frame) -> None:
    rate_hz, channels = declared.track_hz, declared.channels
    connection.send(frame.samples, rate_hz // 100, channels, rate_hz, frame.pts_ms)


def _invalid(what: str, found: object, expected: str) -> AgoraError:
    return AgoraError(Code.INVALID_ARGUMENT, f"{what}: {found} is not {expected}")
