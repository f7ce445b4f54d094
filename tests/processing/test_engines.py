"""What a machine lacks for speech is said with what to install; what a rate does not allow, too."""

import pytest

from capstand.audio.block import Shape
from capstand.config.registry import PROCESSORS
from capstand.processing import engines
from tests.processing.signals import settings


@pytest.fixture(params=["noise-suppression", "vad"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def faults(kind: str, rate_hz: int, engine: str = "auto") -> list[tuple[str, str]]:
    return PROCESSORS[kind].faults_in(settings(kind, engine=engine), Shape(rate_hz, 1))


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has neither."""
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    monkeypatch.setattr(engines, "LIBSPEEXDSP", "libmissing.so.1")
    engines._load.cache_clear()


@pytest.mark.usefixtures("bare")
def test_what_is_missing_is_named_with_what_brings_it(kind: str) -> None:
    ((key, words),) = faults(kind, 48_000)
    assert key == "engine" and kind in words
    assert "capstand[speech]" in words and "libspeexdsp1" in words
    ((key, words),) = faults(kind, 48_000, "webrtc")
    assert key == "engine" and "capstand[speech]" in words and "libspeexdsp1" not in words
    ((key, words),) = faults(kind, 44_100)
    assert key == "engine" and "libspeexdsp1" in words and "capstand[speech]" not in words


def test_above_48_khz_it_is_refused(kind: str) -> None:
    for engine in engines.ENGINES:
        ((key, words),) = faults(kind, 96_000, engine)
        assert key == "type" and "resample" in words


def test_webrtc_is_refused_at_a_rate_that_it_does_not_take(kind: str) -> None:
    ((key, words),) = faults(kind, 44_100, "webrtc")
    assert key == "engine" and "speex" in words


def test_where_both_are_there_nothing_is_wrong(kind: str) -> None:
    if not engines.has_webrtc() or engines.libspeexdsp() is None:
        pytest.skip("pywebrtc-audio or libspeexdsp1 is missing")
    for rate_hz in (8_000, 16_000, 22_050, 32_000, 44_100, 48_000):
        assert not faults(kind, rate_hz)
    assert engines.choose("auto", 48_000) == "webrtc"
    assert engines.choose("auto", 44_100) == "speex"
