"""A source that programs write into, run by a real capture thread, and what it brought."""

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from capstand.accounting.stats import Gap
from capstand.audio.block import AudioFormat, SampleFormat
from capstand.audio.clock import Clock
from capstand.audio.ring import Reader, Ring
from capstand.audio.wake import WakeUp
from capstand.capture import wire
from capstand.capture.capturer import Capturer
from capstand.capture.source import Source
from capstand.config.registry import SOURCES
from capstand.config.schema import CaptureConfig
from tests.line import Counters, counters
from tests.patience import PATIENCE_S

AUDIO = AudioFormat(48_000, 2, SampleFormat.S16_LE)
SLOTS = 4096


def counted(first: int, frames: int) -> bytes:
    """Frames of S16 stereo that carry their own numbers."""
    index = np.arange(first, first + frames, dtype=np.uint32)
    return index.astype("<u4").tobytes()


class Held(NamedTuple):
    """What this process holds: open descriptors, but for what wakes threads, and children. Of an
    earlier test there may be some that end meanwhile."""

    descriptors: Counter[str]
    children: set[int]

    @classmethod
    def now(cls) -> "Held":
        found = []
        for one in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the one that lists them
                found.append(str(one.readlink()))
        return cls(Counter(one for one in found if "[eventfd]" not in one), children())

    def nothing_more(self) -> bool:
        now = Held.now()
        return not now.descriptors - self.descriptors and now.children <= self.children


def children() -> set[int]:
    """Of this process, by pid; also those that have ended and were not waited for."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(status.parent.name))
    return found


class Piece(NamedTuple):
    """Frames that followed each other without a gap."""

    first_frame: int
    numbers: Counters


class Rig:
    """The capture thread of a stream whose device is ``capture``'s."""

    def __init__(self, capture: CaptureConfig) -> None:
        self.capture = capture
        self.source: Source = SOURCES.of(capture.device).make(capture)
        self.clock = Clock(capture.rate_hz, capture.period_frames)
        self.ring = Ring(SLOTS, capture.slot_bytes)
        self._wake = WakeUp()
        self.ring.wakes(self._wake)
        descriptor = self.ring.open_for_reading()
        self._reader = Reader(descriptor, capture.audio, SLOTS // 2)
        os.close(descriptor)
        self.capturer = Capturer(self.source, self.clock, self.ring, 0)
        self.blocks: list[tuple[int, int, bytes]] = []
        self._thread = threading.Thread(target=self.capturer.run, name="capture")
        self._thread.start()

    def until(self, what: Callable[[], object], told: str = "") -> None:
        """Waits for a state."""
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < deadline, f"{told}; {self.capturer.trouble}"
            assert self._thread.is_alive()
            self._read()
            time.sleep(0.002)
        self._read()

    def _read(self) -> None:
        while (block := self._reader.read()) is not None:
            self.blocks.append((block.first_frame, block.captured_at_ns, block.samples))
        assert self._reader.missed == 0

    def captured(self, frames: int) -> None:
        """Waits until so many frames are in the ring."""
        self.until(lambda: self.capturer.tally.count().captured >= frames, f"not {frames} frames")

    def trouble(self, text: str) -> str:
        """Waits until the source has told such a trouble."""

        def told() -> bool:
            return self.capturer.params is None and text in str(self.capturer.trouble)

        self.until(told, f"not told: {text}")
        return str(self.capturer.trouble)

    @property
    def pieces(self) -> list[Piece]:
        """What came, by the gaps between."""
        self._read()
        found: list[tuple[int, list[bytes]]] = []
        end = -1
        for first, _, samples in self.blocks:
            if first != end:
                found.append((first, []))
            found[-1][1].append(samples)
            end = first + len(samples) // self.capture.audio.frame_bytes
        return [Piece(one, counters(b"".join(parts), self.capture)) for one, parts in found]

    @property
    def numbers(self) -> Counters:
        self._read()
        return counters(b"".join(samples for *_, samples in self.blocks), self.capture)

    @property
    def gaps(self) -> list[Gap]:
        return self.capturer.tally.gaps.since(0)

    def stop(self) -> None:
        self.capturer.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        self._read()
        count = self.capturer.tally.count()
        assert count.produced == count.captured + count.lost_exact + count.lost_estimated
        times = [at for _, at, _ in self.blocks]
        assert times == sorted(set(times))

    def close(self) -> None:
        self.stop()
        self._reader.close()
        self.ring.close()


def in_order(numbers: npt.NDArray[np.int64], first: int, frames: int) -> bool:
    """Whether these are so many frames from ``first`` on, each once."""
    return bool(numbers.tolist() == list(range(first, first + frames)))


class Writer:
    """A program that brings its sound to a socket, as docs/own-audio.md says."""

    def __init__(self, path: Path, wait_s: float = PATIENCE_S) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                self.socket.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline
                time.sleep(0.005)
        self.socket.settimeout(PATIENCE_S)
        self._lines = self.socket.makefile("rb")

    def line(self) -> str:
        """The next line that it is told; "" at the end."""
        try:
            return self._lines.readline().decode().rstrip("\n")
        except ConnectionResetError:
            return ""

    def last(self) -> str:
        """The last line, when nothing follows."""
        last = ""
        while line := self.line():
            last = line
        return last

    def head(self, *, live: bool = False, audio: AudioFormat = AUDIO) -> None:
        self.socket.sendall(wire.head(audio, live=live))

    def block(self, first: int, frames: int, time_ns: int = 0) -> None:
        self.socket.sendall(wire.block(frames, first, time_ns) + counted(first, frames))

    def finish(self) -> str:
        """Nothing follows; returns the last line."""
        self.socket.shutdown(socket.SHUT_WR)
        return self.last()

    def close(self) -> None:
        self._lines.close()
        self.socket.close()
