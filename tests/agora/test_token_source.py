"""Where tokens come from: real files, and a real HTTPS server with certificates of its own."""

import base64
import datetime
import json
import os
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import pytest
import trustme

from capstand.agora.tokens import token
from capstand.agora.tokens.sources import (
    Fixed,
    LocalTokens,
    TokenFile,
    TokenServer,
    TokenSource,
    read_secret,
    world_accessible,
)
from capstand.agora.tokens.token import TokenError
from tests.patience import PATIENCE_S

APP_ID = "970ca35de60c44645bbae8a215061b33"
CERTIFICATE = "5cfd2fd1755d40ecb72977518be15d3b"
TOKEN = token.build(APP_ID, CERTIFICATE, "lobby", 7, 3600, 1_700_000_000, salt=1)
CREDENTIAL = "device-credential-0123456789"
BRIEF_S = 0.3
EXPECTED = "expected JSON or the token alone"

Handler = BaseHTTPRequestHandler
Answer = Callable[[Handler], None]


class Authorities(NamedTuple):
    """Two certificate authorities, and the file of the first, which the device trusts."""

    known: trustme.CA
    other: trustme.CA
    file: str


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    known = trustme.CA()
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    known.cert_pem.write_to_path(str(file))
    return Authorities(known, trustme.CA(), str(file))


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no credentials of the machine the tests run on."""
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture
def credential(tmp_path: Path) -> str:
    file = tmp_path / "credential"
    file.write_text(CREDENTIAL + "\n")
    file.chmod(0o640)
    return str(file)


class Server(ThreadingHTTPServer):
    """Answers each GET and POST as ``answer`` does and keeps what was asked."""

    daemon_threads = False
    answer: Answer

    def __init__(self, answer: Answer, certificate: trustme.LeafCert | None) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str | None]] = []
        self.posted: list[tuple[str | None, str]] = []
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
        if certificate and self._tls:
            certificate.configure_cert(self._tls)
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.settimeout(PATIENCE_S)
        if self._tls:
            connection = self._tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what some tests want."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked.append((self.path, self.headers["Authorization"]))
        self.server.answer(self)

    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        self.server.posted.append((self.headers["Content-Type"], body))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[int]:
    """Runs ``server`` and gives its port; nothing of it is left behind."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()
    try:
        assert isinstance(server, socketserver.TCPServer)
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def say(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def raw(answered: bytes) -> Answer:
    def answer(handler: Handler) -> None:
        handler.wfile.write(answered)

    return answer


@contextmanager
def token_server(
    authorities: Authorities, answer: Answer, certificate: trustme.LeafCert | None = None
) -> Iterator[tuple[Server, str]]:
    """An HTTPS server known to ``authorities.file``, and its url."""
    server = Server(answer, certificate or authorities.known.issue_cert("localhost"))
    with serving(server) as port:
        yield server, f"https://localhost:{port}/rtc/{{channel}}/{{uid}}/?expiry={{expiry}}"


def source(
    url: str,
    credential: str | None = None,
    ca_file: str | None = None,
    timeout_s: float = 60.0,
    **other: Any,
) -> TokenServer:
    wanted: dict[str, Any] = {"app_id": APP_ID, "channel": "lobby", "uid": 7, "lifetime_s": 3600}
    return TokenServer(url, credential, ca_file, timeout_s=timeout_s, **(wanted | other))


def refusal(asked: TokenSource) -> str:
    """The error of a fetch; it is one line, says who, and holds no secret."""
    with pytest.raises(TokenError) as caught:
        asked.fetch()
    text = str(caught.value)
    assert "\n" not in text
    for secret in (TOKEN[3:20], CREDENTIAL, CERTIFICATE, "hush"):
        assert secret not in text
    if isinstance(asked, TokenServer):
        assert text.startswith(f"{asked.label}: ")
        return text.removeprefix(f"{asked.label}: ")
    return text


def threads_end(name: str = "token-server") -> bool:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(PATIENCE_S)
    return all(thread.name != name for thread in threading.enumerate())


# Secrets


def test_a_secret_is_the_text_of_a_file(tmp_path: Path) -> None:
    """White space around it, such as the line's end, does not count."""
    file = tmp_path / "secret"
    file.write_bytes(b" \tabc-123\r\n\n")
    assert read_secret(str(file)) == "abc-123"


def test_a_secret_may_be_a_systemd_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name without a path is looked for where systemd put the unit's credentials."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "agora-token").write_text("abc")
    assert read_secret("agora-token") == "abc"


def test_a_credential_that_is_not_there_names_the_units_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether systemd handed over none at all or not this one."""
    line = "add LoadCredential=NAME:/path to the unit"
    with pytest.raises(
        TokenError, match=f"systemd provided no credentials; {line}, or name an absolute"
    ):
        read_secret("agora-token")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(TokenError, match=f"that 11 characters name was not provided.*; {line}"):
        read_secret("agora-token")


@pytest.mark.parametrize("place", ["", ".", "..", "../shadow", "a/b"])
def test_a_place_is_absolute_or_a_name(place: str) -> None:
    """Nothing relative, which would depend on where the daemon was started."""
    with pytest.raises(TokenError, match="neither an absolute path nor the name of a systemd"):
        read_secret(place)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; expected one line"),
        (b" \n", "is empty"),
        (b"hush hush", "white space or .* at place 5 of 9"),
        (b"hush\nhush", "at place 5 of 9"),
        (b"hush\0", "at place 5 of 5"),
        (b"\xef\xbb\xbfhush", "at place 1 of 5"),
        ("hüsh".encode(), "not visible ASCII at place 2 of 4"),
        (b"hush\xff", "not UTF-8 text"),
        (b"hush" * 16_385, "longer than 65536 bytes"),
    ],
)
def test_what_cannot_be_a_secret_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    """In words that name the file and hold nothing of it."""
    file = tmp_path / "secret"
    file.write_bytes(content)
    with pytest.raises(TokenError, match=f"^file {file} .*{words}") as caught:
        read_secret(str(file))
    assert "hush" not in str(caught.value)
    assert "hüsh" not in str(caught.value)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """No file, a directory, a pipe nobody writes to: none of them holds the daemon up."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for name, words in (
        ("none", "does not exist; create it with the secret"),
        ("", "not a regular file"),
        ("pipe", "not a regular file"),
        ("file/below", "cannot be read: Not a directory"),
    ):
        with pytest.raises(TokenError, match=words):
            read_secret(f"{tmp_path}/{name}")


