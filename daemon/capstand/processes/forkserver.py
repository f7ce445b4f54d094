"""The forkserver: a process without threads that has loaded what the others need, and forks them.

A process that is forked from it shares that memory, and is there in milliseconds. The forkserver
itself is forked from main while that has no other thread (``begin``); later it is made by exec. It
has no descriptor but its own, and does not learn of systemd's notification socket and watchdog. It
loads nothing but capstand's own modules, and what these bring: foreign code is for the processes
themselves. When nothing was asked of it for a while it ends, and its memory is theirs; those that
it made go on, and the next one is made by another.

    main ── an order: modules, descriptors ──→ forkserver ── fork ──→ ── fork ──→ process
      ↑                                                     its number │          │
      ├────────────────────────────────────────────────────────────────┘          │
      └───────────────── a socket and a page of its own (``child.py``) ───────────┘

The fork between them ends at once, so that the process is main's to wait for, which is the
subreaper (prctl(2)) of all of them.

Threads: ``ForkServer`` and ``Process`` main; ``main`` is the forkserver's only one.
"""

import array
import contextlib
import ctypes
import errno
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from capstand.host import bug, console, orphans, signals
from capstand.processes import child

NOT_TOLD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
LONGEST = 4096
MOST_DESCRIPTORS = 253  # SCM_MAX_FD of Linux
WORD = struct.Struct("@i")
ONCE = select.EPOLLIN | select.EPOLLONESHOT
REST_S = 5.0
"""For so long after an order another one may follow."""
CHANNEL = 3
NEVER = 1 << 16
"""The returncode of what never was; no process ends with it."""


class Process:
    """A process that the forkserver was asked for: ``pid`` is None until it is there.
    ``returncode`` is that of subprocess.Popen; NEVER where it could not be made, ``error`` says
    why.
    """

    def __init__(self, word: socket.socket, news: select.epoll) -> None:
        self.pid: int | None = None
        self.returncode: int | None = None
        self.error = ""
        self._word = word  # from the forkserver: its number
        self._news = news
        self._handle = -1
        self._doomed = False
        news.register(word, ONCE)

    def poll(self) -> int | None:
        """How it ended; None while it has not."""
        self.wait(0.0)
        return self.returncode

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended by then."""
        end = time.monotonic() + timeout_s
        if self.pid is None and self.returncode is None and _readable(self._word, timeout_s):
            self._begins()
        if self.returncode is None and self.pid is not None:
            left_s = max(0.0, end - time.monotonic())
            if _readable(self._handle, left_s):
                self._reap(self.pid, end)
        return self.returncode is not None

    def _reap(self, pid: int, end: float) -> None:
        """It has ended; but one that did so at once is not main's to wait for yet: its parent is
        the fork between, which is about to end, too."""
        while True:
            try:
                _, status = os.waitpid(pid, 0)
            except ChildProcessError:
                if time.monotonic() >= end:
                    return
                time.sleep(0.001)
            else:
                self._over(os.waitstatus_to_exitcode(status))
                return

    def kill(self) -> None:
        self._doomed = True
        if self.pid is not None and self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def _begins(self) -> None:
        raw = self._word.recv(WORD.size)
        number = WORD.unpack(raw)[0] if len(raw) == WORD.size else -errno.EPIPE
        if number < 0:
            self._over(NEVER, os.strerror(-number))
            return
        self.pid = number
        self._handle = os.pidfd_open(number)  # ours to wait for, so the number is still its own
        self._news.register(self._handle, ONCE)
        if self._doomed:
            self.kill()

    def _over(self, returncode: int, error: str = "") -> None:
        self.returncode, self.error = returncode, error
        self._word.close()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class ForkServer:
    """Main's end of it; it is started with the first process, and again where it is gone.

    ``news`` can be waited for: a process has begun or ended since ``heard``.
    """

    def __init__(self) -> None:
        self.pid: int | None = None
        self.channel: socket.socket | None = None
        self._news: select.epoll | None = None

    @property
    def news(self) -> select.epoll:
        if self._news is None:
            self._news = select.epoll()
        return self._news

    def heard(self) -> None:
        self.news.poll(0)

    def begin(self, modules: Sequence[str]) -> None:
        """Forks it from this process, which must have no other thread and not begun its work; it
        loads ``modules`` meanwhile. Where that cannot be, the first ``make`` does it."""
        try:
            if len(list(Path("/proc/self/task").iterdir())) > 1:
                return
        except OSError:  # no /proc
            return
        gc.collect()
        gc.freeze()  # what is shared stays shared
        with contextlib.suppress(OSError):
            channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with its:
                self.pid = os.fork()
                if self.pid == 0:
                    _become(its.detach(), modules)
            channel.setblocking(False)
            self.channel = channel

    def load(self, modules: Sequence[str]) -> None:
        """Has ``modules`` loaded for all processes that are made from now on, so that they share
        them."""
        with contextlib.suppress(OSError):
            if self.channel is not None:
                self.channel.send(pickle.dumps(tuple(modules)))

    def make(self, modules: Sequence[str], descriptors: Sequence[int]) -> Process:
        """A new process, which has ``modules`` of capstand's own loaded and ``descriptors``, the
        first two of which are its socket and its page. Does not wait for it. Raises OSError where
        it cannot even be asked for.
        """
        orphans.adopt()
        order = pickle.dumps(tuple(modules))
        word, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            for _ in range(2):
                try:
                    given = [its.fileno(), *descriptors]
                    socket.send_fds(self.channel or self._start(), [order], given)
                    return Process(word, self.news)
                except ConnectionError:  # it is gone
                    self.end()
                except OSError:
                    word.close()
                    raise
        word.close()
        raise OSError(errno.ECHILD, "the fork server died at once")

    def end(self) -> None:
        """It is of no use any more."""
        if self.pid is not None and self.channel is not None:
            self.channel.close()
            os.kill(self.pid, signal.SIGKILL)  # not waited for yet, so the number is its own
            os.waitpid(self.pid, 0)
        self.pid = self.channel = None

    def poll(self) -> None:
        """Main's turn: it may have ended."""
        if self.channel is not None and os.waitpid(self.pid or 0, os.WNOHANG)[0]:
            self.channel.close()
            self.pid = self.channel = None

    def _start(self) -> socket.socket:
        channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            try:
                self.pid = _exec(its.fileno(), environment())
            except OSError:
                channel.close()
                raise
        channel.setblocking(False)
        self.channel = channel
        return channel


