"""Some of a card's channels, in the order wished: ``pick`` of the configuration.

Nothing is mixed and nothing is converted: samples are copied as they are, by views with strides,
which C walks through. Thread: capture; it keeps nothing.
"""

from typing import Literal

from capstand.config.schema import CaptureConfig

_VIEWS: dict[int, Literal["B", "H", "I"]] = {1: "B", 2: "H", 4: "I"}


class Pick:
    """Takes the channels ``places``, counted from 0, out of frames of ``channels``."""

    def __init__(self, places: tuple[int, ...], channels: int, sample_bytes: int) -> None:
        self._places = places
        self._channels = channels
        self._sample_bytes = sample_bytes

    @classmethod
    def of(cls, capture: CaptureConfig, channels: int) -> "Pick | None":
        """None where all channels of the card are taken, in their order."""
        places = tuple(one - 1 for one in capture.pick or ())
        if not places or places == tuple(range(channels)):
            return None
        return cls(places, channels, capture.audio.sample.size_bytes)

    def put(self, slot: memoryview, samples: bytes | memoryview) -> int:
        """Copies what is picked of whole frames to the beginning of ``slot``; returns how many
        bytes it is."""
        kept, channels, size = len(self._places), self._channels, self._sample_bytes
        length = len(samples) // channels * kept
        view = _VIEWS.get(size)
        if view is not None:
            into, source = slot[:length].cast(view), memoryview(samples).cast(view)
            for at, place in enumerate(self._places):
                into[at::kept] = source[place::channels]
            return length
        for byte in range(size):  # of three bytes there is no view
            for at, place in enumerate(self._places):
                into = slot[at * size + byte : length : kept * size]
                into[:] = memoryview(samples)[place * size + byte :: channels * size]
        return length
