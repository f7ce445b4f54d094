"""What a value of the configuration must be like: the rules that its fields carry.

A rule takes a value of TOML and returns it as the configuration has it, or raises ``Fault``.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from capstand.config.slips import invisible
from capstand.config.wording import (
    Keys,
    described,
    fix_for,
    hidden,
    listed,
    meant,
    number_in,
    shown,
)

MOST_CARDS = 32

NOTHING = object()


class Fault(ValueError):
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
        value = described(self.value) if hidden(keys, self.value) else shown(self.value)
        hint = f"; {self.hint}" if self.hint else meant(self.value, self.choices)
        separator = ":" if self.what.startswith("expected ") else ""
        return f"{value}{separator} {self.what}{hint}"


class Whole(NamedTuple):
    """A whole number within bounds."""

    low: int
    high: int
    near: tuple[int, ...] = ()

    def check(self, value: object) -> int:
        if type(value) is int and self.low <= value <= self.high:
            return value
        number = number_in(value)
        near = [n for n in self.near if number in (n, n / 1000)]
        if isinstance(value, str) and number is not None:
            hint = "write the number without quotation marks"
            hint += f": {near[0]}" if near else ""
        else:
            hint = f"did you mean {near[0]}?" if near else ""
        raise Fault(value, f"expected an integer from {self.low} to {self.high}", hint)


class Flag(NamedTuple):
    """true or false."""

    def check(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        hint = ""
        if isinstance(value, str) and value.lower() in ("true", "false"):
            hint = f"write {value.lower()} without quotation marks"
        raise Fault(value, "expected true or false", hint)


class Number(NamedTuple):
    """A finite number within bounds."""

    low: float
    high: float

    def check(self, value: object) -> float:
        if type(value) in (int, float) and self.low <= value <= self.high:  # type: ignore[operator]
            return float(value)  # type: ignore[arg-type]
        quoted = isinstance(value, str) and number_in(value) is not None
        hint = "write the number without quotation marks" if quoted else ""
        raise Fault(value, f"expected a number from {self.low:g} to {self.high:g}", hint)


class Choice(NamedTuple):
    """One of some words."""

    choices: tuple[str, ...]

    def check(self, value: object) -> str:
        if isinstance(value, str) and value in self.choices:
            return value
        raise Fault(value, f"expected one of {listed(self.choices)}", choices=self.choices)


class Text(NamedTuple):
    """A string of a certain shape; ``shape`` says so in words."""

    pattern: str
    shape: str

    def check(self, value: object) -> str:
        right = isinstance(value, str) and re.fullmatch(self.pattern, value)
        if right and not invisible(str(value)):
            return str(value)
        raise Fault(value, f"expected {self.shape}", fix_for(value))


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
            raise Fault(value, f"expected {self.other.shape}", f'did you mean "hw:{value}"?')
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
            raise Fault(NOTHING, f"{len(value)} values; expected 1 to {self.most}")
        return tuple(self.rule.check(one) for one in value)


class Some(NamedTuple):
    """An array of 1 to ``most`` values, each once; ``like`` shows one."""

    rule: Whole
    most: int
    like: str

    def check(self, value: object) -> tuple[int, ...]:
        if not isinstance(value, list):
            raise Fault(value, f"expected an array such as {self.like}")
        if not 1 <= len(value) <= self.most:
            raise Fault(NOTHING, f"{len(value)} values; expected 1 to {self.most}")
        made = tuple(self.rule.check(one) for one in value)
        for one in made:
            if made.count(one) > 1:
                raise Fault(one, "is in the array twice; expected each value once")
        return made


class Rows(NamedTuple):
    """An array of 1 to ``most`` rows of 1 to ``most`` numbers, all of one length; ``like`` shows
    one."""

    rule: Number
    most: int
    like: str

    def check(self, value: object) -> tuple[tuple[float, ...], ...]:
        if not isinstance(value, list) or not all(isinstance(one, list) for one in value):
            raise Fault(value, f"expected an array of rows such as {self.like}")
        lengths = {len(one) for one in value}
        if not 1 <= len(value) <= self.most or not all(
            1 <= length <= self.most for length in lengths
        ):
            raise Fault(NOTHING, f"expected 1 to {self.most} rows of 1 to {self.most} numbers")
        if len(lengths) > 1:
            raise Fault(NOTHING, "the rows have different lengths; write such as " + self.like)
        return tuple(tuple(self.rule.check(one) for one in row) for row in value)


class Rule(Protocol):
    """What a value must be like."""

    def check(self, value: object) -> Any:
        """The value as the configuration has it. Raises Fault."""


class Keyed(NamedTuple):
    """A table of up to ``most`` keys that the schema does not know, as pairs."""

    key: Text
    value: Rule
    most: int
