"""What is wrong with single channels is told, and ordinary sound is not."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from capstand.accounting.ledger import Ledger
from capstand.accounting.stats import Health
from capstand.audio.block import AudioFormat, SampleFormat
from capstand.capture.types.synthetic import SyntheticConfig
from capstand.config.schema import CaptureConfig
from capstand.dsp import ebur128
from capstand.dsp.convert import from_float, from_int32
from capstand.dsp.defects import Defects, Limits
from capstand.dsp.level import Meter
from capstand.service.display import status_table
from capstand.service.reporter import Reporter
from capstand.stream import defect
from tests.line import Keep, Line, capture

RATE_HZ = 48_000
S = 1_000_000_000
Wave = npt.NDArray[np.float64]
ALL = [one.alsa_name for one in SampleFormat]


class Ear:
    """A meter of ``keys``' capture that is fed with waves."""

    def __init__(self, **keys: Any) -> None:
        self.capture = CaptureConfig(device="hw:0", rate_hz=RATE_HZ)._replace(**keys)
        audio = self.capture.audio
        self.watch = Defects(audio, Limits.of(self.capture))
        self.meter = Meter(audio, self.watch)

    def raw(self, samples: bytes, times: int = 1) -> "Ear":
        """A piece of sound, so many times."""
        step = self.capture.period_frames * self.capture.audio.frame_bytes
        for _ in range(times):
            for at in range(0, len(samples), step):
                self.meter.update(samples[at : at + step])
        return self

    def hear(self, wave: Wave, seconds: float) -> "Ear":
        """A wave of shape (frames, channels), over and over."""
        sample = self.capture.audio.sample
        times = math.ceil(seconds * RATE_HZ / len(wave))
        return self.raw(from_float(wave.reshape(-1), sample), times)

    @property
    def kinds(self) -> list[str]:
        return [one.kind for one in self.defects]

    @property
    def defects(self) -> list[defect.Defect]:
        assert self.watch.figures is not None
        return defect.find(self.watch.figures, self.capture)


def noise(seconds: float, level: float, channels: int = 2, seed: int = 1) -> Wave:
    rng = np.random.default_rng(seed)
    return rng.normal(0, level, (round(seconds * RATE_HZ), channels))


def sine(hz: float, amplitude: float, seconds: float = 1.0) -> Wave:
    wave = amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)
    return np.stack((wave, wave), axis=1)


def speech() -> Wave:
    """Syllables of noise and pauses between words, ten seconds of them; loud ones reach 0 dBFS."""
    wave = noise(10, 0.2)
    at = np.arange(len(wave)) / RATE_HZ
    loud = np.maximum(0, np.sin(2 * np.pi * 4 * at)) * (np.sin(2 * np.pi * 0.3 * at) > -0.3)
    wave *= loud[:, None]
    wave += noise(10, 0.0005, seed=2)
    return np.asarray(wave / np.abs(wave).max())


def music() -> Wave:
    """Tones from 41 Hz on whose loudest moment is just 0 dBFS."""
    at = np.arange(10 * RATE_HZ) / RATE_HZ
    parts = ((41.2, 1.0), (110, 0.7), (220, 0.5), (329.6, 0.4), (1760, 0.2), (7040, 0.1))
    wave = sum(level * np.sin(2 * np.pi * hz * at + hz) for hz, level in parts)
    wave = np.stack((wave, -wave), axis=1)
    return np.asarray(wave / np.abs(wave).max())


def rumble() -> Wave:
    """Wind: a strong tone below hearing, whose windows are far off the middle one by one."""
    return sine(2.0, 0.7, 5.0) + noise(5, 0.01)


def ordinary() -> dict[str, Callable[[], Wave]]:
    return {
        "speech": speech,
        "music": music,
        "rumble": rumble,
        "a full tone": lambda: sine(440.0, 1.0),
        "a full low tone": lambda: sine(30.0, 1.0),
        "one side 60 dB lower": lambda: noise(5, 0.2) * np.array([1.0, 0.001]),
        "a door that slams": lambda: np.clip(
            noise(10, 0.01) + sine(50, 9.0, 10) * (np.arange(10 * RATE_HZ) < 4800)[:, None], -1, 1
        ),
    }


@pytest.mark.parametrize("format", ["S16_LE", "S24_3LE", "FLOAT_LE"])
@pytest.mark.parametrize("what", list(ordinary()))
def test_ordinary_sound_is_no_defect(what: str, format: str) -> None:
    """Speech, loud music, wind, full tones and quiet sides raise no alarm in two minutes."""
    wave = ordinary()[what]()
    ear = Ear(format=format)
    for _ in range(12):
        assert ear.hear(wave, 10).kinds == []


