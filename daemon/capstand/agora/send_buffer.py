"""A model of the SDK's send buffer: a queue that gives out 10 ms every 10 ms of its own clock.

The SDK tells nobody how full its buffer is. What was given to it is known, and so is what it takes:
sending starts once the buffer holds the send delay, then one 10 ms frame leaves it every 10 ms,
whatever comes in. Its clock is taken to be CLOCK_MONOTONIC. So the depth is an estimate; it says
how latency grows while a card runs faster than the channel, and when a slower one left a hole: a
frame that comes too late for its turn leaves at the next.

Pure; time is an argument. Source: Agora's documentation of LocalAudioTrack.
"""

MS = 1_000_000
FRAME_NS = 10 * MS


class SendBufferModel:
    """``give`` what is pushed; ``depth_ms`` is the estimate. Times are ns of CLOCK_MONOTONIC.

    ``holes`` counts how often the buffer ran dry, ``hole_ns`` for how long in all.
    """

    def __init__(self, send_delay_ms: int) -> None:
        self.holes = 0
        self.hole_ns = 0
        self._delay_ns = send_delay_ms * MS
        self._held_ns = 0  # while filling up to the delay
        self._empty_at_ns = 0  # when the last of what was given will have left; 0 while filling

    def give(self, duration_ns: int, now_ns: int) -> None:
        """So much sound was accepted."""
        if self._empty_at_ns == 0:
            self._held_ns += duration_ns
            if self._held_ns >= self._delay_ns:
                self._empty_at_ns = now_ns + self._held_ns
            return
        if now_ns > self._empty_at_ns:
            missed_ns = -(-(now_ns - self._empty_at_ns) // FRAME_NS) * FRAME_NS
            self.holes += 1
            self.hole_ns += missed_ns
            self._empty_at_ns += missed_ns
        self._empty_at_ns += duration_ns

    def depth_ms(self, now_ns: int) -> float:
        """The sound that waits in the buffer."""
        if self._empty_at_ns == 0:
            return self._held_ns / MS
        return max(0, self._empty_at_ns - now_ns) / MS

    def restart(self) -> None:
        """A new connection with an empty buffer; the holes so far stay counted."""
        self._held_ns = self._empty_at_ns = 0
