"""One FLAC, by libsndfile. Thread: the recording's."""

import contextlib
import os

from capstand.audio.block import AudioFormat, SampleFormat

_LENGTH = 2**36 - 1  # the bits for it at the end of a field of STREAMINFO
_LENGTH_AT, _LENGTH_END = 21, 26


class FlacFile:
    """A new file behind ``descriptor``, which stays open; ``found`` are the frames that its header
    speaks of. What libsndfile raises is a RuntimeError that only says that the system failed; the
    file ends with the last whole block then.
    """

    def __init__(self, descriptor: int, audio: AudioFormat) -> None:
        self.frames = self.found = 0
        self.frame_bytes = audio.channels * ((audio.sample.bits + 7) // 8)
        self._descriptor = descriptor
        self._sample = audio.sample
        import soundfile  # 2 MB that a WAV does without

        self._file = soundfile.SoundFile(
            descriptor,
            "w",
            samplerate=audio.rate_hz,
            channels=audio.channels,
            subtype=subtype(audio.sample),
            format="FLAC",
            closefd=False,
        )

    def write(self, samples: bytes, frames: int) -> None:
        match self._sample:
            case SampleFormat.S16_LE:
                self._file.buffer_write(samples, "int16")
            case SampleFormat.S32_LE:
                self._file.buffer_write(samples, "int32")
            case packed:
                from capstand.dsp.convert import to_int32

                self._file.buffer_write(to_int32(samples, packed).tobytes(), "int32")
        self.frames += frames
        if not self.found:  # a length of 0 is one that is not known, which not everybody reads
            self.flush()

    def flush(self) -> int:
        """Writes the number of complete frames into STREAMINFO, which libFLAC does only at the end,
        and not after an error; returns it.

        Readers that want a length (libsndfile) can read the file then. The encoder holds back the
        last, incomplete block.
        """
        head = os.pread(self._descriptor, _LENGTH_END, 0)
        if len(head) < _LENGTH_END:
            return 0
        self.found = int.from_bytes(head[_LENGTH_AT:], "big") & _LENGTH
        if self.found != self.frames:
            block_frames = int.from_bytes(head[8:10], "big")
            whole = max(0, self.frames - 1) // block_frames * block_frames
            _set_length(self._descriptor, whole)
            self.found = whole
        return self.found

    def close(self) -> int:
        """Returns how many frames are in the file."""
        with contextlib.suppress(RuntimeError):
            self._file.close()
        return self.flush()


def end_flac(descriptor: int, frames: int) -> None:
    """Makes a file that was cut off say so many frames, and no MD5 of the sound."""
    _set_length(descriptor, frames)
    os.pwrite(descriptor, bytes(16), _LENGTH_END)


def _set_length(descriptor: int, frames: int) -> None:
    size = _LENGTH_END - _LENGTH_AT
    field = int.from_bytes(os.pread(descriptor, size, _LENGTH_AT), "big")
    os.pwrite(descriptor, (field & ~_LENGTH | frames).to_bytes(size, "big"), _LENGTH_AT)


def subtype(sample: SampleFormat) -> str:
    """How libsndfile calls what holds these samples without loss."""
    if sample is SampleFormat.FLOAT_LE:
        return "FLOAT"  # which FLAC has not
    return {8: "PCM_S8", 16: "PCM_16", 20: "PCM_24", 24: "PCM_24", 32: "PCM_32"}[sample.bits]
