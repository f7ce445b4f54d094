"""What is known of a sink that was to leave, and whose process has died."""

import pytest

from capstand.accounting.stats import SinkState
from capstand.stream.blank import not_yet
from capstand.stream.parting import DIED, Parted

MEANT = not_yet("disk")._replace(
    captured_frames=100, delivered_frames=60, dropped_frames=10, in_flight_frames=30
)


@pytest.mark.parametrize(
    ("kept", "captured", "delivered"),
    [
        (85, 100, 85),
        (90, 100, 90),
        (None, 100, 60),
        (59, 100, 60),  # less than before cannot be
        (91, 105, 91),  # it was fed a moment longer
        (96, 105, 60),  # more than there was cannot be
        (-1, 100, 60),
    ],
)
def test_what_is_kept_of_it_is_delivered(kept: int | None, captured: int, delivered: int) -> None:
    """The rest of what was meant for it is dropped, or may wait in its spool."""
    (sink, end_frame, events, hung) = Parted(
        MEANT, words=None, captured=1000, end_frame=1234, spooled=False
    ).last_word(kept, 900 + captured)
    assert (end_frame, events, hung) == (1234, (), False)
    assert sink.balanced and sink.state is SinkState.CLOSED
    assert (sink.delivered_frames, sink.in_flight_frames) == (delivered, 0)
    assert sink.captured_frames == max(100, delivered + 10)
    assert sink.trouble == (DIED if sink.dropped_frames > 10 else None)
    spooled = Parted(MEANT, None, 1000, 1234, spooled=True).last_word(kept, 900 + captured).sink
    assert (spooled.delivered_frames, spooled.dropped_frames) == (delivered, 10)
    assert spooled.balanced and spooled.in_flight_frames == sink.dropped_frames - 10


def test_one_that_had_not_joined_had_nothing() -> None:
    """Its books are empty."""
    fresh = not_yet("disk")._replace(since_frame=None)
    sink = Parted(fresh, 8, 1000, 1234, spooled=False).last_word(77, 2000).sink
    assert sink == fresh._replace(state=SinkState.CLOSED)
