"""Echo cancellation: what a loudspeaker of this room plays is taken out of the microphone's sound.

WebRTC's canceller (AEC3) learns the way from the one to the other, up to about half a second long;
it needs what is played, as the ``Reference`` has it. What is played must not come later than its
echo. So the microphone's sound waits here for ``hold_frames``, as long as the reference's own
blocks may be late, and up to half of that the reference is ahead, which forgives the clocks as
much.

The canceller subtracts one far channel from every near one. libspeexdsp has one too, but not for
two cards: at 100 ppm between them it takes away 7 dB instead of 40.

Thread: the chain's.
"""

from typing import Any

import numpy as np

from capstand.audio.block import NS_PER_S, Shape
from capstand.processing import webrtc
from capstand.processing.processor import Samples
from capstand.processing.reference import Reference
from capstand.processing.whole import WholeBlocks

HOLD_MS, LEAD_MS = 40.0, 20.0
DEAF_S = 5.0
"""So long a reference may be missing before that is a concern."""


def hold_ms(period_ms: float) -> float:
    """For a reference whose card may grant twice the period that is asked for."""
    return max(HOLD_MS, LEAD_MS + 2 * period_ms)


class EchoCancellation:
    """Whoever drives it says with ``at`` when the next block was captured; with none of that, and
    while nothing is played, the sound goes through with its delay."""

    stays_finite = True

    def __init__(
        self, reference: Reference, shape: Shape, hold_ms: float = HOLD_MS, grain_frames: int = 1
    ) -> None:
        from pywebrtc_audio import EchoCanceller

        rate_hz, channels = shape
        self._reference, self._shape = reference, shape
        self._engine = webrtc.Engine(lambda: EchoCanceller(rate_hz, channels), channels)
        self._whole = WholeBlocks(
            self._cancelled,
            rate_hz // 100,
            channels + 1,
            out=channels,
            engine_delay=webrtc.AEC_DELAY[rate_hz],
            grain_frames=grain_frames,
        )
        self._hold = round(hold_ms * rate_hz / 1000)
        self._lead = min(self._hold // 2, round(LEAD_MS * rate_hz / 1000))
        self.delay_frames = self._hold + self._whole.delay_frames
        self._held = np.zeros((self._hold, channels), np.float32)
        self._at_ns, self._ns_per_frame = 0, NS_PER_S / rate_hz
        self._deaf_frames = 0

    def at(self, captured_at_ns: int, ns_per_frame: float) -> None:
        """When the first frame of the next block was captured, and the pace of its clock."""
        self._at_ns, self._ns_per_frame = captured_at_ns, ns_per_frame

    def process(self, block: Samples) -> Samples:
        frames, pace = len(block), self._ns_per_frame
        late = np.concatenate((self._held, block))
        near, self._held = late[:frames], late[frames:].copy()
        if self._at_ns:
            missing = self._reference.missing
            from_ns = self._at_ns - round((self._hold - self._lead) * pace)
            far = self._reference.take(from_ns, frames, pace)
            self._at_ns += round(frames * pace)
            self._listened(frames, self._reference.missing - missing)
        else:
            far = np.zeros((frames, 1), np.float32)
        return self._whole.process(np.concatenate((near, far), axis=1))

    def _listened(self, frames: int, missing: int) -> None:
        self._deaf_frames = self._deaf_frames + frames if missing == frames else 0

    @property
    def concern(self) -> str | None:
        if self._deaf_frames < DEAF_S * self._shape.rate_hz:
            return None
        return "no sound comes from its reference, so no echo is removed"

    def _cancelled(self, both: Samples) -> Samples:
        far = np.repeat(both[:, -1:], self._shape.channels, axis=1)
        return self._engine.process(both[:, :-1], far)

    def reset(self) -> None:
        """What the canceller has learnt of the room it keeps."""
        self._held = np.zeros_like(self._held)
        self._whole.reset(self._hold)
        self._reference.restart()
        self._at_ns = 0

    def change(self, settings: Any) -> bool:
        return False

    def figures(self) -> dict[str, object]:
        return {
            "reference_missing_frames": self._reference.missing,
            "engine_restarts": self._engine.restarts,
        }
