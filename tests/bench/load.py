"""Frames lost on a machine that is loaded on all cores and in its memory."""

import time
from pathlib import Path

from tests.bench.programs import (
    ARECORD,
    ARECORD_FIFO,
    CAPSTAND,
    FFMPEG,
    GSTREAMER,
    Cards,
    Running,
    account,
    stress,
)
from tests.bench.table import goal, show, spread

PROGRAMS = (CAPSTAND, ARECORD, ARECORD_FIFO, FFMPEG, GSTREAMER)
SETTLE_S = 3.0


def main(folder: Path, long: bool) -> None:
    rounds, seconds = (5, 60.0) if long else (2, 8.0)
    print(
        f"frames missing in the file, of {seconds * 48_000:.0f} each; {rounds} rounds of "
        f"{seconds:g} s, all programs side by side under the same load"
    )
    rows = []
    verdicts = []
    for buffer_ms in (500, 40):
        under = folder / str(buffer_ms)
        cards = Cards(under / "cards", buffer_ms)
        found: dict[str, list[tuple[int, int]]] = {program.name: [] for program in PROGRAMS}
        trouble: dict[str, str] = {}
        for number in range(rounds):
            order = PROGRAMS if number % 2 == 0 else PROGRAMS[::-1]
            ready = [program for program in order if not program.without()]
            runs = [Running(program, cards, under) for program in ready]
            for run in runs:
                run.__enter__()
            try:
                time.sleep(SETTLE_S)
                with stress("memory", seconds) as words:
                    time.sleep(seconds)
            finally:
                for run in runs:
                    run.__exit__()
            for run in runs:
                try:
                    found[run.program.name].append(account(run.file()))
                except (ValueError, OSError) as error:
                    trouble[run.program.name] = str(error)
        if buffer_ms == 500:
            print(f"  load: {words}")
        for program in PROGRAMS:
            name, lost = program.name, found[program.name]
            lacking = program.without() or trouble.get(name)
            cells = [spread(column, 0) for column in zip(*lost, strict=True)]
            rows.append([name, f"{buffer_ms} ms", *([lacking] if lacking else cells)])
        own, other = (
            max((lost for lost, _ in found[one.name]), default=0) for one in (CAPSTAND, ARECORD)
        )
        verdicts.append((buffer_ms, own, other))
    show(["program", "buffer", "frames lost", "repeated or silence put in"], rows)
    for buffer_ms, own, other in verdicts:
        words = f"never more lost than arecord, nothing where it loses nothing, {buffer_ms} ms"
        goal(words, f"{own} beside {other}", own <= other)
