"""Whose directory is it, and with whose rights do we write there?

Who owns a directory can put a link into it wherever a file is expected, and cannot use what root
leaves there. So as root the daemon takes the rights of the user to whom its state directory
belongs, before it writes anything; and a directory in /tmp is believed only if it is ours.

Thread: main, before any other starts.
"""

import contextlib
import ctypes
import grp
import os
import pwd
import resource
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from capstand.errors import CapstandError

SYSTEM_RUNTIME = Path("/run/capstand")
SYSTEM_STATE = Path("/var/lib/capstand")
SERVICE_USER = "capstand"
NOBODY = 65534
RT_PRIORITY = 80  # LimitRTPRIO= in the unit
PR_SET_DUMPABLE = 4


class User(NamedTuple):
    uid: int
    gid: int
    name: str


def user(uid: int, gid: int = NOBODY) -> User:
    """``gid`` counts where the system knows no user of this number."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return User(uid, gid, f"user {uid}")
    return User(uid, entry.pw_gid, entry.pw_name)


def unprivileged_user() -> User:
    """Who tries out foreign code for root: the service's user, or where there is none, nobody."""
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam(SERVICE_USER)
        return User(entry.pw_uid, entry.pw_gid, entry.pw_name)
    return user(NOBODY)


def other_owner(path: Path) -> User | None:
    """Who else than root decides what lies at ``path``: the owner of the first folder, or link, on
    the way there that is not root's. None where it is root's all the way."""
    way = [Path(path.anchor), *reversed(path.absolute().parents), path.absolute()]
    with contextlib.suppress(OSError, RuntimeError):
        real = path.resolve()
        way += [*reversed(real.parents), real]
    for one in way:
        try:
            status = one.lstat()
        except OSError:
            continue
        if status.st_uid != 0:
            return user(status.st_uid, status.st_gid)
    return None


def switch_to(whom: User) -> None:
    """Gives up root's rights for those of ``whom``, for good; but what capture needs to be on time
    stays granted. Raises OSError."""
    for limit, value in (
        (resource.RLIMIT_RTPRIO, RT_PRIORITY),
        (resource.RLIMIT_MEMLOCK, resource.RLIM_INFINITY),
    ):
        with contextlib.suppress(OSError, ValueError):  # a container's root may not
            resource.setrlimit(limit, (value, value))
    os.setgroups(_groups(whom))
    os.setresgid(whom.gid, whom.gid, whom.gid)
    os.setresuid(whom.uid, whom.uid, whom.uid)
    os.environ.update(HOME="/", USER=whom.name, LOGNAME=whom.name)  # no ~ of root's, nor a writable
    # After such a change the kernel keeps /proc/self from us.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def _groups(whom: User) -> list[int]:
    with contextlib.suppress(KeyError):
        return os.getgrouplist(pwd.getpwuid(whom.uid).pw_name, whom.gid)
    with contextlib.suppress(KeyError):
        return [whom.gid, grp.getgrnam("audio").gr_gid]
    return [whom.gid]


def take_rights_of_owner(state: Path, runtime: Path) -> str | None:
    """As root: takes the rights of the user to whom ``state`` belongs, where that is not root, and
    gives them ``runtime``. Returns a line that says so, or None; raises CapstandError.
    """
    if os.geteuid() != 0 or (owner := other_owner(state)) is None:
        return None
    try:
        _hand_over(runtime, owner)
        switch_to(owner)
    except OSError as error:
        raise CapstandError(
            f"{state} belongs to {owner.name}, and switching to that user failed"
            f" ({error.strerror}); run it as {owner.name}, or use --state DIR for a directory "
            "owned by root"
        ) from None
    if not os.access(sys.executable, os.X_OK):
        raise CapstandError(
            f"{state} belongs to {owner.name}, who cannot run this Python, {sys.executable};"
            " use the capstand that scripts/install made, or --state DIR for a directory owned by "
            "root"
        )
    return f"{state} belongs to {owner.name}: running as that user, not as root"


def _hand_over(runtime: Path, owner: User) -> None:
    """Makes ``runtime`` the owner's, where nobody but root can have put something else there."""
    if other_owner(runtime.parent) is not None:
        return
    runtime.mkdir(mode=0o755, parents=True, exist_ok=True)
    folder = os.open(runtime, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(folder).st_uid == 0:
            os.fchown(folder, owner.uid, owner.gid)
    finally:
        os.close(folder)


def refuse_the_services(folders: Iterable[Path], state: Path) -> None:
    """As root: raises CapstandError where the service's user owns one of ``folders``, which the
    files that root leaves there would keep from recording."""
    if os.geteuid() != 0:
        return
    for folder in folders:
        owner = other_owner(folder)
        if owner is not None and owner.name == SERVICE_USER:
            raise CapstandError(
                f"{folder} belongs to the service's user {owner.name}, {state} to root: files "
                "owned by root would block the service; run: systemctl start capstand, or sudo -u"
                f" {owner.name} capstand run"
            )


def refuse_others(folder: Path, what: str) -> None:
    """As root: raises CapstandError where another user decides what lies at ``folder``."""
    if os.geteuid() == 0 and (owner := other_owner(folder)) is not None:
        raise CapstandError(
            f"{folder} belongs to {owner.name}, who could redirect root's writes; run {what} as"
            f" {owner.name}, or choose a folder owned by root"
        )


# The directory of the control socket


def is_ours(folder: Path) -> bool:
    """A true folder that we own and nobody else may write to."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & 0o022
    )


def runtime() -> Path:
    """Where this daemon has its sockets; `run` says so to all its processes by the variable."""
    if given := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])
    return own_runtime()


def own_runtime() -> Path:
    """A user's own: in the session's directory, or in /tmp where there is none."""
    uid = os.geteuid()
    for session in (_absolute("XDG_RUNTIME_DIR"), Path(f"/run/user/{uid}")):
        if session and is_ours(session):
            return session / "capstand"
    return temporary()


def own_state() -> Path:
    """Where a user's own daemon keeps its ledger."""
    if own := _absolute("XDG_STATE_HOME"):
        return own / "capstand"
    with contextlib.suppress(RuntimeError):  # no HOME and no entry in the table of users
        if (home := Path.home()).is_absolute():
            return home / ".local/state/capstand"
    return require_ours(temporary(), make=True) / "state"


def _absolute(variable: str) -> Path | None:
    """The directory that a variable names; a relative one is to be ignored, says the standard for
    such variables (XDG Base Directory)."""
    path = Path(os.environ.get(variable, ""))
    return path if path.is_absolute() else None


def temporary() -> Path:
    """For a user without a session, or without a home."""
    return Path(f"/tmp/capstand-{os.geteuid()}")


def require_ours(runtime: Path, *, make: bool = False) -> Path:
    """``runtime``; raises CapstandError where it lies in /tmp and is not ours."""
    if runtime.parent == Path("/tmp"):
        if make:
            with contextlib.suppress(OSError):
                runtime.mkdir(mode=0o700)
        if os.path.lexists(runtime) and not is_ours(runtime):
            raise CapstandError(
                f"{runtime} is not yours: expected your own directory that nobody else can write "
                "to; remove it, or choose another with --runtime"
            )
    return runtime
