"""Secrets that this process has read, so that no error of a library shows one by accident.

Thread: any.
"""

from collections import deque

SHORTEST = 6
_known: deque[str] = deque(maxlen=64)


def learn(text: str) -> str:
    """Remembers a secret, and hands it back."""
    if len(text) >= SHORTEST and text not in _known:
        _known.append(text)
    return text


def without(text: str) -> str:
    """The text with every secret that is known taken out."""
    for one in tuple(_known):
        text = text.replace(one, "(secret)")
    return text
