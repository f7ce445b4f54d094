"""The stand-in for tests of Agora, built once and new for each test."""

from pathlib import Path

import pytest

from tests.agora import StandIn, build, missing, place


@pytest.fixture(scope="session")
def standin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wrapper with the stand-in as its native library: a folder for sys.path."""
    lacking = missing()
    if lacking is not None:
        pytest.skip(f"{lacking} is missing")
    folder = tmp_path_factory.mktemp("agora")
    return place(folder / "sdk", build(folder / "library"))


@pytest.fixture
def standin(tmp_path: Path, standin_folder: Path) -> StandIn:
    """A stand-in with a log, recording and control FIFO of its own."""
    directory = tmp_path / "standin"
    directory.mkdir()
    return StandIn(standin_folder, directory)
