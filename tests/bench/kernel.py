"""The programs on a real kernel's PCMs, in the emulated guest of the tests: what they cost there,
how fast they start, and what they lose beside a busy loop on every processor.

Two cards: snd-aloop, into which the tests' player plays a frame counter, so that every lost or
repeated frame shows in the WAV file; and snd-dummy on a high-resolution timer, which is nearest to
hardware. capstand is installed as on any machine and runs with its unit's niceness; the others run
as somebody would start them. Emulation makes processor time dear: the figures are for comparing
the programs of one run with each other, not with other machines.
"""

import json
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tests.bench import machine
from tests.bench.programs import (
    ARECORD,
    ARECORD_FIFO,
    BUFFER_MS,
    CAPTURE,
    FFMPEG,
    FILE,
    FRAME_BYTES,
    GSTREAMER,
    HEADER,
    RATE_HZ,
    frame_numbers,
)
from tests.bench.table import at_most, goal, show, spread
from tests.bench.watch import Order, Seen
from tests.guest import Guest, GuestError

PACKAGES = (
    *("ffmpeg", "darkice", "gstreamer1.0-tools", "gstreamer1.0-alsa"),
    *("gstreamer1.0-plugins-base", "gstreamer1.0-plugins-good"),
)
SOURCE = "/root/capstand"
PLACE = "/var/tmp/bench"
WARM = "capstand --version; arecord --version; ffmpeg -version; gst-inspect-1.0 alsasrc; darkice -h"
"""So that nobody's first start is the one that reads the disk; GStreamer makes its registry."""

SETTLE_S = 4.0
DARKICE = """\
[general]
duration = 0
bufferSecs = 1
reconnect = no
[input]
device = {card}
sampleRate = 48000
bitsPerSample = 16
channel = 2
[file-0]
format = vorbis
bitrateMode = cbr
bitrate = 128
fileName = {folder}/out.ogg
"""


class Program(NamedTuple):
    """``words`` gives the command line for a card and a folder to write to, ``config`` what must
    stand in the file ``config`` there.
    """

    name: str
    words: Callable[[str, Path], list[str]]
    config: Callable[[str, Path], str] = lambda card, folder: ""
    wav: bool = True


