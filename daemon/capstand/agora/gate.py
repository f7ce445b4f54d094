"""Between the threads that push and the one that opens and ends calls: no push can be in a call
that is being released, and one that does not come back from the SDK is noticed.

Threads: ``send`` is for any one, the rest for the connection's control thread.
"""

import threading
import time
from collections.abc import Callable

from capstand.agora.sdk.codes import AgoraError, Code
from capstand.agora.sdk.rtc import RtcConnection

GATE_S = 1.0
"""A push waits so long for one before it, which hangs then."""


class Gate:
    """Lets pushes through to the call that it was opened for; each waits ``wait_s`` for the one
    before."""

    def __init__(self, wait_s: float = GATE_S) -> None:
        self.wait_s = wait_s
        self.sending_since_ns = 0  # while a push is in the SDK
        self._lock = threading.Lock()
        self._call: RtcConnection | None = None

    def open(self, call: RtcConnection | None) -> None:
        self._call = call

    def close(self) -> None:
        """Returns when no push is on its way."""
        with self._lock:
            self._call = None

    def forked(self) -> None:
        """In a process made by fork: whatever held the lock is not here."""
        self._lock, self._call = threading.Lock(), None

    def send(
        self,
        frame: bytes,
        frames: int,
        channels: int,
        rate_hz: int,
        pts_ms: int,
        words: Callable[[], str],
    ) -> None:
        """Hands 10 ms over. Raises AgoraError, in ``words`` where the gate is closed; then
        nothing was sent."""
        if not self._lock.acquire(timeout=self.wait_s):
            raise AgoraError(Code.TIMED_OUT, "the previous push has not returned from the SDK")
        try:
            if self._call is None:
                raise AgoraError(Code.NOT_READY, words())
            self.sending_since_ns = time.monotonic_ns()
            code = self._call.send(frame, frames, channels, rate_hz, pts_ms)
        finally:
            self.sending_since_ns = 0
            self._lock.release()
        if code:
            raise AgoraError(code, "the SDK rejected 10 ms of sound")
