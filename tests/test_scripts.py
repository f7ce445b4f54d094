"""What scripts/environment.sh promises to those that source it; how what is installed starts."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

ROOT = Path(__file__).parents[1]
NOBODY = 65534
# In place of pip, which needs a network: an environment whose Python says yes to everything.
FILL = r"""
fill() {
    mkdir -p "$1/bin" && printf '#!/bin/sh\n' >"$1/bin/python" && chmod 755 "$1/bin/python" &&
        printf '#!%s/bin/python -I\n' "$1" >"$1/bin/capstand" && echo made >>"$root/../made"
}
need_64_bit() { :; }
install_packages() { :; }
"""


class Checkout:
    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        (self.root / "scripts").mkdir(parents=True)
        scripts = [f"scripts/{name}" for name in ("environment.sh", "install", "added.py")]
        for name in (*scripts, "pyproject.toml"):
            (self.root / name).write_bytes((ROOT / name).read_bytes())

    def shell(
        self,
        script: str,
        *,
        before: tuple[str, ...] = (),
        user: int | None = None,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.CompletedProcess[str]:
        source = f"set -euo pipefail; . '{self.root}/scripts/environment.sh'\n{script}"
        return subprocess.run(
            [*before, "/bin/bash", "-c", source],
            env={"PATH": os.environ["PATH"], "HOME": "/root", **env},
            cwd=self.root.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            user=user,
        )

    def made(self) -> int:
        """How often an environment was made."""
        told = self.root.parent / "made"
        return len(told.read_text().split()) if told.exists() else 0


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_an_environment_is_made_once_and_whole(checkout: Checkout) -> None:
    """It is made aside, knows its place, and serves the next start as it is; one with the tests'
    packages serves a start without."""
    assert checkout.shell(f"{FILL} make_environment test").returncode == 0
    assert checkout.shell(f"{FILL} make_environment").returncode == 0
    assert checkout.made() == 1
    venv = checkout.root / ".venv"
    assert (venv / "bin/capstand").read_text() == f"#!{venv}/bin/python -I\n"
    assert [one.name for one in checkout.root.glob(".venv*")] == [".venv"]


BROKEN = {
    "another extra": "make_environment test",
    "a python that is gone": 'ln -sfn /usr/bin/gone "$root/.venv/bin/python"; make_environment',
    "interrupted": 'rm "$root/.venv/mark"; make_environment',
    "half": 'rm -r "$root/.venv/bin"; make_environment',
    "left over": 'mkdir -p "$root/.venv.new/x" "$root/.venv.old/x"; make_environment test',
    "a link that leads nowhere": 'rm -r "$root/.venv"; ln -s gone "$root/.venv"; make_environment',
    "other dependencies": 'echo >>"$root/pyproject.toml"; make_environment',
}


@pytest.mark.parametrize("broken", BROKEN)
def test_one_that_does_not_fit_is_made_anew(checkout: Checkout, broken: str) -> None:
    """Whatever is wrong with it."""
    assert checkout.shell(f"{FILL} make_environment").returncode == 0
    done = checkout.shell(f"{FILL} {BROKEN[broken]}")
    assert done.returncode == 0, done.stderr
    assert checkout.made() == 2
    assert checkout.shell(f"{FILL} make_environment").returncode == 0
    assert checkout.made() == 2
    assert [one.name for one in checkout.root.glob(".venv*")] == [".venv"]


def test_a_checkout_that_was_moved_gets_a_new_one(checkout: Checkout) -> None:
    """Its scripts name the old place."""
    assert checkout.shell(f"{FILL} make_environment").returncode == 0
    checkout.root = checkout.root.rename(checkout.root.with_name("moved to"))
    assert checkout.shell(f"{FILL} make_environment").returncode == 0
    assert checkout.made() == 2
    venv = checkout.root / ".venv"
    assert (venv / "bin/capstand").read_text() == f"#!{venv}/bin/python -I\n"


@pytest.mark.parametrize("ending", ["false", "kill -INT $$; sleep 60", "kill -TERM $$; sleep 60"])
def test_a_failure_or_an_interruption_leaves_the_old_one(checkout: Checkout, ending: str) -> None:
    """Until the new one is whole, the old one stays, and of the new one nothing is left."""
    assert checkout.shell(f"{FILL} make_environment").returncode == 0
    ended = f'fill() {{ mkdir "$1"; {ending}; }}'
    done = checkout.shell(f"{FILL} {ended}; make_environment test")
    assert done.returncode != 0
    assert [one.name for one in checkout.root.glob(".venv*")] == [".venv"]
    assert checkout.shell(f"{FILL} make_environment").returncode == 0
    assert checkout.made() == 1


def test_commands_get_nothing_of_where_they_are_started(checkout: Checkout) -> None:
    """Not the current directory, no variable that leads Python, pip, apt or a shell elsewhere; but
    where packages come from, and a proxy."""
    led = {
        name: str(checkout.root)
        for name in ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "PIP_CONFIG_FILE", "PIP_TARGET")
    }
    led |= {"APT_CONFIG": "x", "LD_PRELOAD": "", "BASH_ENV": "", "PERL5LIB": "x", "GCONV_PATH": "x"}
    kept = {
        "https_proxy": "http://proxy",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/a b",
        "LANG": "C",
    }
    done = checkout.shell('umask; "${clean[@]}" pwd; "${clean[@]}" env', env=led | kept)
    umask, folder, *lines = done.stdout.splitlines()
    found = dict(line.split("=", 1) for line in lines)
    assert (umask, folder) == ("0022", "/")
    assert not set(led) & set(found)
    assert kept.items() <= found.items()


@pytest.mark.skipif(os.geteuid() != 0, reason="root's PATH: run as root")
def test_root_takes_no_program_from_where_others_may_write(
    checkout: Checkout, tmp_path: Path
) -> None:
    """Not from the current directory, nor from a folder of somebody else's or open to others."""
    folders = {name: tmp_path / name for name in ("mine", "open", "theirs")}
    for folder in folders.values():
        folder.mkdir(mode=0o755)
    folders["open"].chmod(0o775)
    os.chown(folders["theirs"], NOBODY, NOBODY)
    path = ":".join([".", "", *map(str, folders.values()), "relative", os.environ["PATH"]])
    done = checkout.shell('echo "$PATH"', env={"PATH": path})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().split(":")[:2][0] == str(folders["mine"])
    assert not {".", "", "relative", str(folders["open"]), str(folders["theirs"])} & set(
        done.stdout.strip().split(":")
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="root's files: run as root")
def test_root_writes_no_log_where_another_user_rules(checkout: Checkout, tmp_path: Path) -> None:
    """TMPDIR may be kept by sudo; whoever owns that folder could put a link in the log's place."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    done = checkout.shell("step trying false", env={"TMPDIR": str(theirs)})
    assert done.returncode == 1 and "what was said is in /tmp/capstand-" in done.stderr
    assert list(theirs.iterdir()) == []
    Path(done.stderr.strip().split()[-1]).unlink()


def test_a_32_bit_system_is_refused_with_a_word(checkout: Checkout) -> None:
    """Before anything is installed."""
    done = checkout.shell("make_environment", before=("setarch", "linux32"))
    assert done.returncode == 1
    assert done.stderr.startswith("capstand: this is a 32-bit system (")
    assert len(done.stderr.splitlines()) == 1 and "64-bit Raspberry Pi OS" in done.stderr


def test_without_sudo_all_commands_are_named_at_once(checkout: Checkout, tmp_path: Path) -> None:
    """Those that root has to run, with every package, and what comes then."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("dpkg-query", "grep", "dirname", "id", "python3", "readlink", "stat"):
        found = subprocess.run(["which", name], capture_output=True, text=True, check=False).stdout
        if found:
            (programs / name).symlink_to(found.strip())
    for parent in (tmp_path, *tmp_path.parents):
        if parent.name.startswith(("pytest-", "popen-", "test_")):
            parent.chmod(parent.stat().st_mode | 0o055)
    done = checkout.shell(
        "install_packages no-such-package-a no-such-package-b",
        user=NOBODY if os.geteuid() == 0 else None,
        env={"PATH": str(programs)},
    )
    assert done.returncode == 1
    assert "\n    apt-get update\n" in done.stderr
    assert "--no-install-recommends no-such-package-a no-such-package-b\n" in done.stderr
    assert "start" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "W: Failed to fetch:  Temporary failure resolving 'deb'\nE: Unable to locate package",
            "network",
        ),
        (
            "WARNING: NewConnectionError: [Errno -3] Name or service not known\nERROR: none",
            "network",
        ),
        ("OSError: [Errno 101] Network is unreachable", "network"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "disk is full"),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend", "another program"),
        ("E: Unable to locate package gcc", "package sources"),
        ("SSLError(SSLCertVerificationError(1, 'certificate verify failed", "certificate"),
        ("ERROR: No matching distribution found for numpy", "package index"),
        (
            "noise\nE: Sub-process \x1b[31m/usr/bin/dpkg returned an error code (1)\nmore",
            "Sub-process",
        ),
    ],
)
def test_a_failure_is_a_sentence(checkout: Checkout, said: str, told: str) -> None:
    """Why, and where all that was said is; not what apt and pip said themselves."""
    done = checkout.shell(
        "step 'installing it' sh -c 'printf \"%s\\n\" \"$SAID\"; exit 1'",
        env={"SAID": said, "TMPDIR": str(checkout.root)},
    )
    assert done.returncode == 1 and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first == "capstand: installing it"
    assert second.startswith("capstand: installing it failed: ") and told in second
    assert "\x1b" not in second
    log = Path(second.rsplit(" ", 1)[1])
    assert log.read_text().rstrip("\n") == said


