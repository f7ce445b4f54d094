"""Rates of bat microphones for real: the daemon captures and records at 500 and 768 kHz, from a
card and from the simulated one, all channels or some. Whatever a busy machine loses, the numbers in
the recording are those of the card, and every jump in them is in the books."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from capstand.errors import CapstandError
from capstand.host.control import NAME, ask
from tests.fakecard import FakeCard, breaks, counter
from tests.patience import PATIENCE_S

SETUP = """\
[[stream]]
name = "bat"
[stream.capture]
device = "{device}"
rt_priority = 0
{capture}
[[stream.sink]]
type = "file"
path = "{folder}/sound"
gaps = "skip"
min_free_mb = 0
"""


def record(folder: Path, device: str, capture: str) -> tuple[Path, dict[str, Any]]:
    """Runs the daemon until a second of sound was recorded; the recording and the last books."""
    setup = folder / "capstand.toml"
    setup.write_text(SETUP.format(device=device, capture=capture, folder=folder))
    where = ["--runtime", str(folder / "run"), "--state", str(folder / "state")]
    command = [sys.executable, "-m", "capstand", "run", "--quiet", "--config", str(setup), *where]
    daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def recorded() -> bool:
        try:
            (stream,) = ask(folder / "run" / NAME, "status")["streams"]
        except CapstandError:
            return False
        assert stream["balanced"], stream
        return bool(stream["sinks"][0]["delivered_frames"] >= stream["rate_hz"])

    try:
        deadline = time.monotonic() + PATIENCE_S
        while not recorded():
            assert daemon.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE_S) == 0
    finally:
        daemon.kill()
        daemon.wait()
    (path,) = (folder / "sound").iterdir()
    lines = (folder / "state/ledger/bat.jsonl").read_text().splitlines()
    return path, json.loads(lines[-1])


@pytest.mark.parametrize(
    ("rate_hz", "channels", "capture"),
    [
        (500_000, 2, 'format = "S16_LE"'),
        (768_000, 2, 'format = "S16_LE"'),
        (768_000, 8, 'format = "S16_LE"\npick = [1, 2]'),
    ],
)
def test_a_card(
    rate_hz: int, channels: int, capture: str, tmp_path: Path, fakecard: FakeCard
) -> None:
    """Every frame that the card delivered is in the recording once, in order."""
    fakecard.restrict(rates=(rate_hz, rate_hz), channels=(channels, channels))
    path, books = record(tmp_path, fakecard.device, f"rate_hz = {rate_hz}\n{capture}")
    facts = soundfile.info(path)
    assert (facts.samplerate, facts.channels, facts.subtype) == (rate_hz, 2, "PCM_16")
    data = soundfile.read(path, dtype="int16")[0].astype("<i2").tobytes()
    numbers = counter(data, "S16_LE", 2)
    (sink,) = books["sinks"]
    assert books["balanced"] and len(numbers) == facts.frames == sink["delivered_frames"]
    missing = [frames for _, frames in breaks(numbers)]
    assert min(missing, default=0) >= 0
    assert sum(missing) <= fakecard.frames_lost + sink["dropped_frames"]
    assert len(missing) <= books["gaps"] or sink["dropped_frames"]


@pytest.mark.parametrize("rate_hz", [500_000, 768_000])
def test_the_simulated_card(rate_hz: int, tmp_path: Path) -> None:
    """So is what the simulated card brings, in 24 bits; its losses are counted to the frame."""
    capture = f'rate_hz = {rate_hz}\nformat = "S24_3LE"\npick = [4, 2]\nchannels = 4\n'
    capture += 'synthetic = {signal = "counter"}'
    path, books = record(tmp_path, "synthetic", capture)
    facts = soundfile.info(path)
    assert (facts.samplerate, facts.channels, facts.subtype) == (rate_hz, 2, "PCM_24")
    values = soundfile.read(path, dtype="int32")[0].astype(np.int64) >> 8
    assert (values[:, 0] == values[:, 1]).all()
    jumps = (np.diff(values[:, 0]) - 1) % (1 << 24)
    (sink,) = books["sinks"]
    assert books["balanced"] and facts.frames == sink["delivered_frames"]
    assert jumps.sum() <= books["lost_frames"] + sink["dropped_frames"]
