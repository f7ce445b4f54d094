"""A Debian system in a folder, made the way this host reaches its archive and its package index.

For the guest's image (tests/guest/build) and for the other release (tests/release), which run as
the host's own python3. Needs root on a Debian or Ubuntu host; what is missing there is installed.
"""

from __future__ import annotations

import configparser
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
CONSTRAINTS = PROJECT / "scripts/constraints.txt"
RELEASES = ("bookworm", "trixie")  # of Debian, that capstand runs on
HOST_TOOLS = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux"}  # command: Debian package
OTHERS_S = 600
"""So long another installation, such as that of a new machine's updates, is waited for."""
APART = ["unshare", "--mount", "--propagation", "private", "--kill-child"]
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CLEAN = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "TMPDIR": "/tmp",
}


def say(text: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def run(
    *command: str | Path, env: dict[str, str] | None = None, stdin: bytes | None = None
) -> None:
    """Runs a command with its output on stderr: stdout belongs to the answer, the folder's name."""
    subprocess.run(command, check=True, stdout=sys.stderr, env=env, input=stdin)


def cache() -> Path:
    """Where what takes minutes to make is kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CAPSTAND_CACHE") or Path(home) / "capstand")


def install_host_tools(tools: dict[str, str]) -> None:
    """Waits for whoever else installs something, of ours or not."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install(HOST_TOOLS | tools)


def _install(tools: dict[str, str]) -> None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = sorted(
        {package for tool, package in tools.items() if not shutil.which(tool, path=path)}
    )
    if not KEYRING.exists():
        missing.append("debian-archive-keyring")
    if missing and os.geteuid() != 0:
        raise SystemExit(f"apt-get install {' '.join(missing)} first, or run as root")
    if missing:
        say(f"installing {' '.join(missing)}")
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        wait = ["-o", f"DPkg::Lock::Timeout={OTHERS_S}"]
        install = ["apt-get", "install", "-y", "-q", *wait, "--no-install-recommends", *missing]
        if subprocess.run(install, stdout=sys.stderr, env=quiet, check=False).returncode:
            subprocess.run(["apt-get", "update", "-q"], stdout=sys.stderr, env=quiet, check=False)
            run(*install, env=quiet)


def sources(suite: str) -> list[str]:
    """The host's own apt sources for this release of Debian, which are those it has for any of
    them; none if it has none (mmdebstrap then has a default).
    """
    found: list[str] = []
    folder = Path("/etc/apt")
    for file in [folder / "sources.list", *sorted(folder.glob("sources.list.d/*"))]:
        if file.suffix == ".list" and file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            found += [line for line in lines if re.match(r"deb\s.*/debian\S*\s.*\bmain\b", line)]
        elif file.suffix == ".sources" and file.is_file():
            text = re.sub(r"(?m)^#.*\n?", "", file.read_text(encoding="utf-8"))
            for stanza in re.split(r"\n\s*\n", text):
                field = dict(re.findall(r"(?m)^([\w-]+):\s*(.*(?:\n\s+.*)*)", stanza))
                if (
                    field.get("Enabled", "yes") == "no"
                    or "deb" not in field.get("Types", "").split()
                ):
                    continue
                if "main" not in field.get("Components", "").split():
                    continue
                key = field.get("Signed-By", "")
                option = f"[signed-by={key}] " if key.startswith("/") else ""
                found += [
                    f"deb {option}{uri} {of} main"
                    for uri in field.get("URIs", "").split()
                    for of in field.get("Suites", "").split()
                    if "/debian" in uri
                ]
    names = rf"\s({'|'.join(RELEASES)})(-\S*)?\s"
    here = [line for line in found if re.search(names, line)]
    return list(dict.fromkeys(re.sub(names, rf" {suite}\2 ", line) for line in here))


def apt_options() -> list[str]:
    """How the host's apt reaches its archive (proxy, certificates, credentials, tolerated dates),
    for mmdebstrap.
    """
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    ways = re.findall(
        r"(?mi)^(?:Acquire::(?:https?::|Check-|Retries|Force)\S* \"[^\"].*\");$", dump
    )
    ways += [
        f'Dir::Etc::netrc "{Path("/etc/apt/auth.conf")}"',
        'Dir::Etc::netrcparts "/etc/apt/auth.conf.d"',
    ]
    return [f"--aptopt={way.rstrip(';')}" for way in ways]


def make_root(suite: str, root: Path, packages: Iterable[str], *options: str) -> None:
    """A minimal Debian with these packages; more options are mmdebstrap's."""
    lines = sources(suite)
    run(
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        "--dpkgopt=force-unsafe-io",  # a power cut ends the building anyway
        *options,
        *apt_options(),
        suite,
        root,
        *(["-"] if lines else []),
        stdin="".join(f"{line}\n" for line in lines).encode(),
    )


def host_pip_configuration() -> tuple[configparser.RawConfigParser, dict[str, str]]:
    """The host's pip settings, merged in pip's order of precedence, and the environment that
    concerns pip.
    """
    home = Path.home()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        config / "pip/pip.conf",
    ]
    if named := os.environ.get("PIP_CONFIG_FILE"):
        files.append(Path(named))
    merged = configparser.RawConfigParser()
    merged.read(files, encoding="utf-8")
    concerns = re.compile(
        r"PIP_(?!CONFIG_FILE|CONSTRAINT|BUILD_CONSTRAINT)\w+|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|(https?|no|all)_proxy",
        re.I,
    )
    return merged, {name: value for name, value in os.environ.items() if concerns.fullmatch(name)}


def named_places(merged: configparser.RawConfigParser, environment: dict[str, str]) -> list[Path]:
    """The files and folders of the host that its pip configuration names."""
    values = [value for section in merged.sections() for _, value in merged.items(section)]
    places: set[Path] = set()
    for word in " ".join([*values, *environment.values()]).split():
        place = Path(word.removeprefix("file://"))
        if place.is_absolute() and place.exists():
            # The pages of an index in a folder point to files beside that folder.
            beside = word.startswith("file://") and place.is_dir() and len(place.parts) > 2
            places.add(place.parent if beside else place)
    return sorted(places)


def enter(root: Path) -> dict[str, str]:
    """Makes root's chroot reach the host's package index; returns the environment for it.

    For a process in a mount namespace of its own (APART): host folders are mounted into root, and
    whoever deletes root afterwards must not see them there.
    """
    run("mount", "--bind", root, root)  # what runs in it may have mounts of its own: `unshare -m`
    merged, environment = host_pip_configuration()
    with (root / "etc/pip.conf").open("w", encoding="utf-8") as file:
        merged.write(file)
    for name in ("etc/resolv.conf", "etc/hosts", "etc/nsswitch.conf", "root/.netrc"):
        if (source := Path("/") / name).is_file():
            (root / name).unlink(missing_ok=True)
            shutil.copyfile(source, root / name)
    for folder in ("proc", "dev", "sys"):
        run("mount", "--rbind", f"/{folder}", root / folder)
    run("mount", "-t", "tmpfs", "tmpfs", root / "tmp")
    for place in named_places(merged, environment):
        inside = root / place.relative_to("/")
        if not inside.exists():
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.mkdir() if place.is_dir() else inside.touch()
        run("mount", "--bind", place, inside)
        run("mount", "-o", "remount,bind,ro", inside)
    return CLEAN | environment
