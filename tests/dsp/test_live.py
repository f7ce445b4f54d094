"""A live track to the bit: what python-soxr and numpy make of the same blocks.

The lock itself is tested in test_ratelock.py, what is heard of it in tests/agora/test_rate_lock.py.
"""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.audio.block import NS_PER_S, AudioFormat, Block, SampleFormat
from capstand.dsp.catchup import FADE_MS
from capstand.dsp.channels import to_channels
from capstand.dsp.convert import to_int32
from capstand.dsp.live import LiveTrack
from capstand.dsp.ratelock import RateLoop
from capstand.dsp.resample import MARGIN

Samples = npt.NDArray[Any]
FORMATS = list(SampleFormat)


class Drifting:
    """The pace of a clock that goes on learning."""

    def __init__(self, rate_hz: int) -> None:
        self.ns_per_frame = NS_PER_S / rate_hz
        self.drift_ppm = -30.0
        self.settled = False

    def learn(self) -> None:
        self.drift_ppm += 7.0
        self.settled = self.drift_ppm > 0


class Reference:
    """The same in arrays: a block is decoded, faded in, resampled and rounded, each by itself."""

    def __init__(self, audio: AudioFormat, rate_hz: int, channels: int, pace: Drifting) -> None:
        self.loop = RateLoop(audio.rate_hz, rate_hz)
        self._audio, self._channels, self._pace = audio, channels, pace
        self._dtype = np.int16 if audio.sample is SampleFormat.S16_LE else np.int32
        self._stream = soxr.ResampleStream(
            audio.rate_hz * MARGIN, rate_hz, channels, np.dtype(self._dtype).name, "HQ", vr=True
        )
        self._stream.set_io_ratio(audio.rate_hz, rate_hz, 0)
        self._fade = round(FADE_MS * audio.rate_hz / 1000)
        self._last = np.zeros((1, channels))
        self._fade_in = False

    def put(self, block: Block) -> tuple[bytes, int]:
        first_ns = block.captured_at_ns - round(self.loop.held_s * NS_PER_S)
        if self._dtype is np.int16:
            flat: Samples = np.frombuffer(block.samples, "<i2")
        else:
            flat = to_int32(block.samples, self._audio.sample)
        samples = to_channels(flat.reshape(-1, self._audio.channels), self._channels)
        if self._fade_in:
            self._fade_in = False
            faded = samples.astype(np.float64)
            fade = min(self._fade, len(faded))
            faded[:fade] *= (1 - self._cosine()[:fade]) / 2
            samples = faded.astype(self._dtype)
        end_ns = block.captured_at_ns + round(block.frames * self._pace.ns_per_frame)
        pace = self._pace
        ratio = self.loop.ratio(block.frames, end_ns, pace.drift_ppm, pace.settled)
        return self._resampled(samples, ratio), first_ns

    def bridge(self, duration_ms: float) -> bytes:
        self.loop.restart()
        self._fade_in = True
        frames = max(self._fade, math.ceil(duration_ms * self._audio.rate_hz / 1000))
        gap = np.zeros((frames, self._channels))
        gap[: self._fade] = self._last * (1 + self._cosine()) / 2
        return self._resampled(gap.astype(self._dtype), self.loop.bridged(frames))

    def _cosine(self) -> Samples:
        return np.cos(np.linspace(0, np.pi, self._fade))[:, None]

    def _resampled(self, samples: Samples, ratio: float) -> bytes:
        self._last = samples[-1:]
        self._stream.set_io_ratio(ratio, 1.0, round(len(samples) / ratio))
        given = self._stream.resample_chunk(np.ascontiguousarray(samples))
        self.loop.gave(len(given), len(samples) / self._audio.rate_hz)
        if self._dtype is np.int16:
            return bytes(given)
        rounded = np.minimum(given.astype(np.int64) + 2**15 >> 16, 32767)
        return bytes(rounded.astype("<i2"))


def sound(audio: AudioFormat, frames: int, seed: int) -> bytes:
    """Noise of any bytes, or of floats within and somewhat beyond full scale."""
    rng = np.random.default_rng(seed)
    if audio.sample is SampleFormat.FLOAT_LE:
        return rng.uniform(-1.1, 1.1, frames * audio.channels).astype("<f4").tobytes()
    return rng.bytes(frames * audio.frame_bytes)


STEPS = st.lists(
    st.one_of(
        st.floats(5, 40).map(lambda ms: ("put", ms)),
        st.floats(0, 60).map(lambda ms: ("bridge", ms)),
        st.just(("catch up", 200.0)),
    ),
    max_size=12,
)


@pytest.mark.parametrize("sample", FORMATS)
@given(
    st.sampled_from([8000, 44_100, 48_000, 96_000]),
    st.sampled_from([16_000, 48_000]),
    st.sampled_from([(1, 1), (2, 2), (1, 2), (2, 1), (3, 1), (4, 2)]),
    STEPS,
)
@settings(deadline=None, max_examples=25)
def test_a_track_is_the_same_to_the_bit(
    sample: SampleFormat,
    rate_hz: int,
    to_hz: int,
    channels: tuple[int, int],
    steps: list[tuple[str, float]],
) -> None:
    """Of any format, rate and number of channels, in blocks of any length, through gaps and while
    it catches up: the samples, the times and what the lock makes of them."""
    audio, pace = AudioFormat(rate_hz, channels[0], sample), Drifting(rate_hz)
    track, reference = (kind(audio, to_hz, channels[1], pace) for kind in (LiveTrack, Reference))
    first_frame, now_ns = 0, NS_PER_S
    # Not by a gap to begin with: nothing comes out of it, and libsoxr's dither is then at random.
    for number, (kind, length_ms) in enumerate([("put", 100.0), *steps]):
        if kind == "bridge":
            assert track.bridge(length_ms) == reference.bridge(length_ms)
        elif kind == "catch up":
            for one in (track, reference):
                one.loop.catch_up(length_ms / 1000)
        else:
            frames = round(length_ms * rate_hz / 1000)
            block = Block(first_frame, frames, now_ns, sound(audio, frames, number), audio)
            assert track.put(block) == reference.put(block)
            first_frame, now_ns = first_frame + frames, now_ns + round(frames * pace.ns_per_frame)
            pace.learn()
        assert vars(track.loop) == vars(reference.loop)


def test_the_usual_card_needs_no_numpy() -> None:
    """S16 in as many channels as the track: a lock, a gap and a look at how loud it is, without 12
    MB and a tenth of a second of numpy in each channel's process."""
    code = (
        "import sys\n"
        "import capstand.sinks.agora\n"
        "from capstand.audio.block import AudioFormat, Block, SampleFormat\n"
        "from capstand.audio.clock import Clock\n"
        "from capstand.dsp.catchup import power\n"
        "from capstand.dsp.live import LiveTrack\n"
        "s16 = SampleFormat.S16_LE\n"
        "audio = AudioFormat(48000, 2, s16)\n"
        "track = LiveTrack(audio, 48000, 2, Clock(48000, 480))\n"
        "track.bridge(10)\n"
        "given = track.put(Block(0, 4800, 10**9, bytes(19200), audio))\n"
        "power(given[0], s16)\n"
        "print(len(given[0]) > 0, 'numpy' in sys.modules, 'soxr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False False\n"
