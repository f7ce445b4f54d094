"""A chain whose sound one live sink alone gets works in that sink's process; it has one of its own
as soon as anybody else wants that sound, and whenever something is wrong with it."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capstand.audio.block import NS_PER_S
from capstand.audio.ring import Reader
from capstand.config.plan import host_of
from capstand.config.schema import StreamConfig
from capstand.processes.page import DOING, Doing
from capstand.stream.health import HUNG_NS
from capstand.stream.stream import Stream
from tests.counts import counts
from tests.patience import PATIENCE_S
from tests.processing.signals import settings
from tests.stream.chained import Running, numbers, sink_of
from tests.stream.chained import running as running

SWAP = settings("channels", swap=True)


def live(running: Running, *process: Any, signal: str = "counter", **keys: Any) -> Any:
    """A channel and a raw recording."""
    sinks = running.file("raw", input="captured"), running.wire("live", **keys)
    return running.config(*(process or (SWAP,)), signal=signal, sinks=sinks)


def capture_ring_frames(config: StreamConfig) -> int:
    return config.capture.ring_slots * config.capture.period_frames


def pid_of(running: Running, sink: str) -> Any:
    return sink_of(running.stats(), sink).figures["pid"]


def stand_still(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)


def kill(running: Running) -> int:
    """The sink's process, while it waits: in the middle of processing it would be the chain's
    fault, in the middle of writing what it wrote would not be counted."""
    assert running.stream is not None
    process = running.stream.live[0].process
    pid = process.pid
    assert pid is not None
    stand_still(pid)
    while process.page.words[DOING] & 7 != Doing.WAITING:
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.002)
        stand_still(pid)
    os.kill(pid, signal.SIGKILL)
    return pid


def heard(running: Running, sink: str = "live") -> dict[int, int]:
    """The card's number of each frame that the live sink got, by its index: each came once."""
    found: dict[int, int] = {}
    for first_frame, _, samples in running.stamps(sink):
        for at, number in enumerate(numbers(np.ascontiguousarray(samples[:, ::-1]))):
            assert first_frame + at not in found
            found[first_frame + at] = int(number)
    return found


def is_the_cards(running: Running, frames: dict[int, int], fades: int = 0) -> None:
    """Each is at its own index, but for so many at the edges of gaps."""
    wrong = [at for at, number in frames.items() if at != number]
    assert len(wrong) <= fades, wrong[:10]


def all_or_booked(running: Running) -> None:
    """What was meant for the live sink came, or counts as dropped."""
    assert running.ended is not None
    got, books = heard(running), sink_of(running.ended, "live")
    assert len(got) == books.delivered_frames
    assert books.delivered_frames + books.dropped_frames == books.captured_frames


@contextmanager
def tapped(running: Running) -> Iterator[dict[int, int]]:
    """What one who listens to the processed sound hears, as ``capstand tap`` does."""
    assert running.stream is not None
    config, found, stop = running.stream.config, dict[int, int](), threading.Event()
    descriptor = running.stream.tapped("processed").open_for_reading()
    reader = Reader(descriptor, config.processed_audio, keep=None)

    def listen() -> None:
        while not stop.wait(0.02):
            for block in reader.blocks():
                samples = np.frombuffer(block.samples, "<i2").reshape(block.frames, -1)
                for at, number in enumerate(numbers(np.ascontiguousarray(samples[:, ::-1]))):
                    found[block.first_frame + at] = int(number)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        reader.close()
        os.close(descriptor)


def test_it_works_in_the_process_of_the_sink(running: Running) -> None:
    """There is no other process, and each frame comes once, processed, at its index."""
    running.start(live(running))
    running.flow(48_000)
    running.until(lambda: running.process()["stages"])
    shown = running.process()
    assert (shown["host"], shown["pid"]) == ("live", pid_of(running, "live"))
    assert [stage["type"] for stage in shown["stages"]] == ["channels"]
    assert running.stream is not None and running.stream._chain is not None
    assert not running.stream._chain.process.running
    ended = running.end()
    got = heard(running)
    is_the_cards(running, got)
    assert len(got) == sink_of(ended, "live").delivered_frames
    assert not sink_of(ended, "live").dropped_frames or running.stalled


