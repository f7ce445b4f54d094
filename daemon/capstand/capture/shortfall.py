"""Sound that a card never delivered: what no pointer shows, time does.

Some pointers follow data. That of a USB card counts the packets that came; what the bus loses moves
nothing. A plug-in's counts what a sound server handed on. So frames are held against time: a look
at the pointer lags behind the best of the looks before it, and a lag that stays is a loss.

One look proves nothing: a stamp may be late, an interrupt wait, a pointer move by 20 ms at a time.
A look that lags by more than usual is only ``suspicious``. The reader then leaves the sound where
it is, since the card's buffer has room, and looks again soon. Either the lag goes, or ``LOOKS`` at
a pointer that moves again, over ``SURE_NS``, all show it. Of these the one that lags least says
where the device truly is, and the clock says how much is missing there.

A lag that grows all the time is no loss but a card that runs at another rate than it says
(``truerate.py`` tells of it): what all of the last blocks of looks grew by is expected of the next.

After a new start there is nothing to lag behind, and the first look may be a bad one. ``measure``
has several made, and the best of them found, before the first frame is taken.

Only arithmetic, so that it can be tried against any card and any host. Thread: capture.
"""

import math
from typing import NamedTuple

from capstand.audio.block import NS_PER_S

LOOKS = 3
SURE_NS = 15_000_000
PAUSE_MS = 1
"""Between two looks at a suspicious pointer: one that is seen to move has only just moved."""
SETTLED_NS = 1_000_000
"""A pointer whose lag still falls by more is catching up."""
LEAST_NS = 3_000_000
SPREADS = 2.0
"""From so many times the usual lag on a look is suspicious; less is left to the clock."""
DRIFT = 600e-6
"""A crystal may be off by that, and NTP slew the clock besides."""
BLOCK_NS = 250_000_000
BLOCK_LOOKS = 4
BLOCKS = 3
FADES = 0.9
"""What is left, a block later, of what was usual."""
ALARMS = 3
"""So many false alarms in a block are that device's way."""


SLOWEST = 0.5
"""A card that is known to run slower than that, of its rate, has no line."""


class Line(NamedTuple):
    """A look of ``count`` at ``stamp_ns`` is an ordinary one while ``stamp_ns - since_ns`` is at
    most ``slack_ns + (count - since_count) * frame_ns``. At ``until_ns`` there may be another line.
    """

    since_ns: int
    since_count: int
    slack_ns: float
    frame_ns: float
    until_ns: int


