"""Word from udev that a sound device came, went or changed.

udev speaks after the kernel does, when it has given the nodes in /dev/snd their group and mode, so
this is when opening succeeds. Its messages come by netlink, group 2 of NETLINK_KOBJECT_UEVENT: a
header ("libudev", magic 0xfeedcafe in network order, then its own size and the place and length of
what follows as native 32-bit numbers) and "KEY=value" ended by NUL each. What is not from root, not
to that group or not of this shape is ignored. When the socket overflows, messages were missed, and
that counts as word of sound: looking once too often costs nothing.

A listener of our own and not pyudev, which needs libudev and 0.1 s and 5 MB to load for one
question. Nothing depends on it: where it cannot listen (a container, a system without udev), the
capturer's own poll finds a device a little later. Thread: main.
"""

import errno
import socket
import struct

NETLINK_KOBJECT_UEVENT = 15
UDEV_GROUP = 2
MAX_BYTES = 8192
"""udev's own limit is that of the kernel's events, 2 KiB, and what its rules add."""
MAX_MESSAGES = 64

_HEADER = struct.Struct("=8s4sIII")
_MAGIC = bytes.fromhex("feedcafe")
_CREDENTIALS = struct.Struct("iII")


class Hotplug:
    """A subscription to udev's messages; a file object for a selector.

    Raises OSError where there is no such thing to be had.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            NETLINK_KOBJECT_UEVENT,
        )
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind((0, UDEV_GROUP))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def heard(self) -> bool:
        """Whether what has come since the last time is about sound; never waits."""
        sound = False
        for _ in range(MAX_MESSAGES):
            try:
                text, ancillary, flags, sender = self._socket.recvmsg(
                    MAX_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                sound = True
                continue
            whole = not flags & socket.MSG_TRUNC
            if sender[1] == UDEV_GROUP and whole and from_root(ancillary):
                sound = sound or about_sound(text)
        return sound


def from_root(ancillary: list[tuple[int, int, bytes]]) -> bool:
    """Whether the kernel says that root sent it."""
    for level, kind, what in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return len(what) >= _CREDENTIALS.size and _CREDENTIALS.unpack_from(what)[1] == 0
    return False


def about_sound(message: bytes) -> bool:
    """Whether a message is udev's and about a device of the sound subsystem."""
    if len(message) < _HEADER.size:
        return False
    prefix, magic, _, start, length = _HEADER.unpack_from(message)
    if prefix != b"libudev\0" or magic != _MAGIC or start + length > len(message):
        return False
    return b"SUBSYSTEM=sound" in message[start : start + length].split(b"\0")
