"""From TOML text to frozen values, with every fault at once.

The schema is a tree of named tuples whose fields carry a rule as Annotated type. The walk over it
collects what the rules refuse instead of stopping there; a method ``problems`` of a table adds what
is wrong between its fields. Line numbers come from tomli itself, statement by statement
(``_lines_of_keys``).

tomli reads the file; the walk is our own. The libraries that do such a walk either stop at the
first fault (msgspec) or take longer to load than all else a restart needs before it can open the
card: cattrs took 1.4 of the 3.8 s after which an emulated machine had sound again. For the same
reason values are named tuples, not dataclasses (another 0.6 s).
"""

import re
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import tomli

from capstand.errors import ConfigError

T = TypeVar("T")
Keys = tuple[str | int, ...]
WORK = 1_000_000


class _Fault(ValueError):
    """What is wrong with one value, in words."""


# Rules


class Whole(NamedTuple):
    """A whole number within bounds."""

    low: int
    high: int
    near: tuple[int, ...] = ()

    def check(self, value: object) -> int:
        if type(value) is int and self.low <= value <= self.high:
            return value
        meant = [n for n in self.near if type(value) in (int, float) and value in (n, n / 1000)]
        hint = f"; did you mean {meant[0]}?" if meant else ""
        raise _Fault(f"{_shown(value)} is no whole number from {self.low} to {self.high}{hint}")


