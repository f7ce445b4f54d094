"""From the moment a block's last frame was sampled to where it is handed over: what capstand adds.

First seen from outside, in the daemon with its unit's niceness: the card says when it sampled the
last frame of each 10 ms that a channel's SDK is given, the stand-in for the SDK when it was given
them. So this is capture, hand-over and the channel's own work: the samples are cut and passed to C.
Then from inside, to ``Sink.write`` of a sink of our own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from tests.bench import machine
from tests.bench.programs import (
    CAPTURE,
    FRAME_BYTES,
    PERIOD,
    Cards,
    Program,
    Running,
    agora_sink,
    capstand_run,
    no_agora,
    standin,
    standin_env,
    stress,
)
from tests.bench.table import at_most, show, spread

CHANNEL_CASES = (("alone", "", False), ("all cores busy", "cpu", False), ("busy sink", "", True))
SETTLE_S = 3.0
BUSY = """
import time
_send = agora_audio_pcm_data_sender_send
def agora_audio_pcm_data_sender_send(*given):
    end = time.monotonic() + (0.1 if given[6] == 1 else 0)
    while time.monotonic() < end:
        sum(range(500))
    return _send(*given)
"""
"""Put into the wrapper of the SDK: where the sound is mono, it computes before it sends."""

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


class Heard(NamedTuple):
    """One round of a channel; ``late_us`` is sorted, and ``bare_us`` is that of a bare timer."""

    late_us: list[float]
    missing: int
    """10 ms that the SDK was not given, between the first and the last."""
    bare_us: list[float]
    priority: int
    busy: float


def busy_env(folder: Path) -> dict[str, str]:
    env = standin_env(folder)
    wrapper = standin(folder).folder / "agora/rtc/audio_pcm_data_sender.py"
    wrapper.write_text(wrapper.read_text() + BUSY)
    return env


def channel(cards: Cards, folder: Path, load: str, beside: bool, seconds: float) -> Heard:
    """A channel without rate lock, whose frames say which they are; with ``beside``, a busy one on
    the same stream.
    """
    sinks = agora_sink(False) + (agora_sink(False, "busy") + "channels = 1\n" if beside else "")

    def command(card: str, buffer: int, place: Path) -> list[str]:
        capture = CAPTURE.format(name="mic", card=card, buffer_ms=buffer // 48)
        return ["nice", "-n", "-10", *capstand_run(place, capture + sinks)]

    def env(place: Path) -> dict[str, str]:
        given = busy_env(place) if beside else standin_env(place)
        return {**given, "STANDIN_PCM": str(standin(place).pcm)}

    with Running(Program("capstand, Agora", command, env=env), cards, folder) as run:
        run.settle(SETTLE_S)
        priority = machine.priority(run.processes())
        with stress(load, seconds) if load else nullcontext():
            began_ns, busy = time.monotonic_ns(), machine.busy_s()
            words = [sys.executable, "-m", "tests.bench.timer", str(priority), str(seconds)]
            bare = subprocess.run(words, stdout=subprocess.PIPE, check=True, timeout=seconds + 60)
            run.check()
            elapsed_ns, busy = time.monotonic_ns() - began_ns, machine.busy_s() - busy
        given = [
            pushe
            for pushe in standin(run.folder).pushes()
            if 0 <= pushe.ns - began_ns < elapsed_ns and pushe.ret == 0
        ]
        measured = [one for one in given if one.channels == 2]
        ends = [int(np.frombuffer(one.data[-FRAME_BYTES:], "<u4")[0]) + 1 for one in measured]
        late_us = [
            (one.ns - run.card.time_of(end)) / 1000 for one, end in zip(measured, ends, strict=True)
        ]
    if not measured or (beside and len(given) - len(measured) > 20 * elapsed_ns / 1e9):
        raise RuntimeError("no sound came" if not measured else "the busy sink is not busy")
    return Heard(
        sorted(late_us),
        (ends[-1] - ends[0]) // PERIOD + 1 - len(ends),
        sorted(one / 1000 for one in json.loads(bare.stdout)),
        priority,
        busy * 1e9 / elapsed_ns / machine.CORES * 100,
    )


def channels(cards: Cards, folder: Path, rounds: int, seconds: float) -> None:
    if lacking := no_agora():
        print(f"  a channel: {lacking}")
        return
    print(
        "  last frame of a block sampled → given to a channel's SDK (a stand-in), µs; "
        f"{rounds} rounds of {seconds:g} s in turn; median (lowest to highest) of the rounds"
    )
    found: dict[str, list[Heard]] = {name: [] for name, _, _ in CHANNEL_CASES}
    for _ in range(rounds):
        for name, load, beside in CHANNEL_CASES:
            found[name].append(channel(cards, folder, load, beside, seconds))
    rows, beyond = [], {}
    for name, heard in found.items():
        p99 = [_share(one.late_us, 0.99) for one in heard]
        bare_p99 = [_share(one.bare_us, 0.99) for one in heard]
        beyond[name] = [(a - b) / 1000 for a, b in zip(p99, bare_p99, strict=True)]
        for words, values in (
            ("the SDK", [one.late_us for one in heard]),
            (f"bare timer, FIFO {heard[0].priority}, beside it", [one.bare_us for one in heard]),
        ):
            marks = [[_share(value, share) for value in values] for share in (0.5, 0.99, 1.0)]
            rows.append(
                [
                    name,
                    words,
                    str(sum(map(len, values))),
                    *(spread(mark, 0) for mark in marks),
                    str(sum(one.missing for one in heard)) if words == "the SDK" else "",
                    spread([one.busy for one in heard], 0),
                ]
            )
    head = ["case", "until", "blocks", "p50", "p99", "max", "blocks missing", "machine busy, %"]
    show(head, rows)
    alone_ms = [_share(one.late_us, 0.5) / 1000 for one in found["alone"]]
    at_most("a channel, p50, alone", median(alone_ms), 0.3, " ms")
    for name, later in beyond.items():
        at_most(f"a channel, p99, beyond the bare timer's, {name}", median(later), 0.5, " ms")
        print(f"    (median, lowest and highest of the rounds: {spread(later)} ms)")


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
    cards = Cards(folder / "cards")
    channels(cards, folder, rounds, seconds)
    print(
        "\n  "
        f"last frame of a block sampled → block handed over, µs; {rounds} rounds of {seconds:g} s "
        "in turn, taken together; capture FIFO 70, push FIFO 60, the sink's thread ordinary"
    )
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
