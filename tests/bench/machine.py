"""What the machine is, what it does beside us, and what a process has cost. Linux."""

import contextlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

CORES = len(os.sched_getaffinity(0))
IN_MEMORY = ("/dev/", "/memfd:", "/SYSV")
"""Mapped files of no disk: what the kernel counts as shared memory."""


def describe() -> list[str]:
    """The machine's kind in a few lines."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    model = info.get("model name") or info.get("Model") or platform.machine()
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    speed = f"governor {governor.read_text().strip()}" if governor.exists() else "no governor seen"
    virtual = "virtualised" if "hypervisor" in info.get("flags", "") else "no hypervisor seen"
    if shutil.which("systemd-detect-virt"):
        done = subprocess.run(
            ["systemd-detect-virt", "--vm"], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            virtual = f"virtualised ({done.stdout.strip()})"
    load = " ".join(f"{one:.2f}" for one in os.getloadavg())
    memory_kb = Path("/proc/meminfo").read_text().split()[1]
    return [
        f"machine: {model}, {CORES} cores, {int(memory_kb) / 1e6:.0f} GB, {virtual}, {speed}",
        f"system:  Linux {platform.release()} {platform.machine()}, Python "
        f"{platform.python_version()}, {'root' if os.geteuid() == 0 else 'no root: no FIFO'}",
        f"load at the start: {load}",
    ]


def family(pid: int) -> list[int]:
    """A process and all that descend from it and live, such as those of capstand's sinks."""
    found = [pid]
    for one in found:  # it grows meanwhile
        with contextlib.suppress(OSError):  # ended meanwhile
            tasks = sorted(Path(f"/proc/{one}/task").iterdir())
            found += [int(it) for task in tasks for it in (task / "children").read_text().split()]
    return found


def cpu_s(pid: int) -> float:
    """Processor time of all threads of a process so far, in seconds, to the nanosecond."""
    return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3) makes it


def threads_s(pid: int) -> dict[str, float]:
    """The same by thread, under the thread's name, of those that live."""
    found: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            name = (task / "comm").read_text().strip()
            ns = int((task / "schedstat").read_text().split()[0])
            found[name] = found.get(name, 0.0) + ns / 1e9
    return found


def priority(pids: Iterable[int]) -> int:
    """The highest real-time priority of all their threads; 0 where all are ordinary."""
    tasks = [int(task.name) for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    return max(os.sched_getparam(task).sched_priority for task in tasks)


def has_loaded(pid: int, library: str) -> bool:
    """Whether a process has mapped a file of that name."""
    return f"/{library}\n" in Path(f"/proc/{pid}/maps").read_text()


def memory_mb(pids: Sequence[int]) -> dict[int, float]:
    """The proportional set size of each of a program's processes, as if no other program ran, in
    MB.

    The kernel's own figure is the lower the more others use the same libraries, so what is mapped
    of files is shared out here, among the processes given: each file's part once, as much of it as
    the process has that has most.
    """
    kb = dict.fromkeys(pids, 0.0)
    held: dict[tuple[str, ...], dict[int, int]] = {}
    for pid in pids:
        part: tuple[str, ...] = ()
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            key, *fields = line.split()
            if not key.endswith(":"):  # addresses, permissions, offset, device, inode, path
                path = fields[4] if len(fields) > 4 else ""
                part = (path, fields[1]) if path.startswith("/") else ()
                if path.startswith(IN_MEMORY):
                    part = ()
            elif part and key == "Rss:":
                found = held.setdefault(part, {})
                found[pid] = found.get(pid, 0) + int(fields[0])
            elif part and key == "Anonymous:":
                held[part][pid] -= int(fields[0])
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                kb[pid] += int(line.split()[1])
    for found in held.values():
        for pid, own in found.items():
            kb[pid] += own * max(found.values()) / max(1, sum(found.values()))
    return {pid: one * 1024 / 1e6 for pid, one in kb.items()}


def busy_s() -> float:
    """Processor time that all of the machine has worked, and was robbed of, so far, in seconds."""
    fields = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _wait, irq, soft, steal = fields
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
