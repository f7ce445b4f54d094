"""A flow brings what step after step would have brought, of the same card, in the same time.

The card is one of virtual time behind libasound's calls or behind the kernel's own: it may be off
its rate, move in steps, be looked at late, stand still, lose data on its bus, be overrun, suspended
or fail. Everything is a function of time, so what is captured may not depend on how it was read.
"""

import errno
import os
import select
from collections.abc import Callable
from typing import NamedTuple

import alsaaudio
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capstand.audio.block import NS_PER_S
from capstand.audio.clock import Clock
from capstand.audio.ring import Ring
from capstand.capture import alsa, flowing, kernel
from capstand.capture.alsa import AlsaSource
from capstand.capture.capturer import POLL_MS, Capturer
from capstand.capture.source import NegotiatedParams
from capstand.config.schema import CaptureConfig
from capstand.errors import DeviceError
from tests.counts import counts
from tests.rings import reader_of

MS = 1_000_000
RATE, PERIOD, BUFFER = 48_000, 480, 4_800
BEGAN_NS = 1_000 * NS_PER_S
SECONDS = 3
READY = [(9, select.POLLIN)]
CAPTURE = CaptureConfig(device="hw:9", format="S32_LE", channels=1, rt_priority=0, buffer_ms=100.0)


class Script(NamedTuple):
    """What a card does. Times are ms from its start: of ``stills`` (from, for), in which it brings
    nothing and never makes up for it, and of ``faults`` (when, which). ``late_us``: how late its
    reader runs, again and again. ``unit`` is its period, and ``asked`` how much is wanted at once.
    """

    exact: bool
    ppm: float = 0.0
    step: int = 1
    late_us: tuple[int, ...] = (0,)
    stills: tuple[tuple[int, int], ...] = ()
    faults: tuple[tuple[int, str], ...] = ()
    unit: int = PERIOD
    asked: int = 0


class Card:
    """What it has brought by ``now``, and what was read of that."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.now = BEGAN_NS
        self.end = BEGAN_NS + SECONDS * NS_PER_S
        self.begun, self.suspended = True, False
        self.read_to = 0
        self.untold: list[tuple[int, int]] | None = None
        self.faults = sorted(script.faults)
        self.wakes_at = script.unit

    def monotonic_ns(self) -> int:
        return self.now

    @property
    def count(self) -> int:
        since = passed = self.now - BEGAN_NS
        for at, length in self.script.stills:
            since -= max(0, min(length * MS, passed - at * MS))
        frames = since * RATE * (1 + self.script.ppm * 1e-6) / NS_PER_S
        return int(frames) // self.script.step * self.script.step

    @property
    def waiting(self) -> int:
        return self.count - self.read_to

    @property
    def overrun(self) -> bool:
        return not self.script.exact and self.waiting > BUFFER

    @property
    def state(self) -> int:
        self.suspended = self.suspended or self.due("suspend")
        if self.suspended:
            return kernel.SUSPENDED
        if not self.begun:
            return kernel.PREPARED
        return kernel.XRUN if self.overrun else kernel.RUNNING

    def due(self, what: str) -> bool:
        at_ms, first = self.faults[0] if self.faults else (1 << 40, "")
        is_due = first == what and self.now >= BEGAN_NS + at_ms * MS
        if is_due:
            self.faults.pop(0)
        return is_due

    def poll(self, timeout_ms: int) -> list[tuple[int, int]]:
        until, late_us = self.now + timeout_ms * MS, self.script.late_us
        while self.now < until and self.waiting < self.wakes_at:
            self.now = min(until, self.now + MS // 4)
        self.untold = found = READY if self.waiting >= self.wakes_at else []
        self.now += late_us[self.now // MS % len(late_us)] * 1000
        return found

    def rest(self, timeout_ms: int) -> list[tuple[int, int]]:
        self.now += timeout_ms * MS
        return []


class Pcm:
    """pyalsaaudio's."""

    def __init__(self, card: Card) -> None:
        self._card = card

    def polldescriptors(self) -> list[tuple[int, int]]:
        return READY

    def polldescriptors_revents(self, found: list[tuple[int, int]]) -> None:
        assert found == [(9, dict(self._card.untold or ()).get(9, 0))]
        self._card.untold = None

    def state(self) -> int:
        return self._card.state

    def avail(self) -> int:
        assert self._card.untold is None  # what a wait has found is told behind it
        return self._card.waiting

    def read(self) -> tuple[int, bytes]:
        card = self._card
        overran = not card.script.exact and card.due("long")
        card.now += 200 * MS * overran
        if card.suspended or card.due("error"):
            raise alsaaudio.ALSAAudioError(f"{os.strerror(errno.EIO)} [hw:9]")
        if not card.begun or card.overrun:
            was, card.begun, card.read_to = card.begun, True, card.count
            return (-errno.EPIPE if was else 0), b""
        frames = min(card.script.unit, card.waiting)
        if card.due("short"):
            frames //= 2
        numbers = np.arange(card.read_to, card.read_to + frames, dtype="<i4")
        card.read_to += frames
        if card.due("long"):
            card.now += 200 * MS
        return frames, numbers.tobytes()

    def drop(self) -> None:
        self._card.begun = self._card.suspended = False

    def close(self) -> None:
        pass


