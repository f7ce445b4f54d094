"""The daemon with a channel: what systemd, `capstand status` and the log are told, and what not."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from capstand.agora.tokens import token
from tests.agora import StandIn
from tests.manager import Manager
from tests.patience import PATIENCE_S

APP_ID = "0123456789abcdef0123456789abcdef"
CERTIFICATE = "fedcba9876543210fedcba9876543210"
CONFIG = """\
[[stream]]
name = "mic"
[stream.capture]
device = "synthetic"
buffer_ms = 10000
synthetic = {{signal = "counter"}}
[[stream.sink]]
type = "agora"
app_id = "{app_id}"
channel = "studio"
uid = 1001
{token}
[[stream.sink]]
type = "file"
path = "{folder}/rec"
min_free_mb = 0
"""


class Daemon:
    """``capstand run`` in a process of its own, with a notification socket as systemd's."""

    def __init__(
        self, folder: Path, standin: StandIn, script: str = "", keys: str = "", code: str = "pass"
    ) -> None:
        self.folder = folder
        self.standin = standin
        config = folder / "capstand.toml"
        config.write_text(CONFIG.format(app_id=APP_ID, token=keys, folder=folder))
        self.heard: list[tuple[float, str]] = []
        self._manager = Manager(folder / "notify")
        start = (
            f"{code}; from capstand.cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"
        )
        places = ["--runtime", str(folder / "run"), "--state", str(folder / "state")]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", start, "run", "--config", str(config), *places],
                env={
                    **os.environ,
                    **standin.env,
                    "STANDIN_SCRIPT": script,
                    "NOTIFY_SOCKET": str(folder / "notify"),
                    "WATCHDOG_USEC": "10000000",
                },
                stdout=log,
                stderr=log,
            )

    def listen(self, seconds: float) -> None:
        """Notes what systemd would be told in so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                at, text = self._manager.next(left)
                self.heard += [(at, line) for line in text.splitlines()]

    def until(self, pattern: str) -> str:
        """The first thing told, from the beginning, that matches."""
        end = time.monotonic() + PATIENCE_S
        while True:
            for _, told in self.heard:
                if re.search(pattern, told):
                    return told
            assert time.monotonic() < end, (pattern, self.heard[-3:], self.log.read_text())
            self.listen(0.2)

    def status(self) -> dict[str, Any]:
        place = str(self.folder / "run")
        asked = subprocess.run(
            [sys.executable, "-m", "capstand", "status", "--json", "--runtime", place],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
        )
        (stream,) = json.loads(asked.stdout)["streams"]
        return dict(stream)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._manager.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def daemons() -> Iterator[list[Daemon]]:
    started: list[Daemon] = []
    yield started
    for one in started:
        one.close()


def test_a_day_in_a_channel(standin: StandIn, tmp_path: Path, daemons: list[Daemon]) -> None:
    """The daemon joins, sends, says so in STATUS, and when stopped leaves and releases all it made,
    with closed books. A token file that everybody may read is told."""
    place = tmp_path / "agora.token"
    place.write_text(token.build(APP_ID, CERTIFICATE, "studio", 1001, 3600, time.time()))
    place.chmod(0o644)
    keys = f'token = {{source = "file", path = "{place}"}}'
    daemon = Daemon(tmp_path, standin, "set stats_ms 200", keys)
    daemons.append(daemon)
    told = daemon.until(r"STATUS=.*agora: in studio, [1-9]\d* kbit/s sent, queue \d+ ms")
    assert "READY=1" in [text for _, text in daemon.heard]
    status = daemon.status()
    assert "STALLED" not in told and status["balanced"]
    assert status["sinks"][0]["figures"]["state"] == "JOINED"
    assert daemon.stop() == 0
    names = standin.names()
    assert names.index("agora_rtc_conn_connect") < names.index("agora_local_user_publish_audio")
    assert names[-7:] == [
        "agora_rtc_conn_disconnect",
        "agora_rtc_conn_unregister_observer",
        "agora_rtc_conn_destroy",
        "agora_local_audio_track_destroy",
        "agora_audio_pcm_data_sender_destroy",
        "agora_service_release",
        "agora_media_node_factory_destroy",
    ]
    assert standin.violations() == []
    assert f"chmod 640 {place}" in daemon.log.read_text()
    books = (tmp_path / "state/ledger/mic.jsonl").read_text().splitlines()
    last = json.loads(books[-1])
    assert last["event"] == "stop" and last["balanced"] is True
    assert [one["in_flight_frames"] for one in last["sinks"]] == [0, 0]


def test_a_locked_stream_is_pushed_20_ms_at_a_time(
    standin: StandIn, tmp_path: Path, daemons: list[Daemon]
) -> None:
    """Two frames of 10 ms right behind each other, from a card with periods of 10 ms; also after a
    reload."""
    daemon = Daemon(tmp_path, standin)
    daemons.append(daemon)
    daemon.until(r"STATUS=.*agora: in studio, .*queue \d+ ms")
    deadline = time.monotonic() + PATIENCE_S

    def more() -> list[float]:
        """When the next 200 were pushed, in ms."""
        before = len(standin.pushes())
        while len(standin.pushes()) < before + 200 and time.monotonic() < deadline:
            daemon.listen(0.1)
        return [push.ns / 1e6 for push in standin.pushes()[before:]]

    first_ms = more()
    config = tmp_path / "capstand.toml"
    config.write_text(config.read_text().replace("/rec", "/other"))
    daemon.process.send_signal(signal.SIGHUP)
    while not [*(tmp_path / "other").glob("*")] and time.monotonic() < deadline:
        daemon.listen(0.1)
    for pushed_ms in (first_ms, more()):
        apart_ms = [later - one for one, later in pairwise(pushed_ms)]
        assert sum(one < 5 for one in apart_ms) > 0.4 * len(apart_ms) > 0
    assert daemon.stop() == 0


def test_the_sdk_keeps_its_files_in_the_state_directory(
    standin: StandIn, tmp_path: Path, daemons: list[Daemon]
) -> None:
    """Log, data and configuration of the SDK go below the state directory, for nobody else's eyes,
    and none into the current one."""
    daemon = Daemon(tmp_path, standin)
    daemons.append(daemon)
    daemon.until("agora: in studio")
    (made,) = standin.calls("agora_service_initialize")
    own = tmp_path / "state/agora/mic/agora"
    assert str(made.args["log_file_path"]) == str(own / "log/agora.log")
    assert str(made.args["data_dir"]) == str(own / "data")
    assert str(made.args["config_dir"]) == str(own / "config")
    assert {one.stat().st_mode & 0o777 for one in own.iterdir()} == {0o700}


def healed(daemon: Daemon, before: dict[str, Any]) -> None:
    """The channel is joined again by a new process of the sink; the daemon is the old one, has lost
    nothing, fed the watchdog throughout, and the recording has every frame."""
    daemon.heard.clear()
    daemon.until("STATUS=mic: 48000.*agora: in studio")
    after = daemon.status()
    assert after["sinks"][0]["figures"]["pid"] != before["sinks"][0]["figures"]["pid"]
    assert daemon.process.poll() is None and after["balanced"]
    assert after["sinks"][0]["dropped_frames"] > 0
    assert after["lost_frames"] == after["sinks"][1]["dropped_frames"] == 0
    assert daemon.stop() == 0
    (path,) = (daemon.folder / "rec").iterdir()
    samples, _ = soundfile.read(path, dtype="int16", always_2d=True)
    halves = samples.astype(int) & 0xFFFF
    counter = halves[:, 0] | halves[:, 1] << 16
    assert (np.diff(counter) == 1).all()


def test_a_push_that_hangs_harms_nothing_else(
    standin: StandIn, tmp_path: Path, daemons: list[Daemon]
) -> None:
    """A call into the SDK that does not come back is ended with the sink's process; STATUS says so,
    and another process joins the channel again."""
    code = "from capstand.processes import page, supervisor as s; "
    code += "s.LIMITS_S[page.Doing.WRITING] = 5.0"
    daemon = Daemon(tmp_path, standin, code=code)
    daemons.append(daemon)
    daemon.until("agora: in studio")
    before = daemon.status()
    standin.command("set hang_push_ms 600000")
    told = daemon.until("DEGRADED: sink agora: its process")
    assert "did not return from writing within 5 s and was killed; a new one is starting" in told
    healed(daemon, before)


def test_a_crash_of_the_sdk_harms_nothing_else(
    standin: StandIn, tmp_path: Path, daemons: list[Daemon]
) -> None:
    """A sink's process that dies is told by its signal, and another joins the channel again."""
    daemon = Daemon(tmp_path, standin)
    daemons.append(daemon)
    daemon.until("agora: in studio")
    before = daemon.status()
    os.kill(before["sinks"][0]["figures"]["pid"], signal.SIGKILL)
    daemon.until("DEGRADED: sink agora: its process was ended by SIGKILL; a new one is starting")
    healed(daemon, before)


