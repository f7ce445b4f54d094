"""``capstand push`` and the other programs of docs/own-audio.md, with a running daemon."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from capstand.cli import push
from capstand.errors import CapstandError
from capstand.host import control
from tests.capture.programs import Writer, counted
from tests.host.test_control import replying
from tests.patience import PATIENCE_S

DOCS = Path(__file__).parents[2] / "docs"
CONFIG = """\
[[stream]]
name = "mic"
[stream.capture]
device = "socket"
rt_priority = 0
[[stream.sink]]
type = "file"
path = "{folder}/rec"
min_free_mb = 0
gaps = "skip"

[[stream]]
name = "card"
[stream.capture]
device = "synthetic"
rt_priority = 0
[[stream.sink]]
type = "file"
path = "{folder}/card"
min_free_mb = 0
"""


class Place:
    """A daemon, and what is recorded of the stream that programs bring."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = folder / "run"
        self.socket = self.runtime / "push.sock"
        config = folder / "capstand.toml"
        config.write_text(CONFIG.format(folder=folder))
        self.daemon = self.start("run", "--config", config, "--state", folder / "state")
        self.until(self.socket.exists)

    def until(self, what: object) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not (callable(what) and what()):
            assert time.monotonic() < deadline and self.daemon.poll() is None
            time.sleep(0.01)

    def start(self, command: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "capstand", command, "--runtime", str(self.runtime)]
            + [str(argument) for argument in arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
        )

    def push(self, *arguments: object, sound: bytes = b"") -> tuple[int, str, str]:
        """Exit status, stdout, stderr of `capstand push` into the stream mic."""
        process = self.start("push", "--stream", "mic", *arguments)
        assert process.stdin is not None
        with process:
            process.stdin.reconfigure(encoding="latin-1", newline="")  # type: ignore[attr-defined]
            out, err = process.communicate(sound.decode("latin-1"), PATIENCE_S)
        return process.returncode, out, err

    @property
    def captured(self) -> int:
        stream = control.ask(self.runtime / control.NAME, "status")["streams"][0]
        return int(stream["captured_frames"])

    def recorded(self) -> list[int]:
        """All that was brought, after the daemon's end."""
        self.daemon.send_signal(signal.SIGTERM)
        self.daemon.communicate(timeout=PATIENCE_S)
        numbers: list[int] = []
        for path in sorted((self.folder / "rec").iterdir()):
            halves = soundfile.read(path, dtype="int16")[0].view(np.uint16).astype(np.int64)
            numbers += (halves[:, 0] | halves[:, 1] << 16).tolist()
        return numbers

    def close(self) -> None:
        self.daemon.kill()
        self.daemon.communicate()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    one = Place(tmp_path)
    yield one
    one.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """For what brings nothing."""
    one = Place(tmp_path_factory.mktemp("push"))
    yield one
    one.close()


def wav(folder: Path, frames: int = 24_000, rate: int = 48_000, name: str = "a.wav") -> Path:
    samples = np.frombuffer(counted(0, frames), "<i2").reshape(-1, 2)
    soundfile.write(folder / name, samples, rate, subtype="PCM_16")
    return folder / name


def test_a_file_and_what_a_program_writes_become_the_sound(place: Place, tmp_path: Path) -> None:
    """Every frame of each once and in order; nothing but the outcome is printed."""
    for name in ("a.wav", "a.flac"):
        assert place.push(wav(tmp_path, name=name)) == (0, "mic: 24000 frames taken (0.5 s)\n", "")
    raw = counted(24_000, 9_601)
    assert place.push("--raw", "-", sound=raw) == (0, "mic: 9601 frames taken (0.2 s)\n", "")
    (tmp_path / "raw").write_bytes(counted(33_601, 480))
    done = place.push("--raw", "--live", tmp_path / "raw")
    assert done == (0, "mic: 480 frames taken (0.0 s)\n", "")
    assert place.recorded() == [*range(24_000), *range(34_081)]


