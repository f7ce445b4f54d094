"""Processes whose parent has ended before them: somebody has to wait for them, or they stay in the
system's tables for as long as it runs. Who adopts orphans gets those of all that it has started.
"""

import ctypes
import os
import time

PR_SET_CHILD_SUBREAPER = 36
LOOK_S = 0.005


def adopt() -> None:
    """From now on this process is the parent of what its children leave behind (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(group: int, patience_s: float) -> bool:
    """Waits for what has ended of a process group that has been killed; whether nothing of it is
    left. What sits in a driver does not end soon."""
    until_s = time.monotonic() + patience_s
    while True:
        try:
            ended, _ = os.waitpid(-group, os.WNOHANG)
        except ChildProcessError:
            return True
        if not ended:
            if time.monotonic() >= until_s:
                return False
            time.sleep(LOOK_S)
