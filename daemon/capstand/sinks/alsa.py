"""A stream played into an ALSA device, on time: a snd-aloop, from which every other program records
the same microphone, or a loudspeaker.

What is held is the latency, ``latency_ms`` from the capture of a block's end to when the device
plays that end: how late a block comes plus what the device's buffer holds with it. A late wake-up
makes the one larger by what it makes the other smaller, so it does not show. The device's clock is
not the card's. Either the rate lock resamples so that the latency stays (``dsp/live.py``); or,
without it, samples go out to the bit until the latency is half of ``latency_ms`` off, and then
it is put right at once, by silence or by dropping blocks. Both are in the books: what the device
got is what was delivered plus what was inserted.

A gap is played as silence of its length. A device that ran dry (an underrun) begins anew, with as
much silence as makes the latency right. Sound that comes too late for it is dropped.

pyalsaaudio, non-blocking: the buffer never gets full, so nothing waits. Its ``write`` prepares a
PCM that was dropped, and starts it with the first frames that it takes, so the silence and the
block go out by one call; in an underrun it takes nothing and returns -32.

Thread: main, in a process of its own (``push.py``).
"""

import errno
import logging
import math
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import alsaaudio

from capstand.audio.block import NS_PER_S, AudioFormat, Block, SampleFormat
from capstand.audio.clock import Pace
from capstand.audio.continuity import Continuity
from capstand.devices import address, holder, identity, libasound
from capstand.devices.libasound import Abilities
from capstand.errors import SinkBusy, SinkError
from capstand.sinks.sink import Sink
from capstand.sinks.types.alsa import AlsaSinkConfig as AlsaSetup

if TYPE_CHECKING:
    from capstand.dsp.live import LiveTrack

RUNNING, XRUN, SUSPENDED, DISCONNECTED = 3, 4, 7, 8
"""States of a PCM, of sound/asound.h."""
PERIOD_MS = 10.0
END_MS = 15.0
PLAYED_S = 2.5
"""So long it is waited for at the end that the device has played what it has."""
STILL_NS = 5 * NS_PER_S
"""A device that plays nothing for so long is opened anew."""
NO_CLOCK = 0.5
"""A device that has less than that of what it got a moment ago has no clock."""

log = logging.getLogger("capstand.alsa")


