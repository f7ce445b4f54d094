"""What is done to samples: rates, channels and formats, measured."""

import math

import alsaaudio
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.audio.block import AudioFormat, SampleFormat
from capstand.dsp import resample
from capstand.dsp.catchup import power
from capstand.dsp.channels import to_channels
from capstand.dsp.convert import from_float, from_int32, to_float32, to_int32, to_s16
from capstand.dsp.level import WINDOW_S, Meter, mean_square
from capstand.dsp.resample import Resampler
from capstand.errors import SinkError

Floats = npt.NDArray[np.float32]
RATIOS = [
    *[(one, 48_000) for one in (8000, 11_025, 16_000, 22_050, 44_100, 96_000, 192_000)],
    *[(48_000, 8000), (48_000, 16_000), (48_000, 24_000), (44_100, 16_000)],
]


def through(sound: Floats, rate_hz: int, to_hz: int, lengths: list[int]) -> list[Floats]:
    """What comes out for blocks of these lengths, one after the other and again, and at the end."""
    if sound.ndim == 1:
        sound = sound.reshape(-1, 1)
    channels, place, number = sound.shape[1], 0, 0
    resampler, out = Resampler(rate_hz, to_hz, channels, SampleFormat.FLOAT_LE), list[bytes]()
    while place < len(sound):
        length = lengths[number % len(lengths)]
        out.append(resampler.process(sound[place : place + length].tobytes()))
        place, number = place + length, number + 1
    out.append(resampler.finish())
    return [np.frombuffer(one, np.float32).reshape(-1, channels) for one in out]


