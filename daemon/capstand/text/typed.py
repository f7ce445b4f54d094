"""Plain JSON values as the named tuples that they are meant to be; each value's type is checked.

For what another process says: it may be anything. A whole number will do for a float; nothing else
takes the place of another.

Thread: any.
"""

import types
from collections.abc import Callable, Hashable
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def convert(value: object, kind: type[T]) -> T:
    """``value``, of json.loads, as a ``kind``: a named tuple of plain values, enums, tuples, dicts
    by str, and others of its like; a named tuple is an array. Raises ValueError."""
    return cast(T, _converter(cast(Hashable, kind))(value))


@cache
def _converter(kind: Any) -> Callable[[Any], Any]:
    if kind is Any:
        return lambda value: value
    if kind is float:
        return lambda value: float(_checked(value, (float, int)))
    origin, inner = (
        get_origin(kind),
        [_converter(get_arg) for get_arg in get_args(kind) if get_arg is not ...],
    )
    if origin in (Union, types.UnionType):  # with None
        (some,) = [get_arg for get_arg in get_args(kind) if get_arg is not type(None)]
        of_some = _converter(some)
        return lambda value: None if value is None else of_some(value)
    if origin is tuple and get_args(kind)[-1] is ...:
        return lambda value: tuple(map(inner[0], _checked(value, (list,))))
    if origin is list:
        return lambda value: list(map(inner[0], _checked(value, (list,))))
    if origin is tuple:
        return lambda value: tuple(_zipped(inner, value))
    if origin is dict:
        return lambda value: {key: inner[1](one) for key, one in _checked(value, (dict,)).items()}
    if issubclass(kind, tuple):
        fields = [_converter(get_type_hint) for get_type_hint in get_type_hints(kind).values()]
        return lambda value: kind(*_zipped(fields, value))
    if issubclass(kind, Enum):
        return cast(Callable[[Any], Any], kind)  # which raises ValueError itself
    return lambda value: _checked(value, (kind,))


def _zipped(inner: list[Callable[[Any], Any]], value: object) -> list[Any]:
    values = _checked(value, (list,))
    return [of(one) for of, one in zip(inner, values, strict=True)]


def _checked(value: object, kinds: tuple[type, ...]) -> Any:
    if type(value) not in kinds:  # True is no whole number
        raise ValueError(f"{type(value).__name__} where {kinds[0].__name__} is meant")
    return value
