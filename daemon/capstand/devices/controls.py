"""The controls of a card: what it has, as libasound's simple mixer shows it, and setting them.

pyalsaaudio 0.11 sets a control but cannot be asked what there is: ``mixers()`` ends the process
with SIGSEGV at a name that is not UTF-8, what a card refuses it ignores, and the dB of a volume
that has none are rubbish. So they are listed by libasound itself, with Python's lock released, and
listed again after they were set: what the card has then is what counts. Only a control that was
listed is set.

A card may have a capture volume, a boost and a switch under one name (``Mic``), and some keep what
concerns the microphone among what is played: the side that captures is taken where there is one.

Thread: any. A card may keep whoever asks waiting for seconds, a plug-in for ever.
"""

import ctypes
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from capstand.config.controls import ControlState, Setting
from capstand.devices.address import place_of
from capstand.devices.libasound import asound, checked, last_errors, record_errors
from capstand.text import clean

MOST_NAMES = 16
"""So many are listed where one is missing."""
LONGEST_FAULT, LONGEST_VALUE = 500, 100
_MOST_CONTROLS = 1024
"""More than any card has; a plug-in may go on for ever."""
_MOST_CHANNELS = 32
_MOST_ITEMS = 256
_ITEM_BYTES = 64
_ABOUT_CAPTURE = re.compile(r"mic|capture|gain|agc|boost|input|adc|line", re.IGNORECASE)

for _name in ("snd_mixer_first_elem", "snd_mixer_elem_next"):
    getattr(asound, _name).restype = ctypes.c_void_p
asound.snd_mixer_selem_get_name.restype = ctypes.c_char_p


class Volume(NamedTuple):
    """In the card's steps, of each channel; ``db`` and its bounds are None where the card tells no
    dB. ``captures``: of the side that captures, not of what is played."""

    captures: bool
    low: int
    high: int
    steps: tuple[int, ...]
    db: float | None
    low_db: float | None
    high_db: float | None

    def __str__(self) -> str:
        """ "80% (-6 dB)"; channels that differ one by one."""
        percent = "/".join(f"{one}%" for one in dict.fromkeys(map(self.percent, self.steps)))
        return percent if self.db is None else f"{percent} ({_db(self.db)})"

    def percent(self, step: int) -> int:
        return (
            round(100 * (step - self.low) / (self.high - self.low)) if self.high > self.low else 0
        )

    @property
    def bounds(self) -> str:
        if self.low_db is None or self.high_db is None:
            return f"{self.high - self.low + 1} steps"
        return f"{_db(self.low_db).removesuffix(' dB')} to {_db(self.high_db)}"


class Switch(NamedTuple):
    captures: bool
    channels: tuple[bool, ...]

    def __str__(self) -> str:
        return "/".join("on" if one else "off" for one in dict.fromkeys(self.channels))


class Choice(NamedTuple):
    """One of some ``items``, by their numbers, for each channel."""

    items: tuple[str, ...]
    chosen: tuple[int, ...]

    def __str__(self) -> str:
        inside = [self.items[one] for one in dict.fromkeys(self.chosen) if one < len(self.items)]
        return "/".join(inside)


