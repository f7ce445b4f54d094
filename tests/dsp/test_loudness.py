"""Loudness against the numbers of EBU Tech 3341 and of ITU-R BS.1770, and against NaN."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from capstand.dsp import loudness
from capstand.dsp.loudness import FLOOR, Loudness, LoudnessMeter

RATE = 48_000
Sound = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def _there() -> None:
    if not loudness.is_there():
        pytest.skip(f"{loudness.PACKAGE} is missing")


def sine(seconds: float, dbfs: float, hz: float = 1000, channels: int = 2, phase: float = 0) -> Any:
    at = 2 * np.pi * hz / RATE * np.arange(round(seconds * RATE)) + phase
    mono = (10 ** (dbfs / 20) * np.sin(at)).astype(np.float32)
    return np.repeat(mono[:, np.newaxis], channels, axis=1)


def heard(*sounds: Sound, **keys: bool) -> Loudness:
    meter = LoudnessMeter(RATE, sounds[0].shape[1], **keys)
    for sound in sounds:
        for at in range(0, len(sound), 1024):
            meter.update(sound[at : at + 1024])
    return meter.read()


@pytest.mark.parametrize("dbfs", [-23.0, -33.0])
def test_a_stereo_sine_is_as_loud_as_its_peak(dbfs: float) -> None:
    """EBU Tech 3341, cases 1 and 2: momentary, short-term and integrated within 0.1 LU."""
    found = heard(sine(20, dbfs))
    assert found[:3] == pytest.approx([dbfs] * 3, abs=0.1)


def test_quiet_parts_are_left_out_of_the_whole() -> None:
    """EBU Tech 3341, case 3: 10 s at -36, 60 s at -23, 10 s at -36 are -23 LUFS."""
    found = heard(sine(10, -36), sine(60, -23), sine(10, -36))
    assert found.integrated_lufs == pytest.approx(-23, abs=0.1)
    assert found.momentary_lufs == found.short_term_lufs == pytest.approx(-36, abs=0.1)


def test_a_peak_between_the_samples_is_found() -> None:
    """A quarter of the rate, an eighth of a turn off (case 16): samples at -9 dB, peak at -6."""
    tone = sine(1, -6, RATE / 4, phase=np.pi / 4)
    assert 20 * np.log10(np.abs(tone).max()) == pytest.approx(-9, abs=0.05)
    tone[:4800] *= np.linspace(0, 1, 4800, dtype=np.float32)[:, np.newaxis]
    assert heard(tone).true_peak_dbtp == pytest.approx(-6, abs=0.4)


def test_the_peak_begins_anew_when_it_was_told() -> None:
    meter = LoudnessMeter(RATE, 1)
    meter.update(sine(0.1, -3, channels=1))
    assert meter.read().true_peak_dbtp == pytest.approx(-3, abs=0.3)
    for _ in range(3):
        meter.update(np.zeros((4800, 1), np.float32))
        last = meter.read()
    assert last.true_peak_dbtp == FLOOR


def test_silence_is_the_floor_and_no_number() -> None:
    assert heard(np.zeros((RATE, 2), np.float32)) == Loudness(FLOOR, FLOOR, FLOOR, FLOOR)
    assert LoudnessMeter(RATE, 2).read() == Loudness(FLOOR, FLOOR, FLOOR, FLOOR)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_no_number_is_silence(bad: float) -> None:
    """One sample of it, and all that follows is measured as if it had not been."""
    spoilt = sine(1, -23)
    spoilt[1000] = bad
    assert heard(spoilt, sine(5, -23))[:3] == pytest.approx([-23] * 3, abs=0.1)


def test_a_state_with_no_number_in_it_is_made_anew() -> None:
    meter = LoudnessMeter(RATE, 1)
    spoilt = np.full(RATE, np.nan, np.float32)
    meter._library.ebur128_add_frames_float(meter._state, spoilt.ctypes.data, RATE)
    assert meter.read().momentary_lufs == FLOOR
    meter.update(sine(4, -20, channels=1))
    assert meter.read().momentary_lufs == pytest.approx(-23, abs=0.1)


def test_true_peaks_are_left_out_where_nobody_asks() -> None:
    assert heard(sine(1, -20), true_peak=False).true_peak_dbtp is None


def test_two_side_by_side_do_not_touch_each_other() -> None:
    one, other = LoudnessMeter(RATE, 1), LoudnessMeter(RATE, 1)
    for _ in range(100):
        one.update(sine(0.1, -20, channels=1))
        other.update(sine(0.1, -40, channels=1))
    assert one.read().integrated_lufs == pytest.approx(other.read().integrated_lufs + 20, abs=0.1)


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loudness, "_library", lambda: None)
    with pytest.raises(OSError, match="libebur128-1"):
        LoudnessMeter(RATE, 1)
