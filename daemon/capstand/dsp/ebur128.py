"""libebur128 by ctypes (MIT, 32 kB): whether it is there, and what is called in it. Loads nothing
that computes, because a configuration is also checked elsewhere.

Source: ``ebur128.h`` 1.2.6. Thread: any; a state one at a time, Python's lock released.
"""

import ctypes
from ctypes import POINTER, c_double, c_int, c_size_t, c_uint, c_ulong, c_void_p
from functools import cache
from typing import Any

LIBRARY, PACKAGE = "libebur128.so.1", "libebur128-1"
MISSING = f"loudness needs libebur128; install the Debian package (apt install {PACKAGE})"


def library() -> Any:
    """None where it is missing, so far."""
    try:
        return _load()
    except OSError:
        return None


@cache
def _load() -> Any:
    library = ctypes.CDLL(LIBRARY)
    library.ebur128_init.argtypes = (c_uint, c_ulong, c_int)
    library.ebur128_init.restype = c_void_p
    library.ebur128_destroy.argtypes = (c_void_p,)
    library.ebur128_destroy.restype = None
    library.ebur128_set_channel.argtypes = (c_void_p, c_uint, c_int)
    library.ebur128_add_frames_float.argtypes = (c_void_p, c_void_p, c_size_t)
    library.ebur128_prev_true_peak.argtypes = (c_void_p, c_uint, POINTER(c_double))
    for which in ("momentary", "shortterm", "global"):
        getattr(library, f"ebur128_loudness_{which}").argtypes = (c_void_p, POINTER(c_double))
    return library
