"""Pulls and plugs the guest's sound cards, and measures how long sound takes to be back. It runs in
the guest, by capstand's own Python, because a question through the agent takes longer than that.

    plug.py replug CYCLES SEED      unbinds snd_aloop and binds it again
    plug.py first                   loads snd_aloop into a machine without sound
    plug.py arrival CARD            waits for a card that somebody else plugs in
    plug.py contended               takes the released device back, which another program has
    plug.py taken SOCKET            the same, from a program that lets go when it is asked
    plug.py renumber CYCLES SEED    loads two cards of one name and a third in another order

It prints one line of JSON.
"""

import grp
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capstand.host.control import ask

SOUND_FRAMES = 4800
PATIENCE_S = 30.0
DRIVERS = Path("/sys/bus/platform/drivers")


WATCHING = Path("/run/plug-watches")
CONTROL = Path("/run/capstand/control.sock")


def status(control: Path = CONTROL) -> dict[str, Any]:
    stream: dict[str, Any] = ask(control, "status", timeout_s=PATIENCE_S)["streams"][0]
    return stream


def delivered() -> int:
    (sink,) = status()["sinks"]
    return int(sink["delivered_frames"])


def sound_after(captured_frames: int, card: str = "Loopback") -> tuple[float, float]:
    """Seconds from the card's nodes being there for the group audio, to the stream's having
    captured frames beyond those, and to their being safe in the file, which is seen to once a
    second. What can have come meanwhile is new sound.
    """
    number = Path(f"/proc/asound/{card}").readlink().name.removeprefix("card")
    device = 1 if card.startswith("Loopback") else 0
    for node in (f"pcmC{number}D{device}c", f"controlC{number}"):
        while not _is_for_audio(Path(f"/dev/snd/{node}")):
            time.sleep(0.005)
    began, wanted = time.monotonic(), captured_frames + SOUND_FRAMES
    until(lambda: int(status()["captured_frames"]) >= wanted, "no sound")
    back_s = time.monotonic() - began
    until(lambda: delivered() >= wanted, "nothing safe in the file")
    return round(back_s, 3), round(time.monotonic() - began, 3)


def until(true: Callable[[], bool], trouble: str, control: Path = CONTROL) -> None:
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > PATIENCE_S:
            raise SystemExit(f"{trouble} within {PATIENCE_S:g} s: {status(control)}")
        time.sleep(0.02)


def _is_for_audio(node: Path) -> bool:
    try:
        return node.stat().st_gid == grp.getgrnam("audio").gr_gid
    except FileNotFoundError:
        return False


def process() -> tuple[int, int, int]:
    """Of the stream's process: its id, its descriptors, its memory in kB."""
    pid = int(status()["pid"])
    folder = Path(f"/proc/{pid}")
    found = re.search(r"VmRSS:\s*(\d+)", (folder / "status").read_text())
    assert found
    return pid, len(list((folder / "fd").iterdir())), int(found[1])


def opened() -> list[str]:
    """The capture devices that the stream's process has open."""
    links = []
    for descriptor in Path(f"/proc/{process()[0]}/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return [link for link in links if link.startswith("/dev/snd/pcm")]


def bind(driver: str, what: str, number: int = 0) -> None:
    (DRIVERS / driver / what).write_text(f"{driver}.{number}")


def unload() -> None:
    """Takes all cards away, whoever listens to them."""
    for driver in ("snd_aloop", "snd_dummy"):
        for device in sorted((DRIVERS / driver).glob(f"{driver}.*")):
            bind(driver, "unbind", int(device.name.rpartition(".")[2]))
    deadline = time.monotonic() + PATIENCE_S
    while subprocess.run(["modprobe", "-r", "snd-aloop", "snd-dummy"], check=False).returncode:
        assert time.monotonic() < deadline, "a module stays in use"
        time.sleep(0.1)


def replug(cycles: int, chance: random.Random) -> dict[str, Any]:
    sounds = []
    before = process()
    for cycle in range(cycles + 1):
        bind("snd_aloop", "unbind")
        time.sleep(0.1 * 200 ** chance.random())  # 0.1 to 20 s, the short ones as often
        captured = status()["captured_frames"]
        bind("snd_aloop", "bind")
        sounds.append(sound_after(captured))
        time.sleep(chance.uniform(0.0, 0.3))
        if cycle == 0:  # what is needed once is there now
            before = process()
    return times(sounds[1:]) | {"before": before, "after": process(), "status": status()}


def times(sounds: list[tuple[float, float]]) -> dict[str, Any]:
    return {"back_s": [back for back, _ in sounds], "safe_s": [safe for _, safe in sounds]}


def arrival(card: str) -> dict[str, Any]:
    captured = status()["captured_frames"]
    WATCHING.touch()
    while not Path(f"/proc/asound/{card}").exists():
        time.sleep(0.01)
    sound = sound_after(captured, card)
    return times([sound]) | {"process": process(), "status": status()}


def contended() -> dict[str, Any]:
    """Seconds until STATUS names the holder, by its unit."""
    began = time.monotonic()
    ask(CONTROL, "resume", stream="mic")
    show = ["systemctl", "show", "capstand", "-p", "StatusText"]
    until(lambda: b"rival.service" in subprocess.check_output(show), "nobody is named")
    return {"named_s": round(time.monotonic() - began, 3)}


def taken(control: Path) -> dict[str, Any]:
    """Seconds until there is new sound."""
    captured = status(control)["captured_frames"]
    began = time.monotonic()
    ask(control, "resume", stream="mic")
    until(lambda: bool(status(control)["captured_frames"] != captured), "not taken", control)
    return {"taken_s": round(time.monotonic() - began, 3)}


def first() -> dict[str, Any]:
    captured = status()["captured_frames"]
    subprocess.run(["modprobe", "snd-aloop"], check=True)
    return times([sound_after(captured)]) | {"opened": opened()}


def renumber(cycles: int, chance: random.Random) -> dict[str, Any]:
    """The daemon wants ``card:Loopback_1,1``; where there is only Loopback, it has to wait."""
    sounds, wrong, waited = [], [], 0
    for _ in range(cycles):
        unload()
        captured = status()["captured_frames"]
        one, two, three = chance.sample(range(8), 3)
        both = chance.random() < 0.7
        loads = [
            ["snd-aloop", f"index={one},{two}", f"enable=1,{int(both)}", "id=Loopback,Loopback"],
            ["snd-dummy", f"index={three}"],
        ]
        chance.shuffle(loads)
        for arguments in loads:
            subprocess.run(["modprobe", *arguments], check=True)
        if both:
            sounds.append(sound_after(captured, "Loopback_1"))
            number = Path("/proc/asound/Loopback_1").readlink().name.removeprefix("card")
            expected = [f"/dev/snd/pcmC{number}D1c"]
        else:
            time.sleep(1.5)
            waited += 1
            expected = []
        if opened() != expected:
            wrong.append((expected, opened(), status()["device"]))
    return times(sounds) | {"wrong": wrong, "waited": waited}


def main() -> None:
    mode, *words = sys.argv[1:]
    if mode in ("replug", "renumber"):
        cycles, seed = map(int, words)
        answer = {"replug": replug, "renumber": renumber}[mode](cycles, random.Random(seed))
    elif mode == "arrival":
        answer = arrival(*words)
    elif mode == "taken":
        answer = taken(Path(*words))
    else:
        answer = {"first": first, "contended": contended}[mode]()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