@pytest.mark.parametrize(
    ("system", "path", "taken"),
    [
        ("3.11.2", "3.12.1", "system"),
        ("3.9.2", "3.12.1", "path"),
        (None, "3.12.1", "path"),
        ("3.11.2", None, "system"),
        ("3.9.2", "3.8.1", None),
        ("3.9.2", None, None),
        (None, None, None),
    ],
)
def test_the_systems_python_is_taken_where_it_is_new_enough(
    checkout: Checkout, tmp_path: Path, system: str | None, path: str | None, taken: str | None
) -> None:
    """It is kept up to date and every user may read it; else the one in the path. Of one that is
    too old, or missing, the version that is expected is told."""
    for name, version in (("system", system), ("path", path)):
        (tmp_path / name).mkdir()
        if version is not None:
            new = int(version.split(".")[1]) >= 11
            python = tmp_path / name / "python3"
            python.write_text(
                f'#!/bin/sh\n[ "$*" = -V ] && echo Python {version} && exit\nexit {int(not new)}\n'
            )
            python.chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("dirname", "readlink", "id"):
        found = shutil.which(tool)
        assert found
        (tools / tool).symlink_to(found)
    done = checkout.shell(
        f"system_python={tmp_path}/system/python3; require_python && base_python",
        env={"PATH": f"{tmp_path}/path:{tools}"},
    )
    if taken is not None:
        assert (done.returncode, done.stdout) == (0, f"{tmp_path}/{taken}/python3\n"), done.stderr
        return
    found = path or system
    said = "missing" if found is None else f"Python {found}"
    assert done.returncode == 1
    assert f"python3 is {said}; expected Python 3.11 or newer" in done.stderr


