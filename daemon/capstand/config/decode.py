"""From TOML text to frozen values, with every fault at once.

The schema is a tree of named tuples whose fields carry a rule as Annotated type. The walk over it
collects what the rules refuse instead of stopping there; a method ``problems`` of a table adds what
is wrong between its fields. Line numbers come from tomli itself, statement by statement
(``_lines_of_keys``). What is not TOML at all, ``slips.py`` explains.

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
    NamedTuple,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import tomli

from capstand.config.slips import explain, invisible, odd_sign
from capstand.errors import ConfigError
from capstand.text import clean

T = TypeVar("T")
Keys = tuple[str | int, ...]
WORK = 1_500_000
MOST_FAULTS = 50
MOST_CARDS = 32
MOST_PARTS = 16
MOST_DEPTH = 8
LONGEST_WORD = 60
CALL = 50
"""What a call of the parser costs, in characters of its text."""
WORD = r"[A-Za-z/][\w./-]*"
MOST_TABLES = 256
"""So many elements an array of tables may have."""


NOTHING = object()


class _Fault(ValueError):
    """What is wrong with one value, in words that begin after the value; ``choices`` are those it
    may have been meant to be, ``hint`` is a mend that is known already.
    """

    def __init__(
        self, value: object, what: str, hint: str = "", choices: tuple[str, ...] = ()
    ) -> None:
        super().__init__(what)
        self.value = value
        self.what = what
        self.hint = hint
        self.choices = choices

    def message(self, keys: Keys) -> str:
        """``keys`` are where it is: perhaps where a secret is meant."""
        if self.value is NOTHING:
            return self.what
        shown = _described(self.value) if _hidden(keys, self.value) else _shown(self.value)
        hint = f"; {self.hint}" if self.hint else meant(self.value, self.choices)
        separator = ":" if self.what.startswith("expected ") else ""
        return f"{shown}{separator} {self.what}{hint}"


# Rules


class Whole(NamedTuple):
    """A whole number within bounds."""

    low: int
    high: int
    near: tuple[int, ...] = ()

    def check(self, value: object) -> int:
        if type(value) is int and self.low <= value <= self.high:
            return value
        number = _number_in(value)
        meant = [n for n in self.near if number in (n, n / 1000)]
        if isinstance(value, str) and number is not None:
            hint = "write the number without quotation marks"
            hint += f": {meant[0]}" if meant else ""
        else:
            hint = f"did you mean {meant[0]}?" if meant else ""
        raise _Fault(value, f"expected an integer from {self.low} to {self.high}", hint)


class Flag(NamedTuple):
    """true or false."""

    def check(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        hint = ""
        if isinstance(value, str) and value.lower() in ("true", "false"):
            hint = f"write {value.lower()} without quotation marks"
        raise _Fault(value, "expected true or false", hint)


class Number(NamedTuple):
    """A finite number within bounds."""

    low: float
    high: float

    def check(self, value: object) -> float:
        if type(value) in (int, float) and self.low <= value <= self.high:  # type: ignore[operator]
            return float(value)  # type: ignore[arg-type]
        quoted = isinstance(value, str) and _number_in(value) is not None
        hint = "write the number without quotation marks" if quoted else ""
        raise _Fault(value, f"expected a number from {self.low:g} to {self.high:g}", hint)


class Choice(NamedTuple):
    """One of some words."""

    choices: tuple[str, ...]

    def check(self, value: object) -> str:
        if isinstance(value, str) and value in self.choices:
            return value
        raise _Fault(value, f"expected one of {_listed(self.choices)}", choices=self.choices)


class Text(NamedTuple):
    """A string of a certain shape; ``shape`` says so in words."""

    pattern: str
    shape: str

    def check(self, value: object) -> str:
        right = isinstance(value, str) and re.fullmatch(self.pattern, value)
        if right and not invisible(str(value)):
            return str(value)
        raise _Fault(value, f"expected {self.shape}", _mend_of(value))


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
        if type(value) is int and 0 <= value < MOST_CARDS:
            raise _Fault(value, f"expected {self.other.shape}", f'did you mean "hw:{value}"?')
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
            raise _Fault(NOTHING, f"{len(value)} values; expected 1 to {self.most}")
        return tuple(self.rule.check(one) for one in value)


class Some(NamedTuple):
    """An array of 1 to ``most`` values, each once; ``like`` shows one."""

    rule: Whole
    most: int
    like: str

    def check(self, value: object) -> tuple[int, ...]:
        if not isinstance(value, list):
            raise _Fault(value, f"expected an array such as {self.like}")
        if not 1 <= len(value) <= self.most:
            raise _Fault(NOTHING, f"{len(value)} values; expected 1 to {self.most}")
        made = tuple(self.rule.check(one) for one in value)
        for one in made:
            if made.count(one) > 1:
                raise _Fault(one, "is in the array twice; expected each value once")
        return made


class Rows(NamedTuple):
    """An array of 1 to ``most`` rows of 1 to ``most`` numbers, all of one length; ``like`` shows
    one."""

    rule: Number
    most: int
    like: str

    def check(self, value: object) -> tuple[tuple[float, ...], ...]:
        if not isinstance(value, list) or not all(isinstance(one, list) for one in value):
            raise _Fault(value, f"expected an array of rows such as {self.like}")
        lengths = {len(one) for one in value}
        if not 1 <= len(value) <= self.most or not all(
            1 <= length <= self.most for length in lengths
        ):
            raise _Fault(NOTHING, f"expected 1 to {self.most} rows of 1 to {self.most} numbers")
        if len(lengths) > 1:
            raise _Fault(NOTHING, "the rows have different lengths; write such as " + self.like)
        return tuple(tuple(self.rule.check(one) for one in row) for row in value)


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


class Rule(Protocol):
    """What a value must be like."""

    def check(self, value: object) -> Any:
        """The value as the configuration has it. Raises _Fault."""


class Keyed(NamedTuple):
    """A table of up to ``most`` keys that the schema does not know, as pairs."""

    key: Text
    value: Rule
    most: int


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
    lines = _lines_of_keys(text)
    found = [(_line_of(keys, lines), keys, what) for keys, what in walk.found]
    found.sort(key=lambda one: one[0])
    faults = [
        clean.line(f"{path}:{line}: {_spoken(keys, document)}: {_message(what, keys)}")
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
    except _Fault as fault:
        return None, [(keys, fault.what)]
    return (None if walk.found else made), [
        (where, clean.line(_message(what, where))) for where, what in walk.found
    ]


def _value_in(text: str, key: str) -> Any:
    """Raises _Fault."""
    line = f"{key} = {text}"
    try:
        document = tomli.loads(line)
    except tomli.TOMLDecodeError as error:
        if re.fullmatch(WORD, text):
            return text
        slip = explain(line, error.lineno, error.colno, error.msg, (key,))
        raise _Fault(NOTHING, f"not a TOML value: {slip.what}") from None
    except (RecursionError, ValueError):
        raise _Fault(NOTHING, "not a TOML value: nested too deeply, or too long a number") from None
    if document.keys() != {key}:
        raise _Fault(NOTHING, "expected one value, found more than a line")
    return document[key]


def _message(what: "str | _Fault", keys: Keys) -> str:
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
        self.found: list[tuple[Keys, str | _Fault]] = []

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
        except _Fault as fault:
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
            return self.wrong(keys, _Fault(value, f"is not an array of tables; write [[{name}]]"))
        if len(value) > MOST_TABLES:
            return self.wrong(keys, f"{len(value)} tables are more than {MOST_TABLES}")
        made = tuple(self.value(one, kind, (*keys, at)) for at, one in enumerate(value))
        return _WRONG if _WRONG in made else made

    def tagged(self, value: object, rule: "Tagged", keys: Keys) -> Any:
        if not isinstance(value, dict):
            return self.wrong(keys, _no_table(value, keys))
        if rule.key not in value:
            expected = f"expected one of {_listed(rule.choices)}"
            return self.wrong(keys, f"the key {rule.key} is missing; {expected}")
        word = value[rule.key]
        try:
            kind = rule.find(word)
        except _Fault as fault:
            return self.wrong((*keys, rule.key), fault)
        except Unusable as error:
            return self.wrong((*keys, rule.key), _Fault(word, str(error)))
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
                self.wrong((*keys, extra), _Fault(extra, str(error)))
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

    def wrong(self, keys: Keys, what: str | _Fault) -> _Wrong:
        self.found.append((keys, what))
        return _WRONG


def _problems(table: Any) -> Iterator[tuple[Keys, str]]:
    """What is wrong between the keys of a table."""
    for below, what in table.problems() if hasattr(table, "problems") else ():
        yield tuple(int(one) if one.isdigit() else one for one in below.split(".")), what


class _UnknownKey(_Fault):
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
        return f"{self.what}{meant(self.value, self.choices) or _known(self.choices)}"


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
        return f"{_kind(value)} is not a table"
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        return f"an array is not a table; write [{name}] instead of [[{name}]]"
    return f"{_kind(value)} is not a table; write [{name}] and its keys below it"


def _number_in(value: object) -> float | None:
    """A number, or the number that a text is, maybe with its unit."""
    if type(value) in (int, float):
        return float(value) if abs(value) < 1e300 else None  # type: ignore[arg-type]
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([+-]?\d{1,12}(\.\d{1,6})?)\s*(k?hz|m?s|k|db|dbfs|ppm)?\s*",
                             value, re.IGNORECASE)  # fmt: skip
        return float(found[1]) if found else None
    return None


def _mend_of(value: object) -> str:
    """How to mend a text that has not its shape."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "put the text in quotation marks"
    if not isinstance(value, str):
        return ""
    if sign := odd_sign(value):
        return f"it has {sign}"
    if value != value.strip():
        return "delete the space at its beginning or end"
    if value.startswith("~"):
        return "write the whole path of the home directory instead of ~"
    if "$" in value:
        return "variables are not replaced; write what is meant"
    if value.startswith("file:"):
        return "write the path alone, without file:"
    return ""


