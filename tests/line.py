"""The line of a stream, driven by hand: what its threads do, one step at a time, on virtual time.

    line = Line(config, clock=VirtualTime())
    line.capture()   one turn of the capture thread: opens, reads a period, or fails and waits
    line.push()      one turn of the push thread
    line.deliver()   one turn of every sink's thread

Threads only decide when these turns happen, so whatever holds after every turn in any order holds
for the threads too. The two fakes stand for capstand's own protocols, Source and Sink.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from capstand.accounting.stats import Gap, SinkState, StreamStats
from capstand.audio.block import Block
from capstand.capture.capturer import POLL_MS, Capturer
from capstand.capture.source import NegotiatedParams, Reading, Source
from capstand.capture.synthetic import SyntheticSource, VirtualTime
from capstand.capture.time import Time
from capstand.capture.types.synthetic import SyntheticConfig
from capstand.config.schema import CaptureConfig, StreamConfig
from capstand.dsp.convert import to_int32
from capstand.dsp.level import Meter
from capstand.errors import DeviceError, SinkError
from capstand.sinks.sink import Sink
from capstand.sinks.sink_queue import SinkQueue
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.intake import Intake
from capstand.stream.pusher import Pusher
from capstand.stream.report import Report
from tests.rings import reader_of

Counters = npt.NDArray[np.int64]


def capture(**keys: object) -> CaptureConfig:
    """A simulated card with the counter signal and no real-time priority, changed by ``keys``."""
    card = CaptureConfig(
        device="synthetic", rt_priority=0, source=SyntheticConfig(signal="counter")
    )
    return card._replace(**keys)  # type: ignore[arg-type]


def config(card: CaptureConfig, sinks: Sequence[FileSinkConfig] = ()) -> StreamConfig:
    """A stream from ``card`` to ``sinks``; without any, to one that is to be replaced."""
    return StreamConfig(
        name="mic",
        capture=card,
        sink=tuple(sinks) or (FileSinkConfig(type="file", path="/nowhere"),),
    )


def counters(samples: bytes, card: CaptureConfig) -> Counters:
    """The numbers that the frames of a counter signal carry; 16 bits in mono S16, else 24 or 32."""
    audio = card.audio
    if card.format == "S16_LE":
        halves = np.frombuffer(samples, "<u2").reshape(-1, audio.channels).astype(np.int64)
        return halves[:, 0] + (halves[:, 1] << 16) if audio.channels > 1 else halves[:, 0]
    wide = to_int32(samples, audio.sample).reshape(-1, audio.channels).view(np.uint32)
    return wide[:, 0].astype(np.int64) >> (32 - audio.sample.bits)


class Script:
    """A Source that brings what a list says; its time is that of the last reading.

    A row is (now_ns, frames, lost, stamp_ns, ahead); None is a device that fails.
    """

    batch_ms = 0
    wary = False

    def __init__(
        self, card: CaptureConfig, rows: Iterable[tuple[int, int, int, int, int] | None]
    ) -> None:
        self.now_ns = 1
        self._card = card
        self._rows = iter(rows)
        self._reading = Reading()
        self._reading.edge = True

    def open(self) -> NegotiatedParams:
        card = self._card
        return NegotiatedParams(
            "script", card.audio, card.period_frames, card.buffer_frames, exact=True
        )

    def read(self, slot: memoryview, timeout_ms: int) -> Reading:
        row = next(self._rows)
        if row is None:
            raise DeviceError("script: the device failed")
        reading = self._reading
        self.now_ns, reading.frames, reading.lost, reading.stamp_ns, reading.avail = row
        return reading

    def restart(self) -> None:
        pass

    def advice(self) -> str:
        return "rewrite the script"

    def close(self) -> None:
        pass

    def wake(self) -> None:
        pass


class Keep(Sink):
    """A Sink that keeps all blocks; it refuses a write or an open while ``fails()`` is true."""

    detail = "kept"

    def __init__(self, fails: Callable[[], bool] = lambda: False) -> None:
        self.blocks: list[Block] = []
        self._fails = fails

    def open(self) -> None:
        if self._fails():
            raise SinkError("the peer is away")

    def write(self, block: Block) -> None:
        if self._fails():
            raise SinkError("the peer hung up")
        self.blocks.append(block)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def give(stream: Intake, *sink_queues: SinkQueue) -> None:
    """Has a stream that has not begun feed these."""
    stream.sink_queues = [*sink_queues]
    stream.pusher.exchange(stream.sink_queues, stream.pusher.batch_ms)
    stream.pusher._sink_queues = stream.pusher._wanted
    stream.wakes(gathers=())


class Line:
    """An Intake whose card lives on ``clock`` and whose sinks are ``sinks``."""

    def __init__(
        self,
        card: CaptureConfig,
        sinks: Sequence[Sink],
        clock: Time | None = None,
        source: Source | None = None,
        queue_frames: int = 1 << 30,
        poll_ms: int = POLL_MS,
    ) -> None:
        self.time: Time = clock or VirtualTime()
        self.card = card
        self.poll_ms = poll_ms
        self.stream = stream = Intake(config(card))
        stream.source = source or SyntheticSource(card, self.time)
        stream.capturer = Capturer(
            stream.source, stream.clock, stream.ring, card.rt_priority, self.time.now_ns
        )
        sink_queues = [
            SinkQueue(f"sink{number}", sink, queue_frames) for number, sink in enumerate(sinks)
        ]
        meter = Meter(card.audio)
        stream.pusher = Pusher(
            reader_of(stream.ring, card.audio, stream.ring.slots // 2),
            *(meter, (), card.rt_priority),
            batch_ms=0,
        )
        give(stream, *sink_queues)
        self.gaps: list[Gap] = []
        self._gaps_seen = 0

    def capture(self) -> int:
        capturer = self.stream.capturer
        try:
            if capturer.params is None:
                capturer.open()
            return capturer.step(self.poll_ms)
        except DeviceError as error:
            pause_ns = round(capturer.fail(error) * 1e9)
            self.time.wait_until(self.time.now_ns() + pause_ns)
            return 0

    def push(self) -> int:
        return self.stream.pusher.step()

    def deliver(self) -> None:
        for sink_queue in self.stream.sink_queues:
            try:
                if sink_queue.state is not SinkState.OPEN and not sink_queue.try_open():
                    continue
                sink_queue.step()
            except SinkError:
                sink_queue.state = SinkState.WAITING

    def report(self) -> Report:
        """What main would be told now."""
        return self.stream.report(self.time.now_ns())

    def stats(self) -> StreamStats:
        """The books now; also collects the gaps since the last time."""
        table = self.stream.capturer.tally.gaps
        self.gaps += table.since(self._gaps_seen)
        self._gaps_seen = table.count
        return self.stream.stats(self.time.now_ns())
