"""A stream in an ALSA playback device: to the bit, on time, and all of it in the books.

The device is a PCM of libasound's (tests/fakecard/fakeplay.c) that has played what the test says,
and the sink's time is the test's: a minute passes in a moment, a slow machine changes nothing.
"""

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from capstand.audio.block import NS_PER_S, AudioFormat, Block, SampleFormat
from capstand.config.decode import decode
from capstand.config.schema import Config
from capstand.devices.libasound import Abilities
from capstand.dsp.convert import convert, to_int32
from capstand.errors import ConfigError, SinkBusy, SinkError
from capstand.sinks.alsa import AlsaPlayback, suited
from capstand.sinks.types.alsa import AlsaSinkConfig
from capstand.stream.stream import Stream
from tests import line, rings
from tests.fakecard import build, missing
from tests.fakecard.speaker import Speaker
from tests.patience import PATIENCE_S

RATE_HZ, FRAMES = 48_000, 480
S16 = AudioFormat(RATE_HZ, 2, SampleFormat.S16_LE)
DELAY = 4800
"""Frames in 100 ms, the delay that is held where nothing else is said."""


class Rate:
    """A Pace that has found the card's rate."""

    settled = True

    def __init__(self, ppm: float = 0.0) -> None:
        self.drift_ppm = ppm
        self.ns_per_frame = NS_PER_S / RATE_HZ / (1 + ppm * 1e-6)


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lacking = missing()
    if lacking is not None:
        pytest.skip(f"{lacking} is missing")
    return build(tmp_path_factory.mktemp("speaker"), "fakeplay")


