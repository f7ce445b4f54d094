"""Many streams in one daemon: loss, and what each costs."""

import time
from pathlib import Path
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
    capstand_run,
    sound_frames,
)
from tests.bench.table import at_most, goal, show, spread
from tests.fakecard import FakeCard

STEPS = (1, 4, 16, 64)
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


def once(cards: Cards, folder: Path, streams: int, seconds: float) -> Figures:
    own = [cards.new() for _ in range(streams - 1)]

    def command(card: str, buffer: int, place: Path) -> list[str]:
        text = ""
        for name in [card, *(one.device for one in own)]:
            text += CAPTURE.format(name=name, card=name, buffer_ms=buffer // 48)
            text += FILE.format(folder=place / f"{name}-files")
        words = capstand_run(place, text)
        load(words[words.index("--config") + 1])
        return words

    with Running(Program(f"capstand, {streams} streams", command), cards, folder) as run:
        time.sleep(SETTLE_S)
        run.check()
        all_cards = [run.card, *own]
        before = sum(one.frames_delivered for one in all_cards)
        began, cpu, busy = time.monotonic(), run.cpu_s(), machine.busy_s()
        time.sleep(seconds)
        run.check()
        elapsed = time.monotonic() - began
        cpu, busy = run.cpu_s() - cpu, machine.busy_s() - busy
        brought = sum(one.frames_delivered for one in all_cards) - before
    there = sum(one.position for one in all_cards)
    kept = sum(one.frames_delivered for one in all_cards)
    files = [*run.folder.glob("*-files/*.wav"), *run.folder.glob("*-files/*.part")]
    written = sum(sound_frames(file) for file in files)
    return Figures(
        cpu * 60 * RATE_HZ / brought,
        cpu / elapsed,
        100 * sum(lost(one) for one in all_cards) / there,
        100 * (kept - written) / there,
        max(0.0, busy - cpu) / elapsed / machine.CORES * 100,
    )


def main(folder: Path, long: bool) -> None:
    rounds, seconds = (3, 30.0) if long else (1, 6.0)
    print(
        f"one daemon, N fake cards, N WAV files; from {SETTLE_S:g} s after the start for "
        f"{seconds:g} s, {rounds} round(s); loss over the whole run"
    )
    cards = Cards(folder / "cards")
    found: dict[int, list[Figures]] = {step: [] for step in STEPS}
    trouble: dict[int, str] = {}
    for _ in range(rounds):
        for step in STEPS:
            try:
                found[step].append(once(cards, folder, step, seconds))
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
    if found[64]:
        lost = max(one.lost + one.dropped for one in found[64])
        goal("64 streams without loss", f"{lost:.3f} % lost", lost == 0)
    if found[4] and found[64]:
        per = {step: min(one.cpu_s for one in found[step]) for step in (4, 64)}
        at_most("cost per stream with 64 at most that with 4", per[64], per[4], " s")
