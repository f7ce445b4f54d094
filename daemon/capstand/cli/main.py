"""The command line: run, check, devices, status, reload, release, resume, agora."""

import argparse
import contextlib
import errno
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from capstand import __version__
from capstand.errors import CapstandError, ConfigError
from capstand.host import console, signals
from capstand.text import clean

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

    from capstand.config.schema import Config

CONFIG = Path("/etc/capstand/capstand.toml")
EX_CONFIG = 78
RELOAD_S = 30
RELOAD_LOOK_S = 0.1
DESCRIPTION = """\
Takes sound from ALSA capture devices, gives every frame its true place in time, and feeds it to
its sinks, unattended, for months. What is lost is counted to the frame."""
EPILOG = """\
files:
  /etc/capstand/capstand.toml       the configuration; every key is explained in it
  /run/capstand/control.sock        where `status`, `reload`, `release` and `resume` ask
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
  capstand release mic --for 60                another program has the card for a minute"""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    try:
        chosen = _parser().parse_args(arguments)
        if chosen.act is not _run:
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


def _run(chosen: argparse.Namespace) -> int:
    from capstand.config import schema as config
    from capstand.host import logs, rights
    from capstand.host.notify import Notifier
    from capstand.service.display import LiveLine
    from capstand.service.service import Service

    path = chosen.config or (CONFIG if CONFIG.exists() and not chosen.no_config else None)
    # Root's first try, without a configuration, keeps out of the service's directories.
    state = chosen.state or _state_directory(service=path is not None)
    runtime = chosen.runtime or _runtime_directory(service=path is not None)
    rights.believe(runtime, make=True)
    if note := rights.settle_into(state, runtime):
        console.complain(f"capstand: {note}")
    live = LiveLine(wanted=not chosen.quiet)
    repeats = logs.setup(before=live.clear)
    if state.is_relative_to(rights.temporary()):
        logs.say(
            logging.WARNING,
            "uid %d has no home directory: the ledger is kept in %s, which may be empty after the "
            "next start of the machine; --state DIR names a better place",
            *(os.geteuid(), state),
        )
    if path and not chosen.config:
        console.complain(f"capstand: running {path}; --no-config takes the first card")
    try:
        setup = config.load(path) if path else _without_configuration()
    except ConfigError as error:
        Notifier().failed(22, f"configuration refused: {error.faults[0]}")
        raise
    rights.refuse_the_services(_folders(setup), state)
    for name, line in _notes(setup):
        logs.say(logging.WARNING, "%s: %s", name, line, STREAM=name)
    service = Service(setup, state, runtime, live, repeats, path)
    return service.run(chosen.seconds)


def _folders(setup: "Config") -> Iterator[Path]:
    """Where the sinks of a configuration write."""
    for stream in setup.stream:
        for sink in stream.sink:
            for one in (sink, sink.spool):
                if isinstance(path := getattr(one, "path", None), str):
                    yield Path(path)


def _notes(setup: "Config") -> list[tuple[str, str]]:
    """By stream, what is right in a configuration and will surprise later."""
    from capstand.config.naming import note

    return [
        (stream.name, line)
        for stream in setup.stream
        for line in (
            *(note(name) for name in stream.capture.devices),
            *(stream.capture.bounded(one.name, one.queue_ms) for one in stream.sink),
        )
        if line
    ]


def _without_configuration() -> "Config":
    """The first capture card, or the simulated one, into ./recordings."""
    from capstand.config import schema as config
    from capstand.config.decode import decode
    from capstand.devices import listing as devices

    try:
        here = Path.cwd()
    except OSError as error:
        raise CapstandError(
            f"the current directory cannot be used ({error.strerror}), and recordings would go "
            "there; go to another one, or give a configuration by --config FILE"
        ) from None
    if not str(here).isprintable():
        raise CapstandError(
            f"the name of the current directory, {clean.line(here)}, contains an invisible "
            "character, and recordings would go there; go to another directory, or give a "
            "configuration by --config FILE"
        )
    found = devices.find()
    text = devices.default_configuration(found, here / "recordings")
    setup = decode(text, "built-in configuration", config.Config)
    told = devices.passed_over(found)
    if setup.stream[0].capture.device == "synthetic":
        why = "no card can be used" if found else "no capture card is there"
        told.append(f"{why}: the sound is simulated, a tone and not a microphone")
    told.append("no configuration given; running this one:\n")
    console.complain(
        "".join(f"capstand: {line}\n" for line in told)
        + "".join(f"    {line}\n" for line in text.splitlines()),
    )
    return setup


def _check(chosen: argparse.Namespace) -> int:
    from capstand.config import schema as config

    setup = config.load(chosen.file)
    streams = ", ".join(f"{one.name} from {one.capture.wanted}" for one in setup.stream)
    print(clean.line(f"{chosen.file}: right; {len(setup.stream)} stream(s): {streams}"))
    for name, line in _notes(setup):
        print(clean.line(f"{chosen.file}: note: stream {name}: {line}"))
    return 0


