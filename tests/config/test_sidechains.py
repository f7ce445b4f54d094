"""Streams that listen to others, in the configuration: which they may name, and what is told."""

import pytest

from capstand.config.decode import decode
from capstand.config.schema import Config
from capstand.errors import ConfigError
from capstand.processing import engines

SINK = '[[stream.sink]]\ntype = "file"\npath = "/{name}"\n'


def stream(name: str, *references: str, sink: bool = True, keys: str = "") -> str:
    """Six lines of header, then four for each reference."""
    head = f'[[stream]]\nname = "{name}"\n[stream.capture]\ndevice = "hw:{name}"\nchannels = 1\n'
    chain = "".join(
        f'[[stream.process]]\ntype = "echo-cancellation"\nreference = "{one}"\n{keys}\n'
        for one in references
    )
    return f"{head}\n{chain}" + (SINK.format(name=name) if sink else "")


def read(*streams: str) -> Config:
    return decode("".join(streams), "c.toml", Config)


def faults(*streams: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(*streams)
    return caught.value.faults


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told here is the same without the engine."""
    monkeypatch.setattr("capstand.processing.types.echo_cancellation.has_webrtc", lambda: True)


def test_a_stream_names_another_one_before_or_behind_it() -> None:
    """Which needs no sink then, and is shared by all that name it."""
    mic, room = stream("mic", "far"), stream("room", "far", keys="hold_ms = 80")
    for order in ((mic, stream("far", sink=False), room), (stream("far"), mic, room)):
        found = {one.name: one for one in read(*order).stream}
        assert found["mic"].sidechains == {"process.0.reference": "far"}
        assert found["far"].sidechains == {}
        assert found["room"].process[0].hold_ms == 80.0  # type: ignore[attr-defined]


def test_two_streams_may_name_each_other() -> None:
    """Each hears what the other one captures, so nothing goes round."""
    assert len(read(stream("mic", "room"), stream("room", "mic")).stream) == 2


def test_a_name_that_is_no_other_stream_is_told() -> None:
    """With its line, and with the names that there are."""
    assert faults(stream("mic", "fra"), stream("far")) == [
        'c.toml:9: stream.mic.process.1.reference: "fra" is not a stream; expected one of "far"'
    ]
    assert faults(stream("mic", "mic"), stream("far"), stream("hall")) == [
        'c.toml:9: stream.mic.process.1.reference: "mic" is this stream itself; expected one of '
        '"far", "hall"'
    ]
    assert faults(stream("mic", "far")) == [
        'c.toml:9: stream.mic.process.1.reference: "far" is not a stream; expected another stream, '
        "and there is none"
    ]
    (told,) = faults(stream("mic", "a b"), stream("far"))
    assert "c.toml:9: stream.mic.process.1.reference:" in told and "expected a name" in told


def test_a_stream_without_a_sink_must_be_of_use() -> None:
    """To one that has a sink; two that only listen to each other are of none."""
    unused = "there is no [[stream.sink]]; the sound would not be used"
    assert faults(stream("mic"), stream("far", sink=False)) == [
        f"c.toml:10: stream.far.sink: {unused}"
    ]
    assert faults(stream("mic", "far", sink=False), stream("far", "mic", sink=False)) == [
        f"c.toml:1: stream.mic.sink: {unused}",
        f"c.toml:11: stream.far.sink: {unused}",
    ]


def test_nor_has_it_processors_then() -> None:
    """Others listen to what it captures."""
    assert faults(stream("mic", "far"), stream("far", "mic", sink=False)) == [
        "c.toml:20: stream.far.process: nobody gets what is processed: other streams listen to "
        "what is captured; add a [[stream.sink]], or delete the processors"
    ]


def test_a_chain_listens_to_no_more_than_its_process_can_be_given() -> None:
    names = [f"far{at}" for at in range(33)]
    others = [stream(name) for name in names]
    assert len(read(stream("mic", *names[:32]), *others).stream) == 34
    assert faults(stream("mic", *names), *others) == [
        "c.toml:7: stream.mic.process: its processors listen to 33 streams; expected at most 32"
    ]


def test_what_the_canceller_cannot_take_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate of the microphone; of the reference any will do. And a missing library."""
    slow = stream("mic", "far").replace("channels = 1", "rate_hz = 44100")
    assert faults(slow, stream("far")) == [
        "c.toml:8: stream.mic.process.1.type: echo-cancellation takes 16000, 32000, 48000 Hz and "
        "gets 44100 Hz; put a resample in front of it, or set capture.rate_hz = 48000"
    ]
    read(stream("mic", "far"), stream("far").replace("channels = 1", "rate_hz = 768000"))
    monkeypatch.setattr("capstand.processing.types.echo_cancellation.has_webrtc", lambda: False)
    (told,) = faults(stream("mic", "far"), stream("far"))
    assert "c.toml:8: stream.mic.process.1.type: echo-cancellation needs pywebrtc-audio" in told
    assert engines.INSTALL_WEBRTC in told
