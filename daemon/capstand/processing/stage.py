"""A stage of a chain: one processor, and what stands in for it while it does not work.

A processor may raise, give something that is no sound, or not come about at all. Its stage then
gives what went in, as late as the processor would have: a delay line has been fed all along, so
nothing jumps in time, and what differs between the last good frame and this is faded out. The fault
is told once and counted. After a while a new processor is made; what it gives is listened to first,
and faded in when it was right all the time. A ``Linear`` is right where its first block was, and is
looked at no more.

Thread: the chain's; ``figures`` any.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from capstand.audio.block import NS_PER_S, Shape
from capstand.config.registry import PROCESSORS
from capstand.host.backoff import Backoff
from capstand.processing.delay import DelayLine
from capstand.processing.fade import Crossfade, Fade
from capstand.processing.linear import Linear
from capstand.processing.processor import Moment, Processor, Samples
from capstand.processing.sidechain import Sidechain
from capstand.text import clean

EDGE_MS = 5.0
"""Sound begins and ends so, at a gap and where a processor fails."""
LISTEN_MS = 50.0
"""So long a new processor runs unheard, until it has settled."""
FADE_MS = 50.0
"""So long a change takes."""
RETRY_S, MOST_RETRY_S = 1.0, 300.0
STEADY_S = 60.0
"""A processor that has worked for so long is tried again soon, should it fail once more."""
LOUDEST = 1e30
"""A sum of squares beyond is no sound."""
LONGEST_REASON = 200
FLOAT32 = np.dtype(np.float32)

Tell = Callable[[str], None]
Sidechains = Mapping[str, Sidechain]
"""By the names of their streams."""


def is_sound(block: Samples) -> bool:
    """Whether there are finite numbers only."""
    flat = block.reshape(-1)
    return bool(flat.dot(flat) < LOUDEST)


def named_by(settings: Sequence[Any], sidechains: Sidechains) -> Sidechains:
    """Those that these processors listen to, and that are there."""
    names = {name for one in settings for name in PROCESSORS[one.type].sidechains(one).values()}
    return {name: sidechains[name] for name in names & sidechains.keys()}


def make(
    settings: Sequence[Any], shape: Shape, sidechains: Sidechains
) -> tuple[Processor | None, str]:
    """One processor for all of them, or why there is none."""
    try:
        made: Processor | None = None
        for setting in settings:
            kind = PROCESSORS[setting.type]
            heard = [sidechains[name] for name in kind.sidechains(setting).values()]
            next_made = kind.make(setting, shape, *heard)
            shape = kind.out(setting, shape)
            made = next_made if made is None else made.then(next_made)  # type: ignore[attr-defined]
        assert made is not None
        if not 0 <= int(made.delay_frames) <= 60 * shape.rate_hz:
            return None, f"its delay_frames is {made.delay_frames}"
    except (Exception, SystemExit) as error:  # noqa: BLE001  it may be anybody's
        return None, _reason(error)
    return made, ""


def _reason(error: BaseException) -> str:
    return clean.line(f"{type(error).__name__}: {error}", LONGEST_REASON)


class Stage:
    """``settings`` are those of its processor: of several where they are joined. ``shape`` is what
    comes in, ``out`` what comes out."""

    def __init__(self, settings: Any, shape: Shape, tell: Tell, sidechains: Sidechains) -> None:
        self.settings: tuple[Any, ...] = (settings,)
        self.number = 1
        self.shape = shape
        self.out = PROCESSORS[settings.type].out(settings, shape)
        self.faults = 0
        self.fault: str | None = None
        self._tell = tell
        self._sidechains = named_by(self.settings, sidechains)
        self._processor, self._why = make(self.settings, shape, self._sidechains)

    def joins(self, other: "Stage") -> bool:
        """Whether the stage behind it is now done by this one, too."""
        ours, theirs = self._processor, other._processor
        if not (isinstance(ours, Linear) and isinstance(theirs, Linear)):
            return False
        self._processor = ours.then(theirs)
        self.settings += other.settings
        self.out = other.out
        return True

    def begin(self) -> None:
        """What takes time is done before the first block."""
        self._backoff = Backoff(RETRY_S, MOST_RETRY_S)
        self._retry_at_ns: int | None = None
        self._works_since_ns: int | None = None
        self._return: Crossfade | None = None
        self._difference: tuple[Samples, Fade] | None = None
        self._last = np.zeros((1, self.out.channels), np.float32)
        self._plain: Callable[[Samples], Samples] | None = None
        self._stands_in()
        if isinstance(self._processor, Linear):
            self._processor.prepare()

    def is_for(self, settings: Sequence[Any], sidechains: Sidechains) -> bool:
        """Whether it is what another one made of this would be."""
        return self.settings == settings and self._sidechains == named_by(settings, sidechains)

    def _stands_in(self) -> None:
        made = self._processor
        self.trusted = getattr(made, "stays_finite", False)
        self.delay_frames = made.delay_frames if made else 0
        self._dry = _Dry(self.shape, self.out, self.delay_frames, copies=not self.trusted)

    def __len__(self) -> int:
        """So many processors of the configuration."""
        return len(self.settings)

    @property
    def name(self) -> str:
        return f"process {self.number} ({', '.join(one.type for one in self.settings)})"

    @property
    def bypassed(self) -> bool:
        return self._processor is None or self._return is not None

    def run(self, block: Samples, now_ns: int, moment: Moment | None = None) -> Samples:
        if self._plain is not None:
            return self._plain(block)
        if not len(block):
            return np.empty((0, self.out.channels), np.float32)
        self._dry.feed(block)
        if self._processor is None:
            self._try_again(now_ns)
        wet = None if self._processor is None else self._processed(block, now_ns, moment)
        if wet is None:
            out = self._dry.read()
        elif self._return is None:
            out = wet
        else:
            out = self._return.mix(self._dry.read(), wet)
            if self._return.done:
                self._works_again(now_ns)
        if self._difference is not None:
            out = self._continued(out)
        if len(out):
            self._last[0] = out[-1]
        settled = self._return is None and self._difference is None
        if settled and self._works_since_ns is not None and isinstance(self._processor, Linear):
            self._plain = self._processor.process
        return out

    def moment_out(self, moment: Moment) -> Moment:
        """Of what comes out where this came in."""
        if not self.delay_frames and self.shape.rate_hz == self.out.rate_hz:
            return moment
        ns_per_frame = moment.ns_per_frame * self.shape.rate_hz / self.out.rate_hz
        delay_ns = round(self.delay_frames * ns_per_frame)
        return Moment(moment.captured_at_ns - delay_ns, ns_per_frame)

    def reset(self, now_ns: int) -> None:
        self._dry.clear()
        self._difference = None
        self._last[:] = 0.0
        if self._processor is not None:
            try:
                self._processor.reset()
            except (Exception, SystemExit) as error:  # noqa: BLE001
                self.bypass(_reason(error), now_ns)

    def change(self, settings: Any, sidechains: Sidechains) -> bool:
        """Whether its processor takes other settings of its type."""
        if self._processor is None or len(self.settings) > 1:
            return False
        try:
            same = self._sidechains == named_by((settings,), sidechains)
            taken = same and bool(self._processor.change(settings))
        except (Exception, SystemExit):  # noqa: BLE001  a new one is made then
            return False
        if taken:
            self.settings = (settings,)
        return taken

    def continue_from(self, other: "Stage") -> None:
        """Takes over, as far as it can, what the other's processor knows of the sound."""
        ours, theirs = self._processor, other._processor
        if isinstance(ours, Linear) and isinstance(theirs, Linear):
            ours.continue_from(theirs)

    def bypass(self, reason: str, now_ns: int) -> None:
        """The processor is let go; what it gave last is left without a step."""
        told = self.bypassed
        since_ns, self._works_since_ns = self._works_since_ns, None
        if since_ns is not None and now_ns - since_ns > STEADY_S * NS_PER_S:
            self._backoff.reset()
        self._processor = self._return = self._plain = None
        self._difference = (self._last.copy(), Fade(self.out.rate_hz, EDGE_MS))
        self._failed(reason, now_ns, told)

    def figures(self) -> list[dict[str, object]]:
        """For each of its settings."""
        common: dict[str, object] = {
            "bypassed": self.bypassed,
            "faults": self.faults,
            "fault": self.fault,
            "delay_frames": self.delay_frames,
        }
        try:
            own = self._processor.figures() if self._processor is not None else {}
            common |= {str(key): value for key, value in own.items() if _is_plain(value)}
            if (concern := getattr(self._processor, "concern", None)) is not None:
                common["concern"] = clean.line(concern, LONGEST_REASON)
        except (Exception, SystemExit):  # noqa: BLE001
            pass
        return [{"type": setting.type, **common} for setting in self.settings]

    def _processed(self, block: Samples, now_ns: int, moment: Moment | None) -> Samples | None:
        """What the processor makes of the block; None where that is no sound."""
        assert self._processor is not None
        try:
            if moment is not None and (at := getattr(self._processor, "at", None)) is not None:
                at(*moment)
            wet = self._processor.process(block)
            wrong = self._wrong_with(wet, len(block))
        except (Exception, SystemExit) as error:  # noqa: BLE001
            wrong = _reason(error)
        if wrong is not None:
            self.bypass(wrong, now_ns)
            return None
        if self._works_since_ns is None and self._return is None:
            self._works_since_ns = now_ns
        return wet

    def _wrong_with(self, wet: Samples, frames: int) -> str | None:
        shape, out = self.shape, self.out
        right = (
            isinstance(wet, np.ndarray)
            and wet.dtype == FLOAT32
            and wet.ndim == 2
            and wet.flags.c_contiguous
            and wet.shape[1] == out.channels
            and (
                len(wet) == frames
                if shape.rate_hz == out.rate_hz
                else len(wet) <= math.ceil(frames * out.rate_hz / shape.rate_hz) + out.rate_hz
            )
        )
        if not right:
            found = getattr(wet, "shape", None), getattr(wet, "dtype", type(wet).__name__)
            return (
                f"gave {found[0]} of {found[1]}, expected ({frames}, {out.channels}) of float32, "
                "C-contiguous"
            )
        checked = not self.trusted or self._return is not None
        return "gave what is not finite" if checked and not is_sound(wet) else None

    def _try_again(self, now_ns: int) -> None:
        """Makes a new processor when it is time."""
        if self._retry_at_ns is None:
            self._failed(self._why, now_ns, False)  # it never came about
        assert self._retry_at_ns is not None
        if now_ns < self._retry_at_ns:
            return
        made, why = make(self.settings, self.shape, self._sidechains)
        if made is None:
            self._failed(why, now_ns, True)
            return
        if isinstance(made, Linear):
            made.prepare()
        self._processor = made
        self._return = Crossfade(Fade(self.out.rate_hz, FADE_MS, LISTEN_MS), self.out)

    def _failed(self, reason: str, now_ns: int, told: bool) -> None:
        self.faults += 1
        self.fault = reason
        wait_s = self._backoff.next_s()
        self._retry_at_ns = now_ns + round(wait_s * NS_PER_S)
        if not told:
            self._tell(f"{self.name}: bypassed: {reason}; next try in {wait_s:.1f} s")

    def _works_again(self, now_ns: int) -> None:
        self._return, self.fault = None, None
        self._works_since_ns = now_ns
        assert self._processor is not None
        if self._processor.delay_frames != self.delay_frames:
            self._stands_in()
        self._tell(f"{self.name}: works again")

    def _continued(self, out: Samples) -> Samples:
        """The difference to the last good frame dies away: it is taken at the frame before this
        block, which a straight line through its first two tells."""
        assert self._difference is not None
        last, fade = self._difference
        if not len(out):
            return out
        if fade.begins:
            before = 2 * out[:1] - out[1:2] if len(out) > 1 else out[:1]
            self._difference = (last - before, fade)
            last = last - before
        out = out + last * (1 - fade.take(len(out)))
        if fade.done:
            self._difference = None
        return out


