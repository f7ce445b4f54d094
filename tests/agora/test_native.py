"""The guarded import, of the real wrapper with the stand-in library; each in a new process."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from capstand.agora.sdk import native
from tests.agora import build, wrong_architecture
from tests.patience import PATIENCE_S

LOAD = """
from capstand.agora.sdk import native
try:
    native.load()
except native.NativeUnavailable as error:
    print(error)
else:
    print("loaded")
"""
SDK = "agora/agora_sdk"
LIBRARY = f"{SDK}/libagora_rtc_sdk.so"


def python(code: str, folder: Path | None, **env: str) -> str:
    """What ``code`` prints, which must be all it says, in a new process."""
    given = {**os.environ, "CAPSTAND_AGORA": str(folder)} if folder else dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**given, **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def state(folder: Path) -> dict[str, bytes]:
    """Every file but Python's caches, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture
def folder(tmp_path: Path, standin_folder: Path) -> Path:
    """An installation in order, with the stand-in; a test's own copy."""
    shutil.copytree(standin_folder, tmp_path / "agora")
    return tmp_path / "agora"


def foreign(folder: Path) -> None:
    """Makes the library one for another machine."""
    shutil.copyfile(wrong_architecture(folder / LIBRARY), folder / LIBRARY)


def test_python_is_as_before(folder: Path) -> None:
    """After the import certificates are checked, shell and download work, and nothing was said."""
    code = """
import logging, os, ssl, urllib.request
logging.basicConfig(level=logging.DEBUG)
kept = ssl._create_default_https_context, urllib.request.urlretrieve, os.system
from capstand.agora.sdk import native
found = native.load()
assert kept == (ssl._create_default_https_context, urllib.request.urlretrieve, os.system)
assert ssl._create_default_https_context().verify_mode == ssl.CERT_REQUIRED
assert os.system("exit 3") == 3 << 8
assert native.load() is found
assert found.AreaCode.AREA_CODE_GLOB and found.AgoraService and len(found.send.argtypes) == 8
assert found.IRTCConnectionObserver.on_connected and found.IRTCLocalUserObserver
print(found.folder, found.build)
"""
    promised = native.expected_build(folder)
    assert promised is not None
    assert python(code, folder) == f"{folder} {native.build(promised.url)}"


@pytest.mark.parametrize(
    ("kind", "ending", "md5"),
    [
        ("x86_64", "1240_1144448_20251021_1427-3a", "e89043f0db667c207d9308d3515a67ed"),
        ("aarch64", "v4.4.32.174-20260601_142442-1144588", "5c002f25d2b381e353082da4f835b4f2"),
    ],
)
def test_the_wrapper_is_read_without_running_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, ending: str, md5: str
) -> None:
    """Address and sum of the library are those that the wrapper would come to on each machine."""
    monkeypatch.setattr(platform, "machine", lambda: kind)
    promised = native.expected_build(folder)
    assert promised is not None
    assert native.build(promised.url).endswith(ending)
    assert promised.md5 == md5


@pytest.mark.parametrize("readable", [True, False], ids=["first line", "second line"])
def test_nothing_is_wiped_or_fetched(folder: Path, readable: bool) -> None:
    """With another version.txt each line of defence leaves the folder as it is, byte for byte."""
    (folder / "agora/version.txt").write_text("https://elsewhere.test/older.zip")
    if not readable:
        source = folder / "agora/__init__.py"
        text = source.read_text()
        assert native.expected_build(folder) is not None
        source.write_text(text.replace("url = linux_sdk", "url = str(linux_sdk)", 1))
    before = state(folder)
    said = python(LOAD, folder)
    assert state(folder) == before
    if readable:
        assert "names older, the wrapper" in said
    else:
        assert "wanted to replace its library" in said and "rm -rf" in said
    assert f"run: capstand agora install --into {folder}" in said


@pytest.mark.parametrize("name", native.NEEDED)
def test_a_missing_library(folder: Path, name: str) -> None:
    """It is named with its path."""
    (folder / SDK / name).unlink()
    assert f"Agora's library is missing: {folder / SDK / name}; run" in python(LOAD, folder)


def test_a_library_for_another_machine(folder: Path) -> None:
    """Both machines are named, which the system's own words would not do."""
    foreign(folder)
    said = python(LOAD, folder)
    assert said.startswith("Agora's library is for ") and str(folder / LIBRARY) in said
    assert f"this machine is {platform.machine()}" in said


