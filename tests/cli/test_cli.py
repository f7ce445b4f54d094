"""The commands, as a person or a unit runs them: in a process of their own, output piped."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from capstand import __version__
from capstand.accounting.stats import StreamStats
from capstand.cli import main as cli
from capstand.cli import run
from capstand.devices import listing as devices
from capstand.devices.listing import Device
from capstand.dsp import ebur128
from capstand.service.display import LiveLine, status_line, status_table
from tests.host.test_control import replying
from tests.patience import PATIENCE_S

CONFIG = """\
[[stream]]
name = "mic"
[stream.capture]
device = "synthetic"
synthetic = {{signal = "counter"}}
[[stream.sink]]
type = "file"
path = "{folder}/rec"
min_free_mb = 0
"""


class Place:
    """A configuration, and the directories of one daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "capstand.toml"
        self.config.write_text(CONFIG.format(folder=folder))

    def buffer(self, milliseconds: int) -> None:
        """Captures so that a busy machine, which stands still, loses nothing."""
        longer = f'device = "synthetic"\nbuffer_ms = {milliseconds}\n'
        text = self.config.read_text().replace('device = "synthetic"\n', longer)
        self.config.write_text(text)

    def start(self, command: str, *arguments: object) -> subprocess.Popen[str]:
        """``capstand command`` as a process; run and status with this place's directories."""
        options: list[object] = []
        if command in ("run", "status"):
            options = ["--runtime", self.folder / "run"]
        if command == "run":
            options += ["--state", self.folder / "state"]
        return subprocess.Popen(
            [sys.executable, "-m", "capstand", command, *map(str, [*options, *arguments])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )

    def call(self, command: str, *arguments: object) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        with self.start(command, *arguments) as process:
            out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err

    def wait_for_sound(self) -> None:
        """The card is open a little before its first block is there."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            status, out, _ = self.call("status", "--json")
            if status == 0 and json.loads(out)["streams"][0]["sinks"][0]["delivered_frames"]:
                return
        pytest.fail("no block reached the recording")

    def ledger(self) -> list[dict[str, Any]]:
        text = (self.folder / "state/ledger/mic.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def recorded(self) -> list[int]:
        """The counters in the one recording there is."""
        (path,) = (self.folder / "rec").iterdir()
        assert re.fullmatch(r"mic-\d{8}T\d{6}\.\d{3}Z\.wav", path.name)
        halves = soundfile.read(path, dtype="int16")[0].view(np.uint16).astype(np.int64)
        return list(halves[:, 0] | halves[:, 1] << 16)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def daemon(place: Place) -> Iterator[subprocess.Popen[str]]:
    """A daemon that captures."""
    with place.start("run", "--config", place.config) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "capturing from" in line:
                    break
            else:
                pytest.fail("the daemon ended before it captured")
            yield process
        finally:
            process.kill()


# check


def test_check_says_that_a_file_is_right(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """check ends with 0 and one line for a right file."""
    assert cli.main(["check", str(place.config)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{place.config}: OK: 1 stream: mic from synthetic\n"
    assert told.err == ""


def test_check_notes_a_name_that_goes_by_a_number(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """check says of a card's number that it does not last; that is no fault."""
    text = place.config.read_text().replace('"synthetic"', '"hw:1"')
    place.config.write_text("\n".join(x for x in text.splitlines() if "counter" not in x))
    assert cli.main(["check", str(place.config)]) == 0
    told = capsys.readouterr()
    assert "OK: 1 stream: mic from hw:1" in told.out
    assert "note: stream mic: hw:1 is whichever card has number 1" in told.out
    assert told.err == ""


def test_check_notes_sound_that_memory_is_too_small_for(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """check says how much of very much sound waits in memory, whatever queue_ms says."""
    text = place.config.read_text()
    much = 'device = "synthetic"\nrate_hz = 768000\nchannels = 32\nformat = "S32_LE"'
    kept = "\n".join(
        x for x in text.splitlines() if not x.startswith(("rate_hz", "channels", "fo"))
    )
    place.config.write_text(kept.replace('device = "synthetic"', much))
    assert cli.main(["check", str(place.config)]) == 0
    told = capsys.readouterr()
    assert "note: stream mic: sink file: queue_ms is 20000, and 2604 ms of so much" in told.out


def test_check_tells_every_fault(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """check ends with 78 and a line on stderr for each fault of a wrong file."""
    text = place.config.read_text().replace('"mic"', '"a b"').replace("min_free_mb", "minfree")
    place.config.write_text(text)
    assert cli.main(["check", str(place.config)]) == 78
    told = capsys.readouterr()
    assert told.out == ""
    first, second = told.err.splitlines()
    assert first.startswith(f"{place.config}:2: stream.a b.name: ")
    assert second.startswith(f"{place.config}:9: stream.a b.sink.1.minfree: ")


def test_check_tells_a_file_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that cannot be read is a fault of the configuration."""
    assert cli.main(["check", str(tmp_path / "none.toml")]) == 78
    assert "cannot be read: No such file or directory" in capsys.readouterr().err


# Help and mistakes


@pytest.mark.parametrize(
    "command", [[], ["run"], ["check"], ["devices"], ["status"], ["reload"], ["set"], ["tap"]]
)
def test_every_command_explains_itself(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """--help ends with 0 and says how each command is used."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: {' '.join(['capstand', *command])} [-h]")
    assert max(map(len, told.splitlines())) <= 100


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """--version is the version of the package."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["play"],
        ["check"],
        ["run", "--seconds", "0"],
        ["run", "--seconds", "-1"],
        ["run", "--seconds", "nan"],
        ["run", "--seconds", "inf"],
        ["run", "--seconds", "x"],
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A command line that means nothing ends with 2 and the usage."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: capstand")


# devices, status


def test_devices_for_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """devices names at least the simulated card; --json is for programs."""
    assert cli.main(["devices"]) == 0
    assert 'device = "synthetic"' in capsys.readouterr().out
    assert cli.main(["devices", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out)["devices"], list)


def test_run_without_a_configuration_names_the_cards_it_cannot_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Beside cards that it cannot use, run says of each why, and that the sound is simulated; with
    one that it can use only those before it are named."""
    monkeypatch.chdir(tmp_path)
    busy = Device(
        *("usb:0d8c:0014:A1", 0, "Mic", "USB Mic", [], False, [], []),
        holder="pipewire (pid 812)",
        trouble=None,
    )
    barred = busy._replace(device="card:PCH", name="PCH", holder=None, trouble="not permitted")
    monkeypatch.setattr(devices, "find", lambda: [busy, barred])
    assert run.without_configuration().stream[0].capture.device == "synthetic"
    told = capsys.readouterr().err.splitlines()
    assert told[:3] == [
        "capstand: usb:0d8c:0014:A1 (USB Mic) skipped: in use by pipewire (pid 812)",
        "capstand: card:PCH (PCH) skipped: not permitted",
        "capstand: no card is usable: the sound is simulated (a tone, not a microphone)",
    ]
    free = barred._replace(
        trouble=None, rates_hz=[48_000], channels=[1], formats=["S16_LE"], device="card:Free"
    )
    monkeypatch.setattr(devices, "find", lambda: [busy, free, barred])
    assert run.without_configuration().stream[0].capture.device == "card:Free"
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "skipped" in line or "simulated" in line] == told[:1]
    monkeypatch.setattr(devices, "find", list)
    assert run.without_configuration().stream[0].capture.device == "synthetic"
    told = capsys.readouterr().err.splitlines()
    assert told[0] == (
        "capstand: no capture card found: the sound is simulated (a tone, not a microphone)"
    )


def test_simulated_sound_says_so_wherever_it_is_shown(
    place: Place, daemon: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The table, the line for systemd and the live line say that no microphone is heard; of a card
    they do not."""
    status, out, _ = place.call("status")
    assert status == 0
    assert "  source    simulated sound, not a microphone\n" in out
    answer = json.loads(place.call("status", "--json")[1])["streams"][0]
    simulated = StreamStats(**{key: answer[key] for key in StreamStats._fields} | {"sinks": ()})
    live = LiveLine()
    live.active = True
    for stats, wanted in ((simulated, True), (simulated._replace(simulated=False), False)):
        live.draw([stats])
        assert ("mic SIMULATED" in capsys.readouterr().err) == wanted
        assert ("simulated sound, not a microphone" in status_line([stats])) == wanted
        table = status_table([stats.as_json()])
        assert ("simulated sound, not a microphone" in table) == wanted


def test_status_without_a_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """status ends with 1 and a sentence where no daemon runs."""
    assert cli.main(["status", "--runtime", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"capstand: {tmp_path}/control.sock: cannot reach the daemon")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize("command", [["status"], ["reload"], ["release", "mic"], ["resume", "mic"]])
@pytest.mark.parametrize(
    "answer", ["{}", '{"reload": [], "streams": [1]}', '{"reload": {"refused": 1}, "stream": {}}']
)
def test_an_answer_of_another_version_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], answer: str
) -> None:
    """What does not fit this version, or comes from one who is no capstand, ends in a sentence."""
    with replying(tmp_path / "control.sock", answer.encode()):
        assert cli.main([*command, "--runtime", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert told.err.startswith(f"capstand: {tmp_path}/control.sock: ")
    assert told.err.count("\n") == 1 and "does not match version" in told.err


def test_what_a_daemon_tells_is_clean_here_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever made that socket: what they say does not steer the terminal of who asks."""
    answer = b'{"error": "\x1b[2J\\n\\udcff"}'.replace(b"\x1b", b"\\u001b")
    with replying(tmp_path / "control.sock", answer):
        assert cli.main(["status", "--runtime", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "capstand: \\x1b[2J \\udcff\n"


# run


def test_a_run_records_every_frame_and_keeps_its_books(place: Place) -> None:
    """run --seconds ends with 0, a whole file that misses no frame, and books that balance."""
    place.buffer(10_000)
    status, out, err = place.call("run", "--seconds", 1, "--config", place.config)
    assert (status, out) == (0, "")
    assert "\x1b" not in err
    assert "\r" not in err
    assert re.search(r"^\d\d:\d\d:\d\d mic: capturing from synthetic, 48000 Hz", err, re.MULTILINE)
    assert "warning: mic: simulated sound, not a microphone\n" in err
    counters = place.recorded()
    assert len(counters) >= 480
    assert counters == list(range(len(counters)))
    events = place.ledger()
    assert [event["event"] for event in events] == ["start", "opened", "stop"]
    assert (events[0]["device"], events[1]["exact"]) == ("synthetic", True)
    last = events[-1]
    assert last["balanced"] is True
    assert last["produced_frames"] == last["captured_frames"] == len(counters)
    assert (last["lost_frames"], last["lost_exact"]) == (0, True)
    assert last["sinks"] == [
        {
            "name": "file",
            "since_frame": 0,
            "captured_frames": len(counters),
            "delivered_frames": len(counters),
            "dropped_frames": 0,
            "in_flight_frames": 0,
            "inserted_frames": 0,
        }
    ]
    assert not (place.folder / "run/control.sock").exists()


def test_a_gap_is_in_the_file_and_in_the_ledger(place: Place) -> None:
    """Lost frames are silence in the file, and a line in ledger and log with place and length."""
    text = place.config.read_text().replace(
        '"counter"', '"counter", faults = [{kind = "overrun", at_s = 0.2, for_s = 2.6}]'
    )
    place.config.write_text(text)
    place.buffer(2000)
    status, _, err = place.call("run", "--seconds", 4, "--config", place.config)
    assert status == 0
    (gap,) = [one for one in place.ledger() if one["event"] == "gap"]
    first, frames = gap["first_frame"], gap["frames"]
    assert (gap["cause"], gap["exact"]) == ("overrun", True)
    assert f"lost {frames} frames" in err
    counters = place.recorded()
    whole = list(range(len(counters)))
    assert counters == [*whole[:first], *[0] * frames, *whole[first + frames :]]
    last = place.ledger()[-1]
    assert (last["event"], last["balanced"], last["lost_frames"]) == ("stop", True, frames)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_whole_files(
    place: Place, daemon: subprocess.Popen[str], number: signal.Signals
) -> None:
    """SIGTERM and Ctrl-C drain what was captured, close the file and end with 0."""
    place.wait_for_sound()
    daemon.send_signal(number)
    assert daemon.stderr is not None
    err = daemon.stderr.read()
    assert daemon.wait(PATIENCE_S) == 0
    assert f"stopping: {number.name}" in err
    assert "did not stop in time" not in err
    stop = place.ledger()[-1]
    assert (stop["event"], stop["balanced"]) == ("stop", True)
    counters = place.recorded()
    assert counters == list(range(stop["captured_frames"]))


def test_a_running_daemon_tells_its_state(place: Place, daemon: subprocess.Popen[str]) -> None:
    """status asks the running daemon; with --json the two invariants can be checked."""
    status, out, err = place.call("status", "--json")
    assert (status, err) == (0, "")
    answer = json.loads(out)
    assert (answer["pid"], answer["version"]) == (daemon.pid, __version__)
    (stream,) = answer["streams"]
    assert (stream["name"], stream["device"], stream["trouble"]) == ("mic", "synthetic", None)
    assert stream["balanced"] is True
    assert stream["produced_frames"] == stream["captured_frames"] + stream["lost_frames"]
    (sink,) = stream["sinks"]
    assert stream["captured_frames"] == (
        sink["delivered_frames"] + sink["dropped_frames"] + sink["in_flight_frames"]
    )
    status, out, _ = place.call("status")
    assert status == 0
    assert re.match(r"mic  (OK|STARTING)  synthetic  48000 Hz, 2 ch, S16_LE\n", out)
    assert "counted exactly" in out
    assert "→ file    open; " in out


def test_loudness_is_in_the_status_where_it_is_wanted(place: Place) -> None:
    """A stream with ``loudness = true``: its process measures it, and the daemon tells it."""
    if not ebur128.library():
        pytest.skip(f"{ebur128.PACKAGE} is missing")
    tone = place.config.read_text().replace('"counter"', '"tone", level_dbfs = -20, tone_hz = 997')
    wanted = 'device = "synthetic"\nbuffer_ms = 10000\nloudness = true\n'
    place.config.write_text(tone.replace('device = "synthetic"\n', wanted))
    with place.start("run", "--config", place.config) as process:
        try:
            place.wait_for_sound()
            deadline, figures = time.monotonic() + PATIENCE_S, None
            while figures is None or figures["short_term_lufs"] < -21:
                assert time.monotonic() < deadline, figures
                figures = json.loads(place.call("status", "--json")[1])["streams"][0]["loudness"]
            shown = place.call("status")[1]
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE_S)
    assert figures["max_true_peak_dbtp"] == pytest.approx(-20, abs=0.2)
    assert re.search(r"loudness  -2\d\.\d+ LUFS short-term, .* true peak -20\.0 dBTP", shown)


def test_the_command_line_of_the_daemon_is_light() -> None:
    """What argparse would load to learn how wide a terminal is would stay in memory for months."""
    code = "import sys\nfrom capstand.cli import main\nmain._parser(['run'])\n"
    code += "print(sorted({'shutil', 'zlib', 'bz2', 'lzma'} & {*sys.modules} - before))"
    command = [sys.executable, "-c", "import sys\nbefore = {*sys.modules}\n" + code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_two_daemons_do_not_share_a_directory(place: Place, daemon: subprocess.Popen[str]) -> None:
    """A second daemon on the same runtime directory ends with 1 and says what to do."""
    status, _, err = place.call("run", "--seconds", 1, "--config", place.config)
    assert status == 1
    assert "cannot start: " in err
    assert "another capstand is running there" in err
    assert daemon.poll() is None
    assert place.call("status")[0] == 0


def test_a_wrong_configuration_does_not_run(place: Place) -> None:
    """run ends with 78 and every fault where the configuration is wrong."""
    place.config.write_text(place.config.read_text().replace('"file"', '"fiel"'))
    status, out, err = place.call("run", "--config", place.config)
    assert (status, out) == (78, "")
    assert err == (
        f'{place.config}:7: stream.mic.sink.1.type: "fiel": expected one of "file", "agora", '
        '"alsa", "socket"; did you mean file?\n'
    )
    assert not (place.folder / "rec").exists()


def test_a_disk_that_takes_nothing_does_not_end_it(place: Place) -> None:
    """Where nothing can be recorded the daemon runs on, says so, counts what it dropped, and does
    not end as if all were well."""
    (place.folder / "rec").write_text("no directory")
    status, _, err = place.call("run", "--seconds", 1, "--config", place.config)
    assert status == 1
    assert "error: mic: sink file: " in err
    assert "error: mic: nothing was recorded: " in err
    last = place.ledger()[-1]
    (sink,) = last["sinks"]
    assert last["balanced"] is True
    assert (sink["delivered_frames"], sink["in_flight_frames"]) == (0, 0)
    assert sink["dropped_frames"] == last["captured_frames"] > 0
