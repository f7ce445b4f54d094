"""A week of one stream on virtual time: drift, late stamps, overruns, outages of the card and of
the sink; memory and books at its end.
"""

import gc
import os
import sys
import time
from itertools import chain
from pathlib import Path

from capstand.audio.block import Block
from capstand.audio.continuity import Continuity
from capstand.capture.synthetic import VirtualTime
from capstand.capture.types.synthetic import FaultConfig, SyntheticConfig
from capstand.errors import SinkError
from tests.bench.table import at_most, goal, show
from tests.line import Keep, Line, capture

DAY_S = 86_400
PPM = 63.0
FAULTS = (
    FaultConfig(kind="overrun", at_s=1000.0, for_s=2.0, every_s=7_000.0),
    FaultConfig(kind="unplug", at_s=20_000.0, for_s=40.0, every_s=50_000.0),
    FaultConfig(kind="stall", at_s=36_500.0, for_s=19.0, every_s=90_000.0),
)
AWAY_S = (40_000.0, 43_600.0)
"""When in each day the sink is away."""


class Follow(Keep):
    """Keeps no block; counts what is missing between them."""

    def __init__(self, clock: VirtualTime) -> None:
        super().__init__(lambda: AWAY_S[0] <= clock.now_ns() / 1e9 % DAY_S < AWAY_S[1])
        self.continuity = Continuity()
        self.missing = 0

    def write(self, block: Block) -> None:
        if self._fails():
            raise SinkError("the peer is away")
        self.missing += self.continuity.follow(block)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(folder: Path, long: bool) -> None:
    period_ms, rate_hz = (10.0, 48_000) if long else (1000.0, 1000)
    card = capture(
        rate_hz=rate_hz,
        channels=1,
        period_ms=period_ms,
        buffer_ms=4000.0,
        source=SyntheticConfig(signal="silence", ppm=PPM, jitter_us=80.0, faults=FAULTS),
    )
    print(
        f"{rate_hz} Hz, blocks of {period_ms:g} ms, card {PPM:+g} ppm, stamps late by 80 µs; every "
        "7,000 s an overrun of 2 s, every 50,000 s unplugged for 40 s, every 90,000 s standing "
        "still for 19 s, each day the sink away for an hour"
    )
    clock = VirtualTime()
    sink = Follow(clock)
    line = Line(card, [sink], clock, queue_frames=5 * rate_hz, poll_ms=1200)
    began = time.monotonic()
    rows, kept, gaps, balanced = [], [], 0, True
    look_s = chain(range(600, 7 * DAY_S, 600), [7 * DAY_S])
    for second in look_s:
        while clock.now_ns() < second * 1_000_000_000:
            line.capture()
            line.push()
            line.deliver()
        stats = line.stats()
        balanced = balanced and stats.balanced
        gaps += sum(gap.frames for gap in line.gaps)
        line.gaps.clear()
        balanced = balanced and gaps == stats.lost_frames
        if second % DAY_S == 0:
            gc.collect()
            kept.append((resident_mb(), sys.getallocatedblocks()))
            (books,) = stats.sinks
            rows.append(
                [
                    str(second // DAY_S),
                    f"{stats.produced_frames}",
                    f"{stats.captured_frames}",
                    f"{stats.lost_frames} in {stats.gaps}",
                    f"{books.delivered_frames}",
                    f"{books.dropped_frames}",
                    f"{line.stream.clock.drift_ppm - PPM:+.3f}",
                    f"{kept[-1][0]:.1f}",
                    str(kept[-1][1]),
                ]
            )
    show(
        [
            *("day", "produced", "captured", "lost in gaps", "delivered", "dropped"),
            *("rate error, ppm", "resident MB", "blocks of Python"),
        ],
        rows,
    )
    (books,) = stats.sinks
    print(f"  {7 * DAY_S / (time.monotonic() - began):.0f} times as fast as life")
    goal("books balance at every look (each 10 minutes)", "yes" if balanced else "NO", balanced)
    exact = sink.missing + books.in_flight_frames == stats.lost_frames + books.dropped_frames
    goal("what the sink misses is what the books say", f"{sink.missing} frames", exact)
    at_most("growth from the first day to the last", kept[-1][0] - kept[0][0], 0.5, " MB")
