"""Priority, locked memory and the settings of the interpreter that decide wake-up time.

Each request may be refused; capture goes on then, and the refusal is a sentence for the log that
says how to grant it. Figures behind the choices: a 0.1 ms switch interval brings the wake-up of a
FIFO thread beside a busy Python thread from 5 ms to 0.14 ms, but with 64 streams (about 200
threads) the switching alone takes all there is, while 5 ms serve them at a third of the machine;
MCL_ONFAULT keeps the locked memory at 26 MB instead of 160 MB; freezing the garbage collector's
heap cuts the tail. One arena for all threads, and a threshold that does not grow, keep 2 MB less of
what was freed.
"""

import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
from pathlib import Path

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3
MMAP_BYTES = 128 * 1024
SWITCH_INTERVAL_S = (0.0001, 0.005)
LOWEST = 1
"""Priority of threads that need not be on time, but must not be kept from giving up the lock."""
STACK_BYTES = 512 * 1024
announced: set[str] = set()
"""What the daemon has told for all threads, so that each need not."""


def prepare_process() -> str | None:
    """Locks memory and sets the interpreter up; main thread, before any other starts.

    Returns what was refused, or None.
    """
    threading.stack_size(STACK_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mallopt(M_ARENA_MAX, 1)
    libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0:
        return None
    return (
        f"memory is not locked: {os.strerror(ctypes.get_errno())}; a swapping machine may lose "
        "frames; allow it with LimitMEMLOCK=infinity in the unit, or run as root"
    )


def in_one_line(memory: str | None, priority: str | None) -> str | None:
    """What ``prepare_process`` and the main thread were refused, told once for all threads."""
    if priority is None:
        return memory
    announced.add("priority")
    if memory is None:
        return priority
    return (
        "no real-time priority and memory is not locked: a busy or swapping machine may lose "
        "frames; allow both with LimitRTPRIO=80 and LimitMEMLOCK=infinity in the unit, or to a"
        " user with rtprio and memlock in /etc/security/limits.d"
    )


def lower_priority(priority: int, steps: int) -> int:
    """A real-time priority so far below another; ordinary stays ordinary."""
    return max(LOWEST, priority - steps) if priority else 0


def set_switch_interval(streams: int, low_latency: bool) -> None:
    """Sets after how long a thread that computes gives Python's lock to one that waits for it:
    soon where a sink is in a hurry, later the more streams there are.
    """
    shortest, longest = SWITCH_INTERVAL_S
    sys.setswitchinterval(min(longest, shortest * streams) if low_latency else longest)


def freeze_heap() -> None:
    """After start-up: what lives now is permanent, the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    ctypes.CDLL(None).malloc_trim(0)


def prepare_thread(name: str, priority: int) -> str | None:
    """Names the calling thread for ``ps -L``, blocks its signals and gives it ``priority`` (see
    ``set_fifo``). Returns what was refused, or None.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with contextlib.suppress(OSError):  # a thread without a name captures as well
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name[:15])
    return set_fifo(name, priority)


def set_fifo(name: str, priority: int) -> str | None:
    """Gives the calling thread SCHED_FIFO, which nothing that it starts inherits.

    Every thread of ours that takes Python's lock often has it: an ordinary one that holds the lock
    while a busy machine does not let it run keeps the capture thread waiting, however high that is.
    ``priority`` 0 asks for ordinary scheduling. Returns what was refused, or None.
    """
    if priority == 0:
        return None
    try:
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError as error:
        return (
            f"thread {name} has no real-time priority {priority}: {error.strerror}; a busy "
            "machine may delay it; allow it with LimitRTPRIO=80 in the unit, or run as root"
        )
    return None