def _devices(chosen: argparse.Namespace) -> int:
    from capstand.devices import listing as devices

    found = devices.find()
    if chosen.json:
        print(json.dumps({"devices": [one._asdict() for one in found]}, indent=2))
        return 0
    for one in found:
        print(one)
    if not found:
        print("no capture card is there; plug one in, or take the simulated card:")
    print('synthetic\n    the simulated card; needs no hardware: device = "synthetic"')
    return 0


def _status(chosen: argparse.Namespace) -> int:
    from capstand.host import control
    from capstand.service import display

    path = _socket(chosen)
    answer = control.ask(path, "status")
    if chosen.json:
        print(json.dumps(answer, indent=2))
        return 0
    with _understood(path):
        refused = [f"reload refused: {fault}" for fault in answer["reload"]["refused"]]
        print("\n".join([*refused, display.status_table(answer["streams"])]))
    return 0


@contextlib.contextmanager
def _understood(path: Path) -> Iterator[None]:
    """For an answer that may be another version's, or of one who is no capstand."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise CapstandError(
            f"{path}: what is answered there does not fit version {__version__} of this command "
            f"({type(error).__name__}: {error}); restart the daemon if it was upgraded"
        ) from None


def _reload(chosen: argparse.Namespace) -> int:
    from capstand.host import control

    path = _socket(chosen)
    answer = control.ask(path, "reload")
    deadline = time.monotonic() + RELOAD_S
    with _understood(path):
        while (outcome := control.ask(path, "status")["reload"])["done"] < answer["reload"]:
            if time.monotonic() > deadline:
                raise CapstandError(
                    f"{path}: the reload is not done after {RELOAD_S} s; `journalctl -u capstand` "
                    "and `capstand status` tell more"
                )
            time.sleep(RELOAD_LOOK_S)
        if outcome["refused"]:
            raise ConfigError(outcome["refused"])
        print("\n".join(outcome["told"]) or "nothing has changed")
    return 0


def _release(chosen: argparse.Namespace) -> int:
    from capstand.host import control

    path = _socket(chosen)
    answer = control.ask(path, "release", 10.0, stream=chosen.stream, for_s=chosen.seconds)
    with _understood(path):
        print(f"{answer['stream']}: released {answer['released']}")
    return 0


def _resume(chosen: argparse.Namespace) -> int:
    from capstand.host import control

    path = _socket(chosen)
    answer = control.ask(path, "resume", stream=chosen.stream)
    with _understood(path):
        told = "taking the device back" if answer["was_released"] else "it is not released"
        print(f"{answer['stream']}: {told}")
    return 0


def _agora_install(chosen: argparse.Namespace) -> int:
    from capstand.agora.sdk import install

    os.umask(0o022)  # the service's user reads what root installs
    try:
        folder = (chosen.into or install.default_folder()).expanduser()
    except RuntimeError:
        whose = str(chosen.into).split("/")[0] if chosen.into else f"uid {os.geteuid()}"
        raise CapstandError(
            f"{whose} has no home directory; name the folder by --into /WHOLE/PATH"
        ) from None
    install.install(folder, lambda text: print(clean.lines(text), flush=True), again=chosen.again)
    return 0


def _runtime_directory(*, service: bool) -> Path:
    """Where a daemon that is started here has its socket: systemd's, root's where it stands in for
    the ``service``, or the user's own."""
    from capstand.host import rights

    if given := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])
    return rights.SYSTEM_RUNTIME if service and os.geteuid() == 0 else rights.own_runtime()


def _state_directory(*, service: bool) -> Path:
    from capstand.host import rights

    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    return rights.SYSTEM_STATE if service and os.geteuid() == 0 else rights.own_state()


def _socket(chosen: argparse.Namespace) -> Path:
    """Where to ask: the service, or where that does not run, the user's own daemon."""
    from capstand.host import control, rights

    if chosen.runtime:
        return Path(chosen.runtime) / control.NAME
    service = rights.SYSTEM_RUNTIME / control.NAME
    own = rights.believe(_runtime_directory(service=False)) / control.NAME
    if "RUNTIME_DIRECTORY" in os.environ:  # a unit's reload asks the unit's own daemon
        return own
    if control.is_served(service) or not own.exists():
        return service
    return own


def _seconds(text: str) -> float:
    wrong = f"{clean.line(text, 40)!r}: expected a number of seconds, more than 0 and below 1e9"
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(wrong) from None
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(wrong)
    return value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """What was typed is in the message, and may have come from anywhere."""
        super().error(clean.line(message))

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        """Not as argparse does it, which hides that a disk is full."""
        if file is sys.stdout and file is not None:
            file.write(message)
        else:
            console.complain(message.rstrip())

    def format_help(self) -> str:
        return clean.lines(super().format_help(), 1000) + "\n"


