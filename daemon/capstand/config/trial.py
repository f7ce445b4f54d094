"""Whether what another distribution brings can be imported, tried in a process of its own first.

An import runs whatever its author wrote: native code may crash in it, it may end the process or
never end itself. Main would go with it, and all streams with main. What only raises is left to the
import that follows: it says more.
"""

import contextlib
import os
import sys

LIMIT_S, REAP_S = 10.0, 1.0
CAME, RAISED = 41, 42
"""How the trial ends; with any other status the import ended it."""
TRIAL = f"""
import importlib, os, sys
try:
    importlib.import_module(sys.argv[1])
except (Exception, SystemExit):
    os._exit({RAISED})
os._exit({CAME})
"""


def trouble_with(module: str) -> str | None:
    """Why it must not be imported here; None where that is safe, or was done before."""
    if module in sys.modules:
        return None
    import signal
    import subprocess  # for who has such a type

    from capstand.host import orphans
    from capstand.processes.forkserver import environment

    try:
        trial = subprocess.Popen(
            [sys.executable, "-s", "-P", "-c", TRIAL, module],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
    except OSError as error:
        return f"no process to try its import in: {error.strerror}"
    try:
        status = trial.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"its import did not end within {LIMIT_S:g} s"
    finally:  # with what it has started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(trial.pid, signal.SIGKILL)
        trial.wait()
        orphans.reap(trial.pid, REAP_S)
    if status in (CAME, RAISED):
        return None
    if status >= 0:
        return f"its import ended the process with status {status}"
    try:
        return f"its import was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"its import was ended by signal {-status}"
