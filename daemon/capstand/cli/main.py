"""The command line: run, check, devices, status, reload, set, release, resume, push, tap,
agora."""

import errno
import importlib
import sys

from capstand import __version__
from capstand.cli.parsing import Parser, lined
from capstand.errors import CapstandError, ConfigError
from capstand.host import console, signals
from capstand.text import clean

COMMANDS = {
    "run": "run",
    "check": "check",
    "devices": "devices",
    "status": "status",
    "reload": "reload",
    "set": "settings",
    "release": "release",
    "resume": "release",
    "push": "push",
    "tap": "tap",
    "agora": "agora",
}
"""In the order of the help, and in which module of ``cli`` each is."""
EX_CONFIG = 78
DESCRIPTION = """\
Captures sound from ALSA devices, gives every frame its true time, and delivers it to its
sinks, unattended, for months. Losses are counted to the frame."""
EPILOG = """\
files:
  /etc/capstand/capstand.toml       the configuration; every key is explained in it
  /run/capstand/control.sock        the socket of `status`, `reload`, `set`, `release`, `tap`, …
  /run/capstand/push.sock           where `push` delivers the sound of a stream of device "socket"
  /var/lib/capstand/ledger/*.jsonl  the ledger: every gap with frame, length, time, cause
  /var/lib/capstand/spool           sound waiting for its sink, unless set otherwise
  /var/lib/capstand/agora/*/*/log   the log of Agora's SDK
  /opt/capstand/agora               Agora's library, from `capstand agora install`

  A user's daemon has its socket in $XDG_RUNTIME_DIR/capstand, its ledger and log below
  ~/.local/state/capstand; root's does too without a configuration. With one, it takes the rights
  of the user who owns the state directory.

exit status:
  0   success
  1   failed, nothing was recorded, or the daemon must be restarted; stderr says why
  2   invalid command line
  78  invalid configuration; every error is on stderr with file, line and key

examples:
  capstand devices                             list the capture devices
  capstand check /etc/capstand/capstand.toml   before a reload
  capstand run --seconds 10                    a first try, without a configuration
  systemctl enable --now capstand              start now and at every boot
  systemctl reload capstand                    after a change of the configuration
  capstand set mic gain.gain_db -6             change a running chain, until the next reload
  capstand release mic --for 60                lend the card for a minute
  capstand tap mic | aplay                     listen to a stream
  capstand push --stream mic file.wav          play a file into a stream of device "socket" """


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        named = arguments[0] if arguments else ""
        # The daemon does without the memory of what the other commands load.
        chosen = _parser([named] if named in COMMANDS else list(COMMANDS)).parse_args(arguments)
        if named != "run":
            signals.unblock()
        return int(chosen.act(chosen))
    except ConfigError as error:
        for fault in error.faults:
            console.print_error(clean.line(fault))
        return EX_CONFIG
    except CapstandError as error:
        console.print_error(f"capstand: {clean.lines(error)}")
        return 1
    except BrokenPipeError:
        return 0  # who read it has seen enough
    except OSError as error:
        if error.filename:
            what = f"{error.filename}: {error.strerror}"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF):
            what = f"cannot write to stdout: {error.strerror}"
        elif error.errno == errno.ENOENT:  # of os.getcwd()
            what = f"the current directory is unusable ({error.strerror}); change to another one"
        else:
            what = str(error.strerror or error)
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            what = f"cannot start: {what}; raise LimitNOFILE= in the unit, "
            what += "or check what uses up the memory"
        console.print_error(f"capstand: {clean.line(what)}")
        return 1


def _parser(names: list[str]) -> Parser:
    parser = Parser(prog="capstand", description=DESCRIPTION, epilog=EPILOG, formatter_class=lined)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in dict.fromkeys(COMMANDS[name] for name in names):
        importlib.import_module(f"capstand.cli.{module}").add(commands)
    return parser