class Pointers:
    """The kernel's, as ``KernelPcm`` tells them."""

    missed, ambiguous = 0, False

    def __init__(self, card: Card) -> None:
        self._card = card

    def status(self) -> None:
        card = self._card
        self.state, self.hw_ptr, self.appl_ptr = card.state, card.count, card.read_to
        self.avail = card.waiting
        self.stamp_ns = card.now - self.hw_ptr % 7 * 1000  # when it was brought up to date

    def wake_at(self, frames: int) -> None:
        self._card.wakes_at = frames

    def lapped(self, appl_ptr: int) -> bool:
        return self.hw_ptr - appl_ptr > BUFFER

    def skip(self, frames: int) -> int:
        self._card.read_to += frames
        return frames

    def drop(self) -> None:
        self._card.begun = self._card.suspended = False

    def free_hw(self) -> None:
        pass


class Waits:
    """In the place of a ``select.poll``."""

    def __init__(self, poll: Callable[[int], list[tuple[int, int]]]) -> None:
        self.poll = poll


class Source(flowing.FlowingAlsaSource):
    """On such a card."""

    def __init__(self, card: Card) -> None:
        super().__init__(CAPTURE)
        self._card = card

    def open(self) -> NegotiatedParams:
        card, exact = self._card, self._card.script.exact
        self._pcm = Pcm(card)
        self._kernel = Pointers(card) if exact else None  # type: ignore[assignment]
        self._buffer, self._look_ms = BUFFER, 40
        self._unit, self.block_frames = card.script.unit, card.script.asked
        self._fit_block()
        self._descriptors, self._happened, self._revents = READY, [], [(9, 0)]
        self._poll, self._rest = Waits(card.poll), Waits(card.rest)  # type: ignore[assignment]
        self._drained = self._fresh_status = self._waited = False
        self._begin(measured=False)
        return NegotiatedParams("hw:9", self._audio, self._unit, BUFFER, exact)

    def close(self) -> None:
        pass


class Captured(NamedTuple):
    blocks: list[tuple[int, int, int, int]]
    gaps: list[tuple[int, int, int]]
    counts: tuple[int, ...]
    pace: tuple[float, bool]
    troubles: list[str]
    flowed: int


