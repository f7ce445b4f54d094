"""From TOML text to frozen values, with every fault at once.

The schema is a tree of named tuples whose fields carry a rule as Annotated type. The walk over it
collects what the rules refuse instead of stopping there; a method ``problems`` of a table adds what
is wrong between its fields. Line numbers come from tomli itself, statement by statement
(``lines_of_keys``). What is not TOML at all, ``slips.py`` explains.

A file may be wrong in ten thousand places, and may hold a secret in any of them. So what costs time
is worked out for those faults only that are told, ``MOST_FAULTS`` of them; and what stands where a
secret is meant, or looks like one, is described and not shown.

tomli reads the file; the walk is our own. The libraries that do such a walk either stop at the
first fault (msgspec) or take longer to load than all else a restart needs before it can open the
card: cattrs took 1.4 of the 3.8 s after which an emulated machine had sound again. For the same
reason values are named tuples, not dataclasses (another 0.6 s).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import NoneType
from typing import (
    Annotated,
    Any,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from capstand.config.lines import line_of, lines_of_keys, spoken
from capstand.config.rules import NOTHING, Choice, Fault, Keyed
from capstand.config.slips import explain, odd_sign
from capstand.config.wording import Keys, kind_of, known_keys, listed, meant
from capstand.errors import ConfigError
from capstand.text import clean

T = TypeVar("T")
MOST_FAULTS = 50
MOST_PARTS = 16
WORD = r"[A-Za-z/][\w./-]*"
MOST_TABLES = 256
"""So many elements an array of tables may have."""


class Unusable(Exception):
    """A kind of table that there is and that cannot be used; the text begins after its name."""


def is_ours(kind: Any) -> bool:
    """Whether a schema comes with capstand; what raises in it is then a bug of ours."""
    return str(kind.__module__).partition(".")[0] == __name__.partition(".")[0]


class Tagged:
    """A table of one of several kinds; the value of ``key`` says which."""

    def __init__(self, key: str, kinds: Mapping[str, type[Any]]) -> None:
        self.key = key
        self._kinds = kinds

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(self._kinds)

    def known(self) -> Iterable[Any]:
        """The kinds whose keys may be told."""
        return self._kinds.values()

    def find(self, word: object) -> Any:
        """The kind of that name. Raises Unusable."""
        return self._kinds[Choice(self.choices).check(word)]


class Named:
    """Of a field: a table of one of several kinds, whose key in the file is the kind's name."""

    def known(self) -> dict[str, Any]:
        """The kinds whose keys may be told."""
        raise NotImplementedError

    def find(self, word: str) -> Any:
        """The kind of that name, None where there is none. Raises Unusable."""
        raise NotImplementedError


# Decoding


def decode(text: str, path: str, kind: type[T]) -> T:
    """Decodes the text of a file into ``kind``; ``path`` is for the messages.

    Raises ConfigError with every fault found.
    """
    import tomli  # for the process that reads the file alone: the others do without its memory

    text = text.removeprefix("\ufeff")
    if _has_deep_keys(text):
        raise ConfigError([f"{path}: not a configuration: nested too deeply"])
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        slip = explain(text, error.lineno, error.colno, error.msg, _vocabulary(kind))
        raise ConfigError([f"{path}:{slip.line}: not TOML: {slip.what}"]) from None
    except RecursionError:
        raise ConfigError([f"{path}: not a configuration: nested too deeply"]) from None
    except ValueError:  # Python's own limit for decimal digits
        raise ConfigError([f"{path}: not a configuration: a number is too long"]) from None
    walk = _Walk()
    made = walk.table(document, kind, ())
    if not walk.found:
        assert isinstance(made, kind)
        return made
    lines = lines_of_keys(text)
    found = [(line_of(keys, lines), keys, what) for keys, what in walk.found]
    found.sort(key=lambda one: one[0])
    faults = [
        clean.line(f"{path}:{line}: {spoken(keys, document)}: {_message(what, keys)}")
        for line, keys, what in found[:MOST_FAULTS]
    ]
    if more := len(found) - MOST_FAULTS:
        line = found[MOST_FAULTS][0] if more > 0 else 0
        faults += [f"{path}:{line}: and {more} more; fix these first"] if more > 0 else []
    raise ConfigError(faults)


def with_value(table: T, keys: Keys, text: str) -> tuple[T | None, list[tuple[Keys, str]]]:
    """``table`` with the value that ``text`` is, of TOML, at ``keys``, which are there; or None and
    what is wrong, by key. A word without quotation marks, as a shell passes it, is a text.
    """
    walk = _Walk()
    try:
        made = walk.replaced(table, keys, _value_in(text, str(keys[-1])), ())
    except Fault as fault:
        return None, [(keys, fault.what)]
    return (None if walk.found else made), [
        (where, clean.line(_message(what, where))) for where, what in walk.found
    ]


