"""Agora's wrapper and its native library, imported once per process and behind a guard.

The wrapper (PyPI's agora-python-server-sdk) does four things while it is imported that a daemon
cannot let it do:

- It switches certificate checking off for the whole process.
- Where ``version.txt`` does not name exactly the build it wants, it runs ``rm -rf`` on its library
  through a shell, fetches another one unverified, and unpacks it over itself.
- It ends the process (``sys.exit``) where the library cannot be loaded, and hides the reason.
- It logs at ERROR what is no error; later, at DEBUG, it logs the token.

So there are two lines of defence. First :func:`check` looks at the files without running anything:
is the wrapper there, is the library there and for this machine, does ``version.txt`` name the build
that this wrapper's source names. Only then the wrapper is imported, and inside :func:`guard`:
``os.system`` and ``urlretrieve`` raise, and whatever the wrapper has changed is put back. Where the
wrapper would wipe and fetch, ``os.system`` comes first, so nothing is touched even if its source
can no longer be read by :func:`expected_build`. The guard works on names of the whole process for
about a tenth of a second; call :func:`load` before other threads use HTTPS or ``os.system``.

Whatever goes wrong is one :class:`NativeUnavailable`. A failure is remembered until one of the
files changes; then, as Python's half-made modules are forgotten, the next :func:`load` works as in
a new process, for example after ``capstand agora install``. One thing cannot be undone: a library
that the system has loaded stays, under its path, until the process ends. It matters only where a
library could be loaded but lacked a function; the text then says to restart capstand.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import io
import json
import logging
import os
import platform
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from capstand.errors import SinkError

SYSTEM = Path("/opt/capstand/agora")
RECORD = "INSTALLED.json"
NEEDED = ("libaosl.so", "libagora_rtc_sdk.so")
MACHINES = ("x86_64", "aarch64")  # what Agora makes libraries for, all of them for glibc
_ELF = {
    (2, 62): "x86_64",
    (2, 183): "aarch64",
    (2, 243): "riscv64",
    (1, 40): "32-bit ARM",
    (1, 3): "32-bit x86",
}
# All that the import of a wrapper which does not fit has been seen or can be expected to raise.
FAULTS = (
    SystemExit,
    ImportError,
    OSError,
    AttributeError,
    NameError,
    SyntaxError,
    TypeError,
    ValueError,
)


class NativeUnavailable(SinkError):
    """The wrapper or its library cannot be used: ``what`` is wrong and where, and the ``fix``."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}; {fix}")
        self.what = what
        self.fix = fix


class Native(NamedTuple):
    """What capstand uses of the wrapper, under the wrapper's own names; and what it is."""

    AgoraService: Any
    AgoraServiceConfig: Any
    RTCConnConfig: Any
    RtcConnectionPublishConfig: Any
    AreaCode: Any
    AudioProfileType: Any
    AudioPublishType: Any
    AudioScenarioType: Any
    ChannelProfileType: Any
    ClientRoleType: Any
    IRTCConnectionObserver: Any
    IRTCLocalUserObserver: Any
    send: Any  # agora_audio_pcm_data_sender_send, by ctypes
    folder: Path
    version: str  # the wrapper's
    build: str  # the native library's, as Agora names its archive


class ExpectedBuild(NamedTuple):
    """What a wrapper's source says about its native library for this machine."""

    url: str
    md5: str


def folders() -> list[Path]:
    """Where the wrapper is looked for, whether it is there or not; the first that has it is taken.

    A folder holds the package ``agora``, as ``capstand agora install`` makes it.
    """
    if given := os.environ.get("CAPSTAND_AGORA"):
        return [Path(given)]
    found = [SYSTEM]
    with contextlib.suppress(RuntimeError):  # a service without a home
        found.append(user_folder())
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec("agora")
        if spec and spec.origin:  # a namespace package, as a failed pip leaves it, has no origin
            package = Path(spec.origin).parent
            if (package / "agora_sdk").is_dir() and package.parent not in found:
                found.append(package.parent)
    return found


