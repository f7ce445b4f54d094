"""A stream: one capture device and everything fed by it, built and taken down in order.

    source → Capturer → Ring ─┬→ Pusher → Outlet → a recording, maybe with a spool in front of it
                              └→ a live sink, which reads the ring in a process of its own

``start`` goes from the sinks to the device, ``drain`` and ``close`` from the device to the sinks,
so that nothing captured is left without a way on. ``exchange`` gives it other sinks while sound
flows: the device, the clock and the frame index go on.

Thread: main; but ``start_meter`` is called by one that loads the meter and ends, ``drain`` and
``close`` of a stream that a reload ends by one that waits for it.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from capstand.accounting.stats import StreamStats, span
from capstand.audio.block import NS_PER_S, AudioFormat
from capstand.audio.clock import Clock
from capstand.audio.ring import Ring
from capstand.capture.capturer import Capturer
from capstand.capture.preference import Preference
from capstand.capture.source import Source
from capstand.capture.truerate import in_words
from capstand.config.plan import sink_plan
from capstand.config.registry import SINKS, SOURCES, SourceType, Surroundings, blamed
from capstand.config.schema import Capture, Queued, spool_of
from capstand.config.schema import Sink as SinkConfig
from capstand.config.schema import Stream as StreamConfig
from capstand.errors import CapstandError
from capstand.host import realtime
from capstand.sinks.live import LiveSink, Plan
from capstand.sinks.outlet import Outlet
from capstand.sinks.sink import Sink, Unmade
from capstand.stream import defect
from capstand.stream.defect import Defect
from capstand.stream.handover import ABANDON_S, LEAVE_S, Feed, Leaving, Side
from capstand.stream.health import SinkView, Verdict, View, judge
from capstand.stream.pusher import Pusher

if TYPE_CHECKING:
    from capstand.dsp.defects import Defects

JOIN_S = 1.0
DISK_S = 6.0
"""A memory card may take seconds to write; what is not on it by then is lost and booked."""
GATHER_MS = 200
BATCH_MS = 200
CAPTURE_PATIENCE_MS = 50
LIVE_GATHER_MS = 10
WINDOW_MS = 5000
"""A sink that is slower than that is spooled: what is in memory, a crash takes along."""
MINUTE_NS = 60 * NS_PER_S
CABLE_MS = 10
CABLE_MINUTES = 3
"""A sound bus loses nothing for weeks, and a knock at a plug loses some packets once. Ten packets
of 1 ms an hour are a click every six minutes; in three minutes of it they are no single knock."""
AWAY_NS = 2 * NS_PER_S
"""So long between two looks the process itself stood still, and what it saw says nothing."""
STATE, RUNTIME = Path("/var/lib/capstand"), Path("/run/capstand")

Folders = tuple[Path, Path]
"""For what has to be kept, and for sockets."""


class Stream:
    """The line of one configured stream, its threads and its books; ``state`` is the directory for
    what has to be kept, ``runtime`` that for sockets.
    """

    def __init__(self, config: StreamConfig, state: Path = STATE, runtime: Path = RUNTIME) -> None:
        capture, audio = config.capture, config.capture.audio
        self.config = config
        self.name = config.name
        self.leaving: list[Leaving] = []
        self._folders = state, runtime
        self.clock = Clock(audio.rate_hz, capture.period_frames)
        self.ring = Ring(capture.ring_slots, capture.slot_bytes)
        kind = SOURCES.of(capture.device)
        self._simulated = kind.simulated
        self.source = _source(kind, capture)
        self.capturer = Capturer(self.source, self.clock, self.ring, capture.priority)
        self.feeds = [self._feed(sink, config) for sink in config.sink]
        self.pusher = Pusher(
            self.ring,
            audio.frame_bytes,
            None,
            self.outlets,
            capture.priority,
            _batch_ms(config),
        )
        self._connect()
        self.watch: Defects | None = None
        self._threads: dict[str, threading.Thread] = {}
        self._moved: dict[str, tuple[int, int]] = {}
        self._looked_ns = self._back_ns = 0
        self._bus_losses: deque[tuple[int, int]] = deque()  # of an hour: minute, frames
        self._bus_lost = 0
        self._successor: tuple[str | None, int] = None, 0  # of whom was told, and since when

    @property
    def hurry(self) -> bool:
        """Whether a sink wants each block at once."""
        return any(isinstance(one, LiveSink) for one in self.feeds)

    @property
    def outlets(self) -> list[Outlet]:
        """The sinks that the pusher feeds."""
        return [one for one in self.feeds if isinstance(one, Outlet)]

    def _connect(self) -> None:
        """The ring wakes who reads it; the card is asked as often as the hastiest sink wants."""
        live = [one.wake for one in self.feeds if isinstance(one, LiveSink)]
        leaving = [one.feed.wake for one in self.leaving if isinstance(one.feed, LiveSink)]
        self.ring.wakes(*live, *leaving, self.pusher.wake, rests=(self.pusher.told,))
        self.source.patience_ms = 0 if self.hurry else CAPTURE_PATIENCE_MS

    def look(self, now_ns: int) -> None:
        """Main's turn: processes are looked after."""
        for one in self.feeds:
            one.look(now_ns)

    def start(self) -> None:
        for one in self.feeds:
            one.start(self.name)
        self._spawn("push", self.pusher.run)
        self._spawn("capture", self.capturer.run)

    def hasten(self) -> None:
        """A sound device came or went: what waits for one tries again at once."""
        if isinstance(self.source, Preference):
            self.source.hasten()
        self.capturer.hasten()

    def start_meter(self) -> None:
        """Once sound flows: loading numpy takes longer than opening a card would."""
        from capstand.dsp.defects import Defects, Limits
        from capstand.dsp.level import Meter

        if self.pusher.meter is None:
            capture = self.config.capture
            self.watch = Defects(capture.audio, Limits.of(capture))
            self.pusher.meter = Meter(capture.audio, self.watch)

    def exchange(self, config: StreamConfig) -> None:
        """Other sinks for the same capture, from the next block on. What a removed sink was given
        and what an added one gets are all the frames there are; the added one begins to collect at
        once, and opens when a removed one has left its place."""
        assert config.capture == self.config.capture
        change = sink_plan(self.config, config)
        running = dict(zip(self.config.sink, self.feeds, strict=True))
        leaving = {sink: Leaving(running[sink]) for sink in change.removed}
        for sink in change.added:
            running[sink] = added = self._feed(sink, config)
            if isinstance(added, Outlet):
                added.since = None
        for sink in change.removed:
            for counter in ("out", "drop"):
                self._moved.pop(f"{counter} {sink.name}", None)
        self.config = config
        self.feeds = [running[sink] for sink in config.sink]
        self.leaving += leaving.values()
        self._connect()
        self.pusher.exchange(self.outlets, _batch_ms(config))
        for one in leaving.values():
            if isinstance(one.feed, LiveSink):
                one.feed.finish()
        for sink in change.added:
            after = [leaving[one].feed for one in change.before(sink)]
            running[sink].start(self.name, after, LEAVE_S)

    def left(self, deadline: float | None = None) -> list[Leaving]:
        """The removed sinks that have ended since the last look, or were given up."""
        over = [one for one in self.leaving if one.over(deadline)]
        if over:
            self.leaving = [one for one in self.leaving if one not in over]
            self._connect()
            for one in over:
                one.feed.close()
        return over

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
        for one in self.feeds:
            one.finish()
        return hung

    def close(self, deadline: float) -> list[str]:
        """Waits for the sinks to take what they have and to close, for a disk ``DISK_S`` longer;
        names those that hung."""
        disks = [one for one in self.feeds if one.on_disk]
        others = [one for one in self.feeds if one not in disks]
        return self._see_off(others, deadline) + self._see_off(disks, deadline + DISK_S)

    def _see_off(self, feeds: Sequence[Feed], deadline: float) -> list[str]:
        hung = [one for one in feeds if not one.join(deadline)]
        for one in hung:
            one.let_go()
        for one in hung:  # one time for all: systemd kills the daemon after TimeoutStopSec
            if not one.join(deadline + ABANDON_S):
                one.abandon()
        return [f"sink {one.name}" for one in hung]

    def dispose(self) -> None:
        """Gives back what it took of the system; none of its threads may have hung."""
        for one in self.feeds:
            one.close()
        self.ring.close()

    def stats(self, now_ns: int) -> StreamStats:
        """The books at this moment; the sinks' side is read before the device's."""
        sides = [Side.of(one) for one in self.feeds]
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
            restarts=capturer.restarts,
            opens=capturer.opens,
            zeros_s=round(meter.zeros_s, 1) if meter else 0.0,
            drift_ppm=round(clock.drift_ppm, 2) if clock.started else None,
            drift_settled=clock.settled,
            level_dbfs=meter.level_dbfs if meter else None,
            peak_dbfs=meter.peak_dbfs if meter else None,
            captured_at_ns=capturer.captured_at_ns,
            sinks=tuple(one.stats(count.captured, audio.rate_hz, now_ns) for one in sides),
            released=capturer.released,
            ring_dropped_frames=self.pusher.missed,
            notice=self.notice(now_ns),
            channel_levels=self._channel_levels(),
            device_lost_ms_last_hour=round(self.lost_on_bus(now_ns)[0], 1),
            simulated=self._simulated,
        )

    def notice(self, now_ns: int) -> str | None:
        """What a person should know of the open card: what its grant lacks, and for a minute that
        it is another one than before."""
        grant = self.capturer.grant
        if grant is None:
            return None
        if grant.successor != self._successor[0]:
            self._successor = grant.successor, now_ns
        successor, since_ns = self._successor
        new = successor if now_ns - since_ns < MINUTE_NS else None
        return "; ".join(filter(None, (self.short_buffer(), new))) or None

    def short_buffer(self) -> str | None:
        """What it means that the open card granted a shorter buffer."""
        grant, capture = self.capturer.grant, self.config.capture
        if grant is None or 2 * grant.buffer_frames >= capture.buffer_frames:
            return None
        granted_ms = grant.buffer_frames * 1000 / capture.rate_hz
        return (
            f"the card's buffer is {granted_ms:.3g} ms, not {capture.buffer_ms:g}; "
            "a busy machine loses sound sooner"
        )

    def verdict(self, now_ns: int) -> Verdict:
        capturer, count = self.capturer, self.capturer.tally.count()
        trouble = capturer.trouble
        waiting = count.captured - self.pusher.captured
        if now_ns - self._looked_ns > AWAY_NS:
            self._back_ns = now_ns
        self._looked_ns = now_ns
        here_ns = now_ns - self._back_ns
        defects = "; ".join(one.words for one in self.defects()) or None
        return judge(
            View(
                open=capturer.grant is not None,
                trouble=str(trouble) if trouble else None,
                refused=bool(trouble and trouble.refused),
                frames=count.captured,
                silent_ns=min(here_ns, now_ns - capturer.last_frame_ns),
                unseen_ns=min(
                    here_ns, now_ns - capturer.seen_ns - round(capturer.pause_s * NS_PER_S)
                ),
                push_still_ns=min(
                    here_ns, self._still("push", self.pusher.captured, waiting > 0, now_ns)
                ),
                loss_age_ns=self._age(
                    "loss", count.lost_exact + count.lost_estimated + self.pusher.missed, now_ns
                ),
                sinks=tuple(self._sink_view(one, now_ns) for one in self.feeds),
                patience_ns=capturer.patience_ns,
                concern=self.wrong_rate() or self.bad_bus(now_ns) or self.only_zeros() or defects,
                released=capturer.released,
            )
        )

    def lost_on_bus(self, now_ns: int) -> tuple[float, int]:
        """What the device did not deliver in the last hour, in ms, and in how many minutes."""
        lost, minute, losses = (
            self.capturer.tally.lost_by_device,
            now_ns // MINUTE_NS,
            self._bus_losses,
        )
        if lost > self._bus_lost:
            before = losses.pop()[1] if losses and losses[-1][0] == minute else 0
            losses.append((minute, before + lost - self._bus_lost))
            self._bus_lost = lost
        while losses and losses[0][0] <= minute - 60:
            losses.popleft()
        return sum(one for _, one in losses) * 1000 / self.config.capture.rate_hz, len(losses)

    def bad_bus(self, now_ns: int) -> str | None:
        """What to look at where a card loses sound on its way again and again."""
        lost_ms, minutes = self.lost_on_bus(now_ns)
        if lost_ms < CABLE_MS or minutes < CABLE_MINUTES:
            return None
        return (
            f"the card failed to deliver {lost_ms:.0f} ms of sound in the last hour, in {minutes} "
            "different minutes: try another cable, a port without a hub, a stronger power supply"
        )

    def wrong_rate(self) -> str | None:
        """What to do about a card that runs at another rate than it says."""
        rate_hz = self.capturer.true_rate.rate_hz
        return None if rate_hz is None else in_words(self.config.capture.rate_hz, rate_hz)

    def defects(self) -> list[Defect]:
        """What is wrong with the sound of single channels."""
        figures = self.watch.figures if self.watch else None
        return defect.find(figures, self.config.capture) if figures else []

    def _channel_levels(self) -> list[dict[str, float | None]] | None:
        """Of each channel, by the card's number: its peak just now, over the last seconds its mean
        and its clipped peaks, and for how long it has brought a single value."""
        figures = self.watch.figures if self.watch else None
        if figures is None:
            return None
        return [
            {
                "channel": self.config.capture.card_channel(at),
                "peak_dbfs": round(20 * math.log10(max(one.peak, 1e-6)), 1) + 0.0,
                "dc": None if one.dc is None else round(one.dc, 5) + 0.0,
                "clipped_per_s": None if one.clipped_per_s is None else round(one.clipped_per_s, 1),
                "constant_s": round(one.constant_s, 1),
            }
            for at, one in enumerate(figures)
        ]

    def only_zeros(self) -> str | None:
        """What to look at when nothing but zeros has come for ``silence_warn_s``."""
        limit_s, meter = self.config.capture.silence_warn_s, self.pusher.meter
        if not limit_s or meter is None or meter.zeros_s < limit_s:
            return None
        return f"only zeros for {span(meter.zeros_s)}: is the microphone muted, the cable in?"

    def _sink_view(self, feed: Feed, now_ns: int) -> SinkView:
        return SinkView(
            feed.name,
            feed.trouble,
            self._still(f"out {feed.name}", feed.taken, feed.queued > 0, now_ns),
            self._age(f"drop {feed.name}", feed.slow, now_ns),
            feed.concern,
        )

    def _feed(self, sink: SinkConfig, config: StreamConfig) -> "Outlet | LiveSink":
        kind, capture = SINKS[sink.type], config.capture
        try:
            if kind.live:
                return _live_sink(config.name, sink, capture, self._folders, self.ring)
            return _outlet(config.name, cast(Queued, sink), capture, self._folders)
        except Exception as error:  # noqa: BLE001
            words = f"{blamed(kind, error)}, then start capstand anew"
            return Outlet(sink.name, Unmade(words), 0)

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
        thread = self._threads.get(name)
        if thread is None:
            return True  # it could not even be started
        thread.join(max(0.0, deadline - time.monotonic()))
        return not thread.is_alive()


