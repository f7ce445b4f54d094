"""The words of a stream's page: what each sink has delivered, to be read at any time."""

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

NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True)


@given(st.lists(NAMES, max_size=8))
def test_each_sink_keeps_its_words(names: list[list[str]]) -> None:
    """Whatever sinks come and go: none gets the words of another that is there, nor any that are
    somebody else's."""
    places: dict[str, int] = {}
    for there in names:
        before, places = places, word_places(there, places)
        assert list(places) == there
        assert all(places[one] == before[one] for one in there if one in before)
        words = [at + one for at in places.values() for one in range(WORDS_PER_SINK)]
        assert len(set(words)) == len(words)
        assert all(StreamWord.FIRST <= at < CALLS for at in words)


def test_what_a_sink_delivers_is_told_in_words(tmp_path: Path) -> None:
    """Main knows which they are before the process has said so. One that leaves writes there no
    more, since another may have them."""

    def config(*names: str) -> StreamConfig:
        sinks = [FileSinkConfig("file", str(tmp_path / name), name) for name in names]
        return StreamConfig("mic", capture(), tuple(sinks))

    page = Page()
    words = page.words
    intake = Intake(config("a", "b"), tmp_path, tmp_path, words=words)
    places = blank_report(config("a", "b")).words
    _, old = intake.sink_queues
    old.tells(7, 9)
    assert (words[places["b"]], words[places["b"] + 1]) == (7, 9)
    assert words[places["a"]] == words[places["a"] + 1] == 0
    intake.exchange(config("a", "c"))
    _, fresh = intake.sink_queues
    at = intake.report(0).words["c"]
    assert at == places["b"] and words[at] == words[at + 1] == 0
    old.tells(100, 100)
    assert words[at] == 0
    for one in (old, fresh):
        one.finish()
        assert one.join(1e9)
    fresh.tells(3, 4)
    assert (words[at], words[at + 1]) == (3, 4)
    intake.dispose()
    page.close()
