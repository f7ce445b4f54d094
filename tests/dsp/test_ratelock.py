"""The rate lock: sound keeps pace with CLOCK_MONOTONIC, whatever the card does, unheard.

The loop is driven by the stream's own clock, fed with stamps that are late as real ones are; the
resampler by a pure tone. Both on virtual time.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from capstand.agora.send_buffer import SendBufferModel
from capstand.audio.block import NS_PER_S, SampleFormat
from capstand.audio.clock import Clock
from capstand.dsp.ratelock import RateLoop
from capstand.dsp.resample import Resampler

RATE_HZ, FRAMES = 48000, 480
TARGET_S = 0.04


class Run:
    """A card, its clock, the loop, and the channel's queue, by counting alone."""

    def __init__(self, ppm: Callable[[float], float], seed: int = 1, to_hz: int = RATE_HZ) -> None:
        self.clock = Clock(RATE_HZ, FRAMES)
        self.loop = RateLoop(RATE_HZ, to_hz)
        self.drain = SendBufferModel(round(TARGET_S * 1000))
        self.depth_s = 0.0
        self.ratio = 0.0
        self._ppm = ppm
        self._to_hz = to_hz
        self._random = random.Random(seed)
        self._end_ns = float(NS_PER_S)
        self._frame = 0
        self._out = 0.0
        self._given = self._held = 0

    def block(self, lost: int = 0) -> None:
        """One period is captured, resampled and pushed."""
        per_frame = NS_PER_S / RATE_HZ / (1 + self._ppm(self._end_ns / NS_PER_S) * 1e-6)
        self._end_ns += (FRAMES + lost) * per_frame
        first = self._frame + lost
        self._frame = first + FRAMES
        outlier = self._random.random() < 0.01
        late_ns = self._random.uniform(1e6, 8e6) if outlier else self._random.expovariate(1 / 80e3)
        self.clock.observe(self._frame, round(self._end_ns + late_ns))
        end_ns = self.clock.time_of(first) + round(FRAMES * self.clock.ns_per_frame)
        if lost:
            self.loop.restart()
        self.ratio = self.loop.ratio(FRAMES, end_ns, self.clock.drift_ppm, self.clock.settled)
        self._out += FRAMES / self.ratio
        given = int(self._out) - self._given
        self._given += given
        self.loop.gave(given, 0.01)
        self._held += given
        now_ns = round(self._end_ns + late_ns)
        ten_ms = self._to_hz // 100
        while self._held >= ten_ms:
            self._held -= ten_ms
            self.drain.give(10_000_000, now_ns)
        self.depth_s = self.drain.depth_ms(now_ns) / 1000 + self._held / self._to_hz
        self.loop.steer(self.depth_s, TARGET_S, 0.01)

    def seconds(self, count: float) -> list[float]:
        """So long, and the mean depth of the queue in each second of it, in ms."""
        depths = []
        for _ in range(round(count * 100)):
            self.block()
            depths.append(self.depth_s * 1000)
        return [float(np.mean(depths[at : at + 100])) for at in range(0, len(depths), 100)]


@pytest.mark.parametrize("ppm", [500.0, -500.0, 37.0, 0.0])
def test_the_queue_stays_at_its_target(ppm: float) -> None:
    """After a minute, and for the hour that follows, the queue is within 2 ms of its target, it
    never runs dry, and the rate is known to 1 ppm."""
    run = Run(lambda _: ppm)
    run.seconds(60)
    drifts = []
    means = []
    for _ in range(60):
        means += run.seconds(60)
        drifts.append(run.clock.drift_ppm)
    assert max(abs(mean - 40) for mean in means) < 2
    assert run.drain.holes == 0
    assert max(abs(drift - ppm) for drift in drifts) < 1
    assert run.loop.locked and run.loop.ratio_ppm == pytest.approx(ppm, abs=5)


def test_a_crystal_that_warms_up_is_followed() -> None:
    """A rate that moves by 20 ppm in ten minutes leaves the queue where it is."""
    run = Run(lambda at_s: 50 + 20 * min(1.0, at_s / 600))
    run.seconds(60)
    assert max(abs(second - 40) for second in run.seconds(700)) < 2
    assert run.loop.ratio_ppm == pytest.approx(70, abs=5)


def test_another_rate_is_locked_as_well() -> None:
    """The lock holds between different rates too."""
    run = Run(lambda _: -120.0, to_hz=16000)
    run.seconds(60)
    assert max(abs(second - 40) for second in run.seconds(60)) < 2
    assert run.ratio == pytest.approx(3 * (1 - 120e-6), abs=3 * 25e-6)


def test_the_ratio_never_jumps() -> None:
    """From one block to the next the ratio moves by less than 30 ppm, also when the clock settles
    and after a gap."""
    run = Run(lambda _: 300.0)
    ratios = []
    for number in range(6000):
        run.block(lost=4800 if number in (2500, 4000) else 0)
        ratios.append(run.ratio)
    assert np.abs(np.diff(ratios)).max() < 30e-6


