"""What libasound says of its own faults reaches the person who made them, and nothing else does."""

import contextlib
import errno
import gc
import threading
from pathlib import Path

import pytest

from capstand.audio.block import SampleFormat
from capstand.capture.alsa import AlsaSource
from capstand.config.schema import CaptureConfig
from capstand.devices import libasound
from capstand.errors import DeviceError
from tests.fakecard import FakeCard


def failure(name: str) -> DeviceError:
    source = AlsaSource(CaptureConfig(device=name, rt_priority=0), name)
    with pytest.raises(DeviceError) as failed:
        source.open()
    source.close()
    return failed.value


@pytest.mark.parametrize(
    ("conf", "device", "words"),
    [
        ('pcm.mic {\n type plug\n slave.pcm "null"\n', "hw:0", ":6:0:Unexpected char"),
        ("pcm.mic { type plug slave.pcm null } }", "mic", "Unexpected }"),
        ("", "nosuch", "Unknown PCM nosuch"),
        ('pcm.mic { type plug slave.pcm "nosuch" }', "mic", "Unknown PCM nosuch"),
        ("pcm.mic { type nosuchplug }", "mic", "libasound_module_pcm_nosuchplug.so"),
        ("pcm.mic { type plug slave.pcm null foo 3 }", "mic", "Unknown field foo"),
        ("pcm.mic { type hw card Nope }", "mic", None),
        ("pcm.mic { slave.pcm null }", "mic", "type is not defined"),
    ],
)
def test_a_fault_of_the_configuration_is_told_in_libasounds_words(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    conf: str,
    device: str,
    words: str | None,
) -> None:
    """A brace, a PCM that nobody defined, a plug-in that is not installed: libasound's words are in
    the error, with the file to look at; a card that is away is no such fault. Nothing goes to
    stderr."""
    path = tmp_path / "asound.conf"
    path.write_text(f"<confdir:alsa.conf>\n{conf}\n")
    monkeypatch.setenv("ALSA_CONFIG_PATH", str(path))
    told = str(failure(device))
    assert told.startswith(f"{device} cannot be opened: ")
    if words is None:
        assert "plugged in" in told
        assert "ALSA says" not in told
    else:
        assert "; ALSA says: " in told
        assert words in told
        assert told.endswith(f"see {path}")
        assert told.isprintable()
    assert capfd.readouterr().err == ""


def test_words_are_one_line_and_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much libasound says and whatever is in it, what is told is one line of bounded
    length."""
    path = tmp_path / "asound.conf"
    name = "x" * 3000 + "\x1b[2J"
    path.write_text(f'<confdir:alsa.conf>\npcm.mic {{ type plug slave.pcm "{name}" }}\n')
    monkeypatch.setenv("ALSA_CONFIG_PATH", str(path))
    for _ in range(40):
        told = str(failure("mic"))
        assert told.isprintable()
        assert len(told) < 1500


def test_each_thread_has_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What libasound says is told to the thread that it said it to."""
    monkeypatch.setenv("ALSA_CONFIG_PATH", "/usr/share/alsa/alsa.conf")
    libasound.record_errors()
    other: list[str] = []

    def fail() -> None:
        libasound.record_errors()
        with pytest.raises(OSError, match=r".") as failed:
            libasound.abilities("theirs")
        assert failed.value.errno == errno.ENOENT
        other.append(libasound.last_errors())

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert other == ["Unknown PCM theirs"]
    assert libasound.last_errors() == ""


@pytest.mark.parametrize(("name", "times"), [("fake", 1000), ("nosuch", 10_000)])
def test_asking_leaves_nothing_behind(fakecard: FakeCard, name: str, times: int) -> None:
    """A device may be asked for months, with success or without: no descriptor and no memory is
    kept; 80 bytes for each that fails would be 190 pages."""

    def ask(times: int) -> tuple[int, int]:
        for _ in range(times):
            with contextlib.suppress(OSError):
                libasound.abilities(name)
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(list(Path("/proc/self/fd").iterdir())), pages

    libasound.record_errors()
    descriptors, pages = ask(200)
    descriptors_then, pages_then = ask(times)
    assert descriptors_then <= descriptors
    assert pages_then <= pages + 100


def test_an_ability_is_asked_beyond_what_is_set(fakecard: FakeCard) -> None:
    """Rates that are offered one by one are all found, and formats that capstand does not take are
    named."""
    fakecard.restrict(rates=(16_000, 96_000), formats=["S24_3LE"])
    can = libasound.abilities(fakecard.device)
    assert (can.rates_hz, can.continuous) == ((16_000, 96_000), True)
    assert can.formats == ("S24_3LE",)
    unlimited = libasound.abilities("null")
    assert "FLOAT64_LE" in unlimited.others
    assert unlimited.askable_hz[0] >= 8000
    assert unlimited.askable_channels == tuple(range(1, 33))


def test_a_device_is_tried_out(fakecard: FakeCard) -> None:
    """Before a USB card is opened for good: one that answers, whatever it answers, is well; what it
    said meanwhile is not told as a fault of somebody's configuration; nothing is left open."""
    tried = (fakecard.device, 48_000, 2, SampleFormat.S16_LE)
    libasound.record_errors()
    libasound.try_out(*tried)
    fakecard.restrict(rates=(44_100, 44_100))
    libasound.try_out(*tried)
    assert libasound.last_errors() == ""
    fakecard.open_error(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        libasound.try_out(*tried)
    fakecard.open_error(0)
    fakecard.restrict()
    for _ in range(3):  # a card is one program's at a time
        libasound.try_out(*tried)


UNIT = Path(__file__).parents[2] / "systemd/capstand.service"


def test_the_service_reads_no_configuration_that_it_could_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libasound reads ~/.asoundrc, which may name programs to run; the service's home is no
    directory that its user, or anybody, can write to, and no variable leads elsewhere."""
    lines = UNIT.read_text().splitlines()
    homes = [line.partition("=HOME=")[2] for line in lines if line.startswith("Environment=HOME=")]
    assert homes == ["/nonexistent"]
    (unset,) = (line for line in lines if line.startswith("UnsetEnvironment="))
    (tmp_path / ".asoundrc").write_text("pcm.mic {")
    for name in ("ALSA_CONFIG_PATH", "XDG_CONFIG_HOME"):
        assert name in unset
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ".asoundrc may be old or corrupted" in str(failure("mic"))
    monkeypatch.setenv("HOME", homes[0])
    assert "ALSA says: Unknown PCM mic; see /etc/asound.conf, ~/.asoundrc" in str(failure("mic"))
