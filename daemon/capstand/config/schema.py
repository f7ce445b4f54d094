"""The configuration: the TOML schema, in the order of the file, as frozen values.

A file is right as a whole or refused as a whole. Every fault is reported at once, each with file,
line, key, what was found, what is expected and, where one is near, what was probably meant. Unknown
keys are faults, because a misspelt key that is silently ignored is found in the field.
"""

import errno
import json
import math
import os
import re
import select
import stat
import time
from collections.abc import Iterator, Sequence
from os.path import normpath
from pathlib import Path
from typing import Annotated, NamedTuple

from capstand.audio.block import AudioFormat, SampleFormat
from capstand.config.decode import (
    Choice,
    Flag,
    FlagOr,
    Number,
    OneOrSome,
    Prefixed,
    Some,
    Tagged,
    Text,
    Whole,
    decode,
    secretive,
)
from capstand.config.naming import SHAPES, fault
from capstand.config.unreadable import unreadable
from capstand.errors import ConfigError

MAX_BYTES = 262_144
PIPE_S = 5.0
FORMATS = tuple(one.alsa_name for one in SampleFormat)
MOST_HZ = 768_000
COMMON_RATES = (
    *(8000, 11025, 16000, 22050, 32000, 44100, 48000, 88200, 96000, 176400, 192000),
    *(250_000, 256_000, 352_800, 384_000, 500_000, 705_600, 768_000),
)
SIGNALS = ("tone", "silence", "noise", "file", "counter")
FAULTS = ("overrun", "unplug", "stall")
CHANNELS = 2
LARGEST_PERIOD = 2
"""A granted period may be up to this many times what was asked; the ring's slots allow for it."""
RING_S = 2.0
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
FLAC_BITS, FLAC_CHANNELS = 24, 8
FLAC_ANY_RATE_HZ, FLAC_RATE_HZ = 65_535, 655_350
AGORA_ID = "[0-9a-fA-F]{32}"
CHANNEL_NAME = r"[A-Za-z0-9 !#$%&()+\-:;<=.>?@\[\]^_{}|~,]{1,64}"
PATH = r"/([^\0-\x1f\x7f]*[^\0-\x20\x7f])?"
"""Absolute, and without a blank at its end, which nobody would see."""

