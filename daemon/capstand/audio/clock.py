"""Frame index ↔ CLOCK_MONOTONIC: a delay-locked loop over the kernel's stamps.

Each observation says "at ``stamp_ns`` the device had produced ``frame`` frames". Stamps are late,
hardly ever early: an interrupt waits, a pointer moves in steps, a host is pre-empted. The mean of
the error is therefore a bias and its tail is long, while its lower edge is sharp. So the detector
of this loop is not the single stamp but the second smallest residual of a short window (the
smallest is left out, so that one stamp from a broken driver does no harm), and late outliers never
reach the loop at all. Behind it stands the usual second-order loop, offset and rate, with gains
from a two-state Kalman filter: wide at the start, narrow when settled, no gears to tune. Compared
with the laws of zita-ajbridge, FFmpeg and GStreamer in tests/audio/test_clock.py.

Frames the device counted but we lost are in the index, so a gap does not disturb the loop. Windows
in a row that do not fit, but agree with each other, are a step. Where the device is behind by it,
so much sound never came: the frames are ``missing``, the reader moves the index on by them, and
the line stays as it was. Where it is ahead, or the windows do not agree, the loop starts again at
the new offset and keeps the rate.

CLOCK_MONOTONIC itself changes its rate while NTP slews the wall clock, by up to 500 ppm from one
moment to the next. No crystal does that, and the settled filter would follow for minutes: so
residuals that grow on one side, no faster than a slew, make it believe that the rate has changed.

What the loop believes of its own rate is too good where stamps are late in a pattern, as of a
pointer that moves in steps: each window fits, and all are off the same way. So ``settled`` is said
only when a straight line through the last windows' edges, apart from the loop, finds the same rate,
and is so long that the lateness seen could not bend it by ``SURE``. Looks that the device did not
set off (``edge`` is false) hit a step anywhere; they count only where there are no others.

Thread: one (capture). O(1) per observation, nothing grows.
"""

import math
from array import array
from itertools import pairwise
from typing import Protocol

from capstand.audio.block import NS_PER_S

WINDOW_S = 0.25
MIN_WINDOW = 5
START_RATE_SD = 300e-6
"""Standard deviation of a card's rate before we know it: ±200 ppm is the rule."""
AGAIN_NS = 5 * NS_PER_S
RATE_WALK = 0.02e-6
"""Random walk of a crystal's rate, per square root of a second."""
RATE_LIMIT = 0.01
"""No card is 1 % off; a loop that says so has been fed nonsense."""
SLEW_LIMIT = 1200e-6
"""The largest change of rate followed: NTP's from 500 ppm slow to as much fast, and room."""
KNOWN_RATE = 20e-6
"""So well is a card's rate known (standard deviation) before a change of it is doubted."""
SLEW_SIGMA = 4.0
"""So far beyond the expected a window has to be, twice in a row and growing, to speak of a slew."""
SUDDEN_NS = 500_000
"""As far off from one window to the next, it may be a lost packet: the window after tells."""
MISFIT_WINDOWS = 3
"""Windows in a row that must not fit, and agree, before the loop believes in a step."""
MOST_MISFITS = 7
"""As long as some of them do not agree, since losses may follow each other."""
SCATTER = 0.886
"""Of normal values, the standard deviation by the mean difference of two."""
SLOPE_SIGMA = 4.0
"""So well is known how fast they grow: a loss does not, another rate does."""
STEP_NS = 100_000
"""Windows agree that differ by no more than that, beyond their noise."""
CLEAR_NS, CLEAR = 300_000, 12.0
"""A step is a loss only beyond that and so many times the noise of the stamps."""
LOOSE_NS = 100_000
"""How well the length of a loss is known at once."""
EDGE_NS = NS_PER_S
"""So long after an edge of the device's own, other looks are not needed."""
SURE = 4e-6
"""How far lateness may bend the line whose rate is told."""
AGREED = 2e-6
"""How far the loop's rate may be from that line's."""
MOST_PENDING = 32
"""Observations that wait to be worked off together: one by one, each with cold caches, they cost
ten times as much."""


