"""A processor of somebody's own: the package that docs/own-processor.md prints, built, installed
and run by its name; and what becomes of one that is broken."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tomli

import capstand
from capstand.audio.block import Shape
from tests.example_processor.capstand_noise_gate import TYPE, NoiseGate, NoiseGateConfig
from tests.patience import PATIENCE_S
from tests.processing.signals import column, cut, sine, through
from tests.service.test_service import Daemon

EXAMPLE = Path(__file__).parents[1] / "example_processor"
PAGE = (Path(capstand.__file__).parents[2] / "docs/own-processor.md").read_text()
MODULE = "capstand_noise_gate.py"
CONFIG = """
[[stream]]
name = "mic"
[stream.capture]
device = "synthetic"
synthetic = {{signal = "tone"}}
rt_priority = 0
{chain}
[[stream.sink]]
type = "file"
path = "{folder}/sound"
min_free_mb = 0
"""
RATE = 48_000
FADE, HOLD = 240, 480


def printed(language: str) -> list[str]:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def config(folder: Path) -> str:
    return CONFIG.format(folder=folder, chain=printed("toml")[1])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what the page prints, without a network."""
    (module,), project = printed("python"), printed("toml")[0]
    folder = tmp_path_factory.mktemp("capstand-noise-gate")
    (folder / MODULE).write_text(module)
    (folder / "pyproject.toml").write_text(project)
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), str(folder))
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture
def site(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is installed, for processes that are started now."""
    folder = tmp_path / "site"
    pip("install", "--no-compile", "--target", str(folder), str(wheel))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def pip(what: str, *options: str) -> None:
    command = [sys.executable, "-I", "-m", "pip", what, "--no-index", "--no-deps", *options]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)


def change(site: Path, old: str, new: str) -> None:
    code = (site / MODULE).read_text()
    assert old in code
    (site / MODULE).write_text(code.replace(old, new, 1))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "capstand", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def until(daemon: Daemon, state: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The status of the only stage, once it is so."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert time.monotonic() < deadline and daemon.process.poll() is None
        told = run("status", "--json", "--runtime", str(daemon.folder / "run"))
        stages = json.loads(told.stdout)["streams"][0]["process"]["stages"] if told.stdout else []
        if stages and state(stages[0]):
            found: dict[str, Any] = stages[0]
            return found
        time.sleep(0.05)


def test_the_page_prints_the_example() -> None:
    """To the letter."""
    assert printed("python") == [(EXAMPLE / MODULE).read_text()]
    assert printed("toml")[0] == (EXAMPLE / "pyproject.toml").read_text()


def test_it_runs_in_a_daemon_by_its_name(site: Path, tmp_path: Path) -> None:
    """Its settings are checked, its stage is in the status as the page says, and what is recorded
    is later by its delay."""
    daemon = Daemon(tmp_path, config(tmp_path))
    try:
        daemon.hear("READY=1")
        stage = until(daemon, lambda stage: not stage["bypassed"] and stage["open"])
        assert stage.keys() == json.loads(printed("json")[0]).keys()
        assert stage["type"] == "noise-gate" and stage["delay_frames"] == FADE - 1
        daemon.hear("dBFS")
        assert daemon.end() == 0
    finally:
        daemon.close()
    sound = recorded(tmp_path)
    assert not sound[: FADE - 1].any() and sound[2 * FADE :].any()
    wrong = config(tmp_path).replace("threshold_dbfs = -45", "threshold_dbfs = 45")
    (tmp_path / "wrong.toml").write_text(wrong)
    told = run("check", str(tmp_path / "wrong.toml"))
    assert told.returncode == 78
    assert "process.1.threshold_dbfs: 45: expected a number from -100 to 0" in told.stderr


def recorded(folder: Path) -> Any:
    files = sorted((folder / "sound").glob("*.wav"))
    return np.concatenate([soundfile.read(file, always_2d=True)[0] for file in files])


def test_what_it_raises_is_told_by_its_name(site: Path, tmp_path: Path) -> None:
    """The sound goes on as it came, as late as it would have been."""
    change(site, "frames = len(block)", 'raise RuntimeError("the gate is stuck")')
    daemon = Daemon(tmp_path, config(tmp_path))
    try:
        daemon.hear("READY=1")
        stage = until(daemon, lambda stage: stage["bypassed"] and stage["faults"])
        assert stage["fault"] == "RuntimeError: the gate is stuck"
        daemon.hear("dBFS")
        assert daemon.end() == 0 and daemon.process.stderr is not None
        journal = daemon.process.stderr.read()
    finally:
        daemon.close()
    assert "process 1 (noise-gate): bypassed: RuntimeError: the gate is stuck; next" in journal
    sound = recorded(tmp_path)
    assert not sound[: FADE - 1].any() and np.abs(sound[2 * FADE :]).max() > 0.05


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            "import numpy as np",
            "import numpy as np\nimport capstand_nowhere",
            "cannot be loaded (ModuleNotFoundError: No module named 'capstand_nowhere')",
        ),
        ("TYPE =", "KIND =", "has no attribute 'TYPE')"),
        ("    type: ", "    kind: ", "cannot be used: its schema has no key type"),
    ],
)
def test_one_that_cannot_be_imported_is_a_fault(
    site: Path, tmp_path: Path, old: str, new: str, why: str
) -> None:
    """Of the configuration that names it, with the reason and whom to mend."""
    change(site, old, new)
    path = tmp_path / "capstand.toml"
    path.write_text(config(tmp_path))
    told = run("check", str(path))
    line = path.read_text().splitlines().index('type = "noise-gate"') + 1
    assert told.returncode == 78
    assert f'{path}:{line}: stream.mic.process.1.type: "noise-gate" ' in told.stderr
    assert why in told.stderr and "fix or uninstall capstand-noise-gate 1.0" in told.stderr


def test_one_that_is_not_installed_is_a_fault(tmp_path: Path) -> None:
    """As any other word that no type has."""
    path = tmp_path / "capstand.toml"
    path.write_text(config(tmp_path))
    told = run("check", str(path))
    assert told.returncode == 78 and '"noise-gate": expected one of' in told.stderr


# The gate itself, which others will copy


def gate(channels: int = 1, **keys: Any) -> NoiseGate:
    settings = NoiseGateConfig("noise-gate", **{"hold_ms": 1000 * HOLD / RATE, **keys})
    made = TYPE.make(settings, Shape(RATE, channels))
    assert isinstance(made, NoiseGate)
    return made


def test_what_is_loud_passes_and_what_is_quiet_does_not() -> None:
    """Bit for bit, later by the delay, from the first loud frame on; behind the hold is silence."""
    quiet, loud = sine(4800, 1000, 0.001), sine(4800, 1000, 0.5) + column(np.full(4800, 0.1))
    sound = np.concatenate([quiet, loud, quiet, np.zeros((FADE, 1), np.float32)])
    out = through(gate(), sound)[FADE - 1 :]
    assert not out[: 4800 - FADE].any()
    assert np.array_equal(out[4800:9600], loud)
    assert np.abs(np.diff(out[4800 - FADE : 4800, 0])).max() < 0.001
    assert not out[9600 + HOLD + FADE :].any()


def test_where_a_block_ends_is_not_heard() -> None:
    """Blocks of any lengths give the same."""
    sound = np.repeat([0.0, 0.3, 0.0, 0.001, 0.5, 0.0], 3000).astype(np.float32).reshape(-1, 1)
    whole = through(gate(), sound, len(sound))
    for lengths in ((480,), (1, 7, 1000), (239, 240, 241)):
        assert np.array_equal(through(gate(), sound, *lengths), whole)


def test_a_change_opens_it_gently_and_a_gap_closes_it() -> None:
    """A lower threshold takes effect within a fade, another fade needs a new gate, and after a
    reset it gives what a new one does."""
    one, sound = gate(2), np.full((9600, 2), 0.01, np.float32)
    blocks = list(cut(sound, (480,)))
    assert one.process(blocks[0]).any() and one.figures() == {"open": True}
    one = gate(2, threshold_dbfs=-30.0)
    out = [one.process(block) for block in blocks[:5]]
    before = NoiseGateConfig("noise-gate", hold_ms=10.0)
    assert one.change(before._replace(threshold_dbfs=-60.0))
    assert not one.change(before._replace(fade_ms=6.0))
    out += [one.process(block) for block in blocks[5:]]
    heard = np.concatenate(out)
    assert not heard[: 5 * 480].any() and np.array_equal(heard[6 * 480 :], sound[6 * 480 :])
    assert np.abs(np.diff(heard[:, 0])).max() < 0.0001
    one.reset()
    one.change(before)
    assert np.array_equal(through(one, sound), through(gate(2), sound))


def test_the_documentation_names_each_part() -> None:
    """Whatever a processor and its description have is explained."""
    from capstand.config.registry import ProcessorType

    methods = {"delay_frames", "process", "reset", "change", "figures"}
    fields = set(ProcessorType._fields) - {"extra"}
    for name in methods | fields:
        assert re.search(rf"\n\| `{name}[`(]", PAGE), name
    assert tomli.loads(printed("toml")[0])["project"]["entry-points"] == {
        "capstand.processors": {"noise-gate": "capstand_noise_gate:TYPE"}
    }
