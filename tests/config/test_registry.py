"""Types of sinks, sources and processors by name: in the folders, of others, and broken ones."""

import ast
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli

import capstand
from capstand.audio.block import Block
from capstand.config import registry, trial
from capstand.config.decode import decode
from capstand.config.plan import sink_plan
from capstand.config.schema import CaptureConfig, Config
from capstand.errors import CapstandError, ConfigError
from capstand.stream.intake import Intake
from tests.foreign import SINKS, SOURCE, install
from tests.patience import PATIENCE_S, gone
from tests.service.test_service import Daemon

ROOT = Path(capstand.__file__).parent
DOCS = ROOT.parents[1] / "docs"
OWN: dict[registry.Registry[Any], dict[str, tuple[str, ...]]] = {
    registry.SINKS: {
        "file": ("sinks/types/file.py", "sinks/recording/"),
        "alsa": ("sinks/types/alsa.py", "sinks/alsa.py"),
        "socket": ("sinks/types/socket.py", "sinks/socket.py"),
        "agora": ("sinks/types/agora.py", "sinks/agora.py"),
    },
    registry.SOURCES: {
        "alsa": ("capture/types/alsa.py", "capture/alsa.py", "capture/flowing.py"),
        "file": ("capture/types/file.py", "capture/file.py"),
        "pipe": ("capture/types/pipe.py", "capture/pipe.py"),
        "socket": ("capture/types/socket.py", "capture/socket.py"),
        "synthetic": ("capture/types/synthetic.py", "capture/synthetic.py"),
    },
    registry.PROCESSORS: {
        "agc": ("processing/types/agc.py", "processing/agc.py"),
        "channels": ("processing/types/channels.py",),
        "compressor": ("processing/types/compressor.py", "processing/compressor.py"),
        "dc-block": ("processing/types/dc_block.py",),
        "delay": ("processing/types/delay.py",),
        "dither": ("processing/types/dither.py", "processing/dither.py"),
        "echo-cancellation": ("processing/types/echo_cancellation.py", "processing/echo.py"),
        "eq": ("processing/types/eq.py",),
        "gain": ("processing/types/gain.py",),
        "high-pass": ("processing/types/high_pass.py",),
        "limiter": ("processing/types/limiter.py", "processing/limiter.py"),
        "loudness": ("processing/types/loudness.py", "processing/loudness.py"),
        "low-pass": ("processing/types/low_pass.py",),
        "noise-suppression": (
            "processing/types/noise_suppression.py",
            "processing/suppression.py",
        ),
        "plugin": ("processing/types/plugin.py", "processing/plugin.py", "processing/ladspa.py"),
        "resample": ("processing/types/resample.py", "processing/resampling.py"),
        "vad": ("processing/types/vad.py", "processing/vad.py"),
    },
}
"""What belongs to a type: nothing else names it."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose distributions are installed; what was found in it is forgotten."""
    before = set(sys.modules)
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    for one in OWN:
        monkeypatch.setattr(one, "_found", {})
        monkeypatch.setattr(one, "_points", None)
    yield folder
    for name in set(sys.modules) - before:
        if (file := getattr(sys.modules[name], "__file__", None)) and str(folder) in file:
            del sys.modules[name]


@pytest.fixture
def deck(site: Path) -> Path:
    """A distribution that brings a source."""
    install(site, "deck", SOURCE, {"capstand.sources": {"deck": "deck:TYPE"}})
    return site


@pytest.fixture
def reel(site: Path) -> Path:
    """A distribution that brings a sink and a live sink."""
    install(site, "reel", SINKS, {"capstand.sinks": {"tape": "reel:TAPE", "wire": "reel:WIRE"}})
    return site


def stream(*sinks: str, device: str = "hw:0") -> str:
    """Keys of a sink begin on line 6."""
    head = f'[[stream]]\nname = "mic"\n[stream.capture]\ndevice = "{device}"\n'
    sinks = sinks or ('type = "file"\npath = "/a"',)
    return head + "".join(f"[[stream.sink]]\n{sink}\n" for sink in sinks)


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        decode(text, "c.toml", Config)
    return caught.value.faults


# What comes with capstand


def test_each_has_its_page() -> None:
    """The types that are there are found by their names, and each is explained in docs/."""
    for kinds, own in OWN.items():
        assert kinds.built_in().keys() == own.keys()
        for one in kinds.built_in().values():
            assert one.fault is None and (DOCS / one.page).is_file()


