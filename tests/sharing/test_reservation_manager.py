"""Sharing a card by org.freedesktop.ReserveDevice1: a real bus, a real second client, a real PCM.

The second client plays PipeWire or JACK by the rules of the protocol's reference implementation;
the bus is a dbus-daemon of the test's own. What ALSA finds as hw:CARD=Mic is the fake card.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney.low_level import HeaderFields, MessageFlag
from jeepney.wrappers import DBusAddress, new_method_call, new_signal

from capstand.accounting.ledger import Ledger
from capstand.accounting.stats import Cause, Health
from capstand.capture.release import OPERATOR
from capstand.config.schema import CaptureConfig
from capstand.sharing import bus as bus_module
from capstand.sharing import card_reservation, reservation_manager
from capstand.sharing.bus import Bus, BusError, Incoming, Refusal
from capstand.sharing.card_reservation import HIGHEST, INTERFACE, CardReservation
from capstand.sharing.reservation_manager import ReservationManager, session_address
from capstand.sinks.sink_queue import SinkQueue
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.intake import Intake
from tests.counts import counts
from tests.fakecard import FakeCard
from tests.line import Keep, config, give
from tests.patience import PATIENCE_S

NAME, PATH = f"{INTERFACE}.Audio7", "/org/freedesktop/ReserveDevice1/Audio7"
PIPEWIRE, JACK = -20, HIGHEST
REPLACE = card_reservation.REPLACE_EXISTING


def until(condition: Callable[[], bool]) -> None:
    """Waits for what threads and processes will bring about."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


