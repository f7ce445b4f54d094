"""A noise gate: silence while the sound is below a threshold."""

from typing import Annotated, NamedTuple

import numpy as np

from capstand.config.registry import ProcessorType
from capstand.config.rules import Choice, Number
from capstand.processing.processor import Samples, Shape


class NoiseGateConfig(NamedTuple):
    type: Annotated[str, Choice(("noise-gate",))]
    threshold_dbfs: Annotated[float, Number(-100, 0)] = -50.0
    hold_ms: Annotated[float, Number(0, 10_000)] = 300.0
    fade_ms: Annotated[float, Number(1, 100)] = 5.0


class NoiseGate:
    def __init__(self, config: NoiseGateConfig, shape: Shape) -> None:
        self._shape = shape
        self._fade_frames = round(config.fade_ms * shape.rate_hz / 1000)
        self.delay_frames = self._fade_frames - 1  # it opens before the sound is there
        self._set(config)
        self.reset()

    def _set(self, config: NoiseGateConfig) -> None:
        self._config = config
        self._threshold = 10 ** (config.threshold_dbfs / 20)
        hold_frames = round(config.hold_ms * self._shape.rate_hz / 1000)
        self._open_frames = hold_frames + self._fade_frames

    def reset(self) -> None:
        self._sound = np.zeros((self.delay_frames, self._shape.channels), np.float32)
        self._gains = np.zeros(self.delay_frames)
        self._quiet_frames = self._open_frames

    def process(self, block: Samples) -> Samples:
        frames = len(block)
        index = np.arange(frames)
        loud = np.abs(block).max(axis=1) > self._threshold
        last_loud = np.maximum.accumulate(np.where(loud, index, -1 - self._quiet_frames))
        is_open = index - last_loud < self._open_frames
        self._quiet_frames = frames - 1 - int(last_loud[-1])

        sound = np.concatenate([self._sound, block])
        gains = np.concatenate([self._gains, is_open])
        self._sound, self._gains = sound[frames:], gains[frames:]
        fade = np.full(self._fade_frames, 1 / self._fade_frames)
        smooth = np.convolve(gains, fade, "valid").astype(np.float32)
        return sound[:frames] * smooth[:, np.newaxis]

    def change(self, settings: NoiseGateConfig) -> bool:
        if settings.fade_ms != self._config.fade_ms:
            return False  # another delay: a new gate
        self._set(settings)
        return True

    def figures(self) -> dict[str, object]:
        return {"open": self._quiet_frames < self._open_frames}


TYPE = ProcessorType(NoiseGateConfig, "https://gate.example/capstand", make=NoiseGate)
