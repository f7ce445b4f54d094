"""A sink in a process of its own: what hangs, crashes or computes there harms nothing else.

    outlet → RemoteSink ═ socket ═ worker.py → the sink

An outlet drives a RemoteSink like any other. ``open`` starts a process (``python -m
capstand.sinks.worker``) and has it make and open the sink; ``write``, ``flush`` and ``close`` ask
it over the socket (``wire.py``) and wait for the answer. One that does not answer in time is
killed, one that dies is told by name; both are a SinkError, and the outlet opens the next one, in
a new process, after its usual pause. So the frames of a block whose answer never came count as
failed.

The process is made by exec, with no descriptor but the socket and the standard ones, and does not
learn of systemd's notification socket and watchdog. It ends with the daemon, and by the daemon's
order only: see ``worker.py``.

Thread: the outlet's. ``abandon`` comes from the main thread.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
from contextlib import suppress

from capstand.audio.block import Block
from capstand.audio.clock import Pace
from capstand.errors import SinkBusy, SinkError
from capstand.sinks.sink import Sink
from capstand.sinks.wire import QUESTION, Answer, Outcome, Plan, Question, receive_answer, send

OPEN_S = 30.0
"""To load libraries from a slow card takes its time."""
ANSWER_S = 10.0
CLOSE_S = 3.0
EXIT_S = 1.0
"""So long may what a library does at the end of its process take."""
NOT_TOLD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class RemoteSink(Sink):
    """The sink that ``plan`` makes, for sink ``name`` of ``stream``, in a process of its own."""

    detail = "not started yet"
    concern: str | None = None

    def __init__(self, stream: str, name: str, plan: Plan, pace: Pace) -> None:
        self.inserted_frames = 0
        self._names = stream, name
        self._plan = plan
        self._pace = pace
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._figures: dict[str, object] = {}
        self._inserted_before = 0  # by processes that have ended
        self._abandoned = False

    def open(self) -> None:
        self._end()
        self.detail = "starting"
        self._start()
        self._ask(Question.OPEN, OPEN_S, pickle.dumps(self._plan))

    def write(self, block: Block) -> None:
        first_frame, frames, captured_at_ns, samples = block
        self._ask(Question.WRITE, ANSWER_S, samples, first_frame, frames, captured_at_ns)

    def flush(self) -> None:
        self._ask(Question.FLUSH, ANSWER_S)

    def close(self) -> None:
        """Ends the process too."""
        if self._channel is None:
            return
        try:
            self._ask(Question.CLOSE, CLOSE_S)
            detail = self.detail
        finally:
            self._end(EXIT_S)
        self.detail = detail

    def abandon(self) -> None:
        self._abandoned = True
        if (process := self._process) is not None:
            process.kill()

    def figures(self, now_ns: int) -> dict[str, object]:
        """Those of the sink, at most some tenths of a second old, and its process."""
        process = self._process
        return self._figures | {"pid": None if process is None else process.pid}

    # Inside

    def _start(self) -> None:
        path = os.pathsep.join(one or "." for one in sys.path)
        kept = {name: value for name, value in os.environ.items() if name not in NOT_TOLD}
        command = [sys.executable, "-P", "-m", "capstand.sinks.worker"]
        try:
            self._channel, its = socket.socketpair()
            with its:
                self._process = subprocess.Popen(
                    [*command, str(its.fileno()), *self._names],
                    env=kept | {"PYTHONPATH": path},
                    stdin=subprocess.DEVNULL,
                    pass_fds=[its.fileno()],
                )
        except OSError as error:
            self._end()
            raise SinkError(
                f"{sys.executable} cannot be started: {error.strerror}; is memory short?"
            ) from None
        if self._abandoned:
            self._process.kill()

    def _ask(
        self,
        question: Question,
        limit_s: float,
        payload: bytes = b"",
        first_frame: int = 0,
        frames: int = 0,
        captured_at_ns: int = 0,
    ) -> None:
        """Raises SinkError for a refusal, and for what ends the process."""
        channel, pace = self._channel, self._pace
        if channel is None:
            raise SinkError("its process has ended")
        times = first_frame, frames, captured_at_ns
        clock = pace.ns_per_frame, pace.drift_ppm, pace.settled
        try:
            if channel.gettimeout() != limit_s:
                channel.settimeout(limit_s)
            send(channel, QUESTION.pack(question, len(payload), *times, *clock), payload)
            answer = receive_answer(channel, limit_s)
            if answer.taken > frames or answer.inserted_frames < 0:
                raise ValueError(f"{answer.taken} frames taken of {frames}")
        except TimeoutError:
            self._end()
            raise SinkError(
                f"its process did not come back from {question.name.lower()} within {limit_s:g} s "
                "and was killed; a new one is started"
            ) from None
        except (OSError, EOFError):
            raise SinkError(f"its process {self._end(EXIT_S)}; a new one is started") from None
        except ValueError as error:
            self._end()
            raise SinkError(
                f"its process answered nonsense ({error}) and was killed; a new one is started"
            ) from None
        self._learn(answer)
        if answer.outcome is Outcome.BROKEN:
            self._end(EXIT_S)
        words = str(answer.said.get("words", "it gave no reason"))
        if answer.outcome is Outcome.BUSY:
            raise SinkBusy(words, answer.taken)
        if answer.outcome is not Outcome.DONE:
            raise SinkError(words)

    def _learn(self, answer: Answer) -> None:
        self.inserted_frames = self._inserted_before + answer.inserted_frames
        said = answer.said
        if "detail" in said:
            self.detail = str(said["detail"])
            self.concern = None if said.get("concern") is None else str(said["concern"])
            self._figures = said.get("figures", {})

    def _end(self, grace_s: float = 0.0) -> str:
        """Ends the process, by force where it does not end by itself within ``grace_s``; in words,
        how it ended.
        """
        process, channel = self._process, self._channel
        self._process = self._channel = None
        self._inserted_before = self.inserted_frames
        self._figures, self.detail, self.concern = {}, "not running", None
        if channel is None:
            return "has ended"
        if process is None:
            channel.close()
            return "has not begun"
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
        channel.close()
        words = _words(process.returncode)
        if process.returncode is None:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # what sits in a driver does not end at once
                process.wait(EXIT_S)
        return words


def _words(status: int | None) -> str:
    if status is None:
        return "hung and was killed"
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
