"""What a block costs on its way into a live channel, beside libsoxr alone.

One block of 10 ms at a time, 10 ms apart: hot in a loop it would cost half, because between two
blocks everything else has taken the caches. Cases take turns, a second each, in one process with
the stand-in for Agora's library, on virtual time; what is counted is the CPU time of the call.
"""

import time
from pathlib import Path

import numpy as np
import soxr

from capstand.audio.block import NS_PER_S, AudioFormat, Block, SampleFormat
from capstand.dsp.live import LiveTrack
from capstand.sinks.agora import AgoraChannel
from capstand.sinks.types.agora import AgoraSinkConfig
from tests.agora import StandIn, build, native_advance, native_command, place, run
from tests.bench.programs import RATE_HZ
from tests.bench.table import at_most, show, spread

FRAMES, BLOCK_NS = 480, 10_000_000
BLOCKS = 100
"""In a row, of one case."""
GOAL_US = 120.0
ALONE = "libsoxr alone, by python-soxr"
TRACK = "live track (resample, lock)"
PASSED = "AgoraChannel.write, pass-through"
LOCKED = "AgoraChannel.write, rate lock"
CARD = AudioFormat(RATE_HZ, 2, SampleFormat.S16_LE)
SINK = AgoraSinkConfig("agora", "0123456789abcdef0123456789abcdef", "bench")


class Exact:
    """The pace of a card that runs 20 ppm fast, and is known."""

    ns_per_frame = NS_PER_S / RATE_HZ / (1 + 20e-6)
    drift_ppm = 20.0
    settled = True


class Case:
    """Takes blocks, one after the other, at the time of each."""

    def __init__(self) -> None:
        loud = np.random.default_rng(1).integers(-8000, 8000, (BLOCKS, 2 * FRAMES))
        self.now_ns = NS_PER_S
        self._sound = [one.astype("<i2").tobytes() for one in loud]
        self._number = 0

    def next(self) -> Block:
        samples = self._sound[self._number % BLOCKS]
        block = Block(self._number * FRAMES, FRAMES, self.now_ns, samples, CARD)
        self._number += 1
        self.now_ns += round(FRAMES * Exact.ns_per_frame)
        return block

    def write(self, block: Block) -> None:
        """Nothing: the cost of the clock that measures."""


class Alone(Case):
    def __init__(self) -> None:
        super().__init__()
        self._stream = soxr.ResampleStream(RATE_HZ * 1.07, RATE_HZ, 2, "int16", "HQ", vr=True)
        self._ratio = 1 + Exact.drift_ppm * 1e-6
        self._stream.set_io_ratio(self._ratio, 1.0, 0)
        self._ready = np.frombuffer(self._sound[0], "<i2").reshape(FRAMES, 2).copy()

    def write(self, block: Block) -> None:
        self._stream.set_io_ratio(self._ratio, 1.0, FRAMES)
        self._stream.resample_chunk(self._ready)


class Track(Case):
    def __init__(self) -> None:
        super().__init__()
        self._live = LiveTrack(CARD, RATE_HZ, 2, Exact())

    def write(self, block: Block) -> None:
        self._live.put(block)


class Channel(Case):
    def __init__(self, folder: Path, rate_lock: bool) -> None:
        super().__init__()
        setup = SINK._replace(channel=f"bench-{rate_lock}", rate_lock=rate_lock)
        self._channel = AgoraChannel(setup, CARD, folder, Exact(), now_ns=lambda: self.now_ns)
        self._channel.open()
        assert self._channel._source.wait_joined(20)

    def write(self, block: Block) -> None:
        self._channel.write(block)


def measure(case: Case) -> float:
    """CPU per block, in µs."""
    spent_ns, due_ns = 0, time.monotonic_ns()
    for _ in range(BLOCKS):
        due_ns += BLOCK_NS
        time.sleep(max(0, due_ns - time.monotonic_ns()) / NS_PER_S)
        native_advance(BLOCK_NS)
        block = case.next()
        before_ns = time.thread_time_ns()
        case.write(block)
        spent_ns += time.thread_time_ns() - before_ns
    return spent_ns / BLOCKS / 1000


def rounds(folder: str, count: int) -> dict[str, list[float]]:
    """For each case, µs a block in each round."""
    native_command("set virtual 1")
    cases = {
        ALONE: Alone(),
        TRACK: Track(),
        PASSED: Channel(Path(folder), False),
        LOCKED: Channel(Path(folder), True),
    }
    clock, found = Case(), {name: list[float]() for name in cases}
    for number in range(count + 1):
        clock_us = measure(clock)
        for name, case in cases.items():
            spent_us = measure(case) - clock_us
            if number:  # the first is to warm up
                found[name].append(spent_us)
    return found


def main(folder: Path, long: bool) -> None:
    count = 15 if long else 5
    print(f"48 kHz stereo S16; µs of CPU a block of 10 ms; {count} rounds of {BLOCKS} blocks each, "
          "10 ms apart")  # fmt: skip
    standin = StandIn(place(folder / "sdk", build(folder / "library")), folder)
    standin.env["STANDIN_PCM"] = standin.env["STANDIN_LOG"] = ""
    found = run(rounds, standin, str(folder / "state"), count, timeout_s=count * 10 + 60)
    show(["case", "µs a block"], [[name, spread(figures, 0)] for name, figures in found.items()])
    at_most("live track", sorted(found[TRACK])[count // 2], GOAL_US, " µs")
