"""USB microphones on the kernel's own snd-usb-audio: what the bus loses is in the books.

The microphone is `usbmic.c` behind vhci_hcd. Its samples carry a frame counter that runs with the
device's own clock, whatever the bus delivers, so a recording shows the true length of each gap
beside the one that was booked. The machine has a time of its own: a busy host changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.figures import figure

from . import Guest
from .conftest import Machine, Recorded

pytestmark = pytest.mark.guest

CONFIGURATION = """
[[stream]]
name = "mic"
[stream.capture]
device = "{device}"
rate_hz = 48000
channels = 2
buffer_ms = 500
[[stream.sink]]
type = "file"
path = "/var/lib/capstand/mic"
"""
EXACT, LATE = 48, 240  # frames: 1 ms, and 5 ms where the machine itself was held


class Microphone:
    """A USB microphone in one of the machine's ports."""

    def __init__(self, guest: Guest, port: int = 0, **keys: object) -> None:
        self.guest = guest
        self._fifo = f"/run/usbmic{port}"
        words = " ".join(f"{key}={value}" for key, value in keys.items())
        guest.run(f"rm -f {self._fifo}")
        self._job = guest.spawn(f"exec /root/usbmic {port} {self._fifo} {words}")
        guest.wait_until(
            f"test -e /sys/bus/usb/devices/1-{port + 1}/*/sound/card*/pcmC*D0c", timeout_s=30
        )
        # The kernel's threads for it must not be starved by those of the machine.
        guest.run("for p in $(pgrep '^vhci_'); do chrt -f -p 94 $p; done; udevadm settle")

    def do(self, *faults: str, then_s: float = 3.0) -> None:
        """Each fault, and some time of ordinary sound behind it."""
        self.guest.run(
            "".join(f"echo '{one}' > {self._fifo}; sleep {then_s}; " for one in faults),
            timeout_s=60 + len(faults) * (then_s + 10),
        )

    def pull(self) -> None:
        if self._job.running:
            self.guest.run(f"echo end > {self._fifo}")
            self._job.wait(30)


class Usb:
    """The machine and what the tests ask of it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.guest = machine.guest
        self.microphones: list[Microphone] = []

    def plug(self, port: int = 0, **keys: object) -> Microphone:
        microphone = Microphone(self.guest, port, **{"channels": 2, "name": "Microphone"} | keys)
        self.microphones.append(microphone)
        return microphone

    def start(self, device: str = "card:Microphone", more: str = "") -> None:
        self.machine.configure(text=CONFIGURATION.format(device=device) + more)
        self.machine.start()
        self.frames(4)

    def frames(self, seconds: float) -> None:
        """So much more time of the machine's own."""
        self.guest.run(f"sleep {seconds}", timeout_s=60 + 10 * seconds)

    def status(self) -> dict[str, Any]:
        return self.machine.status()

    def recorded(self) -> tuple[Recorded, list[dict[str, Any]]]:
        """What was recorded, and the ledger; the service is stopped."""
        self.guest.run("systemctl stop capstand", timeout_s=60)
        (name,) = self.machine.files()
        return self.machine.fetch(name), self.machine.ledger()


@pytest.fixture(scope="module")
def usb_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("usb")
    began = time.monotonic()
    with Guest(folder, own_time=True) as guest:
        guest.start(folder / "share")
        guest.push_source()
        guest.run("/root/capstand/scripts/install", timeout_s=600)
        guest.run(
            "modprobe -a vhci_hcd snd-usb-audio; sysctl -qw kernel.sched_rt_runtime_us=-1; "
            "echo snd_aloop.0 > /sys/bus/platform/drivers/snd_aloop/unbind"
        )
        guest.compile("usbmic", "m")
        figure("(a machine with a USB bus)", f"ready after {time.monotonic() - began:.0f} s")
        yield Machine(guest)


@pytest.fixture
def usb(usb_machine: Machine) -> Iterator[Usb]:
    usb = Usb(usb_machine)
    yield usb
    usb.guest.run("systemctl stop capstand", check=False, timeout_s=60)
    for microphone in usb.microphones:
        microphone.pull()


