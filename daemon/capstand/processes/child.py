"""The inside of a process that another one looks after; the forkserver has just forked it.

It is given a socket to the daemon, its Page, and the descriptors of its work. The first message
says what it is for (``Task``). What it raises unforeseen is told, and ends the process: the daemon
starts a new one.

The daemon alone decides when it ends, so that nothing captured is left behind: signals that a
terminal, or ``systemctl kill``, sends to all processes are ignored. But where the daemon is gone
nobody is left to ask, and a thread of its own ends the process at once, whatever hangs in it.

It ends by ``os._exit`` once it has said its last word: threads of a foreign library may still call
back, and where Python is being taken down that is a crash. It is the first to go when memory is
short: native code is more likely to leak than the daemon.

Threads: main, whose work the task is; "parent", which waits for the daemon's end.
"""

import atexit
import contextlib
import importlib
import json
import logging
import os
import pickle
import select
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from capstand.host import bug, logs, realtime
from capstand.processes.page import CALLS, Page
from capstand.text import clean

LONGEST = 131_072
"""Bytes of a message."""
MOST_VALUES = 2_000
"""Of what a process tells of itself; what is more is left out."""
MOST_GIVEN = 253
"""Descriptors of a message."""
FAILED = 3
"""The status of a process that has said why it ends."""


class Task(NamedTuple):
    """What a process is for: ``work``, "module:function", is called with its Line, its descriptors
    and ``arguments``. ``fields`` are those of its log lines, ``thread`` and ``priority`` those of
    its main thread.
    """

    work: str
    arguments: tuple[object, ...]
    fields: dict[str, str]
    thread: str
    priority: int


class DaemonLink:
    """What connects a process with the daemon: messages, and its Page."""

    def __init__(self, channel: socket.socket, page: Page, repeats: logs.RepeatFilter) -> None:
        channel.setblocking(False)
        self.page = page
        self.repeats = repeats
        self._channel = channel
        self._given: list[int] = []

    def fileno(self) -> int:
        """Readable when there is a message."""
        return self._channel.fileno()

    def receive(self) -> Any:
        """The next message of the daemon, which is trusted; None where there is none."""
        try:
            raw, given, _, _ = socket.recv_fds(
                self._channel, LONGEST, MOST_GIVEN, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        self._given += given
        return pickle.loads(raw)

    def taken(self) -> list[int]:
        """The descriptors that came with the messages since the last time."""
        given, self._given = self._given, []
        return given

    def call(self) -> None:
        """Main should hear soon what was told just now, or could not be sent yet."""
        self.page.words[CALLS] += 1

    def send(self, raw: bytes) -> bool:
        """Whether a message went out: a daemon that is busy hears it later."""
        try:
            self._channel.send(raw)
        except BlockingIOError:
            return False
        return True

    def tell(self, **what: object) -> bool:
        """How it is, for people; whether that went out: a daemon that is busy hears it later. Of
        too many figures none are told."""
        raw = json.dumps(clean.tree(what, MOST_VALUES)).encode()
        if len(raw) > LONGEST:
            raw = json.dumps(clean.tree(what | {"figures": {}}, MOST_VALUES)).encode()
        return self.send(raw)


class _Fields(logging.Filter):
    """Lines carry the fields of the task."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__()
        self._fields = fields

    def filter(self, record: logging.LogRecord) -> bool:
        record.fields = self._fields | getattr(record, "fields", {})
        return True


def main(given: Sequence[int]) -> NoReturn:
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0")
    channel, page = socket.socket(fileno=given[0]), Page(given[1])
    try:
        task: Task = pickle.loads(channel.recv(LONGEST))
    except (EOFError, ConnectionError):
        _end(1)  # the daemon wants it no more
    realtime.prepare_process()  # what it refuses, the daemon has told
    repeats = logs.setup(before=_clear_line)
    logs.log.handlers[0].filters.insert(0, _Fields(task.fields))
    threading.Thread(target=_end_with_parent, args=(channel,), name="parent", daemon=True).start()
    threading.excepthook = _thread_died
    sys.unraisablehook = _unraisable
    link, status = DaemonLink(channel, page, repeats), 0
    try:
        realtime.prepare_thread(task.thread, task.priority)
        module, _, function = task.work.partition(":")
        with contextlib.suppress(EOFError, ConnectionError):
            work = getattr(importlib.import_module(module), function)
            status = work(link, tuple(given[2:]), *task.arguments)
        atexit._run_exitfuncs()  # what the libraries want
    except BaseException as error:  # noqa: BLE001  told, and the process ends
        link.tell(trouble=f"{bug.log_unexpected('the process ended', error)}; the log has more")
        status = FAILED
    finally:
        repeats.tell(all_now=True)
        _end(status)


def _thread_died(died: threading.ExceptHookArgs) -> None:
    if died.exc_value is not None:
        bug.log_unexpected(
            f"thread {died.thread.name if died.thread else 'unknown'} crashed", died.exc_value
        )


def _unraisable(raised: "sys.UnraisableHookArgs") -> None:
    """Of a function that C calls, such as the SDK: Python would print it as it is."""
    if raised.exc_value is not None:
        bug.log_unexpected("in a callback", raised.exc_value)


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
