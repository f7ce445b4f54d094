"""A chain: what goes through whole, what changes without a click, and processors that misbehave."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from capstand.audio.block import NS_PER_S, AudioFormat, SampleFormat, Shape
from capstand.audio.ring import Ring
from capstand.config.registry import PROCESSORS, ProcessorType
from capstand.config.rules import Choice
from capstand.processing.chain import Chain
from capstand.processing.fade import Crossfade, Fade
from capstand.processing.processor import Moment, Samples
from capstand.processing.sidechain import Sidechain
from capstand.processing.stage import make
from capstand.processing.types.eq import Band
from tests.processing.signals import RATE, bend, cut, noise, settings, sine, step, through

MONO, STEREO = Shape(RATE, 1), Shape(RATE, 2)
BLOCK_NS = NS_PER_S // 100
FAR = AudioFormat(RATE, 1, SampleFormat.S16_LE)
SIDECHAINS = {"far": Sidechain(Ring(8, 960).open_for_reading(), FAR, 10.0)}
"""A stream that plays nothing."""


class Rig:
    """A chain, its clock and what it told."""

    def __init__(self, *kinds: Any, shape: Shape = MONO) -> None:
        self.told: list[str] = []
        self.now_ns = 0
        self.chain = Chain(kinds, shape, self.told.append, SIDECHAINS)

    def run(self, sound: Samples, *lengths: int, gap: bool = False, ends: bool = False) -> Samples:
        given = []
        blocks = list(cut(sound, lengths or (480,)))
        for number, block in enumerate(blocks):
            first, last = number == 0, number == len(blocks) - 1
            moment = Moment(NS_PER_S + self.now_ns, NS_PER_S / self.chain.shape.rate_hz)
            edges = {"gap": gap and first, "ends": ends and last}
            with np.errstate(all="ignore"):  # as in the thread whose chain it is
                out = self.chain.process(block, self.now_ns, moment, **edges)
            given.append(out.copy())
            self.now_ns += len(block) * NS_PER_S // self.chain.shape.rate_hz
        return np.concatenate(given)


# A processor that does what a test wants of it


class Wanted(NamedTuple):
    type: Annotated[str, Choice(("wanted",))]
    does: Any = None
    """What becomes of a block."""
    delay_frames: int = 0
    taken: Any = None
    """Whether it takes other settings."""
    made: Any = None
    """What happens when it is made."""
    channels: int | None = None


class Wilful:
    def __init__(self, config: Wanted, shape: Shape) -> None:
        if config.made is not None:
            config.made()
        self._config = config
        self.delay_frames = config.delay_frames
        self.resets = 0
        self._line = np.zeros((config.delay_frames, shape.channels), np.float32)

    def process(self, block: Samples) -> Any:
        both = np.concatenate([self._line, block])
        self._line = both[len(block) :]
        late = both[: len(block)].copy()
        block[:] = np.nan  # it may work in place
        return late if self._config.does is None else self._config.does(late)

    def reset(self) -> None:
        self.resets += 1
        if self._config.does == "bad reset":
            raise ValueError("reset")

    def change(self, other: Wanted) -> bool:
        if self._config.taken is None:
            return False
        self._config.taken()
        self._config = other
        return True

    def figures(self) -> dict[str, object]:
        return {"resets": self.resets, "odd": object()}


def out(config: Wanted, shape: Shape) -> Shape:
    return shape._replace(channels=config.channels or shape.channels)


@pytest.fixture(autouse=True)
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A type that does what a test wants."""
    kind = ProcessorType(Wanted, "types.md", Wilful, out)
    monkeypatch.setitem(PROCESSORS._found, "wanted", kind)


class Failing:
    """Lets so many blocks through and then does something else with them, until ``mended``."""

    def __init__(self, wrong: Callable[[Samples], Any], after: int = 10) -> None:
        self.mended = False
        self.blocks = 0
        self._wrong, self._after = wrong, after

    def __call__(self, block: Samples) -> Any:
        self.blocks += 1
        right = self.mended or self.blocks <= self._after
        return block * np.float32(0.25) if right else self._wrong(block)


