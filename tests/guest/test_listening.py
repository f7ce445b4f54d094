"""One microphone, everybody listens: capstand plays it into a loopback, from which any program of
ALSA's records, while a tap and a recording of the same stream run beside it.

The microphone and the loopback are two substreams of snd-aloop; the microphone brings a counter.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest

from tests.figures import figure
from tests.patience import PATIENCE_S

from .conftest import CONFIGURATION, Machine

pytestmark = pytest.mark.guest

SECONDS = 60
RATE_HZ = 48_000
LOOPED = """
[[stream.sink]]
type = "alsa"
device = "hw:CARD=Loopback,DEV=0,SUBDEV=1"
latency_ms = 2000
rate_lock = false
"""
ARECORD = "arecord -D hw:CARD=Loopback,DEV=1,SUBDEV=1 -t raw -f S16_LE -r 48000 -c 2"


def heard(machine: Machine, name: str) -> npt.NDArray[np.int64]:
    """The counters in raw S16 stereo that a program has left on the shared disk."""
    path = machine.guest.share / name
    halves = np.frombuffer(path.read_bytes(), "<u2").reshape(-1, 2).astype(np.int64)
    path.unlink()
    return halves[:, 0] | halves[:, 1] << 16


def test_a_loopback_gives_every_frame_to_arecord_beside_a_tap_and_a_recording(
    machine: Machine,
) -> None:
    """For a minute arecord gets every frame once and in order, and so do the two beside it; the
    books have nothing lost and nothing dropped."""
    guest = machine.guest
    device = "hw:CARD=Loopback,DEV=1,SUBDEV=0"
    text = CONFIGURATION.format(buffer_ms=2000).replace("hw:CARD=Loopback,DEV=1", device)
    machine.configure(text=text + LOOPED)
    machine.start()
    deadline = time.monotonic() + PATIENCE_S
    while not machine.wait_for_frames(2 * RATE_HZ)["sinks"][-1]["delivered_frames"]:
        assert time.monotonic() < deadline, machine.status()
    tapped = guest.spawn(f"exec capstand tap mic --raw --seconds {SECONDS} >/mnt/host/tapped.raw")
    recorder = guest.run(
        f"chrt -f 30 {ARECORD} --buffer-time=4000000 -d {SECONDS} /mnt/host/arecord.raw",
        timeout_s=SECONDS + 120,
    )
    assert tapped.wait(PATIENCE_S).rc == 0
    sinks = {one["name"]: one for one in machine.status()["sinks"]}
    guest.run("systemctl stop capstand")
    (recorded,) = [machine.fetch(name) for name in machine.files()]
    books = machine.ledger()

    recorded.origin()
    assert recorded.silent == 0
    assert books[-1]["balanced"] is True and books[-1]["lost_frames"] == 0
    for name in ("tapped.raw", "arecord.raw"):
        counter = heard(machine, name)
        jumps = [(int(at), int(counter[at + 1])) for at in np.flatnonzero(np.diff(counter) != 1)]
        assert len(counter) == SECONDS * RATE_HZ, name
        assert counter[0] > 0 and jumps == [], (name, len(jumps), jumps[:9], sinks, recorder.err)
    assert sinks["alsa"]["dropped_frames"] == sinks["alsa"]["figures"]["underruns"] == 0
    figure(
        "arecord on a loopback that capstand plays into",
        f"{SECONDS * RATE_HZ} frames in {SECONDS} s, each once and in order, beside a tap and a "
        "recording",
    )
