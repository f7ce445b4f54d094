"""The command line: run, check, devices, status, reload, release, resume, push, tap, agora."""

import errno

from capstand import __version__
from capstand.cli import agora, check, devices, push, release, reload, run, status, tap
from capstand.cli.parsing import SHAPE, Parser
from capstand.errors import CapstandError, ConfigError
from capstand.host import console, signals
from capstand.text import clean

EX_CONFIG = 78
DESCRIPTION = """\
Takes sound from ALSA capture devices, gives every frame its true place in time, and feeds it to
its sinks, unattended, for months. What is lost is counted to the frame."""
EPILOG = """\
files:
  /etc/capstand/capstand.toml       the configuration; every key is explained in it
  /run/capstand/control.sock        where `status`, `reload`, `release`, `resume` and `tap`
                                    ask
  /run/capstand/push.sock           where `push` brings the sound of a stream of device "socket"
  /var/lib/capstand/ledger/*.jsonl  the books: every gap with first frame, length, time, cause
  /var/lib/capstand/spool           sound that waits for its sink, where nothing else is configured
  /var/lib/capstand/agora/*/*/log   what Agora's SDK says
  /opt/capstand/agora               Agora's library, by `capstand agora install`

  A user's own daemon has its socket in $XDG_RUNTIME_DIR/capstand, ledger and log below
  ~/.local/state/capstand; so has root's without a configuration. With one, root's takes the rights
  of the user who owns the state directory.

exit status:
  0   all is well
  1   it could not be done, nothing was recorded, or the daemon has to start anew; the reason is on
      stderr
  2   the command line is wrong
  78  the configuration is wrong; every fault is on stderr with file, line and key

examples:
  capstand devices                             what can be captured from
  capstand check /etc/capstand/capstand.toml   before a reload
  capstand run --seconds 10                    a first try, without a configuration
  systemctl enable --now capstand              for good
  systemctl reload capstand                    after a change of the configuration
  capstand release mic --for 60                another program has the card for a minute
  capstand tap mic | aplay                     listen to a stream
  capstand push --stream mic file.wav          the sound is a file, for a stream from a socket"""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    try:
        chosen = _parser().parse_args(arguments)
        if chosen.act is not run.act:
            signals.let_go()
        return int(chosen.act(chosen))
    except ConfigError as error:
        for fault in error.faults:
            console.complain(clean.line(fault))
        return EX_CONFIG
    except CapstandError as error:
        console.complain(f"capstand: {clean.lines(error)}")
        return 1
    except BrokenPipeError:
        return 0  # who read it has seen enough
    except OSError as error:
        if error.filename:
            what = f"{error.filename}: {error.strerror}"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF):
            what = f"cannot write to stdout: {error.strerror}"
        elif error.errno == errno.ENOENT:  # of os.getcwd()
            what = f"the current directory cannot be used ({error.strerror}); go to another one"
        else:
            what = str(error.strerror or error)
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            what = f"cannot start: {what}; raise LimitNOFILE= in the unit, "
            what += "or see what takes the memory of the machine"
        console.complain(f"capstand: {clean.line(what)}")
        return 1


def _parser() -> Parser:
    parser = Parser(prog="capstand", description=DESCRIPTION, epilog=EPILOG, formatter_class=SHAPE)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (run, check, devices, status, reload, release, push, tap, agora):
        command.add(commands)
    return parser
