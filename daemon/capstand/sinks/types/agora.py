"""The type "agora": a channel of Agora's, as a custom audio source (``sinks/agora.py``).

The daemon loads nothing of Agora's code: the limits are its own words for those of
``agora/source.py``.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import AudioFormat
from capstand.config.decode import Tagged
from capstand.config.registry import Resource, SinkContext, SinkType
from capstand.config.rules import Choice, Flag, Text, Whole
from capstand.config.schema import PATH, AbsolutePath, Input, Name, SpoolConfig, StreamConfig
from capstand.config.wording import secretive

if TYPE_CHECKING:
    from capstand.sinks.live import SinkFactory

PROFILES = (
    "auto",
    "default",
    "speech",
    "music",
    "music_stereo",
    "music_high",
    "music_high_stereo",
    "iot",
)
SCENARIOS = ("default", "game_streaming", "chatroom", "chorus", "meeting")
AREAS = ("global", "cn", "na", "eu", "as", "jp", "in")
TRACK_RATES = (8000, 16000, 24000, 32000, 48000)
LIVE_PERIOD_MS = 100
LOCKED_MS = 20
"""So much is resampled and pushed at once, where as much waits in the channel besides."""
AGORA_ID = "[0-9a-fA-F]{32}"
CHANNEL_NAME = r"[A-Za-z0-9 !#$%&()+\-:;<=.>?@\[\]^_{}|~,]{1,64}"

SecretLocation = Annotated[
    str,
    Text(
        PATH + r"|[A-Za-z0-9_.@-]{1,255}",
        "an absolute path, or the name of a credential in the unit (LoadCredential=)",
    ),
]

PLACEHOLDER = r"\{(app_id|channel|uid|expiry)\}"


class TokenFileConfig(NamedTuple):
    """Tokens that something else puts into a file."""

    source: Annotated[str, Choice(("file",))]
    path: SecretLocation

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.path.startswith(("006", "007")) and len(self.path) > 60:
            yield "path", "this is a token; put it into a file and name the file here"
        else:
            yield from _no_secret_itself("path", self.path)

    def __repr__(self) -> str:
        return "FileToken(...)"


class TokenServerConfig(NamedTuple):
    """Tokens from a server, by HTTPS."""

    source: Annotated[str, Choice(("server",))]
    url: Annotated[str, Text(r"https://[^\s\0-\x1f\x7f]+", "an https:// address")]
    credential: SecretLocation | None = None
    ca_file: AbsolutePath | None = None
    lifetime_s: Annotated[int, Whole(60, 86_400)] = 86_400
    method: Annotated[str, Choice(("GET", "POST"))] = "GET"
    body: (
        Annotated[str, Text(r"[^\0]{1,4096}", "the text to send, at most 4096 characters")] | None
    ) = None
    token_path: (
        Annotated[
            str,
            Text(
                r"[^.\0-\x20\x7f]{1,64}(\.[^.\0-\x20\x7f]{1,64}){0,7}",
                "the keys that lead to the token, such as data.token",
            ),
        ]
        | None
    ) = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if "@" in self.url.removeprefix("https://").split("/")[0]:
            yield (
                "url",
                "it contains a user name or a password; put the secret into a file and name that "
                "as "
                "the credential",
            )
        else:
            yield from self._url_problems()
        if self.credential is not None:
            yield from _no_secret_itself("credential", self.credential)
        if self.token_path is not None and secretive(self.token_path):
            yield "token_path", "this looks like a token; expected the keys that lead to one"
        yield from self._body_problems()

    def _url_problems(self) -> Iterator[tuple[str, str]]:
        """Nothing of the address is shown: a key may be in it."""
        filled = re.sub(PLACEHOLDER, "1", self.url)
        if re.search(r"\{[^{}]*\}", filled):
            yield (
                "url",
                "unknown name in braces; expected {app_id}, {channel}, {uid} or {expiry}",
            )
        elif not filled.isascii():
            yield "url", "it has characters that are not ASCII; write them percent-encoded"
        elif not _has_host(filled):
            yield "url", "it has no valid host and port; expected such as https://host:8443/path"

    def _body_problems(self) -> Iterator[tuple[str, str]]:
        if self.body is None:
            return
        if self.method == "GET":
            yield "body", 'a GET has none; set method = "POST", or delete the key'
        filled = re.sub(PLACEHOLDER, "1", self.body)
        if wrong := re.search(r"\{[A-Za-z_]+\}", filled):
            yield (
                "body",
                f"{wrong[0]} is not known; expected {{app_id}}, {{channel}}, {{uid}} or {{expiry}}",
            )
        elif filled.lstrip().startswith(("{", "[")):
            try:
                json.loads(filled)
            except (ValueError, RecursionError):
                yield (
                    "body",
                    "starts like JSON but is invalid; expected such as "
                    """'{"channel": "{channel}", "uid": {uid}}'""",
                )

    def __repr__(self) -> str:
        return "ServerToken(...)"


class LocalTokenConfig(NamedTuple):
    """Tokens made here; for development only, because it takes the App Certificate."""

    source: Annotated[str, Choice(("local",))]
    certificate: SecretLocation
    lifetime_s: Annotated[int, Whole(60, 86_400)] = 86_400

    def problems(self) -> Iterator[tuple[str, str]]:
        if re.fullmatch(AGORA_ID, self.certificate):
            yield (
                "certificate",
                "this is a certificate; put it into a file and name the file here",
            )
        else:
            yield from _no_secret_itself("certificate", self.certificate)

    def __repr__(self) -> str:
        return "LocalToken(...)"


def _has_host(url: str) -> bool:
    """Whether an address has a host that a name server could know, and a port that can be."""
    from urllib.parse import urlsplit  # for those with a token server only

    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    labels = host.rstrip(".").split(".")
    return port != 0 and all(1 <= len(label) <= 63 for label in labels)


def _no_secret_itself(key: str, location: str) -> Iterator[tuple[str, str]]:
    if not location.startswith("/") and secretive(location):
        yield key, "this looks like the secret; put it into a file and name the file here"


Token = TokenFileConfig | TokenServerConfig | LocalTokenConfig
TOKEN_SOURCES: dict[str, type[Token]] = {
    "file": TokenFileConfig,
    "server": TokenServerConfig,
    "local": LocalTokenConfig,
}


class AgoraSinkConfig(NamedTuple):
    """A channel of Agora's, as a custom audio source."""

    type: Annotated[str, Choice(("agora",))]
    app_id: Annotated[str, Text(AGORA_ID, "the 32 hexadecimal digits of an app id")]
    channel: Annotated[
        str,
        Text(
            CHANNEL_NAME,
            "a channel name: 1 to 64 letters, digits and simple signs",
        ),
    ]
    uid: Annotated[int, Whole(0, 2**32 - 1)] = 0
    token: Annotated[Token, Tagged("source", TOKEN_SOURCES)] | None = None
    name: Name = "agora"
    profile: Annotated[str, Choice(PROFILES)] = "auto"
    scenario: Annotated[str, Choice(SCENARIOS)] = "default"
    area: Annotated[str, Choice(AREAS)] = "global"
    rate_hz: Annotated[int, Whole(8000, 48_000, TRACK_RATES)] | None = None
    channels: Annotated[int, Whole(1, 2)] | None = None
    send_delay_ms: Annotated[int, Whole(10, 1000)] = 40
    send_buffer_ms: Annotated[int, Whole(50, 5000)] = 500
    rate_lock: Annotated[bool, Flag()] = True
    gaps: Annotated[str, Choice(("conceal", "skip"))] = "conceal"
    max_latency_ms: Annotated[int, Whole(50, 60_000)] = 400
    catch_up: Annotated[str, Choice(("drop", "faster", "never"))] = "drop"
    input: Input | None = None
    spool: SpoolConfig | None = None

    def track(self, audio: AudioFormat) -> tuple[int, int]:
        """Rate and channels that are sent; where not given, as near to the capture as can be."""
        own_rate = audio.rate_hz if audio.rate_hz in TRACK_RATES else 48_000
        return self.rate_hz or own_rate, self.channels or min(2, audio.channels)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.rate_hz is not None and self.rate_hz not in TRACK_RATES:
            yield "rate_hz", f"{self.rate_hz}: expected one of {', '.join(map(str, TRACK_RATES))}"
        for key in ("send_delay_ms", "send_buffer_ms"):
            if getattr(self, key) % 10:
                yield (
                    key,
                    (f"{getattr(self, key)}: expected a multiple of 10; the SDK counts in 10 ms"),
                )
        if self.catch_up == "faster" and not self.rate_lock:
            yield (
                "catch_up",
                '"faster" needs the resampler of rate_lock, which is false; take "drop"',
            )
        if self.send_delay_ms >= self.send_buffer_ms:
            yield (
                "send_delay_ms",
                f"{self.send_delay_ms} is not less than send_buffer_ms, {self.send_buffer_ms}; "
                "nothing would ever be sent",
            )
        elif self.max_latency_ms < self.send_delay_ms + 50:
            yield (
                "max_latency_ms",
                f"{self.max_latency_ms} is less than send_delay_ms + 50; ordinary jitter would "
                f"drop sound; use {self.send_delay_ms + 50} or more",
            )