@pytest.mark.parametrize(("name", "files"), [each for own in OWN.values() for each in own.items()])
def test_nothing_outside_a_type_names_it(name: str, files: tuple[str, ...]) -> None:
    """No module but its own imports a type's module or code, has its classes' names, leads there by
    a string, or compares a ``type`` or a ``device`` with its name."""
    own = [ROOT / file for file in files]
    modules = [
        "capstand." + file.removesuffix(".py").strip("/").replace("/", ".") for file in files
    ]
    classes = {
        node.name for node in ast.parse(own[0].read_text()).body if isinstance(node, ast.ClassDef)
    }
    named = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        for path in sorted(ROOT.rglob("*.py"))
        if not any(path == one or path.is_relative_to(one) for one in own)
        for node in ast.walk(ast.parse(path.read_text()))
        if names(node, name, modules, classes)
    ]
    assert named == []


def names(node: ast.AST, name: str, modules: list[str], classes: set[str]) -> bool:
    def leads(text: str) -> bool:
        return any(
            text == module or text.startswith((f"{module}.", f"{module}:")) for module in modules
        )

    match node:
        case ast.Import(names=imported):
            return any(leads(one.name) for one in imported)
        case ast.ImportFrom(module=str(module), names=imported):
            return leads(module) or any(leads(f"{module}.{one.name}") for one in imported)
        case ast.Constant(value=str(text)):
            return leads(text)
        case ast.Name(id=word) | ast.Attribute(attr=word) | ast.MatchClass(cls=ast.Name(id=word)):
            return word in classes
        case ast.Compare(left=left, comparators=others):
            sides = [left, *others]
            kinds = {"type", "device"}
            return any(
                isinstance(side, ast.Constant) and side.value == name for side in sides
            ) and any(getattr(side, "attr", getattr(side, "id", None)) in kinds for side in sides)
    return False


