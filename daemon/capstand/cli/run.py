"""``capstand run``."""

import argparse
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from capstand.cli.check import notes
from capstand.cli.parsing import add_runtime, seconds
from capstand.cli.places import CONFIG, runtime_directory, state_directory
from capstand.errors import CapstandError, ConfigError
from capstand.host import console
from capstand.text import clean

if TYPE_CHECKING:
    from capstand.cli.parsing import Commands
    from capstand.config.schema import Config


def add(commands: "Commands") -> None:
    run = commands.add_parser(
        "run",
        help="capture until stopped",
        description="Captures until SIGTERM or Ctrl-C, then drains and closes the files. In a "
        "terminal it "
        "shows a live line: level, drift against the machine's clock, lost frames, files. "
        "Without a configuration it uses the first capture card, or the simulated one, and "
        "records into ./recordings. SIGHUP reloads the configuration; in a terminal it stops.",
    )
    run.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"configuration (default: {CONFIG}, if it exists)",
    )
    run.add_argument(
        "--no-config",
        action="store_true",
        help=f"without --config: use the first capture card, even if {CONFIG} exists",
    )
    run.add_argument("--seconds", metavar="N", type=seconds, help="stop after N seconds of sound")
    run.add_argument("--quiet", action="store_true", help="no live line")
    add_runtime(run)
    run.add_argument(
        "--state",
        metavar="DIR",
        type=Path,
        help="directory of the ledger (default: /var/lib/capstand for root with a configuration,"
        " else ~/.local/state/capstand)",
    )
    run.set_defaults(act=act)


def act(chosen: argparse.Namespace) -> int:
    from capstand.host import rights
    from capstand.processes import forkserver

    path = chosen.config or (CONFIG if CONFIG.exists() and not chosen.no_config else None)
    # Root's first try, without a configuration, keeps out of the service's directories.
    state = chosen.state or state_directory(service=path is not None)
    runtime = chosen.runtime or runtime_directory(service=path is not None)
    rights.require_ours(runtime, make=True)
    os.environ["RUNTIME_DIRECTORY"] = str(runtime.absolute())  # for sources that have sockets there
    if note := rights.take_rights_of_owner(state, runtime):
        console.print_error(f"capstand: {note}")
    # now: what we load from here on is not in it
    forkserver.shared.begin(["capstand.stream.worker"])

    from capstand.config import schema as config
    from capstand.config.plan import host_of
    from capstand.host import logs
    from capstand.host.notify import Notifier
    from capstand.service.display import LiveLine
    from capstand.service.service import Service
    from capstand.sinks.live import HOST_MODULES
    from capstand.stream.chaining import MODULES as CHAIN_MODULES

    live = LiveLine(wanted=not chosen.quiet)
    repeats = logs.setup(before=live.clear)
    if state.is_relative_to(rights.temporary()):
        logs.log_event(
            logging.WARNING,
            "uid %d has no home directory: the ledger is kept in %s, which may be cleared at boot; "
            "choose a permanent place with --state DIR",
            *(os.geteuid(), state),
        )
    if path and not chosen.config:
        console.print_error(f"capstand: running {path}; --no-config uses the first card")
    try:
        setup = config.load(path) if path else without_configuration()
    except ConfigError as error:
        Notifier().failed(22, f"configuration refused: {error.faults[0]}")
        raise
    if len(setup.stream) > 1:
        forkserver.shared.load(["capstand.stream.preload"])
    if chained := [one for one in setup.stream if one.process]:
        for modules in {HOST_MODULES if host_of(one) else CHAIN_MODULES for one in chained}:
            forkserver.shared.load(modules)
    rights.refuse_the_services(_folders(setup), state)
    for name, line in notes(setup):
        logs.log_event(logging.WARNING, "%s: %s", name, line, STREAM=name)
    service = Service(setup, state, runtime, live, repeats, path)
    return service.run(chosen.seconds)


def _folders(setup: "Config") -> Iterator[Path]:
    """Where the sinks of a configuration write."""
    from capstand.config.schema import spool_of

    for stream in setup.stream:
        for sink in stream.sink:
            for one in (sink, spool_of(sink)):
                if isinstance(path := getattr(one, "path", None), str):
                    yield Path(path)


def without_configuration() -> "Config":
    """The first capture card, or the simulated one, into ./recordings."""
    from capstand.config import schema as config
    from capstand.config.decode import decode
    from capstand.config.registry import SOURCES
    from capstand.devices import listing as devices

    try:
        here = Path.cwd()
    except OSError as error:
        raise CapstandError(
            f"the current directory is unusable ({error.strerror}), and recordings would go there; "
            "change to another one, or pass --config FILE"
        ) from None
    if not str(here).isprintable():
        raise CapstandError(
            f"the name of the current directory, {clean.line(here)}, contains an invisible "
            "character, and recordings would go there; change to another directory, or pass "
            "--config FILE"
        )
    found = devices.find()
    text = devices.default_configuration(found, here / "recordings")
    setup = decode(text, "built-in configuration", config.Config)
    told = devices.passed_over(found)
    if SOURCES.of(setup.stream[0].capture.device).simulated:
        why = "no card is usable" if found else "no capture card found"
        told.append(f"{why}: the sound is simulated (a tone, not a microphone)")
    told.append("no configuration given; using this one:\n")
    console.print_error(
        "".join(f"capstand: {line}\n" for line in told)
        + "".join(f"    {line}\n" for line in text.splitlines()),
    )
    return setup
