"""Whole turns of a card's buffer that its driver missed: what no pointer shows, the stamps do.

Only arithmetic, so that it can be tried against any driver and any host. Thread: capture.
"""

from capstand.capture.source import UNKNOWN

NO_LOOK, NOT_WHOLE = -2, -1


class MissedWraps:
    """Finds whole turns of the buffer that the hardware pointer does not show.

    Each look brings the driver's pointer up to date, as far as the driver knows the time, so turns
    can be missed only while nobody looked, or the driver's own time stood still. When the pointer
    has not moved for half a buffer, and is behind the clock by a whole one, the looks are
    ``ambiguous``: turns were missed, or the pointer is a leftover of the time before, read before
    the driver awoke, and about to jump. One look cannot tell these apart; after a stop of whole
    buffers they are even equal in every number, while what lies unread is new in the one case and
    old in the other. A leftover is seen at most once, though: a pointer that then moves again is up
    to date. So two looks at a moving pointer in a row have to find the same number of turns, the
    second of them soon after the first, and until then what lies unread is of unknown age and must
    be left behind. What follows it was written after the stop in either case, and that makes the
    count exact.

    What is missing is ``UNKNOWN``, and only the clock can estimate it, when a doubt finds no whole
    turns while the pointer goes on for ``WINDOW_S``: the device stood still, too. So it is when
    turns are found that somebody looked at while they went by: the device, or the driver's time,
    stood still, and the numbers do not say which.

    A pointer is behind the clock by a little that differs from look to look, by far more where the
    driver's timer is late. The reference is the look that was least behind of the last
    ``WINDOW_S`` and more than ``ENOUGH`` looks, since any other hides so much of a turn. Where
    even the best look is far behind the one before, without a doubt, the device stood still for a
    part of a buffer, and the clock deals with that.
    """

    WINDOW_S = 0.5
    ENOUGH = 8

    def __init__(self, rate_hz: int, buffer_frames: int, boundary: int) -> None:
        self.ambiguous = False
        self._frames_per_ns = rate_hz / 1e9
        self._buffer = buffer_frames
        self._tolerance = buffer_frames / 8  # room for the stamp's own error
        self._suspicious = buffer_frames - self._tolerance
        self._window_frames = rate_hz * self.WINDOW_S
        self._boundary = boundary
        self._stamp_ns = 0  # the reference
        self._hw_ptr = 0
        self._best_ns = 0  # the least behind of the looks since, and how many they are
        self._best_ptr = 0
        self._best_lag = 0.0
        self._looks = 0
        self._from_ptr = 0
        self._last_ptr = 0
        self._moved_ns = 0  # when the pointer was seen to move last
        self._asked_ns = 0
        self._still = 0.0  # for so many frames somebody has looked at a pointer that does not move
        self._stood = False  # in this doubt that was long
        self._wraps = NO_LOOK  # as the last doubtful look found them

    def observe(self, stamp_ns: int, hw_ptr: int, asked_ns: int, now_ns: int) -> int:
        """The frames missed, as found by this look at a running stream, which was asked for at
        ``asked_ns`` and had come at ``now_ns``.
        """
        half, per_ns = self._buffer / 2, self._frames_per_ns
        away = (now_ns - self._asked_ns) * per_ns
        self._asked_ns = asked_ns
        if self._stamp_ns == 0:
            self._last_ptr, self._moved_ns, self._still = hw_ptr, min(stamp_ns, asked_ns), 0.0
            if hw_ptr:  # at 0 the device has not begun
                self._refer(stamp_ns, hw_ptr, hw_ptr)
            return 0
        idle = (now_ns - self._moved_ns) * per_ns
        moved = (hw_ptr - self._hw_ptr) % self._boundary
        if not self.ambiguous and idle > half:
            behind = (now_ns - self._stamp_ns) * per_ns - moved
            if behind > self._suspicious:
                self.ambiguous, self._wraps, self._stood, self._looks = True, NO_LOOK, False, 0
        if hw_ptr == self._last_ptr:
            if away < 0.75 * self._buffer:  # else nobody looked
                self._still += away
            return 0
        self._last_ptr, self._moved_ns = hw_ptr, min(stamp_ns, asked_ns)
        self._stood = self._stood or self._still > half
        self._still = 0.0
        lag = (stamp_ns - self._stamp_ns) * per_ns - moved
        if self.ambiguous:
            return self._resolve(stamp_ns, hw_ptr, lag, idle)
        self._follow(stamp_ns, hw_ptr, lag)
        return 0

    def forget(self) -> None:
        """The stream does not run: the next look is the first."""
        self._refer(0, 0, 0)

    def _resolve(self, stamp_ns: int, hw_ptr: int, lag: float, idle: float) -> int:
        before, wraps = self._wraps, max(0, round(lag / self._buffer))
        if abs(lag - wraps * self._buffer) > self._tolerance:
            wraps = NOT_WHOLE
        self._wraps = wraps
        self._looks += 1
        if before == NO_LOOK:
            self._from_ptr = hw_ptr
        elif idle > self._suspicious:
            return 0
        elif wraps != NOT_WHOLE:
            if wraps == before:
                if wraps and self._stood:
                    self._refer(stamp_ns, hw_ptr, hw_ptr)
                    return UNKNOWN
                # The reference is as good as before, but for the turns.
                missed = wraps * self._buffer
                self._refer(self._stamp_ns, (self._hw_ptr - missed) % self._boundary, hw_ptr)
                return missed
        elif self._stood or self._lasted(hw_ptr):
            self._refer(stamp_ns, hw_ptr, hw_ptr)
            return UNKNOWN
        return 0

    def _follow(self, stamp_ns: int, hw_ptr: int, lag: float) -> None:
        """Without doubt: keeps the reference the best of the last looks."""
        if lag <= 0:
            self._refer(stamp_ns, hw_ptr, hw_ptr)
            return
        if self._looks == 0 or lag < self._best_lag:
            self._best_ns, self._best_ptr, self._best_lag = stamp_ns, hw_ptr, lag
        self._looks += 1
        if self._lasted(hw_ptr):
            self._refer(self._best_ns, self._best_ptr, hw_ptr)

    def _lasted(self, hw_ptr: int) -> bool:
        lasted = (hw_ptr - self._from_ptr) % self._boundary
        return self._looks > self.ENOUGH and lasted > self._window_frames

    def _refer(self, stamp_ns: int, hw_ptr: int, from_ptr: int) -> None:
        """Makes a look the reference; what was in doubt is settled."""
        self._stamp_ns, self._hw_ptr, self._from_ptr = stamp_ns, hw_ptr, from_ptr
        self._looks, self.ambiguous = 0, False
