"""The guest of the kernel tests: one machine, capstand installed in it as a user installs it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from tests.figures import figure

from . import Guest, Job

RECORDINGS = "/var/lib/capstand/mic"
LEDGER = "/var/lib/capstand/ledger/mic.jsonl"
PYTHON = "/opt/capstand/current/bin/python"
CONFIGURATION = """
[[stream]]
name = "mic"
[stream.capture]
device = "hw:CARD=Loopback,DEV=1"
rate_hz = 48000
channels = 2
format = "S16_LE"
period_ms = 10
buffer_ms = {buffer_ms}
rt_priority = 70
dc_warn_dbfs = 0  # a frame counter is no sound
[[stream.sink]]
type = "file"
path = "/var/lib/capstand/mic"
"""
SPOOLED = """
min_free_mb = 0
[[stream.sink]]
type = "file"
name = "far"
path = "{path}"
min_free_mb = 0
[stream.sink.spool]
path = "/var/lib/capstand/spool"
catch_up_speed = 100
"""


STARTS = f"""for round in 1 2 3; do
    date +%s.%N; {PYTHON} -c 'import asyncio, json, ssl'; date +%s.%N
done"""
STARTS_S = 0.9
"""What each of these takes a machine of 250 million instructions a second, which is slower than any
Raspberry Pi: the USB tests' machine, whose clock counts them (0.87 s, again and again)."""

# `capstand status --json`, in a tenth of the time: most of what the tests ask is this.
ASK_STATUS = r"""perl -MIO::Socket::UNIX -e '
$daemon = IO::Socket::UNIX->new("/run/capstand/control.sock") or die "no daemon: $!\n";
print $daemon "{\"ask\": \"status\"}\n"; print <$daemon>'
"""


@dataclass
class Recorded:
    """A finished segment: the frame counter in it (0 where it is silent), its name."""

    name: str
    counter: npt.NDArray[np.int64]

    @property
    def silent(self) -> int:
        return int(np.count_nonzero(self.counter == 0))

    def gaps(self) -> list[tuple[int, int]]:
        """(first frame, length) of every silent run, by place in the file."""
        silent = np.concatenate(([0], (self.counter == 0).astype(np.int8), [0]))
        edges = np.diff(silent)
        starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        return [(int(a), int(b - a)) for a, b in zip(starts, ends, strict=True)]

    def shifts(self) -> list[tuple[int, int]]:
        """(place, change) where counter minus place is not what it was before."""
        place = np.flatnonzero(self.counter)
        origins = self.counter[place] - place
        at = np.flatnonzero(np.diff(origins)) + 1
        return [(int(place[one]), int(origins[one] - origins[one - 1])) for one in at]

    def origin(self) -> int:
        """Counter minus place, which must be the same for every frame that sounds."""
        place = np.flatnonzero(self.counter)
        offsets = np.unique(self.counter[place] - place)
        assert len(offsets) == 1, f"{self.name}: frames are out of place: offsets {offsets[:10]}"
        return int(offsets[0])


