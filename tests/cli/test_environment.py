"""Every command in every environment ends with a sentence and its own status, never a traceback."""

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capstand.host import signals
from tests.service.test_service import CONFIGURATION
from tests.service.test_service import Daemon as Service

PATIENCE_S = 60.0
NOBODY = 54321
ENV = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
CLI = [sys.executable, "-m", "capstand"]


class Place:
    """A folder with a right configuration, and what the commands end with there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o777)
        config = folder / "ok.toml"
        setup = CONFIGURATION.format(device="synthetic", folder=folder).replace(
            '"mic"', '"mic"\n# → µ', 1
        )
        config.write_text(setup.replace("[[stream.sink]]", "[[stream.sink]]\nmin_free_mb = 0"))
        away = ["--runtime", str(folder / "no→run")]
        run = ["run", "--quiet", "--seconds", "0.2", "--runtime", str(folder / "run")]
        self.commands: list[tuple[list[str], int]] = [
            (["--help"], 0),
            (["agora", "install", "--help"], 0),
            (["run", "--help"], 0),
            ([], 2),
            (["devices"], 0),
            (["devices", "--json"], 0),
            (["check", str(config)], 0),
            (["check", str(folder / "no\x1b[2J→.toml")], 78),
            (["status", *away], 1),
            (["reload", *away], 1),
            (["release", "mic", *away], 1),
            (["resume", "mic", *away], 1),
            ([*run, "--config", str(config), "--state", str(folder / "state")], 0),
        ]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for above in (tmp_path, *tmp_path.parents):  # others are to come in
        if above.is_relative_to("/tmp/pytest-of-root"):
            above.chmod(0o755)
    return Place(tmp_path)


def all_end_well(
    place: Place,
    before: list[str] | None = None,
    env: dict[str, str] | None = None,
    redirect: str = "",
    changes: dict[int, int] | None = None,
    cwd: Path | None = None,
) -> None:
    """Runs every command, with ``redirect`` in a shell; ``changes`` maps one status to another."""
    for command, status in place.commands:
        process = subprocess.run(
            [*(before or []), "sh", "-c", f'"$@" {redirect}', "sh", *CLI, *command],
            env=ENV if env is None else env,
            cwd=cwd or place.folder,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=False,
        )
        told = (process.stdout + process.stderr).decode(errors="replace")
        assert "Traceback" not in told and "Exception ignored" not in told, told
        assert "\x1b" not in told and "lost sys.stderr" not in told
        assert process.returncode == (changes or {}).get(status, status), (command, told)


PATH = {"PATH": os.environ["PATH"]}


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({}, id="empty"),
        pytest.param({"LANG": "C", "LC_ALL": "C"}, id="C"),
        pytest.param(
            {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, id="truly-ascii"
        ),
        pytest.param({"PYTHONIOENCODING": "latin-1", "HOME": "", "COLUMNS": "0"}, id="latin-1"),
        pytest.param({"HOME": "/nonexistent", "TERM": "", "COLUMNS": "-5"}, id="no-home"),
    ],
)
def test_in_every_locale_and_with_hardly_any_environment(place: Place, env: dict[str, str]) -> None:
    """Neither HOME nor a locale is needed, whatever characters are told."""
    all_end_well(place, env=PATH | env)


@pytest.mark.parametrize("home", [{}, {"HOME": "/nonexistent", "XDG_RUNTIME_DIR": "/nonexistent"}])
def test_as_a_user_that_nobody_knows(place: Place, home: dict[str, str]) -> None:
    """A uid without an entry in the table of users can do everything, as in a container."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("another uid needs root and setpriv")
    other = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # Where root's own folder holds what is installed, it may read that.
    reader = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    for before in (other, [*other, *reader]):
        tried = [*before, "sh", "-c", '"$@"', "sh", *CLI, "--version"]
        if not subprocess.run(tried, cwd=place.folder, capture_output=True, check=False).returncode:
            all_end_well(place, before=before, env=PATH | home)
            return
    pytest.skip("what is installed here may be read by root only")


@pytest.mark.parametrize(
    ("redirect", "changes"),
    [
        ("<&- >&- 2>&-", {}),
        (">&-", {}),
        ("2>&-", {}),
        ("<&-", {}),
        ("2>/dev/full", {}),
        ("2>&1 | true", {1: 0, 2: 0, 78: 0}),  # the status is that of true
    ],
)
def test_without_a_place_to_write_to(place: Place, redirect: str, changes: dict[int, int]) -> None:
    """stdin, stdout and stderr may be closed, full or left by their reader."""
    all_end_well(place, redirect=redirect, changes=changes)


