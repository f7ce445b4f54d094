"""A card that others want too: the holder is named, the card is handed over and taken back.

The books are shown on a real ALSA PCM of which every frame carries its number; the control socket
is a real one, and the peers are real processes of other users.
"""

from __future__ import annotations

import errno
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstand.accounting.ledger import Ledger
from capstand.accounting.stats import Cause, Health
from capstand.capture.alsa import AlsaSource
from capstand.cli.main import main
from capstand.config.schema import CaptureConfig
from capstand.devices.address import card_number, place_of
from capstand.devices.holder import holder_of
from capstand.errors import CapstandError, DeviceError
from capstand.host.control import PER_USER, ControlServer, ask
from capstand.host.peer import Peer
from capstand.sharing.device_release import DeviceRelease
from capstand.sinks.sink_queue import SinkQueue
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.intake import Intake
from tests.fakecard import FakeCard, counter
from tests.line import Keep, capture, config, give
from tests.patience import PATIENCE_S

ROOT = Peer(pid=1, uid=0, groups=frozenset())


def until(condition: Callable[[], bool]) -> None:
    """Waits for what threads will bring about."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


# Who has it


class Proc:
    """A /proc and what the kernel shows in it, of card 1, called Mic."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/asound/card1").mkdir(parents=True)
        (root / "proc/asound/Mic").symlink_to("card1")

    def status(self, *substreams: str) -> None:
        for number, text in enumerate(substreams):
            folder = self.root / f"proc/asound/card1/pcm0c/sub{number}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "status").write_text(text)

    def process(self, pid: int, command: str, cgroup: str = "", opened: str = "") -> None:
        folder = self.root / f"proc/{pid}"
        (folder / "fd").mkdir(parents=True)
        (folder / "comm").write_text(f"{command}\n")
        (folder / "status").write_text(f"Name:\t{command}\nTgid:\t{pid}\n")
        (folder / "cgroup").write_text(cgroup)
        if opened:
            (folder / "fd/7").symlink_to(opened)

    def holder(self) -> str | None:
        return holder_of("Mic", 0, self.root)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_the_holder_is_the_process_of_the_thread_that_opened_it(proc: Proc) -> None:
    """The kernel names a thread; what is told is its process, by name and number, whether the card
    is asked for by its number or its id."""
    proc.process(812, "arecord")
    thread = proc.root / "proc/815"
    thread.mkdir()
    (thread / "status").write_text("Name:\tarecord\nTgid:\t812\nPid:\t815\n")
    proc.status("state: RUNNING\nowner_pid   : 815\ntrigger_time: 1.2\n")
    assert proc.holder() == "arecord (pid 812)"
    assert holder_of("1", 0, proc.root) == "arecord (pid 812)"


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/rhasspy.service\n", "rhasspy.service"),
        (
            "0::/user.slice/user-1000.slice/user@1000.service/session.slice/pipewire.service\n",
            "user@1000.service/pipewire.service",
        ),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
        ("4:memory:/x.service\n1:name=systemd:/system.slice/jack.service\n", "jack.service"),
    ],
)
def test_the_holder_is_named_with_its_unit(proc: Proc, cgroup: str, unit: str) -> None:
    """The systemd unit is told, and for a user's own service both their manager and the service."""
    proc.process(812, "program", cgroup)
    proc.status("closed\n", "owner_pid   : 812\n")
    assert proc.holder() == f"program (pid 812, {unit})"


@pytest.mark.parametrize("status", [(), ("owner_pid   : 4000\n",)])
def test_where_the_kernel_says_nothing_the_descriptors_do(
    proc: Proc, status: tuple[str, ...]
) -> None:
    """Without an owner that can be seen, whoever has the device node open is the holder."""
    proc.status(*status)
    proc.process(811, "bash", opened="/dev/snd/pcmC1D0p")
    proc.process(812, "ffmpeg", opened="/dev/snd/pcmC1D0c")
    assert proc.holder() == "ffmpeg (pid 812)"


def test_a_closed_card_has_no_holder(proc: Proc) -> None:
    """Nobody is accused: not when the card is closed, its owner has just gone, or it is away."""
    proc.status("closed\n")
    proc.process(812, "ffmpeg", opened="/dev/snd/pcmC1D0c")
    assert proc.holder() is None
    proc.status("owner_pid   : 4194305\n")
    (proc.root / "proc/812/fd/7").unlink()
    assert proc.holder() is None
    assert holder_of("Other", 0, proc.root) is None
    assert card_number("Mic", proc.root) == 1 and card_number("2", proc.root) is None


