"""The simulated card on virtual time: what it says is true, so all else may be measured by it."""

import errno
import gc
import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.accounting.stats import Cause
from capstand.audio.block import Block, SampleFormat
from capstand.capture.source import Reading
from capstand.capture.synthetic import SyntheticSource, VirtualTime
from capstand.capture.time import MonotonicTime
from capstand.capture.types.synthetic import FaultConfig, SyntheticConfig
from capstand.config.schema import CaptureConfig
from capstand.dsp.convert import to_int32
from capstand.dsp.level import FLOOR_DBFS, WINDOW_S, Meter
from capstand.errors import DeviceError
from tests.line import Keep, Line, capture, counters
from tests.patience import PATIENCE_S

FORMATS = tuple(one.alsa_name for one in SampleFormat)
WIDE = tuple(one for one in FORMATS if one != "U8")
S = 1_000_000_000


class Played:
    """A source, its virtual time and a slot; ``read`` returns a copy of what came."""

    def __init__(self, card: CaptureConfig) -> None:
        self.time = VirtualTime()
        self.source = SyntheticSource(card, self.time)
        self.card = card
        self.slot = memoryview(bytearray(card.period_frames * card.audio.frame_bytes))
        self.source.open()

    def read(self, timeout_ms: int = 10_000) -> tuple[Reading, bytes]:
        reading = self.source.read(self.slot, timeout_ms)
        return reading, bytes(self.slot[: reading.frames * self.card.audio.frame_bytes])


@pytest.mark.parametrize("channels", [1, 2, 3, 32])
@pytest.mark.parametrize("format", FORMATS)
def test_counter(format: str, channels: int) -> None:
    """In every format and width frame n carries n, in each channel that has room for it."""
    played = Played(capture(format=format, channels=channels, rate_hz=48_000))
    samples = b"".join(played.read()[1] for _ in range(150))
    bits = min(24, SampleFormat[format].bits)
    bits = 24 if format == "S16_LE" and channels > 1 else bits
    expected = np.arange(150 * 480) & ((1 << bits) - 1)
    assert np.array_equal(counters(samples, played.card) & ((1 << bits) - 1), expected)
    if format != "S16_LE":
        wide = to_int32(samples, SampleFormat[format]).reshape(-1, channels)
        assert (wide == wide[:, :1]).all()


@pytest.mark.parametrize("ppm", [-500.0, 0.0, 20_000.0])
def test_rate(ppm: float) -> None:
    """A card that runs ``ppm`` fast has produced that many frames more after an hour."""
    setup = SyntheticConfig(signal="silence", ppm=ppm)
    played = Played(capture(source=setup, period_ms=1000.0, buffer_ms=4000.0))
    begin = played.time.now_ns()
    while played.time.now_ns() < begin + 3600 * S:
        played.read()
    seconds = (played.time.now_ns() - begin) / S
    assert played.source.read_frame == pytest.approx(
        48_000 * (1 + ppm * 1e-6) * seconds, rel=0, abs=2
    )


def test_a_frame_comes_when_it_is_true() -> None:
    """A period is handed over within 10 ns of the true time of its end, and never before it."""
    played = Played(capture(source=SyntheticConfig(ppm=123.0)))
    for _ in range(1000):
        played.read()
        late = played.time.now_ns() - played.source.true_time_ns(played.source.read_frame)
        assert 0 <= late <= 10


def test_stamps_are_late_by_jitter() -> None:
    """Stamps are late by the jitter in the mean, 1 % by up to 8 ms more, and never early."""
    played = Played(capture(source=SyntheticConfig(signal="silence", jitter_us=100.0)))
    late = []
    for _ in range(20_000):
        reading, _ = played.read()
        late.append(reading.stamp_ns - played.time.now_ns())
    assert min(late) >= 0
    assert 8_000_000 < max(late) < 10_000_000
    ordinary = [one for one in late if one < 1_000_000]
    assert 0.985 < len(ordinary) / len(late) < 0.995
    assert sum(ordinary) / len(ordinary) == pytest.approx(100_000, rel=0.05)


def test_the_same_seed_is_the_same_card() -> None:
    """Two cards of one seed bring the same stamps."""
    setup = SyntheticConfig(signal="silence", jitter_us=100.0, seed=5)
    first, second = Played(capture(source=setup)), Played(capture(source=setup))
    assert [first.read()[0].stamp_ns for _ in range(50)] == [
        second.read()[0].stamp_ns for _ in range(50)
    ]


