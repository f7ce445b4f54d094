"""What travels: samples of a known format, one period at a time.

Frame indices count what the device produced since the stream began, lost frames included, so the
gap before a block is its ``first_frame`` minus the end of the one before. Times are integer
nanoseconds of CLOCK_MONOTONIC.
"""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

NS_PER_S = 1_000_000_000


class SampleFormat(Enum):
    """ALSA's name and number, bytes per sample in memory, significant bits (of a float those of its
    mantissa). The spool has numbers of its own for them (``sinks/spool/record.py``).
    """

    S16_LE = ("S16_LE", 2, 2, 16)
    S24_LE = ("S24_LE", 6, 4, 24)
    S24_3LE = ("S24_3LE", 32, 3, 24)
    S32_LE = ("S32_LE", 10, 4, 32)
    S16_BE = ("S16_BE", 3, 2, 16)
    S20_3LE = ("S20_3LE", 36, 3, 20)
    FLOAT_LE = ("FLOAT_LE", 14, 4, 24)
    U8 = ("U8", 1, 1, 8)

    def __init__(self, alsa_name: str, alsa_number: int, size_bytes: int, bits: int) -> None:
        self.alsa_name = alsa_name
        self.alsa_number = alsa_number
        self.size_bytes = size_bytes
        self.bits = bits

    def silence(self, samples: int) -> bytes:
        """So many samples of nothing; unsigned ones rest in the middle of their range."""
        return (b"\x80" if self is SampleFormat.U8 else b"\0") * (samples * self.size_bytes)


class AudioFormat(NamedTuple):
    """Interleaved frames of one stream."""

    rate_hz: int
    channels: int
    sample: SampleFormat

    @property
    def frame_bytes(self) -> int:
        return self.channels * self.sample.size_bytes

    def __str__(self) -> str:
        return f"{self.rate_hz} Hz, {self.channels} ch, {self.sample.alsa_name}"


class Shape(NamedTuple):
    """What flows between processors: frames of so many channels at a rate."""

    rate_hz: int
    channels: int


class Block(NamedTuple):
    """Frames that follow each other, a period or more, as a value that is shared and never changed.

    ``samples`` holds ``frames`` interleaved frames of ``format``; ``captured_at_ns`` is when the
    first of them was sampled.
    """

    first_frame: int
    frames: int
    captured_at_ns: int
    samples: bytes
    format: AudioFormat

    @property
    def end_frame(self) -> int:
        """The index of the frame that follows it."""
        return self.first_frame + self.frames

    @property
    def end_ns(self) -> int:
        """When that one was sampled, at the nominal rate."""
        return self.captured_at_ns + self.frames * NS_PER_S // self.format.rate_hz

    def after(self, frames: int) -> "Block":
        """The block without its first ``frames``."""
        return Block(
            self.first_frame + frames,
            self.frames - frames,
            self.captured_at_ns + frames * NS_PER_S // self.format.rate_hz,
            self.samples[frames * self.format.frame_bytes :],
            self.format,
        )


def joined(blocks: Sequence[Block]) -> Block:
    """Blocks that follow each other without a gap, as one."""
    first = blocks[0]
    samples = b"".join([block.samples for block in blocks])
    frames = sum([block.frames for block in blocks])
    return Block(first.first_frame, frames, first.captured_at_ns, samples, first.format)
