"""Hostile input: configurations, device names and bytes on the control socket that mean no good.

Whatever comes in is refused in words that say where and what, changes nothing, and ends no process.
A few examples run each time, many with CAPSTAND_FULL=1; all come from fixed seeds.
"""

import json
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstand.cli import main as cli
from capstand.config import naming
from capstand.config.decode import decode
from capstand.config.schema import Config, load
from capstand.errors import ConfigError
from capstand.host.control import PER_USER, ask
from tests.config.test_shipped_config import SHIPPED, uncommented
from tests.counts import counts
from tests.figures import figure
from tests.host.test_control import ANSWER, Daemon, honest
from tests.patience import PATIENCE_S
from tests.service.test_service import CONFIGURATION
from tests.service.test_service import Daemon as Service

TOKENS = (
    *("0", "-1", "1e999", "nan", "inf", "9" * 5000, "0x7fffffffffffffff", "48000", "1979-05-27"),
    *('""', '"mic"', '"\\u0000"', '"\\u202e\\u009b2J"', '"' + "x" * 3000 + '"', "'''", '"""'),
    *("true", "[]", "[[]]", "{}", "{a = {b = 1}}", "[" * 60, "{" * 60, "]", "}", "=", ".", "#"),
    *("\\", "\r", "\t", "\x00", "\x1b[2J", "\ufeff", "é", "\U0001f399", "\u2028", "\x9b"),
    *("[stream]", "[[stream]]", "[stream.capture]", "[[stream.sink]]", "[stream.sink.token]"),
    *('type = "file"', 'type = "agora"', 'device = "synthetic"', "sink = 1", "capture = []"),
    *("stream = []", "name = 5", "synthetic = {faults = [{}]}", 'path = "/x"', 'source = "file"'),
)
FAULT = re.compile(r"c\.toml(:\d+: .+|: not a configuration: .+)")


@pytest.fixture
def no_hang() -> Iterator[None]:
    """Ends a test that does not come back."""

    def give_up(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(counts(120, 3600))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def mutated(chance: random.Random, bases: list[str]) -> str:
    """A right file, or another mutation of one, changed in a few places."""
    text = chance.choice(bases)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        lines = text.split("\n")
        at = chance.randrange(len(lines))
        match chance.randrange(8):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, chance.choice(lines))
            case 2:
                lines.insert(at, chance.choice(TOKENS))
            case 3:
                key = lines[at].split("=")[0]
                lines[at] = f"{key}= {chance.choice(TOKENS)}"
            case 4:
                spot = chance.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:spot] + chance.choice(TOKENS) + lines[at][spot:]
            case 5:
                spot = chance.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:spot] + lines[at][spot + 1 :]
            case 6:
                other = chance.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case _:
                lines = lines[: at + 1]
        text = "\n".join(lines) or "#"
    return text


def scrap(chance: random.Random) -> str:
    """What somebody might have found on the floor: pieces of TOML in any order."""
    return chance.choice(("\n", " ", "")).join(chance.choices(TOKENS, k=chance.randrange(12)))


def right_files() -> list[str]:
    short = CONFIGURATION.format(device="hw:0", folder="/rec")
    many = "".join(short.replace('"mic"', f'"m{n}"').replace("hw:0", f"hw:{n}") for n in range(8))
    return [short, many, SHIPPED.read_text(), uncommented()]


@pytest.mark.usefixtures("no_hang")
def test_any_configuration_is_right_or_refused_line_by_line() -> None:
    """Thousands of broken files: each either loads or is refused with lines that name file, line
    and key and can be printed anywhere; none ends in a traceback, none hangs."""
    chance, bases = random.Random(20261122), right_files()
    right = refused = 0
    for _ in range(counts(3_000, 100_000)):
        text = mutated(chance, bases) if chance.random() < 0.9 else scrap(chance)
        try:
            assert isinstance(decode(text, "c.toml", Config), Config)
            right += 1
        except ConfigError as error:
            refused += 1
            assert error.faults
            for line in error.faults:
                assert FAULT.fullmatch(line), line
                assert line.isprintable(), line
                assert len(line) < 2000, line
    assert right > 50 and refused > 1000
    figure("fuzzed configurations", f"{refused} refused line by line, {right} right")


