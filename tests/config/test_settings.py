"""The settings of a running chain: by which names they go, and what they may become."""

from typing import Any

import pytest

from capstand.config.decode import decode
from capstand.config.schema import Config, StreamConfig
from capstand.config.settings import Change, changed, changes, settings
from capstand.errors import ConfigError

HEAD = """
[[stream]]
name = "mic"
[stream.capture]
device = "synthetic"
[[stream.sink]]
type = "file"
path = "/nowhere"
"""
CHAIN = """
[[stream.process]]
type = "high-pass"
[[stream.process]]
type = "gain"
gain_db = 0
[[stream.process]]
type = "eq"
[[stream.process.band]]
kind = "peak"
frequency_hz = 1000
gain_db = 3
[[stream.process.band]]
kind = "notch"
frequency_hz = 50
[[stream.process]]
type = "gain"
gain_db = -3
[[stream.process]]
type = "channels"
pick = [1, 2]
"""


def stream(chain: str = CHAIN) -> StreamConfig:
    return decode(HEAD + chain, "mic.toml", Config).stream[0]


def fault(key: str, text: str, of: StreamConfig | None = None) -> str:
    """All that is said of a value that is refused."""
    with pytest.raises(ConfigError) as refused:
        changed(Config((of or stream(),)), "mic", key, text)
    return "\n".join(refused.value.faults)


def test_each_key_has_a_name_and_its_value() -> None:
    """In the order of the chain; a type that is there twice goes by its position, from 1."""
    assert settings(stream().process) == {
        "high-pass.cutoff_hz": 80.0,
        "high-pass.order": 2,
        "process.2.gain_db": 0.0,
        "eq.band.1.kind": "peak",
        "eq.band.1.frequency_hz": 1000.0,
        "eq.band.1.gain_db": 3.0,
        "eq.band.1.q": 0.707,
        "eq.band.2.kind": "notch",
        "eq.band.2.frequency_hz": 50.0,
        "eq.band.2.gain_db": 0.0,
        "eq.band.2.q": 0.707,
        "process.4.gain_db": -3.0,
        "channels.pick": (1, 2),
        "channels.swap": False,
        "channels.mix": False,
        "channels.matrix": None,
    }


@pytest.mark.parametrize(
    ("key", "text", "name", "value"),
    [
        ("high-pass.cutoff_hz", "120", "high-pass.cutoff_hz", 120.0),
        ("process.1.order", "4", "high-pass.order", 4),
        ("process.4.gain_db", "-6.5", "process.4.gain_db", -6.5),
        ("eq.band.2.frequency_hz", " 60 # hum", "eq.band.2.frequency_hz", 60.0),
        ("process.3.band.1.kind", "low-shelf", "eq.band.1.kind", "low-shelf"),
        ("channels.pick", "[2, 1]", "channels.pick", (2, 1)),
        ("eq.band.1.kind", '"high-shelf"', "eq.band.1.kind", "high-shelf"),
    ],
)
def test_one_value_changes_and_nothing_else(key: str, text: str, name: str, value: Any) -> None:
    before = stream()
    after = changed(Config((before,)), "mic", key, text)
    assert changes(after.process, before.process) == [
        Change(name, value, settings(before.process)[name])
    ]
    assert after._replace(process=before.process) == before