@pytest.mark.parametrize(
    ("device", "place"),
    [
        ("hw:0", ("0", 0)),
        ("hw:CARD=Mic,DEV=2", ("Mic", 2)),
        ("plughw:Mic,1,0", ("Mic", 1)),
        ("dsnoop:CARD=Mic", ("Mic", 0)),
        ("default", None),
        ("synthetic", None),
    ],
)
def test_the_card_of_a_device(device: str, place: tuple[str, int] | None) -> None:
    """Card and device number are taken from any name of ALSA's own that speaks of a card."""
    assert place_of(device) == place


@pytest.mark.parametrize(
    ("holder", "advice"),
    [
        ("arecord (pid 812)", "stop it, or share the card through dsnoop"),
        (
            "pipewire (pid 812, user@1000.service/pipewire.service)",
            "run capstand as that user, so that it can reserve the card",
        ),
    ],
)
def test_busy_is_one_line_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, holder: str, advice: str
) -> None:
    """The line of STATUS and journal names the device, its holder, the wait and the way out."""
    monkeypatch.setattr("capstand.devices.holder.holder_of", lambda card, device: holder)
    source = AlsaSource(CaptureConfig(device="hw:CARD=Mic"))
    failure = source._failure(OSError(errno.EBUSY, "busy"), "cannot be opened")
    assert str(failure) == (f"hw:CARD=Mic is in use by {holder}; waiting for it; {advice}")
    assert failure.errno == errno.EBUSY and not failure.refused


@pytest.mark.parametrize(
    ("device", "number"),
    [
        ("hw:CARD=Away", errno.ENODEV),
        ("hw:9,0", errno.ENODEV),
        ("hw:CARD=Mic,DEV=7", errno.ENOENT),
        ("hw:3,1", errno.EBUSY),
    ],
)
def test_what_the_kernel_refuses_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, number: int
) -> None:
    """A card that is away or busy, for months if it must be, is asked for at its node: each opening
    through pyalsaaudio that fails keeps some memory."""
    asound, node = tmp_path / "proc/asound", tmp_path / "dev/snd/pcmC3D1c"
    (asound / "card3").mkdir(parents=True)
    (asound / "Mic").symlink_to("card3")
    really = os.open

    def busy(path: Any, *arguments: Any, **keys: Any) -> int:
        if path == node:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return really(path, *arguments, **keys)

    def never(**_: object) -> None:
        raise AssertionError("an opening that must fail")

    monkeypatch.setattr(os, "open", busy)
    monkeypatch.setattr("alsaaudio.PCM", never)
    with pytest.raises(DeviceError) as failure:
        AlsaSource(CaptureConfig(device=device), root=tmp_path).open()
    assert failure.value.errno == number and not failure.value.refused


# Handing over


class Held:
    """A stream on a fake card with its threads running, and a daemon's main thread around it."""

    def __init__(self, card: FakeCard, folder: Path) -> None:
        setup = CaptureConfig(
            device=card.device, format="S32_LE", channels=1, rt_priority=0, buffer_ms=2000
        )
        self.card = card
        self.sink = Keep()
        self.stream = Intake(
            config(setup, [FileSinkConfig(type="file", path=str(folder / "unused"))])
        )
        give(self.stream, SinkQueue("keep", self.sink, 1 << 30))
        self.ledger = Ledger(folder / "ledger")
        self.lending = DeviceRelease(lambda: [self.stream], self.ledger)
        self.path = folder / "run/control.sock"
        self._selector = selectors.DefaultSelector()
        self._server = ControlServer(
            self.path,
            self._selector,
            {"status": lambda: {"health": self.health}},
            {"release": self.lending.release, "resume": self.lending.resume},
        )
        self._stopping = False
        self.trouble: BaseException | None = None
        self._main = threading.Thread(target=self._run, daemon=True)
        self._server.start()
        self.stream.start()
        self._main.start()

    def _run(self) -> None:
        try:
            while not self._stopping:
                for key, _ in self._selector.select(0.01):
                    key.data()
                self.lending.poll(time.monotonic_ns())
                self._server.expire()
        except BaseException as error:
            self.trouble = error
            raise

    @property
    def health(self) -> str:
        return self.stream.overview.assessment(time.monotonic_ns()).health.value

    @property
    def captured(self) -> int:
        return self.stream.capturer.tally.captured

    def flows(self) -> None:
        """Waits for sound that was captured after this call."""
        before = self.captured
        until(lambda: self.captured > before + 960)

    def order(self, question: str, **what: Any) -> dict[str, Any]:
        return ask(self.path, question, PATIENCE_S, **what)

    def events(self) -> list[dict[str, Any]]:
        self.ledger.close(PATIENCE_S)
        lines = self.ledger.path("mic").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self._stopping = True
        self._main.join()
        self._server.close()
        deadline = time.monotonic() + PATIENCE_S
        assert self.stream.drain(deadline) + self.stream.close(deadline) == []


