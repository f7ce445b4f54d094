"""Whether what is pushed is sent: the SDK's statistics of the local track name a bit rate.

Pure; times are seconds of time.monotonic. Threads: ``pushed_s`` is written by the one that pushes,
the rest is for the connection's control thread; each value has one writer.
"""

from enum import Enum, auto

PROOF_S = 30.0
SILENT_S = 60.0
"""Statistics that came and then stay away for so long mean that the SDK itself stands still."""


class Silence(Enum):
    NONE = auto()
    FALLEN = auto()
    """Statistics came since the channel was joined, and then no more: joining again may help."""
    KEPT = auto()
    """They did not come back after that: only a new process can help."""


class Proof:
    """``sent_kbps`` is what the SDK said last. Nothing sent for ``proof_s`` is a concern, nothing
    said for ``silent_s`` a failure. ``pushed_s`` is when something was pushed last."""

    def __init__(self, proof_s: float = PROOF_S, silent_s: float = SILENT_S) -> None:
        self.sent_kbps: int | None = None
        self.proof_s = proof_s
        self.silent_s = silent_s
        self._heard_s = 0.0  # when statistics last came, in this session
        self._proven_s = 0.0  # when they last showed something sent
        self.pushed_s = 0.0
        self._fell_silent = False

    def joined(self) -> None:
        """A session begins."""
        self._heard_s = self._proven_s = 0.0

    def ended(self) -> None:
        self.sent_kbps = None

    def heard(self, sent_kbps: int, now_s: float) -> None:
        self.sent_kbps = sent_kbps
        self._heard_s = now_s
        self._fell_silent = False
        if sent_kbps > 0:
            self._proven_s = now_s

    def unsent_s(self, since_s: float, now_s: float) -> float | None:
        """For how long nothing was sent of what is pushed, in a channel that was joined at
        ``since_s``; None where all is well, or nothing is pushed."""
        unsent_s = now_s - max(self._proven_s, since_s)
        pushed = now_s - self.pushed_s < self.proof_s
        return unsent_s if pushed and unsent_s > self.proof_s else None

    def silence(self, since_s: float, now_s: float) -> Silence:
        if now_s <= max(self._heard_s, since_s) + self.silent_s:
            return Silence.NONE
        if self._heard_s:
            self._fell_silent = True
            return Silence.FALLEN
        return Silence.KEPT if self._fell_silent else Silence.NONE
