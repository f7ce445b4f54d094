"""A simulated card, paced by CLOCK_MONOTONIC or by a virtual clock.

The default where a machine has no sound card, and what soak tests run on. It behaves as a card
does: it produces frames at its own rate whether they are read or not, its buffer holds so many,
what is not read in time is lost and counted, its stamps are late. It can be held up, unplugged and
stopped by a schedule, and it knows the true time of every frame (``true_time_ns``), so that every
claim of the clock and the ledger can be checked.

In ``counter`` signal frame n carries n: S16 with two or more channels as low and high 16 bits in
channels 0 and 1 (repeated), wider formats n in every channel.
"""

import errno
import math
import random
from collections.abc import Callable

import numpy as np
import soundfile

from capstand.accounting.stats import Cause
from capstand.audio.block import NS_PER_S, AudioFormat, SampleFormat
from capstand.capture.pick import Pick
from capstand.capture.source import UNKNOWN, NegotiatedParams, Reading
from capstand.capture.time import MonotonicTime, Time
from capstand.capture.types.synthetic import FaultConfig, SyntheticConfig
from capstand.config.schema import CaptureConfig
from capstand.dsp.convert import from_float, from_int32
from capstand.errors import DeviceError

MARGIN_PERIODS = 2
OUTLIER_SHARE = 0.01
OUTLIER_NS = (1_000_000, 8_000_000)


class VirtualTime:
    """Time that passes only by waiting for it: a week in seconds, the same every time."""

    def __init__(self, now_ns: int = NS_PER_S) -> None:
        self.at_ns = now_ns
        self._woken = False

    def now_ns(self) -> int:
        return self.at_ns

    def wait_until(self, at_ns: int) -> bool:
        if self._woken:
            return False
        self.at_ns = max(self.at_ns, at_ns)
        return True

    def wake(self) -> None:
        self._woken = True


class SyntheticSource:
    """A card as ``capture`` asks for it; it grants everything."""

    def __init__(self, capture: CaptureConfig, clock: Time | None = None) -> None:
        self._capture = capture
        self._setup: SyntheticConfig = capture.source or SyntheticConfig()
        self._audio = capture.audio
        channels = capture.least_channels
        self._card_audio = self._audio._replace(channels=channels)
        self._pick = Pick.of(capture, channels)
        frames = capture.period_frames if self._pick else 0
        self._whole = memoryview(bytearray(frames * self._card_audio.frame_bytes))
        self._time: Time = clock or MonotonicTime()
        self._reading = Reading()
        self._reading.edge = True  # its position is never old
        self._random = random.Random(self._setup.seed)
        self._rate = self._audio.rate_hz * (1.0 + self._setup.ppm * 1e-6)
        self._fill: Callable[[memoryview, int, int], None] | None = None
        self._started_ns = 0  # when frame 0 was sampled
        self._still_ns = 0  # how long the card has stood still in all
        self._walked_ns = self._stood_ns = 0  # until when that was added up, and what it came to
        self._read = 0
        self._stopping = False
        self.batch_ms = 0  # it hands over each period at once
        self.wary = False
        self._restarted = False

    def true_time_ns(self, frame: int) -> int:
        """When the card sampled that frame, in truth (as long as it never stood still)."""
        return self._started_ns + self._still_ns + math.ceil(frame * NS_PER_S / self._rate)

    @property
    def read_frame(self) -> int:
        """The card's own count of the next frame to be read."""
        return self._read

    def open(self) -> NegotiatedParams:
        now = self._time.now_ns()
        if not self._started_ns:
            self._started_ns = self._walked_ns = now
        if self._active("unplug", now):
            raise DeviceError("synthetic: the simulated card is unplugged", errno.ENODEV)
        self._still_ns = self._stood_still(now)
        self._fill = self._fill or _signal(self._setup, self._card_audio)
        self._read = self._produced(now)
        self._restarted = False
        capture = self._capture
        return NegotiatedParams(
            "synthetic", self._audio, capture.period_frames, capture.buffer_frames, exact=True
        )

    def restart(self) -> None:
        self._read = self._produced(self._time.now_ns())
        self._restarted = True

    def advice(self) -> str:
        return "it is simulated: its faults say for how long it stands still"

    def close(self) -> None:
        pass

    def wake(self) -> None:
        self._stopping = True
        self._time.wake()

    def read(self, slot: memoryview, timeout_ms: int) -> Reading:
        assert self._fill
        reading = self._reading
        reading.frames = reading.lost = 0
        period = self._capture.period_frames
        deadline = self._time.now_ns() + timeout_ms * 1_000_000
        while True:
            now = self._time.now_ns()
            if self._setup.faults:
                now = self._apply_faults(now, deadline)
            produced = self._produced(now)
            pending = produced - self._read
            if pending >= period:
                break
            due = self.true_time_ns(self._read + period) + 2
            if self._stopping or now >= deadline:
                return reading
            self._time.wait_until(min(due, deadline))
        buffer = self._capture.buffer_frames
        if pending > buffer:
            reading.lost = pending - buffer + MARGIN_PERIODS * period
            reading.cause = Cause.OVERRUN
            self._read += reading.lost
        if self._restarted:
            reading.lost, reading.cause, self._restarted = UNKNOWN, Cause.STALLED, False
        reading.avail = produced - self._read
        reading.stamp_ns = now + self._lateness_ns()
        if self._pick is None:
            self._fill(slot, self._read, period)
        else:
            self._fill(self._whole, self._read, period)
            self._pick.put(slot, self._whole)
        self._read += period
        reading.frames = period
        return reading

    def _produced(self, now: int) -> int:
        return math.floor((now - self._started_ns - self._still_ns) * self._rate / NS_PER_S)

    def _lateness_ns(self) -> int:
        if not self._setup.jitter_us:
            return 0
        late = self._random.expovariate(1.0 / (self._setup.jitter_us * 1000))
        if self._random.random() < OUTLIER_SHARE:
            late += self._random.uniform(*OUTLIER_NS)
        return round(late)

    def _active(self, kind: str, now: int) -> tuple[FaultConfig, int] | None:
        """The fault of that kind now under way, and when it ends."""
        at_s = (now - self._started_ns) / NS_PER_S
        for fault in self._setup.faults:
            since = at_s - fault.at_s
            if fault.kind != kind or since < 0:
                continue
            if fault.every_s:
                since %= fault.every_s
            if since < fault.for_s:
                return fault, now + round((fault.for_s - since) * NS_PER_S) + 1
        return None

    def _stood_still(self, now: int) -> int:
        """For how long the card has stood still in all, in ns, watched or not. Stalls that overlap
        are one: it walks from one's end to the next one's beginning."""
        while self._walked_ns < now:
            at = self._walked_ns
            if held := self._active("stall", at):
                self._walked_ns = min(now, held[1])
                self._stood_ns += self._walked_ns - at
            else:
                self._walked_ns = min(now, self._next_stall(at))
        return self._stood_ns

    def _next_stall(self, now: int) -> int:
        """When the next stall begins; none is under way."""
        at_s, next_s = (now - self._started_ns) / NS_PER_S, math.inf
        for fault in self._setup.faults:
            wait_s = fault.at_s - at_s
            if fault.kind == "stall" and fault.every_s and wait_s <= 0:
                wait_s = fault.every_s - -wait_s % fault.every_s
            if fault.kind == "stall" and wait_s > 0:
                next_s = min(next_s, wait_s)
        return now + 1 + round(min(next_s, 1e9) * NS_PER_S)

    def _apply_faults(self, now: int, deadline: int) -> int:
        """Lives through what the schedule holds for this moment; returns the time afterwards."""
        if self._active("unplug", now):
            raise DeviceError("synthetic: the simulated card was unplugged", errno.ENODEV)
        if held := self._active("overrun", now):
            self._time.wait_until(held[1])
        elif still := self._active("stall", now):
            self._time.wait_until(min(still[1], deadline))
        now = self._time.now_ns()
        self._still_ns = self._stood_still(now)
        return now


