"""LADSPA by ctypes: a plugin's file, its description, its instances.

A plugin is code that runs with the daemon's rights in the process of the chain. So only a file is
loaded that nobody but root can have put there: it and every folder above it belong to root, and
nobody else may write to them. A name without a path is looked for in the folders of LADSPA_PATH,
else in ``FOLDERS``.

Source: ladspa.h 1.1. Loads no numpy. Thread: the chain's; ``find`` any.
"""

import ctypes
import os
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_float, c_int, c_ulong, c_void_p
from difflib import get_close_matches
from pathlib import Path
from stat import S_IWGRP, S_IWOTH
from typing import Any, NamedTuple

from capstand.errors import CapstandError
from capstand.text import clean

FOLDERS = ("/usr/local/lib/ladspa", "/usr/lib/ladspa")
MOST_LABELS = 1000
_INPUT, _OUTPUT, _CONTROL, _AUDIO = 1, 2, 4, 8
_BELOW, _ABOVE, _TOGGLED, _BY_RATE, _LOGARITHMIC, _INTEGER = 1, 2, 4, 8, 16, 32
_DEFAULT = 0x3C0
_BETWEEN = {0x080: 0.25, 0x0C0: 0.5, 0x100: 0.75}
_FIXED = {0x200: 0.0, 0x240: 1.0, 0x280: 100.0, 0x2C0: 440.0}


class PluginError(CapstandError):
    """The plugin's, or of what is asked of it."""


class _Hint(Structure):
    _fields_ = (("hints", c_int), ("lower", c_float), ("upper", c_float))


class _Descriptor(Structure):
    pass


_Of = CFUNCTYPE(None, c_void_p)
_Descriptor._fields_ = (
    ("unique_id", c_ulong),
    ("label", c_char_p),
    ("properties", c_int),
    ("name", c_char_p),
    ("maker", c_char_p),
    ("copyright", c_char_p),
    ("port_count", c_ulong),
    ("port_descriptors", POINTER(c_int)),
    ("port_names", POINTER(c_char_p)),
    ("port_hints", POINTER(_Hint)),
    ("implementation", c_void_p),
    ("instantiate", CFUNCTYPE(c_void_p, c_void_p, c_ulong)),
    ("connect_port", CFUNCTYPE(None, c_void_p, c_ulong, c_void_p)),
    ("activate", _Of),
    ("run", CFUNCTYPE(None, c_void_p, c_ulong)),
    ("run_adding", CFUNCTYPE(None, c_void_p, c_ulong)),
    ("set_run_adding_gain", CFUNCTYPE(None, c_void_p, c_float)),
    ("deactivate", _Of),
    ("cleanup", _Of),
)


class Port(NamedTuple):
    """A control: what it may be (bounds are inclusive, infinite where it has none), what it is by
    itself, and whether it may take values between (``steady`` where not)."""

    number: int
    name: str
    low: float
    high: float
    default: float
    steady: bool
    logarithmic: bool


