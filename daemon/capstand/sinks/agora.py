"""A stream in an Agora channel, as a custom audio source.

The channel is live: what cannot be sent now (while it is joined, lost, or its send buffer is full)
is dropped and counted, and the connection looks after itself (``agora/connection.py``). Blocks are
converted to the track's rate, channels and S16, and go out as exact 10 ms frames that carry the
time at which their first sample was captured.

Thread: the outlet's. The SDK's wrapper is loaded by the connection's control thread.
"""

import logging
import time
from pathlib import Path

from capstand.agora.codes import AgoraError, Code
from capstand.agora.frames import SampleBuffer
from capstand.agora.source import CustomAudioSource
from capstand.agora.token_source import (
    Fixed,
    LocalTokens,
    TokenFile,
    TokenServer,
    TokenSource,
    loose,
)
from capstand.block import AudioFormat, Block
from capstand.config import AgoraSink as AgoraSetup
from capstand.config import FileToken, LocalToken, ServerToken
from capstand.errors import SinkBusy
from capstand.sinks.sink import Condition, Sink

OPEN_S = 1.0
"""An ordinary join is over by then; one that is not is told as the reason for what is dropped."""
LEAVE_S = 1.5

log = logging.getLogger("capstand.agora")


class AgoraChannel(Sink):
    """Sends one stream's blocks as ``setup`` says; the SDK's files are kept in ``folder``."""

    def __init__(self, setup: AgoraSetup, audio: AudioFormat, folder: Path) -> None:
        self._setup = setup
        self._audio = audio
        self._track = setup.track(audio)
        self._source = CustomAudioSource(
            setup.app_id,
            folder,
            profile=None if setup.profile == "auto" else setup.profile,
            scenario=setup.scenario,
            area=setup.area,
            delay_ms=setup.delay_ms,
            buffer_ms=setup.send_buffer_ms,
        )
        self._next_frame = -1

    @property
    def detail(self) -> str:
        figures = self._source.figures(time.monotonic_ns())
        words = self._source.words()
        if figures is None or figures.state != "JOINED":
            return words
        sent = "" if figures.sent_kbps is None else f", {figures.sent_kbps} kbit/s sent"
        return f"{words}{sent}, queue {figures.depth_ms:.0f} ms"

    def open(self) -> None:
        rate_hz, channels = self._track
        for place in self._secrets():
            if warning := loose(place):
                log.warning(warning)
        self._source.leave_channel()
        self._source.set_external_audio_source(True, rate_hz, channels)
        self._source.join_channel(
            self._tokens(), self._setup.channel, self._setup.uid, wait_s=OPEN_S
        )
        self._next_frame = -1

    def write(self, block: Block) -> None:
        audio = self._audio
        gap = block.first_frame != self._next_frame
        self._next_frame = block.first_frame + block.frames
        try:
            self._source.push_external_audio_frame_sample_buffer(
                SampleBuffer(
                    block.samples,
                    audio.rate_hz,
                    audio.channels,
                    audio.sample,
                    block.frames,
                    block.captured_at_ns,
                    gap,
                )
            )
        except AgoraError as error:
            away = error.code == Code.NOT_READY
            raise SinkBusy(self._source.words() if away else str(error), error.taken) from None

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._source.leave_channel(LEAVE_S)

    def condition(self) -> Condition:
        found = self._source.condition()
        return Condition(found.concern, found.hung, found.spent)

    def figures(self, now_ns: int) -> dict[str, object]:
        figures = self._source.figures(now_ns)
        return {} if figures is None else figures._asdict()

    def _secrets(self) -> list[str]:
        """The places of secrets, which nobody else should be able to read."""
        match self._setup.token:
            case FileToken(path=place) | LocalToken(certificate=place):
                return [place]
            case ServerToken(credential=str(place)):
                return [place]
            case _:
                return []

    def _tokens(self) -> TokenSource:
        setup, token = self._setup, self._setup.token
        match token:
            case None:
                return Fixed("")
            case ServerToken():
                return TokenServer(
                    token.url,
                    token.credential,
                    token.ca_file,
                    app_id=setup.app_id,
                    channel=setup.channel,
                    uid=setup.uid,
                    life_s=token.life_s,
                )
            case LocalToken():
                return LocalTokens(
                    setup.app_id, token.certificate, setup.channel, setup.uid, token.life_s
                )
            case FileToken():
                return TokenFile(token.path)
