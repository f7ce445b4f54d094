"""What each processor costs, beside the same in FFmpeg and GStreamer: processor time for sound that
comes as fast as it is taken, in blocks of equal length, without what passing it on costs.

    ours     the chain's process(), block after block, in a process of its own, as in a daemon
    theirs   the program on a file, less the program on the same file without the filter; FFmpeg's
             frames are cut by asetnsamples, GStreamer's buffers are as large as fdsrc reads

All get the same float32 stereo and give float32 (dither: 16 bits). What a filter needs of another
format (FFmpeg's alimiter: float64, webrtcdsp: 16 bits) it converts, and that is its cost. "paced"
is ours with one block when it is due, as it is in a daemon: caches are cold then.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from capstand.audio.block import NS_PER_S, Shape
from capstand.config.registry import PROCESSORS
from capstand.processing.chain import Chain
from capstand.processing.types.eq import Band
from capstand.processing.types.plugin import Control
from tests.bench.table import goal, show, spread

SHAPE = Shape(48_000, 2)
LENGTHS_MS = (10, 20, 40)
FRAME_BYTES = 8
OWN_S, PACED_BLOCKS = 20.0, 100
PACED = "paced"
GOAL = 2.0
NONE = "-"

RAW = f"-f f32le -ar {SHAPE.rate_hz} -ac {SHAPE.channels}"
FFMPEG = "ffmpeg -nostdin -nostats -loglevel error -filter_threads 1"
PARSE = (
    f"rawaudioparse format=pcm pcm-format=f32le sample-rate={SHAPE.rate_hz} "
    f"num-channels={SHAPE.channels}"
)
DSP = "audioconvert ! webrtcdsp echo-cancel=false high-pass-filter=false"
NS, AGC = "noise-suppression", "gain-control"
GAINS = (100.0, 3.0), (500.0, 3.0), (2000.0, -3.0), (8000.0, 3.0)


class Case(NamedTuple):
    """``ours``: type and keys of each processor; FFmpeg's filters and GStreamer's elements, ""
    where there is none like it."""

    name: str
    ours: Sequence[tuple[str, dict[str, Any]]]
    ffmpeg: str = ""
    gstreamer: str = ""


def _one(name: str, ffmpeg: str = "", gstreamer: str = "", **keys: Any) -> Case:
    return Case(name, [(name.partition(",")[0], keys)], ffmpeg, gstreamer)


def _high_pass(hz: float) -> str:
    return f"audiocheblimit mode=high-pass cutoff={hz} poles=2"


def _limiter(name: str, dbfs: float, gstreamer: str = "") -> Case:
    filters = f"alimiter=limit={dbfs}dB:level=disabled:attack=1.5"
    return _one(f"limiter, {name}", filters, gstreamer, ceiling_dbfs=dbfs)


def _eq() -> Case:
    filters = ",".join(f"equalizer=f={hz}:g={gain}:t=q:w=0.707" for hz, gain in GAINS)
    bands = [f"band{at}::freq={hz} band{at}::gain={gain}" for at, (hz, gain) in enumerate(GAINS)]
    element = f"equalizer-nbands num-bands={len(bands)} {' '.join(bands)}"
    return _one("eq", filters, element, band=tuple(Band("peak", *each) for each in GAINS))


def _resample(hz: int) -> Case:
    element = f"audioresample ! audio/x-raw,rate={hz}"
    return _one(f"resample, {hz} Hz", f"aresample={hz}:resampler=soxr", element, rate_hz=hz)


CASES = (
    _one(
        "channels", "pan=mono|c0=0.5*c0+0.5*c1", "audioconvert ! audio/x-raw,channels=1", mix=True
    ),
    _one("gain", "volume=-6dB", "volume volume=0.5", gain_db=-6.0),
    _one("high-pass", "highpass=f=90", _high_pass(90), cutoff_hz=90.0),
    _one("low-pass", "lowpass=f=8000", "audiocheblimit cutoff=8000 poles=2", cutoff_hz=8000.0),
    _one("dc-block", "highpass=f=5:p=1", _high_pass(5)),
    _eq(),
    _one(
        "compressor",
        "acompressor=threshold=-20dB:ratio=3:attack=10:release=150",
        "audiodynamic mode=compressor characteristics=soft-knee threshold=0.1 ratio=0.33",
    ),
    _limiter("below the ceiling", -0.5, "rglimiter"),
    _limiter("above the ceiling", -20.0),
    _one("delay", "adelay=100|100", "audioecho delay=100000000 intensity=1", delay_ms=100.0),
    _resample(44_100),
    _resample(16_000),
    _one(
        "dither",
        "aresample=osf=s16:dither_method=triangular",
        "audioconvert dithering=tpdf ! audio/x-raw,format=S16LE",
    ),
    _one("noise-suppression, webrtc", "afftdn", f"{DSP} {AGC}=false", engine="webrtc"),
    _one("noise-suppression, speex", "afftdn", f"{DSP} {AGC}=false", engine="speex"),
    _one("agc", "speechnorm", f"{DSP} {NS}=false"),
    _one("vad, mark", "", f"{DSP} {NS}=false {AGC}=false voice-detection=true"),
    _one("vad, gate", "", f"{DSP} {NS}=false {AGC}=false voice-detection=true", mode="gate"),
    _one("plugin", plugin="amp_1181", control=(Control("Amps gain (dB)", -6.0),)),
    Case(
        "channels, high-pass, gain, limiter",
        [
            ("channels", {"swap": True}),
            ("high-pass", {"cutoff_hz": 90.0}),
            ("gain", {"gain_db": 0.5}),
            ("limiter", {"ceiling_dbfs": -0.1}),
        ],
        "pan=stereo|c0=c1|c1=c0,highpass=f=90,volume=0.5dB,alimiter=limit=-0.1dB:level=disabled",
        "audioconvert mix-matrix='<<0.0,1.0>,<1.0,0.0>>' ! "
        f"{_high_pass(90)} ! volume volume=1.06 ! rglimiter",
    ),
)


# Ours, in a process of its own


def _chain(case: Case) -> Chain:
    def failed(words: str) -> None:
        raise RuntimeError(words)

    return Chain([PROCESSORS[kind].schema(kind, **keys) for kind, keys in case.ours], SHAPE, failed)


def _blocks(sound: Any, ms: int) -> list[Any]:
    frames = SHAPE.rate_hz * ms // 1000
    return [sound[at : at + frames] for at in range(0, len(sound) - frames + 1, frames)]


def hot(case: Case, sound: Any, ms: int) -> float:
    """µs a block."""
    chain, blocks = _chain(case), _blocks(sound, ms)
    for block in blocks[:20]:
        chain.process(block.copy(), 0)
    copies = [block.copy() for block in blocks]
    before_ns = time.process_time_ns()
    for number, block in enumerate(copies):
        chain.process(block, number * ms * 1_000_000)
    return (time.process_time_ns() - before_ns) / len(copies) / 1000


def paced(cases: Sequence[Case], sound: Any, ms: int) -> dict[str, float]:
    """µs a block; a block of each in turn: each finds what the others left in the caches."""
    chains, blocks = {case.name: _chain(case) for case in cases}, _blocks(sound, ms)[:PACED_BLOCKS]
    spent_ns = dict.fromkeys(chains, 0)
    due_ns = time.monotonic_ns()
    for number, block in enumerate(blocks):
        due_ns += ms * 1_000_000
        time.sleep(max(0, due_ns - time.monotonic_ns()) / NS_PER_S)
        for name, chain in chains.items():
            one = block.copy()
            before_ns = time.thread_time_ns()
            chain.process(one, due_ns)
            if number:  # the first makes what is made once
                spent_ns[name] += time.thread_time_ns() - before_ns
    return {name: one / (len(blocks) - 1) / 1000 for name, one in spent_ns.items()}


def ours(path: Path) -> dict[str, dict[str, float] | str]:
    """µs a block by case and by length, hot and paced; or why there is none."""
    sound = np.fromfile(path, "<f4", round(OWN_S * SHAPE.rate_hz) * 2).reshape(-1, 2)
    found: dict[str, dict[str, float] | str] = {}
    able = []
    for case in CASES:
        try:
            found[case.name] = {str(ms): hot(case, sound, ms) for ms in LENGTHS_MS}
            able.append(case)
        except (RuntimeError, KeyError, OSError) as error:
            found[case.name] = str(error)
    for ms in LENGTHS_MS:
        for name, us in paced(able, sound, ms).items():
            figures = found[name]
            assert isinstance(figures, dict)
            figures[f"{ms}{PACED}"] = us
    return found


# Theirs


def ffmpeg(filters: str, ms: int, path: Path) -> str:
    cut = f"asetnsamples=n={SHAPE.rate_hz * ms // 1000}:p=0,aformat=sample_fmts=fltp"
    out = "pcm_s16le" if "osf=s16" in filters else "pcm_f32le"
    chain = ",".join(filter(None, (cut, filters)))
    return f"{FFMPEG} {RAW} -i {path} -af '{chain}' -c:a {out} -f null -"


def gstreamer(elements: str, ms: int, path: Path) -> str:
    size = SHAPE.rate_hz * ms // 1000 * FRAME_BYTES
    chain = " ! ".join(filter(None, (f"fdsrc blocksize={size}", PARSE, elements, "fakesink")))
    return f"gst-launch-1.0 -q {chain} < {path}"


Tool = Callable[[str, int, Path], str]


def cpu_s(command: str) -> float:
    """Of a program from its start to its end. Raises RuntimeError where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode or "ERROR" in done.stderr or "erroneous" in done.stderr:
        raise RuntimeError((done.stderr.strip().splitlines() or ["failed"])[-1])
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class Theirs:
    """A program's processor seconds a minute of sound, by case and length."""

    def __init__(self, name: str, tool: Tool, program: str, path: Path, minutes: float) -> None:
        self.name = name
        self._tool, self._path, self._minutes = tool, path, minutes
        self.seconds: dict[tuple[str, int], list[float]] = {}
        self.floor: dict[int, list[float]] = {ms: [] for ms in LENGTHS_MS}
        self.trouble: dict[str, str] = {}
        if shutil.which(program) is None:
            self.trouble = {case.name: f"no {program}" for case in CASES}

    def filters(self, case: Case) -> str:
        return case.ffmpeg if self._tool is ffmpeg else case.gstreamer

    def round(self) -> None:
        for ms in LENGTHS_MS:
            if len(self.trouble) == len(CASES):
                return
            floor = cpu_s(self._tool("", ms, self._path))
            self.floor[ms].append(floor / self._minutes)
            for case in CASES:
                if not self.filters(case) or case.name in self.trouble:
                    continue
                try:
                    spent = cpu_s(self._tool(self.filters(case), ms, self._path)) - floor
                except RuntimeError as error:
                    self.trouble[case.name] = str(error)
                    continue
                minute = max(0.0, spent) / self._minutes  # below 0: too little to be told
                self.seconds.setdefault((case.name, ms), []).append(minute)


