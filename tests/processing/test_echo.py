"""Echo cancellation between two cards, each with a crystal of its own, in a synthetic room."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import soxr

from capstand.audio.block import NS_PER_S, AudioFormat, SampleFormat, Shape
from capstand.audio.ring import Ring
from capstand.dsp.convert import from_float
from capstand.processing.chain import Chain
from capstand.processing.processor import Moment, Samples
from capstand.processing.reference import Reference
from capstand.processing.sidechain import Sidechain, SidechainReader
from tests.figures import figure
from tests.processing.signals import column, noise, settings
from tests.processing.speech import echoed, erle, lag, level, speech, wavering, white

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
    found = erle(near, np.concatenate(out)[:, 0], one.delay_frames, 5.0)
    figure(f"echo cancellation, {ppm:+.0f} ppm between the cards", f"{found:.0f} dB")
    assert found >= 20


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


# In a chain, with another stream for reference


class Pace(NamedTuple):
    ns_per_frame: float
    drift_ppm: float = 0.0
    settled: bool = True


class Far:
    """A stream whose captured ring is what the loudspeaker plays."""

    def __init__(
        self,
        period_ms: float = 10.0,
        rate_hz: int = RATE,
        channels: int = 1,
        away: Sequence[int] = (),
    ) -> None:
        self.audio = AudioFormat(rate_hz, channels, SampleFormat.S16_LE)
        self.frames = round(rate_hz * period_ms / 1000)
        self.ring = Ring(round(2000 / period_ms) + 4, self.frames * self.audio.frame_bytes)
        self.sidechain = Sidechain(self.ring.open_for_reading(), self.audio, period_ms)
        self._away = away
        self._captured = 0

    def publish(self, sound: Samples, first: int) -> None:
        """A block that begins with that frame of it, unless it is ``away`` then."""
        if first in self._away:
            return
        block = from_float(sound[first : first + self.frames], self.audio.sample)
        self.ring.slot()[: len(block)] = block
        clock, frames = pace(0, self.audio.rate_hz), len(block) // self.audio.frame_bytes
        at_ns = START_NS + round(first * clock)
        self.ring.publish(first, frames, at_ns, self._captured, Pace(clock))
        self._captured += frames


def cancelled(chain: Chain, far: Far, played: Samples, near: Mono, gathered: int = 1920) -> Mono:
    """What comes out while the far side's blocks are there as soon as they are whole."""
    out, at_far = [], 0
    for at in range(0, len(near) - gathered, gathered):
        while (at_far + far.frames) * RATE / far.audio.rate_hz <= at + gathered:
            far.publish(played, at_far)
            at_far += far.frames
        moment = Moment(START_NS + round(at * pace(0)), pace(0))
        out.append(chain.process(column(near[at : at + gathered]), moment[0], moment))
    return np.concatenate(out)[:, 0]


def missing(chain: Chain) -> int:
    return sum(int(str(one.get("reference_missing_frames", 0))) for one in chain.figures())


def listening(far: Far, *before: Any, **keys: Any) -> Chain:
    kinds = (*before, settings("echo-cancellation", reference="far", **keys))
    return Chain(kinds, Shape(RATE, 1), pytest.fail, {"far": far.sidechain})


@pytest.mark.parametrize(("period_ms", "rate_hz"), [(10.0, 48_000), (100.0, 44_100)])
def test_a_chain_hears_another_stream(period_ms: float, rate_hz: int) -> None:
    """Behind a processor that delays the sound by more than the canceller searches: the echo falls
    by 20 dB, and nothing of the reference comes too late, however long its periods are."""
    pytest.importorskip("pywebrtc_audio")
    said = speech().samples[: 12 * RATE] * np.float32(2)
    near = echoed(said) + white(len(said), -80)
    played = column(said if rate_hz == RATE else soxr.resample(said, RATE, rate_hz))
    far = Far(period_ms, rate_hz)
    chain = listening(far, settings("delay", delay_ms=800.0))
    left = cancelled(chain, far, played, near)
    found = erle(near, left, chain.delay_frames, 5.0)
    figure(f"echo cancellation in a chain, reference of {period_ms:g} ms", f"{found:.0f} dB")
    assert found >= 20
    waits_ms = max(20.0, 2 * period_ms)
    assert chain.figures()[1]["delay_frames"] == 909 + round((20 + waits_ms) * RATE / 1000)
    assert missing(chain) <= (800 + waits_ms) * RATE / 1000 + 30  # of before it began


def test_a_reference_that_stops_and_comes_back_is_heard_again() -> None:
    """Its stream is away for two seconds: the sound goes on with its delay, what is missing is
    counted, and the echo falls again afterwards."""
    pytest.importorskip("pywebrtc_audio")
    said = speech().samples[: 20 * RATE] * np.float32(2)
    near = echoed(said) + white(len(said), -80)
    away = range(8 * RATE, 10 * RATE)
    far = Far(away=away)
    chain = listening(far)
    left = cancelled(chain, far, column(said), near)
    assert "concern" not in chain.figures()[0]
    alone = slice(away.start + 4800, away.stop - 4800)
    late = left[chain.delay_frames :]
    assert level(late[alone]) > level(near[alone]) - 3
    assert abs(missing(chain) - len(away)) < 0.04 * RATE
    assert erle(near, left, chain.delay_frames, 15.0) >= 20


