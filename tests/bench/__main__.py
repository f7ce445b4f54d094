"""The sections one after another; an error of one does not end the others."""

import argparse
import importlib
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.bench import machine

SECTIONS = {
    "cost": "what a recording costs",
    "live": "what a live channel costs",
    "track": "a block on its way into a live channel",
    "latency": "hand-over to a sink",
    "load": "loss on a loaded machine",
    "start": "exec to first frame",
    "clock": "timestamps against the truth",
    "processors": "what each processor costs",
    "chain": "what a chain costs in a daemon",
    "scale": "many streams in one daemon",
    "day": "a day of drift",
    "week": "a week of faults",
    "kernel": "cost, start and loss on a real kernel's cards, emulated",
}
NAMED_ONLY = ("kernel",)
"""Minutes by itself, and once as many to make its machine: only when named, or with --long."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "section", nargs="*", help=f"of {', '.join(SECTIONS)} (default: all but kernel)"
    )
    parser.add_argument("--long", action="store_true", help="more and longer rounds")
    chosen = parser.parse_args()
    if unknown := [one for one in chosen.section if one not in SECTIONS]:
        parser.error(f"unknown section {unknown[0]}; expected one of {', '.join(SECTIONS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no program is left running
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed has its bytecode
    print("\n".join(machine.describe()))
    print("programs read fake cards in user space (kernel: the kernel's): 48 kHz stereo S16, 10 ms "
          "periods, 500 ms buffer")  # fmt: skip
    shared = Path("/dev/shm")
    usual = [section for section in SECTIONS if chosen.long or section not in NAMED_ONLY]
    for name in chosen.section or usual:
        print(f"\n== {name}: {SECTIONS[name]}", flush=True)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
            try:
                importlib.import_module(f"tests.bench.{name}").main(Path(folder), chosen.long)
            except Exception:  # noqa: BLE001  whatever it was: the next section can do without
                print(f"  this section failed:\n{traceback.format_exc()}")
        print(f"  ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
