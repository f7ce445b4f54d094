"""What a recording costs: processor seconds per minute of sound, and memory."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from tests.bench import machine
from tests.bench.programs import (
    ARECORD,
    CAPSTAND,
    FFMPEG,
    GSTREAMER,
    NOTHING,
    RATE_HZ,
    Cards,
    Program,
    Running,
    missing,
)
from tests.bench.table import at_most, show, spread

PROGRAMS = (CAPSTAND, NOTHING, ARECORD, FFMPEG, GSTREAMER)
RECORDERS = (CAPSTAND, ARECORD, FFMPEG, GSTREAMER)
SETTLE_S = 5.0


class Figures:
    """One program's, a value for each round."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        """Processor seconds per minute of sound."""
        self.memory_mb: list[float] = []
        """Proportional set size of all its processes, at the end."""
        self.lost: list[float] = []
        self.beside: list[float] = []
        """Share of all cores that others took meanwhile, in %."""
        self.trouble = ""

    def cells(self) -> list[str]:
        return [
            spread(self.cpu),
            spread(self.memory_mb, 1),
            spread(self.lost, 0),
            spread(self.beside, 0),
        ]


HEAD = ["program", "CPU s per minute", "memory MB", "frames lost", "others, % of the machine"]


def measure(found: Figures, run: Running, seconds: float) -> None:
    """From now on for ``seconds``."""
    run.check()
    began, busy, cpu = time.monotonic(), machine.busy_s(), run.cpu_s()
    frames = run.card.frames_delivered
    time.sleep(seconds)
    run.check()
    cpu, frames = run.cpu_s() - cpu, run.card.frames_delivered - frames
    busy, elapsed = machine.busy_s() - busy, time.monotonic() - began
    found.cpu.append(cpu * 60 * RATE_HZ / frames)
    found.memory_mb.append(run.memory_mb())
    found.beside.append(max(0.0, busy - cpu) / elapsed / machine.CORES * 100)


def compare(
    programs: Sequence[Program],
    cards: Cards,
    folder: Path,
    rounds: int,
    once: Callable[[Figures, Running], None],
) -> dict[str, Figures]:
    """Runs the programs one after another, in rounds, and tells how each was called."""
    found = {program.name: Figures() for program in programs}
    commands: dict[str, str] = {}
    for number in range(rounds):
        turn = number * 3 % len(programs)
        for program in [*programs[turn:], *programs[:turn]]:
            figures = found[program.name]
            if figures.trouble:
                continue
            if lacking := program.without():
                figures.trouble = lacking
                continue
            try:
                run = Running(program, cards, folder)
                with run:
                    once(figures, run)
                figures.lost.append(
                    missing(run.file()) if program in RECORDERS else run.card.frames_lost
                )
            except (RuntimeError, ValueError, OSError) as error:
                figures.trouble = str(error)
            words = " ".join(run.command)
            commands[program.name] = words.replace(str(folder), "TMP").replace(str(Path.cwd()), ".")
    for name, command in commands.items():
        print(f"  {name}: {command}")
    return found


def table(found: dict[str, Figures], *more: list[str]) -> None:
    rows = [
        [name, *one.cells()] if one.cpu and not one.trouble else [name, one.trouble]
        for name, one in found.items()
    ]
    show(HEAD, [*rows, *more])


def main(folder: Path, long: bool) -> None:
    rounds, seconds = (7, 30.0) if long else (3, 6.0)
    print(f"CPU from {SETTLE_S:g} s after the start for {seconds:g} s, {rounds} rounds; median "
          "(lowest to highest)")  # fmt: skip

    def once(figures: Figures, run: Running) -> None:
        time.sleep(SETTLE_S)
        measure(figures, run, seconds)

    found = compare(PROGRAMS, Cards(folder / "cards"), folder, rounds, once)
    table(
        found,
        ["darkice", "left out: it always encodes and has no WAV, so its work is another one"],
    )

    def cpu(name: str) -> float | None:
        return median(found[name].cpu) if found[name].cpu else None

    own, floor = cpu(CAPSTAND.name), cpu(ARECORD.name)
    at_most("CPU at most FFmpeg's", own, cpu(FFMPEG.name), " s")
    at_most("CPU at most GStreamer's", own, cpu(GSTREAMER.name), " s")
    at_most("CPU at most twice arecord's", own, floor and 2 * floor, " s")
    most = max(found[CAPSTAND.name].memory_mb, default=None)
    at_most("at most 40 MB with a file", most, 40, " MB")