@pytest.fixture
def held(fakecard: FakeCard, tmp_path: Path) -> Iterator[Held]:
    one = Held(fakecard, tmp_path)
    one.flows()
    yield one
    one.close()
    assert one.trouble is None


def test_released_and_taken_back_with_exact_books(held: Held) -> None:
    """`release` is answered when the device is closed; the stream says so and waits, well; after
    `resume` sound goes on, and what was missed is one gap with its own cause, as long as the card
    says, to the millisecond."""
    answer = held.order("release", stream="mic")
    assert held.stream.capturer.params is None
    assert answer == {"stream": "mic", "released": "until `capstand resume mic`"}
    verdict = held.stream.overview.assessment(time.monotonic_ns())
    assert verdict == (Health.DEGRADED, "released until `capstand resume mic`", True)
    opens, captured = held.card.opens, held.captured
    time.sleep(0.3)
    assert (held.card.opens, held.captured) == (opens, captured)

    assert held.order("resume", stream="mic") == {"stream": "mic", "was_released": True}
    held.flows()
    held.stream.drain(time.monotonic() + PATIENCE_S)
    held.stream.close(time.monotonic() + PATIENCE_S)
    (gap,) = held.stream.capturer.tally.gaps.since(0)
    assert gap.cause is Cause.RELEASED and not gap.exact
    numbers = np.concatenate(
        [counter(bytes(block.samples), "S32_LE", 1) for block in held.sink.blocks]
    )
    (jump,) = [int(one) for one in np.diff(numbers) if one != 1]
    assert abs(gap.frames - (jump - 1)) <= 480, "the gap is what the card went on meanwhile"
    stats = held.stream.stats(time.monotonic_ns())
    assert stats.balanced and stats.lost_estimated_frames == gap.frames
    assert stats.sinks[0].delivered_frames == len(numbers) == stats.captured_frames
    release, resume = held.events()
    assert (release["event"], release["by_uid"], release["by_pid"]) == (
        "release",
        os.geteuid(),
        os.getpid(),
    )
    assert (resume["event"], resume["by_pid"]) == ("resume", os.getpid())


def test_released_for_a_time(held: Held) -> None:
    """With a time it comes back by itself, and the books say why."""
    answer = held.order("release", stream="mic", for_s=0.2)
    assert re.fullmatch(r"until \d\d:\d\d:\d\d", answer["released"])
    held.flows()
    release, resume = held.events()
    assert release["until"] is not None
    assert resume["reason"] == "time elapsed"
    away_ns = resume["monotonic_ns"] - release["monotonic_ns"]
    assert away_ns > 0.19e9  # the order is written down a moment after it was taken


def test_both_orders_may_be_repeated(held: Held) -> None:
    """The last release counts, and resuming what is not released changes nothing."""
    assert held.order("resume", stream="mic")["was_released"] is False
    held.order("release", stream="mic", for_s=0.2)
    held.order("release", stream="mic")
    time.sleep(0.3)
    assert held.stream.capturer.resting.is_set()
    held.order("release", stream="mic", for_s=3600)
    assert held.order("resume", stream="mic")["was_released"] is True
    held.flows()
    assert [event["event"] for event in held.events()].count("resume") == 1


