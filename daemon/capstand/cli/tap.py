"""``capstand tap``."""

import argparse
import os
import signal
from typing import TYPE_CHECKING, NoReturn

from capstand.cli.parsing import add_runtime, lined, seconds
from capstand.cli.places import socket
from capstand.errors import CapstandError

if TYPE_CHECKING:
    from capstand.cli.parsing import Commands

STDOUT = 1
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add(commands: "Commands") -> None:
    tap = commands.add_parser(
        "tap",
        help="write a running stream to stdout",
        formatter_class=lined,
        description="""\
Writes the sound of a running stream to stdout, from now on, until it is stopped or its reader has
gone. Any number of taps can run; none of them can delay or change the capture, a sink or another
tap. What is missing becomes silence of its length and is reported on stderr: gaps of the stream,
and what was missed because stdout was not read in time.
For root, the daemon's own user, and members of the groups audio and capstand.""",
        epilog="""\
exit status:
  0   stopped, --seconds elapsed, or the reader has gone
  1   the stream could not be tapped, or it ended; the reason is on stderr

examples:
  capstand tap mic | aplay                          listen
  capstand tap mic --flac --seconds 60 > mic.flac   record a minute
  capstand tap mic | ffmpeg -i - mic.opus           anything else
  capstand tap mic --raw | aplay -t raw -f S16_LE -r 48000 -c 2""",
    )
    tap.add_argument("stream", metavar="STREAM", help="the stream's name")
    form = tap.add_mutually_exclusive_group()
    form.add_argument(
        "--wav", dest="form", action="store_const", const="wav", help="as a WAV (the default)"
    )
    form.add_argument(
        "--raw", dest="form", action="store_const", const="raw", help="the samples as captured"
    )
    form.add_argument(
        "--flac",
        dest="form",
        action="store_const",
        const="flac",
        help="as a FLAC; not for formats of more than 24 bits",
    )
    tap.add_argument("--seconds", metavar="N", type=seconds, help="stop after N seconds of sound")
    tap.add_argument(
        "--skip",
        action="store_true",
        help="leave out what is missing, instead of silence in its place",
    )
    tap.add_argument(
        "--input",
        choices=("captured", "processed"),
        help="which sound of a stream with [[stream.process]] (default: processed)",
    )
    add_runtime(tap)
    tap.set_defaults(act=_tap, form="wav")


def _tap(chosen: argparse.Namespace) -> int:
    if os.isatty(STDOUT):
        raise CapstandError(
            "stdout is a terminal, which cannot show sound; redirect it to a file or a program: "
            f"capstand tap {chosen.stream} | aplay"
        )
    from capstand.cli.tapping import Tapping

    tapping = Tapping(
        socket(chosen), chosen.stream, chosen.form, not chosen.skip, STDOUT, chosen.input
    )
    for number in ENDING:
        signal.signal(number, _stop)
    try:
        tapping.run(chosen.seconds)
    except _Stopped:
        pass
    except CapstandError:
        tapping.finish()
        raise
    tapping.finish()
    return 0


class _Stopped(Exception):
    """By a signal."""


def _stop(*_: object) -> NoReturn:
    """A second signal ends it at once."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    raise _Stopped
