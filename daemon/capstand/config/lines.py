"""Where a key stands: its line in the file, and its name for people."""

from collections.abc import Iterator
from typing import Any

from capstand.config.wording import PLAIN, Keys, near_secret, secretive
from capstand.text import clean

WORK = 1_500_000
MOST_DEPTH = 8
LONGEST_WORD = 60
CALL = 50
"""What a call of the parser costs, in characters of its text."""


def lines_of_keys(text: str) -> dict[Keys, int]:
    """The line on which each key first appears.

    A valid file falls into statements (a header or a key and its value), each of whole lines and
    each a valid file of its own: so lines are gathered until tomli takes them. That is not worth
    more than ``WORK`` characters; keys beyond are told by the line of the table they are in.
    """
    import tomli

    work = WORK
    lines: dict[Keys, int] = {}
    newest: dict[Keys, int] = {}  # array of tables → number of its newest element
    table: Keys = ()
    pending: list[str] = []
    start = 1
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not pending:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            start = number
        pending.append(line)
        tried = "\n".join(pending)
        work -= len(tried) + CALL
        if work < 0:
            break
        try:
            statement = tomli.loads(tried)
        except tomli.TOMLDecodeError:
            continue
        header = pending[0].lstrip().startswith("[")
        pending = []
        if not statement:
            continue
        path: Keys = () if header else table
        value: Any = statement
        while isinstance(value, dict) and len(value) == 1:
            key, value = next(iter(value.items()))
            path = (*path, key)
            lines.setdefault(path, start)
            if header and isinstance(value, list):
                newest[path] = newest.get(path, -1) + 1
                value = value[0]
            if header and path in newest:
                path = (*path, newest[path])
                lines.setdefault(path, start)
        if header:
            table = path
        for keys in _inside(value, path, MOST_DEPTH):
            lines.setdefault(keys, start)
    return lines


def _inside(value: object, path: Keys, depth: int) -> Iterator[Keys]:
    """Every key below an inline table or array, so deep; below, a key is told by what it is in."""
    if not depth:
        return
    pairs: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    for key, one in pairs:
        yield (*path, key)
        yield from _inside(one, (*path, key), depth - 1)


def line_of(keys: Keys, lines: dict[Keys, int]) -> int:
    for depth in range(len(keys), 0, -1):
        if keys[:depth] in lines:
            return lines[keys[:depth]]
    return 1


def spoken(keys: Keys, document: dict[str, Any]) -> str:
    """A path for people: elements of an array go by their name, where they have one."""
    choices: list[str] = []
    value: Any = document
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            value = None
        if isinstance(key, int):
            name = value.get("name") if isinstance(value, dict) else None
            plain = isinstance(name, str) and name and name.isprintable() and not secretive(name)
            choices.append(clean.line(name, LONGEST_WORD) if plain else str(key + 1))
        elif secretive(key) or (near_secret(choices) and not PLAIN.fullmatch(key)):
            choices.append("a key that is not shown")
        else:
            choices.append(clean.line(key, LONGEST_WORD))
    return ".".join(choices) or "file"
