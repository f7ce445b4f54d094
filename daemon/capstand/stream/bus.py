"""What a card loses on its way to us, as a USB bus that drops packets does, over an hour.

A sound bus loses nothing for weeks, and a knock at a plug loses some packets once. Ten packets of
1 ms an hour are a click every six minutes; in three minutes of it they are no single knock.
Thread: main.
"""

from collections import deque

from capstand.audio.block import NS_PER_S

MINUTE_NS = 60 * NS_PER_S
CABLE_MS = 10
CABLE_MINUTES = 3


class BusLosses:
    """Of the last hour, by minutes."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._losses: deque[tuple[int, int]] = deque()  # minute, frames
        self._lost = 0

    def look(self, lost_frames: int, now_ns: int) -> tuple[float, int]:
        """What the device did not deliver in the last hour, in ms, and in how many minutes;
        ``lost_frames`` are all until now."""
        losses, minute = self._losses, now_ns // MINUTE_NS
        if lost_frames > self._lost:
            before = losses.pop()[1] if losses and losses[-1][0] == minute else 0
            losses.append((minute, before + lost_frames - self._lost))
            self._lost = lost_frames
        while losses and losses[0][0] <= minute - 60:
            losses.popleft()
        return sum(one for _, one in losses) * 1000 / self._rate_hz, len(losses)

    def concern(self, lost_frames: int, now_ns: int) -> str | None:
        """What to look at where a card loses sound on its way again and again."""
        lost_ms, minutes = self.look(lost_frames, now_ns)
        if lost_ms < CABLE_MS or minutes < CABLE_MINUTES:
            return None
        return (
            f"the card failed to deliver {lost_ms:.0f} ms of sound in the last hour, in {minutes} "
            "different minutes: try another cable, a port without a hub, a stronger power supply"
        )