def boom(block: Samples) -> Samples:
    raise ValueError("boom\x1b")


def not_finite(value: float) -> Callable[[Samples], Samples]:
    def spoil(block: Samples) -> Samples:
        block[len(block) // 2] = value
        return block

    return spoil


# What goes through


@pytest.mark.parametrize("lengths", [(480,), (1920,), (1, 7, 480, 1000)])
def test_what_changes_nothing_is_exact(lengths: tuple[int, ...]) -> None:
    """A chain without processors, and one of neutral ones, gives the very samples; with a delay
    they come so much later."""
    sound = noise(9600, 2)
    neutral = [settings("gain", gain_db=0.0), settings("channels", pick=(1, 2))]
    for kinds in ([], neutral):
        assert np.array_equal(Rig(*kinds, shape=STEREO).run(sound, *lengths), sound)
    late = Rig(*neutral, settings("delay", delay_ms=10.0), shape=STEREO)
    assert np.array_equal(late.run(sound, *lengths)[480:], sound[:-480])
    assert late.chain.delay_ns == 10_000_000 and late.chain.delay_frames == 480


def test_neighbours_that_are_linear_are_one_stage() -> None:
    """Channels, filters and gains are computed at once, and are figures each."""
    kinds = [
        settings("channels", mix=True),
        settings("high-pass", cutoff_hz=90.0),
        settings("gain", gain_db=6.0),
        settings("delay", delay_ms=1.0),
        settings("low-pass", cutoff_hz=9000.0),
        settings("dc-block"),
    ]
    rig = Rig(*kinds, shape=STEREO)
    assert [len(one) for one in rig.chain._before] == [3, 1, 2]
    sound = noise(4800, 2)
    expected, shape = sound, STEREO
    for kind in kinds:
        expected = through(PROCESSORS[kind.type].make(kind, shape), expected)
        shape = PROCESSORS[kind.type].out(kind, shape)
    assert np.abs(rig.run(sound) - expected).max() < 1e-6
    figures = rig.chain.figures()
    assert [figure["type"] for figure in figures] == [kind.type for kind in kinds]
    assert all(figure["bypassed"] is False and figure["faults"] == 0 for figure in figures)


def test_a_gap_is_forgotten_without_a_click() -> None:
    """States are those of a new chain, whose sound fades in; what came last dies away. Where it was
    known beforehand, the end faded out."""
    kinds = (settings("high-pass", cutoff_hz=90.0), settings("delay", delay_ms=1.0))
    tone = sine(4800, 440)
    usual = step(Rig(*kinds).run(tone)[480:])
    for ends in (False, True):
        rig = Rig(*kinds)
        before = rig.run(tone[:1300], ends=ends)
        after = rig.run(tone[1111:], gap=True)
        assert step(np.concatenate([before, after])[480:]) < 1.2 * usual
        fresh = Rig(*kinds).run(tone[1111:], gap=True)
        assert np.abs(after - fresh)[240:].max() == 0.0
        assert (abs(before[-1, 0]) < 1e-3) == ends


def test_a_gap_in_short_blocks() -> None:
    """The fades go on from block to block."""
    tone = sine(2000, 440)
    whole, short = Rig(), Rig()
    for rig, lengths in ((whole, (2000,)), (short, (7,))):
        rig.run(tone[:1000], 1000)
        rig.run(tone[:777], *lengths, gap=True)
    assert np.array_equal(whole.chain._last, short.chain._last)
    both = np.concatenate([tone[:777], short.run(tone[:400], 7, gap=True)])
    assert step(both) < 1.2 * step(tone)


# What changes


def changed(before: Sequence[Any], after: Sequence[Any], sound: Samples) -> tuple[Samples, Rig]:
    """The sound through a chain whose settings change in the middle."""
    rig = Rig(*before, shape=Shape(RATE, sound.shape[1]))
    half = len(sound) // 960 * 480
    first = rig.run(sound[:half])
    assert rig.chain.change(after)
    return np.concatenate([first, rig.run(sound[half:])]), rig


HIGH, HIGHER = settings("high-pass", cutoff_hz=90.0), settings("high-pass", cutoff_hz=200.0)
SOFT, LOUD = settings("gain", gain_db=-20.0), settings("gain", gain_db=0.0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([HIGH], [HIGHER]),
        ([HIGHER], [HIGH]),
        ([HIGH], [settings("low-pass", cutoff_hz=90.0)]),
        ([HIGH, SOFT], [HIGHER, SOFT]),
        ([HIGH], []),
        ([], [HIGH]),
        (
            [settings("delay", delay_ms=1.0), HIGH],
            [HIGH, settings("delay", delay_ms=4.0)],
        ),
        ([SOFT], [LOUD]),
        ([LOUD, HIGH], [SOFT, HIGH]),
    ],
)
def test_a_change_does_not_click(before: list[Any], after: list[Any]) -> None:
    """From one filter to another, with a processor more or less, in another order: the sound bends
    hardly more than it does before and after, and ends as that of a chain that began so."""
    tone = sine(48_000, 60)
    found, rig = changed(before, after, tone)
    usual = max(bend(Rig(*one).run(tone)[9600:]) for one in (before, after))
    assert bend(found[9600:]) < 1.5 * usual
    assert np.abs(found - Rig(*after).run(tone))[-4800:].max() < 1e-6
    assert rig.chain._behind == [] and rig.chain._change is None and rig.told == []


