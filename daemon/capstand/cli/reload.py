"""``capstand reload``."""

import argparse
import time
from typing import TYPE_CHECKING

from capstand.cli.parsing import add_runtime
from capstand.cli.places import socket, understood
from capstand.errors import CapstandError, ConfigError

if TYPE_CHECKING:
    from capstand.cli.parsing import Commands

RELOAD_S = 30
RELOAD_LOOK_S = 0.1


def add(commands: "Commands") -> None:
    reload = commands.add_parser(
        "reload",
        help="make the running daemon reload its configuration",
        description="Makes the running daemon reload its configuration, waits until that is done, "
        "and "
        "prints what changed. Unchanged streams and sinks are not touched; changed sinks are "
        "replaced between two blocks without losing a frame; a stream whose capture changed "
        "restarts. An invalid file changes nothing: every error is printed and the exit "
        "status is 78. `systemctl reload capstand` does the same; so does SIGHUP, but it "
        "prints nothing. For root and the daemon's own user.",
    )
    add_runtime(reload)
    reload.set_defaults(act=act)


def act(chosen: argparse.Namespace) -> int:
    from capstand.host import control

    path = socket(chosen)
    answer = control.ask(path, "reload")
    deadline = time.monotonic() + RELOAD_S
    with understood(path):
        while (outcome := control.ask(path, "status")["reload"])["done"] < answer["reload"]:
            if time.monotonic() > deadline:
                raise CapstandError(
                    f"{path}: the reload timed out after {RELOAD_S} s; see `journalctl -u "
                    "capstand` and `capstand status`"
                )
            time.sleep(RELOAD_LOOK_S)
        if outcome["refused"]:
            raise ConfigError(outcome["refused"])
        print("\n".join(outcome["changes"]) or "nothing changed")
    return 0
