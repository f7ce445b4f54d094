"""Chains in the configuration: what may follow what, and how a wrong one is told."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import capstand
from capstand.audio.block import Shape
from capstand.config.decode import decode
from capstand.config.schema import Config, StreamConfig
from capstand.errors import ConfigError
from tests.foreign import install

DOCS = Path(capstand.__file__).parents[2] / "docs"


LOW, BACK = (f'type = "resample"\nrate_hz = {rate_hz}' for rate_hz in (8000, 48_000))


def text(*processors: str, capture: str = "channels = 2", sink: str = "") -> str:
    """Keys of a processor begin on line 7, with one line of header before each."""
    head = f'[[stream]]\nname = "mic"\n[stream.capture]\ndevice = "hw:0"\n{capture}\n'
    chain = "".join(f"[[stream.process]]\n{processor}\n" for processor in processors)
    return f'{head}{chain}[[stream.sink]]\ntype = "file"\npath = "/a"\n{sink}\n'


def stream(*processors: str, capture: str = "channels = 2", sink: str = "") -> StreamConfig:
    return decode(text(*processors, capture=capture, sink=sink), "c.toml", Config).stream[0]


def faults(*processors: str, capture: str = "channels = 2", sink: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        stream(*processors, capture=capture, sink=sink)
    return caught.value.faults


def test_a_chain_is_what_the_file_says() -> None:
    """In its order, with defaults; what comes out follows from all of them."""
    found = stream('type = "channels"\nmix = true', 'type = "high-pass"', LOW, BACK)
    assert [one.type for one in found.process] == ["channels", "high-pass", "resample", "resample"]
    assert found.process[1].cutoff_hz == 80.0  # type: ignore[attr-defined]
    assert (found.captured, found.processed) == (Shape(48_000, 2), Shape(48_000, 1))
    picked = stream('type = "gain"\ngain_db = 3', capture="channels = 8\npick = [3, 4, 5]")
    assert picked.captured == picked.processed == Shape(48_000, 3)


def test_a_sink_gets_the_processed_sound_unless_it_says_otherwise() -> None:
    """Where there is no chain there is nothing processed."""
    for processors, key, expected in (
        ((), "", "captured"),
        ((), 'input = "captured"', "captured"),
        (('type = "high-pass"',), "", "processed"),
        (('type = "high-pass"',), 'input = "processed"', "processed"),
        (('type = "high-pass"',), 'input = "captured"', "captured"),
    ):
        found = stream(*processors, sink=key)
        assert found.input_of(found.sink[0]) == expected
    assert faults(sink='input = "processed"') == [
        'c.toml:9: stream.mic.sink.1.input: "processed" needs a chain, and the stream has no '
        '[[stream.process]]; add one or take "captured"'
    ]
    assert faults(sink='input = "raw"') == [
        'c.toml:9: stream.mic.sink.1.input: "raw": expected one of "captured", "processed"'
    ]


@pytest.mark.parametrize(
    ("processor", "fault"),
    [
        ('type = "highpass"', 'did you mean high-pass?'),
        ('type = "high_pass"', 'did you mean high-pass?'),
        ("gain_db = 3", "6: stream.mic.process.1: the key type is missing; expected one of"),
        ('type = "gain"', "6: stream.mic.process.1.gain_db: missing; this key has no default"),
        ('type = "gain"\ngain_db = 61', "process.1.gain_db: 61: expected a number from"),
        ('type = "gain"\ngian_db = 6\ngain_db = 1', "unknown key; did you mean gain_db?"),
        (
            'type = "high-pass"\ncutoff_hz = 24000',
            "8: stream.mic.process.1.cutoff_hz: 24000 is not below half the rate, 24000",
        ),
        (
            'type = "channels"\npick = [1, 3]',
            "8: stream.mic.process.1.pick: there is no channel 3: 2 channels come in",
        ),
        ('type = "channels"\npick = [1, 1]', "1 is in the array twice"),
        ('type = "channels"', "6: stream.mic.process.1.pick: expected one of pick, swap, mix and"),
        ('type = "channels"\nmix = true\nswap = true', "found swap and mix"),
        (
            'type = "channels"\nmatrix = [[1, 0, 0], [0, 1, 0]]',
            "8: stream.mic.process.1.matrix: its rows have 3 numbers, and 2 channels come in",
        ),
        ('type = "channels"\nmatrix = [[1, 0], [0]]', "the rows have different lengths"),
        ('type = "channels"\nmatrix = [1, 0]', "expected an array of rows such as [[0.5, 0.5]]"),
        ('type = "channels"\nmatrix = []', "expected 1 to 32 rows of 1 to 32 numbers"),
        ('type = "channels"\nmatrix = [["a"]]', '"a": expected a number from -1000 to 1000'),
        ('type = "eq"\nband = []', "8: stream.mic.process.1.band: found 0 bands, expected 1 to 32"),
        (
            'type = "eq"\n[[stream.process.band]]\nkind = "notch"\nfrequency_hz = 50\ngain_db = 3',
            '11: stream.mic.process.1.band.1.gain_db: a "notch" has none; delete the key',
        ),
        (
            'type = "eq"\n[[stream.process.band]]\nkind = "peak"\nfrequency_hz = 50000',
            "10: stream.mic.process.1.band.1.frequency_hz: 50000 is not below half the rate",
        ),
        (
            'type = "resample"\nrate_hz = 16',
            "8: stream.mic.process.1.rate_hz: 16: expected an integer from 8000 to 768000; "
            "did you mean 16000?",
        ),
    ],
)  # fmt: skip
def test_a_wrong_one_is_told(processor: str, fault: str) -> None:
    """With its line, its key and what was expected."""
    (told,) = faults(processor)
    assert fault in told


def test_each_is_checked_for_what_really_comes_in() -> None:
    """Channels and rate behind those before it; all faults of a chain are told at once."""
    mono = 'type = "channels"\nmix = true'
    assert faults(
        mono, 'type = "channels"\nswap = true', LOW, 'type = "low-pass"\ncutoff_hz = 5000'
    ) == [
        "c.toml:11: stream.mic.process.2.swap: expected 2 channels to swap, and 1 channel come in; "
        "take pick",
        "c.toml:17: stream.mic.process.4.cutoff_hz: 5000 is not below half the rate, 4000",
    ]


def test_it_ends_at_the_rate_at_which_it_begins() -> None:
    """Sinks take another one later."""
    assert faults('type = "high-pass"', LOW) == [
        "c.toml:9: stream.mic.process.2.type: the chain ends at 8000 Hz and begins at 48000, which "
        "sinks do not take yet; delete what resamples, or set capture.rate_hz"
    ]


def lacking() -> str:
    """What of the machine the examples need and it has not."""
    from capstand.dsp import ebur128
    from capstand.processing import engines, ladspa

    if not engines.has_webrtc() and engines.libspeexdsp() is None:
        return "pywebrtc-audio or libspeexdsp1"
    if ebur128.library() is None:
        return ebur128.PACKAGE
    try:
        ladspa.find("single_para_1203")
    except ladspa.PluginError:
        return "swh-plugins"
    return ""


def test_the_examples_of_the_page_are_right() -> None:
    """Each example of docs/processing.md and of docs/processing-speech.md decodes, and each type
    has one."""
    page = "".join((DOCS / name).read_text() for name in ("processing.md", "processing-speech.md"))
    if missing := lacking():
        pytest.skip(f"what the examples need is missing: {missing}")
    types = set()
    for example in re.findall(r"```toml\n(.*?)```", page, re.DOTALL):
        if "[[stream]]" in example:
            whole = decode(example, "processing.md", Config)
            types |= {one.type for found in whole.stream for one in found.process}
            continue
        head = text("type = 'dc-block'")
        if "stream.sink" in example:
            decode(head + example + 'name = "raw"', "processing.md", Config)
            continue
        before, after = head.split("[[stream.process]]\ntype = 'dc-block'\n")
        if "resample" in example:
            after = f"[[stream.process]]\n{BACK}\n{after}"
        found = decode(before + example + after, "processing.md", Config).stream[0]
        types |= {one.type for one in found.process}
    from capstand.config.registry import PROCESSORS

    assert types == PROCESSORS.built_in().keys()
    for name, kind in PROCESSORS.built_in().items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        keys = set(kind.schema._fields) - {"type", "band"}
        assert all(f"`{key}`" in section for key in keys), name


def test_numpy_is_not_loaded_to_check_a_chain(tmp_path: Path) -> None:
    """A machine with little to spare checks its configuration, and starts, as fast as before."""
    path = tmp_path / "c.toml"
    path.write_text(text('type = "eq"\nband = [{kind = "notch", frequency_hz = 50}]',
                         'type = "limiter"', LOW, BACK))  # fmt: skip
    code = (
        "import sys\nfrom capstand.config.schema import load\n"
        f"load({str(path)!r}).stream[0].processed\nprint({{'numpy', 'soxr'}} & {{*sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


FOREIGN = """
from typing import Annotated, NamedTuple
from capstand.config.rules import Choice, Number
from capstand.config.registry import ProcessorType


