"""The way in through a pipe: a FIFO that programs write to, or a child's stdout.

A FIFO is made where it is missing, and kept open while nobody writes, so that no writer finds it
without a reader. Who may write is said by its owner, group and mode.

A child is started anew when it ends or falls silent, with pauses that grow up to ``MOST_S``; one
that brought sound for a while begins again with the first. It is a process group of its own, which
is ended as a whole; and the kernel kills it when the thread that started it is gone, be it by
SIGKILL. Python's own fork runs no code of ours between threads that hold locks: so a second, tiny
Python (``_LAUNCH``) undoes what a child must not inherit (blocked and ignored signals, the favour
when memory is short) and becomes the program. What that says on stderr goes to the log, so many
lines a minute, and the last one into the status.

Threads: capture; "stderr" for each child, which ends with it.
"""

import contextlib
import errno
import logging
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from fcntl import F_SETPIPE_SZ, fcntl
from pathlib import Path
from typing import IO

from capstand.audio.block import NS_PER_S
from capstand.capture.program import ProgramSource
from capstand.capture.source import NegotiatedParams
from capstand.capture.types.pipe import PipeConfig
from capstand.config.schema import CaptureConfig
from capstand.errors import DeviceError
from capstand.host import orphans
from capstand.host.backoff import Backoff
from capstand.host.logs import log_event
from capstand.host.ratelimit import RateLimit
from capstand.text import clean

MOST_PIPE_BYTES = 1 << 20
"""More needs a privilege."""
FIFO_MODE = 0o660
FIRST_S, MOST_S = 0.5, 30.0
WELL_NS = 10 * NS_PER_S
BEGIN_MS = 20_000
"""So long a child may take to bring its first period; the capturer allows for 30 s."""
END_S = 0.4
"""Between SIGTERM and SIGKILL."""
LAST_WORD_S = 1.0
LINES_PER_S, LINES = 0.5, 20.0
LONGEST_LINE = 500

_LAUNCH = """\
import ctypes, os, signal, sys
for one in signal.valid_signals():
    if signal.getsignal(one) is signal.SIG_IGN:
        signal.signal(one, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
try:
    open("/proc/self/oom_score_adj", "w").write("0")
except OSError:
    pass
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    os.write(2, error.strerror.encode())
    os._exit(127)
"""


class FifoSource(ProgramSource):
    """A source as ``capture`` asks for it."""

    def __init__(self, capture: CaptureConfig, setup: PipeConfig) -> None:
        self._path = Path(setup.path)
        super().__init__(capture, f"pipe:{setup.path}", setup.live)
        self._written = False

    def _prepare(self, now_ns: int) -> None:
        if self._descriptor is None:
            descriptor = self._open()
            _widen(descriptor, self._capture.buffer_frames * self.audio.frame_bytes)
            self._take_in(descriptor)

    def _open(self) -> int:
        path = self._path
        try:
            if not path.exists():
                os.mkfifo(path, FIFO_MODE)
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            raise DeviceError(
                f"{self.name}: cannot be opened: {error.strerror}",
                error.errno or errno.EIO,
                refused=True,
            ) from None
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise DeviceError(
                f"{self.name}: is not a FIFO; remove it, or name another path", refused=True
            )
        return descriptor

    def _missing(self) -> str:
        return "no program writes there"

    def _silent(self, now_ns: int) -> str:
        return super()._silent(now_ns) if self._inlet.came else self._missing()

    def _who(self) -> str:
        return "the program that writes there"

    def _ended(self) -> str:
        inlet = self._inlet
        torn = f" and a torn frame of {inlet.torn} bytes" if inlet.torn else ""
        self._refuse("")
        return f"no program writes there any more, after {inlet.went} frames{torn}"

    def _refuse(self, why: str) -> None:
        """To be closed is what a writer is told: its next write fails."""
        if (descriptor := self._descriptor) is not None:
            self._let_go()
            os.close(descriptor)

    def _shut(self) -> None:
        self._refuse("")


