"""``capstand devices``."""

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capstand.cli.parsing import Commands


def add(commands: "Commands") -> None:
    devices = commands.add_parser(
        "devices",
        help="list capture devices, what they offer and who holds them",
        description="Lists every capture device as the line to put into the configuration, by the "
        "name that lasts longest, with its rates, channels and formats, or the program that holds "
        "it. Each that is free is opened for a moment.",
    )
    devices.add_argument("--json", action="store_true", help="as JSON")
    devices.set_defaults(act=act)


def act(chosen: argparse.Namespace) -> int:
    from capstand.config.registry import SOURCES
    from capstand.devices import listing as devices

    found = devices.find()
    if chosen.json:
        print(json.dumps({"devices": [one._asdict() for one in found]}, indent=2))
        return 0
    for one in found:
        print(one)
    if not found:
        print("no capture card is there; plug one in, or take the simulated card:")
    device = SOURCES.simulated
    print(f'{device}\n    the simulated card; needs no hardware: device = "{device}"')
    return 0
