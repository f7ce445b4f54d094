"""``capstand agora install``, the true path without a network.

pip takes the wrapper from a folder; for Agora's server answers a proxy of the test's own, with a
certificate of the test's own.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from capstand.agora.sdk import install, native
from capstand.errors import CapstandError
from capstand.host import rights
from tests.agora import build, sdist
from tests.patience import PATIENCE_S

HOST = "download.agora.io"
LOAD = "from capstand.agora.sdk import native; print(native.load().build)"
Members = dict[str, bytes]


class Delivery(NamedTuple):
    """What Agora's server answers."""

    body: bytes
    status: str = "200 OK"
    header: str = ""
    missing: int = 0  # so many bytes at the end do not come


class Agora:
    """A proxy that ends every tunnel itself, as the server asked for, with one delivery."""

    def __init__(self, certificate: trustme.LeafCert, delivery: Delivery) -> None:
        self.delivery = delivery
        self.asked: list[str] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(PATIENCE_S)
                self.asked.append(_head(connection).split()[1])
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                with self._context.wrap_socket(connection, server_side=True) as tunnel:
                    self.asked.append(_head(tunnel).split()[1])
                    body, status, header, missing = self.delivery
                    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{header}\r\n"
                    tunnel.sendall(head.encode() + body[: len(body) - missing])


def _head(connection: socket.socket) -> str:
    text = b""
    while not text.endswith(b"\r\n\r\n"):
        got = connection.recv(1)
        if not got:
            raise OSError("closed")
        text += got
    return text.decode()


