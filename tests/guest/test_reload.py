"""`systemctl reload` under systemd, on a real kernel: what changes costs no frame, what is wrong
changes nothing.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.counts import counts
from tests.figures import figure

from .conftest import CONFIGURATION, RECORDINGS, Machine

pytestmark = pytest.mark.guest

SECOND = """
[[stream.sink]]
type = "file"
name = "second"
path = "/var/lib/capstand/{place}"
"""
CONFIGURED = "/etc/capstand/capstand.toml"


def text(place: str) -> str:
    return CONFIGURATION.format(buffer_ms=2000) + SECOND.format(place=place)


def test_reloads_good_and_bad_cost_no_frame(machine: Machine) -> None:
    """On a busy machine, while one sink moves from directory to directory, and wrong files are
    refused in between, `systemctl reload` succeeds and fails as it should, the process stays the
    same, the other recording is one whole file, and those of the moving sink hold every frame
    once."""
    good = counts(2, 67)
    places = [f"place{number}" for number in range(good + 1)]
    machine.guest.run("rm -rf /var/lib/capstand/place*")
    machine.configure(text=text(places[0]))
    machine.start()
    machine.wait_for_frames(2 * 48000)
    pid = machine.show("MainPID")["MainPID"]
    busy = machine.guest.spawn("exec nice bash -c 'while :; do :; done'")
    refusals = 0
    for number, place in enumerate(places[1:]):
        if number % 2 == 0:
            refusals += 1
            machine.guest.write_file(CONFIGURED, text(place) + "pth = 1\n")
            refused = machine.guest.run("systemctl reload capstand", check=False, timeout_s=60)
            shown = machine.show("StatusText", "ActiveState", "SubState")
            assert refused.rc != 0
            assert (shown["ActiveState"], shown["SubState"]) == ("active", "running")
            assert shown["StatusText"].startswith(f"reload refused: {CONFIGURED}:")

        machine.guest.write_file(CONFIGURED, text(place))
        machine.guest.run("systemctl reload capstand", timeout_s=60)
        machine.wait_for_frames(48000)
    busy.stop()
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
    for place in places:
        machine.guest.run(f"cd /var/lib/capstand/{place} && mv *.wav {RECORDINGS}/{place}.wav")
        moved.append(machine.fetch(f"{place}.wav").counter)
    untouched.origin()
    assert books["balanced"] is True
    assert untouched.silent == books["lost_frames"] == 0
    assert len(untouched.counter) == books["captured_frames"]
    assert np.array_equal(np.concatenate(moved), untouched.counter)
    figure(
        f"{good} reloads, {refusals} refused, beside a busy loop",
        f"0 of {len(untouched.counter)} frames lost",
    )
