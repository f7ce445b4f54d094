"""The error of timestamps against the truth, for the laws that programs go by today."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.audio.test_clock import Card, Times, card, errors_us, through_clock, through_ffmpeg
from tests.audio.test_clock import through_nothing as through_gstreamer
from tests.bench.table import at_most, show, spread

SETTLED_S = 60.0
LAWS: dict[str, Callable[[Card], Times]] = {
    "capstand": lambda sim: through_clock(sim)[0],
    "FFmpeg's timefilter": through_ffmpeg,
    "GStreamer's (the stamp itself)": through_gstreamer,
    "counting from the first stamp": lambda sim: (
        sim.stamp_ns[0] + np.arange(len(sim.stamp_ns)) * (sim.period * 1e9 / sim.rate_hz)
    ),
}


def main(folder: Path, long: bool) -> None:
    seeds, seconds = (10, 600.0) if long else (3, 240.0)
    print(
        "simulated stamps, late by 80 µs on average (exponential), 1 % by 1 to 8 ms more; card at "
        f"−500 and +500 ppm, {seeds} seeds, {seconds:g} s each, µs from {SETTLED_S:g} s on"
    )
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in LAWS}
    for seed in range(seeds):
        for ppm in (-500.0, 500.0):
            sim = card(ppm, seconds=seconds, seed=seed)
            for name, law in LAWS.items():
                times = law(sim)
                late = times - sim.true_ns
                bias = float(late[round(SETTLED_S * 100) :].mean()) / 1000
                found[name].append((*errors_us(sim, times, SETTLED_S), bias))
    rows = [
        [name, *(spread(column, 1) for column in zip(*values, strict=True))]
        for name, values in found.items()
    ]
    show(["law", "rms µs", "largest µs", "bias µs"], rows)
    rms = {name: max(value[0] for value in values) for name, values in found.items()}
    own = rms["capstand"]
    at_most("rms", own, 20, " µs")
    at_most("largest", max(one[1] for one in found["capstand"]), 100, " µs")
    for name in list(LAWS)[1:3]:
        best = min(one[0] for one in found[name])
        at_most(f"a fifth of {name}, rms", own, best / 5, " µs")