SECRET_WORDS = re.compile(
    r"token|secret|passw|credential|certificate|api_?key|private|auth|^key$|url", re.IGNORECASE
)
LONGEST_LOOK = 300
"""More of a text than is ever shown."""
PLAIN = re.compile(r"[a-z_]{1,20}")
HARMLESS = re.compile(r"[A-Za-z]{0,12}")
SECRETIVE = re.compile(
    r"[0-9a-fA-F]{20,}|00[67][A-Za-z0-9+/=]{20,}|-----BEGIN|://|:[^/:@]+@"
    r"|(?=[A-Za-z0-9+_=~-]*[0-9])(?=[A-Za-z0-9+_=~-]*[A-Za-z])[A-Za-z0-9+_=~-]{24,}"
    r"|^(?=.*[0-9])[A-Za-z0-9+/=]{32,}$"
)


def _hidden(keys: Keys, value: object) -> bool:
    """Whether a secret is meant to be here, or may be by mistake: no text beside a token's keys is
    shown, but for a plain word as its ``source`` or ``method``."""
    names = [key for key in keys if isinstance(key, str)]
    if (
        names[-1:] in (["source"], ["method"])
        and isinstance(value, str)
        and HARMLESS.fullmatch(value)
    ):
        return False
    near = _near_secret(names)
    return near if isinstance(value, str) else bool(names and SECRET_WORDS.search(names[-1]))


