"""A stream of capstand with a sink of our own, in a process of its own.

    python -m tests.bench.inside nothing CARD BUFFER_FRAMES 0        to nowhere, until SIGINT
    python -m tests.bench.inside probe CARD BUFFER_FRAMES SECONDS    prints times of hand-over, ns
    python -m tests.bench.inside busy CARD BUFFER_FRAMES SECONDS     the same beside a busy sink
    python -m tests.bench.inside dead CARD BUFFER_FRAMES SECONDS     the same beside dead sinks
    python -m tests.bench.inside timer - 0 SECONDS                   how late a bare timer wakes

Threads, priorities and settings are the daemon's; the card's name is found by ALSA_CONFIG_PATH. A
time of hand-over is that of ``Sink.write`` (and of ``SinkQueue.put`` in the push thread), less the
moment when the block's last frame was sampled, by the stream's own clock.
"""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator

from capstand.audio.block import Block
from capstand.audio.clock import Pace
from capstand.audio.ring import Reader
from capstand.capture.alsa import AlsaSource
from capstand.capture.capturer import Capturer
from capstand.capture.source import Reading
from capstand.config.schema import CaptureConfig, StreamConfig
from capstand.errors import SinkError
from capstand.host.realtime import (
    LOWEST,
    freeze_heap,
    prepare_process,
    prepare_thread,
    set_fifo,
    set_switch_interval,
)
from capstand.sinks.live import LiveSink, SinkFactory
from capstand.sinks.sink import Sink
from capstand.sinks.sink_queue import SinkQueue
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.intake import Intake
from capstand.stream.pusher import Pusher

SETTLE_S = 3.0


class Nothing(Sink):
    """Takes every block and does nothing with it."""

    detail = "nowhere"

    def open(self) -> None:
        pass

    def write(self, block: Block) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class Probe(Nothing):
    """Notes when each block comes."""

    def __init__(self) -> None:
        self.late_ns: list[int] = []

    def write(self, block: Block) -> None:
        self.late_ns.append(_late_ns(block))


class Busy(Nothing):
    """A sink of pure Python that is never done; in a process of its own, as the daemon has it."""

    def __init__(self, pace: Pace) -> None:
        pass

    def write(self, block: Block) -> None:
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            sum(range(500))


class Refused(Nothing):
    """Cannot be opened, like a server that is away."""

    def open(self) -> None:
        raise SinkError("connection refused")


class Hung(Nothing):
    """Never comes back from its first block, like a disk that is gone."""

    def __init__(self, pace: Pace | None = None) -> None:
        pass

    def write(self, block: Block) -> None:
        threading.Event().wait()


class ProbedOutlet(SinkQueue):
    """Notes when each block was put into the queue, too."""

    def put(self, block: Block) -> None:
        self.put_late_ns.append(_late_ns(block))
        super().put(block)

    put_late_ns: list[int]


class ProbedSource(AlsaSource):
    """Notes how long after a period was complete the capture thread looked."""

    def __init__(self, capture: CaptureConfig, stream: Intake) -> None:
        super().__init__(capture)
        self.woken_late_ns: list[int] = []
        self._stream = stream

    def read(self, slot: memoryview, timeout_ms: int) -> Reading:
        reading, clock = super().read(slot, timeout_ms), self._stream.clock
        if reading.frames and reading.stamp_ns and clock.started:
            end = self._stream.capturer.tally.produced + max(0, reading.lost) + reading.frames
            self.woken_late_ns.append(reading.stamp_ns - clock.time_of(end))
        return reading


def _late_ns(block: Block) -> int:
    return time.monotonic_ns() - block.captured_at_ns - round(block.frames * 1e9 / 48_000)


def timer(seconds: float) -> list[int]:
    """How late, in ns, the machine wakes a thread of FIFO 80 that does no more, every 10 ms."""
    prepare_process()
    refused = prepare_thread("timer", 80)
    late_ns = []
    due_ns = time.monotonic_ns()
    for _ in range(0 if refused else round(seconds * 100)):
        due_ns += 10_000_000
        time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
        late_ns.append(time.monotonic_ns() - due_ns)
    return late_ns


def _beside(kind: str, stream: Intake) -> Iterator[SinkQueue | LiveSink]:
    """Sinks that the measured one is to know nothing of."""
    audio, priority = stream.config.capture.audio, stream.config.capture.rt_priority - 10

    def live(name: str) -> LiveSink:
        plan = SinkFactory(f"tests.bench.inside:{name}", ())
        return LiveSink("mic", name.lower(), plan, stream.ring, audio, priority)

    if kind == "busy":
        yield live("Busy")
    if kind == "dead":
        yield SinkQueue("refused", Refused(), 48_000, priority=50)
        yield SinkQueue("hung", Hung(), 48_000, priority=50)
        yield live("Hung")


def _wait(stop: threading.Event, live: list[LiveSink], seconds: float = math.inf) -> None:
    """Until then processes are looked after, as the daemon's main thread does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop.wait(0.2):
        for one in live:
            one.poll(time.monotonic_ns())


def main() -> None:
    kind, card, buffer, seconds = sys.argv[1:5]
    if kind == "timer":
        print(json.dumps({"timer": timer(float(seconds))}))
        return
    capture = CaptureConfig(device=card, buffer_ms=int(buffer) / 48)
    stream = Intake(StreamConfig("mic", capture, (FileSinkConfig("file", "/nowhere"),)))
    source = ProbedSource(capture, stream)
    if kind != "nothing":
        stream.source = source
        stream.capturer = Capturer(source, stream.clock, stream.ring, capture.rt_priority)
    probe = Probe()
    sink_queue = ProbedOutlet(
        "probe", Nothing() if kind == "nothing" else probe, 48_000 * 5, priority=50
    )
    sink_queue.put_late_ns = []
    stream.sink_queues = [
        SinkQueue("nothing", Nothing(), 48_000) if kind == "nothing" else sink_queue
    ]
    beside = list(_beside(kind, stream))
    live = [one for one in beside if isinstance(one, LiveSink)]
    stream.sink_queues += [one for one in beside if isinstance(one, SinkQueue)]
    priority = capture.rt_priority
    reader = Reader(stream.ring.open_for_reading(), capture.audio, stream.ring.slots // 2)
    stream.pusher = Pusher(reader, None, stream.sink_queues, priority, 0)
    stream.wakes(*(one.wake for one in live), gathers=[one.gather_frames for one in live])
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    prepare_process()
    set_fifo("main", LOWEST)
    set_switch_interval(1, kind != "nothing")
    stream.start()
    for one in live:
        one.start("mic")
    _wait(stop, live, 1.0)
    stream.start_meter()
    freeze_heap()
    if kind == "nothing":
        _wait(stop, live)
    else:
        _wait(stop, live, SETTLE_S)
        first_woken = len(source.woken_late_ns)
        first_put, first = len(sink_queue.put_late_ns), len(probe.late_ns)
        _wait(stop, live, float(seconds))
        puts, writes = sink_queue.put_late_ns[first_put:], probe.late_ns[first:]
        lost = stream.capturer.tally.count()
        print(
            json.dumps(
                {
                    "woken": source.woken_late_ns[first_woken:],
                    "put": puts,
                    "write": writes,
                    "lost": lost.lost_exact + lost.lost_estimated + stream.pusher.missed,
                    "refused": stream.overview.refusals(),
                }
            )
        )
    deadline = time.monotonic() + 2
    stream.drain(deadline)
    stream.close(deadline)


if __name__ == "__main__":
    main()