def test_a_secret_of_somebody_else_is_refused() -> None:
    """The sentence says how to let the daemon in."""
    user = os.geteuid()
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        file = Path(directory, "secret")
        file.touch(mode=0)
        if user == 0:
            os.seteuid(65_534)  # root may read everything
        try:
            with pytest.raises(
                TokenError,
                match=r"cannot be read \(permission denied\); chown root:capstand and chmod",
            ):
                read_secret(str(file))
        finally:
            os.seteuid(user)


@pytest.mark.parametrize(
    ("mode", "warned"), [(0o640, False), (0o600, False), (0o644, True), (0o602, True)]
)
def test_an_open_secret_is_warned_of(tmp_path: Path, mode: int, warned: bool) -> None:
    """Where others may read or change it, the sentence names the command that mends it."""
    file = tmp_path / "secret"
    file.touch()
    file.chmod(mode)
    assert world_accessible(str(file)) == (
        f"file {file} can be read or changed by every user of this machine (mode {mode:o}); "
        f"chown root:capstand {file} and chmod 640 {file}"
        if warned
        else None
    )


def test_a_secret_that_is_not_there_is_not_loose() -> None:
    """Reading it says so; the warning is silent."""
    assert world_accessible("/nowhere/at/all") is None
    assert world_accessible("agora-token") is None


# The program, a file, the certificate