def test_a_gain_is_ramped() -> None:
    """A constant goes from one gain to the other in steps that nobody hears, and never back."""
    still = np.full((24_000, 1), 0.5, np.float32)
    found, _ = changed([LOUD], [SOFT], still)
    steps = np.diff(found[:, 0])
    assert (steps <= 0).all() and -steps.min() < 1.6 * 0.45 / 2400
    assert found[0, 0] == np.float32(0.5) and found[-1, 0] == np.float32(0.05)


def test_a_changed_gain_does_not_disturb_a_filter() -> None:
    """What the filter has learnt, an offset here, is not heard again; only the gain changes."""
    slow = settings("dc-block", cutoff_hz=0.5)
    sound = sine(96_000, 1000, 0.1) + np.float32(0.5)
    found, rig = changed([LOUD, slow], [SOFT, slow], sound)
    plain = Rig(slow).run(sound)
    assert len(rig.chain._before) == 1
    assert np.abs(found - plain)[:48_000].max() == 0
    assert np.abs(found - plain * 0.1)[-38_000:].max() < 1e-6
    assert abs(found[48_000:].mean()) < 0.005


def test_a_change_leaves_the_others_alone() -> None:
    """What did not change runs on with its state: it is neither made anew nor reset."""
    made: list[str] = []
    first = settings("wanted", made=lambda: made.append("first"))
    last = settings("wanted", made=lambda: made.append("last"), delay_frames=7)
    _, rig = changed([first, HIGH, last], [first, HIGHER, SOFT, last], noise(24_000))
    assert made == ["first", "last"]
    assert [one.number for one in rig.chain._before] == [1, 2, 4]
    assert rig.chain.delay_frames == 7


def test_a_processor_may_take_its_settings_itself() -> None:
    """Then none is made; where it fails to, one is."""
    log: list[str] = []
    config = settings("wanted", taken=lambda: log.append("taken"), made=lambda: log.append("made"))
    other = config._replace(delay_frames=0, does=lambda block: -block)
    changed([config], [other], noise(9600))
    assert log == ["made", "taken"]
    found, _ = changed([config._replace(taken=lambda: 1 / 0)], [other], sine(24_000, 60))
    assert log[2:] == ["made", "made"]
    assert np.array_equal(found[-480:], -sine(24_000, 60)[-480:])