def test_raw_sound_that_ends_within_a_frame_is_told(place: Place) -> None:
    status, out, err = place.push("--raw", "-", sound=counted(0, 480) + b"xyz")
    assert (status, out) == (1, "")
    assert err == (
        "capstand: stdin ends within a frame: 3 bytes were left out, 480 frames taken; is it "
        "48000 Hz, 2 ch, S16_LE?\n"
    )
    assert place.recorded() == list(range(480))


def test_a_terminal_sees_how_far_it_is(place: Place, tmp_path: Path) -> None:
    """A bar with time and share, which is gone in the end."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "capstand", "push", "--runtime", str(place.runtime)]
    process = subprocess.Popen(
        [*command, "--stream", "mic", str(wav(tmp_path, 96_000))],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=os.environ | {"COLUMNS": "80", "PYTHONIOENCODING": "utf-8"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how a terminal says that nobody writes to it any more
            break
        if not part:
            break
        seen += part
    os.close(ours)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (0, "mic: 96000 frames taken (2.0 s)\n")
    drawn = seen.decode().split("\r\x1b[K")
    shares = [
        int(found[1]) for one in drawn if (found := re.search(r"▏ +(\d+)% 0:0\d of 0:02", one))
    ]
    assert len(shares) >= 2 and shares == sorted(shares) and shares[-1] > 0
    assert drawn[-1] == ""


def test_a_second_one_is_refused_and_the_first_goes_on(place: Place, tmp_path: Path) -> None:
    first = place.start("push", "--stream", "mic", "--raw", "-")
    assert first.stdin is not None
    first.stdin.write("\0" * 480 * 4)
    first.stdin.flush()
    place.until(lambda: place.captured >= 480)
    status, out, err = place.push(wav(tmp_path))
    assert (status, out) == (1, "")
    assert re.fullmatch(
        rf"capstand: mic: the program {first.pid} of uid {os.geteuid()} writes already; one "
        "program at a time\n",
        err,
    )
    out, err = first.communicate(timeout=PATIENCE_S)
    assert (first.returncode, out, err) == (0, "mic: 480 frames taken (0.0 s)\n", "")


def test_a_daemon_that_ends_meanwhile_is_told(place: Place, tmp_path: Path) -> None:
    """With how much was taken."""
    process = place.start("push", "--stream", "mic", wav(tmp_path, 480_000))
    place.until(lambda: place.captured > 24_000)
    place.daemon.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (1, "")
    assert re.fullmatch(
        r"capstand: mic: the stream takes no sound any more \(\d+ frames were taken\)\n", err
    )


def test_a_released_stream_says_so(place: Place, tmp_path: Path) -> None:
    control.ask(place.runtime / control.NAME, "release", PATIENCE_S, stream="mic", for_s=1000)
    status, _, err = place.push(wav(tmp_path))
    assert status == 1
    assert err.startswith("capstand: mic takes no sound now: released until ")


def text(folder: Path) -> Path:
    (folder / "text").write_text("no sound")
    return folder / "text"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--stream", "mik", "{wav}"], "'mik' is not a stream of this daemon; it has mic, card"),
        (
            ["--stream", "card", "{wav}"],
            "card captures from synthetic; no program can bring its sound; that takes device = "
            '"socket" in its [stream.capture]',
        ),
        (
            ["--stream", "mic", "{slow}"],
            "{slow} has 44100 Hz and 2 channels, and mic takes 48000 Hz and 2 channels; convert "
            "it first: ffmpeg -i IN -ar 48000 -ac 2 OUT.wav",
        ),
        (["--stream", "mic", "{folder}/no.wav"], "{folder}/no.wav: No such file or directory"),
        (["--stream", "mic", "--raw", "{folder}/no"], "{folder}/no: No such file or directory"),
        (["--stream", "mic", "--raw", "{folder}"], "{folder}: is a directory"),
        (["--stream", "mic", "{text}"], "{text}: cannot be read as a sound file ("),
        (["--stream", "mic", "-"], "from stdin comes raw sound only; add --raw"),
        (["--stream", "mic", "--live", "{wav}"], "--live is for raw sound; add --raw, or leave"),
    ],
)
def test_what_cannot_be_pushed_is_told(
    shared: Place, tmp_path: Path, arguments: list[str], told: str
) -> None:
    """With what to do, where there is something; nothing is written, the status is 1."""
    places = {
        "wav": wav(tmp_path),
        "slow": wav(tmp_path, rate=44_100, name="slow.wav"),
        "text": text(tmp_path),
        "folder": tmp_path,
    }
    filled = [argument.format(**places) for argument in arguments]
    with shared.start("push", *filled) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (1, "")
    assert err.startswith(f"capstand: {told.format(**places)}") and err.count("\n") == 1
    assert shared.captured == 0


def test_without_a_daemon_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "capstand", "push", "--runtime", str(tmp_path)]
    done = subprocess.run(
        [*command, "--stream", "mic", "a.wav"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "cannot reach the daemon" in done.stderr


def test_a_wrong_command_line_is_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "capstand", "push", "a.wav"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--stream" in done.stderr


def test_an_answer_that_does_not_fit_is_told(tmp_path: Path) -> None:
    """As of another version's daemon."""
    with replying(tmp_path / "control.sock", b'{"path": 1}\n') as path:
        chosen = [sys.executable, "-m", "capstand", "push", "--runtime", str(path.parent)]
        done = subprocess.run(
            [*chosen, "--stream", "mic", "a.wav"], capture_output=True, text=True, check=False
        )
    assert done.returncode == 1 and "does not match version" in done.stderr


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"error: no\x1b[2J\n", r"^mic: no\\x1b\[2J$"),
        (b"", r"^mic: the daemon has closed the connection after 0 frames$"),
        (b"nonsense\n\xff\nok\n", r"^mic: the daemon has closed the connection after 0 frames$"),
        (b"ok S16_LE 48000 2\nat 5 held\n", r"has closed the connection after 5 frames$"),
    ],
)
def test_whoever_listens_there_cannot_confuse_it(tmp_path: Path, said: bytes, told: str) -> None:
    """Who made that socket need not be a capstand."""
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def answer() -> None:
            client, _ = server.accept()
            client.sendall(said)
            client.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(CapstandError, match=told), push._Link(path, "mic", None) as link:
            link.greet()
            link.finish(push._Bar("mic", None, 48_000))
        thread.join()


