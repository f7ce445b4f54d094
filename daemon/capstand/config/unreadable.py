"""Why a file cannot be read, and who has to change what: in words for the one who has to.

Thread: any.
"""

import grp
import os
import pwd
import stat
from pathlib import Path

from capstand.text import clean


def unreadable(path: Path, error: OSError) -> str:
    """The reason that ``error`` gives for ``path``, and a mend."""
    if isinstance(error, PermissionError):
        return _not_permitted(path, error)
    if isinstance(error, FileNotFoundError):
        return _not_found(path, error)
    if isinstance(error, IsADirectoryError):
        return f"{error.strerror}; name the file in it"
    return f"{error.strerror}; expected a TOML file"


def _not_permitted(path: Path, error: OSError) -> str:
    who = _user(os.geteuid())
    for folder in reversed(path.absolute().parents):
        if not _may(folder, os.X_OK):
            return (
                f"{error.strerror}: the user {who} must be able to enter {folder} "
                f"({_rights(folder)}); as its owner or root: chmod o+x {folder}"
            )
    if _may(path, os.R_OK):
        return (
            f"{error.strerror}, although its mode allows it ({_rights(path)}); a confined service?"
        )
    group = _group(os.getegid())
    return (
        f"{error.strerror}: the user {who} must be able to read it ({_rights(path)}); "
        f"as root: chgrp {group} {path} && chmod g+r {path}"
    )


def _not_found(path: Path, error: OSError) -> str:
    if path.is_symlink():
        target = clean.line(path.readlink(), 100)
        return f"{error.strerror}: it is a link to {target}, which is not there"
    for folder in reversed(path.absolute().parents):
        if not os.path.lexists(folder):
            return f"{error.strerror}: {folder} is not there; expected a TOML file"
    return f"{error.strerror}; expected a TOML file"


def _may(path: Path, mode: int) -> bool:
    try:
        return os.access(path, mode, effective_ids=True)
    except (OSError, NotImplementedError):
        return False


def _rights(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        return f"{error.strerror}"
    mode = stat.S_IMODE(status.st_mode)
    return f"mode {mode:04o}, owner {_user(status.st_uid)}, group {_group(status.st_gid)}"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
