"""For how long threads had to wait for a processor of the machine: what does not move then does not
hang. Linux: sched-stats, the second figure of schedstat."""

from pathlib import Path


def waited_for_cpu_ns(process: int | str | None = "self") -> int:
    """In all, of all its threads, because they wait for each other, too; 0 where the kernel does
    not count that."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[1]) for task in tasks)
    except (OSError, IndexError, ValueError):
        return 0
