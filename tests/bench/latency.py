"""From the moment a block's last frame was sampled to ``Sink.write``: what capstand adds."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median

from tests.bench import machine
from tests.bench.programs import Cards, stress
from tests.bench.table import at_most, show, spread

CASES = (
    ("alone", "probe", ""),
    ("dead sinks", "dead", ""),
    ("all cores busy", "probe", "cpu"),
    ("dead sinks, all cores busy", "dead", "cpu"),
    ("busy sink", "busy", ""),
)
BESIDE = {"alone": "dead sinks", "all cores busy": "dead sinks, all cores busy"}
WAYS = (
    ("timer", "bare timer, FIFO 80, beside it"),
    ("woken", "capture thread looks"),
    ("put", "into the sink's queue"),
    ("write", "Sink.write"),
)


def once(cards: Cards, kind: str, load: str, seconds: float) -> dict[str, list[int]]:
    """Times of hand-over beyond the period, in ns."""
    card = cards.new()
    arguments = [kind, card.device, str(cards.buffer_frames), str(seconds)]
    began, busy = time.monotonic(), machine.busy_s()
    with stress(load, seconds) if load else nullcontext():
        beside = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.inside", "timer", "-", "0", str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.inside", *arguments],
            env={**os.environ, **card.env},
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds + 60,
        )
        bare, _ = beside.communicate(timeout=seconds + 60)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    told: dict[str, list[int]] = json.loads(done.stdout)
    told |= json.loads(bare)
    told["lost"] = [int(str(told["lost"]))]
    elapsed = time.monotonic() - began
    told["busy"] = [round((machine.busy_s() - busy) / elapsed / machine.CORES * 100)]
    return told


def main(folder: Path, long: bool) -> None:
    rounds, seconds = (5, 60.0) if long else (5, 10.0)
    print(
        f"last frame of a block sampled → block handed over, µs; {rounds} rounds of {seconds:g} s "
        "in turn, taken together; capture FIFO 70, push FIFO 60, the sink's thread ordinary"
    )
    cards = Cards(folder / "cards")
    found: dict[str, dict[str, list[int]]] = {name: {} for name, _, _ in CASES}
    written_p99_ms: dict[str, list[float]] = {name: [] for name, _, _ in CASES}  # by round
    for _ in range(rounds):
        for name, kind, load in CASES:
            told = once(cards, kind, load, seconds)
            for key, values in told.items():
                found[name].setdefault(key, []).extend(values)
            written_p99_ms[name].append(_share(sorted(told["write"]), 0.99) / 1e6)
            if told["refused"]:
                print(f"  no real-time priority: {told['refused'][0]}")
    rows: list[list[str]] = []
    worst: dict[str, float] = {}
    bare: dict[str, float] = {}
    for name, told in found.items():
        for key, words in WAYS:
            if not told[key]:
                continue
            late = sorted(one / 1000 for one in told[key])
            marks = [_share(late, share) for share in (0.5, 0.99, 0.999)]
            (bare if key == "timer" else worst)[name] = marks[2] / 1000
            cells = [f"{one:.0f}" for one in [*marks, late[-1]]]
            rows.append(
                [
                    name,
                    words,
                    str(len(late)),
                    *cells,
                    str(sum(told["lost"])),
                    str(max(told["busy"])),
                ]
            )
    show(
        ["case", "until", "blocks", "p50", "p99", "p99.9", "max", "frames lost", "machine busy, %"],
        rows,
    )
    for name, figure in worst.items():
        at_most(f"hand-over p99.9 at most 1 ms beyond the period, {name}", figure, 1.0, " ms")
        if bare.get(name, 0.0) > 1.0:
            print(f"    (this machine woke the bare timer late, too: p99.9 {bare[name]:.2f} ms)")
    for name, beside in BESIDE.items():
        pairs = zip(written_p99_ms[beside], written_p99_ms[name], strict=True)
        later = [with_dead - without for with_dead, without in pairs]
        at_most(f"{beside} delay another, p99, by at most 1 ms", median(later), 1.0, " ms")
        print(f"    (median, lowest and highest of the rounds: {spread(later)} ms)")


def _share(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
