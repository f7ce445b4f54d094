"""A LADSPA plugin as a stage of the chain (processing/ladspa.py loads it).

A plugin with as many inputs and outputs as there are channels runs once; one with one of each runs
once for every channel. Input and output are always different memory, so that it does not matter
which plugin would break in place. A control that is changed goes to its new value in steps of
``STEP_FRAMES`` over ``RAMP_MS``, switches and whole numbers at once. What it declares as its
latency, at the values that it is made with, is its delay.

LV2 is not hosted. There is no kept package with a host for Python (Debian 12 has none for liblilv,
and what there is for VST3 is GPL 3), and by ctypes those plugins alone would run that need no
feature of a host, each with memory for atoms and events laid out by hand.

Thread: the chain's.
"""

import math
from ctypes import addressof, c_float
from itertools import pairwise
from typing import Any

import numpy as np

from capstand.processing.ladspa import Instance, Plugin, PluginError, Port, find
from capstand.processing.processor import Samples, Shape
from capstand.processing.whole import mended, sane

RAMP_MS = 20.0
STEP_FRAMES = 64
LATENCY = "latency"
TRIAL_FRAMES = 256


class PluginStage:
    """Raises PluginError where the plugin does not fit."""

    stays_finite = True

    def __init__(self, settings: Any, shape: Shape) -> None:
        self._settings, self._shape = settings, shape
        self._plugin = plugin = Plugin(find(settings.plugin), settings.label, shape.rate_hz)
        ins, outs, channels = len(plugin.inputs), len(plugin.outputs), shape.channels
        if (ins, outs) not in ((1, 1), (channels, channels)):
            raise PluginError(
                f"{plugin.name} has {ins} inputs and {outs} outputs, and the stream has "
                f"{channels} channels; expected 1 and 1, or {channels} and {channels}"
            )
        self._copies = channels if ins == 1 else 1
        self._values = {number: c_float() for number in range(_ports(plugin))}
        self._ramps: dict[int, tuple[Port, float, int]] = {}  # towards a value, frames to go
        for port, value in self._wanted(settings).items():
            self._values[port.number].value = value
        self._room(TRIAL_FRAMES)
        self._restarts = 0
        self._instances: list[Instance] = []
        self._start()
        self.delay_frames = self._latency()

    def _wanted(self, settings: Any) -> dict[Port, float]:
        plugin = self._plugin
        wanted = {port: port.default for port in plugin.controls.values()}
        for one in settings.control:
            wanted[plugin.control(one.port, one.value)] = one.value
        return wanted

    def _start(self) -> None:
        """As many instances as are needed, each connected and new."""
        self._instances = []
        for _ in range(self._copies):
            instance = self._plugin.instance()
            for number, value in self._values.items():
                instance.connect(number, addressof(value))
            self._instances.append(instance)
        self._connect(0)
        for instance in self._instances:
            instance.activate()

    def _latency(self) -> int:
        """Told only by a plugin that has run; it begins anew afterwards."""
        number = self._plugin.meters.get(LATENCY)
        if number is None:
            return 0
        self._in.fill(0)
        for instance in self._instances:
            instance.run(TRIAL_FRAMES)
        latency = self._values[number].value
        self._start()
        if not 0 <= latency <= self._shape.rate_hz:
            raise PluginError(f"{self._plugin.name} declares a latency of {latency:g} frames")
        return round(latency)

    def _room(self, frames: int) -> None:
        self._in = np.zeros((self._shape.channels, frames), np.float32)
        self._out = np.zeros_like(self._in)

    def _connect(self, start: int) -> None:
        """The audio ports, to where the frame ``start`` is."""
        row = self._in.strides[0]
        begin, end = self._in.ctypes.data + 4 * start, self._out.ctypes.data + 4 * start
        channel = 0
        for instance in self._instances:
            ports = zip(self._plugin.inputs, self._plugin.outputs, strict=True)
            for source, target in ports:
                instance.connect(source, begin + channel * row)
                instance.connect(target, end + channel * row)
                channel += 1

    def process(self, block: Samples) -> Samples:
        frames = len(block)
        if frames > self._in.shape[1]:
            self._room(frames)
            self._connect(0)
        self._in[:, :frames] = mended(block).T
        if self._ramps:
            self._run_ramped(frames)
        else:
            for instance in self._instances:
                instance.run(frames)
        done = np.ascontiguousarray(self._out[:, :frames].T)
        if sane(done):
            return done
        self.reset()
        self._restarts += 1
        return np.zeros_like(done)

    def _run_ramped(self, frames: int) -> None:
        for start, end in pairwise((*range(0, frames, STEP_FRAMES), frames)):
            self._connect(start)
            self._step(end - start)
            for instance in self._instances:
                instance.run(end - start)
        self._connect(0)

    def _step(self, frames: int) -> None:
        for number, (port, target, left) in list(self._ramps.items()):
            value = self._values[number]
            part = min(1.0, frames / left) if left > 0 else 1.0
            if part == 1.0:
                value.value = target
                del self._ramps[number]
                continue
            if port.logarithmic and value.value > 0:
                value.value *= math.pow(target / value.value, part)
            else:
                value.value += part * (target - value.value)
            self._ramps[number] = (port, target, left - frames)

    def reset(self) -> None:
        self._start()

    def change(self, settings: Any) -> bool:
        old = self._settings
        if (settings.plugin, settings.label) != (old.plugin, old.label):
            return False
        ramp = round(RAMP_MS * self._shape.rate_hz / 1000)
        for port, value in self._wanted(settings).items():
            now = self._values[port.number].value
            if port.number in self._ramps or c_float(value).value != now:
                self._ramps[port.number] = (port, value, 0 if port.steady else ramp)
        self._settings = settings
        return True

    def figures(self) -> dict[str, object]:
        meters = self._plugin.meters.items()
        return {
            "plugin": self._plugin.name,
            "restarts": self._restarts,
            **{f"meter {name}": round(self._values[number].value, 3) for name, number in meters},
        }


def _ports(plugin: Plugin) -> int:
    numbers: list[int] = [*plugin.inputs, *plugin.outputs, *plugin.meters.values()]
    return 1 + max([*numbers, *(port.number for port in plugin.controls.values())])
