"""What another process says is what it is meant to be, or is not believed."""

import json
from enum import IntEnum
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstand.text.typed import convert


class Colour(IntEnum):
    RED = 1


class Inner(NamedTuple):
    name: str
    level: float | None


class Outer(NamedTuple):
    number: int
    inner: tuple[Inner, ...]
    by_name: dict[str, Inner]
    colour: Colour
    anything: Any
    pairs: list[tuple[int, str]]
    sure: bool = False


RIGHT = Outer(
    3, (Inner("a", -1.5), Inner("b", None)), {"c": Inner("c", 2)}, Colour.RED, {}, [(1, "x")]
)


def sent(value: object) -> object:
    return json.loads(json.dumps(value))


def test_what_was_sent_arrives() -> None:
    """Named tuples, enums and numbers, as they were."""
    got = convert(sent(RIGHT), Outer)
    assert got == RIGHT and type(got.inner[0]) is Inner and got.colour is Colour.RED
    assert type(got.by_name["c"].level) is float


@pytest.mark.parametrize(
    "change",
    [
        {"number": True},
        {"number": 3.0},
        {"number": None},
        {"inner": "ab"},
        {"inner": [["a", "1"]]},
        {"inner": [["a"]]},
        {"by_name": [["c", ["c", 2]]]},
        {"colour": 2},
        {"pairs": [[1, "x", 2]]},
        {"sure": 1},
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any]) -> None:
    """A value of another type, an unknown number of an enum, a field too many or too few."""
    with pytest.raises(ValueError, match=r"\w"):
        convert(sent(RIGHT._replace(**change)), Outer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(), inner, max_size=8),
)


@given(JSON)
def test_nothing_else_is_raised(value: object) -> None:
    """Whatever it is."""
    try:
        convert(value, Outer)
    except ValueError:
        pass
    else:
        raise AssertionError(value)
