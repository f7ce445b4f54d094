"""The controls of a card without hardware: a driver's elements behind the real libasound.

`fakemix.c` is a control plug-in of libasound, so its simple mixer and pyalsaaudio work on it as on
a card. A test describes the elements, and reads and writes their values, in a file that both sides
map: whoever sets the controls may be this process or another.
"""

import ctypes
import mmap
from pathlib import Path

_CONTROL_BYTES = 16_384
_ELEMENTS, _ITEMS, _NAME_BYTES = 16, 4, 48
VOLUME, SWITCH, ITEM = range(3)


class _Element(ctypes.Structure):
    """`struct element` of fakemix.c, member for member."""

    name: bytes
    index: int
    type: int
    channels: int
    min: int
    max: int
    db_min: int
    db_step: int
    refusal: int
    value: "ctypes.Array[ctypes.c_int64]"
    items: int
    item: "ctypes.Array[ctypes.Array[ctypes.c_char]]"

    _fields_ = (
        ("name", ctypes.c_char * _NAME_BYTES),
        *(
            (name, ctypes.c_int64)
            for name in ("index", "type", "channels", "min", "max", "db_min", "db_step", "refusal")
        ),
        ("value", ctypes.c_int64 * 2),
        ("items", ctypes.c_int64),
        ("item", (ctypes.c_char * _NAME_BYTES) * _ITEMS),
    )


class _Control(ctypes.Structure):
    """`struct control` of fakemix.c, member for member."""

    count: int
    open_errno: int
    hangs: int
    opens: int
    writes: int
    element: "ctypes.Array[_Element]"

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("count", "open_errno", "hangs", "opens", "writes")),
        ("element", _Element * _ELEMENTS),
    )


class Mixer:
    """Of one card, without elements when constructed; ALSA finds it as the controls of `device`,
    in the configuration that `rc` includes."""

    def __init__(self, directory: Path, plugin: Path, device: str, rc: Path) -> None:
        directory = directory.resolve()
        path = directory / f"{device}.mixer"
        with path.open("a+b") as file:
            file.truncate(_CONTROL_BYTES)
            page = mmap.mmap(file.fileno(), _CONTROL_BYTES)
        page[:] = bytes(_CONTROL_BYTES)
        self.control = _Control.from_buffer(page)
        text = (
            f'<{rc}>\nctl_type.fakemix {{ lib "{plugin.resolve()}" }}\n'
            f"ctl.!{device} {{ @args [ CARD ] @args.CARD {{ type string default 0 }} type fakemix "
            f'ctl "{path}" }}\n'
        )
        mixed = directory / f"asoundrc.{device}.mixer"
        mixed.write_text(text)
        self.env = {"ALSA_CONFIG_PATH": str(mixed)}
        """What the process that opens them needs in its environment."""

    def volume(
        self,
        name: str | bytes,
        now: int,
        most: int,
        *,
        channels: int = 2,
        db: tuple[float, float] | None = None,
        index: int = 0,
    ) -> None:
        """One of 0 to `most`; `db` are the lowest and the step."""
        element = self._add(name, VOLUME, channels, now)
        element.max, element.index = most, index
        if db is not None:
            element.db_min, element.db_step = round(100 * db[0]), round(100 * db[1])

    def switch(self, name: str | bytes, on: bool, *, channels: int = 1) -> None:
        self._add(name, SWITCH, channels, on).max = 1

    def choice(self, name: str | bytes, chosen: int, *items: str | bytes) -> None:
        element = self._add(name, ITEM, 1, chosen)
        element.items = len(items)
        for at, item in enumerate(items):
            element.item[at].value = _raw(item)

    def _add(self, name: str | bytes, type_: int, channels: int, now: int) -> _Element:
        element = self.control.element[self.control.count]
        element.name, element.type, element.channels = _raw(name), type_, channels
        element.value[:] = [now, now]
        self.control.count += 1
        return element

    def element(self, name: str | bytes) -> _Element:
        return next(one for one in self.control.element if one.name == _raw(name))

    def __getitem__(self, name: str) -> list[int]:
        """The values of an element's channels."""
        element = self.element(name)
        return list(element.value[: element.channels])

    def __setitem__(self, name: str, value: int) -> None:
        """As another program does, or a replug."""
        self.element(name).value[:] = [value, value]


def _raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()
