"""What the machine is, what it does beside us, and what a process has cost. Linux."""

import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

CORES = len(os.sched_getaffinity(0))


def describe() -> list[str]:
    """The machine's kind in a few lines."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    info = {key.strip(): value.strip() for key, _, value in (one.partition(":") for one in lines)}
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
    """A process and its children, such as those of capstand's sinks."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [pid, *(int(one) for task in tasks for one in (task / "children").read_text().split())]


def cpu_s(pid: int) -> float:
    """Processor time of all threads of a process so far, in seconds, to the nanosecond."""
    return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3) makes it


def peak_mb(pid: int) -> float:
    """The most memory a process has had resident (VmHWM), in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def busy_s() -> float:
    """Processor time that all of the machine has worked, and was robbed of, so far, in seconds."""
    fields = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _wait, irq, soft, steal = fields
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