def capture(
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    *,
    flows: bool,
    now_and_then: Callable[[int, AlsaSource], None] = lambda ms, source: None,
) -> Captured:
    card = Card(script)
    for module in (alsa, flowing):
        monkeypatch.setattr(module, "time", card)
    source, clock = Source(card), Clock(RATE, PERIOD)
    ring = Ring(CAPTURE.ring_slots, 2 * PERIOD * CAPTURE.audio.frame_bytes)
    reader = reader_of(ring, CAPTURE.audio)
    capturer = Capturer(source, clock, ring, 0, card.monotonic_ns)
    blocks, troubles, flowed = [], [], 0

    def take() -> None:
        for block in reader.blocks():
            numbers = np.frombuffer(block.samples, "<i4")
            assert (np.diff(numbers) == 1).all()
            blocks.append((*block[:3], int(numbers[0])))

    class Until:
        """Ends a flow at the end of the script."""

        def __bool__(self) -> bool:
            take()  # before the ring is full
            now_and_then((card.now - BEGAN_NS) // MS, source)
            return card.now >= card.end

    capturer._released = Until()  # type: ignore[assignment]
    capturer.open()
    while card.now < card.end:
        try:
            if capturer.step(POLL_MS) and flows and card.now < card.end:
                before = capturer.tally.captured
                capturer.flow(POLL_MS)
                flowed += capturer.tally.captured - before
                if source._waited:
                    capturer.step(POLL_MS)  # what it had waited for
        except DeviceError as error:
            troubles.append(str(error))
            card.now += 50 * MS
            capturer.open()
        take()
    ring.close()
    tally = capturer.tally
    gaps = [(gap.first_frame, gap.frames, int(gap.cause)) for gap in tally.gaps.since(0)]
    count = tally.count()
    return Captured(blocks, gaps, tuple(count), (clock.drift_ppm, clock.settled), troubles, flowed)


def compare(script: Script) -> Captured:
    with pytest.MonkeyPatch.context() as patches:
        flows = capture(script, patches, flows=True)
        steps = capture(script, patches, flows=False)
    assert flows.troubles == steps.troubles
    assert flows.gaps == steps.gaps
    assert flows.blocks == steps.blocks
    assert flows.counts == steps.counts
    assert flows.pace == steps.pace
    return flows


LATE_US = st.sampled_from([0, 0, 0, 30, 200, 2_000, 12_000, 40_000, 150_000])
AT_MS = st.integers(200, 1_000 * SECONDS)
SCRIPTS = st.builds(
    Script,
    exact=st.booleans(),
    ppm=st.sampled_from([-300.0, 0.0, 40.0, 300.0]),
    step=st.sampled_from([1, 48, 240, 480, 960]),
    late_us=st.lists(LATE_US, min_size=1, max_size=40).map(tuple),
    stills=st.lists(st.tuples(AT_MS, st.integers(2, 400)), max_size=3).map(tuple),
    faults=st.lists(
        st.tuples(AT_MS, st.sampled_from(["suspend", "error", "short", "long"])), max_size=3
    ).map(tuple),
    unit=st.sampled_from([PERIOD, PERIOD, 160, 48, 2 * PERIOD]),
    asked=st.sampled_from([0, 2 * PERIOD]),
)


def late_once(at_ms: int, late_ms: int) -> tuple[int, ...]:
    late_us = [0] * 1_000 * SECONDS
    late_us[at_ms : at_ms + 10] = [late_ms * 1000] * 10
    return tuple(late_us)


@settings(max_examples=counts(150, 3_000), deadline=None)
@example(Script(exact=False, faults=((1_000, "error"), (1_000, "suspend"))))
@example(Script(exact=False, faults=((1_000, "long"),)))
@example(Script(exact=True, faults=((1_000, "long"),)))
@example(Script(exact=True, late_us=late_once(1_040, 150), stills=((1_000, 42),)))
@example(Script(exact=False, ppm=-300.0, faults=((200, "suspend"), (201, "long"), (446, "long"))))
@given(SCRIPTS)
def test_a_flow_is_steps(script: Script) -> None:
    """Whatever a card does: the same blocks at the same times, gaps, books and pace."""
    compare(script)


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_well_flows(exact: bool) -> None:
    """A card that moves in whole periods and is looked at a little late: all but the beginning
    comes in flows, and none is lost."""
    captured = compare(Script(exact, 30.0, PERIOD, (0, 30, 60, 400, 20)))
    assert captured.counts[:3] == (captured.counts[1], captured.counts[1], 0)
    assert captured.flowed >= captured.counts[1] - RATE // 4


@pytest.mark.parametrize("exact", [True, False])
def test_two_periods_flow_as_one_block(exact: bool) -> None:
    """Each that is whole when it comes, but for the first."""
    captured = compare(Script(exact, 30.0, 1, (0, 30, 60, 400, 20), asked=2 * PERIOD))
    assert {frames for _, frames, *_ in captured.blocks[2:]} == {2 * PERIOD}
    assert captured.counts[:3] == (captured.counts[1], captured.counts[1], 0)
    assert captured.flowed >= captured.counts[1] - RATE // 4


@pytest.mark.parametrize("exact", [True, False])
def test_blocks_are_as_long_as_is_asked_while_sound_flows(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two periods in the second second, one in the others: a third of a second later at most, and
    without a loss."""

    def ask(ms: int, source: AlsaSource) -> None:
        source.block_frames = 2 * PERIOD if 1000 <= ms < 2000 else 0

    script = Script(exact, 30.0, 1, (0, 30, 60, 400, 20))
    captured = capture(script, monkeypatch, flows=True, now_and_then=ask)
    assert captured.counts[:3] == (captured.counts[1], captured.counts[1], 0)
    for from_s, frames in ((0, PERIOD), (1, 2 * PERIOD), (2, PERIOD)):
        begin, end = (from_s + 0.33) * RATE, (from_s + 0.98) * RATE
        found = {long for first, long, *_ in captured.blocks if begin <= first < end}
        assert found == {frames}


def test_a_wary_reader_sees_each_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is in doubt: no plug-in is left alone until two periods are there."""
    doubt = property(lambda clock: clock._anchor_frame >= RATE)
    monkeypatch.setattr(Clock, "ambiguous", doubt)
    captured = capture(Script(False, 30.0, 1, asked=2 * PERIOD), monkeypatch, flows=True)
    assert all(frames < 1.1 * PERIOD for first, frames, *_ in captured.blocks if first > 1.3 * RATE)
