"""Judging by time only where the machine itself was on time.

Beside the test a process of ordinary priority sleeps 5 ms, over and over, and keeps how late it
woke at worst. Where that was later than a judgement can bear, the judgement is not made, and the
table at the end of the run names the test and tells how late the bare timer was. Only durations are
judged so, never whether something is right.
"""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.figures import figure

NOT_JUDGED = "not judged: "
_TIMER = """
import os, select, time
worst = 0.0
while True:
    before = time.monotonic()
    if not select.select([0], [], [], 0.005)[0]:
        worst = max(worst, time.monotonic() - before - 0.005)
    elif os.read(0, 1):
        os.write(1, f"{worst}\\n".encode())
    else:
        break
"""


class BareTimer:
    def __init__(self, test: str) -> None:
        self._test = test
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _TIMER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.late_s()  # runs

    def late_s(self) -> float:
        """How late it woke at worst, until now."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(b"?")
        return float(self._process.stdout.readline())

    def judges(self, what: str, bearable_s: float) -> bool:
        """Whether a duration that may be too long by so much can be judged; if not, it is told."""
        late_s = self.late_s()
        if late_s > bearable_s:
            figure(
                f"{NOT_JUDGED}{self._test}: {what}",
                f"a bare timer was {late_s * 1e3:.0f} ms late, more than {bearable_s * 1e3:.0f}",
            )
        return late_s <= bearable_s

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture
def bare_timer(request: pytest.FixtureRequest) -> Iterator[BareTimer]:
    timer = BareTimer(request.node.name)
    yield timer
    timer.close()
