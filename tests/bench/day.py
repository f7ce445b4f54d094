"""A day at ±500 ppm on virtual time: the queue and the timestamps, held and left alone."""

import math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from capstand.agora.send_buffer import SendBufferModel
from capstand.audio.block import NS_PER_S
from tests.bench import machine, svg
from tests.bench.table import at_most, show
from tests.dsp.test_ratelock import FRAMES, RATE_HZ, TARGET_S, Run

PICTURE = Path("docs/day.svg")
SETTLED_S = 60
MINUTE = 60


class Day(NamedTuple):
    """``points``: hour, depth of the queue in ms, error of the timestamp in µs, once a minute."""

    ppm: float
    held: bool
    points: list[tuple[float, float, float]]
    lowest_ms: float
    highest_ms: float
    holes: int
    silence_s: float
    rate_error_ppm: float
    largest_us: float


def live(ppm: float, seconds: int, seed: int) -> Day:
    """With clock and rate lock; depth is the mean of a second, from SETTLED_S on."""
    run = Run(lambda _: ppm, seed)
    points: list[tuple[float, float, float]] = []
    lowest, highest, largest, rate = math.inf, -math.inf, 0.0, 0.0
    for second in range(seconds):
        (depth,) = run.seconds(1)
        error_us = (run.clock.time_of(run._frame) - run._end_ns) / 1000
        if second >= SETTLED_S:
            lowest, highest = min(lowest, depth), max(highest, depth)
            largest = max(largest, abs(error_us))
            rate = max(rate, abs(run.clock.drift_ppm - ppm))
        if second % MINUTE == 0:
            points.append((second / 3600, depth, error_us))
    return Day(
        ppm, True, points, lowest, highest, run.drain.holes, run.drain.hole_ns / 1e9, rate, largest
    )


def left_alone(ppm: float, seconds: int) -> Day:
    """Blocks as they come, timestamps counted from the first frame at the nominal rate; depth is
    the least, just before a block comes.
    """
    drain = SendBufferModel(round(TARGET_S * 1000))
    block_ns = FRAMES * NS_PER_S / RATE_HZ / (1 + ppm * 1e-6)
    points, lowest, highest, least = [], math.inf, -math.inf, math.inf
    for number in range(seconds * 100):
        now_ns = round(NS_PER_S + number * block_ns)
        depth = drain.depth_ms(now_ns)
        drain.give(10_000_000, now_ns)
        if number >= SETTLED_S * 100:
            lowest, highest = min(lowest, depth), max(highest, depth)
        least = min(least, depth)
        if (number + 1) % (100 * MINUTE) == 0:
            error_us = number * (10_000_000 - block_ns) / 1000
            points.append((number / 360_000, least, error_us))
            least = math.inf
    last_us = abs(seconds * 100 * (10_000_000 - block_ns)) / 1000
    return Day(
        ppm, False, points, lowest, highest, drain.holes, drain.hole_ns / 1e9, abs(ppm), last_us
    )


def main(folder: Path, long: bool) -> None:
    seconds = 86_400
    print("24 h of virtual time, stamps as in section clock, queue target 40 ms, from 60 s on")
    with ProcessPoolExecutor(machine.CORES) as pool:
        seeds = range(1, 4) if long else range(1, 2)
        waiting = [pool.submit(live, ppm, seconds, s) for s in seeds for ppm in (500.0, -500.0)]
        waiting += [pool.submit(left_alone, ppm, seconds) for ppm in (500.0, -500.0)]
        days = [one.result() for one in waiting]
    rows = [
        [
            f"{day.ppm:+.0f} ppm, {'clock and rate lock' if day.held else 'left alone'}",
            f"{day.lowest_ms:.2f} to {day.highest_ms:.2f}",
            f"{day.holes}, {day.silence_s:.1f} s",
            f"{day.rate_error_ppm:.2f}",
            f"{day.largest_us:.1f}",
        ]
        for day in days
    ]
    head = ["card", "queue, ms", "holes", "rate error, ppm", "largest timestamp error, µs"]
    show(head, rows)
    held = [day for day in days if day.held]
    target_ms = TARGET_S * 1000
    off = max(max(day.highest_ms - target_ms, target_ms - day.lowest_ms) for day in held)
    at_most("queue within 2 ms of its target for a day", off, 2.0, " ms")
    at_most("holes in that day", max(day.holes for day in held), 0)
    at_most("timestamps in that day", max(day.largest_us for day in held), 100, " µs")
    shown = [held[0], *(day for day in days if not day.held)]
    lines = {
        f"{day.ppm:+.0f} ppm, "
        f"{'capstand' if day.held else f'left alone, {day.holes} holes'}": day.points
        for day in shown
    }
    PICTURE.write_text(svg.day(lines))
    print(f"  drawn: {PICTURE}")
