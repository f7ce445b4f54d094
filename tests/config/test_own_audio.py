"""Configurations of sources that are no card: what is right, and what was probably meant."""

import pytest

from capstand.capture.types.file import FileConfig
from capstand.capture.types.pipe import PipeConfig
from capstand.capture.types.socket import SocketConfig
from capstand.config.decode import decode
from capstand.config.registry import SOURCES
from capstand.config.schema import Config
from capstand.errors import ConfigError

HEAD = '[[stream]]\nname = "{name}"\n[stream.capture]\ndevice = "{device}"\n{table}\n'
TAIL = '[[stream.sink]]\ntype = "file"\npath = "/a/{name}"\n'


def stream(device: str, table: str = "", name: str = "mic") -> str:
    """``table`` is on line 5."""
    return HEAD.format(name=name, device=device, table=table) + TAIL.format(name=name)


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        decode(text, "c.toml", Config)
    return [fault.partition("capture.")[2] for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("device", "table", "source"),
    [
        ("socket", "", None),
        ("socket", 'socket = {path = "mic.sock"}', SocketConfig("mic.sock")),
        ("socket", 'socket = {path = "/run/a", live = false}', SocketConfig("/run/a", False)),
        ("pipe", 'pipe = {path = "/run/a"}', PipeConfig("/run/a")),
        ("pipe", 'pipe = {command = "/bin/a"}', PipeConfig(command="/bin/a")),
        ("pipe", 'pipe = {command = ["a", "-b c"]}', PipeConfig(command=("a", "-b c"))),
        ("file", 'file = {path = "/a.wav", repeat = true}', FileConfig("/a.wav", True)),
    ],
)
def test_it_is_read(device: str, table: str, source: object) -> None:
    (one,) = decode(stream(device, table), "c.toml", Config).stream
    assert one.capture.source == source
    assert not SOURCES.of(one.capture.device).rest


@pytest.mark.parametrize(
    ("device", "table", "told"),
    [
        ("pipe", "", "pipe: the table has neither path nor command; write [stream.capture.pipe]"),
        ("pipe", "pipe = {}", "pipe: the table has neither path nor command; write [stream.c"),
        ("file", "", "file: the table is missing; write [stream.capture.file] with path, the so"),
        ("file", "file = {}", "file.path: missing; this key has no default"),
        ("file", 'file = {path = "/a", repaet = true}', "repaet: unknown key; did you mean repea"),
        ("file", "fiel = {}", "fiel: unknown key; did you mean file?"),
        ("file", 'file = {path = "a.wav"}', 'file.path: "a.wav": expected an absolute path'),
        ("socket", "sokcet = {}", "sokcet: unknown key; did you mean socket?"),
        ("socket", "socket = {live = 1}", "socket.live: 1: expected true or false"),
        (
            "socket",
            'socket = {path = "../a"}',
            'socket.path: "../a": expected an absolute path, or a',
        ),
        (
            "socket",
            'socket = {path = "control.sock"}',
            'socket.path: "control.sock" is already used',
        ),
        ("socket", f'socket = {{path = "/{"a" * 107}"}}', "more than 107 bytes"),
        ("socket:mic", "", 'did you mean "socket"?'),
        ("pip:mic", "", 'did you mean "pipe"?'),
        ("hw:0", "socket = {}", 'socket: is for device = "socket" only; delete it or set that'),
        ("pipe", 'pipe = {path = "/a", command = "b"}', "pipe.command: there is a path already"),
        ("pipe", 'pipe = {command = "a -b"}', 'pipe.command: "a -b" is not a program: write each'),
        ("pipe", "pipe = {command = [1]}", "pipe.command: 1: expected a word of a command"),
        ("pipe", "pipe = {command = []}", "pipe.command: 0 values; expected 1 to 256"),
    ],
)
def test_a_fault_is_told(device: str, table: str, told: str) -> None:
    """With what was found, what was expected, and what was meant where that is near."""
    (one,) = faults(stream(device, table))
    assert told in one


def test_each_stream_needs_an_entrance_of_its_own() -> None:
    """Two sockets or FIFOs of one path are told by line; of two paths they are right, and so are
    two streams of one file."""
    alike = stream("socket") + stream("socket", name="b")
    assert faults(alike)[0].startswith('socket.path: "push.sock" is already used by stream 1')
    pipes = [stream("pipe", 'pipe = {path = "/run/a"}', name) for name in ("a", "b")]
    assert faults("".join(pipes)) == [
        'pipe.path: "/run/a" is already used by stream 1; each stream needs its own'
    ]
    other = stream("socket", 'socket = {path = "b.sock"}', "b")
    files = [stream("file", 'file = {path = "/a.wav"}', name) for name in ("c", "d")]
    decode(stream("socket") + other + "".join(files), "c.toml", Config)