def _batch_ms(config: StreamConfig) -> int:
    """How long the pusher may rest: no longer than any of its sinks' queues allow."""
    return min(BATCH_MS, *(one.queue_ms // 4 for one in config.queued), BATCH_MS)


def _outlet(stream: str, sink: Queued, capture: Capture, folders: Folders) -> Outlet:
    audio = capture.audio
    gather_frames = min(GATHER_MS, sink.queue_ms // 4) * audio.rate_hz // 1000
    priority = realtime.below(capture.priority, capture.priority)
    made: Sink = SINKS[sink.type].make(sink, _surroundings(stream, capture, folders, priority))
    if Sink not in type(made).__mro__:
        raise TypeError(f"{type(made).__name__} is no {Sink.__module__}.{Sink.__name__}")
    window_frames = capture.queue_frames(min(WINDOW_MS, sink.queue_ms))
    kept = _spooled(stream, made, sink, audio, priority, window_frames)
    queue_frames = capture.queue_frames(sink.queue_ms)
    return Outlet(sink.name, kept, queue_frames, gather_frames, priority=priority)


def _live_sink(
    stream: str, sink: SinkConfig, capture: Capture, folders: Folders, ring: Ring
) -> LiveSink:
    audio = capture.audio
    priority = realtime.below(capture.priority, 10)
    plan: Plan = SINKS[sink.type].make(sink, _surroundings(stream, capture, folders, priority))
    if capture.period_ms < LIVE_GATHER_MS:
        plan = plan._replace(gather_frames=LIVE_GATHER_MS * audio.rate_hz // 1000)
    return LiveSink(stream, sink.name, plan, ring, audio.frame_bytes, priority)


def _surroundings(stream: str, capture: Capture, folders: Folders, priority: int) -> Surroundings:
    state, runtime = folders
    return Surroundings(stream, capture, state, priority, runtime)


def _spooled(
    stream: str,
    sink: Sink,
    setup: SinkConfig,
    audio: AudioFormat,
    priority: int,
    window_frames: int,
) -> Sink:
    """The sink itself, or with a spool in front of it."""
    waits = spool_of(setup)
    if waits is None:
        return sink
    from capstand.sinks.spool.spool import Spool
    from capstand.sinks.spool.spooled import Spooled

    folder = Path(waits.path) / stream / setup.name
    spool = Spool(folder, audio, waits.max_mb * 1_000_000, waits.max_age_s)
    return Spooled(
        setup.name,
        sink,
        spool,
        rate_hz=audio.rate_hz,
        speed=waits.speed,
        window_frames=window_frames,
        priority=priority,
    )


def _source(kind: SourceType, capture: Capture) -> Source:
    try:
        source: Source = kind.make(capture)
    except Exception as error:  # noqa: BLE001
        raise CapstandError(f"{capture.wanted}: {blamed(kind, error)}") from None
    return source
