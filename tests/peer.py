"""A sink for a process of its own that does what the test wrote down for it, block by block."""

import ctypes
import logging
import os
import resource
import signal
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from capstand.audio.block import Block
from capstand.audio.clock import Pace
from capstand.errors import SinkBusy, SinkError
from capstand.sinks.sink import Sink
from capstand.text import secret

FRAME_BYTES = 4
_RECORD = struct.Struct("<iqqdd?I")


SECRET = "s3cr3t-of-the-device"
SHOUT = f"a {SECRET}\x1b[2J"


def _fail() -> None:
    raise ValueError(SHOUT)


def _fail_in_c() -> None:
    raise ValueError(SHOUT)


class Got(NamedTuple):
    """What a peer was given, and in which process."""

    pid: int
    first_frame: int
    captured_at_ns: int
    ns_per_frame: float
    drift_ppm: float
    settled: bool
    samples: bytes


class Peer(Sink):
    """Keeps what it takes in a file. ``acts`` says what it does with the block that begins with a
    frame (-1: when it is opened; -2: with every block); it takes the others.

    busy N  takes N frames of it        kill    is killed
    fail    refuses                     crash   reads where there is no memory
    hang    never comes back            exit N  ends its process
    babble  answers nonsense            bug     raises what nobody foresaw
    scribble  writes into its page
    bugs    raises a secret that it has read: here, in a thread, and where C calls
    """

    concern = "it is only a test"

    def __init__(self, file: Path, acts: dict[int, str], text: str, pace: Pace) -> None:
        self.inserted_frames = 0
        self._file = file
        self._acts = acts
        self._secret = text
        self._pace = pace

    @property
    def detail(self) -> str:
        return f"{self.inserted_frames} blocks"

    def open(self) -> None:
        logging.getLogger("capstand").warning("the peer is opened")
        self._act(self._acts.get(-1, ""))

    def write(self, block: Block) -> None:
        act = self._acts.get(block.first_frame, self._acts.get(-2, ""))
        self._act(act)
        taken = int(act.split()[1]) if act.startswith("busy") else block.frames
        pace, samples = self._pace, block.samples[: taken * FRAME_BYTES]
        head = _RECORD.pack(
            *(os.getpid(), block.first_frame, block.captured_at_ns),
            *(pace.ns_per_frame, pace.drift_ppm, pace.settled, len(samples)),
        )
        with self._file.open("ab") as file:
            file.write(head + samples)
        self.inserted_frames += 1
        if act.startswith("busy"):
            raise SinkBusy("the peer is full", taken)

    def _act(self, act: str) -> None:
        match act.split():
            case ["fail"]:
                raise SinkError("the peer hung up")
            case ["hang"]:
                threading.Event().wait()
            case ["kill"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["crash"]:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                ctypes.string_at(0)
            case ["exit", status]:
                os._exit(int(status))
            case ["bug"]:
                raise KeyError("a bug")
            case ["bugs"]:
                secret.learn(SECRET)
                thread = threading.Thread(target=_fail, name="looks after it")
                thread.start()
                thread.join()
                ctypes.CFUNCTYPE(None)(_fail_in_c)()
                raise ValueError(SHOUT)
            case ["babble"]:
                os.write(_descriptor("socket:"), b"\xff" * 64)
                threading.Event().wait()
            case ["scribble"]:
                os.pwrite(_descriptor("capstand-page"), b"\xff" * 4000, 8)
                threading.Event().wait()

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def figures(self, now_ns: int) -> dict[str, object]:
        return {"secret_length": len(self._secret)}


def _descriptor(kind: str) -> int:
    """The first one of its kind."""
    for one in range(3, 64):
        with suppress(OSError):
            if kind in os.readlink(f"/proc/self/fd/{one}"):  # noqa: PTH115
                return one
    raise AssertionError(kind)


class Loud(Sink):
    """Tells of itself what no reader may believe."""

    detail = "\udcff\0\nSTOPPING=1\x1b[2J\u202e" + "x" * 300
    concern = detail

    def __init__(self, texts: int, pace: Pace) -> None:
        self.inserted_frames = 0
        self._texts = texts

    def open(self) -> None:
        pass

    def write(self, block: Block) -> None:
        raise SinkError(self.detail * 10_000)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def figures(self, now_ns: int) -> dict[str, object]:
        deep: object = 0
        for _ in range(2000):
            deep = [deep]
        huge = {"nan": float("nan"), "text": self.detail, "deep": deep, "set": {1}, "big": 10**5000}
        return huge | {f"{number}": self.detail for number in range(self._texts)}


def got(file: Path) -> list[Got]:
    """All that peers have kept in ``file``, in order."""
    data, at, found = file.read_bytes() if file.exists() else b"", 0, []
    while at < len(data):
        *head, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        found.append(Got._make((*head, data[at : at + length])))
        at += length
    return found