def test_a_damaged_library(folder: Path) -> None:
    """One that lacks its end is not even loaded: that would kill the daemon by SIGBUS."""
    content = (folder / LIBRARY).read_bytes()
    for length in (0, 30, 1000, len(content) // 2):
        (folder / LIBRARY).write_bytes(content[:length])
        said = python(LOAD, folder)
        assert "it is not an ELF file" in said if length < 20 else "truncated" in said


def test_a_library_that_cannot_be_loaded(folder: Path) -> None:
    """The system's reason, which the wrapper hides, is in the text."""
    content = bytearray((folder / LIBRARY).read_bytes())
    content[56:58] = b"\0\0"  # no segments
    (folder / LIBRARY).write_bytes(content)
    said = python(LOAD, folder)
    assert "Agora's library cannot be loaded: " in said and "no loadable segments" in said


def test_a_library_of_another_version(folder: Path, tmp_path: Path) -> None:
    """The function that it lacks is named."""
    lacking = "agora_audio_pcm_data_sender_send"
    shutil.copyfile(build(tmp_path / "library", without=(lacking,)), folder / LIBRARY)
    said = python(LOAD, folder)
    assert said.startswith(f"Agora's library lacks {lacking}, so its version does not match")
    assert said.endswith("then restart capstand")


def test_no_wrapper(tmp_path: Path) -> None:
    """Where it was looked for is said, and what to do."""
    said = python(LOAD, None, CAPSTAND_AGORA="", XDG_DATA_HOME=str(tmp_path))
    assert said.startswith("Agora's wrapper is missing; looked for the package agora in ")
    assert f"{native.SYSTEM}, {tmp_path / 'capstand/agora'}" in said
    assert said.endswith("; run: sudo capstand agora install")


def test_an_empty_package_is_no_wrapper(tmp_path: Path) -> None:
    """What pip leaves behind when its download fails can be imported, and is not taken for it."""
    (tmp_path / "agora").mkdir()
    assert "Agora's wrapper is missing" in python(LOAD, tmp_path)
    said = python(LOAD, None, CAPSTAND_AGORA="", PYTHONPATH=str(tmp_path), HOME=str(tmp_path))
    assert "Agora's wrapper is missing" in said


def test_where_it_is_looked_for(folder: Path, tmp_path: Path) -> None:
    """A folder given is the only one; else the system's, the user's, and Python's own path."""
    code = "from capstand.agora.sdk import native; print(*native.folders())"
    own = {"XDG_DATA_HOME": str(tmp_path / "data"), "PYTHONPATH": str(folder)}
    assert python(code, tmp_path, **own) == str(tmp_path)
    found = python(code, None, CAPSTAND_AGORA="", **own).split()
    assert found == [str(native.SYSTEM), str(tmp_path / "data/capstand/agora"), str(folder)]
    shutil.copytree(folder, tmp_path / "data/capstand/agora")
    code = "from capstand.agora.sdk import native; print(native.load().folder)"
    if not native.SYSTEM.exists():
        assert python(code, None, CAPSTAND_AGORA="", **own) == found[1]


REPAIR = """
import os, sys
from pathlib import Path
from capstand.agora.sdk import native
whole = Path(os.environ["WHOLE"])
for _ in range(2):
    try:
        native.load()
    except native.NativeUnavailable as error:
        print(error.what)
assert not [name for name in sys.modules if name.split(".")[0] == "agora"]
folder = Path(os.environ["CAPSTAND_AGORA"])
folder.rename(folder.with_name("broken"))
whole.rename(folder)
print(native.load().build)
"""


@pytest.mark.parametrize("fault", ["missing", "foreign", "damaged", "half"])
def test_a_repaired_folder_works_in_the_same_process(
    folder: Path, tmp_path: Path, fault: str
) -> None:
    """After a failure and an installation the next try succeeds, without a restart."""
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    if fault == "missing":
        shutil.rmtree(folder)
    elif fault == "foreign":
        foreign(folder)
    elif fault == "damaged":
        (folder / LIBRARY).write_bytes((folder / LIBRARY).read_bytes()[:1000])
    else:
        (folder / "agora/rtc/local_user.py").write_text("import nowhere\n")
    folder.mkdir(exist_ok=True)
    first, second, loaded = python(REPAIR, folder, WHOLE=str(whole)).splitlines()
    promised = native.expected_build(folder)
    assert promised is not None
    assert first == second and first.startswith("Agora's")
    assert loaded == native.build(promised.url)


def test_a_failure_is_remembered(folder: Path) -> None:
    """The wrapper is not imported again and again while nothing changed."""
    code = """
from pathlib import Path
from capstand.agora.sdk import native
tries = []
native._load = lambda places: tries.append(places) or native.check(places[0])
def load():
    try:
        native.load()
    except native.NativeUnavailable:
        pass
load(), load()
print(len(tries))
(native.folders()[0] / "agora/version.txt").touch()
load(), load()
print(len(tries))
"""
    (folder / LIBRARY).unlink()
    assert python(code, folder).split() == ["1", "2"]


@pytest.mark.parametrize(
    ("patch", "name"),
    [
        ("platform.machine = lambda: 'armv7l'", "armv7l"),
        ("platform.machine = lambda: 'aarch64'; sys.maxsize = 2**31 - 1", "armv7l"),
        ("platform.machine = lambda: 'riscv64'", "riscv64"),
    ],
    ids=["armv7l", "32-bit Python, 64-bit kernel", "riscv64"],
)
def test_a_machine_without_a_library(folder: Path, patch: str, name: str) -> None:
    """A 32-bit system is told apart by what its Python can load."""
    said = python(f"import platform, sys; {patch}\n{LOAD}", folder)
    assert said == f"Agora has no library for {name}; use a 64-bit system (x86_64 or aarch64)"


def test_a_system_without_glibc(folder: Path) -> None:
    """Another C library is named as the reason."""
    patch = "import os; os.confstr = {}.get"
    assert python(f"{patch}\n{LOAD}", folder).startswith("Agora's library needs glibc")


def test_the_token_is_never_logged(folder: Path) -> None:
    """The wrapper's own debug line with the token is not printed, however much is logged."""
    code = """
import logging
logging.basicConfig(level=logging.DEBUG)
from capstand.agora.sdk import native
native.load()
from agora.rtc._ctypes_handle import _rtc_connection_observer as wrapper
seen = []
class Observer:
    def on_token_privilege_will_expire(self, connection, token):
        seen.append(token)
inner = wrapper.RTCConnectionObserverInner(Observer(), None)
inner._on_token_privilege_will_expire(None, b"secret")
print(seen)
"""
    assert python(code, folder) == "['secret']"
