"""A chain in a process of its own, between two rings: what it does to sound, and what misbehaves in
it costs nobody else a frame."""

import os
import random
import signal
import time

import numpy as np
import pytest

from capstand.accounting.ledger import Ledger
from capstand.config.schema import Config
from capstand.host.peer import Peer
from capstand.sharing.live_settings import LiveSettings
from tests.counts import counts
from tests.patience import PATIENCE_S
from tests.processing.signals import settings
from tests.stream.chained import Running, numbers, sink_of
from tests.stream.chained import running as running

ROOT = Peer(pid=1, uid=0, groups=frozenset())
EDGE_FRAMES = 2 * 240
"""What fades at a gap."""


def balanced_and_alike(running: Running, faults: int = 1) -> None:
    """Every captured frame is in the raw recording; in the processed one it is the same, or it was
    missed, which a machine that is busy for two seconds may do, and is booked."""
    ended = running.end()
    raw, done = running.samples("raw"), running.samples("done")
    missed = sink_of(ended, "done").dropped_frames
    assert sink_of(ended, "raw").delivered_frames == ended.captured_frames
    assert ended.captured_frames <= len(raw) <= ended.produced_frames
    assert len(raw) - missed <= len(done) <= len(raw)
    wrong = (raw[: len(done)] != done).any(axis=1).sum()
    edges = EDGE_FRAMES * (ended.gaps + (faults if missed else 0))
    assert wrong <= missed + edges


def test_a_chain_that_changes_nothing_is_exact(running: Running) -> None:
    """To the bit, and every frame of it, at the same index; what is captured is also all there."""
    running.start(running.config(settings("gain", gain_db=0.0)))
    running.flow(48_000)
    ended = running.end()
    raw, done = running.samples("raw"), running.samples("done")
    assert len(raw) == ended.produced_frames
    assert np.array_equal(raw, done) or running.stalled
    assert [sink.dropped_frames for sink in ended.sinks] == [0, 0] or running.stalled


def test_the_gain_is_exact(running: Running) -> None:
    """Half as loud, rounded to the nearest, however the blocks are cut."""
    running.start(running.config(settings("gain", gain_db=-6.0), signal="noise"))
    running.flow(48_000)
    running.end()
    raw, done = running.samples("raw"), running.samples("done")
    assert len(raw) == len(done) or running.stalled
    assert np.abs(done[:4800] - raw[:4800] * 10 ** (-6 / 20)).max() < 0.51
    assert np.abs(done - raw[: len(done)] * 10 ** (-6 / 20)).max() < 0.51 or running.stalled


def test_channels_that_come_out_are_the_sinks(running: Running) -> None:
    """Stereo goes in, and a mono recording comes out."""
    running.start(running.config(settings("channels", pick=(2,))))
    running.end()
    raw, done = running.samples("raw"), running.samples("done")
    assert done.shape[1] == 1
    assert np.array_equal(done[:, 0], raw[:, 1]) or running.stalled


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("raises", "process 1 (wild) is bypassed: RuntimeError: wild"),
        ("shape", "process 1 (wild) is bypassed: gave (1919, 2)"),
        ("nan", "process 1 (wild) is bypassed: gave what is not finite"),
        ("sleeps", "process 1 (wild) did not return within 50 ms"),
        ("spins", "process 1 (wild) did not return within 50 ms"),
        ("hangs", "its process showed no sign of life for 1 s"),
        ("aborts", "its process was ended by SIGABRT"),
        ("memory", "process 1 (wild) is bypassed: MemoryError"),
    ],
)
def test_what_misbehaves_is_bypassed(running: Running, does: str, words: str) -> None:
    """The raw recording has every frame, and the processed one, too: the sound goes on as it was
    captured, exactly, and later through the processor again."""
    running.start(running.config(running.wild()))
    running.tell(f"once {does}")
    running.until(lambda: any(words in concern for concern in running.concerns))
    running.flow()
    running.until(lambda: not running.concern)
    running.flow()
    if does not in ("hangs", "aborts"):
        (stage,) = running.process()["stages"]
        assert stage["faults"] >= 1 and not stage["bypassed"]
    balanced_and_alike(running)


