"""A channel on a real kernel, under systemd: the real wrapper on the stand-in for Agora's library,
fed from snd-aloop, from joining to native calls that hang and crash.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from capstand.agora.tokens import token
from tests.agora import StandIn, build, missing, place
from tests.figures import figure

from .conftest import Machine

pytestmark = pytest.mark.guest

APP_ID = "0123456789abcdef0123456789abcdef"
CERTIFICATE = "fedcba9876543210fedcba9876543210"
OWN = "/var/lib/capstand/standin"
DROP_IN = "/etc/systemd/system/capstand.service.d"
UNIT = f"""\
[Service]
Environment=STANDIN_LOG={OWN}/log STANDIN_PCM={OWN}/pcm STANDIN_CONTROL={OWN}/fifo
LoadCredential=agora-token:/etc/capstand/agora.token
"""
CONFIGURATION = """
[[stream]]
name = "mic"
[stream.capture]
device = "hw:CARD=Loopback,DEV=1"
buffer_ms = 2000
[[stream.sink]]
type = "agora"
app_id = "{app_id}"
channel = "studio"
uid = 1001
token = {{source = "file", path = "agora-token"}}
send_buffer_ms = 5000
max_latency_ms = 60000
catch_up = "never"
rate_lock = {lock}
"""
RECORDING = """
[[stream.sink]]
type = "file"
path = "/var/lib/capstand/mic"
"""


class Channel:
    """The machine with Agora's wrapper installed, and what reached the stand-in."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine = machine
        self._folder = folder
        guest = machine.guest
        made = place(folder / "sdk", build(folder / "library"))
        shutil.copytree(made / "agora", guest.share / "agora")
        guest.run(
            "mkdir -p /opt/capstand/agora && cp -r /mnt/host/agora /opt/capstand/agora/ && "
            "gcc -shared -fPIC -pthread -O1 /root/capstand/tests/agora/standin.c "
            "-o /opt/capstand/agora/agora/agora_sdk/libagora_rtc_sdk.so && "
            "echo 'void f(void) {}' | gcc -shared -fPIC -x c - "
            "-o /opt/capstand/agora/agora/agora_sdk/libaosl.so",
            timeout_s=180,
        )
        secret = token.build(APP_ID, CERTIFICATE, "studio", 1001, 86_400, time.time())
        guest.write_file("/etc/capstand/agora.token", secret, 0o600)
        guest.run(f"mkdir -p {DROP_IN}")
        guest.write_file(f"{DROP_IN}/standin.conf", UNIT)
        guest.run("systemctl daemon-reload", timeout_s=120)

    def start(self, lock: str, more: str = "") -> None:
        """With the rate lock "true" or "false"; without it every sample is the card's."""
        guest = self.machine.guest
        self.machine.configure(text=CONFIGURATION.format(app_id=APP_ID, lock=lock) + more)
        guest.run(
            f"rm -rf {OWN}; mkdir -p {OWN}; mkfifo {OWN}/fifo; chown -R capstand: /var/lib/capstand"
        )
        self.machine.start()
        self.wait_joined()

    def wait_joined(self) -> None:
        """Not by the words of the status: a machine that cannot keep up has others, of what it
        misses."""
        deadline = time.monotonic() + 120
        while (sink := self.machine.status()["sinks"][0])["figures"].get("state") != "JOINED":
            assert time.monotonic() < deadline, sink
            time.sleep(0.2)

    def tell(self, command: str) -> None:
        self.machine.guest.run(f"echo '{command}' > {OWN}/fifo")

    def seen(self) -> StandIn:
        """What the stand-in wrote down so far."""
        guest = self.machine.guest
        guest.run(f"cp {OWN}/log {OWN}/pcm /mnt/host/")
        directory = self._folder / f"seen-{time.monotonic_ns()}"
        directory.mkdir()
        standin = StandIn(self._folder, directory)
        shutil.move(guest.share / "log", standin.log)
        shutil.move(guest.share / "pcm", standin.pcm)
        return standin

    def close(self) -> None:
        guest = self.machine.guest
        guest.run("systemctl stop capstand", check=False)
        guest.run(f"rm -rf {DROP_IN} {OWN} /opt/capstand/agora; systemctl daemon-reload")


@pytest.fixture(scope="module")
def channel(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Channel]:
    lacking = missing()
    if lacking is not None:
        pytest.skip(f"{lacking} is missing")
    one = Channel(machine, tmp_path_factory.mktemp("channel"))
    yield one
    one.close()


