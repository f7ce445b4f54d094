"""Whether wall time is known to be right. Thread: any; nothing here blocks."""

import ctypes
from pathlib import Path

_TIMEX_BYTES = 512
_TIME_ERROR = 5


def clock_sure(root: Path = Path("/")) -> bool:
    """Whether the wall clock is known to be right: timesyncd says so, or the kernel does.

    ``root`` is where /run is looked for. A kernel that may not be asked counts as no.
    """
    if (root / "run/systemd/timesync/synchronized").exists():
        return True
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # all zero: modes 0 only reads
    try:
        state: int = ctypes.CDLL(None).adjtimex(timex)
    except (OSError, AttributeError):
        return False
    return 0 <= state < _TIME_ERROR