# The tables


def _sound(path: Path, seconds: float) -> None:
    """As loud as speech, syllable by syllable, and never above -1 dBFS."""
    dice = np.random.default_rng(1)
    with path.open("wb") as file:
        for second in range(round(seconds)):
            at = second + np.arange(SHAPE.rate_hz) / SHAPE.rate_hz
            level = 0.02 + 0.15 * np.sin(2 * np.pi * 2 * at) ** 2
            part = dice.standard_normal((SHAPE.rate_hz, 2)) * level[:, np.newaxis]
            file.write(np.clip(part, -0.89, 0.89).astype("<f4").tobytes())


def _own_round(path: Path) -> dict[str, dict[str, float] | str]:
    command = [sys.executable, "-m", "tests.bench.processors", str(path)]
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, dict[str, float] | str] = json.loads(done.stdout)
    return found


def _per_minute(us: float, ms: int) -> float:
    return us / 1e6 * 60_000 / ms


def main(folder: Path, long: bool) -> None:
    rounds, seconds = (7, 240.0) if long else (3, 60.0)
    print(f"48 kHz stereo float32, {seconds:g} s of sound, {rounds} rounds in turn; median (lowest "
          "to highest); theirs without passing it on")  # fmt: skip
    path = folder / "sound.f32"
    _sound(path, seconds)
    tools = [
        Theirs("FFmpeg", ffmpeg, "ffmpeg", path, seconds / 60),
        Theirs("GStreamer", gstreamer, "gst-launch-1.0", path, seconds / 60),
    ]
    own: list[dict[str, dict[str, float] | str]] = []
    for _ in range(rounds):
        own.append(_own_round(path))
        for tool in tools:
            tool.round()
    ratios: dict[tuple[str, int], float] = {}
    for ms in LENGTHS_MS:
        _table(ms, own, tools, ratios)
    for tool in tools:
        for name, words in tool.trouble.items():
            print(f"  {tool.name}, {name}: {words}")
    for case in CASES:
        theirs = [f"{tool.name} {tool.filters(case)}" for tool in tools if tool.filters(case)]
        print(f"  {case.name}: {'; '.join(theirs) or 'only ours'}")
    for ms in LENGTHS_MS:
        over = [name for (name, at), ratio in ratios.items() if at == ms and ratio > GOAL]
        of = [name for name, at in ratios if at == ms]
        words = f"{len(of) - len(over)} of {len(of)}" + (f", not {', '.join(over)}" if over else "")
        goal(f"no more than twice the dearer of theirs, {ms} ms", words, not over if of else None)


