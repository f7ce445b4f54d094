"""The settings of a chain that runs, by the names that a person types. Pure.

A key is that of a stage's table in the file, with the stage's type before it: ``gain.gain_db``; or
with its position, counted from 1, which it has to be where the chain has two stages of the type:
``process.2.gain_db``. What is in an array of tables is counted too: ``eq.band.2.gain_db``.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from capstand.config.decode import with_value
from capstand.config.schema import Config, Processing, StreamConfig
from capstand.config.wording import Keys, meant
from capstand.errors import ConfigError

TABLE = "process"
KIND = "type"
"""The key that no one can change: another type is another stage."""


class Change(NamedTuple):
    """A value that is not the file's; None where it is not set, or there is none."""

    key: str
    value: Any
    file: Any


def settings(process: Sequence[Processing]) -> dict[str, Any]:
    """By key what is set now, in the order of the chain."""
    found: dict[str, Any] = {}
    for at, stage in enumerate(process):
        found |= {f"{_name(process, at)}.{key}": value for key, value in _leaves(stage)}
    return found


def changes(process: Sequence[Processing], file: Sequence[Processing]) -> list[Change]:
    """How a chain differs from that of the file, which has the same stages."""
    now, before = settings(process), settings(file)
    keys = [*now, *(key for key in before if key not in now)]
    return [
        Change(key, now.get(key), before.get(key))
        for key in keys
        if now.get(key) != before.get(key)
    ]


def find(stream: StreamConfig, key: str) -> Keys:
    """Where a setting is in the stream's table. Raises ConfigError for one that is not there."""
    process = stream.process
    if not process:
        raise ConfigError([f"{stream.name} has no [[stream.process]]; there is nothing to set"])
    first, *rest = key.split(".")
    alike = [at for at, stage in enumerate(process) if stage.type == first]
    if first == TABLE and rest and rest[0].isdecimal():
        alike, rest = [int(rest[0]) - 1], rest[1:]
    if len(alike) > 1:
        names = [".".join((TABLE, str(at + 1), *rest)) for at in alike]
        raise ConfigError(
            [f"{key}: {stream.name} has {len(alike)} stages of this type; take {_or(names)}"]
        )
    path: Keys = tuple(int(one) - 1 if one.isdecimal() else one for one in rest)
    if not (alike and 0 <= alike[0] < len(process) and _has(process[alike[0]], path)):
        known = tuple(settings(process))
        near = meant(key, known)
        raise ConfigError([f"{key}: no such key in {stream.name}{near}", *_listed(stream)])
    return (TABLE, alike[0], *path)


def changed(config: Config, name: str, key: str, text: str) -> StreamConfig:
    """The stream of this name with another value, TOML, at ``key``. Raises ConfigError for a value
    that the file could not have, and for one that a chain cannot take while it runs."""
    at = [one.name for one in config.stream].index(name)
    stream = config.stream[at]
    own = ("stream", at)
    wanted, faults = with_value(config, (*own, *find(stream, key)), text)
    if wanted is None:
        raise ConfigError(
            [f"{_called(stream.process, keys, own)}: {what}" for keys, what in faults]
        )
    made = wanted.stream[at]
    if made.processed != stream.processed:
        before, after = stream.processed, made.processed
        raise ConfigError(
            [
                f"{key}: changes what comes out of the chain, from {before.channels} ch, "
                f"{before.rate_hz} Hz to {after.channels} ch, {after.rate_hz} Hz; that needs "
                "another chain: write it into the file and reload"
            ]
        )
    return made


def _name(process: Sequence[Processing], at: int) -> str:
    types = [stage.type for stage in process]
    return types[at] if types.count(types[at]) == 1 else f"{TABLE}.{at + 1}"


def _leaves(table: Any) -> Iterator[tuple[str, Any]]:
    for key, value in table._asdict().items():
        if key == KIND:
            continue
        if _is_table(value):
            yield from ((f"{key}.{below}", one) for below, one in _leaves(value))
        elif isinstance(value, tuple) and value and all(map(_is_table, value)):
            for number, inner in enumerate(value, 1):
                yield from ((f"{key}.{number}.{below}", one) for below, one in _leaves(inner))
        else:
            yield key, value


def _is_table(value: Any) -> bool:
    return hasattr(value, "_fields")


def _has(table: Any, path: Keys) -> bool:
    """Whether there is such a key, which has a value of its own or is an array of tables."""
    for at, key in enumerate(path):
        if isinstance(key, int):
            inside = isinstance(table, tuple) and not _is_table(table) and 0 <= key < len(table)
            if not inside or at + 1 == len(path) or not _is_table(table[key]):
                return False
            table = table[key]
        elif key == KIND or key not in getattr(table, "_fields", ()):
            return False
        else:
            table = getattr(table, key)
    return bool(path)


def _listed(stream: StreamConfig) -> list[str]:
    return [f"  {key}" for key in settings(stream.process)]


def _called(process: Sequence[Processing], keys: Keys, own: Keys) -> str:
    """A place in the configuration; in the stream's ``own`` table as it is listed."""
    if keys[: len(own)] == own:
        keys = keys[len(own) :]
        if keys[0] == TABLE and len(keys) > 1 and isinstance(keys[1], int):
            keys = (_name(process, keys[1]), *keys[2:])
    return ".".join(str(one + 1) if isinstance(one, int) else one for one in keys)


def _or(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
