"""Sound on its way from a program into the stream: bytes in, periods out, each at its time.

A program has no sound card's buffer, and two kinds of clock. One that is *live* (a microphone's
module) writes a frame when it was sampled: its pace is the clock, each arrival is a stamp. It may
come late with all that is due, up to the buffer, and then everything is handed on at once. One that
is not (a file's decoder) writes as fast as it may: here CLOCK_MONOTONIC is the clock, frames go on
at the nominal rate and the rest is left in the program's way, which holds it back. A live one that
always has more to write becomes of the second kind once it is a buffer ahead.

This is the generic cell rate algorithm: ``_played_ns`` is when all that went on would have been
played, and may be ahead of now by ``_ahead_ns`` at most. It falls behind for as long as nothing was
there to go on, and no longer: where our own thread is late, what waits follows at once, up to a
buffer. Frames that the writer says are missing take their time too; where that is not over yet,
they are refused.

Pure: time is an argument. Thread: capture.
"""

from collections import deque
from typing import NamedTuple

from capstand.accounting.stats import Cause
from capstand.audio.block import NS_PER_S, AudioFormat
from capstand.capture import wire
from capstand.capture.source import UNKNOWN, Reading
from capstand.capture.wire import WireError
from capstand.host.ratelimit import RateLimit

PACED_PERIODS = 2
"""So far ahead of its time one is let that is not live."""
EARLY_GAP_NS = NS_PER_S
GAPS_PER_S, GAPS = 20.0, 100.0
"""What follows a gap is handed on apart, be it a single frame."""


class _Start(NamedTuple):
    """Where a block began that had something to say: ``at`` counts frames that came."""

    at: int
    lost: int
    frame: int
    time_ns: int