class AlsaPlayback(Sink):
    """Plays one stream's blocks as ``setup`` says; ``pace`` is that of the stream's clock."""

    def __init__(
        self,
        setup: AlsaSetup,
        audio: AudioFormat,
        pace: Pace,
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.inserted_frames = 0
        self._setup = setup
        self._audio = self._out = audio  # the stream's; the device's, once it is open
        self._pace = pace
        self._now_ns = now_ns
        self._sleep = sleep
        self._pcm: alsaaudio.PCM | None = None
        self._buffer = 0
        self._live: LiveTrack | None = None
        self._converts = False
        self._continuity = Continuity()
        self._started = False  # the device has been given sound
        self._broken = True  # the block before this one was not played
        self._behind = False
        self._held = 0  # frames in the device just after the last write
        self._moved_ns = 0  # when it was last seen to play
        self._latency_ms = 0.0
        self._underruns = 0

    # Opening

    def open(self) -> None:
        device = self._setup.device
        libasound.record_errors()
        try:
            can = libasound.abilities(device, playback=True)
            out = suited(self._audio, can, resampling=self._setup.rate_lock)
            pcm = self._pcm = self._opened(out)
        except (alsaaudio.ALSAAudioError, OSError) as error:
            raise self._failure(error) from None
        except ValueError as error:
            raise SinkError(f"{device} {error}") from None
        info = pcm.info()
        granted = info["rate"], info["channels"], info["format_name"]
        if granted != (out.rate_hz, out.channels, out.sample.alsa_name):
            raise SinkError(
                f"{device}: requested {out}, the device granted {granted[0]} Hz, {granted[1]} ch, "
                f"{granted[2]}; it offers {can}"
            )
        self._buffer = int(info["buffer_size"])
        if self._ms(self._buffer) < self._setup.latency_ms + 2 * PERIOD_MS:
            raise SinkError(
                f"{device}: its buffer holds {self._ms(self._buffer):.0f} ms and latency_ms is "
                f"{self._setup.latency_ms}; set latency_ms to "
                f"{math.floor(self._ms(self._buffer) - 2 * PERIOD_MS)} or less"
            )
        if self._setup.rate_lock:
            from capstand.dsp.live import LiveTrack

            self._live = LiveTrack(self._audio, out.rate_hz, out.channels, self._pace, out.sample)
        self._converts = out != self._audio
        self._moved_ns = self._now_ns()

    def _opened(self, out: AudioFormat) -> "alsaaudio.PCM":
        """With a buffer in which the latency may be half of itself too long."""
        self._out = out
        period = round(min(PERIOD_MS, self._setup.latency_ms / 4) * out.rate_hz / 1000)
        wanted = math.ceil((2 * self._setup.latency_ms + 4 * PERIOD_MS) * out.rate_hz / 1000)
        return alsaaudio.PCM(
            type=alsaaudio.PCM_PLAYBACK,
            mode=alsaaudio.PCM_NONBLOCK,
            device=self._setup.device,
            rate=out.rate_hz,
            channels=out.channels,
            format=out.sample.alsa_number,
            periodsize=period,
            periods=math.ceil(wanted / period),
        )

    # Playing

    def write(self, block: Block) -> None:
        frame_ms = 1000 / self._audio.rate_hz
        gap = self._continuity.follow(block)
        running, held = self._look()
        if not running and self._started:
            self._ran_dry(sounds=gap == 0)
        end_ns = block.captured_at_ns + block.frames * NS_PER_S // self._audio.rate_hz
        late_ms = max(0.0, (self._now_ns() - end_ns) / 1e6)
        after_ms = late_ms + self._ms(held) + block.frames * frame_ms - self._setup.latency_ms
        self._keep_live(after_ms, running)
        slack_ms = self._setup.latency_ms / 2
        if not running or after_ms < -slack_ms:
            missing_ms = max(0.0, -after_ms)
        else:
            missing_ms = max(0.0, min(gap * frame_ms, slack_ms - after_ms))
        try:
            self._play(block, missing_ms, running, held, joined=running and not gap)
        except alsaaudio.ALSAAudioError as error:
            self._broken = True
            raise self._failure(error, "stopped playing") from None
        held = self._held
        self._latency_ms = late_ms + self._ms(held)
        if self._live is not None:
            span_s = block.frames / self._audio.rate_hz
            target_s = self._setup.latency_ms / 1000
            self._live.loop.steer(self._latency_ms / 1000, target_s, span_s)

    def _look(self) -> tuple[bool, int]:
        """Whether the device plays, and how many frames it has. Raises SinkError where it is gone,
        or stands still."""
        pcm = self._pcm
        assert pcm is not None
        try:
            state = pcm.state()
            if state == RUNNING:
                room = pcm.avail()
                if 0 <= room <= self._buffer:
                    return True, self._moves(self._buffer - room)
                state = pcm.state()
            if state in (XRUN, SUSPENDED):
                pcm.drop()
        except alsaaudio.ALSAAudioError as error:
            raise self._failure(error, "stopped playing") from None
        if state == DISCONNECTED:
            raise self._failure(OSError(errno.ENODEV, ""), "stopped playing")
        self._held, self._moved_ns = 0, self._now_ns()
        return False, 0

    def _ran_dry(self, *, sounds: bool) -> None:
        """It has to be started again; in a gap that is no fault of its own."""
        self._started = False
        if sounds:
            self._underruns += 1
            log.warning("%s: underrun; it goes on after silence", self._setup.device)

    def _moves(self, held: int) -> int:
        now_ns = self._now_ns()
        if held < self._held:
            self._moved_ns = now_ns
        elif now_ns - self._moved_ns > STILL_NS:
            still_s = (now_ns - self._moved_ns) / NS_PER_S
            raise SinkError(
                f"{self._setup.device} has played nothing for {still_s:.0f} s; it is opened again"
            )
        self._held = held
        return held

    def _keep_live(self, after_ms: float, running: bool) -> None:
        """Raises SinkBusy for a block that is to be dropped, because it would be played too late:
        by half of the delay, and from then on until it is on time again."""
        room_ms = self._ms(self._buffer) - self._setup.latency_ms - PERIOD_MS
        if after_ms > min(self._setup.latency_ms / 2, room_ms):
            self._behind = True
        elif after_ms <= 0:
            self._behind = False
        if self._behind:
            self._broken = True
            what = "dropped to be on time again" if running else "too late to be played"
            raise SinkBusy(f"{after_ms:.0f} ms too late; some sound is {what}")

    def _play(
        self, block: Block, missing_ms: float, running: bool, held: int, *, joined: bool
    ) -> None:
        """The block, after so much silence; where it is not ``joined`` to what was played before,
        the rate lock fades out and in."""
        live, silence = self._live, b""
        if live is None:
            silence = self._silence(round(missing_ms * self._out.rate_hz / 1000))
            samples = self._converted(block.samples) if self._converts else block.samples
        else:
            if missing_ms or self._broken or not joined:
                silence = live.bridge(missing_ms)
            samples, _ = live.put(block)
        self._broken = False
        taken = self._put(silence + samples)
        if taken < 0:  # it ran dry since it was looked at
            self._ran_dry(sounds=True)
            running, held = self._look()
            silence = self._silence(self._frames(self._setup.latency_ms)) + silence
            taken = max(0, self._put(silence + samples))
        before = min(taken, len(silence) // self._out.frame_bytes)
        self.inserted_frames += before * self._audio.rate_hz // self._out.rate_hz
        self._held = held + taken
        if not running:
            self._refuse_no_clock(taken)
        left = len(silence + samples) // self._out.frame_bytes - taken
        if left:
            self._broken = True
            lost = min(block.frames, math.ceil(left * self._audio.rate_hz / self._out.rate_hz))
            raise SinkBusy(f"{self._setup.device} takes no more sound", block.frames - lost)

    def _put(self, samples: bytes) -> int:
        """So many frames the device took; less than 0 where it has run dry."""
        pcm = self._pcm
        assert pcm is not None
        if not samples:
            return 0
        try:
            taken = int(pcm.write(samples))
        except alsaaudio.ALSAAudioError:
            if pcm.state() != XRUN:
                raise
            return -errno.EPIPE
        self._started = self._started or taken > 0
        return taken

    def _refuse_no_clock(self, given: int) -> None:
        """Raises SinkError where what was just given is played already, as by ALSA's ``null``."""
        assert self._pcm is not None
        began_ns = self._now_ns()
        room = self._pcm.avail()
        waited = (self._now_ns() - began_ns) * self._out.rate_hz / NS_PER_S
        if self._pcm.state() == RUNNING and self._buffer - room + waited < NO_CLOCK * given:
            raise SinkError(
                f"{self._setup.device} plays sound as fast as it gets it: it has no clock; name a "
                "card or a loopback"
            )

    def _converted(self, samples: bytes) -> bytes:
        import numpy as np

        from capstand.dsp.channels import to_channels
        from capstand.dsp.convert import convert, to_int32

        audio, out = self._audio, self._out
        if audio.channels == out.channels:
            return convert(samples, audio.sample, out.sample)
        wide = to_channels(
            to_int32(samples, audio.sample).reshape(-1, audio.channels), out.channels
        )
        return convert(np.ascontiguousarray(wide).tobytes(), SampleFormat.S32_LE, out.sample)

    def _silence(self, frames: int) -> bytes:
        return self._out.sample.silence(frames * self._out.channels)

    def _ms(self, frames: int) -> float:
        return frames * 1000 / self._out.rate_hz

    def _frames(self, ms: float) -> int:
        return round(ms * self._out.rate_hz / 1000)

    def flush(self) -> None:
        """A device that went, or stands still, is noticed also while there is no sound."""
        self._look()

    def close(self) -> None:
        """What the device has is played to its end, so that what was delivered was heard."""
        pcm, self._pcm = self._pcm, None
        if pcm is None:
            return
        try:
            if self._started:
                self._end(pcm)
            pcm.drop()  # else closing waits until a device that stands still has played the rest
        except alsaaudio.ALSAAudioError:
            pass  # it is gone
        finally:
            pcm.close()

    def _end(self, pcm: "alsaaudio.PCM") -> None:
        if self._live is not None and not self._broken and pcm.state() == RUNNING:
            pcm.write(self._live.bridge(END_MS))  # ends without a click
        deadline_ns = self._now_ns() + round(PLAYED_S * NS_PER_S)
        while pcm.state() == RUNNING and self._now_ns() < deadline_ns:
            room = pcm.avail()
            if not 0 <= room < self._buffer:
                return
            self._sleep(max(0.001, min(0.05, self._ms(self._buffer - room) / 1000)))

    # For people

    @property
    def detail(self) -> str:
        words = f"{self._setup.device}, {self._latency_ms:.0f} ms after capture"
        if self._live is None:
            return words
        loop = self._live.loop
        lock = f"locked at {loop.ratio_ppm:+.1f} ppm" if loop.locked else "acquiring the rate"
        return f"{words}, {lock}"

    def figures(self, now_ns: int) -> dict[str, object]:
        live, out = self._live, self._out
        lock = None if live is None else "locked" if live.loop.locked else "acquiring"
        return {
            "device": self._setup.device,
            "rate_hz": out.rate_hz,
            "channels": out.channels,
            "format": out.sample.alsa_name,
            "buffer_ms": round(self._ms(self._buffer), 1),
            "queue_ms": round(self._ms(self._held), 1),
            "latency_ms": round(self._latency_ms, 1),
            "underruns": self._underruns,
            "rate_lock": lock,
            "ratio_ppm": None if live is None else round(live.loop.ratio_ppm, 2),
        }

    def _failure(self, error: Exception, what: str = "cannot be opened") -> SinkError:
        device = self._setup.device
        number = error.errno if isinstance(error, OSError) else 0
        reason = os.strerror(number) if number else str(error).removesuffix(f" [{device}]")
        match number:
            case errno.EBUSY:
                place = address.place_of(device)
                who = holder.holder_of(*place, side=holder.PLAYBACK) if place else None
                return SinkError(
                    f"{device} is in use by {who or 'another program'}; waiting until it lets go"
                )
            case errno.ENOENT | errno.ENODEV | errno.ENXIO:
                advice = "is it plugged in? `aplay -L` lists what plays"
                if re.search("loopback", device, re.IGNORECASE):
                    advice = "is the module there? sudo modprobe snd-aloop"
            case errno.EACCES:
                advice = identity.joining()
            case _:
                advice = "opening it again"
        if (
            what == "cannot be opened"
            and (said := libasound.last_errors())
            and number != errno.EACCES
        ):
            reason = f"{reason}; ALSA says: {said}"
        return SinkError(f"{device} {what}: {reason}; {advice}")


def suited(audio: AudioFormat, can: Abilities, *, resampling: bool) -> AudioFormat:
    """What of a device's abilities comes nearest to ``audio``: the same wherever it can be, else no
    poorer. Raises ValueError, in words that follow the device's name.
    """
    rates_hz = can.rates_hz
    rate_hz = audio.rate_hz
    if can.continuous:
        rates_hz = (min(max(rate_hz, rates_hz[0]), rates_hz[-1]),)
    if rate_hz not in rates_hz:
        if not resampling:
            raise ValueError(
                f"does not take {rate_hz} Hz (it offers {can}); set rate_lock = true, which "
                "resamples, or capture.rate_hz to one of these"
            )
        rate_hz = min((one for one in rates_hz if one > rate_hz), default=max(rates_hz))
    channels = next((one for one in (audio.channels, 2, 1) if one in can.channels), None)
    if channels is None:
        raise ValueError(
            f"takes neither {audio.channels} channels nor 2 or 1 (it offers {can}); name a PCM of "
            "type plug, such as plughw:…, which converts"
        )
    formats = [SampleFormat[one] for one in can.formats]
    if not formats:
        raise ValueError(f"takes none of capstand's formats (it offers {can}); name plughw:…")
    if audio.sample in formats:
        sample = audio.sample
    else:
        enough = [one for one in formats if one.bits >= audio.sample.bits]
        sample = min(enough, key=_bits) if enough else max(formats, key=_bits)
    return AudioFormat(rate_hz, channels, sample)


def _bits(sample: SampleFormat) -> int:
    return sample.bits
