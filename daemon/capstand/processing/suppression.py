"""Noise suppression: steady noise is turned down, most where nobody speaks.

Two engines do the work, ``webrtc`` (processing/webrtc.py) and ``speex`` (processing/speexdsp.py).
Both learn the noise within a second or two of sound. Speex distorts speech less and comes 3 ms
later; its samples have 16 bits. Either has four levels, by number.

Thread: the chain's.
"""

from typing import Any

import numpy as np

from capstand.processing import speexdsp, webrtc
from capstand.processing.engines import choose
from capstand.processing.processor import Processor, Samples, Shape
from capstand.processing.types.noise_suppression import LEVELS
from capstand.processing.whole import WholeBlocks, mended

SPEEX_DB = (8, 15, 25, 35)
"""By level, with about the effect of WebRTC's; 15 is libspeexdsp's default."""


def suppression(engine: str, level: int, shape: Shape, grain_frames: int = 1) -> Processor:
    webrtc_does = choose(engine, shape.rate_hz) == "webrtc"
    kind = WebrtcSuppression if webrtc_does else SpeexSuppression
    return kind(level, shape, grain_frames)


class WebrtcSuppression:
    """By WebRTC, each channel for itself. Another level takes another object."""

    stays_finite = True

    def __init__(self, level: int, shape: Shape, grain_frames: int = 1) -> None:
        from pywebrtc_audio import NoiseSuppressor

        rate_hz, channels = shape
        self._level, self._rate_hz = level, rate_hz
        self._probability = 0.0
        self._engines = [
            webrtc.Engine(lambda: NoiseSuppressor(rate_hz, 1, level)) for _ in range(channels)
        ]
        self._whole = WholeBlocks(
            self._suppressed,
            rate_hz // 100,
            channels,
            engine_delay=webrtc.NS_DELAY[rate_hz],
            grain_frames=grain_frames,
        )
        self.delay_frames = self._whole.delay_frames

    def process(self, block: Samples) -> Samples:
        return self._whole.process(block)

    def _suppressed(self, block: Samples) -> Samples:
        engines = self._engines
        if len(engines) == 1:
            done = engines[0].process(block)
        else:
            done = np.empty_like(block)
            for number, engine in enumerate(engines):
                done[:, number] = engine.process(block[:, number])[:, 0]
        self._probability = max(engine.object.speech_probability for engine in engines)
        return done

    def reset(self) -> None:
        self._whole.reset()

    def change(self, settings: Any) -> bool:
        same = LEVELS.index(settings.level) == self._level
        return same and choose(settings.engine, self._rate_hz) == "webrtc"

    def figures(self) -> dict[str, object]:
        return {
            "engine": "webrtc",
            "speech_probability": round(self._probability, 2),
            "engine_restarts": sum(engine.restarts for engine in self._engines),
        }


class SpeexSuppression:
    """By libspeexdsp, each channel for itself; the level can be changed as it runs."""

    stays_finite = True

    def __init__(self, level: int, shape: Shape, grain_frames: int = 1) -> None:
        rate_hz, channels = shape
        block = rate_hz // 100
        self._rate_hz = rate_hz
        self._probability = 0.0
        self._states = [
            speexdsp.Preprocessor(rate_hz, block, SPEEX_DB[level]) for _ in range(channels)
        ]
        self._whole = WholeBlocks(
            self._suppressed, block, channels, engine_delay=block, grain_frames=grain_frames
        )
        self.delay_frames = self._whole.delay_frames

    def process(self, block: Samples) -> Samples:
        return self._whole.process(block)

    def _suppressed(self, block: Samples) -> Samples:
        samples = speexdsp.to_int16(mended(block))
        for state, channel in zip(self._states, samples, strict=True):
            state.process(channel)
        self._probability = max(state.speech_probability for state in self._states)
        return speexdsp.to_float(samples)

    def reset(self) -> None:
        self._whole.reset()

    def change(self, settings: Any) -> bool:
        if choose(settings.engine, self._rate_hz) != "speex":
            return False
        for state in self._states:
            state.depth(SPEEX_DB[LEVELS.index(settings.level)])
        return True

    def figures(self) -> dict[str, object]:
        return {"engine": "speex", "speech_probability": self._probability}
