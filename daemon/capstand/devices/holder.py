"""Who has a device open, as a person would look it up: program, process, systemd unit.

The kernel names the owner in /proc/asound/card*/pcm*/sub*/status, by the number of the thread that
opened it. A kernel without those files, and an owner that has no entry in our /proc, leave the
descriptors in /proc/*/fd, of which an ordinary user sees only those of their own processes. Whoever
opened the device may since have died and left it to a child, so a descriptor may be found where the
owner is not.

Thread: any; the capture thread comes here only when an open was refused.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from capstand.devices.address import card_number
from capstand.text import clean

LONGEST = 200
CAPTURE, PLAYBACK = "c", "p"
"""A side of a device, as the kernel names it."""
SOUND_SERVERS = ("pipewire", "wireplumber", "pulseaudio", "jackd", "jackdbus")


def holder_of(card: str, device: int, root: Path = Path("/"), *, side: str = CAPTURE) -> str | None:
    """Who has that side open: "arecord (pid 812, session-3.scope)"; None when nobody has, or it
    cannot be seen."""
    number = card_number(card, root)
    if number is None:
        return None
    asound = root / f"proc/asound/card{number}/pcm{device}{side}"
    states = [_read(one) for one in sorted(asound.glob("sub*/status"))]
    for state in states:
        owner = re.search(r"owner_pid\s*:\s*(\d+)", state)
        if owner and (name := process_name(owner[1], root)):
            return name
    if states and all(state.startswith("closed") for state in states):
        return None
    for pid in _who_has(f"/dev/snd/pcmC{number}D{device}{side}", root):
        if name := process_name(pid, root):
            return name
    return None


def process_name(thread: str, root: Path = Path("/")) -> str | None:
    """A process, by one of its threads: "jackd (pid 812, user@1000.service/jack.service)"."""
    tgid = re.search(r"^Tgid:\s*(\d+)", _read(root / f"proc/{thread}/status"), re.MULTILINE)
    pid = tgid[1] if tgid else thread
    command = clean.line(_read(root / f"proc/{pid}/comm").strip(), LONGEST)
    if not command:
        return None
    unit = _unit_of(pid, root)
    shown = f", {clean.line(unit, LONGEST)}" if unit else ""
    return f"{command} (pid {pid}{shown})"


def _unit_of(pid: str, root: Path) -> str | None:
    """The systemd unit: the system's, and below it the user's own where there is one."""
    for line in _read(root / f"proc/{pid}/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers in ("", "name=systemd"):
            units = [one for one in path.split("/") if one.endswith((".service", ".scope"))]
            if units:
                return clean.line("/".join(dict.fromkeys((units[0], units[-1]))))
    return None


def _who_has(node: str, root: Path) -> Iterator[str]:
    for folder in (root / "proc").glob("[0-9]*"):
        try:
            if any(str(one.readlink()) == node for one in (folder / "fd").iterdir()):
                yield folder.name
        except OSError:
            continue  # another user's, or gone


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
