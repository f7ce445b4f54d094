"""A live channel beside GStreamer and FFmpeg on the same card: what it costs, by thread as well,
what a second channel on the same stream adds, and the memory of a channel's own process.

Nothing here knows how capstand is built: its processes and threads are found in /proc, and what a
channel was given and what was dropped is what `capstand status` says. The others send RTP to this
machine, where somebody listens and throws it away.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from tests.bench import machine
from tests.bench.cost import Figures, compare, measure, table
from tests.bench.programs import (
    FFMPEG_OPUS,
    GST_44100,
    GST_L16,
    GST_OPUS,
    LOCK,
    LOCK_TWICE,
    PASS,
    PASS_TWICE,
    RATE_HZ,
    Cards,
    Running,
    receiver,
)
from tests.bench.table import at_most, show, spread

OWN = (PASS, LOCK, PASS_TWICE, LOCK_TWICE)
PAIRS = ((PASS, GST_L16), (LOCK, GST_44100), (PASS, PASS_TWICE), (LOCK, LOCK_TWICE))
PROGRAMS = (*OWN, GST_L16, GST_44100, GST_OPUS, FFMPEG_OPUS)
SDK = "libagora_rtc_sdk.so"
SETTLE_S = 8.0
"""What the processes were forked from has gone by then, and threads keep their places."""
LEAST_CPU_S = 0.005
"""A thread that takes less in a minute is not shown."""

Thread = tuple[str, str]
"""Its process, in words, and its name."""


class Channels:
    """What is seen only of capstand, by program; a value for each round."""

    def __init__(self) -> None:
        self.threads: dict[Thread, list[float]] = {}
        """CPU s per minute of sound."""
        self.dropped: list[float] = []
        self.memory_mb: list[float] = []
        """Of a process into which the SDK is loaded."""


def threads(run: Running) -> dict[Thread, float]:
    found = {}
    for number, pid in enumerate(run.processes(), 1):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        words = f"{number} {name}{', the SDK in it' if machine.has_loaded(pid, SDK) else ''}"
        found.update({(words, thread): cpu for thread, cpu in machine.threads_s(pid).items()})
    return found


def own(channels: Channels, figures: Figures, run: Running, seconds: float) -> None:
    """One of capstand's: waits until each channel has sound, then measures."""
    run.settle(SETTLE_S)
    books, before, frames = run.books(), threads(run), run.card.frames_delivered
    measure(figures, run, seconds)
    after, frames, later = threads(run), run.card.frames_delivered - frames, run.books()
    if later.least_delivered - books.least_delivered < 0.9 * frames:
        raise RuntimeError("a channel was not given all of the sound")
    channels.dropped.append(later.dropped - books.dropped)
    for thread, cpu in after.items():
        took = (cpu - before.get(thread, 0.0)) * 60 * RATE_HZ / frames
        channels.threads.setdefault(thread, []).append(took)
    memory_mb = machine.memory_mb(run.processes())
    channels.memory_mb += [one for pid, one in memory_mb.items() if machine.has_loaded(pid, SDK)]


def other(take: Callable[[], int], figures: Figures, run: Running, seconds: float) -> None:
    time.sleep(SETTLE_S)
    take()
    measure(figures, run, seconds)
    if not take():
        raise RuntimeError("no packet came")


def side_by_side(folder: Path, rounds: int, seconds: float) -> None:
    """Both of a pair at once: what the host does in a moment, it does to both."""
    folder.mkdir()
    cards, rows = Cards(folder / "cards"), []
    for pair in PAIRS:
        cpu: list[list[float]] = [[], []]
        for _ in range(rounds):
            with ExitStack() as together:
                runs = [together.enter_context(Running(one, cards, folder)) for one in pair]
                for run in runs:
                    if run.program in OWN:
                        run.settle(SETTLE_S)
                    run.check()
                began = [(run.cpu_s(), run.card.frames_delivered) for run in runs]
                time.sleep(seconds)
                for found, run, (before_s, frames) in zip(cpu, runs, began, strict=True):
                    run.check()
                    passed = run.card.frames_delivered - frames
                    found.append((run.cpu_s() - before_s) * 60 * RATE_HZ / passed)
        ratios = [two / one for one, two in zip(*cpu, strict=True)]
        if pair[1] in OWN:
            said = f"the second adds {spread([one - 1 for one in ratios])} of the first"
        else:
            said = f"{spread([1 / one for one in ratios])} times theirs"
        rows.append([*(one.name for one in pair), *(spread(one) for one in cpu), said])
    print(f"\n  side by side: both at once, {rounds} rounds of {seconds:g} s")
    show(["program", "beside", "CPU s per minute", "beside", "by round"], rows)


def main(folder: Path, long: bool) -> None:
    rounds, seconds = (7, 30.0) if long else (3, 6.0)
    print(f"CPU from {SETTLE_S:g} s after the first sound in a channel (the others: the start) for "
          f"{seconds:g} s, {rounds} rounds; median (lowest to highest)")  # fmt: skip
    seen = {program.name: Channels() for program in OWN}
    with receiver() as take:

        def once(figures: Figures, run: Running) -> None:
            if run.program in OWN:
                own(seen[run.program.name], figures, run, seconds)
            else:
                other(take, figures, run, seconds)

        found = compare(PROGRAMS, Cards(folder / "cards"), folder, rounds, once)
    table(found)
    print("\n  by thread; 1 is the process that was started")
    rows = [
        [name, *thread, spread(values)]
        for name, one in seen.items()
        for thread, values in one.threads.items()
        if median(values) >= LEAST_CPU_S
    ]
    show(["program", "process", "thread", "CPU s per minute"], rows)
    print("\n  of the channels")
    rows = [[name, spread(one.dropped, 0), spread(one.memory_mb, 1)] for name, one in seen.items()]
    show(["program", "frames dropped", "memory MB of a process with the SDK in it"], rows)
    verdicts(found, seen)
    with receiver():
        side_by_side(folder / "together", rounds, 2 * seconds)


def verdicts(found: dict[str, Figures], seen: dict[str, Channels]) -> None:
    def cpu(name: str) -> list[float]:
        return [] if found[name].trouble else found[name].cpu

    def ratio(words: str, over: list[float], under: list[float], limit: float) -> None:
        by_round = [a / b for a, b in zip(over, under, strict=False)]
        at_most(words, median(by_round) if by_round else None, limit)
        print(f"    (by round: {spread(by_round)})")

    for one, beside in ((PASS, GST_L16), (LOCK, GST_44100)):
        words = f"{one.name}: CPU at most 1.5 times that of {beside.name}"
        ratio(words, cpu(one.name), cpu(beside.name), 1.5)
    for one, two in ((PASS, PASS_TWICE), (LOCK, LOCK_TWICE)):
        adds = [b - a for a, b in zip(cpu(one.name), cpu(two.name), strict=False)]
        ratio(f"{two.name}: the second adds at most 0.6 of the first", adds, cpu(one.name), 0.6)
    ratio("rate lock at most 3 times pass-through", cpu(LOCK.name), cpu(PASS.name), 3)
    for one, most_mb in ((PASS, 30), (LOCK, 40)):
        most = max(seen[one.name].memory_mb, default=None)
        at_most(f"{one.name}: memory of the channel's process", most, most_mb, " MB")
