"""The words of a stream's page: what each sink has delivered, to be read at any time."""

import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from capstand.config.schema import StreamConfig
from capstand.processes.page import CALLS, Page
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.blank import blank_report
from capstand.stream.intake import Intake
from capstand.stream.report import WORDS_PER_SINK, StreamWord, word_places
from tests.line import capture
from tests.patience import PATIENCE_S

NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True)


@given(st.lists(st.tuples(NAMES, st.sets(st.integers(8, 30))), max_size=8))
def test_each_sink_keeps_its_words(steps: list[tuple[list[str], set[int]]]) -> None:
    """Whatever sinks come and go: none gets the words of another that is there or leaves, nor any
    that are somebody else's."""
    places: dict[str, int] = {}
    for there, taken in steps:
        taken -= set(places.values())
        before, places = places, word_places(there, places, taken)
        assert list(places) == there
        assert not taken & set(places.values())
        assert all(places[one] == before[one] for one in there if one in before)
        words = [at + one for at in places.values() for one in range(WORDS_PER_SINK)]
        assert len(set(words)) == len(words)
        assert all(StreamWord.FIRST <= at < CALLS for at in words)


def test_what_a_sink_delivers_is_told_in_words(tmp_path: Path) -> None:
    """Main knows which they are before the process has said so. One that leaves keeps its own
    until it has left, whatever the next one is called; then another may have them."""

    def config(*names: str, changed: bool = False) -> StreamConfig:
        sinks = [FileSinkConfig("file", str(tmp_path / name), name) for name in names]
        if changed:
            sinks[1] = sinks[1]._replace(segment_s=60)
        return StreamConfig("mic", capture(), tuple(sinks))

    page = Page()
    words = page.words
    intake = Intake(config("a", "b"), tmp_path, tmp_path, words=words)
    places = blank_report(config("a", "b")).words
    _, old = intake.sink_queues
    old.tells(7, 9)
    assert (words[places["b"]], words[places["b"] + 1]) == (7, 9)
    assert words[places["a"]] == words[places["a"] + 1] == 0
    intake.exchange(config("a", "b", changed=True))
    _, fresh = intake.sink_queues
    at = intake.report(0).words["b"]
    assert at not in places.values() and words[at] == words[at + 1] == 0
    old.tells(100, 101)
    fresh.tells(3, 4)
    assert (words[places["b"]], words[places["b"] + 1]) == (100, 101)
    assert (words[at], words[at + 1]) == (3, 4)
    old.finish()
    assert old.join(time.monotonic() + PATIENCE_S)
    intake.reap_removed()
    intake.exchange(config("a", "b", "c", changed=True))
    *_, last = intake.sink_queues
    assert intake.report(0).words == {"a": places["a"], "b": at, "c": places["b"]}
    last.tells(7, 8)
    old.tells(200, 200)
    assert (words[places["b"]], words[places["b"] + 1]) == (7, 8)
    for one in (fresh, last):
        one.finish()
        assert one.join(time.monotonic() + PATIENCE_S)
    intake.dispose()
    page.close()