def test_a_card_is_heard_in_the_channel_frame_by_frame(channel: Channel) -> None:
    """From joining to `systemctl stop`, every frame the card gave reaches the SDK once and in
    order, in 10 ms pushes whose times go on with the sound; the channel is lost on the way and
    joined again; the books say what it missed; the token came as a credential of the unit."""
    machine = channel.machine
    channel.start("false")
    machine.wait_for_frames(10 * 48000)
    channel.tell("play lost:1")
    machine.guest.wait_until(f"test $(grep -c rtc_conn_connect {OWN}/log) = 2", timeout_s=60)
    channel.wait_joined()
    machine.wait_for_frames(5 * 48000)
    stopped = machine.guest.run("time -p systemctl stop capstand").err
    seen = channel.seen()
    books = machine.ledger()[-1]

    pushes = seen.pushes()
    assert {(pushe.rate_hz, pushe.channels, pushe.frames, pushe.ret) for pushe in pushes} == {
        (48000, 2, 480, 0)
    }
    halves = np.frombuffer(b"".join(pushe.data for pushe in pushes), "<u2").astype(np.int64)
    counter = halves[0::2] | halves[1::2] << 16
    missing_frames = np.diff(counter)[np.diff(counter) != 1] - 1
    assert len(missing_frames) == 1 and missing_frames[0] > 0, missing_frames
    stamps = np.array([pushe.pts_ms for pushe in pushes])
    steps = np.diff(stamps)
    away = int(np.argmax(steps))
    assert steps[away] == pytest.approx(10 + missing_frames[0] / 48, abs=2)
    assert set(np.delete(steps, away).tolist()) <= {9, 10, 11}

    (sink,) = books["sinks"]
    assert books["lost_frames"] == 0 and books["balanced"] is True
    assert sink["delivered_frames"] == len(counter) and sink["in_flight_frames"] == 0
    assert sink["dropped_frames"] == sink["captured_frames"] - len(counter)
    assert sink["since_frame"] > 0  # what was captured before it had joined was not meant for it
    (first, _) = seen.calls("agora_rtc_conn_connect")
    assert str(first.args["token"]).startswith("007")
    assert seen.violations() == []
    assert seen.names()[-2:] == ["agora_service_release", "agora_media_node_factory_destroy"]
    told = "\n".join(str(one.get("MESSAGE")) for one in machine.journal())
    assert str(first.args["token"])[5:40] not in told
    figure(
        "channel",
        f"{len(counter)} frames in {len(pushes)} pushes, each once; {missing_frames[0]} missed "
        f"while it was lost; stop took {stopped.split()[1]} s",
    )


def test_what_hangs_or_dies_in_the_library_costs_only_its_own_sink(channel: Channel) -> None:
    """A push that does not come back, and a process that dies, are each followed by a new process
    that is in the channel again; systemd restarts nothing, capture and recording lose no frame; and
    a channel whose library hangs does not hold up `systemctl stop`."""
    machine = channel.machine
    guest = machine.guest
    channel.start("true", RECORDING)
    main = machine.show("NRestarts", "MainPID")
    pids = [machine.status()["sinks"][0]["figures"]["pid"]]
    for harm, words in (
        ("set hang_push_ms 600000", "did not return from writing within 10 s"),
        ("", "was ended by SIGKILL"),
    ):
        began = time.monotonic()
        if harm:
            channel.tell(harm)
        else:
            guest.run(f"kill -KILL {pids[-1]}")
        guest.wait_until(
            f"journalctl -u capstand --no-pager | grep -q '{words}' && capstand status --json | "
            'python3 -c \'import json, sys; [stream] = json.load(sys.stdin)["streams"]; sys.exit('
            f'stream["sinks"][0]["figures"]["pid"] in (None, {pids[-1]}))\'',
            timeout_s=120,
        )
        channel.wait_joined()
        pids.append(machine.status()["sinks"][0]["figures"]["pid"])
        figure(words, f"in the channel again after {time.monotonic() - began:.0f} s")
    assert len(set(pids)) == 3
    assert machine.show("NRestarts", "MainPID") == main
    machine.wait_for_frames(5 * 48000)
    channel.tell("set hang_push_ms 600000")
    machine.wait_for_frames(48000)
    stopped = guest.run("time -p systemctl stop capstand").err
    figure("stop with a library that hangs", f"{stopped.split()[1]} s")
    assert machine.show("Result")["Result"] == "success"
    books = machine.ledger()[-1]
    assert books["event"] == "stop" and books["balanced"] is True and books["lost_frames"] == 0
    (away, recorded) = books["sinks"]
    assert away["dropped_frames"] > 0 and away["in_flight_frames"] == 0
    missed = [one for one in machine.ledger() if one.get("sink") == recorded["name"]]
    assert recorded["dropped_frames"] == 0, missed  # when, and why
    (name,) = machine.files()
    sound = machine.fetch(name)
    assert len(sound.counter) == recorded["delivered_frames"] == books["captured_frames"]
    assert sound.silent <= 1
    sound.origin()
