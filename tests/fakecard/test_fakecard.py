"""What the fake card promises, held against the real libasound and pyalsaaudio.

Most tests hold the card's clock, so that a slow machine changes nothing; those on the real clock
compare the card with CLOCK_MONOTONIC read before and after, never with a duration.
"""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capstand.audio.block import SampleFormat
from tests.patience import PATIENCE_S

from . import FORMATS, FakeCard, breaks, build, counter, missing

alsaaudio = pytest.importorskip("alsaaudio", reason="pyalsaaudio is missing")

RUNNING, XRUN, SUSPENDED, DISCONNECTED = 3, 4, 7, 8
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lacking = missing()
    if lacking is not None:
        pytest.skip(f"{lacking} is missing")
    return build(tmp_path_factory.mktemp("plugin"))


@pytest.fixture
def card(tmp_path: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCard:
    card = FakeCard(tmp_path, plugin=plugin)
    for name, value in card.env.items():
        monkeypatch.setenv(name, value)
    return card


@pytest.fixture
def open_pcm(card: FakeCard) -> Any:
    opened = []

    def open_pcm(
        format: str = "S16_LE",
        channels: int = 2,
        rate: int = 48000,
        period: int = 480,
        periods: int = 8,
        device: str = card.device,
    ) -> Any:
        pcm = alsaaudio.PCM(
            type=alsaaudio.PCM_CAPTURE,
            mode=alsaaudio.PCM_NONBLOCK,
            device=device,
            rate=rate,
            channels=channels,
            format=SampleFormat[format].alsa_number,
            periodsize=period,
            periods=periods,
        )
        opened.append(pcm)
        return pcm

    yield open_pcm
    for pcm in opened:
        pcm.close()


def events(pcm: Any, timeout_ms: int) -> int:
    """Wait for the PCM's descriptor and translate what it says; 0 when nothing came."""
    poll = select.poll()
    for descriptor, mask in pcm.polldescriptors():
        poll.register(descriptor, mask)
    ready = poll.poll(timeout_ms)
    return int(pcm.polldescriptors_revents(ready)) if ready else 0


def wait(pcm: Any) -> int:
    """Wait until the PCM has something to say; silence is a failure."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if said := events(pcm, 1000):
            return said
    raise AssertionError("the card kept silent")


def next_block(pcm: Any) -> bytes:
    """Read on, through overruns, until frames come."""
    while True:
        frames, data = pcm.read()
        if frames > 0:
            return bytes(data)
        if frames == 0:
            wait(pcm)


def test_frames_follow_each_other(card: FakeCard, open_pcm: Open) -> None:
    """On the real clock, 200 periods carry the numbers from 0 on without a break."""
    pcm = open_pcm(rate=192000, periods=800)
    blocks: list[bytes] = [pcm.read()[1]]  # starts; a host that paused just then finds frames
    while len(blocks) < 201:
        assert wait(pcm) == select.POLLIN
        frames, data = pcm.read()
        assert frames == 480
        blocks.append(data)
    numbers = counter(b"".join(blocks), "S16_LE", 2)
    assert numbers[0] == 0
    assert breaks(numbers) == []
    assert (card.opens, card.starts, card.overruns) == (1, 1, 0)
    assert (card.frames_delivered, card.frames_lost) == (len(numbers), 0)


def test_frames_come_when_the_virtual_clock_says_so(card: FakeCard, open_pcm: Open) -> None:
    """With the virtual clock at 479 no period is there, at 960 there are two."""
    card.virtual(0)
    pcm = open_pcm()
    pcm.read()
    card.virtual(479)
    assert events(pcm, 5) == 0
    assert pcm.avail() == 479
    card.virtual(960)
    assert wait(pcm) == select.POLLIN
    assert [pcm.read()[0] for _ in range(3)] == [480, 480, 0]


@pytest.mark.parametrize("channels", [1, 2, 5, 32])
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_carries_the_counter(
    card: FakeCard, open_pcm: Open, format: str, channels: int
) -> None:
    """In every format and width the numbers follow each other from where the clock stood."""
    start = {"S16_BE": 0xFFF0, "U8": 0xF0}.get(format, 0xFFFFF0)
    if format == "S16_LE" and channels == 1:
        start = 0xFFF0
    card.virtual(start)
    pcm = open_pcm(format=format, channels=channels)
    assert (pcm.info()["format_name"], pcm.info()["channels"]) == (format, channels)
    pcm.read()
    card.virtual(start + 480)
    frames, data = pcm.read()
    assert frames == 480
    assert counter(data, format, channels).tolist() == list(range(start, start + 480))


def test_a_slow_reader_overruns(card: FakeCard, open_pcm: Open) -> None:
    """A reader that lets the buffer fill gets -32, then the numbers after exactly what was lost."""
    card.virtual(0)
    pcm = open_pcm()
    pcm.read()
    card.virtual(480)
    before = pcm.read()[1]
    card.virtual(480 + 8 * 480 - 1)
    assert wait(pcm) == select.POLLIN
    card.virtual(480 + 8 * 480)
    assert wait(pcm) == select.POLLIN | select.POLLERR
    assert pcm.state() == XRUN
    assert pcm.read() == (-32, b"")
    assert events(pcm, 5) == 0, "prepared, not started: silent, as in the kernel"
    card.virtual(6000)
    assert pcm.read() == (0, b"")
    card.virtual(6480)
    numbers = counter(before + pcm.read()[1], "S16_LE", 2)
    assert breaks(numbers) == [(480, 6000 - 480)]
    assert (card.overruns, card.starts, card.frames_lost) == (1, 2, 6000 - 480)


def test_truth_of_losses_on_the_real_clock(card: FakeCard, open_pcm: Open) -> None:
    """Whatever a reader misses that lets a small buffer overrun, the numbers count it truly."""
    pcm = open_pcm(rate=8000, period=80, periods=2)
    data = next_block(pcm)
    for _ in range(3):
        select.select([], [], [], 0.03)
        data += next_block(pcm)
    numbers = counter(data, "S16_LE", 2)
    assert card.overruns >= 3
    assert card.frames_delivered == len(numbers)
    assert card.frames_lost == numbers[0] + sum(jump for _, jump in breaks(numbers)) > 0


def test_overrun_on_command(card: FakeCard, open_pcm: Open) -> None:
    """overrun() makes one -32 even of an empty buffer; a restart in no time loses nothing."""
    card.virtual(0)
    pcm = open_pcm()
    pcm.read()
    card.overrun()
    assert wait(pcm) & select.POLLERR
    assert pcm.read() == (-32, b"")
    assert pcm.read() == (0, b"")
    assert (card.overruns, card.frames_lost, pcm.state()) == (1, 0, RUNNING)


def test_suspend(card: FakeCard, open_pcm: Open) -> None:
    """suspend() makes read() raise; drop() and read() start again, with the loss booked."""
    card.virtual(0)
    pcm = open_pcm()
    pcm.read()
    card.suspend()
    with pytest.raises(alsaaudio.ALSAAudioError, match="Streams pipe error"):
        pcm.read()
    assert pcm.state() == SUSPENDED
    card.virtual(700)
    pcm.drop()
    assert pcm.read() == (0, b"")
    assert (pcm.state(), card.frames_lost) == (RUNNING, 700)


def test_unplug(card: FakeCard, open_pcm: Open) -> None:
    """A card pulled out wakes its reader and raises; it opens again only when it is back."""
    card.virtual(0)
    pcm = open_pcm()
    pcm.read()
    card.disconnect()
    assert wait(pcm) & select.POLLERR
    for call in (pcm.read, pcm.drop):
        with pytest.raises(alsaaudio.ALSAAudioError, match="No such device"):
            call()
    assert pcm.state() == DISCONNECTED
    pcm.close()
    with pytest.raises(alsaaudio.ALSAAudioError, match="No such device"):
        open_pcm()
    card.reconnect()
    assert open_pcm().read() == (0, b"")
    assert (card.opens, card.refusals, card.starts) == (2, 1, 2)


def test_unplug_before_start(card: FakeCard, open_pcm: Open) -> None:
    """A card pulled out between open and the first read raises there, even with nothing to read."""
    pcm = open_pcm()
    card.disconnect()
    with pytest.raises(alsaaudio.ALSAAudioError, match="No such device"):
        pcm.read()
    assert (pcm.state(), card.starts) == (DISCONNECTED, 0)


def test_open_error(card: FakeCard, open_pcm: Open) -> None:
    """open_error() refuses with that errno until it is set to 0."""
    card.open_error(errno.EBUSY)
    with pytest.raises(alsaaudio.ALSAAudioError, match="Device or resource busy"):
        open_pcm()
    card.open_error(0)
    open_pcm()
    assert (card.opens, card.refusals) == (1, 1)


def test_one_opener_at_a_time(card: FakeCard, open_pcm: Open) -> None:
    """A card in use is busy for a second opener until the first one closes."""
    first = open_pcm()
    with pytest.raises(alsaaudio.ALSAAudioError, match="Device or resource busy"):
        open_pcm()
    first.close()
    open_pcm()


def test_stall(card: FakeCard, open_pcm: Open) -> None:
    """A stalled card gives no frame and no error, and goes on later without a break."""
    pcm = open_pcm(periods=800)
    pcm.read()
    wait(pcm)
    _, before = pcm.read()
    card.stall()
    stood = pcm.avail()
    select.select([], [], [], 0.02)
    assert (pcm.avail(), pcm.state()) == (stood, RUNNING)
    card.stall(False)
    wait(pcm)
    assert breaks(counter(before + pcm.read()[1], "S16_LE", 2)) == []


def test_the_counter_runs_on_while_closed(card: FakeCard, open_pcm: Open) -> None:
    """What the clock made between close and the next start is lost, whatever the new rate."""
    card.virtual(100)
    pcm = open_pcm()
    pcm.read()
    pcm.close()
    card.virtual(1100)
    pcm = open_pcm(rate=16000)
    pcm.read()
    card.virtual(1580)
    assert counter(pcm.read()[1], "S16_LE", 2)[0] == 1100
    assert card.frames_lost == 1000


def test_granularity(card: FakeCard, open_pcm: Open) -> None:
    """A batch card moves only by whole multiples of its granularity, counted from the start."""
    card.virtual(50)
    card.granularity = 256
    pcm = open_pcm()
    pcm.read()
    for position, avail in ((305, 0), (306, 256), (561, 256), (562, 512)):
        card.virtual(position)
        assert pcm.avail() == avail
    assert wait(pcm) == select.POLLIN


def test_granularity_on_the_real_clock(card: FakeCard, open_pcm: Open) -> None:
    """The descriptor of a batch card wakes once, when a step has made a period readable."""
    card.granularity = 1000
    pcm = open_pcm(periods=800)
    already, _ = pcm.read()
    assert events(pcm, 1000) == select.POLLIN
    avail = pcm.avail()
    assert avail >= 480
    assert (already + avail) % 1000 == 0


def test_ppm(card: FakeCard, open_pcm: Open) -> None:
    """The clock turns to a new ppm where it is and when it was told so, and keeps that speed."""
    pcm = open_pcm(rate=192000, periods=800)
    before_ns = time.monotonic_ns()
    pcm.read()
    after_ns = time.monotonic_ns()
    select.select([], [], [], 0.01)
    turn_ns = time.monotonic_ns()
    card.ppm = 500_000.0
    turned_ns = time.monotonic_ns()
    select.select([], [], [], 0.01)
    earliest_ns = time.monotonic_ns()
    pcm.avail()
    latest_ns = time.monotonic_ns()
    frames_per_ns = 192000e-9
    least = frames_per_ns * ((turn_ns - after_ns) + 1.5 * (earliest_ns - turned_ns))
    most = frames_per_ns * ((turned_ns - before_ns) + 1.5 * (latest_ns - turn_ns))
    assert least - 1 <= card.position <= most + 1


def test_when_the_clock_came_to_a_frame(card: FakeCard, open_pcm: Open) -> None:
    """The position is the last frame whose time has come, also after the speed has turned."""
    pcm = open_pcm(rate=192000, periods=800)
    pcm.read()
    for ppm in (0.0, 500_000.0):
        card.ppm = ppm
        pcm.avail()
        select.select([], [], [], 0.01)
        before_ns = time.monotonic_ns()
        pcm.avail()
        after_ns = time.monotonic_ns()
        assert card.time_of(card.position) <= after_ns
        assert card.time_of(card.position + 1) >= before_ns


def test_stamps(card: FakeCard, open_pcm: Open) -> None:
    """htimestamp() is CLOCK_MONOTONIC, and stamp - avail/rate is not before the first frame."""
    pcm = open_pcm(periods=800)
    pcm.set_tstamp_type(alsaaudio.PCM_TSTAMP_TYPE_MONOTONIC)
    before_ns = time.monotonic_ns()
    pcm.read()
    select.select([], [], [], 0.01)
    seconds, nanoseconds, avail = pcm.htimestamp()
    began_ns = seconds * 10**9 + nanoseconds - avail * 10**9 // 48000
    assert before_ns <= began_ns
    assert seconds * 10**9 + nanoseconds <= time.monotonic_ns()


def test_restrict(card: FakeCard, open_pcm: Open) -> None:
    """A restricted card grants the nearest it can, and pyalsaaudio tells only by info()."""
    card.restrict(rates=(44100, 44100), channels=(1, 1), formats=("S24_3LE",))
    pcm = open_pcm()
    granted = pcm.info()
    assert (granted["rate"], granted["channels"]) == (44100, 1)
    assert granted["format_name"] == "S24_3LE"
    pcm.close()
    card.restrict()
    granted = open_pcm().info()
    assert (granted["rate"], granted["channels"]) == (48000, 2)
    assert granted["format_name"] == "S16_LE"


def test_two_cards(tmp_path: Path, plugin: Path, card: FakeCard, open_pcm: Open) -> None:
    """Cards of one directory are open at once and each obeys its own controls."""
    other = FakeCard(tmp_path, "other", plugin)
    assert other.env == card.env
    card.virtual(0)
    other.virtual(0)
    first, second = open_pcm(), open_pcm(device=other.device)
    first.read()
    second.read()
    other.virtual(480)
    assert (first.read()[0], second.read()[0]) == (0, 480)


def test_a_card_is_new_when_constructed(
    tmp_path: Path, plugin: Path, card: FakeCard, open_pcm: Open
) -> None:
    """Constructing a card where one was forgets what the first one was told and counted."""
    card.disconnect()
    with pytest.raises(alsaaudio.ALSAAudioError):
        open_pcm()
    fresh = FakeCard(tmp_path, plugin=plugin)
    open_pcm()
    assert (fresh.opens, fresh.refusals) == (1, 0)


def test_breaks() -> None:
    """breaks() gives the place and size of each jump, a repeat as a negative one."""
    assert breaks(np.array([7, 8, 11, 12, 9], np.int64)) == [(2, 2), (4, -4)]
    assert breaks(np.array([], np.int64)) == []


def test_counter_unwraps() -> None:
    """Numbers of a narrow format go on past the end of their range, forwards and backwards."""
    data = np.array([0xFFFF, 0x0000, 0x0005, 0xFFFE], "<u2").tobytes()
    assert counter(data, "S16_LE", 1).tolist() == [0xFFFF, 0x10000, 0x10005, 0xFFFE]
