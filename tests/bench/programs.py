"""The programs under test, each on a fake card of its own kind.

cards = Cards(folder)
with Running(BY_NAME["arecord"], cards, folder) as run:
    time.sleep(5)
    run.cpu_s(), run.card.frames_lost
missing(run.file(), run.card)   # frames that are not in the file
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from tests import fakecard
from tests.agora import StandIn, build, place
from tests.bench import machine
from tests.fakecard import FakeCard

RATE_HZ, PERIOD, BUFFER_MS = 48_000, 480, 500
FRAME_BYTES = 4
HERE = Path(sys.executable).parent
SOURCE = Path(fakecard.__file__).with_name("fakecap.c")
STOP_S = 20.0
HEADER = 112
"""No program's empty WAV file is longer, in bytes."""
RTP_PORT = 5004
"""Where the live programs send to, on this machine; somebody must listen there (``receiver``)."""

_FREE = ("HW_PERIOD_BYTES, 32, 1 << 20", "HW_BUFFER_BYTES, 64, 1 << 24")


class Cards:
    """Makes fake cards that grant 10 ms periods and at most ``buffer_ms`` of buffer.

    FFmpeg takes the smallest period and the largest buffer that a card has, with no way to ask for
    others; so the card is the one to settle that, as many a USB card does.
    """

    def __init__(self, folder: Path, buffer_ms: int = BUFFER_MS) -> None:
        self.folder = folder
        self.buffer_frames = buffer_ms * RATE_HZ // 1000
        period = PERIOD * FRAME_BYTES
        text = SOURCE.read_text()
        for old, low, high in zip(
            _FREE, (period, 2 * period), (period, self.buffer_frames * FRAME_BYTES), strict=True
        ):
            assert old in text, f"{SOURCE.name} has changed: no {old}"
            text = text.replace(old, f"{old.partition(',')[0]}, {low}, {high}")
        folder.mkdir(parents=True, exist_ok=True)
        self.plugin = folder / "libasound_module_pcm_fakecap.so"
        flags = ["-O2", "-shared", "-fPIC", "-DPIC", "-x", "c", "-"]
        subprocess.run(
            ["gcc", *flags, "-o", str(self.plugin), "-lasound", "-lm"],
            input=text,
            text=True,
            check=True,
        )
        self._made = 0

    def new(self) -> FakeCard:
        self._made += 1
        return FakeCard(self.folder, f"card{self._made}", self.plugin)


class Program(NamedTuple):
    """``command`` gives the words of the command line for a card's name, its buffer and a folder to
    write to; ``without`` names what is missing on this machine, or None.
    """

    name: str
    command: Callable[[str, int, Path], list[str]]
    without: Callable[[], str | None] = lambda: None
    env: Callable[[Path], dict[str, str]] = lambda folder: {}


def _words(text: str) -> list[str]:
    return shlex.split(text)


def _needs(tool: str, *plugins: str) -> Callable[[], str | None]:
    def look() -> str | None:
        if shutil.which(tool) is None:
            return f"{tool} is not installed and could not be"
        for plugin in plugins:
            ask = ["gst-inspect-1.0", plugin]
            if subprocess.run(ask, capture_output=True, check=False).returncode:
                return f"GStreamer has no {plugin}"
        return None

    return look


def arecord(card: str, buffer: int, folder: Path) -> list[str]:
    return _words(
        f"arecord -q -D {card} -t wav -f S16_LE -r {RATE_HZ} -c 2 "
        f"--period-size={PERIOD} --buffer-size={buffer} {folder}/out.wav"
    )


def arecord_fifo(card: str, buffer: int, folder: Path) -> list[str]:
    return ["chrt", "-f", "70", *arecord(card, buffer, folder)]


def _ffmpeg(card: str, output: str) -> list[str]:
    return _words(
        f"ffmpeg -nostdin -nostats -loglevel error -f alsa -sample_rate {RATE_HZ} -channels 2 "
        f"-i {card} {output}"
    )


def _gstreamer(options: str, card: str, buffer: int, rest: str) -> list[str]:
    return _words(
        f"gst-launch-1.0 {options} alsasrc device={card} buffer-time={buffer * 1000 // 48} "
        f"latency-time=10000 ! audio/x-raw,format=S16LE,rate={RATE_HZ},channels=2 ! {rest}"
    )


def ffmpeg(card: str, buffer: int, folder: Path) -> list[str]:
    return _ffmpeg(card, f"-c:a pcm_s16le {folder}/out.wav")


def gstreamer(card: str, buffer: int, folder: Path) -> list[str]:
    return _gstreamer("-e -q", card, buffer, f"wavenc ! filesink location={folder}/out.wav")


def ffmpeg_live(card: str, buffer: int, folder: Path) -> list[str]:
    packets = f"-f rtp rtp://127.0.0.1:{RTP_PORT}"
    return _ffmpeg(card, f"-c:a libopus -b:a 64k -frame_duration 10 {packets}")


def _gstreamer_live(chain: str) -> Callable[[str, int, Path], list[str]]:
    def command(card: str, buffer: int, folder: Path) -> list[str]:
        sink = f"udpsink host=127.0.0.1 port={RTP_PORT}"
        return _gstreamer("-q", card, buffer, f"{chain} ! {sink}")

    return command


