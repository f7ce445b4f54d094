"""``capstand check``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from capstand.text import clean

if TYPE_CHECKING:
    from capstand.cli.parsing import Commands
    from capstand.config.schema import Config


def add(commands: "Commands") -> None:
    check = commands.add_parser(
        "check",
        help="check a configuration file",
        description="Reads a configuration as `run` would and reports all errors at once, each "
        "with file, line and key; the status is then 78. No device is opened.",
    )
    check.add_argument("file", metavar="FILE", type=Path, help="the configuration")
    check.set_defaults(act=act)


def act(chosen: argparse.Namespace) -> int:
    from capstand.config import schema as config

    setup = config.load(chosen.file)
    streams = ", ".join(f"{one.name} from {one.capture.wanted}" for one in setup.stream)
    count = len(setup.stream)
    counted = "1 stream" if count == 1 else f"{count} streams"
    print(clean.line(f"{chosen.file}: OK: {counted}: {streams}"))
    for name, line in notes(setup):
        print(clean.line(f"{chosen.file}: note: stream {name}: {line}"))
    return 0


def notes(setup: "Config") -> list[tuple[str, str]]:
    """By stream, what is valid in a configuration and may surprise later."""
    from capstand.config.naming import note

    return [
        (stream.name, line)
        for stream in setup.stream
        for line in (
            *(note(name) for name in stream.capture.devices),
            *(stream.capture.bounded(one.name, one.queue_ms) for one in stream.queued),
        )
        if line
    ]
