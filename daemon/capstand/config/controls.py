"""What a card's own controls are to be set to: the table [stream.capture.controls].

The names are the card's, so the file cannot be held against them: what a card does not have, or
does not have like that, shows when it is opened (``devices/controls.py``).
"""

import re
from typing import NamedTuple

from capstand.config.rules import Keyed, Text

MOST_CONTROLS = 32
NAME = Text(
    r"[^\0-\x20\x7f]([^\0-\x1f\x7f]{0,58}[^\0-\x20\x7f])?",
    "the name of a control, as `capstand devices` prints it",
)
VALUE = Text(
    r"(100|[0-9]{1,2}) ?%|(?![+-]?[0-9.,]+ ?%)[^\0-\x20\x7f]([^\0-\x1f\x7f]{0,58}[^\0-\x20\x7f])?",
    'a volume such as "80%" (0% to 100%) or "-6 dB", true or false for a switch, an item of the '
    'control, or an array such as ["80%", true]',
)


class Setting(NamedTuple):
    """``text`` is a volume or an item, ``on`` a switch; None where that is left alone."""

    text: str | None = None
    on: bool | None = None

    @property
    def percent(self) -> int | None:
        found = re.fullmatch(r"([0-9]+) ?%", self.text or "", re.ASCII)
        return int(found[1]) if found else None

    @property
    def db(self) -> float | None:
        found = re.fullmatch(r"([+-]?[0-9]{1,3}(\.[0-9]{1,3})?) ?dB", self.text or "", re.I | re.A)
        return float(found[1]) if found else None

    def __str__(self) -> str:
        switch = {True: "on", False: "off", None: None}[self.on]
        return ", ".join(filter(None, (self.text, switch)))


class ControlState(NamedTuple):
    """What became of a setting: the control's value ``before`` and ``after``, None where it could
    not be read; ``fault`` says what is wrong, for a person."""

    name: str
    wanted: str
    before: str | None
    after: str | None
    fault: str | None

    def as_json(self) -> dict[str, str | None]:
        return {
            "wanted": self.wanted,
            "is": self.after,
            "was": self.before,
            "fault": self.fault,
        }


class SettingRule(NamedTuple):
    """A volume or an item, a switch, or an array of one of each."""

    def check(self, value: object) -> Setting:
        values = value if isinstance(value, list) else [value]
        flags = [one for one in values if isinstance(one, bool)]
        texts = [one for one in values if not isinstance(one, bool)]
        if len(flags) > 1 or len(texts) > 1 or not values:
            VALUE.check(value)
        return Setting(VALUE.check(texts[0]) if texts else None, flags[0] if flags else None)


CONTROLS = Keyed(NAME, SettingRule(), MOST_CONTROLS)
