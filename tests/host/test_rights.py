"""Whose directory it is, and with whose rights is written there."""

import json
import os
import resource
import selectors
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from capstand.accounting.ledger import Ledger
from capstand.cli import main as cli
from capstand.cli import places
from capstand.errors import CapstandError
from capstand.host import control, realtime, rights

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="root gives up its rights: run as root")
CONFIG = """\
[[stream]]
name = "mic"
[stream.capture]
device = "synthetic"
[[stream.sink]]
type = "file"
path = "{folder}/rec"
min_free_mb = 0
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of another user's, to which the way is open."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    for parent in folder.parents:
        if parent.name.startswith(("pytest-", "popen-", "test_")):
            parent.chmod(parent.stat().st_mode | 0o011)
    return folder


def run(folder: Path, state: Path) -> subprocess.CompletedProcess[str]:
    config = folder.parent / "capstand.toml"
    config.write_text(CONFIG.format(folder=folder))
    config.chmod(0o644)
    return subprocess.run(
        [
            *(sys.executable, "-m", "capstand", "run", "--seconds", "1", "--config", str(config)),
            *("--state", str(state), "--runtime", str(folder / "run")),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@as_root
def test_root_takes_the_rights_of_the_states_owner(theirs: Path) -> None:
    """Nothing that root's daemon writes is root's where the state directory is another user's; a
    Python that this user may not use is said."""
    probe = (
        subprocess.run(
            [sys.executable, "-c", ""], user=NOBODY, group=NOBODY, capture_output=True, check=False
        )
        if os.access(sys.executable, os.X_OK) and _open_to_all(sys.executable)
        else None
    )
    done = run(theirs, theirs / "state")
    if probe is None or probe.returncode:
        assert done.returncode == 1 and "cannot run this Python" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "running as that user" in done.stderr
        assert list(theirs.glob("rec/*.wav"))
    assert {path.lstat().st_uid for path in theirs.rglob("*")} <= {NOBODY}


def _open_to_all(path: str) -> bool:
    real = Path(path).resolve()
    return all(one.stat().st_mode & 0o001 for one in (real, *real.parents))


BECOME = """\
import json, os, resource, sys
from capstand.host import rights
rights.switch_to(rights.user(int(sys.argv[1]), int(sys.argv[1])))
try:
    os.setuid(0)
    back = True
except OSError:
    back = False
print(json.dumps([os.getresuid(), os.getresgid(), os.getgroups(), back, os.environ["HOME"],
    resource.getrlimit(resource.RLIMIT_RTPRIO), os.path.exists("/proc/self/fd/0")]))
"""


@as_root
@pytest.mark.parametrize("uid", [NOBODY, 54321])
def test_rights_are_given_up_for_good(uid: int) -> None:
    """All three ids and the groups change, also to a user the system does not know; capture may
    still have its priority where root might grant it."""
    done = subprocess.run(
        [sys.executable, "-c", BECOME, str(uid)], capture_output=True, text=True, check=True
    )
    uids, gids, groups, back, home, priority, proc = json.loads(done.stdout)
    assert uids == [uid] * 3 and gids == [uid] * 3 and 0 not in groups
    assert not back and home == "/" and proc
    assert priority[0] == rights.RT_PRIORITY or resource.getrlimit(resource.RLIMIT_RTPRIO)[1] == 0


@as_root
def test_who_decides_what_lies_there(theirs: Path, tmp_path: Path) -> None:
    """It is the first on the way who is not root, and whoever owns a link on it."""
    assert rights.other_owner(tmp_path / "a/b") is None
    assert rights.other_owner(theirs) == rights.user(NOBODY)
    inside = theirs / "root's"
    inside.mkdir()
    assert rights.other_owner(inside / "ledger") == rights.user(NOBODY)
    (tmp_path / "link").symlink_to(inside)
    assert rights.other_owner(tmp_path / "link") == rights.user(NOBODY)
    laid = tmp_path / "laid"
    laid.symlink_to("/etc")
    os.lchown(laid, NOBODY, NOBODY)
    assert rights.other_owner(laid / "x") == rights.user(NOBODY)


@as_root
def test_root_leaves_nothing_in_the_services_folders(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a state directory of root's, recordings into a folder of the service's are refused."""
    monkeypatch.setattr(rights, "SERVICE_USER", rights.user(NOBODY).name)
    with pytest.raises(CapstandError, match="belongs to the service's user"):
        rights.refuse_the_services([tmp_path / "mine", theirs / "rec"], tmp_path)
    rights.refuse_the_services([tmp_path / "mine"], tmp_path)


@as_root
def test_the_runtime_directory_is_handed_over(theirs: Path, tmp_path: Path) -> None:
    """Root makes it for the user whose rights it takes; one of another user's stays as it is."""
    rights._hand_over(tmp_path / "run/capstand", rights.user(NOBODY))
    assert (tmp_path / "run/capstand").stat().st_uid == NOBODY
    (theirs / "link").symlink_to(tmp_path)
    rights._hand_over(theirs / "link", rights.user(NOBODY))
    assert tmp_path.stat().st_uid == 0
    (tmp_path / "laid").symlink_to(tmp_path)
    with pytest.raises(OSError, match="laid"):
        rights._hand_over(tmp_path / "laid", rights.user(NOBODY))