def _value_in(text: str, key: str) -> Any:
    """Raises Fault."""
    import tomli

    line = f"{key} = {text}"
    try:
        document = tomli.loads(line)
    except tomli.TOMLDecodeError as error:
        if re.fullmatch(WORD, text):
            return text
        slip = explain(line, error.lineno, error.colno, error.msg, (key,))
        raise Fault(NOTHING, f"not a TOML value: {slip.what}") from None
    except (RecursionError, ValueError):
        raise Fault(NOTHING, "not a TOML value: nested too deeply, or too long a number") from None
    if document.keys() != {key}:
        raise Fault(NOTHING, "expected one value, found more than a line")
    return document[key]


def _message(what: "str | Fault", keys: Keys) -> str:
    return what if isinstance(what, str) else what.message(keys)


def _has_deep_keys(text: str) -> bool:
    """Whether a key has more parts than any of ours; a thousand of them cost the parser seconds."""
    return any(
        part.count(".") >= MOST_PARTS
        for line in text.split("\n")
        if line.count(".") >= MOST_PARTS
        for part in re.split(r"[^A-Za-z0-9_\-.\"' \t]", line.split("#")[0])
    )


class _Wrong:
    """Stands for a value that could not be made; its faults are noted."""


_WRONG = _Wrong()


class _Walk:
    """Goes through a document along its schema; ``found`` has every fault with its key path."""

    def __init__(self) -> None:
        self.found: list[tuple[Keys, str | Fault]] = []

    def value(self, value: object, kind: Any, keys: Keys) -> Any:
        """The value as the schema's ``kind``, or _WRONG."""
        if get_origin(kind) is Annotated:
            rule = get_args(kind)[1]
            if isinstance(rule, Keyed):
                return self.keyed(value, rule, keys)
            return (
                self.tagged(value, rule, keys)
                if isinstance(rule, Tagged)
                else self.checked(value, rule, keys)
            )
        if get_origin(kind) is tuple:
            return self.array(value, get_args(kind)[0], keys)
        if not isinstance(kind, type):  # a table that may be absent: T | None
            (kind,) = (get_arg for get_arg in get_args(kind) if get_arg is not NoneType)
            return self.value(value, kind, keys)
        return self.table(value, kind, keys)

    def checked(self, value: object, rule: Any, keys: Keys) -> Any:
        try:
            return rule.check(value)
        except Fault as fault:
            return self.wrong(keys, fault)

    def keyed(self, value: object, rule: Keyed, keys: Keys) -> Any:
        if not isinstance(value, dict):
            return self.wrong(keys, _no_table(value, keys))
        if len(value) > rule.most:
            return self.wrong(keys, f"{len(value)} keys are more than {rule.most}")
        made = []
        for key, one in value.items():
            path = (*keys, key)
            made += [self.checked(key, rule.key, path), self.checked(one, rule.value, path)]
        return _WRONG if _WRONG in made else tuple(zip(made[::2], made[1::2], strict=True))

    def array(self, value: object, kind: Any, keys: Keys) -> Any:
        name = ".".join(str(key) for key in keys if isinstance(key, str))
        if isinstance(value, dict):
            self.wrong(
                keys, f"a table is not an array of tables; write [[{name}]] instead of [{name}]"
            )
            self.value(value, kind, keys)  # what else is wrong in it
            return _WRONG
        if not isinstance(value, list):
            return self.wrong(keys, Fault(value, f"is not an array of tables; write [[{name}]]"))
        if len(value) > MOST_TABLES:
            return self.wrong(keys, f"{len(value)} tables are more than {MOST_TABLES}")
        made = tuple(self.value(one, kind, (*keys, at)) for at, one in enumerate(value))
        return _WRONG if _WRONG in made else made

    def tagged(self, value: object, rule: "Tagged", keys: Keys) -> Any:
        if not isinstance(value, dict):
            return self.wrong(keys, _no_table(value, keys))
        if rule.key not in value:
            expected = f"expected one of {listed(rule.choices)}"
            return self.wrong(keys, f"the key {rule.key} is missing; {expected}")
        word = value[rule.key]
        try:
            kind = rule.find(word)
        except Fault as fault:
            return self.wrong((*keys, rule.key), fault)
        except Unusable as error:
            return self.wrong((*keys, rule.key), Fault(word, str(error)))
        return self.table(value, kind, keys)

    def table(self, value: object, kind: Any, keys: Keys) -> Any:
        try:
            return self._table(value, kind, keys)
        except Exception as error:
            if is_ours(kind):
                raise
            broken = f"its schema failed ({type(error).__name__}: {error})"
            return self.wrong(keys, f"{broken}; fix or uninstall what brings {kind.__module__}")

    def _table(self, value: object, kind: Any, keys: Keys) -> Any:
        if not isinstance(value, dict):
            return self.wrong(keys, _no_table(value, keys))
        before = len(self.found)
        known = _fields(kind)
        needed = set(kind._fields) - kind._field_defaults.keys()
        for extra in sorted(value.keys() - known.keys()):
            try:
                found = self.named(extra, kind)
            except Unusable as error:
                self.wrong((*keys, extra), Fault(extra, str(error)))
                continue
            if found is None:
                self.wrong((*keys, extra), _UnknownKey(extra, kind))
            else:
                known = known | {extra: found}
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
        made = kind(**self.by_field(right, kind, keys))
        # Beside other faults only what concerns keys that are there and right by themselves.
        faultless = len(self.found) == before
        for path, what in _problems(made):
            if faultless or path[0] in right:
                self.wrong((*keys, *path), what)
        return made if len(self.found) == before else _WRONG

    def replaced(self, table: Any, path: Keys, value: object, keys: Keys) -> Any:
        """A table that was right, with another value at ``path``, which is there; or _WRONG."""
        key, *deeper = path
        at = (*keys, key)
        if isinstance(key, int):
            made = self.replaced(table[key], tuple(deeper), value, at)
            return (*table[:key], made, *table[key + 1 :])
        if deeper:
            made = self.replaced(getattr(table, key), tuple(deeper), value, at)
        else:
            kind: Any = type(table)
            made = self.value(value, _fields(kind)[key], at)
        if self.found:
            return _WRONG
        table = table._replace(**{key: made})
        for below, what in _problems(table):
            self.wrong((*keys, *below), what)
        return table

    def named(self, word: str, kind: Any) -> Any:
        """The kind of a table that is called by its kind, which no other distribution but one may
        know; None for any other key."""
        return next((found for _, rule in _named(kind) if (found := rule.find(word))), None)

    def by_field(self, right: dict[str, Any], kind: Any, keys: Keys) -> dict[str, Any]:
        """Values by the fields they are for: tables that are called by their kind share one."""
        fields = {name: one for name, one in right.items() if name in kind._fields}
        for name in [one for one in right if one not in fields]:
            ((field, _),) = _named(kind)
            if field in fields:
                self.wrong((*keys, name), "there is another table of this kind; delete one of them")
            fields[field] = right[name]
        return fields

    def wrong(self, keys: Keys, what: str | Fault) -> _Wrong:
        self.found.append((keys, what))
        return _WRONG


