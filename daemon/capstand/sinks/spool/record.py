"""A block as it lies on disk: a header (magic, position, frame index, times, run, boot, format) and
the samples, with a check sum each.

A record whose check fails costs itself alone: the next header is searched for. Thread: the owner's.
"""

import os
import stat
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from capstand.audio.block import AudioFormat, Block, SampleFormat

MAGIC = b"CSP1"
_HEAD = struct.Struct("<4sQQqq8s8sIIBBHI")
_CHECK = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CHECK.size
_SEARCH_BYTES = 65_536
_FORMATS = ["S16_LE", "S24_LE", "S24_3LE", "S32_LE", "U8", "S16_BE", "S20_3LE", "FLOAT_LE"]
"""By their numbers on disk, which outlast a change of version: new ones go to the end."""


class Record(NamedTuple):
    """A block and where it stands in the queue; ``run`` says which process captured it."""

    position: int
    run: bytes
    block: Block

    @property
    def end(self) -> int:
        return self.position + self.block.frames

    def after(self, frames: int) -> "Record":
        """The record without its first frames."""
        return self._replace(position=self.position + frames, block=self.block.after(frames))


def packed(record: Record, wall_ns: int, boot: bytes) -> bytes:
    """The bytes of a record; ``wall_ns`` is the wall time of its first frame."""
    block, audio = record.block, record.block.format
    head = _HEAD.pack(
        MAGIC,
        record.position,
        block.first_frame,
        block.captured_at_ns,
        wall_ns,
        record.run,
        boot,
        block.frames,
        audio.rate_hz,
        audio.channels,
        _FORMATS.index(audio.sample.alsa_name),
        0,
        zlib.crc32(block.samples),
    )
    return head + _CHECK.pack(zlib.crc32(head)) + block.samples


class RecordReader:
    """Goes through one segment file, past what is damaged; ``end`` is the owner's, the position
    it has come to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0
        self.end = 0
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO hangs
        self._descriptor = os.open(path, flags)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            self.close()
            raise OSError("not a regular file")

    def next(self, limit: int) -> tuple[Record, int, bytes] | None:
        """The next sound record that lies before ``limit`` as a whole, its wall time and boot."""
        while self.at + HEAD_BYTES <= limit:
            head = os.pread(self._descriptor, HEAD_BYTES, self.at)
            if len(head) < HEAD_BYTES:
                break
            (check,) = _CHECK.unpack_from(head, _HEAD.size)
            if not head.startswith(MAGIC) or zlib.crc32(head[: _HEAD.size]) != check:
                self._search(limit)
                continue
            (_, position, first, at_ns, wall_ns, run, boot, frames, rate_hz, channels, kind, _, crc
             ) = _HEAD.unpack_from(head)  # fmt: skip
            if kind >= len(_FORMATS) or _FORMATS[kind] not in SampleFormat.__members__:
                self._search(limit)  # of a later version
                continue
            audio = AudioFormat(rate_hz, channels, SampleFormat[_FORMATS[kind]])
            size = frames * audio.frame_bytes
            samples = os.pread(self._descriptor, size, self.at + HEAD_BYTES)
            whole = self.at + HEAD_BYTES + size <= limit
            self.at += HEAD_BYTES + size
            if whole and len(samples) == size and zlib.crc32(samples) == crc:
                block = Block(first, frames, at_ns, samples, audio)
                return Record(position, run, block), wall_ns, boot
        return None

    def _search(self, limit: int) -> None:
        """Goes on to the next place where a header may begin."""
        self.at += 1
        while self.at < limit:
            some = os.pread(self._descriptor, _SEARCH_BYTES, self.at)
            found = some.find(MAGIC)
            if found >= 0:
                self.at += found
                return
            self.at += max(1, len(some) - len(MAGIC) + 1)

    def close(self) -> None:
        os.close(self._descriptor)
