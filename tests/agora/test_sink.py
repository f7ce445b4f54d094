"""A stream in a channel: what was captured is what the channel gets, frame by frame, on time."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from capstand.audio.block import NS_PER_S
from capstand.config.schema import CaptureConfig
from capstand.sinks.sink_queue import SinkQueue
from capstand.sinks.types.agora import AgoraSinkConfig
from capstand.stream.handover import SinkSnapshot
from capstand.stream.intake import Intake
from capstand.stream.stream import Stream
from tests import line
from tests.agora import Push, StandIn, run
from tests.patience import PATIENCE_S

APP_ID = "0123456789abcdef0123456789abcdef"
CHANNEL = AgoraSinkConfig(
    type="agora",
    app_id=APP_ID,
    channel="studio",
    uid=1001,
    rate_lock=False,
    send_buffer_ms=5000,  # a busy machine is late, and what is late must not be dropped here
    max_latency_ms=60_000,
    catch_up="never",
)
SCRIPT = "set connect_ms 5; set stats_ms 100"
DEPTHS_AGREE_MS = 20
Samples = npt.NDArray[np.int16]


def sound(keys: dict[str, Any], state: str, away: bool, seconds: float) -> dict[str, Any]:
    """Runs a stream of the counter signal into the channel, and beside it into a list; with
    ``away`` the network is, in the middle, until 0.2 s of sound were dropped."""
    keys, standin = dict(keys), StandIn.of_this_process()
    sink = CHANNEL._replace(**keys.pop("sink", {}))
    card = line.capture(**keys, buffer_ms=10_000.0)  # nor lost by the card
    stream = Stream(line.config(card)._replace(sink=(sink,)), Path(state))
    beside = line.Keep()
    (channel,) = stream.live
    intake = Intake(line.config(card), ring=stream.ring)
    line.give(intake, SinkQueue("beside", beside, 1 << 30))
    intake.wakes(channel.wake, gathers=(channel.gather_frames,))
    began = time.monotonic()

    def until(count: str, more_s: float) -> None:
        frames = getattr(channel.counters(), count) + more_s * card.rate_hz
        while getattr(channel.counters(), count) < frames:
            channel.poll(time.monotonic_ns())
            time.sleep(0.02)
            assert time.monotonic() < began + PATIENCE_S, channel.trouble

    intake.start()
    channel.start("mic")
    until("delivered", seconds / 2)
    if away:
        standin.command("play reconnecting:1")
        until("dropped", 0.2)
        standin.command("play reconnected:1")
    until("delivered", seconds / 2)
    while True:  # two depths, one asked for after the other: a block may have come between
        channel.poll(now_ns := time.monotonic_ns())
        captured = intake.stats(0).captured_frames
        live = SinkSnapshot.of(channel).stats(captured, card.rate_hz, now_ns)._asdict()
        depth_ms = standin.report()["depth_ms"]
        apart_ms = abs(live["figures"]["depth_ms"] - depth_ms)
        told = bool(live["figures"]["sent_kbps"])  # figures of after the join
        # Of what was in the buffer when the network went, the stand-in and the model assume
        # different things.
        agreed = told and (apart_ms <= DEPTHS_AGREE_MS or away)
        if agreed or time.monotonic() > began + PATIENCE_S:
            break
        time.sleep(0.02)
    intake.drain(time.monotonic() + PATIENCE_S)
    channel.finish()
    assert channel.join(time.monotonic() + PATIENCE_S)
    intake.close(time.monotonic() + PATIENCE_S)
    stats = intake.stats(time.monotonic_ns())
    agora = SinkSnapshot.of(channel).stats(stats.captured_frames, card.rate_hz, now_ns)
    return {
        "blocks": [
            (block.first_frame, block.frames, block.captured_at_ns, block.samples.hex())
            for block in beside.blocks
        ],
        "delivered": agora.delivered_frames,
        "dropped": agora.dropped_frames,
        "inside": agora.in_flight_frames,
        "balanced": stats.balanced and agora.balanced,
        "since": agora.since_frame,
        "captured": agora.captured_frames,
        "live": live,
        "depth_ms": depth_ms,
    }


def values(pushes: list[Push]) -> Samples:
    """All that was pushed, of shape (frames, channels)."""
    data = b"".join(pushe.data for pushe in pushes if pushe.ret == 0)
    return np.frombuffer(data, "<i2").reshape(-1, pushes[0].channels)


def captured(seen: dict[str, Any], card: CaptureConfig) -> npt.NDArray[np.int64]:
    """The captured samples as they are, of shape (frames, channels), full scale ±2³¹."""
    from capstand.dsp.convert import to_int32

    data = b"".join(bytes.fromhex(samples) for *_, samples in seen["blocks"])
    flat = to_int32(data, card.audio.sample).astype(np.int64)
    return flat.reshape(-1, card.audio.channels)


@pytest.mark.parametrize(
    "keys",
    [
        {"channels": 1},
        {"channels": 2},
        {"channels": 1, "rate_hz": 16000},
        {"channels": 2, "rate_hz": 16000, "period_ms": 20.0},
        {"channels": 2, "format": "S24_3LE"},
        {"channels": 2, "format": "S24_LE"},
        {"channels": 2, "format": "S32_LE"},
        {"channels": 2, "format": "S16_BE"},
        {"channels": 2, "format": "S20_3LE"},
        {"channels": 2, "format": "FLOAT_LE"},
        {"channels": 1, "format": "U8"},
        {"channels": 2, "period_ms": 4.0},
        {"channels": 2, "period_ms": 1024 / 48},
    ],
    ids=lambda keys: "-".join(str(key) for key in keys.values()),
)
def test_every_frame_of_the_stream_is_pushed(
    standin: StandIn, tmp_path: Path, keys: dict[str, Any]
) -> None:
    """From when the channel is joined, every frame that was captured is pushed once, in order, in
    frames of 10 ms, as S16 (rounded from wider formats), with the time at which it was captured;
    and the books say so to the frame. What was captured before was not meant for it."""
    card = line.capture(**keys)
    if card.period_ms > 10:
        keys = {**keys, "sink": {"send_delay_ms": 80}}
    seen = run(sound, standin, keys, str(tmp_path), False, 0.6, script=SCRIPT)
    pushes = standin.pushes()
    assert {(pushe.rate_hz, pushe.channels, pushe.frames, pushe.ret) for pushe in pushes} == {
        (card.rate_hz, card.audio.channels, card.rate_hz // 100, 0)
    }
    sent = values(pushes)
    rounded = np.minimum((captured(seen, card) + (1 << 15)) >> 16, 32767).astype(np.int16)
    first = len(rounded) - seen["delivered"]
    padding = len(sent) - seen["delivered"]
    assert 0 <= padding < card.rate_hz // 100
    assert np.array_equal(sent[: seen["delivered"]], rounded[first:])
    assert not sent[seen["delivered"] :].any()
    assert seen["balanced"] and seen["inside"] == 0
    assert seen["dropped"] == seen["captured"] - seen["delivered"] == first - seen["since"]

    starts = np.array([one for one, *_ in seen["blocks"]])
    times = np.array([at for _, _, at, _ in seen["blocks"]])
    frames = first + np.arange(len(pushes)) * (card.rate_hz // 100)
    block = np.searchsorted(starts, frames, "right") - 1
    due_ms = (times[block] + (frames - starts[block]) * NS_PER_S / card.rate_hz) / 1e6
    assert np.abs(np.array([pushe.pts_ms for pushe in pushes]) - due_ms).max() < 1
    assert standin.violations() == []


@pytest.mark.parametrize(
    ("rate_hz", "channels"), [(44100, 2), (96000, 1), (22050, 1), (250_000, 1), (384_000, 2)]
)
def test_other_rates_are_resampled(
    standin: StandIn, tmp_path: Path, rate_hz: int, channels: int
) -> None:
    """A card at a rate the channel does not take is resampled to 48 kHz: not a millisecond is lost,
    and each frame keeps its time."""
    keys = {"rate_hz": rate_hz, "channels": channels, "source": None}
    seen = run(sound, standin, keys, str(tmp_path), False, 1.0, script=SCRIPT)
    pushes = standin.pushes()
    assert {(pushe.rate_hz, pushe.channels, pushe.frames) for pushe in pushes} == {
        (48000, channels, 480)
    }
    expected = seen["delivered"] * 48000 / rate_hz
    assert abs(len(values(pushes)) - expected) <= 480 + 50
    begun = seen["since"] + seen["dropped"]
    first_ms = min(at for first, _, at, _ in seen["blocks"] if first >= begun) / 1e6
    due_ms = first_ms + 10 * np.arange(len(pushes))
    assert np.abs(np.array([pushe.pts_ms for pushe in pushes]) - due_ms)[:-2].max() < 2
    assert seen["balanced"] and seen["inside"] == 0


def test_while_the_sdk_reconnects_the_books_go_on(standin: StandIn, tmp_path: Path) -> None:
    """What cannot be sent while the network is away is dropped and counted; what is pushed is still
    whole, and the frame index says what is missing."""
    seen = run(sound, standin, {"channels": 2}, str(tmp_path), True, 1.5, script=SCRIPT)
    pushes = standin.pushes()
    sent = values(pushes)
    counters = sent[:, 0].astype(np.uint16).astype(np.int64) + (
        sent[:, 1].astype(np.uint16).astype(np.int64) << 16
    )
    steps = np.diff(counters)
    missing = int(np.sum(steps[steps != 1] - 1))
    first = int(counters[0])
    assert len(steps[steps != 1]) == 1 and missing > 48 * 150
    assert seen["dropped"] == missing + first - seen["since"]
    assert seen["delivered"] == len(sent) and seen["balanced"]
    assert standin.names().count("agora_rtc_conn_connect") == 1


def test_the_status_says_what_is_sent(standin: StandIn, tmp_path: Path) -> None:
    """Detail and figures name channel, bit rate by the SDK's own account, and the estimated depth
    of its send buffer, which is the true one to two frames."""
    seen = run(sound, standin, {"channels": 2}, str(tmp_path), False, 1.5, script=SCRIPT)
    figures = seen["live"]["figures"]
    assert (figures["state"], figures["channel"], figures["uid"]) == ("JOINED", "studio", 1001)
    assert figures["sent_kbps"] > 0 and figures["joins"] == 1
    assert seen["live"]["detail"].startswith("in studio, ")
    assert figures["depth_ms"] == pytest.approx(seen["depth_ms"], abs=DEPTHS_AGREE_MS)
    assert json.dumps(figures)