def test_changes_during_a_change() -> None:
    """The last of them is what remains."""
    rig, tone = Rig(HIGH), sine(48_000, 60)
    rig.run(tone[:4800])
    for one in (HIGHER, SOFT, LOUD):
        assert rig.chain.change([one])
        rig.run(tone[4800:5280])
    rig.run(tone[:24_000])
    assert np.array_equal(rig.run(tone), tone)


@pytest.mark.parametrize("late", [0, 30])
def test_two_that_give_not_as_many_at_once(late: int) -> None:
    """As two resamplers may: frames wait for those of the other, and none is lost or twice."""
    sound = noise(9600)
    fade = Crossfade(Fade(RATE, 50.0), MONO)
    given, old, new = [], 0, 0
    for number in range(20):
        until = 480 * (number + 1)
        ahead = until - late
        given.append(fade.mix(sound[old:ahead], sound[new:until]))
        old, new = ahead, until
        if fade.done:
            break
    whole = np.concatenate(given)
    assert len(whole) == new and np.abs(whole - sound[:new]).max() < 1e-7


def test_another_shape_is_refused() -> None:
    """More channels or another rate are for another chain; this one goes on."""
    rig = Rig(settings("channels", mix=True), shape=STEREO)
    assert not rig.chain.change([])
    assert rig.run(noise(480, 2)).shape == (480, 1)


# Processors that misbehave


