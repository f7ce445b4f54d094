"""An ALSA capture device, through pyalsaaudio.

Non-blocking, with poll over the PCM and an eventfd, so that nothing is ever blocked inside ALSA and
shutdown is always safe: the capture thread alone opens, reads and closes.

Loss is counted in one of two ways. On a plain ``hw:`` device the kernel's own pointers count it to
the frame (``capture/kernel.py``). Everywhere else (dsnoop, plug, PipeWire, ...) an overrun is seen
only as −32 from ``PCM.read()``, which has then already thrown the buffer away; the length of the
gap is left to the clock. What the card never delivered no pointer counts: frames are held against
time (``capture/shortfall.py``). Facts about pyalsaaudio 0.11 that shape this file: ``htimestamp()``
returns rubbish unless the stream runs, and on a plug-in whose position moves all the time libasound
repeats it, with Python's lock held, until two looks agree (5 s were seen), so ``avail()`` and our
own clock right after it are the stamp; a read that starts the stream may bring a short block; an
error carries no errno but only its text.
"""

import errno
import math
import os
import select
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import alsaaudio

from capstand.accounting.stats import Cause
from capstand.audio.block import NS_PER_S, AudioFormat
from capstand.capture import kernel, negotiation, refusal
from capstand.capture.pick import Pick
from capstand.capture.shortfall import PAUSE_MS, Shortfall
from capstand.capture.source import UNKNOWN, NegotiatedParams, Reading
from capstand.capture.truerate import FASTEST, SLACK_S, too_fast
from capstand.config import naming
from capstand.config.controls import ControlState, Setting
from capstand.config.schema import LARGEST_PERIOD, CaptureConfig
from capstand.devices import address, controls, identity, libasound, rebind
from capstand.devices.libasound import refresh_configuration
from capstand.errors import DeviceError

MARGIN_PERIODS = 2
"""How far behind the overwritten edge to go on after an overrun, so as not to be lapped at once."""
RESTS = 4
"""Of so many times that a patient reader could rest, one waits for the device itself."""
BLOCKED_NS = 50_000
"""A wait that took longer did wait: what ended it happened just now."""
PACKET_BUSES = ("usb", "firewire", "virtio", "xen", "gadget")
"""A card on one of these brings its sound in packets, and its pointer counts what came."""
STILL_PERIODS = 2.5
"""So many periods, and half a buffer, without a frame say that a running device stands still."""
STILL_NS = 25_000_000
"""Also so long at least, and what is unread lies before the stand-still."""
UDEV_NS = 2 * NS_PER_S
"""So long udev may take to give a card that was just plugged in to its group."""
ROOM = 0.75
"""So much of the buffer may fill while a suspicious pointer is looked at again."""


