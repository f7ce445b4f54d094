"""Agora without Agora: its real Python wrapper on a stand-in for its native library.

`standin.c` takes the place of the proprietary libagora_rtc_sdk.so and says in its head what it
models, which commands it knows and what it cannot prove. The wrapper (agora-python-server-sdk) is
fetched once as a source distribution and lets itself be told that the stand-in is its download.

The SDK allows one service per process, so every scenario is a function of a test module that runs
in a process of its own; the test reads the stand-in's log of what reached the native side:

    def scenario(channel: str) -> int:
        service = load().agora_service.AgoraService()
        ...

    def test_joins(standin: StandIn) -> None:
        assert run(scenario, standin, "room", script="set connect_ms 10") == 0
        assert standin.names()[-1] == "agora_rtc_conn_connect"
        assert standin.violations() == []

A test of a daemon gives it `standin.env` and steers the stand-in with `standin.command()`.
"""

from __future__ import annotations

import compileall
import ctypes
import errno
import fcntl
import functools
import hashlib
import importlib
import json
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from tests.patience import PATIENCE_S

WRAPPER = "2.4.10"

_SHA256 = "f02cae825be2986435ef5b9a0ab3de30eaa9bf692a9be37a3f5f90fe338788cd"
_ARCHIVE = f"agora_python_server_sdk-{WRAPPER}.tar.gz"
_SOURCE = Path(__file__).with_name("standin.c")
_ROOT = Path(__file__).parents[2]
_CACHE = Path.home() / ".cache" / "capstand"
_FLAGS = ["-shared", "-fPIC", "-pthread", "-O2", "-Wall", "-Wextra", "-Werror"]
_RECORD = struct.Struct("<qqIIIIIiQ")
_MACHINES = {"x86_64": 62, "aarch64": 183, "armv7l": 40}
bare = False
"""Whether this process uses the wrapper without capstand."""

# The wrapper finds no library, "downloads" it, and writes its own version.txt.
_PLACE = """
import sys, urllib.request, zipfile
folder, library, aosl = sys.argv[1:]
def urlretrieve(url, path, reporthook=None):
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(library, "agora_sdk/libagora_rtc_sdk.so")
        archive.write(aosl, "agora_sdk/libaosl.so")
urllib.request.urlretrieve = urlretrieve
sys.path.insert(0, folder)
import agora
"""

# A scenario of the bare wrapper may leave its SDK calling back, which Python would not outlive.
_RUN = """
import importlib, json, os, sys
module, name, arguments, result = sys.argv[1:]
value = getattr(importlib.import_module(module), name)(*json.loads(arguments))
with open(result, "w") as file:
    json.dump(value, file)
if importlib.import_module("tests.agora").bare:
    sys.stdout.flush()
    os._exit(0)
"""


class Call(NamedTuple):
    """One native call. `args` has the ids of handles; a handle returned is its id too, NULL 0."""

    ns: int
    tid: int
    thread: str
    name: str
    args: dict[str, Any]
    ret: int


class Callback(NamedTuple):
    """One callback the stand-in made, or would have made to an observer that is not there."""

    ns: int
    tid: int
    thread: str
    name: str
    args: dict[str, Any]
    delivered: bool


class Push(NamedTuple):
    """One push into a sender, accepted (`ret` 0) or not."""

    ns: int
    pts_ms: int
    capture_ts: int
    frames: int
    bytes_per_sample: int
    channels: int
    rate_hz: int
    ret: int
    sender_id: int
    data: bytes


@functools.cache
def missing() -> str | None:
    """Name what building the stand-in lacks on this machine, or None."""
    if shutil.which("gcc") is None:
        return "gcc"
    try:
        sdist()
    except (OSError, RuntimeError) as error:
        return f"agora-python-server-sdk {WRAPPER} ({error})"
    return None


@functools.cache
def sdist() -> Path:
    """The wrapper's source distribution; fetched once, never vendored.

    CAPSTAND_TEST_AGORA_SDIST names a file to use in its place, for machines without a network.
    """
    given = os.environ.get("CAPSTAND_TEST_AGORA_SDIST")
    folder = _CACHE / f"agora-sdist-{WRAPPER}"
    archive = Path(given) if given else folder / _ARCHIVE
    if not given:
        with _made_once(folder) as fresh:
            if fresh is not None:
                _download(fresh)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != _SHA256:
        raise RuntimeError(f"{archive.name} is not the known one, its sha256 is {digest}")
    return archive


@functools.cache
def wrapper() -> Path:
    """The unpacked source distribution: the folder that holds `agora/`, without any library."""
    archive = sdist()
    folder = _CACHE / f"agora-wrapper-{WRAPPER}"
    with _made_once(folder) as fresh:
        if fresh is not None:
            with tarfile.open(archive) as tar:
                for member in filter(tarfile.TarInfo.isfile, tar):
                    content = tar.extractfile(member)
                    path = fresh / member.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.read() if content else b"")
            compileall.compile_dir(fresh, quiet=2)
    return folder / f"agora_python_server_sdk-{WRAPPER}"


