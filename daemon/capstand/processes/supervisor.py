"""The supervisor of a process: starts it, watches it, starts it again after a pause that grows.

    ABSENT → RUNNING → (told to end) → ENDING → ENDED
       ↑  pause   │ died, hangs, or says what cannot be
       └──────────┘

A process that is at something for longer than its limit hangs and is killed; one that has nothing
to do shows itself every second. One that dies is told by name. All this is a SinkError to nobody:
the process' own stream goes on without it, and is told in words (``trouble``).

It is forked from a clean parent (``forkserver.py``), with no descriptor but its own. It ends with
the daemon, and by the daemon's order only (``child.py``).

Thread: main, whose turn ``poll`` is; nothing here waits, but ``join``.
"""

import mmap
import pickle
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto

from capstand.audio.block import NS_PER_S
from capstand.host.backoff import Backoff
from capstand.processes import forkserver
from capstand.processes.child import FAILED, LONGEST, MOST_VALUES, Task
from capstand.processes.forkserver import NEVER, Process
from capstand.processes.page import CALLS, Doing, Page
from capstand.text import clean

LIMITS_S = {
    Doing.STARTING: 30.0,  # to load libraries from a slow card takes its time
    Doing.WAITING: 10.0,
    Doing.OPENING: 30.0,
    Doing.WRITING: 10.0,
    Doing.FLUSHING: 10.0,
    Doing.CLOSING: 3.0,
    Doing.PROCESSING: 5.0,
}
BACKOFF_S = (0.5, 30.0)
MOST_MESSAGES = 16
"""Of one look."""


class ProcessState(Enum):
    ABSENT = auto()
    RUNNING = auto()
    ENDING = auto()
    ENDED = auto()