@pytest.mark.parametrize("what", ["speech", "music", "a full tone"])
def test_ordinary_sound_in_8_bits_is_no_defect(what: str) -> None:
    """In 8 bits a full tone stays longer at full scale, and quiet sound may be none."""
    assert Ear(format="U8").hear(ordinary()[what](), 120).kinds == []


@pytest.mark.parametrize("format", ALL)
def test_silence_with_dither_is_no_defect(format: str) -> None:
    """The lowest bit toggles: that is an open input, in every format."""
    sample = SampleFormat[format]
    bits = np.random.default_rng(3).integers(-1, 2, 2 * RATE_HZ).astype(np.int32)
    samples = from_int32(bits << (32 - sample.bits), sample)
    assert Ear(format=format).raw(samples, 130).kinds == []


@pytest.mark.parametrize("format", ALL)
@pytest.mark.parametrize(("value", "kind"), [(0.0, "dead channel"), (0.25, "stuck channel")])
def test_a_channel_of_one_value_while_another_sounds(format: str, value: float, kind: str) -> None:
    """After dead_warn_s, not before, a side with one value is named, with what to do; a single
    other sample ends it."""
    wave = noise(5, 0.1)
    wave[:, 1] = value
    ear = Ear(format=format, dead_warn_s=60.0)
    assert ear.hear(wave, 55).kinds == []
    (found,) = ear.hear(wave, 10).defects
    assert (found.kind, found.channels) == (kind, (2,))
    assert found.message.startswith(f"channel 2 is {kind.split()[0]}: only ")
    assert "while channel 1 sounds" in found.message and "pick = [1] leaves it out" in found.message
    wave[100, 1] = 0.5
    assert ear.hear(wave, 5).kinds == []


def test_the_channels_are_named_as_on_the_card() -> None:
    """What is picked keeps the card's numbers, and several are told in one sentence."""
    wave = noise(5, 0.1, channels=4)
    wave[:, [0, 3]] = 0
    (found,) = Ear(pick=(8, 2, 5, 7)).hear(wave, 70).defects
    assert found.channels == (8, 7)
    assert found.message.startswith("channels 8 and 7 are dead: only zeros for 70 s")
    assert "while channels 2 and 5 sound" in found.message and "pick = [2, 5]" in found.message


def test_all_channels_stuck() -> None:
    """A stream of one value that is not zero is told after silence_warn_s; zeros are told
    elsewhere."""
    (found,) = Ear().hear(np.full((RATE_HZ, 2), 0.25), 65).defects
    assert (found.kind, found.channels) == ("stuck", ())
    assert found.message.startswith(
        "every sample has had the same value (+0.2500 of full scale) for"
    )
    assert Ear().hear(np.zeros((RATE_HZ, 2)), 65).kinds == []
    assert Ear(silence_warn_s=0.0).hear(np.full((RATE_HZ, 2), 0.25), 65).kinds == []


@pytest.mark.parametrize("format", ALL)
def test_an_offset(format: str) -> None:
    """A mean of −20 dBFS is told within 20 s, and its end once it is less than half of what is
    allowed; −40 dBFS is nothing."""
    ear = Ear(format=format)
    assert ear.hear(noise(5, 0.05) + 0.01, 60).kinds == []
    (found,) = ear.hear(noise(5, 0.05) - np.array([0.0, 0.1]), 20).defects
    assert (found.kind, found.channels) == ("offset", (2,))
    assert found.message.startswith("channel 2 has a DC offset of -0.1")
    assert ear.hear(noise(5, 0.05) - np.array([0.0, 0.04]), 60).kinds == ["offset"], "hysteresis"
    assert ear.hear(noise(5, 0.05), 30).kinds == []
    assert Ear(format=format, dc_warn_dbfs=0.0).hear(noise(5, 0.05) - 0.5, 60).kinds == []


@pytest.mark.parametrize("format", ALL)
def test_clipping(format: str) -> None:
    """Sound that is cut off at full scale is told within 20 s, and its end after 30 s without."""
    ear = Ear(format=format)
    loud = np.clip(sine(200.0, 4.0) * np.array([1.0, 0.1]), -1, 1)
    (found,) = ear.hear(loud, 20).defects
    assert (found.kind, found.channels) == ("clipping", (1,))
    assert found.message == "channel 1 clips: 400 clipped peaks per second; lower the gain"
    assert ear.hear(loud * 0.5, 15).kinds == ["clipping"]
    assert ear.hear(loud * 0.5, 30).kinds == []
    assert Ear(format=format, clip_warn_per_s=0.0).hear(loud, 60).kinds == []


