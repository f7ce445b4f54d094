"""Back to the target latency after a stall that was shorter than what is dropped for at once.

After such a stall the channel's queue holds more than it should, and the rate lock, which moves it
by at most 250 ppm, would take a quarter of an hour. So the depth is looked at: where it has not
come near its target for a second, the excess is to go within ``WITHIN_MS``. Blocks are dropped
where the sound is quiet, as it is between words; where it never is, at the end of that time. Or,
where it may be, all of it is played a little faster (``RateLoop.catch_up``).

Pure arithmetic. Thread: the sink's.
"""

from array import array
from operator import mul

from capstand.audio.block import SampleFormat

FADE_MS = 5.0
"""Sound dies away, and comes back, so."""
LATE_MS = 20.0
"""Less is left to the rate lock."""
WINDOW_MS = 1000.0
WITHIN_MS = 7500.0
LISTEN_MS = 1000.0
"""So long it is listened how loud the sound is, before any of it is called quiet."""
QUIET = 10**-1.5
"""Power below the mean (-15 dB) that is quiet."""
SILENT = 1e-6
"""Mean square of full scale (-60 dBFS) that is quiet whatever the mean is."""


class CatchUp:
    """``excess_ms``: so much later than ``target_ms`` the sound is, once that is sure; else 0. To
    close the hole that dropping leaves costs ``fade_ms``.
    """

    def __init__(self, target_ms: float, fade_ms: float) -> None:
        self.excess_ms = 0.0
        self._target_ms = target_ms
        self._fade_ms = fade_ms
        self._heard_ms = self._power = 0.0
        self._dropping = False
        self._since_ns = 0  # not near the target since then; 0: not known
        self._depths, self._looks = 0.0, 0

    def restart(self) -> None:
        """The queue was emptied, or the excess is being dealt with."""
        self.excess_ms, self._since_ns = 0.0, 0

    def saw(self, depth_ms: float, now_ns: int) -> None:
        """The queue holds ``depth_ms`` just after a push."""
        if self.excess_ms:
            return
        if self._since_ns == 0 or depth_ms <= self._target_ms + LATE_MS:
            self._since_ns, self._depths, self._looks = now_ns, 0.0, 0
            return
        late_ms = (now_ns - self._since_ns) / 1e6
        if late_ms > WINDOW_MS / 2:  # what had piled up is in by then
            self._depths += depth_ms
            self._looks += 1
        if late_ms >= WINDOW_MS:
            self.excess_ms = self._depths / self._looks - self._target_ms
            self._heard_ms = self._power = 0.0
            self._dropping = False

    def drops(self, power: float, span_ms: float) -> bool:
        """Whether the next block, of so much mean square of full scale, goes, while there is an
        excess; it is smaller then.
        """
        quiet = power < SILENT or power * self._heard_ms < QUIET * self._power
        self._heard_ms += span_ms
        self._power += power * span_ms
        overdue = self._heard_ms >= WITHIN_MS - self.excess_ms
        if not overdue and (self._heard_ms <= LISTEN_MS or not quiet):
            self._dropping = False
            return False
        if not self._dropping:
            self._dropping = True
            self.excess_ms += self._fade_ms
        self.excess_ms -= span_ms
        if self.excess_ms < span_ms / 2:
            self.restart()
        return True


def power(samples: bytes, sample: SampleFormat) -> float:
    """The mean square of all samples together; 1.0 is that of full scale."""
    if sample is SampleFormat.S16_LE:  # also where nothing else needs numpy
        values = array("h", samples)
        squares: int = sum(map(mul, values, values))
        return squares / (len(values) * 2.0**30)
    from capstand.dsp.level import mean_square

    return mean_square(samples, sample)
