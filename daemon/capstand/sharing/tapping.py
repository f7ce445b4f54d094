"""``capstand tap``, the daemon's side: who may listen is handed a stream's ring.

The descriptor is open for reading only, and the memory cannot be opened for writing by other users
(``audio/ring.py``). The daemon keeps nothing of a tap: who reads how fast, and whether it still
does, it never learns.

Thread: main.
"""

import fcntl
import os
from collections.abc import Mapping, Sequence
from typing import Any

from capstand.errors import CapstandError
from capstand.host.control import Handed
from capstand.host.peer import Peer
from capstand.sharing.order import allowed, named, shown
from capstand.stream.chaining import Heard

INPUTS = ("captured", "processed")


def tap(request: Mapping[str, Any], peer: Peer, streams: Sequence[Heard]) -> Handed:
    """The format of the stream that is asked for, and its ring. Raises CapstandError for one who
    may not, and OSError."""
    allowed(peer, "tap")
    stream = named(request, streams)
    config = stream.config
    input_ = request.get("input") or config.usual_input
    if input_ not in INPUTS:
        raise CapstandError(f"{shown(input_)} is no input; expected {' or '.join(INPUTS)}")
    if input_ == "processed" and not config.process:
        raise CapstandError(f"{stream.name} has no [[stream.process]]; its sound is as captured")
    audio = config.processed_audio if input_ == "processed" else config.capture.audio
    descriptor = stream.tapped(input_).open_for_reading()
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
        os.close(descriptor)
        raise CapstandError("a stream cannot be tapped here: the daemon sees no /proc")
    answer = {
        "stream": stream.name,
        "rate_hz": audio.rate_hz,
        "channels": audio.channels,
        "format": audio.sample.alsa_name,
    }
    return Handed(answer, descriptor)
