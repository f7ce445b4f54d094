"""Gain, channels and filters: exact, whatever the blocks, and joined to one processor."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from capstand.audio.block import Shape
from capstand.processing.biquads import Biquad, butterworth
from capstand.processing.linear import Linear, filtering, mixing
from capstand.processing.processor import Processor, Samples
from tests.processing.signals import (
    RATE,
    Values,
    impulse,
    made,
    noise,
    response_db,
    settings,
    through,
)

SECONDS = 2 * RATE
HZ = np.rint(np.geomspace(20, 20_000, 60))


def warped(hz: Values | float) -> Values:
    """The frequency of the analogue filter that the bilinear transform puts at ``hz``."""
    return np.asarray(np.tan(np.pi * hz / RATE))


def butterworth_db(hz: Values, cutoff: float, order: int, high: bool) -> Values:
    ratio = warped(cutoff) / warped(hz) if high else warped(hz) / warped(cutoff)
    return np.asarray(-10 * np.log10(1 + ratio ** (2 * order)))


def analogue_db(kind: str, hz: Values, centre: float, q: float, gain_db: float) -> Values:
    """The prototypes of the cookbook, with s normalised to the centre."""
    s, a = 1j * warped(hz) / warped(centre), 10 ** (gain_db / 40)
    numerator, denominator = {
        "peak": (s * s + s * a / q + 1, s * s + s / (a * q) + 1),
        "notch": (s * s + 1, s * s + s / q + 1),
        "band-pass": (s / q, s * s + s / q + 1),
        "low-shelf": (
            a * (s * s + np.sqrt(a) / q * s + a),
            a * s * s + np.sqrt(a) / q * s + 1,
        ),
        "high-shelf": (
            a * (a * s * s + np.sqrt(a) / q * s + 1),
            s * s + np.sqrt(a) / q * s + a,
        ),
        "high-pass": (s * s, s * s + s / q + 1),
        "low-pass": (1, s * s + s / q + 1),
    }[kind]
    return np.asarray(20 * np.log10(np.abs(numerator / denominator)))


def measured(processor: Processor, *lengths: int) -> Values:
    return response_db(through(processor, impulse(SECONDS), *lengths), HZ)


def agrees(found: Values, expected: Values) -> None:
    """Within 0.05 dB, down to where float32 has no more digits."""
    heard = expected > -100
    assert np.abs(found - expected)[heard].max() <= 0.05
    assert (found[~heard] < -95).all()


@pytest.mark.parametrize("order", range(1, 9))
@pytest.mark.parametrize("cutoff", [30.0, 90.0, 1000.0, 15_000.0])
def test_a_pass_is_a_butterworth_filter(order: int, cutoff: float) -> None:
    """Its transfer function is the analytic one within 0.05 dB at every order and cutoff."""
    for kind in ("high-pass", "low-pass"):
        found = measured(made(kind, cutoff_hz=cutoff, order=order), 960)
        agrees(found, butterworth_db(HZ, cutoff, order, kind == "high-pass"))


@pytest.mark.parametrize("cutoff", [0.5, 5.0, 50.0])
def test_a_dc_block_takes_out_an_offset_only(cutoff: float) -> None:
    """A high-pass of first order; a constant is gone."""
    agrees(measured(made("dc-block", cutoff_hz=cutoff)), butterworth_db(HZ, cutoff, 1, True))
    still = through(made("dc-block", cutoff_hz=5.0), np.full((SECONDS, 1), 0.5, np.float32))
    assert abs(still[-1, 0]) < 1e-7


@pytest.mark.parametrize(
    "kind", ["peak", "low-shelf", "high-shelf", "notch", "band-pass", "high-pass", "low-pass"]
)
@pytest.mark.parametrize(("centre", "q"), [(60.0, 0.707), (1000.0, 4.0), (12_000.0, 0.5)])
def test_a_band_is_what_the_cookbook_says(kind: str, centre: float, q: float) -> None:
    """Each kind of band, boosting and cutting, within 0.05 dB of its prototype."""
    from capstand.processing.types.eq import WITH_GAIN, Band

    for gain_db in (9.0, -12.0) if kind in WITH_GAIN else (0.0,):
        found = measured(made("eq", band=(Band(kind, centre, gain_db, q),)), 480)
        agrees(found, analogue_db(kind, HZ, centre, q, gain_db))


def test_bands_and_filters_add_up() -> None:
    """A long cascade, which is computed in parts, is the sum of its sections in dB."""
    from capstand.processing.types.eq import Band

    bands = tuple(Band("peak", 50.0 * 2**number, 6.0, 2.0) for number in range(9))
    expected = sum(analogue_db("peak", HZ, band.frequency_hz, band.q, 6.0) for band in bands)
    agrees(measured(made("eq", band=bands), 1920), np.asarray(expected))


def by_samples(sections: tuple[Biquad, ...], sound: Samples) -> Values:
    """Transposed direct form II, sample by sample."""
    values = sound.astype(np.float64)
    for b0, b1, b2, a1, a2 in sections:
        out, first, second = np.empty_like(values), np.zeros(values.shape[1]), 0.0
        for at, x in enumerate(values):
            y = b0 * x + first
            first, second = b1 * x - a1 * y + second, b2 * x - a2 * y
            out[at] = y
        values = out
    return values


@options(max_examples=30)
@given(
    st.lists(st.integers(1, 2500), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([8000, 11_025, 44_100, 48_000]),
)
def test_where_a_block_ends_is_not_heard(
    lengths: list[int], channels: int, order: int, rate: int
) -> None:
    """Blocks of any lengths, also those that matrices are ready for, are what a loop over
    samples gives, but for the last digit of float32."""
    sections = butterworth("high-pass", order, 90.0, rate) + butterworth("low-pass", 2, 3000, rate)
    sound = noise(2000, channels)
    found = through(Linear(filtering(sections, channels), rate), sound, *lengths, 480, 441)
    assert np.abs(found - by_samples(sections, sound)).max() < 5e-8


def test_a_gain_is_in_db() -> None:
    """-20 dB is a tenth, of every channel."""
    sound = noise(480, 2)
    tenth = through(made("gain", Shape(RATE, 2), gain_db=-20.0), sound)
    assert np.array_equal(tenth, sound * np.float32(0.1))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"pick": (2,)}, lambda one: one[:, 1:]),
        ({"pick": (2, 1)}, lambda one: one[:, ::-1]),
        ({"swap": True}, lambda one: one[:, ::-1]),
        ({"mix": True}, lambda one: one.mean(axis=1, keepdims=True)),
        ({"matrix": ((1.0, 0.0), (0.5, -0.5), (0.0, 2.0))}, lambda one: np.stack(
            [one[:, 0], 0.5 * one[:, 0] - 0.5 * one[:, 1], 2 * one[:, 1]], 1)),
    ],
)  # fmt: skip
def test_channels_are_what_was_asked_for(
    keys: dict[str, object], expected: Callable[[Samples], Samples]
) -> None:
    """Picked and swapped ones to the bit, mixed ones to the last digit."""
    sound = noise(960, 2)
    found = through(made("channels", Shape(RATE, 2), **keys), sound, 480)
    assert found.shape == expected(sound).shape
    assert np.abs(found - expected(sound)).max() <= (0 if "mix" not in keys else 1e-8)


def test_what_changes_nothing_costs_nothing() -> None:
    """0 dB and all channels in their order give the very block back."""
    block = noise(480, 2)
    for one in (
        made("gain", Shape(RATE, 2), gain_db=0.0),
        made("channels", Shape(RATE, 2), pick=(1, 2)),
    ):
        assert one.process(block) is block


def test_joined_they_are_what_they_are_one_after_another() -> None:
    """Channels, filters and gains in any order, as one processor."""
    stereo = Shape(RATE, 2)
    parts = [
        made("gain", stereo, gain_db=6.0),
        made("high-pass", stereo, cutoff_hz=90.0),
        made("channels", stereo, matrix=((0.5, 0.25), (1.0, -1.0), (0.0, 1.0))),
        made("low-pass", Shape(RATE, 3), cutoff_hz=8000.0, order=3),
        made("gain", Shape(RATE, 3), gain_db=-3.0),
    ]
    sound = noise(4800, 2)
    expected = sound
    joined = parts[0]
    assert isinstance(joined, Linear)
    for number, one in enumerate(parts):
        expected = through(one, expected)
        if number:
            assert isinstance(one, Linear)
            joined = joined.then(one)
    assert np.abs(through(joined, sound) - expected).max() < 1e-6


def test_silence_is_silent_in_the_end() -> None:
    """What a filter rings on with becomes nothing instead of numbers that are slow."""
    one = made("high-pass", cutoff_hz=90.0)
    assert isinstance(one, Linear)
    through(one, noise(480))
    for _ in range(400):
        last = one.process(np.zeros((480, 1), np.float32))
        (filtered,) = one.prepare()
        state = np.abs(filtered.state)  # type: ignore[union-attr]
        assert not ((state > 0) & (state < 1e-300)).any()
    assert not state.any() and not last.any()


def test_after_a_reset_nothing_is_left() -> None:
    """What came before a gap is not heard after it."""
    one = made("low-pass", cutoff_hz=300.0)
    through(one, noise(4800))
    one.reset()
    assert np.array_equal(through(one, impulse(4800)), through(
        made("low-pass", cutoff_hz=300.0), impulse(4800)))  # fmt: skip


def test_rows_of_a_matrix_are_channels_that_come_out() -> None:
    """[[0.5, 0.5]] is one channel of two."""
    assert mixing(((0.5, 0.5),)).matrix.shape == (2, 1)
    assert settings("channels", matrix=((0.5, 0.5),)).rows(2) == ((0.5, 0.5),)
