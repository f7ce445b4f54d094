"""Voice activity, by both engines, against speech and silence that are labelled."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from capstand.audio.block import Shape
from capstand.processing import engines
from capstand.processing.vad import VoiceActivity
from tests.figures import figure
from tests.processing.signals import bend, column, made, noise, settings, sine, through
from tests.processing.speech import ACTIVE_DBFS, level, pink, speech, white

TENTH = 480
NOISES: dict[str, tuple[Callable[..., Any], float]] = {
    "clean": (white, -80),
    "white noise at 5 dB": (white, ACTIVE_DBFS - 5),
    "pink noise at 5 dB": (pink, ACTIVE_DBFS - 5),
    "pink noise at 15 dB": (pink, ACTIVE_DBFS - 15),
}
HOLD_MS = 300.0


@pytest.fixture(params=["webrtc", "speex"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "webrtc" and not engines.has_webrtc():
        pytest.skip("pywebrtc-audio is missing")
    if request.param == "speex" and engines.libspeexdsp() is None:
        pytest.skip("libspeexdsp1 is missing")
    return str(request.param)


def vad(**keys: Any) -> VoiceActivity:
    one = made("vad", **keys)
    assert isinstance(one, VoiceActivity)
    return one


@pytest.mark.parametrize("kind", NOISES)
def test_speech_is_speech_and_silence_is_none(engine: str, kind: str) -> None:
    """Of the 10 ms of speech, with the hold that bridges its small pauses, 95 % are; of those of
    silence, without the hold, 5 % at most; from when the noise has been heard for 2 s."""
    said = speech()
    make_noise, dbfs = NOISES[kind]
    sound = said.samples + make_noise(len(said.samples), dbfs)
    held, bare = vad(engine=engine, hold_ms=HOLD_MS), vad(engine=engine, hold_ms=0.0)
    marks = []
    for at in range(0, len(sound) - TENTH, TENTH):
        for one in (held, bare):
            one.process(column(sound[at : at + TENTH]))
        marks.append((held.speech, bare.speech))
    marked = np.array(marks)
    spoken, paused = (
        mask[: len(marks) * TENTH].reshape(-1, TENTH).all(axis=1) & (np.arange(len(marks)) > 200)
        for mask in (said.spoken, said.paused)
    )
    hit, false = marked[spoken, 0].mean(), marked[paused, 1].mean()
    figure(f"voice activity, {engine}, {kind}", f"{hit:.0%} of speech, {false:.0%} of silence")
    assert hit >= 0.95
    assert false <= 0.05


def test_a_mark_leaves_the_sound_as_it_is(engine: str) -> None:
    one = vad(engine=engine)
    sound = noise(5000)
    assert np.array_equal(through(one, sound, 333), sound)
    assert one.delay_frames == 0


def test_a_gate_lets_through_what_is_said_from_its_first_sound(engine: str) -> None:
    """Each sentence comes out whole, ``lookahead_ms`` later; the pauses are silence."""
    said = speech()
    sound = said.samples + white(len(said.samples), -60)
    one = vad(engine=engine, mode="gate", hold_ms=HOLD_MS, lookahead_ms=100.0)
    assert one.delay_frames == 4800
    out = through(one, column(sound), 500)[one.delay_frames :, 0]
    sound = sound[: len(out)]
    loud = np.abs(said.samples[: len(out)]) > 0.02
    loud[: 2 * said.rate_hz] = False
    assert np.array_equal(out[loud], sound[loud])
    silent = said.paused[: len(out)].copy()
    ends = np.flatnonzero(np.diff(said.spoken.astype(int)) == -1)
    for end in ends:
        silent[end : end + round(0.7 * said.rate_hz)] = False
    silent[: 2 * said.rate_hz] = False
    assert silent.sum() > said.rate_hz
    assert not out[silent].any()


def test_the_gate_moves_without_a_click(engine: str) -> None:
    """A low tone beside the speech is never bent more than by the fade itself."""
    said = speech(sentences=4).samples
    tone = sine(len(said), 60, 0.3)
    one = vad(engine=engine, mode="gate", fade_ms=20.0)
    one._detect = Scripted(one._detect)
    out = through(one, tone, 700)
    assert level(out) > level(tone) - 12
    assert (np.abs(out).reshape(-1) == 0).sum() > 10_000
    assert bend(out[48_000:]) < 1.1 * (0.3 / 960) + bend(tone)


class Scripted:
    """Half a second of speech, a second of none, and again."""

    def __init__(self, _: object) -> None:
        self.looks = 0

    def __call__(self, block: object) -> float:
        self.looks += 1
        return float(self.looks % 150 < 50)


def test_the_hold_is_as_long_as_it_is_said() -> None:
    engines.libspeexdsp() or pytest.skip("libspeexdsp1 is missing")
    one = vad(engine="speex", hold_ms=200.0)
    one._detect = Scripted(one._detect)
    marks = []
    for _ in range(300):
        one.process(np.zeros((TENTH, 1), np.float32))
        marks.append(one.speech)
    assert sum(marks[50:200]) == 50 + 19  # the 20th look after the last speech is 200 ms later


def test_how_much_of_the_time_was_speech() -> None:
    engines.libspeexdsp() or pytest.skip("libspeexdsp1 is missing")
    one = vad(engine="speex", hold_ms=0.0)
    one._detect = Scripted(one._detect)
    through(one, np.zeros((150 * 20 * TENTH, 1), np.float32), 4800)
    share = one.figures()["speech_share"]
    assert isinstance(share, float) and abs(share - 1 / 3) < 0.02


def test_blocks_of_any_length_give_the_same_sound(engine: str) -> None:
    said = column(speech().samples[: 5 * 48_000])
    keys: dict[str, Any] = {"engine": engine, "mode": "gate"}
    alike = [through(vad(**keys), said, *cuts) for cuts in ((480,), (1920,), (1, 479, 1024))]
    assert np.abs(alike[0] - alike[1]).max() < 1e-6
    assert np.abs(alike[0] - alike[2]).max() < 1e-6


def test_speech_on_one_side_is_speech(engine: str) -> None:
    said = speech(sentences=4)
    quiet = white(len(said.samples), -70, seed=2)
    for sides in ((said.samples + quiet, quiet), (quiet, said.samples + quiet)):
        one = made("vad", Shape(48_000, 2), engine=engine)
        through(one, np.stack(sides, axis=1).astype(np.float32))
        share = one.figures()["speech_share"]
        assert isinstance(share, float) and share > 0.5


def test_no_number_is_no_speech_and_is_forgotten(engine: str) -> None:
    bad = noise(4800)
    bad[100], bad[2000] = np.nan, np.inf
    one = vad(engine=engine)
    through(one, bad)
    through(one, column(speech(sentences=4).samples))
    share = one.figures()["speech_share"]
    assert isinstance(share, float) and share > 0.5


def test_what_can_be_changed_as_it_runs(engine: str) -> None:
    one = vad(engine=engine, mode="gate")
    assert one.change(settings("vad", engine=engine, mode="gate", hold_ms=50.0, threshold=0.9))
    assert not one.change(settings("vad", engine=engine, mode="mark"))
    assert not one.change(settings("vad", engine=engine, mode="gate", lookahead_ms=10.0))
