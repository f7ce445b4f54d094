"""``capstand agora install``: Agora's wrapper and native library, fetched once and on purpose.

The daemon never fetches anything. This does, step by step, in a folder beside the target:

1. pip fetches the wrapper's source distribution, pinned by version and SHA-256; pip compares the
   sum before it looks inside. pip then insists on asking the package's build backend for its name
   and version. It is given a backend of four lines instead of setuptools: so the wrapper's setup.py
   never runs, and nothing else is fetched. Only the package ``agora`` is unpacked.
2. A process of its own imports the wrapper, which fetches its native library by its own means; but
   ``urlretrieve`` is one that stays on HTTPS, checks the certificate, and looks into the archive
   before the wrapper unpacks it.
3. The result is verified: the libraries are for this machine, the wrapper's functions are all in
   them. For that a fresh process loads them, under root with the rights of an ordinary user.
4. What was fetched is written down in INSTALLED.json with all its sums, and the folder takes the
   place of the old one by a rename. Until then the old one is untouched.

What cannot be verified is the native library itself: Agora publishes no signature. The wrapper's
source names an MD5 sum, but the wrapper no longer compares it (its authors went over to comparing
addresses), so it may be out of date: a difference is told, and is no error.
"""

import ast
import contextlib
import datetime
import hashlib
import http.client
import importlib
import json
import os
import platform
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from capstand.agora.sdk import native
from capstand.errors import CapstandError
from capstand.host import rights

WRAPPER = "agora-python-server-sdk"
VERSION = "2.4.10"
SDIST_SHA256 = "f02cae825be2986435ef5b9a0ab3de30eaa9bf692a9be37a3f5f90fe338788cd"
TERMS = (
    "note: the native library is Agora's property and comes under Agora's terms, not capstand's"
    " licence; it is fetched from Agora"
)
TIMEOUT_S = 30.0  # without a byte
TELL_EVERY_S = 5.0
_MB = 1_000_000
_BACKEND = f"""\
from pathlib import Path
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    made = Path(folder, "{WRAPPER.replace("-", "_")}-{VERSION}.dist-info")
    made.mkdir()
    text = "Metadata-Version: 2.1\\nName: {WRAPPER}\\nVersion: {VERSION}\\n"
    (made / "METADATA").write_text(text)
    return made.name
"""

Tell = Callable[[str], None]


class InstallError(CapstandError):
    """It could not be installed; what was there before is as it was."""


def default_folder() -> Path:
    """Where the daemon looks, and this user may write."""
    return native.SYSTEM if os.geteuid() == 0 else native.user_folder()


def install(folder: Path, tell: Tell, *, again: bool = False) -> None:
    """Puts wrapper and library into ``folder``; nothing is fetched if they are there and right.

    ``again`` fetches in any case. Raises InstallError, and NativeUnavailable where Agora has no
    library for this system; then the folder is as it was.
    """
    native.check_platform()
    folder = folder.expanduser().absolute()
    rights.refuse_others(folder, "capstand agora install --into DIR")
    folder = Path(os.path.realpath(folder))
    try:
        old = _old(folder)
        if not again and (folder / native.RECORD).is_file():
            fault = _fault(folder)
            if fault is None:
                tell(f"already installed and valid: {_summary(folder)}")
                return
            tell(f"{folder} must be reinstalled: {fault}")
        _make_parents(folder)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
            tree = _build(Path(work), tell)
            os.sync()  # a power cut after the rename finds the contents on the disk
            _swap(tree, folder, old)
    except PermissionError as error:
        raise InstallError(
            f"{folder} cannot be written: {error.strerror}; run: sudo capstand agora install, or"
            " choose your own folder with --into"
        ) from error
    except OSError as error:
        raise InstallError(f"{error.filename or folder}: {error.strerror or error}") from error
    except KeyboardInterrupt:
        raise InstallError("interrupted; nothing was changed") from None
    tell(f"installed: {_summary(folder)}")
    if folder == native.SYSTEM:
        tell("next: sudo systemctl restart capstand")
    elif folder not in native.folders():
        tell(f"next: start capstand with CAPSTAND_AGORA={folder} in its environment")
    else:
        tell("next: restart capstand")