def test_16_bits_in_a_wider_format_clip_as_well() -> None:
    """A card of 16 bits that calls itself 32 has its full scale a little lower."""
    loud = np.clip(sine(200.0, 4.0), -1, 32767 / 32768)
    assert Ear(format="S32_LE").hear(loud, 20).kinds == ["clipping"]


def test_a_dead_side_is_a_concern_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STATUS is DEGRADED and names the channel, the journal has its beginning and its end once,
    the figures are in the books of each channel, and unknown before there are some."""
    card = capture(source=SyntheticConfig(signal="noise"), dead_warn_s=20.0)
    line = Line(card, [Keep()])
    stream = line.stream
    assert line.stats().as_json()["channel_levels"] is None
    stream.pusher.meter = None
    stream.start_meter()
    ledger = Ledger(tmp_path)
    reporter = Reporter(stream.config, ledger)
    said: list[str] = []
    monkeypatch.setattr(
        "capstand.service.reporter.log_event",
        lambda _, text, *words, **__: said.append(text % words),
    )

    def run(seconds: float) -> None:
        end = line.time.now_ns() + seconds * S
        while line.time.now_ns() < end:
            for _ in range(100):
                line.capture()
                line.push()
            line.deliver()
            reporter.update(line.report())

    run(3)
    first, _ = line.stats().as_json()["channel_levels"]
    assert first["channel"] == 1 and first["peak_dbfs"] == pytest.approx(-20, abs=0.5)
    assert first["dc"] is None and first["clipped_per_s"] is None
    fill = stream.source._fill  # type: ignore[attr-defined]

    def half(slot: memoryview, at: int, count: int) -> None:
        fill(slot, at, count)
        slot.cast("H")[1 : 2 * count : 2] = memoryview(bytes(2 * count)).cast("H")

    stream.source._fill = half  # type: ignore[attr-defined]
    run(30)
    verdict = stream.overview.assessment(line.time.now_ns())
    assert (verdict.health, verdict.alive) == (Health.DEGRADED, True)
    assert verdict.reason is not None and verdict.reason.startswith("channel 2 is dead: only zeros")
    first, second = line.stats().as_json()["channel_levels"]
    assert second["constant_s"] > 20 and first["constant_s"] == 0
    assert abs(first["dc"]) < 0.01 and first["clipped_per_s"] == 0
    stream.source._fill = fill  # type: ignore[attr-defined]
    run(2)
    ledger.close(10)
    assert stream.overview.assessment(line.time.now_ns()).health is Health.OK
    told = [one for one in said if "channel" in one]
    assert len(told) == 2
    assert told[0].startswith("mic: channel 2 is dead: only zeros for 20 s while channel 1 sounds")
    assert told[1] == "mic: no channel is dead now"


class Told:
    """A stream of a tone with ``keys``, and what its reporter logs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> None:
        tone = SyntheticConfig(signal="tone", level_dbfs=-6.0, tone_hz=997)
        self.line = Line(capture(source=tone, **keys), [Keep()])
        self.stream = self.line.stream
        self.stream.pusher.meter = None
        self.stream.start_meter()
        self.reporter = Reporter(self.stream.config, Ledger(folder))
        self.said: list[str] = []
        monkeypatch.setattr(
            "capstand.service.reporter.log_event",
            lambda _, text, *words, **__: self.said.append(text % words),
        )

    def run(self, seconds: float) -> None:
        end = self.line.time.now_ns() + seconds * S
        while self.line.time.now_ns() < end:
            for _ in range(100):
                self.line.capture()
                self.line.push()
            self.line.deliver()
            self.reporter.update(self.line.report())

    def quieter(self) -> None:
        """The same tone at a hundredth."""
        source = self.stream.source
        fill = source._fill  # type: ignore[attr-defined]

        def soft(slot: memoryview, at: int, count: int) -> None:
            fill(slot, at, count)
            samples = np.frombuffer(slot, "<i2")[: 2 * count]
            samples[:] = samples // 100

        source._fill = soft  # type: ignore[attr-defined]