@pytest.mark.usefixtures("no_hang")
def test_any_bytes_in_a_configuration_are_right_or_refused(tmp_path: Path) -> None:
    """Files of any bytes, cut off or torn, are refused with the name of the file."""
    chance, path = random.Random(7), tmp_path / "c.toml"
    good = right_files()[0].encode()
    for _ in range(counts(300, 10_000)):
        raw = bytearray(good if chance.random() < 0.7 else chance.randbytes(chance.randrange(400)))
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(raw) + 1)
            raw[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
        path.write_bytes(raw)
        try:
            load(path)
        except ConfigError as error:
            assert all(
                fault.startswith(f"{path}:") and fault.isprintable() for fault in error.faults
            )


def test_check_refuses_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`capstand check` ends with 0 or 78 for whatever it is given, and says why on stderr."""
    chance, bases, path = random.Random(3), right_files(), tmp_path / "c.toml"
    for _ in range(counts(40, 400)):
        path.write_text(mutated(chance, bases))
        status = cli.main(["check", str(path)])
        told = capsys.readouterr()
        assert status in (0, 78)
        assert (told.err == "") == (status == 0) == bool(told.out)
    for odd in (tmp_path, tmp_path / "none", Path("/dev/zero"), Path("/proc/self/mem")):
        assert cli.main(["check", str(odd)]) == 78
        assert capsys.readouterr().err.count("\n") == 1


def test_run_refuses_with_78(tmp_path: Path) -> None:
    """The daemon itself ends with 78 and no traceback for a file that is refused."""
    chance, bases, path = random.Random(4), right_files(), tmp_path / "c.toml"
    for _ in range(counts(4, 60)):
        text = mutated(chance, bases) + "\nthis = is = no TOML"
        path.write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "capstand", "run", "--config", str(path), "--seconds", "1"],
            capture_output=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 78, done.stderr
        assert b"Traceback" not in done.stderr


# Device names

OPENING = """
import json, sys
from capstand.capture.alsa import AlsaSource
from capstand.config.schema import CaptureConfig
from capstand.errors import DeviceError

for name in json.load(sys.stdin):
    source = AlsaSource(CaptureConfig(device=name, rt_priority=0))
    try:
        source.open()
        told = ""
    except DeviceError as error:
        told = str(error)
    source.close()
    print(json.dumps([name, told]), flush=True)
"""
NAMES = (
    *("hw:0; rm -rf /", "hw:0,0,0,0", "hw:99", "hw:-1", "hw:CARD=", "hw:'", 'hw:"', "hw:{", "hw:}"),
    *("{", "}", "{type null}", "@func", "{@func getenv}", "hw:{@func getenv vars [HOME]}", "$HOME"),
    *("plug:{type hw card 0}", "plug:plug:plug:hw", "plug:'plug:\"plug:hw\"'", "null:''", "empty"),
    *("<confdir:alsa.conf>", "</etc/passwd>", "../../etc/passwd", "/dev/snd/pcmC0D0c", "%s%n%x"),
    *(
        "a" * 256,
        "hw:" + "9" * 253,
        "{" * 256,
        "hw:" + "{" * 200,
        "'" * 256,
        "é" * 256,
        "\U0001f399",
    ),
    *("default:CARD=x", "sysdefault:", "dsnoop:99", "pulse", "hw:CARD=\u202eciM", "a b c", "\\"),
)


def opened(names: list[str]) -> list[tuple[str, str]]:
    """What a process of its own is told when it opens each of these."""
    done = subprocess.run(
        [sys.executable, "-c", OPENING],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        timeout=counts(120, 3600),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == "", "libasound talks"
    return [(one[0], one[1]) for one in map(json.loads, done.stdout.splitlines())]


def test_hostile_device_names_are_refused_in_words() -> None:
    """Whatever a device is called, opening it ends in a sentence, never in a crash of libasound."""
    chance = random.Random(9)
    pieces = [*"{}[]()<>@$#%&'\"\\:;,.=| ~!?*/+-_aZ09é", "hw:", "plug:", "CARD=", "type", "@func "]
    made = [
        name
        for _ in range(counts(150, 5_000))
        for name in ["".join(chance.choices(pieces, k=chance.randrange(1, 40)))[:256]]
        if "|" not in name
    ]
    told = opened([*NAMES, *made])
    assert len(told) == len(NAMES) + len(made)
    figure("hostile device names", f"{len(told)} opened, each refused in words or right")
    for name, words in told:
        if words:
            assert words.startswith(f"{name} cannot be opened: "), words
            assert "; " in words


@pytest.mark.parametrize(
    "device",
    [
        "file:'|touch {}',raw",
        "file:{}",
        "FILE=x,file : {}",
        "tee:null,'|touch {}',raw",
        "plug:'file:{}'",
        "plug:SLAVE='tee:null,{},raw'",
        "plug:file:out.raw",
        "pcm.file:out.raw",
    ],
)
def test_a_device_name_runs_no_command_and_writes_no_file(tmp_path: Path, device: str) -> None:
    """ALSA's plug-ins file and tee write where a name tells them to, and run what follows a bar:
    such names are refused when the configuration is read."""
    target = tmp_path / "written"
    text = CONFIGURATION.format(device=device.format(target), folder=tmp_path)
    with pytest.raises(ConfigError, match="ALSA would run a command or write a file"):
        decode(text, "c.toml", Config)
    assert not target.exists()


ESCAPED = (
    # The words that give it away, written so that only libasound reads them.
    r'plug:{{SLAVE="\146ile:\047\174touch {0}\047,raw"}}',
    r"plug:{{SLAVE='\x66ile:{0},raw'}}",
    r"plug:'fi\154e:{0},raw'",
    r'plug:"\146\151\154\145:{0},raw"',
    r'plug:{{SLAVE {{type \146ile file "{0}" format raw slave.pcm null}}}}',
    "plug:{{SLAVE={{type fil\\e file '{0}' slave.pcm null}}}}",
    "{{type 'fil'e file {0} slave.pcm null}}",
    "speexrate:SLAVE='fil\\145:{0}'",
    "a52:SLAVE='t\\145e:null,{0}'",
    "hw:{{@func getenv vars [HOME]}}",
    "<{0}>",
    "shm:{0},null",
    "oss:{0}",
    "rate_convert:SLAVE={0}",
    "cards.pcm.default:CARD=0",
    "pcm.t\te\te:null,{0}",
)


@pytest.mark.parametrize("device", ESCAPED)
def test_a_name_that_libasound_decodes_does_not_reach_it(tmp_path: Path, device: str) -> None:
    """Quotes, braces, escapes, functions and arguments of plug-ins: no spelling gets past the
    configuration or, should it come from elsewhere, past the opening."""
    target = tmp_path / "written"
    name = device.format(target)
    quoted = json.dumps(name)
    text = CONFIGURATION.replace('"{device}"', "{device}").format(device=quoted, folder=tmp_path)
    assert quoted in text
    with pytest.raises(ConfigError, match=r"capture\.device: "):
        decode(text, "c.toml", Config)
    with pytest.raises(ConfigError, match=r"capture\.device: "):
        decode(text.replace(quoted, f'["hw:0", {quoted}]'), "c.toml", Config)
    ((_, told),) = opened([name])
    assert told.startswith(f"{name} cannot be opened: "), told
    assert not target.exists()


SIGNS = "abzAZ059:,=._- '\"\\{}[]()<>@$|/!*?&;#%~+\t\x7féß"


@given(
    st.one_of(
        st.text(st.sampled_from(SIGNS), min_size=1, max_size=40),
        st.text(min_size=1, max_size=40),
        st.lists(
            st.sampled_from(
                [*SIGNS, *("hw:", "plug:", "file", "tee", "SLAVE=", "CARD=", "pulse:")]
            ),
            min_size=1,
            max_size=12,
        ).map("".join),
    )
)
@settings(max_examples=counts(300, 20_000), deadline=None)
def test_what_reaches_libasound_has_no_meaning_beyond_a_name(name: str) -> None:
    """A name that is let through is plain, or a known PCM with plain arguments: nothing in it has
    a meaning for libasound's parser but colon, comma and equals sign, and no PCM is named in an
    argument but after plug:."""
    if naming.fault(name) is not None or naming.parse(name) is not None:
        return
    assert re.fullmatch(r"[A-Za-z0-9_.:,=@+-]{1,256}", name)
    head, colon, arguments = name.partition(":")
    if not colon:
        assert re.fullmatch(r"[A-Za-z0-9_-]+", name)
    elif head == "plug":
        inner = arguments.removeprefix("SLAVE=")
        assert "," not in inner
        assert re.fullmatch(r"[A-Za-z0-9_-]+", inner) or inner.partition(":")[0] in CARD_PCMS
    else:
        assert head in {*CARD_PCMS, "pulse", "pipewire", "bluealsa"}


CARD_PCMS = (
    *("hw", "plughw", "default", "sysdefault", "dsnoop", "front", "rear", "center_lfe", "side"),
    *("iec958", "spdif", "hdmi", "modem", "phoneline", "usbstream"),
    *(f"surround{number}" for number in (21, 40, 41, 50, 51, 71)),
)


@pytest.mark.parametrize(
    "device",
    [
        *("hw:CARD=file", "hw:CARD=tee,DEV=0", "filet", "hw:0", "hw:1,0", "hw:CARD=Device,DEV=0"),
        *("plughw:1", "plughw:CARD=Device,DEV=0", "default", "default:CARD=Device", "mic-left_2"),
        *("sysdefault:CARD=Device", "front:CARD=Device,DEV=0", "dsnoop:CARD=Device,DEV=0"),
        *("iec958:CARD=PCH,DEV=0", "usbstream:CARD=Device", "pulse", "pipewire", "jack", "shared"),
        *("plug:shared", "plug:hw:0", "plug:SLAVE=dsnoop:CARD=Device", "hw:0,0,0"),
        "pulse:alsa_input.usb-C-Media_USB-00.mono-fallback",
        "pipewire:NODE=alsa_input.usb-C-Media_USB-00.mono-fallback",
        "bluealsa:DEV=00:11:22:33:44:55,PROFILE=sco",
    ],
)
def test_names_that_people_have_are_right(tmp_path: Path, device: str) -> None:
    """What `arecord -L` prints, sound servers and PCMs of one's own are taken as they are; a card
    may be called what it likes."""
    decode(CONFIGURATION.format(device=device, folder=tmp_path), "c.toml", Config)


# The control socket


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(tmp_path / "run" / "control.sock")
    yield one
    one.close()


PIECES = (
    *(b'{"ask": "status"}', b"\n", b"{", b"}", b"[", b'"', b":", b"ask", b"status", b"null", b"\0"),
    *(
        b"\xff\xfe",
        b"9" * 900,
        b"[" * 900,
        b'{"a":' * 150,
        b"\\ud800",
        b"NaN",
        b"1e999",
        b" " * 700,
    ),
)


def test_any_bytes_are_answered_or_refused(daemon: Daemon) -> None:
    """Thousands of clients that send anything, whole or in pieces, and hang up anywhere: each gets
    the answer or a refusal, nothing is left of it, and the next honest one is answered."""
    chance = random.Random(11)
    for number in range(counts(2_000, 50_000)):
        with daemon.connect() as client:
            for _ in range(chance.randrange(4)):
                raw = b"".join(chance.choices(PIECES, k=chance.randrange(1, 5)))
                try:
                    client.sendall(raw if chance.random() < 0.7 else chance.randbytes(50))
                except (BrokenPipeError, ConnectionResetError):
                    break
                if chance.random() < 0.5:
                    daemon.turn()
            if chance.random() < 0.5:
                client.shutdown(socket.SHUT_WR)
                daemon.turn()
                try:
                    got = client.recv(65536)
                except ConnectionResetError:
                    got = b""
                if got:
                    answer = json.loads(got)
                    assert answer == ANSWER or answer.keys() == {"error"}
        daemon.turn()
        assert daemon.server._clients == {}
        if number % 100 == 0:
            assert honest(daemon)
    assert honest(daemon)


def test_a_crowd_of_silent_clients_locks_nobody_out(daemon: Daemon) -> None:
    """With any number of clients that connect and say nothing, or half a line, an honest one is
    answered; who had asked already is answered before it has to go."""
    with ExitStack() as stack:
        for number in range(10 * PER_USER):
            client = stack.enter_context(daemon.connect())
            if number % 2:
                client.sendall(b'{"ask": "sta')
            if number % 7 == 0:
                client.shutdown(socket.SHUT_WR)
            assert len(daemon.server._clients) <= PER_USER
            if number % 5 == 0:
                assert honest(daemon)
        asked = stack.enter_context(socket.socket(socket.AF_UNIX))
        asked.settimeout(PATIENCE_S)
        asked.connect(str(daemon.path))
        asked.sendall(b'{"ask": "status"}\n')
        for _ in range(PER_USER):
            late = stack.enter_context(socket.socket(socket.AF_UNIX))
            late.setblocking(False)
            try:
                late.connect(str(daemon.path))
            except BlockingIOError:
                break
        daemon.turn()
        assert json.loads(asked.recv(65536)) == ANSWER


def test_a_daemon_that_is_pestered_captures_on(tmp_path: Path) -> None:
    """While silent, half-closed and babbling clients hold all places of a real daemon, `capstand
    status` is answered, frames advance and the watchdog is fed."""
    service = Service(tmp_path, CONFIGURATION.format(device="synthetic", folder=tmp_path))
    try:
        service.hear("READY=1")
        path, chance = tmp_path / "run/control.sock", random.Random(13)
        frames = []
        with ExitStack() as stack:
            for _ in range(counts(40, 1_000)):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                try:
                    client.connect(str(path))
                    client.send(chance.randbytes(chance.randrange(1, 1000)))
                except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                    continue
                answer = ask(path, "status", 20.0)
                frames.append(answer["streams"][0]["captured_frames"])
        service.hear("WATCHDOG=1")
        assert frames == sorted(frames) and len(set(frames)) > 1
        assert service.end() == 0
        assert service.ledger()[-1]["balanced"] is True
    finally:
        service.close()