def user_folder() -> Path:
    """Where a user without root's rights keeps it; raises RuntimeError where there is no home."""
    own = os.environ.get("XDG_DATA_HOME")
    return (Path(own) if own else Path.home() / ".local/share") / "capstand/agora"


def load() -> Native:
    """The wrapper, imported at the first call; raises NativeUnavailable."""
    with _once.lock:
        if _once.native is None:
            places = folders()
            marks = [_mark(place) for place in places]
            if _once.refused is not None and _once.marks == (places, marks):
                raise NativeUnavailable(_once.refused.what, _once.refused.fix)
            try:
                _once.native = _load(places)
            except NativeUnavailable as error:
                _once.refused, _once.marks = error, (places, marks)
                raise
        return _once.native


class _Once:
    """What this process has found out: the wrapper, or why not and from which files."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.native: Native | None = None
        self.refused: NativeUnavailable | None = None
        self.marks: object = None


_once = _Once()


def _mark(folder: Path) -> list[tuple[int, int, int] | None]:
    """Another one after every change of the files that :func:`check` looks at."""
    marks: list[tuple[int, int, int] | None] = []
    for name in ("__init__.py", "version.txt", *(f"agora_sdk/{one}" for one in NEEDED)):
        try:
            now = (folder / "agora" / name).stat()
            marks.append((now.st_ino, now.st_mtime_ns, now.st_size))
        except OSError:
            marks.append(None)
    return marks


def _load(places: list[Path]) -> Native:
    check_platform()
    there = [place for place in places if _is_file(place / "agora/__init__.py")]
    if not there:
        looked = ", ".join(map(str, places))
        raise NativeUnavailable(
            f"Agora's wrapper is missing; looked for the package agora in {looked}", _fix(places[0])
        )
    folder = there[0]
    check(folder)
    unload()
    sys.path.insert(0, str(folder))
    try:
        with guard():
            service = importlib.import_module("agora.rtc.agora_service")
            importlib.import_module("agora.rtc.rtc_connection")
            base = importlib.import_module("agora.rtc.agora_base")
            connection = importlib.import_module("agora.rtc.rtc_connection_observer")
            user = importlib.import_module("agora.rtc.local_user_observer")
            sender = importlib.import_module("agora.rtc.audio_pcm_data_sender")
            return Native(
                service.AgoraService,
                base.AgoraServiceConfig,
                base.RTCConnConfig,
                base.RtcConnectionPublishConfig,
                base.AreaCode,
                base.AudioProfileType,
                base.AudioPublishType,
                base.AudioScenarioType,
                base.ChannelProfileType,
                base.ClientRoleType,
                connection.IRTCConnectionObserver,
                user.IRTCLocalUserObserver,
                sender.agora_audio_pcm_data_sender_send,
                folder,
                _version(folder),
                build(_url(folder)),
            )
    except FAULTS as error:
        unload()
        raise _explained(folder, error) from error
    finally:
        sys.path.remove(str(folder))


def unload() -> None:
    """Takes the package out of Python's memory, half made or not."""
    for name in list(sys.modules):
        if name == "agora" or name.startswith("agora."):
            del sys.modules[name]
    importlib.invalidate_caches()


@contextlib.contextmanager
def guard(retrieve: Callable[..., object] | None = None) -> Iterator[None]:
    """Inside, the wrapper may be imported; afterwards Python's own settings are as they were.

    A shell command raises OSError, and so does a download. With ``retrieve``, which then takes the
    place of ``urlretrieve``, the wrapper may fetch its library, but it cannot load it: that raises
    OSError instead.
    """
    # Both take longer to load than the start of a service should wait for.
    import ssl
    import urllib.request

    logger = logging.getLogger("agora")
    names: list[tuple[Any, str]] = [
        (ssl, "_create_default_https_context"),
        (urllib.request, "urlretrieve"),
        (os, "system"),
        (ctypes, "CDLL"),
    ]
    kept = [(module, name, getattr(module, name)) for module, name in names]
    try:
        # For good: what it says in errors the results say too, and in DEBUG it would print tokens.
        logger.setLevel(logging.CRITICAL + 1)
        setattr(*names[1], retrieve or _refuse)
        setattr(*names[2], _refuse)
        if retrieve is not None:
            setattr(*names[3], _refuse)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


