"""Recordings: bit exact, whole at any moment, and honest about a disk that refuses."""

import gc
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from capstand.audio.block import NS_PER_S, AudioFormat, Block, SampleFormat
from capstand.dsp.convert import to_int32
from capstand.errors import SinkError
from capstand.sinks import disk
from capstand.sinks.recording.recording import RESUME_MB, Recording
from capstand.sinks.recording.wav import WavFile, repair_wav
from capstand.sinks.sink_queue import SinkQueue
from capstand.sinks.types.file import FileSinkConfig

S16 = AudioFormat(8000, 2, SampleFormat.S16_LE)
PERIOD = 800
WALL_NS = 1_795_317_300_250_000_000  # 2026-11-22T03:15:00.250Z
STAMP = "20261122T031500.250Z"
Int32 = npt.NDArray[np.int32]


class Clock:
    """Monotonic time and wall time that pass when the test says so."""

    def __init__(self) -> None:
        self.ns = NS_PER_S

    def now_ns(self) -> int:
        return self.ns

    def wall_ns(self) -> int:
        return WALL_NS - NS_PER_S + self.ns


class Desk:
    """A recording and the blocks that go into it."""

    def __init__(self, folder: Path, audio: AudioFormat = S16, **setup: object) -> None:
        self.folder = folder
        self.audio = audio
        self.clock = Clock()
        plain = FileSinkConfig(type="file", path=str(folder), min_free_mb=0, segment_s=3600.0)
        self.setup = plain._replace(**setup)  # type: ignore[arg-type]
        self.sink = self.recording()
        self.sink.open()

    def recording(self, stream: str = "mic") -> Recording:
        return Recording(
            stream,
            self.setup,
            self.audio,
            note=self.folder.parent / f"{self.folder.name}.note",
            now_ns=self.clock.now_ns,
            wall_ns=self.clock.wall_ns,
        )

    def block(self, first: int, frames: int = PERIOD) -> Block:
        """Noise that depends on its place only, so that blocks can be made again to compare."""
        size = frames * self.audio.frame_bytes
        samples = np.random.default_rng(first).bytes(size)
        at_ns = NS_PER_S + first * NS_PER_S // self.audio.rate_hz
        self.clock.ns = max(self.clock.ns, at_ns)
        return Block(first, frames, at_ns, samples, self.audio)

    def write(self, *firsts: int, frames: int = PERIOD) -> bytes:
        """Writes blocks that begin at these frames; returns their samples."""
        blocks = [self.block(first, frames) for first in firsts]
        for block in blocks:
            self.sink.write(block)
        return b"".join(block.samples for block in blocks)

    def names(self) -> list[str]:
        return sorted(one.name for one in self.folder.iterdir())


def heard(path: Path) -> Int32:
    """All samples of a file, left-justified to 32 bits, flat."""
    return np.asarray(soundfile.read(path, dtype="int32", always_2d=True)[0]).reshape(-1)


def expected(samples: bytes, sample: SampleFormat) -> Int32:
    return np.asarray(to_int32(samples, sample))


def same(path: Path, samples: bytes, sample: SampleFormat = SampleFormat.S16_LE) -> bool:
    return np.array_equal(heard(path), expected(samples, sample))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def no_leak() -> Iterator[None]:
    gc.collect()  # what earlier tests left behind gives its descriptors back now
    before = descriptors()
    yield
    assert descriptors() <= before


pytestmark = pytest.mark.usefixtures("no_leak")


# What is in a file


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("sample", list(SampleFormat), ids=lambda one: one.alsa_name)
@pytest.mark.parametrize("segment_s", [60.0, 86_400.0], ids=["RIFF", "RF64"])
def test_wav_is_bit_exact(
    tmp_path: Path, sample: SampleFormat, channels: int, segment_s: float
) -> None:
    """A WAV holds each sample as the device gave it; what is beside the 24 bits is left out."""
    audio = AudioFormat(96_000, channels, sample)
    desk = Desk(tmp_path, audio, segment_s=segment_s)
    samples = desk.write(0, PERIOD)
    desk.sink.flush()
    samples += desk.write(1600, frames=7)
    desk.sink.close()
    (path,) = tmp_path.iterdir()
    facts = soundfile.info(path)
    assert facts.format in ("WAV", "WAVEX")  # what RF64 is while it is short
    others = {"U8": "PCM_U8", "S20_3LE": "PCM_24", "FLOAT_LE": "FLOAT"}
    assert facts.subtype == others.get(sample.alsa_name, f"PCM_{sample.bits}")
    assert (facts.samplerate, facts.channels, facts.frames) == (96_000, channels, 1607)
    if sample is SampleFormat.FLOAT_LE:
        assert soundfile.read(path, dtype="float32")[0].tobytes() == samples
    else:
        assert same(path, samples, sample)


