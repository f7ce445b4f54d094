"""USB microphones on the kernel's own snd-usb-audio: what the bus loses is in the books.

The microphone is `usbmic.c` behind vhci_hcd. Its samples carry a frame counter that runs with the
device's own clock, whatever the bus delivers, so a recording shows the true length of each gap
beside the one that was booked. The machine has a time of its own: a busy host changes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from tests.counts import FULL
from tests.figures import figure

from . import Guest
from .conftest import Machine, Recorded

pytestmark = pytest.mark.guest

CONFIGURATION = """
[[stream]]
name = "{name}"
[stream.capture]
device = "{device}"
rate_hz = {rate_hz}
channels = {channels}
format = "{format}"
buffer_ms = 500
[[stream.sink]]
type = "file"
path = "/var/lib/capstand/{name}"
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
        guest.run("udevadm settle")

    def do(self, *faults: str, then_s: float = 3.0) -> None:
        """Each fault, and some time of ordinary sound behind it."""
        self.guest.run(
            "".join(f"echo '{fault}' > {self._fifo}; sleep {then_s}; " for fault in faults),
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

    def start(
        self,
        *devices: str,
        rate_hz: int = 48_000,
        channels: int = 2,
        format: str = "S16_LE",
    ) -> None:
        """A stream `mic` from the first device, `mic1` from the second."""
        keys = {"rate_hz": rate_hz, "channels": channels, "format": format}
        streams = (
            CONFIGURATION.format(name=f"mic{at or ''}", device=one, **keys)
            for at, one in enumerate(devices or ["card:Microphone"])
        )
        self.machine.configure(text="".join(streams))
        self.machine.start()
        self.frames(4)

    def frames(self, seconds: float) -> None:
        """So much more time of the machine's own."""
        self.guest.run(f"sleep {seconds}", timeout_s=60 + 10 * seconds)

    def status(self) -> dict[str, Any]:
        return self.machine.status()

    def recorded(self) -> tuple[Recorded, list[dict[str, Any]]]:
        """What was recorded, and the ledger; the service is stopped."""
        (name,) = self.stopped()
        return self.machine.fetch(name), self.machine.ledger()

    def stopped(self) -> list[str]:
        """The recordings, once the service has closed them."""
        self.guest.run("systemctl stop capstand", timeout_s=60)
        return self.machine.files()

    def journal(self) -> str:
        return self.guest.run("journalctl -u capstand -o cat --since '-10 min'").out


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


@pytest.fixture
def usb_microphone(usb: Usb) -> Microphone:
    """One microphone, 48 kHz, two channels, 16 bits, in the first port."""
    return usb.plug()


@pytest.fixture
def twins(usb: Usb) -> tuple[Microphone, Microphone]:
    """Two of one model without serial numbers, in the first two ports; the second is pulled."""
    both = usb.plug(0), usb.plug(1)
    both[1].pull()
    return both


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


def test_the_controls_of_a_microphone_are_set_again_after_a_replug(usb: Usb) -> None:
    """Its volume and its switch, as `capstand devices` names them: before the first frame and, as
    it comes back with its own defaults, after each replug."""
    controls = '[stream.capture.controls]\nMic = ["-12 dB", true]\n[[stream.sink]]'
    text = CONFIGURATION.format(
        name="mic", device="card:Microphone", rate_hz=48_000, channels=2, format="S16_LE"
    ).replace("[[stream.sink]]", controls)
    microphone = usb.plug()
    listed = json.loads(usb.guest.run("capstand devices --json").out)["devices"]
    (mic,) = next(one["controls"] for one in listed if one["id"] == "Microphone")
    usb.machine.configure(text=text)
    usb.machine.start()
    usb.frames(4)
    first = usb.status()
    microphone.pull()
    usb.frames(2)
    usb.plug()
    usb.frames(4)
    again = usb.status()
    shown = usb.guest.run("amixer -c Microphone sget Mic").out

    assert mic["name"] == "Mic" and mic["volume_db_range"] == [-32, 8]
    for status in (first, again):
        assert status["controls"]["Mic"]["is"] == "50% (-12 dB), on", status
        assert status["controls"]["Mic"]["fault"] is None
    assert again["opens"] == 2 and "[-12.00dB] [on]" in shown, shown


def faults(rows: list[tuple[int, int, int, str]]) -> list[tuple[int, int, set[str]]]:
    """Rows within 1.5 s of each other are of one fault: booked, true, the causes booked. A lone
    packet, which a busy machine may lose at any time, is less than what is booked at once."""
    found: list[tuple[int, int, set[str]]] = []
    last = -(1 << 60)
    for place, booked, true, cause in rows:
        if place - last > 1.5 * 48_000:
            found.append((0, 0, set()))
        before = found[-1]
        causes = before[2] | ({cause} if booked else set())
        found[-1] = (before[0] + booked, before[1] + true, causes)
        last = place + booked
    lone = [one for one in found if not one[0] and abs(one[1]) <= EXACT]
    assert sum(abs(true) for _, true, _ in lone) <= 2 * EXACT  # more of them add up, and are booked
    return [one for one in found if one not in lone]


def test_what_the_bus_loses_is_booked(usb: Usb, usb_microphone: Microphone) -> None:
    """A silent bus, empty packets and failed ones: each within 1 ms of what is missing, of cause
    ``device``, estimated, and at its place; the drift is not bent."""
    microphone = usb_microphone
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


def test_a_silent_bus_beside_a_stopped_daemon(usb: Usb, usb_microphone: Microphone) -> None:
    """What the bus loses while nobody looks is no turn of the buffer: what is called exact is the
    overrun alone, the rest is an estimate, and both together are true within 1 ms."""
    usb.start()
    usb.frames(8)
    pid = usb.status()["pid"]
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


def test_a_silence_of_three_seconds(usb: Usb, usb_microphone: Microphone) -> None:
    """The stream is started again meanwhile, and the gap is true within 1 ms all the same."""
    usb.start()
    usb.frames(8)
    usb_microphone.do("silence 3000", then_s=8)
    ((booked, true, causes),) = faults(compare(*usb.recorded()))
    assert abs(booked - true) <= EXACT
    assert causes == {"stalled, estimated"}
    figure("USB: a bus silent for 3 s, booked of truly missing", f"{booked} of {true}")


# What it is


def heard(path: Path, bits: int) -> npt.NDArray[np.int64]:
    """The frame counter in a recording of any of the microphone's formats; mono carries it in
    turns (usbmic.c)."""
    samples = soundfile.read(path, dtype="int32", always_2d=True)[0].astype(np.int64)
    values: npt.NDArray[np.int64] = (samples >> (32 - bits)) & (1 << bits) - 1
    counter: npt.NDArray[np.int64] = values[:, 0]
    if bits == 16 and values.shape[1] == 2:
        counter = values[:, 0] | values[:, 1] << 16
    elif bits == 16:
        even = counter & 1 == 0
        low = np.where(even, counter, np.roll(counter, 1) + 1)
        high = np.where(even, np.roll(counter, -1), counter) >> 1
        counter = (low | high << 16)[1:-1]
    return counter


@pytest.mark.parametrize(
    ("channels", "bits", "rate_hz", "high"),
    [(1, 16, 48_000, 0), (2, 24, 48_000, 0), (1, 24, 44_100, 0), (2, 16, 44_100, 1)],
)
def test_every_kind_is_recorded_whole(
    usb: Usb, channels: int, bits: int, rate_hz: int, high: int
) -> None:
    """One and two channels, 16 and 24 bits, 44.1 and 48 kHz, full and high speed."""
    usb.plug(channels=channels, bits=bits, high=high)
    keys = {"rate_hz": rate_hz, "channels": channels}
    usb.start(format="S16_LE" if bits == 16 else "S24_3LE", **keys)
    usb.frames(6)
    (name,) = usb.stopped()
    usb.guest.run(f"cp /var/lib/capstand/mic/{name} /mnt/host/")
    counter = heard(usb.guest.share / name, bits)
    assert len(counter) > 4 * rate_hz
    steps = np.diff(counter) % (1 << 24)  # a counter of 24 bits begins anew once it is full
    assert set(steps) == {1}
    assert usb.machine.ledger()[-1]["lost_frames"] == 0


# Overruns, and a machine that is held


def test_overruns_are_exact(usb: Usb, usb_microphone: Microphone) -> None:
    """What the daemon itself is too late for is counted to the frame, each at its place: the
    driver misses no turn of the buffer."""
    usb.start()
    usb.frames(8)
    pid = usb.status()["pid"]
    for length in (0.6, 0.8, 1.1, 1.5, 2.0) * (2 if FULL else 1):
        usb.guest.run(f"kill -STOP {pid}; sleep {length}; kill -CONT {pid}; sleep 3", timeout_s=90)
    rows = compare(*usb.recorded())
    assert len(rows) >= 5
    for _, booked, true, cause in rows:
        assert (booked, cause) == (true, "overrun, exact")
    total = sum(booked for _, booked, _, _ in rows)
    figure(f"USB: {len(rows)} overruns", f"{total} = {total}, all exact")


def test_a_machine_that_is_held(usb: Usb, usb_microphone: Microphone) -> None:
    """Where nothing at all runs for a while, the card's own sound is late and lost too. What is
    called exact is, and the sum is true within 5 ms."""
    usb.start()
    usb.frames(8)
    lengths = (0.1, 0.3, 0.6, 0.9)
    for length in lengths:
        usb.guest.run(
            f"chrt -f 99 sh -c 'end=$(($(date +%s%N) + {round(length * 1e9)})); "
            "while [ $(date +%s%N) -lt $end ]; do :; done'; sleep 4",
            timeout_s=90,
        )
    rows = compare(*usb.recorded())
    found = faults(rows)
    assert len(found) == len(lengths)
    for booked, true, _ in found:
        assert abs(booked - true) <= LATE
    for _, booked, true, cause in rows:
        assert booked == true or not cause.endswith("exact")
    told = ", ".join(f"{booked} of {true}" for booked, true, _ in found)
    figure("USB: a machine held for 0.1 to 0.9 s, booked of truly missing", told)


# Plugging


def test_a_microphone_that_is_plugged_in_again(usb: Usb) -> None:
    """In the same port and in another one: sound is back, the gap is what the microphone's own
    clock says, within 1 ms, and nobody is told about groups meanwhile."""
    usb.plug(epoch=0)
    usb.start("usb:1234:5678")
    usb.frames(6)
    for port in (0, 1):
        usb.microphones[-1].pull()
        usb.frames(2)
        usb.plug(port, epoch=0)
        usb.frames(5)
    status = usb.status()
    assert status["health"] in ("OK", "DEGRADED")
    assert "was moved: port platform-vhci_hcd.0-usb-0:2; previously port" in usb.journal()
    assert "group" not in usb.journal()
    recorded, ledger = usb.recorded()
    assert [one for one in ledger if one["event"] == "opened"][2]["successor"]
    # A machine that is busy with the new device may lose packets, which are booked as lost.
    found = faults(compare(recorded, ledger))
    for booked, true, causes in found:
        assert abs(booked - true) <= EXACT * len(causes)
    replugs = [one for one in found if "reopened, estimated" in one[2]]
    assert len(replugs) == 2
    told = ", ".join(f"{booked} of {true}" for booked, true, _ in replugs)
    figure("USB: unplugged and plugged in again, booked of truly missing", told)


def test_a_twin_takes_over(usb: Usb, twins: tuple[Microphone, Microphone]) -> None:
    """The first one is pulled, and another of its model is there: it is taken, and that is told in
    the journal and for a while in the status."""
    usb.start("usb:1234:5678")
    usb.frames(6)
    twins[0].pull()
    usb.plug(1)
    usb.frames(6)
    words = (
        "usb:1234:5678 is another card of the same model, or was moved: port platform-vhci_hcd.0"
    )
    assert words in str(usb.status()["notice"])
    assert words in usb.guest.run("systemctl status capstand -n 0").out
    assert words in usb.journal()


def test_a_hung_microphone_costs_its_own_stream_alone(usb: Usb) -> None:
    """It completes nothing and does not answer; the one beside it loses no frame, the daemon
    answers, and it is taken again when it wakes."""
    usb.plug(0, name="Healthy")
    hung = usb.plug(1, name="Hung")
    usb.start("card:Healthy", "card:Hung")
    usb.frames(6)
    hung.do("hang", then_s=25)
    for _ in range(30):  # a disk takes the host's time: in this machine's, seconds for one write
        healthy, other = usb.machine.answer()["streams"]
        if healthy["health"] == "OK":
            break
        usb.frames(1)
    assert (healthy["lost_frames"], healthy["health"], healthy["trouble"]) == (0, "OK", None)
    assert other["health"] == "DEGRADED"
    hung.do("unhang", then_s=12)
    assert usb.machine.answer()["streams"][1]["captured_frames"] > other["captured_frames"]
    figure("USB: beside a hung microphone for 25 s", f"{healthy['lost_frames']} frames lost")
