"""Word from udev: what counts as one, and that it ends the waiting at once."""

import os
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstand.capture import capturer
from capstand.config.schema import CaptureConfig, Config
from capstand.devices.hotplug import (
    NETLINK_KOBJECT_UEVENT,
    UDEV_GROUP,
    Hotplug,
    about_sound,
    from_root,
)
from capstand.host.logs import RepeatFilter
from capstand.service import service
from capstand.service.display import LiveLine
from capstand.stream.intake import Intake
from tests.line import config
from tests.patience import PATIENCE_S

SOUND = {"ACTION": "add", "DEVPATH": "/devices/x/sound/card1", "SUBSYSTEM": "sound"}


def message(
    properties: dict[str, str], magic: int = 0xFEEDCAFE, prefix: bytes = b"libudev\0"
) -> bytes:
    """As udev's library sends it."""
    text = b"".join(f"{key}={value}".encode() + b"\0" for key, value in properties.items())
    head = prefix + struct.pack(">I", magic) + struct.pack("=III", 40, 40, len(text)) + bytes(16)
    return head + text


def send(what: bytes, group: int = UDEV_GROUP) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT) as sender:
        sender.sendto(what, (0, group))


@pytest.fixture
def hotplug() -> Iterator[Hotplug]:
    if os.geteuid():
        pytest.skip("only root may speak as udev does")
    one = Hotplug()
    yield one
    one.close()


def wait(hotplug: Hotplug) -> None:
    """Until something has come."""
    with selectors.DefaultSelector() as selector:
        selector.register(hotplug, selectors.EVENT_READ)
        assert selector.select(10), "nothing was heard"


# One message


def test_udevs_message_about_sound_is_word() -> None:
    """A message in udev's shape whose subsystem is sound counts, whatever else is in it."""
    assert about_sound(message(SOUND))
    assert about_sound(message({"SUBSYSTEM": "sound"}))
    assert not about_sound(message(SOUND | {"SUBSYSTEM": "usb"}))
    assert not about_sound(message({"ID_MODEL": "SUBSYSTEM=sound"}))


@pytest.mark.parametrize(
    "odd",
    [
        b"",
        b"add@/devices/x/sound/card1\0ACTION=add\0SUBSYSTEM=sound\0",
        message(SOUND, magic=0xCAFEBABE),
        message(SOUND, prefix=b"libudav\0"),
        message(SOUND)[:-1],
        message(SOUND)[:20],
        message(SOUND)[:16] + struct.pack("=II", 0xFFFFFFFF, 0xFFFFFFFF) + message(SOUND)[24:],
    ],
    ids=["empty", "kernel", "magic", "prefix", "cut", "head", "places"],
)
def test_a_message_of_another_shape_is_none(odd: bytes) -> None:
    """The kernel's own shape, another magic, and whatever is cut short are ignored."""
    assert not about_sound(odd)


@given(
    st.binary(max_size=200).map(lambda rest: message(SOUND)[:16] + rest) | st.binary(max_size=80)
)
def test_any_message_is_survived(what: bytes) -> None:
    """There is no message that does harm."""
    assert about_sound(what) in (True, False)


# The socket


def test_it_hears_udev_and_does_not_wait(hotplug: Hotplug) -> None:
    """What udev says about sound is heard once; silence and other subsystems are not."""
    assert hotplug.heard() is False
    send(message(SOUND | {"SUBSYSTEM": "block"}))
    send(message(SOUND))
    wait(hotplug)
    assert hotplug.heard() is True
    assert hotplug.heard() is False
    send(message(SOUND | {"SUBSYSTEM": "block"}))
    send(b"x" * 20_000)
    wait(hotplug)
    assert hotplug.heard() is False


def test_only_roots_word_to_the_group_is_believed(hotplug: Hotplug) -> None:
    """A message to the socket itself is ignored, and one that the kernel does not vouch for."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT) as sender:
        sender.sendto(message(SOUND), (hotplug._socket.getsockname()[0], 0))
    wait(hotplug)
    assert hotplug.heard() is False
    vouched = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
    assert from_root([(*vouched, struct.pack("iII", 1, 0, 0))])
    assert not from_root([(*vouched, struct.pack("iII", 1, 1000, 0))])
    assert not from_root([(*vouched, b"")])
    assert not from_root([])


def test_what_was_missed_counts_as_word(hotplug: Hotplug) -> None:
    """When more came than the socket holds, something about sound may have been among it."""
    hotplug._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    for _ in range(200):
        send(message({"SUBSYSTEM": "block", "PAD": "x" * 1000}))
    assert hotplug.heard() is True
    while hotplug.heard():
        pass
    send(message(SOUND))
    wait(hotplug)
    assert hotplug.heard() is True


# What follows from it


def test_a_stream_that_waits_tries_at_once(
    hotplug: Hotplug, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service whose device is away says so, is ready all the same, and looks again the moment
    udev speaks, however long the pause would have been."""
    monkeypatch.setattr(capturer, "REOPEN_PAUSES_S", (3600.0,))
    status = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    status.settimeout(PATIENCE_S)
    status.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    setup = config(CaptureConfig(device="usb:dead:beef", rt_priority=0))
    one = service.Service(
        Config(stream=(setup,)),
        tmp_path,
        tmp_path / "run",
        LiveLine(wanted=False),
        RepeatFilter(),
        make=Intake,
    )
    seen: list[int] = []
    said: list[str] = []

    def plug() -> None:
        try:
            while "STATUS=mic: DEGRADED" not in "".join(said[-1:]):
                said.append(status.recv(65536).decode())
            (stream,), deadline = one._streams, time.monotonic() + PATIENCE_S
            assert isinstance(stream, Intake)
            watched = stream.capturer
            seen.append(watched.seen_ns)
            while watched.seen_ns == seen[0] and time.monotonic() < deadline:
                send(message(SOUND))
                time.sleep(0.05)
            seen.append(watched.seen_ns)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    plugger = threading.Thread(target=plug)
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    plugger.start()
    try:
        assert one.run() == 0
    finally:
        plugger.join()
        signal.set_wakeup_fd(-1)
        for number, handler in before:
            signal.signal(number, handler)
        status.close()
    assert seen[1] > seen[0]
    assert any("READY=1" in line for line in said)
    assert "waiting for usb:dead:beef (not plugged in)" in said[-1]
    assert "\n" not in said[-1]