def _table(
    ms: int,
    own: list[dict[str, dict[str, float] | str]],
    tools: list[Theirs],
    ratios: dict[tuple[str, int], float],
) -> None:
    print(f"\n  blocks of {ms} ms ({SHAPE.rate_hz * ms // 1000} frames)")
    rows = []
    for case in CASES:
        rounds = [one[case.name] for one in own]
        figures = [one for one in rounds if isinstance(one, dict)]
        if not figures:
            rows.append([case.name, str(rounds[0])])
            continue
        us = [one[str(ms)] for one in figures]
        minute = [_per_minute(one, ms) for one in us]
        theirs = [tool.seconds.get((case.name, ms), []) for tool in tools]
        if dearer := max((median(one) for one in theirs if one), default=0.0):
            ratios[case.name, ms] = median(minute) / dearer
        rows.append(
            [
                *(case.name, spread(us, 0), spread([one[f"{ms}{PACED}"] for one in figures], 0)),
                *(spread(minute), *(spread(one) if one else NONE for one in theirs)),
            ]
        )
    floors = [spread(tool.floor[ms]) if tool.floor[ms] else NONE for tool in tools]
    rows.append(["(taken off: passing it on)", NONE, NONE, NONE, *floors])
    head = ["processor", "capstand, µs a block", "paced, µs a block", "CPU s a minute"]
    show(head + [tool.name for tool in tools], rows)


if __name__ == "__main__":
    print(json.dumps(ours(Path(sys.argv[1]))))
