"""A chain of processors: what a stream's sound goes through between capture and sinks.

Neighbours that are linear are joined to one stage. Each stage answers for its own processor
(``stage.py``): that one is bypassed when it fails, and the sound goes on. What gives finite sound
for finite sound is not looked at one by one; all of it is at the end.

Changed settings take effect without a click: a processor may take them itself, else old and new
stages run side by side, and one is faded into the other once the new one has settled. Those before
and behind that are the same run on untouched.

At a gap all is forgotten. What comes after it fades in, and the last frame before it dies away into
that, within ``EDGE_MS``; who knows beforehand that a gap follows has the end faded out.

Thread: one, its owner's; ``figures`` any. Time is an argument. The owner has numpy be silent about
numbers that overflow (``be_silent``), which costs more in here than a whole filter.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from capstand.audio.block import NS_PER_S, Shape
from capstand.config.registry import PROCESSORS
from capstand.processing.fade import Crossfade, Fade
from capstand.processing.processor import Moment, Samples
from capstand.processing.stage import EDGE_MS, FADE_MS, LISTEN_MS, Sidechains, Stage, Tell, is_sound

NO_STREAMS: Sidechains = {}


def shapes(settings: Sequence[Any], shape: Shape) -> list[Shape]:
    """What comes into each, and out of the last."""
    found = [shape]
    for setting in settings:
        found.append(PROCESSORS[setting.type].out(setting, found[-1]))
    return found


def be_silent() -> None:
    """What is not finite is found and bypassed. Of the thread that calls it."""
    np.seterr(all="ignore")


def concern_of(stages: list[dict[str, Any]]) -> str | None:
    """Of the first that is bypassed, or else of the first that says something of itself."""
    names = [f"process {number} ({one['type']})" for number, one in enumerate(stages, 1)]
    for name, stage in zip(names, stages, strict=True):
        if stage["bypassed"]:
            return f"{name} is bypassed: {stage['fault']}"
    for name, stage in zip(names, stages, strict=True):
        if "concern" in stage:
            return f"{name}: {stage['concern']}"
    return None


class Chain:
    """Of processors with these ``settings``, in their order, for sound of a ``shape``; ``tell``
    gets a line where one fails, and when it works again. ``sidechains`` are the other streams that
    they listen to. ``out``: what comes out.
    """

    def __init__(
        self, settings: Sequence[Any], shape: Shape, tell: Tell, sidechains: Sidechains = NO_STREAMS
    ) -> None:
        self.shape = shape
        self.out = shapes(settings, shape)[-1]
        self._tell = tell
        self._done = self._wanted = tuple(settings), sidechains
        self._before = _stages(settings, shape, tell, sidechains)
        self._change: _Change | None = None
        self._behind: list[Stage] = []
        self._last = np.zeros((1, self.out.channels), np.float32)
        self._rise: Fade | None = None
        self._fall: tuple[Samples, Fade] | None = None
        self._number()

    @property
    def delay_ns(self) -> int:
        """How much later the sound is when it comes out."""
        delays = [stage.delay_frames / stage.out.rate_hz for stage in self._stages]
        return round(sum(delays) * NS_PER_S)

    @property
    def delay_frames(self) -> int:
        """The same in frames of what comes out."""
        return round(self.delay_ns * self.out.rate_hz / NS_PER_S)

    def process(
        self,
        block: Samples,
        now_ns: int,
        moment: Moment | None = None,
        *,
        gap: bool = False,
        ends: bool = False,
    ) -> Samples:
        """The block, which is the chain's now; what is returned is the caller's until the next
        call. ``gap``: it does not follow the one before; ``ends``: none will follow it."""
        if gap:
            self._begin_anew(now_ns)
        if self._rise is not None:
            block = block * self._rise.take(len(block))
            self._rise = None if self._rise.done else self._rise
        block, moment = _run(self._before, block, now_ns, moment)
        if self._change is not None:
            block, moment = self._change.run(block, now_ns, moment)
        if self._behind:
            block, _ = _run(self._behind, block, now_ns, moment)
        if not is_sound(block):
            block = self._silenced(block, now_ns)
        if self._fall is not None:
            block = self._fallen(block)
        if ends:
            block = _ending(block, self.out.rate_hz)
        if len(block):
            self._last[0] = block[-1]
        if self._change is not None and self._change.done:
            self._end_change()
        return block

    def change(self, settings: Sequence[Any], sidechains: Sidechains = NO_STREAMS) -> bool:
        """Other settings, from the next block on. False, and nothing changes: what comes out would
        have another shape. Making processors may take some milliseconds."""
        if shapes(settings, self.shape)[-1] != self.out:
            return False
        self._wanted = tuple(settings), sidechains
        if self._change is None:
            self._begin_change()
        return True

    def figures(self) -> list[dict[str, object]]:
        """For each processor in its order."""
        return [each for stage in self._stages for each in stage.figures()]

    def _begin_change(self) -> None:
        """What is the same at the beginning and at the end runs on."""
        (wanted, sidechains), stages = self._wanted, self._before
        comes = shapes(wanted, self.shape)
        first, begin = 0, 0
        while first < len(stages) and stages[first].is_for(
            wanted[begin:][: len(stages[first])], sidechains
        ):
            begin += len(stages[first])
            first += 1
        last, end = len(stages), len(wanted)
        while last > first and end - len(stages[last - 1]) >= begin:
            stage = stages[last - 1]
            at = end - len(stage)
            if not stage.is_for(wanted[at:end], sidechains) or stage.shape != comes[at]:
                break
            last, end = last - 1, at
        self._done = self._wanted
        old, new = stages[first:last], wanted[begin:end]
        if not (old or new):
            return
        if _same_type(old, new, comes[begin]) and old[0].change(new[0], sidechains):
            return
        self._before, self._behind = stages[:first], stages[last:]
        made = _stages(new, comes[begin], self._tell, sidechains)
        if len(made) == len(old):
            for one, other in zip(made, old, strict=True):
                one.continue_from(other)
        self._change = _Change(old, made, comes[end])
        self._number()

    def _end_change(self) -> None:
        self._before, self._behind, self._change = self._stages, [], None
        if self._wanted != self._done:
            self._begin_change()

    def _number(self) -> None:
        """All but those that are being faded out, as people count them."""
        changed = self._change.new if self._change else []
        self._stages = [*self._before, *changed, *self._behind]
        number = 1
        for stage in self._stages:
            stage.number = number
            number += len(stage)

    def _all(self) -> list[Stage]:
        return [*self._stages, *(self._change.old if self._change else ())]

    def _begin_anew(self, now_ns: int) -> None:
        for one in self._all():
            one.reset(now_ns)
        self._rise = Fade(self.shape.rate_hz, EDGE_MS)
        self._fall = (self._last.copy(), Fade(self.out.rate_hz, EDGE_MS))

    def _fallen(self, block: Samples) -> Samples:
        assert self._fall is not None
        last, fade = self._fall
        block = block + last * (1 - fade.take(len(block)))
        if fade.done:
            self._fall = None
        return block

    def _silenced(self, block: Samples, now_ns: int) -> Samples:
        """Stages that nobody looks at one by one have given what is no sound, as gains of a
        thousand times a thousand may: all of them are bypassed."""
        for one in self._all():
            if one.trusted and not one.bypassed:
                one.bypass("gave what is not finite", now_ns)
        self._begin_anew(now_ns)
        return np.zeros_like(block)


class _Change:
    """Old stages and new ones side by side; ``out`` is what comes out of both."""

    def __init__(self, old: list[Stage], new: list[Stage], out: Shape) -> None:
        self.old, self.new = old, new
        self._fade = Crossfade(Fade(out.rate_hz, FADE_MS, LISTEN_MS), out)

    @property
    def done(self) -> bool:
        return self._fade.done

    def run(
        self, block: Samples, now_ns: int, moment: Moment | None
    ) -> tuple[Samples, Moment | None]:
        fading, _ = _run(self.old, block.copy(), now_ns, moment)
        block, moment = _run(self.new, block, now_ns, moment)
        return self._fade.mix(fading, block), moment


def _stages(
    settings: Sequence[Any], shape: Shape, tell: Tell, sidechains: Sidechains
) -> list[Stage]:
    """Neighbours that can be are joined."""
    stages: list[Stage] = []
    for setting in settings:
        stage = Stage(setting, shape, tell, sidechains)
        shape = stage.out
        if not (stages and stages[-1].joins(stage)):
            stages.append(stage)
    for stage in stages:
        stage.begin()
    return stages


def _run(
    stages: list[Stage], block: Samples, now_ns: int, moment: Moment | None
) -> tuple[Samples, Moment | None]:
    for stage in stages:
        block = stage.run(block, now_ns, moment)
        if moment is not None:
            moment = stage.moment_out(moment)
    return block, moment


def _same_type(old: list[Stage], new: Sequence[Any], shape: Shape) -> bool:
    return (
        len(old) == len(new) == len(old[0]) == 1
        and type(old[0].settings[0]) is type(new[0])
        and old[0].shape == shape
    )


def _ending(block: Samples, rate_hz: int) -> Samples:
    """Its last frames fade out."""
    frames = min(len(block), round(EDGE_MS * rate_hz / 1000))
    weights = np.ones((len(block), 1), np.float32)
    weights[len(block) - frames :] = Fade(rate_hz, frames * 1000 / rate_hz).take(frames)[::-1]
    return block * weights
