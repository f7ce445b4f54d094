"""A sound file as a source: each frame once, in real time, once or again and again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from capstand.accounting.stats import Cause
from capstand.audio.block import NS_PER_S
from capstand.capture.file import FileSource
from capstand.capture.source import UNKNOWN
from capstand.capture.synthetic import VirtualTime
from capstand.capture.types.file import FileConfig
from capstand.config.schema import CaptureConfig
from capstand.errors import DeviceError
from tests.capture.programs import Held, Rig, counted, in_order
from tests.line import Keep, Line, counters

FRAMES = 12_345


def written(folder: Path, frames: int = FRAMES, kind: str = "wav", **keys: int) -> Path:
    """A file whose frames carry their numbers."""
    path = folder / f"sound.{kind}"
    samples = np.frombuffer(counted(0, frames), "<i2").reshape(-1, 2)
    soundfile.write(path, samples, keys.get("rate", 48_000), subtype="PCM_16")
    return path


def of(path: Path, repeat: bool = False, **keys: object) -> CaptureConfig:
    capture = CaptureConfig(device="file", rt_priority=0, source=FileConfig(str(path), repeat))
    return capture._replace(**keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_it_is_played_once(tmp_path: Path, kind: str) -> None:
    """By a real capture thread: every frame, the last ones too; then the end is told."""
    before = Held.now()
    rig = Rig(of(written(tmp_path, kind=kind)))
    told = rig.trouble(f"was played to its end, {FRAMES} frames")
    assert "repeat = true in [stream.capture.file]" in told
    assert in_order(rig.numbers, 0, FRAMES) and not rig.gaps
    assert rig.capturer.trouble is not None and not rig.capturer.trouble.refused
    rig.close()
    assert before.nothing_more()


@given(frames=st.integers(1, 2000), turns=st.integers(1, 4))
def test_it_is_repeated_without_a_seam(
    frames: int, turns: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However short it is."""
    path = written(tmp_path_factory.mktemp("sound"), frames)
    clock, keep = VirtualTime(), Keep()
    card = of(path, repeat=True)
    line = Line(card, [keep], clock, FileSource(card, clock))
    while line.stats().captured_frames < turns * frames:
        line.capture()
        line.push()
        line.deliver()
    numbers = counters(b"".join(block.samples for block in keep.blocks), card)
    assert (numbers == np.arange(len(numbers)) % frames).all() and len(numbers) >= turns * frames
    line.stream.source.close()
    line.stream.dispose()


def test_it_keeps_real_time(tmp_path: Path) -> None:
    """A frame is due when CLOCK_MONOTONIC says so; the drift is none."""
    clock = VirtualTime()
    card = of(written(tmp_path, 48_000), repeat=True)
    line = Line(card, [Keep()], clock, FileSource(card, clock))
    began_ns = clock.now_ns()
    while clock.now_ns() < began_ns + 30 * NS_PER_S:
        line.capture()
        assert line.stats().produced_frames <= (clock.now_ns() - began_ns) * 48_000 // NS_PER_S
    assert line.stats().produced_frames == pytest.approx(30 * 48_000, abs=480)
    assert abs(line.stream.clock.drift_ppm) < 0.5 and not line.stats().lost_frames
    line.stream.source.close()
    line.stream.dispose()


@pytest.mark.parametrize(("late_ms", "lost"), [(400, 0), (800, 790 * 48)])
def test_a_late_reader_loses_nothing_of_the_file(tmp_path: Path, late_ms: int, lost: int) -> None:
    """Up to the buffer it catches up; beyond, the time in between is a gap, and the file goes on
    where it was."""
    clock, keep = VirtualTime(), Keep()
    card = of(written(tmp_path, 96_000))
    line = Line(card, [keep], clock, FileSource(card, clock))
    for turn in range(150):
        if turn == 20:
            clock.wait_until(clock.now_ns() + late_ms * 1_000_000)
        line.capture()
        line.push()
        line.deliver()
    numbers = counters(b"".join(block.samples for block in keep.blocks), card)
    assert in_order(numbers, 0, 150 * 480)
    stats = line.stats()
    assert stats.lost_frames == pytest.approx(lost, abs=10)
    assert [(gap.cause, gap.exact) for gap in line.gaps] == [(Cause.OVERRUN, False)] * bool(lost)
    line.stream.source.close()
    line.stream.dispose()


def test_the_stamp_tells_how_late_the_reader_is(tmp_path: Path) -> None:
    """What would have been played by now, and when exactly that was so."""
    clock = VirtualTime()
    card = of(written(tmp_path))
    source = FileSource(card, clock)
    slot = memoryview(bytearray(card.slot_bytes))
    source.open()
    began_ns = clock.now_ns()
    clock.wait_until(began_ns + 105_010_000)
    reading = source.read(slot, 200)
    assert (reading.frames, reading.avail) == (480, 105 * 48)
    assert reading.stamp_ns == began_ns + 105_000_000
    source.close()


def test_a_stopped_stream_goes_on_where_it_was(tmp_path: Path) -> None:
    """What a restart costs is not known; a close and an open lose nothing of the file."""
    clock = VirtualTime()
    card = of(written(tmp_path))
    source = FileSource(card, clock)
    slot = memoryview(bytearray(card.slot_bytes))
    source.open()
    assert source.read(slot, 200).lost == 0
    source.restart()
    assert source.read(slot, 200).lost == UNKNOWN
    source.close()
    source.close()
    source.open()
    assert source.read(slot, 200).frames == 480
    assert counters(bytes(slot[:4]), card)[0] == 2 * 480
    source.close()


def empty(folder: Path) -> Path:
    return written(folder, 0)


def other_rate(folder: Path) -> Path:
    return written(folder, rate=44_100)


def no_sound(folder: Path) -> Path:
    path = folder / "text.wav"
    path.write_text("no sound")
    return path


def missing(folder: Path) -> Path:
    return folder / "missing.wav"


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (empty, "holds no sound"),
        (other_rate, "has 44100 Hz and 2 channels, the stream takes 48000 Hz and 2; set rate_hz"),
        (no_sound, "cannot be read as a sound file: "),
        (missing, "cannot be read as a sound file: "),
    ],
)
def test_what_cannot_be_played_is_refused(
    tmp_path: Path, made: Callable[[Path], Path], told: str
) -> None:
    """With the reason and, where there is one, what to do."""
    path = made(tmp_path)
    with pytest.raises(DeviceError, match=told) as caught:
        FileSource(of(path), VirtualTime()).open()
    assert caught.value.refused and str(caught.value).startswith(f"file:{path}: ")


def test_a_stop_ends_the_wait(tmp_path: Path) -> None:
    """A long period is not waited for."""
    rig = Rig(of(written(tmp_path, 96_000), period_ms=1000.0, buffer_ms=4000.0))
    rig.until(lambda: rig.capturer.params)
    rig.close()


def test_channels_are_picked_of_a_file(tmp_path: Path) -> None:
    """As of a card."""
    card = of(written(tmp_path), pick=(2, 1))
    source, slot = FileSource(card, VirtualTime()), memoryview(bytearray(card.slot_bytes))
    source.open()
    assert source.read(slot, 200).frames == 480
    halves = np.frombuffer(slot[: 480 * 4], "<u2").reshape(-1, 2)
    assert (halves[:, 1] == np.arange(480)).all() and not halves[:, 0].any()
    source.close()
