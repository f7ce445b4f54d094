"""What people write that is no TOML, or no configuration: each named, with its line and mend."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tomli

from capstand.agora.tokens.sources import LocalTokens, TokenServer, read_secret
from capstand.agora.tokens.token import TokenError
from capstand.config import decode, lines, rules, wording
from capstand.config import schema as config
from capstand.config.decode import MOST_FAULTS
from capstand.config.schema import MAX_BYTES, Config, load
from capstand.errors import ConfigError
from capstand.host.bug import log_unexpected
from capstand.text import secret
from tests.config.test_config import AGORA, RIGHT, faults, read
from tests.test_hostile import no_hang

PATIENCE_S = 30.0
assert no_hang  # a fixture


def slip(line: str) -> str:
    """What is told of this line, the eighth, which comes into the table of a recording."""
    (fault,) = faults(RIGHT + line + "\n")
    head = "c.toml:8: not TOML: "
    assert fault.startswith(head), fault
    return fault.removeprefix(head)


@pytest.mark.parametrize(
    ("line", "mend"),
    [
        ("container = “wav”", 'U+201C (left double quotation mark) in column 13; write the plain'),
        ("container = „wav“", "U+201E (double low-9 quotation mark) in column 13; write the plain"),
        ("container = «wav»", "U+00AB (left-pointing double angle quotation mark) in column 13"),
        ("container = ‘wav’", "U+2018 (left single quotation mark) in column 13; write the plain"),
        ("container = `wav`", 'U+0060 (grave accent) in column 13; write the plain'),
        ('container = "wav"\u00a0', "U+00A0 (no-break space) in column 18; write a plain space"),
        ('\u00a0container = "wav"', "U+00A0 (no-break space) in column 1; write a plain space"),
        ('container\u3000= "wav"', "U+3000 (ideographic space) in column 10; write a plain space"),
        ('\u200bcontainer = "wav"', "U+200B (zero width space) in column 1; delete it"),
        ('\ufeffcontainer = "wav"', "U+FEFF (zero width no-break space) in column 1; delete it"),
        ('container ＝ "wav"', "U+FF1D (fullwidth equals sign) in column 11; write the plain"),
        ("min_free_mb = −20", "U+2212 (minus sign) in column 15; write the plain character -"),
        ("min_free_mb = 1\f", "U+000C in column 16; delete it"),
        ('name = "a\x1b[2J"', "U+001B in column 10; delete it"),
        ('container: "wav"', "a value follows after = and not after :; write container = …"),
        ('container := "wav"', "a value follows after = and not after :=; write container = …"),
        ('"container": "wav",', "a value follows after = and not after :; write container = …"),
        ('container "wav"', "= is missing between key and value; write container = …"),
        ("container", "container has no value; write container = and its value"),
        ("container =", "the value of container is missing"),
        ("container = # wav or flac", "the value of container is missing"),
        ("container = wav", 'put the text in quotation marks; write container = "…"'),
        ("path = /rec", 'put the text in quotation marks; write path = "…"'),
        ("path = ~/rec", 'put the text in quotation marks; write path = "…"'),
        ("path = $HOME/rec", 'put the text in quotation marks; write path = "…"'),
        ("container == 'wav'", "one = is enough; write container = …"),
        ("rate_lock = True", "a word without quotation marks is not a value; write true"),
        ("rate_lock = FALSE", "a word without quotation marks is not a value; write false"),
        ("rate_lock = yes # please", "a word without quotation marks is not a value; write true"),
        ("rate_lock = off", "a word without quotation marks is not a value; write false"),
        ("spool = None", "is not a value; delete the line to leave the key out"),
        ("spool = null,", "is not a value; delete the line to leave the key out"),
        ('container = "wav', 'the quotation mark " at the end of the text is missing'),
        ("container = \"wav'", 'the quotation mark " at the end of the text is missing'),
        ('container = "wav" flac', "something follows after the closing quotation mark; delete it"),
        ('container = "wav",', "nothing follows a value; delete the , at the end of the line"),
        ('container = "wav";', "nothing follows a value; delete the ; at the end of the line"),
        ("queue_ms = 1000,", "nothing follows a value; delete the , at the end of the line"),
        ('name = "C:\\qec"', "a \\ in quotation marks begins an escape; write '…' instead"),
        ('name = "C:\\Users"', "a \\ in quotation marks begins an escape; write '…' instead"),
        ("segment_s = 0,5", "a number has a decimal point, not a comma"),
        ("queue_ms = 1 000", "no number; write its digits without anything between them"),
        ("queue_ms = 0440", "a number does not begin with 0; delete the zero"),
        ("queue_ms = 20000 ms", "write the number without a unit; the key names it"),
        ("queue_ms = 20s", "write the number without a unit; the key names it"),
        ("; a comment", "a comment begins with #"),
        ("// a comment", "a comment begins with #"),
        ('container = "wav" // a comment', "a comment begins with #"),
        ("queue ms = 20000", "a key is one word; join the words before = by _"),
        ("export container='wav'", "a key is one word; join the words before = by _"),
        ("= 1", "a key is missing before ="),
        ("+x = 1", "a key is letters, digits, _ and -; the text before = is not one"),
        ("{", "this looks like JSON; write TOML"),
        ('path = "/other"', "path is there already, in line 7; delete one of the two"),
        ("[stream.capture]", "the table [stream.capture] is there already, from line 3 on"),
        ("[[stream.capture]]", "[stream.capture] and [[stream.capture]] are both there, in lines"),
        ("[stream]", "[stream] and [[stream]] are both there, in lines 1 and 8; write [[stream]]"),
        ("[[stream.sink]", "the table's name begins with [[; end it with ]]"),
        ("[stream.sink.spool", "the table's name begins with [; end it with ]"),
        ("[stream.sink.spool]]", "the table's name begins with [; end it with ]"),
        ("[stream sink spool]", "a table's name is words with a . between them"),
        ('[stream.sink.spool] path = "/s"', "something follows the name of a table; begin a new"),
        ("mode = 0644", 'a mode stands in quotation marks; write mode = "0640"'),
        ("mode = 0640 # as chmod", 'a mode stands in quotation marks; write mode = "0640"'),
        ("p\u0430th = '/x'", "U+0430 (cyrillic small letter a) at place 2 of the key; write the"),
        ("path\uff11 = 1", "U+FF11 (fullwidth digit one) at place 5 of the key; write the plain"),
        ("<<<<<<< HEAD", "<<<<<<< is left over from a merge; keep one of the two sides"),
        ("spool = {path = '/s'", "the value of spool begins with { and has no } at its end"),
        ("x = [1 2]", "begins with [ and has no ] at its end, or no comma between its parts"),
        ('name = """a', 'the value of name begins with """ and has no """ at its end'),
        ("name = 'a", "the value of name begins with ' and has no ' at its end"),
    ],
)  # fmt: skip
def test_a_slip_is_named_with_its_mend(line: str, mend: str) -> None:
    """On its own line, in words that say what to write instead."""
    assert mend in slip(line)


