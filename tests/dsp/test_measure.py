"""What is measured of a window: the same by audioop as by numpy."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstand.audio.block import SampleFormat
from capstand.dsp import measure
from capstand.dsp.convert import from_int32

WHOLE = (SampleFormat.S16_LE, SampleFormat.S24_3LE, SampleFormat.S32_LE)
STEP = 2.0**-15


def samples_of(seed: int, frames: int) -> "np.typing.NDArray[np.int32]":
    """Noise of 16 bits in 32, which stays at full scale for up to 12 samples now and then."""
    dice = np.random.default_rng(seed)
    values = dice.integers(-(2**15), 2**15, frames)
    for _ in range(frames // 20):
        at = dice.integers(0, frames)
        stay = values[at : at + dice.integers(1, 13)]
        stay[:] = dice.choice([2**15 - 1, -(2**15), 1 - 2**15], size=len(stay))
    return (values << 16).astype(np.int32)


@pytest.mark.parametrize("sample", WHOLE)
@given(st.integers(0, 999), st.integers(1, 4), st.integers(3, 8))
def test_it_is_the_same_whoever_measures(
    sample: SampleFormat, seed: int, channels: int, stay: int
) -> None:
    """Peak, power, and of each channel the highest, the lowest, the mean, and how often it stays at
    full scale."""
    values = samples_of(seed, 400 * channels)
    found = measure.window(from_int32(values, sample), sample)
    shares = (values / 2.0**31).astype("<f4")
    expected = measure.window(shares.tobytes(), SampleFormat.FLOAT_LE)
    assert found.peak == expected.peak
    assert found.mean_square == pytest.approx(expected.mean_square, rel=1e-5)
    for one, other in zip(found.channels(channels), expected.channels(channels), strict=True):
        assert one[:2] == other[:2]
        assert one.mean == pytest.approx(other.mean, abs=1e-6)
        assert one.long_stays(16, stay) == other.long_stays(16, stay)
    floats, full = found.floats(channels)
    assert floats.shape == (400, channels)
    assert np.array_equal(floats / full, shares.reshape(-1, channels))


@pytest.mark.parametrize("sample", SampleFormat)
def test_silence_has_neither_peak_nor_power(sample: SampleFormat) -> None:
    found = measure.window(sample.silence(480), sample)
    assert found.peak == found.mean_square == 0.0
    assert [one[:3] for one in found.channels(2)] == [(0.0, 0.0, 0.0)] * 2


@pytest.mark.parametrize("sample", WHOLE)
def test_numpy_is_not_loaded_for_whole_numbers(sample: SampleFormat) -> None:
    """It would be 12 MB of each stream's process: for the level, and for channels that clip."""
    code = (
        "import sys\n"
        "from capstand.audio.block import AudioFormat, SampleFormat\n"
        "from capstand.config.schema import CaptureConfig\n"
        "from capstand.dsp.defects import Defects, Limits\n"
        "from capstand.dsp.level import Meter\n"
        f"audio = AudioFormat(48_000, 2, SampleFormat.{sample.name})\n"
        "watch = Defects(audio, Limits.of(CaptureConfig('hw:0')))\n"
        "meter = Meter(audio, watch)\n"
        "loud = (b'\\xff' * (audio.sample.size_bytes - 1) + b'\\x7f') * 2\n"
        "for _ in range(1000):\n"
        "    meter.update(loud * 240 + audio.sample.silence(480))\n"
        "print(meter.peak_dbfs, watch.figures[1].clipped_per_s > 10, 'numpy' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "-0.0 True False\n"
