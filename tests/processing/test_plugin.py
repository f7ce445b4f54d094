"""LADSPA plugins: swh-plugins' own, one of ours that breaks every habit, and files to refuse."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from capstand.audio.block import Shape
from capstand.config.registry import PROCESSORS
from capstand.processing import ladspa
from capstand.processing.ladspa import PluginError, find
from capstand.processing.plugin import PluginStage
from capstand.processing.types.plugin import Control
from tests.processing.signals import bend, impulse, made, noise, settings, sine, through
from tests.processing.speech import lag, level

ODD = r"""
#include <stdlib.h>
#include <math.h>
typedef struct { int hints; float low, high; } Hint;
typedef struct { float *port[5]; float gain, held, poison; } State;
static void *make(const void *of, unsigned long rate) {
    State *s = calloc(1, sizeof *s); if (s) s->held = 0.25f; return s; }
static void connect(void *h, unsigned long n, float *to) { ((State *)h)->port[n] = to; }
static void activate(void *h) { State *s = h; s->held = 0; s->poison = 0; }
static void run(void *h, unsigned long frames) {
    State *s = h; float *in = s->port[0], *out = s->port[1];
    for (unsigned long i = 0; i < frames; i++) out[i] = 0;   /* broken where both are one */
    for (unsigned long i = 0; i < frames; i++) {
        if (fabsf(in[i]) > 2) s->poison = NAN;
        out[i] += s->held * *s->port[2] + s->poison; s->held = in[i]; }
    *s->port[3] = 1; *s->port[4] = *s->port[2]; }
static void end(void *h) { free(h); }
static const int kinds[5] = {1 | 8, 2 | 8, 1 | 4, 2 | 4, 2 | 4};
static const char *names[5] = {"In", "Out", "Factor", "latency", "Seen"};
static const Hint hints[5] = {{0}, {0}, {1 | 2 | 0x240, 0, 4}, {0}, {0}};
typedef struct { unsigned long id; const char *label; int properties; const char *name, *maker,
    *copyright; unsigned long count; const int *kinds; const char **names; const Hint *hints;
    void *own; void *(*make)(const void *, unsigned long);
    void (*connect)(void *, unsigned long, float *); void (*activate)(void *);
    void (*run)(void *, unsigned long); void (*run_adding)(void *, unsigned long);
    void (*gain)(void *, float); void (*deactivate)(void *); void (*end)(void *); } Descriptor;
static const Descriptor odd = {1, "odd", 2, "Odd one", "", "", 5, kinds, names, hints, 0, make,
    connect, activate, run, 0, 0, 0, end};
const Descriptor *ladspa_descriptor(unsigned long n) { return n ? 0 : &odd; }
"""
"""Marked as broken in place; late by a frame, which it declares; what is louder than 2 poisons it
until it is activated again; it has no deactivate."""

HIGH_PASS = "highpass_iir_1890"
LIMITER = "fast_lookahead_limiter_1913"


def stage(plugin: str, channels: int = 1, label: str = "", **controls: float) -> PluginStage:
    wanted = tuple(Control(name.replace("_", " "), value) for name, value in controls.items())
    keys: dict[str, Any] = {"plugin": plugin, "label": label, "control": wanted}
    one = made("plugin", Shape(48_000, channels), **keys)
    assert isinstance(one, PluginStage)
    return one


def swh(name: str) -> str:
    try:
        find(name)
    except PluginError:
        pytest.skip("swh-plugins is missing")
    return name


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if which("gcc") is None:
        pytest.skip("gcc is missing")
    if os.geteuid() != 0:
        pytest.skip("a plugin has to be root's: run as root")
    with TemporaryDirectory(dir="/usr/local/lib") as folder:
        file = Path(folder) / "odd.so"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-o", file, "-xc", "-"], input=ODD.encode(), check=True
        )
        Path(folder).chmod(0o755)
        file.chmod(0o755)
        monkeypatch.setenv("LADSPA_PATH", folder)
        yield str(file)


def test_a_gain_is_a_gain() -> None:
    amp = swh("amp_1181")
    sound = noise(4800, 2)
    wanted = (Control("Amps gain (dB)", -6.0),)
    one = made("plugin", Shape(48_000, 2), plugin=amp, control=wanted)
    assert np.allclose(through(one, sound, 333), sound * 10 ** (-6 / 20), atol=1e-6)


def test_a_plugin_of_one_channel_runs_for_each() -> None:
    """The channels do not meet."""
    one = made("plugin", Shape(48_000, 2), plugin=swh(HIGH_PASS))
    alone = stage(HIGH_PASS)
    sound = noise(4800, 2)
    out = through(one, sound)
    assert np.array_equal(out[:, :1], through(alone, sound[:, :1].copy()))


def test_its_latency_is_its_delay() -> None:
    one = stage(swh(LIMITER), 2)
    sound = noise(9600, 2, 0.01)
    out = through(one, sound)
    assert one.delay_frames == lag(sound[:, 0], out[:, 0]) > 0
    late = out[one.delay_frames :]
    assert np.allclose(late, sound[: len(late)], atol=1e-4)


def test_a_name_is_found_and_so_is_its_path(odd: str) -> None:
    for plugin in ("odd", "odd.so", odd):
        one = stage(plugin, label="odd")
        assert one.delay_frames == 1
        assert np.array_equal(through(one, impulse(480))[:3, 0], [0, 1, 0])


def test_it_never_works_in_place(odd: str) -> None:
    """The plugin clears its output before it reads its input."""
    sound = noise(2000)
    assert np.array_equal(through(stage(odd), sound, 100, 999)[1:], sound[:-1])


def test_a_control_is_changed_without_a_click(odd: str) -> None:
    """In steps of 64 frames over 20 ms: the tone's level moves, and nothing jumps."""
    one, tone = stage(odd, Factor=0.5), sine(4812, 1000)[12:]  # from its highest on
    before = through(one, tone)
    keys = {"plugin": odd, "control": (Control("Factor", 1.5),)}
    assert one.change(settings("plugin", **keys))
    out = through(one, tone)
    assert np.abs(out[-480:]).max() == pytest.approx(0.75, rel=0.01)
    seen = np.abs(out[: 960 + 64, 0]).max()
    assert 0.5 < seen < 0.8
    step = 64 / 960  # of a range of 1, at a sample of 0.5 at the most
    whole = np.concatenate((before[480:], out))
    assert bend(whole) < 0.5 * step + 1.5 * bend(tone)
    assert one.figures()["meter Seen"] == 1.5


