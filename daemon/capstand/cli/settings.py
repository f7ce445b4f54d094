"""``capstand set``."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from capstand.cli.parsing import add_runtime, lined
from capstand.cli.places import socket, understood
from capstand.host import console
from capstand.text import clean

if TYPE_CHECKING:
    from capstand.cli.parsing import Commands

REFUSED = 2
LONGEST = 700
"""Of a key and a value as JSON: a request is at most 1024 bytes."""
UNITS = {
    "_dbfs": "dBFS",
    "_db_per_s": "dB/s",
    "_db": "dB",
    "_hz": "Hz",
    "_ms": "ms",
    "_s": "s",
    "_frames": "frames",
}
"""By the end of a key, the longer one first."""


def add(commands: "Commands") -> None:
    command = commands.add_parser(
        "set",
        help="change a setting of a running chain of processors, or list them",
        formatter_class=lined,
        description="""\
Changes a setting of a stream's processors ([[stream.process]]) while the sound flows: without a
click, and without losing a frame. The change lasts until the next reload or start; write it into
the configuration file to keep it. `capstand reload` brings back what the file says.

Without KEY and VALUE, lists all keys of the stream with their values and units; with KEY alone,
that one. Any user may list; changes are for root, the daemon's own user, and members of the groups
audio and capstand.""",
        epilog="""\
keys:
  gain.gain_db         the key gain_db of the processor of type gain
  process.2.gain_db    the same of the second processor; needed where a type is there twice
  eq.band.3.q          the key q of the third band

values are checked as in the file, and written like there; a single word needs no quotation marks.
What changes the number of channels or the sample rate needs a reload.

exit status:
  0   changed, or listed
  1   no daemon answered, or it does not obey this user
  2   no such stream or key, or a wrong value; stderr says which there are

examples:
  capstand set mic
  capstand set mic gain.gain_db -6
  capstand set mic high-pass.cutoff_hz 120
  capstand set mic noise-suppression.level moderate""",
    )
    command.add_argument("stream", metavar="STREAM", help="the stream's name")
    command.add_argument("key", metavar="KEY", nargs="?", help="which setting")
    command.add_argument("value", metavar="VALUE", nargs="?", help="its new value")
    add_runtime(command)
    command.set_defaults(act=act)


def act(chosen: argparse.Namespace) -> int:
    from capstand.host import control

    asked = {
        name: value
        for name, value in (("key", chosen.key), ("value", chosen.value))
        if value is not None
    }
    if len(json.dumps(asked)) > LONGEST:
        return _refuse([f"more than {LONGEST} characters; write it into the file and reload"])
    path = socket(chosen)
    answer = control.ask(path, "set", stream=chosen.stream, **asked)
    with understood(path):
        if "refused" in answer:
            return _refuse(answer["refused"])
        if chosen.value is None:
            print("\n".join(_table(answer["settings"])))
        else:
            print("\n".join(_told(answer)))
    return 0


def _refuse(faults: list[str]) -> int:
    for fault in faults:
        console.print_error(f"capstand: {clean.line(fault)}" if fault[:1] != " " else fault)
    return REFUSED


def _table(settings: list[dict[str, Any]]) -> list[str]:
    width = max((len(one["key"]) for one in settings), default=0)
    return [
        f"{one['key']:<{width}}  {_shown(one['key'], one['value'])}"
        + (f"  (file: {_shown(one['key'], one['file'])})" if "file" in one else "")
        for one in settings
    ]


def _told(answer: dict[str, Any]) -> list[str]:
    changes = answer["set"]
    if not changes:
        return [f"{answer['stream']}: has that value already"]
    where = f"; write it into {answer['path']} to keep it" if answer["path"] else ""
    return [
        *(
            f"{answer['stream']}: {one['key']} is {_shown(one['key'], one['value'])} now, was "
            f"{_shown(one['key'], one['was'])}"
            for one in changes
        ),
        f"until the next reload or start{where}",
    ]


def _shown(key: str, value: Any) -> str:
    """A value as TOML would have it, with its unit."""
    if value is None:
        return "not set"
    unit = next((unit for end, unit in UNITS.items() if key.endswith(end)), "")
    text = f"{value:.10g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    return f"{text} {unit}".rstrip()
