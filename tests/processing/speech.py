"""Speech for the tests: which samples are speech is known, because sentences and the pauses between
them are laid out here."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from capstand.processing.processor import Samples

Mask = npt.NDArray[np.bool_]
Mono = npt.NDArray[np.float32]

SENTENCES = [Path(__file__).parent / "sentences" / f"{number}.flac" for number in range(1, 11)]
"""Harvard sentences, list 1 (IEEE Recommended Practice for Speech Quality Measurements, 1969), said
once by espeak-ng 1.51 with the voices en+m3, en+f2, en+m7 and en+f4 in turn. They are kept because
espeak-ng 1.52 says a sentence differently from one time to the next: of 1,578 readings of all ten
more than 500 differed, and once voice activity was judged by one that nobody could hear again."""
PAUSE_S = (1.0, 1.2, 1.4)
LEAD_S = 1.0
EDGE_S = 0.15
"""Around the edges of a sentence it is not judged what is speech."""
ACTIVE_DBFS = -26.0


class Speech(NamedTuple):
    """Mono, ``ACTIVE_DBFS`` while somebody speaks; ``spoken`` and ``paused`` mark what is surely
    the one and the other."""

    rate_hz: int
    samples: npt.NDArray[np.float32]
    spoken: Mask
    paused: Mask


@cache
def speech(rate_hz: int = 48_000, sentences: int = len(SENTENCES)) -> Speech:
    parts, spoken, paused = [], [], []

    def put(samples: npt.NDArray[np.float32], speaks: bool) -> None:
        edge = np.zeros(len(samples), bool)
        edge[round(EDGE_S * rate_hz) : -round(EDGE_S * rate_hz)] = True
        parts.append(samples)
        spoken.append(edge & speaks)
        paused.append(edge & (not speaks))

    put(np.zeros(round(LEAD_S * rate_hz), np.float32), False)
    for number in range(sentences):
        said, own_hz = soundfile.read(SENTENCES[number], dtype="float32")
        put(soxr.resample(said, own_hz, rate_hz), True)
        pause = np.zeros(round(PAUSE_S[number % len(PAUSE_S)] * rate_hz), np.float32)
        put(pause, False)
    samples, where = np.concatenate(parts), np.concatenate(spoken)
    samples *= 10 ** ((ACTIVE_DBFS - level(samples[where])) / 20)
    arrays = samples.astype(np.float32), where, np.concatenate(paused)
    for shared in arrays:
        shared.setflags(write=False)
    return Speech(rate_hz, *arrays)


def level(samples: npt.NDArray[np.floating]) -> float:
    """RMS in dBFS."""
    return 10 * float(np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-20))


def white(count: int, dbfs: float, seed: int = 1) -> npt.NDArray[np.float32]:
    noise = np.random.default_rng(seed).standard_normal(count)
    return np.asarray(noise * 10 ** (dbfs / 20), np.float32)


def pink(count: int, dbfs: float, rate_hz: int = 48_000, seed: int = 1) -> npt.NDArray[np.float32]:
    """From 50 Hz up, as behind a microphone's high-pass."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(count))
    hz = np.fft.rfftfreq(count, 1 / rate_hz)
    spectrum *= (hz > 50) / np.sqrt(np.maximum(hz, 50))
    noise = np.fft.irfft(spectrum, count)
    return np.asarray(noise * 10 ** ((dbfs - level(noise)) / 20), np.float32)


def wavering(rate_hz: int, seed: int = 1) -> npt.NDArray[np.float32]:
    """3 s of noise whose level changes all the time: nothing takes that for steady."""
    drawn = np.random.default_rng(seed)
    levels = np.repeat(drawn.uniform(0, 1, 300) ** 3, rate_hz // 100)
    return np.asarray(0.1 * levels * drawn.standard_normal(len(levels)), np.float32)


def aligned(out: Samples, delay_frames: int) -> Samples:
    """The output as if it came at once, silence at its end."""
    return np.concatenate((out[delay_frames:], np.zeros((delay_frames, out.shape[1]), np.float32)))


def echoed(sound: Mono, away_s: float = 0.03, rt60_s: float = 0.2) -> Mono:
    """Through a room, 6 dB below what is played."""
    count = round(rt60_s * 48_000)
    decay = np.exp(-6.9 * np.arange(count) / count)
    tail = np.random.default_rng(3).standard_normal(count) * decay
    tail[0] = 5.0
    tail *= 0.5 / np.sqrt(np.sum(tail**2))
    size = len(sound) + count
    out = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(tail, size), size)[: len(sound)]
    away = round(away_s * 48_000)
    return np.concatenate((np.zeros(away), out[:-away])).astype(np.float32)


def erle(near: Mono, left: Mono, delay_frames: int, from_s: float) -> float:
    """By how much the echo falls where there is one."""
    left = left[delay_frames:]
    near = near[: len(left)]
    loud = np.convolve(np.square(near), np.ones(4800) / 4800, "same") > 10**-4
    loud[: round(from_s * 48_000)] = False
    return level(near[loud]) - level(left[loud])


def lag(sent: npt.NDArray[np.floating], got: npt.NDArray[np.floating]) -> int:
    """By how many frames ``got`` is later, by cross-correlation."""
    size = 2 * len(sent)
    crossed = np.fft.irfft(np.fft.rfft(got, size) * np.conj(np.fft.rfft(sent, size)))
    return int(np.argmax(crossed[: len(sent) // 2]))
