"""Who is at the other end of a Unix socket, as the kernel says, and whether they may have sound.

Thread: any. Source: unix(7), SO_PEERCRED; SO_PEERGROUPS of asm-generic/socket.h.
"""

import contextlib
import grp
import os
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

GROUPS = ("audio", "capstand")
"""Whose members may open the card anyway."""
SO_PEERGROUPS = 59  # Python has no name for it


class Peer(NamedTuple):
    """The process at the other end, as it was when it connected."""

    pid: int
    uid: int
    groups: frozenset[int]

    def may(self, groups: Iterable[str] = GROUPS) -> bool:
        """Whether it is root's, of our own user, or of a member of one of ``groups``."""
        return self.is_of(ids(groups))

    def is_of(self, groups: frozenset[int]) -> bool:
        """The same, for one who must not ask: the numbers of groups may be far away."""
        return self.uid in (0, os.geteuid()) or bool(self.groups & groups)


def peer_of(client: socket.socket) -> Peer:
    """Raises OSError where the kernel does not tell."""
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, gid = struct.unpack("iII", raw)
    groups = {gid}
    with contextlib.suppress(OSError):  # more than 256: the first is known at least
        more = client.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
        groups.update(one for (one,) in struct.iter_unpack("I", more))
    return Peer(pid, uid, frozenset(groups))


def group_id(name: str) -> int | None:
    """None where there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def ids(groups: Iterable[str] = GROUPS) -> frozenset[int]:
    """Their numbers, of those that this system has."""
    return frozenset(one for one in map(group_id, groups) if one is not None)
