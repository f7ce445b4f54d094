"""Who may change a setting of a running chain, and what is known of it afterwards."""

import json
from pathlib import Path
from typing import Any

import pytest

from capstand.accounting.ledger import Ledger
from capstand.config.schema import Config, StreamConfig
from capstand.errors import CapstandError
from capstand.host.peer import Peer
from capstand.sharing.live_settings import LiveSettings
from tests.line import capture, config
from tests.processing.signals import settings

ROOT = Peer(pid=1, uid=0, groups=frozenset())
STRANGER = Peer(pid=2, uid=65_534, groups=frozenset())


class Chain:
    """A stream of which only the configuration matters."""

    def __init__(self, *process: Any) -> None:
        self.config: StreamConfig = config(capture())._replace(process=process)
        self.name = self.config.name
        self.exchanged = 0

    def exchange(self, config: StreamConfig) -> None:
        self.config = config
        self.exchanged += 1


class Place:
    def __init__(self, folder: Path) -> None:
        self.chain = Chain(settings("high-pass", cutoff_hz=90.0), settings("gain", gain_db=0.0))
        self.ledger = Ledger(folder / "ledger")
        self.file = Config((self.chain.config,))
        self.settings = LiveSettings(
            lambda: [self.chain], lambda: self.file, folder / "a.toml", self.ledger
        )
        self.folder = folder

    def set(self, peer: Peer = ROOT, **what: Any) -> Any:
        return self.settings.set({"ask": "set", **what}, peer)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_change_is_in_force_told_and_in_the_ledger(place: Place) -> None:
    assert place.set(stream="mic", key="gain.gain_db", value="-6") == {
        "stream": "mic",
        "set": [{"key": "gain.gain_db", "value": -6.0, "was": 0.0}],
        "path": str(place.folder / "a.toml"),
    }
    assert place.chain.config.process[1] == settings("gain", gain_db=-6.0)
    assert place.settings.changes(place.chain) == [
        {"key": "gain.gain_db", "value": -6.0, "file": 0.0}
    ]
    place.ledger.close(10)
    (line,) = (place.folder / "ledger/mic.jsonl").read_text().splitlines()
    written = json.loads(line)
    assert {key: written[key] for key in ("event", "key", "value", "was", "by_uid", "by_pid")} == {
        "event": "set",
        "key": "gain.gain_db",
        "value": -6.0,
        "was": 0.0,
        "by_uid": 0,
        "by_pid": 1,
    }


def test_a_value_that_is_there_already_changes_nothing(place: Place) -> None:
    assert place.set(stream="mic", key="gain.gain_db", value="0.0")["set"] == []
    assert not place.chain.exchanged


def test_a_value_that_is_the_files_again_is_no_difference(place: Place) -> None:
    place.set(stream="mic", key="gain.gain_db", value="-6")
    place.set(stream="mic", key="gain.gain_db", value="0")
    assert place.chain.exchanged == 2
    assert place.settings.changes(place.chain) == []


def test_who_has_no_business_with_the_card_may_only_look(place: Place) -> None:
    """A stranger reads all settings; a change of theirs is refused, and changes nothing."""
    listed = place.set(STRANGER, stream="mic")["settings"]
    assert [one["key"] for one in listed] == [
        "high-pass.cutoff_hz",
        "high-pass.order",
        "gain.gain_db",
    ]
    with pytest.raises(CapstandError, match="uid 65534 may not change a stream"):
        place.set(STRANGER, stream="mic", key="gain.gain_db", value="-6")
    assert not place.chain.exchanged


def test_one_key_is_listed_alone_and_says_what_the_file_has(place: Place) -> None:
    place.set(stream="mic", key="gain.gain_db", value="-6")
    assert place.set(stream="mic", key="process.2.gain_db")["settings"] == [
        {"key": "gain.gain_db", "value": -6.0, "file": 0.0}
    ]
    assert place.set(stream="mic", key="high-pass.order")["settings"] == [
        {"key": "high-pass.order", "value": 2}
    ]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"stream": "card"}, "of this daemon; it has mic"),
        ({"stream": ["mic"]}, "of this daemon; it has mic"),
        ({"stream": "mic", "key": 7}, "7: expected a text"),
        ({"stream": "mic", "key": "gain.gain_db", "value": 7}, "7: expected a text"),
        ({"stream": "mic", "value": "7"}, ": no such key in mic"),
        ({"stream": "mic", "key": "gain.gain_db", "value": "99"}, "99: expected a number from"),
    ],
)
def test_what_cannot_be_meant_is_refused(place: Place, asked: dict[str, Any], words: str) -> None:
    """And the daemon says why, whatever a program sends."""
    (first, *_) = place.set(**asked)["refused"]
    assert words in first
    assert not place.chain.exchanged


def test_a_stream_that_a_reload_has_taken_out_differs_from_nothing(place: Place) -> None:
    """It is still there while it ends, and its status is still asked for."""
    place.set(stream="mic", key="gain.gain_db", value="-6")
    place.file = Config(())
    assert place.settings.changes(place.chain) == []
    assert place.set(stream="mic")["settings"][0]["key"] == "high-pass.cutoff_hz"
