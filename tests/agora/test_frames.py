"""Cutting: whatever is put, exact frames come out, with the sound unchanged and at its time."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capstand.agora.frames import MS, Frame, Framer, SampleBuffer
from capstand.audio.block import NS_PER_S, AudioFormat, SampleFormat

Ints = npt.NDArray[np.int16]
S16 = SampleFormat.S16_LE
T0 = 5_000_000_000_000  # an uptime of 83 minutes
HZ = 48_000
SIZE = HZ // 100
LENGTHS = st.one_of(
    st.sampled_from([1, 240, 441, 479, 480, 481, 960, 1024, 4800, 48_000]), st.integers(1, 3000)
)
ROUNDING_MS = 0.500_001
RATES = [
    *[(one, 48_000) for one in (8000, 11_025, 16_000, 22_050, 44_100, 96_000, 192_000)],
    *[(48_000, 8000), (48_000, 16_000), (44_100, 16_000)],
]


def ints(frames: list[Frame]) -> Ints:
    return np.frombuffer(b"".join(frame.samples for frame in frames), "<i2")


def numbered(first: int, count: int) -> bytes:
    """Stereo frames that hold their own number, from 1 up: 0 is silence."""
    number = np.arange(first + 1, first + 1 + count, dtype="<u4")
    return number.tobytes()


def numbers(frame: Frame) -> list[int]:
    """The numbers of the frames within, without silence; −1 stands for none."""
    found: list[int] = (np.frombuffer(frame.samples, "<u4").astype(np.int64) - 1).tolist()
    return found


def at_ns(place: int, rate_hz: int = HZ) -> int:
    """When a frame of a card that runs exactly was captured."""
    return T0 + place * NS_PER_S // rate_hz


def stereo(first: int, count: int, late_ns: int = 0, gap: bool = False) -> SampleBuffer:
    return SampleBuffer(numbered(first, count), HZ, 2, S16, count, at_ns(first) + late_ns, gap)


# The same sound


@given(
    st.lists(
        st.tuples(
            st.one_of(st.just(SIZE), LENGTHS), st.integers(0, 2000), st.booleans(), st.booleans()
        ),
        min_size=1,
        max_size=30,
    )
)
@example([(SIZE, 0, False, False), (2 * SIZE, 0, False, True), (2 * SIZE, 0, False, True)])
def test_what_would_pass_need_not_be_put(blocks: list[tuple[int, int, bool, bool]]) -> None:
    """A block that is a frame of the track goes out as it is, past the framer: the frames are those
    that come out where each is put."""
    framer, all_put = Framer(HZ, 2), Framer(HZ, 2)
    place, out, expected, passed = 0, list[Frame](), list[Frame](), 0
    for length, gap, told, mono in blocks:
        place += gap
        buffer = stereo(place, length, gap=told)
        if mono and length != SIZE:
            buffer = SampleBuffer(bytes(2 * length), HZ, 1, S16, length, at_ns(place), told)
        place += length
        expected += all_put.put(buffer)
        form = AudioFormat(*buffer[1:4])
        assert isinstance(buffer.samples, bytes)
        if framer.would_pass(buffer.samples, form):
            passed += 1
            out.append(Frame(buffer.samples, round(buffer.captured_at_ns / MS)))
        else:
            out += framer.put(buffer)
    assert out + framer.finish() == expected + all_put.finish()
    assert passed == len(blocks) - 1 or any(length != SIZE for length, *_ in blocks)


@given(
    st.sampled_from([8000, 16_000, 24_000, 32_000, 48_000]),
    st.sampled_from([1, 2]),
    st.lists(LENGTHS, max_size=20),
)
@settings(deadline=None, max_examples=60)
def test_any_lengths_give_the_same_stream(rate_hz: int, channels: int, lengths: list[int]) -> None:
    """Buffers of 1 frame to 1 s give the stream that was put, cut every 10 ms, and the end of it
    filled up with silence."""
    cutter, frames, put = Framer(rate_hz, channels), list[Frame](), b""
    rng = np.random.default_rng(len(lengths))
    for length in lengths:
        samples = rng.integers(-32768, 32768, length * channels).astype("<i2").tobytes()
        put += samples
        frames += cutter.put(SampleBuffer(samples, rate_hz, channels, S16, length))
        assert cutter.held == len(put) // (2 * channels) % (rate_hz // 100)
    size = rate_hz // 100 * channels * 2
    assert b"".join(frame.samples for frame in frames) == put[: len(put) // size * size]
    frames += cutter.finish()
    assert all(len(frame.samples) == size for frame in frames)
    assert b"".join(frame.samples for frame in frames) == put + bytes(-len(put) % size)
    assert cutter.held == 0
    assert cutter.finish() == []


def test_a_buffer_that_is_used_again_leaves_its_frames_alone() -> None:
    """What was put is copied: a bytearray may be filled anew at once, for frames given and held."""
    cutter, reused = Framer(HZ, 2), bytearray()
    frames, put = [], b""
    for number, length in enumerate([SIZE, 100, SIZE, 2 * SIZE, 380, SIZE]):
        samples = np.full(2 * length, number + 1, "<i2").tobytes()
        reused[:] = samples
        frames += cutter.put(SampleBuffer(reused, HZ, 2, S16, length))
        reused[:] = bytes(len(samples))
        put += samples
    assert b"".join(frame.samples for frame in frames) == put


@pytest.mark.parametrize("form", [S16, SampleFormat.S32_LE])
@pytest.mark.parametrize("rate_hz", [HZ, 44_100])
def test_any_buffer_of_samples_will_do(form: SampleFormat, rate_hz: int) -> None:
    """bytes, a bytearray, and views of bytes, of integers and of rows of a numpy array are the
    same sound at the same time."""
    samples = np.arange(3000, dtype=f"<i{form.size_bytes}").reshape(-1, 2)
    raw = samples.tobytes()

    def cut(given: Any) -> list[Frame]:
        cutter = Framer(HZ, 2)
        parts = [SampleBuffer(given, rate_hz, 2, form, 1500, T0 + n * MS) for n in range(3)]
        return [frame for part in parts for frame in cutter.put(part)] + cutter.finish()

    kinds = [bytearray(raw), memoryview(raw), samples.data, samples.reshape(-1).data]
    assert [cut(kind) for kind in kinds] == [cut(raw)] * len(kinds)


# At its time


@given(st.lists(LENGTHS, min_size=1, max_size=20), st.integers(0, NS_PER_S))
@settings(deadline=None, max_examples=60)
def test_a_frame_has_the_time_of_its_first_sample(lengths: list[int], late_ns: int) -> None:
    """However buffers and frames lie to each other, a frame's time is its first sample's."""
    cutter, frames, place = Framer(HZ, 2), list[Frame](), 0
    for length in lengths:
        frames += cutter.put(stereo(place, length, late_ns))
        place += length
    frames += cutter.finish()
    assert len(frames) == math.ceil(place / SIZE)
    for number, frame in enumerate(frames):
        assert abs(frame.pts_ms - (at_ns(number * SIZE) + late_ns) / MS) <= ROUNDING_MS


@pytest.mark.parametrize("length", [441, 479, 480, 1024])
@pytest.mark.parametrize("ppm", [-500, 80])
def test_times_follow_the_card(length: int, ppm: int) -> None:
    """The card's own pace is in the times of its buffers, and so in those of the frames."""
    cutter = Framer(HZ, 2)
    for number in range(3000):
        place = number * length
        time_ns = T0 + round(place * NS_PER_S / (HZ * (1 + ppm * 1e-6)))
        for frame in cutter.put(SampleBuffer(numbered(place, length), HZ, 2, S16, length, time_ns)):
            first = numbers(frame)[0]
            true_ms = (T0 + first * NS_PER_S / (HZ * (1 + ppm * 1e-6))) / MS
            assert abs(frame.pts_ms - true_ms) <= ROUNDING_MS + 0.02  # of one buffer at 500 ppm


