"""What capstand promises, on a real kernel: a Debian machine with systemd, installed by
scripts/install, capturing the frame counter from snd-aloop.
"""

from __future__ import annotations

import random
import time
from datetime import datetime
from statistics import median

import pytest

from tests.counts import FULL, counts
from tests.figures import figure, spread

from .conftest import Far, Machine, first_frame_at

pytestmark = pytest.mark.guest

SEED = 20261122


def test_every_frame_is_recorded_once_and_in_order(machine: Machine) -> None:
    """Sound is captured without a frame lost, repeated or out of place, from a thread
    with real-time priority, and `systemctl stop` leaves whole files and closed books.
    (Its buffer is longer than what the host of an emulated machine may take from it.)"""
    seconds = counts(20, 60)
    machine.configure(buffer_ms=2000)
    machine.start()
    status = machine.wait_for_frames(seconds * 48000, timeout_s=180)
    threads = machine.guest.run("ps -Leo cls,rtprio,comm | grep -E 'capture|push'").out
    stopped = machine.guest.run("time -p systemctl stop capstand").err

    assert status["health"] == "OK", status
    assert status["lost_exact"] is True
    assert "FF     70 capture" in threads and "FF     60 push" in threads, threads
    (name,) = machine.files()
    recorded = machine.fetch(name)
    books = machine.ledger()[-1]
    assert recorded.origin() > 0
    assert recorded.silent == books["lost_frames"] == 0
    assert len(recorded.counter) == books["produced_frames"] == books["captured_frames"]
    assert books["event"] == "stop" and books["balanced"] is True
    (sink,) = books["sinks"]
    assert sink["delivered_frames"] == books["captured_frames"]
    assert sink["dropped_frames"] == sink["in_flight_frames"] == 0
    assert float(stopped.split()[1]) < 2.5, stopped
    figure(
        f"{seconds} s", f"{len(recorded.counter)} frames, 0 lost; stop took {stopped.split()[1]} s"
    )


def test_overruns_are_counted_to_the_frame(machine: Machine) -> None:
    """Frames reported lost are the frames truly lost, exactly, each gap at its place, whether
    overruns come one by one or in bursts. A host that is overloaded may stop the clock of the
    emulated driver by itself; what is said to be exact is exact then too, and the rest, a few gaps
    at most, is off by half a buffer at most and says that it is estimated."""
    machine.configure(buffer_ms=40)
    machine.start()
    machine.wait_for_frames(48000)
    chance = random.Random(SEED)
    pauses_s = ((0.2, 0.4), (0.2, 0.4), (0.005, 0.05))  # the last is within a burst
    script = "".join(
        f"kill -STOP $p; sleep {chance.uniform(0.05, 0.6):.3f}; kill -CONT $p; "
        f"sleep {chance.uniform(*chance.choice(pauses_s)):.3f}; "
        for _ in range(counts(20, 250))
    )
    machine.guest.run(f"p={machine.status()['pid']}; {script}", timeout_s=720)
    machine.wait_for_frames(48000)
    machine.guest.run("systemctl stop capstand")

    (name,) = machine.files()
    recorded = machine.fetch(name)
    events = machine.ledger()
    gaps = [event for event in events if event["event"] == "gap"]
    reported = [(one["first_frame"], one["frames"]) for one in gaps]
    estimated = [gap for gap, one in zip(reported, gaps, strict=True) if not one["exact"]]
    assert len(reported) >= counts(14, 200), "most of these stops are longer than the buffer"
    assert len(estimated) <= len(reported) // 10
    assert joined(reported) == recorded.gaps()
    shifts = recorded.shifts()
    doubtful = {
        first + frames
        for first, frames in joined(reported)
        if any(first <= one < first + frames for one, _ in estimated)
    }
    assert {place for place, _ in shifts} <= doubtful, (shifts, estimated)
    assert all(abs(change) <= 960 for _, change in shifts), shifts
    assert events[-1]["lost_frames"] == recorded.silent > 0
    assert events[-1]["produced_frames"] == len(recorded.counter)
    assert events[-1]["balanced"] is True
    figure(
        f"{len(reported)} overruns, single and in bursts",
        f"reported {events[-1]['lost_frames']}, true "
        f"{recorded.silent + sum(change for _, change in shifts)}; {len(estimated)} estimated",
    )


