"""Noise suppression: steady noise is turned down, most where nobody speaks.

Two engines do the work, ``webrtc`` (processing/webrtc.py) and ``speex`` (processing/speexdsp.py).
Both learn the noise within a second or two of sound. Speex distorts speech less and comes 3 ms
later; its samples have 16 bits. Either has four levels, by number.

Thread: the chain's.
"""

from typing import Any

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
    """By WebRTC, for all channels at once. Another level takes another object."""

    def __init__(self, level: int, shape: Shape, grain_frames: int = 1) -> None:
        from pywebrtc_audio import NoiseSuppressor

        rate_hz, channels = shape
        self._level, self._rate_hz = level, rate_hz
        self._engine = webrtc.Engine(lambda: NoiseSuppressor(rate_hz, channels, level), channels)
        self._whole = WholeBlocks(
            self._engine.process, rate_hz // 100, channels, grain_frames=grain_frames
        )
        self.delay_frames = self._whole.delay_frames + webrtc.NS_DELAY[rate_hz]

    def process(self, block: Samples) -> Samples:
        return self._whole.process(block)

    def reset(self) -> None:
        self._whole.reset()

    def change(self, settings: Any) -> bool:
        same = LEVELS.index(settings.level) == self._level
        return same and choose(settings.engine, self._rate_hz) == "webrtc"

    def figures(self) -> dict[str, object]:
        return {
            "engine": "webrtc",
            "speech_probability": round(self._engine.object.speech_probability, 2),
            "engine_restarts": self._engine.made - 1,
        }


class SpeexSuppression:
    """By libspeexdsp, each channel for itself; the level can be changed as it runs."""

    def __init__(self, level: int, shape: Shape, grain_frames: int = 1) -> None:
        rate_hz, channels = shape
        block = rate_hz // 100
        self._rate_hz = rate_hz
        self._states = [
            speexdsp.Preprocessor(rate_hz, block, SPEEX_DB[level]) for _ in range(channels)
        ]
        self._whole = WholeBlocks(self._suppressed, block, channels, grain_frames=grain_frames)
        self.delay_frames = self._whole.delay_frames + block

    def process(self, block: Samples) -> Samples:
        return self._whole.process(block)

    def _suppressed(self, block: Samples) -> Samples:
        samples = speexdsp.to_int16(mended(block))
        for state, channel in zip(self._states, samples, strict=True):
            state.process(channel)
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
        probability = max(state.speech_probability for state in self._states)
        return {"engine": "speex", "speech_probability": probability}