def _near_secret(names: list[str]) -> bool:
    return any(SECRET_WORDS.search(name) for name in names)


def secretive(text: str) -> bool:
    """Whether a text looks like a key, a token, a certificate or an address with one in it."""
    return SECRETIVE.search(text[:LONGEST_LOOK]) is not None


def _described(value: object) -> str:
    """A value that may be a secret."""
    if isinstance(value, str) and value:
        return f"this text of {len(value)} characters"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "this number"
    return _shown(value)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if secretive(value):
            return _described(value)
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


def _listed(choices: tuple[str, ...]) -> str:
    return ", ".join(f'"{word}"' for word in choices)


def _known(choices: tuple[str, ...]) -> str:
    return "; known here: " + ", ".join(choices)


def meant(value: object, choices: tuple[str, ...]) -> str:
    """A word of ``choices`` that is near: the same but for case and signs, in it, or alike."""
    import difflib  # only where something is wrong

    if not choices or not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    text = str(value)[:100]
    plain = {re.sub(r"[^a-z0-9]", "", word.lower()): word for word in choices}
    bare = re.sub(r"[^a-z0-9]", "", text.lower())
    near = [plain[bare]] if bare in plain else []
    near = near or [word for one, word in plain.items() if bare and len(one) > 4 and one in bare]
    near = near or [word for one, word in plain.items() if _digits(bare) == _digits(one) != ""][:1]
    near = near or difflib.get_close_matches(text, choices, 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _digits(text: str) -> str:
    return "".join(re.findall(r"[0-9]+", text))


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


def _line_of(keys: Keys, lines: dict[Keys, int]) -> int:
    for depth in range(len(keys), 0, -1):
        if keys[:depth] in lines:
            return lines[keys[:depth]]
    return 1


def _spoken(keys: Keys, document: dict[str, Any]) -> str:
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
            shown = isinstance(name, str) and name and name.isprintable() and not secretive(name)
            choices.append(clean.line(name, LONGEST_WORD) if shown else str(key + 1))
        elif secretive(key) or (_near_secret(choices) and not PLAIN.fullmatch(key)):
            choices.append("a key that is not shown")
        else:
            choices.append(clean.line(key, LONGEST_WORD))
    return ".".join(choices) or "file"
