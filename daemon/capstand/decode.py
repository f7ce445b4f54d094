"""From TOML text to frozen values, with every fault at once.

The schema is a tree of frozen dataclasses whose fields carry a rule as Annotated type. cattrs
builds the values and collects what the rules refuse; a method ``problems`` of a dataclass adds what
is wrong between its fields. Line numbers come from tomli itself, statement by statement
(``_lines_of_keys``).
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin

import tomli
from cattrs import Converter
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from capstand.errors import ConfigError

T = TypeVar("T")
Keys = tuple[str | int, ...]
WORK = 1_000_000


class _Fault(ValueError):
    """One fault, in words, at the place where cattrs notes it."""


class _Misfits(ValueError):
    """Faults between the fields of one table: (key below it, what is wrong)."""

    def __init__(self, found: list[tuple[str, str]]) -> None:
        super().__init__(found)
        self.found = found


class _At(Exception):
    """The error of one element of an array, and its number."""

    def __init__(self, number: int, error: Exception) -> None:
        super().__init__(number)
        self.number = number
        self.error = error


# Rules


@dataclass(frozen=True, slots=True)
class Whole:
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


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number within bounds."""

    low: float
    high: float

    def check(self, value: object) -> float:
        if type(value) in (int, float) and self.low <= value <= self.high:  # type: ignore[operator]
            return float(value)  # type: ignore[arg-type]
        raise _Fault(f"{_shown(value)} is no number from {self.low:g} to {self.high:g}")


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]

    def check(self, value: object) -> str:
        if isinstance(value, str) and value in self.words:
            return value
        raise _Fault(
            f"{_shown(value)} is not one of {_listed(self.words)}{_meant(value, self.words)}"
        )


@dataclass(frozen=True, slots=True)
class Text:
    """A string of a certain shape; ``shape`` says so in words."""

    pattern: str
    shape: str

    def check(self, value: object) -> str:
        if isinstance(value, str) and re.fullmatch(self.pattern, value):
            return value
        raise _Fault(f"{_shown(value)} is not {self.shape}")


@dataclass(frozen=True, eq=False)  # hashed by identity, as cattrs keeps types in tables
class Tagged:
    """A table of one of several kinds; the value of ``key`` says which."""

    key: str
    kinds: Mapping[str, type[Any]]


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
    try:
        return _make_converter().structure(document, kind)
    except Exception as error:
        found = list(_faults(error, ()))
        if not found:
            raise
    lines = _lines_of_keys(text)
    told = [
        (line, _printable(f"{path}:{line}: {_spoken(keys, document)}: {what}"))
        for keys, what in found
        for line in [_line_of(keys, lines)]
    ]
    raise ConfigError([what for _, what in sorted(told, key=lambda one: one[0])])


def _rule(annotated: Any) -> Any:
    """The rule an Annotated type carries, else None."""
    return get_args(annotated)[1] if get_origin(annotated) is Annotated else None


def _table_hook(kind: type[Any], converter: Converter) -> Callable[[object, Any], Any]:
    plain = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)

    def structure(value: object, _: Any) -> Any:
        if not isinstance(value, dict):
            raise _Fault(f"{_shown(value)} is no table")
        try:
            made = plain(value, kind)
        except ClassValidationError as error:
            raise ExceptionGroup("table", [error, *misfits_beside(error, value)]) from None
        problems = list(made.problems()) if hasattr(made, "problems") else []
        if problems:
            raise _Misfits(problems)
        return made

    def misfits_beside(error: ClassValidationError, value: dict[str, Any]) -> list[_Misfits]:
        """What is wrong between the keys that are right by themselves, defaults for the others."""
        wrong = {note.name for one in error.exceptions for note in _notes(one)}
        right = {one.name for one in fields(kind) if one.name in value} - wrong
        try:
            made = plain({key: one for key, one in value.items() if key in right}, kind)
        except ClassValidationError:
            return []  # a key without default is among the wrong ones
        found = made.problems() if hasattr(made, "problems") else []
        told = [(key, what) for key, what in found if key.split(".")[0] in right]
        return [_Misfits(told)] if told else []

    return structure


def _array_hook(annotated: Any, converter: Converter) -> Callable[[object, Any], Any]:
    inner = get_args(annotated)[0]

    def structure(value: object, _: Any) -> Any:
        if not isinstance(value, list):
            raise _Fault(f"{_shown(value)} is no array of tables")
        made, errors = [], []
        for number, one in enumerate(value):
            try:
                made.append(converter.structure(one, inner))
            except Exception as error:  # noqa: BLE001 - collected, not swallowed
                errors.append(_At(number, error))
        if errors:
            raise ExceptionGroup("array", errors)
        return tuple(made)

    return structure


def _tagged_hook(annotated: Any, converter: Converter) -> Callable[[object, Any], Any]:
    tagged: Tagged = _rule(annotated)

    def structure(value: object, _: Any) -> Any:
        if not isinstance(value, dict):
            raise _Fault(f"{_shown(value)} is no table")
        words = tuple(tagged.kinds)
        if tagged.key not in value:
            raise _Fault(f"the key {tagged.key} is missing; expected one of {_listed(words)}")
        try:
            word = Choice(words).check(value[tagged.key])
        except _Fault as fault:
            raise _Misfits([(tagged.key, str(fault))]) from None
        return converter.structure(value, tagged.kinds[word])

    return structure


def _make_converter() -> Converter:
    converter = Converter(detailed_validation=True, forbid_extra_keys=True)
    converter.register_structure_hook_func(
        lambda kind: hasattr(_rule(kind), "check"),
        lambda value, kind: _rule(kind).check(value),
    )
    converter.register_structure_hook_factory(
        lambda kind: isinstance(_rule(kind), Tagged), lambda kind: _tagged_hook(kind, converter)
    )
    converter.register_structure_hook_factory(
        lambda kind: getattr(kind, "__origin__", None) is tuple,
        lambda kind: _array_hook(kind, converter),
    )
    converter.register_structure_hook_factory(
        is_dataclass, lambda kind: _table_hook(kind, converter)
    )
    return converter


def _notes(error: BaseException) -> list[Any]:
    """Cattrs's notes: which attribute an error belongs to."""
    return [note for note in getattr(error, "__notes__", ()) if hasattr(note, "name")]


def _faults(error: BaseException, keys: Keys) -> Iterator[tuple[Keys, str]]:
    """Walks what cattrs collected down to single faults with their key paths."""
    match error:
        case _At():
            yield from _faults(error.error, (*keys, error.number))
        case _Misfits():
            for below, what in error.found:
                yield (*keys, *(int(k) if k.isdigit() else k for k in below.split("."))), what
        case ForbiddenExtraKeysError():
            known = tuple(one.name for one in fields(error.cl))
            for extra in sorted(error.extra_fields):
                yield (*keys, extra), f"unknown key{_meant(extra, known) or _known(known)}"
        case ClassValidationError() | ExceptionGroup():
            for one in error.exceptions:
                yield from _faults(one, (*keys, *(note.name for note in _notes(one))))
        case KeyError():
            yield keys, "missing; this key has no default"
        case _Fault():
            yield keys, str(error)
        case _:
            raise error


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


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(f'"{word}"' for word in words)


def _known(words: tuple[str, ...]) -> str:
    return "; known here: " + ", ".join(words)


def _meant(value: object, words: tuple[str, ...]) -> str:
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
            words.append(str(name) if shown else str(key + 1))
        else:
            words.append(key if key.isprintable() else repr(key))
    return ".".join(words) or "file"
