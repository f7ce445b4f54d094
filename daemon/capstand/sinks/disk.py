"""What to do about a disk that refuses, by errno, and how a file's name lasts. Thread: any."""

import errno
import os
from pathlib import Path

_ADVICE = {
    errno.EROFS: "the disk is read-only: look at dmesg, then mount -o remount,rw",
    errno.EIO: "the disk is failing: look at dmesg, then replace it",
    errno.EDQUOT: "the user's quota is used up: delete something or raise it",
    errno.EFBIG: "no file may grow further (LimitFSIZE=, or the file system): lower segment_s",
    errno.EMFILE: "no descriptor is free: raise LimitNOFILE= in the unit",
    errno.ENFILE: "the machine has no descriptor left: raise fs.file-max",
    errno.ENOMEM: "memory is short: look at what takes it",
}


def advice(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return _ADVICE.get(number or 0, "check that the directory exists, is writable and has room")


def sync_folder(folder: Path) -> None:
    """Makes safe which files there are. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
