"""From buffers of any length, rate and format to the exact 10 ms frames the SDK takes.

A frame's presentation time is that of its first sample, in whole ms of CLOCK_MONOTONIC, worked out
from the time and place of the buffer that brought it, also through a resampler. Sound on either
side of a gap does not share a frame where the gap leaves room: what was held of the frame before it
is filled up with silence.

Thread: the one that pushes.
"""

from typing import TYPE_CHECKING, NamedTuple

from capstand.audio.block import NS_PER_S, AudioFormat, SampleFormat

if TYPE_CHECKING:
    from capstand.dsp.resample import Resampler

MS = 1_000_000
FRAMES_PER_S = 100


class SampleBuffer(NamedTuple):
    """Sound that describes itself: ``frames`` interleaved frames in ``samples`` (any buffer).

    ``captured_at_ns`` is when the first was sampled (CLOCK_MONOTONIC), 0 where nobody knows;
    ``discontinuity`` says that sound before it is missing.
    """

    samples: bytes | bytearray | memoryview
    rate_hz: int
    channels: int
    sample: SampleFormat
    frames: int
    captured_at_ns: int = 0
    discontinuity: bool = False


class Frame(NamedTuple):
    """10 ms of interleaved S16."""

    samples: bytes
    pts_ms: int


class Framer:
    """Cuts what is ``put`` into frames of ``rate_hz`` and ``channels`` (1 or 2), S16.

    ``held`` counts frames (of the track) that wait for their 10 ms to be full; ``earlier`` those of
    the last ``put``'s frames that hold only what came before it.
    """

    def __init__(self, rate_hz: int, channels: int) -> None:
        assert rate_hz % FRAMES_PER_S == 0
        self.earlier = 0
        self._rate_hz = rate_hz
        self._channels = channels
        self._frame_bytes = 2 * channels
        self._size = rate_hz // FRAMES_PER_S * self._frame_bytes
        self._held = b""
        self._given = 0  # frames of the track given out or held so far
        self._form: AudioFormat | None = None
        self._converter: _Converter | None = None
        self._taken = 0  # frames put since the form last changed
        self._base = 0  # value of _given then
        self._time_ns = 0  # of the buffer put last, which begins at _time_place in the track
        self._time_place = 0.0
        self._begun_ms = 0  # time of the first of what is held
        self._end_ns = 0  # when the last frame put had ended
        self._before = (0, 0, 0)  # _given, _begun_ms and _end_ns before the last put

    @property
    def held(self) -> int:
        return len(self._held) // self._frame_bytes

    @property
    def held_ms(self) -> float:
        return len(self._held) * 1000 / (self._frame_bytes * self._rate_hz)

    def would_pass(self, samples: bytes, form: AudioFormat) -> bool:
        """Whether ``put`` would give out the same bytes, at the time that they have, and keep
        nothing: who knows that may do without it."""
        return (
            len(samples) == self._size
            and not self._held
            and self._converter is None
            and form == self._form
        )

    def put(self, buffer: SampleBuffer) -> list[Frame]:
        """The frames that are full now, in order. ``buffer`` is copied where it is kept."""
        whole: list[Frame] = []
        self._before = (self._given, self._begun_ms, self._end_ns)
        samples, rate_hz, channels, sample, frames, captured_at_ns, discontinuity = buffer
        form = (rate_hz, channels, sample)
        if form != self._form or (
            discontinuity and captured_at_ns - self._end_ns >= self._room_ns()
        ):
            whole += self.finish()
            self._take_up(AudioFormat(*form))
        self.earlier = len(whole)
        self._time_ns = captured_at_ns
        self._time_place = self._base + self._taken * self._rate_hz / rate_hz
        self._end_ns = captured_at_ns + frames * NS_PER_S // rate_hz
        self._taken += frames
        if isinstance(samples, memoryview):
            samples = samples.cast("B")  # one of 16-bit integers counts those as its length
        if self._converter is not None:
            samples = self._converter.convert(samples)
        if not self._held and len(samples) == self._size:
            frame = Frame(bytes(samples), self._pts_ms(self._given))
            self._given += self._size // self._frame_bytes
            whole.append(frame)
            return whole
        return whole + self._cut(samples) if whole else self._cut(samples)

    def finish(self) -> list[Frame]:
        """The end of the sound: what is inside, the last frame filled up with silence."""
        tail = self._converter.finish() if self._converter is not None else b""
        whole = self._cut(tail) + self._fill_up()
        self._form = self._converter = None
        return whole

    def take_back(self, first: Frame, held: int) -> None:
        """None of the frames that the last ``put`` gave could be used: only the ``held`` frames
        that were there before it are kept; ``first`` begins with them.
        """
        self._given, self._begun_ms, self._end_ns = self._before
        self._held = first.samples[: held * self._frame_bytes]
        self._form = self._converter = None  # what comes next begins a frame of its own

    def drop(self) -> None:
        """Some of the frames that the last ``put`` gave could not be used: what is held behind
        them is dropped too.
        """
        self._held = b""

    def _room_ns(self) -> int:
        """A gap of so much can be filled up to the next frame."""
        # what a resampler still holds may end anywhere in a frame
        held = 0 if self._converter is not None and self._converter.holds else len(self._held)
        return (self._size - held) * NS_PER_S // (self._frame_bytes * self._rate_hz)

    def _take_up(self, form: AudioFormat) -> None:
        self._form, self._taken, self._base = form, 0, self._given
        plain = (self._rate_hz, self._channels, SampleFormat.S16_LE)
        self._converter = None if form == plain else _Converter(form, self._rate_hz, self._channels)

    def _cut(self, samples: bytes | bytearray | memoryview) -> list[Frame]:
        size, each, held = self._size, self._frame_bytes, self._held
        place = self._given - len(held) // each
        pts_ms = self._begun_ms if held else self._pts_ms(place)
        joined, at, step = held + samples, 0, size // each
        last = len(joined) - size
        self._given += len(samples) // each
        whole = []
        while at <= last:
            whole.append(Frame(joined[at : at + size], pts_ms))
            at += size
            place += step
            pts_ms = self._pts_ms(place)
        self._held, self._begun_ms = joined[at:], pts_ms
        return whole

    def _fill_up(self) -> list[Frame]:
        return self._cut(bytes(self._size - len(self._held))) if self._held else []

    def _pts_ms(self, place: int) -> int:
        """The time of frame number ``place`` of those given; 0 where the buffer's is unknown."""
        if self._time_ns == 0:
            return 0
        return round((self._time_ns + (place - self._time_place) * NS_PER_S / self._rate_hz) / MS)


