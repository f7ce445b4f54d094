"""Many streams in one daemon, recordings and live channels: loss, and what each costs."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from capstand.config.schema import load
from tests.bench import machine
from tests.bench.programs import (
    CAPTURE,
    FILE,
    RATE_HZ,
    Cards,
    Program,
    Running,
    agora_sink,
    capstand_run,
    no_agora,
    sound_frames,
    standin_env,
)
from tests.bench.table import at_most, show, spread
from tests.fakecard import FakeCard

STEPS = (1, 4, 16, 64)
CHANNELS = (4, 32)
CHANNEL_CORES = 2
SETTLE_S = 5.0


class Figures(NamedTuple):
    """``cpu_s`` per minute of sound that the cards handed over; ``lost`` in % of what there was, in
    the cards' buffers and, ``dropped``, behind them; ``beside`` in % of the machine.
    """

    cpu_s: float
    cores: float
    lost: float
    dropped: float
    beside: float


def lost(card: FakeCard) -> int:
    """Frames that nobody read; what came in the last 100 ms before the stop is not lost."""
    unread = card.position - card.frames_delivered - card.frames_lost
    return card.frames_lost + (unread if unread > RATE_HZ // 10 else 0)


def daemon(
    streams: Sequence[FakeCard],
    sink: Callable[[str, Path], str],
    env: Callable[[Path], dict[str, str]] = lambda folder: {},
) -> Program:
    """One with a stream for the card that it is started with and for each of ``streams``; ``sink``
    makes a stream's sink of its name and the folder.
    """

    def command(card: str, buffer: int, place: Path) -> list[str]:
        text = ""
        for name in [card, *(stream.device for stream in streams)]:
            text += CAPTURE.format(name=name, card=name, buffer_ms=buffer // 48)
            text += sink(name, place)
        words = capstand_run(place, text)
        load(words[words.index("--config") + 1])
        return words

    return Program(f"capstand, {len(streams) + 1} streams", command, env=env)


def cost(run: Running, cards: Sequence[FakeCard], seconds: float) -> tuple[float, float, float]:
    """From now on: CPU s per minute of sound, cores, others in % of the machine."""
    run.check()
    before = sum(card.frames_delivered for card in cards)
    began, cpu, busy = time.monotonic(), run.cpu_s(), machine.busy_s()
    time.sleep(seconds)
    run.check()
    elapsed = time.monotonic() - began
    cpu, busy = run.cpu_s() - cpu, machine.busy_s() - busy
    brought = sum(card.frames_delivered for card in cards) - before
    beside = max(0.0, busy - cpu) / elapsed / machine.CORES * 100
    return cpu * 60 * RATE_HZ / brought, cpu / elapsed, beside


def recordings(cards: Cards, folder: Path, streams: int, seconds: float) -> Figures:
    """Loss is that of the whole run."""
    own = [cards.new() for _ in range(streams - 1)]
    program = daemon(own, lambda name, place: FILE.format(folder=place / f"{name}-files"))
    with Running(program, cards, folder) as run:
        time.sleep(SETTLE_S)
        all_cards = [run.card, *own]
        cpu, cores, beside = cost(run, all_cards, seconds)
    there = sum(all_card.position for all_card in all_cards)
    kept = sum(all_card.frames_delivered for all_card in all_cards)
    files = [*run.folder.glob("*-files/*.wav"), *run.folder.glob("*-files/*.part")]
    written = sum(sound_frames(file) for file in files)
    unread = sum(lost(all_card) for all_card in all_cards)
    return Figures(cpu, cores, 100 * unread / there, 100 * (kept - written) / there, beside)


def live(cards: Cards, folder: Path, streams: int, seconds: float) -> Figures:
    """Loss is that of the measured time: a channel takes a while to be joined."""
    own = [cards.new() for _ in range(streams - 1)]
    program = daemon(own, lambda name, place: agora_sink(True), standin_env)
    with Running(program, cards, folder) as run:
        run.settle(SETTLE_S)
        all_cards = [run.card, *own]
        position, unread = (
            sum(all_card.position for all_card in all_cards),
            sum(all_card.frames_lost for all_card in all_cards),
        )
        books = run.books()
        cpu, cores, beside = cost(run, all_cards, seconds)
        dropped = run.books().dropped - books.dropped
        there = sum(all_card.position for all_card in all_cards) - position
        unread = sum(all_card.frames_lost for all_card in all_cards) - unread
    return Figures(cpu, cores, 100 * unread / there, 100 * dropped / there, beside)


def compare(
    steps: Sequence[int], rounds: int, once: Callable[[int], Figures]
) -> dict[int, list[Figures]]:
    """``once`` for each number of streams, in rounds; a table of what was found."""
    found: dict[int, list[Figures]] = {step: [] for step in steps}
    trouble: dict[int, str] = {}
    for _ in range(rounds):
        for step in steps:
            try:
                found[step].append(once(step))
            except (RuntimeError, ValueError, OSError) as error:
                trouble[step] = str(error)
    rows = []
    for step, values in found.items():
        columns = list(zip(*values, strict=True))
        if step in trouble or not columns:
            rows.append([str(step), trouble.get(step, "no figure")])
            continue
        digits = (2, 2, 3, 3, 0)
        cells = [spread(column, to) for column, to in zip(columns, digits, strict=True)]
        rows.append([str(step), *cells])
    head = ["streams", "CPU s per minute of sound", "cores", "lost by the card, %"]
    head += ["dropped behind it, %", "others, %"]
    show(head, rows)
    return found


def verdicts(found: dict[int, list[Figures]], many: int, what: str) -> None:
    lost = [one.lost + one.dropped for one in found[many]]
    at_most(f"{many} {what} without loss", max(lost, default=None), 0, " %")
    few_s, many_s = ([one.cpu_s for one in found[step]] for step in (4, many))
    words = f"cost of each of {many} {what} at most that of 4"
    at_most(words, median(many_s) if many_s else None, median(few_s) if few_s else None, " s")


def main(folder: Path, long: bool) -> None:
    rounds, seconds = (5, 30.0) if long else (3, 6.0)
    cards = Cards(folder / "cards")
    print(
        f"one daemon, N fake cards, N WAV files; from {SETTLE_S:g} s after the start for "
        f"{seconds:g} s, {rounds} rounds; loss over the whole run"
    )
    found = compare(STEPS, rounds, lambda step: recordings(cards, folder, step, seconds))
    verdicts(found, STEPS[-1], "recordings")
    if lacking := no_agora():
        print(f"\n  live channels: {lacking}")
        return
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every)[:CHANNEL_CORES])
    print(
        f"\n  N live channels with rate lock instead, on {min(CHANNEL_CORES, len(every))} cores; "
        f"from {SETTLE_S:g} s after each has sound; loss in that time"
    )
    try:
        found = compare(CHANNELS, rounds, lambda step: live(cards, folder, step, seconds))
    finally:
        os.sched_setaffinity(0, every)
    verdicts(found, CHANNELS[-1], "channels")