def test_an_installation_whose_python_is_gone_says_what_to_do(
    checkout: Checkout, tmp_path: Path
) -> None:
    """The status is one after which the service is not started again."""
    fresh = tmp_path / "fresh"
    (fresh / "bin").mkdir(parents=True)
    (fresh / "bin/capstand").write_text('#!/bin/sh\necho started "$@"\n')
    (fresh / "bin/capstand").chmod(0o755)
    base = tmp_path / "python3.11"
    base.symlink_to(sys.executable)
    made = checkout.shell(
        f". '{checkout.root}/scripts/install'\n"
        f"base_python() {{ echo '{base}'; }}; put_launcher '{fresh}'"
    )
    assert made.returncode == 0, made.stderr

    def start() -> subprocess.CompletedProcess[str]:
        command = [str(fresh / "bin/capstand"), "run", "a b"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert start().stdout == "started run a b\n"
    base.unlink()
    done = start()
    assert done.returncode == 78
    assert str(base) in done.stderr and "scripts/install" in done.stderr


def packages(environment: Path, name: str = f"python3.{sys.version_info.minor}") -> Path:
    return environment / "lib" / name / "site-packages"


def put(environment: Path, name: str, *requirements: str) -> None:
    """As if it were installed."""
    metadata = packages(environment) / f"{name}-1.dist-info"
    metadata.mkdir(parents=True)
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n"
    lines = [f"Requires-Dist: {requirement}\n" for requirement in requirements]
    (metadata / "METADATA").write_text(head + "".join(lines))


def wheel(folder: Path, name: str, pure: bool = True) -> Path:
    """With one module."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1-py3-none-any.whl"
    at = f"{name}-1.dist-info"
    files = {
        f"{name}.py": "",
        f"{at}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        f"{at}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: {str(pure).lower()}\n"
        "Tag: py3-none-any\n",
        f"{at}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    files[f"{at}/RECORD"] = "".join(f"{one},,\n" for one in (*files, f"{at}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for one, text in files.items():
            archive.writestr(one, text)
    return path


def environment(folder: Path) -> Path:
    """With pip, and capstand in it as far as its metadata go."""
    venv.create(folder, symlinks=True, with_pip=True)
    put(folder, "capstand", "numpy>=1", "from_index; extra == 'speech'")
    put(folder, "numpy")
    return folder


def keep(checkout: Checkout, old: Path, new: Path, index: Path) -> subprocess.CompletedProcess[str]:
    return checkout.shell(
        f". '{checkout.root}/scripts/install'; keep_added '{old}' '{new}'",
        env={"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)},
    )


def test_an_upgrade_keeps_what_was_added(checkout: Checkout, tmp_path: Path) -> None:
    """An extra from the package index, and what came from a file, though that is gone; not what the
    old capstand required by itself. Where that cannot be, the upgrade stops and says what to do."""
    index, own = tmp_path / "index", tmp_path / "own"
    old, new = environment(tmp_path / "old"), environment(tmp_path / "new")
    put(old, "formerly")
    metadata = packages(old) / "capstand-1.dist-info/METADATA"
    metadata.write_text(metadata.read_text() + "Requires-Dist: formerly; python_version > '3'\n")
    wheel(index, "from_index")
    path = wheel(own, "from_file")
    command = [str(old / "bin/python"), "-I", "-m", "pip", "install", "--no-index"]
    for words in (("--find-links", str(index), "from_index"), (str(path),)):
        subprocess.run([*command, *words], check=True, capture_output=True)
    assert (old / "bin/from_file").exists()
    path.unlink()

    done = keep(checkout, old, new, own)
    assert done.returncode == 1 and "capstand: nothing has been changed" in done.stderr
    assert done.stderr.endswith("\n    sudo scripts/install --without-added\n")

    done = keep(checkout, old, new, index)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "capstand: adding what was added before: from-index\n"
    for name in ("from_index", "from_file"):
        loads = [str(new / "bin/python"), "-I", "-c", f"import {name}; print({name}.__file__)"]
        found = subprocess.run(loads, check=True, capture_output=True, text=True).stdout
        assert Path(found.strip()).is_relative_to(new)
    assert not [*packages(new).glob("formerly*")] and not (new / "bin/from_file").exists()

    command[0] = str(new / "bin/python")  # as of any other package, pip knows how to remove it
    subprocess.run([*command[:-2], "uninstall", "-y", "from_file"], check=True, capture_output=True)
    assert not [*packages(new).glob("from_file*")]


@pytest.mark.parametrize("pure", [True, False])
def test_what_is_built_for_another_python_is_not_copied(tmp_path: Path, pure: bool) -> None:
    """It would not load; what is plain Python is."""
    old, new = (packages(tmp_path / name, name) for name in ("python3.11", "python3.13"))
    new.mkdir(parents=True)
    with zipfile.ZipFile(wheel(tmp_path, "own", pure)) as archive:
        archive.extractall(old)
    (old / "own-1.dist-info/direct_url.json").write_text('{"url": "file:///gone"}')
    added = [sys.executable, "-I", str(ROOT / "scripts/added.py"), str(old), str(new)]
    done = subprocess.run(added, capture_output=True, text=True, check=False)
    assert (done.returncode, (new / "own.py").exists()) == ((0, True) if pure else (1, False))
    assert done.stderr == ("" if pure else "capstand: own 1 was built for python3.11\n")


APT = """\
#!/bin/sh
mkdir "$0.busy" 2>/dev/null || exit 100  # another has dpkg's lock
sleep 0.2
for name in "$@"; do :; done
printf '#!/bin/sh\\n' >"${0%/*}/tool" && chmod 755 "${0%/*}/tool"
echo "$@" >>"$0.log"
rmdir "$0.busy"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs anything")
def test_two_that_need_the_same_tool_do_not_meet(tmp_path: Path) -> None:
    """What is made for the tests installs what it needs of the host one after the other; who comes
    second finds it there. Others that install something are waited for."""
    apt = tmp_path / "apt-get"
    apt.write_text(APT)
    apt.chmod(0o755)
    script = (
        "from tests import debian; debian.HOST_TOOLS.clear(); debian.KEYRING = debian.PROJECT; "
        "debian.install_host_tools({'tool': 'package'})"
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "CAPSTAND_CACHE": str(tmp_path / "cache")}
    some = [
        subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=env, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    said = [one.communicate()[1] for one in some]
    assert [one.returncode for one in some] == [0, 0, 0], said
    (line,) = (tmp_path / "apt-get.log").read_text().splitlines()
    assert "DPkg::Lock::Timeout=" in line and line.split()[-1] == "package"