def test_the_ledger_follows_no_link(tmp_path: Path) -> None:
    """A link where its file should be is put aside, and what it leads to stays as it was."""
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger/mic.jsonl").symlink_to(victim)
    ledger = Ledger(tmp_path / "ledger")
    ledger.write("mic", "start")
    ledger.close(10)
    assert not (tmp_path / "ledger/mic.jsonl").is_symlink()
    assert "start" in (tmp_path / "ledger/mic.jsonl").read_text()
    assert victim.read_text() == "mine\n"
    (aside,) = [one for one in (tmp_path / "ledger").iterdir() if one.is_symlink()]
    assert aside.name.startswith("mic.jsonl.aside-") and not ledger.path("mic").is_symlink()


def test_everybody_may_ask_whatever_the_umask(tmp_path: Path) -> None:
    """The socket has its mode from the beginning, not by a chmod of its path."""
    before = os.umask(0o077)
    try:
        with selectors.DefaultSelector() as selector:
            server = control.ControlServer(tmp_path / "control.sock", selector, {})
            mode = stat.S_IMODE((tmp_path / "control.sock").stat().st_mode)
            server.close()
        assert mode == 0o666
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)


# The directory of the socket


def _link(folder: Path) -> None:
    (folder.parent / "target").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "target")


def _open(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def _file(folder: Path) -> None:
    folder.touch(mode=0o600)


def _foreign(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)


@pytest.mark.parametrize("make", [_link, _open, _file, pytest.param(_foreign, marks=as_root)])
def test_a_session_directory_is_believed_only_if_it_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: object
) -> None:
    """A link, a file, one that others may write to, and another user's are not used."""
    folder = tmp_path / "session"
    assert callable(make)
    make(folder)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    assert not rights.is_ours(folder)
    assert rights.own_runtime() != folder / "capstand"
    folder.rename(tmp_path / "away")
    folder.mkdir(mode=0o700)
    assert rights.own_runtime() == folder / "capstand"


@pytest.mark.parametrize("where", ["", "here", "./here", "~"])
def test_a_relative_directory_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Where the environment names a directory that depends on the current one, it does not count:
    a question asked elsewhere would not find the daemon, and the ledger would lie anywhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir(mode=0o700)
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, where)
    assert rights.own_runtime().is_absolute()
    monkeypatch.setenv("HOME", "/home/mic")
    assert rights.own_state() == Path("/home/mic/.local/state/capstand")
    monkeypatch.setenv("HOME", where or "here")
    assert rights.own_state().is_absolute()


def test_one_in_tmp_is_believed_only_if_it_is_ours() -> None:
    """What somebody else may have laid in /tmp is refused with what to do, and ours is made."""
    folder = Path(f"/tmp/capstand-test-{os.getpid()}")
    try:
        folder.symlink_to("/etc")
        with pytest.raises(CapstandError, match=r"is not yours.*--runtime"):
            rights.require_ours(folder, make=True)
        folder.unlink()
        assert rights.require_ours(folder) == folder and not folder.exists()
        rights.require_ours(folder, make=True)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        folder.chmod(0o770)
        with pytest.raises(CapstandError, match="is not yours"):
            rights.require_ours(folder)
    finally:
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            folder.rmdir()


def test_a_directory_of_the_services_keeps_no_user_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's daemon has a directory of its own, whether or not root's is there; who asks is
    answered by the service where one is, else by the user's own."""
    system, session = tmp_path / "system", tmp_path / "session"
    system.mkdir()
    session.mkdir(mode=0o700)
    monkeypatch.setattr(rights, "SYSTEM_RUNTIME", system)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() or NOBODY)
    monkeypatch.setattr(rights, "is_ours", lambda folder: folder == session)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert places.runtime_directory(service=True) == session / "capstand"
    chosen = cli._parser(["status"]).parse_args(["status"])
    assert places.socket(chosen) == system / control.NAME  # nobody is there: say so of the service
    (session / "capstand").mkdir()
    (session / "capstand" / control.NAME).touch()
    assert places.socket(chosen) == session / "capstand" / control.NAME
    (system / control.NAME).touch()  # left behind
    assert places.socket(chosen) == session / "capstand" / control.NAME
    with selectors.DefaultSelector() as selector:
        server = control.ControlServer(system / control.NAME, selector, {})
        assert places.socket(chosen) == system / control.NAME
        monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "unit"))
        assert places.socket(chosen) == tmp_path / "unit" / control.NAME
        server.close()


@as_root
def test_roots_first_try_keeps_out_of_the_services_directories(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a configuration root's daemon is like any user's; with one it stands in for the
    service."""
    for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.state_directory(service=True) == Path("/var/lib/capstand")
    assert places.runtime_directory(service=True) == Path("/run/capstand")
    assert places.state_directory(service=False) == tmp_path / ".local/state/capstand"
    assert places.runtime_directory(service=False) == rights.own_runtime() != Path("/run/capstand")


def test_refusals_for_all_threads_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user reads one line of memory and priority, with what grants both."""
    monkeypatch.setattr(realtime, "announced", set())
    line = realtime.in_one_line("memory is not locked: why", "thread main has no priority: why")
    assert line is not None and "\n" not in line
    assert "LimitRTPRIO=80" in line and "LimitMEMLOCK=infinity" in line
    assert realtime.announced == {"priority"}
    monkeypatch.setattr(realtime, "announced", set())
    assert realtime.in_one_line("memory", None) == "memory" and not realtime.announced
    assert realtime.in_one_line(None, None) is None
