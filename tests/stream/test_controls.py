"""A card's controls are set in the process of its stream: what hangs there costs that one alone."""

import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from capstand.config.controls import Setting
from capstand.config.schema import CaptureConfig, StreamConfig
from capstand.processes import forkserver
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.stream import Stream
from tests.counts import counts
from tests.fakecard import FakeCard
from tests.fakecard.mixer import Mixer
from tests.stream.test_stream import Streams, numbers

MIC = (("Mic", Setting("80%")),)


@pytest.fixture
def mixer(fakemixer: Mixer) -> Mixer:
    fakemixer.volume("Mic Capture Volume", 10, 30)
    return fakemixer


@pytest.fixture
def streams(tmp_path: Path, mixer: Mixer) -> Iterator[Streams]:
    forkserver.shared.end()  # the next one finds the card by the environment
    one = Streams(tmp_path)
    yield one
    for left in one.all:
        left.process.abandon()
    forkserver.shared.end()


@pytest.fixture
def other(tmp_path: Path, fakecard_plugin: Path, fakecard: FakeCard) -> FakeCard:
    return FakeCard(tmp_path, "other", plugin=fakecard_plugin)


def start(streams: Streams, card: FakeCard, *settings: tuple[str, Setting]) -> Stream:
    sink = FileSinkConfig("file", str(streams.folder / "mic"), name="disk")
    capture = CaptureConfig(card.device, buffer_ms=4000.0, rt_priority=0, controls=settings)
    stream = Stream(StreamConfig("mic", capture, (sink,)), streams.folder / "state")
    streams.all.append(stream)
    streams.gaps["mic"], streams.troubles["mic"] = [], []
    stream.start()
    return stream


def shown(stream: Stream) -> dict[str, dict[str, str | None]]:
    return stream.stats(0).controls or {}


def test_they_are_set_in_the_process_of_the_stream(
    streams: Streams, fakecard: FakeCard, mixer: Mixer
) -> None:
    """As `status --json` shows them; a process that takes over sets them again; main has no part in
    it. One that is missing is in the status, too."""
    stream = start(streams, fakecard, *MIC, ("Boost", Setting(on=True)))
    streams.flow(stream)
    streams.until(lambda: shown(stream))
    assert mixer["Mic Capture Volume"] == [24, 24]
    assert shown(stream) == {
        "Mic": {"wanted": "80%", "is": "80%", "was": "33%", "fault": None},
        "Boost": {
            "wanted": "on",
            "is": None,
            "was": None,
            "fault": 'the card has no such control; it has "Mic"',
        },
    }
    notice = stream.stats(0).notice
    assert notice == 'control Boost: the card has no such control; it has "Mic"'
    pid, opens = stream.process.pid, stream.stats(0).opens
    assert pid is not None
    mixer["Mic Capture Volume"] = 2
    os.kill(pid, signal.SIGKILL)
    streams.until(lambda: stream.stats(0).opens > opens)
    assert mixer["Mic Capture Volume"] == [24, 24]
    streams.end()


def test_other_settings_cost_no_frame(streams: Streams, fakecard: FakeCard, mixer: Mixer) -> None:
    """The device stays open and each sink its own."""
    stream = start(streams, fakecard, *MIC)
    streams.flow(stream)
    capture = stream.config.capture
    for percent in range(0, 101, 10):
        settings = (("Mic", Setting(f"{percent}%")),)
        config = stream.config._replace(capture=capture._replace(controls=settings))
        stream.exchange(config)
        streams.until(lambda percent=percent: mixer["Mic Capture Volume"] == [0.3 * percent] * 2)  # type: ignore[misc]
        streams.flow(stream, 480)
    streams.until(lambda: shown(stream)["Mic"]["is"] == "100%")
    streams.end()
    ended = streams.ended["mic"]
    assert ended.opens == 1 and ended.lost_frames == 0
    (file,) = numbers(streams.folder / "mic")
    assert len(file) == ended.captured_frames
    assert all(after == before + 1 for before, after in pairwise(file))


@pytest.mark.parametrize("call", ["set", "open"][: counts(1, 2)])
def test_a_control_that_hangs_costs_its_own_stream_alone(
    streams: Streams, fakecard: FakeCard, mixer: Mixer, other: FakeCard, call: str
) -> None:
    """Whether with Python's lock in its hand or without, at a reload: the other stream loses
    nothing, and when the card is well again another process has sound and has set the controls."""
    well = streams.start(other, "well")
    stream = start(streams, fakecard, *MIC)
    streams.flow(stream)
    streams.flow(well)
    pid = stream.process.pid
    mixer.control.hangs = {"open": 1, "set": 2}[call]
    settings = (("Mic", Setting("50%")),)
    stream.exchange(
        stream.config._replace(capture=stream.config.capture._replace(controls=settings))
    )
    streams.until(lambda: stream.process.pid not in (pid, None))
    streams.flow(well, 48_000)
    mixer.control.hangs = 0
    opens = stream.stats(0).opens
    streams.until(lambda: stream.stats(0).opens > opens)
    streams.flow(stream)
    streams.until(lambda: shown(stream)["Mic"]["is"] == "50%")
    assert mixer["Mic Capture Volume"] == [15, 15]
    streams.end()
    assert streams.ended["well"].lost_frames == 0 and streams.troubles["well"] == []
