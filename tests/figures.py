"""What the tests measured, for the table that every run ends with (tests/conftest.py prints it).

The lines lie in a file, because tests run in several processes; scripts/test names one
(CAPSTAND_FIGURES) for all its runs, so the last table has everything.
"""

import atexit
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

PLACE = "CAPSTAND_FIGURES"


def begin() -> None:
    """Names the file for this process and those that it starts, if nobody has."""
    if PLACE not in os.environ:
        number, os.environ[PLACE] = tempfile.mkstemp(prefix="capstand-figures-")
        os.close(number)
        atexit.register(Path(os.environ[PLACE]).unlink)


def figure(fault: str, measured: str) -> None:
    """A line of the table."""
    with Path(os.environ[PLACE]).open("a") as file:
        file.write(json.dumps([fault, measured]) + "\n")


def spread(values: Sequence[float]) -> str:
    """The median and the worst of times in s."""
    return f"{median(values):.2f} s (median), {max(values):.2f} s (worst of {len(values)})"


def table() -> list[str]:
    """All lines so far, each once, aligned, sorted by fault."""
    lines = Path(os.environ[PLACE]).read_text().splitlines()
    rows = sorted(json.loads(line) for line in dict.fromkeys(lines))
    width = max((len(fault) for fault, _ in rows), default=0)
    return [f"{fault.ljust(width)}  {measured}" for fault, measured in rows]
