"""A card that others want too, on a real kernel: the holder is named, the card is taken when it is
free, handed over by a person, and shared through dsnoop.

The card is snd-aloop, whose capture side is held by arecord.
"""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import CONFIGURATION, FIGURES, Machine

pytestmark = pytest.mark.guest

CARD = "hw:CARD=Loopback,DEV=1,SUBDEV=0"  # the card has two, and a second program takes the other
SETUP = CONFIGURATION.replace("hw:CARD=Loopback,DEV=1", CARD)
ARECORD = f"arecord -q -D {CARD} -t raw -f S16_LE -r 48000 -c 2"
DSNOOP = """
pcm.shared {
    type dsnoop
    ipc_key 5578
    ipc_gid audio
    ipc_perm 0660
    slave {
        pcm "hw:Loopback,1,0"
        format S16_LE
        rate 48000
        channels 2
        period_size 480
        buffer_size 96000
    }
}
"""


def ledger_gaps(machine: Machine) -> list[dict[str, Any]]:
    return [one for one in machine.ledger() if one["event"] == "gap"]


def seconds_until(machine: Machine, condition: str, since: str, timeout_s: float = 30) -> float:
    """How long after the moment kept in the file ``since`` the guest itself saw it; the machine is
    asked in it, because asking from outside takes longer than what is to be measured."""
    script = f"until {condition}; do sleep 0.05; done; echo $(date +%s.%N) $(cat {since})"
    ended, began = machine.guest.run(script, timeout_s=timeout_s).out.split()
    return float(ended) - float(began)


def frames_file(folder: str = "/var/lib/capstand/mic") -> str:
    return f"ls -1 {folder}/*.part >/dev/null 2>&1"


def test_the_holder_is_named_and_the_card_is_taken_when_it_is_free(machine: Machine) -> None:
    """While arecord has the card, STATUS names it with its unit; the service neither fails nor is
    started again, and has the card soon after arecord ends."""
    machine.configure(text=SETUP.format(buffer_ms=500))
    machine.guest.run(
        f"systemd-run -q --unit=rival bash -c 'exec {ARECORD} >/dev/null'; "
        "until grep -q owner /proc/asound/Loopback/pcm1c/sub0/status; do sleep 0.05; done"
    )
    try:
        machine.guest.run("date +%s.%N > /root/began; systemctl start --no-block capstand")
        named_s = seconds_until(
            machine, "systemctl show capstand -p StatusText | grep -q rival", "/root/began", 60
        )
        shown = machine.show("StatusText", "ActiveState", "NRestarts")
    finally:
        machine.guest.run("systemctl stop rival; date +%s.%N > /root/began")
    taken_s = seconds_until(machine, frames_file(), "/root/began")
    machine.wait_for_frames(48000)
    machine.guest.run("systemctl stop capstand")

    assert f"DEGRADED: {CARD} is in use by arecord (pid " in shown["StatusText"]
    assert ", rival.service); waiting until it lets go; stop it, or" in shown["StatusText"]
    assert (shown["ActiveState"], shown["NRestarts"]) == ("active", "0")
    assert machine.ledger()[-1]["balanced"] is True
    FIGURES.append(
        f"busy: named {named_s:.1f} s after the start, taken {taken_s:.1f} s after its end"
    )
    assert taken_s <= 2.0


def test_released_to_arecord_and_taken_back(machine: Machine) -> None:
    """`capstand release mic --for 60 && arecord` just works, again and again; after `resume` sound
    goes on in the same file, and each absence is one gap with its cause."""
    machine.configure(text=SETUP.format(buffer_ms=2000))
    machine.start()
    machine.wait_for_frames(48000)
    record = f"{ARECORD} -d 1 /root/rival.raw && stat -c %s /root/rival.raw"
    for _ in range(5):
        said = machine.guest.run(f"capstand release mic --for 60 && {record}").out
        assert said.startswith("mic: released until "), said
        assert int(said.split()[-1]) == 48000 * 4, "arecord had the card for a whole second"
        status = machine.status()
        assert status["health"] == "DEGRADED" and status["trouble"].startswith("released to others")
        assert machine.guest.run("capstand resume mic").out == "mic: taking the device back\n"
        machine.wait_for_frames(48000)
    refused = machine.guest.run(
        "setpriv --reuid nobody --clear-groups capstand release mic", check=False
    )
    assert (refused.rc, refused.err.split(";")[0]) == (
        1,
        "capstand: uid 65534 may not release a stream",
    )
    assert machine.status()["health"] in ("OK", "DEGRADED") and not machine.status()["released"]
    machine.guest.run("systemctl stop capstand")

    (name,) = machine.files()
    recorded = machine.fetch(name)
    books = machine.ledger()
    gaps = ledger_gaps(machine)
    assert [gap["cause"] for gap in gaps] == ["released"] * 5
    assert [one["by_uid"] for one in books if one["event"] == "release"] == [0] * 5
    assert books[-1]["balanced"] is True
    assert books[-1]["lost_frames"] == recorded.silent == sum(gap["frames"] for gap in gaps)
    assert recorded.gaps() == [(gap["first_frame"], gap["frames"]) for gap in gaps]


def test_two_programs_record_through_dsnoop(machine: Machine) -> None:
    """Through dsnoop arecord and the daemon have the card at the same time, each whole; the daemon
    says that losses are now estimated."""
    machine.guest.write_file("/etc/asound.conf", DSNOOP)
    try:
        text = SETUP.format(buffer_ms=2000).replace(CARD, "shared")
        machine.configure(text=text)
        machine.start()
        machine.wait_for_frames(48000)
        machine.guest.run(
            "arecord -q -D shared -t raw -f S16_LE -r 48000 -c 2 -d 3 /mnt/host/rival.raw",
            timeout_s=60,
        )
        status = machine.wait_for_frames(48000)
        machine.guest.run("systemctl stop capstand")
    finally:
        machine.guest.run("rm /etc/asound.conf")

    assert status["lost_exact"] is False
    (name,) = machine.files()
    recorded = machine.fetch(name)
    raw = (machine.guest.share / "rival.raw").read_bytes()
    theirs = {int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4 * 480)}
    ours = {int(one) for one in recorded.counter}
    assert len(raw) == 3 * 48000 * 4
    assert theirs <= ours, "what arecord recorded, the daemon recorded too"
    assert machine.ledger()[-1]["balanced"] is True