def test_a_token_given_by_the_program() -> None:
    """It is handed out as it is, "" too, and never changes."""
    for text, words in ((TOKEN, "a token given by the program"), ("", "no token")):
        fixed: TokenSource = Fixed(text)
        assert fixed.fetch() == text
        assert fixed.label == words
        assert fixed.fingerprint() == fixed.fingerprint()
        assert TOKEN[3:20] not in f"{fixed} {fixed!r}"


def test_a_token_file_is_read_anew(tmp_path: Path) -> None:
    """Each fetch reads the file, and the stamp tells when that may be worth while."""
    file = tmp_path / "token"
    held: TokenSource = TokenFile(str(file))
    assert held.label == f"token file {file}"
    stamps = [held.fingerprint()]
    assert "does not exist" in refusal(held)
    for text in ("first", "second-one"):
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        fresh.rename(file)
        assert held.fetch() == text
        stamps.append(held.fingerprint())
        assert held.fingerprint() == stamps[-1]
    file.unlink()
    assert held.fingerprint() == stamps[0]
    assert len(set(stamps)) == 3


def test_a_token_made_here_is_good(tmp_path: Path) -> None:
    """In development the certificate makes a token for this channel and uid, from now."""
    file = tmp_path / "certificate"
    file.write_text(CERTIFICATE)
    made: TokenSource = LocalTokens(APP_ID, str(file), "lobby", 7, 600)
    token.check_valid(token.parse(made.fetch()), APP_ID, "lobby", 7, time.time(), clock_sure=True)
    assert made.label == f"tokens made here (development only), file {file}"
    before = made.fingerprint()
    file.write_text("no-certificate")
    assert made.fingerprint() != before
    assert "App Certificate is not 32 hexadecimal" in refusal(made)


# The server: what is asked


def test_the_request(authorities: Authorities, credential: str) -> None:
    """The url's fields are filled in percent-encoded, the credential goes along as Bearer."""
    with token_server(authorities, say(TOKEN.encode())) as (server, url):
        asked = source(url, credential, authorities.file, channel="a b/ü?&#", uid=0, lifetime_s=60)
        assert asked.fetch() == TOKEN
        assert source(url, None, authorities.file).fetch() == TOKEN
        assert source(url.replace("rtc", "{app_id}"), None, authorities.file).fetch() == TOKEN
    assert server.asked == [
        ("/rtc/a%20b%2F%C3%BC%3F%26%23/0/?expiry=60", f"Bearer {CREDENTIAL}"),
        ("/rtc/lobby/7/?expiry=3600", None),
        (f"/{APP_ID}/lobby/7/?expiry=3600", None),
    ]
    assert threads_end()


@pytest.mark.parametrize(
    ("body", "kind", "sent"),
    [
        (
            '{"room": "{channel}", "uid": {uid}, "opt": {"ttl": {expiry}}, "who": "{app_id}"}',
            "application/json",
            '{"room": "a\\"b&\\u00fc", "uid": 7, "opt": {"ttl": 60}, "who": "' + APP_ID + '"}',
        ),
        (
            "room={channel}&uid={uid}",
            "application/x-www-form-urlencoded",
            "room=a%22b%26%C3%BC&uid=7",
        ),
        (None, None, ""),
    ],
)
def test_a_server_may_want_a_post(
    authorities: Authorities, credential: str, body: str | None, kind: str | None, sent: str
) -> None:
    """The body is JSON or a form, its fields are filled in and escaped so; the credential goes
    along."""
    with token_server(authorities, say(TOKEN.encode(), 201)) as (server, url):
        keys: dict[str, Any] = {
            "channel": 'a"b&ü',
            "lifetime_s": 60,
            "method": "POST",
            "body": body,
        }
        assert source(url, credential, authorities.file, **keys).fetch() == TOKEN
    assert server.posted == [(kind, sent)]
    assert server.asked[0][1] == f"Bearer {CREDENTIAL}"