@pytest.mark.parametrize("why", ["two", "recording", "foreign", "echo"])
def test_what_others_hear_or_bring_has_a_process_of_its_own(running: Running, why: str) -> None:
    """Two live sinks, a recording of what comes out, a processor that is not capstand's own, one
    that listens to another stream."""
    config = live(running)
    wire, recording = running.wire("other"), running.file("done")
    wild = running.wild()
    echo = settings("echo-cancellation", reference="speaker")
    other = {
        "two": config._replace(sink=(*config.sink, wire)),
        "recording": config._replace(sink=(*config.sink, recording)),
        "foreign": config._replace(process=(SWAP, wild)),
        "echo": config._replace(process=(echo,)),
    }[why]
    assert host_of(config) == "live"
    assert host_of(config._replace(sink=(running.wire("other", input="captured"), *config.sink)))
    assert host_of(other) is None
    if why != "echo":
        running.start(other)
        assert running.process()["host"] is None
        assert running.process()["pid"] not in (None, pid_of(running, "live"))
        running.end()


def test_changed_settings_reach_it(running: Running) -> None:
    """Without a step, without losing a frame, and in the same process."""
    before = live(running, settings("gain", gain_db=0.0), signal="tone")
    stream = running.start(before)
    pid = running.process()["pid"]
    stream.exchange(before._replace(process=(settings("gain", gain_db=-6.0),)))
    running.flow(24_000)
    assert running.process()["pid"] == pid
    ended = running.end()
    blocks = running.stamps("live")
    first = blocks[0][0]
    done = np.concatenate([block[2] for block in blocks])[:, 0].astype(float)
    raw = running.samples("raw")[first:, 0].astype(float)
    if running.stalled:
        return
    assert len(done) == sink_of(ended, "live").captured_frames
    assert np.abs(done[-4800:] - 10 ** (-6 / 20) * raw[-4800:]).max() < 0.51
    assert np.abs(np.diff(done)).max() <= np.abs(np.diff(raw)).max() + 2


def test_who_taps_hears_the_same(running: Running) -> None:
    """And harms nobody: the chain stays where it is."""
    running.start(live(running))
    with tapped(running) as found:
        running.flow(24_000)
        assert running.process()["host"] == "live"
    running.end()
    got = heard(running)
    is_the_cards(running, found)
    assert len(found) >= 12_000 and set(found) <= set(got)


def test_who_taps_goes_on_hearing_when_the_sink_is_gone(running: Running) -> None:
    """The chain does without the sink from then on, and the sink's next process without the
    chain."""
    running.start(live(running))
    with tapped(running) as found:
        running.flow()
        pid = kill(running)
        running.until(lambda: running.process()["host"] is None and running.process()["pid"])
        running.flow()
        assert running.process()["pid"] != pid_of(running, "live") != pid
        running.flow()
    running.end()
    is_the_cards(running, found, fades=2 * 240)
    if not running.stalled:
        assert sorted(found) == list(range(min(found), max(found) + 1))
    all_or_booked(running)


def test_a_killed_sink_begins_again_with_its_chain(running: Running) -> None:
    """Several times: what it got and what it is told to have missed is all there was."""
    running.start(live(running))
    dice = random.Random(7)
    for _ in range(counts(3, 30)):
        running.flow(dice.randrange(480, 9600))
        pid = kill(running)
        running.until(lambda pid=pid: pid_of(running, "live") not in (pid, None))  # type: ignore[misc]
        running.flow()
        assert running.process()["host"] == "live"
    ended = running.end()
    is_the_cards(running, heard(running), fades=240 * counts(3, 30))
    all_or_booked(running)
    assert sink_of(ended, "raw").dropped_frames == 0


def test_one_that_stands_still_has_missed_what_it_missed(running: Running) -> None:
    """Longer than the captured ring holds: booked to the frame, and it goes on with the present."""
    config = live(running)
    capture = config.capture._replace(buffer_ms=500.0)
    stream = running.start(config._replace(capture=capture))
    pid = pid_of(running, "live")
    os.kill(pid, signal.SIGSTOP)
    goal = running.stats().captured_frames + (capture.ring_slots + 10) * capture.period_frames
    running.until(lambda: running.stats().captured_frames >= goal)
    os.kill(pid, signal.SIGCONT)
    running.flow()
    assert sink_of(running.stats(), "live").dropped_frames > 0
    assert stream.live[0].process.deaths == 0
    running.end()
    is_the_cards(running, heard(running), fades=2 * 240)
    all_or_booked(running)


