"""Faults of the machine, on a real kernel: power cuts, a full disk, a clock that is set, sleep.

In each the card's frame counter says what is true.
"""

from __future__ import annotations

import random
from datetime import datetime

import numpy as np
import pytest

from tests.counts import counts
from tests.figures import figure, spread

from .conftest import CONFIGURATION, Far, Machine, first_frame_at

pytestmark = pytest.mark.guest

SEED = 20261122
SECOND = 48_000
TWO_DISKS = (
    CONFIGURATION
    + """
min_free_mb = 0
[[stream.sink]]
type = "file"
name = "small"
path = "/mnt/small/mic"
min_free_mb = 0
queue_ms = 1000
"""
)


def test_a_power_cut_costs_the_last_second(machine: Machine) -> None:
    """After the machine lost its power at a random moment, it boots into sound; the file of before
    is readable up to its last second, and so is what waited in the spool; every line of the books
    can be read, and what they say balances."""
    chance = random.Random(SEED)
    rounds = counts(1, 20)
    missing_s = []
    far = Far(machine)
    machine.configure(text=far.configuration())
    machine.guest.run("systemctl enable capstand", timeout_s=60)
    machine.start()
    for _ in range(rounds):
        machine.wait_for_frames(round(chance.uniform(3, 9) * SECOND))
        (part,) = machine.files("*.part")
        cut_s = float(machine.guest.run("date +%s.%N").out)
        machine.guest.power_cut()
        machine.guest.boot()
        machine.player = None  # it went with the machine
        machine.play_again()
        machine.wait_for_frames(SECOND)

        old = part.removesuffix(".part")
        assert old in machine.files()
        recorded = machine.fetch(old)
        began_s = datetime.fromisoformat(first_frame_at(old)).timestamp()
        missing_s.append(cut_s - began_s - len(recorded.counter) / SECOND)
        recorded.origin()
        assert missing_s[-1] < 1.5
        books = machine.ledger()
        assert [book["event"] for book in books].count("start") == len(missing_s) + 1
        assert all(book.get("balanced", True) for book in books)
    machine.guest.run("systemctl disable capstand", timeout_s=60)
    spooled = far.comes_back()
    figure("power cut: missing at the end", f"{spread(missing_s)}; {spooled}")


def test_a_full_disk_holds_up_nothing_else(machine: Machine) -> None:
    """While one disk is full capture goes on, the recording on another disk has every frame, and
    the line says what is wrong; when there is room again recording goes on by itself."""
    machine.configure(text=TWO_DISKS.format(buffer_ms=2000))
    machine.guest.run("mkdir -p /mnt/small; mount -t tmpfs -o size=1m,mode=777 tmpfs /mnt/small")
    try:
        machine.start()
        machine.guest.wait_until(
            "systemctl show capstand -p StatusText --value | grep -q 'small: .* MB free'",
            timeout_s=60,
        )
        machine.wait_for_frames(5 * SECOND)
        machine.guest.run("mount -o remount,size=100m /mnt/small")
        machine.guest.wait_until(
            """capstand status --json | grep -q '"health": "OK"'""", timeout_s=90
        )
        machine.wait_for_frames(2 * SECOND)
        machine.guest.run("systemctl stop capstand")
        whole = machine.fetch(machine.files()[-1])
        books = machine.ledger()[-1]
    finally:
        machine.guest.run("systemctl stop capstand; umount /mnt/small", check=False)
    assert len(machine.files()) == 1
    whole.origin()
    assert books["lost_frames"] == whole.silent == 0
    assert books["balanced"] is True
    well, small = books["sinks"]
    assert (well["dropped_frames"], well["delivered_frames"]) == (0, len(whole.counter))
    assert 0 < small["dropped_frames"] < small["delivered_frames"] + small["dropped_frames"]
    figure(
        "disk full, then freed",
        f"0 of {len(whole.counter)} frames lost or dropped elsewhere, {small['dropped_frames']} "
        "there",
    )


def test_a_clock_that_is_set_moves_nothing(machine: Machine) -> None:
    """Setting the wall clock an hour forth and back, and slewing it by 500 ppm, costs no frame and
    makes no gap, and the order of the books is kept. (snd-aloop runs on the kernel's own clock, so
    it is slewed too; that a slew shows as drift is in tests/service/test_time_faults.py.)"""
    machine.configure(buffer_ms=2000)
    machine.start()
    machine.wait_for_frames(3 * SECOND)
    for shift in ("1 hour", "1 hour ago"):
        machine.guest.run(f'date -s "{shift}"')
        machine.wait_for_frames(3 * SECOND)
    machine.guest.run("busybox adjtimex -t 10005")
    try:
        machine.wait_for_frames(counts(4, 60) * SECOND, timeout_s=180)
    finally:
        machine.guest.run("busybox adjtimex -t 10000")
    machine.guest.run("systemctl stop capstand")
    books = machine.ledger()
    recorded = machine.fetch(machine.files()[-1])

    recorded.origin()
    assert books[-1]["lost_frames"] == recorded.silent == 0
    assert not [book for book in books if book["event"] == "gap"]
    stamps = [book["monotonic_ns"] for book in books]
    assert stamps == sorted(stamps)
    figure("wall clock ±1 h, slew of 500 ppm", f"0 of {len(recorded.counter)} frames lost")


def test_a_machine_that_slept_goes_on_when_it_wakes(machine: Machine) -> None:
    """After the machine was suspended to idle, and after a sleep in which its clocks stood still,
    the same process has sound again at once; each sleep is one gap that says why, and there is no
    other; the timeline is as long as the clock went on."""
    machine.configure(buffer_ms=2000)
    machine.start()
    machine.wait_for_frames(2 * SECOND)
    chance = random.Random(SEED)
    lengths_s = [chance.uniform(1, 8) for _ in range(counts(1, 20))]
    back_s = []
    for seconds in [*lengths_s, None]:
        guest = machine.guest
        woken_s = guest.suspend(seconds) if seconds else guest.suspend_to_memory()
        machine.play_again()  # the player ends when its card is suspended
        machine.wait_for_frames(2 * SECOND)
        gaps = [one for one in machine.ledger() if one["event"] == "gap"]
        back_s.append(datetime.fromisoformat(gaps[-1]["at"]).timestamp() - woken_s)
    limit_s = machine.limit_s(2.0)
    machine.guest.run("systemctl stop capstand")
    books = machine.ledger()
    recorded = np.concatenate([machine.fetch(name).counter for name in machine.files()])
    figure("suspend: sound back after the machine by", spread(back_s))

    assert [gap["cause"] for gap in gaps] == ["suspended"] * (len(lengths_s) + 1)
    assert max(back_s) < limit_s
    assert machine.show("NRestarts")["NRestarts"] == "0"
    assert [book["event"] for book in books].count("start") == 1
    assert books[-1]["balanced"] is True
    assert len(recorded) == books[-1]["produced_frames"]
    (granted,) = [book for book in books if book["event"] == "opened"]
    lived_s = (books[-1]["monotonic_ns"] - granted["monotonic_ns"]) / 1e9
    assert abs(books[-1]["produced_frames"] / SECOND - lived_s) < 1.0