def test_a_start_looks_at_no_other_distribution(tmp_path: Path) -> None:
    """A configuration whose types come with capstand is read without importlib.metadata,
    and without inspect, which costs as much."""
    path = tmp_path / "c.toml"
    path.write_text(stream('type = "file"\npath = "/a"'))
    code = (
        "import sys\nfrom capstand.config.schema import load\n"
        f"load({str(path)!r})\nprint(*{{'importlib.metadata', 'inspect'}} & {{*sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


# What others bring


def test_a_type_of_another_distribution_runs(
    reel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink in the daemon gets every frame, a live one in its own process all from when it
    joined on; both as their own configuration says."""
    monkeypatch.setenv("PYTHONPATH", str(reel))
    tape, wire = tmp_path / "tape.raw", tmp_path / "wire.raw"
    capture = 'period_ms = 20\nrt_priority = 0\nsynthetic = {signal = "counter"}\n[[stream.sink]]'
    text = stream(
        f'type = "tape"\npath = "{tape}"', f'type = "wire"\npath = "{wire}"', device="synthetic"
    ).replace("[[stream.sink]]", capture, 1)
    daemon = Daemon(tmp_path, text)
    try:
        daemon.hear("READY=1")
        deadline = time.monotonic() + PATIENCE_S
        while not (wire.exists() and wire.stat().st_size > 40_000):
            assert time.monotonic() < deadline and daemon.process.poll() is None
            time.sleep(0.01)
        assert daemon.end() == 0
    finally:
        daemon.close()
    taped, wired = (
        np.frombuffer(one.read_bytes(), "<u2").reshape(-1, 2).astype(int) @ (1, 1 << 16)
        for one in (tape, wire)
    )
    assert taped[0] == 0 and wired[-1] == taped[-1]
    assert all((np.diff(one) == 1).all() for one in (taped, wired))


def test_its_configuration_is_checked_as_any_other(reel: Path) -> None:
    """Keys, what is wrong between them, in its stream and beside its neighbours, is told by line;
    a reload has a sink wait for the one that leaves its place."""
    right = decode(stream('type = "tape"\npath = "/a"'), "c.toml", Config).stream[0]
    other = decode(stream('type = "tape"\nname = "b"\npath = "/a"'), "c.toml", Config).stream[0]
    assert sink_plan(right, other).before(other.sink[0]) == list(right.sink)
    twice = ('type = "tape"\npath = "/a"', 'type = "tape"\nname = "b"\npath = "/a"\nqueue = 1')
    assert faults(stream(*twice)) == [
        "c.toml:12: stream.mic.sink.b.queue: unknown key; did you mean queue_ms?"
    ]
    coarse = stream(*twice).replace("\nqueue = 1", "").replace('hw:0"', 'hw:0"\nperiod_ms = 101')
    assert faults(coarse) == [
        "c.toml:5: stream.mic.capture.period_ms: a tape cannot wait so long",
        "c.toml:5: stream.mic.capture.period_ms: a tape cannot wait so long",
        "c.toml:12: stream.mic.sink.b.path: sink 1 writes there",
    ]
    assert faults(stream('type = "tape"\npath = "/dev/null"')) == [
        "c.toml:7: stream.mic.sink.1.path: a tape is no bottomless pit; take a file"
    ]


def test_a_name_that_is_near_is_suggested(reel: Path) -> None:
    """A type that nobody brings is told with those that are there, also of others."""
    assert faults(stream('type = "tap"')) == [
        'c.toml:6: stream.mic.sink.1.type: "tap": expected one of "file", "agora", "alsa", '
        '"socket", "tape", "wire"; '
        "did you mean tape?"
    ]
    assert faults(stream('path = "/a"')) == [
        "c.toml:5: stream.mic.sink.1: the key type is missing; expected one of "
        '"file", "agora", "alsa", "socket", "tape", "wire"'
    ]


def test_none_takes_the_place_of_one_that_comes_with_capstand(site: Path) -> None:
    """An entry point with the name of a built-in type is not even loaded."""
    install(site, "usurper", "raise SystemExit", {"capstand.sinks": {"file": "usurper:TYPE"}})
    right = decode(stream('type = "file"\npath = "/a"'), "c.toml", Config)
    assert type(right.stream[0].sink[0]).__module__.startswith("capstand.")
    assert '"file", "agora", "alsa", "socket";' in faults(stream('type = "fiel"'))[0]


WANTED = "expected a capstand.config.registry.SinkType"
MEND = "fix or uninstall broken 1.5"
HEAD = SINKS.replace("TAPE = SinkType", "TYPE = SinkType")


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (
            "import capstand_nowhere",
            "cannot be loaded (ModuleNotFoundError: No module named 'capstand_nowhere')",
        ),
        ("raise SystemExit(3)", "cannot be loaded (SystemExit: 3)"),
        ("raise ValueError('\\x1b[2J')", "cannot be loaded (ValueError: \\x1b[2J)"),
        ("def", "cannot be loaded (SyntaxError: invalid syntax (broken.py, line 1))"),
        (
            "KIND = 1",
            "cannot be loaded (AttributeError: module 'broken' has no attribute 'TYPE')",
        ),
        ("TYPE = 1", f"cannot be used: broken:TYPE is a int, {WANTED}"),
        (
            HEAD.replace("queue_ms:", "queue:"),
            f"cannot be used: its schema has no key queue_ms, {WANTED}",
        ),
        (
            HEAD.replace('name: Name = "tape"', 'name: "Nome" = "tape"'),
            "cannot be used: its schema cannot be read: NameError: name 'Nome' is not defined, "
            f"{WANTED}",
        ),
    ],
)
def test_one_that_is_broken_is_the_fault_of_who_brings_it(
    site: Path, code: str, fault: str
) -> None:
    """What cannot be imported or is no description is refused where it is named: with the reason,
    what is expected and the distribution to mend. Configurations without it are right."""
    install(site, "broken", code, {"capstand.sinks": {"tape": "broken:TYPE"}})
    told = f'c.toml:6: stream.mic.sink.1.type: "tape" {fault}; {MEND}'
    assert faults(stream('type = "tape"\npath = "/a"')) == [told]
    decode(stream('type = "file"\npath = "/a"'), "c.toml", Config)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import os\nos.abort()", "its import was ended by SIGABRT"),
        ("import ctypes\nctypes.string_at(0)", "its import was ended by SIGSEGV"),
        ("import os\nos._exit(0)", "its import ended the process with status 0"),
        ("import time\ntime.sleep(1000)", "its import did not end within 0.5 s"),
        ("while True: pass", "its import did not end within 0.5 s"),
    ],
)
def test_an_import_that_would_end_the_daemon_is_refused(
    site: Path, monkeypatch: pytest.MonkeyPatch, code: str, fault: str
) -> None:
    """It is tried in a process of its own: what crashes, ends the process or never ends is an
    error of the configuration, like one that raises."""
    monkeypatch.setattr(trial, "LIMIT_S", 0.5 if "0.5" in fault else 60.0)
    install(site, "broken", code, {"capstand.sinks": {"tape": "broken:TYPE"}})
    told = f'c.toml:6: stream.mic.sink.1.type: "tape" cannot be loaded ({fault}); {MEND}'
    assert faults(stream('type = "tape"\npath = "/a"')) == [told]


def test_what_an_import_started_ends_with_its_trial(site: Path) -> None:
    """Where it went wrong: a process that it left running is not left to the daemon."""
    note = site / "pid"
    code = f"""
import os, subprocess
child = subprocess.Popen(["sleep", "1000"])
open({str(note)!r}, "w").write(str(child.pid))
os.abort()
"""
    install(site, "broken", code, {"capstand.sinks": {"tape": "broken:TYPE"}})
    (told,) = faults(stream('type = "tape"\npath = "/a"'))
    assert "was ended by SIGABRT" in told
    assert gone(int(note.read_text()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        if self.path", "        raise KeyError(1)\n        if self.path"),
        ("    if stream", "    raise KeyError(1)\n    if stream"),
        ("    yield Resource", "    raise KeyError(1)\n    yield Resource"),
    ],
)
def test_one_whose_checks_fail_is_a_fault_too(site: Path, old: str, new: str) -> None:
    """What a type's code raises while a configuration is checked does not end the daemon."""
    assert old in HEAD
    install(site, "broken", HEAD.replace(old, new, 1), {"capstand.sinks": {"tape": "broken:TYPE"}})
    (told,) = faults(stream('type = "tape"\npath = "/a"'))
    assert re.match(r"c\.toml:[56]: stream\.mic\.sink\.1(\.type)?: its (type|schema) failed ", told)
    assert "(KeyError: 1)" in told and "fix or uninstall what brings broken" in told


def test_two_of_one_name_are_none(reel: Path) -> None:
    """A type that two distributions bring is refused: which one is meant cannot be known."""
    install(reel, "other", SINKS, {"capstand.sinks": {"tape": "other:TAPE"}})
    assert faults(stream('type = "tape"\npath = "/a"')) == [
        'c.toml:6: stream.mic.sink.1.type: "tape" is brought by other 1.5 and reel 1.5; uninstall '
        "all but one of them"
    ]


@pytest.mark.parametrize("made", ["1 / 0", "object()"])
def test_one_that_cannot_make_a_sink_says_so(site: Path, tmp_path: Path, made: str) -> None:
    """The stream runs on; the sink's trouble is that of its type."""
    code = HEAD.replace("Writer(sink.path)", made)
    install(site, "broken", code, {"capstand.sinks": {"tape": "broken:TYPE"}})
    text = stream('type = "tape"\npath = "/a"', f'type = "file"\npath = "{tmp_path}"')
    running = Intake(decode(text, "c.toml", Config).stream[0], tmp_path)
    broken, right = running.sink_queues
    assert not broken.try_open() and right.try_open()
    assert broken.trouble is not None and "fix or uninstall what brings broken" in broken.trouble
    running.dispose()


def test_a_source_of_another_distribution_runs(
    deck: Path, reel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that begins with the name of such a type is captured from as its table says."""
    monkeypatch.setenv("PYTHONPATH", str(deck))
    path = tmp_path / "tape.raw"
    capture = "rt_priority = 0\ndeck = {ppm = 50}\n[[stream.sink]]"
    text = stream(f'type = "tape"\npath = "{path}"', device="deck:left")
    daemon = Daemon(tmp_path, text.replace("[[stream.sink]]", capture))
    try:
        assert "simulated" not in daemon.hear("dBFS")
        assert daemon.end() == 0
    finally:
        daemon.close()
    frames = np.frombuffer(path.read_bytes(), "<u2").reshape(-1, 2).astype(int) @ (1, 1 << 16)
    assert frames[0] == 0 and (np.diff(frames) == 1).all()


def test_its_table_is_checked_as_any_other(deck: Path) -> None:
    """Keys of the table, and whether it belongs to the device; what ALSA takes is never asked."""
    assert type(capture("deck:left").source) is type(None)
    assert capture("deck:left", "deck = {ppm = 5}").source.ppm == 5.0
    with_capture("hw:0")
    assert capture("deck").source is None  # a PCM of one's own may be called so
    for device, line, fault in (
        ("deck:left", "deck = {pmm = 5}", "deck.pmm: unknown key; did you mean ppm?"),
        (
            "deck:left",
            "deck = 5",
            "deck: 5 is not a table; write [stream.capture.deck] and its keys",
        ),
        ("deck:left", "rate_hz = 96000", "rate_hz: a deck is not so fast"),
        ("hw:0", "deck = {ppm = 5}", 'deck: is for device = "deck:…" only; delete it or set'),
        ("deck:left", "synthetic = {}", 'synthetic: is for device = "synthetic" only; delete'),
        ("dek:left", "", 'did you mean "deck:left"?'),
        (["hw:0", "deck:a"], "", 'device: "deck:a" is in a list; such a source is always there'),
    ):
        (told,) = with_capture(device, line)
        assert fault in told
    both = with_capture("deck:left", "deck = {}\nsynthetic = {}")
    assert any("there is another table of this kind; delete one of them" in one for one in both)


@pytest.mark.parametrize(
    ("old", "new", "key", "fault"),
    [
        ("TYPE =", "KIND =", "device", "has no attribute 'TYPE')"),
        ("TYPE = SourceType", "TYPE = 1  #", "device", "broken:TYPE is a int, expected a"),
        ("(NamedTuple):", ":", "device", "its schema is not a named tuple"),
        ("    if capture.rate_hz", "    1 / 0\n    if capture.rate_hz", "device", "failed (Zero"),
    ],
)
def test_a_source_that_is_broken_is_told(
    site: Path, old: str, new: str, key: str, fault: str
) -> None:
    """As with sinks: the reason, and whose fault it is."""
    assert old in SOURCE
    code = SOURCE.replace(old, new, 1)
    install(site, "broken", code, {"capstand.sources": {"deck": "broken:TYPE"}})
    (told,) = with_capture("deck:left")
    assert told.startswith(f"c.toml:4: stream.mic.capture.{key}: ")
    assert fault in told and "fix or uninstall" in told and "broken" in told


def test_a_source_that_cannot_be_made_is_told(site: Path, tmp_path: Path) -> None:
    """At a start and at a reload nothing begins with it, and the reason is told."""
    code = SOURCE.replace("        table =", "        1 / 0\n        table =")
    install(site, "broken", code, {"capstand.sources": {"deck": "broken:TYPE"}})
    config = decode(stream(device="deck:left"), "c.toml", Config).stream[0]
    with pytest.raises(CapstandError, match=r"^deck:left: its type failed .*uninstall.* broken$"):
        Intake(config, tmp_path)


def capture(device: str, line: str = "") -> CaptureConfig:
    text = stream(device=device).replace("[[stream.sink]]", f"{line}\n[[stream.sink]]")
    return decode(text, "c.toml", Config).stream[0].capture


def with_capture(device: str | list[str], line: str = "") -> list[str]:
    """The faults of a right stream with this device and one more line."""
    head, tail = stream().split('device = "hw:0"\n')
    try:
        decode(f"{head}device = {json.dumps(device)}\n{line}\n{tail}", "c.toml", Config)
    except ConfigError as error:
        return error.faults
    return []


def test_the_example_that_is_explained_works(site: Path, tmp_path: Path) -> None:
    """The sink of docs/types.md, installed as it says, is configured as it says and takes sound."""
    page = (DOCS / "types.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    points, keys = map(tomli.loads, re.findall(r"```toml\n(.*?)```", page, re.DOTALL))
    install(site, "tape", code, points["project"]["entry-points"])
    ((path, kind),) = [(one["path"], one["type"]) for one in keys["stream"]["sink"]]
    assert path.startswith("/") and kind == "tape"
    taken = tmp_path / "tape.raw"
    running = Intake(
        decode(stream(f'type = "tape"\npath = "{taken}"'), "c.toml", Config).stream[0], tmp_path
    )
    (sink_queue,) = running.sink_queues
    assert sink_queue.try_open()
    sink_queue.deliver(Block(0, 2, 1, b"12345678", running.config.capture.audio))
    sink_queue.sink.close()
    running.dispose()
    assert taken.read_bytes() == b"12345678" and sink_queue.delivered == 2


def test_a_processor_has_a_hyphen_where_its_module_cannot() -> None:
    """Only the one name is known, and what is known without numpy stays so."""
    assert registry.PROCESSORS.find("high-pass") is not None
    assert registry.PROCESSORS.find("high_pass") is None
    code = (
        "import sys\nfrom capstand.config.registry import PROCESSORS\n"
        "PROCESSORS.built_in()\nprint('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