class Inlet:
    """For what one program writes; ``period_frames`` go on at a time, less where a gap or the end
    comes. ``ended`` once nothing follows.

    ``framed`` is None until it is known; ``came`` and ``went`` count frames.
    """

    def __init__(
        self, audio: AudioFormat, period_frames: int, buffer_frames: int, live: bool, now_ns: int
    ) -> None:
        self.audio = audio
        self.framed: bool | None = None
        self.came = self.went = 0
        self.ended = False
        self.was_held = False  # what went on last had to wait for its time
        self._held = False
        self._period = period_frames
        self._buffer = max(buffer_frames, 2 * period_frames)
        self._frame_ns = NS_PER_S / audio.rate_hz
        self._be_live(live)
        self._played_ns = float(now_ns)
        self._samples = bytearray()
        self._bytes_came = 0
        self._head = bytearray()  # of a header that is not whole yet
        self._left = 0  # bytes of the block that is coming
        self._starts: deque[_Start] = deque()
        self._base: int | None = None  # the index of the writer's first frame
        self._index_in = self._index_out = 0  # of the next frame, missing ones counted
        self._stamped = False  # the writer knows the times
        self._time_ns = 0  # the last one that it told
        self._gaps = RateLimit(GAPS_PER_S, GAPS, now_ns / NS_PER_S)
        self._stamp = (0, 0)  # index, ns
        self._edge = False
        self._stood = False  # the stream was stopped

    def _be_live(self, live: bool) -> None:
        ahead = self._buffer if live else PACED_PERIODS * self._period
        self._ahead_ns = ahead * self._frame_ns

    @property
    def room(self) -> int:
        """Bytes that may be received."""
        return max(0, self._buffer * self.audio.frame_bytes - len(self._samples))

    @property
    def torn(self) -> int:
        """Bytes at the end that are no whole frame."""
        return len(self._head) + self._bytes_came % self.audio.frame_bytes

    def put(self, data: memoryview, now_ns: int, edge: bool) -> None:
        """Takes what came at ``now_ns``; ``edge``: it was waited for. Raises WireError, and then
        what came before is still there."""
        dry = edge and not self._next()[1]
        while data:
            if self.framed is None:
                data = self._begin(data)
            elif not self.framed:
                self._add(data)
                break
            elif self._left:
                part = data[: self._left]
                self._left -= len(part)
                data = data[len(part) :]
                self._add(part)
            else:
                data = self._block(data, now_ns)
        if dry:
            missing = self._index_in - self._index_out - (self.came - self.went)
            self._played_ns = max(self._played_ns, now_ns - missing * self._frame_ns)
        if not self._stamped:
            permitted = int((now_ns + self._ahead_ns - self._played_ns) / self._frame_ns)
            self._stamp = min(self._index_in, self._index_out + max(0, permitted)), now_ns
            self._edge = edge

    def end(self) -> None:
        """Nothing follows."""
        self.ended = True
        if self.framed is None:
            self.framed = False
            self._add(memoryview(bytes(self._head)))
            self._head.clear()

    def stand(self) -> None:
        """The stream was stopped: what is missing before the next frame is not known."""
        self._stood = True

    def _begin(self, data: memoryview) -> memoryview:
        """Raw or not?"""
        size = len(wire.MAGIC) if len(self._head) < len(wire.MAGIC) else wire.HEAD.size
        data = self._gather(data, size)
        if len(self._head) == len(wire.MAGIC) and self._head != wire.MAGIC:
            self.framed = False
            self._add(memoryview(bytes(self._head)))
            self._head.clear()
        elif len(self._head) == wire.HEAD.size:
            head, self.framed = bytes(self._head), True
            self._head.clear()
            self._be_live(wire.is_live(head, self.audio))
        return data

    def _block(self, data: memoryview, now_ns: int) -> memoryview:
        data = self._gather(data, wire.BLOCK.size)
        if len(self._head) < wire.BLOCK.size:
            return data
        expected = None if self._base is None else self._base + self._index_in
        head = wire.block_head(bytes(self._head), expected, now_ns)
        self._head.clear()
        if expected is None:
            self._base = expected = head.first_frame
        if head.time_ns and head.time_ns < self._time_ns:
            raise WireError("a block has an earlier time than the one before")
        self._time_ns = head.time_ns or self._time_ns
        if lost := head.first_frame - expected:
            if self._gaps.wait_s(now_ns / NS_PER_S) > 0:
                raise WireError(f"there are more gaps than {GAPS_PER_S:g} a second")
            self._gaps.take()
        self._index_in += lost
        self._stamped = self._stamped or head.time_ns > 0
        if lost or head.time_ns:
            self._starts.append(_Start(self.came, lost, self._index_in, head.time_ns))
        self._left = head.frames * self.audio.frame_bytes
        return data

    def _gather(self, data: memoryview, size: int) -> memoryview:
        part = data[: size - len(self._head)]
        self._head += part
        return data[len(part) :]

    def _add(self, part: memoryview) -> None:
        self._samples += part
        self._bytes_came += len(part)
        came = self._bytes_came // self.audio.frame_bytes
        self._index_in += came - self.came
        self.came = came

    def _next(self) -> tuple[int, int]:
        """How many frames are missing before the next ones, and how many of these go together; 0
        where there are not enough yet."""
        lost, until = 0, self.went + self._period
        for start in self._starts:
            if start.at >= until:
                break
            if start.at == self.went:
                lost = start.lost
            elif start.lost:
                until = min(until, start.at)
                break
        ready = self.came - self.went
        frames = until - self.went
        return lost, min(frames, ready) if self.ended or ready >= frames else 0

    def due_ns(self, now_ns: int) -> int | None:
        """When the next frames go on, perhaps long ago; None where there are not enough. Raises
        WireError for a gap that cannot be over yet."""
        lost, frames = self._next()
        if not frames:
            return None
        due = int(self._played_ns + (lost + frames) * self._frame_ns - self._ahead_ns)
        if due > now_ns:
            if lost and due - now_ns > EARLY_GAP_NS:
                raise WireError(f"{lost} frames are said to be missing, for which no time was yet")
            self._held = True
        return due

    def take(self, slot: memoryview, reading: Reading, now_ns: int) -> memoryview:
        """Hands on what is due, as the part of ``slot`` that was filled."""
        lost, frames = self._next()
        assert frames
        held = self.was_held = self._held
        self._held = False
        self._played_ns += (lost + frames) * self._frame_ns
        due_ns = int(self._played_ns - self._ahead_ns)
        self._played_ns = max(self._played_ns, now_ns - self._buffer * self._frame_ns)
        self._index_out += lost
        while self._starts and self._starts[0].at < self.went + frames:
            start = self._starts.popleft()
            if start.time_ns:
                self._stamp, self._edge = (start.frame, start.time_ns), True
        if held and not self._stamped:
            self._stamp, self._edge = (self._index_out + frames, due_ns), True
        index, reading.stamp_ns = self._stamp
        self._stamp = 0, 0  # each is used once
        reading.avail = (index if reading.stamp_ns else self._index_in) - self._index_out
        reading.edge = self._edge
        reading.lost, reading.cause = lost, Cause.DECLARED
        if self._stood:
            reading.lost, reading.cause, self._stood = UNKNOWN, Cause.STALLED, False
        reading.frames = frames
        length = frames * self.audio.frame_bytes
        filled = slot[:length]
        filled[:] = memoryview(self._samples)[:length]
        del self._samples[:length]
        self.went += frames
        self._index_out += frames
        return filled