class Machine:
    """The guest with what the tests ask of it over and over."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.player: Job | None = None

    def configure(self, buffer_ms: int = 500, text: str | None = None) -> None:
        """A configuration, no recordings, no ledger; the service is stopped."""
        self.guest.run("systemctl stop capstand; systemctl reset-failed capstand", check=False)
        self.guest.run(f"rm -rf {RECORDINGS} {LEDGER}")
        self.guest.write_file(
            "/etc/capstand/capstand.toml", text or CONFIGURATION.format(buffer_ms=buffer_ms)
        )

    def start(self) -> None:
        self.guest.run("systemctl start capstand", timeout_s=60)

    def answers(self) -> None:
        """Waits until the daemon can be asked."""
        self.guest.wait_until(ASK_STATUS, timeout_s=60)

    def limit_s(self, seconds: float) -> float:
        """The limit for a duration that was just measured. It is for a machine that starts programs
        as fast as one of 250 million instructions a second; one that its host lets be slower now
        has more time, in proportion."""
        moments = [float(line) for line in self.guest.run(STARTS, timeout_s=60).out.split()]
        took_s = median(
            after - before for before, after in zip(moments[::2], moments[1::2], strict=True)
        )
        slower = max(1.0, took_s / STARTS_S)
        figure(
            f"(the emulated machine, for a limit of {seconds:g} s)",
            f"it starts programs in {took_s:.2f} s, so the limit is {seconds * slower:.2f} s",
        )
        return seconds * slower

    def play_again(self) -> None:
        """The frame counter from a new player, after the machine or the card was gone."""
        if self.player is not None and self.player.running:
            self.player.stop()
        self.player = self.guest.spawn("exec /root/player hw:Loopback,0,0 48000 4")

    def answer(self) -> dict[str, Any]:
        """What the daemon tells of all its streams."""
        return dict(json.loads(self.guest.run(ASK_STATUS, timeout_s=60).out))

    def status(self) -> dict[str, Any]:
        stream: dict[str, Any] = self.answer()["streams"][0]
        return stream

    def show(self, *properties: str) -> dict[str, str]:
        """Properties of the unit as systemd has them."""
        names = ",".join(properties)
        shown = self.guest.run(f"systemctl show capstand -p {names}").out
        return dict(line.split("=", 1) for line in shown.splitlines())

    def ledger(self) -> list[dict[str, Any]]:
        """The events; a line that a power cut tore would be an error here."""
        text = self.guest.read_file(LEDGER).decode()
        return [json.loads(line) for line in text.splitlines()]

    def files(self, kind: str = "*") -> list[str]:
        listed = self.guest.run(f"cd {RECORDINGS} && ls -1 -- {kind} 2>/dev/null", check=False).out
        return sorted(listed.split())

    def fetch(self, name: str, folder: str = RECORDINGS) -> Recorded:
        """A segment, whole or still `.part`, brought here and decoded."""
        self.guest.run(f"cp {folder}/{name} /mnt/host/")
        path = self.guest.share / name
        samples, _ = soundfile.read(path, dtype="int16", always_2d=True)
        path.unlink()
        halves = samples.astype(np.int64) & 0xFFFF
        return Recorded(name, halves[:, 0] | halves[:, 1] << 16)

    def uptime(self) -> float:
        return float(self.guest.run("cut -d' ' -f1 /proc/uptime").out)

    def wait_for_frames(self, more: int, timeout_s: float = 120) -> dict[str, Any]:
        """Until so many more frames were captured; asks seldom, because asking is work as well."""
        began = self.status()["captured_frames"]
        deadline = time.monotonic() + timeout_s
        missing = more
        while missing > 0:
            time.sleep(max(0.2, missing / 48000))
            status = self.status()
            missing = began + more - status["captured_frames"]
            assert time.monotonic() < deadline, status
        return status

    def journal(self, since: str = "") -> list[dict[str, Any]]:
        after = f"--after-cursor='{since}'" if since else ""
        lines = self.guest.run(f"journalctl -u capstand -o json --no-pager {after}").out
        return [json.loads(line) for line in lines.splitlines()]


class Far:
    """A second sink, whose directory is away: its sound waits in the spool, across whatever
    happens to the machine, until ``comes_back``."""

    FOLDER = "/mnt/far"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.guest.run(f"rm -rf {self.FOLDER} /var/lib/capstand/spool; echo > {self.FOLDER}")

    def configuration(self) -> str:
        return CONFIGURATION.format(buffer_ms=500) + SPOOLED.format(path=self.FOLDER)

    def comes_back(self) -> str:
        """The directory is back: what waited is delivered, run by run, each frame once, in order,
        and to about the last second before each crash. The service is stopped. The figures."""
        guest = self.machine.guest
        guest.run(f"rm {self.FOLDER} && mkdir -m 777 {self.FOLDER}")
        guest.wait_until("capstand status --json | grep -q '\"spooled_frames\": 0'", timeout_s=300)
        guest.run("systemctl stop capstand")
        ours = self.machine.files()
        theirs = guest.run(f"ls -1 {self.FOLDER}").out.split()
        assert len(theirs) == len(ours)
        less_s = []
        for name, other in zip(ours, sorted(theirs), strict=True):
            well = self.machine.fetch(name)
            spooled = self.machine.fetch(other, self.FOLDER)
            assert spooled.origin() == well.origin()
            less_s.append((len(well.counter) - len(spooled.counter)) / 48000)
        assert max(less_s) < 1.5, less_s
        guest.run(f"rm -r {self.FOLDER}")
        worst_s = max(0.0, *less_s)
        return f"spool: {len(ours)} runs whole, each frame once, {worst_s:.2f} s less at worst"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes capstand off the machine comes last, whatever its file is called."""
    items.sort(key=lambda item: item.name.startswith("test_uninstall"))


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("guest")
    with Guest(folder) as guest:
        guest.start(folder / "share")
        guest.push_source()
        began = time.monotonic()
        guest.run("/root/capstand/scripts/install", timeout_s=400)
        install_s = time.monotonic() - began
        figure("(the emulated machine)", f"boot {guest.boot_s:.0f} s, install {install_s:.0f} s")
        machine = Machine(guest)
        player = guest.compile("player", "asound")
        guest.compile("freeze")
        machine.player = guest.spawn(f"exec {player} hw:Loopback,0,0 48000 4")
        yield machine
        ended = machine.player.stop()
        assert ended.rc in (0, 143), f"the player itself tore the signal: {ended.err}"


def first_frame_at(name: str) -> str:
    """The time in a segment's name, as `date` reads it."""
    found = re.fullmatch(
        r"mic-(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)([\d.]+)Z(-\d+)?\.wav(\.part)?", name
    )
    assert found, name
    year, month, day, hour, minute, second = found.groups()[:6]
    return f"{year}-{month}-{day}T{hour}:{minute}:{second}Z"
