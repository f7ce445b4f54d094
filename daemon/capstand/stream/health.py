"""From what was seen of a stream to its health: a pure table, judged in order.

STARTING  nothing has come yet and nothing is wrong yet
OK        frames advance, every sink takes them
DEGRADED  sound is missing somewhere or looks wrong, and it is known why: a declared wait
STALLED   a thread of ours stands still: only a restart helps, so the watchdog is not fed
FAILED    the device cannot do what the configuration asks; a person must change one of them
"""

from typing import NamedTuple

from capstand.accounting.stats import Health
from capstand.audio.block import NS_PER_S

HUNG_NS = 3 * NS_PER_S
SINK_HUNG_NS = 5 * NS_PER_S
RECENT_NS = 10 * NS_PER_S
SILENT_NS = NS_PER_S
"""So much later than the capture thread heals a silent device, that thread is not well itself."""


class View(NamedTuple):
    """What the main thread sees of a stream. Ages are in ns; None where it never happened.

    ``silent_ns`` counts from the last frame, ``unseen_ns`` from the capture thread's last sign of
    life beyond the pause it announced, ``push_still_ns`` from the last block taken while some wait.
    ``stall_timeout_ns`` is how long the capture thread lets an open device be silent; ``concern``
    is what seems wrong with the sound itself, which no restart mends.
    ``released``: the device is left to another on purpose.
    """

    open: bool
    trouble: str | None
    refused: bool
    frames: int
    silent_ns: int
    unseen_ns: int
    push_still_ns: int
    loss_age_ns: int | None
    sinks: tuple["SinkView", ...]
    stall_timeout_ns: int = 2 * NS_PER_S
    concern: str | None = None
    released: str | None = None


class SinkView(NamedTuple):
    """One sink: ``still_ns`` counts from the last block it took while some are queued, ``concern``
    is what is wrong although blocks are taken.
    """

    name: str
    trouble: str | None
    still_ns: int
    drop_age_ns: int | None
    concern: str | None = None


class Assessment(NamedTuple):
    """``reason`` is for a person, None when all is well. ``alive``: the watchdog may be fed."""

    health: Health
    reason: str | None
    alive: bool


def assess(view: View) -> Assessment:
    """The first line that applies."""
    if view.unseen_ns > HUNG_NS:
        return _stalled(f"the capture thread has been stuck for {_s(view.unseen_ns)} s")
    if view.push_still_ns > HUNG_NS:
        return _stalled(f"the push thread has been stuck for {_s(view.push_still_ns)} s")
    if view.open and view.silent_ns > view.stall_timeout_ns + SILENT_NS:
        return _stalled(f"no frame for {_s(view.silent_ns)} s from an open device")
    if view.released is not None:
        return _degraded(view.released)
    if view.refused:
        return Assessment(Health.FAILED, view.trouble, True)
    if view.trouble is not None:
        return Assessment(Health.DEGRADED, view.trouble, True)
    if view.frames == 0:
        return Assessment(Health.STARTING, None, True)
    for sink in view.sinks:
        if sink.trouble is not None:
            return _degraded(f"sink {sink.name}: {sink.trouble}")
        if sink.still_ns > SINK_HUNG_NS:
            return _degraded(f"sink {sink.name} has accepted no data for {_s(sink.still_ns)} s")
        if sink.concern is not None:
            return _degraded(f"sink {sink.name}: {sink.concern}")
        if _recent(sink.drop_age_ns):
            return _degraded(f"sink {sink.name} is too slow and just dropped sound")
    if view.concern is not None:
        return _degraded(view.concern)
    if _recent(view.loss_age_ns):
        return _degraded("frames were just lost")
    return Assessment(Health.OK, None, True)


def _recent(age_ns: int | None) -> bool:
    return age_ns is not None and age_ns < RECENT_NS


def _stalled(reason: str) -> Assessment:
    return Assessment(Health.STALLED, reason, False)


def _degraded(reason: str) -> Assessment:
    return Assessment(Health.DEGRADED, reason, True)


def _s(ns: int) -> int:
    return ns // NS_PER_S
