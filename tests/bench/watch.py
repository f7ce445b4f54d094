"""Watches one program record, from beside it: what `kernel` runs in the guest.

    python3 -m tests.bench.watch ORDER      ORDER and the answer are JSON: Order, Seen

Needs nothing but Python's own library. The program is started, waited for until it has sound in its
file, left alone for a while, and then watched for some seconds, and for some more beside one busy
loop on every processor.
"""

import json
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TypedDict

from tests.bench import machine

PATIENCE_S = 30.0
STOP_S = 20.0
BUSY = ["sh", "-c", "while :; do :; done"]


class Order(TypedDict):
    """What to run and for how long."""

    words: list[str]
    folder: str
    """Where the program writes."""
    header_bytes: int
    """A longer WAV file has sound in it; 0 where the program writes no WAV file."""
    hw_params: str
    """The file in /proc/asound that has the period and the buffer the program took."""
    settle_s: float
    quiet_s: float
    loaded_s: float
    take: str
    """Where a copy of the WAV file goes in the end, or empty."""


class Seen(TypedDict, total=False):
    """What was seen: ``trouble`` alone, or all the rest; the start only where a WAV file is."""

    trouble: str
    start_s: float
    start_cpu_s: float
    period: int
    buffer: int
    cpu_s_per_minute: float
    memory_mb: float
    quiet_bytes: int
    """How long the file was when the busy loops began."""


def sound_file(folder: Path) -> Path | None:
    """The program's file, under whatever name it has now."""
    names = [*folder.glob("*.wav"), *folder.glob("*.wav.part")]
    return names[0] if names else None


def check(process: subprocess.Popen[bytes], log: Path) -> None:
    """Raises RuntimeError when the program has ended by itself."""
    if process.poll() is not None:
        said = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        raise RuntimeError(f"ended with {process.returncode}; it said: {said[-1]}")


def stop(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def size(folder: Path) -> int:
    file = sound_file(folder)
    return file.stat().st_size if file is not None else 0


def cpu(process: subprocess.Popen[bytes]) -> float:
    """Processor time of all the program's processes so far, in seconds."""
    return sum(machine.cpu_s(one) for one in machine.family(process.pid))


def look(order: Order) -> Seen:
    """Runs the program to its end; raises RuntimeError when it ends too early."""
    folder = Path(order["folder"])
    log = folder / "log"
    seen = Seen()
    with ExitStack() as ending, log.open("wb") as told:
        began = time.monotonic()
        process = subprocess.Popen(
            order["words"], stdin=subprocess.DEVNULL, stdout=told, stderr=told
        )
        ending.callback(stop, process, signal.SIGINT)
        while order["header_bytes"] and "start_s" not in seen:
            check(process, log)
            now = time.monotonic() - began
            if size(folder) > order["header_bytes"]:
                seen["start_s"], seen["start_cpu_s"] = now, cpu(process)
            elif now > PATIENCE_S:
                raise RuntimeError(f"no sound in the file after {PATIENCE_S:g} s")
            time.sleep(0.005)
        time.sleep(order["settle_s"])

        check(process, log)
        shape = dict(
            line.split(": ", 1)
            for line in Path(order["hw_params"]).read_text().splitlines()
            if ": " in line
        )
        if "period_size" not in shape:
            raise RuntimeError("runs, but does not hold the card")
        seen["period"], seen["buffer"] = int(shape["period_size"]), int(shape["buffer_size"])
        at, cpu_s = time.monotonic(), cpu(process)
        time.sleep(order["quiet_s"])
        check(process, log)
        cpu_s, elapsed_s = cpu(process) - cpu_s, time.monotonic() - at
        seen["cpu_s_per_minute"] = cpu_s * 60 / elapsed_s
        seen["quiet_bytes"] = size(folder)

        for _ in range(machine.CORES if order["loaded_s"] else 0):
            ending.callback(stop, subprocess.Popen(BUSY), signal.SIGKILL)
        time.sleep(order["loaded_s"])
        check(process, log)
        seen["memory_mb"] = sum(machine.memory_mb(machine.family(process.pid)).values())
    file = sound_file(folder)
    if order["take"] and file is not None:
        Path(order["take"]).write_bytes(file.read_bytes())
    return seen


def main() -> None:
    order: Order = json.loads(sys.argv[1])
    try:
        seen = look(order)
    except (RuntimeError, OSError) as error:
        seen = Seen(trouble=str(error))
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
