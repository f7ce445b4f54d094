"""The type "file": recordings in a directory of this machine (``sinks/recording/``)."""

from collections.abc import Iterator
from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from capstand.audio.block import AudioFormat
from capstand.config.registry import Resource, SinkContext, SinkType
from capstand.config.rules import Choice, FlagOr, Number, Text, Whole
from capstand.config.schema import AbsolutePath, Input, Name, SpoolConfig, StreamConfig

if TYPE_CHECKING:
    from capstand.sinks.recording.recording import Recording

FLAC_BITS, FLAC_CHANNELS = 24, 8
FLAC_ANY_RATE_HZ, FLAC_RATE_HZ = 65_535, 655_350

MOUNT = Text(
    r"auto|/[^\0-\x1f\x7f]+", '"auto", true, false or the path of a mount point, such as "/mnt/usb"'
)
MODE_WORDS = 'a mode such as "0640", as chmod takes it: 6 for the daemon itself, then 0, 2, 4 or 6'


class FileSinkConfig(NamedTuple):
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
    input: Input | None = None
    spool: SpoolConfig | None = None

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
                "or use another (getent group)",
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


def _make(sink: FileSinkConfig, at: SinkContext) -> "Recording":
    from capstand.sinks.recording.recording import Recording  # not to check a configuration

    note = at.state / "recording" / at.stream / sink.name
    return Recording(at.stream, sink, at.capture.audio, priority=at.priority, note=note)


def _resources(sink: FileSinkConfig) -> Iterator[Resource]:
    """Its directory; a spool's folder has the sink's name."""
    path = normpath(sink.path)
    yield Resource(
        ("path", path),
        "path",
        lambda first: f'"{path}" is already used by sink {first}; each sink needs its own',
    )
    if sink.spool is not None:
        yield Resource(("spool", normpath(f"{sink.spool.path}/{sink.name}")))


def _problems(sink: FileSinkConfig, stream: StreamConfig) -> Iterator[tuple[str, str]]:
    if sink.container == "flac":
        key = "capture.pick takes" if stream.capture.pick else "capture.channels is"
        for what in flac_refuses(stream.capture.audio, key):
            yield "container", f"flac holds {what}"


TYPE = SinkType(
    FileSinkConfig,
    page="recordings.md",
    live=False,
    make=_make,
    loads=("capstand.sinks.recording.recording",),
    resources=_resources,
    problems=_problems,
)
