"""Harms the process of stream "other", and measures how long its sound takes to be back. It runs in
the guest, by capstand's own Python, because a question through the agent takes longer than that.

    harm.py kill TIMES SEED        SIGKILL at random moments
    harm.py fault NUMBER SECONDS   the card goes; who opens it hangs (1), or aborts (2), for so long

It prints one line of JSON.
"""

import json
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

from capstand.host.control import ask

CONTROL = Path("/run/capstand/control.sock")
CARD = Path("/var/lib/capstand/fake.ctl")
DISCONNECTED, OPEN_FAULT = 1, 3  # of the card's control file, tests/fakecard/fakecap.c
SOUND_FRAMES = 4800
PATIENCE_S = 60.0


def streams() -> dict[str, dict[str, Any]]:
    answer = ask(CONTROL, "status", timeout_s=PATIENCE_S)
    return {str(one["name"]): one for one in answer["streams"]}


def card(word: int, value: int) -> None:
    with CARD.open("r+b") as file:
        file.seek(8 * word)
        file.write(struct.pack("<q", value))


def sound_after(began: float, captured: int, pid: int) -> float:
    """Seconds until it has captured more than that, by another process than before."""
    while True:
        other = streams()["other"]
        if other["pid"] != pid and other["captured_frames"] > captured + SOUND_FRAMES:
            return round(time.monotonic() - began, 3)
        if time.monotonic() - began > PATIENCE_S:
            raise SystemExit(f"no sound within {PATIENCE_S:g} s: {other}")
        time.sleep(0.02)


def kill(times: int, seed: int) -> list[float]:
    chance, back_s = random.Random(seed), []
    for _ in range(times):
        time.sleep(chance.uniform(1, 3))
        other = streams()["other"]
        began = time.monotonic()
        os.kill(other["pid"], signal.SIGKILL)
        back_s.append(sound_after(began, other["captured_frames"], other["pid"]))
    return back_s


def fault(number: int, seconds: float) -> float:
    card(OPEN_FAULT, number)
    card(DISCONNECTED, 1)
    time.sleep(1)
    card(DISCONNECTED, 0)
    time.sleep(seconds)
    other = streams()["other"]
    card(OPEN_FAULT, 0)
    return sound_after(time.monotonic(), other["captured_frames"], 0)


if __name__ == "__main__":
    what, first, second = sys.argv[1:]
    if what == "kill":
        print(json.dumps(kill(int(first), int(second))))
    else:
        print(json.dumps(fault(int(first), float(second))))
