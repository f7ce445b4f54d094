"""What all commands read of their command line."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from capstand.host import console
from capstand.text import clean

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

    Commands = argparse._SubParsersAction["Parser"]


def lined(prog: str) -> argparse.HelpFormatter:
    """For a description with lines of its own."""
    return argparse.RawDescriptionHelpFormatter(prog, width=console.columns() - 2)


def _plain(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, width=console.columns() - 2)


class Parser(argparse.ArgumentParser):
    """Says itself how wide the terminal is: for that, argparse loads shutil and with it three
    compressors, which would stay in the daemon's memory."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"formatter_class": _plain} | given)

    def error(self, message: str) -> NoReturn:
        """What was typed is in the message, and may have come from anywhere."""
        super().error(clean.line(message))

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        """Not as argparse does it, which hides that a disk is full."""
        if file is sys.stdout and file is not None:
            file.write(message)
        else:
            console.print_error(message.rstrip())

    def format_help(self) -> str:
        return clean.lines(super().format_help(), 1000) + "\n"


def seconds(text: str) -> float:
    wrong = f"{clean.line(text, 40)!r}: expected a number of seconds above 0 and below 1e9"
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(wrong) from None
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(wrong)
    return value


def add_runtime(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runtime",
        metavar="DIR",
        type=Path,
        help="directory of the control socket (default: the service's, or the user's own)",
    )
