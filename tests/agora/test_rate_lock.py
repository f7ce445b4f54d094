"""A card that runs at its own rate, in a channel that runs at CLOCK_MONOTONIC's: on virtual time,
through the real wrapper into the stand-in's model of the send buffer.
"""

import random
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from capstand.audio.block import NS_PER_S, Block
from capstand.audio.clock import Clock
from capstand.config.registry import SinkContext
from capstand.config.schema import CaptureConfig
from capstand.errors import SinkBusy
from capstand.sinks.agora import AgoraChannel
from capstand.sinks.gathering import Gathering
from capstand.sinks.live import SinkFactory
from capstand.sinks.types.agora import TYPE, AgoraSinkConfig
from tests import line
from tests.agora import StandIn, native_advance, native_command, native_get, run

Counters = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
APP_ID = "0123456789abcdef0123456789abcdef"
CHANNEL = AgoraSinkConfig(type="agora", app_id=APP_ID, channel="studio", uid=1001)
NO_FILES = {"STANDIN_PCM": "", "STANDIN_LOG": ""}
FRAMES = 480


class Card:
    """Ten milliseconds after the other, each read a little late, from a card of its own rate, and
    gathered as the channel wants it."""

    def __init__(self, folder: str, ppm: float, **keys: Any) -> None:
        self.card: CaptureConfig = line.capture()
        self.now_ns = NS_PER_S
        self.clock = Clock(48000, FRAMES)
        sink, state = CHANNEL._replace(**keys), Path(folder)
        plan: SinkFactory = TYPE.make(sink, SinkContext("mic", self.card, state, 0, state))
        self._gathering = Gathering(plan.gather_frames)
        self.channel = AgoraChannel(
            sink, self.card.audio, state, self.clock, now_ns=lambda: self.now_ns
        )
        self.frame = 0
        self.dropped = 0
        self.depth_ms = 0.0  # of the queue, just after the last push
        self._ns_per_frame = NS_PER_S / 48000 / (1 + ppm * 1e-6)
        self._began_ns = self.now_ns
        self._late = random.Random(1)
        native_command("set virtual 1")
        self.channel.open()
        assert self.channel._source.wait_joined(20)

    def wave(self, frame: Counters) -> Floats:
        """What sounds at a frame."""
        wave: Floats = np.rint(np.sin(2 * np.pi * 997 * frame / 48000) * 10000)
        return wave

    def go_to(self, at_ns: int) -> None:
        if at_ns > self.now_ns:
            native_advance(at_ns - self.now_ns)
            self.now_ns = at_ns

    def period(self, *, lost: int = 0, late_ms: float = 0.0) -> None:
        """Time goes on until the next period is read, and it is written to the channel; ``lost``
        frames before it are missing.
        """
        first = self.frame + lost
        self.frame = first + FRAMES
        stamp_ns = self._began_ns + round(self.frame * self._ns_per_frame)
        stamp_ns += round(self._late.expovariate(1 / 80e3))
        self.go_to(stamp_ns + round(self._late.expovariate(1 / 150e3) + late_ms * 1e6))
        self.clock.observe(self.frame, stamp_ns)
        wave = self.wave(np.arange(first, first + FRAMES)).astype("<i2")
        period = Block(
            first, FRAMES, self.clock.time_of(first), np.repeat(wave, 2).tobytes(), self.card.audio
        )
        self._write(self._gathering.put(period))

    def _write(self, blocks: list[Block]) -> None:
        for block in blocks:
            try:
                self.channel.write(block)
            except SinkBusy:
                self.dropped += block.frames
            self.depth_ms = self.channel._source.in_flight_ms(self.now_ns) or 0.0

    def end(self) -> None:
        self._write(self._gathering.rest())
        self.channel.close()

    def time_ms(self, frame: float) -> float:
        """When a frame was sampled, in truth."""
        return (self._began_ns + frame * self._ns_per_frame) / 1e6

    def figures(self) -> dict[str, Any]:
        return self.channel.figures(self.now_ns)


