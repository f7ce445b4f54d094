"""Recordings with a spool: nothing twice and nothing lost, also across ``kill -9``, on real files
and with the daemon as a whole."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from capstand.audio.block import AudioFormat, Block, SampleFormat
from capstand.config.schema import CaptureConfig, SpoolConfig
from capstand.errors import CapstandError
from capstand.host.control import NAME, ask
from capstand.sinks.spool.spooled import Spooled
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.intake import Intake
from tests.line import config
from tests.patience import PATIENCE_S
from tests.sinks.test_recording import S16, Desk, expected, heard

CONTAINERS = [
    ("wav", "S16_LE", 3600.0),
    ("wav", "S24_3LE", 3600.0),
    ("wav", "S24_LE", 86_400.0),
    ("flac", "S16_LE", 3600.0),
    ("flac", "S24_LE", 3600.0),
    ("wav", "U8", 3600.0),
    ("wav", "S16_BE", 3600.0),
    ("wav", "S20_3LE", 3600.0),
    ("wav", "FLOAT_LE", 86_400.0),
    ("flac", "U8", 3600.0),
    ("flac", "S20_3LE", 3600.0),
]


@pytest.mark.parametrize("name", ["../other.wav", "link.wav", "folder.wav", "fifo.wav"])
@pytest.mark.parametrize("frames", [0, 10])
def test_what_is_no_recording_there_is_not_cut(tmp_path: Path, name: str, frames: int) -> None:
    """A mark is only as good as the directories that it and the recording lie in: a name that leads
    out of them, a link, a folder and a pipe are left alone, and recording goes on."""
    other = tmp_path / "other.wav"
    other.write_bytes(bytes(1000))
    desk = Desk(tmp_path / "rec", S16)
    folder = Path(desk.setup.path)
    folder.mkdir(exist_ok=True)
    (folder / "link.wav").symlink_to(other)
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "fifo.wav")
    later = desk.recording()
    later.rewind(json.dumps([name, frames, 100]))
    later.open()
    assert other.read_bytes() == bytes(1000)
    assert (folder / "link.wav").is_symlink() and (folder / "fifo.wav").is_fifo()


@pytest.mark.parametrize("end", ["killed", "closed", "recovered"])
@pytest.mark.parametrize(("container", "sample", "segment_s"), CONTAINERS)
def test_a_recording_is_taken_back_to_its_mark(
    tmp_path: Path, container: str, sample: str, segment_s: float, end: str
) -> None:
    """What a recording wrote after a mark can be taken back, whether it was killed then, closed, or
    found by another start: the file then holds the frames that the mark called safe."""
    audio = AudioFormat(8000, 2, SampleFormat[sample])
    desk = Desk(tmp_path, audio, container=container, segment_s=segment_s)
    samples = desk.write(*range(0, 16_000, 800))
    desk.sink.flush()
    safe, place = desk.sink.checkpoint()
    assert safe == 16_000 if container == "wav" else 16_000 - 4096 <= safe < 16_000
    desk.write(*range(16_000, 24_000, 800))
    if end == "closed":
        desk.sink.close()
    if end == "recovered":
        desk.recording().open()
    later = desk.recording()
    later.rewind(place)
    later.rewind(place)
    later.open()
    (path,) = tmp_path.iterdir()
    assert not path.name.endswith(".part")
    if sample == "FLOAT_LE":
        values = soundfile.read(path, dtype="float32")[0].astype("<f4")
        assert values.tobytes() == samples[: safe * audio.frame_bytes]
    else:
        assert np.array_equal(heard(path), expected(samples, audio.sample)[: 2 * safe])
    if end == "killed":
        desk.sink._segment = None  # its process is gone


@pytest.mark.parametrize("container", ["wav", "flac"])
def test_silence_in_a_gap_does_not_count(tmp_path: Path, container: str) -> None:
    """A mark counts frames of blocks: what is put into a gap is taken back with what follows it."""
    desk = Desk(tmp_path, container=container)
    first = desk.write(*range(0, 8000, 800))
    later = desk.write(9000)
    desk.sink.flush()
    safe, place = desk.sink.checkpoint()
    desk.sink.close()
    assert desk.sink.checkpoint() == (8800, "")
    again = desk.recording()
    again.rewind(place)
    (path,) = tmp_path.iterdir()
    found = heard(path)
    silence = bytes(1000 * S16.frame_bytes)
    assert np.array_equal(found, expected(first + silence + later, S16.sample)[: len(found)])
    assert safe == len(found) // 2 - max(0, min(1000, len(found) // 2 - 8000))


def test_a_mark_follows_the_files(tmp_path: Path) -> None:
    """A file that was begun and not written is taken back whole; one that is whole stays."""
    desk = Desk(tmp_path, segment_s=0.2)
    assert desk.sink.checkpoint() == (0, "")
    desk.write(0)
    safe, place = desk.sink.checkpoint()
    assert safe == 0 and json.loads(place)[1] == 0
    desk.write(800)
    assert desk.sink.checkpoint() == (1600, "")
    desk.sink.prepare(desk.block(1600))
    (first,) = tmp_path.glob("*.wav")
    safe, place = desk.sink.checkpoint()
    assert safe == 1600 and len(desk.names()) == 2
    desk.write(1600)
    desk.recording().rewind(place)
    assert desk.names() == [first.name]
    desk.sink._segment = None


@pytest.mark.parametrize(("queue_ms", "kept_s"), [(60_000, 5.0), (20_000, 5.0), (1000, 1.0)])
def test_what_waits_for_more_than_five_seconds_is_spooled(
    tmp_path: Path, queue_ms: int, kept_s: float
) -> None:
    """However long the queue: when a sink takes nothing for 5 s, all that waits for it in memory
    goes to the disk, where a crash does not reach it."""
    spool = SpoolConfig(path=str(tmp_path / "spool"))
    setup = FileSinkConfig(
        type="file", path=str(tmp_path / "sound"), queue_ms=queue_ms, spool=spool
    )
    card = CaptureConfig(device="hw:CARD=NotThere", channels=2, rt_priority=0)
    sink = Intake(config(card, [setup]), tmp_path).sink_queues[0].sink
    assert isinstance(sink, Spooled)
    sink.load()
    period = card.period_frames
    held = round(kept_s * card.rate_hz)
    samples = bytes(period * card.audio.frame_bytes)
    for first in range(0, held, period):
        sink.write(Block(first, period, first + 1, samples, card.audio))
        assert sink.backlog.spooled_frames == 0
    sink.write(Block(held, period, held + 1, samples, card.audio))
    assert sink.backlog.spooled_frames == held + period


# The daemon as a whole

SETUP = """
[[stream]]
name = "mic"
[stream.capture]
device = "synthetic"
format = "S32_LE"
channels = 1
rt_priority = 0
buffer_ms = 10000
synthetic = {{ signal = "counter" }}
[[stream.sink]]
type = "file"
path = "{folder}/sound"
segment_s = {segment_s}
gaps = "skip"
min_free_mb = 0
queue_ms = 5000
[stream.sink.spool]
path = "{folder}/spool"
catch_up_speed = {speed}
"""


class Machine:
    """A folder with a configuration, and the daemons that run there one after the other."""

    def __init__(self, folder: Path, **setup: float) -> None:
        self.folder = folder
        self.sound = folder / "sound"
        self._runs: list[subprocess.Popen[bytes]] = []
        self.configure(**setup)

    def configure(self, **setup: float) -> None:
        (self.folder / "capstand.toml").write_text(SETUP.format(folder=self.folder, **setup))

    def start(self) -> None:
        folder = self.folder
        run = [sys.executable, "-m", "capstand", "run", "--quiet"]
        where = ["--runtime", str(folder / "run"), "--state", str(folder / "state")]
        self._runs.append(
            subprocess.Popen(
                [*run, "--config", str(folder / "capstand.toml"), *where],
                stderr=subprocess.DEVNULL,
            )
        )

    def wait_for(self, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Asks for the status of the sink until it is as wanted."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                stream = ask(self.folder / "run" / NAME, "status")["streams"][0]
            except CapstandError:
                continue
            assert stream["balanced"], stream
            sink: dict[str, Any] = stream["sinks"][0]
            if sink["figures"] and wanted(sink):  # none before its process has told them
                return sink
        raise AssertionError(f"never seen: {sink}")

    def end(self, number: int) -> int:
        self._runs[-1].send_signal(number)
        return self._runs[-1].wait(PATIENCE_S)

    def close(self) -> None:
        for run in self._runs:
            run.kill()
            run.wait()

    def ledger(self) -> list[dict[str, Any]]:
        lines = (self.folder / "state/ledger/mic.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def runs(self) -> list[npt.NDArray[np.int32]]:
        """The frame counters in all recordings, in the order of their names, run by run."""
        found = np.concatenate([heard(one) for one in sorted(self.sound.glob("*.wav"))])
        return np.split(found, np.flatnonzero(np.diff(found) < 0) + 1)


def caught_up(sink: dict[str, Any]) -> bool:
    """The spool is out of use: empty it may be for a moment before, and take the next block."""
    return "spooled" not in sink["detail"]


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    made: list[Machine] = []
    yield made
    for one in made:
        one.close()


def test_a_directory_that_goes_and_comes_back(tmp_path: Path, machines: list[Machine]) -> None:
    """While the directory of the recordings is something else, the sound waits; with the directory
    back, every frame is in the recordings once and in order, and the ledger tells the story."""
    machine = Machine(tmp_path, segment_s=1, speed=20)
    machines.append(machine)
    machine.start()
    machine.wait_for(lambda sink: sink["delivered_frames"] > 24_000)
    machine.sound.rename(tmp_path / "away")
    machine.sound.write_text("not a directory")
    away = machine.wait_for(lambda sink: sink["figures"]["spool"]["spooled_frames"] > 96_000)
    assert f"{machine.sound}: " in away["trouble"] and away["trouble"].endswith(" s spooled")
    assert away["detail"].startswith("waiting, ")
    machine.sound.unlink()
    (tmp_path / "away").rename(machine.sound)
    machine.wait_for(caught_up)
    assert machine.end(signal.SIGTERM) == 0
    (numbers,) = machine.runs()
    assert (np.diff(numbers) == 1).all()
    stop = machine.ledger()[-1]
    assert stop["event"] == "stop" and stop["balanced"]
    assert numbers[0] == 0 and len(numbers) == stop["captured_frames"]
    assert stop["sinks"][0]["delivered_frames"] == stop["captured_frames"]
    assert stop["sinks"][0]["in_flight_frames"] == stop["sinks"][0]["dropped_frames"] == 0
    told = {one["event"]: one for one in machine.ledger()}
    assert "Not a directory" in told["spool_begin"]["reason"]
    assert told["spool_end"]["frames"] > 96_000
    assert list(machine.folder.glob("spool/mic/file/*.spool")) == []


def test_kill_in_the_middle_loses_nothing_that_was_spooled(
    tmp_path: Path, machines: list[Machine]
) -> None:
    """A daemon killed while it spools, and again and again while it delivers: the recordings hold
    what was spooled once, in order, each run's in files of its own with its own time."""
    machine = Machine(tmp_path, segment_s=3600, speed=1.2)
    machines.append(machine)
    machine.sound.write_text("not a directory")
    machine.start()
    before = machine.wait_for(lambda sink: sink["figures"]["spool"]["spooled_frames"] > 96_000)
    least = before["figures"]["spool"]["spooled_frames"]
    machine.end(signal.SIGKILL)
    machine.sound.unlink()
    for _ in range(2):
        machine.start()
        machine.wait_for(lambda sink: sink["figures"]["spool"]["inherited_delivered_frames"])
        time.sleep(random.uniform(0, 0.3))  # the moment is to be any
        machine.end(signal.SIGKILL)
    machine.configure(segment_s=3600, speed=50)
    machine.start()
    machine.wait_for(lambda sink: sink["delivered_frames"])
    machine.wait_for(caught_up)
    assert machine.end(signal.SIGTERM) == 0
    runs = machine.runs()
    assert all(numbers[0] == 0 and (np.diff(numbers) == 1).all() for numbers in runs)
    assert len(runs) == 4
    assert len(runs[0]) >= least
    stop = machine.ledger()[-1]
    assert stop["event"] == "stop" and stop["balanced"]
    assert len(runs[-1]) == stop["captured_frames"] == stop["sinks"][0]["delivered_frames"]
    spool = stop["sinks"][0]["spool"]
    assert spool["inherited_delivered_frames"] > 0
    assert spool["inherited_dropped_frames"] == spool["spooled_frames"] == 0


