"""A loudness meter in a chain: figures of the place where it stands, and the sound untouched."""

import numpy as np
import pytest

from capstand.audio.block import NS_PER_S, Shape
from capstand.dsp import ebur128
from capstand.processing.chain import Chain
from tests.processing.signals import RATE, cut, settings

STEREO = Shape(RATE, 2)


@pytest.fixture(autouse=True)
def _there() -> None:
    if not ebur128.library():
        pytest.skip(f"{ebur128.PACKAGE} is missing")


def test_each_meter_hears_what_comes_to_it() -> None:
    """Before and behind a gain; to the bit what it would be without them, and nothing later."""
    quieter = settings("gain", gain_db=-12.0)
    chain = Chain([settings("loudness"), quieter, settings("loudness")], STEREO, print)
    plain = Chain([quieter], STEREO, print)
    at = np.arange(10 * RATE) * 2 * np.pi * 997 / RATE
    sound = np.repeat(0.1 * np.sin(at), 2).astype(np.float32).reshape(-1, 2)
    assert chain.delay_frames == 0
    for number, block in enumerate(cut(sound, [1920, 480, 77])):
        now_ns = number * NS_PER_S
        out = chain.process(block.copy(), now_ns)
        assert np.array_equal(out, plain.process(block, now_ns))
    before, _, behind = chain.figures()
    for stage, level in ((before, -20), (behind, -32)):
        assert stage["short_term_lufs"] == pytest.approx(level, abs=0.1)
        assert stage["integrated_lufs"] == pytest.approx(level, abs=0.1)
        assert stage["max_true_peak_dbtp"] == pytest.approx(level, abs=0.2)


def test_it_says_nothing_before_a_second_is_over() -> None:
    chain = Chain([settings("loudness")], STEREO, print)
    chain.process(np.zeros((4800, 2), np.float32), 0)
    (stage,) = chain.figures()
    assert "integrated_lufs" not in stage


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a check of the configuration, as for all that a processor needs."""
    from capstand.config.registry import PROCESSORS

    monkeypatch.setattr(ebur128, "library", lambda: None)
    found = PROCESSORS["loudness"].faults_in(settings("loudness"), STEREO)
    assert found == [("type", ebur128.MISSING)]
