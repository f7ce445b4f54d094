"""The kernel's own view of a ``hw:`` capture stream, through the descriptor ALSA handed us.

``sound/asound.h`` is a stable interface. Three of its calls make loss exact: SW_PARAMS with
stop_threshold = boundary lets the stream run on through an overrun, STATUS gives state, both
pointers and their stamp in one call, FORWARD leaves behind what has been overwritten. Sizes and
numbers are those of 64-bit Linux; elsewhere ``usable`` says no and losses are estimated from time.

When the machine itself stops for longer than the buffer (a host that steals its processor), a
driver that asks the card where it is, modulo the buffer, may miss whole turns of it, and the
pointer with it: then the stamps have gone on by whole buffers more than the pointer has, and that
difference is counted too (``missed_wraps.py``). A driver that counts the data it gets
(``follows_data``) misses no turn; what never came is no turn either, and only time can tell of it
(``shortfall.py``).

While this is in use, ``avail()`` and ``htimestamp()`` of libasound must not be called: libasound
still believes in its own stop_threshold and would force an overrun. Thread: capture.
"""

import contextlib
import fcntl
import re
import struct
import time
from pathlib import Path

from capstand.capture.missed_wraps import MissedWraps
from capstand.capture.source import UNKNOWN

SW_PARAMS = 0xC0884113
STATUS = 0x80984120
FORWARD = 0x40084149
DROP = 0x4143
HW_FREE = 0x4112

PREPARED, RUNNING, XRUN, SUSPENDED, DISCONNECTED = 2, 3, 4, 7, 8

_SW_PARAMS = struct.Struct("iII4xQQQQQQQII56x")
_STATUS = struct.Struct("i20xqqQQqQ")
_STATUS_BYTES = 152
_FRAMES = struct.Struct("Q")
_PROTOCOL = 0x02000F
_TSTAMP_ENABLE, _TSTAMP_MONOTONIC = 1, 1


def usable(device: str, descriptor: int, root: Path = Path("/")) -> bool:
    """Whether the descriptor of the PCM ``device`` is the kernel's own and of a known layout."""
    if struct.calcsize("P") != 8 or not re.fullmatch(r"hw:[^{}]*", device):
        return False
    link = (root / f"proc/self/fd/{descriptor}").readlink()
    return re.fullmatch(r"/dev/snd/pcmC\d+D\d+c", str(link)) is not None


class KernelPcm:
    """Pointers, stamps and skips of one running stream.

    After ``status``: ``state``, ``stamp_ns`` (time of the last update of the hardware pointer),
    ``hw_ptr`` and ``appl_ptr`` (frames modulo ``boundary``), ``avail``. ``missed`` grows by frames
    that no pointer shows, because the driver missed turns of the buffer, and by those left behind
    while that is ``ambiguous``, or is ``UNKNOWN``; the reader takes it back to 0.
    """

    def __init__(
        self,
        descriptor: int,
        rate_hz: int,
        period_frames: int,
        buffer_frames: int,
        *,
        follows_data: bool = False,
    ) -> None:
        self._descriptor = descriptor
        self._buffer = buffer_frames
        boundary = buffer_frames
        while boundary * 2 <= 2**63 - 1 - buffer_frames:
            boundary *= 2
        self.boundary = boundary
        self._status = bytearray(_STATUS_BYTES)
        self._frames = bytearray(_FRAMES.size)
        self.state = 0
        self.stamp_ns = 0
        self.appl_ptr = 0
        self.hw_ptr = 0
        self.avail = 0
        self.missed = 0
        self.ambiguous = False
        self._wraps = None if follows_data else MissedWraps(rate_hz, buffer_frames, boundary)
        self.wake_at(period_frames)

    def wake_at(self, frames: int) -> None:
        """Who waits is woken once so many are there. Raises OSError."""
        request = bytearray(
            _SW_PARAMS.pack(
                _TSTAMP_ENABLE,
                1,  # period_step
                0,  # sleep_min
                frames,  # avail_min
                0,  # xfer_align
                1,  # start_threshold
                self.boundary,  # stop_threshold
                0,  # silence_threshold
                0,  # silence_size
                self.boundary,
                _PROTOCOL,
                _TSTAMP_MONOTONIC,
            )
        )
        fcntl.ioctl(self._descriptor, SW_PARAMS, request)

    def status(self) -> None:
        """Asks the kernel. Raises OSError (ENODEV when the card has gone)."""
        asked_ns = time.monotonic_ns()
        fcntl.ioctl(self._descriptor, STATUS, self._status)
        (self.state, seconds, nanoseconds, self.appl_ptr, self.hw_ptr, _, self.avail) = (
            _STATUS.unpack_from(self._status)
        )
        self.stamp_ns = seconds * 1_000_000_000 + nanoseconds
        if self._wraps is not None:
            self._detect_missed_wraps(self._wraps, asked_ns)

    def _detect_missed_wraps(self, wraps: MissedWraps, asked_ns: int) -> None:
        if self.state == RUNNING:
            now_ns = time.monotonic_ns()
            missed = wraps.observe(self.stamp_ns, self.hw_ptr, asked_ns, now_ns)
            self.missed = UNKNOWN if UNKNOWN in (missed, self.missed) else self.missed + missed
        else:
            wraps.forget()
        self.ambiguous = wraps.ambiguous
        if self.ambiguous:
            left = self.skip(self.avail)
            self.appl_ptr = (self.appl_ptr + left) % self.boundary
            self.avail -= left
            self.missed = UNKNOWN if self.missed == UNKNOWN else self.missed + left

    def drop(self) -> None:
        """Stops the stream and throws away what is there. Raises OSError."""
        fcntl.ioctl(self._descriptor, DROP)

    def free_hw(self) -> None:
        """Before libasound closes it: what a card that does not answer keeps waiting for seconds is
        done here, without Python's lock, which pyalsaaudio holds meanwhile."""
        with contextlib.suppress(OSError):
            self.drop()
            fcntl.ioctl(self._descriptor, HW_FREE)

    def skip(self, frames: int) -> int:
        """Leaves behind up to ``frames`` unread frames; returns how many were really left."""
        _FRAMES.pack_into(self._frames, 0, frames)
        fcntl.ioctl(self._descriptor, FORWARD, self._frames)
        left: int = _FRAMES.unpack_from(self._frames)[0]
        return left

    def lapped(self, appl_ptr: int) -> bool:
        """Whether the device has by now overwritten what lay at ``appl_ptr``; after ``status``."""
        return (self.hw_ptr - appl_ptr) % self.boundary > self._buffer
