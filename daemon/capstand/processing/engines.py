"""Which engine does the work of a processor for speech: what was asked for, what is installed, what
the rate allows; and what to install.

Thread: any. Loads nothing that computes, because a configuration is also checked elsewhere.
"""

import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

ENGINES = ("auto", "webrtc", "speex")
WEBRTC_HZ = (16_000, 32_000, 48_000)
LOWEST_HZ, HIGHEST_HZ = 8_000, 48_000
SPEECH = "speech"
"""The extra that brings pywebrtc-audio."""
LIBSPEEXDSP = "libspeexdsp.so.1"
INSTALL_WEBRTC = f"install the extra ({sys.prefix}/bin/pip install 'capstand[{SPEECH}]')"
INSTALL_SPEEX = "install the Debian package (apt install libspeexdsp1)"


def choose(engine: str, rate_hz: int) -> str:
    """ "webrtc" or "speex"; "auto" takes webrtc where it is and can."""
    if engine != "auto":
        return engine
    return "webrtc" if rate_hz in WEBRTC_HZ and has_webrtc() else "speex"


def problems(processor: str, engine: str, rate_hz: int) -> Iterator[tuple[str, str]]:
    """Why ``engine`` cannot work for ``processor``, by the key that is to be changed."""
    rates = ", ".join(map(str, WEBRTC_HZ))
    if not LOWEST_HZ <= rate_hz <= HIGHEST_HZ:
        yield (
            "type",
            f"{processor} takes {LOWEST_HZ} to {HIGHEST_HZ} Hz and gets {rate_hz} Hz; put a "
            "resample in front of it, or set capture.rate_hz = 48000",
        )
    elif engine == "webrtc" and rate_hz not in WEBRTC_HZ:
        yield (
            "engine",
            f'"webrtc" takes {rates} Hz and gets {rate_hz} Hz; take "speex", or put a resample in '
            "front of it",
        )
    elif choose(engine, rate_hz) == "webrtc" and not has_webrtc():
        yield "engine", f"{processor} by webrtc needs pywebrtc-audio; {INSTALL_WEBRTC}"
    elif choose(engine, rate_hz) == "speex" and not libspeexdsp():
        if engine == "auto" and rate_hz in WEBRTC_HZ:
            missing = f"pywebrtc-audio or libspeexdsp; {INSTALL_WEBRTC}, or {INSTALL_SPEEX}"
        else:
            missing = f"libspeexdsp at {rate_hz} Hz; {INSTALL_SPEEX}"
        yield "engine", f"{processor} needs {missing}"


def has_webrtc() -> bool:
    return find_spec("pywebrtc_audio") is not None


@cache
def _load() -> Any:
    import ctypes  # not to check a configuration without speech

    return ctypes.CDLL(LIBSPEEXDSP)


def libspeexdsp() -> Any:
    """None where it is missing, so far."""
    try:
        return _load()
    except OSError:
        return None
