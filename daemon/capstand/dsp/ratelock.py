"""Rate lock: so many frames out per second of CLOCK_MONOTONIC, whatever the card's crystal does.

A channel takes 10 ms of sound per 10 ms of its own clock. A card that is 100 ppm fast would fill
its queue by 360 ms an hour, one that is slow would leave holes. So the resampler's ratio is steered
such that what comes out keeps pace with the time at which the sound was captured, as the stream's
clock knows it (to microseconds, without the jitter of wake-ups):

    error = sound given out so far, in seconds  −  time that has passed on the timeline

a second-order loop of ``LOOP_HZ`` brings it to zero, and the clock's own estimate of the drift goes
straight into the ratio, so that the loop has next to nothing to do once that is known. The output
is counted in fractions of a frame by the ratios that were asked for, because whole frames would
shake the ratio by some ppm; a slow leak holds that sum to the true count.

An outer loop brings the depth of the channel's queue to its target: it shifts the timeline by at
most ``STEER_PPM``, which nobody hears, and looks at the mean depth, since a single look has the
jitter of a wake-up in it.

Pure arithmetic; time is an argument.
"""

import math

from capstand.audio.block import NS_PER_S

LOOP_HZ = 0.02
DAMPING = 0.707
LIMIT_PPM = 2000.0
FASTEST = 0.06
"""So much faster sound is played while it catches up: by a semitone, for some seconds."""
FASTER_PER_S = 0.1
"""And it comes to that, and goes back, so gently."""
STEER_PPM = 250.0
STEER_S = 20.0
"""A depth that is off by a little is brought back in about so long."""
DEPTH_S = 10.0
LEAK_S = 20.0
FILLED_S = 0.5
"""By then a resampler holds what it always holds."""
LOCKED_S = 0.0005
"""An error below that, for ``LOCKED_FOR_S``, is a lock."""
LOCKED_FOR_S = 2.0

_OMEGA = 2 * math.pi * LOOP_HZ
_LIMIT = LIMIT_PPM * 1e-6


class RateLoop:
    """Gives the ratio (frames in per frame out) for each block from ``rate_hz`` to ``to_hz``.

    ``ratio_ppm`` is how far it is from nominal; ``error_s`` the loop's error; ``locked`` whether
    both can be trusted.
    """

    def __init__(self, rate_hz: int, to_hz: int) -> None:
        self.locked = False
        self.error_s = 0.0
        self.ratio_ppm = 0.0
        self._nominal = rate_hz / to_hz
        self._rate_hz = rate_hz
        self._to_hz = to_hz
        self._learnt = 0.0  # relative: what the loop itself found out about the drift
        self._known = 0.0  # relative: the clock's estimate, once it has settled
        self._trusted = False
        self._ratio = self._nominal
        self._begin_ns = 0  # 0: no timeline yet
        self._begin_s = 0.0
        self._out_s = 0.0
        self._true_s = 0.0
        self._lead_s = 0.0  # what the resampler holds
        self._shift_s = 0.0
        self._behind_s = 0.0
        self._faster = 0.0
        self._depth_s = 0.0
        self._depth_seen_s = 0.0
        self._steady_s = 0.0

    def restart(self) -> None:
        """The timeline begins anew with the next block; what is known about the rate is kept."""
        self._begin_ns = 0
        self._behind_s = self._faster = 0.0
        self._depth_seen_s = self._steady_s = 0.0
        self.locked = False

    def ratio(self, frames: int, end_ns: int, drift_ppm: float, settled: bool) -> float:
        """The ratio for a block of ``frames`` captured until ``end_ns``. ``drift_ppm`` is how much
        faster than nominal the card runs, worth something once ``settled``.
        """
        span_s = frames / self._rate_hz
        if settled:
            known = drift_ppm * 1e-6
            if not self._trusted:
                self._learnt -= known  # the loop had found out that much by itself
            self._known, self._trusted = known, True
        if self._begin_ns == 0:
            # with the error that was: the ratio must not jump where the timeline does
            self._begin_ns, self._shift_s = end_ns, 0.0
            self._begin_s = self._out_s - self.error_s
        passed_s = (end_ns - self._begin_ns) / NS_PER_S
        error = self._out_s - self._begin_s - passed_s - self._shift_s
        self.error_s = error
        self._learnt = _within(self._learnt + _OMEGA * _OMEGA * error * span_s, _LIMIT)
        moved = _within(self._known + self._learnt + 2 * DAMPING * _OMEGA * error, _LIMIT)
        self.ratio_ppm = moved * 1e6
        ratio = self._nominal * (1.0 + moved)
        if self._behind_s or self._faster:
            ratio *= 1.0 + self._speed_up(span_s)
        self._ratio = ratio
        self._out_s += frames / ratio / self._to_hz
        self._steady_s = self._steady_s + span_s if abs(error) < LOCKED_S else 0.0
        self.locked = self._trusted and self._steady_s >= LOCKED_FOR_S
        return ratio

    def catch_up(self, behind_s: float) -> None:
        """So much less than the sound put in is to come out, by playing it faster for a while."""
        self._behind_s = behind_s

    @property
    def catching_up(self) -> bool:
        """Whether it is catching up."""
        return self._behind_s > 0 or self._faster > 0

    def _speed_up(self, span_s: float) -> float:
        """How much faster the next block is played; the timeline is moved as much."""
        ends_s = self._faster / FASTER_PER_S  # slowing down takes so long, at half the speed
        wanted = FASTEST if self._behind_s > self._faster * ends_s / 2 else 0.0
        step = FASTER_PER_S * span_s
        self._faster = max(0.0, self._faster + _within(wanted - self._faster, step))
        gone_s = span_s * self._faster / (1.0 + self._faster)
        self._behind_s = max(0.0, self._behind_s - gone_s)
        self._shift_s -= gone_s
        return self._faster

    def bridged(self, frames: int) -> float:
        """``frames`` that nobody captured go in; the ratio stays as it is, and is returned."""
        self._out_s += frames / self._ratio / self._to_hz
        return self._ratio

    def gave(self, frames: int, span_s: float) -> None:
        """So many frames really came out of a block of ``span_s``: the sum must not wander off."""
        self._true_s += frames / self._to_hz
        lead_s = self._out_s - self._true_s
        if self._true_s < FILLED_S:
            self._lead_s = lead_s
        else:
            self._out_s -= (lead_s - self._lead_s) * span_s / LEAK_S

    @property
    def held_s(self) -> float:
        """What the resampler holds of the sound put in so far."""
        return self._out_s - self._true_s

    def steer(self, depth_s: float, target_s: float, span_s: float) -> None:
        """The channel's queue holds ``depth_s`` just after a push."""
        if self._depth_seen_s == 0.0:
            self._depth_s = depth_s
        self._depth_seen_s += span_s
        self._depth_s += (depth_s - self._depth_s) * min(1.0, span_s / DEPTH_S)
        if self._depth_seen_s >= DEPTH_S:
            wanted = (target_s - self._depth_s) / STEER_S
            self._shift_s += _within(wanted, STEER_PPM * 1e-6) * span_s


def _within(value: float, limit: float) -> float:
    if value > limit:
        return limit
    return value if value > -limit else -limit
