"""Echo cancellation between two cards, each with a crystal of its own, in a synthetic room."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import soxr

from capstand.audio.block import NS_PER_S, Shape
from capstand.processing.processor import Samples
from capstand.processing.reference import Reference
from tests.figures import figure
from tests.processing.signals import column, noise
from tests.processing.speech import lag, level, speech, wavering, white

RATE = 48_000
FRAMES = 480
START_NS = 1_000 * NS_PER_S
Mono = npt.NDArray[np.float32]


def pace(ppm: float, rate_hz: int = RATE) -> float:
    return NS_PER_S / rate_hz / (1 + ppm * 1e-6)


def resampled(sound: Mono, ppm: float) -> Mono:
    """As a card has it that is so much faster: by interpolation in 32-fold oversampled sound."""
    if ppm == 0:
        return sound
    dense: Mono = soxr.resample(sound, 1, 32, quality="VHQ")
    places = np.arange(int(len(sound) * (1 + ppm * 1e-6)) - 1) / (1 + ppm * 1e-6) * 32
    return np.asarray(np.interp(places, np.arange(len(dense)), dense), np.float32)


def echoed(sound: Mono, away_s: float = 0.03, rt60_s: float = 0.2) -> Mono:
    """Through a room, 6 dB below what is played."""
    count = round(rt60_s * RATE)
    decay = np.exp(-6.9 * np.arange(count) / count)
    tail = np.random.default_rng(3).standard_normal(count) * decay
    tail[0] = 5.0
    tail *= 0.5 / np.sqrt(np.sum(tail**2))
    size = len(sound) + count
    out = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(tail, size), size)[: len(sound)]
    away = round(away_s * RATE)
    return np.concatenate((np.zeros(away), out[:-away])).astype(np.float32)


def put(reference: Reference, far: Mono, ppm: float, start_ns: int = START_NS) -> Iterator[int]:
    """Puts a block of the far side each time; gives until when it is there."""
    for at in range(0, len(far) - FRAMES, FRAMES):
        at_ns = start_ns + round(at * pace(ppm))
        reference.put(column(far[at : at + FRAMES]), at_ns, pace(ppm))
        yield at_ns + round(FRAMES * pace(ppm))


@pytest.mark.parametrize("ppm", [0.0, 100.0, -100.0])
def test_the_echo_falls_by_20_db(ppm: float) -> None:
    """Between two cards that differ by so much, from the fifth second of speech on."""
    pytest.importorskip("pywebrtc_audio")
    from capstand.processing.echo import EchoCancellation

    said = speech().samples[: 20 * RATE] * np.float32(2)
    far = resampled(said, ppm)
    near = echoed(said) + white(len(said), -80)
    reference = Reference(RATE, RATE)
    one = EchoCancellation(reference, Shape(RATE, 1))
    putting, there_ns = put(reference, far, ppm), 0
    out = []
    for at in range(0, len(near) - 2 * FRAMES, FRAMES):
        at_ns = START_NS + round(at * pace(0))
        while there_ns < at_ns:
            there_ns = next(putting)
        one.at(at_ns, pace(0))
        out.append(one.process(column(near[at : at + FRAMES])))
    left = np.concatenate(out)[one.delay_frames :, 0]
    near = near[: len(left)]
    loud = np.convolve(np.square(near), np.ones(4800) / 4800, "same") > 10**-4
    loud[: 5 * RATE] = False
    erle = level(near[loud]) - level(left[loud])
    figure(f"echo cancellation, {ppm:+.0f} ppm between the cards", f"{erle:.0f} dB")
    assert erle >= 20


@pytest.mark.parametrize("rate_hz", [16_000, 32_000, 48_000])
def test_its_delay_is_what_it_declares(rate_hz: int) -> None:
    """Nothing is played: the sound comes through, to the frame that late."""
    pytest.importorskip("pywebrtc_audio")
    from capstand.processing.echo import EchoCancellation

    sent = wavering(rate_hz)
    one = EchoCancellation(Reference(rate_hz, rate_hz), Shape(rate_hz, 1))
    out = []
    for at in range(0, len(sent), 333):
        given = column(sent[at : at + 333])
        out.append(one.process(given))
        assert len(out[-1]) == len(given)
    assert lag(sent, np.concatenate(out)[:, 0]) == one.delay_frames


def test_who_speaks_is_heard_while_something_is_played() -> None:
    """Double talk, both as loud: of the near speech no more than 10 dB go."""
    pytest.importorskip("pywebrtc_audio")
    from capstand.processing.echo import EchoCancellation

    said = speech()
    far, own = said.samples, np.roll(said.samples, 7 * RATE)
    near = echoed(far) + own
    reference = Reference(RATE, RATE)
    one = EchoCancellation(reference, Shape(RATE, 1))
    out, putting = [], put(reference, far, 0.0)
    for at in range(0, len(near) - 3 * FRAMES, FRAMES):
        next(putting)
        one.at(START_NS + round(at * pace(0)), pace(0))
        out.append(one.process(column(near[at : at + FRAMES])))
    left = np.concatenate(out)[one.delay_frames :, 0]
    spoken = np.roll(said.spoken, 7 * RATE)[: len(left)].copy()
    spoken[: 8 * RATE] = False
    kept = np.dot(left[spoken], own[: len(left)][spoken]) / np.sum(own[: len(left)][spoken] ** 2)
    figure("echo cancellation, near speech in double talk", f"{20 * np.log10(kept):.1f} dB")
    assert 20 * np.log10(kept) > -10


def test_no_number_on_either_side_is_forgotten() -> None:
    pytest.importorskip("pywebrtc_audio")
    from capstand.processing.echo import EchoCancellation

    reference = Reference(RATE, RATE)
    one = EchoCancellation(reference, Shape(RATE, 2))
    for number in range(100):
        near, far = noise(FRAMES, 2, seed=number), noise(FRAMES, 1, 0.001, 1000 + number)
        if number == 20:
            near[3], far[5] = np.nan, np.inf
        at_ns = START_NS + round(number * FRAMES * pace(0))
        reference.put(far, at_ns, pace(0))
        one.at(at_ns, pace(0))
        out = one.process(near)
        assert np.isfinite(out).all()
    assert level(out) > -30


# The reference


def taken(
    reference: Reference, frames: int, ppm: float, jitter_ns: float = 0, start_ns: int = START_NS
) -> Samples:
    """The near side's blocks one after the other, of a clock that is not sure of its times."""
    drawn = np.random.default_rng(5)
    out = []
    for at in range(0, frames, FRAMES):
        at_ns = start_ns + round(at * pace(ppm) + drawn.normal(0, jitter_ns))
        out.append(reference.take(at_ns, FRAMES, pace(ppm)))
    return np.concatenate(out)


