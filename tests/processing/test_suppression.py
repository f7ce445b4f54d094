"""Noise suppression, by both engines, measured on speech of which every sample is known."""

from itertools import pairwise
from math import log10

import numpy as np
import pytest

from capstand.audio.block import Shape
from capstand.processing import engines
from capstand.processing.processor import Processor, Samples
from tests.processing.signals import bend, column, made, noise, settings, sine, through
from tests.processing.speech import ACTIVE_DBFS, aligned, lag, level, pink, speech, wavering, white

KIND = "noise-suppression"
LENGTHS = ((480,), (1920,), (1024,), (1, 479, 500, 7, 4096))
SETTLED_S = 4.0


@pytest.fixture(params=["webrtc", "speex"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "webrtc" and not engines.has_webrtc():
        pytest.skip("pywebrtc-audio is missing")
    if request.param == "speex" and engines.libspeexdsp() is None:
        pytest.skip("libspeexdsp1 is missing")
    return str(request.param)


def power(dbfs: float) -> float:
    return float(10 ** (dbfs / 10))


@pytest.mark.parametrize("kind", [white, pink])
def test_noise_falls_by_10_db_against_speech_which_stays(engine: str, kind: object) -> None:
    """At 5 dB the ratio gets better by 10 dB or more, and speech keeps its level within 2 dB."""
    said = speech()
    make_noise = white if kind is white else pink
    sound = said.samples + make_noise(len(said.samples), ACTIVE_DBFS - 5)
    one = made(KIND, engine=engine)
    out = aligned(through(one, column(sound)), one.delay_frames)[:, 0]
    settled = np.arange(len(sound)) > SETTLED_S * said.rate_hz
    spoken, paused = said.spoken & settled, said.paused & settled
    before = level(sound[spoken]) - level(sound[paused])
    after = level(out[spoken]) - level(out[paused])
    assert after - before >= 10
    left = 10 * log10(power(level(out[spoken])) - power(level(out[paused])))
    assert abs(left - level(said.samples[spoken])) <= 2


def test_a_higher_level_takes_more_away(engine: str) -> None:
    left = []
    for depth in ("low", "moderate", "high", "very-high"):
        one = made(KIND, engine=engine, level=depth)
        left.append(level(through(one, column(white(5 * 48_000, -40)))[2 * 48_000 :]))
    assert all(higher < lower - 0.5 for lower, higher in pairwise(left))


@pytest.mark.parametrize("rate_hz", [16_000, 32_000, 48_000])
def test_its_delay_is_what_it_declares(engine: str, rate_hz: int) -> None:
    """To the frame, by cross-correlation with what was put in."""
    sent = wavering(rate_hz)
    one = made(KIND, Shape(rate_hz, 1), engine=engine, level="low")
    assert lag(sent, through(one, column(sent), 333)[:, 0]) == one.delay_frames


def test_blocks_of_any_length_give_the_same_sound(engine: str) -> None:
    said = column(speech().samples[: 3 * 48_000])
    alike = [through(made(KIND, engine=engine), said, *lengths) for lengths in LENGTHS]
    for other in alike[1:]:
        assert len(other) == len(said)
        assert np.abs(other - alike[0]).max() < 1e-6


def test_no_number_is_forgotten_with_its_block(engine: str) -> None:
    """NaN, infinity and what is louder than anything: a second later all is as it was without."""
    sound = noise(48_000)
    bad = sound.copy()
    bad[1000], bad[2000], bad[3000] = np.nan, np.inf, 1e30
    one, other = (made(KIND, engine=engine) for _ in range(2))
    assert np.isfinite(through(one, bad)).all()
    through(other, sound)
    more = noise(2 * 48_000, seed=2)
    later = through(one, more)[48_000:]
    assert abs(level(later) - level(through(other, more)[48_000:])) < 1


def test_two_side_by_side_do_not_touch_each_other(engine: str) -> None:
    said = column(speech().samples[:96_000])
    alone = through(made(KIND, engine=engine), said)
    one, other = made(KIND, engine=engine), made(KIND, engine=engine)
    blocks = []
    for at in range(0, len(said), 480):
        blocks.append(one.process(said[at : at + 480].copy()).copy())
        other.process(noise(480, seed=at))
    assert np.array_equal(np.concatenate(blocks), alone)


def test_each_channel_is_what_it_would_be_alone(engine: str) -> None:
    """Speech on one side, noise on the other."""
    both = np.stack((speech().samples[:192_000], white(192_000, -40)), axis=1)
    out = through(made(KIND, Shape(48_000, 2), engine=engine), both)
    for side in (0, 1):
        alone = through(made(KIND, engine=engine), column(both[:, side]))
        assert np.array_equal(out[:, side], alone[:, 0])


def test_after_a_gap_nothing_of_before_is_heard(engine: str) -> None:
    """It still knows the noise: it need not learn it again."""
    one = made(KIND, engine=engine)
    through(one, column(white(5 * 48_000, -40)))
    known = level(through(one, column(white(24_000, -40, seed=2)))[-12_000:])
    one.reset()
    again = through(one, column(white(24_000, -40, seed=3)))
    assert not again[: one.delay_frames].any()
    assert level(again[one.delay_frames :]) < known + 3 < -47
    one.reset()
    assert not through(one, np.zeros((480, 1), np.float32)).any()


def test_an_engine_that_gives_out_no_numbers_is_made_anew() -> None:
    """Even the sound that poisoned it is let through as silence."""
    pytest.importorskip("pywebrtc_audio")
    from capstand.processing.webrtc import Engine

    class Poisoned:
        def process(self, block: Samples) -> Samples:
            return np.full_like(block, np.nan)

    made: list[Poisoned] = []

    def make() -> Poisoned:
        made.append(Poisoned())
        return made[-1]

    engine = Engine(make)
    assert not engine.process(sine(480, 440)).any()
    assert len(made) == 2 and engine.restarts == 1


def test_another_level_without_a_click() -> None:
    """libspeexdsp's can be changed as it runs."""
    if engines.libspeexdsp() is None:
        pytest.skip("libspeexdsp1 is missing")
    one = made(KIND, engine="speex", level="low")
    tone = sine(96_000, 440)
    before = bend(through(one, tone)[4800:])
    assert one.change(settings(KIND, engine="speex", level="very-high"))
    assert bend(through(one, tone)) < 1.5 * before
    assert not one.change(settings(KIND, engine="webrtc"))


def test_webrtc_is_made_anew_for_another_level() -> None:
    pytest.importorskip("pywebrtc_audio")
    one: Processor = made(KIND, engine="webrtc", level="low")
    assert one.change(settings(KIND, engine="auto", level="low"))
    assert not one.change(settings(KIND, engine="webrtc", level="high"))
