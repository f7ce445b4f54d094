"""Text that others chose, made fit to show: one line, printable, of bounded length.

Others are devices, drivers, processes, peers on a network or a bus, plug-ins, file names and the
errors of libraries. Such text must not steer a terminal, forge a line of a log or a field of a
message, or turn round the order in which a line is read. Control and bidirectional characters, lone
surrogates and what Unicode has not assigned are written as Python writes them ("\\x1b", "\\u202e",
"\\udcff").

And what is right in Unicode may not exist where it is to be written: ``ERRORS`` is an error handler
for streams that writes an arrow as "->" there, and what has no such likeness as above.

Secrets that this process has read are left out of it too (``secret.py``): an error of a library may
hold one.

But for ``parsed`` nothing here raises. Threads: any.
"""

import codecs
import math
import re
from itertools import islice
from typing import Any

from capstand.text import secret

LONGEST = 2000
MOST_LINES = 100
DEEPEST = 16
MOST_VALUES = 200_000
LONGEST_KEY = 100
NESTED = 500
ERRORS = "capstand.plain"

_INT_LIMIT = 2**63
_BRACKETS = re.compile(r'"(?s:[^"\\]|\\.)*+"?+|[\[\]{}]')
"""And texts as a whole, in which they are nothing."""
_PLAIN = {
    **dict.fromkeys("▎▍▌▋▊▉", "="),
    "▏": "|",
    "▕": "|",
    "█": "#",
    "→": "->",
    "…": "...",
    "−": "-",
    "–": "-",
    "×": "x",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "µ": "u",
    "°": " deg",
    "≤": "<=",
    "≥": ">=",
}


def line(text: object, longest: int = LONGEST) -> str:
    """``text`` as one printable line of at most ``longest`` characters; white space is a space."""
    whole = secret.without(_string(text))
    if len(whole) <= longest and whole.isprintable():
        return whole
    shown = "".join(map(_shown, whole[: longest + 1])).strip()
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def lines(text: object, most: int = MOST_LINES) -> str:
    """The same for what has lines of its own, such as a traceback; the middle goes if need be."""
    rows = _string(text).splitlines()
    if len(rows) > most:
        head = most // 2
        left_out = len(rows) - most + 1
        rows[head : head + left_out] = [f"… {left_out} lines left out"]
    return "\n".join(map(line, rows))


def field(text: object, most_bytes: int) -> str:
    """One line whose UTF-8 has at most ``most_bytes``."""
    raw = line(text, most_bytes).encode()
    if len(raw) <= most_bytes:
        return raw.decode()
    return raw[: most_bytes - len("…".encode())].decode(errors="ignore") + "…"


def tree(value: object, most: int = MOST_VALUES) -> object:
    """``value`` as JSON can hold it anywhere: texts cleaned, no number that is none, at most
    ``most`` values, ``DEEPEST`` deep; what is too much is left out.
    """
    return _tree(value, DEEPEST, [most])


def parsed(raw: bytes | str) -> Any:
    """What a JSON text of others' making holds. Raises ValueError, also for one that is nested so
    deeply that Python's own reader could run out of a thread's small stack: 3.13 ends the process
    then.
    """
    import json  # a daemon's start is worth more than it

    text = raw.decode() if isinstance(raw, bytes) else raw
    depth = 0
    for one in _BRACKETS.finditer(text) if text.count("[") + text.count("{") > NESTED else ():
        depth += (one[0] in "[{") - (one[0] in "]}")
        if depth > NESTED:
            raise ValueError("nested too deeply")
    return json.loads(text)


def in_encoding(text: str, encoding: str | None) -> str:
    """``text`` as it will look where it is written in that encoding."""
    try:
        return text.encode(encoding or "ascii", ERRORS).decode(encoding or "ascii")
    except (LookupError, UnicodeError):
        return text.encode("ascii", ERRORS).decode("ascii")


def _tree(value: object, depth: int, left: list[int]) -> object:
    left[0] -= 1
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return line(value)
    if isinstance(value, int):
        return int(value) if abs(value) < _INT_LIMIT else None
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict | list | tuple):
        room = max(0, left[0]) if depth else 0
        if isinstance(value, dict):
            return {
                line(key, LONGEST_KEY): _tree(one, depth - 1, left)
                for key, one in islice(value.items(), room)
                if left[0] > 0
            }
        return [_tree(one, depth - 1, left) for one in islice(value, room) if left[0] > 0]
    return line(value)


def _string(text: object) -> str:
    try:
        return str(text)
    except Exception as error:  # noqa: BLE001  an object of a library's may fail even at this
        return f"<{type(text).__name__} without words: {type(error).__name__}>"


def _shown(one: str) -> str:
    if one.isprintable():
        return one
    return " " if one.isspace() else ascii(one)[1:-1]


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    piece = error.object[error.start : error.end]
    return "".join(_PLAIN.get(one) or ascii(one)[1:-1] for one in piece), error.end


codecs.register_error(ERRORS, _plain)
