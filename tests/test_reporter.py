"""What the journal gets to hear of a sink: each change once."""

from __future__ import annotations

from pathlib import Path

import pytest

from capstand.ledger import Ledger
from capstand.reporter import Reporter
from tests.line import Keep, Line, capture


class Ailing(Keep):
    """A sink that takes every block and says what is wrong all the same."""

    concern: str | None = None


def test_a_concern_of_a_sink_is_told_when_it_begins_and_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words that change meanwhile, such as a number in them, are no news."""
    sink = Ailing()
    line = Line(capture(), [sink])
    reporter = Reporter(line.stream, Ledger(tmp_path))
    said: list[str] = []
    monkeypatch.setattr(
        "capstand.reporter.say", lambda _, text, *words, **__: said.append(text % words)
    )
    for concern in (None, "nothing is sent for 10 s", "nothing is sent for 11 s", None, None):
        sink.concern = concern
        reporter.look(line.stats())
    assert said == [
        "mic: sink sink0: nothing is sent for 10 s",
        "mic: sink sink0: all is well again",
    ]
