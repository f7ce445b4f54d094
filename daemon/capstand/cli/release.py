"""``capstand release`` and ``capstand resume``."""

import argparse
from typing import TYPE_CHECKING

from capstand.cli.parsing import add_runtime, lined, seconds
from capstand.cli.places import socket, understood

if TYPE_CHECKING:
    from capstand.cli.parsing import Commands


def add(commands: "Commands") -> None:
    release = commands.add_parser(
        "release",
        help="hand a stream's device to another program",
        formatter_class=lined,
        description="""\
Closes the device of a stream and keeps it closed, with the sinks still connected; returns once it
is closed. What is missed is a gap with cause "released". Repeating it replaces the
earlier release. For root, the daemon's own user, and members of the groups audio and capstand.""",
        epilog="""\
A restart of the daemon ends the release; so does a reload that changes the stream's capture.

example:
  capstand release mic --for 60 && arecord -D hw:CARD=Mic -f S16_LE -r 48000 -d 50 test.wav""",
    )
    release.add_argument("stream", metavar="STREAM", help="the stream's name")
    release.add_argument(
        "--for",
        dest="seconds",
        metavar="SECONDS",
        type=seconds,
        help="take the device back after this time (default: at `capstand resume STREAM`)",
    )
    add_runtime(release)
    release.set_defaults(act=_release)

    resume = commands.add_parser(
        "resume",
        help="take a released device back",
        description="Ends `capstand release`: the device is opened again as soon as no other "
        "program uses "
        "it. For the same users as `release`.",
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
        told = "reopening the device" if answer["was_released"] else "not released"
        print(f"{answer['stream']}: {told}")
    return 0
