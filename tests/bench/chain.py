"""What a chain costs in a daemon: the same recording, and the same live channel, with and without.

The difference is all that the chain brings: its process, the hop between two rings, and what the
others have to do for it. Without a live sink it works on 40 ms of sound at a time, with one on 20.
"""

from pathlib import Path
from statistics import median

from tests.bench.cost import SETTLE_S, Figures, compare, measure, table
from tests.bench.programs import (
    FILE,
    Cards,
    Program,
    Running,
    agora_sink,
    capstand_with,
    no_agora,
    standin_env,
)
from tests.bench.table import at_most, spread

FOUR = """\
[[stream.process]]
type = "channels"
matrix = [[0.5, 0.5], [0.5, -0.5]]
[[stream.process]]
type = "high-pass"
cutoff_hz = 90
[[stream.process]]
type = "gain"
gain_db = 3
[[stream.process]]
type = "limiter"
ceiling_dbfs = -1
"""
SPEECH = """\
[[stream.process]]
type = "channels"
mix = true
[[stream.process]]
type = "noise-suppression"
[[stream.process]]
type = "agc"
"""


def _file(words: str, chain: str) -> Program:
    return Program(f"WAV{words}", capstand_with(chain, FILE))


def _live(words: str, chain: str) -> Program:
    return Program(
        f"channel{words}", capstand_with(chain, agora_sink(False)), no_agora, standin_env
    )


WITHOUT = _file("", ""), _live("", "")
WITH = {
    " + channels, high-pass, gain, limiter": (FOUR, (0.5, 0.9)),
    " + mono, noise-suppression, agc": (SPEECH, (None, 0.9)),
}


def main(folder: Path, long: bool) -> None:
    rounds, seconds = (7, 30.0) if long else (5, 10.0)
    print(f"CPU of all processes of capstand from {SETTLE_S:g} s after the first sound for "
          f"{seconds:g} s, {rounds} rounds; median (lowest to highest)")  # fmt: skip
    pairs = [
        (before, make(words, chain), limit)
        for words, (chain, limits) in WITH.items()
        for before, make, limit in zip(WITHOUT, (_file, _live), limits, strict=True)
    ]

    def once(figures: Figures, run: Running) -> None:
        run.settle(SETTLE_S)
        measure(figures, run, seconds)

    programs = [*WITHOUT, *(program for _, program, _ in pairs)]
    found = compare(programs, Cards(folder / "cards"), folder, rounds, once)
    table(found)
    for before, program, limit in pairs:
        cpu = found[before.name].cpu, found[program.name].cpu
        adds = [b - a for a, b in zip(*cpu, strict=False)]
        words = f"{program.name}: what the chain adds, s a minute"
        if limit is None:
            print(f"  {words}: {spread(adds)}")
        else:
            at_most(words, median(adds) if adds else None, limit)
            print(f"    (by round: {spread(adds)})")
