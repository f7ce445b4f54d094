"""From the configuration that runs and the one that shall run: what has to be done. Pure.

Streams and sinks are told apart by their names. A stream whose ``capture`` is the same goes on
capturing, whatever becomes of its sinks; a sink of it that is the same is not touched, nor is one
whose chain of processors, or whose card's controls, have other settings. But where other channels
come out of a chain, or there was none before, it is another chain, and its sinks are others, too.
Whatever else has changed ends, and begins again as the new file says.
"""

from typing import NamedTuple

from capstand.config.registry import PROCESSORS, SINKS
from capstand.config.schema import Config, SinkConfig, StreamConfig

GATHER_MS, LIVE_GATHER_MS = 40, 20
WAKE_MS = 200


class ReloadPlan(NamedTuple):
    """``stop`` names streams that end; ``start`` are those that begin, ``exchange`` those that get
    other sinks. A stream whose capture changed is in both of the first two.
    """

    stop: tuple[str, ...] = ()
    start: tuple[StreamConfig, ...] = ()
    exchange: tuple[StreamConfig, ...] = ()


class SinkPlan(NamedTuple):
    """The sinks of one stream whose capture goes on; a changed sink is removed and added."""

    kept: tuple[SinkConfig, ...]
    removed: tuple[SinkConfig, ...]
    added: tuple[SinkConfig, ...]

    def before(self, sink: SinkConfig) -> list[SinkConfig]:
        """The removed sinks that have to be closed before the added ``sink`` may open."""
        taken = _resources(sink)
        return [one for one in self.removed if _resources(one) & taken]


def plan(old: Config, new: Config) -> ReloadPlan:
    before = {one.name: one for one in old.stream}
    after = {one.name: one for one in new.stream}

    def goes_on(name: str) -> bool:
        return name in before and name in after and same_capture(before[name], after[name])

    def exchanged(one: StreamConfig) -> tuple[object, ...]:
        return one.sink, one.process, one.capture.controls

    return ReloadPlan(
        stop=tuple(name for name in before if not goes_on(name)),
        start=tuple(one for one in new.stream if not goes_on(one.name)),
        exchange=tuple(
            one
            for one in new.stream
            if goes_on(one.name) and exchanged(one) != exchanged(before[one.name])
        ),
    )


def sink_plan(old: StreamConfig, new: StreamConfig) -> SinkPlan:
    before = [(one, old.input_of(one), old.heard_by(one)) for one in old.sink]
    after = [(one, new.input_of(one), new.heard_by(one)) for one in new.sink]
    return SinkPlan(
        kept=tuple(one[0] for one in after if one in before),
        removed=tuple(one[0] for one in before if one not in after),
        added=tuple(one[0] for one in after if one not in before),
    )


def same_capture(old: StreamConfig, new: StreamConfig) -> bool:
    """Whether capture goes on, perhaps with other settings of the card's controls."""
    return old.capture.without_controls == new.capture.without_controls


def same_chain(old: StreamConfig, new: StreamConfig) -> bool:
    """Whether the chain goes on, perhaps with other settings."""
    return bool(old.process and new.process) and old.processed == new.processed


class ChainPace(NamedTuple):
    """How many frames a chain works on at a time, and for how many it is woken."""

    gather_frames: int
    wake_frames: int


def chain_pace(config: StreamConfig) -> ChainPace:
    """What a live sink waits for comes soon. Else fewer wake-ups count: blocks that are worked on
    one after another find their code in the caches; one long block might be taken to hang."""
    live = any(SINKS[one.type].live for one in config.on("processed").sink)
    gather_ms, wake_ms = (LIVE_GATHER_MS, LIVE_GATHER_MS) if live else (GATHER_MS, WAKE_MS)
    rate_hz = config.capture.rate_hz
    return ChainPace(gather_ms * rate_hz // 1000, wake_ms * rate_hz // 1000)


def host_of(config: StreamConfig) -> str | None:
    """The name of the live sink whose process may host the chain: nobody else gets what comes out,
    and no processor needs somebody to look after it."""
    heard = config.on("processed").sink
    kinds = [PROCESSORS[one.type] for one in config.process]
    alone = len(heard) == 1 and SINKS[heard[0].type].live
    if not alone or config.sidechains or not all(kind.hosted for kind in kinds):
        return None
    return heard[0].name


def describe(old: Config, new: Config) -> list[str]:
    """What the plan does, a line for each stream that it touches."""
    todo = plan(old, new)
    before = {one.name: one for one in old.stream}
    after = {one.name: one for one in new.stream}
    lines = [f"{name}: removed" for name in todo.stop if name not in after]
    for stream in new.stream:
        if stream in todo.start:
            anew = "restarted, because its capture changed"
            lines.append(f"{stream.name}: {anew if stream.name in before else 'new'}")
        elif stream in todo.exchange:
            sinks = sink_plan(before[stream.name], stream)
            gone = {one.name for one in sinks.removed}
            come = {one.name for one in sinks.added}
            told = [f"sink {name} changed" for name in sorted(gone & come)]
            told += [f"sink {name} removed" for name in sorted(gone - come)]
            told += [f"sink {name} new" for name in sorted(come - gone)]
            if stream.process != before[stream.name].process:
                told.append("processing changed")
            if stream.capture.controls != before[stream.name].capture.controls:
                told.append("controls of the card changed")
            lines.append(f"{stream.name}: {', '.join(told) or 'sinks in another order'}")
    if new.ledger != old.ledger:
        days, most_mb = new.ledger
        lines.append(f"ledger: kept for {days} days, at most {most_mb} MB for each stream")
    return lines


def _resources(sink: SinkConfig) -> set[tuple[object, ...]]:
    """What only one sink of a stream can have at a time."""
    return {one.where for one in SINKS[sink.type].held(sink)}