class Pace(Protocol):
    """What is known of a card's rate, for those who are to keep step with it."""

    @property
    def ns_per_frame(self) -> float: ...

    @property
    def drift_ppm(self) -> float: ...

    @property
    def settled(self) -> bool: ...


class LineFit:
    """The straight line of least squares through edges: the earliest of each ``spacing``."""

    POINTS = 40
    SHORTEST_S = 24.0
    CORE = 8

    def __init__(self, nominal_ns: float) -> None:
        self.rate = math.nan  # relative, as the loop's; nan while it is not sure
        self._nominal_ns = nominal_ns
        self._frames = array("q", bytes(8 * self.POINTS))
        self._ns = array("q", bytes(8 * self.POINTS))
        self.clear()

    def clear(self) -> None:
        self.rate = math.nan
        self._count = self._windows = 0
        self._first_frame = 0  # of the points not yet judged: where its spacing began
        self._lateness_ns = self._least_ns = math.inf
        self._spacing_ns = self.SHORTEST_S * NS_PER_S / (self.POINTS - 1)

    def note(self, frame: int, edge_ns: int, rate: float, lateness_ns: float) -> None:
        """A window's edge, the loop's rate there, and how late its stamps were in the mean."""
        self._windows += 1
        self._least_ns = min(self._least_ns, lateness_ns)
        if self._windows % self.CORE == 0:  # the least of some, because of single late ones
            self._lateness_ns, self._least_ns = self._least_ns, math.inf
        frames, ns, at = self._frames, self._ns, (self._count - 1) % self.POINTS
        if self._count and (frame - self._first_frame) * self._nominal_ns < self._spacing_ns:
            if edge_ns - ns[at] < (frame - frames[at]) * self._nominal_ns * (1.0 + rate):
                frames[at], ns[at] = frame, edge_ns
            return
        if self._count:
            self._fit()
        at = self._count % self.POINTS
        self._first_frame, frames[at], ns[at] = frame, frame, edge_ns
        self._count += 1

    def _fit(self) -> None:
        """Sets ``rate`` and, by the lateness seen, the spacing of the points to come."""
        count = min(self._count, self.POINTS)
        newest, oldest = (self._count - 1) % self.POINTS, (self._count - count) % self.POINTS
        span_ns = self._ns[newest] - self._ns[oldest]
        held, self.rate = not math.isnan(self.rate), math.nan
        if count < self.POINTS // 2:
            return
        frame, ns = self._frames[oldest], self._ns[oldest]
        xs = [(one - frame) * self._nominal_ns for one in self._frames[:count]]
        ys = [one - ns - x for one, x in zip(self._ns[:count], xs, strict=True)]
        mean_x, mean_y = sum(xs) / count, sum(ys) / count
        square = sum((x - mean_x) ** 2 for x in xs)
        if not square:
            return
        slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / square
        rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
        bend_ns = max(2.4 * self._lateness_ns, 5.0 * math.sqrt(rest / count))
        needed_ns = max(bend_ns / SURE, self.SHORTEST_S * NS_PER_S)
        self._spacing_ns = needed_ns / (self.POINTS - 4)
        if span_ns >= needed_ns * (0.6 if held else 1.0):
            self.rate = slope