def test_a_killed_chain_goes_on_where_it_was(running: Running) -> None:
    """At random moments, several times; capture and the raw recording do not notice."""
    running.start(running.config(running.wild()))
    dice, rounds = random.Random(5), counts(4, 30)
    for _ in range(rounds):
        running.flow(dice.randrange(480, 9600))
        pid = running.process()["pid"]
        os.kill(pid, signal.SIGKILL)
        running.until(lambda pid=pid: running.process()["pid"] not in (pid, None))  # type: ignore[misc]
        running.flow()
    assert running.process()["restarts"] >= rounds
    balanced_and_alike(running, rounds)


def test_a_killed_stream_takes_the_processed_sound_along(running: Running) -> None:
    """The chain goes on with what the next process of the stream captures; all is booked."""
    stream = running.start(running.config(running.wild()))
    pid = stream.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    running.until(lambda: stream.process.pid not in (pid, None))
    running.flow()
    ended = running.end()
    for sink in ended.sinks:
        assert sink.delivered_frames + sink.dropped_frames == ended.captured_frames


def test_what_is_not_processed_at_the_end_is_booked(running: Running) -> None:
    """The chain's process hangs while the stream is stopped."""
    stream = running.start(running.config(running.wild()))
    running.tell("hangs")
    running.until(lambda: not running.told_by.exists() or running.concerns)
    deadline = time.monotonic() + 1.0
    assert stream.drain(deadline) in ([], ["its processors"])
    assert stream.close(time.monotonic() + PATIENCE_S) == []
    running.look()
    ended = running.stats()
    assert all(sink.in_flight_frames == 0 for sink in ended.sinks)
    assert sink_of(ended, "raw").delivered_frames == ended.captured_frames
    stream.dispose()
    running.stream = None


def test_a_live_sink_and_a_recording_get_the_same(running: Running) -> None:
    """Of one chain, the live one within 20 ms; a third gets the captured sound."""
    sinks = (
        *(running.file("raw", input="captured"), running.file("done")),
        *(running.wire("live"), running.wire("plain", input="captured")),
    )
    running.start(running.config(settings("channels", swap=True), sinks=sinks))
    running.flow(48_000)
    running.end()
    done, raw = running.samples("done"), running.samples("raw")
    assert len(running.stamps("live")[-1][2]) <= 960
    if running.stalled:
        return
    assert np.array_equal(done, raw[:, ::-1])
    for name, whole in (("live", done), ("plain", raw)):
        blocks = running.stamps(name)
        assert blocks
        for first_frame, _, samples in blocks:
            assert np.array_equal(samples, whole[first_frame : first_frame + len(samples)])


def test_time_stamps_are_those_of_the_sound(running: Running) -> None:
    """A processor delays by 10 ms and says so: each frame has the stamp at which it was captured,
    and the status says how late it comes."""
    sinks = running.wire("late"), running.wire("plain", input="captured")
    running.start(running.config(running.wild(480), sinks=sinks))
    running.flow(24_000)
    running.until(lambda: running.process()["delay_ms"] == 10.0)
    running.end()
    plain = {first: stamp for first, stamp, _ in running.stamps("plain")}
    compared = 0
    for first_frame, stamp, samples in running.stamps("late"):
        number = int(numbers(samples)[0])
        if number and number in plain and not running.stalled:
            assert number == first_frame - 480
            assert abs(plain[number] - stamp) < 1_000_000
            compared += 1
    assert compared > 10 or running.stalled