Name = Annotated[str, Text(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", "a name: 1 to 32 of A-Z a-z 0-9 _ -")]
SecretPlace = Annotated[
    str,
    Text(
        PATH + r"|[A-Za-z0-9_.@-]{1,255}",
        "an absolute path, or the name of a credential in the unit (LoadCredential=)",
    ),
]
AbsolutePath = Annotated[str, Text(PATH, "an absolute path, such as /var/lib/capstand/mic")]

ALSA_NAME = Text(r"[^\0-\x20\x7f][^\0-\x1f\x7f]{0,255}", "a device, such as hw:CARD=Mic,DEV=0")
DEVICE_NAME = Prefixed({prefix: Text(*shape) for prefix, shape in SHAPES.items()}, ALSA_NAME)
MOST_DEVICES = 8
MOST_CHANNELS = 32
MOST_RING_BYTES = MOST_QUEUE_BYTES = 256_000_000
"""The ring's memory, and what may wait for a sink; most streams need a hundredth of it."""


class Fault(NamedTuple):
    """One thing that happens to the simulated card: when, for how long, how often again."""

    kind: Annotated[str, Choice(FAULTS)]
    at_s: Annotated[float, Number(0, 1e9)]
    for_s: Annotated[float, Number(0.001, 1e6)]
    every_s: Annotated[float, Number(0, 1e9)] = 0.0


class Synthetic(NamedTuple):
    """How the simulated card behaves."""

    signal: Annotated[str, Choice(SIGNALS)] = "tone"
    tone_hz: Annotated[int, Whole(1, 96_000)] = 440
    level_dbfs: Annotated[float, Number(-120, 0)] = -20.0
    file: AbsolutePath = "/"
    ppm: Annotated[float, Number(-20_000, 20_000)] = 0.0
    jitter_us: Annotated[float, Number(0, 100_000)] = 0.0
    seed: Annotated[int, Whole(0, 2**31)] = 1
    faults: tuple[Fault, ...] = ()

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.signal == "file" and self.file == "/":
            yield "signal", '"file" needs the key file, the absolute path of a WAV or FLAC file'


class Capture(NamedTuple):
    """What to ask of the device."""

    device: Annotated[str | tuple[str, ...], OneOrSome(DEVICE_NAME, MOST_DEVICES)]
    rate_hz: Annotated[int, Whole(8000, MOST_HZ, COMMON_RATES)] = 48_000
    channels: Annotated[int, Whole(1, MOST_CHANNELS)] | None = None
    pick: Annotated[tuple[int, ...], Some(Whole(1, MOST_CHANNELS), MOST_CHANNELS, "[1]")] | None = (
        None
    )
    format: Annotated[str, Choice(FORMATS)] = "S16_LE"
    period_ms: Annotated[float, Number(1, 1000)] = 10.0
    buffer_ms: Annotated[float, Number(20, 10_000)] = 500.0
    priority: Annotated[int, Whole(0, 80)] = 70
    silence_warn_s: Annotated[float, Number(0, 86_400)] = 60.0
    dead_warn_s: Annotated[float, Number(0, 86_400)] = 60.0
    dc_warn_dbfs: Annotated[float, Number(-60, 0)] = -26.0
    clip_warn_per_s: Annotated[float, Number(0, 10_000)] = 5.0
    reserve_priority: Annotated[int, Whole(-(2**31), 2**31 - 1)] = 10
    synthetic: Synthetic | None = None

    @property
    def devices(self) -> tuple[str, ...]:
        """The names of the devices to take, the best one first."""
        return (self.device,) if isinstance(self.device, str) else self.device

    @property
    def wanted(self) -> str:
        """The same for people: "usb:0d8c:0014 or card:Device"."""
        return " or ".join(self.devices)

    @property
    def audio(self) -> AudioFormat:
        """What the stream has: the channels that are taken from the card."""
        channels = len(self.pick) if self.pick else self.channels or CHANNELS
        return AudioFormat(self.rate_hz, channels, SampleFormat[self.format])

    @property
    def card_channels(self) -> int | None:
        """How many the card is opened with; None: as few as hold all that are picked."""
        return self.channels or (None if self.pick else CHANNELS)

    @property
    def least_channels(self) -> int:
        """The fewest that the card may have."""
        return self.card_channels or max(self.pick or (CHANNELS,))

    def card_channel(self, at: int) -> int:
        """The card's number, as people count, of the stream's channel ``at``."""
        return self.pick[at] if self.pick else at + 1

    @property
    def period_frames(self) -> int:
        return round(self.rate_hz * self.period_ms / 1000)

    @property
    def buffer_frames(self) -> int:
        """The buffer asked for: a whole number of periods."""
        return round(self.buffer_ms / self.period_ms) * self.period_frames

    @property
    def ring_slots(self) -> int:
        """The ring takes what the device's buffer may hand over at once, twice, in memory that is
        bounded."""
        wanted = math.ceil(max(RING_S, 2 * self.buffer_ms / 1000) * 1000 / self.period_ms)
        return max(4, min(wanted, MOST_RING_BYTES // self.slot_bytes))

    @property
    def slot_bytes(self) -> int:
        """A slot of the ring has room for the longest period that a card may grant."""
        return LARGEST_PERIOD * self.period_frames * self.audio.frame_bytes

    def queue_frames(self, queue_ms: int) -> int:
        """How much may wait for a sink, in memory that is bounded."""
        frames = queue_ms * self.rate_hz // 1000
        return min(frames, MOST_QUEUE_BYTES // self.audio.frame_bytes)

    def bounded(self, name: str, queue_ms: int) -> str | None:
        """What to know of a sink whose ``queue_ms`` is more than memory is given for."""
        kept_ms = self.queue_frames(queue_ms) * 1000 // self.rate_hz
        if kept_ms >= queue_ms:
            return None
        return (
            f"sink {name}: queue_ms is {queue_ms}, and {kept_ms} ms of so much sound are "
            f"{MOST_QUEUE_BYTES // 1_000_000} MB; no more is kept in memory"
        )

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.pick and self.channels and max(self.pick) > self.channels:
            yield (
                "pick",
                f"{max(self.pick)} is more than channels, {self.channels}, which the card is "
                f"opened with; set channels to {max(self.pick)} or more, or leave it out",
            )
        if self.buffer_ms < 4 * self.period_ms:
            yield (
                "buffer_ms",
                f"{self.buffer_ms:g} is less than 4 periods of {self.period_ms:g} ms; "
                f"take {4 * self.period_ms:g} or more (500 outlives most stalls)",
            )
        for one in self.devices:
            if wrong := fault(one):
                yield "device", wrong
        if self.synthetic is not None and self.device != "synthetic":
            yield "synthetic", 'is for device = "synthetic" only; delete it or set that device'
        if isinstance(self.device, tuple):
            if "synthetic" in self.device:
                yield "device", '"synthetic" is in a list; the simulated card is always there alone'
            elif len(set(self.device)) < len(self.device):
                yield "device", "a name stands in the list twice"


class Spool(NamedTuple):
    """Where sound waits while its sink is away, how much, how long; and how fast it follows."""

    path: AbsolutePath = "/var/lib/capstand/spool"
    max_mb: Annotated[int, Whole(10, 10_000_000)] = 1000
    max_age_s: Annotated[float, Number(60, 1e8)] = 86_400.0
    speed: Annotated[float, Number(1.1, 1000)] = 4.0


MOUNT = Text(
    r"auto|/[^\0-\x1f\x7f]+", '"auto", true, false or the path of a mount point, such as "/mnt/usb"'
)
MODE_WORDS = 'a mode such as "0640", as chmod takes it: 6 for the daemon itself, then 0, 2, 4 or 6'


class FileSink(NamedTuple):
    """Recordings in segments, in a directory. The queue outlasts a slow machine's start, too: what
    writes a recording took up to 10 s to load on one (docs/measured.md).
    """

    type: Annotated[str, Choice(("file",))]
    path: AbsolutePath
    name: Name = "file"
    container: Annotated[str, Choice(("wav", "flac"))] = "wav"
    segment_s: Annotated[float, Number(1, 86_400)] = 3600.0
    gaps: Annotated[str, Choice(("silence", "skip"))] = "silence"
    min_free_mb: Annotated[int, Whole(0, 10_000_000)] = 200
    queue_ms: Annotated[int, Whole(100, 60_000)] = 20_000
    mount: Annotated[bool | str, FlagOr(MOUNT)] = "auto"
    mode: Annotated[str, Text("0?6[0246][0246]", MODE_WORDS)] | None = None
    group: (
        Annotated[str, Text(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", "the name of a group")] | None
    ) = None
    keep_days: Annotated[float, Number(0, 36_500)] = 0.0
    keep_gb: Annotated[float, Number(0, 1e6)] = 0.0
    spool: Spool | None = None

    @property
    def live(self) -> bool:
        """Whether only the present is of use to it."""
        return False

    @property
    def group_id(self) -> int | None:
        """None where no group is given, or it is no longer there."""
        if self.group is None:
            return None
        import grp  # it may bring the network's user directory

        try:
            return grp.getgrnam(self.group).gr_gid
        except KeyError:
            return None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.group is not None and self.group_id is None:
            yield (
                "group",
                f'this machine has no group "{self.group}"; make it (sudo groupadd {self.group}) '
                "or take another (getent group)",
            )
        if isinstance(self.mount, str) and self.mount != "auto":
            path, mount = (normpath("/" + one.lstrip("/")) for one in (self.path, self.mount))
            if not Path(path).is_relative_to(mount):
                yield "mount", f'path, "{self.path}", is not below "{self.mount}"'
        if self.spool is None:
            return
        if Path(normpath(self.spool.path)).is_relative_to(normpath(self.path)):
            yield (
                "spool.path",
                f'"{self.spool.path}" is below path, "{self.path}", and is away when that is; '
                "take a directory on another disk",
            )


PLACEHOLDER = r"\{(app_id|channel|uid|expiry)\}"


class FileToken(NamedTuple):
    """Tokens that something else puts into a file."""

    source: Annotated[str, Choice(("file",))]
    path: SecretPlace

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.path.startswith(("006", "007")) and len(self.path) > 60:
            yield "path", "this is a token itself; put it into a file and name that here"
        else:
            yield from _no_secret_itself("path", self.path)

    def __repr__(self) -> str:
        return "FileToken(...)"


class ServerToken(NamedTuple):
    """Tokens from a server, by HTTPS."""

    source: Annotated[str, Choice(("server",))]
    url: Annotated[str, Text(r"https://[^\s\0-\x1f\x7f]+", "an https:// address")]
    credential: SecretPlace | None = None
    ca_file: AbsolutePath | None = None
    life_s: Annotated[int, Whole(60, 86_400)] = 86_400
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
                "it holds a user name or a password; put the secret into a file and name that as "
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
                    "begins as JSON and is none; expected such as "
                    """'{"channel": "{channel}", "uid": {uid}}'""",
                )

    def __repr__(self) -> str:
        return "ServerToken(...)"


class LocalToken(NamedTuple):
    """Tokens made here; for development only, because it takes the App Certificate."""

    source: Annotated[str, Choice(("local",))]
    certificate: SecretPlace
    life_s: Annotated[int, Whole(60, 86_400)] = 86_400

    def problems(self) -> Iterator[tuple[str, str]]:
        if re.fullmatch(AGORA_ID, self.certificate):
            yield (
                "certificate",
                "this is a certificate itself; put it into a file and name that here",
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
    return port != 0 and all(1 <= len(one) <= 63 for one in labels)


def _no_secret_itself(key: str, place: str) -> Iterator[tuple[str, str]]:
    if not place.startswith("/") and secretive(place):
        yield key, "this looks like the secret itself; put it into a file and name that here"


Token = FileToken | ServerToken | LocalToken
TOKEN_SOURCES: dict[str, type[Token]] = {
    "file": FileToken,
    "server": ServerToken,
    "local": LocalToken,
}


class AgoraSink(NamedTuple):
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
    delay_ms: Annotated[int, Whole(10, 1000)] = 40
    send_buffer_ms: Annotated[int, Whole(50, 5000)] = 500
    rate_lock: Annotated[bool, Flag()] = True
    gaps: Annotated[str, Choice(("conceal", "skip"))] = "conceal"
    max_latency_ms: Annotated[int, Whole(50, 60_000)] = 400
    catch_up: Annotated[str, Choice(("drop", "faster", "never"))] = "drop"
    spool: Spool | None = None

    @property
    def live(self) -> bool:
        """Whether only the present is of use to it."""
        return True

    def track(self, audio: AudioFormat) -> tuple[int, int]:
        """Rate and channels that are sent; where not given, as near to the capture as can be."""
        own_rate = audio.rate_hz if audio.rate_hz in TRACK_RATES else 48_000
        return self.rate_hz or own_rate, self.channels or min(2, audio.channels)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.rate_hz is not None and self.rate_hz not in TRACK_RATES:
            yield "rate_hz", f"{self.rate_hz} is not one of {', '.join(map(str, TRACK_RATES))}"
        for key in ("delay_ms", "send_buffer_ms"):
            if getattr(self, key) % 10:
                yield key, f"{getattr(self, key)} is no multiple of 10; the SDK counts in 10 ms"
        if self.catch_up == "faster" and not self.rate_lock:
            yield (
                "catch_up",
                '"faster" needs the resampler of rate_lock, which is false; take "drop"',
            )
        if self.delay_ms >= self.send_buffer_ms:
            yield (
                "delay_ms",
                f"{self.delay_ms} is not less than send_buffer_ms, {self.send_buffer_ms}; "
                "nothing would ever be sent",
            )
        elif self.max_latency_ms < self.delay_ms + 50:
            yield (
                "max_latency_ms",
                f"{self.max_latency_ms} is less than delay_ms + 50; ordinary jitter would drop "
                f"sound; take {self.delay_ms + 50} or more",
            )


Sink = FileSink | AgoraSink
SINK_TYPES: dict[str, type[Sink]] = {"file": FileSink, "agora": AgoraSink}


class Stream(NamedTuple):
    """One device and everything fed by it."""

    name: Name
    capture: Capture
    sink: tuple[Annotated[Sink, Tagged("type", SINK_TYPES)], ...] = ()

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.sink:
            yield "sink", "there is no [[stream.sink]]; the sound would go nowhere"
        yield from _twice("sink", "name", [one.name for one in self.sink])
        yield from _twice(
            "sink",
            "path",
            [normpath(one.path) if isinstance(one, FileSink) else None for one in self.sink],
        )
        for number, sink in enumerate(self.sink):
            if sink.live and sink.spool is not None:
                yield (
                    f"sink.{number}.spool",
                    f'a sink of type "{sink.type}" is live: old sound is of no use there; '
                    "delete the table",
                )
            if isinstance(sink, AgoraSink):
                yield from self._too_coarse(number, sink)
                continue
            if sink.container == "flac":
                key = "capture.pick takes" if self.capture.pick else "capture.channels is"
                for what in flac_refuses(self.capture.audio, key):
                    yield f"sink.{number}.container", f"flac holds {what}"

    def _too_coarse(self, number: int, sink: AgoraSink) -> Iterator[tuple[str, str]]:
        """A channel wants its sound little by little."""
        period_ms = self.capture.period_ms
        if period_ms > LIVE_PERIOD_MS:
            yield (
                "capture.period_ms",
                f"{period_ms:g} is too coarse for a live channel; take {LIVE_PERIOD_MS} or less "
                "(10 is best)",
            )
        elif period_ms > 10 and sink.delay_ms < period_ms + 10:
            yield (
                f"sink.{number}.delay_ms",
                f"{sink.delay_ms} is less than capture.period_ms + 10; the channel would run dry "
                f"between two periods; take {math.ceil(period_ms / 10) * 10 + 10} or more",
            )
        stereo = sink.track(self.capture.audio)[1] == 2
        if stereo and sink.profile not in ("auto", "music_stereo", "music_high_stereo"):
            yield (
                f"sink.{number}.profile",
                f'"{sink.profile}" is mono and two channels are sent; take "auto", or channels = 1',
            )


class LedgerConfig(NamedTuple):
    """How long the ledger of each stream is kept, and in how much room."""

    keep_days: Annotated[int, Whole(1, 36_600)] = 366
    max_mb: Annotated[int, Whole(10, 1_000_000)] = 200


class Config(NamedTuple):
    """The whole file."""

    stream: tuple[Stream, ...] = ()
    ledger: LedgerConfig = LedgerConfig()

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.stream:
            yield "stream", "there is no [[stream]]; nothing would be captured"
        yield from _twice("stream", "name", [one.name for one in self.stream])
        devices = [one.capture.devices[0] for one in self.stream]
        yield from _twice(
            "stream",
            "capture.device",
            [name if name != "synthetic" else None for name in devices],
        )
        yield from self._nobody_twice()

    def _nobody_twice(self) -> Iterator[tuple[str, str]]:
        """In a channel of a project, Agora gives each uid one place."""
        seen: set[tuple[str, str, int]] = set()
        for number, stream in enumerate(self.stream):
            for place, sink in enumerate(stream.sink):
                if not isinstance(sink, AgoraSink) or not sink.uid:
                    continue
                who = sink.app_id.lower(), sink.channel, sink.uid
                if who in seen:
                    yield (
                        f"stream.{number}.sink.{place}.uid",
                        f"{sink.uid} is in channel {sink.channel} already; "
                        "give each sink its own uid",
                    )
                seen.add(who)


def flac_refuses(audio: AudioFormat, channels_are: str = "capture.channels is") -> Iterator[str]:
    """What FLAC (its streamable subset, as libsndfile writes it) holds less of than this."""
    sample, channels, rate_hz = audio.sample, audio.channels, audio.rate_hz
    if sample.alsa_name.startswith("FLOAT"):
        yield f'no floating point and capture.format is {sample.alsa_name}; take "wav"'
    elif sample.bits > FLAC_BITS:
        yield (
            f"at most {FLAC_BITS} bits and capture.format is {sample.alsa_name}; "
            'take "wav" or S24_LE'
        )
    if channels > FLAC_CHANNELS:
        yield f'at most {FLAC_CHANNELS} channels, {channels_are} {channels}; take "wav"'
    if rate_hz > FLAC_RATE_HZ or (rate_hz > FLAC_ANY_RATE_HZ and rate_hz % 10):
        yield (
            f"any rate up to {FLAC_ANY_RATE_HZ} Hz and multiples of 10 up to {FLAC_RATE_HZ}, "
            f'capture.rate_hz is {rate_hz}; take "wav"'
        )


def _twice(table: str, key: str, values: Sequence[str | None]) -> Iterator[tuple[str, str]]:
    places: dict[str, int] = {}
    for number, value in enumerate(values):
        if value is None:
            continue
        first = places.setdefault(value, number + 1)
        if first <= number:
            yield (
                f"{table}.{number}.{key}",
                f'"{value}" is taken by {table} {first} already; each {table} needs its own',
            )


def load(path: str | Path) -> Config:
    """Reads and decodes a file. Raises ConfigError with every fault in it."""
    try:
        raw = _read(Path(path))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {unreadable(Path(path), error)}"]) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError([f"{path}: is larger than {MAX_BYTES} bytes; expected a short TOML file"])
    if raw and not raw.strip(b"\0"):
        raise ConfigError(
            [f"{path}:1: holds nothing but zero bytes, as after a power cut; put a copy back"]
        )
    utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0\0\0\0" in (raw[:8:2], raw[1:8:2])
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        what = f"byte 0x{raw[error.start]:02x} is no UTF-8"
        if utf16:
            line, what = 1, "is UTF-16 and not UTF-8"
        raise ConfigError([f"{path}:{line}: {what}; save the file as UTF-8"]) from None
    if utf16:
        raise ConfigError([f"{path}:1: is UTF-16 and not UTF-8; save the file as UTF-8"])
    return decode(text, str(path), Config)


def _read(path: Path) -> bytes:
    """Up to one byte too many; from a pipe, whose other end may say nothing, within ``PIPE_S``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raw, deadline = b"", time.monotonic() + PIPE_S
        while len(raw) <= MAX_BYTES:
            try:
                more = os.read(descriptor, MAX_BYTES + 1 - len(raw))
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(errno.ETIMEDOUT, "it has no end") from None
                select.select([descriptor], [], [], 0.1)
                continue
            if not more:
                break
            raw += more
        return raw
    finally:
        os.close(descriptor)
