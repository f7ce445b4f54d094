"""A file for libsndfile where nothing can be written anew: on a mount without a cache, for example.

What libsndfile would change later, the sizes in a WAV's header, is left open from the start: as
large as can be, which readers take for "to the end of the file". Thread: the recording's.
"""

import os


class AppendOnlyFile:
    """What python-soundfile asks of a file object; bytes only ever go to the end of it."""

    def __init__(self, descriptor: int) -> None:
        self.error: OSError | None = None
        self._descriptor = descriptor
        self._at = self._end = 0

    def write(self, data: bytes) -> int:
        data = bytes(data)
        fresh = data[max(0, self._end - self._at) :] if self._at < self._end else data
        if not self._end:
            fresh = _open_ended(fresh)
        try:
            written = os.write(self._descriptor, fresh) if fresh else 0
        except OSError as error:
            self.error = error  # an exception would end in the C library
            return 0
        self._end += written
        self._at += len(data) - len(fresh) + written
        return len(data) - len(fresh) + written

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, _: int = -1) -> bytes:
        return b""


def _open_ended(header: bytes) -> bytes:
    sizes = b"\xff" * 4
    at = header.index(b"data") + 4
    return header[:4] + sizes + header[8:at] + sizes + header[at + 4 :]