def filled(far: Mono, ppm: float = 0.0, rate_hz: int = RATE) -> Reference:
    reference = Reference(rate_hz, RATE)
    for at in range(0, len(far), 1000):
        at_ns = START_NS + round(at * pace(ppm, rate_hz))
        reference.put(column(far[at : at + 1000]), at_ns, pace(ppm, rate_hz))
    return reference


def tone(frames: int, hz: float, ppm: float = 0.0, rate_hz: int = RATE) -> Mono:
    """Of so many Hz in true time, as a card has it that is so much faster."""
    turns = hz * np.arange(frames) * pace(ppm, rate_hz) / NS_PER_S
    return (0.5 * np.sin(2 * np.pi * turns)).astype(np.float32)


@pytest.mark.parametrize("far_hz", [44_100, 48_000, 16_000])
@pytest.mark.parametrize("near_ppm, far_ppm", [(0, 0), (50, -50), (-100, 100)])
def test_the_same_time_is_the_same_sound(near_ppm: float, far_ppm: float, far_hz: int) -> None:
    """A tone of the far card, at another rate and pace, is the near card's own to -60 dB."""
    reference = filled(tone(3 * far_hz // 2, 1000, far_ppm, far_hz), far_ppm, far_hz)
    out = taken(reference, RATE, near_ppm)[FRAMES:, 0]
    due = tone(RATE, 1000, near_ppm)[FRAMES:]
    assert level(out - due) < level(due) - 60


def test_what_its_clock_corrects_is_not_heard() -> None:
    """Times that jump by 20 µs from block to block bend the sound no more than -50 dB."""
    reference = filled(tone(3 * RATE // 2, 1000))
    out = taken(reference, RATE, 0.0, jitter_ns=20_000)[FRAMES:, 0]
    spectrum = np.abs(np.fft.rfft(out * np.hanning(len(out)))) ** 2
    peak = int(np.argmax(spectrum))
    others = spectrum.sum() - spectrum[peak - 8 : peak + 9].sum()
    assert 10 * np.log10(others / spectrum.sum()) < -50


def test_a_pace_that_is_not_quite_true_is_made_up_for() -> None:
    """The clock is off by 20 ppm for 20 s: the sound stays within 50 µs of its time."""
    reference = Reference(RATE, RATE)
    worst = 0.0
    for number in range(2000):
        at_ns = START_NS + round(number * FRAMES * pace(0))
        turns = 100 * (number * FRAMES + np.arange(FRAMES)) / RATE
        reference.put(column(0.5 * np.sin(2 * np.pi * turns)), at_ns, pace(20))
        if number > 100:
            early_ns = round(50 * FRAMES * pace(0))
            out = reference.take(at_ns - early_ns, FRAMES, pace(0))
            off = np.angle(np.dot(out[:, 0], np.exp(-2j * np.pi * turns))) + np.pi / 2
            worst = max(worst, abs(off) / (2 * np.pi * 100))
    assert worst < 50e-6


def test_what_the_near_rate_cannot_hold_is_left_out() -> None:
    """12 kHz of a far side at 48 kHz are nothing at 16 kHz, and 3 kHz are 3 kHz."""
    for hz, low, high in ((12_000, -200, -70), (3_000, -9.3, -8.8)):
        reference = Reference(RATE, 16_000)
        reference.put(column(tone(RATE, hz)), START_NS, pace(0))
        out = reference.take(START_NS + NS_PER_S // 10, 8_000, pace(0, 16_000))
        assert low < level(out) < high


def test_what_has_not_come_is_silence_and_counted() -> None:
    reference = Reference(RATE, RATE)
    assert not reference.take(START_NS, FRAMES, pace(0)).any()
    reference.put(noise(FRAMES), START_NS, pace(0))
    reference.restart()
    assert not reference.take(START_NS + NS_PER_S, FRAMES, pace(0)).any()
    assert reference.missing == 2 * FRAMES


def test_a_loss_of_the_far_side_is_silence_at_its_time() -> None:
    """And what comes after it is where it belongs."""
    reference = Reference(RATE, RATE)
    far = noise(RATE)
    for at in range(0, RATE, FRAMES):
        if not 24_000 <= at < 28_800:
            reference.put(far[at : at + FRAMES], START_NS + round(at * pace(0)), pace(0))
    out = taken(reference, 40_000, 0.0)[:, 0]
    assert not out[24_050:28_700].any()
    for place in (slice(10_000, 20_000), slice(30_000, 39_000)):
        assert lag(far[place, 0], out[place]) == 0
        assert level(out[place]) > -22


def test_a_step_of_the_near_side_is_followed_at_once() -> None:
    """After a gap of the microphone the reference is where that is now."""
    far = noise(2 * RATE)
    reference = filled(far[:, 0])
    taken(reference, 9_600, 0.0)
    out = taken(reference, 9_600, 0.0, start_ns=START_NS + NS_PER_S)[:, 0]
    assert lag(far[RATE : RATE + 9_600, 0], out) == 0
    assert level(out) > -22


def test_it_runs_for_hours() -> None:
    """At 100 ppm, an hour later, the times still agree: nothing adds up."""
    reference = Reference(RATE, RATE)
    at_ns = START_NS + 3600 * NS_PER_S
    first = round(3600 * RATE * 1.0001)
    reference.put(noise(FRAMES), START_NS, pace(100))
    far = noise(RATE)
    begin_ns = START_NS + round(first * pace(100))
    for at in range(0, RATE, FRAMES):
        reference.put(far[at : at + FRAMES], begin_ns + round(at * pace(100)), pace(100))
    out = taken(reference, 24_000, 0.0, start_ns=at_ns)[:, 0]
    assert abs(lag(far[:24_000, 0], out)) <= 1