@pytest.fixture
def speaker(tmp_path: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> Speaker:
    one = Speaker(tmp_path, plugin)
    for name, value in one.env.items():
        monkeypatch.setenv(name, value)
    return one


class Run:
    """A card of ``card_ppm``, the sink, and the speaker of ``ppm``, on one virtual time."""

    def __init__(
        self,
        speaker: Speaker,
        audio: AudioFormat = S16,
        *,
        ppm: float = 0.0,
        card_ppm: float = 0.0,
        signal: Callable[[int], bytes] | None = None,
        **setup: Any,
    ) -> None:
        self.speaker = speaker
        self.audio = audio
        self.frame = self.delivered = self.dropped = 0
        self.sent = bytearray()  # all frames that were delivered
        self._ppm = ppm
        self._per_frame_ns = NS_PER_S / audio.rate_hz / (1 + card_ppm * 1e-6)
        self._end_ns = float(NS_PER_S)
        self._signal = signal or self.counter
        self.late_ns = 200_000.0
        self._now_ns = NS_PER_S
        keys: dict[str, Any] = {"device": speaker.device, "rate_lock": False}
        config = AlsaSinkConfig("alsa", **keys | setup)
        self.sink = AlsaPlayback(
            config, audio, Rate(card_ppm), now_ns=self._clock, sleep=self._sleep
        )

    def counter(self, frame: int) -> bytes:
        """Frame n has the value n + 1, so that silence is none of them."""
        numbers = np.arange(frame + 1, frame + FRAMES + 1, dtype="<u4")
        return numbers.tobytes()[: FRAMES * self.audio.frame_bytes]

    def _clock(self) -> int:
        self.between()
        return self._now_ns

    def between(self) -> None:
        """Happens while the sink looks at the clock."""

    def _sleep(self, seconds: float) -> None:
        self.at(self._now_ns + round(seconds * NS_PER_S))

    def at(self, now_ns: float) -> None:
        """It is so late now; the speaker's clock as well."""
        self._now_ns = round(now_ns)
        played = (self._now_ns - NS_PER_S) * (1 + self._ppm * 1e-6) * self.rate_hz / NS_PER_S
        control = self.speaker.control
        control.position = max(control.position, int(played))

    @property
    def rate_hz(self) -> int:
        return self.speaker.control.rate_hz or self.audio.rate_hz

    def block(self, lost: int = 0) -> None:
        """One block is captured, and played ``late_ns`` after that."""
        self.frame += lost
        begin_ns = self._end_ns + lost * self._per_frame_ns
        self._end_ns = begin_ns + FRAMES * self._per_frame_ns
        self.at(max(self._now_ns, self._end_ns + self.late_ns))
        samples = self._signal(self.frame)
        block = Block(self.frame, FRAMES, round(begin_ns), samples, self.audio)
        self.frame += FRAMES
        taken = FRAMES
        try:
            self.sink.write(block)
        except SinkBusy as busy:
            taken = busy.taken
            self.trouble = str(busy)
        self.delivered += taken
        self.dropped += FRAMES - taken
        self.sent += samples[: taken * self.audio.frame_bytes]

    def blocks(self, count: int) -> list[float]:
        """The latency after each."""
        latencies = []
        for _ in range(count):
            self.block()
            latencies.append(self.figure("latency_ms"))
        return latencies

    def figure(self, name: str) -> Any:
        return self.sink.figures(0)[name]

    def played(self) -> npt.NDArray[np.uint32]:
        """What the speaker got; 0 is silence."""
        return np.frombuffer(self.speaker.given, "<u4")

    def numbers(self) -> npt.NDArray[np.uint32]:
        """The same without silence."""
        played = self.played()
        return np.asarray(played[played != 0])

    def check_books(self) -> None:
        """The speaker got what was delivered, to the bit, and what was inserted; no more."""
        assert self.delivered + self.dropped == self.frame - self.lost
        assert self.numbers().tobytes() == self.sent
        assert len(self.played()) == self.delivered + self.sink.inserted_frames

    lost = 0
    trouble = ""


@pytest.fixture
def run(speaker: Speaker) -> Iterator[Callable[..., Run]]:
    made: list[Run] = []

    def make(audio: AudioFormat = S16, **keys: Any) -> Run:
        made.append(Run(speaker, audio, **keys))
        try:
            made[-1].sink.open()
        except SinkError:
            made[-1].sink.close()  # as push.py does
            raise
        return made[-1]

    yield make
    for one in made:
        one.sink.close()


Make = Callable[..., Run]

# To the bit


def test_every_frame_is_played_once_and_in_order(run: Make) -> None:
    """Without the rate lock, on one clock: silence first, so that sound is played ``latency_ms``
    after it was captured, then a minute of frames as they were captured. At the end all of it is
    played before the device is closed."""
    one = run()
    latencies = one.blocks(6000)
    assert (one.delivered, one.dropped) == (6000 * FRAMES, 0)
    played = one.played()
    first = int(np.flatnonzero(played)[0])
    assert first == pytest.approx(DELAY - FRAMES, abs=FRAMES // 10)
    assert np.array_equal(played[first:], np.arange(1, 6000 * FRAMES + 1))
    assert max(abs(latency - 100) for latency in latencies) < 0.1
    one.check_books()
    one.sink.close()
    control = one.speaker.control
    assert (control.frames_cut, control.starts, one.figure("underruns")) == (0, 1, 0)


def test_late_wake_ups_change_nothing(run: Make) -> None:
    """A process that sleeps for 60 of the 100 ms, again and again: the same frames."""
    one = run()
    for _ in range(20):
        one.blocks(30)
        one.late_ns = 60e6
        one.blocks(1)
        one.late_ns = 2e5
    assert one.dropped == one.figure("underruns") == 0
    assert np.array_equal(one.numbers(), np.arange(1, one.frame + 1))
    one.check_books()


@pytest.mark.parametrize("ppm", [200.0, -200.0])
def test_clocks_that_differ_cost_a_break_now_and_then(run: Make, ppm: float) -> None:
    """Without the rate lock: once the latency is half of ``latency_ms`` off, after 250 s at 200
    ppm, so much is inserted or dropped at once, and the books say so; the device never runs dry."""
    one = run(ppm=ppm)
    latencies = one.blocks(30_000)  # five minutes
    assert min(latencies) >= 49 and max(latencies) <= 151
    first = int(np.flatnonzero(one.played())[0])
    inserted = one.sink.inserted_frames - first
    if ppm > 0:
        assert one.dropped == 0 and inserted == pytest.approx(DELAY / 2, abs=FRAMES)
    else:
        assert one.dropped == pytest.approx(DELAY / 2, abs=2 * FRAMES) and inserted == 0
    assert one.figure("underruns") == 0
    one.check_books()


def test_a_gap_is_silence_of_its_length(run: Make) -> None:
    """What was lost before a block is played as silence, to the frame, so time stays true; also a
    gap that outlasts what the device had."""
    one = run()
    one.blocks(50)
    for lost in (1, 700, 2000):
        one.block(lost=lost)
        one.lost += lost
        one.blocks(20)
        silent = np.flatnonzero(np.diff(one.numbers().astype(np.int64)) > 1)
        at = int(np.flatnonzero(one.played() == one.numbers()[silent[-1]])[0])
        assert not one.played()[at + 1 : at + 1 + lost].any()
        assert one.played()[at + 1 + lost]
    one.block(lost=100_000)
    one.lost += 100_000
    assert one.blocks(20)[-1] == pytest.approx(100, abs=0.1)
    assert (one.dropped, one.figure("underruns"), one.speaker.control.underruns) == (0, 0, 1)
    one.check_books()


# What goes wrong


def test_an_underrun_is_recovered_and_counted(run: Make) -> None:
    """A process that sleeps for longer than the device has sound: that runs dry, begins anew with
    the silence that makes the latency right, and what is too late by then is dropped."""
    one = run()
    one.blocks(50)
    one.late_ns = 400e6
    one.block()
    one.late_ns = 2e5
    assert one.dropped == FRAMES and "too late to be played" in one.trouble
    latencies = one.blocks(100)
    assert latencies[-1] == pytest.approx(100, abs=0.1)
    assert (one.figure("underruns"), one.speaker.control.starts) == (1, 2)
    assert one.dropped <= 400e6 / NS_PER_S * RATE_HZ
    one.check_books()


def test_an_underrun_between_a_look_and_a_write_is_one_too(run: Make) -> None:
    """The device runs dry after it was seen to play: the block is played all the same, after
    silence, and counts once."""
    one = run()
    one.blocks(50)
    looks = iter([False, True, False])

    def dry() -> None:
        if next(looks, False):
            one.speaker.control.position += 2 * DELAY

    one.between = dry  # type: ignore[method-assign]
    one.block()
    assert (one.dropped, one.figure("underruns"), one.speaker.control.underruns) == (0, 1, 1)
    one.check_books()


def test_a_device_that_slept_goes_on(run: Make) -> None:
    """After a suspend it is prepared and started again."""
    one = run()
    one.blocks(50)
    one.speaker.control.suspend = 1
    one.blocks(50)
    assert (one.speaker.control.starts, one.figure("underruns"), one.dropped) == (2, 1, 0)
    assert one.figure("latency_ms") == pytest.approx(100, abs=0.1)
    one.check_books()


@pytest.mark.parametrize("while_it_sounds", [True, False])
def test_a_device_that_goes_is_told(run: Make, while_it_sounds: bool) -> None:
    """It ends the sink with plain words, which is tried again; also where no sound comes."""
    one = run()
    one.blocks(5)
    one.speaker.control.disconnected = 1
    with pytest.raises(SinkError, match="speaker stopped playing: No such device; is it plugged"):
        one.block() if while_it_sounds else one.sink.flush()
    one.sink.close()
    with pytest.raises(SinkError, match="speaker cannot be opened: No such device"):
        run()


def test_a_device_that_stands_still_is_opened_again(run: Make) -> None:
    """One that takes no more, without a word: what has no room is dropped, and after 5 s it is
    closed."""
    one = run()
    one.blocks(5)
    one._ppm = -1e6
    with pytest.raises(SinkError, match="speaker has played nothing for 5 s"):
        one.blocks(600)
    assert one.dropped > 4 * RATE_HZ


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EBUSY, "speaker is in use by another program; waiting until it lets go"),
        (errno.ENODEV, "speaker cannot be opened: No such device; is it plugged in?"),
        (errno.EACCES, "speaker cannot be opened: Permission denied; add the user to the group"),
    ],
)
def test_why_it_cannot_be_opened_is_told(
    run: Make, speaker: Speaker, number: int, words: str
) -> None:
    speaker.control.open_errno = number
    with pytest.raises(SinkError) as raised:
        run()
    assert str(raised.value).startswith(words)
    speaker.control.open_errno = 0
    one = run()
    with pytest.raises(SinkError, match="in use"):
        run()
    one.blocks(5)
    one.check_books()