WRONG: dict[str, tuple[Callable[[Samples], Any], str]] = {
    "raises": (boom, "ValueError: boom\\x1b"),
    "exits": (lambda block: exit(3), "SystemExit: 3"),
    "no memory": (lambda block: np.empty((1 << 45, 8)), "MemoryError"),
    "nothing": (lambda block: None, "gave None of NoneType"),
    "fewer": (lambda block: block[1:], "gave (479, 1) of float32, expected (480, 1)"),
    "more": (lambda block: np.repeat(block, 2, axis=0), "gave (960, 1)"),
    "flat": (lambda block: block.reshape(-1), "gave (480,) of float32"),
    "wider": (lambda block: np.repeat(block, 2, axis=1), "gave (480, 2)"),
    "doubles": (lambda block: block.astype(np.float64), "gave (480, 1) of float64"),
    "nan": (not_finite(np.nan), "gave what is not finite"),
    "infinite": (not_finite(-np.inf), "gave what is not finite"),
    "huge": (not_finite(1e30), "gave what is not finite"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("delay", [0, 100])
def test_one_that_fails_is_bypassed(name: str, delay: int) -> None:
    """From the very block on the sound goes through as it came, in time, without a click; that is
    told once and counted. It is tried again later and comes back, without a click."""
    wrong, reason = WRONG[name]
    acts = Failing(wrong)
    kinds = [settings("gain", gain_db=0.0), settings("wanted", does=acts, delay_frames=delay), HIGH]
    rig, tone = Rig(*kinds), sine(96_000, 100)
    first = rig.run(tone[:4800])
    second = rig.run(tone[4800:33_600])
    ours = [one for one in rig.told if "wanted" in one]
    assert len(ours) == 1 and ours[0].startswith(f"process 2 (wanted): bypassed: {reason}")
    assert "next try in" in ours[0] and "\x1b" not in ours[0]
    figures = rig.chain.figures()[1]
    assert figures["bypassed"] and figures["faults"] == 1 and reason in str(figures["fault"])
    assert rig.told == ours and rig.chain.delay_frames == delay
    plain = Rig(settings("delay", delay_ms=delay / 48), HIGH)
    expected = plain.run(tone[:33_600])
    assert np.abs(second - expected[4800:])[4800:].max() < 1e-3
    acts.mended = True
    rig.now_ns += 2 * NS_PER_S
    third = rig.run(tone[33_600:])
    assert rig.told[1:] == ["process 2 (wanted): works again"]
    assert not rig.chain.figures()[1]["bypassed"] and rig.chain.figures()[1]["fault"] is None
    assert np.abs(third / 0.25 - plain.run(tone[33_600:]))[-4800:].max() < 1e-3
    whole = np.concatenate([first, second, third])[1500:]
    assert bend(whole) < 0.75 * 0.5 / 50  # from a quarter of the tone to all of it in one step


def test_it_is_tried_again_ever_later() -> None:
    """What goes on failing is made again and again, at growing intervals, and told once."""
    acts = Failing(boom, after=0)
    rig = Rig(settings("wanted", does=acts))
    times = []
    for _ in range(3000):
        before = acts.blocks
        rig.chain.process(noise(480), rig.now_ns)
        if acts.blocks > before:
            times.append(rig.now_ns)
        rig.now_ns += NS_PER_S
    waits = np.diff(times) / NS_PER_S
    assert len(rig.told) == 1 and rig.chain.figures()[0]["faults"] == len(times)
    assert waits[0] <= 3 and waits[-1] >= 200 and max(waits) <= 380
    rig.chain.process(noise(0), rig.now_ns)


def test_what_has_worked_for_a_minute_is_tried_again_soon() -> None:
    """A fault long after the last one waits no longer than the first did."""
    acts = Failing(boom, after=0)
    rig = Rig(settings("wanted", does=acts))
    for mended, seconds in ((False, 900), (True, 900), (False, 10)):
        acts.mended = mended
        for _ in range(seconds):
            rig.run(noise(480))
            rig.now_ns += NS_PER_S
    assert rig.told[1:2] == ["process 1 (wanted): works again"]
    assert float(rig.told[2].split()[-2]) < 1.3


def test_one_that_is_tried_and_fails_again_is_not_heard() -> None:
    """While it is listened to, before it comes back, nothing of it comes through."""
    acts = Failing(boom, after=12)
    rig, tone = Rig(settings("wanted", does=acts)), sine(48_000, 100)
    rig.run(tone[:9600])
    acts.blocks = 10  # two more right ones
    rig.now_ns += 2 * NS_PER_S
    assert np.array_equal(rig.run(tone[:4800]), tone[:4800])
    assert len(rig.told) == 1 and rig.chain.figures()[0]["faults"] == 2


def test_one_that_cannot_be_made_is_bypassed() -> None:
    """The sound goes through; it is made later, with its delay."""
    broken = [True]

    def made() -> None:
        if broken[0]:
            raise ImportError("no such library")

    rig, tone = Rig(settings("wanted", made=made, delay_frames=48)), sine(24_000, 100)
    assert np.array_equal(rig.run(tone), tone)
    assert rig.told[0].startswith("process 1 (wanted): bypassed: ImportError: no such library;")
    broken[0] = False
    rig.now_ns += 400 * NS_PER_S
    rig.run(tone)
    assert rig.told[1:] == ["process 1 (wanted): works again"]
    assert rig.chain.delay_frames == 48
    assert np.array_equal(rig.run(tone)[48:], tone[:-48])


def test_a_reset_that_fails_is_a_fault() -> None:
    """At a gap, too, a processor may raise."""

    class Bad(Wilful):
        def reset(self) -> None:
            raise KeyError("gap")

    kind = PROCESSORS["wanted"]._replace(make=Bad)
    PROCESSORS._found["wanted"] = kind
    rig, tone = Rig(settings("wanted")), sine(4800, 100)
    rig.run(tone[:480])
    assert np.array_equal(rig.run(tone, gap=True)[480:], tone[480:])
    assert rig.told[0].startswith("process 1 (wanted): bypassed: KeyError: 'gap'")


def test_a_bypass_has_the_shape_that_is_expected() -> None:
    """Where other channels come out, those that there are."""
    for channels, expected in ((1, [0]), (2, [0, 1]), (3, [0, 1, 0])):
        rig = Rig(settings("wanted", does=boom, channels=channels), shape=STEREO)
        sound = noise(9600, 2)
        found = rig.run(sound)[480:]
        assert np.array_equal(found, sound[480:][:, expected])


def test_what_only_the_end_can_see_is_bypassed_as_a_whole() -> None:
    """Gains beyond all measure: their sum is silence, and then the sound as it came."""
    many = [settings("gain", gain_db=60.0), settings("delay", delay_ms=1.0)] * 8
    rig, tone = Rig(*many), sine(9600, 100)
    found = rig.run(tone)
    assert np.isfinite(found).all() and np.abs(found).max() < 2
    assert np.abs(found[-1000:] - tone[-1000 - 8 * 48 : -8 * 48]).max() < 1e-6
    assert all("not finite" in one for one in rig.told)


def test_so_is_what_is_being_faded_out() -> None:
    """Sound goes on at once also where it is the old stages that fail."""
    rig, tone = Rig(*[settings("gain", gain_db=60.0)] * 8), sine(4800, 100)
    rig.run(tone[:960] * np.float32(1e-30))
    assert rig.chain.change([settings("dc-block")])
    found = rig.run(tone)
    assert np.isfinite(found).all() and np.abs(found[960:1440]).max() > 0.1


def test_figures_of_others_are_plain() -> None:
    """What cannot be told in JSON is left out."""
    rig = Rig(settings("wanted"))
    rig.run(noise(480), gap=True)
    assert rig.chain.figures() == [
        {"type": "wanted", "bypassed": False, "faults": 0, "fault": None, "delay_frames": 0}
        | {"resets": 1}
    ]


# Any chain


def test_built_in_ones_never_work_in_place() -> None:
    """A stage whose input is not copied leaves it as it was."""
    for one in ANY.values():
        for each in one:
            kind = PROCESSORS[each.type]
            block = noise(480, 2)
            made: Any = make((each,), STEREO, SIDECHAINS)[0]
            kind.out(each, STEREO)
            made.process(block)
            assert np.array_equal(block, noise(480, 2)) and made.stays_finite


def there(kind: str, **keys: Any) -> list[Any]:
    """None where this machine lacks what it needs."""
    one = settings(kind, **keys)
    return [] if PROCESSORS[kind].faults_in(one, STEREO) else [one]


ANY: dict[str, list[Any]] = {
    "agc": [settings("agc", target_dbfs=-12.0)],
    "noise-suppression": [
        *there("noise-suppression", engine="webrtc"),
        *there("noise-suppression", engine="speex"),
    ],
    "echo-cancellation": there("echo-cancellation", reference="far"),
    "plugin": there("plugin", plugin="amp_1181"),
    "vad": [*there("vad"), *there("vad", mode="gate", engine="speex")],
    "loudness": there("loudness"),
    "channels": [settings("channels", swap=True), settings("channels", matrix=((0.5, 0.5),) * 2)],
    "gain": [settings("gain", gain_db=-6.0), settings("gain", gain_db=20.0)],
    "high-pass": [HIGH, settings("high-pass", cutoff_hz=200.0, order=5)],
    "low-pass": [settings("low-pass", cutoff_hz=3000.0, order=3)],
    "dc-block": [settings("dc-block")],
    "eq": [settings("eq", band=(Band("peak", 500.0, 12.0, 2.0), Band("notch", 50.0)))],
    "compressor": [settings("compressor"), settings("compressor", ratio=20.0, attack_ms=0.0)],
    "limiter": [settings("limiter"), settings("limiter", lookahead_ms=0.0, ceiling_dbfs=-20.0)],
    "delay": [settings("delay", delay_ms=0.0), settings("delay", delay_ms=12.3)],
    "dither": [settings("dither"), settings("dither", bits=8)],
    "resample": [settings("resample", rate_hz=one) for one in (8000, 44_100, 48_000)],
}
"""Some of each type, for two channels."""


@pytest.mark.parametrize("kind", ANY)
def test_none_clicks_at_a_gap_or_when_it_comes_and_goes(kind: str) -> None:
    """Each type in a chain: where sound is missing, where it is put in and where it is taken out,
    no step is larger than those of its sound, or of the sound without it."""
    tone = np.repeat(sine(48_000, 440, 0.4), 2, axis=1)
    for one in ANY[kind]:
        usual = max(step(Rig(one, shape=STEREO).run(tone)[2400:]), step(tone))
        rig = Rig(one, shape=STEREO)
        both = [rig.run(tone[:12_000]), rig.run(tone[13_333:24_000], gap=True)]
        assert step(np.concatenate(both)[2400:]) < 1.25 * usual
        for before, after in (([], [one]), ([one], [])):
            if PROCESSORS[kind].out(one, STEREO) == STEREO:
                found, _ = changed(before, after, tone)
                assert step(found[2400:]) < 1.25 * usual


def test_all_built_in_ones_are_here() -> None:
    """The property below is about every type there is."""
    assert ANY.keys() == PROCESSORS.built_in().keys()
    if lacking := [kind for kind, some in ANY.items() if not some]:
        pytest.skip(f"what these need is missing: {', '.join(lacking)}")


def allowed(kinds: list[Any]) -> list[Any]:
    """Without those that a configuration would refuse at their place."""
    shape, kept = STEREO, []
    for one in kinds:
        kind = PROCESSORS[one.type]
        if not list(kind.problems(one, shape)):
            kept.append(one)
            shape = kind.out(one, shape)
    return kept


CHAINS = st.lists(st.sampled_from([each for one in ANY.values() for each in one]), max_size=6)


@options(max_examples=60)
@given(
    CHAINS,
    CHAINS,
    st.lists(st.integers(1, 2500), min_size=4, max_size=12),
    st.integers(0, 11),
    st.integers(0, 11),
    st.sampled_from([1e-9, 0.3, 30.0]),
)
def test_any_chain_keeps_every_frame(
    kinds: list[Any], others: list[Any], lengths: list[int], gap: int, change: int, level: float
) -> None:
    """Whatever processors, blocks, gaps and changes there are: as many finite frames come out as go
    in (a resampler's by its rates), the input is not lost, nothing fails, and the delay is the sum
    of what the processors declare."""
    kinds, others = allowed(kinds), allowed(others)
    rig = Rig(*kinds, shape=STEREO)
    chain = rig.chain
    sound, taken, gone_out = noise(sum(lengths) * 2, 2, level), 0, 0
    resamplers = [one for one in kinds if one.type == "resample"]
    for number, frames in enumerate(lengths * 2):
        if number == change and chain.change(others, SIDECHAINS):
            kinds = others
            resamplers += [one for one in kinds if one.type == "resample"]
        block = sound[taken : taken + frames].copy()
        out = chain.process(block, rig.now_ns, gap=number == gap)
        assert np.isfinite(out).all() and out.shape[1] == 2 and out.dtype == np.float32
        taken, gone_out = taken + frames, gone_out + len(out)
        # One frame may wait in each resampler, and be six times as long as one that comes out.
        assert abs(gone_out - taken * chain.out.rate_hz / RATE) <= 6 * len(resamplers)
        rig.now_ns += frames * BLOCK_NS // 480
    assert rig.told == []
    delay_s, shape = 0.0, STEREO
    for one in kinds:
        kind = PROCESSORS[one.type]
        made: Any = make((one,), shape, SIDECHAINS)[0]
        shape = kind.out(one, shape)
        delay_s += made.delay_frames / shape.rate_hz
    assert chain.delay_ns == round(delay_s * NS_PER_S) and chain.out == shape
