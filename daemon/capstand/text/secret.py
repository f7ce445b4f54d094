"""Secrets that this process has read, so that no error of a library shows one by accident.

Thread: any.
"""

from collections import deque
from contextlib import suppress

SHORTEST = 6
_known: deque[str] = deque(maxlen=64)


def learn(text: str) -> str:
    """Remembers a secret, and hands it back; of many, those that were used last."""
    if len(text) >= SHORTEST:
        with suppress(ValueError):
            _known.remove(text)
        _known.append(text)
    return text


def without(text: str) -> str:
    """The text with every secret that is known taken out."""
    for one in tuple(_known):
        text = text.replace(one, "(secret)")
    return text
