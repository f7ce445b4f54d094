"""Automatic gain: where it comes to, how soon, and what it leaves alone."""

import numpy as np
import pytest

from capstand.audio.block import Shape
from capstand.processing.agc import AutomaticGain
from tests.processing.signals import bend, column, made, settings, sine, through
from tests.processing.speech import ACTIVE_DBFS, level, speech, white

TARGET, SPEED = -23.0, 6.0
STATED_S = 5.0


@pytest.mark.parametrize("active_dbfs", [-46, -36, -26, -16, -6])
def test_the_target_is_reached_in_the_stated_time(active_dbfs: int) -> None:
    """From below and from above: within 2 dB after what the gain takes at 6 dB/s and 5 s more, and
    it stays there."""
    said = speech()
    sound = said.samples * np.float32(10 ** ((active_dbfs - ACTIVE_DBFS) / 20))
    sound += white(len(sound), active_dbfs - 30)
    missing = TARGET - active_dbfs
    one = made("agc", target_dbfs=TARGET)
    assert isinstance(one, AutomaticGain)
    first = round((abs(missing) / SPEED + STATED_S) * said.rate_hz)
    out = [through(one, column(sound[:first]))]
    for at in range(first, len(sound), 4800):
        out.append(through(one, column(sound[at : at + 4800])))
        assert abs(one.gain_db - missing) <= 2
    spoken = said.spoken & (np.arange(len(sound)) >= first)
    assert abs(level(np.concatenate(out)[spoken]) - TARGET) <= 2


def test_noise_alone_is_not_raised() -> None:
    sound = column(white(20 * 48_000, -51))
    assert np.array_equal(through(made("agc"), sound), sound)


def test_speech_is_raised_only_as_far_as_the_noise_allows() -> None:
    """Speech at -46 dBFS over noise at -56: 6 dB more, and the noise is at -50."""
    said = speech()
    sound = said.samples * np.float32(0.1) + white(len(said.samples), -56)
    one = made("agc", noise_dbfs=-50.0)
    out = through(one, column(sound))[:, 0]
    late = said.paused & (np.arange(len(sound)) > 15 * said.rate_hz)
    assert -51 < level(out[late]) < -49


def test_the_gain_stays_within_its_bounds() -> None:
    said = column(speech().samples)
    for scale, bound, keys in ((0.01, 12.0, {"max_gain_db": 12.0}), (8.0, -5.0, {"max_cut_db": 5})):
        one = made("agc", noise_dbfs=-20.0, **keys)
        assert isinstance(one, AutomaticGain)
        through(one, said * np.float32(scale))
        assert one.gain_db == bound


def test_a_pause_changes_nothing() -> None:
    """After minutes of silence the first word is as loud as the last one was."""
    one = made("agc")
    assert isinstance(one, AutomaticGain)
    said = speech().samples * np.float32(0.1)
    through(one, column(said + white(len(said), -80)))
    before = one.gain_db
    through(one, np.zeros((60 * 48_000, 1), np.float32), 48_000)
    through(one, column(white(60 * 48_000, -80)), 48_000)
    assert one.gain_db == before > 10


def test_blocks_of_any_length_give_the_same_sound() -> None:
    said = column(speech().samples[: 5 * 48_000])
    whole = through(made("agc"), said)
    assert np.abs(through(made("agc"), said, 1, 479, 5000, 333) - whole).max() < 1e-6


def test_the_gain_has_no_steps() -> None:
    """Nor where its target is changed as it runs: the tone is as smooth as a louder one."""
    tone = sine(2 * 48_000, 440, 0.01)
    one = made("agc")
    through(one, column(speech().samples[:96_000] * np.float32(0.1)))
    for target in (-23.0, -40.0):
        assert one.change(settings("agc", target_dbfs=target))
        out = through(one, tone)
        low, high = sorted((float(np.abs(out[:480]).max()), float(np.abs(out[-480:]).max())))
        assert high > 1.5 * low
        assert bend(out) < 1.01 * bend(tone) * high / 0.01


def test_all_channels_get_the_same_gain() -> None:
    said = speech().samples[: 8 * 48_000] * np.float32(0.1) + white(8 * 48_000, -80)
    out = through(made("agc", Shape(48_000, 2)), np.stack((said, said / 2), axis=1))
    assert np.allclose(out[:, 0], 2 * out[:, 1], atol=1e-6)
    assert level(out[-96_000:, 0]) > level(said[-96_000:]) + 6


def test_no_number_is_silence_and_changes_nothing() -> None:
    said = column(speech().samples[: 8 * 48_000])
    bad = said.copy()
    bad[50_000], bad[60_000] = np.nan, np.inf
    one, other = made("agc"), made("agc")
    assert np.isfinite(through(one, bad)).all()
    through(other, said)
    assert one.figures() == other.figures()
