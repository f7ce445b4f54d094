"""A playback device without hardware: a real ALSA PCM that keeps what it is given in a file.

`fakeplay.c` is a plug-in of libasound. What it has played a test says by `position`, so time is an
argument; or it plays in real time. A test steers it through a control file that both sides map, so
the player may be this process or another.
"""

import ctypes
import mmap
from collections.abc import Iterable
from pathlib import Path

from tests.fakecard import FORMATS

_CONTROL_BYTES = 4096


class _Control(ctypes.Structure):
    """`struct control` of fakeplay.c, member for member."""

    position: int
    real: int
    suspend: int
    disconnected: int
    open_errno: int
    rate_min_hz: int
    rate_max_hz: int
    channels_min: int
    channels_max: int
    format_mask: int
    buffer_frames: int
    opens: int
    starts: int
    underruns: int
    frames_taken: int
    frames_cut: int
    rate_hz: int
    channels: int
    format: int


_Control._fields_ = [(name, ctypes.c_int64) for name in _Control.__annotations__]


class Speaker:
    """One device, new and unused when constructed; the files in `directory` are its own."""

    device = "speaker"

    def __init__(self, directory: Path, plugin: Path) -> None:
        directory = directory.resolve()
        control, self._out = directory / "speaker.ctl", directory / "speaker.raw"
        with control.open("a+b") as file:
            file.truncate(_CONTROL_BYTES)
            page = mmap.mmap(file.fileno(), _CONTROL_BYTES)
        self.control = _Control.from_buffer(page)
        rc = directory / "asoundrc.speaker"
        rc.write_text(
            f'<confdir:alsa.conf>\npcm_type.fakeplay {{ lib "{plugin.resolve()}" }}\n'
            f'pcm.{self.device} {{ type fakeplay ctl "{control}" out "{self._out}" }}\n'
        )
        self.env = {"ALSA_CONFIG_PATH": str(rc)}
        """What the process that opens the device needs in its environment."""

    @property
    def given(self) -> bytes:
        """All that it was ever given."""
        return self._out.read_bytes() if self._out.exists() else b""

    def restrict(
        self,
        rates: tuple[int, int] = (0, 0),
        channels: tuple[int, int] = (0, 0),
        formats: Iterable[str] = (),
        buffer_frames: int = 0,
    ) -> None:
        """From the next open on allow only these; what is left out is unrestricted."""
        control = self.control
        control.rate_min_hz, control.rate_max_hz = rates
        control.channels_min, control.channels_max = channels
        control.format_mask = sum(1 << FORMATS.index(name) for name in set(formats))
        control.buffer_frames = buffer_frames
