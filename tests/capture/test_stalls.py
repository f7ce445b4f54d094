"""Silence without an error: found by frames that do not come, healed by the mildest step there is.

On virtual time with a card of our own protocol, and on a real ALSA PCM (tests/fakecard). What must
not be taken for a stall is here too: late stamps, long periods, a process that itself stood still.
"""

import errno
import time as real_time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from capstand.accounting.ledger import Ledger
from capstand.accounting.stats import Cause, Health
from capstand.audio.block import NS_PER_S, SampleFormat
from capstand.capture.alsa import AlsaSource
from capstand.capture.capturer import POLL_MS, STALL_S
from capstand.capture.source import NegotiatedParams, Reading
from capstand.capture.synthetic import SyntheticSource, VirtualTime
from capstand.capture.types.synthetic import SyntheticConfig
from capstand.config.schema import CaptureConfig
from capstand.devices import rebind
from capstand.dsp.convert import from_int32
from capstand.dsp.level import WINDOW_S, Meter
from capstand.errors import DeviceError
from capstand.service.reporter import Reporter
from tests.counts import FULL
from tests.fakecard import FakeCard
from tests.figures import figure
from tests.line import Keep, Line, capture
from tests.patience import PATIENCE_S

S = NS_PER_S


class Wedged(SyntheticSource):
    """A simulated card that from ``at_ns`` on is open and brings nothing, with no error, till it is
    set going in the way it wants: by ``restart``, by ``open``, or by neither. ``error`` makes it
    fail with EIO instead.
    """

    def __init__(
        self, card: CaptureConfig, clock: VirtualTime, cure: str, error: bool = False
    ) -> None:
        super().__init__(card, clock)
        self.clock = clock
        self.cure = cure
        self.error = error
        self.at_ns = clock.now_ns() + 10 * S
        self.wedged = False
        self.calls: list[str] = []

    def open(self) -> NegotiatedParams:
        self._set_going("open")
        return super().open()

    def restart(self) -> None:
        self._set_going("restart")
        super().restart()

    def advice(self) -> str:
        return "kick it"

    def read(self, slot: memoryview, timeout_ms: int) -> Reading:
        if self.clock.now_ns() >= self.at_ns:
            self.wedged, self.at_ns = True, 1 << 62
        if not self.wedged:
            return super().read(slot, timeout_ms)
        if self.error:
            raise DeviceError("wedged", errno.EIO)
        self.clock.wait_until(self.clock.now_ns() + timeout_ms * 1_000_000)
        return Reading()

    def _set_going(self, call: str) -> None:
        self.calls.append(call)
        if call == self.cure:
            self.wedged = False


class Watch:
    """A line whose card is wedged after 10 s; what was seen of it at every turn."""

    def __init__(self, cure: str, error: bool = False, **keys: object) -> None:
        card = capture(format="S32_LE", channels=1, **keys)
        self.time = VirtualTime()
        self.source = Wedged(card, self.time, cure, error)
        self.sink = Keep()
        self.line = Line(card, [self.sink], self.time, self.source)
        self.capturer = self.line.stream.capturer
        self.troubles: list[str] = []
        self.healths: set[str] = set()
        self.silent_ns = 0

    def run(self, seconds: float) -> None:
        end = self.time.now_ns() + seconds * S
        while self.time.now_ns() < end:
            self.line.capture()
            self.line.push()
            self.line.deliver()
            stats = self.line.stats()
            assert stats.balanced
            self.healths.add(stats.health)
            trouble = self.capturer.trouble
            if trouble is not None and str(trouble) not in self.troubles:
                self.troubles.append(str(trouble))
                heard_ns = self.capturer.captured_at_ns
                self.silent_ns = self.silent_ns or self.time.now_ns() - heard_ns


def test_a_restarted_stream_is_enough() -> None:
    """A card that falls silent without an error is heard again after at most 3 s, when its stream
    is started again; it is not opened again, and the gap is what the clock says."""
    watch = Watch("restart")
    watch.run(20)
    assert watch.source.calls == ["open", "restart"]
    assert watch.silent_ns < 3 * S
    assert (watch.capturer.stalls, watch.capturer.restarts, watch.capturer.opens) == (1, 1, 1)
    assert watch.troubles == [
        "the device is open but delivered no frame for 2 s; restarting its stream"
    ]
    stats = watch.line.stats()
    (gap,) = watch.line.gaps
    assert (gap.cause, gap.exact) == (Cause.STALLED, False)
    assert gap.frames == pytest.approx(48_000 * STALL_S, abs=48 * POLL_MS + 480)
    assert (stats.restarts, stats.opens, stats.trouble) == (1, 1, "frames were just lost")
    last = watch.sink.blocks[-1]  # the card ran on, so number and index still agree
    assert np.frombuffer(last.samples, "<i4")[0] == pytest.approx(last.first_frame, abs=2)
    assert watch.healths == {"OK", "DEGRADED"}


