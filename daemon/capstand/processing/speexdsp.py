"""libspeexdsp by ctypes: its preprocessor, for noise suppression and for hearing speech.

A library of 80 kB that Debian has on every architecture (libspeexdsp1, BSD), so the way where there
is no wheel of pywebrtc-audio. It works on 16-bit samples, one channel a state, and gives out a
block of 10 ms late. Numbers from its header, ``speex/speex_preprocess.h`` of 1.2.1.

Thread: the chain's, Python's lock released.
"""

from ctypes import POINTER, byref, c_int, c_void_p
from functools import cache
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt

from capstand.processing.engines import libspeexdsp
from capstand.processing.processor import Samples

_DENOISE, _NOISE_DB, _PROBABILITY = 0, 18, 45
_SCALE = 32768.0


class Preprocessor:
    """One channel in blocks of ``frames``; suppresses noise by up to ``depth_db``, 0 for not at
    all. ``speech_probability`` is that of the last block.
    """

    def __init__(self, rate_hz: int, frames: int, depth_db: float) -> None:
        library = _library()
        self._state = library.speex_preprocess_state_init(frames, rate_hz)
        if not self._state:
            raise MemoryError("libspeexdsp")
        finalize(self, library.speex_preprocess_state_destroy, self._state)
        self._run, self._control = library.speex_preprocess_run, library.speex_preprocess_ctl
        self._frames = frames
        self._set(_DENOISE, int(depth_db > 0))
        self.depth(depth_db)

    def depth(self, depth_db: float) -> None:
        if depth_db:
            self._set(_NOISE_DB, -round(depth_db))

    def process(self, block: npt.NDArray[np.int16]) -> None:
        """Works in place; flat, contiguous, a multiple of the block length."""
        at = block.ctypes.data
        for start in range(0, len(block), self._frames):
            self._run(self._state, at + 2 * start)

    @property
    def speech_probability(self) -> float:
        value = c_int()
        self._control(self._state, _PROBABILITY, byref(value))
        return value.value / 100

    def _set(self, request: int, value: int) -> None:
        self._control(self._state, request, byref(c_int(value)))


def to_int16(block: Samples) -> npt.NDArray[np.int16]:
    """(frames, channels) within ±1.0, clipped beyond, to (channels, frames)."""
    scaled = block.T * np.float32(_SCALE)
    np.minimum(scaled, _SCALE - 1, out=scaled)
    np.maximum(scaled, -_SCALE, out=scaled)
    return np.ascontiguousarray(np.rint(scaled), np.int16)


def to_float(block: npt.NDArray[np.int16]) -> Samples:
    """(channels, frames) to (frames, channels)."""
    return np.ascontiguousarray(block.T, np.float32) * np.float32(1 / _SCALE)


@cache
def _library() -> Any:
    library = libspeexdsp()
    assert library is not None, "no libspeexdsp"
    library.speex_preprocess_state_init.argtypes = (c_int, c_int)
    library.speex_preprocess_state_init.restype = c_void_p
    library.speex_preprocess_state_destroy.argtypes = (c_void_p,)
    library.speex_preprocess_state_destroy.restype = None
    library.speex_preprocess_run.argtypes = (c_void_p, c_void_p)
    library.speex_preprocess_ctl.argtypes = (c_void_p, c_int, POINTER(c_int))
    return library