class CardControl(NamedTuple):
    """One control; of several with the same name all but the first have their ``number`` in it."""

    bare: str
    number: int
    volume: Volume | None
    switch: Switch | None
    choice: Choice | None

    @property
    def name(self) -> str:
        return f"{self.bare},{self.number}" if self.number else self.bare

    @property
    def about_capture(self) -> bool:
        """Whether it may change what is captured."""
        sides = [one.captures for one in (self.volume, self.switch) if one is not None]
        named = _ABOUT_CAPTURE.search(self.bare) is not None
        return any(sides) or (named and bool(sides or self.choice))

    def __str__(self) -> str:
        return ", ".join(str(one) for one in self[2:] if one is not None)

    @property
    def line(self) -> str:
        """Its present value as a line for the configuration, with what else it takes."""
        value: list[str] = []
        notes: list[str] = []
        if self.volume is not None:
            value.append(f'"{self.volume.percent(self.volume.steps[0])}%"')
            now = "" if self.volume.db is None else f", now {_db(self.volume.db)}"
            notes.append(f"{self.volume.bounds}{now}")
        if self.choice is not None:
            value.append(_quoted(str(self.choice)))
            notes.append(f"of {_listed(self.choice.items)}")
        if self.switch is not None:
            value.append("true" if all(self.switch.channels) else "false")
        shown = value[0] if len(value) == 1 else f"[{', '.join(value)}]"
        return f"{_quoted(self.name)} = {shown}" + (f"  # {'; '.join(notes)}" if notes else "")

    def as_json(self) -> dict[str, object]:
        volume, choice = self.volume, self.choice
        bounds = [volume.low_db, volume.high_db] if volume and volume.low_db is not None else None
        return {
            "name": clean.line(self.name),
            "volume_percent": [volume.percent(one) for one in volume.steps] if volume else None,
            "volume_db": volume.db if volume else None,
            "volume_db_range": bounds,
            "switch": list(self.switch.channels) if self.switch else None,
            "item": clean.line(choice) if choice else None,
            "items": [clean.line(one) for one in choice.items] if choice else None,
        }


def mixer_of(device: str) -> str:
    """What ALSA calls the controls of a PCM: those of its card, or of its own name."""
    place = place_of(device) if re.match(r"(plug)?hw:|sysdefault:|dsnoop:|front:", device) else None
    return f"hw:{place[0]}" if place else device


def read(mixer: str) -> list[CardControl]:
    """All that there are. Raises OSError."""
    with _opened(mixer) as handle:
        return [_control(one) for one in _elements(handle)]


def apply(mixer: str, wanted: Sequence[tuple[str, Setting]]) -> tuple[ControlState, ...]:
    """Sets these controls, each for itself, and reads back what the card then has."""
    record_errors()
    try:
        before, steps = _before(mixer, wanted)
        faults = {
            name: _fault(before, name, setting) or _set(mixer, before[name], setting, steps[name])
            for name, setting in wanted
        }
        after = {one.name: one for one in read(mixer)}
    except OSError as error:
        said = last_errors()
        words = f"{clean.line(mixer)} has no controls that can be opened: {error.strerror}"
        words += f" ({said})" if said else ""
        return tuple(ControlState(name, str(one), None, None, words) for name, one in wanted)
    return tuple(
        ControlState(
            name,
            str(setting),
            _shown(before, name),
            _shown(after, name),
            fault and clean.line(fault, LONGEST_FAULT),
        )
        for name, setting in wanted
        for fault in (faults[name] or _refusal(after.get(name), setting, steps[name]),)
    )


def _before(
    mixer: str, wanted: Sequence[tuple[str, Setting]]
) -> tuple[dict[str, CardControl], dict[str, int | None]]:
    """The controls by name, and for each setting of a volume the step nearest to it."""
    with _opened(mixer) as handle:
        there, settings = {}, dict(wanted)
        steps: dict[str, int | None] = dict.fromkeys(settings)
        for element in _elements(handle):
            control = _control(element)
            there[control.name] = control
            if control.volume is not None and control.name in settings:
                steps[control.name] = _nearest(element, control.volume, settings[control.name])
        return there, steps


def _nearest(element: ctypes.c_void_p, volume: Volume, setting: Setting) -> int | None:
    if setting.percent is not None:
        return volume.low + round((volume.high - volume.low) * setting.percent / 100)
    if setting.db is None or volume.low_db is None or volume.high_db is None:
        return None
    within = min(max(setting.db, volume.low_db), volume.high_db)
    ask, step = _of(volume.captures, "ask_{}_dB_vol"), ctypes.c_long()
    checked(ask(element, ctypes.c_long(round(100 * within)), 0, ctypes.byref(step)))
    return min(max(step.value, volume.low), volume.high)


