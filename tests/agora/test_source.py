"""The custom audio source, as Agora documents it: what each call does, and what it refuses.

Everything runs on the real wrapper; the native library is the stand-in.
"""

import array
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstand.agora import AgoraError, CustomAudioSource, SampleBuffer
from capstand.agora.connection_state import ConnectionState
from capstand.agora.frames import Framer
from capstand.agora.source import RATES, RESAMPLED
from capstand.audio.block import NS_PER_S, AudioFormat, SampleFormat
from tests.agora import StandIn, native_advance, native_command, native_get, run

APP_ID = "0123456789abcdef0123456789abcdef"


def make(folder: str, **keys: Any) -> CustomAudioSource:
    return CustomAudioSource(APP_ID, Path(folder), **keys)


def tone(frames: int, channels: int = 1, start: int = 0) -> bytes:
    """A ramp that no two frames of a test share: frame n holds n in every channel."""
    values = np.arange(start, start + frames, dtype="<i2")
    return np.repeat(values, channels).tobytes()


def refusal(call: Callable[[], object]) -> tuple[int, str]:
    """The code with which a call is refused, and what it says."""
    try:
        call()
    except AgoraError as error:
        return error.code, str(error)
    return 0, ""


# The documentation's own sequence


def as_documented(folder: str) -> dict[str, Any]:
    source = make(folder)
    source.set_external_audio_source(True, 48000, 1)
    joined = source.join_channel("", "studio", 1001)

    stamps = []
    for number in range(10):
        captured_ms = time.monotonic_ns() // 1_000_000
        source.push_external_audio_frame_raw_data(
            tone(480, start=480 * number), source_id=0, timestamp=captured_ms
        )
        stamps.append(captured_ms)
        time.sleep(0.01)
    captured_ns = time.monotonic_ns()
    source.push_external_audio_frame_sample_buffer(
        SampleBuffer(tone(480, start=4800), 48000, 1, SampleFormat.S16_LE, 480, captured_ns)
    )
    stamps.append(round(captured_ns / 1e6))

    left = source.leave_channel()
    source.set_external_audio_source(False, 48000, 1)
    return {"joined": joined, "left": left, "stamps": stamps}


def test_the_documented_sequence(standin: StandIn, tmp_path: Path) -> None:
    """Enable, join, push raw, push sample buffer, leave, disable: each reaches the SDK in order,
    with every byte and timestamp."""
    seen = run(as_documented, standin, str(tmp_path / "agora"))
    assert (seen["joined"], seen["left"]) == (True, True)
    pushes = standin.pushes()
    assert b"".join(pushe.data for pushe in pushes) == tone(11 * 480)
    assert [pushe.pts_ms for pushe in pushes] == seen["stamps"]
    assert {
        (pushe.frames, pushe.bytes_per_sample, pushe.channels, pushe.rate_hz) for pushe in pushes
    } == {(480, 2, 1, 48000)}
    assert [name.removeprefix("agora_") for name in standin.names()] == [
        *("service_create", "service_initialize", "service_create_media_node_factory"),
        *("service_enable_extension", "service_get_agora_parameter", "parameter_set_int"),
        *("parameter_set_parameters", "service_enable_extension", "parameter_set_parameters"),
        *("rtc_conn_create", "rtc_conn_get_local_user", "rtc_conn_get_agora_parameter"),
        "media_node_factory_create_audio_pcm_data_sender",
        "service_create_custom_audio_track_pcm",
        *("local_audio_track_set_max_bufferd_frame_number", "local_audio_track_set_send_delay_ms"),
        *("local_audio_track_set_enabled", "local_audio_track_set_enabled"),
        *("local_user_set_audio_scenario", "local_user_set_audio_encoder_config"),
        "rtc_conn_create_data_stream",
        *("local_audio_track_set_max_bufferd_frame_number", "local_audio_track_set_send_delay_ms"),
        *("rtc_conn_register_observer", "local_user_register_observer", "rtc_conn_connect"),
        *("local_user_publish_audio", "rtc_conn_get_sid"),
        *("local_user_unpublish_audio", "local_user_unregister_observer", "rtc_conn_disconnect"),
        *("rtc_conn_unregister_observer", "rtc_conn_destroy", "local_audio_track_destroy"),
        *("audio_pcm_data_sender_destroy", "service_release", "media_node_factory_destroy"),
    ]
    assert standin.violations() == standin.warnings() == []


