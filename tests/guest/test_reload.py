"""`systemctl reload` under systemd, on a real kernel: what changes costs no frame, what is wrong
changes nothing.
"""

from __future__ import annotations

import numpy as np
import pytest

from .conftest import CONFIGURATION, FIGURES, RECORDINGS, Machine

pytestmark = pytest.mark.guest

SECOND = """
[[stream.sink]]
type = "file"
name = "second"
path = "/var/lib/capstand/{place}"
"""
PLACES = ("a", "b", "c", "d")


def text(place: str) -> str:
    return CONFIGURATION.format(buffer_ms=2000) + SECOND.format(place=place)


def test_reloads_good_and_bad_cost_no_frame(machine: Machine) -> None:
    """While one sink moves from directory to directory, and wrong files are refused in between,
    `systemctl reload` succeeds and fails as it should, the process stays the same, the other
    recording is one whole file, and those of the moving sink hold every frame once."""
    machine.guest.run(f"cd /var/lib/capstand && rm -rf {' '.join(PLACES)}", check=False)
    machine.configure(text=text(PLACES[0]))
    machine.start()
    machine.wait_for_frames(2 * 48000)
    pid = machine.show("MainPID")["MainPID"]
    for place in PLACES[1:]:
        machine.guest.write_file("/etc/capstand/capstand.toml", text(place) + "pth = 1\n")
        refused = machine.guest.run("systemctl reload capstand", check=False, timeout_s=60)
        shown = machine.show("StatusText", "ActiveState", "SubState")
        assert refused.rc != 0
        assert (shown["ActiveState"], shown["SubState"]) == ("active", "running")
        assert shown["StatusText"].startswith("reload refused: /etc/capstand/capstand.toml:")

        machine.guest.write_file("/etc/capstand/capstand.toml", text(place))
        machine.guest.run("systemctl reload capstand", timeout_s=60)
        machine.wait_for_frames(2 * 48000)
    shown = machine.show("MainPID", "NRestarts", "StatusText")
    told = [str(one.get("MESSAGE")) for one in machine.journal()]
    machine.guest.run("systemctl stop capstand")

    assert shown["MainPID"] == pid and shown["NRestarts"] == "0"
    assert shown["StatusText"].startswith("mic: ")
    assert any(
        line.startswith("reload refused: ") and "pth: unknown key" in line for line in told
    ), told
    assert "reload: mic: sink second changed" in told
    books = machine.ledger()[-1]
    (kept,) = machine.files()
    untouched = machine.fetch(kept)
    moved = []
    for place in PLACES:
        machine.guest.run(f"cd /var/lib/capstand/{place} && mv *.wav {RECORDINGS}/{place}.wav")
        moved.append(machine.fetch(f"{place}.wav").counter)
    untouched.origin()
    assert books["balanced"] is True
    assert untouched.silent == books["lost_frames"] == 0
    assert len(untouched.counter) == books["captured_frames"]
    assert np.array_equal(np.concatenate(moved), untouched.counter)
    FIGURES.append(
        f"{len(PLACES) - 1} reloads, as many refused: {len(untouched.counter)} frames, 0 lost"
    )
