"""An ALSA capture device whose sound flows: what ``read`` does, in one loop.

What is called for each period, with cold caches, costs more than it does: so all that a loop needs
is in its local variables, and is put back when it ends. Each block is waited for, since none is
left, and looked at as ``read`` does; looks are observed at the end. What needs more than that ends
the loop before it is acted upon, and ``read`` goes on. The two loops look alike and stay apart: a
function for what they share would cost more than it does. Thread: capture.
"""

import time
from collections.abc import Sequence

import alsaaudio

from capstand.accounting.stats import Cause
from capstand.capture import kernel
from capstand.capture.alsa import BLOCKED_NS, AlsaSource
from capstand.capture.shortfall import Line
from capstand.capture.source import Flow, Slot


class FlowingAlsaSource(AlsaSource):
    """One that is ``Flowing``."""

    def flow(self, slot: Slot, timeout_ms: int) -> Flow | None:
        usual, known, pcm = self._shortfall.line, self._kernel, self._pcm
        if not (self._drained and self._happened) or self._after or usual is None:
            return None
        if self.batch_ms or (self.wary and self._gathers):
            return None
        assert pcm is not None
        self._reading.lost = self._reading.short = 0
        if known is not None:
            return self._flow_exact(known, pcm, slot, min(timeout_ms, self._look_ms), usual)
        return self._flow_estimated(pcm, slot, timeout_ms, usual)

    def _flow_estimated(
        self, pcm: "alsaaudio.PCM", slot: Slot, timeout_ms: int, usual: Line
    ) -> Flow:
        reading, pick, now_ns = self._reading, self._pick, time.monotonic_ns
        poll, descriptors, happened = self._poll.poll, self._descriptors, self._happened
        revents, period, unit, taken = self._revents, self._period, self._unit, self._taken
        since_ns, since_count, slack_ns, frame_ns, until_ns = usual
        looks: list[tuple[int, int]] = []
        stamp_ns, brought_ns, gathers = 0, self._brought_ns, self._gathers
        edge, drained, waited = False, True, False
        try:
            while True:
                if stamp_ns > until_ns:
                    if (line := self._next_line(looks)) is None:
                        return
                    since_ns, since_count, slack_ns, frame_ns, until_ns = line
                if gathers and self._may_rest():
                    drained, waited = False, True
                    self._gather(timeout_ms)
                else:
                    began_ns = now_ns()
                    if pcm.polldescriptors() != descriptors:
                        return
                    drained, waited = False, True
                    found = poll(timeout_ms)
                    edge = now_ns() - began_ns > BLOCKED_NS
                    if found != happened:
                        edge = edge and bool(found)
                        self._woken(pcm, found)
                        return
                    pcm.polldescriptors_revents(revents)
                while True:
                    if pcm.state() != kernel.RUNNING:
                        return
                    avail = pcm.avail()
                    stamp_ns = now_ns()
                    count = taken + avail
                    late_ns = stamp_ns - since_ns - (count - since_count) * frame_ns
                    if not unit <= avail < period + unit or late_ns > slack_ns:
                        return
                    if avail >= period:
                        break
                    if not edge:
                        return
                    looks.append((stamp_ns, count))
                    self._taken, edge = taken, False
                    self._look_early(stamp_ns, avail)
                    self._gather(timeout_ms)
                looks.append((stamp_ns, count))
                reading.edge, edge = edge, False
                if gathers:
                    self._taken, self._brought_ns = taken, brought_ns
                    frames = self._fetch(slot())
                    taken = self._taken
                    if not frames:
                        waited = False
                        return
                    reading.frames, reading.stamp_ns, reading.avail = frames, stamp_ns, avail
                    self._found_whole(taken - frames, stamp_ns, avail, frames)
                else:
                    frames, samples = pcm.read()
                    if frames <= 0:
                        waited = False
                        if frames < 0:
                            self._brought_ns = brought_ns
                            self._lose_all()
                        return
                    if pick is None:
                        slot()[: len(samples)] = samples
                    else:
                        pick.put(slot(), samples)
                    taken += frames
                    reading.frames, reading.stamp_ns, reading.avail = frames, stamp_ns, avail
                brought_ns, drained, waited = reading.stamp_ns, avail < frames + unit, False
                yield reading
                if not drained or (gathers and (self.wary or self._after)):
                    return
        except (alsaaudio.ALSAAudioError, OSError) as error:
            waited = False
            if pcm.state() != kernel.SUSPENDED:  # else the next look starts it again
                raise self._failure(error, "failed while capturing") from None
        finally:
            self._taken, self._brought_ns, self._edge = taken, brought_ns, edge
            self._drained, self._waited = drained, waited
            self._observe_all(looks)

    def _flow_exact(
        self,
        known: kernel.KernelPcm,
        pcm: "alsaaudio.PCM",
        slot: Slot,
        timeout_ms: int,
        usual: Line,
    ) -> Flow:
        reading, pick, now_ns = self._reading, self._pick, time.monotonic_ns
        poll, happened = self._poll.poll, self._happened
        period, taken, gathers = self._period, self._taken, self._unit < self._period
        since_ns, since_count, slack_ns, frame_ns, until_ns = usual
        looks: list[tuple[int, int]] = []
        stamp_ns, brought_ns = 0, self._brought_ns
        edge, drained, waited = False, True, False
        try:
            while True:
                if stamp_ns > until_ns:
                    if (line := self._next_line(looks)) is None:
                        return
                    since_ns, since_count, slack_ns, frame_ns, until_ns = line
                began_ns, drained, waited = now_ns(), False, True
                found = poll(timeout_ms)
                edge = now_ns() - began_ns > BLOCKED_NS
                if found != happened:
                    edge = edge and bool(found)
                    return
                known.status()
                stamp_ns, count, avail = known.stamp_ns, known.hw_ptr, known.avail
                late_ns = stamp_ns - since_ns - (count - since_count) * frame_ns
                if known.state != kernel.RUNNING or known.missed or known.ambiguous:
                    return
                if not period <= avail < 2 * period or late_ns > slack_ns:
                    return
                first = known.appl_ptr
                looks.append((stamp_ns, count))
                reading.edge, edge = edge, False
                if gathers:
                    self._taken, self._brought_ns = taken, brought_ns
                    frames = self._fetch(slot())
                    taken = self._taken
                else:
                    frames, samples = pcm.read()
                    taken += max(0, frames)
                    if frames < 0:
                        self._brought_ns = brought_ns
                        self._lose_all()
                if frames <= 0:
                    waited = False
                    return
                known.status()
                if known.state == kernel.RUNNING and not known.ambiguous:
                    looks.append((known.stamp_ns, known.hw_ptr))
                if known.lapped(first) or known.ambiguous:
                    self._lose(frames, Cause.OVERWRITTEN)
                    return
                if pick is not None and not gathers:
                    pick.put(slot(), samples)
                elif not gathers:
                    slot()[: len(samples)] = samples
                reading.frames, reading.stamp_ns, reading.avail = frames, stamp_ns, avail
                brought_ns, drained, waited = stamp_ns, known.avail < period, False
                late_ns = known.stamp_ns - since_ns - (known.hw_ptr - since_count) * frame_ns
                yield reading
                if not drained or late_ns > slack_ns or self._after:
                    self._fresh_status = not drained
                    return
        except (alsaaudio.ALSAAudioError, OSError) as error:
            waited = False
            if pcm.state() != kernel.SUSPENDED:  # else the next look starts it again
                raise self._failure(error, "failed while capturing") from None
        finally:
            self._taken, self._brought_ns, self._edge = taken, brought_ns, edge
            self._drained, self._waited = drained, waited
            self._observe_all(looks)

    def _next_line(self, looks: list[tuple[int, int]]) -> Line | None:
        """After these ``looks``, which are taken out; None where something else is to be done."""
        self._observe_all(looks)
        looks.clear()
        news = self._settings_due or self.batch_ms or self.block_frames != self._asked
        return None if news else self._shortfall.line

    def _observe_all(self, looks: Sequence[tuple[int, int]]) -> None:
        for stamp_ns, count in looks:
            self._observe(stamp_ns, count)
