"""A stream in an Agora channel, as a custom audio source.

The channel is live: what cannot be sent now (while it is joined, lost, or its send buffer is full)
is dropped and counted, and the connection looks after itself (``agora/channel_session.py``). With
the rate lock on, sound keeps pace with the channel's clock (``dsp/live.py``); off, samples go out
as they were captured, converted only where the channel takes another rate, format or number of
channels. Either way they go out as exact 10 ms frames that carry the time at which their first
sample was captured.

Latency is what waits in the SDK plus how long ago the newest sample was captured. Beyond
``max_latency_ms`` whole blocks are dropped until the sound is live again; below that it comes back
to its target within 10 s (``dsp/catchup.py``): ``catch_up`` says how. A gap leaves the SDK's
queue emptier by its length: it is concealed by as much silence as brings the queue back to its
target, or skipped.

Thread: main, in a process of its own (``push.py``); the SDK's wrapper is loaded by the
connection's control thread.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from capstand.agora.sdk.codes import AgoraError, Code
from capstand.agora.source import CustomAudioSource
from capstand.agora.tokens.sources import (
    Fixed,
    LocalTokens,
    TokenFile,
    TokenServer,
    TokenSource,
    world_accessible,
)
from capstand.audio.block import NS_PER_S, AudioFormat, Block, SampleFormat
from capstand.audio.clock import Pace
from capstand.audio.continuity import Continuity
from capstand.dsp.catchup import FADE_MS, CatchUp, power
from capstand.errors import SinkBusy, SinkError
from capstand.sinks.sink import Sink
from capstand.sinks.types.agora import (
    AgoraSinkConfig,
    LocalTokenConfig,
    TokenFileConfig,
    TokenServerConfig,
)

if TYPE_CHECKING:
    from capstand.dsp.live import LiveTrack

OPEN_S = 1.0
"""An ordinary join is over by then; one that is not is told as the reason for what is dropped."""
LEAVE_S = 1.5
END_MS = 15.0
LIVE_MS = 30.0
"""So near the target latency, sound that had fallen behind is live again."""
DRY_MS = 10.0
"""What is in flight may all wait for its 10 ms to be full; with more, the buffer is not empty."""
FASTER_MS = 380.0
"""What cannot be caught up in time by playing it faster is dropped."""

log = logging.getLogger("capstand.agora")


class AgoraChannel(Sink):
    """Sends one stream's blocks as ``setup`` says; the SDK's files are kept in ``folder``, and
    ``pace`` is that of the stream's clock.
    """

    def __init__(
        self,
        setup: AgoraSinkConfig,
        audio: AudioFormat,
        folder: Path,
        pace: Pace,
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.inserted_frames = 0
        self._setup = setup
        self._audio = audio
        self._track_hz, self._channels = setup.track(audio)
        self._track = AudioFormat(self._track_hz, self._channels, SampleFormat.S16_LE)
        self._pace = pace
        self._now_ns = now_ns
        self._source = CustomAudioSource(
            setup.app_id,
            folder,
            profile=None if setup.profile == "auto" else setup.profile,
            scenario=setup.scenario,
            area=setup.area,
            send_delay_ms=setup.send_delay_ms,
            buffer_ms=setup.send_buffer_ms,
            now_ns=now_ns,
        )
        self._live: LiveTrack | None = None
        self._continuity = Continuity()
        self._broken = True  # the block before this one did not reach the channel
        self._behind = False
        self._catches_up = setup.catch_up != "never"
        self._late = CatchUp(setup.send_delay_ms, FADE_MS if setup.rate_lock else 0.0)
        self._end_ns = 0  # when the newest sound that was sent had ended
        self._latency_ms = 0.0

    @property
    def detail(self) -> str:
        figures = self._source.figures(self._now_ns())
        words = self._source.summary()
        if figures is None or not self._source.joined:
            return words
        sent = "" if figures.sent_kbps is None else f", {figures.sent_kbps} kbit/s sent"
        return f"{words}{sent}, queue {figures.depth_ms:.0f} ms{self._lock_words()}"

    def open(self) -> None:
        for location in self._secrets():
            if warning := world_accessible(location):
                log.warning("%s", warning)
        self._source.leave_channel()
        self._source.set_external_audio_source(True, self._track_hz, self._channels)
        self._source.join_channel(self._tokens(), self._setup.channel, self._setup.uid, wait_s=0)
        if self._setup.rate_lock:  # libsoxr is loaded while the channel is joined
            from capstand.dsp.live import LiveTrack

            self._live = LiveTrack(self._audio, self._track_hz, self._channels, self._pace)
        self._source.wait_joined(OPEN_S)
        self._broken = True

    def write(self, block: Block) -> None:
        source, live, late = self._source, self._live, self._late
        gap_frames = self._continuity.follow(block)
        now_ns = self._now_ns()
        in_flight_ms = source.in_flight_ms(now_ns)
        if in_flight_ms is None:
            self._broken = True
            late.restart()
            raise SinkBusy(source.summary())
        span_s = block.frames / self._audio.rate_hz
        late_s = (now_ns - block.captured_at_ns) / 1e9 - span_s
        self._latency_ms = latency_ms = in_flight_ms + (late_s * 1000 if late_s > 0.0 else 0.0)
        if self._behind or latency_ms > self._setup.max_latency_ms:
            self._drop_until_live(latency_ms)
        if late.excess_ms:
            self._catch_up(block)
        try:
            if live is None:
                gap = self._broken or gap_frames != 0
                _, frames, captured_at_ns, samples, form = block
                source.push_block(samples, form, frames, captured_at_ns, gap, in_flight_ms)
            else:
                in_flight_ms = self._push_locked(live, block, gap_frames, in_flight_ms)
        except AgoraError as error:
            self._broken = True
            away = error.code == Code.NOT_READY
            raise SinkBusy(source.summary() if away else str(error), error.taken) from None
        self._broken = False
        if live is None:
            in_flight_ms += span_s * 1000
        else:
            live.loop.steer(in_flight_ms / 1000, self._setup.send_delay_ms / 1000, span_s)
        if self._catches_up and (live is None or not live.loop.catching_up):
            late.saw(in_flight_ms, now_ns)

    def _drop_until_live(self, latency_ms: float) -> None:
        """Raises SinkBusy for a block that is to be dropped, because sound has fallen behind."""
        if latency_ms > self._setup.max_latency_ms:
            self._behind = True
        elif latency_ms <= self._setup.send_delay_ms + LIVE_MS:
            self._behind = False
        if self._behind:
            self._broken = True
            self._late.restart()
            raise SinkBusy(f"{latency_ms:.0f} ms behind; dropping sound until it is live again")

    def _catch_up(self, block: Block) -> None:
        """Raises SinkBusy for a block that is to be dropped, because the queue is too long."""
        late = self._late
        if self._live is not None and self._setup.catch_up == "faster":
            faster_ms = min(late.excess_ms, FASTER_MS)
            if late.excess_ms > faster_ms:
                late.excess_ms -= block.frames * 1000 / self._audio.rate_hz
                self._dropped(late.excess_ms)
            if not self._broken:  # else its timeline begins anew with this block
                self._live.loop.catch_up(faster_ms / 1000)
                late.restart()
            return
        excess_ms, loudness = late.excess_ms, power(block.samples, self._audio.sample)
        if late.drops(loudness, block.frames * 1000 / self._audio.rate_hz):
            self._dropped(excess_ms)

    def _dropped(self, excess_ms: float) -> NoReturn:
        self._broken = True
        raise SinkBusy(f"{excess_ms:.0f} ms late; dropping some sound to catch up")

    def _push_locked(
        self, live: "LiveTrack", block: Block, gap_frames: int, in_flight_ms: float
    ) -> float:
        """How much is in flight then."""
        audio, setup = self._audio, self._setup
        span_s = block.frames / audio.rate_hz
        if gap_frames or self._broken:
            missing_ms = 0.0
            if setup.gaps == "conceal" and not self._broken:
                short_ms = setup.send_delay_ms - in_flight_ms - span_s * 1000
                missing_ms = min(short_ms, gap_frames * 1000 / audio.rate_hz)
            held_ns = round(live.loop.held_s * NS_PER_S)
            silence = live.bridge(missing_ms)
            silence_ns = self._frames(silence) * NS_PER_S // self._track_hz
            begin_ns = block.captured_at_ns - silence_ns if self._broken else self._end_ns
            try:
                in_flight_ms = self._push(silence, begin_ns - held_ns, in_flight_ms)
            except AgoraError as error:
                error.taken = 0  # silence, none of the block
                raise
            self.inserted_frames += silence_ns * audio.rate_hz // NS_PER_S
        samples, first_ns = live.put(block)
        self._end_ns = block.captured_at_ns + round(span_s * NS_PER_S)
        try:
            return self._push(samples, first_ns, in_flight_ms)
        except AgoraError as error:
            error.taken = min(block.frames, error.taken * audio.rate_hz // self._track_hz)
            raise

    def _push(self, samples: bytes, first_ns: int, in_flight_ms: float) -> float:
        """How much is in flight then: a resampler gives more or less than it got, and a buffer that
        ran dry goes on at the next of its turns."""
        frames = len(samples) // (2 * self._channels)
        if not frames:
            return in_flight_ms
        self._source.push_block(samples, self._track, frames, first_ns, False, in_flight_ms)
        dry = in_flight_ms <= DRY_MS
        found_ms = self._source.in_flight_ms(self._now_ns()) if dry else None
        return in_flight_ms + frames * 1000 / self._track_hz if found_ms is None else found_ms

    def _frames(self, samples: bytes) -> int:
        return len(samples) // (2 * self._channels)

    def flush(self) -> None:
        """Raises SinkError for what only a new process can heal."""
        found = self._source.condition()
        if reason := found.hung or found.needs_new_process:
            raise SinkError(reason)

    def close(self) -> None:
        if self._live is not None and not self._broken:
            held_ns = round(self._live.loop.held_s * NS_PER_S)
            with contextlib.suppress(AgoraError):  # sound ends without a click
                end_ns = self._end_ns - held_ns
                now_ms = self._source.in_flight_ms(self._now_ns())
                if now_ms is not None:
                    self._push(self._live.bridge(END_MS), end_ns, now_ms)
        self._broken = True
        self._source.leave_channel(LEAVE_S)

    @property
    def concern(self) -> str | None:
        return self._source.condition().concern

    def figures(self, now_ns: int) -> dict[str, object]:
        figures, live = self._source.figures(now_ns), self._live
        if figures is None:
            return {}
        lock = None if live is None else "locked" if live.loop.locked else "acquiring"
        return {
            **figures._asdict(),
            "latency_ms": round(self._latency_ms, 1),
            "rate_lock": lock,
            "ratio_ppm": None if live is None else round(live.loop.ratio_ppm, 2),
        }

    def _lock_words(self) -> str:
        if self._live is None:
            return ""
        loop = self._live.loop
        return f", locked at {loop.ratio_ppm:+.1f} ppm" if loop.locked else ", acquiring rate lock"

    def _secrets(self) -> list[str]:
        """The places of secrets, which nobody else should be able to read."""
        match self._setup.token:
            case TokenFileConfig(path=location) | LocalTokenConfig(certificate=location):
                return [location]
            case TokenServerConfig(credential=str(location)):
                return [location]
            case _:
                return []

    def _tokens(self) -> TokenSource:
        setup, token = self._setup, self._setup.token
        match token:
            case None:
                return Fixed("")
            case TokenServerConfig():
                return TokenServer(
                    token.url,
                    token.credential,
                    token.ca_file,
                    app_id=setup.app_id,
                    channel=setup.channel,
                    uid=setup.uid,
                    lifetime_s=token.lifetime_s,
                    method=token.method,
                    body=token.body,
                    token_path=token.token_path,
                )
            case LocalTokenConfig():
                return LocalTokens(
                    setup.app_id, token.certificate, setup.channel, setup.uid, token.lifetime_s
                )
            case TokenFileConfig():
                return TokenFile(token.path)
