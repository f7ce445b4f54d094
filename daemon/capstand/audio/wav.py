"""WAV: its header, and which format holds what.

Sources: RIFF, Multimedia Programming Interface 1.0; EBU Tech 3306 for RF64. Readers take sizes of
2³² − 1 for "to the end of the file".
"""

import struct

from capstand.audio.block import AudioFormat, SampleFormat

PCM, FLOAT = 1, 3
MOST = 2**32 - 1
"""What a size of 32 bits can say, and what it says where nothing is known or RF64 says more."""
DS64_BYTES = 28
IN_WAV = {
    SampleFormat.S16_BE: SampleFormat.S16_LE,
    SampleFormat.S24_LE: SampleFormat.S24_3LE,
    SampleFormat.S20_3LE: SampleFormat.S24_3LE,
}
"""What a WAV cannot hold as it is, and what holds it to the bit."""


def in_wav(audio: AudioFormat) -> AudioFormat:
    """The format in which a WAV holds it."""
    return audio._replace(sample=IN_WAV.get(audio.sample, audio.sample))


def header(audio: AudioFormat, frames: int | None = None, *, large: bool = False) -> bytes:
    """That of so many frames of ``in_wav``, or (None) of as many as come. A ``large`` one keeps
    room for the sizes of RF64, as a JUNK chunk, and is RF64 where they are needed.
    """
    rate_hz, channels, sample = audio
    frame, bits = audio.frame_bytes, 8 * sample.size_bytes
    kind = FLOAT if sample is SampleFormat.FLOAT_LE else PCM
    form = struct.pack("<HHIIHH", kind, channels, rate_hz, rate_hz * frame, frame, bits)
    chunks = _chunk(b"fmt ", form)
    if kind == FLOAT:
        chunks += _chunk(b"fact", _size(frames))
    data_bytes = None if frames is None else frames * frame
    riff_bytes = None
    if data_bytes is not None:
        riff_bytes = 4 + large * (8 + DS64_BYTES) + len(chunks) + 8 + data_bytes + data_bytes % 2
        if large and riff_bytes > MOST:
            ds64 = _chunk(b"ds64", struct.pack("<QQQI", riff_bytes, data_bytes, frames, 0))
            return b"RF64" + _size(None) + b"WAVE" + ds64 + chunks + b"data" + _size(None)
    room = _chunk(b"JUNK", bytes(DS64_BYTES)) if large else b""
    return b"RIFF" + _size(riff_bytes) + b"WAVE" + room + chunks + b"data" + _size(data_bytes)


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + _size(len(content)) + content


def _size(size: int | None) -> bytes:
    return struct.pack("<I", MOST if size is None else min(size, MOST))
