"""What each signal means to the daemon; no signal that anybody may send ends it without a drain.

    TERM INT QUIT PWR XCPU   end: what was captured is delivered, files and books are closed
    HUP                      a reload; in a terminal the end, for the terminal has gone
    the others               nothing: USR1, USR2, ALRM, IO, the real-time ones and their like,
                             whose default action would be to kill the process at once

Signals that speak of a bug (SEGV, ABRT, which is also the watchdog's, and so on) are left alone.

What comes while the daemon is loaded waits until it can be obeyed: ``hold`` comes first of all, and
``catch`` lets go. QUIT is not held, so that a start that hangs can be ended from its terminal.
Thread: main.
"""

import ctypes
import os
import signal
import struct
from collections.abc import Callable

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGPWR, signal.SIGXCPU)
HELD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
IGNORED = (
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF),
    *(signal.SIGIO, signal.SIGSTKFLT, signal.SIGTTOU),
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)

FIRST_REAL_TIME = 32


def hold() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def unblock() -> None:
    """For commands that are no daemon: a signal ends them, as it does other programs."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


def catch(end: Callable[[str], None], hang_up: Callable[[str], None]) -> None:
    """From now on; each is given the signal's name. What started us may have blocked them, and
    children inherit that."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    _ignore_the_c_librarys()
    for number in ENDING:
        signal.signal(number, lambda number, _: end(signal.Signals(number).name))
    signal.signal(signal.SIGHUP, lambda number, _: hang_up(signal.Signals(number).name))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*ENDING, signal.SIGHUP))


def ignore() -> None:
    """For a sink's process, which the daemon alone ends."""
    for number in (*ENDING, signal.SIGHUP, *IGNORED):
        signal.signal(number, signal.SIG_IGN)
    _ignore_the_c_librarys()


def _ignore_the_c_librarys() -> None:
    """glibc keeps signal 32 for itself and lets nobody say what it means; until it needs it, the
    kernel's default kills the process. Where a thread is cancelled glibc takes it back."""
    number = {"x86_64": 13, "aarch64": 134, "riscv64": 134}.get(os.uname().machine)
    if number is not None:
        ignored = struct.pack("@PLPQ", signal.SIG_IGN, 0, 0, 0)  # struct sigaction of the kernel
        ctypes.CDLL(None).syscall(number, FIRST_REAL_TIME, ignored, None, 8)  # rt_sigaction


def end_of_catching() -> None:
    """The books are closed: a second signal must not make that end look like a failure."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (*ENDING, signal.SIGHUP))