def test_two_kinds_of_stream_are_told_at_the_wrong_one() -> None:
    """[stream] before [[stream]], and [stream.sink] before [[stream.sink]]."""
    assert faults(RIGHT.replace("[[stream]]", "[stream]", 1) + "[[stream]]\n") == [
        "c.toml:1: not TOML: [stream] and [[stream]] are both there, in lines 1 and 8; "
        "write [[stream]] each time"
    ]
    single = RIGHT.replace("[[stream.sink]]", "[stream.sink]")
    assert faults(single + "[[stream.sink]]\n")[0].startswith(
        "c.toml:5: not TOML: [stream.sink] and"
    )


@pytest.mark.parametrize("first", ["[[stream.sink]]\ntype = 'file'", "[stream.capture]"])
def test_a_table_above_its_stream_is_told(first: str) -> None:
    """[stream.capture] and [[stream.sink]] belong below the [[stream]] that has them."""
    line = first.count("\n") + 2
    assert faults(first + "\n" + RIGHT) == [
        f"c.toml:{line}: not TOML: a table of [[stream]] stands above it, in line 1; "
        "move [[stream]] up"
    ]


def test_a_letter_of_another_alphabet_in_a_value_is_told() -> None:
    """It looks like a plain one; a path that is written in another alphabet is right."""
    (fault,) = faults(RIGHT.replace('"mic"', '"m\u0456c"'))
    assert "U+0456 (cyrillic small letter byelorussian-ukrainian i) at place 2; write" in fault
    assert read(RIGHT.replace("/var", "/\u0437\u0430\u043f\u0438\u0441\u0438"))


