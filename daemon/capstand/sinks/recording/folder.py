"""A directory of recordings: on which disk it is, and whose what is made in it shall be.

An empty mount point looks like a directory. A directory whose disk must be mounted is left alone
until it is; elsewhere the device number says when a disk came or went.

Thread: the recording's. Source: stat(2).
"""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from capstand.errors import SinkError

DEFAULT_MODE = 0o640
_REMOVABLE = ("/mnt", "/media", "/run/media", "/srv")
"""Below these people expect a disk of its own."""


class Access(NamedTuple):
    """Mode and group of what is made; None leaves it to the system, ``DEFAULT_MODE`` and umask. Who
    gives a group wants it to read, whatever the umask.
    """

    mode: int | None = None
    group: int | None = None

    def give(self, descriptor: int, *, folder: bool = False) -> None:
        """Raises OSError where it may not, with the rest done."""
        if self == Access():
            return
        mode = DEFAULT_MODE if self.mode is None else self.mode
        if folder:
            mode |= (mode & 0o444) >> 2
        with contextlib.ExitStack() as then:
            then.callback(os.fchmod, descriptor, mode)  # after fchown, which clears bits
            if self.group is not None:
                os.fchown(descriptor, -1, self.group)


def make(folder: Path, access: Access) -> OSError | None:
    """Makes a directory with those above it; returns what kept it from being given its mode or
    group. Raises OSError.
    """
    try:
        folder.mkdir()
    except FileNotFoundError:
        if folder == folder.parent:
            raise
        refused = make(folder.parent, access)
        return make(folder, access) or refused
    except OSError:
        if not folder.is_dir():
            raise
        return None
    if access == Access():
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        access.give(descriptor, folder=True)
    except OSError as error:
        return error
    finally:
        os.close(descriptor)
    return None


def device(folder: Path) -> int:
    """Of the disk that the directory is on now, or would be made on. Raises OSError."""
    while True:
        try:
            return folder.stat().st_dev
        except FileNotFoundError:
            folder = folder.parent


def is_on_root(folder: Path) -> bool:
    """Whether that is the root file system. Raises OSError."""
    return device(folder) == device(Path("/"))


def wait_for_mount(folder: Path, wanted: bool | str) -> None:
    """Raises SinkError while the disk is not mounted: the mount point ``wanted``, or with True any
    on the way to the directory.
    """
    if isinstance(wanted, str):
        if not os.path.ismount(os.path.realpath(wanted)):
            raise SinkError(
                f"{folder}: no disk is mounted at {wanted}; recording is paused; mount it, or "
                "delete the key mount"
            )
    elif wanted and not _mounts(folder):
        raise SinkError(
            f"{folder}: no disk is mounted there; recording is paused; mount it, or set mount = "
            "false"
        )


def doubt(folder: Path) -> str | None:
    """Words for a directory where a disk is expected and none is mounted."""
    path = os.path.realpath(folder)
    for top in _REMOVABLE:
        if path.startswith(f"{top}/"):
            mounts = [mount for mount in _mounts(folder) if (mount + "/").startswith(f"{top}/")]
            if not [mount for mount in mounts if mount != "/run/media"]:
                return f"no disk is mounted there; set mount = false if {top} should have none"
    return None


def _mounts(folder: Path) -> list[str]:
    """The mount points on the way to a directory, but for the root."""
    path = Path(os.path.realpath(folder))
    return [str(one) for one in (path, *path.parents) if str(one) != "/" and os.path.ismount(one)]
