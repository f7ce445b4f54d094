"""Limiter and compressor: the ceiling, the curve, the times."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as options
from hypothesis import strategies as st

from capstand.audio.block import Shape
from capstand.processing.compressor import Curve
from capstand.processing.processor import Samples
from tests.processing.signals import RATE, bend, made, noise, sine, through

STEREO = Shape(RATE, 2)


def bursts(frames: int, channels: int, seed: int, loudest: float) -> Samples:
    """Noise whose level jumps."""
    drawn = np.random.default_rng(seed)
    levels = loudest ** drawn.uniform(-2, 1, frames // 100 + 1)
    envelope = np.repeat(levels, 100)[:frames, None]
    return np.asarray(noise(frames, channels, 0.3, seed) * envelope, np.float32)


@options(max_examples=60)
@given(
    st.floats(-30, 0),
    st.floats(0, 5),
    st.floats(1, 5000),
    st.integers(0, 99),
    st.floats(1, 1e5),
)
def test_nothing_is_above_the_ceiling(
    ceiling: float, lookahead: float, release: float, seed: int, loudest: float
) -> None:
    """Not by the last digit of a float32, however loud, sudden and short what comes in is."""
    sound = bursts(4000, 2, seed, loudest)
    keys = {"ceiling_dbfs": ceiling, "lookahead_ms": lookahead, "release_db_per_s": release}
    found = through(made("limiter", STEREO, **keys), sound, 480)
    assert float(np.abs(found).max()) <= 10 ** (ceiling / 20)


@options(max_examples=40)
@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=5),
    st.integers(0, 99),
    st.sampled_from([60.0, 2000.0, 10_000.0]),
)
@example([7], 1, 10_000.0)
def test_a_limiter_does_not_depend_on_blocks(lengths: list[int], seed: int, release: float) -> None:
    """The same to the bit however the sound is cut, before, in and after what is too loud."""
    sound = bursts(9600, 2, seed, 30.0)
    sound[:1000] = 0.01
    sound[-4000:] = 0.01
    one, other = (made("limiter", STEREO, release_db_per_s=release) for _ in range(2))
    assert np.array_equal(through(one, sound, *lengths), through(other, sound, 480))


def test_what_is_below_the_ceiling_is_only_late() -> None:
    """To the bit, also once what was too loud is over; the delay is the one declared."""
    one = made("limiter", STEREO, ceiling_dbfs=-6.0)
    assert one.delay_frames == 71
    quiet, loud = noise(4800, 2, 0.05), noise(480, 2, 1.0)
    assert np.array_equal(through(one, quiet)[71:], quiet[:-71])
    through(one, loud)
    through(one, np.zeros((48_000, 2), np.float32))
    assert np.array_equal(through(one, quiet)[71:], quiet[:-71])
    assert one.figures() == {"reduction_db": 0.0}


def test_a_limiter_lets_go_as_fast_as_it_says() -> None:
    """After a peak of 6 dB too much the gain is back after 100 ms at 60 dB/s; both channels get
    the same, and it comes and goes without a step."""
    sound = np.full((24_000, 2), 0.4, np.float32)
    sound[9600, 0] = 2 * 10 ** (-1 / 20)
    one = made("limiter", STEREO)
    gain = through(one, sound)[71:, 1] / np.float32(0.4)
    db = 20 * np.log10(gain)
    assert abs(db[9600] + 6.02) < 0.01 and abs(gain[: 9600 - 71] - 1).max() == 0
    for after_ms in (20, 50, 80):
        assert abs(db[9600 + 48 * after_ms] - (-6.02 + 0.06 * (after_ms - 1.5 / 2))) < 0.1
    assert (gain[9600 + 110 * 48 :] == 1).all()
    assert np.abs(np.diff(gain)).max() < 2 * 0.5 / 71


def test_a_limiter_tells_how_much() -> None:
    """The reduction in dB while there is one."""
    one = made("limiter", ceiling_dbfs=-20.0)
    through(one, sine(480, 1000, 1.0))
    assert one.figures() == {"reduction_db": 20.0}


def test_the_static_curve() -> None:
    """None below, a ratio above, and half a parabola between them at a soft knee."""
    curve = Curve(-20.0, 4.0, 8.0)
    levels = np.array([-60.0, -24, -20, -16, -8, 0])
    assert curve.gains_db(levels) == pytest.approx([0, 0, -0.75, -3, -9, -15])
    hard = Curve(-20.0, 4.0, 0.0)
    assert hard.gains_db(levels) == pytest.approx([0, 0, 0, -3, -9, -15])


def gain_of(curve: Curve, level_db: float) -> float:
    return float(curve.gains_db(np.array([level_db]))[0])


@pytest.mark.parametrize("level_db", [-50.0, -23.0, -20.0, -17.0, -10.0, -3.5])
@pytest.mark.parametrize(("ratio", "knee"), [(3.0, 6.0), (20.0, 0.0), (1.0, 6.0)])
def test_a_steady_tone_gets_the_gain_of_the_curve(
    level_db: float, ratio: float, knee: float
) -> None:
    """Within 0.05 dB; a tone of amplitude a has a level 3 dB below a's."""
    tone = sine(48_000, 1000, 10 ** ((level_db + 3.0103) / 20))
    one = made("compressor", ratio=ratio, knee_db=knee, makeup_db=2.0)
    found = through(one, tone)[-4800:].astype(np.float64)
    gain_db = 10 * np.log10(np.mean(found**2) / np.mean(tone[-4800:].astype(np.float64) ** 2))
    assert abs(gain_db - 2.0 - gain_of(Curve(-20.0, ratio, knee), level_db)) < 0.05