def test_the_send_buffer_is_bounded_before_publishing(standin: StandIn, tmp_path: Path) -> None:
    """The wrapper's room for 1000 s of sound is undone, and the delay set, before the channel
    hears anything; the scenario is not the one that needs special listeners."""
    run(as_documented, standin, str(tmp_path / "agora"))
    bounds = standin.calls("agora_local_audio_track_set_max_bufferd_frame_number")
    delays = standin.calls("agora_local_audio_track_set_send_delay_ms")
    (published,) = standin.calls("agora_local_user_publish_audio")
    assert [list(bound.args.values())[-1] for bound in bounds] == [100_000, 50]
    assert list(delays[-1].args.values())[-1] == 40
    assert max(bounds[-1].ns, delays[-1].ns) < published.ns
    (scenario,) = standin.calls("agora_local_user_set_audio_scenario")
    assert list(scenario.args.values())[-1] == 0


# What is refused, and how


def out_of_order(folder: str) -> dict[str, Any]:
    source, told = make(folder), {}
    frame = tone(480)
    form = AudioFormat(48000, 1, SampleFormat.S16_LE)
    told["join before enabling"] = refusal(lambda: source.join_channel("", "studio"))
    told["push before enabling"] = refusal(lambda: push(source, frame))
    source.set_external_audio_source(True, 48000, 1)
    told["push before joining"] = refusal(lambda: push(source, frame))
    told["push of a block before joining"] = refusal(
        lambda: source.push_block(frame, form, 480, 0, False, 0.0)
    )
    told["renew before joining"] = refusal(lambda: source.renew_token(""))
    joined = source.join_channel("", "studio")
    told["enable while joined"] = refusal(lambda: source.set_external_audio_source(True, 48000, 1))
    told["disable while joined"] = refusal(
        lambda: source.set_external_audio_source(False, 48000, 1)
    )
    told["join while joined"] = refusal(lambda: source.join_channel("", "other"))
    told["push of a block into a full buffer"] = refusal(
        lambda: source.push_block(frame, form, 480, 0, False, 491.0)
    )
    source.leave_channel()
    told["push after leaving"] = refusal(lambda: push(source, frame))
    source.set_external_audio_source(False, 48000, 1)
    told["join after disabling"] = refusal(lambda: source.join_channel("", "studio"))
    assert joined
    return told


def push(source: CustomAudioSource, data: Any, source_id: int = 0, timestamp: int = 0) -> None:
    source.push_external_audio_frame_raw_data(data, source_id, timestamp)


def test_calls_out_of_order_are_refused(standin: StandIn, tmp_path: Path) -> None:
    """Each call that comes too early or too late is refused with a code and the call to make."""
    told = run(out_of_order, standin, str(tmp_path / "agora"))
    expected = {
        "join before enabling": (-8, "set_external_audio_source(True"),
        "push before enabling": (-8, "set_external_audio_source(True"),
        "push before joining": (-113, "join_channel first"),
        "push of a block before joining": (-113, "no channel is joined"),
        "renew before joining": (-113, "join_channel first"),
        "enable while joined": (-8, "belongs before join_channel"),
        "disable while joined": (-8, "leave_channel first"),
        "join while joined": (-8, "studio is joined"),
        "push of a block into a full buffer": (-12, "491 ms are already waiting"),
        "push after leaving": (-113, "join_channel first"),
        "join after disabling": (-8, "set_external_audio_source(True"),
    }
    assert {key: code for key, (code, _) in told.items()} == {
        key: code for key, (code, _) in expected.items()
    }
    for key, (_, words) in expected.items():
        assert words in told[key][1], told[key]
    assert standin.pushes() == []