def test_old_line_ends_are_told_where_they_begin() -> None:
    """A carriage return alone ends no line, in TOML."""
    end = "not TOML: a carriage return without a line feed; save the file with Unix line ends"
    assert faults(RIGHT.replace("\n", "\r")) == [f"c.toml:1: {end}"]
    assert faults(RIGHT.replace('0"\n', '0"\r')) == [f"c.toml:4: {end}"]
    assert read(RIGHT.replace("\n", "\r\n")) == read(RIGHT)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    """Windows editors write one; the lines are counted as ever."""
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xef\xbb\xbf" + RIGHT.encode())
    assert load(path) == read(RIGHT)
    path.write_bytes(b"\xef\xbb\xbf" + RIGHT.replace("hw", "h\tw").encode())
    with pytest.raises(ConfigError, match="toml:4: "):
        load(path)


# Values


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[[stream]]", "[stream]", "1: stream: a table is not an array of tables; "
         "write [[stream]]"),
        ("[[stream.sink]]", "[stream.sink]", "5: stream.mic.sink: a table is not an array "
         "of tables; write [[stream.sink]] instead of [stream.sink]"),
        ("[stream.capture]", "[[stream.capture]]", "3: stream.mic.capture: an array is not a "
         "table; write [stream.capture] instead of [[stream.capture]]"),
        ("[stream.capture]\n", "", "3: stream.mic.device: unknown key; it belongs in "
        "[stream.capture]"),
        ('"mic"', '"mic\u200b"', "2: stream.1.name: \"mic\\u200b\": expected a name: 1 to 32 of "
        "A-Z "
         "a-z 0-9 _ -; it has U+200B (zero width space) at place 4; delete it"),
        ('"mic"', '"mic "', "; delete the space at its beginning or end"),
        ('"mic"', "7", "2: stream.1.name: 7: expected a name: 1 to 32 of A-Z a-z 0-9 _ -; put "
         "the text in quotation marks"),
        ('"hw:CARD=Mic,DEV=0"', "1", '; did you mean "hw:1"?'),
        ('"hw:CARD=Mic,DEV=0"', '"hw:CARD=Mic,DEV=0\u200b"', "it has U+200B (zero width space)"),
        ('"/rec"', '"~/rec"', "; write the whole path of the home directory instead of ~"),
        ('"/rec"', '"$HOME/rec"', "; variables are not replaced; write what is meant"),
        ('"/rec"', '"file:///rec"', "; write the path alone, without file:"),
        ('"/rec"', '"/rec "', "; delete the space at its beginning or end"),
        ('"/rec"', '"/rec\u00a0"', "it has U+00A0 (no-break space) at place 5; write"),
        ('"/rec"', '"/rec\u200b"', "it has U+200B (zero width space) at place 5; delete it"),
        ('"/rec"', '"“/rec”"', "it has U+201C (left double quotation mark) at place 1"),
        ('"file"', '"File"', "did you mean file?"),
    ],
)  # fmt: skip
def test_a_value_that_is_nearly_right_is_mended(old: str, new: str, told: str) -> None:
    """The fault says what to write."""
    assert told in "\n".join(faults(RIGHT.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("value", "mend"),
    [
        ('"s16le"', "S16_LE"), ('"S16LE"', "S16_LE"), ('"s16_le"', "S16_LE"), ('"16"', "S16_LE"),
        ("16", "S16_LE"), ('"pcm_s16le"', "S16_LE"), ('"S16-LE"', "S16_LE"), ('"16bit"', "S16_LE"),
        ('"24"', "S24_LE"), ('"s24_3le"', "S24_3LE"), ("32", "S32_LE"), ('"s32"', "S32_LE"),
    ],
)  # fmt: skip
def test_a_format_by_another_name_is_understood(value: str, mend: str) -> None:
    """As ffmpeg, arecord and people write it."""
    text = RIGHT.replace("[[stream.sink]]", f"format = {value}\n[[stream.sink]]")
    (fault,) = faults(text)
    assert fault.startswith("c.toml:5: stream.mic.capture.format: ")
    assert fault.endswith(f"; did you mean {mend}?")


@pytest.mark.parametrize(
    ("line", "mend"),
    [
        ('rate_hz = "48000"', "without quotation marks: 48000"),
        ('rate_hz = "48 kHz"', "without quotation marks: 48000"),
        ('rate_hz = "48000 Hz"', "without quotation marks: 48000"),
        ('channels = "2"', "; write the number without quotation marks"),
        ('period_ms = "10"', "; write the number without quotation marks"),
        ('buffer_ms = "500 ms"', "; write the number without quotation marks"),
    ],
)
def test_a_number_in_quotation_marks_is_told(line: str, mend: str) -> None:
    """On its line, with what to write."""
    (fault,) = faults(RIGHT.replace("[[stream.sink]]", f"{line}\n[[stream.sink]]"))
    assert fault.startswith("c.toml:5: ") and fault.endswith(mend)


def test_true_in_quotation_marks_is_told() -> None:
    """A word in quotation marks is a text."""
    (fault,) = faults(AGORA + 'rate_lock = "True"\n')
    assert fault.endswith("; write true without quotation marks")


# Secrets

CERTIFICATE = "5cfd2fd1755d40ec80aa54d9a4d7b0d6"
TOKEN = "007eJxTYEg5x8K4e7WB9wKlFINEkySLZAMTS0uTVMPkxCTTVJOUJAUGo2QjQyMjoxSjVCNTU0M"
PASSWORD = "correct horse battery staple"
URL = "https://user:hunter2@tokens.example/rtc/{channel}?key=b64c0ffee"
SECRETS = (
    CERTIFICATE,
    TOKEN,
    PASSWORD,
    URL,
    f" {CERTIFICATE}",
    CERTIFICATE.upper(),
    "hunter2hunter2!",
)


def pieces(text: str) -> list[str]:
    """Parts of a secret that must not be seen."""
    bare = text.strip().removeprefix("https://")
    return [bare[at : at + 8] for at in range(0, max(1, len(bare) - 7), 4)]


@pytest.mark.parametrize("text", SECRETS)
@pytest.mark.parametrize(
    "table",
    [
        'source = "server"\nurl = "{}"',
        'source = "server"\nurl = "x{}"',
        'source = "server"\nurl = "https://a/"\ncredential = "{}"',
        'source = "server"\nurl = "https://a/"\ncredential = ["{}"]',
        'source = "server"\nurl = "https://a/"\nca_file = "{}"',
        'source = "server"\nurl = "https://a/"\nlifetime_s = "{}"',
        'source = "server"\nurl = "https://a/"\npassword = "{}"',
        'source = "server"\nurl = "https://a/"\n"{}" = 1',
        'source = "file"\npath = "{}"',
        'source = "local"\ncertificate = "{}"',
        'source = "local"\ncertificate = "{} "',
        'source = "local"\ncertificate = {}',
        'source = "{}"',
        "source = {}",
        "{}",
        '"{}"',
        "certificate: {}",
        'certificate = "{}',
        "certificate = '{}",
        'certificate = "{}" x',
        'certificate = "\\q{}"',
        "[{}",
        "[stream.sink.{}",
    ],
)
def test_what_stands_where_a_secret_is_meant_is_not_shown(table: str, text: str) -> None:
    """Whatever is wrong with it or around it, no part of it is in a fault or in a value's repr."""
    written = AGORA + "[stream.sink.token]\n" + table.replace("{}", text) + "\n"
    try:
        shown = repr(read(written))
    except ConfigError as error:
        shown = str(error)
    # The name of a place is a place's: a key of another's choice is told by its name.
    assert [piece for piece in pieces(text) if piece in shown] == []


@pytest.mark.parametrize(
    "key", ["name", "channel", "app_id", "profile", "uid", "token", "send_delay_ms"]
)
@pytest.mark.parametrize("text", [CERTIFICATE + "0", TOKEN, URL, f"{CERTIFICATE} "])
def test_a_secret_under_another_key_is_not_shown(key: str, text: str) -> None:
    """A long text that looks like one is described where a value is refused."""
    lines = [
        line for line in AGORA.splitlines() if not line.startswith(f"{key} =") or key == "name"
    ]
    try:
        read("\n".join([*lines, f'{key} = "{text}"', ""]))
    except ConfigError as error:
        assert [piece for piece in pieces(text) if piece in str(error)] == []


@pytest.mark.parametrize("place", [CERTIFICATE, TOKEN, "hunter2", f"/{TOKEN}", "pass/word"])
def test_a_secret_in_place_of_its_place_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A credential that is named by itself cannot be found, and is not repeated."""
    for directory in (None, str(tmp_path)):
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", directory or "")
        with pytest.raises(TokenError) as refused:
            read_secret(place)
        assert place.strip("/") not in str(refused.value)
    (tmp_path / "device-key").write_text("")
    with pytest.raises(TokenError, match="credential device-key is empty"):
        read_secret("device-key")


def test_the_repr_of_a_token_table_shows_nothing() -> None:
    """A traceback or a log that shows a configuration does not show where its secrets are."""
    text = AGORA + '[stream.sink.token]\nsource = "server"\nurl = "https://a/?key=b64c0ffee"\n'
    assert "b64c0ffee" not in repr(read(text))
    assert "ServerToken(...)" in repr(read(text))


def test_a_url_with_a_password_is_refused() -> None:
    """Its place is a file."""
    text = AGORA + f'[stream.sink.token]\nsource = "server"\nurl = "{URL}"\n'
    (fault,) = faults(text)
    assert "it contains a user name or a password; put the secret into a file" in fault
    assert "hunter2" not in fault


def test_an_unforeseen_error_shows_no_secret_that_was_read(tmp_path: Path) -> None:
    """What was read as a secret, or stands in the address of a server, is taken out of errors."""
    (tmp_path / "key").write_text("s3cr3t-of-the-device")
    read_secret(str(tmp_path / "key"))
    TokenServer("https://a/x?key=0123456789abcdefXYZ", None, None, "a", "c", 1, 60)
    error = ValueError("can't send '/x?key=0123456789abcdefXYZ' with s3cr3t-of-the-device")
    line = log_unexpected("here", error)
    assert "s3cr3t" not in line and "abcdefXYZ" not in line
    assert "(secret)" in line
    assert secret.without("short") == "short"


def test_what_is_used_is_not_forgotten_for_what_came_later(tmp_path: Path) -> None:
    """A server gives a new token every minute, for months; the key in its address stays hidden."""
    server = TokenServer("https://localhost:1/?key=key-of-the-address", None, None, "a", "c", 1, 60)
    for number in range(1000):
        secret.learn(f"token number {number}")
        if number % 50 == 0:
            with pytest.raises(TokenError):  # nobody listens there
                server.fetch()
    assert secret.without("at /?key=key-of-the-address") == "at /?key=(secret)"


def test_a_token_that_is_made_here_is_a_secret_too(tmp_path: Path) -> None:
    (tmp_path / "certificate").write_text("0123456789abcdef" * 2)
    made = LocalTokens("0" * 32, str(tmp_path / "certificate"), "studio", 7, 60).fetch()
    assert made.startswith("007") and made not in secret.without(f"the SDK refuses {made}")


# What costs time, and what cannot be read


def test_a_file_that_is_wrong_everywhere_is_told_up_to_a_bound() -> None:
    """The first faults in order, and how many more there are."""
    text = RIGHT + "".join(f"wrong_{number} = 1\n" for number in range(362))
    told = faults(text)
    assert len(told) == MOST_FAULTS + 1
    assert [one.split(":")[1] for one in told[:-1]] == [str(8 + at) for at in range(MOST_FAULTS)]
    assert told[-1] == f"c.toml:{8 + MOST_FAULTS}: and 312 more; fix these first"


def test_a_hint_is_worked_out_for_what_is_told_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """To compare a word with all that it may mean takes long."""
    asked: list[object] = []
    meant = wording.meant

    def count(value: object, words: tuple[str, ...]) -> str:
        asked.append(value)
        return meant(value, words)

    for module in (decode, rules):
        monkeypatch.setattr(module, "meant", count)
    faults(RIGHT + "".join(f"wrong_{number} = 1\n" for number in range(10_000)))
    assert len(asked) == MOST_FAULTS


HOSTILE = {
    "keys": "".join(f"k{number} = 1\n" for number in range(20_000)),
    "dotted keys": "\n".join(f"{'a.' * 990}b{number} = 1" for number in range(130)),
    "dotted tables": "\n".join(f"[{'a.' * 990}b{number}]" for number in range(130)),
    "nested arrays": "\n".join(f"a{number} = {'[' * 390}{']' * 390}" for number in range(330)),
    "blank lines": "\n" * 260_000,
    "streams": RIGHT.replace("mic", "m{}") * 2_000,
    "one long text": RIGHT.replace("mic", "x" * 250_000),
    "one long path": RIGHT.replace("/rec", "/" + "a1" * 125_000),
    "a long device": RIGHT.replace("hw:CARD", "a:" * 120_000),
    "a header that comes again": "".join(f"[a{n}]\n" for n in range(30_000)) + "[a1]\n",
    "equal signs": "a " + "= " * 120_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.usefixtures("no_hang")
def test_no_file_takes_long_to_refuse(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest file there may be, made to cost as much as it can, gives the parser no more than
    WORK characters beside itself (it was minutes), and few lines come of it."""
    text = HOSTILE[kind][: MAX_BYTES - 1]
    loads, given = tomli.loads, 0

    def count(part: str) -> dict[str, Any]:
        nonlocal given
        given += len(part)
        return loads(part)

    monkeypatch.setattr(tomli, "loads", count)
    try:
        read(text)
    except ConfigError as error:
        assert len(error.faults) <= MOST_FAULTS + 1
        assert all(len(fault) < 2000 for fault in error.faults)
    assert given <= MAX_BYTES + lines.WORK


def test_a_pipe_without_an_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is written to is read."""
    monkeypatch.setattr(config, "PIPE_S", 0.01)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)
    with pytest.raises(ConfigError, match="it has no end"):
        load(pipe)
    os.close(held)
    monkeypatch.setattr(config, "PIPE_S", PATIENCE_S)
    reader, writer = os.pipe()
    os.write(writer, RIGHT.encode())
    os.close(writer)
    assert load(f"/dev/fd/{reader}") == read(RIGHT)
    os.close(reader)


def told_to_nobody(path: Path) -> str:
    """What ``nobody`` is told who tries to read it, in a process of its own."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            load(path)
        except ConfigError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        return file.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_a_file_that_may_not_be_read_says_who_must_be_able_to(closed: str) -> None:
    """The user of the daemon, the mode and the owner of what is in its way, and what to do."""
    top = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        top.chmod(0o755)
        folder, path = top / "etc", top / "etc/c.toml"
        folder.mkdir(mode=0o755)
        path.write_text(RIGHT)
        (path if closed == "file" else folder).chmod(0o600)
        told = told_to_nobody(path)
    finally:
        shutil.rmtree(top)
    if closed == "file":
        assert "the user nobody must be able to read it (mode 0600, owner root, group root)" in told
        assert f"chgrp nogroup {path} && chmod g+r {path}" in told
    else:
        assert f"must be able to enter {folder} (mode 0600, owner root, group root)" in told
        assert f"chmod o+x {folder}" in told


def test_every_configuration_that_is_right_stays_right() -> None:
    """What is told of slips does not get in the way of what is none."""
    assert isinstance(read(RIGHT), Config)
    assert read(RIGHT.replace('"/rec"', '"/räc/ordner mit leerzeichen/録音"')).stream
    assert read(RIGHT.replace("\n", "\t# “quoted”\u00a0comment\n")) == read(RIGHT)