def _parser() -> argparse.ArgumentParser:
    shape = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="capstand", description=DESCRIPTION, epilog=EPILOG, formatter_class=shape)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run",
        help="capture until told to stop",
        description="Captures until SIGTERM or Ctrl-C, then drains and closes the files. In a "
        "terminal it shows a live line: level, drift against the clock of the machine, frames "
        "lost, files. Without a configuration it takes the first capture card, or the simulated "
        "one, and records into ./recordings. SIGHUP makes it read its configuration again; in a "
        "terminal it ends it.",
    )
    run.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"configuration (default: {CONFIG}, if it is there)",
    )
    run.add_argument(
        "--no-config",
        action="store_true",
        help=f"without --config: take the first capture card, even where {CONFIG} is there",
    )
    run.add_argument("--seconds", metavar="N", type=_seconds, help="stop after N seconds")
    run.add_argument("--quiet", action="store_true", help="no live line")
    _add_runtime(run)
    run.add_argument(
        "--state",
        metavar="DIR",
        type=Path,
        help="where the ledger is kept (default: /var/lib/capstand for root with a configuration,"
        " else ~/.local/state/capstand)",
    )
    run.set_defaults(act=_run)

    check = commands.add_parser(
        "check",
        help="check a configuration file",
        description="Reads a configuration as `run` would and reports every fault at once, each "
        "with file, line and key; the status is then 78. No device is opened.",
    )
    check.add_argument("file", metavar="FILE", type=Path, help="the configuration")
    check.set_defaults(act=_check)

    devices = commands.add_parser(
        "devices",
        help="list capture devices, what they offer and who holds them",
        description="Lists every capture device as the line to put into the configuration, by the "
        "name that lasts longest, with its rates, channels and formats, or the program that holds "
        "it. Each that is free is opened for a moment.",
    )
    devices.add_argument("--json", action="store_true", help="as JSON")
    devices.set_defaults(act=_devices)

    status = commands.add_parser(
        "status",
        help="ask the running daemon how it is",
        description="Asks the running daemon for health, level, drift and books of every stream. "
        "Anybody may ask.",
    )
    status.add_argument("--json", action="store_true", help="as JSON, with more figures")
    _add_runtime(status)
    status.set_defaults(act=_status)

    reload = commands.add_parser(
        "reload",
        help="make the running daemon read its configuration again",
        description="Makes the running daemon read its configuration again, waits until that is "
        "done, and prints what changed. Streams and sinks that are the same go on untouched; other "
        "sinks take over between two blocks, without a frame lost; a stream whose capture changed "
        "starts anew. A wrong file changes nothing: every fault is printed, the status is 78. "
        "`systemctl reload capstand` does the same; so does SIGHUP, without an answer. For root "
        "and the daemon's own user.",
    )
    _add_runtime(reload)
    reload.set_defaults(act=_reload)
    release = commands.add_parser(
        "release",
        help="hand a stream's device to another program",
        formatter_class=shape,
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
        type=_seconds,
        help="take the device back after so long (default: at `capstand resume STREAM`)",
    )
    _add_runtime(release)
    release.set_defaults(act=_release)

    resume = commands.add_parser(
        "resume",
        help="take a released device back",
        description="Ends `capstand release`: the device is opened again, as soon as no other "
        "program has it. For those who may release it.",
    )
    resume.add_argument("stream", metavar="STREAM", help="the stream's name")
    _add_runtime(resume)
    resume.set_defaults(act=_resume)

    agora = commands.add_parser(
        "agora",
        help="what the Agora sink needs",
        description="What the Agora sink needs beside capstand itself.",
    )
    _add_agora_install(agora.add_subparsers(title="commands", metavar="COMMAND", required=True))
    return parser


def _add_agora_install(commands: "argparse._SubParsersAction[_Parser]") -> None:
    install = commands.add_parser(
        "install",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="fetch Agora's wrapper and native library",
        description="""\
Fetches what an Agora sink needs: the Python wrapper, by pip, of one version with one checksum, and
Agora's native library, by the wrapper's own means but with the server's certificate checked. It is
verified and tried out before it takes the place of what was there. The daemon never fetches it.""",
        epilog="""\
The native library is Agora's property and comes under Agora's terms.

Where the daemon looks, in this order: $CAPSTAND_AGORA (then nowhere else), /opt/capstand/agora,
~/.local/share/capstand/agora, a package agora in Python's own path.

environment:
  https_proxy    the proxy for both downloads
  SSL_CERT_FILE  the certificates to trust, where a proxy puts its own in place
  PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, PIP_NO_INDEX, PIP_CERT, PIP_PROXY,
  PIP_TRUSTED_HOST  where the wrapper comes from, as pip understands them

examples:
  sudo capstand agora install                         for the service
  sudo --preserve-env=https_proxy capstand agora install
  capstand agora install --into ~/agora               without root's rights""",
    )
    install.add_argument(
        "--into",
        metavar="DIR",
        type=Path,
        help="where to (default: /opt/capstand/agora, for others than root"
        " ~/.local/share/capstand/agora)",
    )
    install.add_argument(
        "--again", action="store_true", help="fetch it even if it is there and right"
    )
    install.set_defaults(act=_agora_install)


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runtime",
        metavar="DIR",
        type=Path,
        help="where the control socket is (default: the service's, or the user's own)",
    )
