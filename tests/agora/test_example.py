"""The example program: sound from another program's pipe, pushed as the documentation says."""

import argparse
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from capstand.agora import CustomAudioSource
from capstand.agora.frames import Framer
from tests.agora import StandIn
from tests.agora.test_source import Choosy
from tests.patience import PATIENCE_S

PIPE = Path(__file__).parents[2] / "scripts/agora-pipe"
APP_ID = "0123456789abcdef0123456789abcdef"


def piped(standin: StandIn, folder: Path, sound: bytes, *options: str) -> str:
    """What the program says on stderr; its exit status must be 0."""
    ended = subprocess.run(
        [
            *(sys.executable, str(PIPE), "--app-id", APP_ID, "--channel", "studio"),
            *("--state", str(folder / "agora"), *options),
        ],
        input=sound,
        env={**os.environ, **standin.env},
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stderr.decode()


def test_a_pipe_is_heard_to_its_last_frame(standin: StandIn, tmp_path: Path) -> None:
    """All that comes from the pipe, faster than in real time too, is sent once and in order."""
    ramp = np.arange(48000 + 123, dtype="<u2").view("<i2").tobytes()
    told = piped(standin, tmp_path, ramp)
    sent = b"".join(pushe.data for pushe in standin.pushes() if pushe.ret == 0)
    assert sent[: len(ramp)] == ramp and not any(sent[len(ramp) :])
    assert "0 frames could not be sent" in told
    assert standin.violations() == []


def test_own_processing_comes_before_the_push(standin: StandIn, tmp_path: Path) -> None:
    """What the program does to the samples is what the channel gets."""
    piped(standin, tmp_path, np.full(960, 1000, "<i2").tobytes(), "--gain-db", "6.0206")
    (first, second) = standin.pushes()
    assert set(np.frombuffer(first.data + second.data, "<i2").tolist()) == {2000}


def test_a_python_without_capstand_is_said() -> None:
    """Run with another Python it says which one to take."""
    ended = subprocess.run(
        [sys.executable, "-I", "-S", str(PIPE), "--help"], capture_output=True, check=False
    )
    assert ended.returncode == 1
    assert b"run it with the Python that has capstand" in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_what_is_wrong_is_said(standin: StandIn, tmp_path: Path) -> None:
    """A refused join is said in words, sound is counted as not sent, and the program goes on to
    the end of the pipe."""
    standin.env["STANDIN_SCRIPT"] = "set connect_reason 6"
    told = piped(standin, tmp_path, bytes(9600))
    assert "the app id is invalid; compare app_id with Agora's console" in told
    assert "4800 frames could not be sent" in told


@pytest.mark.parametrize("refused", [{0}, {1}, {0, 1, 3, 4, 5}, {3, 5, 9}])
def test_a_push_taken_in_part_goes_on_where_it_ended(
    refused: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the SDK takes 10 of 20 ms and then has no room, the other 10 follow, once."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    push = runpy.run_path(str(PIPE))["push"]
    source = CustomAudioSource(APP_ID, Path("unused"))
    source.set_external_audio_source(True, 48000, 1)
    channel = Choosy(refused)
    source._connection = channel  # type: ignore[assignment]
    source._framers = [Framer(48000, 1)]
    ramp = np.arange(960 * 4, dtype="<i2").tobytes()
    chosen = argparse.Namespace(rate=48000, channels=1)
    missed = [push(source, ramp[at : at + 1920], chosen, 0) for at in range(0, len(ramp), 1920)]
    assert b"".join(channel.sent) == ramp
    assert sum(missed) == 0