class Clock:
    """Maps frame indices of one stream to nanoseconds of CLOCK_MONOTONIC and back.

    Before the first observation ``started`` is false and no time is known. ``drift_ppm`` is how
    much faster than nominal the card runs, ``settled`` whether that is within 5 ppm of what a long
    look would find.
    """

    def __init__(self, rate_hz: int, period_frames: int) -> None:
        self.rate_hz = rate_hz
        self.nominal_ns = NS_PER_S / rate_hz
        period_s = period_frames / rate_hz
        self._full_window = max(MIN_WINDOW, math.ceil(WINDOW_S / period_s))
        self.started = False
        self.relocks = 0
        self.missing = 0  # frames that never came, as just found; see take_missing
        self._anchor_frame = 0
        self._anchor_ns = 0
        self._offset_ns = 0.0
        self._rate = 0.0  # relative: the length of a frame is nominal · (1 + rate)
        self.ns_per_frame, self.drift_ppm, self.settled = self.nominal_ns, 0.0, False
        self._line = LineFit(self.nominal_ns)
        self._window_frames = round(WINDOW_S * rate_hz)
        self._longest_step = round(1.05 * period_frames)
        self._last_frame = 0
        self._scatter_ns = 0.0  # mean difference between the edges of whole windows that fit
        self._edge_off_ns = 0.0  # how far the last of them was off the line
        self._usual = self._full_window  # how many looks a window has where none is in doubt
        self._edge_ns = 0  # when the device itself last set a look off
        self._relocked_ns = 0
        self._pending: list[tuple[int, int, bool | None]] = []
        self._restart_filter(START_RATE_SD)

    def _restart_filter(self, rate_sd: float) -> None:
        self._var_offset = 0.0  # ns²
        self._covariance = 0.0  # ns
        self._var_rate = rate_sd * rate_sd
        self._window = 1
        self._lateness_ns = 0.0
        self._misfits: tuple[tuple[float, float], ...] = ()  # ns since one fitted, and residuals
        self._unfit_ns = 0.0  # since one fitted
        self._var_rate_before = 0.0  # when one fitted last
        self._suspect_ns = 0.0  # how far the last window was off, where that was suspicious
        self._line.clear()
        self._clear_window()

    def _clear_window(self) -> None:
        self._pending.clear()
        self._wanted, self._until_frame = 1, 0
        self._seen = 0
        self._sum = 0.0
        self._low = self._second = math.inf
        self._low_frame = self._second_frame = 0
        self._first_frame = -1
        self._sharp = True  # no look that the device did not set off
        self._step = 1 << 62  # the least by which the pointer moved, if nothing is known of edges

    def _set_pace(self) -> None:
        """Whatever it follows from may have changed; it is read for each block."""
        self.ns_per_frame = self.nominal_ns * (1.0 + self._rate)
        self.drift_ppm = (1.0 / (1.0 + self._rate) - 1.0) * 1e6
        sure = abs(self._rate - self._line.rate) < AGREED  # false where that is nan
        self.settled = self._var_rate < (2e-6) ** 2 and sure

    @property
    def line(self) -> tuple[int, int, float, float]:
        """As ``time_of`` sees it until something new is known: a frame, when it was sampled in ns
        and a rest of that, and the length of a frame. Needs ``started``."""
        return self._anchor_frame, self._anchor_ns, self._offset_ns, self.ns_per_frame

    @property
    def patience(self) -> tuple[int, int]:
        """So many more observations, all of them before that frame, would bring nothing new."""
        return self._wanted - 1 - len(self._pending), self._until_frame

    @property
    def ambiguous(self) -> bool:
        """Whether the last window did not fit: more looks at the device's edges are welcome."""
        return bool(self._misfits)

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
        self._set_pace()

    def continue_from(self, frame: int, at_ns: int, ns_per_frame: float) -> None:
        """Another clock had come to that; before the first observation."""
        self._rate = ns_per_frame / self.nominal_ns - 1.0
        self.started = True
        self.restart(frame, at_ns)

    def loosen(self) -> None:
        """The frame index was moved on, for frames that never came: the offset is less sure, the
        rate is not."""
        self._var_offset += LOOSE_NS * LOOSE_NS
        self._misfits = ()
        self._unfit_ns = self._suspect_ns = 0.0
        self._clear_window()

    def take_missing(self) -> int:
        """The frames that never came: the index of those to come is to be moved on by them."""
        missing, self.missing = self.missing, 0
        return missing

    def observe(self, frame: int, stamp_ns: int, edge: bool | None = None) -> bool:
        """At ``stamp_ns`` the device had produced ``frame`` frames. ``edge``: it had just come to
        that, and so set the look off; None where it is not known, and then a pointer that moves by
        more than a period at a time is taken for one that was looked at anywhere. Returns whether
        anything is new: observations are worked off when they may fill a window."""
        pending = self._pending
        pending.append((frame, stamp_ns, edge))
        if len(pending) < self._wanted and frame < self._until_frame:
            return False
        for one in pending:
            self._take(*one)
        pending.clear()
        begun = self._first_frame if self._seen else frame
        self._until_frame = begun + self._window_frames
        self._wanted = min(self._window - self._seen, MOST_PENDING)
        return True

    def _take(self, frame: int, stamp_ns: int, edge: bool | None) -> None:
        if not self.started:
            self.restart(frame, stamp_ns)
            return
        if edge is False:
            if stamp_ns - self._edge_ns < EDGE_NS:
                return
            self._sharp = False
        elif edge:
            self._edge_ns = stamp_ns
            self._step = 0
        else:
            self._step = min(self._step, frame - self._last_frame)
        self._last_frame = frame
        if self._seen == 0:
            self._first_frame = frame
        long = frame - self._first_frame >= self._window_frames
        # In doubt the reader looks more often. The edge that more looks show is a little lower, and
        # must not be taken for a step.
        if self._misfits and self._seen >= self._usual:
            if long:
                self._close_window()
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
        if self._seen >= self._window or (long and self._seen >= MIN_WINDOW):
            self._close_window()

    def _close_window(self) -> None:
        self._follow_window()
        self._set_pace()

    def _follow_window(self) -> None:
        count = self._seen
        if count >= MIN_WINDOW:
            residual, frame = self._second, self._second_frame
            lateness = max(0.0, self._sum / count - residual)
            # The second smallest of n exponential values with some outliers lies by that part of
            # what the mean is above it over the true edge, and spreads by this; of even values, by
            # up to twice as much. (By simulation, for 5 to 25.)
            spread = 1.75 / (count - 2)
            residual -= 1.3 / (count - 3.4) * self._lateness_ns
        else:
            residual, frame = self._low, self._low_frame
            lateness = max(self._lateness_ns, 200_000.0)
            spread = 1.0 / count
        if self._lateness_ns == 0.0:
            self._lateness_ns = lateness
        self._lateness_ns += 0.1 * (min(lateness, 4 * self._lateness_ns + 1e4) - self._lateness_ns)
        noise = (spread * self._lateness_ns + 1_000.0) ** 2
        whole = self._window == self._full_window or count < self._window
        self._window = min(self._full_window, self._window * 2)
        sharp = self._sharp and count >= MIN_WINDOW and self._step <= self._longest_step
        self._clear_window()
        predicted_ns = self.time_of(frame)
        if not self._correct(frame, residual, noise):
            return
        if whole:
            self._usual = count
            self._scatter_ns += 0.05 * (abs(residual - self._edge_off_ns) - self._scatter_ns)
            self._edge_off_ns = residual
        if sharp:
            self._line.note(frame, predicted_ns + round(residual), self._rate, lateness)

    def _slewed(self, residual_ns: float, elapsed_ns: float, total: float, noise: float) -> float:
        """How much less certain the offset is (ns²) because the rate seems to have changed."""
        before, self._suspect_ns = self._suspect_ns, 0.0
        scatter_ns = max(math.sqrt(noise), SCATTER * self._scatter_ns)
        total += scatter_ns * scatter_ns - noise
        if abs(residual_ns) < SLEW_SIGMA * math.sqrt(total) or not elapsed_ns:
            return 0.0
        self._suspect_ns = residual_ns
        change = (residual_ns - before) / elapsed_ns
        more_ns = abs(residual_ns) - abs(before)
        growing = before * residual_ns > 0 and more_ns > SLEW_SIGMA * scatter_ns
        if not self._misfits:
            sudden = abs(residual_ns) > SUDDEN_NS
        else:  # all of it has to have grown since one fitted, and a moment shows no growth
            grown_ns = 2.0 * abs(change) * self._unfit_ns
            sudden = abs(residual_ns) > grown_ns or elapsed_ns < 0.5 * WINDOW_S * NS_PER_S
        if not growing or sudden or abs(change) > SLEW_LIMIT:
            return 0.0
        variance, since_ns = change * change, self._unfit_ns
        self._var_rate += variance
        self._covariance += since_ns * variance
        self._var_offset += since_ns * since_ns * variance
        return since_ns * since_ns * variance

    def _classify_misfits(self, noise_ns: float) -> None:
        """Loss, step or another rate: a straight line through the windows that did not fit tells,
        once it is known well enough. Waits for more of them, up to ``MOST_MISFITS``."""
        if len(self._misfits) < MISFIT_WINDOWS:
            return
        over = len(self._misfits) >= MOST_MISFITS
        last = self._misfits if over else self._misfits[-MISFIT_WINDOWS:]
        mean_t, mean_r = (sum(column) / len(last) for column in zip(*last, strict=True))
        square = sum((t - mean_t) ** 2 for t, _ in last)
        slope, unsure, steep = 0.0, math.inf, math.inf
        if square:
            slope = sum((t - mean_t) * (r - mean_r) for t, r in last) / square
            unsure = SLOPE_SIGMA * noise_ns / math.sqrt(square)
            steep = abs(mean_r) / mean_t  # it would have to be, had it grown since one fitted
        away = math.copysign(1.0, mean_r)
        # A rate that is known does not change by more than a slew: such are losses in a row.
        known = away > 0 and self._var_rate_before < KNOWN_RATE * KNOWN_RATE
        most = SLEW_LIMIT if known else math.inf
        steady = all(
            away * (r2 - r1) > 0.5 * abs(slope) * (t2 - t1) - 2.0 * noise_ns
            for (t1, r1), (t2, r2) in pairwise(last)
        )
        spread_ns = max(r for _, r in last) - min(r for _, r in last)
        if spread_ns <= STEP_NS + 6.0 * noise_ns and abs(slope) + unsure < 0.5 * steep:
            step_ns = mean_r
        elif steady and max(unsure, min(0.5 * steep, SLEW_LIMIT)) < away * slope < most:
            step_ns = 0.0  # it grows all the time: another rate
        elif not over:
            return
        else:  # losses that follow each other, if the stamps are good enough to tell that
            step_ns = min(r for _, r in last[-2:]) if unsure < 0.25 * steep else 0.0
        if step_ns > CLEAR_NS + CLEAR * noise_ns:
            self.missing = round(step_ns / self.ns_per_frame)
            self._misfits = ()
            # What looked like a slew was none.
            self._unfit_ns = self._suspect_ns = self._covariance = 0.0
            self._var_rate = self._var_rate_before
            return
        self.relocks += 1
        at_ns = self._anchor_ns + round(self._offset_ns + last[-1][1])
        again = at_ns - self._relocked_ns < AGAIN_NS
        self._relocked_ns = at_ns
        self.restart(self._anchor_frame, at_ns)
        if abs(slope) > unsure:  # it is the rate that does not fit
            rate_sd = min(RATE_LIMIT, abs(slope))
            self._var_rate = max(self._var_rate, rate_sd * rate_sd)
        elif again:
            self._var_rate = START_RATE_SD * START_RATE_SD

    def _correct(self, frame: int, residual_ns: float, noise: float) -> bool:
        """Follows a window's edge; false where it does not fit."""
        elapsed_ns = max(0.0, (frame - self._anchor_frame) * self.nominal_ns)
        self._unfit_ns += elapsed_ns
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
        if not self._misfits:
            self._var_rate_before = self._var_rate
        total = self._var_offset + noise
        total += self._slewed(residual_ns, elapsed_ns, total, noise)
        if abs(residual_ns) > 6.0 * math.sqrt(total) + 200_000.0:
            self._misfits = (*self._misfits, (self._unfit_ns, residual_ns))
            self._classify_misfits(max(math.sqrt(noise), SCATTER * self._scatter_ns))
            return False
        self._misfits = ()
        self._unfit_ns = 0.0
        gain_offset = self._var_offset / total
        gain_rate = self._covariance / total
        self._offset_ns += gain_offset * residual_ns
        self._rate += gain_rate * residual_ns
        self._rate = min(RATE_LIMIT, max(-RATE_LIMIT, self._rate))
        self._var_rate -= gain_rate * self._covariance
        self._covariance -= gain_offset * self._covariance
        self._var_offset -= gain_offset * self._var_offset
        return True