def test_a_stream_that_stays_silent_is_opened_again() -> None:
    """Where starting the stream again does not help within 2 s, the device is opened again."""
    watch = Watch("open")
    watch.run(30)
    assert watch.source.calls == ["open", "restart", "open"]
    assert (watch.capturer.stalls, watch.capturer.restarts, watch.capturer.opens) == (1, 1, 2)
    assert [trouble.rsplit("; ", 1)[1] for trouble in watch.troubles] == [
        "restarting its stream",
        "reopening it",
    ]
    (gap,) = watch.line.gaps + watch.line.stream.capturer.tally.gaps.since(len(watch.line.gaps))
    assert (gap.cause, gap.exact) == (Cause.REOPENED, False)


def test_a_device_that_nothing_helps_says_what_to_do_and_is_tried_for_ever() -> None:
    """Where opening it again does not help either, the status says what a person can do, in words
    that do not change, and each way is tried on; the watchdog stays fed, no restart would help."""
    watch = Watch("nothing")
    watch.run(600)
    assert watch.troubles[2:] == [
        "the device is open but delivered no frame for 2 s, reopening did not help either; still "
        "retrying; kick it"
    ]
    assert watch.capturer.opens > 100
    assert watch.healths == {"OK", "DEGRADED"}
    watch.source.cure = "open"
    watch.run(20)
    assert watch.line.stats().health == "OK"


def test_a_second_stall_begins_with_the_mildest_step_again() -> None:
    """Once frames have come, the ladder begins at its foot."""
    watch = Watch("restart")
    watch.run(20)
    watch.source.at_ns = watch.time.now_ns() + S
    watch.run(20)
    assert watch.source.calls == ["open", "restart", "restart"]
    assert watch.capturer.stalls == 2


def test_an_io_error_has_its_stream_started_again_at_once() -> None:
    """EIO is answered by starting the stream again, without a pause, and only then by opening."""
    watch = Watch("restart", error=True)
    watch.run(20)
    assert watch.source.calls == ["open", "restart"]
    assert watch.troubles == ["the device says: Input/output error; restarting its stream"]
    assert sum(gap.frames for gap in watch.line.gaps) < 2 * 480
    other = Watch("open", error=True)
    other.run(20)
    assert other.source.calls == ["open", "restart", "open"]


@pytest.mark.parametrize("period_ms", [5.0, 10.0, 500.0, 1000.0])
def test_detection_is_within_three_seconds(period_ms: float) -> None:
    """Whatever the period, a silent card is found within 3 s of its last frame."""
    watch = Watch("restart", period_ms=period_ms, buffer_ms=4000.0)
    watch.run(40)
    assert watch.capturer.stalls == watch.capturer.restarts == 1
    silent_s = (watch.silent_ns - period_ms * 1_000_000) / S  # that is since its last period began
    figure(f"silent card, period {period_ms:g} ms: found after", f"{silent_s:.1f} s")
    assert silent_s <= 3


# No false alarm


@pytest.mark.parametrize(("period_ms", "hours"), [(1000.0, 8), (100.0, 1), (10.0, 0.1)])
def test_a_day_without_a_false_alarm(period_ms: float, hours: float) -> None:
    """Late stamps, a host that stops for up to a minute every quarter of an hour (also in the midst
    of a wait) and long periods are no stall: nothing is started or opened again, nothing is told
    but the frames that were lost."""
    card = capture(
        rate_hz=8000,
        channels=1,
        period_ms=period_ms,
        buffer_ms=4000.0,
        source=SyntheticConfig(signal="silence", ppm=-40.0, jitter_us=500.0),
    )
    time = VirtualTime()
    line = Line(card, [], time)
    capturer = line.stream.capturer
    hours = 24 if FULL else hours
    end = time.now_ns() + round(hours * 3600) * S
    stop_ns = number = 0
    while time.now_ns() < end:
        if line.capture():
            line.push()
        number += 1
        if time.now_ns() - stop_ns > 900 * S:
            stop_ns = time.now_ns()
            time.at_ns += (5 + 7 * number % 55) * S + 1  # nobody of us ran
            for _ in range(4):
                verdict = line.stream.overview.assessment(time.now_ns())
                assert verdict.health is not Health.STALLED
                assert capturer.trouble is None
                line.capture()
        if number % 40 == 0:
            assert line.stream.overview.assessment(time.now_ns()).health is not Health.STALLED
        assert capturer.restarts == 0
    assert (capturer.stalls, capturer.opens, capturer.trouble) == (0, 1, None)
    assert {gap.cause for gap in capturer.tally.gaps.since(0)} <= {Cause.OVERRUN}
    figure(f"false alarms, period {period_ms:g} ms", f"0 in {hours:g} h of virtual time")


