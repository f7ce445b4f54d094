"""An error that nobody foresaw, wherever it shows: told once with its traceback, never swallowed.

What is told are bugs of ours, of a library, and a process that is short of memory or descriptors.
Threads: any but capture and push, which end of one, and the service with them.
"""

import logging
import traceback

from capstand.text import clean

_told: set[tuple[str, str, int | None]] = set()
_log = logging.getLogger("capstand")


def log_unexpected(where: str, error: BaseException, **fields: object) -> str:
    """Logs the error with its traceback, unless it came from the same line before; returns it in
    one line.
    """
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    at = f" (at {last.filename.rsplit('/', 1)[-1]}:{last.lineno})" if last else ""
    line = f"{type(error).__name__}: {clean.line(error)}{at}"
    key = (type(error).__name__, last.filename if last else "", last.lineno if last else 0)
    if key not in _told:
        _told.add(key)
        text = "".join(traceback.format_exception(error)).rstrip()
        extra = {"fields": fields, "has_traceback": True}
        _log.error("%s: %s\n%s", where, line, text, extra=extra)
    return line
