"""What the tests themselves stand on: the list of releases, the bare timer, the manager."""

import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import debian, figures
from tests.manager import Manager
from tests.patience import PATIENCE_S
from tests.timing import NOT_JUDGED, BareTimer


def test_every_requirement_has_a_tested_release() -> None:
    """What pyproject.toml asks for, to run, build and test, is in the list, to the version; the
    list names no address."""
    project = tomllib.loads((debian.PROJECT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    lines = debian.CONSTRAINTS.read_text().splitlines()
    found = [re.fullmatch(r"([a-z0-9-]+)==[0-9a-z.]+(?: ; [^:/]+)?", line) for line in lines]
    assert all(found), [line for line, one in zip(lines, found, strict=True) if not one]
    names = {one[1] for one in found if one}
    own = f"{project['project']['name']}["  # an extra of ours, whose own list is in ``wanted`` too
    others = [one for one in wanted if not one.startswith(own)]
    assert {re.split(r"[<>=]", other)[0].lower() for other in others} <= names


def test_the_environment_holds_to_the_list() -> None:
    """The packages that these tests run with are of the listed releases."""
    run = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--exclude-editable"],
        capture_output=True,
        text=True,
        check=True,
    )
    frozen = {line.replace("_", "-").lower() for line in run.stdout.split()}
    listed = {line.split(" ")[0] for line in debian.CONSTRAINTS.read_text().splitlines()}
    names = {line.split("==")[0] for line in listed}
    assert {one for one in frozen if one.split("==")[0] in names} <= listed


def test_what_cannot_be_judged_is_told_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A duration is judged where the bare timer was on time enough; else the table has a line."""
    (tmp_path / "figures").touch()
    monkeypatch.setenv(figures.PLACE, str(tmp_path / "figures"))
    timer = BareTimer("test_x")
    try:
        assert timer.judges("a day", 86_400)
        assert figures.table() == []
        assert not timer.judges("no time at all", -1)
    finally:
        timer.close()
    (line,) = figures.table()
    assert re.fullmatch(
        rf"{NOT_JUDGED}test_x: no time at all  a bare timer was \d+ ms late.*", line
    )


def test_nobody_waits_for_the_manager(tmp_path: Path) -> None:
    """More than a socket holds is told at once while nobody asks, and is all there, in order."""
    manager = Manager(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.settimeout(PATIENCE_S)
        for number in range(1000):
            daemon.sendto(f"STATUS={number}".encode(), str(tmp_path / "notify"))
    assert [manager.next()[1] for _ in range(1000)] == [f"STATUS={one}" for one in range(1000)]
    manager.close()