def _fault(there: dict[str, CardControl], name: str, setting: Setting) -> str | None:
    """Why a setting cannot be for the card's control of that name, with what would do."""
    control = there.get(name)
    if control is None:
        has = f"; it has {_listed(there)}" if there else ""
        return f"the card has no such control{has}"
    if setting.on is not None and control.switch is None:
        return f"cannot be switched; {_takes(control)}"
    if setting.text is None:
        return None
    if control.choice is not None:
        return None if setting.text in control.choice.items else _takes(control)
    if control.volume is None or (setting.percent is None and setting.db is None):
        return f'"{setting.text}" is not for it; {_takes(control)}'
    if setting.db is not None and control.volume.low_db is None:
        return f"tells no dB; {_takes(control)}"
    return None


def _quoted(text: str) -> str:
    """As TOML has it, fit to show."""
    return json.dumps(clean.line(text, _ITEM_BYTES), ensure_ascii=False)


def _listed(names: Iterable[str]) -> str:
    shown = [_quoted(one) for one in names]
    more = f" and {len(shown) - MOST_NAMES} more" if len(shown) > MOST_NAMES else ""
    return ", ".join(shown[:MOST_NAMES]) + more


def _takes(control: CardControl) -> str:
    """What a control can be set to."""
    can = []
    if control.volume is not None:
        can.append(
            'a volume such as "80%"' + (' or "-6 dB"' if control.volume.low_db is not None else "")
        )
    if control.choice is not None:
        can.append(f"one of {_listed(control.choice.items)}")
    if control.switch is not None:
        can.append("true or false")
    return f"it takes {' and '.join(can)}" if can else "it cannot be set"


def _set(mixer: str, control: CardControl, setting: Setting, step: int | None) -> str | None:
    """By pyalsaaudio; what it says is wrong."""
    import alsaaudio

    try:
        one = alsaaudio.Mixer(control=control.bare, id=control.number, device=mixer)
    except alsaaudio.ALSAAudioError as error:
        return clean.line(error)
    try:
        if step is not None and control.volume is not None:
            side = alsaaudio.PCM_CAPTURE if control.volume.captures else alsaaudio.PCM_PLAYBACK
            one.setvolume(step, pcmtype=side, units=alsaaudio.VOLUME_UNITS_RAW)
        if setting.text is not None and control.choice is not None:
            one.setenum(control.choice.items.index(setting.text))
        if setting.on is not None and control.switch is not None:
            if control.switch.captures:
                one.setrec(int(setting.on))
            else:
                one.setmute(int(not setting.on))
    except alsaaudio.ALSAAudioError as error:
        return f"the card refused {setting}: {clean.line(str(error).removesuffix(f' [{mixer}]'))}"
    finally:
        one.close()
    return None


def _refusal(now: CardControl | None, setting: Setting, step: int | None) -> str | None:
    """That the control is not as it was set."""
    if now is None:
        return "the card has it no more"
    as_wanted = (
        (step is None or now.volume is None or set(now.volume.steps) <= {step})
        and (setting.on is None or now.switch is None or set(now.switch.channels) <= {setting.on})
        and (setting.text is None or now.choice is None or str(now.choice) == setting.text)
    )
    if as_wanted:
        return None
    return f"the card did not take {setting} and has {_shown({now.name: now}, now.name)}"


def _shown(there: dict[str, CardControl], name: str) -> str | None:
    control = there.get(name)
    return None if control is None else clean.line(control, LONGEST_VALUE)


# libasound


@contextmanager
def _opened(mixer: str) -> Iterator[ctypes.c_void_p]:
    """Raises OSError."""
    handle = ctypes.c_void_p()
    checked(asound.snd_mixer_open(ctypes.byref(handle), 0))
    try:
        checked(asound.snd_mixer_attach(handle, mixer.encode()))
        checked(asound.snd_mixer_selem_register(handle, None, None))
        checked(asound.snd_mixer_load(handle))
        yield handle
    finally:
        asound.snd_mixer_close(handle)