def sine(tone_hz: float, rate_hz: int, seconds: float) -> Floats:
    """At half of full scale."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * tone_hz * time_s)).astype(np.float32)


def level_db(tone_hz: float, rate_hz: int, to_hz: int) -> float:
    """All that comes out for a sine, against what went in, away from the edges."""
    out = np.concatenate(through(sine(tone_hz, rate_hz, 0.5), rate_hz, to_hz, [rate_hz // 100]))
    steady = out[to_hz // 8 : 3 * to_hz // 8, 0].astype(np.float64)
    return float(20 * np.log10(np.sqrt(np.mean(steady**2) * 2) / 0.5 + 1e-12))


# Rates


@pytest.mark.parametrize(("rate_hz", "to_hz"), RATIOS)
def test_a_click_comes_out_at_its_time(rate_hz: int, to_hz: int) -> None:
    """The first frame out lies at the time of the first frame in: a click is at its place within
    0.3 ms, whatever the ratio."""
    for at_s in (0.1, 0.333, 0.75):
        sound = np.zeros(rate_hz, np.float32)
        sound[round(at_s * rate_hz)] = 1
        out = np.concatenate(through(sound, rate_hz, to_hz, [rate_hz // 100]))
        true_s = round(at_s * rate_hz) / rate_hz
        assert abs(int(np.abs(out).argmax()) / to_hz - true_s) <= 0.3e-3


@pytest.mark.parametrize(("rate_hz", "to_hz"), RATIOS)
def test_a_low_tone_is_neither_early_nor_late(rate_hz: int, to_hz: int) -> None:
    """The phase of a 200 Hz sine is that of the time it is at, within 0.25 ms."""
    out = np.concatenate(through(sine(200, rate_hz, 1), rate_hz, to_hz, [rate_hz // 100]))
    place = np.arange(to_hz // 4, 3 * to_hz // 4)
    turn = np.exp(-2j * np.pi * 200 * place / to_hz)
    phase = np.angle(np.mean(out[place, 0] * turn) * 1j)
    assert abs(phase / (2 * np.pi * 200)) <= 0.25e-3


@pytest.mark.parametrize(("rate_hz", "to_hz"), RATIOS)
@pytest.mark.parametrize("lengths", [[1.0], [0.1, 3.7], [25.0]])
def test_the_whole_length_comes_out(rate_hz: int, to_hz: int, lengths: list[float]) -> None:
    """With what is still inside, the sound is as long as it was, to one frame."""
    blocks = [max(1, round(length * rate_hz / 100)) for length in lengths]
    total = round(0.7 * rate_hz)
    out = through(sine(440, rate_hz, 0.7), rate_hz, to_hz, blocks)
    assert abs(sum(map(len, out)) - total * to_hz / rate_hz) <= 1


@pytest.mark.parametrize(
    ("rate_hz", "to_hz"),
    [ratio for ratio in RATIOS if ratio[0] * 10 % 1000 == 0 or ratio[0] == 44_100],
)
def test_blocks_come_out_steadily(rate_hz: int, to_hz: int) -> None:
    """Once it has begun, each 10 ms in give 10 ms out, to one frame; at most 32 ms stay inside."""
    sizes = [len(one) for one in through(sine(440, rate_hz, 1), rate_hz, to_hz, [rate_hz // 100])]
    steady = sizes[5:-1]
    assert max(steady) - min(steady) <= 1
    assert abs(np.mean(steady) - to_hz / 100) <= 1
    assert sizes[-1] <= to_hz * 0.032


@pytest.mark.parametrize("lengths", [[1], [441], [7, 1000, 3]])
def test_blocks_leave_no_seam(lengths: list[int]) -> None:
    """However the sound is cut into blocks, the same comes out."""
    sound = sine(440, 44_100, 0.2) + sine(9000, 44_100, 0.2)
    whole = np.concatenate(through(sound, 44_100, 48_000, [len(sound)]))
    cut = np.concatenate(through(sound, 44_100, 48_000, lengths))
    assert len(cut) == len(whole)
    assert float(np.abs(cut - whole).max()) <= 1e-5


@pytest.mark.parametrize(("rate_hz", "to_hz"), RATIOS)
def test_the_pass_band_is_flat(rate_hz: int, to_hz: int) -> None:
    """Up to 0.4 of the lower rate a tone keeps its level within 0.1 dB."""
    for share in (0.01, 0.05, 0.1, 0.2, 0.3, 0.4):
        assert abs(level_db(share * min(rate_hz, to_hz), rate_hz, to_hz)) <= 0.1


@pytest.mark.parametrize("tone_hz", [26_000, 28_000, 32_000, 36_000, 40_000, 44_000, 47_000])
def test_nothing_is_folded_back(tone_hz: float) -> None:
    """A tone above the band of the lower rate is at least 90 dB down, wherever it would fold to."""
    assert level_db(tone_hz, 96_000, 48_000) <= -90


@pytest.mark.parametrize("tone_hz", [1000, 5000, 9000])
def test_nothing_is_mirrored(tone_hz: float) -> None:
    """From 22.05 to 48 kHz no image of a tone appears above 11 kHz: all beside it is 90 dB down."""
    out = np.concatenate(through(sine(tone_hz, 22_050, 1), 22_050, 48_000, [220]))[:, 0]
    steady = out[12_000:36_000].astype(np.float64) * np.blackman(24_000)
    spectrum = np.abs(np.fft.rfft(steady))
    tone = round(tone_hz / 2)  # bins of 2 Hz
    beside = np.delete(spectrum, slice(tone - 10, tone + 11))
    assert 20 * np.log10(beside.max() / spectrum.max()) <= -90


def test_channels_do_not_mix() -> None:
    """Two channels are resampled as each would be alone."""
    left, right = sine(440, 44_100, 0.3), sine(3000, 44_100, 0.3)
    both = np.concatenate(through(np.stack([left, right], 1), 44_100, 48_000, [441]))
    for number, one in enumerate((left, right)):
        alone = np.concatenate(through(one, 44_100, 48_000, [441]))[:, 0]
        assert float(np.abs(both[:, number] - alone).max()) <= 1e-6


def test_nothing_gives_nothing() -> None:
    """Without sound nothing comes out, at the end neither."""
    resampler = Resampler(44_100, 48_000, 2, SampleFormat.FLOAT_LE)
    assert resampler.process(b"") == resampler.finish() == b""


def test_much_more_may_come_out_than_the_rates_tell() -> None:
    """A ratio far below nominal makes a block longer than there is room for: all of it comes."""
    sound = sine(440, 48_000, 1).tobytes()
    whole, cut = (Resampler(48_000, 48_000, 1, SampleFormat.FLOAT_LE, moving=True) for _ in "12")
    for one in (whole, cut):
        one.move(0.25, 0)
    small = [cut.process(sound[at : at + 400]) for at in range(0, len(sound), 400)]
    out = whole.process(sound)
    assert out == b"".join(small)
    assert len(out) / 4 == pytest.approx(4 * 48_000, abs=1000)


def test_libsoxr_is_taken_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that has not its functions is passed over; none at all is told."""
    known = list(resample._places())
    assert "soxr_ext" in known[0]
    for places, there in ((["libm.so.6", "/nowhere.so", *known], True), (["libm.so.6"], False)):
        resample._libsoxr.cache_clear()
        monkeypatch.setattr(resample, "_places", lambda places=places: places)
        if there:
            assert through(sine(440, 8000, 0.1), 8000, 16_000, [80])
        else:
            with pytest.raises(SinkError, match="libsoxr is missing"):
                Resampler(8000, 16_000, 1, SampleFormat.S16_LE)
    resample._libsoxr.cache_clear()


