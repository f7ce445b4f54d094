"""An intake at a glance: its books, what a person should know of it, what its health is judged by.

It reads what the threads of the intake have counted, and keeps only what has to be remembered from
one look to the next. Thread: main of the intake's process.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast
from weakref import proxy

from capstand.accounting.stats import Health, StreamStats, span
from capstand.audio.block import NS_PER_S
from capstand.capture.source import Adjustable, NegotiatedParams
from capstand.capture.truerate import describe_rate
from capstand.config.registry import SOURCES
from capstand.stream.bus import BusLosses
from capstand.stream.handover import ProgressTracker, SinkSnapshot, events_of
from capstand.stream.health import Assessment, View, assess
from capstand.stream.report import Granted, LastReport, Report
from capstand.text import clean

if TYPE_CHECKING:
    from capstand.stream.intake import Intake

MINUTE_NS = 60 * NS_PER_S
LONGEST_NOTICE = 150
"""Of a control that could not be set, in a line with all streams; the journal has all of it."""
AWAY_NS = 2 * NS_PER_S
"""So long between two looks the process itself stood still, and what it saw says nothing."""
CALM_NS = NS_PER_S // 2
"""A card that brings nothing for longer is looked at closely."""


class Overview:
    """Of ``intake``. ``gaps_told``: so many of its gaps were in reports."""

    def __init__(self, intake: "Intake") -> None:
        self._intake = cast("Intake", proxy(intake))  # whose descriptors go with its last user
        self.progress = ProgressTracker()
        self.gaps_told = 0
        self.bus = BusLosses(intake.config.capture.rate_hz)
        self._looked_ns = self._back_ns = 0
        self._was_well = False
        self._signs: tuple[object, ...] = ()
        self._successor: tuple[str | None, int] = None, 0  # of whom was told, and since when

    def stats(self, now_ns: int) -> StreamStats:
        """The books at this moment; the sinks' side is read before the device's."""
        intake = self._intake
        sides = [SinkSnapshot.of(sink_queue) for sink_queue in intake.sink_queues]
        capturer, clock, capture = intake.capturer, intake.clock, intake.config.capture
        audio = capture.audio
        count = capturer.tally.count()
        assessment, meter = self.assessment(now_ns), intake.pusher.meter
        params = capturer.last_params
        return StreamStats(
            name=intake.name,
            health=assessment.health,
            trouble=assessment.reason,
            device=params.device if params and capturer.params else capture.wanted,
            format=audio.sample.alsa_name,
            rate_hz=audio.rate_hz,
            channels=audio.channels,
            produced_frames=count.produced,
            captured_frames=count.captured,
            lost_frames=count.lost_exact + count.lost_estimated,
            lost_exact=bool(params and params.exact) and count.lost_estimated == 0,
            lost_estimated_frames=count.lost_estimated,
            gaps=count.gaps,
            restarts=capturer.restarts,
            opens=capturer.opens,
            zeros_s=round(meter.zeros_s, 1) if meter else 0.0,
            drift_ppm=round(clock.drift_ppm, 2) if clock.started else None,
            drift_settled=clock.settled,
            level_dbfs=meter.level_dbfs if meter else None,
            peak_dbfs=meter.peak_dbfs if meter else None,
            captured_at_ns=capturer.captured_at_ns,
            sinks=tuple(side.stats(count.captured, audio.rate_hz, now_ns) for side in sides),
            released=capturer.released,
            ring_dropped_frames=intake.pusher.missed,
            notice=self.notice(now_ns),
            channel_levels=intake.meters.channel_levels(),
            loudness=intake.meters.loudness_figures(),
            device_lost_ms_last_hour=round(
                self.bus.look(capturer.tally.lost_by_device, now_ns)[0], 1
            ),
            simulated=SOURCES.of(capture.device).simulated,
            controls=self._controls(),
        )

    def _controls(self) -> dict[str, dict[str, str | None]] | None:
        """Those of the card that are set by the configuration."""
        if not self._intake.config.capture.controls or not isinstance(
            self._intake.source, Adjustable
        ):
            return None
        return {one.name: one.as_json() for one in self._intake.source.controls}

    def _controls_fault(self) -> str | None:
        faults = {name: one["fault"] for name, one in (self._controls() or {}).items()}
        wrong = [name for name, fault in faults.items() if fault]
        if not wrong:
            return None
        more = f" (and {len(wrong) - 1} more controls)" if len(wrong) > 1 else ""
        return clean.line(f"control {wrong[0]}: {faults[wrong[0]]}", LONGEST_NOTICE) + more

    def report(self, now_ns: int, left: tuple[LastReport, ...], words: Mapping[str, int]) -> Report:
        """With the sinks that have ``left``, and the places in ``words`` of what each of the others
        has delivered."""
        intake, self._signs = self._intake, self._signs_now()
        stats, capturer, sink_queues = self.stats(now_ns), intake.capturer, intake.sink_queues
        self._was_well = stats.health is Health.OK
        table, before = capturer.tally.gaps, self.gaps_told
        self.gaps_told = stats.gaps
        return Report(
            stats=stats,
            granted=_granted(capturer.last_params),
            trouble=str(capturer.trouble) if capturer.trouble else None,
            restarted=capturer.restarted,
            refusals=tuple(self.refusals()),
            short_buffer=self.short_buffer(),
            only_zeros=self.only_zeros(),
            wrong_rate=self.wrong_rate(),
            defects=tuple(self._intake.meters.defects()),
            concerns={
                sink_queue.name: sink_queue.concern for sink_queue in self._intake.sink_queues
            },
            gaps=tuple(table.since(before, stats.gaps)) if stats.gaps != before else (),
            events=tuple(events_of(sink_queues)),
            left=left,
            view=self.view(now_ns),
            words=dict(words),
        )

    def is_calm(self, now_ns: int) -> bool:
        """Whether all was well in the last report, and nothing is to be seen since. It costs a
        twentieth of a report; what shows only in one can wait for the next."""
        self._look(now_ns)
        if not self._was_well or now_ns - self._intake.capturer.last_frame_ns > CALM_NS:
            return False
        return self._signs_now() == self._signs

    def _signs_now(self) -> tuple[object, ...]:
        """What changes where something happens."""
        intake = self._intake
        capturer, pushers = intake.capturer, (intake.pusher, intake.processed_pusher)
        return (
            *(capturer.trouble, capturer.params, capturer.opens, capturer.restarts),
            *(capturer.tally.gaps.count, capturer.released),
            *((pusher.missed, pusher.is_behind) for pusher in pushers if pusher is not None),
            *((one.state, one.trouble, one.dropped) for one in intake.sink_queues),
        )

    def notice(self, now_ns: int) -> str | None:
        """What a person should know of the open card: what its grant lacks, and for a minute that
        it is another one than before; and which of its controls could not be set."""
        params = self._intake.capturer.params
        if params is None:
            return None
        if params.successor != self._successor[0]:
            self._successor = params.successor, now_ns
        successor, since_ns = self._successor
        new = successor if now_ns - since_ns < MINUTE_NS else None
        told = self.short_buffer(), new, self._intake.meters.unmeasured, self._controls_fault()
        return "; ".join(filter(None, told)) or None

    def short_buffer(self) -> str | None:
        """What it means that the open card granted a shorter buffer."""
        params, capture = self._intake.capturer.params, self._intake.config.capture
        if params is None or 2 * params.buffer_frames >= capture.buffer_frames:
            return None
        granted_ms = params.buffer_frames * 1000 / capture.rate_hz
        return (
            f"the card's buffer is {granted_ms:.3g} ms, not {capture.buffer_ms:g}; a busy machine "
            "loses frames sooner"
        )

    def assessment(self, now_ns: int) -> Assessment:
        return assess(self.view(now_ns))

    def view(self, now_ns: int) -> View:
        """What its health is judged by."""
        intake, capturer = self._intake, self._intake.capturer
        count = capturer.tally.count()
        trouble = capturer.trouble
        pushers = [one for one in (intake.pusher, intake.processed_pusher) if one is not None]
        waiting = count.captured - intake.pusher.captured
        here_ns = self._look(now_ns)
        defects = "; ".join(one.message for one in intake.meters.defects()) or None
        bad_bus = self.bus.concern(capturer.tally.lost_by_device, now_ns)
        return View(
            open=capturer.params is not None,
            trouble=str(trouble) if trouble else None,
            refused=bool(trouble and trouble.refused),
            frames=count.captured,
            silent_ns=min(here_ns, now_ns - capturer.last_frame_ns),
            unseen_ns=min(here_ns, now_ns - capturer.seen_ns - round(capturer.pause_s * NS_PER_S)),
            push_still_ns=min(
                here_ns,
                max(
                    self.progress.still("push", intake.pusher.captured, waiting > 0, now_ns),
                    self._second_still_ns(now_ns),
                ),
            ),
            loss_age_ns=self.progress.age(
                "loss",
                count.lost_exact + count.lost_estimated + sum(pusher.missed for pusher in pushers),
                now_ns,
            ),
            sinks=tuple(
                self.progress.view(sink_queue, now_ns) for sink_queue in intake.sink_queues
            ),
            stall_timeout_ns=capturer.stall_timeout_ns,
            concern=self.wrong_rate() or bad_bus or self.only_zeros() or defects,
            released=capturer.released,
        )

    def _look(self, now_ns: int) -> int:
        """For how long the process itself has not stood still."""
        if now_ns - self._looked_ns > AWAY_NS:
            self._back_ns = now_ns
        self._looked_ns = now_ns
        return now_ns - self._back_ns

    def _second_still_ns(self, now_ns: int) -> int:
        """Of the second pusher, which nobody waits for where no sink here gets processed sound: it
        is woken only now and then, and not at all while a sink's process that hosts the chain
        stands still."""
        pusher, config = self._intake.processed_pusher, self._intake.config
        if pusher is None:
            return 0
        waits = pusher.waiting > 0 and bool(config.on("processed").queued)
        return self.progress.still("push-processed", pusher.captured, waits, now_ns)

    def wrong_rate(self) -> str | None:
        """What to do about a card that runs at another rate than it says."""
        rate_hz = self._intake.capturer.true_rate.rate_hz
        return (
            None if rate_hz is None else describe_rate(self._intake.config.capture.rate_hz, rate_hz)
        )

    def only_zeros(self) -> str | None:
        """What to look at when nothing but zeros has come for ``silence_warn_s``."""
        limit_s, meter = self._intake.config.capture.silence_warn_s, self._intake.pusher.meter
        if not limit_s or meter is None or meter.zeros_s < limit_s:
            return None
        return (
            f"only zeros for {span(meter.zeros_s)}: is the microphone muted, or the cable "
            "unplugged?"
        )

    def refusals(self) -> list[str]:
        return [
            text for text in (self._intake.capturer.refusal, self._intake.pusher.refusal) if text
        ]


def _granted(params: NegotiatedParams | None) -> Granted | None:
    if params is None:
        return None
    audio, lengths = params.format, (params.period_frames, params.buffer_frames)
    return Granted(
        params.device, str(audio), audio.rate_hz, *lengths, params.exact, params.successor
    )
