"""A process per stream, on a real kernel and under systemd: what befalls one is not the others'.

Stream "mic" has the machine's card, "other" a plug-in of ALSA that can be told to hang or to abort
whoever opens it (``tests/fakecard``); both bring a frame counter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.counts import counts
from tests.figures import figure, spread

from .conftest import CONFIGURATION, PYTHON, Machine, Recorded

pytestmark = pytest.mark.guest

SEED = 20261126
OTHER = """
[[stream]]
name = "other"
[stream.capture]
device = "fake"
rate_hz = 48000
channels = 2
format = "S16_LE"
buffer_ms = 500
rt_priority = 70
dc_warn_dbfs = 0
[[stream.sink]]
type = "file"
path = "/var/lib/capstand/other"
"""
LIBRARY = "/usr/local/lib/libasound_module_pcm_fakecap.so"
ASOUND = f"""
pcm_type.fakecap {{ lib "{LIBRARY}" }}
pcm.fake {{ type fakecap ctl "/var/lib/capstand/fake.ctl" }}
"""
FOLDER = "/var/lib/capstand/other"
BOOKS = "/var/lib/capstand/ledger/other.jsonl"


class Two:
    """Both streams."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        source = "/root/capstand/tests/fakecard/fakecap.c"
        machine.guest.run(
            f"gcc -O1 -shared -fPIC -DPIC -o {LIBRARY} {source} -lasound -lm", timeout_s=120
        )
        machine.guest.write_file("/etc/asound.conf", ASOUND)
        machine.configure(text=CONFIGURATION.format(buffer_ms=2000) + OTHER)
        machine.guest.run(
            f"install -d -o capstand -g capstand /var/lib/capstand; rm -rf {FOLDER} {BOOKS};"
            " truncate -s 4096 /var/lib/capstand/fake.ctl;"
            " chown capstand: /var/lib/capstand/fake.ctl"
        )
        machine.start()
        machine.wait_for_frames(2 * 48_000)

    def harm(self, *words: object, timeout_s: float = 600) -> object:
        told = " ".join(map(str, words))
        command = f"PYTHONPATH=/root/capstand {PYTHON} /root/capstand/tests/guest/harm.py {told}"
        return json.loads(self.machine.guest.run(command, timeout_s=timeout_s).out)

    def end(self) -> tuple[list[dict[str, object]], list[Recorded]]:
        """The ledger of the other and its recordings; the healthy one is whole."""
        self.machine.guest.run("systemctl stop capstand", timeout_s=120)
        mic = self.machine.ledger()
        (recorded,) = [self.machine.fetch(name) for name in self.machine.files()]
        recorded.origin()
        assert mic[-1]["lost_frames"] == recorded.silent == 0
        assert [one["event"] for one in mic].count("start") == 1
        text = self.machine.guest.read_file(BOOKS).decode()
        names = self.machine.guest.run(f"ls -1 {FOLDER}").out.split()
        assert not [name for name in names if name.endswith(".part")]
        return (
            [json.loads(line) for line in text.splitlines()],
            [self.machine.fetch(name, FOLDER) for name in sorted(names)],
        )


@pytest.fixture
def two(machine: Machine) -> Iterator[Two]:
    yield Two(machine)
    machine.guest.run("systemctl stop capstand; rm -f /etc/asound.conf", check=False)


def test_an_open_that_hangs_or_aborts_costs_its_own_stream_alone(two: Two) -> None:
    """While a library hangs in an open, and then ends the process in each, the other stream loses
    no frame; sound is back as soon as the card is well, though the open never returns."""
    hung_s = counts(20, 60)
    back_s = [two.harm("fault", 1, hung_s), two.harm("fault", 2, hung_s // 2)]
    ledger, _ = two.end()
    restarts = two.machine.show("NRestarts")["NRestarts"]

    assert restarts == "0"
    assert all(isinstance(one, float) and one < 6 for one in back_s), back_s
    assert ledger[-1]["balanced"] is True and all(one.get("balanced", True) for one in ledger)
    figure(
        f"an open that hangs {hung_s} s, then aborts {hung_s // 2} s",
        f"0 frames lost beside it; its sound back {back_s[0]} and {back_s[1]} s after it was well",
    )


def test_a_killed_process_of_a_stream_is_no_end(two: Two) -> None:
    """Killed at random moments, again and again: the other stream loses nothing, the frame index
    goes on, each gap is exact or says that it is estimated, and sound is back soon."""
    times = counts(6, 30)
    back_s = two.harm("kill", times, SEED, timeout_s=900)
    ledger, recordings = two.end()
    gaps = [one for one in ledger if one["event"] == "gap"]
    ends = [int(str(gap["first_frame"])) + int(str(gap["frames"])) for gap in gaps]
    begins = [int(str(gap["first_frame"])) for gap in gaps]

    assert isinstance(back_s, list) and len(back_s) == times
    assert ledger[-1]["balanced"] is True
    assert len(gaps) >= times and all(gap["exact"] in (True, False) for gap in gaps)
    assert all(end <= begin for end, begin in zip(ends, begins[1:], strict=False))
    for recording in recordings:
        recording.origin()
    first, last = recordings[0].counter, recordings[-1].counter
    true = int(last[last > 0][-1] - first[first > 0][0]) + 1
    off = int(str(ledger[-1]["produced_frames"])) - true - int((first > 0).argmax())
    assert abs(off) < 480 * times
    figure(
        f"a stream's process killed {times} times",
        f"0 frames lost beside it; sound back after {spread(back_s)}; the frame index {off:+d} "
        "frames off at the end",
    )