shared = ForkServer()


def environment() -> dict[str, str]:
    """Of a Python that is executed by this one: it finds what this one finds."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_TOLD}
    return kept | {"PYTHONPATH": os.pathsep.join(one or "." for one in sys.path)}


def _exec(channel: int, environment: dict[str, str]) -> int:
    """Its number. The channel is its first descriptor behind stderr; it closes what came along."""
    code = "from capstand.processes import forkserver; forkserver.begin_anew()"
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-c", code],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, channel, CHANNEL),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        ],
    )


def _readable(one: socket.socket | int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(one, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


# In the forkserver


def begin_anew() -> NoReturn:
    """Behind an exec."""
    _close_all_but(CHANNEL)
    main(CHANNEL)


def _become(channel: int, modules: Sequence[str]) -> NoReturn:
    """In a child of main, which must not go back into what main was at."""
    try:
        for name in NOT_TOLD:
            os.environ.pop(name, None)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _close_all_but(channel)
        main(channel, modules)
    except BaseException as error:  # noqa: BLE001
        bug.log_unexpected("the fork server died", error)
    finally:
        os._exit(1)


def _close_all_but(channel: int) -> None:
    os.closerange(3, channel)
    os.closerange(channel + 1, os.sysconf("SC_OPEN_MAX"))


def main(number: int, modules: Sequence[str] = ()) -> NoReturn:
    """``number`` is the descriptor of its channel."""
    console.prepare()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    signals.ignore()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("forkserver")
    _load(modules)
    channel = socket.socket(fileno=number)
    channel.set_inheritable(False)
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    rests = False
    while True:
        if not rests and not poll.poll(REST_S * 1000):
            channel.shutdown(socket.SHUT_RD)  # what was sent before is still done
            rests = True
        raw, given = _order(channel)
        if not raw:
            os._exit(0)  # or the daemon is gone
        _load(pickle.loads(raw))
        if given:
            _fork(given, channel.fileno())


def _order(channel: socket.socket) -> tuple[bytes, list[int]]:
    given = array.array("i")
    room = socket.CMSG_LEN(MOST_DESCRIPTORS * given.itemsize)
    try:
        raw, ancillary, _, _ = channel.recvmsg(LONGEST, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return b"", []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            given.frombytes(data[: len(data) - len(data) % given.itemsize])
    return raw, list(given)


def _load(modules: Sequence[str]) -> None:
    for module in modules:
        if module not in sys.modules:
            with contextlib.suppress(Exception):  # the process itself tells what is wrong with it
                importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is shared stays shared
    ctypes.CDLL(None).malloc_trim(0)


def _fork(given: list[int], channel: int) -> None:
    word, *its = given
    try:
        between = os.fork()
    except OSError as error:
        _tell(word, -(error.errno or errno.EAGAIN))
    else:
        if between == 0:
            _fork_again(word, its, channel)
        os.waitpid(between, 0)
    for one in given:
        os.close(one)


def _fork_again(word: int, its: list[int], channel: int) -> NoReturn:
    try:
        pid = os.fork()
    except OSError as error:
        pid = -(error.errno or errno.EAGAIN)
    if pid == 0:
        os.close(channel)
        os.close(word)
        child.main(its)
    _tell(word, pid)
    os._exit(0)


def _tell(word: int, number: int) -> None:
    with contextlib.suppress(OSError):  # main asks no more
        os.write(word, WORD.pack(number))