def test_a_machine_that_stood_still_is_counted_to_the_frame(machine: Machine) -> None:
    """When the machine itself stops for longer than the buffer, so that the driver misses whole
    turns of it and no pointer shows them, the loss is still exact. Stops of whole buffers are among
    them: there a pointer of before looks like one of after."""
    machine.configure(buffer_ms=200)
    machine.start()
    machine.wait_for_frames(48000)
    stops_s = (0.3, 0.7, 1.2, 0.4, 0.5, 0.9, 0.6, 1.0)[: counts(4, 8)]
    for seconds in stops_s:
        machine.guest.hold(seconds)
        machine.wait_for_frames(48000)
    machine.guest.run("systemctl stop capstand")

    (name,) = machine.files()
    recorded = machine.fetch(name)
    books = machine.ledger()[-1]
    recorded.origin()
    assert books["lost_exact"] is True
    (sink,) = books["sinks"]
    assert books["lost_frames"] > 0
    assert books["lost_frames"] + sink["dropped_frames"] == recorded.silent
    assert books["produced_frames"] == len(recorded.counter)
    figure(
        f"machine held {len(stops_s)} times",
        f"reported {books['lost_frames']} + {sink['dropped_frames']} dropped = {recorded.silent}",
    )


def joined(gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Gaps with those that touch made one, as they look in a file."""
    made: list[tuple[int, int]] = []
    for first, frames in gaps:
        if made and made[-1][0] + made[-1][1] == first:
            made[-1] = (made[-1][0], made[-1][1] + frames)
        else:
            made.append((first, frames))
    return made


def test_after_kill_9_sound_is_back_and_the_old_file_is_whole(machine: Machine) -> None:
    """After kill -9 systemd starts it again, sound is back in under 3 s (the median), the file of
    the time before is readable up to its last second, and so is what waited in the spool (in the
    full size; that of power cuts has it always)."""
    far = Far(machine) if FULL else None  # an emulated machine takes a second longer with it
    machine.configure(text=far.configuration() if far else None)
    machine.start()
    machine.wait_for_frames(8 * 48000)
    chance = random.Random(SEED)
    back_s = []
    missing_s = []
    rounds = counts(3, 100)
    for _ in range(rounds):
        (part,) = machine.files("*.part")
        machine.guest.run("systemctl kill -s KILL capstand; date +%s.%N > /root/killed")
        killed_s = float(machine.guest.read_file("/root/killed"))
        machine.answers()
        machine.wait_for_frames(round(chance.uniform(0.5, 4) * 48000))
        (new,) = machine.files("*.part")

        old = part.removesuffix(".part")
        assert old in machine.files()
        recorded = machine.fetch(old)
        began_s = datetime.fromisoformat(first_frame_at(old)).timestamp()
        missing_s.append(killed_s - began_s - len(recorded.counter) / 48000)
        recorded.origin()
        assert missing_s[-1] < 1.0
        back_s.append(datetime.fromisoformat(first_frame_at(new)).timestamp() - killed_s)
    limit_s = machine.limit_s(3.0)
    spooled = far.comes_back() if far else "without a spool"
    machine.guest.run("systemctl stop capstand")
    books = machine.ledger()
    figure("kill -9: sound back after", spread(back_s))
    figure("kill -9: missing at the end", f"{spread(missing_s)}; {spooled}")
    assert [book["event"] for book in books].count("start") == rounds + 1
    assert all(book.get("balanced", True) for book in books)
    assert median(back_s) < limit_s


def test_a_capture_thread_that_is_frozen_is_replaced(machine: Machine) -> None:
    """A capture thread that stands still, alone, is noticed; another process goes on with the frame
    index, and the daemon runs on."""
    machine.configure()
    machine.start()
    before = machine.wait_for_frames(48000)
    machine.guest.spawn(f"exec /root/freeze {before['pid']} capture 60")
    deadline = time.monotonic() + 120
    while machine.status()["pid"] in (before["pid"], None):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    after = machine.wait_for_frames(48000)
    told = [str(one.get("MESSAGE")) for one in machine.journal()]

    assert machine.show("NRestarts")["NRestarts"] == "0"
    assert any("the capture thread has been stuck" in line for line in told)
    assert after["produced_frames"] > before["produced_frames"] and after["balanced"]
    machine.guest.wait_until(
        """capstand status --json | grep -q '"health": "OK"'""", timeout_s=90
    )  # not at once: what a slow host lost meanwhile is told for ten seconds


def test_the_watchdog_fires_when_main_is_stopped(machine: Machine) -> None:
    """A daemon whose main process stands still is started again by systemd; sound is back."""
    machine.configure()
    machine.start()
    machine.wait_for_frames(48000)
    pid, restarts = (machine.show("MainPID", "NRestarts")[key] for key in ("MainPID", "NRestarts"))
    machine.guest.run(f"kill -STOP {pid}")
    machine.guest.wait_until(
        f'test "$(systemctl show capstand -p NRestarts --value)" -gt {restarts}', timeout_s=120
    )
    machine.answers()
    machine.wait_for_frames(48000)
    assert any("Watchdog timeout" in str(one.get("MESSAGE")) for one in machine.journal())


def test_a_wrong_configuration_is_refused_once_with_every_fault(machine: Machine) -> None:
    """A wrong file ends the daemon with status 78, systemd does not try again, and the journal has
    every fault with its line."""
    machine.configure(text='[[stream]]\nname = "mic"\n[stream.capture]\nrate_hz = 44.1\n')
    result = machine.guest.run("systemctl start capstand", check=False)
    shown = machine.show("ExecMainStatus", "NRestarts", "ActiveState")
    told = "\n".join(str(one.get("MESSAGE")) for one in machine.journal())

    assert result.rc != 0
    assert shown == {"ExecMainStatus": "78", "NRestarts": "0", "ActiveState": "failed"}
    fault = "/etc/capstand/capstand.toml:4: stream.mic.capture.rate_hz: 44.1: expected an integer"
    assert fault in told
    assert "stream.mic.capture.device: missing" in told


def test_devices_names_the_card_and_who_holds_it(machine: Machine) -> None:
    """`capstand devices` prints the line to paste, what the card offers, and its holder."""
    machine.configure()
    free = machine.guest.run("capstand devices").out
    machine.start()
    machine.wait_for_frames(4800)
    held = machine.guest.run("capstand devices").out
    machine.guest.run("systemctl stop capstand")

    assert "card:Loopback,1" in free and "S16_LE" in free
    assert (
        "48000 Hz" in free or "8000 to 192000 Hz; 1 to 32 channels" in free
    )  # with a player, or not
    assert "in use by stream:mic (pid" in held


def test_the_journal_has_fields(machine: Machine) -> None:
    """What is lost stands in the journal with STREAM, DEVICE and LOST_FRAMES to search by."""
    machine.configure(buffer_ms=40)
    machine.start()
    machine.wait_for_frames(48000)
    pid = machine.status()["pid"]
    machine.guest.run(f"kill -STOP {pid}; sleep 0.5; kill -CONT {pid}")
    machine.wait_for_frames(48000)
    machine.guest.run("systemctl stop capstand")
    found = [one for one in machine.journal() if "LOST_FRAMES" in one and "CAUSE" in one]

    assert found
    assert found[-1]["STREAM"] == "mic"
    assert found[-1]["DEVICE"] == "hw:CARD=Loopback,DEV=1"
    lost = found[-1]["LOST_FRAMES"]  # a list where the line stands for several
    assert all(int(one) > 0 for one in (lost if isinstance(lost, list) else [lost]))


def test_the_unit_is_as_closed_as_the_documentation_says(machine: Machine) -> None:
    """docs/install.md: 2.7 by systemd-analyze, 1.1 with the drop-in for recordings only, with which
    sound is captured and recorded as before."""
    machine.guest.run("systemd-analyze security capstand --no-pager --threshold=28")
    folder = "/etc/systemd/system/capstand.service.d"
    machine.guest.run(
        f"install -Dm644 -t {folder} /opt/capstand/drop-ins/recordings-only.conf;"
        " systemctl daemon-reload"
    )
    try:
        machine.guest.run("systemd-analyze security capstand --no-pager --threshold=12")
        machine.configure()
        machine.start()
        machine.wait_for_frames(48000)
        assert machine.files("*.wav*") or machine.files("*.part")
    finally:
        machine.guest.run(f"rm -r {folder}; systemctl stop capstand; systemctl daemon-reload")


def test_uninstall_takes_away_the_program_and_keeps_the_sound(machine: Machine) -> None:
    """`scripts/install --uninstall` removes program and unit; configuration, recordings and
    the user to whom these belong stay. (Last: it ends the machine's use.)"""
    machine.configure()
    machine.start()
    machine.wait_for_frames(48000)
    machine.guest.run("/root/capstand/scripts/install --uninstall", timeout_s=60)

    left = machine.guest.run(
        "ls /opt/capstand /usr/local/bin/capstand /etc/systemd/system/capstand.service", check=False
    )
    assert left.rc != 0 and not left.out.strip()
    machine.guest.run("getent passwd capstand")  # else the next new user might get its number
    assert machine.files("*.wav")
    machine.guest.run("test -f /etc/capstand/capstand.toml")
