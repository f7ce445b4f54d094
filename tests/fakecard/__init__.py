"""A capture card without hardware: a real ALSA PCM whose sound is its own frame counter.

Theory: `fakecap.c` is a plug-in of libasound. Its clock numbers every frame and frame n sounds as
n, so whatever a reader holds says by itself which frames it got, and every jump is a loss:

    sum of jumps in all that was read == frames_lost

This holds over overruns, drop() and reopening, because the card's clock runs on while nobody reads.
A test steers the card through a control file that both sides map, so the reader may be this process
or another; what a test writes takes effect in the plug-in's next callback. With `virtual()` frames
come only when the test says so.

    card = FakeCard(tmp_path)
    monkeypatch.setenv("ALSA_CONFIG_PATH", card.env["ALSA_CONFIG_PATH"])
    pcm = alsaaudio.PCM(alsaaudio.PCM_CAPTURE, device=card.device, ...)
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

FORMATS = ("S16_LE", "S24_LE", "S24_3LE", "S32_LE", "S16_BE", "S20_3LE", "FLOAT_LE", "U8")

_FOLDER = Path(__file__).parent
_CONTROL_BYTES = 4096
_OVERRUN, _SUSPEND = 1, 2
_COUNTER_BITS = dict(zip(FORMATS, (16, 24, 24, 32, 16, 24, 24, 8), strict=True))
_SAMPLE_BYTES = dict(zip(FORMATS, (2, 4, 3, 4, 2, 3, 4, 1), strict=True))


class _Control(ctypes.Structure):
    """`struct control` of fakecap.c, member for member."""

    command: int
    disconnected: int
    open_errno: int
    open_fault: int
    stalled: int
    io_errors: int
    granularity_frames: int
    virtual_on: int
    virtual_frames: int
    rate_min_hz: int
    rate_max_hz: int
    channels_min: int
    channels_max: int
    format_mask: int
    period_frames: int
    buffer_frames: int
    extra_descriptors: int
    ppm: float
    changed_ns: int
    opens: int
    refusals: int
    starts: int
    overruns: int
    frames_delivered: int
    frames_lost: int
    next_frame: int
    position_frames: int
    rate_hz: int
    anchor_ns: int
    anchor_frames: float
    frames_per_ns: float


_TYPES: dict[str, type[ctypes.c_int64] | type[ctypes.c_double]] = {
    "int": ctypes.c_int64,
    "float": ctypes.c_double,
}
_Control._fields_ = [(name, _TYPES[kind]) for name, kind in _Control.__annotations__.items()]


def missing() -> str | None:
    """Name what building the plug-in lacks on this machine, or None."""
    if shutil.which("gcc") is None:
        return "gcc"
    probe = subprocess.run(
        ["gcc", "-E", "-x", "c", "-"],
        input="#include <alsa/asoundlib.h>\n",
        text=True,
        capture_output=True,
        check=False,
    )
    return None if probe.returncode == 0 else "alsa/asoundlib.h (libasound2-dev)"


def build(directory: Path, name: str = "fakecap", kind: str = "pcm") -> Path:
    """Compile a plug-in into `directory` unless a current one is there; return its path."""
    source = _FOLDER / f"{name}.c"
    library = directory.resolve() / f"libasound_module_{kind}_{name}.so"
    if library.exists() and library.stat().st_mtime_ns >= source.stat().st_mtime_ns:
        return library
    fresh = library.with_suffix(f".{os.getpid()}")
    flags = ["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-DPIC"]
    done = subprocess.run(
        ["gcc", *flags, "-o", str(fresh), str(source), "-lasound", "-lm"],
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{source.name} does not compile:\n{done.stderr}")
    fresh.replace(library)
    return library


class FakeCard:
    """One card, new and unused when constructed; the files in `directory` are its own.

    Cards of different names in one directory share one asoundrc and may be open at once.
    `plugin` is what build() returned; without it the plug-in is built into `directory`.
    Construct a card only while no PCM of its name is open.
    """

    def __init__(self, directory: Path, name: str = "fake", plugin: Path | None = None) -> None:
        directory = directory.resolve()
        library = build(directory) if plugin is None else plugin.resolve()
        self.device = name
        """The PCM's name, for `alsaaudio.PCM(device=...)`."""
        path = directory / f"{name}.ctl"
        with path.open("a+b") as file:
            file.truncate(_CONTROL_BYTES)
            page = mmap.mmap(file.fileno(), _CONTROL_BYTES)
        page[:] = bytes(_CONTROL_BYTES)
        self._control = _Control.from_buffer(page)
        self.env = {"ALSA_CONFIG_PATH": str(_write_asoundrc(directory, library))}
        """What the process that opens the card needs in its environment."""

    # Faults

    def overrun(self) -> None:
        """Overrun once, as soon as the stream runs; what was unread is lost."""
        self._control.command = _OVERRUN

    def suspend(self) -> None:
        """Suspend once, as soon as the stream runs, like a machine that went to sleep."""
        self._control.command = _SUSPEND

    def disconnect(self) -> None:
        """Pull the plug: an open stream dies, opening fails with ENODEV until reconnect()."""
        self._control.disconnected = 1

    def reconnect(self) -> None:
        """Plug the card in again; a stream that died has to be closed and opened."""
        self._control.disconnected = 0

    def open_error(self, errno: int) -> None:
        """Refuse to open with this errno; 0 ends it."""
        self._control.open_errno = errno

    def open_fault(self, fault: str = "") -> None:
        """Who opens it from now on "hangs" for ever, or "aborts" as by an assertion of libasound;
        "" ends it for those that come later."""
        self._control.open_fault = ("", "hangs", "aborts").index(fault)

    def stall(self, stalled: bool = True, until: str = "") -> None:
        """Stop the card's clock, without any error, or let it go on from where it stood.

        `until` "start" or "open": it goes on by itself when the stream is next started, or opened.
        """
        self._control.changed_ns = time.monotonic_ns()
        self._control.stalled = {"": int(stalled), "start": 2, "open": 3}[until]

    def io_error(self, count: int = 1) -> None:
        """Fail so many reads with EIO, as a card does whose driver has lost it."""
        self._control.io_errors = count

    # Clock

    @property
    def ppm(self) -> float:
        """How much faster than CLOCK_MONOTONIC the card runs; setting it steps no position."""
        return self._control.ppm

    @ppm.setter
    def ppm(self, ppm: float) -> None:
        self._control.changed_ns = time.monotonic_ns()
        self._control.ppm = ppm

    @property
    def granularity(self) -> int:
        """By how many frames at a time the position moves ("batch" device); 0 means 1."""
        return self._control.granularity_frames

    @granularity.setter
    def granularity(self, frames: int) -> None:
        self._control.granularity_frames = frames

    def virtual(self, position: int | None) -> None:
        """Put the card's clock to this frame and hold it there; None lets it run by itself again.

        The clock never goes back: a position below the present one is the present one.
        """
        if position is None:
            self._control.changed_ns = time.monotonic_ns()
            self._control.virtual_on = 0
        else:
            self._control.virtual_frames = position
            if not self._control.virtual_on:
                self._control.changed_ns = time.monotonic_ns()
                self._control.virtual_on = 1

    @property
    def position(self) -> int:
        """The card's clock in frames, as of the plug-in's last callback."""
        return self._control.position_frames

    def time_of(self, frame: int) -> float:
        """When the card's clock came to this frame, in ns of CLOCK_MONOTONIC; since then it must
        have run at one speed.
        """
        control = self._control
        return control.anchor_ns + (frame - control.anchor_frames) / control.frames_per_ns

    # Abilities

    def restrict(
        self,
        rates: tuple[int, int] = (0, 0),
        channels: tuple[int, int] = (0, 0),
        formats: Iterable[str] = (),
    ) -> None:
        """From the next open on allow only these: rates in Hz and channels from min to max.

        What is left out is unrestricted: 8000..768000 Hz, 1..32 channels, all FORMATS.
        """
        mask = sum(1 << FORMATS.index(name) for name in set(formats))
        self._control.rate_min_hz, self._control.rate_max_hz = rates
        self._control.channels_min, self._control.channels_max = channels
        self._control.format_mask = mask

    def grant(self, period_frames: int = 0, buffer_frames: int = 0) -> None:
        """From the next open on have only this period and buffer; 0 is any. S16, two channels."""
        self._control.period_frames, self._control.buffer_frames = period_frames, buffer_frames

    def describe(self, descriptors: int) -> None:
        """From now on have so many poll descriptors; only the first of them tells of frames.

        Whoever does not hand back all of them, in their order, is ended by SIGABRT.
        """
        self._control.extra_descriptors = descriptors - 1

    # Counters, since construction

    @property
    def opens(self) -> int:
        """Opens that succeeded."""
        return self._control.opens

    @property
    def refusals(self) -> int:
        """Opens that the card refused."""
        return self._control.refusals

    @property
    def starts(self) -> int:
        """Starts of the stream, the first one and each after an overrun, a drop() or an open."""
        return self._control.starts

    @property
    def overruns(self) -> int:
        """Overruns, commanded ones and those of a slow reader."""
        return self._control.overruns

    @property
    def frames_delivered(self) -> int:
        """Frames handed to readers."""
        return self._control.frames_delivered

    @property
    def frames_lost(self) -> int:
        """Frames between the last one read and the next start, booked at that start."""
        return self._control.frames_lost


