"""What capstand promises systemd, heard on a real notification socket."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capstand.audio.block import NS_PER_S
from capstand.config import schema as config
from capstand.errors import DeviceError
from capstand.host.logs import RepeatFilter
from capstand.service.display import LiveLine
from capstand.service.service import Service
from capstand.stream.intake import Intake
from tests.manager import Manager
from tests.patience import PATIENCE_S

CONFIGURATION = """
[[stream]]
name = "mic"
[stream.capture]
device = "{device}"
buffer_ms = 10000
[[stream.sink]]
type = "file"
path = "{folder}/sound"
"""


LOOK_S = 0.5


class DaemonEnded(Exception):
    """With that status."""


class Daemon:
    """`capstand run` as a child, and what it tells its service manager."""

    def __init__(self, folder: Path, configuration: str) -> None:
        self.folder = folder
        self.heard: list[str] = []
        path = folder / "notify"
        self.manager = Manager(path)
        setup = folder / "capstand.toml"
        setup.write_text(configuration)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "capstand", "run", "--config", str(setup)),
                *("--runtime", str(folder / "run"), "--state", str(folder / "state")),
            ],
            env=os.environ | {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "10000000"},
            stderr=subprocess.PIPE,
            text=True,
        )

    def hear(self, wanted: str) -> str:
        """Listens until something said contains ``wanted``. Raises DaemonEnded where nothing more
        can come."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                said = self.manager.next(LOOK_S)[1]
            except queue.Empty:
                if self.process.poll() is not None:
                    raise DaemonEnded(self.process.returncode) from None
                assert time.monotonic() < deadline, f"not {wanted}, but {self.heard[-3:]}"
                continue
            self.heard.append(said)
            if wanted in said:
                return said
            assert time.monotonic() < deadline, f"not {wanted}, but {self.heard[-3:]}"

    def forget(self) -> None:
        """What was said until now is not listened to any more."""
        self.manager.forget()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.manager.close()

    def ledger(self) -> list[dict[str, Any]]:
        lines = (self.folder / "state/ledger/mic.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    device = getattr(request, "param", "synthetic")
    one = Daemon(tmp_path, CONFIGURATION.format(device=device, folder=tmp_path))
    yield one
    one.close()


def test_it_is_ready_when_frames_flow_and_says_how_they_are(daemon: Daemon) -> None:
    """READY comes when sound flows; STATUS then is one line with rate, level, drift, losses and
    sinks, and WATCHDOG is fed again and again."""
    daemon.hear("READY=1")
    line = daemon.hear("dBFS")
    daemon.hear("WATCHDOG=1")
    daemon.hear("WATCHDOG=1")

    assert line.startswith("STATUS=mic: 48000 Hz, -23.0 dBFS, drift ")
    assert ", lost 0; file: mic-" in line and "\n" not in line


def test_it_hears_signals_that_its_parent_had_blocked(tmp_path: Path) -> None:
    """A daemon inherits which signals are blocked, and ends on SIGTERM all the same."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        daemon = Daemon(tmp_path, CONFIGURATION.format(device="synthetic", folder=tmp_path))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        daemon.hear("READY=1")
        assert daemon.end() == 0
    finally:
        daemon.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_with_whole_files_and_closed_books(daemon: Daemon, number: int) -> None:
    """A signal is answered with STOPPING, and nothing that was captured stays inside."""
    daemon.hear("READY=1")
    daemon.hear("dBFS")
    assert daemon.end(number) == 0
    daemon.hear("STOPPING=1")

    books = daemon.ledger()[-1]
    assert books["event"] == "stop" and books["balanced"] is True
    assert books["sinks"] == [
        {
            "name": "file",
            "since_frame": 0,
            "captured_frames": books["captured_frames"],
            "delivered_frames": books["captured_frames"],
            "dropped_frames": 0,
            "in_flight_frames": 0,
            "inserted_frames": 0,
        }
    ]
    (file,) = (daemon.folder / "sound").iterdir()
    assert file.suffix == ".wav"


@pytest.mark.parametrize("daemon", ["hw:CARD=NotThere,DEV=0"], indirect=True)
def test_a_device_that_is_not_there_is_a_declared_wait(daemon: Daemon) -> None:
    """Without its card the daemon is ready, waits, says for what, and keeps the watchdog fed."""
    daemon.hear("READY=1")
    line = daemon.hear("plugged in?")
    daemon.hear("WATCHDOG=1")
    daemon.hear("WATCHDOG=1")

    assert line.startswith("STATUS=mic: DEGRADED: hw:CARD=NotThere,DEV=0 cannot be opened: No such")
    assert daemon.end() == 0


def test_what_is_wrong_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """STATUS does not wait for its next turn when a stream falls into trouble or out of it."""
    monkeypatch.setattr("capstand.service.service.NOTIFY_NS", 3600 * NS_PER_S)
    setup = tmp_path / "capstand.toml"
    setup.write_text(CONFIGURATION.format(device="hw:CARD=NotThere,DEV=0", folder=tmp_path))
    service = Service(
        config.load(setup),
        tmp_path,
        tmp_path,
        LiveLine(wanted=False),
        RepeatFilter(),
        setup,
        Intake,
    )
    told: list[str] = []
    monkeypatch.setattr(service._notifier, "status", told.append)
    (stream,) = service._streams
    assert isinstance(stream, Intake)
    service._reporters["mic"].begin()
    for trouble in (None, "hw:1 is busy: arecord (pid 812) has it", "unplugged", None):
        stream.capturer.trouble = DeviceError(trouble) if trouble else None
        for _ in range(3):
            service._tick()
    assert ["busy" in one for one in told] == [False, True, False, False]
    assert ["unplugged" in one for one in told] == [False, False, True, False]


ASKING = r"""
import os, threading
from capstand.host import realtime
ask = realtime.set_fifo
def told(name, priority):
    threads = " ".join(one.name.split()[0] for one in threading.enumerate())
    os.write(1, f"{name} {priority} {threads}\n".encode())
    return ask(name, priority)
realtime.set_fifo = told
"""
"""Python runs it at the start of each process."""


def test_nothing_is_in_a_hurry_before_sound_is_captured(tmp_path: Path) -> None:
    """Loading, and reading the configuration, leave the processor to the other services of a start:
    in a stream's process none asks for a priority before the threads on the way of the sound."""
    setup = tmp_path / "capstand.toml"
    setup.write_text(CONFIGURATION.format(device="synthetic", folder=tmp_path))
    run = ["run", "--seconds", "2", "--quiet", "--config", str(setup)]
    run += ["--runtime", str(tmp_path / "run"), "--state", str(tmp_path / "state")]
    (tmp_path / "sitecustomize.py").write_text(ASKING)
    done = subprocess.run(
        [sys.executable, "-m", "capstand", *run],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    asked = [line.split() for line in done.stdout.splitlines()]
    assert {"main", "capture"} <= {name for name, *_ in asked}
    for name, priority, *threads in asked:
        early = priority == "0" or name in ("main", "push") or "sink" in name
        assert early or "capture" in threads


def test_a_wrong_configuration_ends_it_with_its_errno(tmp_path: Path) -> None:
    """A configuration that is refused is told as ERRNO=22 with the first fault, and exit 78."""
    daemon = Daemon(tmp_path, "[[stream]]\n")
    said = daemon.hear("ERRNO=")
    assert said.startswith("ERRNO=22\nSTATUS=configuration refused: ")
    assert daemon.process.wait(PATIENCE_S) == 78
    daemon.close()


def test_a_second_daemon_is_refused_and_the_first_goes_on(daemon: Daemon, tmp_path: Path) -> None:
    """Two daemons on one runtime directory: the second says so and ends, ERRNO=98 (in use)."""
    daemon.hear("READY=1")
    folder = tmp_path / "second"
    folder.mkdir()
    (folder / "run").symlink_to(tmp_path / "run")
    second = Daemon(folder, CONFIGURATION.format(device="synthetic", folder=folder))
    said = second.hear("ERRNO=")
    assert "ERRNO=98" in said and "another capstand is running there" in said
    assert second.process.wait(PATIENCE_S) == 1
    second.close()
    daemon.hear("WATCHDOG=1")


def test_the_ledger_itemises_what_was_lost_and_what_a_sink_missed(tmp_path: Path) -> None:
    """The gaps in the ledger add up to the frames lost, the drops to what the sink missed."""
    configuration = CONFIGURATION.format(device="synthetic", folder=tmp_path)
    configuration = configuration.replace("buffer_ms = 10000\n", "").replace(
        "[[stream.sink]]",
        "[stream.capture.synthetic]\n"
        'faults = [{kind = "overrun", at_s = 0.3, for_s = 0.7}]\n'
        "[[stream.sink]]\nqueue_ms = 100\nmin_free_mb = 10000000",
    )
    daemon = Daemon(tmp_path, configuration)
    daemon.hear("MB free")
    while ", lost 0; " in daemon.hear(", dropped "):
        pass
    assert daemon.end() == 0
    events = daemon.ledger()
    daemon.close()

    def total(kind: str) -> int:
        return sum(event["frames"] for event in events if event["event"] == kind)

    books = events[-1]
    (sink,) = books["sinks"]
    assert total("gap") == books["lost_frames"] > 0
    assert total("drop") == sink["dropped_frames"] == books["captured_frames"]
    assert books["balanced"] is True


def test_a_directory_it_may_not_use_is_told(tmp_path: Path) -> None:
    """Where the control socket cannot be made, the daemon says which directory and what to do."""
    (tmp_path / "run").write_text("a file, not a directory")
    daemon = Daemon(tmp_path, CONFIGURATION.format(device="synthetic", folder=tmp_path))
    said = daemon.hear("ERRNO=")
    assert f"{tmp_path}/run: File exists; choose a writable directory" in said
    assert daemon.process.wait(PATIENCE_S) == 1
    daemon.close()