class Flag(NamedTuple):
    """true or false."""

    def check(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise _Fault(f"{_shown(value)} is neither true nor false")


class Number(NamedTuple):
    """A finite number within bounds."""

    low: float
    high: float

    def check(self, value: object) -> float:
        if type(value) in (int, float) and self.low <= value <= self.high:  # type: ignore[operator]
            return float(value)  # type: ignore[arg-type]
        raise _Fault(f"{_shown(value)} is no number from {self.low:g} to {self.high:g}")


class Choice(NamedTuple):
    """One of some words."""

    words: tuple[str, ...]

    def check(self, value: object) -> str:
        if isinstance(value, str) and value in self.words:
            return value
        raise _Fault(
            f"{_shown(value)} is not one of {_listed(self.words)}{_meant(value, self.words)}"
        )


class Text(NamedTuple):
    """A string of a certain shape; ``shape`` says so in words."""

    pattern: str
    shape: str

    def check(self, value: object) -> str:
        if isinstance(value, str) and re.fullmatch(self.pattern, value):
            return value
        raise _Fault(f"{_shown(value)} is not {self.shape}")


class FlagOr(NamedTuple):
    """true or false, or else a string."""

    text: Text

    def check(self, value: object) -> bool | str:
        return value if isinstance(value, bool) else self.text.check(value)


class Prefixed(NamedTuple):
    """A string whose beginning says what shape it must have; ``other`` is for all the rest."""

    shapes: Mapping[str, Text]
    other: Text

    def check(self, value: object) -> str:
        word = value.lower() if isinstance(value, str) else ""
        rule = next((rule for start, rule in self.shapes.items() if word.startswith(start)), None)
        return (rule or self.other).check(value)


class OneOrSome(NamedTuple):
    """A single value, or an array of up to ``most`` values in order of preference."""

    rule: Prefixed | Text
    most: int

    def check(self, value: object) -> str | tuple[str, ...]:
        if not isinstance(value, list):
            return self.rule.check(value)
        if not 1 <= len(value) <= self.most:
            raise _Fault(f"{len(value)} values are not 1 to {self.most}")
        return tuple(self.rule.check(one) for one in value)


class Tagged:
    """A table of one of several kinds; the value of ``key`` says which."""

    def __init__(self, key: str, kinds: Mapping[str, type[Any]]) -> None:
        self.key = key
        self.kinds = kinds


# Decoding


def decode(text: str, path: str, kind: type[T]) -> T:
    """Decodes the text of a file into ``kind``; ``path`` is for the messages.

    Raises ConfigError with every fault found.
    """
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError([f"{path}:{error.lineno}: not TOML: {error.msg}"]) from None
    except RecursionError:
        raise ConfigError([f"{path}: not a configuration: nested too deeply"]) from None
    except ValueError:  # Python's own limit for decimal digits
        raise ConfigError([f"{path}: not a configuration: a number is too long"]) from None
    walk = _Walk()
    made = walk.table(document, kind, ())
    if not walk.found:
        assert isinstance(made, kind)
        return made
    lines = _lines_of_keys(text)
    told = [
        (line, _printable(f"{path}:{line}: {_spoken(keys, document)}: {what}"))
        for keys, what in walk.found
        for line in [_line_of(keys, lines)]
    ]
    raise ConfigError([what for _, what in sorted(told, key=lambda one: one[0])])


class _Wrong:
    """Stands for a value that could not be made; its faults are noted."""


_WRONG = _Wrong()


class _Walk:
    """Goes through a document along its schema; ``found`` has every fault with its key path."""

    def __init__(self) -> None:
        self.found: list[tuple[Keys, str]] = []

    def value(self, value: object, kind: Any, keys: Keys) -> Any:
        """The value as the schema's ``kind``, or _WRONG."""
        if get_origin(kind) is Annotated:
            rule = get_args(kind)[1]
            return (
                self.tagged(value, rule, keys)
                if isinstance(rule, Tagged)
                else self.checked(value, rule, keys)
            )
        if get_origin(kind) is tuple:
            return self.array(value, get_args(kind)[0], keys)
        if not isinstance(kind, type):  # a table that may be absent: T | None
            (kind,) = (one for one in get_args(kind) if one is not NoneType)
            return self.value(value, kind, keys)
        return self.table(value, kind, keys)

    def checked(self, value: object, rule: Any, keys: Keys) -> Any:
        try:
            return rule.check(value)
        except _Fault as fault:
            return self.wrong(keys, str(fault))

    def array(self, value: object, kind: Any, keys: Keys) -> Any:
        if not isinstance(value, list):
            return self.wrong(keys, f"{_shown(value)} is no array of tables")
        made = tuple(self.value(one, kind, (*keys, at)) for at, one in enumerate(value))
        return _WRONG if _WRONG in made else made

    def tagged(self, value: object, rule: "Tagged", keys: Keys) -> Any:
        words = tuple(rule.kinds)
        if not isinstance(value, dict):
            return self.wrong(keys, f"{_kind(value)} is no table")
        if rule.key not in value:
            expected = f"expected one of {_listed(words)}"
            return self.wrong(keys, f"the key {rule.key} is missing; {expected}")
        word = self.checked(value[rule.key], Choice(words), (*keys, rule.key))
        return _WRONG if word is _WRONG else self.table(value, rule.kinds[word], keys)

    def table(self, value: object, kind: Any, keys: Keys) -> Any:
        if not isinstance(value, dict):
            return self.wrong(keys, f"{_kind(value)} is no table")
        before = len(self.found)
        known = get_type_hints(kind, include_extras=True)
        needed = known.keys() - kind._field_defaults.keys()
        for extra in sorted(value.keys() - known.keys()):
            hint = _meant(extra, tuple(known)) or _known(tuple(known))
            self.wrong((*keys, extra), f"unknown key{hint}")
        right = {}
        for name, inner in known.items():
            if name in value:
                made = self.value(value[name], inner, (*keys, name))
                if made is not _WRONG:
                    right[name] = made
            elif name in needed:
                self.wrong((*keys, name), "missing; this key has no default")
        if needed - right.keys():
            return _WRONG
        made = kind(**right)
        # Beside other faults only what concerns keys that are there and right by themselves.
        clean = len(self.found) == before
        for below, what in made.problems() if hasattr(made, "problems") else ():
            path = tuple(int(one) if one.isdigit() else one for one in below.split("."))
            if clean or path[0] in right:
                self.wrong((*keys, *path), what)
        return made if len(self.found) == before else _WRONG

    def wrong(self, keys: Keys, what: str) -> _Wrong:
        self.found.append((keys, what))
        return _WRONG


def _printable(text: str) -> str:
    """What a file holds must not steer the terminal or the journal it is reported to."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + (value if len(value) <= 60 else value[:57] + "...") + '"'
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a huge number"
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: object) -> str:
    """What stands where a table should; not a text itself, which may be a secret in its place."""
    return "a text" if isinstance(value, str) else _shown(value)


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(f'"{word}"' for word in words)


def _known(words: tuple[str, ...]) -> str:
    return "; known here: " + ", ".join(words)


def _meant(value: object, words: tuple[str, ...]) -> str:
    import difflib  # only where something is wrong

    near = difflib.get_close_matches(str(value)[:100], words, 1, 0.6)
    near = near or [word for word in words if str(value).lower() == word.lower()]
    return f"; did you mean {near[0]}?" if near else ""


# Places


def _lines_of_keys(text: str) -> dict[Keys, int]:
    """The line on which each key first appears.

    A valid file falls into statements (a header or a key and its value), each of whole lines and
    each a valid file of its own: so lines are gathered until tomli takes them. That is not worth
    more than ``WORK`` characters; keys beyond are told by the line of the table they are in.
    """
    work = WORK
    lines: dict[Keys, int] = {}
    newest: dict[Keys, int] = {}  # array of tables → number of its newest element
    table: Keys = ()
    pending: list[str] = []
    start = 1
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not pending:
            start = number
        pending.append(line)
        tried = "\n".join(pending)
        work -= len(tried)
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
        for keys in _inside(value, path):
            lines.setdefault(keys, start)
    return lines


def _inside(value: object, path: Keys) -> Iterator[Keys]:
    """Every key below an inline table or array."""
    pairs: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    for key, one in pairs:
        yield (*path, key)
        yield from _inside(one, (*path, key))


def _line_of(keys: Keys, lines: dict[Keys, int]) -> int:
    for depth in range(len(keys), 0, -1):
        if keys[:depth] in lines:
            return lines[keys[:depth]]
    return 1


def _short(word: str) -> str:
    return word if len(word) <= 60 else word[:57] + "..."


def _spoken(keys: Keys, document: dict[str, Any]) -> str:
    """A path for people: elements of an array go by their name, where they have one."""
    words: list[str] = []
    value: Any = document
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            value = None
        if isinstance(key, int):
            name = value.get("name") if isinstance(value, dict) else None
            shown = isinstance(name, str) and name and name.isprintable()
            words.append(_short(str(name)) if shown else str(key + 1))
        else:
            words.append(_short(key) if key.isprintable() else repr(_short(key)))
    return ".".join(words) or "file"
