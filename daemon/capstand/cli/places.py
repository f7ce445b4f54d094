"""Where the configuration, the control socket and the ledger are, for all who need to know."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from capstand import __version__
from capstand.errors import CapstandError

CONFIG = Path("/etc/capstand/capstand.toml")


def runtime_directory(*, service: bool) -> Path:
    """Where a daemon that is started here has its socket: systemd's, root's where it stands in for
    the ``service``, or the user's own."""
    from capstand.host import rights

    if "RUNTIME_DIRECTORY" not in os.environ and service and os.geteuid() == 0:
        return rights.SYSTEM_RUNTIME
    return rights.runtime()


def state_directory(*, service: bool) -> Path:
    from capstand.host import rights

    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    return rights.SYSTEM_STATE if service and os.geteuid() == 0 else rights.own_state()


def socket(chosen: argparse.Namespace) -> Path:
    """Where to ask: the service, or where that does not run, the user's own daemon."""
    from capstand.host import control, rights

    if chosen.runtime:
        return Path(chosen.runtime) / control.NAME
    service = rights.SYSTEM_RUNTIME / control.NAME
    own = rights.require_ours(runtime_directory(service=False)) / control.NAME
    if "RUNTIME_DIRECTORY" in os.environ:  # a unit's reload asks the unit's own daemon
        return own
    if control.is_served(service) or not own.exists():
        return service
    return own


@contextlib.contextmanager
def understood(path: Path) -> Iterator[None]:
    """For an answer that may be another version's, or of one who is no capstand."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise CapstandError(
            f"{path}: the reply does not match version {__version__} of this command "
            f"({type(error).__name__}: {error}); restart the daemon if it was upgraded"
        ) from None