@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize(
    "sample",
    [one for one in SampleFormat if one.alsa_name not in ("S32_LE", "FLOAT_LE")],
    ids=lambda one: one.alsa_name,
)
def test_flac_is_bit_exact(tmp_path: Path, sample: SampleFormat, channels: int) -> None:
    """A FLAC of 8, 16 or 24 bits holds each sample as the device gave it."""
    desk = Desk(tmp_path, AudioFormat(48_000, channels, sample), container="flac")
    samples = desk.write(*range(0, 8000, PERIOD))
    desk.sink.flush()
    samples += desk.write(8000, frames=3)
    desk.sink.close()
    (path,) = tmp_path.iterdir()
    facts = soundfile.info(path)
    others = {"U8": "PCM_S8", "S20_3LE": "PCM_24"}
    subtype = others.get(sample.alsa_name, f"PCM_{sample.bits}")
    assert (facts.format, facts.subtype) == ("FLAC", subtype)
    assert (facts.samplerate, facts.channels, facts.frames) == (48_000, channels, 8003)
    assert same(path, samples, sample)


@pytest.mark.parametrize("container", ["wav", "flac"])
def test_a_gap_is_filled_with_silence(tmp_path: Path, container: str) -> None:
    """With gaps = "silence" the file is as long as the time it covers."""
    desk = Desk(tmp_path, container=container)
    first = desk.write(0)
    later = desk.write(PERIOD + 20_001)
    desk.sink.close()
    (path,) = tmp_path.iterdir()
    assert same(path, first + bytes(20_001 * S16.frame_bytes) + later)


@pytest.mark.parametrize("sample", list(SampleFormat), ids=lambda one: one.alsa_name)
def test_silence_is_that_of_the_format(tmp_path: Path, sample: SampleFormat) -> None:
    """A gap is 0 in the file, also where the card's samples have no sign."""
    desk = Desk(tmp_path, AudioFormat(48_000, 2, sample))
    desk.write(0, PERIOD + 20_001)
    desk.sink.close()
    (path,) = tmp_path.iterdir()
    gap = soundfile.read(path)[0][PERIOD : PERIOD + 20_001]
    assert len(gap) == 20_001 and not gap.any()


@pytest.mark.parametrize("segment_s", [60.0, 86_400.0], ids=["RIFF", "RF64"])
@pytest.mark.parametrize("sample", list(SampleFormat), ids=lambda one: one.alsa_name)
def test_what_a_crash_leaves_is_read_in_every_format(
    tmp_path: Path, sample: SampleFormat, segment_s: float
) -> None:
    """Sound that was made safe is there after kill -9; a file without sound is removed."""
    for written in (1, 0):
        desk = Desk(tmp_path, AudioFormat(48_000, 2, sample), segment_s=segment_s)
        samples = desk.write(0) if written else b""
        if written:
            desk.sink.flush()
        else:
            desk.sink.prepare(desk.block(0))
        segment = desk.sink._segment
        assert segment is not None
        os.close(segment._descriptor)  # nothing more is done to it
        os.close(segment._folder)
        desk.sink._segment = None
        Desk(tmp_path, AudioFormat(48_000, 2, sample)).sink.open()
        if written:
            (path,) = tmp_path.iterdir()
            if sample is SampleFormat.FLOAT_LE:
                assert soundfile.read(path, dtype="float32")[0].tobytes() == samples
            else:
                assert same(path, samples, sample)
            path.unlink()
        else:
            assert list(tmp_path.iterdir()) == []


def test_a_gap_can_be_left_out(tmp_path: Path) -> None:
    """With gaps = "skip" the file holds what was captured and nothing else."""
    desk = Desk(tmp_path, gaps="skip")
    samples = desk.write(0, 5000)
    desk.sink.close()
    (path,) = tmp_path.iterdir()
    assert same(path, samples)


