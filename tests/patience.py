"""How long tests wait for what must come: longer than the slowest machine takes. It costs nothing
while all is well.
"""

import os
import select

PATIENCE_S = 300.0


def gone(pid: int) -> bool:
    """Whether a process ends before patience does."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], PATIENCE_S)[0])
    finally:
        os.close(descriptor)
