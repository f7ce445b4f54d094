"""What is measured of the captured sound: level, defects of single channels, loudness.

To load it takes longer than opening a card does, so it is there once sound flows. The push thread
feeds it; what it shows is read by main.
"""

import math
from typing import TYPE_CHECKING

from capstand.config.schema import CaptureConfig
from capstand.stream import defect
from capstand.stream.defect import Defect

if TYPE_CHECKING:
    from capstand.dsp.defects import Defects
    from capstand.dsp.level import Meter
    from capstand.dsp.loudness import LoudnessWatch


class Meters:
    """``unmeasured`` says why there is no loudness although it is wanted."""

    def __init__(self, capture: CaptureConfig) -> None:
        self.unmeasured: str | None = None
        self._capture = capture
        self._watch: Defects | None = None
        self._loudness: LoudnessWatch | None = None

    def load(self) -> "Meter":
        """To be fed with all that is captured."""
        from capstand.dsp.defects import Defects, Limits
        from capstand.dsp.level import Meter

        capture = self._capture
        self._watch = Defects(capture.audio, Limits.of(capture))
        if capture.loudness:
            self._load_loudness()
        return Meter(capture.audio, self._watch, self._loudness)

    def _load_loudness(self) -> None:
        from capstand.dsp.loudness import LoudnessWatch

        capture = self._capture
        try:
            self._loudness = LoudnessWatch(capture.audio, capture)
        except OSError as error:
            self.unmeasured = str(error)

    def defects(self) -> list[Defect]:
        """What is wrong with the sound of single channels, and with its loudness."""
        capture = self._capture
        figures = self._watch.figures if self._watch else None
        found = defect.find(figures, capture) if figures else []
        heard = self._loudness.figures if self._loudness else None
        return found + (defect.of_loudness(heard, capture) if heard else [])

    def channel_levels(self) -> list[dict[str, float | None]] | None:
        """Of each channel, by the card's number: its peak just now, over the last seconds its mean
        and its clipped peaks, and for how long it has brought a single value."""
        figures = self._watch.figures if self._watch else None
        if figures is None:
            return None
        return [
            {
                "channel": self._capture.card_channel(at),
                "peak_dbfs": round(20 * math.log10(max(one.peak, 1e-6)), 1) + 0.0,
                "dc": None if one.dc is None else round(one.dc, 5) + 0.0,
                "clipped_per_s": None if one.clipped_per_s is None else round(one.clipped_per_s, 1),
                "constant_s": round(one.constant_s, 1),
            }
            for at, one in enumerate(figures)
        ]

    def loudness_figures(self) -> dict[str, float] | None:
        return self._loudness.running.figures() if self._loudness else None
