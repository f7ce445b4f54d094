"""``capstand status``."""

import argparse
import json
from typing import TYPE_CHECKING

from capstand.cli.parsing import add_runtime
from capstand.cli.places import socket, understood

if TYPE_CHECKING:
    from capstand.cli.parsing import Commands


def add(commands: "Commands") -> None:
    status = commands.add_parser(
        "status",
        help="show the state of the running daemon",
        description="Shows health, level, drift and frame accounting of every stream. Any user "
        "may ask.",
    )
    status.add_argument("--json", action="store_true", help="as JSON, with more figures")
    add_runtime(status)
    status.set_defaults(act=act)


def act(chosen: argparse.Namespace) -> int:
    from capstand.host import control
    from capstand.service import display

    path = socket(chosen)
    answer = control.ask(path, "status")
    if chosen.json:
        print(json.dumps(answer, indent=2))
        return 0
    with understood(path):
        refused = [f"reload refused: {fault}" for fault in answer["reload"]["refused"]]
        print("\n".join([*refused, display.status_table(answer["streams"])]))
    return 0