@pytest.mark.parametrize("gaps", ["silence", "skip"])
def test_a_long_gap_begins_a_segment(tmp_path: Path, gaps: str) -> None:
    """After a gap of more than a minute a new segment begins, whose name says its own time."""
    desk = Desk(tmp_path, gaps=gaps)
    first = desk.write(0)
    later = desk.write(PERIOD + 61 * 8000)
    desk.sink.close()
    names = desk.names()
    assert names == [f"mic-{STAMP}.wav", "mic-20261122T031601.350Z.wav"]
    assert same(tmp_path / names[0], first)
    assert same(tmp_path / names[1], later)
    assert desk.sink.segments == 2


def test_segments_follow_each_other_without_a_seam(tmp_path: Path) -> None:
    """A segment of segment_s is closed and named, and the next block begins the next."""
    desk = Desk(tmp_path, segment_s=1.0)
    samples = desk.write(*range(0, 20_000, PERIOD))
    desk.sink.close()
    names = desk.names()
    assert names == [
        f"mic-{STAMP}.wav",
        "mic-20261122T031501.250Z.wav",
        "mic-20261122T031502.250Z.wav",
    ]
    parts = [heard(tmp_path / name) for name in names]
    assert [len(part) // 2 for part in parts] == [8000, 8000, 4000]
    assert np.array_equal(np.concatenate(parts), expected(samples, SampleFormat.S16_LE))


def test_sound_that_stays_away_closes_the_segment(tmp_path: Path) -> None:
    """A minute after the last block the segment gets its name, though no block follows."""
    desk = Desk(tmp_path)
    desk.write(0)
    desk.clock.ns += 60 * NS_PER_S
    desk.sink.flush()
    assert desk.names() == [f"mic-{STAMP}.wav.part"]
    desk.clock.ns += NS_PER_S
    desk.sink.flush()
    assert desk.names() == [f"mic-{STAMP}.wav"]


def test_the_name_is_the_time_of_the_first_frame(tmp_path: Path) -> None:
    """The name says when the first frame was sampled, not when it was written."""
    desk = Desk(tmp_path)
    block = desk.block(0)
    desk.clock.ns += 3 * NS_PER_S
    desk.sink.write(block)
    desk.sink.close()
    assert desk.names() == [f"mic-{STAMP}.wav"]


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    """No file is ever written over: when the wall clock was set back, names are numbered."""
    desk = Desk(tmp_path)
    for _ in range(3):
        desk.write(0)
        desk.sink.close()
    assert desk.names() == [
        f"mic-{STAMP}-2.wav",
        f"mic-{STAMP}-3.wav",
        f"mic-{STAMP}.wav",
    ]


def test_the_status_names_the_file(tmp_path: Path) -> None:
    """``detail`` says which file is written and how long it is."""
    desk = Desk(tmp_path)
    assert desk.sink.detail == "no segment yet"
    desk.write(*range(0, 16_000, PERIOD))
    desk.sink.flush()
    assert desk.sink.detail == f"mic-{STAMP}.wav, 2 s"
    desk.sink.close()


# A process that is gone without a word

DYING = """
import os, signal, sys
from pathlib import Path
from tests.sinks.test_recording import Desk, AudioFormat, SampleFormat
folder, container, sample, segment_s = sys.argv[1:]
desk = Desk(
    Path(folder),
    AudioFormat(96_000, 3, SampleFormat[sample]),
    container=container,
    segment_s=float(segment_s),
)
desk.write(*range(0, 20_000, 800))
desk.sink.flush()
desk.write(*range(20_000, 40_000, 800))
os.kill(os.getpid(), signal.SIGKILL)
"""


def die(folder: Path, container: str, sample: str, segment_s: float) -> tuple[Desk, bytes]:
    """A process writes 25 blocks, flushes, writes 25 more and is killed; what it had written."""
    dead = subprocess.run(
        [sys.executable, "-c", DYING, folder, container, sample, str(segment_s)],
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert dead.returncode == -signal.SIGKILL
    desk = Desk(folder / "other", AudioFormat(96_000, 3, SampleFormat[sample]), container=container)
    desk.folder = folder
    desk.setup = desk.setup._replace(path=str(folder))
    desk.sink = desk.recording()
    (folder / "other").rmdir()
    return desk, b"".join(desk.block(one).samples for one in range(0, 40_000, 800))


KILLED = [
    ("wav", "S16_LE", 3600.0),
    ("wav", "S24_3LE", 3600.0),
    ("wav", "S24_LE", 86_400.0),
    ("flac", "S16_LE", 3600.0),
    ("flac", "S24_LE", 3600.0),
]


@pytest.mark.parametrize(("container", "sample", "segment_s"), KILLED)
def test_a_killed_recording_can_be_read_and_is_recovered(
    tmp_path: Path, container: str, sample: str, segment_s: float
) -> None:
    """After ``kill -9`` the segment is readable up to the last flush, and the next start names it.

    A WAV then holds all that was written, a FLAC at least what was flushed in whole blocks.
    """
    desk, written = die(tmp_path, container, sample, segment_s)
    assert desk.names() == [f"mic-{STAMP}.{container}.part"]
    whole = expected(written, SampleFormat[sample])
    with (tmp_path / desk.names()[0]).open("rb") as part:
        found = heard_from(part.fileno())
    assert len(found) // 3 in range(20_000 - 4608, 20_001)
    assert container == "flac" or len(found) // 3 == 20_000
    assert np.array_equal(found, whole[: len(found)])
    desk.sink.open()
    assert desk.names() == [f"mic-{STAMP}.{container}"]
    found = heard(tmp_path / desk.names()[0])
    assert container == "flac" or len(found) == len(whole)
    assert len(found) // 3 > 20_000 - 4608
    assert np.array_equal(found, whole[: len(found)])


def heard_from(descriptor: int) -> Int32:
    with soundfile.SoundFile(descriptor, closefd=False) as file:
        return np.asarray(file.read(dtype="int32", always_2d=True)).reshape(-1)


def test_flushed_sound_is_in_the_file(tmp_path: Path) -> None:
    """A copy of the file made right after a flush holds every frame written so far."""
    desk = Desk(tmp_path)
    samples = b""
    for first in range(0, 8000, PERIOD):
        samples += desk.write(first)
        desk.sink.flush()
        with (tmp_path / f"mic-{STAMP}.wav.part").open("rb") as part:
            found = heard_from(part.fileno())
        assert np.array_equal(found, expected(samples, SampleFormat.S16_LE))
    desk.sink.close()


@pytest.mark.parametrize(
    "left",
    [b"", b"RIFF", b"RIFF" + bytes(40), b"fLaC" + bytes(82), b"RIFF" + bytes(108)],
    ids=len,
)
def test_leftovers_without_sound_are_removed(tmp_path: Path, left: bytes) -> None:
    """A segment that was begun and holds nothing but a header leaves no file."""
    (tmp_path / f"mic-{STAMP}.wav.part").write_bytes(left)
    Desk(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "raw", [bytes(5000), b"RIFF" * 1000, b"RF64" + b"data" * 99, b"\xff" * 200], ids=len
)
def test_a_damaged_leftover_holds_nothing_up(tmp_path: Path, raw: bytes) -> None:
    """A leftover that is no sound file any more is kept under its name, and recording goes on."""
    (tmp_path / f"mic-{STAMP}-2.wav.part").write_bytes(raw)
    desk = Desk(tmp_path)
    assert (tmp_path / f"mic-{STAMP}-2.wav").read_bytes()[:4] == raw[:4]
    samples = desk.write(0)
    desk.sink.close()
    assert same(tmp_path / f"mic-{STAMP}.wav", samples)


def test_a_leftover_with_a_few_frames_is_sound(tmp_path: Path) -> None:
    """A file is removed only where nothing follows its own header, however short that is."""
    desk = Desk(tmp_path, AudioFormat(8000, 1, SampleFormat.U8))
    desk.write(0, frames=8)
    desk.sink.flush()
    (part,) = tmp_path.iterdir()
    left = part.read_bytes()
    desk.sink.close()
    next(tmp_path.iterdir()).unlink()
    part.write_bytes(left)
    Desk(tmp_path, AudioFormat(8000, 1, SampleFormat.U8))
    (path,) = tmp_path.iterdir()
    assert path.name == f"mic-{STAMP}.wav"
    assert soundfile.info(path).frames == 8


def test_only_its_own_segments_are_recovered(tmp_path: Path) -> None:
    """Of a directory that is shared, a stream touches what carries its name as a whole."""
    others = [f"mic-2-{STAMP}.wav.part", f"mi-{STAMP}.wav.part", "mic-notes.part", "mic-1.wav.part"]
    for name in others:
        (tmp_path / name).write_bytes(bytes(200))
    Desk(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(others)


# Segments beyond 4 GiB


@pytest.mark.parametrize(
    ("segment_s", "kind"), [(3600.0, 16), (5500.0, 16), (5600.0, 0xFFFE), (86_400.0, 0xFFFE)]
)
def test_a_segment_that_can_pass_4_gib_has_room_for_it(
    tmp_path: Path, segment_s: float, kind: int
) -> None:
    """Where segment_s at the stream's rate can pass 4 GiB, the header keeps room for RF64."""
    desk = Desk(tmp_path, AudioFormat(192_000, 1, SampleFormat.S32_LE), segment_s=segment_s)
    desk.write(0)
    desk.sink.flush()
    (part,) = tmp_path.iterdir()
    assert part.read_bytes()[12:16] == (b"fmt " if kind == 16 else b"JUNK")
    desk.sink.close()


def test_a_gap_may_carry_a_segment_past_its_limit(tmp_path: Path) -> None:
    """The room is kept also where only the silence of a gap can carry a segment past 4 GiB."""
    desk = Desk(tmp_path, AudioFormat(192_000, 1, SampleFormat.S32_LE), segment_s=5580.0)
    desk.write(0)
    (part,) = tmp_path.iterdir()
    assert part.read_bytes()[12:16] == b"JUNK"
    desk.sink.close()


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "left by a crash"])
def test_a_segment_that_passes_4_gib_becomes_rf64(tmp_path: Path, closed: bool) -> None:
    """What is after 4 GiB is found at its place, by a reader that knows RF64."""
    audio = AudioFormat(192_000, 2, SampleFormat.S32_LE)
    desk = Desk(tmp_path, audio, segment_s=86_400.0)
    desk.write(0)
    segment = desk.sink._segment
    assert segment is not None
    frames = 2**32 // 8
    assert isinstance(segment._file, WavFile)
    segment._file.frames += frames  # as if so much had been written: a hole, which costs no disk
    segment._file._end = os.lseek(segment._descriptor, frames * 8, os.SEEK_CUR)
    samples = desk.write(PERIOD)
    desk.sink.flush()
    (part,) = tmp_path.iterdir()
    assert soundfile.info(part).frames == frames + 2 * PERIOD
    desk.sink.close()
    (path,) = tmp_path.iterdir()
    if not closed:
        with path.open("r+b", buffering=0) as file:  # as before the flush that passed 4 GiB
            file.write(b"RIFF" + bytes(4) + b"WAVEJUNK")
            repair_wav(file.fileno())
    facts = soundfile.info(path)
    assert (facts.format, facts.frames) == ("RF64", frames + 2 * PERIOD)
    with soundfile.SoundFile(path) as file:
        file.seek(frames + PERIOD)
        assert file.read(dtype="int32").tobytes() == samples
    path.unlink()


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_a_recovered_rf64_tells_its_true_length(tmp_path: Path, extra: int) -> None:
    """A leftover of more than 4 GiB gets a header that counts all whole frames in it."""
    part = tmp_path / f"mic-{STAMP}.wav.part"
    frames = 5_000_000_000 // 4
    with soundfile.SoundFile(part, "w", 8000, 2, "PCM_16", format="RF64") as file:
        file.write(np.ones((2, 2), np.int16))
    header = part.stat().st_size - 8
    os.truncate(part, header + frames * 4 + extra)
    Desk(tmp_path)
    path = tmp_path / f"mic-{STAMP}.wav"
    facts = soundfile.info(path)
    assert (facts.format, facts.frames) == ("RF64", frames)
    with soundfile.SoundFile(path) as file:
        file.seek(frames - 1)
        assert file.read(dtype="int16").tolist() == [[0, 0]]
    path.unlink()


def test_repairing_a_whole_file_changes_nothing(tmp_path: Path) -> None:
    """The header of a file that was closed in order is already what a repair would write."""
    desk = Desk(tmp_path)
    desk.write(0, PERIOD)
    desk.sink.close()
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    with path.open("r+b") as file:
        repair_wav(file.fileno())
    assert path.read_bytes() == before


# A disk that refuses


def test_the_reserve_is_kept_free(tmp_path: Path) -> None:
    """With less free than min_free_mb recording waits and says how much, how little, what to do."""
    with pytest.raises(SinkError) as refused:
        Desk(tmp_path, min_free_mb=10_000_000)
    disk = os.statvfs(tmp_path)
    free_mb = disk.f_bavail * disk.f_frsize // 1_000_000
    words = str(refused.value)
    assert words.startswith(f"{tmp_path}: ")
    assert abs(int(words.removeprefix(f"{tmp_path}: ").split()[0]) - free_mb) < 1000
    assert words.endswith(
        f" MB free; recording is paused until {10_000_000 + RESUME_MB} MB are free (min_free_mb = "
        "10000000); delete something"
    )


def test_a_disk_that_runs_low_stops_the_recording_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reserve is looked at with each flush; what was written is closed whole."""
    desk = Desk(tmp_path, min_free_mb=100)
    samples = desk.write(0)
    free_mb = 99
    true = os.statvfs(tmp_path)

    def statvfs(_: object) -> os.statvfs_result:
        values = list(true)
        values[1], values[4] = 1_000_000, free_mb
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", statvfs)
    with pytest.raises(SinkError, match="99 MB free; recording is paused until 100 MB are"):
        desk.sink.flush()
    desk.sink.close()
    assert same(tmp_path / f"mic-{STAMP}.wav", samples)
    free_mb = 100 + RESUME_MB - 1
    with pytest.raises(SinkError, match="115 MB free"):
        desk.sink.open()
    free_mb = 100 + RESUME_MB
    desk.sink.open()
    desk.write(PERIOD)
    desk.sink.flush()
    desk.sink.close()
    assert len(desk.names()) == 2


def test_a_directory_that_is_a_file_is_told(tmp_path: Path) -> None:
    """Where no directory can be made, the error says where, why and what to check."""
    (tmp_path / "rec").write_text("")
    with pytest.raises(SinkError) as refused:
        Desk(tmp_path / "rec")
    assert str(refused.value) == (
        f"{tmp_path}/rec: File exists; recording is paused; "
        "check that the directory exists, is writable and has space"
    )
    with pytest.raises(SinkError, match="Not a directory"):
        Desk(tmp_path / "rec" / "below")


def test_a_removed_directory_is_told_and_made_again(tmp_path: Path) -> None:
    """A directory that is removed while recording is told and made again; recording goes on."""
    folder = tmp_path / "rec"
    desk = Desk(folder)
    desk.write(0)
    empty(folder)
    folder.rmdir()
    with pytest.raises(
        SinkError, match=f"^{folder}: No such file or directory; recording is paused"
    ):
        desk.sink.flush()
    with pytest.raises(SinkError, match="No such file or directory"):
        desk.sink.close()
    desk.sink.open()
    samples = desk.write(PERIOD)
    desk.sink.close()
    (path,) = folder.iterdir()
    assert same(path, samples)


def test_a_directory_that_cannot_be_written_is_told_until_it_can(tmp_path: Path) -> None:
    """A directory that takes no new file is told at the block; later recording goes on."""
    folder = tmp_path / "rec"
    desk = Desk(folder)
    folder.rmdir()
    folder.write_text("")
    with pytest.raises(SinkError, match="Not a directory; recording is paused"):
        desk.write(0)
    desk.sink.close()
    folder.unlink()
    desk.sink.open()
    samples = desk.write(PERIOD)
    desk.sink.close()
    (path,) = folder.iterdir()
    assert same(path, samples)


def test_a_directory_of_another_is_told_until_it_may_be_written(tmp_path: Path) -> None:
    """A directory without the right to write is told; with it again, recording goes on."""
    folder = tmp_path / "rec"
    desk = Desk(folder)
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)  # root may write anywhere
    try:
        with pytest.raises(SinkError, match="Permission denied; recording is paused"):
            desk.write(0)
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
    desk.sink.close()
    desk.sink.open()
    samples = desk.write(PERIOD)
    desk.sink.close()
    (path,) = folder.iterdir()
    assert same(path, samples)


def empty(folder: Path) -> None:
    for one in folder.iterdir():
        one.unlink()


def fill(folder: Path, keep: int) -> Callable[[], None]:
    """Takes all but ``keep`` bytes of a disk; returns what gives them back."""
    disk = os.statvfs(folder)
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(disk.f_bavail * disk.f_frsize - keep))
    return ballast.unlink


@pytest.mark.parametrize("container", ["wav", "flac"])
def test_a_full_disk_is_told_and_the_books_stay_right(small_disk: Path, container: str) -> None:
    """A disk that fills up costs what it refused; what it took can be read, and it goes on."""
    desk = Desk(small_disk, container=container)
    free = fill(small_disk, 40_960)
    sink_queue = SinkQueue("file", desk.sink, 800_000)
    assert sink_queue.try_open() is False  # RESUME_MB are wanted before the first frame
    free()
    assert sink_queue.try_open()
    free = fill(small_disk, 40_960)
    blocks = [desk.block(one) for one in range(0, 40_000, PERIOD)]
    for block in blocks:
        sink_queue.put(block)
    assert sink_queue.feed() is False
    assert sink_queue.trouble is not None
    assert sink_queue.trouble.startswith(f"{small_disk}: ")
    assert sink_queue.trouble.endswith("check that the directory exists, is writable and has space")
    assert (sink_queue.failed, sink_queue.state) == (PERIOD, "waiting")
    assert 0 < sink_queue.delivered < 40_000
    assert sink_queue.entered == sink_queue.delivered + sink_queue.dropped + sink_queue.queued
    free()
    before = sink_queue.delivered
    assert sink_queue.try_open()
    sink_queue.finish()
    assert sink_queue.feed()
    desk.sink.close()
    assert sink_queue.trouble is None
    assert (sink_queue.delivered, sink_queue.dropped, sink_queue.queued) == (
        40_000 - PERIOD,
        PERIOD,
        0,
    )
    assert list(small_disk.glob("*.part")) == []
    found = [heard(one) for one in sorted(small_disk.glob(f"*.{container}"))]
    assert len(found) == 2
    whole = expected(b"".join(block.samples for block in blocks), S16.sample)
    assert len(found[0]) // 2 > before - 4096 - PERIOD
    assert np.array_equal(found[0], whole[: len(found[0])])
    assert np.array_equal(found[1], whole[2 * (before + PERIOD) :])


@pytest.mark.parametrize("container", ["wav", "flac"])
@pytest.mark.parametrize("keep", [0, 4096])
def test_a_disk_full_from_the_first_block_leaves_nothing(
    small_disk: Path, container: str, keep: int
) -> None:
    """A segment that could take no frame at all is removed."""
    desk = Desk(small_disk, container=container)
    fill(small_disk, keep)
    for _ in range(3):
        with pytest.raises(SinkError):
            desk.write(0, frames=8000)
        desk.sink.close()
    assert desk.names() == ["ballast"]


@pytest.mark.parametrize("container", ["wav", "flac"])
def test_what_is_found_after_a_kill_is_known(
    tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each moment, and before the disk is waited for, the account says how much of the sound the
    next process would find in the files; what is safe is part of it."""
    desk = Desk(tmp_path / "rec", container=container, segment_s=1.0)
    copies = itertools.count()

    def found() -> int:
        copy = tmp_path / f"copy{next(copies)}"
        shutil.copytree(desk.folder, copy)
        setup = desk.setup._replace(path=str(copy))
        after = Recording("mic", setup, S16, note=tmp_path / "note")
        after.open()
        after.close()
        return sum(soundfile.info(one).frames for one in copy.iterdir())

    checks: list[tuple[int, int | None, int]] = []

    def check() -> None:
        account = desk.sink.account()
        checks.append((account.delivered, account.kept, found()))

    def sync(descriptor: int) -> None:
        check()
        sync_file(descriptor)

    sync_file = disk.sync_file
    desk.sink.watch_account(check)
    for number in range(24):
        desk.write(number * PERIOD)
        check()
        if number % 4 == 2:
            with monkeypatch.context() as patch:
                patch.setattr(disk, "sync_file", sync)
                desk.sink.flush()
            check()
        if number % 11 == 8:
            desk.sink.close()
            desk.sink.open()
            check()
    desk.sink.close()
    check()
    assert [kept for _, kept, _ in checks] == [found for _, _, found in checks]
    assert all(safe <= found for safe, _, found in checks)
    assert any(safe < found for safe, _, found in checks)
    assert checks[-1] == (24 * PERIOD, 24 * PERIOD, 24 * PERIOD)