class AlsaSource:
    """The device ``name``, by default the best that ``capture`` names, as that asks for it."""

    def __init__(
        self, capture: CaptureConfig, name: str | None = None, root: Path = identity.ROOT
    ) -> None:
        self._capture = capture
        self._name = name or capture.devices[0]
        self._root = root
        self._device = self._label = self._name  # as ALSA knows it now; for people
        self._audio: AudioFormat = capture.audio
        self._reading = Reading()
        self._pcm: alsaaudio.PCM | None = None
        self._kernel: kernel.KernelPcm | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wake).atexit = False
        self._poll = select.poll()
        self._descriptors: list[tuple[int, int]] = []  # as the PCM named them last
        self._happened: list[tuple[int, int]] = []  # as poll found them last
        self._revents: list[tuple[int, int]] = []  # the same, of each of the PCM's
        self._rest = select.poll()
        self._rest.register(self._wake, select.POLLIN)
        self._lost = 0
        self._cause = Cause.OVERRUN
        self._brought_ns = self._empty_ns = 0  # when frames came last, and when none were there
        self._period = 0  # what is read at once: the card's period, or several
        self._unit = 0  # the card's period
        self._asked = 0  # what ``block_frames`` was when that was worked out
        self._frame_ns = NS_PER_S / capture.rate_hz
        self._due_ns = 0  # when the next block will be whole, as of the last look
        self._early: tuple[int, int] | None = None  # a look at an edge before that
        self._after = 0  # frames lost behind those that were read last
        self._buffer = 0
        self._channels = 0  # of the card
        self._pick: Pick | None = None  # where not all of them are taken as they are
        self._drained = False  # less than a period is left: wait before the next look
        self._fresh_status = False  # a look just now found another period
        self._waited = False  # a flow ended after it had waited
        self._edge = False  # the device has just woken the reader
        self._rests = 0
        self._shortfall = Shortfall(capture.rate_hz)
        self._opened = False  # before: where it goes on is measured
        self._taken = 0  # frames read since the stream was started
        self._count = -1  # as the device was seen to move last, and when
        self._moved_ns = 0
        self._still_ns = STILL_NS
        self._place: identity.Location | None = None  # of the card that was opened last
        self._successor: str | None = None
        self._denied_ns = 0  # since when it may not be opened
        self._settings = capture.controls
        self._settings_due = False  # they are other ones since they were set
        self.controls: tuple[ControlState, ...] = ()
        self.batch_ms = self.block_frames = 0
        self.wary = False
        self._look_ms = 0  # half a buffer: a look at least so often, so that no turn can hide

    def open(self) -> NegotiatedParams:
        self.close()
        try:
            params = self._open()
        except DeviceError as error:
            raise self._wait_for_udev(error) from None
        self._denied_ns = 0
        return params

    def _wait_for_udev(self, error: DeviceError) -> DeviceError:
        """A card that was just plugged in may not be opened until udev is done with it: that is
        worth a word about groups only when it lasts."""
        if error.errno != errno.EACCES:
            self._denied_ns = 0
            return error
        now_ns = time.monotonic_ns()
        self._denied_ns = self._denied_ns or now_ns
        if now_ns - self._denied_ns > UDEV_NS:
            return error
        return DeviceError(f"waiting for {self._name}: udev is setting it up", errno.EACCES)

    def _open(self) -> NegotiatedParams:
        capture = self._capture
        self._device = self._label = self._name
        libasound.record_errors()
        place = identity.locate(self._name, self._root)
        if place is None and (fault := naming.fault(self._name)):
            raise DeviceError(f"{self._name} cannot be opened: {fault}", errno.EINVAL, refused=True)
        if place is not None:
            self._device, self._label = place.device, f"{self._name} at {place.device}"
        device = self._device
        refresh_configuration()
        try:
            # pyalsaaudio 0.11 keeps some memory of each opening that fails, and a card may be busy
            # or away for months
            address.probe_open(device, self._label, self._root)
            self._channels = capture.card_channels or negotiation.fewest_channels(
                device, self._label, capture
            )
            self._pick = Pick.of(capture, self._channels)
            bus = address.bus_of(device, self._root)
            if bus == "usb":
                libasound.try_out(device, capture.rate_hz, self._channels, capture.audio.sample)
            pcm = negotiation.configured(device, capture, self._channels)
        except (alsaaudio.ALSAAudioError, OSError) as error:
            raise self._failure(error, "cannot be opened") from None
        self._pcm = pcm
        if place != identity.locate(self._name, self._root):
            raise DeviceError(
                f"{self._label} was replaced by another card during open; reopening it",
                errno.ENODEV,
            )
        try:
            self._period, self._buffer = negotiation.check(
                pcm, device, self._label, capture, self._channels
            )
        except alsaaudio.ALSAAudioError as error:
            raise self._failure(error, "cannot be queried") from None
        except DeviceError:
            self.close()
            raise
        self._look_ms = max(1, self._buffer * 500 // capture.rate_hz)
        granted = self._unit = self._period
        self._fit_block()
        descriptors = pcm.polldescriptors()
        exact = len(descriptors) == 1 and kernel.usable(device, descriptors[0][0])
        if exact:
            try:
                self._kernel = kernel.KernelPcm(
                    descriptors[0][0],
                    capture.rate_hz,
                    self._period,
                    self._buffer,
                    follows_data=bool(pcm.info()["is_batch"]) or bus in PACKET_BUSES,
                )
            except OSError:
                exact = False
        self._watch(descriptors)
        self._lost = 0
        self._brought_ns = self._empty_ns = 0
        self._drained = self._fresh_status = self._waited = False
        self._after = 0
        self._begin(measured=self._opened)
        self._opened = True
        if place is not None:
            if self._place is not None and (told := place.instead_of(self._place, self._name)):
                self._successor = told
            self._place = place
        self._set_controls()
        return NegotiatedParams(
            self._label, self._audio, granted, self._buffer, exact, self._successor
        )

    def _fit_block(self) -> None:
        """How much is read at once: as many of the card's periods as are asked for."""
        period, unit, self._asked = self._capture.period_frames, self._unit, self.block_frames
        least = min(math.ceil(period / unit), self._buffer // 2 // unit)
        more = min(self._asked, LARGEST_PERIOD * period, self._buffer // 4) // unit
        self._period = unit * max(1, least, more)
        self._still_ns = max(STILL_NS, round(STILL_PERIODS * self._period * self._frame_ns))
        if self._kernel is not None:
            self._kernel.wake_at(self._period)

    def adjust(self, wanted: Sequence[tuple[str, Setting]]) -> None:
        self._settings, self._settings_due = tuple(wanted), True

    def _set_controls(self) -> None:
        """Those of the open card; a fault is told, and capture goes on."""
        self._settings_due = False
        mixer = controls.mixer_of(self._device)
        self.controls = controls.apply(mixer, self._settings) if self._settings else ()

    def _begin(self, *, measured: bool) -> None:
        """The stream is about to be set going."""
        self._taken, self._count, self._early = 0, -1, None
        if measured:
            self._shortfall.measure()
        else:
            self._shortfall.forget()

    def restart(self) -> None:
        assert self._pcm is not None
        try:
            if self._kernel is not None:
                self._kernel.drop()
            else:
                self._pcm.drop()
        except (alsaaudio.ALSAAudioError, OSError) as error:
            raise self._failure(error, "cannot be restarted") from None
        self._lose(UNKNOWN, Cause.STALLED)
        self._drained = self._fresh_status = False

    def advice(self) -> str:
        return rebind.advice(self._device)

    def close(self) -> None:
        pcm, known, self._pcm, self._kernel = self._pcm, self._kernel, None, None
        if pcm is not None:
            if known is not None:
                known.free_hw()
            pcm.close()

    def wake(self) -> None:
        os.eventfd_write(self._wake, 1)

    def read(self, slot: memoryview, timeout_ms: int) -> Reading:
        reading = self._reading
        reading.frames = reading.lost = reading.short = 0
        if self._after:
            after, self._after = self._after, 0
            self._lose(after, Cause.OVERRUN) if after != UNKNOWN else self._lose_all()
        if self._settings_due:
            self._set_controls()
        try:
            if self.block_frames != self._asked:
                self._fit_block()
            if self._kernel is not None:
                self._read_exact(self._kernel, slot, timeout_ms)
            else:
                self._read_estimated(slot, timeout_ms)
        except alsaaudio.ALSAAudioError as error:
            raise self._failure(error, "failed while capturing") from None
        except OSError as error:
            raise self._failure(error, "failed while capturing") from None
        return reading

    def _read_exact(self, pcm: kernel.KernelPcm, slot: memoryview, timeout_ms: int) -> None:
        reading, waited, self._waited = self._reading, self._waited, False
        if self._drained:
            self._let_come(timeout_ms)
            waited = True
        until_ns = time.monotonic_ns() + timeout_ms * 1_000_000
        while True:
            if not self._fresh_status:
                self._read_status(pcm)
            self._fresh_status = False
            if pcm.missed:
                # Turns that cannot be counted were missed by a device that stood still.
                stood = pcm.missed == UNKNOWN
                self._lose(pcm.missed, Cause.STALLED if stood else Cause.OVERRUN)
                pcm.missed = 0
                self._shortfall.forget()
            if pcm.state != kernel.RUNNING:
                if self._start(pcm.state, slot):
                    return
            elif pcm.avail > self._buffer:
                skipped = pcm.skip(pcm.avail - self._buffer + MARGIN_PERIODS * self._period)
                self._lose(skipped, Cause.STALLED if self._stood_still() else Cause.OVERRUN)
                continue
            elif pcm.avail >= self._period or (pcm.avail and self._still()):
                if self._shortfall.suspicious and self._hold(pcm.avail):
                    if self._rest.poll(PAUSE_MS) or time.monotonic_ns() > until_ns:
                        return
                    continue
                first, count = pcm.appl_ptr, pcm.hw_ptr - pcm.avail
                reading.stamp_ns, reading.avail = pcm.stamp_ns, pcm.avail
                reading.edge, self._edge = self._edge, False
                frames = self._fetch(slot)
                if not frames:
                    return
                self._read_status(pcm)
                if not pcm.lapped(first) and not pcm.ambiguous:
                    self._drained = pcm.avail < self._period
                    self._fresh_status = not self._drained
                    self._deliver(frames, count)
                    return
                self._lose(frames, Cause.OVERWRITTEN)
                continue
            else:
                self._empty_ns = time.monotonic_ns()
            if waited:
                return
            still_ms = self._still_ns // 1_000_000 + 1
            self._wait(min(timeout_ms, still_ms) if pcm.avail else timeout_ms)
            waited = True

    def _read_status(self, pcm: kernel.KernelPcm) -> None:
        pcm.status()
        if pcm.state == kernel.RUNNING and not pcm.ambiguous:
            self._observe(pcm.stamp_ns, pcm.hw_ptr)

    def _observe(self, stamp_ns: int, count: int) -> None:
        self._shortfall.observe(stamp_ns, count)
        if count != self._count:
            self._count, self._moved_ns = count, stamp_ns

    def _still(self) -> bool:
        """Whether the device has not moved for so long that what is unread lies before a
        stand-still: it is to be handed out, so that a gap comes to its place."""
        return time.monotonic_ns() - self._moved_ns > self._still_ns

    def _hold(self, avail: int) -> bool:
        """In doubt, whether to leave what is there for a moment: a loss may be before it."""
        if avail > ROOM * self._buffer:
            self._shortfall.stop_measuring()
            return False
        return not self._still()

    def _read_estimated(self, slot: memoryview, timeout_ms: int) -> None:
        pcm, reading, waited, self._waited = self._pcm, self._reading, self._waited, False
        assert pcm is not None
        if self._drained:
            self._let_come(timeout_ms)
            waited = True
        until_ns = time.monotonic_ns() + timeout_ms * 1_000_000
        while True:
            state = pcm.state()
            if state == kernel.RUNNING:
                avail = pcm.avail()
                stamp_ns = time.monotonic_ns()
                if 0 <= avail <= self._buffer:
                    self._observe(stamp_ns, self._taken + avail)
                # In doubt each move counts; else a look at an edge is kept until a block is whole.
                enough = self._unit if self._edge and self.wary else self._period
                if not 0 <= avail <= self._buffer or avail >= enough:
                    if self._shortfall.suspicious and self._hold(avail):
                        if self._rest.poll(PAUSE_MS) or time.monotonic_ns() > until_ns:
                            return
                        continue
                    count = self._taken
                    reading.stamp_ns, reading.avail = stamp_ns, avail
                    reading.edge, self._edge = self._edge, False
                    frames = self._fetch(slot)
                    if frames:
                        self._drained = 0 <= avail < frames + self._unit
                        self._found_whole(count, stamp_ns, avail, frames)
                        self._deliver(frames, count)
                    return
                if avail < self._unit:
                    self._empty_ns = stamp_ns
                elif self._edge:
                    self._look_early(stamp_ns, avail)
                    self._gather(timeout_ms)
                    waited = True
                    continue
            elif self._start(state, slot):
                return
            if waited:
                return
            if state == kernel.RUNNING and avail >= self._unit:
                self._due_ns = stamp_ns + round((self._period - avail) * self._frame_ns)
                self._gather(timeout_ms)
            else:
                self._wait(timeout_ms)
            waited = True

    def _let_come(self, timeout_ms: int) -> None:
        """Sound flows and nothing of it is left: the next period, or as many as patience allows;
        now and then the next period all the same, because the clock wants to see the device move.
        """
        if not self.batch_ms and not self._gathers:
            self._wait(timeout_ms)
            return
        rest_ms = min(self.batch_ms, self._look_ms // 4, timeout_ms)
        if self.wary or not self._may_rest():
            self._wait(timeout_ms)
        elif rest_ms * self._capture.rate_hz > self._period * 1000:
            self._drained = self._edge = False
            self._rest.poll(rest_ms)
        elif self._gathers:
            self._gather(timeout_ms)
        else:
            self._wait(timeout_ms)

    @property
    def _gathers(self) -> bool:
        """Whether a descriptor tells of each of the card's periods while a block takes several; the
        kernel tells when so many are there."""
        return self._kernel is None and self._unit < self._period

    def _may_rest(self) -> bool:
        """Of ``RESTS`` times all but one."""
        self._rests = (self._rests + 1) % RESTS
        return self._rests > 0

    def _gather(self, timeout_ms: int) -> None:
        """Rests until a block is whole."""
        self._drained = self._edge = False
        rest_ms = math.ceil((self._due_ns - time.monotonic_ns()) / 1_000_000)
        self._rest.poll(max(0, min(rest_ms, timeout_ms, self._look_ms)))

    def _look_early(self, stamp_ns: int, avail: int) -> None:
        """The card has just moved and a block is not whole: that is what the clock will want to
        know. What is seen when it is whole is no edge."""
        self._early = stamp_ns, self._taken + avail
        self._due_ns = stamp_ns + round((self._period - avail) * self._frame_ns)

    def _found_whole(self, count: int, stamp_ns: int, avail: int, frames: int) -> None:
        """A block of ``frames``, before which the device had delivered ``count``, was there."""
        self._due_ns = stamp_ns + round((self._period + frames - avail) * self._frame_ns)
        if self._early is not None:
            stamp_ns, early_count = self._early
            reading, self._early = self._reading, None
            reading.stamp_ns, reading.avail, reading.edge = stamp_ns, early_count - count, True

    def _wait(self, timeout_ms: int) -> None:
        """Until the device has something, or ``wake``; what was known about it is old then."""
        self._drained = False
        began_ns = time.monotonic_ns()
        if self._kernel is not None:
            self._happened = happened = self._poll.poll(min(timeout_ms, self._look_ms))
            self._edge = bool(happened) and time.monotonic_ns() - began_ns > BLOCKED_NS
            return
        pcm = self._pcm
        assert pcm is not None
        descriptors = pcm.polldescriptors()  # some plug-ins change theirs while they run
        if descriptors != self._descriptors:
            self._watch(descriptors)
        happened = self._poll.poll(timeout_ms)
        self._edge = bool(happened) and time.monotonic_ns() - began_ns > BLOCKED_NS
        self._woken(pcm, happened)

    def _woken(self, pcm: "alsaaudio.PCM", happened: list[tuple[int, int]]) -> None:
        """Tells a PCM that is not the kernel's own what was found."""
        if happened != self._happened:
            self._happened, events = happened, dict(happened)
            self._revents = [(one, events.get(one, 0)) for one, _ in self._descriptors]
        if self._descriptors:  # a plug-in may end the process unless it gets all of them, in order
            pcm.polldescriptors_revents(self._revents)

    def _watch(self, descriptors: list[tuple[int, int]]) -> None:
        self._descriptors = descriptors
        self._happened, self._revents = [], [(one, 0) for one, _ in descriptors]
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        wanted: dict[int, int] = {}  # a descriptor may be named twice
        for descriptor, events in descriptors:
            wanted[descriptor] = wanted.get(descriptor, 0) | events
        for descriptor, events in wanted.items():
            self._poll.register(descriptor, events)

    def _start(self, state: int, slot: memoryview) -> bool:
        """Sets a stream going that does not run; true when that brought frames already."""
        assert self._pcm is not None
        if state == kernel.DISCONNECTED:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        if state == kernel.SUSPENDED:
            self._lose(UNKNOWN, Cause.SUSPENDED)
            self._pcm.drop()
        self._begin(measured=self._lost == UNKNOWN or self._shortfall.measuring)
        frames = self._fetch(slot)
        if not frames:
            return False
        if frames >= self._period and self._kernel is None:
            self._refuse_no_card()
        self._reading.avail = frames + max(0, self._after)
        self._reading.stamp_ns, self._reading.edge = time.monotonic_ns(), False
        self._deliver(frames, 0)
        return True

    def _refuse_no_card(self) -> None:
        """A whole block came as soon as the stream was started. Raises DeviceError, refused, where
        it goes on like that, as ALSA's ``null`` does, before any of it is taken for sound."""
        assert self._pcm is not None
        rate_hz = self._capture.rate_hz
        most = round(SLACK_S * rate_hz) + self._buffer
        began_ns, fetched, frames = time.monotonic_ns(), 0, self._unit
        while fetched < most and frames >= self._unit:
            frames = int(self._pcm.read()[0])
            fetched += max(0, frames)
            if (time.monotonic_ns() - began_ns) * rate_hz * FASTEST > fetched * NS_PER_S:
                break  # it is paced: what comes waits for its time
        else:
            if fetched >= most:
                raise too_fast(self._label)
        self._taken += fetched
        self._after = UNKNOWN if frames < 0 else fetched  # what it had gathered before

    def _fetch(self, slot: memoryview) -> int:
        """Reads what is there, at most a block of ``_period`` frames, which may be several of the
        device's own periods, into the slot; 0 after an overrun or a suspend."""
        assert self._pcm is not None
        fetched, at = 0, 0
        while fetched < self._period:
            try:
                frames, samples = self._pcm.read()
            except alsaaudio.ALSAAudioError:
                if self._pcm.state() == kernel.SUSPENDED:
                    break  # the next look at the state starts it again
                raise
            if frames < 0:
                if fetched:
                    self._after = UNKNOWN
                else:
                    self._lose_all()
                break
            if self._pick is not None:
                at += self._pick.put(slot[at:], samples)
            else:
                slot[at : at + len(samples)] = samples
                at += len(samples)
            fetched += int(frames)
            if frames < self._unit:
                break
        self._taken += fetched
        return fetched

    def _lose_all(self) -> None:
        """The stream was stopped, and its buffer thrown away."""
        overrun = Cause.STALLED if self._stood_still() else Cause.OVERRUN
        self._lose(UNKNOWN, Cause.STOPPED if self._kernel is not None else overrun)

    def _stood_still(self) -> bool:
        """Whether the running device was seen to bring nothing for long: what it does next, also an
        overrun, comes of that."""
        frames = max(self._buffer / 2, STILL_PERIODS * self._period)
        return (self._empty_ns - self._brought_ns) * self._capture.rate_hz > frames * NS_PER_S

    def _lose(self, frames: int, cause: Cause) -> None:
        """Books a loss before the next frames; an overrun is not the cause where a device that
        stood still, or was stopped, ended in one."""
        if not self._lost or self._cause in (Cause.OVERRUN, Cause.OVERWRITTEN):
            self._cause = cause
        self._lost = UNKNOWN if UNKNOWN in (frames, self._lost) else self._lost + frames

    def _deliver(self, frames: int, count: int) -> None:
        """Hands out what was fetched; the device had delivered ``count`` frames before it."""
        reading, shortfall = self._reading, self._shortfall
        if shortfall.found:
            shortfall.found = False
            reading.stamp_ns, reading.avail = shortfall.stamp_ns, shortfall.count - count
            reading.short = shortfall.most_frames
        reading.frames, reading.lost, reading.cause = frames, self._lost, self._cause
        self._lost = 0
        self._brought_ns = reading.stamp_ns

    def _failure(self, error: Exception, what: str) -> DeviceError:
        return refusal.failure(error, what, self._label, self._device, self._root)