def wrong_arguments(folder: str) -> dict[str, Any]:
    told: dict[str, Any] = {}
    told["app id"] = refusal(lambda: CustomAudioSource("abc", Path(folder)))
    told["profile"] = refusal(lambda: make(folder, profile="loud"))
    told["buffer"] = refusal(lambda: make(folder, send_delay_ms=500, buffer_ms=500))
    source = make(folder)
    enable = source.set_external_audio_source
    told["rate"] = refusal(lambda: enable(True, 96000, 1))
    told["channels"] = refusal(lambda: enable(True, 48000, 3))
    told["sources"] = refusal(lambda: enable(True, 48000, 1, 0))
    told["playback"] = refusal(lambda: enable(True, 48000, 1, local_playback=True))
    enable(True, 48000, 2)
    told["channel"] = refusal(lambda: source.join_channel("", "ein Käfig"))
    told["uid"] = refusal(lambda: source.join_channel("", "studio", -1))
    source.join_channel("", "studio")
    for name, data in {
        "empty": b"",
        "half a frame": bytes(480 * 4 + 2),
        "9.98 ms": bytes(479 * 4),
        "60.02 ms": bytes(2881 * 4),
        "floats": array.array("f", [0.0] * 960),
        "32-bit": array.array("i", [0] * 960),
        "strided": memoryview(bytes(480 * 8))[::2],
    }.items():
        told[name] = refusal(lambda data=data: push(source, data))  # type: ignore[misc]
    told["text"] = refusal(lambda: push(source, "sound"))
    told["source id"] = refusal(lambda: push(source, bytes(1920), 1))
    told["timestamp"] = refusal(lambda: push(source, bytes(1920), 0, -1))
    whole = SampleBuffer(bytes(1920), 48000, 2, SampleFormat.S16_LE, 480)
    for name, buffer in {
        "too few bytes": whole._replace(samples=bytes(1919)),
        "no frames": whole._replace(samples=b"", frames=0),
        "more than a second": whole._replace(samples=bytes(4 * 48001), frames=48001),
        "rate of a buffer": whole._replace(rate_hz=10),
    }.items():
        told[name] = refusal(
            lambda buffer=buffer: source.push_external_audio_frame_sample_buffer(buffer)  # type: ignore[misc]
        )
    source.leave_channel()
    return told


def test_wrong_arguments_are_refused(standin: StandIn, tmp_path: Path) -> None:
    """Whatever cannot be sent as it is meant is refused as an invalid argument (or as not
    supported) that names what was found and expected; nothing of it is sent."""
    told = run(wrong_arguments, standin, str(tmp_path / "agora"))
    assert told.pop("playback")[0] == -4
    assert {key: code for key, (code, _) in told.items()} == dict.fromkeys(told, -2)
    assert "479 frames, 9.97917 ms is not 10 to 60 ms at 48000 Hz" in told["9.98 ms"][1]
    assert "a buffer of f is not contiguous bytes or 16-bit integers" in told["floats"][1]
    assert "1922 bytes is not whole frames of 4 bytes" in told["half a frame"][1]
    assert standin.pushes() == [] and standin.violations() == []


# What may be pushed


def kinds_of_data(folder: str) -> None:
    source = make(folder)
    source.set_external_audio_source(True, 48000, 1)
    source.join_channel("", "studio")
    reused = bytearray(tone(480, start=480))
    for data in (
        tone(480),
        reused,
        array.array("h", tone(480, start=960)),
        np.frombuffer(tone(480, start=1440), "<i2"),
        memoryview(tone(480, start=1920)),
    ):
        push(source, data)
        if data is reused:
            reused[:] = bytes(len(reused))
    for milliseconds in (
        10.5,
        19.5,
        60,
        25,
    ):  # of the last, 5 ms are held until the channel is left
        frames = round(milliseconds * 48)
        push(source, tone(frames, start=kinds_of_data.__dict__.setdefault("at", 2400)))
        kinds_of_data.__dict__["at"] += frames
    source.leave_channel()


