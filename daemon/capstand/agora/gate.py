"""Between the threads that push and the one that opens and ends calls: no push can be in a call
that is being released, and one that does not come back from the SDK is noticed.

Threads: ``send`` is for any one, the rest for the connection's control thread.
"""

import threading
import time
from collections.abc import Callable

from capstand.agora.proof import Proof
from capstand.agora.sdk.codes import AgoraError, Code
from capstand.agora.sdk.rtc import RtcConnection
from capstand.agora.send_buffer import FRAME_NS, SendBufferModel
from capstand.audio.block import NS_PER_S

GATE_S = 1.0
"""A push waits so long for one before it, which hangs then."""


class Gate:
    """Lets pushes through to the call that it was opened for; each waits ``wait_s`` for the one
    before. What was sent is told to ``send_buffer`` and ``proof``; ``words`` say why it is closed.
    """

    def __init__(
        self,
        send_buffer: SendBufferModel,
        proof: Proof,
        words: Callable[[], str],
        now_ns: Callable[[], int] = time.monotonic_ns,
        wait_s: float = GATE_S,
    ) -> None:
        self.wait_s = wait_s
        self._send_buffer = send_buffer
        self._proof = proof
        self._words = words
        self._now_ns = now_ns
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

    def send(self, frame: bytes, frames: int, channels: int, rate_hz: int, pts_ms: int) -> None:
        """Hands 10 ms over. Raises AgoraError; then nothing was sent."""
        now_ns = self._now_ns()
        if not self._lock.acquire(timeout=self.wait_s):
            raise AgoraError(Code.TIMED_OUT, "the previous push has not returned from the SDK")
        try:
            if self._call is None:
                raise AgoraError(Code.NOT_READY, self._words())
            self.sending_since_ns = time.monotonic_ns()
            code = self._call.send(frame, frames, channels, rate_hz, pts_ms)
        finally:
            self.sending_since_ns = 0
            self._lock.release()
        if code:
            raise AgoraError(code, "the SDK rejected 10 ms of sound")
        self._send_buffer.give(FRAME_NS, now_ns)
        self._proof.pushed_s = now_ns / NS_PER_S