@pytest.mark.parametrize(
    ("keys", "period_ms", "frames"),
    [
        ({}, 10.0, 960),
        ({}, 4.0, 960),
        ({}, 20.0, 0),
        ({"send_delay_ms": 30}, 10.0, 0),
        ({"rate_lock": False}, 10.0, 0),
    ],
)
def test_what_is_locked_is_pushed_20_ms_at_a_time_where_as_much_waits_besides(
    tmp_path: Path, keys: dict[str, Any], period_ms: float, frames: int
) -> None:
    """Else the channel could run dry, or nothing is saved; a period that is longer is enough."""
    around = SinkContext("mic", line.capture(period_ms=period_ms), tmp_path, 0, tmp_path)
    assert TYPE.make(CHANNEL._replace(**keys), around).gather_frames == frames


def drifting(folder: str, ppm: float, seconds: int, lock: bool) -> dict[str, Any]:
    keys = {"send_buffer_ms": 5000, "max_latency_ms": 6000, "catch_up": "drop" if lock else "never"}
    card = Card(folder, ppm, rate_lock=lock, **keys)
    depths = []
    for number in range(seconds * 100):
        card.period()
        if number >= 6000 and number % 10 == 0:
            depths.append(card.depth_ms)
    seen = card.figures()
    seen["native_holes"] = native_get("holes")
    seen["refused"] = native_get("refused")
    seen["means"] = [mean(depths[at : at + 100]) for at in range(0, len(depths) - 99, 100)]
    seen["dropped"] = card.dropped
    seen["inserted"] = card.channel.inserted_frames
    seen["drift"] = card.clock.drift_ppm
    card.channel.close()
    return seen


@pytest.mark.parametrize("ppm", [500.0, -500.0])
def test_a_card_off_by_500_ppm_neither_fills_nor_drains_the_channel(
    standin: StandIn, tmp_path: Path, ppm: float
) -> None:
    """From the sixtieth second on the queue stays within 2 ms of its target, nothing is dropped,
    nothing inserted, no hole heard, and the rate is known to 1 ppm."""
    env = {"STANDIN_PCM": "", "STANDIN_LOG": ""}
    seen = run(drifting, standin, str(tmp_path), ppm, 240, True, env=env, timeout_s=1200)
    assert max(abs(one - 40) for one in seen["means"]) < 2
    assert seen["holes"] == seen["native_holes"] == seen["refused"] == 0
    assert seen["dropped"] == 0 and seen["inserted"] <= 240, "5 ms of silence fade the start in"
    assert seen["rate_lock"] == "locked"
    assert seen["ratio_ppm"] == pytest.approx(ppm, abs=25)
    assert seen["drift"] == pytest.approx(ppm, abs=1)


def test_without_the_lock_it_does(standin: StandIn, tmp_path: Path) -> None:
    """The same card with the rate lock off: the queue grows by half a millisecond a second."""
    env = {"STANDIN_PCM": "", "STANDIN_LOG": ""}
    seen = run(drifting, standin, str(tmp_path), 500.0, 180, False, env=env, timeout_s=1200)
    grown = seen["means"][-1] - seen["means"][0]
    assert grown == pytest.approx(0.5 * (len(seen["means"]) - 1) * 10, rel=0.1)
    assert seen["rate_lock"] is None


class Slope(Card):
    """Its sound tells the frame: it rises by one every forty frames, and begins again after 400."""

    def wave(self, frame: Counters) -> Floats:
        return np.floor_divide(frame, 40) % 400 - 200.0


def on_time(folder: str, ppm: float) -> float:
    card = Slope(folder, ppm)
    for number in range(1500):
        card.period(lost=4800 if number == 1000 else 0)
    card.channel.close()
    return card.time_ms(0)


def test_each_frame_carries_the_time_at_which_it_was_captured(
    standin: StandIn, tmp_path: Path
) -> None:
    """Through resampler, lock and a gap: the presentation time of a frame is when its first sample
    was captured, within the rounding to milliseconds."""
    began_ms = run(on_time, standin, str(tmp_path), 300.0)
    late_ms = []
    for push in standin.pushes()[100:]:  # the clock itself takes its time to be sure
        values = np.frombuffer(push.data, "<i2")[::2].astype(int)
        if np.ptp(np.diff(values)) <= 4 and values[-1] - values[0] in range(9, 16):
            frame = (push.pts_ms + 5 - began_ms) * 48 * (1 + 300e-6)
            due = (frame - 20) / 40 % 400 - 200
            late_ms.append((values.mean() - due) * 40 / 48)
    assert len(late_ms) > 1200
    assert max(abs(one) for one in late_ms) < 1.2


