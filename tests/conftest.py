"""Fixtures that more than one file of tests uses."""

import gc
import os
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings

from tests import figures
from tests.fakecard import FakeCard, build, missing
from tests.fakecard.mixer import Mixer
from tests.timing import NOT_JUDGED, bare_timer

__all__ = ["bare_timer"]


# How long an example takes is the machine's affair.
settings.register_profile("slow", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("slow")


def pytest_configure() -> None:
    figures.begin()
    # A shell starts what it runs in the background with Ctrl-C ignored, for all its descendants.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """What was measured, and what could not be judged; and in CI a test that was skipped is a
    failure: what was not run was not shown."""
    yield
    if lines := figures.table():
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.write_line(line)
        if late := sum(line.startswith(NOT_JUDGED) for line in lines):
            terminalreporter.write_line(f"{late} durations were not judged: the machine was late")
    skipped = terminalreporter.stats.get("skipped", [])
    session = terminalreporter._session
    if skipped and os.environ.get("CI") and session is not None:
        terminalreporter.write_line(f"CI skips nothing, but {len(skipped)} tests were skipped")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged may hold anything; the report of it travels as UTF-8."""
    report = yield
    report.sections = [
        (name, text.encode(errors="replace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """A test that runs a thread's body in its own thread leaves no signal blocked, which the
    processes of the tests after it would inherit; and what it forgot to close is found here, not
    in a test after it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    gc.collect()


def pytest_collection_finish() -> None:
    gc.freeze()  # what is loaded by now is no garbage: a collection takes a millisecond


@pytest.fixture(scope="session")
def fakecard_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake card's plug-in, built once."""
    lacking = missing()
    if lacking is not None:
        pytest.skip(f"{lacking} is missing")
    return build(tmp_path_factory.mktemp("plugin"))


@pytest.fixture
def fakecard(tmp_path: Path, fakecard_plugin: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCard:
    """A card of its own for one test; ALSA finds it as ``fakecard.device``."""
    card = FakeCard(tmp_path, plugin=fakecard_plugin)
    for name, value in card.env.items():
        monkeypatch.setenv(name, value)
    return card


@pytest.fixture(scope="session")
def fakemix_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plug-in of a card's controls, built once."""
    lacking = missing()
    if lacking is not None:
        pytest.skip(f"{lacking} is missing")
    return build(tmp_path_factory.mktemp("plugin"), "fakemix", "ctl")


@pytest.fixture
def fakemixer(
    tmp_path: Path, fakemix_plugin: Path, fakecard: FakeCard, monkeypatch: pytest.MonkeyPatch
) -> Mixer:
    """The controls of ``fakecard``."""
    rc = Path(fakecard.env["ALSA_CONFIG_PATH"])
    mixer = Mixer(tmp_path, fakemix_plugin, fakecard.device, rc)
    for name, value in mixer.env.items():
        monkeypatch.setenv(name, value)
    return mixer


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 20 MB of its own."""
    if os.geteuid() != 0:
        pytest.skip("a small disk needs the right to mount: run as root")
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "none", folder], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def nobody() -> Iterator[Callable[[], AbstractContextManager[Path]]]:
    """A directory that everybody may enter, and what makes this process nobody's meanwhile."""
    if os.geteuid() != 0:
        pytest.skip("to be somebody else needs root")
    late = ("grp", "secrets", "_strptime", "soundfile", "numpy.random", "capstand.dsp.convert")
    for name in late:
        import_module(name)  # what is not loaded yet may be out of nobody's reach

    @contextmanager
    def become() -> Iterator[Path]:
        os.setegid(65_534)
        os.seteuid(65_534)
        try:
            yield folder
        finally:
            os.seteuid(0)
            os.setegid(0)

    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield become
