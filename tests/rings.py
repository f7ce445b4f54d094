"""A reader of a ring in the process that writes it."""

import os

from capstand.audio.block import AudioFormat
from capstand.audio.ring import Reader, Ring


def reader_of(ring: Ring, audio: AudioFormat, keep: int = 1) -> Reader:
    descriptor = ring.open_for_reading()
    try:
        return Reader(descriptor, audio, keep)
    finally:
        os.close(descriptor)
