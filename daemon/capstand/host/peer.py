"""Who is at the other end of a Unix socket, as the kernel says (SO_PEERCRED), and may they?

Whoever may open the sound card anyway may do what concerns its sound: root, the daemon's own user,
and members of the groups ``audio`` and ``capstand``.

Thread: any; ``members`` may have to ask a directory service.
"""

import contextlib
import grp
import os
import socket
import struct
from typing import NamedTuple

SO_PEERGROUPS = 59  # of asm-generic/socket.h; Python has no name for it
GROUPS = ("audio", "capstand")


class Peer(NamedTuple):
    """The process at the other end, as it was when it connected."""

    pid: int
    uid: int
    groups: frozenset[int]

    def may_use_sound(self, groups: frozenset[int]) -> bool:
        """``groups`` are those of ``members``."""
        return self.uid in (0, os.geteuid()) or bool(self.groups & groups)


def peer_of(link: socket.socket) -> Peer:
    """Raises OSError where the kernel does not tell."""
    raw = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, gid = struct.unpack("iII", raw)
    groups = {gid}
    with contextlib.suppress(OSError):  # more than 256: the first is known at least
        more = link.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
        groups.update(one for (one,) in struct.iter_unpack("I", more))
    return Peer(pid, uid, frozenset(groups))


def members() -> frozenset[int]:
    """The numbers of ``GROUPS``, as far as this system has them."""
    found = set()
    for name in GROUPS:
        with contextlib.suppress(KeyError):
            found.add(grp.getgrnam(name).gr_gid)
    return frozenset(found)
