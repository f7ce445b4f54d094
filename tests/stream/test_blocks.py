"""How long the blocks are that a card is asked for: as long as all who are in a hurry want."""

import os
from pathlib import Path
from typing import Any

import pytest

from capstand.audio.wake import WakeUp
from capstand.capture.alsa import AlsaSource
from capstand.config.schema import CaptureConfig, StreamConfig
from capstand.sinks.types.agora import AgoraSinkConfig
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.intake import CAPTURE_BATCH_MS, Chained, Intake
from capstand.stream.stream import Stream
from tests.processing.signals import settings

APP_ID = "0123456789abcdef0123456789abcdef"
FILE = FileSinkConfig("file", "/nowhere")


def channel(lock: bool, **keys: Any) -> AgoraSinkConfig:
    return AgoraSinkConfig(
        "agora", APP_ID, name=f"lock-{lock}", channel="c", rate_lock=lock, **keys
    )


def source(folder: Path, period_ms: float, *sinks: Any, chain: bool = False) -> AlsaSource:
    """That of a stream which is not started, with all that is woken by it."""
    capture = CaptureConfig(device="hw:9", rt_priority=0, period_ms=period_ms)
    process = (settings("gain", gain_db=1.0),) if chain else ()
    config = StreamConfig("mic", capture, sinks, process)
    stream = Stream(config, folder)
    chained = Chained(*(os.dup(one) for one in stream._chained())) if chain else None
    intake = Intake(config, folder, ring=stream.ring, chained=chained)
    live = [WakeUp() for _ in stream._gathers()]
    intake.wakes(*live, gathers=stream._gathers())
    assert isinstance(intake.source, AlsaSource)
    return intake.source


@pytest.mark.parametrize(
    "sinks, frames",
    [
        ((channel(True),), 960),
        ((channel(True), FILE), 960),
        ((channel(False),), 0),
        ((channel(True), channel(False)), 0),
    ],
)
def test_those_who_are_in_a_hurry_decide(
    sinks: tuple[Any, ...], frames: int, tmp_path: Path
) -> None:
    """A channel with the rate lock on sends 20 ms at once, one without it each period."""
    found = source(tmp_path, 10.0, *sinks)
    assert (found.block_frames, found.batch_ms) == (frames, 0)


def test_where_nobody_is_in_a_hurry(tmp_path: Path) -> None:
    """The card is left alone, and its blocks are its own."""
    found = source(tmp_path, 10.0, FILE)
    assert (found.block_frames, found.batch_ms) == (0, CAPTURE_BATCH_MS)


def test_short_periods_are_put_together(tmp_path: Path) -> None:
    """As few as two for a channel without the rate lock, which is sent 10 ms."""
    assert source(tmp_path, 5.0, channel(False)).block_frames == 480


def test_behind_a_chain(tmp_path: Path) -> None:
    """A chain works on 20 ms for a channel, and on more for recordings."""
    assert source(tmp_path, 10.0, channel(False), chain=True).block_frames == 960
    heard, done = channel(True, input="captured"), FILE._replace(input="processed")
    assert source(tmp_path, 10.0, heard, done, chain=True).block_frames == 960
    heard = channel(False, input="captured")
    assert source(tmp_path, 10.0, heard, channel(True), chain=True).block_frames == 0