class _Refused(OSError):
    """The wrapper wanted to wipe or to fetch its library."""


def _refuse(*given: object, **named: object) -> NoReturn:
    raise _Refused(f"refused: {given[0] if given else named}")


def check_platform() -> None:
    """Raises NativeUnavailable where Agora has no library for this system."""
    if machine() not in MACHINES:
        raise NativeUnavailable(
            f"Agora has no library for {machine()}",
            f"use a 64-bit system ({' or '.join(MACHINES)})",
        )
    try:
        glibc = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        glibc = None
    if not glibc:
        raise NativeUnavailable(
            "Agora's library needs glibc, and this system has another C library",
            "use Debian, Raspberry Pi OS or another system with glibc",
        )


def machine() -> str:
    """The machine that libraries must be for: with a 32-bit Python not what the kernel says."""
    name = platform.machine()
    if sys.maxsize < 2**32:
        return {"aarch64": "armv7l", "x86_64": "i686"}.get(name, name)
    return name


def check(folder: Path) -> None:
    """All that can be found out without running anything of it; raises NativeUnavailable."""
    check_platform()
    package = folder / "agora"
    libraries = package / "agora_sdk"
    try:
        if not (package / "__init__.py").is_file():
            raise NativeUnavailable(f"Agora's wrapper is missing: {package}", _fix(folder))
        for name in NEEDED:
            if not (libraries / name).is_file():
                raise NativeUnavailable(
                    f"Agora's library is missing: {libraries / name}", _fix(folder)
                )
        for path in sorted(libraries.glob("*.so")):
            if (found := _elf(path)) != machine():
                raise NativeUnavailable(
                    f"Agora's library is for {found}, this machine is {machine()}: {path}",
                    _fix(folder),
                )
            if not _whole(path):
                raise NativeUnavailable(f"Agora's library is truncated: {path}", _fix(folder))
        wanted, present = expected_build(folder), _url(folder)
    except OSError as error:
        raise NativeUnavailable(
            f"Agora's library cannot be read: {error.filename}: {error.strerror}", _fix(folder)
        ) from error
    # The wrapper compares like this, and would wipe and fetch.
    if wanted is not None and wanted.url != present:
        raise NativeUnavailable(
            f"Agora's library is not the build that the wrapper expects: {package / 'version.txt'}"
            f" names {build(present) or 'none'}, the wrapper {build(wanted.url)}",
            _fix(folder),
        )


def expected_build(folder: Path) -> ExpectedBuild | None:
    """What the wrapper's source names for this machine, found by reading, not by running it.

    None where it is written in a way not foreseen here; raises OSError.
    """
    import ast

    try:
        tree = ast.parse((folder / "agora/__init__.py").read_bytes())
    except (SyntaxError, ValueError):
        return None
    known = {"arch": machine(), "sys.platform": sys.platform}

    def text(node: ast.expr) -> str | None:
        match node:
            case ast.Constant(value=str(value)):
                return value
            case ast.Name() | ast.Attribute():
                return known.get(ast.unparse(node))
        return None

    def holds(test: ast.expr) -> bool | None:
        """None where the test is about something else than this machine."""
        match test:
            case ast.BoolOp(op=ast.And(), values=values):
                parts = [holds(value) for value in values]
                return None if None in parts else all(parts)
            case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
                one, other = text(left), text(right)
                return None if one is None or other is None else one == other
        return None

    def follow(body: list[ast.stmt]) -> bool:
        """Runs assignments and tests of the machine; false at the first other test."""
        for step in body:
            match step:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    if (found := text(value)) is not None:
                        known[name] = found
                    elif name != "arch":  # arch = platform.machine()
                        known.pop(name, None)
                case ast.If(test=test, body=yes, orelse=no):
                    taken = holds(test)
                    if taken is None or not follow(yes if taken else no):
                        return False
        return True

    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and "download" in node.name:
            follow(node.body)
            if known.get("url", "").startswith("http"):
                return ExpectedBuild(known["url"], known.get("rtc_md5", ""))
    return None