def with_gaps(folder: str, gaps: str, lost: int) -> dict[str, Any]:
    card = Card(folder, 0.0, gaps=gaps)
    for _ in range(300):
        card.period()
    before = card.figures()["holes"]
    inserted = card.channel.inserted_frames
    card.period(lost=lost)
    card.period()
    in_flight_ms = card.depth_ms
    for _ in range(50):
        card.period()
    card.channel.close()
    return {
        "holes": card.figures().get("holes", before) - before,
        "inserted": card.channel.inserted_frames - inserted,
        "in_flight_ms": in_flight_ms,
    }


@pytest.mark.parametrize("lost", [480, 1200, 48000])
def test_a_gap_is_concealed_by_silence_with_fades(
    standin: StandIn, tmp_path: Path, lost: int
) -> None:
    """As much silence is put in as brings the queue back to its target; sound dies away before it
    and rises after it over 5 ms; the times of the frames go on; the books say how much it was."""
    seen = run(with_gaps, standin, str(tmp_path), "conceal", lost)
    assert 37 < seen["in_flight_ms"] < 53, "a queue that ran dry waits for the SDK's next 10 ms"
    assert seen["inserted"] == pytest.approx(min(lost, 40 * 48 - 960), abs=240 + 48)
    sent = np.frombuffer(b"".join(pushe.data for pushe in standin.pushes()), "<i2")[::2]
    steps = np.abs(np.diff(sent.astype(int)))
    assert steps.max() <= 1.02 * 2 * np.pi * 997 / 48000 * 10000, "no step is steeper than the tone"
    stamps = [pushe.pts_ms for pushe in standin.pushes() if pushe.pts_ms]
    assert stamps == sorted(stamps)
    if seen["inserted"] > 480:
        loud = np.abs(sent[4800:-4800]) > 50
        assert not loud.all()


def test_a_gap_may_be_skipped_to_stay_live(standin: StandIn, tmp_path: Path) -> None:
    """With gaps = "skip" only the fades are put in, and the queue is that much shorter."""
    seen = run(with_gaps, standin, str(tmp_path), "skip", 480)
    assert seen["inserted"] == 240
    assert seen["in_flight_ms"] == pytest.approx(40 - 10 + 5, abs=4)


def stalled(folder: str) -> dict[str, Any]:
    card = Card(folder, 0.0, max_latency_ms=200, send_buffer_ms=1000)
    for _ in range(300):
        card.period()
    card.period(late_ms=60_000)  # the SDK, or the machine, stood still for a minute
    latencies = []
    for _ in range(6100):
        card.period()
        latencies.append(card.figures()["latency_ms"])
    worst_sent_ms = native_get("max_depth_ms")
    card.channel.close()
    return {"dropped": card.dropped, "last": latencies[-1], "depth": worst_sent_ms}


def test_after_a_stall_sound_is_live_again(standin: StandIn, tmp_path: Path) -> None:
    """A minute's stall is made up by dropping whole blocks, counted; the latency is back at its
    target, and never more than the bound was put into the SDK."""
    seen = run(stalled, standin, str(tmp_path), env={"STANDIN_PCM": ""}, timeout_s=1200)
    assert seen["dropped"] == pytest.approx(60 * 48000, rel=0.01)
    assert seen["last"] < 80
    assert seen["depth"] <= 200


class Words(Card):
    """A second of sound, 0.3 s of near silence; or sound that never ends."""

    pauses = True

    def wave(self, frame: Counters) -> Floats:
        loud: Floats = super().wave(frame)
        if self.pauses:
            loud = np.where(frame % 62400 < 48000, loud, np.rint(loud / 300))
        return loud


class Music(Words):
    pauses = False


