"""What a push costs: capstand's calls beside the bare wrapper's, in one process, alternating.

    python -m tests.agora.bench            CPU and latency per push, with and without a busy thread
    python -m tests.agora.bench --day      memory over a simulated day of 8.64 million pushes

The native library is the stand-in, on a virtual clock that goes on 10 ms with each push, so only
the way to it is measured: Python, ctypes and the copy the stand-in makes no record of.
"""

import argparse
import gc
import importlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from capstand.agora import CustomAudioSource, SampleBuffer
from capstand.audio.block import SampleFormat
from tests.agora import StandIn, build, native_advance, native_command, place, run

APP_ID = "0123456789abcdef0123456789abcdef"
ROUNDS, PUSHES = 7, 3000
DAY = 8_640_000
TEN_MS = 10_000_000


def joined(folder: str) -> tuple[CustomAudioSource, Any, list[int]]:
    """A source in a channel, its connection, and the clock both sides go by."""
    source = CustomAudioSource(APP_ID, Path(folder))
    source.set_external_audio_source(True, 48000, 2)
    native_command("set virtual 1")
    source.join_channel("", "studio")
    connection: Any = source._connection
    clock = [time.monotonic_ns()]
    connection._now_ns = lambda: clock[0]
    return source, connection, clock


def compare(folder: str) -> dict[str, Any]:
    source, connection, clock = joined(folder)
    wrapper = connection._connection._conn
    samples = bytes(1920)
    buffer = SampleBuffer(samples, 48000, 2, SampleFormat.S16_LE, 480, 1)
    wide = SampleBuffer(bytes(3840), 48000, 2, SampleFormat.S32_LE, 480, 1)
    calls: dict[str, Callable[[], object]] = {
        "wrapper: push_audio_pcm_data": lambda: wrapper.push_audio_pcm_data(
            bytearray(samples), 48000, 2, 1
        ),
        "capstand: raw data": lambda: source.push_external_audio_frame_raw_data(samples, 0, 1),
        "capstand: sample buffer": lambda: source.push_external_audio_frame_sample_buffer(buffer),
        "capstand: sample buffer, S32": lambda: source.push_external_audio_frame_sample_buffer(
            wide
        ),
    }
    found: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for beside, busy in (("alone", False), ("beside a busy Python thread", True)):
        found[beside] = {name: [] for name in calls}
        with busy_thread(busy):
            for _ in range(ROUNDS):
                for name, call in calls.items():
                    found[beside][name].append(measure(call, clock))
    source.leave_channel()
    return found


def measure(call: Callable[[], object], clock: list[int]) -> tuple[float, float, float]:
    """CPU per push, median and p99 latency, in µs."""
    taken = []
    for _ in range(PUSHES):
        clock[0] += TEN_MS
        native_advance(TEN_MS)
        before, cpu_before = time.perf_counter_ns(), time.thread_time_ns()
        call()
        cpu = time.thread_time_ns() - cpu_before
        taken.append((time.perf_counter_ns() - before, cpu))
    latencies = sorted(one for one, _ in taken)
    cpu_us = sum(one for _, one in taken) / PUSHES / 1000
    return cpu_us, latencies[PUSHES // 2] / 1000, latencies[PUSHES * 99 // 100] / 1000


@contextmanager
def busy_thread(wanted: bool) -> Iterator[None]:
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            sum(range(1000))

    thread = threading.Thread(target=work)
    if wanted:
        sys.setswitchinterval(0.0001)  # as the daemon does
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if wanted:
            thread.join()


def day(folder: str) -> list[tuple[float, int, int]]:
    """Hour, resident kB and allocated blocks, every two hours."""
    source, _, clock = joined(folder)
    buffer = SampleBuffer(bytes(1920), 48000, 2, SampleFormat.S16_LE, 480, 1)
    seen = []
    for number in range(DAY + 1):
        if number % (DAY // 12) == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen.append((number / 360_000, pages * 4, sys.getallocatedblocks()))
        clock[0] += TEN_MS
        native_advance(TEN_MS)
        source.push_external_audio_frame_sample_buffer(buffer)
    source.leave_channel()
    return seen


def main() -> None:
    own = importlib.import_module("tests.agora.bench")  # run() needs functions by their place
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--day", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        standin = StandIn(place(folder / "sdk", build(folder / "library")), folder)
        standin.env["STANDIN_PCM"] = standin.env["STANDIN_LOG"] = ""
        if chosen.day:
            for hour, kb, blocks in run(own.day, standin, str(folder / "state"), timeout_s=3600):
                print(f"{hour:5.1f} h  {kb:7d} kB  {blocks:7d} blocks")
            return
        found = run(own.compare, standin, str(folder / "state"), timeout_s=600)
        print("µs per push of 10 ms, 48 kHz stereo: median of rounds (lowest to highest)")
        for beside, rows in found.items():
            print(beside)
            for call, rounds in rows.items():
                cells = [
                    f"{median(column):7.1f} ({min(column):.1f} to {max(column):.1f})"
                    for column in zip(*rounds, strict=True)
                ]
                print(f"  {call:30}  CPU {cells[0]}  p50 {cells[1]}  p99 {cells[2]}")


if __name__ == "__main__":
    main()
