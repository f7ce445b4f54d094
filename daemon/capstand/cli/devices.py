"""``capstand devices``."""

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capstand.cli.parsing import Commands


def add(commands: "Commands") -> None:
    devices = commands.add_parser(
        "devices",
        help="list capture devices, what they support and who uses them",
        description="Lists every capture device by its most stable name, to paste into the "
        "configuration, "
        "with its rates, channels and formats, or the program that uses it, and the controls of "
        "its card as lines for [stream.capture.controls]. Each free device is opened briefly.",
    )
    devices.add_argument("--json", action="store_true", help="as JSON")
    devices.set_defaults(act=act)


def act(chosen: argparse.Namespace) -> int:
    from capstand.config.registry import SOURCES
    from capstand.devices import listing as devices

    found = devices.find()
    if chosen.json:
        print(json.dumps({"devices": [one.as_json() for one in found]}, indent=2))
        return 0
    for one in found:
        print(one)
    if not found:
        print("no capture card found; plug one in, or use the simulated card:")
    device = SOURCES.simulated
    print(f'{device}\n    the simulated card; needs no hardware: device = "{device}"')
    return 0
