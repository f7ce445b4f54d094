"""The estimate of the SDK's send buffer against one simulated millisecond by millisecond."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.agora.send_buffer import MS, SendBufferModel

FRAME_MS = 10
FRAME_NS = FRAME_MS * MS
T0_MS = 5_000_000  # an uptime of 83 minutes


class Buffer:
    """What Agora documents: a queue of 10 ms frames, of which one leaves at each of its ticks."""

    def __init__(self, send_delay_ms: int) -> None:
        self.send_delay_ms = send_delay_ms
        self.queue = 0
        self.tick_ms: int | None = None  # the next; None while filling up to the delay
        self.playing = self.dry = False
        self.holes = self.hole_ms = 0

    def give(self, frames: int, now_ms: int) -> None:
        self.queue += frames
        if self.tick_ms is None and self.queue * FRAME_MS >= self.send_delay_ms:
            self.tick_ms = now_ms

    def pass_ms(self, now_ms: int) -> None:
        """What happens at ``now_ms``, after what was given then."""
        if self.tick_ms != now_ms:
            return
        self.tick_ms += FRAME_MS
        self.playing = self.queue > 0
        if self.playing:
            self.queue -= 1
        else:
            self.holes += not self.dry
            self.hole_ms += FRAME_MS
        self.dry = not self.playing

    def depth_ms(self, now_ms: int) -> int:
        """Until all has left; while filling, what is there."""
        if self.tick_ms is None or (not self.queue and not self.playing):
            return self.queue * FRAME_MS
        return self.tick_ms - now_ms + self.queue * FRAME_MS


@given(
    st.integers(1, 20).map(lambda frames: frames * FRAME_MS),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 4)), min_size=1, max_size=40),
)
@settings(deadline=None)
def test_it_tells_what_the_buffer_does(send_delay_ms: int, gives: list[tuple[int, int]]) -> None:
    """Whatever comes when, the depth is the buffer's at every millisecond, and so are the holes
    and their length at every push."""
    buffer, drain, now_ms = Buffer(send_delay_ms), SendBufferModel(send_delay_ms), T0_MS
    for wait_ms, frames in gives:
        for _ in range(wait_ms):
            buffer.pass_ms(now_ms)
            now_ms += 1
            depth_ms = drain.depth_ms(now_ms * MS)
            assert depth_ms >= 0
            if buffer.tick_ms != now_ms:  # on a tick, what has left is the same instant's affair
                assert depth_ms == buffer.depth_ms(now_ms)
        buffer.give(frames, now_ms)
        drain.give(frames * FRAME_NS, now_ms * MS)
        assert (drain.holes, drain.hole_ns) == (buffer.holes, buffer.hole_ms * MS)


@given(
    st.integers(1, 100).map(lambda frames: frames * FRAME_MS),
    st.lists(st.tuples(st.integers(-FRAME_NS, 10**10), st.integers(1, 10**9)), max_size=50),
)
def test_the_depth_is_never_negative(send_delay_ms: int, gives: list[tuple[int, int]]) -> None:
    """However long nothing comes, whatever is given, and for times before the last push too."""
    drain, now_ns = SendBufferModel(send_delay_ms), T0_MS * MS
    for wait_ns, duration_ns in gives:
        now_ns += max(0, wait_ns)
        before_ms, was = drain.depth_ms(now_ns), drain.hole_ns
        drain.give(duration_ns, now_ns)
        assert drain.depth_ms(now_ns) >= before_ms >= 0
        assert drain.depth_ms(now_ns + wait_ns) >= 0
        assert drain.hole_ns >= was


def test_sending_starts_when_the_delay_is_reached() -> None:
    """What is given before stays where it is, for however long."""
    drain = SendBufferModel(40)
    for number in range(3):
        drain.give(FRAME_NS, (T0_MS + number * 1000) * MS)
    assert drain.depth_ms((T0_MS + 99_000) * MS) == 30
    drain.give(FRAME_NS, (T0_MS + 99_000) * MS)
    assert drain.depth_ms((T0_MS + 99_000) * MS) == 40
    assert drain.depth_ms((T0_MS + 99_025) * MS) == 15
    assert (drain.holes, drain.hole_ns) == (0, 0)


def pushed(drain: SendBufferModel, ppm: int, seconds: int) -> list[int]:
    """Ten ms of a card's time at a time, pushed as soon as they are there; the push times in ns at
    which another hole was counted."""
    at, holes = [], drain.holes
    for number in range(seconds * 100):
        now_ns = T0_MS * MS + number * FRAME_NS * 1_000_000 // (1_000_000 + ppm)
        drain.give(FRAME_NS, now_ns)
        if drain.holes > holes:
            at.append(now_ns - T0_MS * MS)
            holes = drain.holes
    return at


def test_a_fast_card_adds_latency() -> None:
    """A card 100 ppm fast leaves 360 ms more in the buffer after an hour, and no hole."""
    drain = SendBufferModel(40)
    assert pushed(drain, 100, 3600) == []
    last_ns = T0_MS * MS + (3600 * 100 - 1) * FRAME_NS * 1_000_000 // 1_000_100
    assert drain.depth_ms(last_ns) == pytest.approx(40 + 360, abs=1)


@pytest.mark.parametrize("send_delay_ms", [10, 40])
def test_a_slow_card_runs_dry(send_delay_ms: int) -> None:
    """A card 100 ppm slow uses up what the delay has beyond the next frame, 10 ms in 100 s, and
    then misses a turn every 100 s."""
    drain = SendBufferModel(send_delay_ms)
    at_s = [at_ns / 1e9 for at_ns in pushed(drain, -100, 1000)]
    assert at_s == pytest.approx(list(range(10 * (send_delay_ms - 10), 1001, 100)), abs=0.1)
    assert drain.hole_ns == drain.holes * FRAME_NS


def test_a_restart_is_an_empty_buffer() -> None:
    """A new connection fills up to the delay again; the holes of the ones before stay counted."""
    drain = SendBufferModel(20)
    drain.give(2 * FRAME_NS, T0_MS * MS)
    drain.give(FRAME_NS, (T0_MS + 55) * MS)
    assert (drain.holes, drain.hole_ns) == (1, 40 * MS)
    drain.restart()
    assert drain.depth_ms((T0_MS + 56) * MS) == 0
    drain.give(FRAME_NS, (T0_MS + 5000) * MS)
    assert drain.depth_ms((T0_MS + 9000) * MS) == 10
    assert (drain.holes, drain.hole_ns) == (1, 40 * MS)
