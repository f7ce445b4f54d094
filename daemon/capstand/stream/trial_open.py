"""A device whose open hangs is tried by another process.

A library may hang in an open for ever and hold Python's lock, when the device has long been well:
whether it is shows only where somebody else opens it. Then the process that hangs can go.

Thread: main.
"""

from collections.abc import Sequence

from capstand.config.schema import StreamConfig
from capstand.host.backoff import Backoff
from capstand.processes.child import Task
from capstand.processes.page import Doing
from capstand.processes.supervisor import LIMITS_S, Supervisor
from capstand.stream.report import CAN_BE_OPENED

LIMITS = LIMITS_S | {Doing.OPENING: 1.0}
"""The device may be well just behind the beginning of a try; one that needs longer to be opened is
left to the process itself, which has half a minute."""
AGAIN_S = (0.2, 0.5)


class TrialOpen:
    """Tries again and again (``worker.try_open``), until it succeeds or is closed."""

    def __init__(self, config: StreamConfig, modules: Sequence[str]) -> None:
        task = Task("capstand.stream.worker:try_open", (config,), {}, "try", 0)
        self._process = Supervisor(task, (), LIMITS, Backoff(*AGAIN_S), modules)

    def succeeds(self, now_ns: int) -> bool:
        """Looks after the process; whether it could open the device."""
        self._process.poll(now_ns)
        return self._process.detail == CAN_BE_OPENED

    def close(self) -> None:
        self._process.abandon()
        self._process.close()