def test_an_array_of_tables_may_be_changed_as_a_whole() -> None:
    """What is there on one side only is not set on the other."""
    before = stream()
    text = '[{kind = "peak", frequency_hz = 1000, gain_db = 3}]'
    after = changed(Config((before,)), "mic", "eq.band", text)
    told = {one.key: (one.value, one.file) for one in changes(after.process, before.process)}
    assert told == {
        "eq.band.2.kind": (None, "notch"),
        "eq.band.2.frequency_hz": (None, 50.0),
        "eq.band.2.gain_db": (None, 0.0),
        "eq.band.2.q": (None, 0.707),
    }


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("process.2.gain_db", "99", "process.2.gain_db: 99: expected a number from -120 to 60"),
        ("process.1.order", "3.5", "high-pass.order: 3.5: expected an integer from 1 to 8"),
        (
            "high-pass.cutoff_hz",
            '"120"',
            'high-pass.cutoff_hz: "120": expected a number from 1 to 384000; write the number '
            "without quotation marks",
        ),
        (
            "high-pass.cutoff_hz",
            "30000",
            "high-pass.cutoff_hz: 30000 is not below half the rate, 24000",
        ),
        (
            "high-pass.cutoff_hz",
            "120 Hz",
            "high-pass.cutoff_hz: not a TOML value: write the number without a unit; the key "
            "names it",
        ),
        (
            "high-pass.cutoff_hz",
            "",
            "high-pass.cutoff_hz: not a TOML value: the value of cutoff_hz is missing",
        ),
        ("high-pass.cutoff_hz", "90\norder = 3", "expected one value, found more than a line"),
        ("high-pass.cutoff_hz", "9" * 5000, "not a TOML value: nested too deeply, or too long"),
        ("eq.band.2.gain_db", "3", 'eq.band.2.gain_db: a "notch" has none; delete the key'),
        ("eq.band.1.kind", "peek", 'eq.band.1.kind: "peek": expected one of "peak", "low-shelf"'),
        ("eq.band.1.kind", "peek", "did you mean peak?"),
        ("channels.pick", "[1, 3]", "channels.pick: there is no channel 3: 2 channels come in"),
        ("channels.swap", "true", "channels.swap: expected one of pick, swap, mix and matrix"),
    ],
)
def test_a_value_is_checked_as_in_the_file(key: str, text: str, words: str) -> None:
    """With the same sentences, for one value and for what does not fit the rest of the chain."""
    assert words in fault(key, text)


@pytest.mark.parametrize(
    "key",
    [
        *("gain", "gain.", "process", "process.2", "process.0.gain_db", "process.7.gain_db"),
        *("process.2.gian_db", "process.2.type", "process.2.gain_db.x", "process.2._fields"),
        *("eq.band.0.q", "eq.band.3.q", "eq.band.1", "eq.1", "limiter.ceiling_dbfs", "", "."),
        *("channels.pick.1", "capture.rate_hz", "process.²", "eq.band.1.kind.upper"),
    ],
)
def test_a_key_that_is_not_there_is_told_with_those_that_are(key: str) -> None:
    told = fault(key, "1")
    if key in ("gain", "gain."):
        assert "mic has 2 stages of this type; take process.2" in told
    else:
        assert told.startswith(f"{key}: no such key in mic")
        assert told.splitlines()[1:] == [f"  {one}" for one in settings(stream().process)]


def test_a_type_that_is_there_twice_needs_its_position() -> None:
    assert fault("gain.gain_db", "1") == (
        "gain.gain_db: mic has 2 stages of this type; take process.2.gain_db or process.4.gain_db"
    )


def test_a_near_key_is_asked_for() -> None:
    assert "did you mean high-pass.cutoff_hz?" in fault("high-pass.cutof_hz", "1")


def test_other_streams_stay_as_they_are() -> None:
    """A key is one of its own stream, whichever place that has in the file."""
    first, second = stream(), stream()._replace(name="second")
    second = second._replace(capture=second.capture._replace(device="card:Mic"))
    made = changed(Config((first, second)), "second", "process.2.gain_db", "3")
    assert made.name == "second"
    assert changes(made.process, second.process) == [Change("process.2.gain_db", 3.0, 0.0)]
    with pytest.raises(ConfigError) as refused:
        changed(Config((first, second)), "second", "process.2.gain_db", "99")
    (told,) = refused.value.faults
    assert told == "process.2.gain_db: 99: expected a number from -120 to 60"


def test_what_comes_out_stays() -> None:
    """Other channels need another chain, and its sinks other files."""
    assert fault("channels.pick", "[1]") == (
        "channels.pick: changes what comes out of the chain, from 2 ch, 48000 Hz to 1 ch, "
        "48000 Hz; that needs another chain: write it into the file and reload"
    )


def test_without_a_chain_there_is_nothing_to_set() -> None:
    words = "mic has no [[stream.process]]; there is nothing to set"
    assert fault("gain.gain_db", "1", stream("")) == words
