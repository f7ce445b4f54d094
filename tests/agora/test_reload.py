"""A channel that changes under sound: one is left, another joined, and the recording goes on."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agora import StandIn
from tests.agora.test_daemon import Daemon


@pytest.fixture
def daemon(standin: StandIn, tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(tmp_path, standin)
    yield one
    one.close()


@pytest.mark.parametrize(
    ("before", "after", "told", "first_left"),
    [
        ('channel = "studio"', 'channel = "hall"', "agora: in hall", False),
        ("uid = 1001", "uid = 1001\nsend_delay_ms = 60", "agora: in studio", True),
    ],
)
def test_a_channel_changes_and_the_recording_does_not(
    daemon: Daemon, standin: StandIn, before: str, after: str, told: str, first_left: bool
) -> None:
    """The new channel is joined and the old one left, in any order where they are two, after it
    where one person would be in one channel twice; the file beside them has every frame, and the
    books of both channels are closed."""
    daemon.until("agora: in studio")
    setup = daemon.folder / "capstand.toml"
    setup.write_text(setup.read_text().replace(before, after))
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until("RELOADING=1")
    at = [text for _, text in daemon.heard].index("RELOADING=1")
    daemon.heard = daemon.heard[at:]
    daemon.until("READY=1")
    daemon.until(told)
    assert daemon.stop() == 0

    names = standin.names()
    joins = [at for at, name in enumerate(names) if name == "agora_rtc_conn_connect"]
    leaves = [at for at, name in enumerate(names) if name == "agora_rtc_conn_disconnect"]
    assert len(joins) == len(leaves) == 2
    assert leaves[0] < joins[1] or not first_left
    assert standin.violations() == []
    (file,) = (daemon.folder / "rec").iterdir()
    assert file.suffix == ".wav"
    events = [
        json.loads(line)
        for line in (daemon.folder / "state/ledger/mic.jsonl").read_text().splitlines()
    ]
    (leave,) = [event for event in events if event["event"] == "sink_removed"]
    joined = [event for event in events if event["event"] == "sink_added"]
    channel, recording = events[-1]["sinks"]
    assert leave["balanced"] is events[-1]["balanced"] is True
    since = [frame for frame in (leave["since_frame"], channel["since_frame"]) if frame]
    assert [(one["sink"], one["first_frame"]) for one in joined] == [
        ("agora", frame)
        for frame in since  # the first may have been there before any sound
    ]
    assert leave["end_frame"] <= channel["since_frame"] > 0
    assert events[-1]["lost_frames"] == recording["dropped_frames"] == 0
    assert recording["delivered_frames"] == events[-1]["captured_frames"]
