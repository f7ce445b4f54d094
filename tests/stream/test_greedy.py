"""What a foreign type of live sink wants at once is believed where it can be."""

import pytest

from capstand.stream.stream import Stream
from tests.stream.chained import Running, sink_of
from tests.stream.chained import running as running


@pytest.mark.parametrize("name", ["greedy", "negative", "worded"])
def test_what_cannot_be_costs_that_sink_alone(running: Running, name: str) -> None:
    """A type that wants more frames than there will be, fewer than none, or no number: the trouble
    of its sink says so and what to do, and what the stream records goes on."""
    config = running.config(sinks=(running.file("raw"), running.wire(name)))
    running.stream = Stream(config, running.folder / "state")
    running.stream.start()
    running.until(lambda: running.delivered("raw") > 9600)
    running.until(lambda: sink_of(running.stats(), name).trouble)
    trouble = str(sink_of(running.stats(), name).trouble)
    assert "gather_frames: " in trouble and "is not 0 to 4800" in trouble
    assert trouble.endswith("fix or uninstall what brings wild, then restart capstand")
    assert running.end().captured_frames > 9600
