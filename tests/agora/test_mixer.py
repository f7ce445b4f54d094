"""The mixer by hand: one turn after the other, without its thread."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstand.agora.frames import Frame
from capstand.agora.mixer import Mixer
from capstand.agora.sdk.codes import AgoraError, Code
from tests.patience import PATIENCE_S


def frame(value: int, pts_ms: int = 0) -> Frame:
    """10 ms at 8 kHz."""
    return Frame(np.full(80, value, "<i2").tobytes(), pts_ms)


class Heard:
    """What goes out; refuses while ``code`` is set."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.code = Code.OK

    def send(self, one: Frame) -> None:
        if self.code:
            raise AgoraError(self.code, "refused")
        self.frames.append(one)

    @property
    def values(self) -> list[int]:
        return [int(np.frombuffer(one.samples, "<i2")[0]) for one in self.frames]


def test_frames_of_all_lanes_are_added() -> None:
    """Each turn takes one frame of each lane and sends their sum."""
    heard = Heard()
    mixer = Mixer(3, heard.send)
    mixer.put(0, [frame(1), frame(2)])
    mixer.put(1, [frame(10), frame(20)])
    mixer.put(2, [frame(-100), frame(-200)])
    for _ in range(3):
        mixer.step()
    assert heard.values == [-89, -178]
    assert mixer.dropped == 0


@given(st.lists(st.lists(st.integers(-32768, 32767), min_size=9, max_size=9), min_size=2))
def test_a_sum_is_held_at_full_scale(lanes: list[list[int]]) -> None:
    """Each sample is the sum of the lanes' samples, or full scale where that is beyond it."""
    heard = Heard()
    mixer = Mixer(len(lanes), heard.send)
    for number, samples in enumerate(lanes):
        mixer.put(number, [Frame(np.array(samples, "<i2").tobytes(), 0)] * 2)
    mixer.step()
    (mixed,) = heard.frames
    assert np.frombuffer(mixed.samples, "<i2").tolist() == [
        max(-32768, min(32767, sum(samples))) for samples in zip(*lanes, strict=True)
    ]


def test_a_lane_begins_with_two_frames() -> None:
    """One frame waits for a second; then the lane sounds until it is empty, and waits again."""
    heard = Heard()
    mixer = Mixer(1, heard.send)
    for put, waiting, sent in [
        ([frame(1)], 1, 0),
        ([frame(2)], 1, 1),
        ([], 0, 2),
        ([frame(3)], 0, 3),  # it still sounds: one frame a turn is enough
        ([], 0, 3),
        ([frame(4)], 1, 3),  # it ran dry
        ([frame(5)], 1, 4),
    ]:
        mixer.put(0, put)
        mixer.step()
        assert (mixer.waiting(0), len(heard.frames)) == (waiting, sent)
    assert heard.values == [1, 2, 3, 4]


def test_a_last_frame_is_not_left_behind() -> None:
    """One frame alone waits a single turn: what came late, with nothing after it, is heard too."""
    heard = Heard()
    mixer = Mixer(1, heard.send)
    for put, waiting, sent in [
        ([frame(1), frame(2)], 1, 1),
        ([], 0, 2),
        ([], 0, 2),
        ([frame(3)], 1, 2),
        ([], 0, 3),
        ([], 0, 3),
        ([frame(4)], 1, 3),  # and begins anew the next time
        ([frame(5)], 1, 4),
    ]:
        mixer.put(0, put)
        mixer.step()
        assert (mixer.waiting(0), len(heard.frames)) == (waiting, sent)
    assert heard.values == [1, 2, 3, 4]


def test_a_silent_lane_holds_nobody_up() -> None:
    """A lane with nothing, or with its first frame only, is silent; the others are heard."""
    heard = Heard()
    mixer = Mixer(3, heard.send)
    mixer.put(1, [frame(1)])
    mixer.put(2, [frame(10), frame(20), frame(30)])
    mixer.step()
    mixer.put(1, [frame(2)])
    mixer.step()
    mixer.step()
    assert heard.values == [10, 21, 32]


def test_one_lane_alone_passes_unchanged() -> None:
    """A frame with nothing to be added to is sent as it is, with its time."""
    heard = Heard()
    mixer = Mixer(2, heard.send)
    put = [frame(-32768, 7), frame(32767, 17)]
    mixer.put(1, put)
    mixer.step()
    mixer.step()
    assert heard.frames == put


def test_nothing_is_sent_where_nothing_is() -> None:
    """No lane has anything: no silence is made up."""
    heard = Heard()
    mixer = Mixer(2, heard.send)
    mixer.step()
    mixer.put(0, [frame(1)])
    mixer.step()
    assert heard.frames == []


@pytest.mark.parametrize(
    ("times_ms", "told_ms"), [([5, 6, 7], 5), ([0, 6, 7], 6), ([0, 0, 7], 7), ([0, 0, 0], 0)]
)
def test_a_sum_has_the_first_time_that_is_known(times_ms: list[int], told_ms: int) -> None:
    """The time of a sum is that of the first lane whose time is known, else 0."""
    heard = Heard()
    mixer = Mixer(3, heard.send)
    for lane, pts_ms in enumerate(times_ms):
        mixer.put(lane, [frame(1, pts_ms), frame(2, pts_ms)])
    mixer.step()
    assert [one.pts_ms for one in heard.frames] == [told_ms]


def test_what_is_refused_is_counted_and_gone() -> None:
    """A frame that cannot be sent is dropped; the next turn goes on with the next."""
    heard = Heard()
    mixer = Mixer(2, heard.send)
    mixer.put(0, [frame(one) for one in range(5)])
    mixer.step()
    heard.code = Code.NOT_READY
    mixer.step()
    mixer.step()
    heard.code = Code.OK
    mixer.step()
    assert mixer.dropped == 2
    assert heard.values == [0, 3]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=40))
def test_each_lane_keeps_its_order(turns: list[tuple[int, int]]) -> None:
    """Whatever comes when, each frame of each lane is sent once, in order, or still waits."""
    heard = Heard()
    mixer = Mixer(3, heard.send)
    put = [0, 0, 0]
    for lane, count in turns:
        mixer.put(lane, [frame(1 << (5 * lane)) for _ in range(count)])
        put[lane] += count
        mixer.step()
    for lane in range(3):
        sent = sum(value >> (5 * lane) & 1 for value in heard.values)
        assert sent + mixer.waiting(lane) == put[lane]
    assert 0 not in heard.values


def test_it_stops_with_and_without_its_thread() -> None:
    """The thread ends when it is told to; a mixer that never started stops as well."""
    Mixer(1, Heard().send).stop()
    mixer = Mixer(1, Heard().send)
    mixer.start()
    mixer.stop(PATIENCE_S)
    assert not any(one.name == "agora mix" for one in threading.enumerate())
    mixer.stop()