class _Converter:
    """Format, then channels, then rate; numpy is loaded only where something is to be converted."""

    def __init__(self, form: AudioFormat, rate_hz: int, channels: int) -> None:
        self._form = form
        self._channels = channels
        self._resampler: Resampler | None = None
        if form.rate_hz != rate_hz:
            from capstand.dsp import resample

            self._resampler = resample.Resampler(
                form.rate_hz, rate_hz, channels, SampleFormat.FLOAT_LE
            )

    @property
    def holds(self) -> bool:
        """Whether some sound is inside until ``finish``."""
        return self._resampler is not None

    def convert(self, samples: bytes | bytearray | memoryview) -> bytes:
        from capstand.dsp.channels import to_channels
        from capstand.dsp.convert import from_float, to_float32, to_s16

        form, view = self._form, memoryview(samples)
        if self._resampler is None and form.channels == self._channels:
            return to_s16(view, form.sample)
        block = to_channels(
            to_float32(view, form.sample).reshape(-1, form.channels), self._channels
        )
        if self._resampler is None:
            return from_float(block, SampleFormat.S16_LE)
        return _to_s16(self._resampler.process(block.tobytes()))

    def finish(self) -> bytes:
        return b"" if self._resampler is None else _to_s16(self._resampler.finish())


def _to_s16(floats: bytes) -> bytes:
    import numpy as np

    from capstand.dsp.convert import from_float

    return from_float(np.frombuffer(floats, "<f4"), SampleFormat.S16_LE)