def test_a_read_that_hangs_starves_the_watchdog() -> None:
    """A capture thread that does not come back from the device is told after 3 s, while main looks
    on; only a new process helps, so the watchdog is not fed."""
    line = Line(capture(), [Keep()])
    line.capture()
    now = line.time.now_ns()
    told = []
    for tick in range(16):
        verdict = line.stream.overview.assessment(now + tick * S // 4)
        told.append(verdict.alive)
    assert told == [True] * 13 + [False] * 3
    assert verdict.reason == "the capture thread has been stuck for 3 s"


def test_a_pusher_that_hangs_starves_the_watchdog() -> None:
    """Blocks that nobody takes out of the ring for 3 s are a push thread that hangs."""
    line = Line(capture(), [Keep()])
    while line.time.now_ns() < 20 * S:
        line.capture()
        verdict = line.stream.overview.assessment(line.time.now_ns())
        if not verdict.alive:
            break
    assert verdict.reason == "the push thread has been stuck for 3 s"
    assert line.time.now_ns() < 5 * S


# A real PCM


@pytest.fixture
def heard(fakecard: FakeCard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """A line from the fake card in real time, whose patience is a tenth of a second."""
    monkeypatch.setattr("capstand.capture.capturer.STALL_S", 0.1)
    monkeypatch.setattr("capstand.capture.capturer.REOPEN_PAUSES_S", (0.0,))
    setup = CaptureConfig(device=fakecard.device, format="S32_LE", channels=1, rt_priority=0)
    line = Line(setup, [Keep()], source=AlsaSource(setup), poll_ms=10)
    line.stream.capturer._now_ns = real_time.monotonic_ns
    yield line
    line.stream.source.close()


def advance(line: Line, until: int) -> None:
    """Captures until the books show so many frames captured."""
    deadline = real_time.monotonic() + PATIENCE_S
    while line.stream.capturer.tally.captured < until:
        line.capture()
        line.push()
        assert real_time.monotonic() < deadline, "the card kept silent"


@pytest.mark.parametrize(("until", "opens"), [("start", 1), ("open", 2)])
def test_a_card_whose_pointer_is_frozen(
    heard: Line, fakecard: FakeCard, until: str, opens: int
) -> None:
    """A card that runs while its pointer stands still goes on when its stream is started again, or,
    if that is what it takes, when it is opened again; the index goes on over the gap."""
    advance(heard, 20 * 480)
    starts = fakecard.starts
    fakecard.stall(until=until)
    advance(heard, 40 * 480)
    capturer = heard.stream.capturer
    assert (fakecard.opens, capturer.opens) == (opens, opens)
    assert fakecard.starts > starts
    assert capturer.restarts >= 1
    assert capturer.trouble is None
    causes = {gap.cause for gap in capturer.tally.gaps.since(0)}
    assert causes & {Cause.STALLED, Cause.REOPENED}
    assert sum(gap.frames for gap in capturer.tally.gaps.since(0)) >= 4800


def test_a_card_that_fails_a_read(heard: Line, fakecard: FakeCard) -> None:
    """A read that ends with EIO costs a start of the stream and no opening."""
    advance(heard, 20 * 480)
    fakecard.io_error()
    advance(heard, 40 * 480)
    capturer = heard.stream.capturer
    assert fakecard.opens == capturer.opens == 1
    assert capturer.restarts >= 1
    assert "Input/output error" in capturer.restarted


# In words


def usb(root: Path, product: str) -> None:
    """The sysfs of one USB card, as far as it matters."""
    interface = root / "sys/devices/usb1/1-1/1-1.4/1-1.4:1.0"
    folder = interface / "sound/card1"
    folder.mkdir(parents=True)
    (interface.parent / "idVendor").write_text("0d8c\n")
    (interface.parent / "product").write_text(product + "\n")
    (folder / "id").write_text("Mic\n")
    (folder / "device").symlink_to(interface)
    (root / "sys/class/sound").mkdir(parents=True)
    (root / "sys/class/sound/card1").symlink_to(folder)


@pytest.mark.parametrize("device", ["hw:1", "hw:1,0", "hw:CARD=Mic,DEV=0", "plughw:Mic"])
def test_the_advice_names_the_usb_device(tmp_path: Path, device: str) -> None:
    """For a USB card the advice names the device and what to write where to bind it anew."""
    usb(tmp_path, "USB \x1b[31mMic\x07")
    assert rebind.advice(device, tmp_path) == (
        "replug USB device 1-1.4 (USB \\x1b[31mMic\\x07), or as root: echo 1-1.4 > "
        "/sys/bus/usb/drivers/usb/unbind; echo 1-1.4 > /sys/bus/usb/drivers/usb/bind"
    )


def test_the_advice_names_the_driver_of_another_card(tmp_path: Path) -> None:
    """For a card on another bus the advice names its own driver."""
    place = tmp_path / "sys/devices/platform/snd_aloop.0"
    driver = tmp_path / "sys/bus/platform/drivers/snd_aloop"
    driver.mkdir(parents=True)
    (place / "sound/card0").mkdir(parents=True)
    (place / "sound/card0/id").write_text("Loopback\n")
    (place / "sound/card0/device").symlink_to(place)
    (place / "driver").symlink_to(driver)
    (tmp_path / "sys/class/sound").mkdir(parents=True)
    (tmp_path / "sys/class/sound/card0").symlink_to(place / "sound/card0")
    assert "echo snd_aloop.0 > /sys/bus/platform/drivers/snd_aloop/unbind;" in rebind.advice(
        "hw:CARD=Loopback,DEV=1", tmp_path
    )


@pytest.mark.parametrize("device", ["default", "hw:7", "hw:", "", "null", "hw:{}", "file:'/x'"])
def test_the_advice_where_nothing_is_known(tmp_path: Path, device: str) -> None:
    """Where the device leads to no card, the advice is what always helps."""
    usb(tmp_path, "Mic")
    assert rebind.advice(device, tmp_path) == rebind.FALLBACK


# Nothing but zeros


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sample", list(SampleFormat), ids=lambda one: one.alsa_name)
def test_exact_zeros_are_counted(sample: SampleFormat, channels: int) -> None:
    """``zeros_s`` grows while every sample is exactly zero, and a single lowest bit ends it; what
    lies beside the 24 bits of S24_LE is no sound."""
    card = capture(format=sample.alsa_name, channels=channels)
    meter = Meter(card.audio)
    zeros = sample.silence(480 * channels)
    if sample is SampleFormat.S24_LE:
        zeros = b"\0\0\0\x7f" * (480 * channels)
    for _ in range(480):
        meter.update(zeros)
    assert meter.zeros_s == pytest.approx(4.8)
    quiet = np.zeros(480 * channels, np.int32)
    quiet[17] = 1 << (32 - sample.bits)
    meter.update(from_int32(quiet, sample))
    for _ in range(round(WINDOW_S * 100) - 1):
        meter.update(zeros)
    assert meter.zeros_s == 0.0


def test_a_muted_microphone_is_a_concern_and_told_once(tmp_path: Path) -> None:
    """After silence_warn_s of nothing but zeros the status says so, once in the log, without a
    restart and with the watchdog fed; and once that there is sound again."""
    card = capture(source=SyntheticConfig(signal="silence"), silence_warn_s=300.0)
    line = Line(card, [Keep()])
    ledger = Ledger(tmp_path)
    reporter = Reporter(line.stream.config, ledger)
    said: list[str] = []

    def run(seconds: float) -> None:
        end = line.time.now_ns() + seconds * S
        while line.time.now_ns() < end:
            for _ in range(100):
                line.capture()
                line.push()
            line.deliver()
            reporter.update(line.report())

    monkey = pytest.MonkeyPatch()
    monkey.setattr(
        "capstand.service.reporter.log_event",
        lambda _, text, *words, **__: said.append(text % words),
    )
    run(298)
    assert line.stats().trouble is None
    run(10)
    verdict = line.stream.overview.assessment(line.time.now_ns())
    assert (verdict.health, verdict.alive) == (Health.DEGRADED, True)
    assert verdict.reason == (
        "only zeros for 5 min: is the microphone muted, or the cable unplugged?"
    )
    run(60)
    assert line.stats().trouble == (
        "only zeros for 6 min: is the microphone muted, or the cable unplugged?"
    )
    line.stream.source._fill = lambda slot, *_: slot.__setitem__(0, 1)  # type: ignore[attr-defined]
    run(2)
    monkey.undo()
    ledger.close(10)
    assert line.stats().trouble is None
    assert (line.stream.capturer.opens, line.stream.capturer.restarts) == (1, 0)
    assert [one for one in said if "zeros" in one] == [
        "mic: only zeros for 5 min: is the microphone muted, or the cable unplugged?",
        "mic: the signal is no longer all zeros",
    ]


def test_zeros_can_be_what_is_wanted() -> None:
    """With silence_warn_s = 0 zeros are nobody's concern."""
    line = Line(capture(silence_warn_s=0.0), [])
    line.stream.pusher.meter = Meter(line.card.audio)
    line.stream.pusher.meter.zeros_s = 1e6
    assert line.stream.overview.only_zeros() is None
