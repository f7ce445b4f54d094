"""In a container: a daemon that sees a part of the machine, and whose node appears later.

A mount namespace stands for the container: its /sys, /dev and /proc are what a container engine
gives, without /proc/asound and with a /dev/snd that is a directory of the host's.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.fakecard import FakeCard, breaks, counter
from tests.soundcards import Slots

INSIDE = """
set -e
mount --bind {root}/sys /sys
mount -t tmpfs tmpfs {root}/new
for one in null zero full random urandom; do
    touch {root}/new/$one
    mount --bind /dev/$one {root}/new/$one
done
mkdir {root}/new/snd {root}/new/shm
mount --bind {root}/dev/snd {root}/new/snd
mount --move {root}/new /dev
[ ! -e /proc/asound ] || mount -t tmpfs -o ro tmpfs /proc/asound
exec {python} -m capstand {command}
"""
CONFIGURATION = """
[[stream]]
name = "mic"
[stream.capture]
device = "{device}"
channels = 2
period_ms = 10
rt_priority = 0
[[stream.sink]]
type = "file"
path = "{root}/rec"
"""


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    if subprocess.run(["unshare", *user, "--mount", "true"], check=False).returncode:
        pytest.skip("unshare --mount is not allowed")
    slots = Slots(tmp_path)
    (tmp_path / "new").mkdir()
    return slots


def contained(slots: Slots, card: FakeCard, command: str) -> "subprocess.Popen[str]":
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    script = INSIDE.format(root=slots.root, python=sys.executable, command=command)
    return subprocess.Popen(
        ["unshare", *user, "--mount", "sh", "-c", script],
        env={**os.environ, **slots.alsa(card), "DBUS_SESSION_BUS_ADDRESS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_devices_are_listed(slots: Slots, fakecard_plugin: Path) -> None:
    """`capstand devices` lists the container's cards, by names that last."""
    card = FakeCard(slots.root, "mic0", fakecard_plugin)
    slots.plug(0, "0d8c:0014", port="1-1.4", card=card)
    slots.plug(1, "046d:0825", port="1-2", serial="A1", identity="Cam")
    slots.node(1, 0).unlink()
    with contained(slots, card, "devices") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "usb-port:pci-0000:00:14.0-usb-0:1.4\n" in out
    assert "8000 to 768000 Hz" in out
    assert "usb:046d:0825:A1\n" in out
    assert "the kernel has the card, but /dev/snd/pcmC1D0c is missing" in out


@pytest.mark.parametrize("device", ["usb:0d8c:0014", "hw:0"])
def test_a_node_that_appears_later_is_taken(
    slots: Slots, fakecard_plugin: Path, device: str
) -> None:
    """A card whose node is not in the container yet is waited for, with words about the node and
    not about rights, and captured without loss from the moment it appears."""
    card = FakeCard(slots.root, "mic0", fakecard_plugin)
    slots.plug(0, "0d8c:0014", card=card)
    slots.node(0, 0).unlink()
    config = slots.root / "c.toml"
    config.write_text(CONFIGURATION.format(device=device, root=slots.root))
    places = f"--config {config} --state {slots.root}/st --runtime {slots.root}/run"
    with contained(slots, card, f"run --quiet {places}") as process:
        assert process.stderr is not None
        told = []
        for line in process.stderr:
            told.append(line)
            if "is missing; udev creates it in a moment" in line:
                slots.node(0, 0).touch()
            if "capturing from" in line:
                break
        assert any("pcmC0D0c is missing" in line for line in told), told
        assert not any("group" in line for line in told), told
        deadline = time.monotonic() + 60
        while not list((slots.root / "rec").glob("*.part")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.terminate()
        process.stderr.read()
    assert process.returncode == 0
    (recorded,) = (slots.root / "rec").glob("*.wav")
    samples, _ = soundfile.read(recorded, dtype="int16")
    frames = counter(samples.tobytes(), "S16_LE", 2)
    assert len(frames) > 0
    assert breaks(frames[np.flatnonzero(frames)[:1].item() :]) == []
