"""Several sources into one track: every 10 ms one frame of each, added.

Each source has a lane; one that has nothing is silent, and begins again when it holds two frames
or has held one for a turn, so that pushes which come a little late leave no holes. Times are
CLOCK_MONOTONIC on an absolute schedule. Sums beyond full scale are held there.

Threads: each lane is filled by one pushing thread and emptied by the mixer's own.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from capstand.agora.frames import Frame
from capstand.audio.block import NS_PER_S
from capstand.errors import SinkError
from capstand.host.realtime import prepare_thread

PERIOD_NS = 10_000_000
BEGIN_FRAMES = 2


class Mixer:
    """Mixes ``lanes`` lanes and gives each frame to ``send``, which may raise SinkError; then the
    frame is counted in ``dropped``.
    """

    def __init__(self, lanes: int, send: Callable[[Frame], None]) -> None:
        self.dropped = 0
        self._lanes: list[deque[Frame]] = [deque() for _ in range(lanes)]
        self._holding = [True] * lanes
        self._send = send
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.run, name="agora mix", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def drain(self, until_s: float) -> None:
        """Waits until all lanes are empty, but not beyond ``until_s`` (time.monotonic)."""
        while any(self._lanes) and time.monotonic() < until_s and self._thread.is_alive():
            time.sleep(PERIOD_NS / NS_PER_S)

    def stop(self, timeout_s: float = 1.0) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def waiting(self, lane: int) -> int:
        """Frames in a lane."""
        return len(self._lanes[lane])

    def put(self, lane: int, frames: list[Frame]) -> None:
        self._lanes[lane].extend(frames)

    def run(self) -> None:
        """The thread's body; ends after ``stop``."""
        prepare_thread("agora:mix", 0)
        due_ns = time.monotonic_ns()
        while not self._stop.wait(max(0, due_ns - time.monotonic_ns()) / NS_PER_S):
            due_ns += PERIOD_NS
            self.step()

    def step(self) -> None:
        """One turn: mixes what there is; where no lane has anything, nothing is sent."""
        taken = []
        for number, lane in enumerate(self._lanes):
            if not lane:
                self._holding[number] = True
            elif self._holding[number] and len(lane) < BEGIN_FRAMES:
                self._holding[number] = False  # for this turn only: no second frame may come
            else:
                self._holding[number] = False
                taken.append(lane.popleft())
        if not taken:
            return
        try:
            self._send(taken[0] if len(taken) == 1 else _sum(taken))
        except SinkError:
            self.dropped += 1


def _sum(frames: list[Frame]) -> Frame:
    total = np.zeros(len(frames[0].samples) // 2, np.int32)
    for frame in frames:
        total += np.frombuffer(frame.samples, "<i2")
    mixed = np.clip(total, -32768, 32767).astype("<i2").tobytes()
    return Frame(mixed, next((one.pts_ms for one in frames if one.pts_ms), 0))