class CommandSource(ProgramSource):
    """A source as ``capture`` asks for it."""

    def __init__(self, capture: CaptureConfig, setup: PipeConfig) -> None:
        self._command = setup.words
        self._program = Path(setup.words[0]).name
        super().__init__(capture, f"pipe:{self._program}", setup.live)
        self._child: subprocess.Popen[bytes] | None = None
        self._said = _Said(self.name)
        self._backoff = Backoff(FIRST_S, MOST_S)
        self._due_at_ns = self._sound_since_ns = 0
        self._outcome = ""  # of the last one
        self._groups: list[int] = []  # of children that were ended, of which something is left

    def open(self) -> NegotiatedParams:
        """Waits for the first sound: a child may have to connect somewhere."""
        until_ns = time.monotonic_ns() + BEGIN_MS * 1_000_000
        while True:
            try:
                return super().open()
            except DeviceError as error:
                begins = self._child is not None and not self._inlet.ended
                if error.refused or self._stopping or not begins:
                    raise
                if time.monotonic_ns() >= until_ns:
                    self._is_away = False
                    raise

    def _prepare(self, now_ns: int) -> None:
        if self._child is not None:
            return
        if now_ns < self._due_at_ns:
            self._rest_until(self._due_at_ns)
            self._away(f"{self._outcome}; it is started again")
        if shutil.which(self._command[0]) is None:
            raise DeviceError(
                f"{self.name}: {clean.line(self._command[0], 200)} is not a program that can "
                "be run; look at command in [stream.capture.pipe]",
                errno.ENOENT,
                refused=True,
            )
        self._due_at_ns = now_ns + round(self._backoff.next_s() * NS_PER_S)
        self._sound_since_ns = 0
        self._start()

    def _start(self) -> None:
        orphans.adopt()
        launch = (sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()))
        try:
            self._child = child = subprocess.Popen(
                (*launch, *self._command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,
                bufsize=0,
            )
        except OSError as error:
            raise DeviceError(f"{self.name}: cannot be started: {error.strerror}") from None
        assert child.stdout is not None and child.stderr is not None
        os.set_blocking(child.stdout.fileno(), False)
        _widen(child.stdout.fileno(), self._capture.buffer_frames * self.audio.frame_bytes)
        self._said.hear(child.stderr)
        self._take_in(child.stdout.fileno())
        self._stall_ns = BEGIN_MS * 1_000_000  # the capturer's own patience ends before

    def _rest_until(self, at_ns: int) -> None:
        """As long as one try may take."""
        wait_ms = max(0.0, (at_ns - time.monotonic_ns()) / 1e6)
        self._resting.poll(min(500.0, wait_ms))

    def _went(self, now_ns: int) -> None:
        self._sound_since_ns = self._sound_since_ns or now_ns
        if self._due_at_ns and now_ns - self._sound_since_ns > WELL_NS:
            self._backoff.reset()
            self._due_at_ns = 0

    def _missing(self) -> str:
        return f"{self._program} is to be started"

    def _who(self) -> str:
        return self._program if self._child is None else f"{self._program} (pid {self._child.pid})"

    def _ended(self) -> str:
        inlet = self._inlet
        torn = f" and a torn frame of {inlet.torn} bytes" if inlet.torn else ""
        how = self._end()
        self._said.finish(LAST_WORD_S)
        last = f": {self._said.last}" if self._said.last else ""
        self._outcome = f"{self._program} {how} after {inlet.went} frames{torn}{last}"
        self._pause()
        return f"{self._outcome}; it is started again"

    def _refuse(self, why: str) -> None:
        self._end()
        self._outcome = f"{self._program} wrote what cannot be taken: {why}"
        self._pause()

    def _pause(self) -> None:
        if not self._due_at_ns:
            self._due_at_ns = time.monotonic_ns() + round(self._backoff.next_s() * NS_PER_S)

    def _shut(self) -> None:
        if self._child is not None:
            self._end()
            self._outcome = f"{self._program} was ended"
            self._pause()

    def _end(self) -> str:
        """Ends the child and all of its group; returns how it ended."""
        child, self._child = self._child, None
        assert child is not None and child.stdout is not None
        self._let_go()
        child.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            if not _over(child.pid, END_S / 4):
                os.killpg(child.pid, signal.SIGTERM)
                _over(child.pid, END_S)
            os.killpg(child.pid, signal.SIGKILL)  # before its number may be another's
        status = child.wait()
        self._groups = [one for one in self._groups if not orphans.reap(one, 0.0)]
        if not orphans.reap(child.pid, END_S):
            self._groups.append(child.pid)
        if status < 0:
            return f"was ended by signal {-status}"
        return f"has ended with status {status}"


class _Said:
    """What children say on stderr."""

    def __init__(self, name: str) -> None:
        self.last = ""
        self._name = name
        self._allowance = RateLimit(LINES_PER_S, LINES, time.monotonic())
        self._left_out = 0
        self._thread: threading.Thread | None = None

    def hear(self, pipe: IO[bytes]) -> None:
        self.last = ""
        self._thread = threading.Thread(
            target=self._run, args=(pipe,), name=f"stderr {self._name}"[:15], daemon=True
        )
        self._thread.start()

    def finish(self, wait_s: float) -> None:
        """The child has ended: what it said last is known soon."""
        if self._thread is not None:
            self._thread.join(wait_s)

    def _run(self, pipe: IO[bytes]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with pipe:
            while raw := pipe.readline(LONGEST_LINE):
                if text := clean.line(raw.decode(errors="replace").strip(), LONGEST_LINE):
                    self.last = text
                    self._tell(text)

    def _tell(self, text: str) -> None:
        if self._allowance.wait_s(time.monotonic()) > 0:
            self._left_out += 1
            return
        self._allowance.take()
        more = f" (after {self._left_out} more lines)" if self._left_out else ""
        self._left_out = 0
        log_event(logging.WARNING, "%s says: %s%s", self._name, text, more, KIND="child")


def _over(pid: int, wait_s: float) -> bool:
    """Whether a child has ended within that time; it stays to be waited for."""
    ended = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        return bool(poll.poll(wait_s * 1000))
    finally:
        os.close(ended)


def _widen(pipe: int, buffer_bytes: int) -> None:
    """A pipe holds 64 KiB; what captures may be held up for longer."""
    with contextlib.suppress(OSError):
        fcntl(pipe, F_SETPIPE_SZ, min(MOST_PIPE_BYTES, max(65_536, buffer_bytes)))