class Shortfall:
    """``suspicious``: look again before reading. ``found``, set back by the reader: a loss is sure,
    by the look of ``count`` at ``stamp_ns``, of ``most_frames`` at most; after ``measure`` that
    look is only where the device was.
    """

    def __init__(self, rate_hz: int) -> None:
        self._nominal_ns = NS_PER_S / rate_hz
        self.found = False
        self.stamp_ns = self.count = self.most_frames = 0
        self._moves = self._since_ns = 0  # of a doubt: looks at a pointer that moves, since when
        self._last_count = -1
        self._doubtful_ns = self._least_ns = 0.0  # the lag that raised it, the least since
        self.forget()

    def forget(self) -> None:
        """The stream does not run: the next look is the first."""
        self.suspicious = self.found = self.measuring = False
        self._growths: tuple[float, ...] = ()  # of the lag from block to block, per ns
        self._usual_ns = 0.0
        self._expect()
        self._refer(0, 0)

    def _expect(self) -> None:
        """What is looked at now is judged by what the blocks before were like."""
        self._judges = len(self._growths) == BLOCKS
        self._runs = 1.0 - (max(0.0, min(self._growths)) if self._judges else 0.0)
        self._limit_ns = max(LEAST_NS, SPREADS * self._usual_ns)

    def _refer(self, stamp_ns: int, count: int) -> None:
        """Makes a look the one that others lag behind; a block begins."""
        self._stamp_ns, self._count = stamp_ns, count
        self._block_ns = stamp_ns
        self._looks = self._alarms = 0
        self._best_ns = self._best_count = 0
        self._best_lag_ns = self._worst_ns = self._alarm_ns = 0.0

    def measure(self) -> None:
        """The stream has just been started, and where it is has to be known well."""
        self.forget()
        self._doubt()
        self.measuring = True

    def stop_measuring(self) -> None:
        """The buffer is nearly full: what is measured has to do."""
        if self.measuring:
            self.forget()

    def observe(self, stamp_ns: int, count: int) -> None:
        """At ``stamp_ns`` the device had delivered ``count`` frames."""
        if not self._stamp_ns:
            self._refer(stamp_ns, count)
        since_ns = stamp_ns - self._stamp_ns
        lag_ns = since_ns * self._runs - (count - self._count) * self._nominal_ns
        limit_ns = self._limit_ns + DRIFT * since_ns
        if self.suspicious and lag_ns <= limit_ns and not self.measuring:
            self.suspicious = False
            self._alarms += 1
            self._alarm_ns = max(self._alarm_ns, self._doubtful_ns)
        elif self.suspicious:
            self._weigh(stamp_ns, count, lag_ns)
            return
        elif lag_ns > limit_ns and self._judges:
            self._doubt()
            self._doubtful_ns, self._last_count = lag_ns, count
            return
        # An ordinary look.
        if not self._looks or lag_ns < self._best_lag_ns:
            self._best_ns, self._best_count, self._best_lag_ns = stamp_ns, count, lag_ns
        if not self._looks or lag_ns > self._worst_ns:
            self._worst_ns = lag_ns
        self._looks += 1
        if self._looks >= BLOCK_LOOKS and stamp_ns - self._block_ns >= BLOCK_NS:
            self._end_block(stamp_ns)

    @property
    def line(self) -> Line | None:
        """For looks that are to be observed later; None where each has to be at once."""
        pace = self._runs - DRIFT
        if self.suspicious or self.found or not self._stamp_ns or pace < SLOWEST:
            return None
        return Line(
            self._stamp_ns,
            self._count,
            self._limit_ns / pace if self._judges else math.inf,
            self._nominal_ns / pace,
            self._block_ns + BLOCK_NS,
        )

    def _doubt(self) -> None:
        self.suspicious = True
        self._moves = self._since_ns = 0
        self._last_count = -1
        self._doubtful_ns = self._least_ns = 0.0

    def _weigh(self, stamp_ns: int, count: int, lag_ns: float) -> None:
        """Another look in doubt; one at a pointer that stands still says nothing."""
        stood, self._last_count = self._last_count in (-1, count), count
        if stood:
            return
        settled = self._moves and lag_ns > self._least_ns - SETTLED_NS
        if not settled:
            self._moves, self._since_ns = 0, stamp_ns
        if not self._moves or lag_ns < self._least_ns:
            self.stamp_ns, self.count, self._least_ns = stamp_ns, count, lag_ns
        self._moves += 1
        if self._moves >= LOOKS and stamp_ns - self._since_ns >= SURE_NS:
            most_ns = self._least_ns + SETTLED_NS + DRIFT * (stamp_ns - self._stamp_ns)
            self.most_frames = 0 if self.measuring else round(most_ns / self._nominal_ns)
            self.suspicious = self.measuring = False
            self.found = True
            self._refer(self.stamp_ns, self.count)

    def _end_block(self, stamp_ns: int) -> None:
        """The best of its looks is what the next ones lag behind."""
        if (
            since_ns := self._best_ns - self._stamp_ns
        ) >= BLOCK_NS / 2:  # else steps are too coarse
            behind_ns = since_ns - (self._best_count - self._count) * self._nominal_ns
            self._growths = (*self._growths, behind_ns / since_ns)[-BLOCKS:]
        usual_ns = self._worst_ns - self._best_lag_ns
        if self._alarms >= ALARMS:
            usual_ns = max(usual_ns, self._alarm_ns)
        self._usual_ns = max(FADES * self._usual_ns, usual_ns)
        self._expect()
        self._refer(self._best_ns, self._best_count)
        self._block_ns = stamp_ns
