"""Frame index ↔ CLOCK_MONOTONIC: a delay-locked loop over the kernel's stamps.

Each observation says "at ``stamp_ns`` the device had produced ``frame`` frames". Stamps are late,
hardly ever early: an interrupt waits, a pointer moves in steps, a host is pre-empted. The mean of
the error is therefore a bias and its tail is long, while its lower edge is sharp. So the detector
of this loop is not the single stamp but the second smallest residual of a short window (the
smallest is left out, so that one stamp from a broken driver does no harm), and late outliers never
reach the loop at all. Behind it stands the usual second-order loop, offset and rate, with gains
from a two-state Kalman filter: wide at the start, narrow when settled, no gears to tune. Compared
with the laws of zita-ajbridge, FFmpeg and GStreamer in tests/test_clock.py.

Frames the device counted but we lost are in the index, so a gap does not disturb the loop. A
device that stood still (a stall, a reopened card) is found as a run of windows that do not fit;
then the loop starts again at the new offset and keeps the rate.

CLOCK_MONOTONIC itself changes its rate while NTP slews the wall clock, by up to 500 ppm from one
moment to the next. No crystal does that, and the settled filter would follow for minutes: so
residuals that grow on one side, no faster than a slew, make it believe that the rate has changed.

Thread: one (capture). O(1) per observation, nothing grows.
"""

import math
from typing import Protocol

from capstand.block import NS_PER_S

WINDOW_S = 0.25
MIN_WINDOW = 5
START_RATE_SD = 300e-6
"""Standard deviation of a card's rate before we know it: ±200 ppm is the rule."""
RATE_WALK = 0.02e-6
"""Random walk of a crystal's rate, per square root of a second."""
RATE_LIMIT = 0.01
"""No card is 1 % off; a loop that says so has been fed nonsense."""
SLEW_LIMIT = 1200e-6
"""The largest change of rate followed: NTP's from 500 ppm slow to as much fast, and room."""
SLEW_SIGMA = 4.0
"""So far beyond the expected a window has to be, twice in a row and growing, to speak of a slew."""
MISFIT_WINDOWS = 4
"""Windows in a row that must disagree before the loop believes that the device stood still."""


class Pace(Protocol):
    """What is known of a card's rate, for those who are to keep step with it."""

    @property
    def ns_per_frame(self) -> float: ...

    @property
    def drift_ppm(self) -> float: ...

    @property
    def settled(self) -> bool: ...


