"""Loudness against the numbers of EBU Tech 3341 and of ITU-R BS.1770, and against NaN."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from capstand.audio.block import AudioFormat, SampleFormat
from capstand.config.schema import CaptureConfig
from capstand.dsp import ebur128
from capstand.dsp.loudness import (
    FLOOR,
    Loudness,
    LoudnessFigures,
    LoudnessMeter,
    LoudnessWatch,
)

RATE = 48_000
Sound = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def _there() -> None:
    if not ebur128.library():
        pytest.skip(f"{ebur128.PACKAGE} is missing")


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


@pytest.mark.parametrize("phase", [0.25, 0.5, 1.0, 2.0, 4.5])
def test_sound_that_is_under_way_begins_without_a_peak(phase: float) -> None:
    """A meter that begins in the middle of a tone hears no more than the tone."""
    tone = 0.1 * np.sin(2 * np.pi * 997 * np.arange(48_000) / 48_000 + phase)
    meter = LoudnessMeter(48_000, 1)
    meter.update(tone.astype(np.float32).reshape(-1, 1))
    assert meter.read().true_peak_dbtp == pytest.approx(-20, abs=0.1)


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


def test_each_input_counts_alike() -> None:
    """Channels beyond two are inputs of a card, and not the loudspeakers of a cinema."""
    for at in (0, 2, 3, 4, 7):
        eight = np.zeros((5 * RATE, 8), np.float32)
        eight[:, at] = sine(5, -20, channels=1)[:, 0]
        assert heard(eight).integrated_lufs == pytest.approx(-23, abs=0.1), at


def watch(channels: int = 2, format: str = "FLOAT_LE", **keys: Any) -> LoudnessWatch:
    audio = AudioFormat(RATE, channels, SampleFormat[format])
    return LoudnessWatch(audio, CaptureConfig("hw:0", loudness=True, **keys))


def feed(one: LoudnessWatch, sound: Sound, seconds: float) -> list[LoudnessFigures]:
    """A second of sound, over and over; the figures after each second."""
    found = []
    for _ in range(round(seconds)):
        for at in range(0, RATE, 9600):
            one.window(sound[at : at + 9600], 1.0)
        assert one.figures is not None
        found.append(one.figures)
    return found


def test_there_are_figures_once_a_second() -> None:
    """And the highest true peak stays."""
    one = watch()
    one.window(sine(0.9, -20), 1.0)
    assert one.figures is None
    *_, last = feed(one, sine(1, -20), 5)
    assert last.heard[:3] == pytest.approx([-20] * 3, abs=0.1)
    assert last.heard.true_peak_dbtp == pytest.approx(-20, abs=0.2)
    *_, last = feed(one, sine(1, -40), 10)
    assert last.heard[:2] == pytest.approx([-40] * 2, abs=0.1)
    assert last.heard.true_peak_dbtp == pytest.approx(-40, abs=0.2)
    figures = one.running.figures()
    assert figures is not None
    assert figures["max_true_peak_dbtp"] == pytest.approx(-20, abs=0.2)


def test_whole_numbers_have_their_own_full_scale() -> None:
    one = watch(format="S16_LE")
    for _ in range(25):
        one.window(sine(0.2, -20) * np.float32(32768), 32768.0)
    assert one.figures is not None
    assert one.figures.heard.integrated_lufs == pytest.approx(-20, abs=0.1)


def test_quiet_is_what_lasts_a_minute() -> None:
    """Not a pause in speech; and it ends when there is sound again."""
    one = watch(quiet_warn_lufs=-50.0)
    quiet, speech = sine(1, -60), sine(1, -25)
    feed(one, speech, 5)
    assert not any(figures.is_quiet for figures in feed(one, quiet, 30))
    feed(one, speech, 1)
    found = [figures.is_quiet for figures in feed(one, quiet, 90)]
    assert 60 <= found.index(True) <= 64 and all(found[found.index(True) :])
    found = [figures.is_quiet for figures in feed(one, speech, 5)]
    assert found[0] and not found[-1]


def test_loud_is_what_lasts_ten_seconds() -> None:
    one = watch(loud_warn_lufs=-10.0)
    loud, speech = sine(1, -6), sine(1, -25)
    assert not any(figures.is_loud for figures in feed(one, loud, 8) + feed(one, speech, 12))
    found = [figures.is_loud for figures in feed(one, loud, 20)]
    assert 9 <= found.index(True) <= 12 and all(found[found.index(True) :])
    found = [figures.is_loud for figures in feed(one, speech, 20)]
    assert found[8] and not found[-1]


def test_a_single_true_peak_is_over() -> None:
    """At once, with the highest one, until there was none for half a minute."""
    one = watch(true_peak_warn_dbtp=-1.0)
    assert not any(figures.is_over for figures in feed(one, sine(1, -2), 5))
    (first,) = feed(one, sine(1, 1), 1)
    assert first.is_over and first.reported_peak_dbtp == pytest.approx(1, abs=0.2)
    found = feed(one, sine(1, -20), 40)
    assert [figures.is_over for figures in found].index(False) in (29, 30)
    assert found[10].reported_peak_dbtp == first.reported_peak_dbtp
    (again,) = feed(one, sine(1, -0.5), 1)
    assert again.is_over and again.reported_peak_dbtp == pytest.approx(-0.5, abs=0.2)


def test_without_limits_nothing_is_reported() -> None:
    *_, last = feed(watch(), sine(1, 2), 90)
    assert not (last.is_quiet or last.is_loud or last.is_over)


def test_two_side_by_side_do_not_touch_each_other() -> None:
    one, other = LoudnessMeter(RATE, 1), LoudnessMeter(RATE, 1)
    for _ in range(100):
        one.update(sine(0.1, -20, channels=1))
        other.update(sine(0.1, -40, channels=1))
    assert one.read().integrated_lufs == pytest.approx(other.read().integrated_lufs + 20, abs=0.1)


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ebur128, "library", lambda: None)
    with pytest.raises(OSError, match="libebur128-1"):
        LoudnessMeter(RATE, 1)
