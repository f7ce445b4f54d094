"""Blocks: where they end, and what becomes of one that is cut or put together."""

from hypothesis import given
from hypothesis import strategies as st

from capstand.audio.block import NS_PER_S, AudioFormat, Block, SampleFormat, joined

AUDIO = AudioFormat(1000, 3, SampleFormat.S24_3LE)
MS = NS_PER_S // 1000


def block(first_frame: int, frames: int) -> Block:
    """Its samples say which frame is which."""
    samples = b"".join(
        number.to_bytes(9, "little") for number in range(first_frame, first_frame + frames)
    )
    return Block(first_frame, frames, 5 + first_frame * MS, samples, AUDIO)


def test_a_block_knows_its_end() -> None:
    """The frame that follows it, and when that one was sampled."""
    assert (block(70, 12).end_frame, block(70, 12).end_ns) == (82, 5 + 82 * MS)


@given(st.integers(0, 2**40), st.integers(1, 50), st.data())
def test_a_part_is_a_block_of_its_own(first_frame: int, frames: int, data: st.DataObject) -> None:
    """Without its first frames a block has the index, time and samples of those that are left."""
    cut = data.draw(st.integers(0, frames))
    assert block(first_frame, frames).after(cut) == block(first_frame + cut, frames - cut)


@given(st.integers(0, 2**40), st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_blocks_that_follow_each_other_are_one(first_frame: int, lengths: list[int]) -> None:
    """Put together they are what a single longer block would have been."""
    parts, at = [], first_frame
    for length in lengths:
        parts.append(block(at, length))
        at += length
    assert joined(parts) == block(first_frame, at - first_frame)