# Channels


@given(st.integers(1, 16), st.integers(0, 20), st.sampled_from([1, 2]))
def test_channels_of_any_number(have: int, frames: int, channels: int) -> None:
    """To one: the mean of all. To two: one is doubled, of more the first two are taken."""
    block = np.random.default_rng(have).uniform(-1, 1, (frames, have)).astype(np.float32)
    got = to_channels(block, channels)
    assert got.shape == (frames, channels)
    assert got.dtype == np.float32
    if have == channels:
        assert got is block
    elif channels == 1:
        assert got[:, 0] == pytest.approx(block.astype(np.float64).mean(axis=1), abs=1e-6)
    elif have == 1:
        assert (got == block).all()
    else:
        assert (got == block[:, :2]).all()


# Formats


def pack(values: list[int], form: SampleFormat) -> bytes:
    return b"".join(value.to_bytes(form.size_bytes, "little", signed=True) for value in values)


@st.composite
def sounds(draw: st.DrawFn) -> tuple[SampleFormat, list[int]]:
    form = draw(st.sampled_from(list(SampleFormat)[:4]))  # pack() knows these
    top = 2 ** (form.bits - 1)
    edges = st.sampled_from([-top, -top + 1, -1, 0, 1, top - 2, top - 1])
    return form, draw(st.lists(st.integers(-top, top - 1) | edges, max_size=40))


