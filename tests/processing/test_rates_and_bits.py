"""Resampling and dither: their spectra, their counts, and what is left of very soft sound."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as options
from hypothesis import strategies as st

from capstand.audio.block import Shape
from tests.processing.signals import RATE, Values, column, made, noise, sine, through

RATES = [(48_000, 16_000), (48_000, 44_100), (16_000, 48_000), (96_000, 48_000), (44_100, 48_000)]


def spectrum_db(sound: Values) -> Values:
    """Of a whole number of turns of each tone; a full-scale sine is 0 dB. Blackman-Harris."""
    frames = len(sound)
    at = 2 * np.pi * np.arange(frames) / frames
    window = 0.35875 - 0.48829 * np.cos(at) + 0.14128 * np.cos(2 * at) - 0.01168 * np.cos(3 * at)
    turns = np.abs(np.fft.rfft(sound * window)) / (frames * 0.35875 / 2)
    return np.asarray(20 * np.log10(np.maximum(turns, 1e-12)))


# Resampling


@pytest.mark.parametrize(("rate", "to"), RATES)
def test_a_tone_is_the_same_tone_at_another_rate(rate: int, to: int) -> None:
    """Within 0.05 dB up to 85 % of what the lower rate can hold, and as late as declared, to three
    frames; all else, images and aliases included, is 95 dB below it."""
    one = made("resample", Shape(rate, 1), rate_hz=to)
    for hz in (100, 1000, round(0.85 * min(rate, to) / 2)):
        one.reset()
        found = through(one, sine(2 * rate, hz, 0.5, rate), rate // 100)
        whole = found[to // 2 : to // 2 + to, 0].astype(np.float64)
        expected = sine(3 * to, hz, 0.5, to)[to // 2 - one.delay_frames :][:to, 0]
        turned = np.angle(np.fft.rfft(whole)[hz] / np.fft.rfft(expected)[hz]) / (2 * np.pi * hz)
        assert abs(turned) * to < 3
        spectrum = spectrum_db(whole)
        others = np.delete(spectrum, range(max(0, hz - 5), hz + 6))
        assert spectrum[hz] == pytest.approx(-6.02, abs=0.05)
        assert others.max() < -101


def test_what_the_lower_rate_cannot_hold_is_gone() -> None:
    """A tone of 9 to 20 kHz leaves nothing at 16 kHz."""
    for hz in (9000, 12_000, 20_000):
        one = made("resample", rate_hz=16_000)
        found = through(one, sine(RATE, hz))[8000:]
        assert np.abs(found).max() < 1e-5


@options(max_examples=100)
@given(
    st.sampled_from([*RATES, (8000, 192_000), (192_000, 8000), (48_000, 47_999)]),
    st.lists(st.integers(1, 3000), min_size=1, max_size=5),
    st.integers(1, 3),
)
@example((48_000, 47_999), [2449], 1)
def test_as_many_frames_come_out_as_the_rates_say(
    rates: tuple[int, int], lengths: list[int], channels: int
) -> None:
    """After every block, to the frame, so that nothing has to wait and nothing is invented; a reset
    does not change that."""
    rate, to = rates
    one = made("resample", Shape(rate, channels), rate_hz=to)
    taken = given = 0
    for number in range(12):
        frames = lengths[number % len(lengths)]
        taken += frames
        given += len(one.process(noise(frames, channels)))
        assert given == taken * to // rate
        if number == 6:
            one.reset()


# Dither


def test_dither_gives_whole_steps() -> None:
    """Of 16 bits, within what they hold; full scale is not wrapped."""
    for bits in (8, 16, 20):
        found = through(made("dither", bits=bits), noise(9600, 1, 1.0)) * 2.0 ** (bits - 1)
        assert np.array_equal(found, np.rint(found))
        assert found.min() >= -(2 ** (bits - 1)) and found.max() <= 2 ** (bits - 1) - 1


def test_dither_is_linear() -> None:
    """The mean of what comes out is what goes in, to a hundredth of a step, and the power of the
    error is a quarter of a square step wherever the sound is between two steps."""
    step = 2.0**-15
    for share in (0.0, 0.1, 0.25, 0.5, 0.9):
        still = np.full((400_000, 1), (100 + share) * step, np.float32)
        error = (through(made("dither"), still, 4800).astype(np.float64) - still) / step
        assert abs(error.mean()) < 0.005
        assert abs(np.square(error).mean() - 0.25) < 0.005


def test_a_tone_of_less_than_a_step_is_still_there() -> None:
    """At its level, without harmonics, in a noise that is even over all frequencies."""
    step, hz = 2.0**-15, 997
    tone = column(0.4 * step * np.sin(2 * np.pi * hz / RATE * np.arange(20 * RATE)))
    assert not np.rint(tone / step).any()  # rounding alone leaves nothing of it
    found = through(made("dither"), tone, 4800)[:, 0].astype(np.float64)
    turns = np.abs(np.fft.rfft(found.reshape(20, RATE))) / (RATE / 2)
    power = np.ones(20) @ np.square(turns) / 20
    coherent = np.abs(np.fft.rfft(np.ones(20) @ found.reshape(20, RATE) / 20)) / (RATE / 2)
    assert 20 * np.log10(coherent[hz] / (0.4 * step)) == pytest.approx(0, abs=0.5)
    floor = np.median(power)
    for harmonic in (2, 3, 5, 7):
        assert power[hz * harmonic] < 6 * floor
    bands = np.delete(power[1:24_001].reshape(24, 1000), hz // 1000, axis=0) @ np.ones(1000) / 1000
    assert 10 * np.log10(bands.max() / bands.min()) < 1.0
    total_db = 10 * np.log10(float(np.mean(bands)) * 24_000 / 2)
    assert total_db == pytest.approx(10 * np.log10(0.25 * step**2), abs=0.2)


def test_the_noise_of_channels_is_not_the_same() -> None:
    """Nor is that of two runs."""
    silence = np.zeros((48_000, 2), np.float32)
    first, second = (through(made("dither", Shape(RATE, 2)), silence) for _ in range(2))
    for one, other in ((first[:, 0], first[:, 1]), (first[:, 0], second[:, 0])):
        assert abs(one @ other) < 0.02 * (one @ one)