def _elements(handle: ctypes.c_void_p) -> Iterator[ctypes.c_void_p]:
    at = asound.snd_mixer_first_elem(handle)
    for _ in range(_MOST_CONTROLS):
        if not at:
            return
        element = ctypes.c_void_p(at)
        yield element
        at = asound.snd_mixer_elem_next(element)


def _of(captures: bool, question: str) -> Callable[..., int]:
    side = "capture" if captures else "playback"
    asked: Callable[..., int] = getattr(asound, "snd_mixer_selem_" + question.format(side))
    return asked


def _control(element: ctypes.c_void_p) -> CardControl:
    name: bytes = asound.snd_mixer_selem_get_name(element)
    choice = _choice(element) if asound.snd_mixer_selem_is_enumerated(element) else None
    return CardControl(
        name.decode(errors="surrogateescape"),  # which no configuration can hold
        asound.snd_mixer_selem_get_index(element),
        None if choice else _volume(element),
        None if choice else _switch(element),
        choice,
    )


def _side(element: ctypes.c_void_p, kind: str) -> bool | None:
    """Whether it is the side that captures; None where neither has it."""
    if _of(True, "has_{}_" + kind)(element):
        return True
    return False if _of(False, "has_{}_" + kind)(element) else None


def _each(element: ctypes.c_void_p, captures: bool, kind: str, value: Any) -> list[int]:
    """Of each channel that it has."""
    has, get = _of(captures, "has_{}_channel"), _of(captures, "get_{}_" + kind)
    channels = [one for one in range(_MOST_CHANNELS) if has(element, one)]
    return [value.value for one in channels if get(element, one, ctypes.byref(value)) >= 0]


def _volume(element: ctypes.c_void_p) -> Volume | None:
    captures = _side(element, "volume")
    if captures is None:
        return None
    low, high = ctypes.c_long(), ctypes.c_long()
    checked(_of(captures, "get_{}_volume_range")(element, ctypes.byref(low), ctypes.byref(high)))
    steps = _each(element, captures, "volume", ctypes.c_long())
    if not steps:
        return None
    bounds = _bounds_db(element, captures)
    db = _each(element, captures, "dB", ctypes.c_long()) if bounds else []
    low_db, high_db = bounds or (None, None)
    return Volume(
        captures, low.value, high.value, tuple(steps), db[0] / 100 if db else None, low_db, high_db
    )


def _bounds_db(element: ctypes.c_void_p, captures: bool) -> tuple[float, float] | None:
    low, high = ctypes.c_long(), ctypes.c_long()
    ask = _of(captures, "get_{}_dB_range")
    if ask(element, ctypes.byref(low), ctypes.byref(high)) < 0 or low.value >= high.value:
        return None
    return low.value / 100, high.value / 100


def _switch(element: ctypes.c_void_p) -> Switch | None:
    captures = _side(element, "switch")
    if captures is None:
        return None
    channels = _each(element, captures, "switch", ctypes.c_int())
    return Switch(captures, tuple(map(bool, channels))) if channels else None


def _choice(element: ctypes.c_void_p) -> Choice:
    items, text = [], ctypes.create_string_buffer(_ITEM_BYTES)
    many = asound.snd_mixer_selem_get_enum_items(element)
    for number in range(min(many, _MOST_ITEMS)):
        text.value = b""  # not the name of the one before where there is none
        asound.snd_mixer_selem_get_enum_item_name(element, number, _ITEM_BYTES - 1, text)
        items.append(text.value.decode(errors="surrogateescape"))
    at, chosen = ctypes.c_uint(), []
    for channel in range(_MOST_CHANNELS):
        if asound.snd_mixer_selem_get_enum_item(element, channel, ctypes.byref(at)) < 0:
            break
        chosen.append(at.value)
    return Choice(tuple(items), tuple(chosen))


def _db(value: float) -> str:
    return "-inf dB" if value < -9999 else f"{value:g} dB"