@given(sounds())
def test_sixteen_bits_are_the_nearest(sound: tuple[SampleFormat, list[int]]) -> None:
    """Each sample is the nearest of 16 bits, a half goes up, and full scale stays within."""
    form, values = sound
    step = 2 ** (form.bits - 16)
    expected = [min(32767, (value + step // 2) // step) for value in values]
    packed = pack(values, form)
    assert np.frombuffer(to_s16(packed, form), "<i2").tolist() == expected
    assert to_s16(memoryview(bytearray(packed)), form) == to_s16(packed, form)
    for value, near in zip(values, expected, strict=True):
        assert abs(value - near * step) <= step / 2 or value >= 32767 * step


def test_sixteen_bits_stay_as_they_are() -> None:
    """S16 goes through unchanged, every value of it."""
    every = np.arange(-32768, 32768).astype("<i2").tobytes()
    assert to_s16(every, SampleFormat.S16_LE) == every
    values = to_float32(every, SampleFormat.S16_LE)
    assert from_float(values, SampleFormat.S16_LE) == every


@given(st.lists(st.integers(-(2**23), 2**23 - 1), max_size=40), st.integers(0, 255))
def test_the_byte_above_24_bits_does_not_count(values: list[int], byte: int) -> None:
    """S24_LE is 24 bits in 32; ALSA leaves what is above open."""
    packed = bytearray(pack(values, SampleFormat.S24_LE))
    clean = to_s16(bytes(packed), SampleFormat.S24_LE)
    packed[3::4] = bytes([byte]) * len(values)
    assert to_s16(bytes(packed), SampleFormat.S24_LE) == clean


@given(sounds())
@settings(max_examples=200)
def test_floats_hold_what_was_packed(sound: tuple[SampleFormat, list[int]]) -> None:
    """Samples lie within ±1.0, 16 and 24 bits of them without loss, 32 to 24 bits; packed again
    they never wrap around."""
    form, values = sound
    floats = to_float32(pack(values, form), form)
    assert floats.dtype == np.float32
    exact = np.array(values, np.float64) / 2.0 ** (form.bits - 1)
    assert np.abs(floats - exact).max(initial=0) <= (2.0**-24 if form.bits == 32 else 0)
    again = from_float(floats, form)
    if form.bits < 32:
        assert again == pack(values, form)
    else:
        off = np.frombuffer(again, "<i4").astype(np.int64) - np.array(values, np.int64)
        assert np.abs(off).max(initial=0) <= 128


# Formats, each sample by what ALSA says of its bytes


@pytest.mark.parametrize(
    ("form", "packed", "share"),
    [
        ("U8", b"\x80", 0.0),
        ("U8", b"\x00", -1.0),
        ("U8", b"\xff", 127 / 128),
        ("S16_BE", b"\x40\x00", 0.5),
        ("S16_BE", b"\x80\x00", -1.0),
        ("S20_3LE", b"\x00\x00\x04", 0.5),
        ("S20_3LE", b"\x00\x00\x08", -1.0),
        ("S20_3LE", b"\x00\x00\xf8", -1.0),
        ("S20_3LE", b"\xff\xff\xff", -1 / 2**19),
        ("FLOAT_LE", b"\x00\x00\x00\x3f", 0.5),
        ("FLOAT_LE", b"\x00\x00\x80\xbf", -1.0),
        ("FLOAT_LE", b"\x00\x00\xc0\x7f", 0.0),
        ("FLOAT_LE", b"\x00\x00\x80\xff", -1.0),
    ],
)
def test_a_sample_is_what_its_bytes_say(form: str, packed: bytes, share: float) -> None:
    """A float that is no number is silence, one without end is full scale."""
    sample = SampleFormat[form]
    assert to_int32(packed, sample)[0] == share * 2.0**31
    assert to_float32(packed, sample)[0] == share


@pytest.mark.parametrize("sample", list(SampleFormat))
@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=50))
def test_every_format_holds_its_bits(sample: SampleFormat, values: list[int]) -> None:
    """Packed and unpacked again, a value keeps as many bits as the format has; nothing at all is
    the format's own silence; the number is ALSA's."""
    wide = np.array(values, np.int32)
    kept = to_int32(from_int32(wide, sample), sample)
    assert len(from_int32(wide, sample)) == len(wide) * sample.size_bytes
    if sample is SampleFormat.FLOAT_LE:
        assert np.abs(kept - wide.astype(np.int64)).max(initial=0) <= 2**7
    else:
        assert np.array_equal(kept, wide >> (32 - sample.bits) << (32 - sample.bits))
    assert not to_int32(sample.silence(7), sample).any() and len(sample.silence(7)) == (
        7 * sample.size_bytes
    )
    named = getattr(alsaaudio, f"PCM_FORMAT_{sample.alsa_name}", 36)  # it does not name S20_3LE
    assert sample.alsa_number == named


@given(sounds())
def test_the_power_of_a_block(sound: tuple[SampleFormat, list[int]]) -> None:
    """The mean square of its samples as shares of full scale."""
    form, values = sound
    shares = [value / 2 ** (form.bits - 1) for value in values or [0]]
    mean = sum(share * share for share in shares) / len(shares)
    assert power(pack(values or [0], form), form) == pytest.approx(mean, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("value", [2.0, 1e20, -3e38, float("inf"), float("nan")])
def test_floats_far_beyond_full_scale_have_a_level(value: float) -> None:
    """Whatever a device calls a sample, the meter says a number, without a warning of numpy's."""
    packed = np.full(round(8000 * WINDOW_S), value, "<f4").tobytes()
    meter = Meter(AudioFormat(8000, 1, SampleFormat.FLOAT_LE))
    with np.errstate(all="raise"):
        meter.update(packed)
        assert math.isfinite(mean_square(packed, SampleFormat.FLOAT_LE))
    assert meter.level_dbfs is not None and -120.0 <= meter.level_dbfs <= 120.0
    assert meter.peak_dbfs is not None and -120.0 <= meter.peak_dbfs <= 120.0