def _signal(setup: SyntheticConfig, audio: AudioFormat) -> Callable[[memoryview, int, int], None]:
    """A function that fills a slot with ``count`` frames from frame ``first`` on."""
    if setup.signal == "counter":
        return lambda slot, first, count: _fill_counter(slot, first, count, audio)
    loop = _loop(setup, audio)
    frame_bytes = audio.frame_bytes
    length = len(loop) // frame_bytes
    doubled = memoryview(loop + loop)

    def fill(slot: memoryview, first: int, count: int) -> None:
        at = 0
        while at < count:
            part = min(count - at, length)
            start = (first + at) % length
            slot[at * frame_bytes : (at + part) * frame_bytes] = doubled[
                start * frame_bytes : (start + part) * frame_bytes
            ]
            at += part

    return fill


def _loop(setup: SyntheticConfig, audio: AudioFormat) -> bytes:
    """The frames that a signal repeats: one second, or the whole of a file."""
    if setup.signal == "file":
        return _file_loop(setup.file, audio)
    amplitude = 10.0 ** (setup.level_dbfs / 20.0)
    seconds = np.arange(audio.rate_hz) / audio.rate_hz
    match setup.signal:
        case "tone":
            wave = amplitude * np.sin(2 * np.pi * setup.tone_hz * seconds)
        case "noise":
            wave = amplitude * np.random.default_rng(setup.seed).uniform(-1, 1, audio.rate_hz)
        case _:
            wave = np.zeros(audio.rate_hz)
    return from_float(np.repeat(wave, audio.channels), audio.sample)


def _file_loop(path: str, audio: AudioFormat) -> bytes:
    try:
        with soundfile.SoundFile(path) as file:
            if (file.samplerate, file.channels) != (audio.rate_hz, audio.channels):
                raise DeviceError(
                    f"synthetic: {path} has {file.samplerate} Hz and {file.channels} channels, "
                    f"the stream asks for {audio.rate_hz} Hz and {audio.channels}; set rate_hz "
                    "and channels to the file's",
                    refused=True,
                )
            values = file.read(dtype="int32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise DeviceError(
            f"synthetic: {path} cannot be read as a sound file: {error}", refused=True
        ) from error
    if not len(values):
        raise DeviceError(f"synthetic: {path} holds no sound", refused=True)
    return from_int32(values.reshape(-1), audio.sample)


def _fill_counter(slot: memoryview, first: int, count: int, audio: AudioFormat) -> None:
    index = np.arange(first, first + count, dtype=np.int64)
    if audio.sample is SampleFormat.S16_LE:
        halves = np.stack((index & 0xFFFF, (index >> 16) & 0xFFFF), axis=1).astype("<u2")
        frames = np.resize(halves.T, (audio.channels, count)).T
        slot[: count * audio.frame_bytes] = np.ascontiguousarray(frames).tobytes()
        return
    left = index << (32 - audio.sample.bits)
    wide = np.repeat((left & 0xFFFFFFFF).astype(np.uint32).view(np.int32), audio.channels)
    slot[: count * audio.frame_bytes] = from_int32(wide, audio.sample)