def build(url: str) -> str:
    """The name of a native build: the archive's, without its ending."""
    return url.rsplit("/", 1)[-1].strip().removesuffix(".zip")


def _url(folder: Path) -> str:
    """The first line of version.txt as the wrapper reads it, with its end; "" without the file."""
    path = folder / "agora/version.txt"
    if not path.exists():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline()


def _version(folder: Path) -> str:
    """The wrapper's version, as its installer wrote it down; "unknown" where none did."""
    try:
        return str(json.loads((folder / RECORD).read_bytes())["wrapper"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    for pattern in ("PKG-INFO", "agora_python_server_sdk*.*-info/METADATA", "*.egg-info/PKG-INFO"):
        for path in folder.glob(pattern):
            text = path.read_text(encoding="utf-8", errors="replace")
            name = re.search(r"^Name: agora[-_.]python[-_.]server[-_.]sdk$", text, re.M | re.I)
            if name and (found := re.search(r"^Version: (\S+)$", text, re.M)):
                return found[1]
    return "unknown"


def _elf(path: Path) -> str:
    """The machine an ELF file is for; raises OSError."""
    with path.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return "no machine (it is not an ELF file)"
    (number,) = struct.unpack_from("<H" if head[5] == 1 else ">H", head, 18)
    return _ELF.get((head[4], number), f"another machine (ELF machine {number})")


def _whole(path: Path) -> bool:
    """Does a 64-bit ELF file hold all it says is to be loaded? Loading half a file is SIGBUS."""
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64:
            return False
        (start,) = struct.unpack_from("<Q", head, 32)
        length, count = struct.unpack_from("<HH", head, 54)
        file.seek(start)
        segments = file.read(length * count)
        size = file.seek(0, os.SEEK_END)
    if len(segments) < length * count or (count and length < 40):
        return False
    ends = (struct.unpack_from("<QQQQ", segments, i * length + 8) for i in range(count))
    return all(offset + present <= size for offset, _, _, present in ends)


def _explained(folder: Path, error: BaseException) -> NativeUnavailable:
    """What the import ran into; SystemExit hides the cause as its context."""
    cause = error.__context__ if isinstance(error, SystemExit) else None
    text = " ".join(str(cause or error).split())
    if isinstance(error, _Refused):
        return NativeUnavailable(
            f"Agora's wrapper wanted to replace its library: {folder}: {text}", _fix(folder)
        )
    if lacking := re.search(r"undefined symbol: (\w+)", text):
        return NativeUnavailable(
            f"Agora's library lacks {lacking[1]}, so its version does not match the wrapper:"
            f" {folder / 'agora/agora_sdk'}",
            f"{_fix(folder)}, then restart capstand",
        )
    if isinstance(cause or error, OSError):
        return NativeUnavailable(
            f"Agora's library cannot be loaded: {folder / 'agora/agora_sdk'}: {text}", _fix(folder)
        )
    kind = type(cause or error).__name__
    return NativeUnavailable(
        f"Agora's wrapper cannot be imported: {folder / 'agora'}: {kind}: {text}", _fix(folder)
    )


def _fix(folder: Path) -> str:
    if os.environ.get("CAPSTAND_AGORA"):
        return f"run: capstand agora install --into {folder}"
    with contextlib.suppress(RuntimeError):
        if folder == user_folder():
            return "run: capstand agora install"
    return "run: sudo capstand agora install"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder above it that may not be entered
        return False