def counter(data: bytes, format: str, channels: int) -> npt.NDArray[np.int64]:
    """Read the frame numbers out of captured bytes, one per frame.

    S16_LE of two and more channels and S32 carry 32 bits, S24 24, S16_LE mono 16; the others carry
    the bytes of the number, whatever those mean as sound. The first number is
    what the sound says, the others are unwrapped from it: right as long as no jump exceeds half
    the counter's range.
    """
    raw = np.frombuffer(data, np.uint8).reshape(-1, channels, _SAMPLE_BYTES[format])
    bits = _COUNTER_BITS[format]
    octets = raw[:, 0, : bits // 8]
    if format == "S16_LE" and channels > 1:
        bits, octets = 32, raw[:, :2].reshape(-1, 4)
    shifts = 8 * np.arange(bits // 8, dtype=np.int64)
    numbers: npt.NDArray[np.int64] = (octets.astype(np.int64) << shifts).sum(axis=1, dtype=np.int64)
    half = 1 << (bits - 1)
    steps = (np.diff(numbers) + half) % (2 * half) - half
    numbers[1:] = numbers[:1] + np.cumsum(steps)
    return numbers


def breaks(counter: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """List the jumps as (position of the frame after it, frames missing or, below 0, repeated)."""
    jumps = np.diff(counter) - 1
    return [(int(at) + 1, int(jumps[at])) for at in np.flatnonzero(jumps)]


def _write_asoundrc(directory: Path, library: Path) -> Path:
    """Describe every card here; by rename, as libasound tells a changed file by its inode."""
    path = directory / "asoundrc"
    lines = ["<confdir:alsa.conf>", f'pcm_type.fakecap {{ lib "{library}" }}']
    for control in sorted(directory.glob("*.ctl")):
        lines.append(f'pcm.{control.stem} {{ type fakecap ctl "{control}" }}')
    fresh = path.with_suffix(".new")
    fresh.write_text("\n".join(lines) + "\n")
    fresh.replace(path)
    return path