UNBUFFERED = ENV | {"PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize("env", [ENV, UNBUFFERED], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("command", [["--help"], ["devices"], ["devices", "--json"]])
def test_a_full_disk_under_stdout_is_a_failure(command: list[str], env: dict[str, str]) -> None:
    """What could not be told is told on stderr, and the status is 1."""
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [*CLI, *command], env=env, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (process.returncode, process.stderr) == (
        1,
        "capstand: cannot write to stdout: No space left on device\n",
    )


@pytest.mark.parametrize("env", [ENV, UNBUFFERED], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("command", "status"), [(["--help"], 0), (["devices"], 0), (["check", "/none"], 78), ([], 2)]
)
def test_a_reader_who_has_gone_is_no_failure(
    command: list[str], status: int, env: dict[str, str]
) -> None:
    """A broken pipe changes no status, on stdout or stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [*CLI, *command], env=env, stdout=writer, stderr=writer, timeout=PATIENCE_S, check=False
    )
    os.close(writer)
    assert process.returncode == status


def test_what_is_closed_is_not_given_to_a_file(place: Place) -> None:
    """Where a daemon starts without stdin, stdout and stderr, no file and no socket of its own
    takes their numbers, to which libraries write."""
    script = (
        "from capstand.host import console; import os; console.prepare(); "
        "open(os.environ['FOUND'], 'w').write(' '.join(os.readlink(f'/proc/self/fd/{n}') "
        "for n in range(3)) + f' {os.get_inheritable(2)}'); print('x'); console.finish(0)"
    )
    found = place.folder / "found"
    subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script],
        env=os.environ | {"FOUND": str(found)},
        check=True,
    )
    assert found.read_text() == "/dev/null /dev/null /dev/null True"


def test_in_a_directory_that_is_gone(place: Place) -> None:
    """The current directory may have been removed: what needs it says so."""
    gone = ["sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "sh"]
    all_end_well(place, before=gone)
    run = ["run", "--quiet", "--seconds", "0.2", "--runtime", str(place.folder / "run")]
    right = ["--config", str(place.folder / "ok.toml")]
    for command in (run, ["check", "ok.toml"], [*run, *right, "--state", "state"]):
        process = subprocess.run(
            [*gone, *CLI, *command],
            cwd=place.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert process.returncode == 1
        assert "capstand: the current directory is unusable (No such file" in process.stderr
        assert process.stderr.count("capstand: ") == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        *((b"\xff", "\\udcff"), (b"a\nb", "a b"), (b"\x7f", "\\x7f"), (b"\xc2\xa0x", " x")),
        *(("\u202e".encode(), "\\u202e"), (b"'\"\\$HOME ~", None)),
    ],
)
def test_in_a_directory_of_any_name(tmp_path: Path, name: bytes, shown: str | None) -> None:
    """The first try records into it, or says what keeps it from that."""
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    process = subprocess.run(
        [
            *(*CLI, "run", "--quiet", "--no-config", "--seconds", "0.2"),
            *("--state", str(tmp_path / "state"), "--runtime", str(tmp_path / "run")),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if shown is None:
        assert process.returncode == 0 and list(folder.iterdir()) == [folder / "recordings"]
    else:
        assert process.returncode == 1 and list(folder.iterdir()) == []
        assert f"/{shown}, contains an invisible character" in process.stderr


def test_a_home_that_nobody_has(place: Place) -> None:
    """A folder in the home directory of a user who is not there is refused in words."""
    command = ["agora", "install", "--into", "~no-such-user/agora"]
    process = subprocess.run([*CLI, *command], capture_output=True, text=True, check=False)
    told = "capstand: ~no-such-user has no home directory; name the folder by --into /WHOLE/PATH\n"
    assert (process.returncode, process.stderr) == (1, told)


def test_a_bug_is_told_in_clean_lines() -> None:
    """What nobody foresaw ends a command with its traceback, which steers no terminal."""
    code = "from capstand.host import console\nconsole.prepare()\nraise KeyError('\\x1b[2J')"
    code += ".with_traceback(None) from ValueError('\\udcff\\x1b]0;x\\x07')"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert process.returncode == 1 and b"\x1b" not in process.stderr
    assert b"ValueError: \\udcff\\x1b]0;x\\x07\n" in process.stderr


def test_in_a_directory_that_cannot_be_written(place: Place) -> None:
    """A directory that takes no file is enough for every command that writes none there."""
    all_end_well(place, cwd=Path("/proc"))


def test_without_proc(place: Place) -> None:
    """What /proc would tell is left out."""
    unshare = ["unshare", "-m", "sh", "-c", 'umount -l /proc && exec "$@"', "sh"]
    made = subprocess.run([*unshare, "true"], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"/proc cannot be taken away here: {made.stderr.decode().strip()}")
    all_end_well(place, before=unshare)


@pytest.mark.parametrize("text", ["x", "0", "-1", "nan", "1e9", "inf", "\x1b[2J"])
def test_seconds_say_what_was_expected(text: str) -> None:
    """A number that is none is refused in words for a person."""
    process = subprocess.run(
        [*CLI, "run", f"--seconds={text}"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    last = process.stderr.splitlines()[-1]
    assert last.startswith("capstand run: error: argument --seconds: '")
    assert last.endswith("': expected a number of seconds above 0 and below 1e9")
    assert last.isprintable()


def test_the_live_line_in_a_terminal_without_unicode(place: Place) -> None:
    """A terminal of ASCII gets a live line of ASCII."""
    master, slave = pty.openpty()
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "COLUMNS": "200"}
    (command,) = [one for one, _ in place.commands if one[:2] == ["run", "--quiet"]]
    command = [*command, "--seconds", "1"]
    command.remove("--quiet")
    with subprocess.Popen(
        [*CLI, *command], env=PATH | ascii_only, stdout=slave, stderr=slave, cwd=place.folder
    ) as process:
        os.close(slave)
        got = b""
        with contextlib.suppress(OSError):  # its other side is closed
            while chunk := os.read(master, 65536):
                got += chunk
        assert process.wait(PATIENCE_S) == 0
    os.close(master)
    assert b"Traceback" not in got and b"mic SIMULATED |" in got and b"-> " in got
    got.decode("ascii")


# Signals


def held(pid: int) -> bool:
    """Whether a process holds back what a command holds back first of all; and no more than that,
    since glibc 2.41 blocks every signal for a moment when Python asks for its first random bytes.
    One that catches a signal already has come further, while who looks stood still.
    """
    inherited = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    wanted = sum(1 << (number - 1) for number in {*signals.HELD, *inherited})
    said = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    caught = int(said["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1
    return bool(caught) or int(said["SigBlk"], 16) == wanted


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_starts_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    """However early it comes, the daemon ends with 0, closed books and no traceback."""
    daemon = Service(tmp_path, CONFIGURATION.format(device="synthetic", folder=tmp_path))
    until(lambda: held(daemon.process.pid))
    daemon.process.send_signal(number)
    _, told = daemon.process.communicate(timeout=PATIENCE_S)
    assert daemon.process.returncode == 0
    assert f"stopping: {number.name}" in told and "Traceback" not in told
    assert daemon.ledger()[-1]["balanced"] is True
    daemon.close()


def test_a_hang_up_while_it_starts_is_a_reload(tmp_path: Path) -> None:
    """A reload that comes too early for the socket is done when there is something to reload."""
    daemon = Service(tmp_path, CONFIGURATION.format(device="synthetic", folder=tmp_path))
    until(lambda: held(daemon.process.pid))
    daemon.process.send_signal(signal.SIGHUP)
    daemon.hear("READY=1")
    assert daemon.end() == 0
    daemon.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Service]:
    one = Service(tmp_path, CONFIGURATION.format(device="synthetic", folder=tmp_path))
    one.hear("READY=1")
    one.hear("dBFS")
    yield one
    one.close()


def test_what_means_nothing_is_ignored(daemon: Service) -> None:
    """SIGUSR1, SIGUSR2, SIGALRM, SIGIO, the real-time ones and their like change nothing."""
    for number in (*signals.IGNORED, signals.FIRST_REAL_TIME):
        daemon.process.send_signal(number)
    daemon.forget()
    daemon.hear("WATCHDOG=1")
    daemon.hear("WATCHDOG=1")
    assert daemon.end() == 0


@pytest.mark.parametrize("number", signals.ENDING)
def test_what_ends_it_drains_it(daemon: Service, number: signal.Signals) -> None:
    """Each of them is answered as SIGTERM is: whole files, closed books, status 0."""
    assert daemon.end(number) == 0
    books = daemon.ledger()[-1]
    assert books["event"] == "stop" and books["balanced"] is True
    (file,) = (daemon.folder / "sound").iterdir()
    assert file.suffix == ".wav"


def test_no_signal_that_kills_is_forgotten() -> None:
    """Whatever signal's default action is to kill is one that ends it, one that is ignored, HUP, or
    one that tells of a bug."""
    bugs = {"ILL", "TRAP", "ABRT", "BUS", "FPE", "SEGV", "SYS"}
    harmless = {"KILL", "STOP", "CHLD", "CONT", "TSTP", "TTIN", "URG", "WINCH", "PIPE", "XFSZ"}
    others = signal.valid_signals() - {*signals.ENDING, *signals.IGNORED, signal.SIGHUP}
    names = {other.name[3:] for other in others if isinstance(other, signal.Signals)}
    assert names <= bugs | harmless


def test_ctrl_c_ends_a_question_without_a_traceback(tmp_path: Path) -> None:
    """A command that waits for an answer ends as other programs do."""
    import socket

    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "control.sock"))
        silent.listen()
        with subprocess.Popen(
            [*CLI, "status", "--runtime", str(tmp_path)], stderr=subprocess.PIPE, text=True
        ) as process:
            client, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=PATIENCE_S)
            client.close()
    assert (process.returncode, told) == (-signal.SIGINT, "")