def _problems(table: Any) -> Iterator[tuple[Keys, str]]:
    """What is wrong between the keys of a table."""
    for below, what in table.problems() if hasattr(table, "problems") else ():
        yield tuple(int(one) if one.isdigit() else one for one in below.split(".")), what


class _UnknownKey(Fault):
    """A key that no table here has, or only another table."""

    def __init__(self, key: str, kind: Any) -> None:
        super().__init__(key, "unknown key", choices=tuple(_fields(kind)))
        self._kind = kind

    def message(self, keys: Keys) -> str:
        if sign := odd_sign(str(self.value)):
            return f"{self.what}; it has {sign}"
        if place := _elsewhere(str(self.value), self._kind):
            table = ".".join([*(key for key in keys[:-1] if isinstance(key, str)), place])
            return f"{self.what}; it belongs in [{table}]"
        return f"{self.what}{meant(self.value, self.choices) or known_keys(self.choices)}"


@cache
def _fields(kind: Any) -> dict[str, Any]:
    """By the keys of a table what they hold."""
    fields = get_type_hints(kind, include_extras=True)
    for name, rule in _named(kind):
        del fields[name]
        fields |= rule.known()
    return fields


@cache
def _named(kind: Any) -> list[tuple[str, Named]]:
    """The fields whose key is the name of what they hold."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        (name, rule)
        for name, hint in hints.items()
        if get_origin(hint) is Annotated and isinstance(rule := get_args(hint)[1], Named)
    ]


def _kinds_in(kind: Any) -> Iterator[Any]:
    """The tables that a field of this type may hold."""
    if get_origin(kind) is Annotated:
        rule = get_args(kind)[1]
        yield from rule.known() if isinstance(rule, Tagged) else ()
    elif isinstance(kind, type) and hasattr(kind, "_fields"):
        yield kind
    else:
        for get_arg in get_args(kind):
            yield from _kinds_in(get_arg)


def _vocabulary(kind: Any) -> frozenset[str]:
    """All keys and tables there are."""
    names = set(_fields(kind))
    for field in _fields(kind).values():
        for one in _kinds_in(field):
            names |= _vocabulary(one)
    return frozenset(names)


def _elsewhere(key: str, kind: Any) -> str | None:
    """The table below ``kind`` that has such a key, if it is one; rather one that always has it
    than one of a type that has it."""
    places = {
        name: has
        for name, field in _fields(kind).items()
        if any(has := [key in _fields(one) for one in _kinds_in(field)])
    }
    likely = [name for name, has in places.items() if all(has)] or list(places)
    return likely[0] if len(likely) == 1 else None


def _no_table(value: object, keys: Keys) -> str:
    name = ".".join(key for key in keys if isinstance(key, str))
    if keys and isinstance(keys[-1], int):
        return f"{kind_of(value)} is not a table"
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        return f"an array is not a table; write [{name}] instead of [[{name}]]"
    return f"{kind_of(value)} is not a table; write [{name}] and its keys below it"