def test_loudness_that_is_wrong_is_a_concern_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the limits of the configuration: STATUS says it, the journal its beginning and its end,
    and the figures are in the status."""
    if not ebur128.library():
        pytest.skip(f"{ebur128.PACKAGE} is missing")
    limits = {"loud_warn_lufs": -10.0, "true_peak_warn_dbtp": -7.0, "quiet_warn_lufs": -40.0}
    told = Told(tmp_path, monkeypatch, loudness=True, **limits)
    assert told.line.stats().as_json()["loudness"] is None
    told.run(20)
    figures = told.line.stats().as_json()["loudness"]
    assert figures == {
        "momentary_lufs": pytest.approx(-6, abs=0.1),
        "short_term_lufs": pytest.approx(-6, abs=0.1),
        "integrated_lufs": pytest.approx(-6, abs=0.1),
        "true_peak_dbtp": pytest.approx(-6, abs=0.1),
        "max_true_peak_dbtp": pytest.approx(-6, abs=0.1),
    }
    assert "-6.0 LUFS short-term" in status_table([told.line.stats().as_json()])
    verdict = told.stream.overview.assessment(told.line.time.now_ns())
    assert (verdict.health, verdict.alive) == (Health.DEGRADED, True)
    peak = "true peak of -6.0 dBTP, above true_peak_warn_dbtp (-7); lower the gain"
    loud = "loudness of -6.0 LUFS, above loud_warn_lufs (-10); lower the gain"
    assert verdict.reason == f"{peak}; {loud}"
    told.quieter()
    told.run(80)
    verdict = told.stream.overview.assessment(told.line.time.now_ns())
    assert verdict.reason is not None and verdict.reason.startswith("loudness of -46.")
    levels = [one.removeprefix("mic: ") for one in told.said if "LUFS" in one or "dBTP" in one]
    quiet = levels.pop()
    assert re.fullmatch(
        r"loudness of -46\.\d LUFS, below quiet_warn_lufs \(-40\): is the .*", quiet
    )
    assert levels == [
        *(peak, loud),
        *("the loudness is below -10 LUFS again", "no true peak above -7 dBTP now"),
    ]


def test_loudness_costs_nothing_where_it_is_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ebur128, "library", lambda: pytest.fail("it is loaded"))
    told = Told(tmp_path, monkeypatch)
    told.run(3)
    stats = told.line.stats()
    assert stats.level_dbfs is not None and stats.loudness is None
    assert "LUFS" not in status_table([stats.as_json()])


def test_a_missing_library_is_told_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sound flows, all other figures are there, and the status says what to install."""
    monkeypatch.setattr(ebur128, "library", lambda: None)
    told = Told(tmp_path, monkeypatch, loudness=True, loud_warn_lufs=-10.0)
    told.run(20)
    stats = told.line.stats()
    assert (stats.health, stats.loudness) == ("OK", None)
    assert stats.level_dbfs == -9.0 and stats.channel_levels is not None
    assert stats.notice == (
        "loudness needs libebur128; install the Debian package (apt install libebur128-1)"
    )


def test_one_value_after_the_other_is_not_one_value() -> None:
    """A very slow square wave is constant at each look, and is not stuck."""
    wave = np.repeat(np.array([0.2, -0.2]), 9600)[:, None] * np.array([1.0, 1.0])
    assert Ear().hear(wave, 130).kinds == []


def test_floats_that_are_no_sound() -> None:
    """The largest floats, infinities and what is no number leave figures that are numbers."""
    ear = Ear(format="FLOAT_LE")
    odd = np.array([3e38, -3e38, np.inf, -np.inf, np.nan, 3e38, 3e38, 1e-40] * 6000, "<f4")
    assert ear.raw(odd.tobytes(), 40).kinds
    assert ear.watch.figures is not None
    figures = [
        x for figure in ear.watch.figures for x in (figure.peak, figure.dc, figure.clipped_per_s)
    ]
    figures += [ear.meter.level_dbfs, ear.meter.peak_dbfs]
    assert all(figure is not None and math.isfinite(figure) for figure in figures)


@pytest.mark.parametrize("rate_hz", [8000, 768_000])
def test_other_rates(rate_hz: int) -> None:
    """At any rate a clipped voice is told and a full tone is not."""
    audio = AudioFormat(rate_hz, 1, SampleFormat.S16_LE)
    at = np.arange(rate_hz) / rate_hz
    for amplitude, clips in ((1.0, False), (4.0, True)):
        watch = Defects(audio, Limits.of(CaptureConfig(device="hw:0")))
        meter = Meter(audio, watch)
        samples = from_float(amplitude * np.sin(2 * np.pi * 200 * at), audio.sample)
        for _ in range(20):
            meter.update(samples)
        assert watch.figures is not None and watch.figures[0].is_clipping is clips