class Plugin:
    """A kind of plugin, at a rate: ports of sound by number, ``controls`` and ``meters`` by name.
    Raises PluginError."""

    def __init__(self, file: Path, label: str, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._of = of = _descriptor(file, label)
        self.name = clean.line(_text(of.name))
        audio: list[tuple[int, int]] = []
        control: list[tuple[int, int]] = []
        for number in range(of.port_count):
            kind = of.port_descriptors[number]
            (audio if kind & _AUDIO else control).append((number, kind))
        self.inputs = [number for number, kind in audio if kind & _INPUT]
        self.outputs = [number for number, kind in audio if kind & _OUTPUT]
        inputs = [self._port(number) for number, kind in control if kind & _INPUT]
        self.controls = {port.name: port for port in inputs}
        self.meters = {
            _text(of.port_names[number]): number for number, kind in control if kind & _OUTPUT
        }

    def _port(self, number: int) -> Port:
        hint = self._of.port_hints[number]
        hints, scale = hint.hints, self._rate_hz if hint.hints & _BY_RATE else 1
        low = hint.lower * scale if hints & _BELOW else -float("inf")
        high = hint.upper * scale if hints & _ABOVE else float("inf")
        if hints & _TOGGLED:
            low, high = 0.0, 1.0
        kind, logarithmic = hints & _DEFAULT, bool(hints & _LOGARITHMIC) and low > 0
        if kind in _BETWEEN:
            part = _BETWEEN[kind]
            default = low ** (1 - part) * high**part if logarithmic else low + part * (high - low)
        elif kind in _FIXED:
            default = _FIXED[kind]
        else:  # the lowest, the highest, or none: then what is nearest to 0
            default = {0x040: low, 0x140: high}.get(kind, min(max(0.0, low), high))
        steady = bool(hints & (_TOGGLED | _INTEGER))
        name = _text(self._of.port_names[number])
        return Port(number, name, low, high, default, steady, logarithmic)

    def control(self, name: str, value: float) -> Port:
        """The port of that name, if it may have that value."""
        port = self.controls.get(name)
        if port is None:
            near = get_close_matches(name, self.controls, 1)
            hint = f'; did you mean "{near[0]}"?' if near else f"; it has {_listed(self.controls)}"
            raise PluginError(f'{self.name} has no control "{name}"{hint}')
        if not port.low <= value <= port.high:
            raise PluginError(
                f'{self.name}: "{name}" is {value:g}, expected {port.low:g} to {port.high:g}'
            )
        return port

    def instance(self) -> "Instance":
        return Instance(self._of, self._rate_hz)


class Instance:
    """One running plugin; every port has to be connected before it runs."""

    def __init__(self, of: _Descriptor, rate_hz: int) -> None:
        self._of = of
        self._handle = of.instantiate(ctypes.addressof(of), rate_hz)
        if not self._handle:
            raise PluginError(f"{_text(of.name)} could not be started at {rate_hz} Hz")
        self.connect, self.run = self._bound(of.connect_port), self._bound(of.run)

    def _bound(self, function: Any) -> Any:
        handle = self._handle
        return lambda *arguments: function(handle, *arguments)

    def activate(self) -> None:
        if self._of.activate:
            self._of.activate(self._handle)

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle:
            if self._of.deactivate:
                self._of.deactivate(handle)
            self._of.cleanup(handle)

    __del__ = close


def find(file: str) -> Path:
    """The file of a path, or of a name such as "amp_1181". Raises PluginError."""
    if file.startswith("/"):
        found = Path(file)
    else:
        named = file if file.endswith(".so") else f"{file}.so"
        folders = [one for one in os.environ.get("LADSPA_PATH", "").split(":") if one[:1] == "/"]
        places = [Path(folder) / named for folder in folders or FOLDERS]
        there = [place for place in places if place.is_file() and "/" not in file]
        if not there:
            where = ", ".join(folders or FOLDERS)
            raise PluginError(
                f'no LADSPA plugin "{named}" in {where}; install the package that brings it '
                "(swh-plugins has many), or give its path"
            )
        found = there[0]
    try:
        found = found.resolve(strict=True)
    except (OSError, RuntimeError):
        raise PluginError(f'there is no file "{file}"') from None
    for place in (found, *found.parents):
        state = place.stat()
        if state.st_uid != 0 or state.st_mode & (S_IWGRP | S_IWOTH):
            raise PluginError(
                f"{found} is not loaded: {place} is not root's, or others may write to it; "
                f"install it in {FOLDERS[0]} (chown root, chmod go-w)"
            )
    return found


def _descriptor(file: Path, label: str) -> _Descriptor:
    try:
        entry = ctypes.CDLL(str(file)).ladspa_descriptor
    except (OSError, AttributeError) as error:
        raise PluginError(f"{file} is not a LADSPA plugin: {clean.line(str(error))}") from None
    entry.argtypes, entry.restype = (c_ulong,), POINTER(_Descriptor)
    labels = []
    for number in range(MOST_LABELS):
        found = entry(number)
        if not found:
            break
        if _text(found.contents.label) == label or not label:
            one: _Descriptor = found.contents
            return one
        labels.append(_text(found.contents.label))
    raise PluginError(f'{file} has no plugin "{label}"; it has {_listed(labels)}')


def _text(words: bytes | None) -> str:
    return (words or b"").decode(errors="replace")


def _listed(words: Any) -> str:
    return ", ".join(f'"{clean.line(word, 60)}"' for word in words) or "none"