class SessionBus:
    """A dbus-daemon of our own."""

    def __init__(self) -> None:
        self._daemon = subprocess.Popen(
            ["dbus-daemon", "--session", "--nofork", "--print-address"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._daemon.stdout is not None
        self.address = self._daemon.stdout.readline().strip()

    def close(self) -> None:
        if self._daemon.poll() is None:
            self._daemon.terminate()
            self._daemon.communicate()


@pytest.fixture
def session() -> Iterator[SessionBus]:
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is missing")
    one = SessionBus()
    yield one
    one.close()


class Desktop:
    """Another program that shares cards: it takes the name as the protocol says, answers in a
    thread of its own, and takes the card again whenever it is free, as WirePlumber does."""

    def __init__(self, address: str, priority: int, yields: bool = True, again: bool = True):
        self.priority = priority
        self.yields = yields
        self.again = again
        self.owned = False
        self.asked: list[int] = []
        self.bus = Bus(address)
        rule = f"type='signal',member='NameOwnerChanged',arg0='{NAME}'"
        self.bus.ask("AddMatch", "s", rule)
        self._stopping = self._leaving = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def acquire(self) -> bool:
        flags = card_reservation.DO_NOT_QUEUE
        flags |= card_reservation.ALLOW_REPLACEMENT if self.priority < HIGHEST else 0
        if not self._request(flags) and self.ask_for_it():
            self._request(flags | REPLACE)
        return self.owned

    def _request(self, flags: int) -> bool:
        self.owned = self.bus.ask("RequestName", "su", NAME, flags)[0] in (1, 4)
        return self.owned

    def ask_for_it(self) -> bool:
        try:
            return bool(
                self.bus.call(NAME, PATH, INTERFACE, "RequestRelease", "i", self.priority)[0]
            )
        except Refusal:
            return False

    def take_by_force(self) -> None:
        self._request(card_reservation.DO_NOT_QUEUE | REPLACE)

    def release(self) -> None:
        self.again = False
        if self._thread.is_alive():
            self._leaving = True
            return
        self.owned = self._leaving = False
        self.bus.ask("ReleaseName", "s", NAME)

    def run(self) -> Desktop:
        self._thread.start()
        return self

    def _run(self) -> None:
        with contextlib.suppress(BusError):  # the bus has gone
            self._serve()

    def _serve(self) -> None:
        while not self._stopping:
            for one in self.bus.incoming():
                if one.is_call and one.member == "RequestRelease":
                    self.asked.append(one.body[0])
                    says_yes = self.owned and self.yields and one.body[0] >= self.priority
                    if says_yes:
                        self.owned = False
                        self.bus.ask("ReleaseName", "s", NAME)
                    self.bus.answer(one, "b", says_yes)
                elif one.member == "NameOwnerChanged":
                    self.owned = one.body[2] == self.bus.unique_name
                    if one.body[2] == "" and self.again:
                        self.acquire()
            if self._leaving:
                self.owned = self._leaving = False
                self.bus.ask("ReleaseName", "s", NAME)
            if not self.bus.pending:
                select.select([self.bus], [], [], 0.01)

    def close(self) -> None:
        self._stopping = True
        if self._thread.is_alive():
            self._thread.join()
        self.bus.close()


class Mic:
    """A stream on the fake card, which is card 7 and called Mic, and its reserver."""

    def __init__(
        self, folder: Path, address: Callable[[], str | None], streams: int = 1, **keys: Any
    ) -> None:
        self.proc = folder / "proc/asound"
        self.plug(7)
        self.ledger = Ledger(folder / "ledger")
        self.streams: list[Intake] = []
        for number in range(streams):
            device = f"hw:CARD=Mic,DEV={number}"
            keys = {"channels": 1, "rt_priority": 0, "buffer_ms": 5000.0} | keys
            setup = CaptureConfig(device, **keys)
            stream = Intake(
                config(setup, [FileSinkConfig(type="file", path=str(folder / "unused"))])
            )
            give(stream, SinkQueue("keep", Keep(), 1 << 30))
            self.streams.append(stream)
        self.stream = self.streams[0]
        self.reserver = ReservationManager(lambda: self.streams, self.ledger, address, folder)

    def plug(self, number: int) -> None:
        shutil.rmtree(self.proc, ignore_errors=True)
        (self.proc / f"card{number}").mkdir(parents=True)
        (self.proc / "Mic").symlink_to(f"card{number}")

    def start(self) -> Mic:
        self.reserver.start()
        for stream in self.streams:
            stream.start()
        return self

    @property
    def released(self) -> str:
        return self.stream.capturer.released or ""

    def flows(self) -> None:
        """Waits for sound that was captured after this call."""
        before = self.stream.capturer.tally.captured
        until(lambda: self.stream.capturer.tally.captured > before + 960)

    def events(self) -> list[dict[str, Any]]:
        self.ledger.close(PATIENCE_S)
        path = self.ledger.path("mic")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def close(self) -> None:
        self.reserver.stop()
        for stream in self.streams:
            deadline = time.monotonic() + PATIENCE_S
            assert stream.drain(deadline) + stream.close(deadline) == []


Made = Callable[..., Mic]


@pytest.fixture
def mic(fakecard: FakeCard, fakecard_plugin: Path, tmp_path: Path) -> Iterator[Made]:
    """Makes a Mic; as ALSA is configured, hw: device 0 is the fake card and device 1 another."""
    FakeCard(tmp_path, "fake1", fakecard_plugin)
    (tmp_path / "fake0.ctl").symlink_to(tmp_path / f"{fakecard.device}.ctl")
    rc = Path(fakecard.env["ALSA_CONFIG_PATH"])
    arguments = "".join(f'@args.{one} {{ type string default "0" }} ' for one in ("CARD", "DEV"))
    with rc.open("a") as file:
        file.write(
            f"pcm.!hw {{ @args [ CARD DEV ] {arguments}"
            f'type fakecap ctl {{ @func concat strings [ "{tmp_path}/fake" $DEV ".ctl" ] }} }}\n'
        )
    made: list[Mic] = []

    def make(address: str | Callable[[], str | None] | None, **keys: Any) -> Mic:
        found = address if callable(address) else lambda: address
        made.append(Mic(tmp_path, found, **keys))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def desktop(session: SessionBus) -> Iterator[Callable[..., Desktop]]:
    made: list[Desktop] = []

    def make(*what: Any, **keys: Any) -> Desktop:
        made.append(Desktop(session.address, *what, **keys))
        return made[-1]

    yield make
    for one in made:
        one.close()


MakeDesktop = Callable[..., Desktop]


def test_the_card_is_reserved_and_says_by_whom(
    mic: Made, session: SessionBus, desktop: MakeDesktop
) -> None:
    """While sound flows the name is ours, and others can read priority, program and device."""
    one = mic(session.address).start()
    one.flows()
    other = desktop(PIPEWIRE)
    (pid,) = other.bus.ask("GetConnectionUnixProcessID", "s", NAME)
    assert pid == os.getpid()
    properties = (NAME, PATH, "org.freedesktop.DBus.Properties")
    (found,) = other.bus.call(*properties, "GetAll", "s", INTERFACE)
    assert found == {
        "Priority": ("i", 10),
        "ApplicationName": ("s", "capstand"),
        "ApplicationDeviceName": ("s", "hw:CARD=Mic,DEV=0"),
    }
    assert other.bus.call(*properties, "Get", "ss", INTERFACE, "Priority") == (("i", 10),)
    for member, signature, body in (("Get", "ss", (INTERFACE, "Colour")), ("Set", "s", ("x",))):
        with pytest.raises(Refusal, match=r"org\.freedesktop\.DBus\.Error\.Unknown"):
            other.bus.call(*properties, member, signature, *body)


def test_pipewire_lets_go_and_takes_the_card_back(
    mic: Made, session: SessionBus, desktop: MakeDesktop, fakecard: FakeCard
) -> None:
    """An owner of a lower priority is asked first, with ours, and gives the card before we open it;
    when the daemon ends, it has the card again."""
    pipewire = desktop(PIPEWIRE)
    assert pipewire.acquire()
    pipewire.run()
    one = mic(session.address)
    assert fakecard.opens == 0
    one.start()
    one.flows()
    assert pipewire.asked == [10]
    until(lambda: not pipewire.owned)
    one.reserver.stop()
    until(lambda: pipewire.owned)


def test_jack_gets_the_card_once_it_is_closed_and_gives_it_back(
    mic: Made, session: SessionBus, desktop: MakeDesktop
) -> None:
    """Who asks with a higher priority gets a yes when the card is closed. The stream waits, says
    for whom, and goes on as soon as the name is free: one gap of its own cause, and both moments
    are in the books."""
    one = mic(session.address).start()
    one.flows()
    jack = desktop(JACK, again=False)
    assert jack.ask_for_it()
    assert one.stream.capturer.params is None
    verdict = one.stream.overview.assessment(time.monotonic_ns())
    assert verdict.health is Health.DEGRADED and verdict.alive
    assert re.fullmatch(
        rf"card 7 is released to [\w.:]+ \(pid {os.getpid()}.*\), which requested it with "
        f"priority {JACK}",
        verdict.reason or "",
    )
    jack.take_by_force()
    assert jack.owned
    until(lambda: "is reserved by" in one.released)
    jack.release()
    one.flows()
    assert [gap.cause for gap in one.stream.capturer.tally.gaps.since(0)] == [Cause.RELEASED]
    assert one.stream.stats(time.monotonic_ns()).balanced
    release, resume = one.events()
    assert release["event"] == "release" and f"pid {os.getpid()}" in release["to"]
    assert (resume["event"], resume["reason"]) == ("resume", "card 7 is free again")


def test_who_waits_for_the_name_to_be_free_gets_it_too(
    mic: Made, session: SessionBus, desktop: MakeDesktop
) -> None:
    """PipeWire's tools ask and then wait for a free name instead of replacing its owner: after our
    yes nobody owns it."""
    one = mic(session.address).start()
    one.flows()
    other = desktop(100, again=False)
    assert other.ask_for_it()
    assert other.bus.ask("NameHasOwner", "s", NAME) == (False,)
    assert other.acquire()
    until(lambda: "is reserved by" in one.released)
    other.release()
    one.flows()


def test_a_stream_that_begins_later_waits_for_its_card_too(
    mic: Made, session: SessionBus, desktop: MakeDesktop, fakecard: FakeCard
) -> None:
    """A stream that a reload brings does not open a card that another has reserved."""
    owner = desktop(JACK)
    assert owner.acquire()
    owner.run()
    one = mic(session.address)
    fresh, one.streams = one.streams, []
    one.reserver.start()
    one.streams = fresh
    one.reserver.hold(fresh)
    one.stream.start()
    until(lambda: "is reserved by" in one.released)
    assert fakecard.opens == 0
    owner.release()
    one.flows()


def test_the_card_of_a_stream_that_has_ended_is_given_away(
    mic: Made, session: SessionBus, desktop: MakeDesktop
) -> None:
    """Its name is kept until the reload is over; who asks meanwhile need not wait to hear a no."""
    one = mic(session.address).start()
    one.flows()
    assert one.stream.drain(time.monotonic() + PATIENCE_S) == []
    assert desktop(JACK, again=False).ask_for_it()


@pytest.mark.parametrize("priority", [PIPEWIRE, 10])
def test_a_lower_or_equal_priority_gets_a_no(
    mic: Made, session: SessionBus, desktop: MakeDesktop, fakecard: FakeCard, priority: int
) -> None:
    """Who asks with no more than ours is refused, and capture goes on without a gap."""
    one = mic(session.address).start()
    one.flows()
    assert not desktop(priority).acquire()
    one.flows()
    assert fakecard.opens == 1 and one.stream.capturer.tally.gaps.count == 0


def test_our_priority_is_the_configured_one(
    mic: Made, session: SessionBus, desktop: MakeDesktop
) -> None:
    """With reserve_priority at the top nobody gets the card, not even by force."""
    one = mic(session.address, reserve_priority=HIGHEST).start()
    one.flows()
    jack = desktop(JACK)
    assert not jack.acquire()
    jack.take_by_force()
    assert not jack.owned
    one.flows()


def test_an_owner_who_keeps_the_card_is_waited_for(
    mic: Made, session: SessionBus, desktop: MakeDesktop, fakecard: FakeCard
) -> None:
    """A card that its owner does not give is left closed; STATUS says who has it; it is opened as
    soon as they drop the name."""
    owner = desktop(JACK)
    assert owner.acquire()
    owner.run()
    one = mic(session.address).start()
    until(lambda: "waiting for it" in one.released)
    assert re.fullmatch(
        rf"card 7 is reserved by [\w.:]+ \(pid {os.getpid()}.*\); waiting for it",
        one.released,
    )
    assert fakecard.opens == 0 and owner.asked == [10]
    owner.release()
    one.flows()


def test_an_owner_who_hangs_is_not_waited_for_long(
    mic: Made, session: SessionBus, desktop: MakeDesktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer is a no; what they do when they have come to is seen."""
    monkeypatch.setattr(bus_module, "CALL_S", 0.1)
    owner = desktop(PIPEWIRE, again=False)
    assert owner.acquire()
    one = mic(session.address).start()
    until(lambda: "waiting for it" in one.released)
    monkeypatch.setattr(bus_module, "CALL_S", 5.0)
    owner.run()
    one.flows()


def test_an_owner_who_says_no_is_asked_again(
    mic: Made, session: SessionBus, desktop: MakeDesktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A no need not be for ever; after a while they are asked anew."""
    monkeypatch.setattr(card_reservation, "ASK_AGAIN_S", 0.1)
    monkeypatch.setattr(reservation_manager, "LOOK_S", 0.05)
    owner = desktop(PIPEWIRE, yields=False, again=False)
    assert owner.acquire()
    owner.run()
    one = mic(session.address).start()
    until(lambda: len(owner.asked) >= 2)
    assert one.stream.capturer.opens == 0
    owner.yields = True
    one.flows()


def test_taken_by_force_the_card_is_closed(
    mic: Made, session: SessionBus, desktop: MakeDesktop
) -> None:
    """A name that is replaced without asking is lost, so the card is let go, and taken back
    afterwards."""
    one = mic(session.address).start()
    one.flows()
    other = desktop(0, again=False)
    other.take_by_force()
    assert other.owned
    assert one.stream.capturer.resting.wait(PATIENCE_S)
    other.release()
    one.flows()


def test_who_asks_and_does_not_come_loses_the_card(
    mic: Made, session: SessionBus, desktop: MakeDesktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A yes that is not followed by the name being taken over holds for a moment only."""
    monkeypatch.setattr(card_reservation, "GRACE_S", 0.2)
    monkeypatch.setattr(reservation_manager, "LOOK_S", 0.05)
    one = mic(session.address).start()
    one.flows()
    assert desktop(JACK).ask_for_it()
    one.flows()


def test_what_a_person_releases_is_free_for_the_desktop(
    mic: Made, session: SessionBus, desktop: MakeDesktop
) -> None:
    """`capstand release` gives the name away too, so that PipeWire has the card meanwhile; `resume`
    takes both back."""
    pipewire = desktop(PIPEWIRE).run()
    one = mic(session.address).start()
    one.flows()
    one.stream.capturer.release(OPERATOR, "released until 14:05:03")
    one.reserver.wake()
    until(lambda: pipewire.owned)
    assert one.released == "released until 14:05:03"
    one.stream.capturer.resume(OPERATOR)
    one.reserver.wake()
    one.flows()
    until(lambda: not pipewire.owned)


def test_a_card_plugged_in_elsewhere_is_reserved_by_its_new_number(
    mic: Made, session: SessionBus, desktop: MakeDesktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name follows the card; a card that is away is nobody's."""
    monkeypatch.setattr(reservation_manager, "LOOK_S", 0.02)
    one = mic(session.address).start()
    one.flows()
    other = desktop(PIPEWIRE)

    def names() -> set[str]:
        (all_names,) = other.bus.ask("ListNames")
        return {str(found) for found in all_names if found.startswith(INTERFACE)}

    assert names() == {NAME}
    one.plug(3)
    until(lambda: names() == {f"{INTERFACE}.Audio3"})
    shutil.rmtree(one.proc)
    until(lambda: names() == set())
    one.flows()


def test_two_streams_of_one_card_share_a_name(
    mic: Made, session: SessionBus, desktop: MakeDesktop
) -> None:
    """Both are closed before another gets the card, and both go on afterwards."""
    one = mic(session.address, streams=2).start()
    for stream in one.streams:
        until(lambda tally=stream.capturer.tally: tally.captured > 0)  # type: ignore[misc]
    jack = desktop(JACK, again=False)
    assert jack.acquire()
    assert all(stream.capturer.params is None for stream in one.streams)
    jack.release()
    for stream in one.streams:
        until(lambda capturer=stream.capturer: capturer.params is not None)  # type: ignore[misc]


# Whoever is on the bus


def peer(session: SessionBus) -> Bus:
    """Any program of the user's."""
    return Bus(session.address)


def still_serves(one: Mic, bus: Bus) -> None:
    """Sound flows without a gap, the name is ours, and who asks rightly is answered."""
    until(lambda: asks(bus) is False)
    assert bus.ask("GetNameOwner", "s", NAME)[0] != bus.unique_name
    one.flows()
    assert one.reserver._thread.is_alive()
    assert one.stream.capturer.tally.gaps.count == 0


def asks(bus: Bus) -> object:
    try:
        return bus.call(NAME, PATH, INTERFACE, "RequestRelease", "i", -5)[0]
    except Refusal as refusal:  # while it is one of too many
        return refusal


FORGED: list[tuple[str | None, tuple[Any, ...]]] = [
    (None, ()),
    ("s", (NAME,)),
    ("ss", (NAME, ":1.1")),
    ("sss", (NAME, ":1.0", ":1.99")),
    ("sss", (NAME, ":1.0", "")),
    ("ssi", (NAME, "", 5)),
    ("as", ([NAME, "", ":1.99"],)),
    ("v", (("s", NAME),)),
    ("sssay", (NAME, "", ":1.99", b"x" * 9000)),
]


@pytest.mark.parametrize(("signature", "body"), FORGED)
def test_only_the_bus_says_who_owns_a_name(
    mic: Made, session: SessionBus, signature: str | None, body: tuple[Any, ...]
) -> None:
    """A NameOwnerChanged of any other sender is not believed, whatever shape it has, sent to all or
    to us alone."""
    one = mic(session.address).start()
    one.flows()
    bus = peer(session)
    (ours,) = bus.ask("GetNameOwner", "s", NAME)
    emitter = DBusAddress("/org/freedesktop/DBus", interface="org.freedesktop.DBus")
    for destination in (None, ours):
        signal = new_signal(emitter, "NameOwnerChanged", signature, body)
        if destination:
            signal.header.fields[HeaderFields.destination] = destination
        bus._send(signal)
    still_serves(one, bus)
    bus.close()


@pytest.mark.parametrize(
    ("sender", "believed"), [(":1.7", False), ("", False), (reservation_manager.BUS, True)]
)
def test_the_sender_decides_whether_it_is_believed(
    tmp_path: Path, session: SessionBus, sender: str, believed: bool
) -> None:
    """The same words are news from the bus and nothing from anybody else."""
    ledger, bus = Ledger(tmp_path), peer(session)
    reserver = ReservationManager(list, ledger, lambda: None)
    reserver._reservations[7] = CardReservation(7, bus, ledger)
    emitter = DBusAddress("/org/freedesktop/DBus", interface="org.freedesktop.DBus")
    message = new_signal(emitter, "NameOwnerChanged")
    where = ("/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged")
    signal = Incoming(False, sender, *where, "sss", (NAME, ":1.2", ""), message)
    assert reserver._hear(signal) is believed
    bus.close()
    ledger.close(PATIENCE_S)


CALLS: list[tuple[str, str, str | None, tuple[Any, ...]]] = [
    ("org.freedesktop.DBus.Properties", "Get", "sas", (INTERFACE, ["x"])),
    ("org.freedesktop.DBus.Properties", "Get", "sa{ss}", (INTERFACE, {"x": "y"})),
    ("org.freedesktop.DBus.Properties", "Get", "s", (INTERFACE,)),
    ("org.freedesktop.DBus.Properties", "Get", None, ()),
    ("org.freedesktop.DBus.Properties", "Get", "vv", (("s", INTERFACE), ("as", []))),
    ("org.freedesktop.DBus.Properties", "GetAll", "as", ([INTERFACE],)),
    ("org.freedesktop.DBus.Properties", "GetAll", None, ()),
    (INTERFACE, "RequestRelease", None, ()),
    (INTERFACE, "RequestRelease", "b", (True,)),
    (INTERFACE, "RequestRelease", "s", ("2147483647",)),
    (INTERFACE, "RequestRelease", "d", (1e300,)),
    (INTERFACE, "RequestRelease", "x", (2**62,)),
    (INTERFACE, "RequestRelease", "ai", ([2**31 - 1],)),
    (INTERFACE, "RequestRelease", "v", (("i", 2**31 - 1),)),
    (INTERFACE, "RequestRelease", "ii", (2**31 - 1, 1)),
]


def test_a_call_of_another_shape_is_refused(mic: Made, session: SessionBus) -> None:
    """Arguments of wrong types or number get an error, and only that call is lost."""
    one = mic(session.address).start()
    one.flows()
    for interface, member, signature, body in CALLS:
        bus = peer(session)
        with pytest.raises(Refusal, match=r"DBus\.Error\.InvalidArgs"):
            bus.call(NAME, PATH, interface, member, signature, *body)
        bus.close()
    bus = peer(session)
    with pytest.raises(Refusal, match=r"DBus\.Error\.UnknownObject"):
        bus.call(NAME, f"{PATH}/x", INTERFACE, "RequestRelease", "i", HIGHEST)
    still_serves(one, bus)
    bus.close()


def test_a_huge_message_is_left_out(mic: Made, session: SessionBus) -> None:
    """A message of megabytes is read past, not kept and not taken apart."""
    one = mic(session.address).start()
    one.flows()
    bus = peer(session)
    target = DBusAddress(PATH, bus_name=NAME, interface=INTERFACE)
    for signature, body in (("ay", b"x" * 8_000_000), ("ai", [7] * 100_000)):
        bus._send(new_method_call(target, "RequestRelease", signature, (body,)))
    still_serves(one, bus)
    bus.close()


def test_a_message_that_cannot_be_read_is_left_out(session: SessionBus) -> None:
    """What jeepney stumbles over costs that message only: a field of the header that it does not
    know, a file descriptor, bytes that are none of what they say."""
    here, there = socket.socketpair()
    bus = Bus(session.address)
    list(bus.incoming())  # its own name
    own, bus._socket = bus._socket, here
    bus._poll = select.poll()
    bus._poll.register(here, select.POLLIN)
    right = new_signal(DBusAddress("/x", interface="a.b"), "Right", "s", ("y",)).serialise(serial=1)
    unknown = right.replace(b"\x03\x01s\x00", b"\x63\x01s\x00")
    descriptor = new_signal(DBusAddress("/x", interface="a.b"), "Fd", "u", (3,)).serialise(serial=1)
    descriptor = descriptor.replace(b"\x08\x01g\x00\x01u", b"\x08\x01g\x00\x01h")
    torn = right.replace(b"y\x00", b"\xff\xff")
    with here, there:
        unfinished = right.replace(b"\x08\x01g\x00\x01s", b"\x08\x01g\x00\x01(")
        for raw in (unknown, descriptor, torn, unfinished):
            assert raw != right
            there.sendall(raw + right)
            assert [one.member for one in bus.incoming()] == ["Right"]
        there.sendall(right[:40])
        assert list(bus.incoming()) == []
        there.sendall(right[40:])
        assert [one.member for one in bus.incoming()] == ["Right"]
        there.sendall(b"no D-Bus at all, but long enough")
        with pytest.raises(BusError):
            list(bus.incoming())
    bus._socket = own
    bus.close()


def test_a_flood_is_bounded_and_ends(mic: Made, session: SessionBus) -> None:
    """One who asks thousands of times is refused, what waits is bounded, and when he has gone the
    next one is answered."""
    one = mic(session.address).start()
    one.flows()
    bus = peer(session)
    target = DBusAddress(PATH, bus_name=NAME, interface=INTERFACE)
    call = new_method_call(target, "RequestRelease", "i", (-5,))
    call.header.flags = MessageFlag.no_reply_expected
    for _ in range(3000):
        bus._send(call)
    bus.close()
    late = peer(session)
    still_serves(one, late)
    late.close()


def test_what_waits_is_bounded(session: SessionBus) -> None:
    """While an answer is waited for, no more than so many messages of others are kept; the answer
    and the bus's own word are."""
    one, other = Bus(session.address), Bus(session.address)
    target = DBusAddress("/x", bus_name=one.unique_name, interface="a.b")
    for number in range(3 * bus_module.MOST_WAITING):
        signal = new_signal(target, "Noise", "u", (number,))
        signal.header.fields[HeaderFields.destination] = one.unique_name
        other._send(signal)
    assert one.ask("NameHasOwner", "s", one.unique_name) == (True,)
    kept = [message for message in one._inbox if message.header.fields[HeaderFields.member]]
    assert len(kept) <= bus_module.MOST_WAITING + 1
    one.close()
    other.close()


@pytest.mark.parametrize("seed", range(counts(3, 50)))
def test_anything_at_all_may_be_sent(mic: Made, session: SessionBus, seed: int) -> None:
    """Random calls and signals of random shapes, and peers that leave in the midst of one: the
    thread lives, nothing is captured less, and an honest one is answered afterwards."""
    dice = random.Random(seed)
    one = mic(session.address).start()
    one.flows()
    bus = peer(session)
    for _ in range(200):
        signature, body = anything(dice)
        path = dice.choice((PATH, "/", f"{PATH}/x", "/org/freedesktop/DBus"))
        interface = dice.choice(
            (INTERFACE, "org.freedesktop.DBus", "org.freedesktop.DBus.Properties", "a.b")
        )
        address = DBusAddress(path, bus_name=NAME, interface=interface)
        member = dice.choice(("RequestRelease", "Get", "GetAll", "Set", "NameOwnerChanged", "X"))
        make = dice.choice((new_method_call, new_signal))
        message = make(address, member, signature, body)
        message.header.fields[HeaderFields.destination] = NAME
        raw = message.serialise(serial=next(bus._serial))
        if dice.random() < 0.1:
            bus._socket.sendall(raw[: dice.randrange(len(raw))])
            bus.close()
            bus = peer(session)
        else:
            bus._socket.sendall(raw)
    bus.close()
    late = peer(session)
    still_serves(one, late)
    late.close()


def anything(dice: random.Random) -> tuple[str, tuple[Any, ...]]:
    """A signature and a body that fits it; priorities no higher than ours."""
    kinds: dict[str, Callable[[], Any]] = {
        "i": lambda: -dice.randrange(100),
        "u": lambda: dice.randrange(100),
        "x": lambda: dice.randrange(-(2**63), 2**63),
        "b": lambda: dice.random() < 0.5,
        "d": dice.random,
        "s": lambda: dice.choice((NAME, INTERFACE, "Priority", "", "\x1b\u202e", "x" * 20_000)),
        "as": lambda: [NAME] * dice.randrange(4),
        "a{sv}": lambda: {"Priority": ("v", ("v", ("i", 1)))},
        "(si)": lambda: (NAME, 1),
        "v": lambda: ("aai", [[1], []]),
    }
    chosen = dice.choices(list(kinds), k=dice.randrange(4))
    return "".join(chosen), tuple(kinds[one]() for one in chosen)


def test_a_bug_of_ours_there_ends_no_capture(
    mic: Made, session: SessionBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody foresaw sets the devices free and is told; the thread connects again."""
    monkeypatch.setattr(reservation_manager, "RECONNECT_S", 0.01)
    one = mic(session.address).start()
    one.flows()
    claims, failed = one.reserver._poll, threading.Event()

    def look(bus: Bus) -> None:
        if not failed.is_set():
            failed.set()
            raise IndexError("a bug")
        claims(bus)

    monkeypatch.setattr(one.reserver, "_poll", look)
    one.reserver.wake()
    assert failed.wait(PATIENCE_S)
    bus = peer(session)
    until(lambda: asks(bus) is False)
    one.flows()
    bus.close()


def test_a_login_that_drips_has_one_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bus that says its welcome byte by byte is given up after CALL_S."""
    monkeypatch.setattr(bus_module, "CALL_S", 0.2)
    ended = threading.Event()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "bus"))
        server.listen()

        def drip() -> None:
            client, _ = server.accept()
            with client, contextlib.suppress(OSError):
                for _ in range(500):
                    if ended.wait(0.02):
                        break
                    client.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        with pytest.raises(BusError, match="timed out"):
            Bus(f"unix:path={tmp_path}/bus")
        ended.set()
        dripping.join()


def test_a_bus_that_dies_sets_the_card_free(
    mic: Made, session: SessionBus, desktop: MakeDesktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the session ends, nobody is waited for any more; a new session is found again."""
    monkeypatch.setattr(reservation_manager, "RECONNECT_S", 0.05)
    owner = desktop(JACK)
    assert owner.acquire()
    owner.run()
    place = [session.address]
    one = mic(lambda: place[0]).start()
    until(lambda: "is reserved by" in one.released)
    session.close()
    one.flows()
    second = SessionBus()
    place[0] = second.address
    other = Bus(second.address)
    until(lambda: bool(other.ask("NameHasOwner", "s", NAME)[0]))
    one.flows()
    other.close()
    second.close()


def test_without_a_bus_the_card_is_simply_opened(
    mic: Made, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is reserved, nothing is held up, and one line says so."""
    one = mic(None)
    with caplog.at_level("INFO"):
        one.start().flows()
        until(lambda: "this user has no session bus" in caplog.text)
    assert one.events() == []


def test_a_bus_that_hangs_does_not_keep_the_card_closed(
    mic: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bus that takes the connection and is silent is given up; the card is opened."""
    monkeypatch.setattr(bus_module, "CALL_S", 0.1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "bus"))
        silent.listen()
        one = mic(f"unix:path={tmp_path}/bus")
        capturer, told = one.stream.capturer, list[str]()
        release = capturer.release

        def tells(who: str, words: str) -> None:
            told.append(words)
            release(who, words)

        monkeypatch.setattr(capturer, "release", tells)
        one.start().flows()
        assert told == ["waiting to reserve its card"]


@pytest.mark.parametrize("address", ["unix:path=/nowhere", "tcp:host=x", "nonsense", ""])
def test_a_bus_that_is_not_there_is_one_error(address: str) -> None:
    """Whatever an address says, what comes of it is a BusError."""
    with pytest.raises(BusError):
        Bus(address)


def test_the_bus_of_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the one that the environment names, else the user's own, where there is one."""
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/x")
    assert session_address() == "unix:path=/x"
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS")
    own = Path(f"/run/user/{os.geteuid()}/bus")
    assert session_address() == (f"unix:path={own}" if own.exists() else None)


def test_other_devices_are_left_alone(tmp_path: Path, session: SessionBus) -> None:
    """What is no card's own device, such as dsnoop, is never held up nor reserved."""
    setup = CaptureConfig(device="dsnoop:CARD=Mic")
    stream = Intake(config(setup))
    reserver = ReservationManager(
        lambda: [stream], Ledger(tmp_path), lambda: session.address, tmp_path
    )
    reserver.start()
    assert stream.capturer.released is None
    reserver.stop()


def test_without_a_bus_its_library_is_not_loaded() -> None:
    """The daemon does not pay for D-Bus where there is none."""
    loaded = "import sys, capstand.service.service; sys.exit('jeepney' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0