def test_a_stop_in_the_middle_of_an_outage_keeps_what_waits(
    tmp_path: Path, machines: list[Machine]
) -> None:
    """A daemon that is stopped while its sink is away leaves the sound in the spool, and its books
    call it inside; the next run delivers it and books it apart."""
    machine = Machine(tmp_path, segment_s=3600, speed=20)
    machines.append(machine)
    machine.sound.write_text("not a directory")
    machine.start()
    machine.wait_for(lambda sink: sink["figures"]["spool"]["spooled_frames"] > 48_000)
    assert machine.end(signal.SIGTERM) == 0
    first = machine.ledger()[-1]
    assert first["balanced"]
    assert first["sinks"][0]["in_flight_frames"] == first["captured_frames"]
    machine.sound.unlink()
    machine.start()
    machine.wait_for(lambda sink: sink["delivered_frames"])
    machine.wait_for(caught_up)
    assert machine.end(signal.SIGTERM) == 0
    last = machine.ledger()[-1]
    assert last["sinks"][0]["spool"]["inherited_delivered_frames"] == first["captured_frames"]
    runs = machine.runs()
    assert [len(run) for run in runs] == [first["captured_frames"], last["captured_frames"]]
    assert all(run[0] == 0 and (np.diff(run) == 1).all() for run in runs)
