"""How often others may have us do something: a bucket of allowances for each of them.

Time is an argument. Threads: that of the owner.
"""

from collections.abc import Hashable


class RateLimit:
    """``rate`` a second, and up to ``burst`` at once after a pause."""

    def __init__(self, rate: float, burst: float, now_s: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at_s = burst, now_s

    def wait_s(self, now_s: float) -> float:
        """How long until the next is allowed; 0 is at once."""
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        return max(0.0, (1.0 - self._left) / self._rate)

    def take(self, number: float = 1.0) -> None:
        self._left -= number

    def full(self, now_s: float) -> bool:
        self.wait_s(now_s)
        return self._left >= self._burst


class RateLimits:
    """One for each of those who ask, of whom ``most`` are kept: those who have used some of it."""

    def __init__(self, rate: float, burst: float, most: int = 1000) -> None:
        self._rate, self._burst, self._most = rate, burst, most
        self._of: dict[Hashable, RateLimit] = {}

    def wait_s(self, who: Hashable, now_s: float) -> float:
        one = self._of.get(who)
        if one is None:
            one = RateLimit(self._rate, self._burst, now_s)
            if not self._has_place(now_s):
                return 1.0 / self._rate
        return one.wait_s(now_s)

    def take(self, who: Hashable, now_s: float) -> bool:
        """Whether it is allowed now; then it is used."""
        if self.wait_s(who, now_s) > 0:
            return False
        self._of.setdefault(who, RateLimit(self._rate, self._burst, now_s)).take()
        return True

    def _has_place(self, now_s: float) -> bool:
        if len(self._of) >= self._most:
            for who in [who for who, one in self._of.items() if one.full(now_s)]:
                del self._of[who]
        return len(self._of) < self._most
