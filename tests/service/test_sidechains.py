"""A stream that listens to another one, in the daemon as it runs: at its start, at reloads, at its
end."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from capstand.host import control
from tests.patience import PATIENCE_S
from tests.service.test_service import Daemon

pytest.importorskip("pywebrtc_audio")

LISTENING = """
[[stream]]
name = "mic"
[stream.capture]
device = "synthetic"
buffer_ms = 10000
rt_priority = 0
[[stream.process]]
type = "echo-cancellation"
reference = "{reference}"
hold_ms = 500
[[stream.sink]]
type = "file"
path = "{folder}/sound"
min_free_mb = 0
"""
HEARD = """
[[stream]]
name = "{name}"
[stream.capture]
device = "synthetic"
buffer_ms = 10000
rt_priority = 0
{keys}
"""
SINK = """
[[stream.sink]]
type = "file"
path = "{folder}/heard"
min_free_mb = 0
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(tmp_path, text(tmp_path, "far"))
    yield one
    one.close()


def text(folder: Path, reference: str, keys: str = "") -> str:
    """The stream that listens comes first."""
    heard = HEARD.format(name=reference, keys=keys)
    return LISTENING.format(reference=reference, folder=folder) + heard


def stats(daemon: Daemon, name: str) -> Any:
    answer: Any = control.ask(daemon.folder / "run" / control.NAME, "status")
    return next(one for one in answer["streams"] if one["name"] == name)


def until(state: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not state():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def hears(daemon: Daemon) -> None:
    """Until nothing of the reference has been missing for a second and a half of sound."""
    seen: list[Any] = [None, 0]

    def steady() -> bool:
        mic = stats(daemon, "mic")
        (stage,) = (mic["process"] or {}).get("stages") or [{}]
        missing, now = stage.get("reference_missing_frames"), mic["captured_frames"]
        if missing is None or missing != seen[0]:
            seen[:] = missing, now
        return missing is not None and now - seen[1] > 72_000

    until(steady)


def test_a_reload_may_change_who_is_listened_to(daemon: Daemon) -> None:
    """From the start on it hears the stream that is named, without a sink; then the one that is in
    its place after a reload which does not touch the listener; then one of another name, with a
    sink and without."""
    daemon.hear("READY=1")
    hears(daemon)
    pid = stats(daemon, "mic")["process"]["pid"]
    setup = daemon.folder / "capstand.toml"
    sink = SINK.format(folder=daemon.folder)
    for reference, keys, told in (
        ("far", "rate_hz = 44100", "far: restarted, because its capture changed\n"),
        ("other", sink, "far: removed\nmic: processing changed\nother: new\n"),
        ("other", "", "other: sink file removed\n"),
    ):
        setup.write_text(text(daemon.folder, reference, keys))
        done = subprocess.run(
            [sys.executable, "-m", "capstand", "reload", "--runtime", str(daemon.folder / "run")],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, told)
        hears(daemon)
    mic = stats(daemon, "mic")
    assert mic["process"]["pid"] == pid or mic["process"]["restarts"]
    assert stats(daemon, "other")["sinks"] == []
    assert daemon.end() == 0


def test_a_stream_without_a_sink_is_no_failure(tmp_path: Path) -> None:
    """`capstand run` by hand ends with 0 when all that was to be recorded was."""
    setup = tmp_path / "capstand.toml"
    setup.write_text(text(tmp_path, "far"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "capstand", "run", "--config", str(setup), "--seconds", "3"),
            *("--runtime", str(tmp_path / "run"), "--state", str(tmp_path / "state")),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0 and "nothing was recorded" not in done.stderr, done.stderr