def test_attack_and_release_are_the_times_that_were_asked_for() -> None:
    """After the time of the attack the gain has come 63 % of its way, and so it goes back after
    that of the release, within 2 ms."""
    envelope = np.repeat([0.01, 1.0, 0.01], [9600, 24_000, 48_000])
    tone = sine(len(envelope), 1000, 1.0) * envelope[:, None].astype(np.float32)
    found = through(
        made("compressor", attack_ms=20.0, release_ms=200.0, knee_db=0.0, ratio=2.0), tone
    )
    heard = np.abs(tone[:, 0]) > 0.3 * envelope
    at = np.arange(len(envelope))[heard]
    db = 20 * np.log10(found[heard, 0] / tone[heard, 0])
    low = db[at < 33_600].min()
    assert low == pytest.approx(gain_of(Curve(-20.0, 2.0, 0.0), -3.01), abs=0.05)
    fallen = at[np.argmax((at > 9600) & (db < 0.632 * low))] - 9600
    risen = at[np.argmax((at > 33_600) & (db > 0.368 * low))] - 33_600
    assert abs(fallen / 48 - 20) < 2.5 and abs(risen / 48 - 200) < 2.5


@options(max_examples=40)
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=5), st.integers(0, 99))
def test_a_compressor_does_not_depend_on_blocks(lengths: list[int], seed: int) -> None:
    """The same however the sound is cut, but for the last digit."""
    sound = bursts(4800, 2, seed, 3.0)
    one, other = made("compressor", STEREO), made("compressor", STEREO)
    difference = through(one, sound, *lengths) - through(other, sound, 480)
    assert np.abs(difference).max() < 1e-6


def test_a_compressor_bends_softly() -> None:
    """The gain has no steps at hops and blocks."""
    rising = np.linspace(0.0, 1.0, 48_000, dtype=np.float32).reshape(-1, 1)
    assert bend(through(made("compressor", attack_ms=1.0), rising)) < 1e-4


def test_silence_and_resets() -> None:
    """Silence has no level and gets no gain but the make-up; a reset forgets what was loud."""
    one = made("compressor", makeup_db=6.0)
    assert not through(one, np.zeros((960, 1), np.float32)).any()
    through(one, sine(9600, 1000, 1.0))
    assert float(str(one.figures()["reduction_db"])) > 9
    one.reset()
    sound = noise(960)
    assert np.array_equal(through(one, sound), through(made("compressor", makeup_db=6.0), sound))
    limiter = made("limiter", ceiling_dbfs=-40.0)
    through(limiter, sine(960, 1000, 1.0))
    limiter.reset()
    fresh = made("limiter", ceiling_dbfs=-40.0)
    assert np.array_equal(through(limiter, sound), through(fresh, sound))