def test_changed_settings_lose_nothing_and_make_no_step(running: Running) -> None:
    """A reload to half the level, while the chain runs: by and by, and with the same process."""
    before = running.config(settings("gain", gain_db=0.0), signal="tone")
    after = before._replace(process=(settings("gain", gain_db=-6.0),))
    stream = running.start(before)
    pid, own = running.process()["pid"], stream.process.pid
    stream.exchange(after)
    running.flow(24_000)
    assert (running.process()["pid"], stream.process.pid) == (pid, own) or running.stalled
    ended = running.end()
    raw = running.samples("raw")[:, 0].astype(float)
    done = running.samples("done")[:, 0].astype(float)
    if running.stalled:
        return
    assert len(done) == len(raw) == ended.captured_frames
    half = 10 ** (-6 / 20)
    assert np.abs(done[-4800:] - half * raw[-4800:]).max() < 0.51
    assert np.abs(done[:480] - raw[:480]).max() == 0
    assert np.abs(np.diff(done)).max() <= np.abs(np.diff(raw)).max() + 2


def test_what_is_set_while_it_runs_loses_nothing_and_makes_no_step(running: Running) -> None:
    """A gain, a filter and a switch, one after the other and while the one before still fades; the
    processes and the files stay, and what comes out is a sine all the time."""
    chain = settings("high-pass", cutoff_hz=20.0), settings("gain", gain_db=0.0)
    before = running.config(*chain, settings("channels", pick=(1, 2)), signal="tone")
    stream = running.start(before)
    pid, own = running.process()["pid"], stream.process.pid
    config = Config((before,))
    live = LiveSettings(lambda: [stream], lambda: config, None, Ledger(running.folder / "ledger"))
    for key, value in (
        *(("gain.gain_db", "-6"), ("high-pass.cutoff_hz", "400"), ("channels.pick", "[2, 1]")),
        *(("high-pass.order", "4"), ("gain.gain_db", "-3"), ("high-pass.cutoff_hz", "200")),
    ):
        assert live.set({"stream": "mic", "key": key, "value": value}, ROOT)["set"]
        running.flow(960)
    running.flow(24_000)
    assert [one["key"] for one in live.changes(stream)] == [
        *("high-pass.cutoff_hz", "high-pass.order", "gain.gain_db", "channels.pick"),
    ]
    assert (running.process()["pid"], stream.process.pid) == (pid, own) or running.stalled
    ended = running.end()
    assert len(list((running.folder / "done").glob("*.wav"))) == 1
    raw = running.samples("raw")[:, 0].astype(float)
    done = running.samples("done")[:, 0].astype(float)
    if running.stalled:
        return
    assert len(done) == len(raw) == ended.captured_frames
    assert sink_of(ended, "done").delivered_frames == ended.captured_frames
    assert np.abs(np.diff(done)).max() <= np.abs(np.diff(raw)).max() + 4
    assert np.abs(np.diff(done, 2)).max() <= np.abs(np.diff(raw, 2)).max() + 4
    high = 440 / 200
    share = 10 ** (-3 / 20) / np.sqrt(1 + high**-8)
    assert np.abs(done[-4800:]).max() == pytest.approx(share * np.abs(raw[-4800:]).max(), rel=0.002)


def test_chains_and_inputs_come_and_go(running: Running) -> None:
    """Capture goes on and loses nothing; every sink's own books are right, and of the recordings no
    frame is anything but the card's."""
    plain = running.config(sinks=(running.file("raw"), running.file("done")))
    chained = running.config(settings("channels", swap=True))
    mono = chained._replace(process=(settings("channels", pick=(1,)),))
    swapped = chained._replace(sink=(running.file("raw"), running.file("done", input="captured")))
    stream = running.start(plain)
    pid = stream.process.pid
    for config in (chained, mono, swapped, plain, chained):
        stream.exchange(config)
        running.until(lambda: not (stream.reap_removed() or stream.leaving))
        running.flow()
        running.until(lambda: not stream._former)
    assert stream.process.pid == pid or running.troubles
    assert not running.end().lost_frames or running.troubles
