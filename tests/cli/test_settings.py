"""``capstand set`` with a running daemon."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import Place
from tests.patience import PATIENCE_S

CONFIG = """\
[[stream]]
name = "mic"
[stream.capture]
device = "synthetic"
rt_priority = 0
buffer_ms = 10000
[[stream.process]]
type = "high-pass"
cutoff_hz = 90
[[stream.process]]
type = "gain"
gain_db = 0
[[stream.process]]
type = "gain"
gain_db = -3
[[stream.sink]]
type = "file"
path = "{folder}/rec"
min_free_mb = 0
"""
KEEPS = "until the next reload or start; write it into {} to keep it\n"


class Daemon(Place):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.config.write_text(CONFIG.format(folder=folder))
        self.process = self.start("run", "--config", self.config)

    def set(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, stdout, stderr of `capstand set`."""
        return self.call("set", "--runtime", self.folder / "run", *arguments)

    def mic(self) -> dict[str, Any]:
        status, out, err = self.call("status", "--json")
        assert status == 0, err
        found: dict[str, Any] = json.loads(out)["streams"][0]
        return found

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    one = Daemon(tmp_path_factory.mktemp("set"))
    one.wait_for_sound()
    yield one
    one.close()


def test_a_change_lasts_until_a_reload(daemon: Daemon) -> None:
    """It is in force at once, shown wherever settings are, and a reload brings back the file's; the
    recording goes on in its file without a lost frame."""
    keeps = KEEPS.format(daemon.config)
    told = daemon.set("mic", "process.2.gain_db", "-6")
    assert told == (0, f"mic: process.2.gain_db is -6 dB now, was 0 dB\n{keeps}", "")
    told = daemon.set("mic", "high-pass.cutoff_hz", "120")
    assert told == (0, f"mic: high-pass.cutoff_hz is 120 Hz now, was 90 Hz\n{keeps}", "")
    assert daemon.set("mic") == (
        0,
        "high-pass.cutoff_hz  120 Hz  (file: 90 Hz)\n"
        "high-pass.order      2\n"
        "process.2.gain_db    -6 dB  (file: 0 dB)\n"
        "process.3.gain_db    -3 dB\n",
        "",
    )
    one_key = daemon.set("mic", "process.2.gain_db")
    assert one_key == (0, "process.2.gain_db  -6 dB  (file: 0 dB)\n", "")
    assert daemon.mic()["process"]["changes"] == [
        {"key": "high-pass.cutoff_hz", "value": 120.0, "file": 90.0},
        {"key": "process.2.gain_db", "value": -6.0, "file": 0.0},
    ]
    shown = daemon.call("status")[1]
    assert "  set       process.2.gain_db = -6.0 (file: 0.0), until the next reload" in shown
    reloaded = daemon.call("reload", "--runtime", daemon.folder / "run")
    assert reloaded == (0, "mic: processing changed\n", "")
    mic = daemon.mic()
    assert mic["process"]["changes"] == []
    assert mic["process"]["restarts"] == 0 and mic["balanced"]
    assert "(file:" not in daemon.set("mic")[1]
    assert len(list((daemon.folder / "rec").iterdir())) == 1
    assert [one["key"] for one in daemon.ledger() if one["event"] == "set"] == [
        *("process.2.gain_db", "high-pass.cutoff_hz"),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mix", "gain.gain_db", "3"], "stream of this daemon; it has mic\n"),
        (
            ["mic", "gain.gain_db", "3"],
            "gain.gain_db: mic has 2 stages of this type; take process.2.gain_db or "
            "process.3.gain_db\n",
        ),
        (
            ["mic", "high-pass.cutof_hz", "100"],
            "high-pass.cutof_hz: no such key in mic; did you mean high-pass.cutoff_hz?\n"
            "  high-pass.cutoff_hz\n  high-pass.order\n  process.2.gain_db\n  process.3.gain_db\n",
        ),
        (
            ["mic", "process.2.gain_db", "99"],
            "process.2.gain_db: 99: expected a number from -120 to 60\n",
        ),
        (
            ["mic", "high-pass.cutoff_hz", "30000"],
            "high-pass.cutoff_hz: 30000 is not below half the rate, 24000\n",
        ),
        (
            ["mic", "high-pass.cutoff_hz", "9" * 700],
            "more than 700 characters; write it into the file and reload\n",
        ),
    ],
)
def test_what_is_wrong_changes_nothing(daemon: Daemon, arguments: list[str], words: str) -> None:
    """A stream, a key or a value that is wrong: exit status 2, and what there is."""
    before = daemon.set("mic")
    status, out, err = daemon.set(*arguments)
    assert (status, out) == (2, "") and err.startswith("capstand: ") and err.endswith(words)
    assert daemon.set("mic") == before


def test_without_a_daemon(tmp_path: Path) -> None:
    """That is another failure than a wrong command line."""
    asked = [sys.executable, "-m", "capstand", "set", "--runtime", str(tmp_path), "mic"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot reach the daemon" in done.stderr