def test_a_gap_does_not_unlearn_the_rate() -> None:
    """After a second of lost frames the ratio is what it was."""
    run = Run(lambda _: 250.0)
    run.seconds(120)
    run.block(lost=48000)
    run.seconds(1)
    assert run.loop.ratio_ppm == pytest.approx(250, abs=270)
    run.seconds(60)
    assert run.loop.ratio_ppm == pytest.approx(250, abs=20)


def test_it_catches_up_gently() -> None:
    """So much less comes out as was asked for, within seconds; faster by 0.1 % from one block to
    the next, slower again likewise, and then not at all."""
    run = Run(lambda _: 0.0)
    run.seconds(20)
    depth_s, ratios = run.depth_s, [run.ratio]
    run.loop.catch_up(0.015)
    while run.loop.catching_up and len(ratios) < 300:
        run.block()
        ratios.append(run.ratio)
    run.block()
    ratios.append(run.ratio)
    assert np.abs(np.diff(ratios)).max() < 0.0011
    assert run.ratio == pytest.approx(1.0, abs=300e-6)
    assert run.depth_s == pytest.approx(depth_s - 0.015, abs=0.002)


def test_it_says_whether_it_is_locked() -> None:
    """Acquiring at first and after a gap, locked within a minute."""
    run = Run(lambda _: 100.0)
    run.seconds(1)
    assert not run.loop.locked
    run.seconds(59)
    assert run.loop.locked
    run.loop.restart()
    assert not run.loop.locked


# The resampler that does it

Wave = npt.NDArray[Any]


def window(count: int) -> Wave:
    """Blackman-Harris with seven terms: side lobes below −180 dB."""
    terms = (0.27105140, 0.43329794, 0.21812300, 0.06592545, 0.01081174, 0.00077658, 0.00001389)
    place = 2 * np.pi * np.arange(count) / count
    return np.asarray(sum((-1) ** n * one * np.cos(n * place) for n, one in enumerate(terms)))


def resampled(hertz: float, seconds: float, ppm: Callable[[float], float]) -> Wave:
    """A tone at half of full scale through a ratio that moves block by block."""
    resampler = Resampler(RATE_HZ, RATE_HZ, 1, SampleFormat.FLOAT_LE, moving=True)
    tone = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)
    blocks = []
    for at in range(0, len(tone), FRAMES):
        resampler.move(1 + ppm(at / RATE_HZ) * 1e-6, FRAMES)
        blocks.append(resampler.process(tone[at : at + FRAMES].astype(np.float32).tobytes()))
    return np.frombuffer(b"".join(blocks), np.float32).astype(np.float64)


@pytest.mark.parametrize("ppm", [0.0, 100.0, -300.0])
def test_a_locked_tone_is_clean(ppm: float) -> None:
    """THD+N of a 1 kHz tone is below −110 dB from 20 Hz to 20 kHz."""
    wave = resampled(997, 6, lambda _: ppm)[RATE_HZ : 5 * RATE_HZ]
    power = np.abs(np.fft.rfft(wave * window(len(wave)))) ** 2
    per_bin = RATE_HZ / len(wave)
    at = round(997 * (1 + ppm * 1e-6) / per_bin)
    signal = power[at - 12 : at + 13].sum()
    rest = power[round(20 / per_bin) : round(20_000 / per_bin)].sum() - signal
    assert 10 * np.log10(rest / signal) < -110


@pytest.mark.parametrize("hertz", [50, 1000, 10_000, 18_000, 20_000])
def test_the_pass_band_is_flat(hertz: int) -> None:
    """Up to 20 kHz no tone changes its level by more than 0.1 dB."""
    wave = resampled(hertz, 2, lambda _: 100.0)[RATE_HZ // 2 : 3 * RATE_HZ // 2]
    assert abs(20 * np.log10(np.sqrt(np.mean(wave**2)) / (0.5 / np.sqrt(2)))) < 0.1


def test_a_ratio_that_moves_is_not_heard() -> None:
    """Under a sweep of ±200 ppm a 1 kHz tone has no side band above −90 dBc."""
    wave = resampled(1000, 24, lambda at_s: 200 * np.sin(2 * np.pi * 0.05 * at_s))
    wave = wave[2 * RATE_HZ : 22 * RATE_HZ]
    level = 20 * np.log10(np.abs(np.fft.rfft(wave * window(len(wave)))) + 1e-12)
    per_bin = RATE_HZ / len(wave)
    away = round(5 / per_bin)  # the tone itself moves by 0.2 Hz, and the window is wide
    tone = round(1000 / per_bin)
    others = np.concatenate([level[round(20 / per_bin) : tone - away], level[tone + away :]])
    assert others.max() - level.max() < -90
