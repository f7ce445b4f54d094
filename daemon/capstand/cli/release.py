"""``capstand release`` and ``capstand resume``."""

import argparse
from typing import TYPE_CHECKING

from capstand.cli.parsing import SHAPE, add_runtime, seconds
from capstand.cli.places import socket, understood

if TYPE_CHECKING:
    from capstand.cli.parsing import Commands


def add(commands: "Commands") -> None:
    release = commands.add_parser(
        "release",
        help="hand a stream's device to another program",
        formatter_class=SHAPE,
        description="""\
Closes the device of a stream and leaves it closed, with the sinks still connected; returns once it
is closed. What is missed meanwhile is a gap in the books, "released". Said again, the last counts.
For root, the daemon's own user, and members of the groups audio and capstand.""",
        epilog="""\
A daemon that is started anew has forgotten it and captures; so has a stream that is started anew
because its capture changed.

example:
  capstand release mic --for 60 && arecord -D hw:CARD=Mic -f S16_LE -r 48000 -d 50 test.wav""",
    )
    release.add_argument("stream", metavar="STREAM", help="the stream's name")
    release.add_argument(
        "--for",
        dest="seconds",
        metavar="SECONDS",
        type=seconds,
        help="take the device back after so long (default: at `capstand resume STREAM`)",
    )
    add_runtime(release)
    release.set_defaults(act=_release)

    resume = commands.add_parser(
        "resume",
        help="take a released device back",
        description="Ends `capstand release`: the device is opened again, as soon as no other "
        "program has it. For those who may release it.",
    )
    resume.add_argument("stream", metavar="STREAM", help="the stream's name")
    add_runtime(resume)
    resume.set_defaults(act=_resume)


def _release(chosen: argparse.Namespace) -> int:
    from capstand.host import control

    path = socket(chosen)
    answer = control.ask(path, "release", 10.0, stream=chosen.stream, for_s=chosen.seconds)
    with understood(path):
        print(f"{answer['stream']}: released {answer['released']}")
    return 0


def _resume(chosen: argparse.Namespace) -> int:
    from capstand.host import control

    path = socket(chosen)
    answer = control.ask(path, "resume", stream=chosen.stream)
    with understood(path):
        told = "taking the device back" if answer["was_released"] else "it is not released"
        print(f"{answer['stream']}: {told}")
    return 0
