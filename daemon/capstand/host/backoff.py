"""How long to wait before the next try: longer each time, bounded, never in step."""

import random

JITTER = (0.75, 1.25)


class Backoff:
    """``next_s`` is ``first_s`` at first, doubles up to ``most_s``, and varies by ``jitter``: what
    failed together does not come back together.
    """

    def __init__(self, first_s: float, most_s: float, jitter: tuple[float, float] = JITTER) -> None:
        self._jitter = jitter
        self._first_s = first_s
        self._most_s = most_s
        self._base_s = first_s

    def next_s(self) -> float:
        base_s, self._base_s = self._base_s, min(self._most_s, 2 * self._base_s)
        return base_s * random.uniform(*self._jitter)

    def reset(self) -> None:
        self._base_s = self._first_s