def test_a_card_that_another_has_is_handed_over_and_waited_for(held: Held) -> None:
    """A released card that the other keeps is waited for after `resume`, and taken when it is free;
    it is one gap all the same."""
    held.order("release", stream="mic")
    held.card.open_error(errno.EBUSY)
    held.order("resume", stream="mic")
    until(lambda: held.stream.capturer.trouble is not None)
    assert held.health == Health.DEGRADED
    held.card.open_error(0)
    held.flows()
    assert [one.cause for one in held.stream.capturer.tally.gaps.since(0)] == [Cause.RELEASED]
    assert held.stream.stats(time.monotonic_ns()).balanced


def test_a_card_that_refuses_is_released_at_once(held: Held) -> None:
    """Also while the next attempt is seconds away, `release` need not wait for it."""
    held.card.restrict(channels=(2, 2))
    held.order("release", stream="mic")
    held.order("resume", stream="mic")
    until(lambda: bool(held.stream.capturer.trouble and held.stream.capturer.trouble.refused))
    began = held.card.refusals
    held.order("release", stream="mic")
    assert held.stream.capturer.resting.is_set() and held.card.refusals == began


def test_eight_at_once(held: Held) -> None:
    """So many people who release and resume over each other all get an answer, and when all have
    resumed there is sound and the books balance."""
    answers: list[dict[str, Any]] = []

    def person(number: int) -> None:
        for _ in range(3):
            try:
                answers.append(held.order("release", stream="mic", for_s=60 + number))
            except CapstandError as error:
                assert str(error) == "mic was resumed before its device was closed"
                answers.append({"stream": "mic"})
            answers.append(held.order("resume", stream="mic"))

    people = [threading.Thread(target=person, args=(one,)) for one in range(PER_USER)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    assert len(answers) == PER_USER * 6 and all(answer["stream"] == "mic" for answer in answers)
    held.flows()
    stats = held.stream.stats(time.monotonic_ns())
    assert stats.balanced and stats.released is None


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ({}, "None is not a stream of this daemon; it has mic"),
        ({"stream": "mik"}, "'mik' is not a stream of this daemon; it has mic"),
        ({"stream": ["mic"]}, "['mic'] is not a stream of this daemon; it has mic"),
        ({"stream": "x" * 900}, f"'{'x' * 39}… is not a stream of this daemon; it has mic"),
        *(
            (
                {"stream": "mic", "for_s": wrong},
                f"{wrong!r}: expected the seconds to release mic for, above 0 and at most 31622400",
            )
            for wrong in (0, -1, 1e9, "60", True, float("inf"), [60])
        ),
    ],
)
def test_an_order_that_cannot_be_meant_is_refused(
    held: Held, what: dict[str, Any], expected: str
) -> None:
    """The answer says what was found and what there is; nothing changes."""
    with pytest.raises(CapstandError) as refused:
        held.order("release", **what)
    assert str(refused.value) == expected
    assert held.stream.capturer.released is None
    assert held.order("status") == {"health": "OK"}


WORDS = st.sampled_from(["ask", "release", "resume", "status", "stream", "mic", "for_s"])
JSON = st.recursive(
    WORDS | st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
HOSTILE = st.one_of(
    st.binary(max_size=2500),
    st.text(max_size=200).map(lambda text: text.encode(errors="replace") + b"\n"),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(WORDS, JSON, max_size=4)
    .filter(lambda one: one.get("stream") != "mic")
    .map(lambda value: json.dumps(value).encode() + b"\n"),
    st.just(b'{"ask": "release", "stream": "mic"'),
    st.just(b'{"ask": "release", "stream": "mic", "for_s": NaN}\n'),
    st.just(b'{"ask": "release", "stream": "mic", "for_s": 1' + b"0" * 600 + b"}\n"),
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.filter_too_much,
    ],
)
@given(raw=HOSTILE, hang_up=st.booleans())
def test_whatever_comes_in_the_stream_goes_on(held: Held, raw: bytes, hang_up: bool) -> None:
    """Random bytes, huge lines, half lines and wrong types release nothing and end nothing."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        client.connect(str(held.path))
        try:
            client.sendall(raw)
            if not hang_up:
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
        except OSError:
            pass  # cut off, as is right
    assert held.trouble is None
    assert held.stream.capturer.released is None
    assert "health" in held.order("status")


ASK = """
import os, sys
from capstand.host.control import ask
from capstand.errors import CapstandError
from pathlib import Path
os.setgroups([int(one) for one in sys.argv[4].split(",") if one])
os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[3]))
try:
    print(ask(Path(sys.argv[1]), sys.argv[2], 10.0, stream="mic"))