def _build(work: Path, tell: Tell) -> Path:
    """The complete, verified folder, inside ``work``."""
    tree = work / "tree"
    tree.mkdir()
    tell(TERMS)
    tell(f"fetching the wrapper, {WRAPPER} {VERSION}")
    _unpack(_sdist(work), tree)
    _own_process(work, tell, "fetch", tree, work / "fetched.json")
    fetched = json.loads((work / "fetched.json").read_bytes())
    tell("checking it")
    try:
        native.check(tree)
    except native.NativeUnavailable as error:
        raise _unfit(error, tree) from error
    for path in (tree, *tree.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)  # for the service's user, whatever the umask
    _own_process(work, tell, "load", tree)
    library = tree / "agora/agora_sdk" / native.NEEDED[-1]
    promised = native.expected_build(tree)
    expected = promised.md5 if promised else ""
    found = _sum(library, hashlib.md5(usedforsecurity=False))
    if expected and found != expected:
        tell(
            f"warning: {library.name} has the MD5 sum {found}; the wrapper's source names"
            f" {expected} but does not compare it"
        )
    record = {
        "wrapper": VERSION,
        "wrapper_sha256": SDIST_SHA256,
        **fetched,
        "library_sha256": _sum(library, hashlib.sha256()),
        "md5_expected": expected,
        "md5_found": found,
        "contents_sha256": _contents(tree),
        "machine": native.machine(),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    (tree / native.RECORD).write_text(json.dumps(record, indent=2) + "\n")
    (tree / native.RECORD).chmod(0o644)
    return tree


# The wrapper


def _sdist(work: Path) -> Path:
    """The source distribution with the right sum; raises InstallError."""
    backend = work / "backend/setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(_BACKEND)
    wanted = work / "wanted.txt"
    wanted.write_text(f"{WRAPPER}=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
    command = [sys.executable, "-I", "-m", "pip", "--isolated", "download", "--quiet", "--no-input"]
    command += ["--no-deps", *_pip_options()]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--no-build-isolation"]
    command += ["--no-binary", WRAPPER, "--dest", str(work / "sdist"), "-r", str(wanted)]
    done = subprocess.run(
        command,
        env=_environment() | {"PYTHONPATH": str(backend.parent)},  # for what pip itself starts
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise InstallError(_pip_said(done.stderr))
    (path,) = (work / "sdist").iterdir()
    if (found := _sum(path, hashlib.sha256())) != SDIST_SHA256:
        raise InstallError(f"{path.name} has an unexpected checksum: SHA-256 {found}")
    return path


def _environment() -> dict[str, str]:
    """Without what would bring other code into Python or pip."""
    kept = os.environ.items()
    return {name: value for name, value in kept if not name.startswith(("PYTHON", "PIP_", "LD_"))}


def _pip_options() -> list[str]:
    """Where packages come from may be said in pip's own way; what pip does with them may not."""
    options = []
    for name in ("index-url", "extra-index-url", "find-links", "trusted-host", "cert", "proxy"):
        for value in os.environ.get(f"PIP_{name.replace('-', '_').upper()}", "").split():
            options += [f"--{name}", value]
    if os.environ.get("PIP_NO_INDEX", "0").lower() not in ("0", "false", "no", "off", "n", "f", ""):
        options.append("--no-index")
    return options


def _pip_said(text: str) -> str:
    """pip's errors as one line for a person."""
    if "No module named pip" in text:
        return f"{sys.executable} has no pip to download the wrapper; run ensurepip"
    if "DO NOT MATCH THE HASHES" in text:
        found = [line.split()[-1] for line in text.splitlines() if line.split()[:1] == ["Got"]]
        return (
            f"{WRAPPER} {VERSION} has an unexpected checksum and was not opened:"
            f" SHA-256 {' '.join(found)}, expected {SDIST_SHA256}"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")] or lines[-1:]
    return f"pip could not fetch {WRAPPER} {VERSION} (is the network up?): {' '.join(errors)}"


def _unpack(sdist: Path, tree: Path) -> None:
    """The package ``agora`` of the distribution, and nothing else, into ``tree``."""
    with tarfile.open(sdist) as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            inside = PurePosixPath(*name.parts[1:])
            if not member.isfile() or inside.parts[:1] != ("agora",):
                continue
            if name.is_absolute() or ".." in name.parts:
                raise InstallError(f"{sdist.name} holds {name}, which would lead out of its folder")
            content = archive.extractfile(member)
            assert content is not None
            (tree / inside).parent.mkdir(parents=True, exist_ok=True)
            (tree / inside).write_bytes(content.read())


# The native library: these run in a process of their own


def _own_process(work: Path, tell: Tell, *arguments: object) -> None:
    """One of the two below; its lines are told, its error is raised as InstallError."""
    command = [sys.executable, "-I", "-m", "capstand.agora.sdk.install", *map(str, arguments)]
    with (work / "errors").open("w+") as errors:
        with subprocess.Popen(
            command,
            env=_environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                tell(line.rstrip())
        if process.returncode == 0:
            return
        errors.seek(0)
        said = errors.read().splitlines()
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise InstallError(f"Agora's library crashes when it is loaded ({name})")
    raise InstallError(said[-1] if said else f"exit status {process.returncode}, no message")


def _load(tree: Path) -> None:
    """Are all functions there? Raises InstallError.

    Loading runs what is in the library. Root gives up its rights before; the way to the folder,
    which may lead through one of root's, is opened before that.
    """
    if os.geteuid() == 0:
        _preload(tree)
        opened = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
        rights.switch_to(rights.unprivileged_user())
        tree = Path(f"/proc/self/fd/{opened}")
    os.environ["CAPSTAND_AGORA"] = str(tree)
    try:
        native.load()
    except native.NativeUnavailable as error:
        raise _unfit(error, tree) from error


def _preload(tree: Path) -> None:
    """What the wrapper takes of Python's own, and native of it, while a Python that is root's alone
    can still be read."""
    for path in (*tree.rglob("*.py"), Path(native.__file__)):
        try:
            nodes = list(ast.walk(ast.parse(path.read_bytes())))
        except (SyntaxError, ValueError):
            continue  # loading it will tell
        names = [one.name for node in nodes if isinstance(node, ast.Import) for one in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        for name in names:
            if name.partition(".")[0] in sys.stdlib_module_names:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)


def _unfit(error: native.NativeUnavailable, tree: Path) -> InstallError:
    return InstallError(f"this library cannot be used: {error.what.replace(f'{tree}/', '')}")


def _fetch(tree: Path, report: Path) -> None:
    """Lets the wrapper fetch its library; what came is written to ``report``."""
    out = sys.stdout  # the guard takes the wrapper's own chatter away

    def tell(line: str) -> None:
        print(line, file=out, flush=True)

    def retrieve(url: str, target: str, reporthook: object = None) -> None:
        fetched = _download(url, Path(target), tell)
        _look_into(Path(target), tree / "agora")
        report.write_text(json.dumps(fetched))

    sys.path.insert(0, str(tree))
    try:
        with native.guard(retrieve):
            importlib.import_module("agora")
    except (*native.FAULTS, zipfile.BadZipFile, RuntimeError) as error:
        # Having unpacked, it is stopped before it loads what has not been looked at yet.
        if not (tree / "agora/version.txt").is_file():
            raise InstallError(f"the wrapper could not fetch its library: {error}") from error
    if not report.is_file():
        raise InstallError("the wrapper downloaded nothing")


class _StayOnHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _need_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _need_https(url: str) -> None:
    if not url.startswith("https://"):
        raise InstallError(f"{url} is not HTTPS; nothing was downloaded from it")


def _download(url: str, target: Path, tell: Tell) -> dict[str, object]:
    """``url`` into ``target``, and what came; raises InstallError."""
    _need_https(url)
    host = url.split("/")[2]
    context = ssl.create_default_context()
    opener = urllib.request.build_opener(_StayOnHttps, urllib.request.HTTPSHandler(context=context))
    digest = hashlib.sha256()
    done = 0
    told = time.monotonic()
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer, target.open("wb") as file:
            size = int(answer.headers.get("Content-Length") or 0)
            length = f"{size / _MB:.1f} MB" if size else "unknown length"
            tell(f"fetching Agora's library for {native.machine()}: {native.build(url)}, {length}")
            while chunk := answer.read(1 << 18):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if time.monotonic() - told >= TELL_EVERY_S:
                    told = time.monotonic()
                    tell(f"  {done / _MB:.1f} MB of {length}")
    except urllib.error.HTTPError as error:
        raise InstallError(f"{host} answers {error.code} {error.reason} for {url}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise InstallError(
                f"the certificate of {host} cannot be trusted ({reason.verify_message}); nothing"
                " was fetched. Behind a proxy that replaces certificates, SSL_CERT_FILE names the"
                " file with the right ones"
            ) from error
        when = f"disconnected after {done / _MB:.1f} MB" if done else "is unreachable"
        raise InstallError(f"{host} {when}: {reason or type(error).__name__}") from error
    if size and done != size:
        raise InstallError(f"{host} disconnected after {done} of {size} bytes; try again")
    return {
        "native": native.build(url),
        "native_url": url,
        "zip_sha256": digest.hexdigest(),
        "zip_bytes": done,
    }


def _look_into(archive: Path, package: Path) -> None:
    """Is it whole, and harmless when unpacked into ``package``? Raises InstallError."""
    try:
        with zipfile.ZipFile(archive) as inside:
            members = inside.infolist()
            for member in members:
                name = PurePosixPath(member.filename)
                link = stat.S_ISLNK(member.external_attr >> 16)
                target = inside.read(member).decode(errors="replace") if link else ""
                paths = (name, PurePosixPath(target))
                if any(path.is_absolute() or ".." in path.parts for path in paths):
                    raise InstallError(
                        f"Agora's archive holds {name}, which leads out of its folder"
                    )
                if not member.is_dir() and (package / name).exists():
                    raise InstallError(f"Agora's archive would replace the wrapper's own {name}")
    except zipfile.BadZipFile as error:
        raise InstallError(f"the download is not a valid archive: {error}") from error
    need = sum(member.file_size for member in members)
    free = shutil.disk_usage(package).free
    if need > free:
        raise InstallError(
            f"the unpacked library takes {need / _MB:.0f} MB, and {free / _MB:.0f} MB are free"
        )


# Folders


def _old(folder: Path) -> Path:
    """Where the old one is kept during the exchange; one that was interrupted is undone first.

    Raises InstallError where ``folder`` holds anything else than an installation.
    """
    old = folder.with_name(f"{folder.name}.old") if folder.name else folder
    for one in (folder, old):
        if one.exists() and not one.is_dir():
            raise InstallError(f"{one} is not a folder")
        strange = {path.name for path in one.iterdir()} if one.exists() else set()
        if strange := strange - {"agora", native.RECORD}:
            raise InstallError(
                f"{one} contains something else, {min(strange)}; choose an empty or a new folder"
            )
    if old.exists():
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)
    return old


def _make_parents(folder: Path) -> None:
    for parent in reversed(folder.parents):
        if not parent.exists():
            parent.mkdir()
            parent.chmod(0o755)


def _swap(tree: Path, folder: Path, old: Path) -> None:
    if folder.exists():
        folder.rename(old)
    try:
        tree.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _fault(folder: Path) -> str | None:
    """Why an installation is not right; None where it is."""
    try:
        record = json.loads((folder / native.RECORD).read_bytes())
        if record["wrapper_sha256"] != SDIST_SHA256:
            return f"the wrapper is {record['wrapper']}, this capstand wants {VERSION}"
        native.check(folder)
        if record["contents_sha256"] != _contents(folder):
            return "its files were changed after the installation"
        with tempfile.TemporaryDirectory() as work:
            _own_process(Path(work), lambda line: None, "load", folder)
    except native.NativeUnavailable as error:
        return error.what
    except InstallError as error:
        return str(error)
    except (ValueError, KeyError, TypeError) as error:
        return f"{native.RECORD} is damaged: {error!r}"
    return None


def _summary(folder: Path) -> str:
    record = json.loads((folder / native.RECORD).read_bytes())
    return f"wrapper {record['wrapper']}, library {record['native']}, in {folder}"


def _contents(folder: Path) -> str:
    """One sum over the names and contents of all files but Python's caches and the record."""
    total = hashlib.sha256()
    for path in sorted((folder / "agora").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(folder)}\0{_sum(path, hashlib.sha256())}\n".encode())
    return total.hexdigest()


def _sum(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return str(digest.hexdigest())


def _main(step: str, *arguments: str) -> int:
    try:
        if step == "fetch":
            _fetch(*map(Path, arguments))
        else:
            _load(*map(Path, arguments))
    except CapstandError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(_main(*sys.argv[1:]))
    sys.exit(130)