@pytest.mark.parametrize(
    "channel", ["{uid}", "{expiry}{app_id}", "{{uid}}", "{x}", "\\1", "a&uid=9"]
)
def test_a_channel_is_sent_as_it_is_called(authorities: Authorities, channel: str) -> None:
    """A name may look like something that stands for a value, or like another field; in the
    address and in either kind of body it stays a name."""
    keys: dict[str, Any] = {"channel": channel, "method": "POST"}
    with token_server(authorities, say(TOKEN.encode())) as (server, url):
        for body in ('{"room": "{channel}"}', "room={channel}"):
            one = source(f"{url}&room={{channel}}", None, authorities.file, body=body, **keys)
            assert one.fetch() == TOKEN
    json_body, form = (body for _, body in server.posted)
    assert json.loads(json_body) == {"room": channel}
    assert parse_qsl(form) == [("room", channel)]
    assert all(
        parse_qsl(path.partition("?")[2])[-1:] == [("room", channel)] for path, _ in server.asked
    )


def test_a_server_that_wants_another_method_says_so(authorities: Authorities) -> None:
    with token_server(authorities, say(b"hush", 405)) as (_, url):
        assert refusal(source(url, None, authorities.file)).startswith("it replied 405; it wants")


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("data.token", {"code": 0, "data": {"token": TOKEN}, "token": "hush"}),
        ("result.0.rtc", {"result": [{"rtc": f" {TOKEN}\n"}]}),
        ("data", {"data": TOKEN}),
        ("1", ["hush", TOKEN]),
        ("0", {"0": TOKEN}),
    ],
)
def test_a_token_may_lie_deeper(authorities: Authorities, path: str, answer: object) -> None:
    with token_server(authorities, say(json.dumps(answer).encode())) as (_, url):
        assert source(url, None, authorities.file, token_path=path).fetch() == TOKEN


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        (
            "data.token",
            b'{"token": "hush"}',
            "its reply has no such key for token_path data.token",
        ),
        (
            "data.token",
            b'{"data": "hush"}',
            "data has no such key for token_path data.token at tok",
        ),
        ("data.token", b'{"data": ["hush"]}', "data has no such key for token_path data.token at"),
        ("data.9", b'{"data": ["hush"]}', "data has no such key for token_path data.9 at 9"),
        ("data.token", b'{"data": {"token": 5}}', "data.token in its reply is not text; correct"),
        ("data.token", b'{"data": {"token": ""}}', f"its reply is empty; {EXPECTED}"),
        (
            "data.token",
            b'{"data": {"token": "hush!"}}',
            f"its reply is not a valid token; {EXPECTED}",
        ),
        ("data.token", b"hush", "its reply has no JSON object for token_path data.token at data"),
        ("data.token", b"[" * 60_000, "its reply has no JSON object for token_path data.token"),
        ("\u0664", b'["a", "b", "c", "d", "hush"]', "its reply has no such key"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_ends(
    authorities: Authorities, path: str, answer: bytes, words: str
) -> None:
    with token_server(authorities, say(answer)) as (_, url):
        text = refusal(source(url, None, authorities.file, token_path=path))
    assert text.startswith(words)


def test_status_names_the_server_and_no_more() -> None:
    """Path and query may hold secrets."""
    assert (
        source("https://example.org/hush/{uid}?k=hush").label == "token server https://example.org"
    )
    assert source("https://example.org:8443").label == "token server https://example.org:8443"


def test_the_stamp_follows_credential_and_authority(credential: str, tmp_path: Path) -> None:
    """A new credential or ca_file is a reason to ask again at once."""
    ca_file = tmp_path / "ca.pem"
    asked = source("https://example.org", credential, str(ca_file))
    stamps = [asked.fingerprint(), asked.fingerprint()]
    assert stamps[0] == stamps[1]
    Path(credential).write_text("another one")
    stamps.append(asked.fingerprint())
    ca_file.touch()
    stamps.append(asked.fingerprint())
    assert len(set(stamps)) == 3


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.org/hush", "does not start with https://; nothing else is safe"),
        ("file:///etc/hush", "does not start with https://"),
        ("https:///hush", "no valid host"),
        ("https://a..b/hush", "no valid host"),
        (f"https://{'a' * 64}.org/hush", "no valid host"),
        ("https://example.org:hush/", "no valid host and port"),
        ("https://[hush/", "no valid host and port"),
        ("https://me:hush@example.org/", "user name or password; put the secret in a file"),
        ("https://example.org/hush hush", "white space"),
        ("https://example.org/\r\nhush: x", "white space"),
        ("https://exämple.org/hush", "not ASCII"),
        ("https://example.org/{chanel}?hush", "name in braces than {app_id}, {channel}, {uid}"),
    ],
)
def test_a_url_that_cannot_be_right_is_refused(url: str, words: str) -> None:
    """Before anything is sent, and without repeating what may be a secret in it."""
    with pytest.raises(TokenError, match=words) as caught:
        source(url)
    assert "hush" not in str(caught.value)


