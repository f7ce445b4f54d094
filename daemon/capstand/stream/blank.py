"""What is told of a stream whose process has said nothing yet: nothing of it is known."""

from capstand.accounting.stats import Health, SinkState, SinkStats, StreamStats
from capstand.config.registry import SINKS, SOURCES
from capstand.config.schema import StreamConfig
from capstand.stream.health import View
from capstand.stream.report import Report, word_places

BLANK = View(
    open=False,
    trouble=None,
    refused=False,
    frames=0,
    silent_ns=0,
    unseen_ns=0,
    push_still_ns=0,
    loss_age_ns=None,
    sinks=(),
)


def blank_report(config: StreamConfig) -> Report:
    """Of all but its live sinks, which main knows itself."""
    capture, audio = config.capture, config.capture.audio
    sinks = [not_yet(one.name) for one in config.sink if not SINKS[one.type].live]
    stats = StreamStats(
        name=config.name,
        health=Health.STARTING,
        trouble=None,
        device=capture.wanted,
        format=audio.sample.alsa_name,
        rate_hz=audio.rate_hz,
        channels=audio.channels,
        produced_frames=0,
        captured_frames=0,
        lost_frames=0,
        lost_exact=False,
        lost_estimated_frames=0,
        gaps=0,
        restarts=0,
        opens=0,
        zeros_s=0.0,
        drift_ppm=None,
        drift_settled=False,
        level_dbfs=None,
        peak_dbfs=None,
        captured_at_ns=0,
        sinks=tuple(sinks),
        simulated=SOURCES.of(capture.device).simulated,
    )
    words = word_places([one.name for one in config.queued], {})
    return Report(stats, None, None, "", (), None, None, None, (), {}, (), (), (), BLANK, words)


def not_yet(sink: str) -> SinkStats:
    return SinkStats(sink, SinkState.OPENING, None, "not started yet", 0, 0, 0, 0, 0, 0, 0.0, {})