def late_again(folder: str, kind: str, stall_ms: int, keys: dict[str, Any]) -> dict[str, Any]:
    card = {"words": Words, "music": Music}[kind](folder, 80.0, **keys)
    for _ in range(2000):
        card.period()
    dropped, holes, behind = card.dropped, card.figures()["holes"], card.frame
    card.period(late_ms=stall_ms)
    after, depths, quiet = [], [], 0
    for _ in range(2000):
        before = card.dropped
        card.period()
        after.append(card.figures()["latency_ms"])
        depths.append(card.depth_ms)
        if (card.frame - 480) % 62400 >= 48000:
            quiet += card.dropped - before
    seen = card.figures()
    card.channel.close()
    return {
        "began": behind,
        "worst": max(after[:50]),
        "at_ten_s": mean(depths[1000 + stall_ms // 10 :][:50]),
        "end": mean(depths[-200:]),
        "dropped_ms": (card.dropped - dropped) / 48,
        "quiet_ms": quiet / 48,
        "holes": seen["holes"] - holes,
    }


STALLS = [
    ("words", 286, {}),
    ("words", 120, {}),
    ("music", 286, {}),
    ("words", 286, {"rate_lock": False}),
    ("words", 286, {"catch_up": "faster"}),
    ("music", 60, {"catch_up": "faster"}),
    ("words", 1500, {"catch_up": "faster", "max_latency_ms": 4000, "send_buffer_ms": 5000}),
    ("words", 1500, {"max_latency_ms": 4000, "send_buffer_ms": 5000}),
    ("words", 380, {}),
    ("words", 286, {"send_delay_ms": 100}),
]


@pytest.mark.parametrize(("kind", "stall_ms", "keys"), STALLS)
def test_a_short_stall_is_made_up_within_ten_seconds(
    standin: StandIn, tmp_path: Path, kind: str, stall_ms: int, keys: dict[str, Any]
) -> None:
    """A stall that leaves the channel later than its target, but not so late that all is dropped:
    after 10 s it is at its target, without running dry. Blocks are dropped where it is quiet, if
    that comes; or none is, because all of it is played a little faster."""
    target = keys.get("send_delay_ms", 40)
    given = (str(tmp_path), kind, stall_ms, keys)
    seen = run(late_again, standin, *given, env=NO_FILES, timeout_s=120)
    assert seen["holes"] <= 1, "the stall itself"
    assert seen["at_ten_s"] == pytest.approx(target, abs=12)
    assert seen["end"] == pytest.approx(target, abs=12)
    if keys.get("catch_up") == "faster":
        assert seen["dropped_ms"] <= max(0, stall_ms - 380)
    else:
        assert seen["dropped_ms"] == pytest.approx(stall_ms - target, abs=60)
    if kind == "words" and stall_ms < 400 and "catch_up" not in keys:
        assert seen["quiet_ms"] == seen["dropped_ms"]


def test_it_stays_late_where_that_is_wished(standin: StandIn, tmp_path: Path) -> None:
    """With catch_up = "never" nothing below max_latency_ms is dropped."""
    given = (str(tmp_path), "words", 286, {"catch_up": "never"})
    seen = run(late_again, standin, *given, env=NO_FILES, timeout_s=120)
    assert seen["dropped_ms"] == 0 and seen["end"] > 200


def closed(folder: str, keys: dict[str, Any]) -> list[float]:
    card = Card(folder, 0.0, **keys)
    for _ in range(205):
        card.period()
    card.end()
    return [card.time_ms(0), card.time_ms(card.frame)]


@pytest.mark.parametrize(
    "keys", [{}, {"rate_hz": 16000}, {"rate_lock": False}, {"rate_lock": False, "rate_hz": 16000}]
)
def test_a_channel_that_closes_keeps_the_time(
    standin: StandIn, tmp_path: Path, keys: dict[str, Any]
) -> None:
    """Each frame up to the last, which only brings the sound to its end, is 10 ms after the one
    before it."""
    began_ms, ended_ms = run(closed, standin, str(tmp_path), keys)
    stamps = [pushe.pts_ms for pushe in standin.pushes() if pushe.ret == 0]
    assert max(abs(one - 10) for one in np.diff(stamps)) <= 2
    assert began_ms - 12 < stamps[0] and ended_ms - 15 < stamps[-1] < ended_ms + 25