def compare(recorded: Recorded, ledger: list[dict[str, Any]]) -> list[tuple[int, int, int, str]]:
    """For each gap in the recording: its place, what was booked, what is true, its cause."""
    booked = [one for one in ledger if one["event"] == "gap"]
    shifts = dict(recorded.shifts())
    rows = []
    for one in booked:
        end = one["first_frame"] + one["frames"]
        rows.append(
            (
                one["first_frame"],
                one["frames"],
                one["frames"] + shifts.pop(end, 0),
                f"{one['cause']}, {'exact' if one['exact'] else 'estimated'}",
            )
        )
    rows += [(place, 0, change, "not booked") for place, change in shifts.items()]
    return sorted(rows)


def test_a_microphone_is_recorded_whole(usb: Usb) -> None:
    """A microphone 120 ppm slow: every frame once and in order, and the drift is its own."""
    usb.plug(ppm=-120)
    usb.start()
    usb.frames(50)
    drift = usb.status()["drift_ppm"]
    recorded, ledger = usb.recorded()

    recorded.origin()
    assert recorded.silent == 0 == ledger[-1]["lost_frames"]
    assert drift == pytest.approx(-120, abs=5)
    figure("USB: a minute of a microphone 120 ppm slow", f"0 lost, drift {drift} ppm")


def faults(rows: list[tuple[int, int, int, str]]) -> list[tuple[int, int, set[str]]]:
    """Rows within 2 s of each other are of one fault: booked, true, the causes booked."""
    found: list[tuple[int, int, set[str]]] = []
    last = -(1 << 60)
    for place, booked, true, cause in rows:
        if place - last > 2 * 48_000:
            found.append((0, 0, set()))
        before = found[-1]
        causes = before[2] | ({cause} if booked else set())
        found[-1] = (before[0] + booked, before[1] + true, causes)
        last = place + booked
    return found


def test_what_the_bus_loses_is_booked(usb: Usb) -> None:
    """A silent bus, empty packets and failed ones: each within 1 ms of what is missing, of cause
    ``device``, estimated, and at its place; the drift is not bent."""
    microphone = usb.plug()
    usb.start()
    usb.frames(20)
    microphone.do("silence 300", "silence 100", "silence 600", "silence 1100", "empty 1000")
    microphone.do("bad 10 71", "ragged 10 18", then_s=4)
    drift = usb.status()["drift_ppm"]
    rows = compare(*usb.recorded())

    found = faults(rows)
    assert len(found) == 6  # a ragged packet fails, but its frames arrive
    for booked, true, causes in found:
        assert abs(booked - true) <= EXACT
        assert causes == {"device, estimated"}
    assert abs(drift) < 5
    told = ", ".join(f"{booked} of {true}" for booked, true, _ in found)
    figure("USB: lost on the bus, booked of truly missing", told)


def test_a_silent_bus_beside_a_stopped_daemon(usb: Usb) -> None:
    """What the bus loses while nobody looks is no turn of the buffer: what is called exact is the
    overrun alone, the rest is an estimate, and both together are true within 1 ms."""
    usb.plug()
    usb.start()
    usb.frames(8)
    pid = "$(systemctl show -p MainPID --value capstand)"
    lengths = (250, 460, 500, 540, 1000, 1040)
    for length in lengths:
        usb.guest.run(
            f"kill -STOP {pid}; echo 'silence {length}' > /run/usbmic0; "
            f"sleep {length / 1000 + 0.2}; kill -CONT {pid}; sleep 4",
            timeout_s=90,
        )
    found = faults(compare(*usb.recorded()))

    assert len(found) == len(lengths)
    for booked, true, causes in found:
        assert abs(booked - true) <= EXACT
        assert "device, estimated" in causes
    told = ", ".join(f"{booked} of {true}" for booked, true, _ in found)
    figure("USB: lost on the bus while the daemon is stopped", told)


def test_a_silence_of_three_seconds(usb: Usb) -> None:
    """The stream is started again meanwhile, and the gap is true within 1 ms all the same."""
    microphone = usb.plug()
    usb.start()
    usb.frames(8)
    microphone.do("silence 3000", then_s=8)
    ((booked, true, causes),) = faults(compare(*usb.recorded()))
    assert abs(booked - true) <= EXACT
    assert causes == {"stalled, estimated"}