def test_a_failure_of_the_sdk_is_tried_again_in_a_new_process(
    standin: StandIn, tmp_path: Path, daemons: list[Daemon]
) -> None:
    """What only a new process can heal costs the sink's process, again and again, each time after a
    longer pause; the daemon goes on."""
    daemon = Daemon(tmp_path, standin, "set init_ret -7")
    daemons.append(daemon)
    daemon.until("DEGRADED: sink agora: Agora's SDK could not be initialised;")
    first = {call.tid for call in standin.calls("agora_service_initialize")}
    while {call.tid for call in standin.calls("agora_service_initialize")} == first:
        daemon.listen(0.2)
    at = len(daemon.heard)
    while "WATCHDOG=1" not in [text for _, text in daemon.heard[at:]]:
        daemon.listen(0.2)
    assert daemon.status()["sinks"][1]["dropped_frames"] == 0
    assert daemon.stop() == 0
    last = json.loads((tmp_path / "state/ledger/mic.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "stop" and last["balanced"] is True


def test_without_the_library_the_rest_goes_on(
    standin: StandIn, tmp_path: Path, daemons: list[Daemon]
) -> None:
    """Where Agora's library is not installed, STATUS says how to install it and every other sink
    records."""
    empty = tmp_path / "empty"
    empty.mkdir()
    standin.env["CAPSTAND_AGORA"] = str(empty)
    daemon = Daemon(tmp_path, standin)
    daemons.append(daemon)
    daemon.until("STATUS=.*DEGRADED.*capstand agora install")
    while not (file := daemon.status()["sinks"][1])["delivered_frames"]:
        daemon.listen(0.2)
    assert file["trouble"] is None
    assert daemon.stop() == 0


def test_secrets_are_told_to_nobody_but_the_sdk(
    standin: StandIn, tmp_path: Path, daemons: list[Daemon]
) -> None:
    """A token appears in no status, log, ledger, process list or file of the daemon's, also when it
    is refused; the SDK gets it."""
    secret = token.build(APP_ID, CERTIFICATE, "studio", 1001, 3600, time.time())
    place = tmp_path / "secret"
    place.write_text(secret + "\n")
    place.chmod(0o600)
    daemon = Daemon(
        tmp_path,
        standin,
        "set connect_reason 8",
        f'token = {{source = "file", path = "{place}"}}',
        code="import logging; logging.basicConfig(level=logging.DEBUG)",
    )
    daemons.append(daemon)
    told = daemon.until("STATUS=.*has no other token")
    assert f"token file {place}" in told
    found = daemon.status()
    status = json.dumps(found)
    processes = [Path(f"/proc/{daemon.process.pid}")]
    processes.append(Path(f"/proc/{found['sinks'][0]['figures']['pid']}"))
    names = "cmdline", "environ"
    shown = b"".join((process / name).read_bytes() for process in processes for name in names)
    assert daemon.stop() == 0
    (joined, *_) = standin.calls("agora_rtc_conn_connect")
    assert joined.args["token"] == secret
    everything = [status, shown.decode(errors="replace"), str(daemon.heard), daemon.log.read_text()]
    everything += [one.read_text() for one in (tmp_path / "state").rglob("*") if one.is_file()]
    for part in (secret, secret[10:60], CERTIFICATE):
        assert not any(part in text for text in everything)