def test_any_buffer_of_10_to_60_ms_is_taken_whole(standin: StandIn, tmp_path: Path) -> None:
    """Bytes, bytearrays, arrays and memoryviews go out byte for byte in frames of 10 ms; the buffer
    may be used again at once; what does not fill 10 ms goes out with silence at the end."""
    run(kinds_of_data, standin, str(tmp_path / "agora"))
    pushes = standin.pushes()
    assert {pushe.frames for pushe in pushes} == {480}
    sent = b"".join(pushe.data for pushe in pushes)
    whole = tone(2400 + 115 * 48)
    assert sent == whole + bytes(len(sent) - len(whole))
    assert len(sent) - len(whole) == 5 * 48 * 2
    assert {pushe.pts_ms for pushe in pushes} == {0}


def at_a_rate(folder: str, rate_hz: int, channels: int) -> None:
    source = make(folder)
    source.set_external_audio_source(True, rate_hz, channels)
    source.join_channel("", "studio")
    wave = np.sin(np.arange(rate_hz * 4 // 10) * 2 * np.pi * 1000 / rate_hz) * 16384
    samples = np.repeat(np.rint(wave).astype("<i2"), channels)
    per_push = -(-rate_hz // 50) * channels
    for number, at in enumerate(range(0, len(samples), per_push)):
        push(source, samples[at : at + per_push], 0, 1000 + 20 * number)
    source.leave_channel()


@pytest.mark.parametrize("rate_hz", RATES)
def test_every_rate_is_heard(standin: StandIn, tmp_path: Path, rate_hz: int) -> None:
    """No declared rate is refused silently: 44.1, 22.05 and 11.025 kHz arrive resampled to 48 kHz,
    all others as they are."""
    channels = 1 + RATES.index(rate_hz) % 2
    run(at_a_rate, standin, str(tmp_path / "agora"), rate_hz, channels)
    pushes = standin.pushes()
    track_hz = 48000 if rate_hz in RESAMPLED else rate_hz
    assert {(pushe.rate_hz, pushe.channels, pushe.frames, pushe.ret) for pushe in pushes} == {
        (track_hz, channels, track_hz // 100, 0)
    }
    sent = np.frombuffer(b"".join(pushe.data for pushe in pushes), "<i2")[::channels]
    heard = sent[track_hz // 10 : track_hz * 3 // 10].astype(float)
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert np.argmax(spectrum) * track_hz / len(heard) == pytest.approx(1000, abs=5)
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(16384 / 2**0.5, rel=0.005)
    stamps = np.array([pushe.pts_ms for pushe in pushes[:-2]])
    assert np.abs(stamps - 1000 - 10 * np.arange(len(stamps))).max() <= 1


def converted(folder: str) -> None:
    source = make(folder)
    source.set_external_audio_source(True, 48000, 1)
    source.join_channel("", "studio")
    stereo = np.stack([np.arange(480), 2 + np.arange(480)], axis=1).astype("<i4")
    for sample, shift in ((SampleFormat.S32_LE, 16), (SampleFormat.S24_LE, 8)):
        source.push_external_audio_frame_sample_buffer(
            SampleBuffer((stereo << shift).tobytes(), 48000, 2, sample, 480)
        )
    source.push_external_audio_frame_sample_buffer(
        SampleBuffer(tone(480, 8), 48000, 8, SampleFormat.S16_LE, 480)
    )
    source.leave_channel()


def test_a_sample_buffer_is_converted_to_what_was_declared(
    standin: StandIn, tmp_path: Path
) -> None:
    """Format and channels of each buffer are its own; the channel gets S16 in the declared one."""
    run(converted, standin, str(tmp_path / "agora"))
    ramp = np.arange(480)
    for one, expected in zip(standin.pushes(), (ramp + 1, ramp + 1, ramp), strict=True):
        assert np.array_equal(np.frombuffer(one.data, "<i2"), expected)


# Several sources, and other ways to join


def mixed(folder: str) -> None:
    source = make(folder)
    source.set_external_audio_source(True, 48000, 1, source_number=2)
    source.join_channel("", "studio")
    loud, quiet = np.full(480, 30000, "<i2"), np.full(480, 1000, "<i2")
    for number in range(20):
        push(source, quiet, 0, 5000 + 10 * number)
        if 5 <= number < 15:
            push(source, loud, 1, 5000 + 10 * number)
        time.sleep(0.01)
    source.leave_channel()


def test_several_sources_are_mixed(standin: StandIn, tmp_path: Path) -> None:
    """What is pushed to several source ids is added, held at full scale; each may be silent, and
    leaving waits for what is still to be mixed."""
    run(mixed, standin, str(tmp_path / "agora"))
    pushes = standin.pushes()
    values = [set(np.frombuffer(pushe.data, "<i2").tolist()) for pushe in pushes]
    assert all(len(value) == 1 for value in values)
    flat = [value.pop() for value in values]
    assert set(flat) <= {1000, 31000, 30000} and flat.count(1000) + flat.count(31000) == 20
    assert flat.count(31000) + flat.count(30000) == 10 and 31000 in flat
    assert standin.violations() == []


def unpublished(folder: str) -> None:
    source = make(folder)
    source.set_external_audio_source(True, 48000, 1, publish=False)
    source.join_channel("", "studio")
    push(source, tone(480))
    source.leave_channel()


def test_without_publish_the_channel_hears_nothing(standin: StandIn, tmp_path: Path) -> None:
    """publish=False joins and takes what is pushed, but publishes no track."""
    run(unpublished, standin, str(tmp_path / "agora"))
    assert "agora_rtc_conn_connect" in standin.names()
    assert "agora_local_user_publish_audio" not in standin.names()


# Too often


def faster_than_time(folder: str) -> dict[str, Any]:
    source = make(folder, buffer_ms=200)
    source.set_external_audio_source(True, 48000, 1)
    source.join_channel("", "studio")
    accepted, refused, codes, pause_ms = 0, 0, set(), None
    began = time.monotonic()
    while accepted < 100:
        try:
            push(source, tone(480, start=accepted * 480 % 30000), 0, accepted + 1)
            accepted += 1
        except AgoraError as error:
            refused += 1
            codes.add(error.code)
            pause_ms = error.retry_after_ms
            time.sleep((pause_ms or 0) / 1000)
    took = time.monotonic() - began
    figures = source.figures(time.monotonic_ns())
    depth_ms = native_get("max_depth_ms")
    native_command("set push_ret -12 3")
    time.sleep(0.1)
    storm = [refusal(lambda n=n: push(source, tone(480), 0, 1000 + n))[0] for n in range(4)]  # type: ignore[misc]
    source.leave_channel()
    assert figures is not None
    return {
        "codes": sorted(codes),
        "pause_ms": pause_ms,
        "took": took,
        "depth": depth_ms,
        "model": figures.depth_ms,
        "storm": storm,
    }


def test_pushing_too_often_loses_nothing(standin: StandIn, tmp_path: Path) -> None:
    """A full send buffer refuses with −12 and says when to push again; what was accepted is sent
    once and in order, and the buffer never holds more than its bound. The SDK's own −12 is passed
    on."""
    seen = run(faster_than_time, standin, str(tmp_path / "agora"))
    assert seen["codes"] == [-12] and 30 <= seen["pause_ms"] <= 50
    assert seen["took"] >= 0.75, "a second of sound does not fit into 200 ms"
    assert seen["depth"] <= 200
    assert seen["storm"] == [-12, -12, -12, 0]
    sent = [pushe.pts_ms for pushe in standin.pushes() if pushe.ret == 0]
    assert sent == [*range(1, 101), 1003]


def left_while_full(folder: str) -> bool:
    source = make(folder)
    source.set_external_audio_source(True, 48000, 1)
    source.join_channel("", "studio")
    push(source, tone(600))
    native_command("set push_ret -12 3")
    return source.leave_channel()


def test_the_last_frames_wait_for_room(standin: StandIn, tmp_path: Path) -> None:
    """What was held because its 10 ms were not full is sent at leaving, once there is room."""
    assert run(left_while_full, standin, str(tmp_path / "agora"))
    sent = b"".join(pushe.data for pushe in standin.pushes() if pushe.ret == 0)
    assert sent == tone(600) + bytes(2 * 360)
    assert [pushe.ret for pushe in standin.pushes()] == [0, -12, -12, -12, 0]


class Choosy:
    """In place of a connection: a channel that refuses the pushes with the numbers it is given."""

    state = ConnectionState.JOINED

    def __init__(self, refused: set[int]) -> None:
        self.sent: list[bytes] = []
        self._refused = refused
        self._number = -1

    def depth_ms(self) -> float:
        return 0.0

    def send(self, frame: bytes, *_: int) -> None:
        self._number += 1
        if self._number in self._refused:
            raise AgoraError(-12, "refused")
        self.sent.append(frame)


@given(
    st.lists(st.tuples(st.integers(1, 2000), st.booleans()), min_size=1, max_size=12),
    st.sets(st.integers(0, 30), max_size=12),
)
def test_what_a_refused_push_took_is_counted_to_the_frame(
    buffers: list[tuple[int, bool]], refused: set[int]
) -> None:
    """Wherever the SDK refuses, in the middle of a buffer or behind a gap too, the frames sent are
    those of the accepted buffers and those that a refusal says it took, less what is held."""
    source = CustomAudioSource(APP_ID, Path("unused"))
    source.set_external_audio_source(True, 48000, 1)
    channel = Choosy(refused)
    source._connection = channel  # type: ignore[assignment]
    source._framers = [Framer(48000, 1)]
    taken, at_ns = 0, NS_PER_S
    for frames, gap in buffers:
        at_ns += NS_PER_S if gap else 0
        sound = SampleBuffer(
            np.ones(frames, "<i2").tobytes(), 48000, 1, SampleFormat.S16_LE, frames, at_ns, gap
        )
        at_ns += frames * NS_PER_S // 48000
        try:
            source.push_external_audio_frame_sample_buffer(sound)
            taken += frames
        except AgoraError as error:
            taken += error.taken
    sent = np.frombuffer(b"".join(channel.sent), "<i2")
    assert np.count_nonzero(sent) + source._framers[0].held == taken


# For long


def ten_thousand(folder: str) -> dict[str, Any]:
    source = make(folder)
    source.set_external_audio_source(True, 48000, 2)
    native_command("set virtual 1")
    source.join_channel("", "studio")
    frame = tone(480, 2)
    connection: Any = source._connection
    clock = [time.monotonic_ns()]
    connection._now_ns = lambda: clock[0]
    sizes = []
    for number in range(10_001):
        if number % 2500 == 0:
            gc.collect()
            sizes.append((sys.getallocatedblocks(), len(gc.get_objects()), resident_kb()))
        clock[0] += 10_000_000
        native_advance(10_000_000)
        push(source, frame, 0, clock[0] // 1_000_000)
    source.leave_channel()
    return {"sizes": sizes, "pushes": native_get("pushes")}


def resident_kb() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4


def test_ten_thousand_pushes_leave_nothing_behind(standin: StandIn, tmp_path: Path) -> None:
    """Pushing makes no garbage that stays: blocks, objects and memory are the same after 2,500
    pushes and after 10,000."""
    seen = run(ten_thousand, standin, str(tmp_path / "agora"), env={"STANDIN_PCM": ""})
    assert seen["pushes"] >= 10_001
    (blocks, objects, kb), (last_blocks, last_objects, last_kb) = (
        seen["sizes"][1],
        seen["sizes"][-1],
    )
    assert abs(last_blocks - blocks) < 200
    assert abs(last_objects - objects) < 50
    assert last_kb - kb < 512
