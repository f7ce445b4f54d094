"""The configuration: the TOML schema, in the order of the file, as frozen values.

A file is right as a whole or refused as a whole. Every fault is reported at once, each with file,
line, key, what was found, what is expected and, where one is near, what was probably meant. Unknown
keys are faults, because a misspelt key that is silently ignored is found in the field.
"""

import errno
import math
import os
import select
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, cast

from capstand.audio.block import AudioFormat, SampleFormat, Shape
from capstand.config.controls import CONTROLS, Setting
from capstand.config.decode import Unusable, decode
from capstand.config.naming import SHAPES, fault
from capstand.config.registry import (
    PROCESSORS,
    SINKS,
    SOURCES,
    OfProcessors,
    OfSinks,
    OfSources,
    Resource,
)
from capstand.config.rules import Choice, Flag, Number, OneOrSome, Prefixed, Some, Text, Whole
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
CHANNELS = 2
LARGEST_PERIOD = 2
"""A granted period may be up to this many times what was asked; the ring's slots allow for it."""
RING_S = 2.0
PATH = r"/([^\0-\x1f\x7f]*[^\0-\x20\x7f])?"
"""Absolute, and without a blank at its end, which nobody would see."""

Name = Annotated[str, Text(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", "a name: 1 to 32 of A-Z a-z 0-9 _ -")]
Input = Annotated[str, Choice(("captured", "processed"))]
AbsolutePath = Annotated[str, Text(PATH, "an absolute path, such as /var/lib/capstand/mic")]

ALSA_NAME = Text(r"[^\0-\x20\x7f][^\0-\x1f\x7f]{0,255}", "a device, such as hw:CARD=Mic,DEV=0")
DEVICE_NAME = Prefixed({prefix: Text(*shape) for prefix, shape in SHAPES.items()}, ALSA_NAME)
MOST_DEVICES = 8
MOST_CHANNELS = 32
MOST_RING_BYTES = MOST_QUEUE_BYTES = 256_000_000
"""The ring's memory, and what may wait for a sink; most streams need a hundredth of it."""


class CaptureConfig(NamedTuple):
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
    rt_priority: Annotated[int, Whole(0, 80)] = 70
    silence_warn_s: Annotated[float, Number(0, 86_400)] = 60.0
    dead_warn_s: Annotated[float, Number(0, 86_400)] = 60.0
    dc_warn_dbfs: Annotated[float, Number(-60, 0)] = -26.0
    clip_warn_per_s: Annotated[float, Number(0, 10_000)] = 5.0
    loudness: Annotated[bool, Flag()] = False
    quiet_warn_lufs: Annotated[float, Number(-100, 0)] = 0.0
    loud_warn_lufs: Annotated[float, Number(-100, 0)] = 0.0
    true_peak_warn_dbtp: Annotated[float, Number(-60, 0)] = 0.0
    reserve_priority: Annotated[int, Whole(-(2**31), 2**31 - 1)] = 10
    controls: Annotated[tuple[tuple[str, Setting], ...], CONTROLS] = ()
    source: Annotated[Any, OfSources()] = None

    @property
    def devices(self) -> tuple[str, ...]:
        """The names of the devices to take, the best one first."""
        return (self.device,) if isinstance(self.device, str) else self.device

    @property
    def without_controls(self) -> "CaptureConfig":
        """All of it that cannot change while sound flows."""
        return self._replace(controls=())

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
            f"{MOST_QUEUE_BYTES // 1_000_000} MB; memory is limited to that"
        )

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.pick and self.channels and max(self.pick) > self.channels:
            yield (
                "pick",
                f"{max(self.pick)} is greater than channels ({self.channels}), which the card is "
                f"opened with; set channels to {max(self.pick)} or more, or omit it",
            )
        if self.buffer_ms < 4 * self.period_ms:
            yield (
                "buffer_ms",
                f"{self.buffer_ms:g} is less than 4 periods of {self.period_ms:g} ms; "
                f"take {4 * self.period_ms:g} or more (500 outlives most stalls)",
            )
        if not self.loudness:
            for key in ("quiet_warn_lufs", "loud_warn_lufs", "true_peak_warn_dbtp"):
                if getattr(self, key):
                    yield key, "needs loudness = true beside it"
        quiet, loud = self.quiet_warn_lufs, self.loud_warn_lufs
        if quiet and loud and quiet >= loud:
            yield "quiet_warn_lufs", f"{quiet:g} is not below loud_warn_lufs ({loud:g})"
        try:
            yield from self._source_problems()
        except Unusable as error:
            yield "device", f'"{self.wanted}" {error}'

    def _source_problems(self) -> Iterator[tuple[str, str]]:
        kinds = [SOURCES.of(one) for one in self.devices]
        for name, kind in zip(self.devices, kinds, strict=True):
            if kind.rest and (wrong := fault(name)):
                yield "device", f"{wrong}{SOURCES.meant(name)}"
        kind = SOURCES.of(self.device)
        if self.source is not None and not isinstance(self.source, kind.schema or ()):
            table = SOURCES.name_of(self.source)
            device = table if table in SOURCES.built_in() else f"{table}:…"
            yield table, f'is for device = "{device}" only; delete it or set that device'
        if self.controls and not kind.rest:
            yield "controls", f'"{self.wanted}" is not a sound card and has none; delete the table'
        if isinstance(self.device, tuple):
            alone = next((at for at, one in enumerate(kinds) if not one.rest), None)
            if alone is not None:
                what = "the simulated card" if kinds[alone].simulated else "such a source"
                yield "device", f'"{self.device[alone]}" is in a list; {what} is always there alone'
            elif len(set(self.device)) < len(self.device):
                yield "device", "a name is in the list twice"
        yield from kind.faults_in(self)


class SpoolConfig(NamedTuple):
    """Where sound waits while its sink is away, how much, how long; and how fast it follows."""

    path: AbsolutePath = "/var/lib/capstand/spool"
    max_mb: Annotated[int, Whole(10, 10_000_000)] = 1000
    max_age_s: Annotated[float, Number(60, 1e8)] = 86_400.0
    catch_up_speed: Annotated[float, Number(1.1, 1000)] = 4.0


class SinkConfig(Protocol):
    """What all types of sinks have in their configuration."""

    @property
    def type(self) -> str: ...
    @property
    def name(self) -> str: ...


class QueuedSinkConfig(SinkConfig, Protocol):
    """What those have that are not live."""

    @property
    def queue_ms(self) -> int: ...


class Processing(Protocol):
    """What all types of processors have in their configuration."""

    @property
    def type(self) -> str: ...


MOST_SINKS = 100
"""Of a stream: their descriptors go to its process in one message, which holds 253 of them."""
MOST_SIDECHAINS = 32
"""Likewise."""


class StreamConfig(NamedTuple):
    """One device and everything fed by it."""

    name: Name
    capture: CaptureConfig
    sink: tuple[Annotated[SinkConfig, OfSinks()], ...] = ()
    process: tuple[Annotated[Processing, OfProcessors()], ...] = ()

    @property
    def captured(self) -> Shape:
        """What comes into the chain of processors."""
        return Shape(self.capture.rate_hz, self.capture.audio.channels)

    @property
    def processed(self) -> Shape:
        """What comes out of it."""
        shape = self.captured
        for one in self.process:
            shape = PROCESSORS[one.type].out(one, shape)
        return shape

    @property
    def processed_audio(self) -> AudioFormat:
        """The same with the captured samples' format."""
        shape = self.processed
        return AudioFormat(shape.rate_hz, shape.channels, self.capture.audio.sample)

    def input_of(self, sink: SinkConfig) -> str:
        """Which sound a sink gets: "captured" or "processed"."""
        return getattr(sink, "input", None) or self.usual_input

    @property
    def usual_input(self) -> str:
        """What is heard where nothing else is said."""
        return "processed" if self.process else "captured"

    def heard_by(self, sink: SinkConfig) -> CaptureConfig:
        """The capture as it is for a sink: with the channels of the sound that it gets."""
        if self.input_of(sink) == "captured":
            return self.capture.without_controls
        sound = self.capture.without_controls
        return sound._replace(channels=self.processed.channels, pick=None)

    def on(self, input_: str) -> "StreamConfig":
        """With the sinks alone that get this sound."""
        return self._replace(sink=tuple(one for one in self.sink if self.input_of(one) == input_))

    @property
    def queued(self) -> list[QueuedSinkConfig]:
        """The sinks that are not live."""
        return [cast(QueuedSinkConfig, one) for one in self.sink if not SINKS[one.type].live]

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(self.sink) > MOST_SINKS:
            yield "sink", f"there are {len(self.sink)}; expected at most {MOST_SINKS}"
        yield from _twice("sink", "name", [one.name for one in self.sink])
        yield from _same_resource(self.resources(anywhere=False))
        chain = list(self._chain_problems())
        for number, sink in enumerate(self.sink):
            kind = SINKS[sink.type]
            if kind.live and spool_of(sink) is not None:
                yield (
                    f"sink.{number}.spool",
                    f'a sink of type "{sink.type}" is live: old sound is of no use there; '
                    "delete the table",
                )
            heard = self if chain else self._replace(capture=self.heard_by(sink))
            for key, what in kind.faults_in(sink, heard):
                yield key if key.startswith("capture.") else f"sink.{number}.{key}", what
            if self.input_of(sink) == "processed" and not self.process:
                yield (
                    f"sink.{number}.input",
                    '"processed" needs a chain, and the stream has no [[stream.process]]; add one '
                    'or take "captured"',
                )
        yield from chain

    @property
    def sidechains(self) -> dict[str, str]:
        """The other streams that its processors listen to, by the keys that name them."""
        return {
            f"process.{number}.{key}": name
            for number, one in enumerate(self.process)
            for key, name in PROCESSORS[one.type].sidechains(one).items()
        }

    def _chain_problems(self) -> Iterator[tuple[str, str]]:
        """What does not fit what comes in; behind a type that fails nothing is known."""
        shape, found = self.captured, []
        for number, one in enumerate(self.process):
            kind = PROCESSORS[one.type]
            found = kind.faults_in(one, shape)
            for key, what in found:
                yield f"process.{number}.{key}", what
            try:
                shape = kind.out(one, shape)
            except Exception:
                if not found:
                    raise
                return
        if shape.rate_hz != self.capture.rate_hz and not found:
            yield (
                f"process.{len(self.process) - 1}.type",
                f"the chain ends at {shape.rate_hz} Hz and begins at {self.capture.rate_hz}, which "
                "sinks do not take yet; delete what resamples, or set capture.rate_hz",
            )

    def resources(self, anywhere: bool) -> Iterator[tuple[int, str, Resource]]:
        """The number of each sink, how its keys begin, and what it has for itself alone."""
        for number, sink in enumerate(self.sink):
            for resource in SINKS[sink.type].held(sink):
                if resource.anywhere is anywhere:
                    yield number + 1, f"sink.{number}", resource


class LedgerConfig(NamedTuple):
    """How long the ledger of each stream is kept, and in how much room."""

    keep_days: Annotated[int, Whole(1, 36_600)] = 366
    max_mb: Annotated[int, Whole(10, 1_000_000)] = 200


class Config(NamedTuple):
    """The whole file."""

    stream: tuple[StreamConfig, ...] = ()
    ledger: LedgerConfig = LedgerConfig()

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.stream:
            yield "stream", "there is no [[stream]]; nothing would be captured"
        yield from _twice("stream", "name", [one.name for one in self.stream])
        yield from _twice(
            "stream",
            "capture.device",
            [
                one.capture.devices[0] if SOURCES.of(one.capture.device).alone else None
                for one in self.stream
            ],
        )
        resources = [SOURCES.of(one.capture.device).resource(one.capture) for one in self.stream]
        for key in {one[0] for one in resources if one}:
            values = [one[1] if one and one[0] == key else None for one in resources]
            yield from _twice("stream", f"capture.{key}", values)
        yield from _same_resource(
            (number, f"stream.{at}.{keys}", resource)
            for at, stream in enumerate(self.stream)
            for number, keys, resource in stream.resources(anywhere=True)
        )
        yield from self._sidechain_problems()

    def _sidechain_problems(self) -> Iterator[tuple[str, str]]:
        """Streams that others listen to need no sink of their own."""
        names = [one.name for one in self.stream]
        heard = {name for one in self.stream if one.sink for name in one.sidechains.values()}
        for at, stream in enumerate(self.stream):
            for keys, name in stream.sidechains.items():
                if name not in names or name == stream.name:
                    what = "is this stream itself" if name == stream.name else "is not a stream"
                    yield f"stream.{at}.{keys}", f'"{name}" {what}; expected {_others(names, at)}'
            if (count := len(set(stream.sidechains.values()))) > MOST_SIDECHAINS:
                what = f"its processors listen to {count} streams; expected at most"
                yield f"stream.{at}.process", f"{what} {MOST_SIDECHAINS}"
            if stream.sink:
                continue
            if stream.name not in heard:
                what = "there is no [[stream.sink]]; the sound would not be used"
                yield f"stream.{at}.sink", what
            elif stream.process:
                yield (
                    f"stream.{at}.process",
                    "nobody gets what is processed: other streams listen to what is captured; add "
                    "a [[stream.sink]], or delete the processors",
                )


def spool_of(sink: SinkConfig) -> SpoolConfig | None:
    """Where its sound waits while it is away, if there is such a place."""
    spool = getattr(sink, "spool", None)
    return spool if isinstance(spool, SpoolConfig) else None


def _others(names: Sequence[str], at: int) -> str:
    others = [f'"{name}"' for name in (*names[:at], *names[at + 1 :])]
    return f"one of {', '.join(others)}" if others else "another stream, and there is none"


def _same_resource(resources: Iterable[tuple[int, str, Resource]]) -> Iterator[tuple[str, str]]:
    first: dict[tuple[object, ...], tuple[int, str]] = {}
    for number, keys, resource in resources:
        holder = first.setdefault(resource.where, (number, keys))
        if holder[1] != keys and resource.taken is not None:
            yield f"{keys}.{resource.key}", resource.taken(holder[0])


def _twice(table: str, key: str, values: Sequence[str | None]) -> Iterator[tuple[str, str]]:
    resources: dict[str, int] = {}
    for number, value in enumerate(values):
        if value is None:
            continue
        first = resources.setdefault(value, number + 1)
        if first <= number:
            yield (
                f"{table}.{number}.{key}",
                f'"{value}" is already used by {table} {first}; each {table} needs its own',
            )


def load(path: str | Path) -> Config:
    """Reads and decodes a file. Raises ConfigError with every fault in it."""
    PROCESSORS.rescan()
    SINKS.rescan()
    SOURCES.rescan()
    try:
        raw = _read(Path(path))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {unreadable(Path(path), error)}"]) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError([f"{path}: is larger than {MAX_BYTES} bytes; expected a short TOML file"])
    if raw and not raw.strip(b"\0"):
        raise ConfigError(
            [f"{path}:1: contains only zero bytes, as after a power cut; restore a copy"]
        )
    utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0\0\0\0" in (raw[:8:2], raw[1:8:2])
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        what = f"byte 0x{raw[error.start]:02x} is not UTF-8"
        if utf16:
            line, what = 1, "is UTF-16, not UTF-8"
        raise ConfigError([f"{path}:{line}: {what}; save the file as UTF-8"]) from None
    if utf16:
        raise ConfigError([f"{path}:1: is UTF-16, not UTF-8; save the file as UTF-8"])
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