# The server: what it answers


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps({"rtcToken": TOKEN}),
        json.dumps({"token": TOKEN, "uid": 7}, indent=2),
        json.dumps({"code": 0, "rtc_token": TOKEN}),
        json.dumps({"rtcToken": TOKEN, "token": "for the web site"}),
        json.dumps(TOKEN),
        TOKEN,
        f"\r\n {TOKEN}\n",
    ],
)
def test_an_answer_is_json_or_plain(authorities: Authorities, answer: str) -> None:
    """The keys of Agora's and other token servers are known, and a bare token is enough."""
    with token_server(authorities, say(answer.encode())) as (_, url):
        assert source(url, None, authorities.file).fetch() == TOKEN


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (say(b"hush", 401), "the device credential was refused (401); have the server issue"),
        (say(b"hush", 403), "the device credential was refused (403); have the server issue"),
        (say(b"hush", 404), "it replied 404, not found; correct the path in url"),
        (say(b"hush", 500), "it replied 500; expected 200, see the server's log"),
        (say(b"", 204), "it replied 204; expected 200, see the server's log"),
        (say(b""), f"its reply is empty; {EXPECTED}"),
        (say(b'{"token": ""}'), f"its reply is empty; {EXPECTED}"),
        (say(b'{"hush": "x"}'), "its reply has none of the keys rtcToken, token, rtc_token"),
        (say(b'{"token": 5}'), "its reply has none of the keys rtcToken, token, rtc_token"),
        (say(b"[]"), f"its reply is not a valid token; {EXPECTED}"),
        (say(b"null"), f"its reply is not a valid token; {EXPECTED}"),
        (say(b'{"a":' + b"[" * 60_000), f"its reply is not a valid token; {EXPECTED}"),
        (say(b"<html>hush <p>log in"), f"its reply is not a valid token; {EXPECTED}"),
        (say(b"\xff\xfehush"), f"its reply is not a valid token; {EXPECTED}"),
        (say(b'{"token": "\\ud800 hush"}'), f"its reply is not a valid token; {EXPECTED}"),
        (say(b"x" * 65_537), "its reply is longer than 65536 bytes; expected a token"),
        (raw(b"hush\r\n\r\n"), "it sent an invalid HTTP reply (BadStatusLine)"),
        (raw(b"HTTP/1.1 200 OK\r\nhush: " + b"x" * 70_000), "it sent an invalid HTTP reply"),
        (
            raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhush\r\n"),
            "it sent an invalid HTTP reply",
        ),
        (raw(b""), "the server closed the connection; see its log"),
    ],
)
def test_an_answer_without_a_token_is_refused(
    authorities: Authorities, credential: str, answer: Answer, words: str
) -> None:
    """Each in its words; nothing of the answer is repeated."""
    with token_server(authorities, answer) as (_, url):
        text = refusal(source(url, credential, authorities.file))
    assert text.startswith(words)