def test_another_plugin_is_another_stage(odd: str) -> None:
    one = stage(odd)
    assert not one.change(settings("plugin", plugin=odd, label="other"))
    with pytest.raises(PluginError):
        one.change(settings("plugin", plugin=odd, control=(Control("Factor", 9.0),)))


def test_what_poisons_it_is_forgotten_with_its_block(odd: str) -> None:
    """The plugin gives out NaN from then on: it begins anew, and its block is silence."""
    one = stage(odd)
    bad = noise(480)
    bad[10] = 3.0
    assert not one.process(bad).any()
    sound = noise(480, seed=2)
    assert np.array_equal(through(one, sound)[1:], sound[:-1])
    assert one.figures()["restarts"] == 1


def test_no_number_does_not_reach_it() -> None:
    one = stage(swh(HIGH_PASS))
    bad = noise(480)
    bad[10], bad[20] = np.nan, np.inf
    assert np.isfinite(one.process(bad)).all()
    assert level(through(one, noise(4800))) > -25


def test_after_a_gap_nothing_of_before_is_heard(odd: str) -> None:
    one = stage(odd)
    one.process(np.ones((480, 1), np.float32))
    one.reset()
    assert not one.process(np.zeros((480, 1), np.float32)).any()


def test_two_side_by_side_do_not_touch_each_other(odd: str) -> None:
    one, other = stage(odd, Factor=1.0), stage(odd, Factor=2.0)
    for number in range(5):
        sound = noise(480, seed=number)
        out, louder = one.process(sound.copy()).copy(), other.process(sound.copy())
        assert np.allclose(2 * out, louder)


@pytest.mark.parametrize(
    "label, controls, words",
    [
        ("", {"Fictor": 1.0}, 'did you mean "Factor"?'),
        ("", {"Factor": 9.0}, "expected 0 to 4"),
        ("even", {}, 'has no plugin "even"; it has "odd"'),
    ],
)
def test_what_it_does_not_have_is_said(
    odd: str, label: str, controls: dict[str, Any], words: str
) -> None:
    with pytest.raises(PluginError) as raised:
        stage(odd, label=label, **controls)
    assert words in str(raised.value)


def test_a_plugin_that_does_not_fit_the_channels_is_refused() -> None:
    with pytest.raises(PluginError, match="2 inputs and 2 outputs, and the stream has 1"):
        stage(swh(LIMITER))


def faults(plugin: str) -> list[tuple[str, str]]:
    return PROCESSORS["plugin"].faults_in(settings("plugin", plugin=plugin), Shape(48_000, 1))


def test_what_is_not_there_is_a_problem_of_the_configuration(odd: str) -> None:
    assert not faults("odd")
    for plugin in ("even", "/usr/local/lib/even.so"):
        ((key, words),) = faults(plugin)
        assert key == "plugin" and "even" in words


Spoil = Callable[[Path], None]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.chmod(0o775),
        lambda file: file.parent.chmod(0o777),
        lambda file: os.chown(file, 65_534, 65_534),
        lambda file: os.chown(file.parent, 65_534, 0),
    ],
)
def test_a_file_that_others_could_have_put_there_is_refused(odd: str, spoil: Spoil) -> None:
    """And is not loaded: to load it would run it."""
    spoil(Path(odd))
    for plugin in ("odd", odd):
        ((key, words),) = faults(plugin)
        assert key == "plugin" and "root" in words
        with pytest.raises(PluginError):
            stage(plugin)


def test_a_link_leads_to_what_it_names(odd: str, tmp_path: Path) -> None:
    """A link of root's to a file of anybody's does not make it root's."""
    theirs = tmp_path / "theirs.so"
    theirs.write_bytes(Path(odd).read_bytes())
    theirs.chmod(0o666)
    link = Path(odd).with_name("link.so")
    link.symlink_to(theirs)
    assert faults("link")


def test_a_relative_path_does_not_leave_the_folders(odd: str) -> None:
    beside = Path(odd).parent / "sub"
    beside.mkdir()
    for plugin in ("../odd", "sub/../odd"):
        assert faults(plugin)


def test_what_is_no_plugin_is_said(odd: str) -> None:
    Path(odd).with_name("text.so").write_text("no library")
    with pytest.raises(PluginError, match="is not a LADSPA plugin"):
        stage("text")


def test_the_defaults_are_those_that_its_hints_say() -> None:
    """swh-plugins: its amplifier has 0, its parametric 440 Hz, its limiter a middle."""
    amp = ladspa.Plugin(find(swh("amp_1181")), "", 48_000)
    assert amp.controls["Amps gain (dB)"].default == 0
    para = ladspa.Plugin(find("single_para_1203"), "", 48_000)
    assert para.controls["Frequency (Hz)"].default == 440
    assert para.controls["Frequency (Hz)"].high == pytest.approx(0.4 * 48_000)
    limiter = ladspa.Plugin(find(LIMITER), "", 48_000)
    assert limiter.controls["Release time (s)"].default == pytest.approx(0.5075, abs=1e-4)
