"""How often a fault is repeated: few times in every run, often with ``scripts/test --full``."""

import os

FULL = os.environ.get("CAPSTAND_FULL") == "1"


def counts(short: int, full: int) -> int:
    return full if FULL else short