class Clock:
    """Maps frame indices of one stream to nanoseconds of CLOCK_MONOTONIC and back.

    Before the first observation ``started`` is false and no time is known.
    """

    def __init__(self, rate_hz: int, period_frames: int) -> None:
        self.nominal_ns = NS_PER_S / rate_hz
        period_s = period_frames / rate_hz
        self._full_window = max(MIN_WINDOW, math.ceil(WINDOW_S / period_s))
        self.started = False
        self.relocks = 0
        self._anchor_frame = 0
        self._anchor_ns = 0
        self._offset_ns = 0.0
        self._rate = 0.0  # relative: the length of a frame is nominal · (1 + rate)
        self._restart_filter(START_RATE_SD)

    def _restart_filter(self, rate_sd: float) -> None:
        self._var_offset = 0.0  # ns²
        self._covariance = 0.0  # ns
        self._var_rate = rate_sd * rate_sd
        self._window = 1
        self._lateness_ns = 0.0
        self._misfits = 0
        self._suspect_ns = 0.0  # how far the last window was off, where that was suspicious
        self._clear_window()

    def _clear_window(self) -> None:
        self._seen = 0
        self._sum = 0.0
        self._low = self._second = math.inf
        self._low_frame = self._second_frame = 0

    @property
    def ns_per_frame(self) -> float:
        return self.nominal_ns * (1.0 + self._rate)

    @property
    def drift_ppm(self) -> float:
        """How much faster than nominal the card runs."""
        return (1.0 / (1.0 + self._rate) - 1.0) * 1e6

    @property
    def settled(self) -> bool:
        return self.started and self._var_rate < (2e-6) ** 2

    def time_of(self, frame: int) -> int:
        """When the frame was sampled, in ns. Needs ``started``."""
        ahead = (frame - self._anchor_frame) * self.ns_per_frame
        return self._anchor_ns + round(ahead + self._offset_ns)

    def frame_at(self, at_ns: int) -> int:
        """The frame that was being sampled at that time. Needs ``started``."""
        since = at_ns - self._anchor_ns - self._offset_ns
        return self._anchor_frame + round(since / self.ns_per_frame)

    def restart(self, frame: int, at_ns: int) -> None:
        """The device runs again with ``frame`` at ``at_ns``: take that, keep the rate for now."""
        self._anchor_frame, self._anchor_ns, self._offset_ns = frame, at_ns, 0.0
        self._restart_filter(START_RATE_SD if not self.started else 20e-6)
        self.started = True
        self._var_offset = 1e12  # the stamp may be 1 ms late

    def observe(self, frame: int, stamp_ns: int) -> None:
        """At ``stamp_ns`` the device had produced ``frame`` frames."""
        if not self.started:
            self.restart(frame, stamp_ns)
            return
        residual = (stamp_ns - self._anchor_ns - self._offset_ns) - (
            frame - self._anchor_frame
        ) * self.nominal_ns * (1.0 + self._rate)
        if residual < self._second:
            if residual < self._low:
                self._second, self._second_frame = self._low, self._low_frame
                self._low, self._low_frame = residual, frame
            else:
                self._second, self._second_frame = residual, frame
        self._seen += 1
        self._sum += residual
        if self._seen >= self._window:
            self._close_window()

    def _close_window(self) -> None:
        count = self._seen
        if count >= MIN_WINDOW:
            residual, frame = self._second, self._second_frame
            lateness = max(0.0, self._sum / count - residual)
            # The second smallest of n exponential values of mean m lies 2m/n above the true edge
            # and spreads by 1.4m/n; the outliers in the mean make up the difference.
            spread = 1.5 / count
            residual -= spread * self._lateness_ns
        else:
            residual, frame = self._low, self._low_frame
            lateness = max(self._lateness_ns, 200_000.0)
            spread = 1.0 / count
        if self._lateness_ns == 0.0:
            self._lateness_ns = lateness
        self._lateness_ns += 0.1 * (min(lateness, 4 * self._lateness_ns + 1e4) - self._lateness_ns)
        noise = (spread * self._lateness_ns + 1_000.0) ** 2
        self._window = min(self._full_window, self._window * 2)
        self._clear_window()
        self._correct(frame, residual, noise)

    def _slewed(self, residual_ns: float, elapsed_ns: float, total: float) -> float:
        """How much less certain the offset is (ns²) because the rate seems to have changed."""
        before, self._suspect_ns = self._suspect_ns, 0.0
        if abs(residual_ns) < SLEW_SIGMA * math.sqrt(total) or not elapsed_ns:
            return 0.0
        self._suspect_ns = residual_ns
        change = (residual_ns - before) / elapsed_ns
        growing = before * residual_ns > 0 and abs(residual_ns) > abs(before)
        if not growing or abs(change) > SLEW_LIMIT:
            return 0.0
        variance = change * change
        self._var_rate += variance
        self._covariance += elapsed_ns * variance
        self._var_offset += elapsed_ns * elapsed_ns * variance
        return elapsed_ns * elapsed_ns * variance

    def _correct(self, frame: int, residual_ns: float, noise: float) -> None:
        elapsed_ns = max(0.0, (frame - self._anchor_frame) * self.nominal_ns)
        self._offset_ns += elapsed_ns * (1.0 + self._rate)
        whole = round(self._offset_ns)
        self._anchor_frame = max(frame, self._anchor_frame)
        self._anchor_ns += whole
        self._offset_ns -= whole
        # Predict: rate wanders, offset follows it.
        walk = RATE_WALK * RATE_WALK * elapsed_ns / NS_PER_S
        self._var_offset += elapsed_ns * (2.0 * self._covariance + elapsed_ns * self._var_rate)
        self._covariance += elapsed_ns * self._var_rate
        self._var_rate += walk
        total = self._var_offset + noise
        total += self._slewed(residual_ns, elapsed_ns, total)
        if abs(residual_ns) > 6.0 * math.sqrt(total) + 200_000.0:
            self._misfits += 1
            if self._misfits >= MISFIT_WINDOWS:
                self.relocks += 1
                at_ns = self._anchor_ns + round(self._offset_ns + residual_ns)
                self.restart(self._anchor_frame, at_ns)
            return
        self._misfits = 0
        gain_offset = self._var_offset / total
        gain_rate = self._covariance / total
        self._offset_ns += gain_offset * residual_ns
        self._rate += gain_rate * residual_ns
        self._rate = min(RATE_LIMIT, max(-RATE_LIMIT, self._rate))
        self._var_rate -= gain_rate * self._covariance
        self._covariance -= gain_offset * self._covariance
        self._var_offset -= gain_offset * self._var_offset