def explained() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "own-audio.md").read_text(), re.DOTALL)
    return str(code)


def test_the_client_that_is_explained_works(place: Place) -> None:
    """The program of docs/own-audio.md, as it stands."""
    code = explained()
    assert len(code.splitlines()) <= 20
    run = [sys.executable, "-c", code, str(place.socket)]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert done.stdout == "end 96000\n"
    first = Writer(place.socket)
    first.socket.sendall(bytes(8000))
    place.until(lambda: place.captured > 96_000)
    busy = subprocess.run(run, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert re.fullmatch(r"error: the program \d+ of uid \d+ writes already; .*\n", busy.stdout)
    first.close()
    recorded = np.array(place.recorded()[: 2 * 48_000])
    assert abs(recorded.astype(np.uint32).view(np.int32) % 65_536).max() > 7000


def test_the_client_that_is_explained_says_why_it_was_refused(tmp_path: Path) -> None:
    """Also where it had written already what nobody read: then the connection is reset."""
    path = tmp_path / "push.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        run = [sys.executable, "-c", explained(), str(path)]
        with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as client:
            link, _ = server.accept()
            with link:
                link.send(b"error: the stream is somebody else's\n")
                link.recv(1)
            assert (
                client.communicate(timeout=PATIENCE_S)[0]
                == "error: the stream is somebody else's\n"
            )
            assert client.returncode == 0


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.9, "0:00"), (61, "1:01"), (3599, "59:59"), (3661.5, "1:01:01")]
)
def test_a_length_is_shown_as_by_a_player(seconds: float, shown: str) -> None:
    assert push.clock(seconds) == shown
