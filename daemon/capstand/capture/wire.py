"""What a program writes that brings its own sound, and what it is told: docs/own-audio.md.

Raw PCM begins anyhow. Sound that describes itself begins with ``MAGIC``: a header, and then blocks,
each with the index of its first frame by the writer's own count and, if it knows it, the time at
which that frame was sampled. All numbers are little-endian. Every length has a bound, so that what
is no sound is told from it by the next header at the latest.

The other way go lines of text, each sent as a whole or not at all.

Pure. Thread: any.
"""

from struct import Struct
from typing import NamedTuple

from capstand.audio.block import AudioFormat

MAGIC = b"CAPSTAND"
VERSION = 1
LIVE = 1
"""A flag: the writer keeps real time itself; without it the daemon's clock paces the writer."""
HEAD = Struct("<8sHHII12s")
"""Magic, version, channels, rate_hz, flags, the format by ALSA's name."""
BLOCK_MAGIC = b"BLCK"
BLOCK = Struct("<4sIqq")
"""Magic, frames, first_frame, time_ns of CLOCK_MONOTONIC, 0 where it is not known."""
MOST_FRAMES = 65_536
LONGEST_LINE = 400
MOST_INDEX = 1 << 62
EARLY_NS = 5_000_000
OLD_NS = 10_000_000_000


class WireError(Exception):
    """What was written is not what can be taken; the text is for the one who wrote it."""


class BlockHead(NamedTuple):
    frames: int
    first_frame: int
    time_ns: int


def head(audio: AudioFormat, *, live: bool) -> bytes:
    name = audio.sample.alsa_name.encode()
    return HEAD.pack(MAGIC, VERSION, audio.channels, audio.rate_hz, LIVE if live else 0, name)


def is_live(raw: bytes, audio: AudioFormat) -> bool:
    """What a header says of the writer's time. Raises WireError where it brings another format."""
    _, version, channels, rate_hz, flags, name = HEAD.unpack(raw)
    if version != VERSION:
        raise WireError(f"the header has version {version}; expected {VERSION}")
    if flags & ~LIVE:
        raise WireError(f"the header has flags {flags:#x}; expected 0 or {LIVE}")
    format_name = name.rstrip(b"\0").decode("ascii", "replace")
    found = f"{rate_hz} Hz, {channels} ch, {format_name}"
    if found != str(audio):
        raise WireError(f"the header says {found}; this stream takes {audio}")
    return bool(flags & LIVE)


def block(frames: int, first_frame: int, time_ns: int = 0) -> bytes:
    """What stands before so many frames."""
    return BLOCK.pack(BLOCK_MAGIC, frames, first_frame, time_ns)


def block_head(raw: bytes, expected: int | None, now_ns: int) -> BlockHead:
    """Raises WireError for what cannot follow where the frame ``expected`` is the next."""
    magic, frames, first_frame, time_ns = BLOCK.unpack(raw)
    if magic != BLOCK_MAGIC:
        raise WireError(f"expected a block and found the bytes {magic.hex(' ')}")
    if not 1 <= frames <= MOST_FRAMES:
        raise WireError(f"a block has {frames} frames; expected 1 to {MOST_FRAMES}")
    if not 0 <= first_frame <= MOST_INDEX:
        raise WireError(f"a block begins with frame {first_frame}; expected 0 to 2^62")
    if expected is not None and first_frame < expected:
        raise WireError(f"a block begins with frame {first_frame} again; expected {expected}")
    if time_ns and not max(0, now_ns - OLD_NS) < time_ns <= now_ns + EARLY_NS:
        raise WireError(
            "a block has a time that is not within the last 10 s; expected ns of CLOCK_MONOTONIC"
        )
    return BlockHead(frames, first_frame, time_ns)


def takes(audio: AudioFormat) -> bytes:
    """The first line: the writer is let in, and what the stream takes."""
    return f"ok {audio.sample.alsa_name} {audio.rate_hz} {audio.channels}\n".encode()


def at(frames: int, *, held: bool) -> bytes:
    """So many frames have become part of the stream; ``held``: the writer is faster than that."""
    return f"at {frames} {'held' if held else 'free'}\n".encode()


def end(frames: int) -> bytes:
    """The last line after all that was written, and how much of it became part of the stream."""
    return f"end {frames}\n".encode()


def refusal(why: str) -> bytes:
    return f"error: {why}".encode()[: LONGEST_LINE - 1] + b"\n"
