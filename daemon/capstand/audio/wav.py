"""A WAV whose length nobody knows, as programs write it into a pipe.

Source: RIFF, Multimedia Programming Interface 1.0; readers take sizes of 2³² − 1 for "to the end".
"""

import struct

from capstand.audio.block import AudioFormat, SampleFormat

PCM, FLOAT = 1, 3
ENDLESS = 0xFFFFFFFF
IN_WAV = {
    SampleFormat.S16_BE: SampleFormat.S16_LE,
    SampleFormat.S24_LE: SampleFormat.S24_3LE,
    SampleFormat.S20_3LE: SampleFormat.S24_3LE,
}
"""What a WAV cannot hold as it is, and what holds it to the bit."""


def in_wav(audio: AudioFormat) -> AudioFormat:
    """The format in which a WAV holds it."""
    return audio._replace(sample=IN_WAV.get(audio.sample, audio.sample))


def header(audio: AudioFormat) -> bytes:
    kind = FLOAT if audio.sample is SampleFormat.FLOAT_LE else PCM
    frame, bits = audio.frame_bytes, 8 * audio.sample.size_bytes
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", ENDLESS, b"WAVE", b"fmt ", 16, kind),
        *(audio.channels, audio.rate_hz, audio.rate_hz * frame, frame, bits, b"data", ENDLESS),
    )
