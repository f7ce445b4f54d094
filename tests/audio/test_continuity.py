"""What is missing between blocks, to the frame."""

from hypothesis import given
from hypothesis import strategies as st

from capstand.audio.block import AudioFormat, Block, SampleFormat
from capstand.audio.continuity import Continuity

AUDIO = AudioFormat(1000, 1, SampleFormat.U8)


def block(first_frame: int, frames: int = 10) -> Block:
    return Block(first_frame, frames, first_frame, bytes(frames), AUDIO)


@given(
    st.integers(0, 2**40),
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=9),
)
def test_each_gap_is_told_once(first_frame: int, steps: list[tuple[int, int]]) -> None:
    """Whatever index it begins with, each block is missed as many frames as were left out before
    it; to ask alone changes nothing."""
    continuity, at, before = Continuity(), first_frame, 0
    for frames, left_out in steps:
        one = block(at, frames)
        assert continuity.missing(one) == continuity.missing(one) == before
        assert continuity.follow(one) == before
        assert continuity.next_frame == at + frames
        at, before = at + frames + left_out, left_out


def test_indices_that_begin_anew_are_no_gap() -> None:
    """They tell by a number below 0, and what follows is held against them."""
    continuity = Continuity()
    continuity.follow(block(1000))
    assert continuity.follow(block(0)) == -1010
    assert continuity.follow(block(10)) == 0


def test_a_gap_that_was_filled_is_none() -> None:
    """Whoever puts something in its place says where it goes on."""
    continuity = Continuity()
    continuity.follow(block(0))
    continuity.next_frame = 70
    assert continuity.missing(block(75)) == 5