def _is_plain(value: object) -> bool:
    return (
        value is None
        or isinstance(value, str | bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    )


class _Dry:
    """What a stage gives while its processor does not: what went in, in the shape that is expected,
    ``delay_frames`` of that later. ``copies``: the processor may work in place.
    """

    def __init__(self, shape: Shape, out: Shape, delay_frames: int, copies: bool) -> None:
        self._rates = shape.rate_hz, out.rate_hz
        self._channels = shape.channels, out.channels
        delay = round(delay_frames * shape.rate_hz / out.rate_hz)
        self._line = DelayLine(delay, shape.channels) if copies or delay else None
        self._newest = np.empty((0, shape.channels), np.float32)
        self._taken = self._given = self._frames = 0

    def feed(self, block: Samples) -> None:
        if self._line is None:
            self._newest = block
        else:
            self._line.feed(block)
        rate_hz, to_hz = self._rates
        if rate_hz != to_hz:
            self._taken += len(block)
            self._given += self._frames
            self._frames = self._taken * to_hz // rate_hz - self._given

    def read(self) -> Samples:
        block = self._newest if self._line is None else self._line.read()
        rate_hz, to_hz = self._rates
        if rate_hz != to_hz:  # each frame is the one that was there at its time
            first = self._taken - len(block)
            there = (self._given + np.arange(self._frames)) * rate_hz // to_hz - first
            block = block[np.maximum(there, 0)]
        have, want = self._channels
        return block.copy() if have == want else block[:, np.arange(want) % have]

    def clear(self) -> None:
        if self._line is not None:
            self._line.clear()