def test_what_has_no_clock_is_refused(speaker: Speaker) -> None:
    """ALSA's null would take any sound at any speed."""
    one = Run(speaker, device="null")
    one.sink.open()
    with pytest.raises(SinkError, match="null plays sound as fast as it gets it"):
        one.blocks(3)
    one.sink.close()


def test_a_buffer_that_is_too_short_is_told(run: Make, speaker: Speaker) -> None:
    """With the delay that would do."""
    speaker.restrict(buffer_frames=4800)
    with pytest.raises(SinkError, match=r"its buffer holds 100 ms.* set latency_ms to 80 or less"):
        run()
    one = run(latency_ms=80)
    one.blocks(100)
    one.check_books()


# Converted


@pytest.mark.parametrize("sample", list(SampleFormat))
@pytest.mark.parametrize("to", ["S16_LE", "S24_3LE", "S32_LE", "FLOAT_LE", "U8"])
def test_other_formats_are_converted(
    run: Make, speaker: Speaker, sample: SampleFormat, to: str
) -> None:
    """The device's only format: to the bit where that has as many, else rounded by at most half
    of its step; numpy in double precision is the judge."""
    speaker.restrict(formats=[to])
    audio, out = AudioFormat(RATE_HZ, 2, sample), SampleFormat[to]
    rng = np.random.default_rng(5)
    noise = convert(
        rng.integers(-(2**31), 2**31, 2 * FRAMES).astype("<i4").tobytes(),
        SampleFormat.S32_LE,
        sample,
    )
    one = run(audio, signal=lambda _: noise)
    one.blocks(1)
    assert one.figure("format") == to
    size = 2 * FRAMES * out.size_bytes
    got = to_int32(speaker.given[-size:], out).astype(np.float64)
    wanted = to_int32(noise, sample).astype(np.float64)
    floats = sample is SampleFormat.FLOAT_LE and out is SampleFormat.S24_3LE  # finer near zero
    if out.bits >= sample.bits and not floats:
        assert np.array_equal(got, wanted)
    else:
        step = 2.0 ** (32 - out.bits)
        assert np.abs(got - np.minimum(wanted, 2.0**31 - step)).max() <= step / 2
    silence = speaker.given[:-size]
    assert silence == out.silence(len(silence) // out.size_bytes)


@pytest.mark.parametrize(("channels", "to"), [(1, 2), (2, 1), (4, 2)])
def test_other_channels_are_converted(run: Make, speaker: Speaker, channels: int, to: int) -> None:
    """One is played by both sides, two are mixed into one, of more the first two are taken."""
    speaker.restrict(channels=(to, to))
    values = np.arange(FRAMES * channels, dtype="<i2").reshape(-1, channels) * 4
    audio = AudioFormat(RATE_HZ, channels, SampleFormat.S16_LE)
    one = run(audio, signal=lambda _: values.tobytes())
    one.blocks(1)
    got = np.frombuffer(speaker.given[-FRAMES * to * 2 :], "<i2").reshape(-1, to)
    if channels == 2:
        assert np.array_equal(got[:, 0], values.mean(axis=1))
    else:
        assert np.array_equal(got, values[:, [0, min(1, channels - 1)]])


def test_what_a_device_is_asked_for() -> None:
    """The stream's own wherever the device has it; else what loses nothing, or least."""
    can = Abilities((44_100, 48_000, 96_000), False, (1, 2), ("S16_LE", "S24_3LE", "S32_LE"), ())
    stereo = AudioFormat(48_000, 2, SampleFormat.S16_LE)
    assert suited(stereo, can, resampling=False) == stereo
    wide = AudioFormat(48_000, 8, SampleFormat.FLOAT_LE)
    assert suited(wide, can, resampling=False) == AudioFormat(48_000, 2, SampleFormat.S24_3LE)
    slow = stereo._replace(rate_hz=16_000)
    assert suited(slow, can, resampling=True).rate_hz == 44_100
    assert suited(stereo._replace(rate_hz=192_000), can, resampling=True).rate_hz == 96_000
    with pytest.raises(ValueError, match=r"does not take 16000 Hz.*set rate_lock = true"):
        suited(slow, can, resampling=False)
    span = can._replace(rates_hz=(32_000, 48_000), continuous=True)
    assert suited(slow, span, resampling=True).rate_hz == 32_000
    with pytest.raises(ValueError, match="takes neither 2 channels nor 2 or 1"):
        suited(stereo, can._replace(channels=(8,)), resampling=True)
    with pytest.raises(ValueError, match="none of capstand's formats"):
        suited(stereo, can._replace(formats=(), others=("DSD_U8",)), resampling=True)


# The rate lock


def tone(frame: int) -> bytes:
    """1 kHz at -6 dBFS in both channels."""
    wave = 16_000 * np.sin(2 * np.pi * 1000 / RATE_HZ * np.arange(frame, frame + FRAMES))
    return np.repeat(np.rint(wave), 2).astype("<i2").tobytes()


@pytest.mark.parametrize(("ppm", "card_ppm"), [(200.0, 0.0), (-200.0, 0.0), (100.0, -150.0)])
def test_the_rate_lock_follows_the_devices_clock(
    run: Make, speaker: Speaker, ppm: float, card_ppm: float
) -> None:
    """Five minutes of a device whose clock is 200 ppm off, and of a card that is off too: latency
    stays within 8 ms of what was asked, after a minute within 5; nothing is dropped, or inserted
    after the beginning, and the tone goes on without a click."""
    one = run(ppm=ppm, card_ppm=card_ppm, signal=tone, rate_lock=True)
    one.blocks(100)
    inserted = one.sink.inserted_frames
    latencies = one.blocks(30_000)
    assert max(abs(latency - 100) for latency in latencies) < 8
    assert max(abs(latency - 100) for latency in latencies[6000:]) < 5
    assert (one.sink.inserted_frames, one.dropped) == (inserted, 0)
    assert (one.figure("underruns"), speaker.control.starts) == (0, 1)
    assert one.figure("rate_lock") == "locked"
    assert one.figure("ratio_ppm") == pytest.approx(card_ppm - ppm, abs=20)
    left = np.frombuffer(speaker.given, "<i2")[::2].astype(np.float64)[RATE_HZ:-RATE_HZ]
    # Of a sine, x[n+1] + x[n-1] = 2 cos(w) x[n]; a click or a lost frame breaks it.
    off = left[2:] + left[:-2] - 2 * np.cos(2 * np.pi * 1000 / RATE_HZ) * left[1:-1]
    assert np.abs(off).max() < 12


def test_the_rate_lock_survives_what_goes_wrong(run: Make, speaker: Speaker) -> None:
    """An underrun, a gap, sound that is too late: it goes on at its latency."""
    one = run(signal=tone, rate_lock=True)
    one.blocks(200)
    one.late_ns = 400e6
    one.block()
    one.late_ns = 2e5
    one.blocks(200)
    assert one.figure("underruns") == 1 and 0 < one.dropped < 400e6 / NS_PER_S * RATE_HZ
    one.block(lost=1000)
    one.blocks(200)
    one.block(lost=100_000)
    assert one.blocks(200)[-1] == pytest.approx(100, abs=2)
    assert one.figure("underruns") == 1
    assert np.abs(np.frombuffer(speaker.given, "<i2")[-200:]).max() > 10_000
    one.sink.close()
    assert speaker.control.frames_cut == 0
    assert np.abs(np.frombuffer(speaker.given, "<i2")[-200:]).max() <= 1  # it faded out


def test_the_rate_lock_converts_rate_and_format(run: Make, speaker: Speaker) -> None:
    """A device of another rate and of more bits: the tone is still one."""
    speaker.restrict(rates=(44_100, 44_100), formats=["S32_LE"])
    one = run(signal=tone, rate_lock=True)
    one.blocks(500)
    assert (one.figure("rate_hz"), one.figure("format")) == (44_100, "S32_LE")
    left = np.frombuffer(speaker.given, "<i4")[::2].astype(np.float64)[44_100:-8192]
    spectrum = np.abs(np.fft.rfft(left * np.hanning(len(left))))
    peak_hz = np.argmax(spectrum) * 44_100 / len(left)
    assert peak_hz == pytest.approx(1000, abs=1)
    assert np.abs(left).max() == pytest.approx(16_000 * 65_536, rel=0.01)


# In a process of its own


def test_a_stream_is_played_by_a_process(speaker: Speaker, tmp_path: Path) -> None:
    """In real time, with a reader of the ring beside it: every frame that was captured from when
    the device was opened is played, once and in order; the rest is in the books."""
    speaker.control.real = 1
    card = line.capture()
    sink = AlsaSinkConfig("alsa", speaker.device, latency_ms=2000, rate_lock=False)
    stream = Stream(line.config(card)._replace(sink=(sink,)), tmp_path)
    beside = rings.reader_of(stream.ring, card.audio)
    heard: list[Block] = []
    (feed,) = stream.live
    deadline = time.monotonic() + PATIENCE_S
    stream.start()
    while feed.counters().delivered < RATE_HZ / 2:
        assert time.monotonic() < deadline, stream.stats(0)
        stream.report(time.monotonic_ns())
        heard += beside.blocks()
        time.sleep(0.02)
    stream.drain(time.monotonic() + PATIENCE_S)
    heard += beside.blocks()
    assert beside.missed == 0
    stream.close(time.monotonic() + PATIENCE_S)
    stats = stream.stats(time.monotonic_ns())
    played = stats.sinks[0]
    assert stats.balanced and played.in_flight_frames == 0 and feed.failures == 0
    assert played.since_frame is not None
    got = np.frombuffer(speaker.given, "<u4")
    captured = np.frombuffer(b"".join(one.samples for one in heard), "<u4")
    wanted = captured[played.since_frame - heard[0].first_frame :]
    assert np.array_equal(got[got != 0], wanted[wanted != 0])
    assert played.delivered_frames + played.inserted_frames == len(got)
    assert speaker.control.frames_cut == 0


# In the configuration


def faults(*sinks: str) -> list[str]:
    head = '[[stream]]\nname = "mic"\n[stream.capture]\ndevice = "hw:CARD=Mic"\nperiod_ms = 20\n'
    text = head + "".join(f'[[stream.sink]]\ntype = "alsa"\n{sink}\n' for sink in sinks)
    with pytest.raises(ConfigError) as caught:
        decode(text, "c.toml", Config)
    return caught.value.faults


def test_what_a_configuration_may_not_say() -> None:
    twice = 'device = "hw:CARD=Loopback,DEV=0"\nname = "a"', 'device = "hw:CARD=Loopback,DEV=0"'
    assert "is played by sink 1 already" in faults(*twice)[0]
    assert "is how a device that captures is named" in faults('device = "usb:0d8c:0014"')[0]
    assert "would run a command or write" in faults('device = "file:/tmp/a"')[0]
    assert "is less than capture.period_ms + 10" in faults('device = "x"\nlatency_ms = 25')[0]
    assert "is what this stream captures from" in faults('device = "hw:CARD=Mic"')[0]