def test_one_that_stands_still_costs_no_other(running: Running) -> None:
    """However long: what reads its ring waits for it, and is not taken for what stands still."""
    stream = running.start(live(running))
    pid, before = pid_of(running, "live"), stream.process.pid
    stand_still(pid)
    goal = running.stats().captured_frames + 48_000 * (HUNG_NS // NS_PER_S + 2)
    running.until(lambda: running.stats().captured_frames >= goal)
    os.kill(pid, signal.SIGCONT)
    running.flow()
    assert (stream.process.pid, stream.process.deaths) == (before, 0)
    ended = running.end()
    if not running.stalled:
        assert sink_of(ended, "raw").dropped_frames == ended.lost_frames == 0


def test_a_recording_is_added_while_it_runs(running: Running) -> None:
    """The chain moves to a process of its own: the live sink loses no frame by that, and the
    recording gets each one from when it was added."""
    config = live(running)
    stream = running.start(config)
    pid = pid_of(running, "live")
    stream.exchange(config._replace(sink=(*config.sink, running.file("done"))))
    running.flow(24_000)
    assert running.process()["host"] is None
    assert pid_of(running, "live") == pid
    ended = running.end()
    got = heard(running)
    is_the_cards(running, got, fades=2 * 240)
    all_or_booked(running)
    if running.stalled:
        return
    assert sorted(got) == list(range(min(got), max(got) + 1))
    assert sink_of(ended, "live").dropped_frames == sink_of(ended, "done").dropped_frames == 0


def test_a_recording_is_added_before_the_sink_is_open(running: Running) -> None:
    """It is not waited for: the chain begins in a process of its own, and the sink reads what that
    one makes."""
    wait = running.folder / "live.wait"
    wait.touch()
    config = live(running)
    running.stream = stream = Stream(config, running.folder / "state")
    stream.start()
    running.until(lambda: stream.live[0].process.page.doing[0] is Doing.OPENING)
    stream.exchange(config._replace(sink=(*config.sink, running.file("done"))))
    running.until(lambda: running.delivered("done") > 9600)
    wait.unlink()
    running.flow()
    ended = running.end()
    is_the_cards(running, heard(running))
    assert sink_of(ended, "done").dropped_frames == 0 or running.stalled
    all_or_booked(running)


def test_a_recording_is_added_as_soon_as_the_sink_is_open(running: Running) -> None:
    """What was captured before the sink was there was meant for neither of them."""
    wait = running.folder / "live.wait"
    wait.touch()
    config = live(running)
    running.stream = stream = Stream(config, running.folder / "state")
    stream.start()
    running.until(lambda: running.stats().captured_frames > 4800)
    wait.unlink()
    running.until(lambda: running.delivered("live"))
    stream.exchange(config._replace(sink=(*config.sink, running.file("done"))))
    running.flow()
    ended = running.end()
    first, done = sink_of(ended, "live"), sink_of(ended, "done")
    assert first.since_frame > 4800
    if not running.stalled:
        assert first.dropped_frames == done.dropped_frames == 0
        assert first.since_frame < done.since_frame


@pytest.mark.parametrize("was_there", [False, True])
def test_a_recording_is_added_while_the_sink_is_away_for_long(
    running: Running, was_there: bool
) -> None:
    """Longer than the captured ring holds: nobody was to hear what was captured meanwhile, and the
    recording has not lost it."""
    wait, config = running.folder / "live.wait", live(running)
    config = config._replace(capture=config.capture._replace(buffer_ms=500.0))
    running.stream = stream = Stream(config, running.folder / "state")
    if not was_there:
        wait.touch()
    stream.start()
    if was_there:
        running.flow()
        wait.touch()
        kill(running)
    goal = running.stats().captured_frames + (capture_ring_frames(config) * 11) // 10
    running.until(lambda: running.stats().captured_frames >= goal)
    stream.exchange(config._replace(sink=(*config.sink, running.file("done"))))
    running.until(lambda: running.delivered("done") > 9600)
    wait.unlink()
    running.flow()
    ended = running.end()
    done = sink_of(ended, "done")
    if not running.stalled:
        assert done.dropped_frames == 0
        assert goal - capture_ring_frames(config) < done.since_frame
    all_or_booked(running)


def test_a_processor_of_others_is_added_while_it_runs(running: Running) -> None:
    """That one has somebody to look after it: the chain moves out."""
    config = live(running)
    stream = running.start(config)
    stream.exchange(config._replace(process=(SWAP, running.wild())))
    running.flow(9600)
    assert running.process()["host"] is None
    running.tell("once raises")
    running.until(lambda: any("RuntimeError: wild" in one for one in running.concerns))
    running.flow()
    running.end()
    all_or_booked(running)


def test_another_sink_takes_its_place(running: Running) -> None:
    """With its chain, once the one before has ended."""
    config = live(running)
    stream = running.start(config)
    other = running.wire("other")
    stream.exchange(config._replace(sink=(config.sink[0], other)))
    running.until(lambda: not (stream.reap_removed() or stream.leaving))
    running.flow()
    assert running.process()["host"] == "other"
    assert running.process()["pid"] == pid_of(running, "other")
    running.end()
    first, second = heard(running), heard(running, "other")
    is_the_cards(running, first)
    is_the_cards(running, second)
    assert max(first) < min(second)


def test_a_recording_takes_its_place(running: Running) -> None:
    """The chain goes on in a process of its own, and the recording misses nothing."""
    config = live(running)
    stream = running.start(config)
    stream.exchange(config._replace(sink=(config.sink[0], running.file("done"))))
    running.until(lambda: not (stream.reap_removed() or stream.leaving))
    running.flow()
    assert running.process()["host"] is None
    ended = running.end()
    assert sink_of(ended, "done").dropped_frames == 0 or running.stalled


def test_one_that_fails_after_all_costs_its_sink_once(running: Running) -> None:
    """A processor that was thought to be safe ends the process: from then on the chain has one of
    its own, in which it is looked after, and the sink goes on without it."""
    running.start(live(running, running.wild(name="trusted")))
    assert running.process()["host"] == "live"
    pid = pid_of(running, "live")
    running.tell("once aborts")
    running.until(lambda: running.process()["host"] is None)
    running.flow()
    assert pid_of(running, "live") not in (pid, None)
    running.until(lambda: not running.concern)
    running.flow()
    ended = running.end()
    assert sink_of(ended, "raw").delivered_frames == ended.captured_frames


@pytest.mark.parametrize("does", ["raises", "nan", "shape"])
def test_what_is_wrong_in_a_hosted_one_is_bypassed(running: Running, does: str) -> None:
    """As it is in a process of its own: the channel hears every frame."""
    running.start(live(running, running.wild(name="trusted")))
    running.tell(f"once {does}")
    running.until(lambda: any("is bypassed" in one for one in running.concerns))
    running.until(lambda: not running.concern)
    running.flow()
    assert running.process()["host"] == "live"
    ended = running.end()
    all_or_booked(running)
    assert sink_of(ended, "live").dropped_frames == 0 or running.stalled


def test_nothing_is_left_inside_at_the_end(running: Running) -> None:
    """Not even less than the chain works on at once."""
    running.start(live(running))
    running.flow(5000)
    ended = running.end()
    books = sink_of(ended, "live")
    assert books.delivered_frames + books.dropped_frames == books.captured_frames
    got = heard(running)
    assert max(got) + 1 == ended.produced_frames or running.stalled


def test_a_sink_that_is_away_at_the_end(running: Running) -> None:
    """It is not waited for, and the books add up."""
    stream = running.start(live(running))
    os.kill(pid_of(running, "live"), signal.SIGKILL)
    running.until(lambda: stream.live[0].process.deaths)
    deadline = time.monotonic() + PATIENCE_S
    assert stream.drain(deadline) == stream.close(deadline) == []
    running.look()
    running.ended = running.stats()
    stream.dispose()
    running.stream = None
    all_or_booked(running)
