"""WebRTC's audio processing by pywebrtc-audio (BSD engine, Apache 2 binding): float32 in and out.

Chosen by measurement (docs/processing-speech.md) over LiveKit's module, which does the same in 30
times the memory and ends the process on a block that is not 10 ms, and over RNNoise and
DeepFilterNet, which cost 50 times as much. What it is known to do, and is kept from here:

- Blocks of another length than whole 10 ms give other sound without a word (``WholeBlocks``).
- Its NoiseSuppressor takes both channels of a stereo stream for one: speech on the left and nothing
  on the right came out 13 dB lower. So each channel has one of its own.
- One NaN stays in it, also after its own ``reset``: an engine is thrown away then.
- Its NoiseSuppressor, EchoCanceller and VoiceDetector take three rates. Its AudioProcessor takes
  others, resamples, and leaves nothing of what is above 24 kHz; at 48 kHz it suppresses white noise
  by 7 dB, whatever the level, where the NoiseSuppressor has 12 and 16. So it is not used.
- Its GainController ends the process at 44100 Hz, never turns down, and has no target: not used.
- Levels and switches of a living engine cannot be changed.

Thread: the chain's, Python's lock released.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from capstand.processing.processor import Samples
from capstand.processing.whole import mended, sane

NS_DELAY = {16_000: 96, 32_000: 196, 48_000: 334}
"""By rate, in frames, by cross-correlation (version 0.2.0; the tests measure them again)."""
AEC_DELAY = {16_000: 128, 32_000: 260, 48_000: 430}


class Engine:
    """``process`` of an object of pywebrtc-audio for whole blocks of 10 ms that cannot poison it.

    ``make`` makes the object; ``channels`` come out of it.
    """

    def __init__(self, make: Callable[[], Any], channels: int = 1) -> None:
        self._make = make
        self._channels = channels
        self.object = make()
        self.restarts = 0

    def process(self, *blocks: Samples) -> Samples:
        """(frames, channels) of each input, of all as many, to as many frames."""
        flat = [mended(np.ascontiguousarray(block)).reshape(-1) for block in blocks]
        done: Samples = self.object.process(*flat).reshape(-1, self._channels)
        if sane(done):
            return done
        self.object = self._make()
        self.restarts += 1
        return np.zeros_like(done)