def test_a_huge_answer_is_not_read(authorities: Authorities) -> None:
    """A server that never stops sending is left after 64 kB."""
    sent = 0

    def endless(handler: Handler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        while sent < 100_000_000:
            sent += handler.wfile.write(b"x" * 65_536)

    with token_server(authorities, endless) as (_, url):
        assert "longer than 65536 bytes" in refusal(source(url, None, authorities.file))
    assert sent < 50_000_000


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_carries_nothing_away(
    authorities: Authorities, credential: str, status: int
) -> None:
    """It is refused, and the other server is never asked."""
    with token_server(authorities, say(TOKEN.encode())) as (other, there):
        away = say(b"", status, Location=there)
        with token_server(authorities, away) as (_, url):
            text = refusal(source(url, credential, authorities.file))
    assert text.startswith(f"it replied {status}, a redirect, which is not followed")
    assert other.asked == []


# The server: time


def drip_head(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    drip(handler)


def drip_body(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    drip(handler)


def drip(handler: Handler) -> None:
    with suppress(OSError):
        for _ in range(10_000):
            handler.wfile.write(b"x")
            time.sleep(0.01)


@pytest.mark.parametrize("answer", [drip_head, drip_body])
def test_a_server_that_drips_is_given_up(authorities: Authorities, answer: Answer) -> None:
    """The limit is for the whole request, not for each byte, and no thread stays behind."""
    with token_server(authorities, answer) as (_, url):
        start = time.monotonic()
        text = refusal(source(url, None, authorities.file, timeout_s=BRIEF_S))
        assert time.monotonic() - start < 60
        assert text == "timed out; check the network and the server"
        assert threads_end()


def test_a_server_that_is_silent_is_given_up(authorities: Authorities) -> None:
    """Also one that takes the connection and never begins TLS."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://localhost:{silent.getsockname()[1]}/"
        start = time.monotonic()
        text = refusal(source(url, None, authorities.file, timeout_s=BRIEF_S))
        assert time.monotonic() - start < 60
        assert text.startswith("timed out")
        assert threads_end()


# The server: trust


def test_an_unknown_authority_is_refused(authorities: Authorities, credential: str) -> None:
    """The sentence says that ca_file exists, and the credential is not sent."""
    certificate = authorities.other.issue_cert("localhost")
    with token_server(authorities, say(TOKEN.encode()), certificate) as (server, url):
        assert refusal(source(url, credential)) == (
            "its certificate is from an authority this system does not know; "
            "name the authority's certificate as ca_file"
        )
        assert refusal(source(url, credential, authorities.file)) == (
            f"its certificate is not from an authority in {authorities.file}; correct ca_file"
        )
    assert server.asked == []


def test_a_certificate_for_another_name_is_refused(authorities: Authorities) -> None:
    """A name or an address that the certificate is not for."""
    certificate = authorities.known.issue_cert("elsewhere.example")
    with token_server(authorities, say(TOKEN.encode()), certificate) as (server, url):
        for host in ("localhost", "127.0.0.1"):
            asked = source(url.replace("localhost", host), None, authorities.file)
            assert refusal(asked) == (
                "its certificate is for another name; correct the host in url"
            )
    assert server.asked == []


@pytest.mark.parametrize(
    ("from_days", "to_days", "words"), [(-2, -1, "has expired"), (1, 2, "is not valid yet")]
)
def test_a_certificate_out_of_its_time_is_refused(
    authorities: Authorities, from_days: int, to_days: int, words: str
) -> None:
    """The sentence names this machine's date, which on a Pi may be what is wrong."""
    now = datetime.datetime.now(datetime.UTC)
    certificate = authorities.known.issue_cert(
        "localhost",
        not_before=now + datetime.timedelta(days=from_days),
        not_after=now + datetime.timedelta(days=to_days),
    )
    with token_server(authorities, say(TOKEN.encode()), certificate) as (server, url):
        text = refusal(source(url, None, authorities.file))
    assert text.startswith(f"its certificate {words}, according to this machine's date, 20")
    assert server.asked == []


def test_nobody_switches_trust_off(
    authorities: Authorities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agora's wrapper replaces Python's default context by one that checks nothing: no matter."""
    monkeypatch.setattr(ssl, "_create_default_https_context", ssl._create_unverified_context)
    certificate = authorities.other.issue_cert("localhost")
    with token_server(authorities, say(TOKEN.encode()), certificate) as (server, url):
        assert "authority" in refusal(source(url, None, authorities.file))
    assert server.asked == []


def test_a_server_without_tls_is_refused(authorities: Authorities, credential: str) -> None:
    """Nothing is said to it."""
    server = Server(say(TOKEN.encode()), None)
    with serving(server) as port:
        text = refusal(source(f"https://localhost:{port}/", credential, authorities.file))
    assert text.startswith("TLS handshake failed (")
    assert server.asked == []


def test_a_ca_file_that_is_none_is_named(tmp_path: Path) -> None:
    """Missing, or without a certificate."""
    file = tmp_path / "ca.pem"
    asked = source("https://localhost:1/", None, str(file))
    with pytest.raises(TokenError, match=f"ca_file {file} cannot be read: No such file"):
        asked.fetch()
    file.write_text("no certificate")
    with pytest.raises(TokenError, match=f"ca_file {file} holds no certificate; expected PEM"):
        asked.fetch()


# The server: the network


def test_a_server_that_is_not_there() -> None:
    """A closed port and an unknown name are told apart."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert refusal(source(f"https://127.0.0.1:{port}/?k=hush")) == (
        "connection refused; check url and the server"
    )
    assert refusal(source("https://no-such-host.invalid/?k=hush")) == (
        "host name not found; check the name and the network"
    )


def test_a_missing_credential_is_named() -> None:
    """Before the server is asked."""
    with pytest.raises(TokenError, match="file /nowhere/credential does not exist"):
        source("https://localhost:1/", "/nowhere/credential").fetch()


class _Proxy(socketserver.StreamRequestHandler):
    """A proxy that knows CONNECT, for whoever says the password."""

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.rfile.readline()
        assert isinstance(self.server, _ProxyServer)
        self.server.heads.append(head.decode())
        if base64.b64encode(b"me:hush") not in head:
            self.wfile.write(b"HTTP/1.1 407 hush\r\n\r\n")
            return
        host, port = head.split()[1].decode().split(":")
        with socket.create_connection((host, int(port))) as there:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=self._pump, args=(there, self.connection))
            back.start()
            self._pump(self.connection, there)
            back.join()

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while got := one.recv(65_536):
                other.sendall(got)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class _ProxyServer(socketserver.ThreadingTCPServer):
    heads: list[str]


def test_a_proxy_of_the_environment_is_used(
    authorities: Authorities, credential: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS goes through it unopened; its password and no_proxy are heeded."""
    proxy = _ProxyServer(("127.0.0.1", 0), _Proxy)
    proxy.heads = []
    with token_server(authorities, say(TOKEN.encode())) as (server, url), serving(proxy) as port:
        asked = source(url, credential, authorities.file)
        monkeypatch.setenv("https_proxy", f"http://me:hush@127.0.0.1:{port}")
        assert asked.fetch() == TOKEN
        assert len(proxy.heads) == 1
        assert CREDENTIAL not in proxy.heads[0]
        monkeypatch.setenv("no_proxy", "localhost")
        assert asked.fetch() == TOKEN
        monkeypatch.delenv("no_proxy")
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
        assert refusal(asked) == "the proxy (https_proxy) refused (407)"
        assert len(server.asked) == len(proxy.heads) == 2


@pytest.mark.parametrize("proxy", ["http://", "http://[hush", "http://host:hush"])
def test_a_proxy_that_is_none_is_refused(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without repeating it, since it may hold a password."""
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(
        TokenError, match="https_proxy in the environment is not an address"
    ) as caught:
        source("https://localhost:1/").fetch()
    assert "hush" not in str(caught.value)


# Weight


def test_what_is_not_used_is_not_loaded() -> None:
    """A daemon that starts does not pay for TLS and HTTP; only asking a server does."""
    import subprocess
    import sys

    code = (
        "import sys, types, capstand\n"
        "package = sys.modules['capstand.agora'] = types.ModuleType('capstand.agora')\n"
        "package.__path__ = [capstand.__path__[0] + '/agora']\n"
        "import capstand.agora.tokens.sources\n"
        "print(*{'ssl', 'http.client', 'urllib.request', 'json', 'hmac'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == []
