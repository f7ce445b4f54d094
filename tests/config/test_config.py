"""The configuration: what a right file means, and how a wrong one is told."""

import math
import re
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.agora import source
from capstand.agora.sdk import rtc as sdk
from capstand.audio.block import AudioFormat, SampleFormat
from capstand.capture.types.synthetic import FaultConfig, SyntheticConfig
from capstand.config.controls import Setting
from capstand.config.decode import decode
from capstand.config.schema import (
    COMMON_RATES,
    MAX_BYTES,
    MOST_QUEUE_BYTES,
    MOST_RING_BYTES,
    CaptureConfig,
    Config,
    SpoolConfig,
    StreamConfig,
    load,
    spool_of,
)
from capstand.errors import ConfigError
from capstand.sinks.recording.flac import subtype
from capstand.sinks.recording.wav import WavFile
from capstand.sinks.types.agora import (
    AGORA_ID,
    AREAS,
    CHANNEL_NAME,
    PROFILES,
    SCENARIOS,
    TRACK_RATES,
    AgoraSinkConfig,
    LocalTokenConfig,
    Token,
    TokenFileConfig,
    TokenServerConfig,
)
from capstand.sinks.types.file import FileSinkConfig, flac_refuses

KNOWN_FORMATS = ", ".join(f'"{one.alsa_name}"' for one in SampleFormat)
RIGHT = """\
[[stream]]
name = "mic"
[stream.capture]
device = "hw:CARD=Mic,DEV=0"
[[stream.sink]]
type = "file"
path = "/rec"
"""


def read(text: str) -> Config:
    return decode(text, "c.toml", Config)


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        read(text)
    return refused.value.faults


def places(text: str) -> list[str]:
    """File, line and key of each fault, without what is wrong."""
    return [": ".join(fault.split(": ", 2)[:2]) for fault in faults(text)]


def with_capture(*lines: str) -> str:
    """RIGHT with lines that begin on line 5, in the table stream.capture."""
    return RIGHT.replace("[[stream.sink]]", "\n".join([*lines, "[[stream.sink]]"]))


def with_sink(*lines: str) -> str:
    """RIGHT with lines that begin on line 8, in the table stream.sink."""
    return "\n".join([RIGHT.rstrip(), *lines, ""])


# What a right file means


def test_a_short_file_is_completed_by_defaults() -> None:
    """A stream needs a name, a device and a sink with a path; everything else has a default."""
    assert read(RIGHT) == Config(
        stream=(
            StreamConfig(
                name="mic",
                capture=CaptureConfig(
                    device="hw:CARD=Mic,DEV=0",
                    rate_hz=48_000,
                    format="S16_LE",
                    period_ms=10.0,
                    buffer_ms=500.0,
                    rt_priority=70,
                    source=None,
                ),
                sink=(
                    FileSinkConfig(
                        type="file",
                        name="file",
                        path="/rec",
                        container="wav",
                        segment_s=3600.0,
                        gaps="silence",
                        min_free_mb=200,
                        queue_ms=20_000,
                    ),
                ),
            ),
        )
    )


def test_every_key_of_a_full_file_arrives() -> None:
    """Each key that is written is the value that is used."""
    text = """\
[[stream]]
name = "a"
[stream.capture]
device = "synthetic"
rate_hz = 44100
channels = 8
pick = [8, 1, 2]
format = "S24_3LE"
period_ms = 20
buffer_ms = 80
rt_priority = 0
[stream.capture.synthetic]
signal = "noise"
tone_hz = 1000
level_dbfs = -6
file = "/x.wav"
ppm = -50
jitter_us = 200
seed = 7
faults = [{kind = "overrun", at_s = 1, for_s = 2, every_s = 60}]
[[stream.sink]]
type = "file"
name = "one"
path = "/one"
container = "flac"
segment_s = 60
gaps = "skip"
min_free_mb = 0
queue_ms = 100
[[stream.sink]]
type = "file"
name = "two"
path = "/two"
"""
    assert read(text).stream == (
        StreamConfig(
            name="a",
            capture=CaptureConfig(
                device="synthetic",
                rate_hz=44_100,
                channels=8,
                pick=(8, 1, 2),
                format="S24_3LE",
                period_ms=20.0,
                buffer_ms=80.0,
                rt_priority=0,
                source=SyntheticConfig(
                    signal="noise",
                    tone_hz=1000,
                    level_dbfs=-6.0,
                    file="/x.wav",
                    ppm=-50.0,
                    jitter_us=200.0,
                    seed=7,
                    faults=(FaultConfig(kind="overrun", at_s=1.0, for_s=2.0, every_s=60.0),),
                ),
            ),
            sink=(
                FileSinkConfig(
                    type="file",
                    name="one",
                    path="/one",
                    container="flac",
                    segment_s=60.0,
                    gaps="skip",
                    min_free_mb=0,
                    queue_ms=100,
                ),
                FileSinkConfig(type="file", name="two", path="/two"),
            ),
        ),
    )


def test_values_are_frozen() -> None:
    """A configuration does not change once it is read."""
    config = read(RIGHT)
    with pytest.raises(AttributeError):
        config.stream[0].name = "other"  # type: ignore[misc]


def test_periods_and_buffer_in_frames() -> None:
    """The buffer is a whole number of periods, whatever the rate."""
    capture = CaptureConfig(device="d", rate_hz=44_100, period_ms=10.0, buffer_ms=505.0)
    assert capture.audio == AudioFormat(44_100, 2, SampleFormat.S16_LE)
    assert capture.period_frames == 441
    assert capture.buffer_frames % 441 == 0


@pytest.mark.parametrize("bytes_per_s", ["24 MB", "98 MB"])
def test_the_memory_of_much_sound_is_bounded(bytes_per_s: str) -> None:
    """32 channels at a high rate take no more memory for the ring and for what waits than is meant
    for them, and what that is less than ``queue_ms`` is told."""
    rate_hz = {"24 MB": 192_000, "98 MB": 768_000}[bytes_per_s]
    much = CaptureConfig(
        device="hw:0", rate_hz=rate_hz, channels=32, format="S32_LE", buffer_ms=10_000.0
    )
    assert much.ring_slots * much.slot_bytes <= MOST_RING_BYTES
    assert much.queue_frames(20_000) * much.audio.frame_bytes <= MOST_QUEUE_BYTES
    told = much.bounded("file", 20_000)
    assert told is not None and "sink file: queue_ms is 20000, and " in told
    usual = CaptureConfig(device="hw:0")
    assert usual.ring_slots == 200 and usual.queue_frames(20_000) == 960_000
    assert usual.bounded("file", 20_000) is None


@pytest.mark.parametrize(
    ("keys", "opened", "kept"),
    [
        ({}, 2, 2),
        ({"channels": 8}, 8, 8),
        ({"channels": 8, "pick": (3,)}, 8, 1),
        ({"pick": (3, 1)}, None, 2),
    ],
)
def test_channels_are_of_the_card_and_pick_is_what_is_kept(
    keys: dict[str, Any], opened: int | None, kept: int
) -> None:
    """``channels`` is how many the card is opened with; the stream has those that are picked."""
    capture = CaptureConfig(device="hw:0", **keys)
    assert (capture.card_channels, capture.audio.channels) == (opened, kept)
    assert capture.card_channel(0) == keys.get("pick", (1,))[0]


@given(
    st.builds(
        CaptureConfig,
        device=st.just("hw:0"),
        rate_hz=st.integers(8000, 768_000),
        channels=st.just(32),
        pick=st.lists(st.integers(1, 32), min_size=1, unique=True).map(tuple),
        format=st.sampled_from([one.alsa_name for one in SampleFormat]),
        period_ms=st.floats(1, 1000),
        buffer_ms=st.floats(4000, 10_000),
        rt_priority=st.integers(0, 80),
        silence_warn_s=st.floats(0, 86_400),
        dead_warn_s=st.floats(0, 86_400),
        dc_warn_dbfs=st.floats(-60, 0),
        clip_warn_per_s=st.floats(0, 10_000),
        loudness=st.just(True),
        quiet_warn_lufs=st.floats(-100, -51),
        loud_warn_lufs=st.floats(-50, 0),
        true_peak_warn_dbtp=st.floats(-60, 0),
        reserve_priority=st.integers(-(2**31), 2**31 - 1),
        controls=st.dictionaries(
            st.from_regex(r"[A-Z][A-Za-z ,0-9]{0,20}[a-z]", fullmatch=True),
            st.builds(Setting, st.sampled_from(["80%", "-6.5 dB", "Line"]), st.booleans()),
            max_size=3,
        ).map(lambda one: tuple(one.items())),
        source=st.none(),
    ),
    st.builds(
        FileSinkConfig,
        type=st.just("file"),
        name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", fullmatch=True),
        path=st.from_regex(r"/([a-z/ ]{0,20}[a-z/])?", fullmatch=True),
        container=st.just("wav"),
        segment_s=st.floats(1, 86_400),
        gaps=st.sampled_from(["silence", "skip"]),
        min_free_mb=st.integers(0, 10_000_000),
        queue_ms=st.integers(100, 60_000),
        mount=st.sampled_from([True, False, "auto"]),
        mode=st.from_regex("0?6[0246][0246]", fullmatch=True),
        group=st.none(),
        keep_days=st.floats(0, 36_500),
        keep_gb=st.floats(0, 1e6),
        input=st.just("captured"),
        spool=st.none(),
    ),
)
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_what_is_read(capture: CaptureConfig, sink: FileSinkConfig) -> None:
    """Every value within its bounds comes out as it was written."""
    lines = ['[[stream]]\nname = "mic"\n[stream.capture]']
    for key in [field for field in CaptureConfig._fields if field not in ("source", "controls")]:
        lines.append(f"{key} = {written(getattr(capture, key))}")
    lines.append("[stream.capture.controls]")
    lines += [f'"{name}" = ["{one.text}", {written(one.on)}]' for name, one in capture.controls]
    lines.append("[[stream.sink]]")
    for key in [field for field in FileSinkConfig._fields if field not in ("group", "spool")]:
        lines.append(f"{key} = {written(getattr(sink, key))}")
    assert read("\n".join(lines)).stream == (
        StreamConfig(name="mic", capture=capture, sink=(sink,)),
    )


def written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return repr(list(value))
    return f'"{value}"' if isinstance(value, str) else repr(value)


AGORA = """\
[[stream]]
name = "mic"
[stream.capture]
device = "hw:CARD=Mic,DEV=0"
[[stream.sink]]
type = "agora"
app_id = "0123456789abcdef0123456789abcdef"
channel = "studio"
"""


def with_agora(*lines: str) -> str:
    """AGORA with lines that begin on line 9, in the table stream.sink."""
    return "\n".join([AGORA.rstrip(), *lines, ""])


def test_a_short_channel_is_completed_by_defaults() -> None:
    """A sink of type agora needs an app id and a channel; everything else has a default."""
    assert read(AGORA).stream[0].sink == (
        AgoraSinkConfig(
            type="agora",
            app_id="0123456789abcdef0123456789abcdef",
            channel="studio",
            uid=0,
            token=None,
            name="agora",
            profile="auto",
            scenario="default",
            area="global",
            rate_hz=None,
            channels=None,
            send_delay_ms=40,
            send_buffer_ms=500,
        ),
    )


def test_every_key_of_a_full_channel_arrives() -> None:
    """Each key of a sink of type agora that is written is the value that is used."""
    text = with_agora(
        "uid = 4294967295",
        'token = {source = "file", path = "/run/token"}',
        'name = "live"',
        'profile = "music_high_stereo"',
        'scenario = "chorus"',
        'area = "eu"',
        "rate_hz = 32000",
        "channels = 2",
        "send_delay_ms = 60",
        "send_buffer_ms = 5000",
    )
    assert read(text).stream[0].sink == (
        AgoraSinkConfig(
            type="agora",
            app_id="0123456789abcdef0123456789abcdef",
            channel="studio",
            uid=4_294_967_295,
            token=TokenFileConfig("file", "/run/token"),
            name="live",
            profile="music_high_stereo",
            scenario="chorus",
            area="eu",
            rate_hz=32_000,
            channels=2,
            send_delay_ms=60,
            send_buffer_ms=5000,
        ),
    )


@pytest.mark.parametrize(
    ("lines", "token"),
    [
        (['source = "file"', 'path = "token.txt"'], TokenFileConfig("file", "token.txt")),
        (
            ['source = "server"', 'url = "https://tokens.example/{channel}/{uid}"'],
            TokenServerConfig(
                "server", "https://tokens.example/{channel}/{uid}", None, None, 86_400
            ),
        ),
        (
            [
                'source = "server"',
                'url = "https://[::1]:8443/"',
                'credential = "server-password"',
                'ca_file = "/etc/ca.pem"',
                "lifetime_s = 60",
            ],
            TokenServerConfig(
                "server", "https://[::1]:8443/", "server-password", "/etc/ca.pem", 60
            ),
        ),
        (
            [
                'source = "server"',
                'url = "https://a/"',
                'method = "POST"',
                """body = '{"uid": {uid}, "of": {"channel": "{channel}"}}'""",
                'token_path = "data.0.token"',
            ],
            TokenServerConfig(
                "server",
                "https://a/",
                method="POST",
                body='{"uid": {uid}, "of": {"channel": "{channel}"}}',
                token_path="data.0.token",
            ),
        ),
        (
            ['source = "local"', 'certificate = "/etc/capstand/certificate"'],
            LocalTokenConfig("local", "/etc/capstand/certificate", 86_400),
        ),
    ],
)
def test_where_tokens_come_from(lines: list[str], token: Token) -> None:
    """Tokens come from a file, a server or are made here; secrets are places, never values."""
    (sink,) = read(with_agora("[stream.sink.token]", *lines)).stream[0].sink
    assert isinstance(sink, AgoraSinkConfig)
    assert sink.token == token


def channel_sink(**values: Any) -> AgoraSinkConfig:
    return AgoraSinkConfig("agora", "0" * 32, "studio", **values)


@given(
    st.integers(8000, 768_000) | st.sampled_from(COMMON_RATES),
    st.integers(1, 32),
    st.sampled_from([None, *TRACK_RATES]),
    st.sampled_from([None, 1, 2]),
)
def test_what_is_sent_is_as_near_to_the_capture_as_can_be(
    rate_hz: int, channels: int, sent_hz: int | None, sent_channels: int | None
) -> None:
    """What is written is sent; else the rate of the capture where Agora takes it, or 48 kHz, and
    up to two channels. The source takes every rate that comes out of it without resampling."""
    sink = channel_sink(rate_hz=sent_hz, channels=sent_channels)
    sent = sink.track(AudioFormat(rate_hz, channels, SampleFormat.S16_LE))
    assert sent[0] == (sent_hz or (rate_hz if rate_hz in TRACK_RATES else 48_000))
    assert sent[1] == (sent_channels or (1 if channels == 1 else 2))
    assert sent[0] in set(source.RATES) - set(source.RESAMPLED)


def test_the_words_are_those_the_sdk_knows() -> None:
    """Every profile, scenario and area that can be written has a constant of the SDK's, and every
    one that capstand knows can be written."""
    assert ("auto", *sdk.PROFILES) == PROFILES
    assert tuple(sdk.SCENARIOS) == SCENARIOS
    assert tuple(sdk.AREAS) == AREAS


@given(st.text(max_size=70) | st.from_regex(CHANNEL_NAME, fullmatch=True))
def test_channels_and_app_ids_are_those_the_source_takes(text: str) -> None:
    """What the file takes for a channel and an app id is what the source takes, no more or less."""
    assert (CHANNEL_NAME, AGORA_ID) == (source.CHANNEL_NAME, source.AGORA_ID)
    for key, old, shape in (
        ("channel", '"studio"', CHANNEL_NAME),
        ("app_id", '"0123456789abcdef0123456789abcdef"', AGORA_ID),
    ):
        try:
            read(AGORA.replace(old, toml(text)))
        except ConfigError as error:
            assert not re.fullmatch(shape, text)
            (fault,) = error.faults
            assert f".{key}: " in fault
        else:
            assert re.fullmatch(shape, text)


# What each fault says


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (
            "rate_hz = 44.1",
            "rate_hz: 44.1: expected an integer from 8000 to 768000; did you mean 44100?",
        ),
        (
            "rate_hz = 48",
            "rate_hz: 48: expected an integer from 8000 to 768000; did you mean 48000?",
        ),
        (
            "rate_hz = 48000.0",
            "rate_hz: 48000.0: expected an integer from 8000 to 768000; did you mean 48000?",
        ),
        ("rate_hz = 7999", "rate_hz: 7999: expected an integer from 8000 to 768000"),
        ("rate_hz = 768001", "rate_hz: 768001: expected an integer from 8000 to 768000"),
        (
            'rate_hz = "48000"',
            'rate_hz: "48000": expected an integer from 8000 to 768000; '
            "write the number without quotation marks: 48000",
        ),
        ("rate_hz = nan", "rate_hz: nan: expected an integer from 8000 to 768000"),
        ("rate_hz = inf", "rate_hz: inf: expected an integer from 8000 to 768000"),
        (
            f"rt_priority = 1{'0' * 400}",
            "rt_priority: a huge number: expected an integer from 0 to 80",
        ),
        (
            f"rt_priority = 0x{'f' * 9999}",
            "rt_priority: a huge number: expected an integer from 0 to 80",
        ),
        ("channels = true", "channels: true: expected an integer from 1 to 32"),
        ("channels = 0", "channels: 0: expected an integer from 1 to 32"),
        ("channels = [2]", "channels: an array: expected an integer from 1 to 32"),
        ("channels = {n = 2}", "channels: a table: expected an integer from 1 to 32"),
        ("channels = 2026-11-22", "channels: 2026-11-22: expected an integer from 1 to 32"),
        ("rt_priority = 81", "rt_priority: 81: expected an integer from 0 to 80"),
        ("period_ms = true", "period_ms: true: expected a number from 1 to 1000"),
        ("period_ms = nan", "period_ms: nan: expected a number from 1 to 1000"),
        ("buffer_ms = inf", "buffer_ms: inf: expected a number from 20 to 10000"),
        ("buffer_ms = -inf", "buffer_ms: -inf: expected a number from 20 to 10000"),
        (
            "buffer_ms = 39.9",
            "buffer_ms: 39.9 is less than 4 periods of 10 ms; take 40 or more "
            "(500 outlives most stalls)",
        ),
        (
            'format = "S16LE"',
            f'format: "S16LE": expected one of {KNOWN_FORMATS}; did you mean S16_LE?',
        ),
        (
            'format = "s32_le"',
            f'format: "s32_le": expected one of {KNOWN_FORMATS}; did you mean S32_LE?',
        ),
        (
            "format = 16",
            f"format: 16: expected one of {KNOWN_FORMATS}; did you mean S16_LE?",
        ),
        ("chanels = 1", "chanels: unknown key; did you mean channels?"),
        (
            "zzz = 1",
            "zzz: unknown key; known here: device, rate_hz, channels, pick, format, "
            "period_ms, buffer_ms, rt_priority, silence_warn_s, dead_warn_s, dc_warn_dbfs, "
            "clip_warn_per_s, loudness, quiet_warn_lufs, loud_warn_lufs, true_peak_warn_dbtp, "
            "reserve_priority, controls, file, pipe, socket, synthetic",
        ),
        ("pick = 1", "pick: 1: expected an array such as [1]"),
        ("loudness = 1", "loudness: 1: expected true or false"),
        ("loud_warn_lufs = -10", "loud_warn_lufs: needs loudness = true beside it"),
        (
            "quiet_warn_lufs = -20\nloud_warn_lufs = -30\nloudness = true",
            "quiet_warn_lufs: -20 is not below loud_warn_lufs (-30)",
        ),
        ("pick = []", "pick: 0 values; expected 1 to 32"),
        ("pick = [0]", "pick: 0: expected an integer from 1 to 32"),
        ("pick = [1, 3, 1]", "pick: 1 is in the array twice; expected each value once"),
        (
            'pick = ["2"]',
            'pick: "2": expected an integer from 1 to 32; write the number without quotation marks',
        ),
        (
            "pick = [1, 5]\nchannels = 4",
            "pick: 5 is greater than channels (4), which the card is opened with; set channels to "
            "5 or more, or omit it",
        ),
        (
            'synthetic = {signal = "noise"}',
            'synthetic: is for device = "synthetic" only; delete it or set that device',
        ),
        (
            "synthetic = 1",
            "synthetic: 1 is not a table; write [stream.capture.synthetic] and its keys below it",
        ),
    ],
)
def test_a_fault_of_capture_is_told_in_full(line: str, fault: str) -> None:
    """A fault says file, line, key, what was found, what was expected and what was meant."""
    assert faults(with_capture(line)) == [f"c.toml:5: stream.mic.capture.{fault}"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('container = "mp3"', 'container: "mp3": expected one of "wav", "flac"'),
        ('container = "WAV"', 'container: "WAV": expected one of "wav", "flac"; did you mean wav?'),
        ("segment_s = 0.5", "segment_s: 0.5: expected a number from 1 to 86400"),
        ('gaps = "skipp"', 'gaps: "skipp": expected one of "silence", "skip"; did you mean skip?'),
        ("min_free_mb = 1.5", "min_free_mb: 1.5: expected an integer from 0 to 10000000"),
        ("queue_ms = 99", "queue_ms: 99: expected an integer from 100 to 60000"),
        ('name = "a b"', 'name: "a b": expected a name: 1 to 32 of A-Z a-z 0-9 _ -'),
        ('name = ""', 'name: "": expected a name: 1 to 32 of A-Z a-z 0-9 _ -'),
        (
            "min_free = 1",
            "min_free: unknown key; did you mean min_free_mb?",
        ),
    ],
)
def test_a_fault_of_a_sink_is_told_in_full(line: str, fault: str) -> None:
    """The faults of a sink are told as those of the device are, by the sink's name or number."""
    (told,) = faults(with_sink(line))
    place, key, what = told.split(": ", 2)
    assert place == "c.toml:8"
    assert key.startswith("stream.mic.sink.")
    assert f"{key.rsplit('.', 1)[1]}: {what}" == fault


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('path = "rec"', '"rec": expected an absolute path, such as /var/lib/capstand/mic'),
        (
            "path = 1",
            "1: expected an absolute path, such as /var/lib/capstand/mic; "
            "put the text in quotation marks",
        ),
        (
            'path = "/a\\u001b[2J"',
            '"/a\\x1b[2J": expected an absolute path, such as /var/lib/capstand/mic; '
            "it has U+001B at place 3; delete it",
        ),
    ],
)
def test_a_path_that_is_none_is_told(line: str, fault: str) -> None:
    """A path is absolute and holds no control characters."""
    assert faults(RIGHT.replace('path = "/rec"', line)) == [
        f"c.toml:7: stream.mic.sink.1.path: {fault}"
    ]


@pytest.mark.parametrize(
    "device", ['""', '" hw:0"', '"hw:0\\n"', '"a\\u0000b"', "7", f'"{"x" * 257}"']
)
def test_a_device_that_is_none_is_told(device: str) -> None:
    """A device is a line of 1 to 256 characters that does not begin with a space."""
    (fault,) = faults(RIGHT.replace('"hw:CARD=Mic,DEV=0"', device))
    assert fault.startswith("c.toml:4: stream.mic.capture.device: ")
    assert ": expected a device, such as hw:CARD=Mic,DEV=0" in fault


def test_missing_keys_are_told_at_their_table() -> None:
    """A key without a default that is missing is told at the line where its table begins."""
    assert faults("\n[[stream]]\n[stream.capture]\n[[stream.sink]]\ntype = 'file'\n") == [
        "c.toml:2: stream.1.name: missing; this key has no default",
        "c.toml:3: stream.1.capture.device: missing; this key has no default",
        "c.toml:4: stream.1.sink.1.path: missing; this key has no default",
    ]


def test_a_stream_has_no_more_sinks_than_its_process_can_be_given() -> None:
    """100 are right, one more is refused."""
    sinks = [
        f'[[stream.sink]]\ntype = "file"\nname = "s{at}"\npath = "/r{at}"\n' for at in range(100)
    ]
    head = RIGHT.partition("[[stream.sink]]")[0]
    assert len(read(head + "".join(sinks)).stream[0].sink) == 100
    assert faults(RIGHT + "".join(sinks)) == [
        "c.toml:5: stream.mic.sink: there are 101; expected at most 100"
    ]


def test_a_sink_without_a_known_type_is_told() -> None:
    """A sink says what it is; the types that are known are listed."""
    assert faults(RIGHT.replace('type = "file"\n', "")) == [
        "c.toml:5: stream.mic.sink.1: the key type is missing; expected one of "
        '"file", "agora", "alsa", "socket"'
    ]
    assert faults(RIGHT.replace('"file"', '"files"')) == [
        'c.toml:6: stream.mic.sink.1.type: "files": expected one of "file", "agora", "alsa", '
        '"socket"; did you mean file?'
    ]


def test_a_stream_without_a_sink_is_told() -> None:
    """A stream whose sound would go nowhere is refused."""
    assert faults(RIGHT[: RIGHT.index("[[stream.sink]]")]) == [
        "c.toml:1: stream.mic.sink: there is no [[stream.sink]]; the sound would not be used"
    ]


@pytest.mark.parametrize("text", ["", "# nothing\n", "stream = []\n"])
def test_a_file_without_a_stream_is_told(text: str) -> None:
    """A file that captures nothing is refused."""
    assert faults(text) == ["c.toml:1: stream: there is no [[stream]]; nothing would be captured"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("stream = 1", "stream: 1 is not an array of tables; write [[stream]]"),
        ("stream = [1]", "stream.1: 1 is not a table"),
        ("strem = 1", "strem: unknown key; did you mean stream?"),
        ('[[streams]]\nname = "a"', "streams: unknown key; did you mean stream?"),
    ],
)
def test_a_value_of_another_shape_is_told(text: str, fault: str) -> None:
    """Where a table is expected, anything else is named."""
    assert faults(text) == [f"c.toml:1: {fault}"]


def test_names_devices_and_directories_are_taken_once() -> None:
    """Two streams share neither name nor device, two sinks of a stream neither name nor path."""
    one = RIGHT.rstrip()
    assert faults(f"{one}\n{one}\n") == [
        'c.toml:9: stream.mic.name: "mic" is already used by stream 1; each stream needs its own',
        'c.toml:11: stream.mic.capture.device: "hw:CARD=Mic,DEV=0" is already used by stream 1; '
        "each stream needs its own",
    ]
    assert faults(with_sink("[[stream.sink]]", 'type = "file"', 'path = "/rec/"')) == [
        'c.toml:8: stream.mic.sink.2.name: "file" is already used by sink 1; '
        "each sink needs its own",
        'c.toml:10: stream.mic.sink.2.path: "/rec" is already used by sink 1; '
        "each sink needs its own",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("usb:0d8c", "usb:VID:PID or usb:VID:PID:SERIAL, such as usb:0d8c:0014"),
        ("usb:0d8c:14", "usb:VID:PID or usb:VID:PID:SERIAL"),
        ("usb:0d8c:0014:A 1", "in a serial number _ stands for all but letters, digits"),
        ("usb:0d8c:0014,x", "usb:VID:PID or usb:VID:PID:SERIAL"),
        ("USB:0d8c:0014", "usb:VID:PID or usb:VID:PID:SERIAL"),
        ("usb-port:1.4", "usb-port:PORT, such as usb-port:pci-0000:00:14.0-usb-0:1.4"),
        ("card:", "card:ID, such as card:Device"),
        ("card:\u00d6ne", "card:ID, such as card:Device"),
    ],
)
def test_a_name_of_wrong_shape_is_told_with_the_right_one(name: str, expected: str) -> None:
    """A device named by what it is has to be named in full; the fault says how."""
    (fault,) = faults(RIGHT.replace("hw:CARD=Mic,DEV=0", name))
    assert fault.startswith(f'c.toml:4: stream.mic.capture.device: "{name}": expected ')
    assert expected in fault


def test_a_device_may_be_a_list_in_order_of_preference() -> None:
    """One name or several, the best first; people read them with "or" between."""
    several = RIGHT.replace('"hw:CARD=Mic,DEV=0"', '["usb:0d8c:0014:A1,2", "card:Mic", "hw:0"]')
    capture = read(several).stream[0].capture
    assert capture.devices == ("usb:0d8c:0014:A1,2", "card:Mic", "hw:0")
    assert capture.wanted == "usb:0d8c:0014:A1,2 or card:Mic or hw:0"
    assert read(RIGHT).stream[0].capture.devices == ("hw:CARD=Mic,DEV=0",)


@pytest.mark.parametrize(
    ("devices", "what"),
    [
        ("[]", "0 values; expected 1 to 8"),
        (str(["hw:0"] * 9), "9 values; expected 1 to 8"),
        ('["hw:0", 7]', "7: expected a device, such as hw:CARD=Mic,DEV=0"),
        ('["hw:0", "card:"]', '"card:": expected card:ID'),
        ('["hw:0", "hw:1", "hw:0"]', "a name is in the list twice"),
        ('["hw:0", "synthetic"]', '"synthetic" is in a list'),
    ],
)
def test_a_list_of_devices_that_is_wrong_is_told(devices: str, what: str) -> None:
    """A list has 1 to 8 names, each right and each once, and no simulated card."""
    (fault,) = faults(RIGHT.replace('"hw:CARD=Mic,DEV=0"', devices))
    assert fault.startswith(f"c.toml:4: stream.mic.capture.device: {what}")


def test_simulated_cards_are_as_many_as_are_asked_for() -> None:
    """The simulated card may be the device of several streams."""
    one = RIGHT.replace("hw:CARD=Mic,DEV=0", "synthetic")
    assert len(read(one + one.replace('"mic"', '"two"')).stream) == 2


def test_a_simulated_card_that_plays_a_file_needs_one() -> None:
    """The signal "file" is told to need the file."""
    text = with_capture('synthetic = {signal = "file"}').replace("hw:CARD=Mic,DEV=0", "synthetic")
    assert faults(text) == [
        'c.toml:5: stream.mic.capture.synthetic.signal: "file" needs the key file, the absolute '
        "path of a WAV or FLAC file"
    ]


def test_what_flac_cannot_hold_is_told() -> None:
    """FLAC is refused for 32 bits and for more than 8 channels."""
    text = with_sink('container = "flac"').replace(
        "[[stream.sink]]", 'format = "S32_LE"\nchannels = 9\n[[stream.sink]]'
    )
    assert faults(text) == [
        "c.toml:10: stream.mic.sink.1.container: flac holds at most 24 bits and capture.format is "
        'S32_LE; take "wav" or S24_LE',
        "c.toml:10: stream.mic.sink.1.container: flac holds at most 8 channels, capture.channels "
        'is 9; take "wav"',
    ]


def test_what_flac_holds_is_what_is_picked() -> None:
    """FLAC takes 8 channels of a card with more; of more the error names what is picked."""
    text = with_sink('container = "flac"')
    picked = "channels = 32\npick = {}\n[[stream.sink]]"
    read(text.replace("[[stream.sink]]", picked.format(list(range(20, 28)))))
    assert faults(text.replace("[[stream.sink]]", picked.format(list(range(20, 29))))) == [
        "c.toml:10: stream.mic.sink.1.container: flac holds at most 8 channels, capture.pick takes "
        '9; take "wav"'
    ]


HELD_RATES = (8000, 44_100, 65_535, 65_536, 65_540, 78_125, 88_200, 96_000, 100_001, 192_000,
              250_000, 384_000, 500_000, 655_350, 655_360, 705_600, 768_000)  # fmt: skip


@pytest.mark.parametrize("rate_hz", HELD_RATES)
def test_what_flac_is_asked_to_hold_is_what_libsndfile_writes(rate_hz: int) -> None:
    """The limits that are checked before are those of the library, no more and no less; and a WAV
    holds it all."""
    for sample in SampleFormat:
        for channels in (1, 8, 9, 32):
            audio = AudioFormat(rate_hz, channels, sample)
            refused = bool(list(flac_refuses(audio)))
            assert flac_writes(audio) is not refused, audio
            for large in (False, True):
                with TemporaryFile() as file:
                    wav = WavFile(file.fileno(), audio, large=large)
                    wav.write(audio.sample.silence(5 * channels), 5)
                    wav.close()
                    file.seek(0)
                    facts = soundfile.info(file)
                assert (facts.samplerate, facts.channels, facts.frames) == (rate_hz, channels, 5)


def flac_writes(audio: AudioFormat) -> bool:
    """Whether libsndfile writes so much as a block of this."""
    shape = (audio.rate_hz, audio.channels, subtype(audio.sample))
    try:
        with soundfile.SoundFile(BytesIO(), "w", *shape, format="FLAC") as file:
            file.buffer_write(bytes(4 * audio.channels * 5000), "int32")
    except (RuntimeError, ValueError):
        return False
    return True


def test_a_rate_that_flac_cannot_hold_is_told() -> None:
    """A rate beyond FLAC's steps is refused before anything is lost."""
    text = with_sink('container = "flac"').replace(
        "[[stream.sink]]", "rate_hz = 78125\n[[stream.sink]]"
    )
    assert faults(text) == [
        "c.toml:9: stream.mic.sink.1.container: flac holds any rate up to 65535 Hz and multiples "
        'of 10 up to 655350, capture.rate_hz is 78125; take "wav"'
    ]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("mode = 640", 'mode: 640: expected a mode such as "0640", as chmod takes it: 6 for the '
         "daemon itself, then 0, 2, 4 or 6; put the text in quotation marks"),
        ('mode = "0755"', 'mode: "0755": expected a mode such as "0640", as chmod takes it: 6 for '
        'the '
         "daemon itself, then 0, 2, 4 or 6"),
        ('mode = "0040"', 'mode: "0040": expected a mode such as "0640", as chmod takes it: 6 for '
        'the '
         "daemon itself, then 0, 2, 4 or 6"),
        ('group = "nosuchgroup"', 'group: this machine has no group "nosuchgroup"; make it (sudo '
         "groupadd nosuchgroup) or use another (getent group)"),
        ('group = "a b"', 'group: "a b": expected the name of a group'),
        ('mount = "mnt"', 'mount: "mnt": expected "auto", true, false or the path of a mount '
        'point, '
         'such as "/mnt/usb"'),
        ("mount = 1", 'mount: 1: expected "auto", true, false or the path of a mount point, such '
        'as '
         '"/mnt/usb"; put the text in quotation marks'),
        ('mount = "/mnt/usb"', 'mount: path, "/rec", is not below "/mnt/usb"'),
        ("keep_days = -1", "keep_days: -1: expected a number from 0 to 36500"),
        ("keep_gb = nan", "keep_gb: nan: expected a number from 0 to 1e+06"),
    ],
)  # fmt: skip
def test_how_files_are_kept_is_told_where_it_is_wrong(line: str, fault: str) -> None:
    """Mode, group, mount point and limits are checked before, in words."""
    assert faults(with_sink(line)) == [f"c.toml:8: stream.mic.sink.1.{fault}"]


@pytest.mark.parametrize(
    "line", ['mode = "660"', 'group = "root"', 'mount = "/rec"', "mount = true", "keep_gb = 0.5"]
)
def test_how_files_are_kept_is_read(line: str) -> None:
    """A right value is taken."""
    assert read(with_sink(line)).stream[0].sink[0]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (
            "rate_hz = 44100",
            "rate_hz: 44100: expected one of 8000, 16000, 24000, 32000, 48000",
        ),
        (
            "rate_hz = 48",
            "rate_hz: 48: expected an integer from 8000 to 48000; did you mean 48000?",
        ),
        (
            "rate_hz = 32000.0",
            "rate_hz: 32000.0: expected an integer from 8000 to 48000; did you mean 32000?",
        ),
        ("rate_hz = 96000", "rate_hz: 96000: expected an integer from 8000 to 48000"),
        ("channels = 3", "channels: 3: expected an integer from 1 to 2"),
        ("uid = 4294967296", "uid: 4294967296: expected an integer from 0 to 4294967295"),
        ("uid = -1", "uid: -1: expected an integer from 0 to 4294967295"),
        (
            'uid = "1001"',
            'uid: "1001": expected an integer from 0 to 4294967295; '
            "write the number without quotation marks",
        ),
        (
            "send_delay_ms = 45",
            "send_delay_ms: 45: expected a multiple of 10; the SDK counts in 10 ms",
        ),
        (
            "send_buffer_ms = 505",
            "send_buffer_ms: 505: expected a multiple of 10; the SDK counts in 10 ms",
        ),
        (
            "send_delay_ms = 500",
            "send_delay_ms: 500 is not less than send_buffer_ms, 500; nothing would ever be sent",
        ),
        ("send_delay_ms = 0", "send_delay_ms: 0: expected an integer from 10 to 1000"),
        ("send_buffer_ms = 40", "send_buffer_ms: 40: expected an integer from 50 to 5000"),
        (
            'profile = "music"',
            'profile: "music" is mono and two channels are sent; take "auto", or channels = 1',
        ),
        (
            'area = "EU"',
            'area: "EU": expected one of "global", "cn", "na", "eu", "as", "jp", "in"; '
            "did you mean eu?",
        ),
        (
            'scenario = "ai_server"',
            'scenario: "ai_server": expected one of "default", "game_streaming", "chatroom", '
            '"chorus", "meeting"',
        ),
        ('profile = "stereo"', None),
        ('chanel = "x"', "chanel: unknown key; did you mean channel?"),
        ('path = "/rec"', None),
        (
            'token = "007eJxT"',
            "token: a text is not a table; write [stream.sink.token] and its keys below it",
        ),
    ],
)
def test_a_fault_of_a_channel_is_told_in_full(line: str, fault: str | None) -> None:
    """The faults of a sink of type agora are told with what was found and what to take."""
    (told,) = faults(with_agora(line))
    assert told.startswith("c.toml:9: stream.mic.sink.1.")
    if fault is not None:
        assert told == f"c.toml:9: stream.mic.sink.1.{fault}"


def test_what_a_channel_lacks_is_told() -> None:
    """An app id and a channel have no default; an app id is 32 hexadecimal digits."""
    assert faults(AGORA[: AGORA.index("app_id")]) == [
        "c.toml:5: stream.mic.sink.1.app_id: missing; this key has no default",
        "c.toml:5: stream.mic.sink.1.channel: missing; this key has no default",
    ]
    assert faults(AGORA.replace("abcdef", "abcdeg", 1)) == [
        "c.toml:7: stream.mic.sink.1.app_id: this text of 32 characters: expected the 32 "
        "hexadecimal digits of an app id"
    ]
    assert faults(AGORA.replace("studio", "st\u00fcdio")) == [
        'c.toml:8: stream.mic.sink.1.channel: "st\u00fcdio": expected a channel name: 1 to 64 '
        "letters, digits and simple signs"
    ]


PLACE = "an absolute path, or the name of a credential in the unit (LoadCredential=)"


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("{}", [': the key source is missing; expected one of "file", "server", "local"']),
        (
            '{source = "http"}',
            ['.source: "http": expected one of "file", "server", "local"'],
        ),
        (
            '{source = "sever"}',
            ['.source: "sever": expected one of "file", "server", "local"; did you mean server?'],
        ),
        ('{source = "file"}', [".path: missing; this key has no default"]),
        ('{source = "server"}', [".url: missing; this key has no default"]),
        ('{source = "local"}', [".certificate: missing; this key has no default"]),
        (
            '{source = "server", url = "http://tokens.example/"}',
            [".url: this text of 22 characters: expected an https:// address"],
        ),
        (
            '{source = "server", url = "https://a/", body = "uid={uid}"}',
            ['.body: a GET has none; set method = "POST", or delete the key'],
        ),
        (
            """{source = "server", url = "https://a/", method = "POST", body = '{"u": {uid}'}""",
            [
                ".body: starts like JSON but is invalid; expected such as "
                '\'{"channel": "{channel}", '
                '"uid": {uid}}\''
            ],
        ),
        (
            """{source = "server", url = "https://a/", method = "POST", body = 'u={user}'}""",
            [".body: {user} is not known; expected {app_id}, {channel}, {uid} or {expiry}"],
        ),
        (
            '{source = "server", url = "https://a/", method = "PUT"}',
            ['.method: "PUT": expected one of "GET", "POST"'],
        ),
        (
            '{source = "server", url = "https://a/", token_path = "data..token"}',
            [
                ".token_path: this text of 11 characters: expected the keys that lead to the "
                "token, "
                "such as data.token"
            ],
        ),
        *(
            (
                f'{{source = "server", url = "{url}"}}',
                [".url: it has no valid host and port; expected such as https://host:8443/path"],
            )
            for url in (
                *("https://h:99999/a", "https://h:0/", "https://h:x/", "https:///a"),
                *("https://[::1/", "https://?k=1", "https://a..b/", f"https://{'a' * 64}.org/"),
            )
        ),
        (
            '{source = "server", url = "https://h/ü?key=1"}',
            [".url: it has characters that are not ASCII; write them percent-encoded"],
        ),
        *(
            (
                f'{{source = "server", url = "https://h/{{{name}}}"}}',
                [".url: unknown name in braces; expected {app_id}, {channel}, {uid} or {expiry}"],
            )
            for name in ("chanel", "s3cr3t-K3y", "")
        ),
        (
            '{source = "server", url = "https://h/{uid}", token_path = "007eJxTYGDYkkdoerHrF8bca"}',
            [".token_path: this looks like a token; expected the keys that lead to one"],
        ),
        (
            '{source = "server", url = "https://"}',
            [".url: this text of 8 characters: expected an https:// address"],
        ),
        (
            '{source = "server", url = "https://a b/"}',
            [".url: this text of 12 characters: expected an https:// address"],
        ),
        (
            '{source = "server", url = "https://a/", credential = "../x"}',
            [f".credential: this text of 4 characters: expected {PLACE}"],
        ),
        (
            '{source = "server", url = "https://a/", ca_file = "ca.pem"}',
            [
                ".ca_file: this text of 6 characters: expected an absolute path, such as "
                "/var/lib/capstand/mic",
            ],
        ),
        ('{source = "file", path = ""}', [f'.path: "": expected {PLACE}']),
        (
            '{source = "file", path = "my token"}',
            [f".path: this text of 8 characters: expected {PLACE}"],
        ),
        (
            '{source = "local", certificate = "a/b"}',
            [f".certificate: this text of 3 characters: expected {PLACE}"],
        ),
        (
            '{source = "local", certificate = "/c", lifetime_s = 86401}',
            [".lifetime_s: 86401: expected an integer from 60 to 86400"],
        ),
        (
            '{source = "file", path = "/t", lifetime_s = 60}',
            [".lifetime_s: unknown key; known here: source, path"],
        ),
    ],
)
def test_a_fault_of_a_token_is_told_in_full(token: str, told: list[str]) -> None:
    """Each source of tokens has keys of its own; only HTTPS is spoken, and names of credentials
    are names."""
    assert faults(with_agora(f"token = {token}")) == [
        f"c.toml:9: stream.mic.sink.1.token{one}" for one in told
    ]


@pytest.mark.parametrize(
    "line",
    [
        'token = {source = "file", path = "/t", token = "007eJxTYDg4"}',
        'token = {source = "local", certificate = "/c", app_certificate = "5CFd2fd1755d40ec"}',
        'token = {source = "server", url = "https://a/", password = "secret"}',
        'certificate = "5CFd2fd1755d40ec"',
    ],
)
def test_no_secret_can_be_written_into_the_file(line: str) -> None:
    """There is no key for a token, a certificate or a password itself; the fault does not repeat
    its value."""
    (told,) = faults(with_agora(line))
    assert ": unknown key" in told
    assert line.rsplit('"', 2)[1] not in told


@pytest.mark.parametrize(
    ("period_ms", "send_delay_ms", "fault"),
    [
        (10, 10, None),
        (5, 10, None),
        (30, 40, None),
        (100, 110, None),
        (
            20,
            20,
            "9: stream.mic.sink.1.send_delay_ms: 20 is less than capture.period_ms + 10; the "
            "channel would run dry between two periods; take 30 or more",
        ),
        (
            42.5,
            50,
            "9: stream.mic.sink.1.send_delay_ms: 50 is less than capture.period_ms + 10; the "
            "channel would run dry between two periods; take 60 or more",
        ),
        (
            100.5,
            200,
            "5: stream.mic.capture.period_ms: 100.5 is too coarse for a live channel; take 100 or "
            "less (10 is best)",
        ),
    ],
)
def test_periods_that_are_too_coarse_are_told(
    period_ms: float, send_delay_ms: int, fault: str | None
) -> None:
    """The delay outlasts a period and a frame, and no period is longer than 100 ms; what the fault
    says to take is taken."""

    def written_with(send_delay_ms: int) -> str:
        capture = f"period_ms = {period_ms}\n[[stream.sink]]"
        return with_agora(f"send_delay_ms = {send_delay_ms}").replace("[[stream.sink]]", capture)

    text = written_with(send_delay_ms)
    if fault is None:
        assert read(text)
        return
    line, rest = fault.split(":", 1)
    assert faults(text) == [f"c.toml:{int(line) + ('sink' in rest.split(':')[0])}:{rest}"]
    if rest.endswith(" or more"):
        assert read(written_with(int(rest.split()[-3])))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("captured", [1, 2, 8])
