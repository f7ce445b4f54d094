"""Short blocks put together, with nothing lost, repeated or put out of order."""

from hypothesis import given
from hypothesis import strategies as st

from capstand.audio.block import AudioFormat, Block, SampleFormat
from capstand.sinks.gathering import Gathering

AUDIO = AudioFormat(1000, 1, SampleFormat.U8)


def block(first_frame: int, frames: int) -> Block:
    samples = bytes(number % 256 for number in range(first_frame, first_frame + frames))
    return Block(first_frame, frames, first_frame, samples, AUDIO)


@given(
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(1, 20), st.sampled_from([0, 0, 0, 7])), max_size=20),
)
def test_what_goes_on_is_what_came(enough: int, steps: list[tuple[int, int]]) -> None:
    """Frames, samples and times are those that came; a block has enough frames unless a gap
    or the end follows it, and as few as can be."""
    gathering, at = Gathering(enough), 0
    came: dict[int, int] = {}
    longest = ends = 0
    ready: list[Block] = []
    stops = set[int]()  # ends of what a gap follows, or nothing
    for frames, gap in steps:
        if gap:
            stops.add(at)
        at += gap
        ready += gathering.put(block(at, frames))
        came |= {number: number % 256 for number in range(at, at + frames)}
        at, longest = at + frames, max(longest, frames)
        ends = at
    ready += gathering.rest()
    assert gathering.rest() == []
    went = [(one.first_frame + n, value) for one in ready for n, value in enumerate(one.samples)]
    assert went == sorted(came.items())
    for one in ready:
        assert one.captured_at_ns == one.first_frame and len(one.samples) == one.frames
        assert one.frames >= enough or one.end_frame in stops | {ends}
        assert one.frames < enough + longest


def test_without_a_length_each_block_goes_on_as_it_came() -> None:
    """No block waits, and none is copied."""
    gathering, one = Gathering(0), block(0, 5)
    assert gathering.put(one)[0] is one
    assert gathering.rest() == []
