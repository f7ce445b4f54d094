"""From exec to the first frame, seen from outside."""

import time
from pathlib import Path
from statistics import median

from tests.bench.programs import ARECORD, CAPSTAND, FFMPEG, GSTREAMER, HEADER, Cards, Running
from tests.bench.table import at_most, show, spread

PROGRAMS = (CAPSTAND, ARECORD, FFMPEG, GSTREAMER)
PATIENCE_S = 15.0


def once(run: Running) -> tuple[float, float]:
    """Seconds until the card started, and until sound was in the file."""
    started = 0.0
    while True:
        now = (time.monotonic_ns() - run.began_ns) / 1e9
        if not started and run.card.starts:
            started = now
        file = run.file()
        if file is not None and file.stat().st_size > HEADER:
            return started, now
        if now > PATIENCE_S:
            raise RuntimeError(f"no sound in the file after {PATIENCE_S:g} s")
        time.sleep(0.001)


def main(folder: Path, long: bool) -> None:
    rounds = 21 if long else 7
    print(f"seconds after exec, {rounds} rounds; programs keep sound back to write more at once")
    cards = Cards(folder / "cards")
    found: dict[str, list[tuple[float, float]]] = {program.name: [] for program in PROGRAMS}
    trouble: dict[str, str] = {}
    for number in range(rounds):
        turn = number % len(PROGRAMS)
        for program in PROGRAMS[turn:] + PROGRAMS[:turn]:
            if lacking := program.without():
                trouble[program.name] = lacking
                continue
            try:
                with Running(program, cards, folder) as run:
                    found[program.name].append(once(run))
            except (RuntimeError, OSError) as error:
                trouble[program.name] = str(error)
    rows = []
    for name, values in found.items():
        columns = list(zip(*values, strict=True))
        row = [name, *(spread(column) for column in columns)]
        rows.append([name, trouble[name]] if name in trouble or not columns else row)
    show(["program", "card started", "first frame in the file"], rows)
    own = [one for _, one in found[CAPSTAND.name]]
    at_most("exec to first frame in the file", median(own) if own else None, 0.5, " s")