@pytest.mark.parametrize("sent", [None, 1, 2])
def test_two_channels_need_a_profile_for_two(profile: str, captured: int, sent: int | None) -> None:
    """A mono profile is refused where two channels are sent, written or captured; no other is."""
    lines = [f'profile = "{profile}"', *([f"channels = {sent}"] if sent else [])]
    text = with_agora(*lines).replace("[[stream.sink]]", f"channels = {captured}\n[[stream.sink]]")
    stereo = (sent or min(2, captured)) == 2
    if stereo and profile != "auto" and not profile.endswith("_stereo"):
        assert places(text) == ["c.toml:10: stream.mic.sink.1.profile"]
    else:
        assert read(text)


def test_each_sink_has_an_sdk_of_its_own() -> None:
    """Sinks of type agora may differ in app id, scenario and area: each runs in a process of its
    own. A uid of one project is no other's."""
    other = (
        AGORA.replace('"mic"', '"two"').replace("CARD=Mic", "CARD=Two").replace("abcdef", "fedcba")
    )
    assert read(f'{AGORA}uid = 7\n{other}uid = 7\nscenario = "meeting"\narea = "eu"\n')


@pytest.mark.parametrize(
    ("one", "two", "right"),
    [
        (("a", 7), ("a", 7), False),
        (("a", 7), ("a", 8), True),
        (("a", 7), ("b", 7), True),
        (("a", 0), ("a", 0), True),  # Agora chooses
        (("a", 0), ("a", 7), True),
    ],
)
def test_nobody_is_in_a_channel_twice(
    one: tuple[str, int], two: tuple[str, int], right: bool
) -> None:
    """A uid is in a channel once, except 0, for which Agora chooses one."""
    second = AGORA[AGORA.index("[[stream.sink]]") :].replace("studio", two[0])
    text = (
        AGORA.replace("studio", one[0])
        + f"uid = {one[1]}\n{second}uid = {two[1]}\n"
        + 'name = "b"\n'
    )
    if right:
        assert read(text)
    else:
        assert faults(text) == [
            "c.toml:14: stream.mic.sink.b.uid: 7 is already in channel a; give each sink its own "
            "uid"
        ]


@pytest.mark.parametrize(
    ("kind", "key", "secret", "what"),
    [
        ("local", "certificate", "5CFd2fd1755d40ecb72977518be15d3b", "a certificate"),
        ("file", "path", "007eJxTYBBbsMMnKq7p9Hf" * 5, "a token"),
    ],
)
def test_a_secret_in_place_of_its_place_is_told(
    kind: str, key: str, secret: str, what: str
) -> None:
    """What might pass for the name of a credential but is the secret itself is refused, and not
    repeated."""
    assert faults(with_agora(f'token = {{source = "{kind}", {key} = "{secret}"}}')) == [
        f"c.toml:9: stream.mic.sink.1.token.{key}: this is {what}; put it into a file and name "
        "the file here"
    ]


# All at once, in order, on the right line


def test_all_faults_are_told_at_once_in_the_order_of_the_file() -> None:
    """One reading tells every fault, from the first line to the last."""
    text = """\
unknown = 1

[[stream]]
name = "a b"

[stream.capture]
device = "hw:0"
rate_hz = 44.1
chanels = 1

[[stream.sink]]
path = "rec"
type = "file"

[[stream]]
name = "two"
[stream.capture]
device = "hw:1"
format = "S16"
[[stream.sink]]
type = "fiel"
"""
    assert places(text) == [
        "c.toml:1: unknown",
        "c.toml:4: stream.a b.name",
        "c.toml:8: stream.a b.capture.rate_hz",
        "c.toml:9: stream.a b.capture.chanels",
        "c.toml:12: stream.a b.sink.1.path",
        "c.toml:19: stream.two.capture.format",
        "c.toml:21: stream.two.sink.1.type",
    ]


WRITINGS = {
    "inline table": (
        '[[stream]]\nname = "a"\ncapture = {device = "d", rate_hz = 1}\n'
        'sink = [{type = "file", path = "/p"}]\n',
        "c.toml:3: stream.a.capture.rate_hz",
    ),
    "dotted keys": (
        '[[stream]]\nname = "a"\ncapture.device = "d"\ncapture . rate_hz = 1\n'
        'sink = [{type = "file", path = "/p"}]\n',
        "c.toml:4: stream.a.capture.rate_hz",
    ),
    "quoted keys": (
        '[["stream"]]\n"name" = "a"\n["stream".\'capture\']\ndevice = "d"\n"rate_hz" = 1\n'
        '[[stream.sink]]\ntype = "file"\npath = "/p"\n',
        "c.toml:5: stream.a.capture.rate_hz",
    ),
    "after a multi-line array": (
        '[[stream]]\nname = "a"\nsink = [\n  # one\n  {type = "file",\n   path = "/p"},\n]\n'
        '[stream.capture]\ndevice = "d"\nrate_hz = 1\n',
        "c.toml:10: stream.a.capture.rate_hz",
    ),
    "in a multi-line array": (
        '[[stream]]\nname = "a"\nsink = [\n  {type = "file", path = "p"},\n]\n'
        '[stream.capture]\ndevice = "d"\n',
        "c.toml:3: stream.a.sink.1.path",
    ),
    "after a multi-line string": (
        '[[stream]]\nname = "a"\n[[stream.sink]]\ntype = "file"\n'
        'path = """\\\n  /p\\\n  [x]\\\n  """\n'
        '[stream.capture]\ndevice = "d"\nrate_hz = 1\n',
        "c.toml:11: stream.a.capture.rate_hz",
    ),
    "comments and blank lines": (
        '# [[stream]]\n\n[[stream]] # x = [\nname = "a" # """\n\n[stream.capture]\ndevice = "d"\n'
        '# rate_hz = 2\nrate_hz = 1\n[[stream.sink]]\ntype = "file"\npath = "/p"\n',
        "c.toml:9: stream.a.capture.rate_hz",
    ),
    "super table after its part": (
        'stream = [{name = "a", capture = {device = "d", rate_hz = 1}, '
        'sink = [{type = "file", path = "/p"}]}]\n',
        "c.toml:1: stream.a.capture.rate_hz",
    ),
    "the second of two sinks": (
        '[[stream]]\nname = "a"\n[stream.capture]\ndevice = "d"\n[[stream.sink]]\ntype = "file"\n'
        'path = "/p"\n[[stream.sink]]\nname = "b"\ntype = "file"\npath = "q"\n',
        "c.toml:11: stream.a.sink.b.path",
    ),
}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("writing", WRITINGS)
def test_the_line_is_that_of_the_statement(writing: str, line_end: str) -> None:
    """However the file is written, a fault is told at the line where its statement begins."""
    text, place = WRITINGS[writing]
    assert places(text.replace("\n", line_end)) == [place]


def test_a_very_long_array_is_told_without_delay() -> None:
    """The search for line numbers ends, however a file is made; the fault is told all the same."""
    assert places(with_capture("zzz = [", *["1,"] * 100_000, "]")) == [
        "c.toml:3: stream.mic.capture.zzz"
    ]


# Files that are none


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        load(path)
    (fault,) = refused.value.faults
    return fault