class Supervisor:
    """Keeps a process for ``task`` running, from the first look to ``stop``. It gets copies of
    ``descriptors``; ``modules`` of capstand's own are loaded before it begins.

    ``trouble`` says what ails it, None while nothing does; ``detail``, ``concern`` and ``figures``
    are what it told last; where ``hear`` is given, what it tells goes there instead.
    """

    def __init__(
        self,
        task: Task,
        descriptors: Sequence[int],
        limits_s: Mapping[Doing, float] = LIMITS_S,
        backoff: Backoff | None = None,
        modules: Sequence[str] = (),
        hear: Callable[[bytes], None] | None = None,
    ) -> None:
        self.state = ProcessState.ABSENT
        self.page = Page()
        self.trouble: str | None = None
        self.detail = "not started yet"
        self.concern: str | None = None
        self.figures: dict[str, object] = {}
        self.deaths = 0
        self.task = task
        self.descriptors = tuple(descriptors)
        self._heard = hear or self._learn
        self._modules = tuple(modules)
        self._limits_ns = {doing: round(s * NS_PER_S) for doing, s in limits_s.items()}
        self._backoff = backoff or Backoff(*BACKOFF_S)
        self._due_ns = 0
        self._process: Process | None = None
        self._channel: socket.socket | None = None
        self._calls = 0  # as they were when it was heard last
        # A message is taken up here: memory that is new for each costs more than to understand it.
        self._room = mmap.mmap(-1, LONGEST)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def is_calm(self) -> bool:
        """Whether it runs and has not called since it was heard last."""
        running = self.state is ProcessState.RUNNING
        return running and self.page.words[CALLS] == self._calls

    def well(self) -> None:
        """It does what it is for: the next pause is a short one again."""
        self._backoff.reset()

    def poll(self, now_ns: int) -> None:
        """Starts it when it is time, hears what it says, ends what hangs."""
        forkserver.shared.poll()
        if ghosts:
            _lay()
        if self.state is ProcessState.ABSENT and now_ns >= self._due_ns:
            self._start(now_ns)
        if self._process is None:
            return
        if not self._hear():
            self.kill(now_ns, "its process sent an invalid reply and was killed")
            return
        if self._process.poll() is not None:
            self._hear()
            self._died(now_ns)
            return
        try:
            doing, since_ns = self.page.doing
        except ValueError:
            self.kill(now_ns, "its process sent an invalid reply and was killed")
            return
        limit_ns = self._limits_ns[doing]
        if now_ns - since_ns > limit_ns:
            limit_s = limit_ns / NS_PER_S
            done = (
                "did not respond for"
                if doing is Doing.WAITING
                else (f"did not return from {doing.name.lower()} within")
            )
            self.kill(now_ns, f"its process {done} {limit_s:g} s and was killed")

    def _died(self, now_ns: int) -> None:
        assert self._process is not None
        status = self._process.returncode
        if status == 0 and self.state is ProcessState.ENDING:
            self._end()
            self.state = ProcessState.ENDED
        elif status == FAILED and self.trouble is not None:  # it has said why
            self.fail(now_ns, None)
        elif status == NEVER:
            self.fail(now_ns, f"its process cannot be started: {self._process.error}")
        else:
            self.fail(now_ns, f"its process {self._words()}; a new one is starting")

    def kill(self, now_ns: int, why: str) -> None:
        """Ends it by force, for a reason that is told; another one is started."""
        assert self._process is not None
        if self._process.pid is None:
            forkserver.shared.end()  # it is that which hangs
        self._process.kill()
        self.fail(now_ns, f"{why}; a new one is starting")

    def fail(self, now_ns: int, why: str | None) -> None:
        """It is gone, or as good as gone; ``why`` where it did not say so itself."""
        self._end()
        self.deaths += 1
        self.trouble = why or self.trouble
        if self.state is ProcessState.RUNNING:
            self.state = ProcessState.ABSENT
            self._due_ns = now_ns + round(self._backoff.next_s() * NS_PER_S)
        else:
            self.state = ProcessState.ENDED

    def order(self, message: object, descriptors: Sequence[int] = ()) -> bool:
        """Tells it something; whether that could be sent."""
        if self._channel is None:
            return False
        try:
            socket.send_fds(self._channel, [pickle.dumps(message)], list(descriptors))
        except OSError:
            return False
        return True

    def stop(self, message: object = None) -> None:
        """Tells it to end; ``message`` says more."""
        if self._process is None:
            self.state = ProcessState.ENDED
            return
        self.state = ProcessState.ENDING
        self.order(message)

    def wait(self, timeout_s: float) -> None:
        """For a word of it, or its end."""
        if self._channel is not None:
            poll = select.poll()
            poll.register(self._channel, select.POLLIN)
            poll.poll(max(0.0, timeout_s) * 1000)

    def join(self, deadline: float) -> bool:
        """Whether it has ended by itself by then (time.monotonic); it was told to stop before."""
        if self._process is not None:
            if not self._process.wait(max(0.0, deadline - time.monotonic())):
                return False
            self.poll(time.monotonic_ns())
        return True

    def abandon(self) -> None:
        """It was waited for long enough."""
        if self._process is not None:
            self._process.kill()
            self._hear()
            self._end()
        self.state = ProcessState.ENDED

    def close(self) -> None:
        """Gives back what it took of the system; it has ended."""
        self.page.close()
        self._room.close()

    # Inside

    def _start(self, now_ns: int) -> None:
        self.detail, self.concern, self.figures = "starting", None, {}
        self.page.does(Doing.STARTING, now_ns)
        self.state = ProcessState.RUNNING
        try:
            self._channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._channel.setblocking(False)
            with its:
                self._channel.send(pickle.dumps(self.task))
                given = its.fileno(), self.page.descriptor, *self.descriptors
                self._process = forkserver.shared.make(self._modules, given)
        except OSError as error:
            why = f"{sys.executable} cannot be started: {error.strerror}; out of memory?"
            self.fail(now_ns, why)

    def _hear(self) -> bool:
        """What it has said since the last look; False for what makes no sense."""
        self._calls = self.page.words[CALLS]
        for _ in range(MOST_MESSAGES):
            assert self._channel is not None
            try:
                size = self._channel.recv_into(self._room)
            except OSError:  # nothing is there, or nobody any more
                return True
            if not size:
                return True
            try:
                self._heard(self._room[:size])
            except (ValueError, RecursionError):
                return False
        return True

    def _learn(self, raw: bytes) -> None:
        """Raises ValueError for what makes no sense."""
        said = clean.tree(clean.parsed(raw), MOST_VALUES)
        if not isinstance(said, dict) or not isinstance(said.get("figures", {}), dict):
            raise ValueError(said)
        if "trouble" in said:
            self.trouble = None if said["trouble"] is None else str(said["trouble"])
        if "detail" in said:
            self.detail = str(said["detail"])
            self.concern = None if said.get("concern") is None else str(said["concern"])
            figures = said.get("figures", {})
            assert isinstance(figures, dict)
            self.figures = figures

    def _words(self) -> str:
        """How it ended."""
        status = self._process.returncode if self._process else None
        if status is None:
            return "hung and was killed"
        if status >= 0:
            return f"ended with status {status}"
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"

    def _end(self) -> None:
        """Lets go of what is left of it, at once: what sits in a driver does not end soon."""
        process, channel = self._process, self._channel
        self._process = self._channel = None
        self.concern, self.figures = None, {}
        if self.state is not ProcessState.ENDING:
            self.detail = "not running"
        if channel is not None:
            channel.close()
        if process is not None and process.poll() is None:
            process.kill()
            ghosts.append(process)


ghosts: list[Process] = []
"""Killed, but not yet gone, or not yet there; whoever is polled next looks after all of them."""


def _lay() -> None:
    ghosts[:] = [ghost for ghost in ghosts if ghost.poll() is None]