def recorder(known: Callable[[str, int, Path], list[str]]) -> Callable[[str, Path], list[str]]:
    """A program that the other sections run as well, with the same words."""
    return lambda card, folder: known(card, BUFFER_MS * RATE_HZ // 1000, folder)


def capstand(card: str, folder: Path) -> list[str]:
    places = f"--config {folder}/config --runtime {folder}/run --state {folder}/state"
    return shlex.split(f"nice -n -10 /usr/local/bin/capstand run --quiet {places}")


def capstand_config(card: str, folder: Path) -> str:
    capture = CAPTURE.format(name="mic", card=card, buffer_ms=BUFFER_MS)
    return capture + FILE.format(folder=folder)


CAPSTAND = Program("capstand, WAV", capstand, capstand_config)
OTHERS = tuple(
    Program(one.name, recorder(one.command)) for one in (ARECORD, ARECORD_FIFO, FFMPEG, GSTREAMER)
)
DARKICE_VORBIS = Program(
    "darkice, Vorbis",
    lambda card, folder: ["darkice", "-c", f"{folder}/config"],
    lambda card, folder: DARKICE.format(card=card, folder=folder),
    wav=False,
)


class Card(NamedTuple):
    """A PCM of the guest, where the kernel shows what was taken of it, and who records from it."""

    words: str
    device: str
    hw_params: str
    programs: tuple[Program, ...]
    counter: bool
    """Whether its frames are numbered, so that a loss shows."""


LOOPBACK = Card(
    "snd-aloop, hw:Loopback,1,0",
    "hw:Loopback,1,0",
    "/proc/asound/Loopback/pcm1c/sub0/hw_params",
    (CAPSTAND, *OTHERS),
    counter=True,
)
DUMMY = Card(
    "snd-dummy with hrtimer=1, hw:Dummy,0",
    "hw:Dummy,0",
    "/proc/asound/Dummy/pcm0c/sub0/hw_params",
    (CAPSTAND, *(other for other in OTHERS if other.name != ARECORD_FIFO.name), DARKICE_VORBIS),
    counter=False,
)


class Figures:
    """One program's on one card, a value for each round."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.quiet: list[tuple[int, int]] = []
        """(frames lost, repeated or silent) while the machine was idle."""
        self.loaded: list[tuple[int, int]] = []
        """The same beside the busy loops."""
        self.torn_s: list[str] = []
        """Where in their files frames are not followed by the next one, in seconds."""
        self.beside: list[float] = []
        """Share of the host's processors that others took meanwhile, in %."""
        self.trouble = ""

    def cpu(self) -> float | None:
        whole = [one["cpu_s_per_minute"] for one in self.seen]
        return median(whole) if whole and not self.trouble else None

    def memory(self) -> float | None:
        return max((one["memory_mb"] for one in self.seen), default=None)

    def shape(self) -> str:
        return ", ".join(sorted({f"{one['period']}/{one['buffer']}" for one in self.seen}))


def account(numbers: npt.NDArray[np.uint32]) -> tuple[int, int]:
    """Frames that lack between the first and the last, and frames repeated or silent. The player
    counts from 1, so 0 is silence that somebody put in.
    """
    heard = numbers[numbers > 0]
    if not len(heard):
        raise ValueError("no sound in the file")
    kept = len(np.unique(heard))
    return int(heard.max()) - int(heard.min()) + 1 - kept, len(numbers) - kept


def once(guest: Guest, card: Card, program: Program, figures: Figures, seconds: float) -> None:
    """One program on one card; its files stay nowhere."""
    place = Path(PLACE)
    copy = guest.share / "out.wav"
    guest.run(f"rm -rf {PLACE} && mkdir -p {PLACE}")
    if config := program.config(card.device, place):
        guest.write_file(f"{PLACE}/config", config)
    order = Order(
        words=program.words(card.device, place),
        folder=PLACE,
        header_bytes=HEADER if program.wav else 0,
        hw_params=card.hw_params,
        settle_s=SETTLE_S,
        quiet_s=seconds,
        loaded_s=seconds if card.counter else 0.0,
        take=f"/mnt/host/{copy.name}" if card.counter else "",
    )
    words = shlex.join(["python3", "-m", "tests.bench.watch", json.dumps(order)])
    began, busy_s, own_s = time.monotonic(), machine.busy_s(), machine.cpu_s(guest.pid)
    seen: Seen = json.loads(guest.run(f"cd {SOURCE} && {words}", timeout_s=300).out)
    busy_s, own_s = machine.busy_s() - busy_s, machine.cpu_s(guest.pid) - own_s
    elapsed_s = time.monotonic() - began
    if "trouble" in seen:
        raise ValueError(seen["trouble"])
    if card.counter:
        numbers = frame_numbers(copy)
        copy.unlink()
        border = seen["quiet_bytes"] // FRAME_BYTES
        # The frame at the border is in both: what lacks just there is lost under load.
        quiet, loaded = account(numbers[:border]), account(numbers[max(0, border - 1) :])
        figures.quiet.append(quiet)
        figures.loaded.append(loaded)
        figures.torn_s += [f"{at / RATE_HZ:.2f}" for at in np.flatnonzero(np.diff(numbers) != 1)]
    figures.seen.append(seen)
    figures.beside.append(max(0.0, busy_s - own_s) / elapsed_s / machine.CORES * 100)


def prepare(guest: Guest) -> None:
    guest.push_source(SOURCE)
    guest.run(f"{SOURCE}/scripts/install", timeout_s=900)
    guest.run("modprobe snd-dummy hrtimer=1")
    guest.run(f"({WARM}) >/dev/null 2>&1", timeout_s=120, check=False)


def costs(card: Card, found: dict[str, Figures]) -> None:
    """The table of what recording took while nothing else ran in the guest."""
    print(f"\n  {card.words}: alone")
    head = ["program", "CPU s per minute", "memory MB", "first frame after s", "for CPU s"]
    head += ["frames lost"] if card.counter else []
    head += ["period/buffer", "others, % of the host"]
    rows = []
    for name, one in found.items():
        if one.trouble or not one.seen:
            rows.append([name, one.trouble or "no round of it ended"])
            continue
        row = [name, spread([seen["cpu_s_per_minute"] for seen in one.seen])]
        row.append(spread([seen["memory_mb"] for seen in one.seen], 1))
        row.append(spread([seen["start_s"] for seen in one.seen if "start_s" in seen]))
        row.append(spread([seen["start_cpu_s"] for seen in one.seen if "start_cpu_s" in seen]))
        if card.counter:
            row.append(spread([lost for lost, _ in one.quiet], 0))
        rows.append([*row, one.shape(), spread(one.beside, 0)])
    show(head, rows)


def losses(card: Card, found: dict[str, Figures], seconds: float) -> None:
    """The table of what lacks in the files beside the busy loops."""
    print(f"\n  {card.words}: {seconds:g} s beside a busy loop on every processor of the guest")
    rows = [
        [name, one.trouble]
        if one.trouble
        else [name, *(spread([pair[at] for pair in one.loaded], 0) for at in (0, 1))]
        for name, one in found.items()
    ]
    show(["program", "frames lost", "repeated or silence put in"], rows)
    for name, one in found.items():
        if one.torn_s:
            print(
                f"  {name}: torn, alone or not, at second {', '.join(one.torn_s[:8])} of the file"
            )


def rounds(guest: Guest, number: int, seconds: float) -> dict[Card, dict[str, Figures]]:
    """Every program on every card, one after another, each round in another order."""
    found = {card: {one.name: Figures() for one in card.programs} for card in (LOOPBACK, DUMMY)}
    for turn in range(number):
        for card, programs in found.items():
            at = turn * 2 % len(card.programs)
            for program in card.programs[at:] + card.programs[:at]:
                figures = programs[program.name]
                if figures.trouble:
                    continue
                try:
                    once(guest, card, program, figures, seconds)
                except (GuestError, ValueError, OSError) as error:
                    figures.trouble = str(error).splitlines()[0]
    return found


def verdicts(found: dict[Card, dict[str, Figures]]) -> None:
    for card, programs in found.items():
        own = programs[CAPSTAND.name].cpu()
        floor = programs[ARECORD.name].cpu()
        at_most(f"CPU at most FFmpeg's, {card.device}", own, programs[FFMPEG.name].cpu(), " s")
        at_most(
            f"CPU at most GStreamer's, {card.device}", own, programs[GSTREAMER.name].cpu(), " s"
        )
        at_most(f"CPU at most twice arecord's, {card.device}", own, floor and 2 * floor, " s")
    programs = found[LOOPBACK]
    at_most("at most 40 MB with a file", programs[CAPSTAND.name].memory(), 40, " MB")
    own_lost, other_lost = (
        [sum(lost for lost, _ in kind) for kind in (programs[name].quiet, programs[name].loaded)]
        for name in (CAPSTAND.name, ARECORD.name)
    )
    for words, own_one, other_one in zip(("alone", "loaded"), own_lost, other_lost, strict=True):
        both = programs[CAPSTAND.name].loaded and programs[ARECORD.name].loaded
        goal(
            f"never more lost than arecord, nothing where it loses nothing, {words}",
            f"{own_one} beside {other_one}" if both else "no figure",
            own_one <= other_one if both else None,
        )


def main(folder: Path, long: bool) -> None:
    number, seconds = (5, 20.0) if long else (2, 4.0)
    print(
        f"kernel PCMs of an emulated machine; CPU from {SETTLE_S:g} s after the first frame for "
        f"{seconds:g} s, {number} rounds; median (lowest to highest)"
    )
    print(f"  48 kHz stereo S16, 10 ms periods and {BUFFER_MS} ms of buffer for all that can ask; "
          "FFmpeg takes the card's smallest period")  # fmt: skip
    with Guest(folder / "guest", PACKAGES) as guest:
        try:
            guest.start(folder / "share")
        except (GuestError, OSError, subprocess.CalledProcessError) as error:
            print(f"  left out: the guest cannot run here: {str(error).splitlines()[0]}")
            return
        prepare(guest)
        shown = guest.run("uname -r; nproc; python3 -V; ffmpeg -version | head -1 | cut -c-30").out
        print(
            f"  guest: {', '.join(shown.splitlines())}; booted in {guest.boot_s:.0f} s", flush=True
        )
        player = guest.compile("player", "asound")
        playing = guest.spawn(f"exec {player} hw:Loopback,0,0 {RATE_HZ} 4")
        found = rounds(guest, number, seconds)
        played = playing.stop()
    for card, programs in found.items():
        costs(card, programs)
    losses(LOOPBACK, found[LOOPBACK], seconds)
    if played.rc:
        print(f"  the player itself was late, so not every loss is a program's: {played.out}")
    verdicts(found)