class Machine:
    """One on which ``capstand agora install`` is run, for a folder of its own."""

    def __init__(self, folder: Path, authority: trustme.CA, agora: Agora) -> None:
        self.agora = agora
        self.into = folder / "opt/agora"
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        shutil.copy(sdist(), self.wheels)
        authority.cert_pem.write_to_path(str(folder / "authority.pem"))
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PIP_")},
            "https_proxy": agora.url,
            "no_proxy": "",
            "SSL_CERT_FILE": str(folder / "authority.pem"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
        }

    def install(
        self,
        *options: str,
        before: tuple[str, ...] = (),
        umask: int = -1,
        cwd: Path | None = None,
    ) -> tuple[int, list[str], str]:
        """Exit status, lines told, stderr."""
        capstand = str(Path(sys.executable).with_name("capstand"))  # as root types it
        command = [*before, capstand, "agora", "install", *options]
        done = subprocess.run(
            [*command, "--into", str(self.into)],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            umask=umask,
            cwd=cwd,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    def refusal(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """Why nothing is installed; without pip, which has its own tests."""
        monkeypatch.setattr(install, "_sdist", lambda work: sdist())
        for name in ("https_proxy", "no_proxy", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, self.env[name])
        with pytest.raises(CapstandError) as caught:
            install.install(self.into, print, again=True)
        return str(caught.value)

    def state(self) -> dict[str, object]:
        """Every file below the target's parent, with its content and times."""
        found: dict[str, object] = {}
        for path in sorted(self.into.parent.rglob("*")):
            of = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = of.st_mode, of.st_mtime_ns, of.st_ino, content
        return found

    def load(self) -> str:
        """The build that the daemon finds there."""
        done = subprocess.run(
            [sys.executable, "-c", LOAD],
            env={**os.environ, "CAPSTAND_AGORA": str(self.into)},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()


@pytest.fixture(scope="module")
def members(standin_folder: Path) -> Members:
    """What is in Agora's archive, with the stand-in as the library."""
    found = sorted((standin_folder / "agora/agora_sdk").glob("*.so"))
    return {f"agora_sdk/{path.name}": path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def agora(authority: trustme.CA, members: Members) -> Iterator[Agora]:
    server = Agora(authority.issue_cert(HOST), Delivery(archive(members)))
    yield server
    server.close()


@pytest.fixture
def machine(tmp_path: Path, authority: trustme.CA, agora: Agora) -> Machine:
    return Machine(tmp_path, authority, agora)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA, members: Members) -> Path:
    """An installation, to be copied."""
    agora = Agora(authority.issue_cert(HOST), Delivery(archive(members)))
    machine = Machine(tmp_path_factory.mktemp("made"), authority, agora)
    assert machine.install()[0] == 0
    agora.close()
    return machine.into


@pytest.fixture
def installed(machine: Machine, made: Path) -> Machine:
    """A machine that has an installation."""
    shutil.copytree(made, machine.into)
    return machine


def archive(members: Members) -> bytes:
    """A zip; what has an absolute path as its content is a symbolic link."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as inside:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            if content.startswith(b"/"):
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            inside.writestr(info, content)
    return buffer.getvalue()


def test_it_is_installed_and_works(machine: Machine, members: Members) -> None:
    """Wrapper and library are fetched, verified, recorded, readable for all, and can be loaded."""
    status, told, errors = machine.install(umask=0o077)
    assert (status, errors) == (0, "")
    record = json.loads((machine.into / "INSTALLED.json").read_text())
    promised = native.expected_build(machine.into)
    assert promised is not None
    library = machine.into / "agora/agora_sdk/libagora_rtc_sdk.so"
    body = machine.agora.delivery.body
    assert library.read_bytes() == members["agora_sdk/libagora_rtc_sdk.so"]
    assert machine.agora.asked == [f"{HOST}:443", promised.url.removeprefix(f"https://{HOST}")]
    assert record["wrapper"] == install.VERSION
    assert record["wrapper_sha256"] == hashlib.sha256(sdist().read_bytes()).hexdigest()
    assert record["native_url"] == promised.url
    assert record["zip_sha256"] == hashlib.sha256(body).hexdigest()
    assert record["zip_bytes"] == len(body)
    assert record["library_sha256"] == hashlib.sha256(library.read_bytes()).hexdigest()
    assert record["md5_expected"] == promised.md5 != record["md5_found"]
    assert record["date"].endswith("+00:00") and record["python"] and record["machine"]
    assert any("warning" in line and record["md5_found"] in line for line in told)
    assert "Agora's terms" in told[0]
    assert "CAPSTAND_AGORA" in told[-1]
    assert machine.load() == record["native"]
    assert [path.name for path in machine.into.parent.iterdir()] == ["agora"]
    for path in (machine.into.parent, machine.into, *machine.into.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


def test_a_second_time_nothing_is_fetched(installed: Machine) -> None:
    """What is there and right is verified again and left alone."""
    before = installed.state()
    status, told, errors = installed.install()
    assert (status, errors) == (0, "")
    assert len(told) == 1 and told[0].startswith("already installed and valid")
    assert installed.state() == before
    assert installed.agora.asked == []


@pytest.mark.parametrize("options", [("--again",), ()], ids=["again", "damaged"])
def test_it_is_made_again(installed: Machine, options: tuple[str, ...]) -> None:
    """It is fetched anew where that is asked for, or where a file is not as it was installed."""
    if not options:
        with (installed.into / "agora/rtc/rtc_connection.py").open("a") as file:
            file.write("# changed\n")
    inode = installed.into.stat().st_ino
    status, told, errors = installed.install(*options)
    assert (status, errors) == (0, "")
    assert options or "changed after the installation" in told[0]
    assert installed.into.stat().st_ino != inode
    assert [path.name for path in installed.into.parent.iterdir()] == ["agora"]
    assert installed.load()


def _escaping(members: Members) -> Delivery:
    return Delivery(archive({**members, "../../escaped": b""}))


def _absolute(members: Members) -> Delivery:
    return Delivery(archive({**members, "/etc/escaped": b""}))


def _link(members: Members) -> Delivery:
    return Delivery(archive({**members, "agora_sdk/link.so": b"/etc/shadow"}))


def _replacing(members: Members) -> Delivery:
    return Delivery(archive({**members, "rtc/rtc_connection.py": b"import this"}))


def _cut(members: Members) -> Delivery:
    return Delivery(archive(members), missing=1000)


def _half(members: Members) -> Delivery:
    whole = archive(members)
    return Delivery(whole[: len(whole) // 2])


def _gone(members: Members) -> Delivery:
    return Delivery(b"no", status="404 Not Found")


def _plain(members: Members) -> Delivery:
    return Delivery(b"", status="302 Found", header="Location: http://elsewhere.test/sdk.zip\r\n")


def _foreign(members: Members) -> Delivery:
    return Delivery(archive({name: _other(content) for name, content in members.items()}))


def _other(content: bytes) -> bytes:
    """The same library, for riscv64."""
    return content[:18] + (243).to_bytes(2, "little") + content[20:]


def _truncated_library(members: Members) -> Delivery:
    return Delivery(archive({name: content[:5000] for name, content in members.items()}))


def _no_library(members: Members) -> Delivery:
    return Delivery(archive({"README": b"nothing else"}))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_escaping, "leads out of its folder"),
        (_absolute, "leads out of its folder"),
        (_link, "leads out of its folder"),
        (_replacing, "would replace the wrapper's own rtc/rtc_connection.py"),
        (_cut, "disconnected after"),
        (_half, "not a valid archive"),
        (_gone, "404 Not Found"),
        (_plain, "is not HTTPS"),
        (_foreign, "is for riscv64"),
        (_truncated_library, "truncated"),
        (_no_library, "Agora's library is missing"),
    ],
)
def test_a_bad_delivery_changes_nothing(
    installed: Machine,
    members: Members,
    answer: Callable[[Members], Delivery],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is wrong with what comes, one line says so, and the old installation stays."""
    installed.agora.delivery = answer(members)
    before = installed.state()
    refusal = installed.refusal(monkeypatch)
    assert words in refusal and "\n" not in refusal
    assert installed.state() == before


def test_a_library_that_lacks_a_function_is_refused(
    installed: Machine, members: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library of another version is found out before it takes the place of the old one."""
    lacking = "agora_audio_pcm_data_sender_send"
    library = build(tmp_path / "lacking", without=(lacking,))
    files = {"agora_sdk/libagora_rtc_sdk.so": library.read_bytes()}
    installed.agora.delivery = Delivery(archive({**members, **files}))
    before = installed.state()
    assert f"lacks {lacking}" in installed.refusal(monkeypatch)
    assert installed.state() == before


def test_an_untrusted_certificate_is_refused(installed: Machine) -> None:
    """Agora's server is believed only with a certificate that the system trusts."""
    trustme.CA().cert_pem.write_to_path(installed.env["SSL_CERT_FILE"])
    before = installed.state()
    status, _, errors = installed.install("--again")
    assert status == 1
    assert f"certificate of {HOST} cannot be trusted" in errors and "SSL_CERT_FILE" in errors
    assert installed.state() == before
    assert installed.agora.asked == [f"{HOST}:443"]


def test_a_certificate_for_another_host_is_refused(
    machine: Machine, authority: trustme.CA, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trusted certificate helps only the host that it names."""
    other = Agora(authority.issue_cert("elsewhere.test"), Delivery(archive(members)))
    machine.env["https_proxy"] = other.url
    refusal = machine.refusal(monkeypatch)
    other.close()
    assert f"certificate of {HOST} cannot be trusted" in refusal
    assert list(machine.into.parent.iterdir()) == []


def test_a_wrapper_with_another_sum_is_refused(installed: Machine) -> None:
    """The wrapper's distribution is opened only if it is the one known."""
    (path,) = installed.wheels.iterdir()
    path.write_bytes(path.read_bytes() + b"\0")
    before = installed.state()
    status, _, errors = installed.install("--again")
    assert status == 1 and install.SDIST_SHA256 in errors and "not opened" in errors
    assert len(errors.splitlines()) == 1
    assert installed.state() == before
    assert installed.agora.asked == []


def test_a_wrapper_that_cannot_be_had_is_said(machine: Machine) -> None:
    """Where pip finds nothing, its own reason is told in one line."""
    machine.env["PIP_FIND_LINKS"] = os.devnull
    status, _, errors = machine.install()
    assert status == 1 and "is the network up?" in errors and "No matching" in errors
    assert len(errors.splitlines()) == 1


def test_a_folder_that_may_not_be_written_is_said(machine: Machine) -> None:
    """Without the right to write, the text names the folder and what to do."""
    machine.into.parent.mkdir()
    machine.into.parent.chmod(0o555)
    powerless = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    status, told, errors = machine.install(before=powerless if os.geteuid() == 0 else ())
    assert (status, told) == (1, [])
    assert errors == (
        f"capstand: {machine.into} cannot be written: Permission denied;"
        " run: sudo capstand agora install, or choose your own folder with --into\n"
    )


def test_a_folder_with_something_else_is_left_alone(machine: Machine) -> None:
    """Only an earlier installation is ever replaced, no folder of anything else."""
    machine.into.mkdir(parents=True)
    (machine.into / "thesis.txt").touch()
    status, told, errors = machine.install("--again")
    assert (status, told) == (1, []) and "thesis.txt" in errors
    assert (machine.into / "thesis.txt").exists()


def test_an_interrupted_exchange_is_undone(installed: Machine) -> None:
    """After a power cut between the two renames, the old installation is taken back."""
    installed.into.rename(installed.into.with_name("agora.old"))
    status, told, _ = installed.install()
    assert status == 0 and told[0].startswith("already installed and valid")
    assert [path.name for path in installed.into.parent.iterdir()] == ["agora"]


@pytest.mark.skipif(os.geteuid() != 0, reason="root gives up its rights: run as root")
def test_foreign_code_is_tried_out_by_an_ordinary_user(installed: Machine, tmp_path: Path) -> None:
    """What runs when it is loaded is not root's, even where the way to it is root's alone."""
    told: list[str] = []
    with (installed.into / "agora/__init__.py").open("a") as code:
        code.write("\nimport os\nraise ImportError(str(os.getresuid()))\n")
    installed.into.parent.chmod(0o700)
    with pytest.raises(CapstandError) as caught:
        install._own_process(tmp_path, told.append, "load", installed.into)
    uid = rights.unprivileged_user().uid
    assert uid != 0 and str((uid, uid, uid)) in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's folder takes root")
def test_root_installs_nothing_where_another_user_decides(machine: Machine, tmp_path: Path) -> None:
    """That user could lead it elsewhere while it is at it."""
    machine.into.parent.mkdir(parents=True)
    os.chown(machine.into.parent, 65534, 65534)
    status, told, errors = machine.install()
    assert (status, told) == (1, [])
    assert "belongs to" in errors and "redirect root's writes" in errors
    assert not machine.agora.asked and not list(machine.into.parent.iterdir())


def test_nothing_comes_from_where_it_is_started(machine: Machine, tmp_path: Path) -> None:
    """Modules in the current directory and in PYTHONPATH are not run, nor does pip do anything else
    than fetch where its variables say so."""
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in (
        "pip",
        "json",
        "capstand",
        "agora",
        "sitecustomize",
        "setuptools",
        "hashlib",
        "ast",
    ):
        (hostile / f"{name}.py").write_text(
            f"open({str(hostile / 'ran')!r}, 'a').write('{name} ')\n"
        )
    (hostile / "pip.conf").write_text("[global]\nindex-url = https://invalid.invalid\n")
    machine.env |= {
        "PYTHONPATH": str(hostile),
        "PIP_CONFIG_FILE": str(hostile / "pip.conf"),
        "PIP_LOG": str(hostile / "ran"),
        "PIP_TARGET": str(hostile / "target"),
        "PIP_PYTHON": str(hostile / "python"),
    }
    status, _, errors = machine.install(cwd=hostile)
    assert (status, errors) == (0, "")
    assert not (hostile / "ran").exists() and not (hostile / "target").exists()