def _make(sink: AgoraSinkConfig, at: SinkContext) -> "SinkFactory":
    from capstand.sinks.live import SinkFactory  # not to check a configuration

    folder, capture = at.state / "agora" / at.stream / sink.name, at.capture
    locked = sink.rate_lock and sink.send_delay_ms >= 2 * LOCKED_MS
    gathers = locked and capture.period_ms <= LOCKED_MS / 2
    gather_frames = LOCKED_MS * capture.rate_hz // 1000 if gathers else 0
    arguments = sink, capture.audio, folder
    return SinkFactory("capstand.sinks.agora:AgoraChannel", arguments, gather_frames)


def _resources(sink: AgoraSinkConfig) -> Iterator[Resource]:
    """In a channel of a project, Agora gives each uid one place; 0 lets it choose."""
    where = (sink.app_id.lower(), sink.channel, sink.uid)
    told = f"{sink.uid} is already in channel {sink.channel}; give each sink its own uid"
    yield Resource(where, "uid", (lambda _: told) if sink.uid else None, anywhere=True)


def _problems(sink: AgoraSinkConfig, stream: StreamConfig) -> Iterator[tuple[str, str]]:
    """A channel wants its sound little by little."""
    period_ms = stream.capture.period_ms
    if period_ms > LIVE_PERIOD_MS:
        yield (
            "capture.period_ms",
            f"{period_ms:g} is too coarse for a live channel; take {LIVE_PERIOD_MS} or less "
            "(10 is best)",
        )
    elif period_ms > 10 and sink.send_delay_ms < period_ms + 10:
        yield (
            "send_delay_ms",
            f"{sink.send_delay_ms} is less than capture.period_ms + 10; the channel would run dry "
            f"between two periods; take {math.ceil(period_ms / 10) * 10 + 10} or more",
        )
    stereo = sink.track(stream.capture.audio)[1] == 2
    if stereo and sink.profile not in ("auto", "music_stereo", "music_high_stereo"):
        yield (
            "profile",
            f'"{sink.profile}" is mono and two channels are sent; take "auto", or channels = 1',
        )


TYPE = SinkType(
    AgoraSinkConfig,
    page="agora.md",
    live=True,
    make=_make,
    resources=_resources,
    problems=_problems,
)