class Config(NamedTuple):
    type: Annotated[str, Choice(("fuzz",))]
    amount: Annotated[float, Number(0, 1)] = 0.5


def problems(config, shape):
    if shape.channels > 2:
        yield "amount", "too many channels for a fuzz"


def out(config, shape):
    {out}
    return shape


TYPE = ProcessorType(Config, "fuzz.md", lambda config, shape: None, out, problems)
"""


def test_one_of_another_distribution_is_checked_as_any_other(tmp_path: Path) -> None:
    """By its entry point; where its code fails, that is told with what is to be mended."""
    code = (
        "import json, sys\nsys.path.insert(0, {site!r})\n"
        "from capstand.config.decode import decode\nfrom capstand.config.schema import Config\n"
        "from capstand.errors import ConfigError\ntold = []\n"
        "for text in json.loads({texts!r}):\n"
        "    try:\n        decode(text, 'c.toml', Config)\n        told.append([])\n"
        "    except ConfigError as error:\n        told.append(error.faults)\n"
        "print(json.dumps(told))"
    )

    def told(out: str, *texts: str) -> list[list[str]]:
        site = tmp_path / f"site{len(out)}"
        points = {"capstand.processors": {"fuzz": "fuzz:TYPE"}}
        install(site, "fuzz", FOREIGN.replace("{out}", out), points)
        script = code.format(site=str(site), texts=json.dumps(texts))
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        found: list[list[str]] = json.loads(done.stdout)
        return found

    right, many, wrong = (
        text('type = "fuzz"'),
        text('type = "fuzz"', capture="channels = 4"),
        text('type = "fuzz"\namount = 2'),
    )
    assert told("", right, many, wrong) == [
        [],
        ["c.toml:6: stream.mic.process.1.amount: too many channels for a fuzz"],
        ["c.toml:8: stream.mic.process.1.amount: 2: expected a number from 0 to 1"],
    ]
    ((fault,),) = told("1 / 0", right)
    assert "stream.mic.process.1.type: its type failed (ZeroDivisionError" in fault
    assert "fix or uninstall what brings fuzz" in fault
