"""How many examples a test tries: few in the normal run, many with CAPSTAND_FULL=1."""

import os


def counts(short: int, full: int) -> int:
    return full if os.environ.get("CAPSTAND_FULL") == "1" else short