@pytest.mark.parametrize(("rate_hz", "track_hz"), RATES)
@pytest.mark.parametrize("length_ms", [3.7, 10, 64])
def test_a_click_is_heard_at_its_time(rate_hz: int, track_hz: int, length_ms: float) -> None:
    """Through a resampler too, each sample lies within 1 ms of when it was captured, by the time
    of its frame and its place in it."""
    length, clicks = round(rate_hz * length_ms / 1000), [0.2137, 0.5, 1.4142]
    sound = np.zeros(round(rate_hz * 1.6 / length) * length, "<i2")
    sound[[round(one * rate_hz) for one in clicks]] = 20_000
    cutter, frames = Framer(track_hz, 1), []
    for first in range(0, len(sound), length):
        samples = sound[first : first + length].tobytes()
        frames += cutter.put(SampleBuffer(samples, rate_hz, 1, S16, length, at_ns(first, rate_hz)))
    frames += cutter.finish()
    for number, frame in enumerate(frames):
        assert abs(frame.pts_ms - T0 / MS - 10 * number) <= ROUNDING_MS
    heard, size = ints(frames).astype(float), track_hz // 100
    for click in clicks:
        near = slice(round((click - 0.1) * track_hz), round((click + 0.1) * track_hz))
        place = near.start + int(np.abs(heard[near]).argmax())
        told_ms = frames[place // size].pts_ms + place % size * 1000 / track_hz
        assert abs(told_ms - (T0 / MS + click * 1000)) <= 1


@given(st.lists(st.tuples(LENGTHS, st.booleans()), min_size=1, max_size=10))
@settings(deadline=None, max_examples=40)
def test_an_unknown_time_stays_unknown(buffers: list[tuple[int, bool]]) -> None:
    """A frame that begins in a buffer whose time is 0 has the time 0, whatever was before and
    comes after; a known time is used again at once."""
    cutter, place, times = Framer(HZ, 2), 0, list[float]()
    for length, known in buffers:
        whole = cutter.put(stereo(place, length, 0 if known else -at_ns(place)))
        times += [at_ns(one) / MS if known else 0 for one in range(place, place + length)]
        place += length
        for frame in whole:
            assert abs(frame.pts_ms - times[numbers(frame)[0]]) <= ROUNDING_MS


# Gaps


@given(st.lists(st.tuples(LENGTHS, st.one_of(st.just(0), st.integers(1, 2000))), max_size=12))
@settings(deadline=None, max_examples=80)
def test_a_gap_with_room_begins_a_new_frame(gaps: list[tuple[int, int]]) -> None:
    """Where a gap is long enough to fill the frame begun with silence, that is done; where not, the
    sound goes on in the same frame. Each frame has the time of its first sample all the same."""
    cutter, frames, expected, place = Framer(HZ, 2), list[Frame](), list[int](), 0
    for length, gap in gaps:
        place += gap
        if gap >= -len(expected) % SIZE and gap:
            expected += [-1] * (-len(expected) % SIZE)
        frames += cutter.put(stereo(place, length, gap=gap > 0))
        expected += range(place, place + length)
        place += length
    frames += cutter.finish()
    expected += [-1] * (-len(expected) % SIZE)
    assert [number for frame in frames for number in numbers(frame)] == expected
    for frame in frames:
        assert abs(frame.pts_ms - at_ns(numbers(frame)[0]) / MS) <= ROUNDING_MS


def test_a_gap_that_nobody_tells_moves_only_the_time() -> None:
    """Without the sign of a discontinuity a jump of the time fills nothing up."""
    cutter = Framer(HZ, 2)
    assert cutter.put(stereo(0, 100)) == []
    one, two = cutter.put(stereo(10_000, 860))
    assert numbers(one) == [*range(100), *range(10_000, 10_380)]
    assert one.pts_ms == T0 // MS
    assert abs(two.pts_ms - at_ns(10_380) / MS) <= ROUNDING_MS


@pytest.mark.parametrize("room", [380, 379])
def test_just_enough_room(room: int) -> None:
    """A gap as long as what is missing of the frame is filled; one frame less is spliced."""
    cutter = Framer(HZ, 2)
    cutter.put(stereo(0, 100))
    frames = [*cutter.put(stereo(100 + room, 480, gap=True)), *cutter.finish()]
    silence = [-1] * (380 if room == 380 else 0)
    heard = [number for frame in frames for number in numbers(frame)]
    assert heard[: 580 + len(silence)] == [*range(100), *silence, *range(100 + room, 580 + room)]


@pytest.mark.parametrize(("rate_hz", "length"), [(44_100, 441), (96_000, 1024), (22_050, 500)])
def test_sound_around_a_gap_shares_no_frame_behind_a_resampler(rate_hz: int, length: int) -> None:
    """What a resampler still holds is given before the gap; the sound after it begins a frame,
    at its time."""
    cutter, frames = Framer(HZ, 1), []
    for number in range(20):
        first = number * length + (rate_hz if number >= 10 else 0)
        samples = np.full(length, 20_000 if number < 10 else -20_000, "<i2").tobytes()
        frames += cutter.put(
            SampleBuffer(samples, rate_hz, 1, S16, length, at_ns(first, rate_hz), number == 10)
        )
    frames += cutter.finish()
    before = math.ceil(10 * length * 100 / rate_hz)
    for number, frame in enumerate(frames):
        sound = ints([frame])
        first_ms = 0 if number < before else 1000 + 10 * length * 1000 / rate_hz - 10 * before
        assert abs(frame.pts_ms - (T0 / MS + 10 * number + first_ms)) <= ROUNDING_MS
        if number < before:
            assert sound.min() > -5000
        else:
            assert sound.max() < 5000


@pytest.mark.parametrize("length", [441, 459, 500])
@pytest.mark.parametrize("gap", range(40, 480, 40))
def test_silence_is_never_longer_than_the_gap(length: int, gap: int) -> None:
    """Behind a resampler, too, filling up does not push the sound after a gap past its time."""
    cutter, frames = Framer(HZ, 1), list[Frame]()
    for number in range(10):
        first = number * length + (gap if number >= 5 else 0)
        frames += cutter.put(
            SampleBuffer(
                bytes(2 * length), 44_100, 1, S16, length, at_ns(first, 44_100), number == 5
            )
        )
    frames += cutter.finish()
    assert all(two.pts_ms - one.pts_ms >= 9 for one, two in pairwise(frames))


# What could not be sent


FATES = st.lists(
    st.tuples(
        LENGTHS,
        st.sampled_from([0, 0, 0, 480, 5000]),  # a gap before it
        st.one_of(st.none(), st.none(), st.integers(0, 5)),  # the first frame that is refused
    ),
    min_size=1,
    max_size=15,
)


@given(FATES)
@settings(deadline=None, max_examples=150)
def test_what_was_refused_leaves_no_trace(fates: list[tuple[int, int, int | None]]) -> None:
    """Frames refused and taken back or dropped, in any order: everything else is sent once, in
    order, each frame at the time of its first sample; of what was refused nothing is."""
    cutter, place = Framer(HZ, 2), 0
    sent, expected = list[Frame](), set[int]()
    for length, gap, refused in fates:
        place += gap
        held = cutter.held
        whole = cutter.put(stereo(place, length, gap=gap > 0))
        here = range(place, place + length)
        place += length
        if refused is None or refused >= len(whole):
            sent += whole
            expected.update(here)
        elif refused == 0:
            cutter.take_back(whole[0], held)
            assert cutter.held == held
        else:
            cutter.drop()
            assert cutter.held == 0
            sent += whole[:refused]
            expected.update(number for frame in whole[:refused] for number in numbers(frame))
    expected.discard(-1)
    sent += cutter.finish()
    heard = [number for frame in sent for number in numbers(frame) if number >= 0]
    assert heard == sorted(expected)
    for frame in sent:
        assert abs(frame.pts_ms - at_ns(numbers(frame)[0]) / MS) <= ROUNDING_MS


@pytest.mark.parametrize("refused", [0, 1])
@pytest.mark.parametrize(("rate_hz", "length"), [(44_100, 2000), (96_000, 4096)])
def test_after_a_refusal_a_resampled_click_is_at_its_time(
    rate_hz: int, length: int, refused: int
) -> None:
    """The times of what is sent after a refusal are right behind a resampler too."""
    cutter, frames = Framer(HZ, 1), []
    for number in range(20):
        sound = np.zeros(length, "<i2")
        sound[length // 3] = 20_000 if number == 10 else 0
        held = cutter.held
        whole = cutter.put(
            SampleBuffer(sound.tobytes(), rate_hz, 1, S16, length, at_ns(number * length, rate_hz))
        )
        if number not in (4, 5, 8):
            frames += whole
        elif refused:
            frames += whole[:1]
            cutter.drop()
        else:
            cutter.take_back(whole[0], held)
    place = int(np.abs(ints(frames)).argmax())
    told_ms = frames[place // SIZE].pts_ms + place % SIZE * 1000 / HZ
    assert abs(told_ms - at_ns(10 * length + length // 3, rate_hz) / MS) <= 1
    assert all(one.pts_ms < two.pts_ms for one, two in pairwise(frames))


def test_a_refusal_across_a_change_of_form() -> None:
    """What was held in one form is kept when the first buffer of another is refused."""
    cutter = Framer(HZ, 2)
    cutter.put(stereo(0, 100))
    mono = np.full(960, 7, "<i2").tobytes()
    held = cutter.held
    whole = cutter.put(SampleBuffer(mono, HZ, 1, S16, 960, at_ns(100)))
    assert [frame.pts_ms for frame in whole] == [5_000_000, 5_000_002, 5_000_012]
    cutter.take_back(whole[0], held)
    frames = [*cutter.put(stereo(1060, 480)), *cutter.finish()]
    assert [numbers(frame) for frame in frames] == [
        [*range(100), *[-1] * 380],
        list(range(1060, 1540)),
    ]
    assert [frame.pts_ms for frame in frames] == [5_000_000, 5_000_022]


# Conversion


@st.composite
def packed(draw: st.DrawFn) -> tuple[SampleFormat, list[int], bytes]:
    """48 samples of a format, extremes and halves among them."""
    form = draw(st.sampled_from([SampleFormat.S24_LE, SampleFormat.S24_3LE, SampleFormat.S32_LE]))
    top, step = 2 ** (form.bits - 1), 2 ** (form.bits - 16)
    one = st.one_of(
        st.integers(-top, top - 1),
        st.sampled_from([-top, top - 1, top - step // 2, top - step // 2 - 1, 0, -1]),
        st.integers(-32768, 32767).map(lambda n: n * step + (step // 2 if n < 32767 else 0)),
    )
    values = draw(st.lists(one, min_size=48, max_size=48))
    raw = b"".join(value.to_bytes(form.size_bytes, "little", signed=True) for value in values)
    return form, values, raw


def rounded(value: int, bits: int) -> int:
    """To 16 bits: the nearest, a half up, within full scale."""
    step = 1 << (bits - 16)
    return min(32767, (value + step // 2) // step)


@given(packed())
def test_more_bits_are_rounded_to_sixteen(sound: tuple[SampleFormat, list[int], bytes]) -> None:
    """24 and 32 bits come out as the nearest 16, exactly, and never wrap around."""
    form, values, raw = sound
    frames = Framer(8000, 1).put(SampleBuffer(raw * 5, 8000, 1, form, 240))
    assert ints(frames).tolist() == [rounded(value, form.bits) for value in values] * 5


@pytest.mark.parametrize(
    ("channels", "track", "expected"),
    [
        (1, 2, [(300, 300), (-32768, -32768)]),
        (2, 1, [(200,), (-32768,)]),
        (8, 2, [(300, 100), (-32768, -32768)]),
        (8, 1, [(50,), (-32768,)]),
        (3, 2, [(300, 100), (-32768, -32768)]),
    ],
)
@pytest.mark.parametrize("form", [S16, SampleFormat.S32_LE])
def test_channels_are_made_to_fit(
    channels: int, track: int, expected: list[tuple[int, ...]], form: SampleFormat
) -> None:
    """One channel is doubled, of many the first two are taken, to one they are averaged."""
    row = np.array([300, 100, 0, 0, 0, 0, 0, 0][:channels])
    rows = np.concatenate([np.tile(row, (240, 1)), np.full((240, channels), -32768)])
    samples = (rows << (form.bits - 16)).astype(f"<i{form.size_bytes}").tobytes()
    (frame,) = Framer(HZ, track).put(SampleBuffer(samples, HZ, channels, form, 480, T0))
    heard = ints([frame]).reshape(-1, track)
    assert [tuple(one) for one in (heard[0], heard[-1])] == expected
    assert frame.pts_ms == T0 // MS


def test_the_form_may_change_at_any_time() -> None:
    """Each change ends the frame begun with silence and begins one with the new form, at its
    time; no sound is lost."""
    cutter, frames, now_ns, levels = Framer(HZ, 2), list[Frame](), T0, []
    forms = [
        (HZ, 2, S16),
        (HZ, 1, S16),
        (44_100, 2, SampleFormat.S24_3LE),
        (96_000, 8, SampleFormat.S32_LE),
        (HZ, 2, S16),
        (16_000, 1, SampleFormat.S24_LE),
    ]
    starts = {}
    for number, (rate_hz, channels, form) in enumerate(forms):
        level, length = 1000 * (number + 1), rate_hz // 1000
        value = (level << (form.bits - 16)).to_bytes(form.size_bytes, "little")
        for part in range(25):
            whole = cutter.put(
                SampleBuffer(value * channels * length, rate_hz, channels, form, length, now_ns)
            )
            frames += whole
            if part == 0:
                starts[len(frames)] = now_ns  # 25 ms and silence: it begins the next frame
                levels.append(level)
            now_ns += MS
    frames += cutter.finish()
    assert len(frames) == 3 * len(forms)
    assert list(starts) == [3 * number for number in range(len(forms))]
    for number, start_ns in starts.items():
        for part, frame in enumerate(frames[number : number + 3]):
            assert abs(frame.pts_ms - start_ns / MS - 10 * part) <= ROUNDING_MS
    for number, level in enumerate(levels):
        sound = ints(frames[3 * number : 3 * number + 3])
        assert sound[960:-960].mean() == pytest.approx(level, rel=0.01)
        assert not sound[-400:].any()


@pytest.mark.parametrize("length", [441, 1000])
@pytest.mark.parametrize(("rate_hz", "track_hz"), RATES)
def test_a_tone_keeps_pitch_level_and_length(rate_hz: int, track_hz: int, length: int) -> None:
    """A resampled sine has its frequency within 0.01 Hz, its level within 0.1 dB and its length
    within a frame."""
    tone_hz, count = 997.0, 2 * rate_hz // length
    time_s = np.arange(count * length) / rate_hz
    sound = np.rint(16_000 * np.sin(2 * np.pi * tone_hz * time_s)).astype("<i2")
    cutter, frames = Framer(track_hz, 1), []
    for first in range(0, len(sound), length):
        frames += cutter.put(
            SampleBuffer(sound[first : first + length].tobytes(), rate_hz, 1, S16, length)
        )
    frames += cutter.finish()
    heard = ints(frames).astype(float)
    total = len(sound) * track_hz / rate_hz
    assert len(heard) == math.ceil(round(total) / (track_hz // 100)) * (track_hz // 100)
    assert not heard[math.ceil(total) + 2 :].any()

    def phasor(first: int) -> complex:
        place = np.arange(first, first + track_hz // 2)
        turn = np.exp(-2j * np.pi * tone_hz * place / track_hz) * np.hanning(len(place)) * 2
        return complex(np.mean(heard[place] * turn) * 2)

    early, late = phasor(track_hz // 10), phasor(track_hz)
    off_hz = np.angle(late / early) / (2 * np.pi * 0.9)
    assert abs(off_hz) <= 0.01
    assert abs(20 * np.log10(abs(early) / 16_000)) <= 0.1