@pytest.mark.parametrize("late_ms", [100, 500, 511, 512, 5000, 3_600_000])
def test_what_is_not_read_in_time_is_lost_and_counted(late_ms: int) -> None:
    """A reader that was away is told the jump of the counter, and has none within a buffer."""
    card = capture(buffer_ms=500.0, format="S32_LE", channels=1)
    played = Played(card)
    before = counters(played.read()[1], card)
    played.time.at_ns += late_ms * 1_000_000
    reading, samples = played.read()
    jump = int(counters(samples, card)[0]) - int(before[-1]) - 1
    assert jump == reading.lost
    assert (reading.lost > 0) is (late_ms > 500)
    assert reading.cause is Cause.OVERRUN


def test_scheduled_overruns_lose_what_the_counter_says() -> None:
    """Over a hundred scheduled overruns the losses reported are the jumps of the counter."""
    fault = FaultConfig(kind="overrun", at_s=1.0, for_s=0.7, every_s=2.0)
    card = capture(
        format="S32_LE",
        channels=1,
        source=SyntheticConfig(signal="counter", ppm=-77.0, faults=(fault,)),
    )
    played = Played(card)
    lost, following = 0, 0
    while played.time.now_ns() < 201 * S:
        reading, samples = played.read()
        numbers = counters(samples, card)
        assert numbers[0] == following + reading.lost
        assert (np.diff(numbers) == 1).all()
        following, lost = int(numbers[-1]) + 1, lost + (reading.lost > 0)
    assert lost == 100


def test_unplug() -> None:
    """An unplugged card fails with ENODEV, cannot be opened until it is back, and has gone on."""
    fault = FaultConfig(kind="unplug", at_s=1.0, for_s=5.0)
    card = capture(format="S32_LE", source=SyntheticConfig(signal="counter", faults=(fault,)))
    played = Played(card)
    with pytest.raises(DeviceError) as gone:
        while True:
            played.read()
    assert gone.value.errno == errno.ENODEV
    assert not gone.value.refused
    with pytest.raises(DeviceError):
        played.source.open()
    played.time.at_ns += 5 * S
    played.source.open()
    assert counters(played.read()[1], card)[0] == pytest.approx(48_000 * 6, abs=1000)


def test_stall() -> None:
    """A card that stands still brings nothing and no error, and goes on with the next frame."""
    fault = FaultConfig(kind="stall", at_s=1.0, for_s=3.0)
    card = capture(format="S32_LE", source=SyntheticConfig(signal="counter", faults=(fault,)))
    played = Played(card)
    following, silent = 0, 0
    while played.time.now_ns() < 8 * S:
        reading, samples = played.read(200)
        silent += reading.frames == 0
        if reading.frames:
            numbers = counters(samples, card)
            assert numbers[0] == following
            assert reading.lost == 0
            following = int(numbers[-1]) + 1
    assert silent in (14, 15)  # of 200 ms each, of 3 s
    assert following == pytest.approx(48_000 * 4, abs=480)


STALL = st.builds(
    FaultConfig,
    kind=st.just("stall"),
    at_s=st.integers(0, 40).map(lambda tenths: tenths / 10),
    for_s=st.integers(1, 30).map(lambda tenths: tenths / 10),
    every_s=st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.0]),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(STALL, max_size=4))
def test_stalls_that_overlap(faults: list[FaultConfig]) -> None:
    """However stalls overlap, the card's count never goes back, and it stands for the time that at
    least one of them is under way."""
    card = capture(source=SyntheticConfig(signal="silence", faults=tuple(faults)))
    played = Played(card)
    begin, before = played.time.now_ns(), 0
    for tick in range(1, 1001):
        played.time.at_ns = begin + tick * S // 100
        played.source.open()
        assert played.source.read_frame >= before
        before = played.source.read_frame

    def under_way(fault: FaultConfig, at_ms: int) -> bool:
        since = at_ms - round(fault.at_s * 1000)
        if since >= 0 and fault.every_s:
            since %= round(fault.every_s * 1000)
        return 0 <= since < round(fault.for_s * 1000)

    going = sum(not any(under_way(fault, ms) for fault in faults) for ms in range(10_000))
    assert before == pytest.approx(48 * going, abs=2)


