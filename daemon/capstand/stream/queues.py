"""The queues of the sinks that are fed in a stream's process: made as the configuration says.

What cannot be made is a queue all the same, whose sink fails in words. Thread: main.
"""

from pathlib import Path

from capstand.audio.block import AudioFormat
from capstand.config.registry import SINKS, SinkContext, describe_failure
from capstand.config.schema import (
    CaptureConfig,
    QueuedSinkConfig,
    SinkConfig,
    StreamConfig,
    spool_of,
)
from capstand.host import realtime
from capstand.sinks.sink import BrokenSink, Sink
from capstand.sinks.sink_queue import SinkQueue

GATHER_MS = 200
BATCH_MS = 200
METER_MS = 1000
"""Where only the level meter hears; a quarter of the ring is full before that, as a rule."""
WINDOW_MS = 5000
"""A sink that is slower than that is spooled: what is in memory, a crash takes along."""


def batch_ms(config: StreamConfig) -> int:
    """How long the pusher may rest: no longer than any of its sinks' queues allow."""
    longest = BATCH_MS if config.queued else METER_MS
    return min([longest, *(one.queue_ms // 4 for one in config.queued)])


def make_queue(
    config: StreamConfig,
    sink: QueuedSinkConfig,
    folders: tuple[Path, Path],
    run: bytes | None = None,
) -> SinkQueue:
    """``run`` is that of its books, of a Spool."""
    try:
        return _made(config.name, sink, config.heard_by(sink), run, *folders)
    except Exception as error:  # noqa: BLE001
        words = f"{describe_failure(SINKS[sink.type], error)}, then restart capstand"
        return SinkQueue(sink.name, BrokenSink(words), 0)


def _made(
    stream: str,
    sink: QueuedSinkConfig,
    capture: CaptureConfig,
    run: bytes | None,
    state: Path,
    runtime: Path,
) -> SinkQueue:
    audio = capture.audio
    gather_frames = min(GATHER_MS, sink.queue_ms // 4) * audio.rate_hz // 1000
    priority = realtime.lower_priority(capture.rt_priority, capture.rt_priority)
    around = SinkContext(stream, capture, state, priority, runtime)
    made: Sink = SINKS[sink.type].make(sink, around)
    if Sink not in type(made).__mro__:
        raise TypeError(f"{type(made).__name__} is no {Sink.__module__}.{Sink.__name__}")
    window_frames = capture.queue_frames(min(WINDOW_MS, sink.queue_ms))
    kept = _spooled(stream, made, sink, audio, priority, window_frames, run)
    queue_frames = capture.queue_frames(sink.queue_ms)
    return SinkQueue(sink.name, kept, queue_frames, gather_frames, priority=priority)


def _spooled(
    stream: str,
    sink: Sink,
    setup: SinkConfig,
    audio: AudioFormat,
    priority: int,
    window_frames: int,
    run: bytes | None,
) -> Sink:
    """The sink itself, or with a spool in front of it."""
    waits = spool_of(setup)
    if waits is None:
        return sink
    from capstand.sinks.spool.spool import Spool
    from capstand.sinks.spool.spooled import Spooled

    folder = Path(waits.path) / stream / setup.name
    spool = Spool(folder, audio, waits.max_mb * 1_000_000, waits.max_age_s, run=run)
    return Spooled(
        setup.name,
        sink,
        spool,
        rate_hz=audio.rate_hz,
        catch_up_speed=waits.catch_up_speed,
        window_frames=window_frames,
        priority=priority,
    )
