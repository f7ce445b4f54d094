"""A stream: one capture device and everything fed by it, built and taken down in order.

    source → Capturer → Ring → Pusher → Outlet → sink

``start`` goes from the sinks to the device, ``drain`` and ``close`` from the device to the sinks,
so that nothing captured is left without a way on. Thread: main.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from capstand.block import NS_PER_S
from capstand.capture.alsa import LARGEST_PERIOD, AlsaSource
from capstand.capture.capturer import Capturer
from capstand.capture.preference import Preference
from capstand.capture.source import Source
from capstand.clock import Clock
from capstand.config import Capture, FileSink
from capstand.config import Sink as SinkConfig
from capstand.config import Stream as StreamConfig
from capstand.health import SinkView, Verdict, View, judge
from capstand.pusher import Pusher
from capstand.ring import Ring
from capstand.sinks.file import Recording
from capstand.sinks.outlet import Outlet
from capstand.stats import SinkStats, StreamStats

JOIN_S = 1.0
GATHER_MS = 200
PATIENCE_MS = 100
LIVE_GATHER_MS = 10
STATE = Path("/var/lib/capstand")


class Stream:
    """The line of one configured stream, its threads and its books; ``state`` is the directory for
    what has to be kept.
    """

    def __init__(self, config: StreamConfig, state: Path = STATE) -> None:
        capture, audio = config.capture, config.capture.audio
        self.config = config
        self.name = config.name
        self.clock = Clock(audio.rate_hz, capture.period_frames)
        slot_bytes = LARGEST_PERIOD * capture.period_frames * audio.frame_bytes
        self.ring = Ring(capture.ring_slots, slot_bytes)
        self.source = _source(capture)
        self.capturer = Capturer(self.source, self.clock, self.ring, capture.priority)
        self.outlets = [
            _outlet(config.name, sink, capture, state, self.clock) for sink in config.sink
        ]
        hurry = not all(isinstance(sink, FileSink) for sink in config.sink)
        self.pusher = Pusher(
            self.ring,
            audio.frame_bytes,
            None,
            self.outlets,
            capture.priority,
            0 if hurry else PATIENCE_MS,
        )
        self._threads: dict[str, threading.Thread] = {}
        self._moved: dict[str, tuple[int, int]] = {}

    def start(self) -> None:
        for outlet in self.outlets:
            self._spawn(f"sink:{outlet.name}", outlet.run)
        self._spawn("push", self.pusher.run)
        self._spawn("capture", self.capturer.run)

    def hasten(self) -> None:
        """A sound device came or went: what waits for one tries again at once."""
        if isinstance(self.source, Preference):
            self.source.hasten()
        self.capturer.hasten()

    def start_meter(self) -> None:
        """Once sound flows: loading numpy takes longer than opening a card would."""
        from capstand.dsp.level import Meter

        self.pusher.meter = Meter(self.config.capture.audio)

    def drain(self, deadline: float) -> list[str]:
        """Stops the device and empties the ring, until ``deadline`` (time.monotonic); the sinks
        are told that nothing follows. Names the threads that hung."""
        hung = []
        self.capturer.stop()
        if not self._join("capture", min(deadline, time.monotonic() + JOIN_S)):
            hung.append("capture")
        self.pusher.stop()
        if not self._join("push", min(deadline, time.monotonic() + JOIN_S)):
            hung.append("push")
        for outlet in self.outlets:
            outlet.finish()
        return hung

    def close(self, deadline: float) -> list[str]:
        """Waits for the sinks to take what they have and to close; names those that hung."""
        hung = []
        for outlet in self.outlets:
            if not self._join(f"sink:{outlet.name}", deadline):
                outlet.abandon()
                hung.append(f"sink {outlet.name}")
        return hung

    def stats(self, now_ns: int) -> StreamStats:
        """The books at this moment; the sinks' side is read before the device's."""
        sides = [
            (one, one.delivered, one.dropped, one.queued, one.state, one.trouble)
            for one in self.outlets
        ]
        capturer, clock, audio = self.capturer, self.clock, self.config.capture.audio
        count = capturer.tally.count()
        verdict, meter = self.verdict(now_ns), self.pusher.meter
        grant = capturer.last_grant
        return StreamStats(
            name=self.name,
            health=verdict.health.value,
            trouble=verdict.reason,
            device=grant.device if grant and capturer.grant else self.config.capture.wanted,
            format=audio.sample.alsa_name,
            rate_hz=audio.rate_hz,
            channels=audio.channels,
            produced_frames=count.produced,
            captured_frames=count.captured,
            lost_frames=count.lost_exact + count.lost_estimated,
            lost_exact=bool(grant and grant.exact) and count.lost_estimated == 0,
            lost_estimated_frames=count.lost_estimated,
            gaps=capturer.tally.gaps.count,
            drift_ppm=round(clock.drift_ppm, 2) if clock.started else None,
            drift_settled=clock.settled,
            level_dbfs=meter.level_dbfs if meter else None,
            peak_dbfs=meter.peak_dbfs if meter else None,
            captured_at_ns=capturer.captured_at_ns,
            sinks=tuple(
                SinkStats(
                    name=one.name,
                    state=state,
                    trouble=trouble,
                    detail=one.sink.detail,
                    delivered_frames=delivered,
                    dropped_frames=dropped + count.ring_dropped,
                    inside_frames=count.captured - delivered - dropped - count.ring_dropped,
                    inserted_frames=one.sink.inserted_frames,
                    queue_ms=round(queued * 1000 / audio.rate_hz, 1),
                    figures=one.sink.figures(now_ns),
                )
                for one, delivered, dropped, queued, state, trouble in sides
            ),
        )

    def verdict(self, now_ns: int) -> Verdict:
        capturer, count = self.capturer, self.capturer.tally.count()
        trouble = capturer.trouble
        waiting = count.captured - count.ring_dropped - self.pusher.taken
        return judge(
            View(
                open=capturer.grant is not None,
                trouble=str(trouble) if trouble else None,
                refused=bool(trouble and trouble.refused),
                frames=count.captured,
                silent_ns=now_ns - capturer.last_frame_ns,
                unseen_ns=now_ns - capturer.seen_ns - round(capturer.pause_s * NS_PER_S),
                push_still_ns=self._still("push", self.pusher.taken, waiting > 0, now_ns),
                loss_age_ns=self._age("loss", count.lost_exact + count.lost_estimated, now_ns),
                sinks=tuple(self._sink_view(one, now_ns) for one in self.outlets),
            )
        )

    def _sink_view(self, outlet: Outlet, now_ns: int) -> SinkView:
        condition = outlet.sink.condition()
        return SinkView(
            outlet.name,
            outlet.trouble,
            self._still(f"out {outlet.name}", outlet.taken, outlet.queued > 0, now_ns),
            self._age(f"drop {outlet.name}", outlet.overflowed, now_ns),
            condition.concern,
            condition.hung,
        )

    def spent(self) -> str | None:
        """Why a sink can go on only in a new process; None as long as all can."""
        for outlet in self.outlets:
            reason = outlet.sink.condition().spent
            if reason is not None:
                return f"{self.name}: sink {outlet.name}: {reason}"
        return None

    def _still(self, key: str, value: int, pending: bool, now_ns: int) -> int:
        """For how long a counter has not moved although something waits."""
        if not pending or self._moved.get(key, (None, 0))[0] != value:
            self._moved[key] = (value, now_ns)
        return now_ns - self._moved[key][1]

    def _age(self, key: str, value: int, now_ns: int) -> int | None:
        """How long ago a counter last moved away from 0."""
        if self._moved.get(key, (0, 0))[0] != value:
            self._moved[key] = (value, now_ns)
        return now_ns - self._moved[key][1] if value else None

    def refusals(self) -> list[str]:
        return [text for text in (self.capturer.refusal, self.pusher.refusal) if text]

    def _spawn(self, name: str, body: Callable[[], None]) -> None:
        thread = threading.Thread(target=body, name=f"{name} {self.name}", daemon=True)
        self._threads[name] = thread
        thread.start()

    def _join(self, name: str, deadline: float) -> bool:
        thread = self._threads[name]
        thread.join(max(0.0, deadline - time.monotonic()))
        return not thread.is_alive()


def _outlet(stream: str, sink: SinkConfig, capture: Capture, state: Path, clock: Clock) -> Outlet:
    audio = capture.audio
    queue_frames = sink.queue_ms * audio.rate_hz // 1000
    if isinstance(sink, FileSink):
        gather_frames = min(GATHER_MS, sink.queue_ms // 4) * audio.rate_hz // 1000
        return Outlet(sink.name, Recording(stream, sink, audio), queue_frames, gather_frames)
    from capstand.sinks.agora import AgoraChannel

    short = capture.period_ms < LIVE_GATHER_MS
    gather_frames = LIVE_GATHER_MS * audio.rate_hz // 1000 if short else 0
    channel = AgoraChannel(sink, audio, state / "agora", clock)
    return Outlet(sink.name, channel, queue_frames, gather_frames, live=True)


def _source(capture: Capture) -> Source:
    if capture.device != "synthetic":
        sources = [AlsaSource(capture, name) for name in capture.devices]
        return sources[0] if len(sources) == 1 else Preference(sources, capture)
    from capstand.capture.synthetic import SyntheticSource  # brings numpy and libsndfile

    return SyntheticSource(capture)