@pytest.mark.parametrize("format", WIDE)
@pytest.mark.parametrize("level_dbfs", [0.0, -20.0, -60.0])
def test_tone_level(format: str, level_dbfs: float) -> None:
    """A tone of so many dBFS peaks there, and its RMS is 3.0 dB lower."""
    setup = SyntheticConfig(signal="tone", level_dbfs=level_dbfs, tone_hz=1000)
    played = Played(capture(format=format, source=setup))
    meter = Meter(played.card.audio)
    for _ in range(round(1.5 * WINDOW_S * 100)):
        meter.update(played.read()[1])
    if format == "U8" and level_dbfs == -60.0:  # less than half of its lowest bit
        assert meter.peak_dbfs == meter.level_dbfs == FLOOR_DBFS
        return
    assert meter.peak_dbfs == pytest.approx(level_dbfs, abs=0.15)
    assert meter.level_dbfs == pytest.approx(level_dbfs - 3.0, abs=0.15)


def test_tone_goes_on_over_the_second() -> None:
    """A tone has no click where its loop closes."""
    played = Played(capture(channels=1, source=SyntheticConfig(signal="tone", level_dbfs=-6.0)))
    wave = np.frombuffer(b"".join(played.read()[1] for _ in range(250)), "<i2").astype(int)
    steepest = 32768 * 10 ** (-6 / 20) * 2 * np.pi * 440 / 48_000
    assert np.abs(np.diff(wave)).max() <= steepest + 1


def test_noise_and_silence() -> None:
    """Noise reaches its level, silence is nothing but zeros."""
    noise = Played(capture(channels=1, source=SyntheticConfig(signal="noise", level_dbfs=-6.0)))
    wave = np.frombuffer(b"".join(noise.read()[1] for _ in range(100)), "<i2")
    assert np.abs(wave.astype(int)).max() == pytest.approx(32768 * 10 ** (-6 / 20), rel=0.01)
    silence = Played(capture(source=SyntheticConfig(signal="silence")))
    assert not any(silence.read()[1])


@pytest.mark.parametrize("format", WIDE)
def test_file(format: str, tmp_path: Path) -> None:
    """A sound file is played from its start, over and over, without a break."""
    path = tmp_path / "ramp.wav"
    ramp = np.stack((np.arange(1000), -np.arange(1000)), axis=1).astype("<i2")
    soundfile.write(path, ramp, 48_000)
    played = Played(capture(format=format, source=SyntheticConfig(signal="file", file=str(path))))
    samples = b"".join(played.read()[1] for _ in range(10))
    bits = min(16, SampleFormat[format].bits)
    wave = to_int32(samples, SampleFormat[format]).reshape(-1, 2) >> (32 - bits)
    assert np.array_equal(wave, np.resize(ramp >> (16 - bits), (4800, 2)))


@pytest.mark.parametrize("pick", [(2,), (2, 1), (1, 2)])
def test_picked_channels_of_the_simulated_card(pick: tuple[int, ...], tmp_path: Path) -> None:
    """The simulated card has as many channels as its file, and those that are picked are heard."""
    path = tmp_path / "ramp.wav"
    ramp = np.stack((np.arange(1000), -np.arange(1000)), axis=1).astype("<i2")
    soundfile.write(path, ramp, 48_000)
    setup = SyntheticConfig(signal="file", file=str(path))
    played = Played(capture(pick=pick, channels=2, source=setup))
    heard = np.frombuffer(b"".join(played.read()[1] for _ in range(10)), "<i2")
    places = [one - 1 for one in pick]
    assert np.array_equal(heard.reshape(-1, len(pick)), np.resize(ramp, (4800, 2))[:, places])


@pytest.mark.parametrize(("rate_hz", "channels"), [(44_100, 2), (48_000, 1)])
def test_file_of_another_kind(rate_hz: int, channels: int, tmp_path: Path) -> None:
    """A file of another rate or width is refused with both figures and what to do."""
    path = tmp_path / "other.wav"
    soundfile.write(path, np.zeros((10, channels), "<i2"), rate_hz)
    with pytest.raises(DeviceError) as refused:
        Played(capture(source=SyntheticConfig(signal="file", file=str(path))))
    assert refused.value.refused
    assert f"{rate_hz} Hz and {channels} channels" in str(refused.value)
    assert "48000 Hz and 2" in str(refused.value)