def test_a_right_file_is_read_from_disk(tmp_path: Path) -> None:
    """load() reads what decode() decodes."""
    path = tmp_path / "c.toml"
    path.write_text(RIGHT)
    assert load(path) == read(RIGHT)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """A missing file and a directory are named, with the system's reason."""
    missing = tmp_path / "none.toml"
    assert refusal(missing) == (
        f"{missing}: cannot be read: No such file or directory; expected a TOML file"
    )
    assert refusal(tmp_path) == f"{tmp_path}: cannot be read: Is a directory; name the file in it"
    deep = tmp_path / "etc/capstand/c.toml"
    assert refusal(deep) == (
        f"{deep}: cannot be read: No such file or directory: {tmp_path}/etc is not there; "
        "expected a TOML file"
    )
    link = tmp_path / "link.toml"
    link.symlink_to("gone.toml")
    assert "it is a link to gone.toml, which is not there" in refusal(link)


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"", ":1: stream: there is no [[stream]]; nothing would be captured"),
        (b'a = 1\nb = "\xff"\n', ":2: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"\xff\xfea\0", ":1: is UTF-16, not UTF-8; save the file as UTF-8"),
        ("[[stream]]".encode("utf-16-be"), ":1: is UTF-16, not UTF-8; save the file as UTF-8"),
        (
            b"\0" * 100,
            ":1: contains only zero bytes, as after a power cut; restore a copy",
        ),
        (
            b"#" * (MAX_BYTES + 1),
            f": is larger than {MAX_BYTES} bytes; expected a short TOML file",
        ),
        (b"a = " + b"1" * 5000, ": not a configuration: a number is too long"),
        (b"a = " + b"[" * 50_000, ": not a configuration: nested too deeply"),
        (b"a" + b".a" * 50_000 + b" = 1", ": not a configuration: nested too deeply"),
        (b"[" + b"a." * 50_000 + b"a]", ": not a configuration: nested too deeply"),
        (b"a = " + b"{a=" * 50_000, ": not a configuration: nested too deeply"),
    ],
    ids=[
        "empty",
        "not UTF-8",
        "UTF-16",
        "UTF-16 BE",
        "zeros",
        "large",
        "long",
        "arrays",
        "keys",
        "tables",
        "inline",
    ],
)
def test_what_is_no_configuration_is_told(tmp_path: Path, raw: bytes, fault: str) -> None:
    """A file that is empty, too large, too deep or no UTF-8 is refused in one sentence."""
    path = tmp_path / "c.toml"
    path.write_bytes(raw)
    assert refusal(path) == f"{path}{fault}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = \n", 1),
        ("a = 1\nb = 'x", 2),
        ("a = 1\na = 2\n", 2),
        ("\n\n[[stream]\n", 3),
        ("a = 1\n\x1b[2J\n", 2),
        ("a = 1\n[a]\n", 2),
    ],
)
def test_what_is_not_toml_is_told_with_its_line(text: str, line: int) -> None:
    """A mistake in TOML itself is told with the line where it shows."""
    (fault,) = faults(text)
    assert fault.startswith(f"c.toml:{line}: not TOML: ")
    assert fault.isprintable()


def test_nothing_of_a_file_steers_the_terminal() -> None:
    """Control characters in keys and values are shown as escapes in a fault."""
    text = RIGHT.replace('"mic"', '"\\u001b[2J\\u202e\\n"') + '"\\u0007\\u2028" = 1\n'
    assert faults(text) == [
        'c.toml:2: stream.1.name: "\\x1b[2J\\u202e ": expected a name: 1 to 32 of A-Z a-z 0-9 _ -; '
        "it has U+001B at place 1; delete it",
        "c.toml:8: stream.1.sink.1.\\x07: unknown key; it has U+0007 at place 1; delete it",
    ]


# The spool


def test_a_spool_is_completed_by_defaults() -> None:
    """Without the table there is no spool; an empty one takes a gigabyte and a day."""
    assert spool_of(read(RIGHT).stream[0].sink[0]) is None
    assert spool_of(read(with_sink("[stream.sink.spool]")).stream[0].sink[0]) == SpoolConfig(
        path="/var/lib/capstand/spool", max_mb=1000, max_age_s=86_400.0, catch_up_speed=4.0
    )


def test_a_live_channel_takes_no_spool() -> None:
    """Old sound is of no use to a real-time channel, and the fault says so."""
    assert faults(with_agora("[stream.sink.spool]")) == [
        'c.toml:9: stream.mic.sink.1.spool: a sink of type "agora" is live: old sound is of no use '
        "there; delete the table"
    ]


@pytest.mark.parametrize("path", ["/rec", "/rec/spool", "/other/../rec/spool/"])
def test_a_spool_is_not_where_the_recordings_are(path: str) -> None:
    """A spool below the directory of the recordings would be away with it."""
    assert faults(with_sink("[stream.sink.spool]", f'path = "{path}"')) == [
        f'c.toml:9: stream.mic.sink.1.spool.path: "{path}" is below path, "/rec", and is away when '
        "that is; take a directory on another disk"
    ]


# Whatever is in the file

KEYS = [
    "chanels",
    "stream",
    "synthetic",
    *(
        name
        for kind in (StreamConfig, CaptureConfig, SyntheticConfig, FileSinkConfig, AgoraSinkConfig)
        for name in kind._fields
    ),
]
VALUES = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.text(max_size=20),
    st.sampled_from(
        [
            *("mic", "hw:0", "synthetic", "S16_LE", "S32_LE", "file", "flac", "/rec", 48_000),
            *(500.0, 10, "agora", "0" * 32, "server", {"source": "file", "path": "/token"}),
        ]
    ),
    st.just(2**5000),
)
TREES = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=12,
)


def toml(value: object) -> str:
    """Any value as TOML on one line."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return hex(value) if value >= 0 else str(value)
        case float():
            return repr(value) if math.isfinite(value) else str(value)
        case str():
            return '"' + "".join(f"\\U{ord(one):08x}" for one in value) + '"'
        case list():
            return "[" + ", ".join(toml(one) for one in value) + "]"
        case dict():
            return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    raise AssertionError(value)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A file that is nearly right: the tables of RIGHT, their values replaced, more keys added."""
    lines = []
    for line in RIGHT.splitlines() * draw(st.integers(1, 2)):
        fate = draw(st.integers(0, 9))
        if fate < 2 and not line.startswith("["):
            lines.append(f"{line.split(' = ')[0]} = {toml(draw(TREES))}")
        elif fate < 9:
            lines.append(line)
        if draw(st.integers(0, 3)) == 0:
            key = draw(st.sampled_from(KEYS) | st.text(max_size=5).map(toml))
            lines.append(f"{key} = {toml(draw(TREES))}")
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines)


def check_outcome(text: str) -> None:
    try:
        outcome: Any = read(text)
    except ConfigError as error:
        assert error.faults
        for fault in error.faults:
            assert fault.startswith("c.toml:")
            assert fault.isprintable()
    else:
        assert isinstance(outcome, Config)
        assert outcome.stream


@given(documents() | TREES.map(lambda tree: f"stream = {toml(tree)}"))
@settings(max_examples=100, deadline=None)
def test_a_nearly_right_file_is_read_or_refused(text: str) -> None:
    """A file of any values is a configuration or a list of printable faults, never a crash."""
    check_outcome(text)


@given(st.text(max_size=200) | st.text("[]{}.=\"'\n#, aé1\\_-:T", max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    """Any text is a configuration or a list of printable faults, never a crash."""
    check_outcome(text.encode(errors="replace").decode())


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    """A file of any bytes is refused in printable lines, never with a crash."""
    path = tmp_path_factory.getbasetemp() / "bytes.toml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert refused.value.faults
    assert all(fault.isprintable() for fault in refused.value.faults)


def test_rules_between_keys_are_told_beside_faults_of_other_keys() -> None:
    """One wrong key of a table does not hide what is wrong between the others."""
    with pytest.raises(ConfigError) as told:
        decode(
            '[[stream]]\nname = "mic"\n[stream.capture]\ndevice = "hw:0"\nrate_hz = 44.1\n'
            'buffer_ms = 20\n[[stream.sink]]\ntype = "file"\npath = "/a"\n',
            "a.toml",
            Config,
        )
    assert [fault.split(": ")[1] for fault in told.value.faults] == [
        "stream.mic.capture.rate_hz",
        "stream.mic.capture.buffer_ms",
    ]
