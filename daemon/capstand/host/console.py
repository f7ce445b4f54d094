"""stdin, stdout and stderr: open, able to write every text, and written out at the end.

A process may be started without them. Then the next file that is opened takes the number of one of
them, and what a library prints to "stderr" ends in a recording. So each that is missing is opened
on /dev/null before anything else is. What is written goes through ``clean.ERRORS``: no locale makes
a text fail.

At the end what Python still holds is written out here, because Python itself ends with status 120
where that fails. A reader who has gone, as in ``capstand devices | head -1``, is no failure; a disk
that is full is one.

Thread: main, before the others begin and after they have ended.
"""

import io
import os
import sys
import traceback
from contextlib import suppress
from types import TracebackType

from capstand.text import clean

COLUMNS = 80
"""Where nobody says how many there are."""


def prepare() -> None:
    """Before anything is opened; the numbers are given out from 0 on."""
    for number in range(3):
        with suppress(OSError):  # without /dev/null it stays as it is
            _open_on_null(number)
    sys.excepthook = _tell_bug
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            with suppress(OSError):
                setattr(sys, name, open(number, "w", errors=clean.ERRORS, closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=clean.ERRORS)


def _open_on_null(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened == number:
            os.set_inheritable(number, True)
        else:
            os.dup2(opened, number)
            os.close(opened)


def _tell_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What nobody foresaw, in clean lines; Python would print names and texts as they are."""
    print_error(clean.lines("".join(traceback.format_exception(kind, error, trace)).rstrip()))


def columns() -> int:
    """How wide the terminal is, as ``COLUMNS`` or stdout says. shutil knows it, too, and brings
    half a megabyte that the daemon would keep."""
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit() and int(given[:9]):
        return int(given[:9])
    with suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or COLUMNS  # type: ignore[union-attr]
    return COLUMNS


def print_error(text: str) -> None:
    """A line on stderr, for as long as that takes any."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr)


def finish(status: int) -> int:
    """Writes out what was printed; returns the exit status, which is 1 where stdout took not all
    of what went well."""
    failed = _flush(1)
    if failed is not None:
        status = status or 1
        print_error(f"capstand: cannot write to stdout: {failed}")
    _flush(2)
    return status


def _flush(number: int) -> str | None:
    """What keeps a stream from being written; nobody is told again, neither by Python."""
    stream = sys.stdout if number == 1 else sys.stderr
    try:
        if stream is not None:
            stream.flush()
        return None
    except ValueError:
        return None  # closed on purpose
    except OSError as error:
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
        return None if isinstance(error, BrokenPipeError) else str(error.strerror)