except CapstandError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to become other users")
def test_who_may(held: Held) -> None:
    """Another user may ask, not order; as a member of the group audio they may do both."""
    import grp

    top = Path(tempfile.gettempdir())
    for folder in held.path.parents:
        if folder != top and folder.is_relative_to(top):
            folder.chmod(0o755)

    def run(question: str, groups: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", ASK, str(held.path), question, "4321", groups],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    assert run("status", "") == (0, "{'health': 'OK'}")
    for question in ("release", "resume"):
        assert run(question, "") == (
            1,
            f"uid 4321 may not {question} a stream; only root, capstand's own user and members of "
            "the groups audio and capstand; try sudo",
        )
    assert held.stream.capturer.released is None
    audio = str(grp.getgrnam("audio").gr_gid)
    status, said = run("release", audio)
    assert status == 0, said
    assert held.stream.capturer.released is not None
    status, said = run("resume", f"4322,{audio}")
    assert status == 0, said
    held.flows()


def test_an_order_that_is_overtaken_is_told(tmp_path: Path) -> None:
    """Who released hears so when another resumes before the device was closed; and a stream that
    is configured away is forgotten, so that one of its name begins as its own."""
    streams = [Intake(config(capture()))]
    lending = DeviceRelease(lambda: streams, Ledger(tmp_path))
    closed = lending.release({"stream": "mic"}, ROOT)
    assert closed() is None
    assert lending.resume({"stream": "mic"}, ROOT)["was_released"] is True
    assert closed() == {"error": "mic was resumed before its device was closed"}
    lending.release({"stream": "mic", "for_s": 1}, ROOT)
    streams[0] = Intake(config(capture()))
    lending.poll(time.monotonic_ns() + 10**12)
    assert lending.resume({"stream": "mic"}, ROOT)["was_released"] is False


def test_on_the_command_line(held: Held, capsys: pytest.CaptureFixture[str]) -> None:
    """`release` and `resume` say what is the case now; an error is one line and exit status 1."""
    where = ["--runtime", str(held.path.parent)]
    assert main(["release", "mic", *where]) == 0
    assert main(["release", "mic", "--for", "3600", *where]) == 0
    assert main(["resume", "mic", *where]) == 0
    assert main(["resume", "mic", *where]) == 0
    assert main(["release", "other", *where]) == 1
    said, complained = capsys.readouterr()
    lines = said.splitlines()
    assert lines[0] == "mic: released until `capstand resume mic`"
    assert re.fullmatch(r"mic: released until \d\d:\d\d:\d\d", lines[1])
    assert lines[2:] == ["mic: reopening the device", "mic: not released"]
    assert complained == "capstand: 'other' is not a stream of this daemon; it has mic\n"


def test_a_device_that_does_not_close_is_told(tmp_path: Path) -> None:
    """An order that is not done in time is answered all the same, and the server goes on."""
    selector = selectors.DefaultSelector()
    server = ControlServer(
        tmp_path / "s", selector, {"status": dict}, {"release": lambda what, who: lambda: None}
    )
    server.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        client.sendall(b'{"ask": "release"}\n')
        while selector.get_map() and not server._waiting:
            for key, _ in selector.select(1):
                key.data()
        server.expire()
        ((waiting, (ready, _)),) = server._waiting.items()
        server._waiting[waiting] = (ready, time.monotonic() - 1)
        server.expire()
        assert json.loads(client.recv(1000)) == {
            "error": "not done after 5 s; see `capstand status`"
        }
    server.close()
    selector.close()


def test_busy_is_waited_for_without_an_end(fakecard: FakeCard, tmp_path: Path) -> None:
    """A card that is busy from the start is a declared wait; the thread lives on, asks again and
    again, and has it when it is free."""
    fakecard.open_error(errno.EBUSY)
    one = Held(fakecard, tmp_path)
    until(lambda: fakecard.refusals >= 2)
    assert one.health == Health.DEGRADED
    assert isinstance(one.stream.capturer.trouble, DeviceError)
    fakecard.open_error(0)
    one.flows()
    assert one.health == Health.OK
    one.close()
