"""How late the machine wakes a thread that does nothing else.

    python -m tests.bench.timer PRIORITY SECONDS     prints ns, one for each 10 ms, as JSON

PRIORITY is that of SCHED_FIFO, or 0 for an ordinary thread.
"""

import ctypes
import json
import os
import sys
import time

PERIOD_NS = 10_000_000
MCL_CURRENT, MCL_FUTURE = 1, 2


def late_ns(seconds: float) -> list[int]:
    found = []
    due_ns = time.monotonic_ns()
    for _ in range(round(seconds * 1e9 / PERIOD_NS)):
        due_ns += PERIOD_NS
        time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
        found.append(time.monotonic_ns() - due_ns)
    return found


def main() -> None:
    priority, seconds = int(sys.argv[1]), float(sys.argv[2])
    ctypes.CDLL(None).mlockall(MCL_CURRENT | MCL_FUTURE)
    if priority:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    print(json.dumps(late_ns(seconds)))


if __name__ == "__main__":
    main()