CAPTURE = """\
[[stream]]
name = "{name}"
capture = {{ device = "{card}", channels = 2, buffer_ms = {buffer_ms} }}
"""
FILE = """\
[[stream.sink]]
type = "file"
path = "{folder}"
min_free_mb = 0
gaps = "skip"
"""
AGORA = """\
[[stream.sink]]
type = "agora"
name = "{name}"
app_id = "0123456789abcdef0123456789abcdef"
channel = "{name}"
rate_lock = {lock}
"""


def capstand_run(folder: Path, config: str) -> list[str]:
    """The daemon's command line; the configuration goes into ``folder``."""
    place = folder / "own"
    place.mkdir(exist_ok=True)
    (place / "capstand.toml").write_text(config)
    where = ["--runtime", str(place / "run"), "--state", str(place / "state")]
    config_file = str(place / "capstand.toml")
    return [str(HERE / "capstand"), "run", "--quiet", "--config", config_file, *where]


def agora_sink(lock: bool, name: str = "studio") -> str:
    """The configuration of a channel, with rate lock or without."""
    return AGORA.format(name=name, lock=str(lock).lower())


def capstand_with(*tables: str) -> Callable[[str, int, Path], list[str]]:
    """A stream with these processors and sinks."""

    def command(card: str, buffer: int, folder: Path) -> list[str]:
        capture = CAPTURE.format(name="mic", card=card, buffer_ms=buffer // 48)
        return capstand_run(folder, capture + "".join(tables).replace("{folder}", str(folder)))

    return command


def capstand_nothing(card: str, buffer: int, folder: Path) -> list[str]:
    return [sys.executable, "-m", "tests.bench.inside", "nothing", card, str(buffer), "0"]


def standin(folder: Path) -> StandIn:
    """The stand-in of the program that writes into ``folder``."""
    sdk = folder / "sdk"
    return StandIn(sdk if sdk.exists() else place(sdk, build(folder / "library")), folder)


def standin_env(folder: Path) -> dict[str, str]:
    # Neither log nor sound is kept: that is the stand-in's own work, not the SDK's or ours.
    return {**standin(folder).env, "STANDIN_PCM": "", "STANDIN_LOG": ""}


def no_agora() -> str | None:
    from tests import agora

    lacking = agora.missing()
    return f"the stand-in for Agora's library cannot be built: {lacking}" if lacking else None


CAPSTAND = Program("capstand, WAV", capstand_with(FILE))
NOTHING = Program("capstand, to nowhere", capstand_nothing)


def _channels(words: str, *sinks: str) -> Program:
    return Program(f"capstand, {words}", capstand_with(*sinks), no_agora, standin_env)


PASS = _channels("Agora, pass-through", agora_sink(False))
LOCK = _channels("Agora, rate lock", agora_sink(True))
PASS_TWICE = _channels("two such channels, pass-through", agora_sink(False), agora_sink(False, "b"))
LOCK_TWICE = _channels("two such channels, rate lock", agora_sink(True), agora_sink(True, "b"))
ARECORD = Program("arecord, WAV", arecord, _needs("arecord"))
ARECORD_FIFO = Program("arecord, WAV, SCHED_FIFO", arecord_fifo, _needs("arecord"))
FFMPEG = Program("ffmpeg -f alsa, WAV", ffmpeg, _needs("ffmpeg"))
GSTREAMER = Program("gst-launch alsasrc, WAV", gstreamer, _needs("gst-launch-1.0", "alsasrc"))


def _gst_live(words: str, chain: str, *plugins: str) -> Program:
    needs = _needs("gst-launch-1.0", "alsasrc", *plugins, "udpsink")
    return Program(f"gst-launch alsasrc, {words}, RTP", _gstreamer_live(chain), needs)


GST_L16 = _gst_live("L16", "audioconvert ! rtpL16pay", "audioconvert", "rtpL16pay")
GST_44100 = _gst_live(
    "44.1 kHz, L16",
    "audioresample ! audio/x-raw,rate=44100 ! audioconvert ! rtpL16pay",
    *("audioresample", "audioconvert", "rtpL16pay"),
)
GST_OPUS = _gst_live(
    "Opus", "opusenc bitrate=64000 frame-size=10 ! rtpopuspay", "opusenc", "rtpopuspay"
)
FFMPEG_OPUS = Program("ffmpeg -f alsa, Opus, RTP", ffmpeg_live, _needs("ffmpeg"))


class Running:
    """A program that runs on a new card, writes into a new folder, and is stopped at the end."""

    def __init__(self, program: Program, cards: Cards, under: Path) -> None:
        self.program = program
        self.card = cards.new()
        self.folder = under / self.card.device
        self.folder.mkdir()
        self.command = program.command(self.card.device, cards.buffer_frames, self.folder)
        self._env = {**os.environ, **self.card.env, **program.env(self.folder)}
        self.began_ns = 0
        self._cpu_s: dict[int, float] = {}

    def __enter__(self) -> Self:
        self._log = (self.folder / "log").open("w+")
        self.began_ns = time.monotonic_ns()
        self.process = subprocess.Popen(
            self.command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def check(self) -> None:
        """Raises RuntimeError when the program has ended by itself."""
        if self.process.poll() is not None:
            said = (self.folder / "log").read_text().strip().splitlines() or ["nothing"]
            raise RuntimeError(
                f"{self.program.name} ended with {self.process.returncode}; it said: {said[-1]}"
            )

    def processes(self) -> list[int]:
        """All of the program's, the one that was started first."""
        return machine.family(self.process.pid)

    def cpu_s(self) -> float:
        """Processor time of all its processes so far, in seconds; of one that has ended since, what
        it had when this was asked last."""
        for process in self.processes():
            with suppress(OSError):  # ended meanwhile
                self._cpu_s[process] = machine.cpu_s(process)
        return sum(self._cpu_s.values())

    def memory_mb(self) -> float:
        """Memory of all its processes, what they share counted once."""
        return sum(machine.memory_mb(self.processes()).values())

    def books(self) -> "Books":
        """What capstand itself says of its sinks; raises RuntimeError while it does not answer."""
        words = [str(HERE / "capstand"), "status", "--json", "--runtime", f"{self.folder}/own/run"]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
        except subprocess.SubprocessError as error:
            raise RuntimeError(f"capstand tells no status: {error}") from None
        sinks = [one for stream in json.loads(done.stdout)["streams"] for one in stream["sinks"]]
        return Books(
            min(sink["delivered_frames"] for sink in sinks),
            sum(sink["dropped_frames"] for sink in sinks),
        )

    def settle(self, seconds: float, patience_s: float = 90.0) -> None:
        """Waits until every sink of capstand's has been given sound, and for so long after that."""
        end = time.monotonic() + patience_s
        why = "a sink has no sound"
        while time.monotonic() < end:
            self.check()
            try:
                if self.books().least_delivered:
                    break
            except RuntimeError as error:
                why = str(error)
            time.sleep(0.5)
        else:
            raise RuntimeError(f"{why}, after {patience_s:g} s")
        time.sleep(seconds)
        self.check()

    def file(self) -> Path | None:
        """The sound file, under whatever name it has now."""
        names = [*self.folder.glob("*.wav"), *self.folder.glob("*.wav.part")]
        return names[0] if names else None


class Books(NamedTuple):
    """``least_delivered`` is that of the sink that got least; ``dropped`` is the sum; frames."""

    least_delivered: int
    dropped: int


@contextmanager
def receiver() -> Iterator[Callable[[], int]]:
    """Listens for RTP; gives a function that throws away what has come and says how many packets it
    was, or fewer: what comes while its queue is full is lost, which costs the sender nothing.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("127.0.0.1", RTP_PORT))
        own.setblocking(False)

        def take() -> int:
            count = 0
            with suppress(BlockingIOError):
                while own.recv(65536):
                    count += 1
            return count

        yield take


def missing(file: Path | None) -> int:
    """Frames that lack between the first and the last one in a WAV file."""
    return account(file)[0]


def account(file: Path | None) -> tuple[int, int]:
    """Frames that lack in a WAV file, and frames in it that are there twice or are silence.

    Every frame of a card sounds as its number (32 bits, from 0), so whoever lost it, it shows.
    """
    if file is None:
        raise ValueError("no file")
    numbers = frame_numbers(file)
    if not len(numbers):
        raise ValueError("no sound in the file")
    kept = len(np.unique(numbers))
    return int(numbers.max()) - int(numbers.min()) + 1 - kept, len(numbers) - kept


def frame_numbers(file: Path) -> npt.NDArray[np.uint32]:
    """What every frame of a WAV file sounds as: its number on the card."""
    return np.frombuffer(_sound(file), "<u4")


def sound_frames(file: Path) -> int:
    """How many frames a WAV file holds."""
    return len(_sound(file)) // FRAME_BYTES


def _sound(file: Path) -> bytes:
    """Whole frames behind the header, whatever its sizes say."""
    data = file.read_bytes()
    at = 12
    while data[at : at + 4] != b"data":
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    sound = data[at + 8 :]
    return sound[: len(sound) // FRAME_BYTES * FRAME_BYTES]


@contextmanager
def stress(kind: str, seconds: float) -> Iterator[str]:
    """Load on all cores ("cpu"), or on memory as well ("memory"); says what it was."""
    cores = str(machine.CORES)
    args = ["--cpu", cores]
    if kind == "memory":
        args += ["--vm", "2", "--vm-bytes", "40%", "--vm-keep", "--cache", cores]
    if shutil.which("stress-ng"):
        command = ["stress-ng", "--quiet", "--timeout", f"{seconds + 60:.0f}", *args]
        count = 1
    else:
        command, count = [sys.executable, "-c", "while True: pass"], machine.CORES
    made = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(count)
    ]
    try:
        time.sleep(1.0)
        yield " ".join(command) if count == 1 else f"{count} busy loops; stress-ng is missing"
    finally:
        for one in made:
            one.send_signal(signal.SIGINT)
        for one in made:
            try:
                one.wait(STOP_S)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()
