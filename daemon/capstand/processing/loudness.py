"""The loudness at a place of the chain: the sound goes through as it is, and its figures are shown.

A gap does not begin it anew: the integrated measure is of all that was heard.

Thread: the chain's; ``figures`` any.
"""

from typing import Any

from capstand.dsp.loudness import RunningLoudness
from capstand.processing.processor import Samples, Shape


class LoudnessStage:
    stays_finite = True
    delay_frames = 0

    def __init__(self, shape: Shape) -> None:
        self._running = RunningLoudness(*shape)

    def process(self, block: Samples) -> Samples:
        self._running.update(block)
        return block

    def reset(self) -> None:
        pass

    def change(self, settings: Any) -> bool:
        return True

    def figures(self) -> dict[str, object]:
        return dict(self._running.figures() or {})
