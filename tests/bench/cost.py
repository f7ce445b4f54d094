"""What a stream costs: processor seconds per minute of sound, and memory."""

import time
from pathlib import Path
from statistics import median

from tests.bench import machine
from tests.bench.programs import (
    ARECORD,
    CAPSTAND,
    FFMPEG,
    GSTREAMER,
    LOCK,
    NOTHING,
    PASS,
    RATE_HZ,
    Cards,
    Running,
    missing,
)
from tests.bench.table import at_most, show, spread

PROGRAMS = (CAPSTAND, NOTHING, ARECORD, FFMPEG, GSTREAMER, PASS, LOCK)
RECORDERS = (CAPSTAND, ARECORD, FFMPEG, GSTREAMER)
SETTLE_S = 5.0


class Figures:
    """One program's, a value for each round."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        """Processor seconds per minute of sound."""
        self.mb: list[float] = []
        self.lost: list[float] = []
        self.beside: list[float] = []
        """Share of all cores that others took meanwhile, in %."""
        self.trouble = ""


def measure(found: Figures, run: Running, seconds: float) -> None:
    time.sleep(SETTLE_S)
    run.check()
    began, busy, cpu = time.monotonic(), machine.busy_s(), run.cpu_s()
    frames = run.card.frames_delivered
    time.sleep(seconds)
    run.check()
    cpu, frames = run.cpu_s() - cpu, run.card.frames_delivered - frames
    busy, elapsed = machine.busy_s() - busy, time.monotonic() - began
    found.cpu.append(cpu * 60 * RATE_HZ / frames)
    found.mb.append(run.peak_mb())
    found.beside.append(max(0.0, busy - cpu) / elapsed / machine.CORES * 100)


def main(folder: Path, long: bool) -> None:
    rounds, seconds = (7, 30.0) if long else (3, 6.0)
    print(f"CPU from {SETTLE_S:g} s after the start for {seconds:g} s, {rounds} rounds; median "
          "(lowest to highest)")  # fmt: skip
    cards = Cards(folder / "cards")
    found = {program.name: Figures() for program in PROGRAMS}
    commands: dict[str, str] = {}
    for number in range(rounds):
        turn = number * 3 % len(PROGRAMS)
        for program in PROGRAMS[turn:] + PROGRAMS[:turn]:
            figures = found[program.name]
            if figures.trouble:
                continue
            if lacking := program.without():
                figures.trouble = lacking
                continue
            try:
                run = Running(program, cards, folder)
                with run:
                    measure(figures, run, seconds)
                figures.lost.append(
                    missing(run.file()) if program in RECORDERS else run.card.frames_lost
                )
            except (RuntimeError, ValueError, OSError) as error:
                figures.trouble = str(error)
            words = " ".join(run.command)
            commands[program.name] = words.replace(str(folder), "TMP").replace(str(Path.cwd()), ".")
    for name, command in commands.items():
        print(f"  {name}: {command}")
    rows = [
        [
            name,
            spread(one.cpu),
            spread(one.mb, 1),
            spread(one.lost, 0),
            spread(one.beside, 0),
        ]
        if one.cpu and not one.trouble
        else [name, one.trouble]
        for name, one in found.items()
    ]
    rows.append(
        ["darkice", "left out: it always encodes and has no WAV, so its work is another one"]
    )
    head = ["program", "CPU s per minute", "peak MB", "frames lost", "others, % of the machine"]
    show(head, rows)

    def cpu(name: str) -> float | None:
        return median(found[name].cpu) if found[name].cpu else None

    own, floor, locked = cpu(CAPSTAND.name), cpu(ARECORD.name), cpu(LOCK.name)
    passed = cpu(PASS.name)
    at_most("CPU at most FFmpeg's", own, cpu(FFMPEG.name), " s")
    at_most("CPU at most GStreamer's", own, cpu(GSTREAMER.name), " s")
    at_most("CPU at most twice arecord's", own, floor and 2 * floor, " s")
    at_most("rate lock at most 3 times pass-through", locked, passed and 3 * passed, " s")
    peak = max(found[CAPSTAND.name].mb, default=None)
    at_most("at most 40 MB with a file", peak, 40, " MB")
