"""Voice activity: a gate that lets through what is said, or only the mark that somebody speaks.

Each 10 ms an engine tells how likely there is speech in it, ``webrtc`` (processing/webrtc.py) or
``speex`` (processing/speexdsp.py). From a threshold on it is speech, and for ``hold_ms`` after
the last of it, so that words do not fall apart. The gate opens and closes over ``fade_ms``; because
speech is known only when it has begun, the sound comes ``lookahead_ms`` later, and the gate opens
in front of it. A mark alone delays nothing, and the sound stays what it is to the bit.

Thread: the chain's; ``figures`` any.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from capstand.processing import speexdsp
from capstand.processing.engines import choose
from capstand.processing.processor import Samples, Shape
from capstand.processing.whole import mended

THRESHOLD = {"webrtc": 0.4, "speex": 0.7}
"""Of white and pink noise at 5 dB none was taken for speech, or 1 in 100 (docs)."""
SHARE_S = 60.0
"""Of so much sound ``speech_share`` is told."""
Detect = Callable[[Samples], float]


class VoiceActivity:
    """``speech``: somebody speaks, or has just spoken."""

    stays_finite = True

    def __init__(self, settings: Any, shape: Shape) -> None:
        self.speech = False
        self.probability = self.share = 0.0
        self._rate_hz = shape.rate_hz
        self._tenth = shape.rate_hz // 100
        self._engine = choose(settings.engine, shape.rate_hz)
        self._detect = _DETECTORS[self._engine](shape)
        self._heard = np.zeros((self._tenth, shape.channels), np.float32)
        self._filled = 0
        self._since = 0  # frames since the last speech
        self._looks = 0
        self._gain = 0.0
        self._adopt(settings)
        self.delay_frames = self._frames(settings.lookahead_ms) if settings.mode == "gate" else 0
        self._delayed = np.zeros((self.delay_frames, shape.channels), np.float32)

    def _adopt(self, settings: Any) -> None:
        self._settings = settings
        self._hold = self._frames(settings.hold_ms)
        own = settings.threshold
        self._threshold = THRESHOLD[self._engine] if own is None else own
        self._step = 1.0 / max(1, self._frames(settings.fade_ms))

    def _frames(self, ms: float) -> int:
        return round(ms * self._rate_hz / 1000)

    def process(self, block: Samples) -> Samples:
        gated = self._settings.mode == "gate"
        out = block
        if gated:
            late = np.concatenate((self._delayed, block))
            out, self._delayed = late[: len(block)], late[len(block) :].copy()
        at = 0
        while at < len(block):
            count = min(len(block) - at, self._tenth - self._filled)
            if gated:
                self._gate(out[at : at + count])
            self._heard[self._filled : self._filled + count] = block[at : at + count]
            self._filled += count
            at += count
            if self._filled == self._tenth:
                self._look()
        return out

    def _look(self) -> None:
        self._filled = 0
        self.probability = self._detect(mended(self._heard))
        spoken = self.probability >= self._threshold
        self._since = 0 if spoken else self._since + self._tenth
        self.speech = spoken or (self.speech and self._since < self._hold)
        self._looks = min(self._looks + 1, round(SHARE_S * 100))
        self.share += (self.speech - self.share) / self._looks

    def _gate(self, samples: Samples) -> None:
        """In place. The gain goes evenly to 1 or 0, a frame at a time."""
        target = 1.0 if self.speech else 0.0
        if self._gain == target:
            if not target:
                samples.fill(0)
            return
        step = self._step if target else -self._step
        gains = np.clip(self._gain + step * np.arange(1, len(samples) + 1), 0.0, 1.0)
        samples *= gains.astype(np.float32)[:, np.newaxis]
        self._gain = float(gains[-1])

    def reset(self) -> None:
        """What is delayed is let go; what the engine has learnt of the noise, it keeps."""
        self._delayed = np.zeros_like(self._delayed)
        self._filled = 0
        self.speech, self.probability, self._gain = False, 0.0, 0.0

    def change(self, settings: Any) -> bool:
        old = self._settings
        alike = (settings.mode, settings.lookahead_ms) == (old.mode, old.lookahead_ms)
        if not alike or choose(settings.engine, self._rate_hz) != self._engine:
            return False
        self._adopt(settings)
        return True

    def figures(self) -> dict[str, object]:
        return {
            "engine": self._engine,
            "speech": self.speech,
            "speech_probability": round(self.probability, 2),
            "speech_share": round(self.share, 3),
        }


def _webrtc(shape: Shape) -> Detect:
    from pywebrtc_audio import VoiceDetector

    detector = VoiceDetector(*shape)
    return lambda block: float(detector.process(block.reshape(-1)))


def _speex(shape: Shape) -> Detect:
    tenth = shape.rate_hz // 100
    states = [speexdsp.Preprocessor(shape.rate_hz, tenth, 0) for _ in range(shape.channels)]

    def detect(block: Samples) -> float:
        for state, channel in zip(states, speexdsp.to_int16(block), strict=True):
            state.process(channel)
        return max(state.speech_probability for state in states)

    return detect


_DETECTORS: dict[str, Callable[[Shape], Detect]] = {"webrtc": _webrtc, "speex": _speex}