def test_one_that_hears_nothing_of_its_reference_says_so() -> None:
    """After five seconds, and until it hears something again."""
    pytest.importorskip("pywebrtc_audio")
    near, gathered = white(14 * RATE, -40), 1920
    far = Far(away=range(7 * RATE))
    chain = listening(far)
    told = []
    for at in range(0, len(near) - gathered, gathered):
        for first in range(at, at + gathered, far.frames):
            far.publish(column(near), first)
        moment = Moment(START_NS + round(at * pace(0)), pace(0))
        chain.process(column(near[at : at + gathered]), moment[0], moment)
        told.append(chain.figures()[0].get("concern"))
    words = [one is not None for one in told]
    began_s, ended_s = (
        words.index(True) * gathered / RATE,
        words.index(False, words.index(True)) * gathered / RATE,
    )
    assert set(told) == {None, "no sound comes from its reference, so no echo is removed"}
    assert 4.9 < began_s < 5.2 and 7.0 <= ended_s < 7.3


def test_another_ring_in_its_place_is_listened_to() -> None:
    """As after a reload: of another rate and period, without a step in the sound, while the same
    ring again changes nothing."""
    pytest.importorskip("pywebrtc_audio")
    said = speech().samples[: 4 * RATE]
    first, second = Far(), Far(20.0, 16_000, 2)
    chain = listening(first)
    kinds = [settings("echo-cancellation", reference="far")]
    before = chain.figures()[0]
    assert chain.change(kinds, {"far": first.sidechain}) and chain._change is None
    assert chain.change(kinds, {"far": second.sidechain}) and chain._change is not None
    played = np.repeat(column(soxr.resample(said, RATE, 16_000)), 2, axis=1)
    out = cancelled(chain, second, played, said * np.float32(0.1))
    assert chain.figures()[0]["delay_frames"] == int(str(before["delay_frames"])) + 960
    assert np.isfinite(out).all()
    assert missing(chain) <= RATE / 25 + 30


def test_who_listens_later_or_too_slowly_goes_on_with_what_there_is() -> None:
    """It begins with the last two seconds; pieces end at gaps, and are lost where it was lapped."""
    far = Far(channels=2)
    sound = noise(8 * RATE, 2)
    for at in range(0, 4 * RATE, FRAMES):
        far.publish(sound, at)
    reader = SidechainReader(far.sidechain)
    (only,) = reader.read()
    assert len(only[0]) == 2 * RATE
    assert abs(only[1].captured_at_ns - (START_NS + 2 * NS_PER_S)) < 2
    assert np.abs(only[0] - sound[2 * RATE : 4 * RATE]).max() < 1e-4
    far.publish(sound, 4 * RATE)
    far.publish(sound, 4 * RATE + 3 * FRAMES)
    assert [len(piece) for piece, _ in reader.read()] == [FRAMES, FRAMES]
    for at in range(5 * RATE, 8 * RATE, FRAMES):
        far.publish(sound, at)
    ((rest, moment),) = reader.read()
    assert FRAMES < len(rest) < 2 * RATE
    end_ns = moment.captured_at_ns + round(len(rest) * moment.ns_per_frame)
    assert abs(end_ns - (START_NS + 8 * NS_PER_S)) < 1000
    assert list(reader.read()) == []


def test_a_ring_is_let_go_with_who_listens() -> None:
    """No descriptor stays open, and of two rings it is known which is which."""
    far, other = Far(), Far()
    descriptor = far.sidechain.descriptor
    again = far.ring.open_for_reading()
    assert far.sidechain.has_ring(again) and not other.sidechain.has_ring(again)
    os.close(again)
    reader = SidechainReader(far.sidechain)
    del far.sidechain
    with pytest.raises(OSError):
        os.fstat(descriptor)
    far.publish(noise(FRAMES), 0)
    assert len(list(reader.read())) == 1


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


@pytest.mark.parametrize("far_hz", [8_000, 192_000, 768_000])
def test_any_rate_of_a_card_will_do(far_hz: int) -> None:
    """From the lowest to the highest that a stream may have, at each rate of the canceller."""
    for near_hz in (16_000, 48_000):
        reference = Reference(far_hz, near_hz)
        reference.put(column(tone(far_hz, 1000, 0.0, far_hz)), START_NS, pace(0, far_hz))
        out = reference.take(START_NS + NS_PER_S // 10, near_hz // 2, pace(0, near_hz))[:, 0]
        due = tone(near_hz, 1000, 0.0, near_hz)[near_hz // 10 :][: len(out)]
        assert level(out - due) < level(due) - 50
        assert reference.missing == 0


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
    assert reference.missing == 4_800
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
