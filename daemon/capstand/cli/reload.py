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
        help="make the running daemon read its configuration again",
        description="Makes the running daemon read its configuration again, waits until that is "
        "done, and prints what changed. Streams and sinks that are the same go on untouched; other "
        "sinks take over between two blocks, without a frame lost; a stream whose capture changed "
        "starts anew. A wrong file changes nothing: every fault is printed, the status is 78. "
        "`systemctl reload capstand` does the same; so does SIGHUP, without an answer. For root "
        "and the daemon's own user.",
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
                    f"{path}: the reload is not done after {RELOAD_S} s; `journalctl -u capstand` "
                    "and `capstand status` tell more"
                )
            time.sleep(RELOAD_LOOK_S)
        if outcome["refused"]:
            raise ConfigError(outcome["refused"])
        print("\n".join(outcome["told"]) or "nothing has changed")
    return 0
