"""What a file system can do, and what is the matter where it refuses.

File systems differ: some say no size, sync no directory, take no lock, end files at 4 GiB. What
cannot be asked is unknown (None), not zero; what not all of them can do is left out where it cannot
be had. Sources: errno and statvfs, and /proc/self/fdinfo with mountinfo for the kind.

Thread: any that may wait for a disk.
"""

import contextlib
import errno
import os
import re
import resource
from pathlib import Path
from typing import NamedTuple

MB = 1_000_000
UNLIMITED = 2**62
_CANNOT = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EBADF,
    errno.EISDIR,
    errno.ENOLCK,
}
_ADVICE = {
    errno.EROFS: "the disk is read-only: check dmesg, then mount -o remount,rw",
    errno.EIO: "the disk is failing: check dmesg, then replace it",
    errno.EDQUOT: "the user's quota is used up: delete something or raise it",
    errno.EFBIG: "the file reached its size limit (LimitFSIZE=, or the file system): lower "
    "segment_s",
    errno.EMFILE: "out of file descriptors: raise LimitNOFILE= in the unit",
    errno.ENFILE: "the machine is out of file descriptors: raise fs.file-max",
    errno.ENOMEM: "out of memory: find what uses it",
    errno.ESTALE: "the server no longer knows the directory: unmount it and mount it again",
    errno.ENOTCONN: "the program behind the mount has exited: unmount it and mount it again",
    errno.ENXIO: "the disk is gone: plug it in and mount it again",
    errno.ENODEV: "the disk is gone: plug it in and mount it again",
    errno.ETIMEDOUT: "the server does not respond: check the network",
    errno.EHOSTDOWN: "the server does not respond: check the network",
    errno.EPERM: "the file system, its mount options or an attribute (lsattr) forbid it",
    errno.ESPIPE: "mount it with a cache (rclone: --vfs-cache-mode writes), or use another "
    "directory",
}
_GENERAL = "check that the directory exists, is writable and has space"
_LOCAL = re.compile(
    "ext[234]|xfs|btrfs|bcachefs|f2fs|zfs|jfs|reiserfs|nilfs2|ubifs|jffs2|vfat|msdos|exfat|ntfs3?|"
    "fuseblk|udf|hfs(plus)?|tmpfs|ramfs|overlay|aufs|ecryptfs"
)
"""Only this machine writes to these, so that its own locks say all there is to say."""
_LOCK_SHUTS_OUT = frozenset(("cifs", "smb3", "smbfs"))
"""There a lock keeps everybody else from reading."""


class Room(NamedTuple):
    """What a disk has for us and in all, in bytes."""

    free: int
    total: int

    @property
    def used(self) -> float:
        """The share that is not free for us."""
        return 1 - self.free / self.total


def room(folder: Path) -> Room | None:
    """None where the file system does not say. Raises OSError where the directory is away."""
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        if error.errno in _CANNOT:
            return None
        raise
    unit = disk.f_frsize or disk.f_bsize
    if not disk.f_blocks or not unit:
        return None
    return Room(disk.f_bavail * unit, disk.f_blocks * unit)


def kind(descriptor: int) -> str | None:
    """The file system an open file lies on, such as "ext4" or "fuse.sshfs"."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        about = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        number = about.split("mnt_id:")[1].split()[0]
        with Path("/proc/self/mountinfo").open(errors="replace") as mounts:
            for line in mounts:
                if line.split(" ", 1)[0] == number:
                    return line.split(" - ")[1].split()[0]
    return None


def is_local(descriptor: int) -> bool:
    """Whether nobody but this machine writes there, as far as is known."""
    return bool(_LOCAL.fullmatch(kind(descriptor) or ""))


def may_lock(descriptor: int) -> bool:
    """Whether a lock there harms nobody who only wants to listen."""
    return kind(descriptor) not in _LOCK_SHUTS_OUT


def largest_file(descriptor: int) -> int:
    """How many bytes a file may have, by the process' limit and by the file system's (4 GiB − 1 on
    FAT). The file's own position is 0 then. Raises OSError where files cannot be sought in.
    """
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    low, high = 0, UNLIMITED if soft == resource.RLIM_INFINITY else min(soft, UNLIMITED)
    while low < high:  # where a seek may not go, no file may reach
        middle = high if low == 0 else (low + high + 1) // 2
        try:
            os.lseek(descriptor, middle, os.SEEK_SET)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOVERFLOW, errno.EFBIG):
                raise
            high = middle - 1
            low = max(low, 1)
        else:
            low = middle
    os.lseek(descriptor, 0, os.SEEK_SET)
    return low


def sync_file(descriptor: int) -> None:
    """Makes safe what a file holds, where that can be asked for. Raises OSError."""
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise


def sync_folder(folder: Path | int) -> None:
    """Makes safe which files there are, where that can be asked for. Raises OSError."""
    descriptor = folder if isinstance(folder, int) else open_folder(folder)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        if not isinstance(folder, int):
            os.close(descriptor)


def open_folder(folder: Path) -> int:
    """A descriptor that stays with this directory, whatever is mounted over it."""
    flags = os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(folder, os.O_RDONLY | flags)
    except PermissionError:
        return os.open(folder, os.O_PATH | flags)  # may be written to, not listed


def cannot(error: OSError) -> bool:
    """Whether this says that the file system has no such operation."""
    return error.errno in _CANNOT


def advice(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return _ADVICE.get(number or 0, _GENERAL)


def explain(error: Exception, folder: Path) -> tuple[str, str]:
    """What is the matter, and what to do about it."""
    if not isinstance(error, OSError):
        return str(error) or "the disk accepted only part of it", advice(error)
    reason = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        with contextlib.suppress(OSError):
            disk = os.statvfs(next(one for one in (folder, *folder.parents) if one.exists()))
            if disk.f_files and not disk.f_favail:
                return (
                    "the disk can hold no more files (no inode left, see df -i)",
                    "delete files, or raise segment_s so that there are fewer",
                )
            free_mb = disk.f_bavail * (disk.f_frsize or disk.f_bsize) // MB
            if disk.f_blocks and free_mb > 1:
                return (
                    reason,
                    f"{free_mb} MB are free; check for a quota, a full directory or snapshots",
                )
    return reason, advice(error)