def _download(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    what = ["--no-deps", "--no-binary", ":all:", f"agora-python-server-sdk=={WRAPPER}"]
    done = subprocess.run(
        [*pip, *what, "--dest", str(folder)], text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RuntimeError(f"pip download: {last}")


@contextmanager
def _made_once(folder: Path) -> Iterator[Path | None]:
    """Give a new folder to fill, which becomes `folder` at the end, or None if that is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            yield None
            return
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as fresh:
            inner = Path(fresh) / "new"
            inner.mkdir()
            yield inner
            inner.rename(folder)


def build(folder: Path, without: Sequence[str] = ()) -> Path:
    """Compile the stand-in into `folder`, and the libaosl.so the wrapper wants beside it.

    The symbols in `without` do not get out of the library, as if it were an older one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libagora_rtc_sdk.so"
    flags = list(_FLAGS)
    if without:
        hidden = folder / "hidden.map"
        hidden.write_text(f"{{ global: *; local: {' '.join(f'{name};' for name in without)} }};\n")
        flags.append(f"-Wl,--version-script={hidden}")
    _compile([*flags, "-o", str(library), str(_SOURCE), "-lm"])
    _compile([*flags[:2], "-o", str(folder / "libaosl.so"), "-x", "c", os.devnull])
    return library


def _compile(arguments: list[str]) -> None:
    done = subprocess.run(["gcc", *arguments], text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{_SOURCE.name} does not compile:\n{done.stderr}")


def place(folder: Path, library: Path) -> Path:
    """Make `folder`/agora of the wrapper, installed with this library; return `folder`.

    The wrapper itself unpacks the library and writes version.txt, so that it finds both right.
    """
    shutil.copytree(wrapper() / "agora", folder / "agora")
    arguments = [str(folder), str(library), str(library.with_name("libaosl.so"))]
    done = subprocess.run(
        [sys.executable, "-c", _PLACE, *arguments], text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"the wrapper did not install the stand-in:\n{done.stdout}{done.stderr}")
    return folder


def wrong_architecture(library: Path, machine: str = "") -> Path:
    """Copy the library with another machine in its ELF head; "aarch64", "armv7l" or "x86_64".

    Beside the copy lies libaosl.so as it was, so that place() takes the copy like the original.
    """
    if not machine:
        machine = "x86_64" if platform.machine() == "aarch64" else "aarch64"
    folder = library.parent / machine
    folder.mkdir(exist_ok=True)
    image = bytearray(library.read_bytes())
    image[4] = 1 if machine == "armv7l" else 2
    struct.pack_into("<H", image, 18, _MACHINES[machine])
    copy = folder / library.name
    copy.write_bytes(image)
    shutil.copyfile(library.with_name("libaosl.so"), folder / "libaosl.so")
    return copy


class StandIn:
    """One scenario's stand-in: where the library is, what it writes down, how to steer it.

    `folder` is what place() returned; the files in `directory` are this stand-in's own.
    """

    @classmethod
    def of_this_process(cls) -> StandIn:
        """The one a function that run() runs was given."""
        directory = Path(os.environ["STANDIN_CONTROL"]).parent
        return cls(Path(os.environ["CAPSTAND_AGORA"]), directory)

    def __init__(self, folder: Path, directory: Path) -> None:
        self.folder = folder
        self.log = directory / "standin.log"
        self.pcm = directory / "standin.pcm"
        self.control = directory / "standin.fifo"
        self.directory = directory
        if not self.control.exists():
            os.mkfifo(self.control)
        self.env = {
            "STANDIN_LOG": str(self.log),
            "STANDIN_PCM": str(self.pcm),
            "STANDIN_CONTROL": str(self.control),
            "CAPSTAND_AGORA": str(folder),
        }
        """What the process that loads the wrapper needs in its environment."""

    def lines(self) -> list[dict[str, Any]]:
        """Every line of the log, in order, of all kinds."""
        if not self.log.exists():
            return []
        whole = self.log.read_bytes().rpartition(b"\n")[0]
        return [json.loads(line.decode(errors="replace")) for line in whole.splitlines()]

    def _texts(self, kind: str) -> list[str]:
        return [str(line[kind]) for line in self.lines() if kind in line]

    def calls(self, name: str = "") -> list[Call]:
        """The native calls, or those of one name, in the order in which they returned.

        Pushes are not among them.
        """
        return [
            Call(line["ns"], line["tid"], line["thread"], line["call"], line["args"], line["ret"])
            for line in self.lines()
            if "call" in line and name in ("", line["call"])
        ]

    def names(self) -> list[str]:
        """The names of the native calls."""
        return [call.name for call in self.calls()]

    def callbacks(self, name: str = "") -> list[Callback]:
        """The callbacks, named as in a timeline."""
        keys = ("ns", "tid", "thread", "callback", "args", "delivered")
        return [
            Callback(*(line[key] for key in keys))
            for line in self.lines()
            if "callback" in line and name in ("", line["callback"])
        ]

    def pushes(self) -> list[Push]:
        """Every push that reached a sender."""
        data = self.pcm.read_bytes() if self.pcm.exists() else b""
        pushes = []
        at = 0
        while len(data) - at >= _RECORD.size:
            head = _RECORD.unpack_from(data, at)
            frames, bytes_per_sample, channels = head[3:6]
            end = at + _RECORD.size + frames * bytes_per_sample * channels
            if end > len(data):
                break
            pushes.append(Push._make((*head, data[at + _RECORD.size : end])))
            at = end
        return pushes

    def violations(self) -> list[str]:
        """What the caller must never do, and did; also a command the stand-in did not know."""
        return [
            f"{line.get('in', '')}: {line['violation']}"
            for line in self.lines()
            if "violation" in line
        ]

    def warnings(self) -> list[str]:
        """What is doubtful, but may happen."""
        return [
            f"{line.get('in', '')}: {line['warning']}" for line in self.lines() if "warning" in line
        ]

    @property
    def marks(self) -> list[str]:
        """The texts of `mark` commands."""
        return self._texts("mark")

    def command(self, line: str) -> None:
        """Have the process that loaded the library carry out commands; wait until it has."""
        before = len(self.lines())
        last = line.replace("\n", ";").split(";")[-1].strip()
        deadline = time.monotonic() + PATIENCE_S
        fifo = self._opened(deadline)
        try:
            os.write(fifo, line.encode() + b"\n")
        finally:
            os.close(fifo)
        while time.monotonic() < deadline:
            for entry in self.lines()[before:]:
                if entry.get("command") == last:
                    return
                if "violation" in entry and entry.get("in") == last:
                    raise ValueError(f"the stand-in cannot do {last!r}")
            time.sleep(0.005)
        raise TimeoutError(f"nobody carried out {line!r}")

    def _opened(self, deadline: float) -> int:
        """The control FIFO, from when somebody reads it."""
        while True:
            try:
                return os.open(self.control, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO or time.monotonic() > deadline:
                    raise
            time.sleep(0.005)

    def report(self) -> dict[str, float]:
        """The counters of native_get(), from a process that runs."""
        self.command("report")
        found: dict[str, float] = [line["report"] for line in self.lines() if "report" in line][-1]
        return found


def run(
    function: Callable[..., object],
    standin: StandIn,
    *arguments: Any,
    script: str = "",
    env: Mapping[str, str] | None = None,
    timeout_s: float = PATIENCE_S,
) -> Any:
    """Run a top-level function of a module in a process of its own; return its result.

    Arguments and result go through JSON. `script` is carried out when the library is loaded. A
    process that fails or takes too long raises with all it said; where it hung is part of that.
    """
    result = standin.directory / f"result-{time.monotonic_ns()}.json"
    call = [function.__module__, function.__qualname__, json.dumps(arguments), str(result)]
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", _RUN, *call],
        cwd=_ROOT,
        env={**os.environ, **standin.env, "STANDIN_SCRIPT": script, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    name = function.__qualname__
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler writes every thread's stack
        try:
            output, _ = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        raise TimeoutError(f"{name} took more than {timeout_s} s:\n{output}") from None
    except BaseException:
        process.kill()
        process.communicate()
        raise
    if process.returncode != 0:
        raise RuntimeError(f"{name} ended with {process.returncode}:\n{output}")
    return json.loads(result.read_text())


# For functions that run() runs


def load() -> SimpleNamespace:
    """Import the wrapper from CAPSTAND_AGORA: its modules agora_base, agora_service and others."""
    global bare  # noqa: PLW0603
    bare = True
    folder = os.environ["CAPSTAND_AGORA"]
    if folder not in sys.path:
        sys.path.insert(0, folder)
    names = (
        "agora_base",
        "agora_service",
        "rtc_connection",
        "rtc_connection_observer",
        "local_user_observer",
        "audio_pcm_data_sender",
    )
    return SimpleNamespace(**{name: importlib.import_module(f"agora.rtc.{name}") for name in names})


@functools.cache
def _native() -> ctypes.CDLL:
    path = Path(os.environ["CAPSTAND_AGORA"]) / "agora" / "agora_sdk" / "libagora_rtc_sdk.so"
    library = ctypes.CDLL(str(path))
    library.standin_command.argtypes = [ctypes.c_char_p]
    library.standin_get.argtypes = [ctypes.c_char_p]
    library.standin_get.restype = ctypes.c_double
    library.standin_advance.argtypes = [ctypes.c_int64]
    library.standin_advance.restype = None
    return library


def native_command(line: str) -> int:
    """Have the stand-in in this process carry out commands; below 0 if it cannot."""
    return int(_native().standin_command(line.encode()))


def native_get(name: str) -> float:
    """A counter of the stand-in in this process.

    depth_ms (of the newest track), max_depth_ms, holes, hole_ms, refused, pushes, drained_frames,
    alive_handles, violations, warnings.
    """
    return float(_native().standin_get(name.encode()))


def native_advance(ns: int) -> None:
    """Move the send buffer's clock, after `set virtual 1`."""
    _native().standin_advance(ns)