def test_file_that_is_none(tmp_path: Path) -> None:
    """A missing, foreign or empty file is refused by its name."""
    text, empty = tmp_path / "notes.txt", tmp_path / "empty.wav"
    text.write_text("no sound")
    soundfile.write(empty, np.zeros((0, 2), "<i2"), 48_000)
    for path in (text, empty, tmp_path / "missing.wav"):
        with pytest.raises(DeviceError, match=path.name) as refused:
            Played(capture(source=SyntheticConfig(signal="file", file=str(path))))
        assert refused.value.refused


def test_wake_ends_a_wait_on_virtual_time() -> None:
    """After ``wake`` no read waits any more."""
    played = Played(capture())
    played.source.wake()
    begin = played.time.now_ns()
    assert played.read(60_000)[0].frames == 0
    assert played.time.now_ns() == begin


def test_wake_ends_a_wait_on_real_time() -> None:
    """A thread that waits for a period of the machine's own time returns when it is woken."""
    source = SyntheticSource(capture(period_ms=1000.0), MonotonicTime())
    source.open()
    waiting = threading.Thread(
        target=source.read, args=(memoryview(bytearray(192_000)), 3_600_000), daemon=True
    )
    waiting.start()
    source.wake()
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()


DAY_S = 86_400


class Check(Keep):
    """Keeps no block, but that each follows the one before in frames and time."""

    def __init__(self) -> None:
        super().__init__()
        self.next_frame = 0
        self.last_ns = 0
        self.jumps = 0

    def write(self, block: Block) -> None:
        first, frames, at_ns, *_ = block
        assert first >= self.next_frame
        assert at_ns > self.last_ns
        self.jumps += first - self.next_frame
        self.next_frame, self.last_ns = first + frames, at_ns


def test_a_week() -> None:
    """A week of drift, late stamps, overruns, stalls and outages: at every look the books balance,
    frames and times go on, the clock is right, and no memory is kept."""
    faults = (
        FaultConfig(kind="overrun", at_s=1000.0, for_s=25.0, every_s=7_000.0),
        FaultConfig(kind="unplug", at_s=20_000.0, for_s=40.0, every_s=50_000.0),
        FaultConfig(kind="stall", at_s=36_500.0, for_s=19.0, every_s=90_000.0),
    )
    ppm = 63.0
    card = capture(
        rate_hz=1000,  # the fewer samples, the faster a week passes
        channels=1,
        period_ms=4000.0,
        buffer_ms=16_000.0,
        source=SyntheticConfig(signal="silence", ppm=ppm, jitter_us=80.0, faults=faults),
    )
    time, sink, chance = VirtualTime(), Check(), random.Random(1)
    line = Line(card, [sink], time, poll_ms=4400)
    capturer = line.stream.capturer
    blocks_kept = []
    for day in range(1, 8):
        while time.now_ns() < day * DAY_S * S:
            for _ in range(chance.randrange(1, 1000)):
                line.capture()
                line.push()
                line.deliver()
            line.capture()  # one block stays in the ring
            stats = line.stats()
            assert stats.balanced
            assert sum(gap.frames for gap in line.gaps) == stats.lost_frames
        gc.collect()
        blocks_kept.append(sys.getallocatedblocks() - 7 * len(line.gaps))  # the list is ours
    line.push()
    line.deliver()
    stats = line.stats()
    assert stats.balanced
    (books,) = stats.sinks
    assert (books.in_flight_frames, books.dropped_frames) == (0, 0)
    assert sink.next_frame == stats.produced_frames
    assert sink.jumps == stats.lost_frames
    produced = 1000 * (1 + ppm * 1e-6) * (time.now_ns() - S) / S
    assert stats.produced_frames == pytest.approx(produced, abs=200)
    causes = [gap.cause for gap in line.gaps]
    assert set(causes) == {Cause.OVERRUN, Cause.REOPENED, Cause.STALLED}
    assert causes.count(Cause.OVERRUN) >= 80
    assert causes.count(Cause.REOPENED) == 12
    assert causes.count(Cause.STALLED) == capturer.stalls == 7
    assert line.stream.clock.drift_ppm == pytest.approx(ppm, abs=1)
    assert blocks_kept[-1] - blocks_kept[0] < 200
