"""The kernel's own view of a ``hw:`` capture stream, through the descriptor ALSA handed us.

``sound/asound.h`` is a stable interface. Three of its calls make loss exact: SW_PARAMS with
stop_threshold = boundary lets the stream run on through an overrun, STATUS gives state, both
pointers and their stamp in one call, FORWARD leaves behind what has been overwritten. Sizes and
numbers are those of 64-bit Linux; elsewhere ``usable`` says no and losses are estimated from time.

When the machine itself stops for longer than the buffer (a host that steals its processor), the
driver may miss whole turns of the buffer, and the pointer with it: then the stamps have gone on by
whole buffers more than the pointer has, and that difference is counted too.

While this is in use, ``avail()`` and ``htimestamp()`` of libasound must not be called: libasound
still believes in its own stop_threshold and would force an overrun. Thread: capture.
"""

import fcntl
import re
import struct
from pathlib import Path

SW_PARAMS = 0xC0884113
STATUS = 0x80984120
FORWARD = 0x40084149

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


class Turns:
    """Finds whole turns of the buffer that the hardware pointer does not show.

    While pointer and time agree, each look is the reference for the next. When they do not, the
    reference stays until the pointer has caught up: then they agree, or differ by whole buffers. A
    pointer that does not move tells nothing. What fits neither for ``PATIENCE_NS`` was a device
    that stood still; the clock deals with that.
    """

    PATIENCE_NS = 1_000_000_000

    def __init__(self, rate_hz: int, buffer_frames: int, boundary: int) -> None:
        self._frames_per_ns = rate_hz / 1e9
        self._buffer = buffer_frames
        self._tolerance = buffer_frames / 8  # room for the stamp's own error
        self._boundary = boundary
        self._stamp_ns = 0
        self._hw_ptr = 0
        self._last_ptr = 0
        self._odd_ns = 0

    def see(self, stamp_ns: int, hw_ptr: int) -> int:
        """The frames missed, as found by this look at a running stream."""
        if self._stamp_ns == 0:
            self._stamp_ns, self._hw_ptr, self._last_ptr = stamp_ns, hw_ptr, hw_ptr
            return 0
        if hw_ptr == self._last_ptr:
            return 0
        self._last_ptr = hw_ptr
        moved = (hw_ptr - self._hw_ptr) % self._boundary
        lag = (stamp_ns - self._stamp_ns) * self._frames_per_ns - moved
        turns = 0
        if abs(lag) > self._tolerance:
            turns = max(0, round(lag / self._buffer))
            if abs(lag - turns * self._buffer) > self._tolerance:
                self._odd_ns = self._odd_ns or stamp_ns
                if stamp_ns - self._odd_ns < self.PATIENCE_NS:
                    return 0
                turns = 0
        self._stamp_ns, self._hw_ptr, self._odd_ns = stamp_ns, hw_ptr, 0
        return turns * self._buffer

    def forget(self) -> None:
        """The stream does not run: the next look is the first."""
        self._stamp_ns = self._odd_ns = 0


class KernelPcm:
    """Pointers, stamps and skips of one running stream.

    After ``status``: ``state``, ``stamp_ns`` (time of the last update of the hardware pointer),
    ``hw_ptr`` and ``appl_ptr`` (frames modulo ``boundary``), ``avail``. ``missed`` grows by frames
    that no pointer shows, because the driver missed turns of the buffer; the reader takes it back
    to 0.
    """

    def __init__(
        self, descriptor: int, rate_hz: int, period_frames: int, buffer_frames: int
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
        self._turns = Turns(rate_hz, buffer_frames, boundary)
        request = bytearray(
            _SW_PARAMS.pack(
                _TSTAMP_ENABLE,
                1,  # period_step
                0,  # sleep_min
                period_frames,  # avail_min
                0,  # xfer_align
                1,  # start_threshold
                boundary,  # stop_threshold
                0,  # silence_threshold
                0,  # silence_size
                boundary,
                _PROTOCOL,
                _TSTAMP_MONOTONIC,
            )
        )
        fcntl.ioctl(descriptor, SW_PARAMS, request)

    def status(self) -> None:
        """Asks the kernel. Raises OSError (ENODEV when the card has gone)."""
        fcntl.ioctl(self._descriptor, STATUS, self._status)
        (self.state, seconds, nanoseconds, self.appl_ptr, self.hw_ptr, _, self.avail) = (
            _STATUS.unpack_from(self._status)
        )
        self.stamp_ns = seconds * 1_000_000_000 + nanoseconds
        if self.state == RUNNING:
            self.missed += self._turns.see(self.stamp_ns, self.hw_ptr)
        else:
            self._turns.forget()

    def skip(self, frames: int) -> int:
        """Leaves behind up to ``frames`` unread frames; returns how many were really left."""
        before = self.appl_ptr
        _FRAMES.pack_into(self._frames, 0, frames)
        fcntl.ioctl(self._descriptor, FORWARD, self._frames)
        self.status()
        return (self.appl_ptr - before) % self.boundary

    def lapped(self, appl_ptr: int) -> bool:
        """Whether the device has by now overwritten what lay at ``appl_ptr``; after ``status``."""
        return (self.hw_ptr - appl_ptr) % self.boundary > self._buffer


def owner_of(card: str, device: int, root: Path = Path("/")) -> str | None:
    """Who has the capture side of a card open: "arecord (pid 812)"; None when nobody does.

    ``card`` is its number or its id, as /proc/asound knows it.
    """
    folder = root / "proc/asound" / (f"card{card}" if card.isdigit() else card)
    for status in sorted(folder.glob(f"pcm{device}c/sub*/status")):
        try:
            found = re.search(r"owner_pid\s*:\s*(\d+)", status.read_text())
            if found:
                pid = _process_of(root, found[1])
                name = (root / f"proc/{pid}/comm").read_text(errors="replace").strip()
                return f"{name} (pid {pid})"
        except OSError:
            continue
    return None


def _process_of(root: Path, thread: str) -> str:
    """The process a thread belongs to."""
    status = (root / f"proc/{thread}/status").read_text()
    found = re.search(r"^Tgid:\s*(\d+)", status, re.MULTILINE)
    return found[1] if found else thread
