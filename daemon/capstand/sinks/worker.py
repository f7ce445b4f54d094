"""The process of one sink: ``python -m capstand.sinks.worker DESCRIPTOR STREAM SINK``.

The other end of the socket is a RemoteSink (``sinks/remote.py``) in the daemon, which says what
sink to make, opens it, and sends blocks; each question is answered before the next is read. What
the sink raises unforeseen is said, and ends the process: the daemon starts a new one.

The daemon alone decides when a sink ends, so that nothing captured is left behind: signals that a
terminal, or ``systemctl kill``, sends to all processes are ignored. But where the daemon is gone
nobody is left to ask, and a thread of its own ends the process at once, whatever hangs in it.

It ends by ``os._exit`` once it has said its last word: threads of the SDK may still call back, and
where Python is being taken down that is a crash.

It is the first to go when memory is short: native code is more likely to leak than the daemon.

Threads: main, which is the sink's; "parent", which waits for the daemon's end.
"""

import atexit
import contextlib
import json
import logging
import os
import pickle
import select
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from capstand.audio.block import Block
from capstand.errors import SinkBusy, SinkError
from capstand.host import bug, console, logs, realtime, signals
from capstand.sinks.sink import Sink
from capstand.sinks.wire import (
    ANSWER,
    MOST_VALUES,
    CarriedPace,
    Outcome,
    Question,
    receive_question,
    send,
)
from capstand.text import clean

TELL_S = 0.2
"""How the sink is, is said so often."""


class Worker:
    """Makes a sink and does with it what comes over ``channel``."""

    def __init__(self, channel: socket.socket, repeats: logs.Repeats) -> None:
        self._channel = channel
        self._repeats = repeats
        self._pace = CarriedPace()
        self._sink: Sink | None = None
        self._told_s = 0.0

    def serve(self) -> None:
        """Returns when the sink was closed; raises EOFError when the daemon has gone."""
        question, pace = None, self._pace
        while question is not Question.CLOSE:
            fields, payload = receive_question(self._channel)
            kind, _, *times, pace.ns_per_frame, pace.drift_ppm, pace.settled = fields
            question = Question(kind)
            try:
                self._do(question, payload, times)
            except SinkBusy as busy:
                self._answer(Outcome.BUSY, str(busy), busy.taken)
            except SinkError as error:
                self._answer(Outcome.FAILED, str(error))
            except Exception as error:
                words = f"{type(error).__name__}: {clean.line(error)}"
                self._answer(Outcome.BROKEN, f"{words}; the log has more")
                raise
            else:
                self._answer(Outcome.DONE, told=question is not Question.WRITE)

    def _do(self, question: Question, payload: bytes, times: list[int]) -> None:
        if question is Question.OPEN:
            self._sink = pickle.loads(payload).make(self._pace)
        sink = self._sink
        assert sink is not None
        match question:
            case Question.WRITE:
                first_frame, frames, captured_at_ns = times
                sink.write(Block(first_frame, frames, captured_at_ns, payload))
            case Question.OPEN:
                sink.open()
                realtime.freeze_heap()
            case Question.FLUSH:
                self._repeats.tell()
                sink.flush()
            case Question.CLOSE:
                sink.close()

    def _answer(
        self, outcome: Outcome, words: str = "", taken: int = 0, told: bool = False
    ) -> None:
        sink, now_s = self._sink, time.monotonic()
        said: dict[str, object] = {"words": clean.line(words)} if words else {}
        if sink is not None and (told or now_s - self._told_s >= TELL_S):
            self._told_s = now_s
            said["detail"], said["concern"] = sink.detail, sink.concern
            said["figures"] = sink.figures(time.monotonic_ns())
        payload = json.dumps(clean.tree(said, MOST_VALUES)).encode() if said else b""
        inserted_frames = 0 if sink is None else sink.inserted_frames
        send(self._channel, ANSWER.pack(outcome, taken, inserted_frames, len(payload)), payload)


class _Named(logging.Filter):
    """Lines carry STREAM and SINK."""

    def __init__(self, stream: str, sink: str) -> None:
        super().__init__()
        self._fields = {"STREAM": stream, "SINK": sink}

    def filter(self, record: logging.LogRecord) -> bool:
        record.fields = self._fields | getattr(record, "fields", {})
        return True


def main() -> NoReturn:
    console.prepare()
    descriptor, stream, name = sys.argv[1:]
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    signals.ignore()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0")
    realtime.prepare_process()  # what it refuses, the daemon has told
    realtime.prepare_thread(f"sink:{name}", 0)
    repeats = logs.setup(before=_clear_line)
    logs.log.handlers[0].filters.insert(0, _Named(stream, name))
    channel = socket.socket(fileno=int(descriptor))
    channel.set_inheritable(False)
    threading.Thread(target=_end_with_parent, args=(channel,), name="parent", daemon=True).start()
    threading.excepthook = _thread_died
    sys.unraisablehook = _unraisable
    status = 0
    try:
        with contextlib.suppress(EOFError, ConnectionError):
            Worker(channel, repeats).serve()
        atexit._run_exitfuncs()  # what the sink's libraries want
    except BaseException as error:  # noqa: BLE001  told, and the process ends
        bug.tell("the sink's process ended", error)
        status = 1
    finally:
        repeats.tell(all_now=True)
        _end(status)


def _thread_died(died: threading.ExceptHookArgs) -> None:
    if died.exc_value is not None:
        bug.tell(f"thread {died.thread.name if died.thread else 'unknown'} ended", died.exc_value)


def _unraisable(raised: "sys.UnraisableHookArgs") -> None:
    """Of a function that C calls, such as the SDK: Python would print it as it is."""
    if raised.exc_value is not None:
        bug.tell("in a callback", raised.exc_value)


def _end(status: int) -> NoReturn:
    logging.shutdown()
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or never there
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _end_with_parent(channel: socket.socket) -> None:
    """Waits for the other end of the socket to go; nothing else is asked for."""
    waiting = select.poll()
    waiting.register(channel, 0)
    waiting.poll()
    os._exit(1)


def _clear_line() -> None:
    """The daemon may have drawn its live line in the same terminal."""
    if sys.stderr.isatty():
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write("\r\033[K")


if __name__ == "__main__":
    main()
