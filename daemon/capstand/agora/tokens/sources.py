"""Where tokens come from: a file, a token server, the program itself.

A device never holds the App Certificate, so a token is made elsewhere and ends within a day; a
source fetches the next one. What it hands out, and what it shows to get it (the device credential),
are secrets: they are in no error and in no phrase of status.

Threads: ``fetch`` may block and belongs in a thread of its own; ``fingerprint`` is for the control
thread. A request to a server runs in a further thread, because neither a name server nor a server
that sends a byte now and then can be waited for with an end in sight otherwise.
"""

import os
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from capstand.agora.tokens import token
from capstand.agora.tokens.token import TokenError
from capstand.config.wording import secretive
from capstand.text import clean, secret

if TYPE_CHECKING:
    import socket
    import ssl
    from http.client import HTTPSConnection

MAX_BYTES = 65_536
TIMEOUT_S = 10.0
LONG_PART = 16
TOKEN_KEYS = ("rtcToken", "token", "rtc_token")
FORM_TYPE = "application/x-www-form-urlencoded"

_NAME_MISMATCH = (62, 64)
_EXPIRED = 10
_NOT_YET_VALID = 9
_NOT_TRUSTED = (18, 19, 20, 21)


class TokenSource(Protocol):
    """Hands out tokens, the newest it can get."""

    label: str
    """One phrase for status, such as "token file /etc/capstand/token"; never a secret."""

    def fetch(self) -> str:
        """The text of a token; "" where none is needed. May block. Raises TokenError."""

    def fingerprint(self) -> object:
        """Differs from the one before when there may be something new. Cheap, never raises."""


class Fixed:
    """A token given by a program; "" for a project without App Certificate."""

    __slots__ = ("_text", "label")

    def __init__(self, text: str) -> None:
        self._text = text
        self.label = "a token given by the program" if text else "no token"

    def fetch(self) -> str:
        return self._text

    def fingerprint(self) -> object:
        return None


class TokenFile:
    """A file that something else renews; ``location`` as for ``read_secret``."""

    __slots__ = ("_location", "label")

    def __init__(self, location: str) -> None:
        self._location = location
        self.label = f"token {_describe(location)}"

    def fetch(self) -> str:
        return read_secret(self._location)

    def fingerprint(self) -> object:
        return _fingerprint(self._location)


class LocalTokens:
    """Tokens made here from the App Certificate: for development only.

    Whoever has the certificate can join any channel of the project as anybody. ``lifetime_s`` is in
    seconds; ``certificate_location`` as for ``read_secret``.
    """

    __slots__ = ("_app_id", "_channel", "_lifetime_s", "_location", "_uid", "label")

    def __init__(
        self, app_id: str, certificate_location: str, channel: str, uid: int, lifetime_s: int
    ) -> None:
        self._app_id = app_id
        self._location = certificate_location
        self._channel = channel
        self._uid = uid
        self._lifetime_s = lifetime_s
        self.label = f"tokens made here (development only), {_describe(certificate_location)}"

    def fetch(self) -> str:
        certificate = read_secret(self._location)
        lifetime_s, now_s = self._lifetime_s, time.time()
        return secret.learn(
            token.build(self._app_id, certificate, self._channel, self._uid, lifetime_s, now_s)
        )

    def fingerprint(self) -> object:
        return _fingerprint(self._location)


class TokenServer:
    """A server that is asked by HTTPS and answers with a token, as JSON or as plain text.

    In ``url``, and in the ``body`` of a POST, {app_id}, {channel}, {uid} and {expiry} (the life
    wanted, in seconds) are replaced. ``token_path`` is where in the JSON the token is, such as
    "data.token"; without it the usual keys are looked for. The secret at ``credential_location``
    goes along as ``Authorization: Bearer``. Only authorities in ``ca_file`` are trusted, or the
    system's where it is None; nobody can switch that off. Redirects are refused, since they would
    carry the credential elsewhere; proxies are taken from the environment. A fetch takes no longer
    than ``timeout_s`` seconds in all. Raises TokenError for a ``url`` that cannot be right.
    """

    __slots__ = (
        "_body",
        "_ca_file",
        "_credential",
        "_host",
        "_method",
        "_path",
        "_port",
        "_templates",
        "_timeout_s",
        "_token_path",
        "label",
    )

    def __init__(
        self,
        url: str,
        credential_location: str | None,
        ca_file: str | None,
        app_id: str,
        channel: str,
        uid: int,
        lifetime_s: int,
        timeout_s: float = TIMEOUT_S,
        method: str = "GET",
        body: str | None = None,
        token_path: str | None = None,
    ) -> None:
        values = {"app_id": app_id, "channel": channel, "uid": str(uid), "expiry": str(lifetime_s)}
        self._host, self._port, self._path = _split(_filled(url, values))
        self._templates = url.removeprefix("https://").partition("/")[2], body or ""
        self._method = method
        self._body = None if body is None else fill_body(body, values)
        self._token_path = token_path
        self._credential = credential_location
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        port = "" if self._port == 443 else f":{self._port}"
        self.label = f"token server https://{self._host}{port}"
        self._learn()

    def _learn(self) -> None:
        """What is in the address or the body may be a key, but for what is filled in."""
        for template in self._templates:
            _learn_parts(template)

    def fetch(self) -> str:
        self._learn()
        headers = {"Accept": "application/json, text/plain", "User-Agent": "capstand"}
        if self._credential is not None:
            headers["Authorization"] = f"Bearer {read_secret(self._credential)}"
        if self._body is not None:
            form = "application/json" if is_json(self._body) else FORM_TYPE
            headers["Content-Type"] = form
        connection = self._connection(_tls(self._ca_file))
        request = self._method, self._path, self._body, headers
        try:
            status, answer = _ask(connection, request, self._timeout_s)
            return secret.learn(_token_in(status, answer, self._token_path))
        except (OSError, TokenError) as error:
            raise TokenError(f"{self.label}: {_why(error, self._ca_file)}") from None

    def fingerprint(self) -> object:
        locations = (self._credential, self._ca_file)
        return tuple(None if location is None else _fingerprint(location) for location in locations)

    def _connection(self, context: "ssl.SSLContext") -> "HTTPSConnection":
        from http.client import HTTPSConnection
        from urllib.request import getproxies, proxy_bypass

        proxy = getproxies().get("https")
        if not proxy or proxy_bypass(f"{self._host}:{self._port}"):
            return HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=context)
        host, port, headers = _proxy(proxy)
        connection = HTTPSConnection(host, port, timeout=self._timeout_s, context=context)
        connection.set_tunnel(self._host, self._port, headers)
        return connection


def read_secret(location: str) -> str:
    """The secret at ``location``: an absolute path, or the name of a systemd credential.

    White space around it is dropped. Raises TokenError, which says where and what to do.
    """
    path = _path(location)
    where = _describe(location)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            ordinary = stat.S_ISREG(os.fstat(handle).st_mode)
            raw = os.read(handle, MAX_BYTES + 1) if ordinary else b""
        finally:
            os.close(handle)
    except FileNotFoundError:
        if path == Path(location):
            raise TokenError(f"{where} does not exist; create it with the secret") from None
        raise TokenError(
            f"{where} was not provided by systemd; add LoadCredential=NAME:/path to the unit"
        ) from None
    except PermissionError:
        raise TokenError(
            f"{where} cannot be read (permission denied); chown root:capstand and chmod 640 the "
            "file"
        ) from None
    except OSError as error:
        raise TokenError(f"{where} cannot be read: {os.strerror(error.errno or 0)}") from None
    if not ordinary:
        raise TokenError(f"{where} not a regular file; name the file with the secret")
    if len(raw) > MAX_BYTES:
        raise TokenError(f"{where} is longer than {MAX_BYTES} bytes; expected one line")
    return secret.learn(_one_line(raw, where))


def world_accessible(location: str) -> str | None:
    """A warning where every user of the machine may read or change the secret at ``location``."""
    try:
        path = _path(location)
        mode = path.stat().st_mode
    except (TokenError, OSError, ValueError):
        return None  # read_secret says so
    if not mode & 0o007:
        return None
    return (
        f"{_describe(location)} can be read or changed by every user of this machine "
        f"(mode {stat.S_IMODE(mode):o}); chown root:capstand {path} and chmod 640 {path}"
    )


def _path(location: str) -> Path:
    if location.startswith("/"):
        return Path(location)
    if not location or "/" in location or location in (".", ".."):
        where = _describe(location)
        raise TokenError(
            f"{where} is neither an absolute path nor the name of a systemd credential"
        )
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise TokenError(
            f"{_describe(location)} not found: systemd provided no credentials; "
            "add LoadCredential=NAME:/path to the unit, or name an absolute path"
        )
    return Path(directory, location)


def _describe(location: str) -> str:
    """A place by its name, where it is one: who writes the secret itself in its stead shall not
    find it in a log.
    """
    if location.startswith("/"):
        folder = Path(location).parent
        known = not secretive(location) or (folder != Path("/") and os.path.lexists(folder))
        return f"file {location}" if known else f"the file that {len(location)} characters name"
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory and "/" not in location and os.path.lexists(f"{directory}/{location}"):
        return f"credential {location}"
    return f"the credential that {len(location)} characters name"


def _learn_parts(text: str) -> None:
    """What may be a key in the path or the query of an address, or in what is sent."""
    import re

    for part in re.split(r"[\s/?&=:,\"{}]", text):
        if len(part) >= LONG_PART:
            secret.learn(part)


def _fingerprint(location: str) -> tuple[int, int, int] | None:
    try:
        status = _path(location).stat()
    except (TokenError, OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _one_line(raw: bytes, where: str) -> str:
    """``raw`` as a secret of printable ASCII without white space."""
    text = raw.decode("utf-8", "replace").strip()
    if not text:
        raise TokenError(f"{where} is empty; expected one line")
    if "\N{REPLACEMENT CHARACTER}" in text:
        raise TokenError(f"{where} is not UTF-8 text; expected one line")
    for number, one in enumerate(text, 1):
        if not "!" <= one <= "~":
            raise TokenError(
                f"{where} has white space or a character that is not visible ASCII at place "
                f"{number} of {len(text)}; expected one line without"
            )
    return text


def _filled(url: str, values: dict[str, str]) -> str:
    import re
    from urllib.parse import quote

    def value(found: "re.Match[str]") -> str:
        name = found[1]
        if name not in values:
            known = ", ".join(f"{{{value}}}" for value in values)
            raise TokenError(f"the token server's url has another name in braces than {known}")
        return quote(values[name], safe="")

    return re.sub(r"\{([^{}]*)\}", value, url)


def is_json(body: str) -> bool:
    """Whether a body is meant as JSON; else it is a form, such as channel={channel}&uid={uid}."""
    return body.lstrip().startswith(("{", "["))


def fill_body(body: str, values: dict[str, str]) -> str:
    """``body`` with what stands for a value replaced, escaped as its kind wants."""
    import json
    import re
    from urllib.parse import quote

    def value(found: "re.Match[str]") -> str:
        text = values[found[1]]
        return json.dumps(text)[1:-1] if is_json(body) else quote(text, safe="")

    return re.sub(rf"\{{({'|'.join(values)})\}}", value, body)


def _split(url: str) -> tuple[str, int, str]:
    """Host, port and path with query; the text of ``url`` is in no error, it may hold a secret."""
    from urllib.parse import urlsplit

    if not all("!" <= one <= "~" for one in url):
        raise TokenError(
            "the token server's url holds white space or characters that are not ASCII; "
            "write them percent-encoded"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError:
        raise TokenError("the token server's url has no valid host and port") from None
    if parts.scheme != "https":
        raise TokenError(
            "the token server's url does not start with https://; nothing else is safe"
        )
    if not host or not all(1 <= len(label) <= 63 for label in host.rstrip(".").split(".")):
        raise TokenError("the token server's url has no valid host; expected https://host/path")
    if parts.username is not None or parts.password is not None:
        raise TokenError(
            "the token server's url holds a user name or password; "
            "put the secret in a file and name that as the credential"
        )
    return host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _proxy(url: str) -> tuple[str, int, dict[str, str]]:
    """Host, port and headers of an HTTP proxy, which may hold a name and password."""
    from base64 import b64encode
    from urllib.parse import unquote_to_bytes, urlsplit

    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host = None
    if not host:
        raise TokenError(
            "https_proxy in the environment is not an address; expected http://host:port"
        )
    if parts.username is None:
        return host, port, {}
    user = unquote_to_bytes(parts.username) + b":" + unquote_to_bytes(parts.password or "")
    return host, port, {"Proxy-Authorization": f"Basic {b64encode(user).decode()}"}


def _tls(ca_file: str | None) -> "ssl.SSLContext":
    import ssl

    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise TokenError(f"ca_file {ca_file} holds no certificate; expected PEM") from None
    except OSError as error:
        raise TokenError(
            f"ca_file {ca_file} cannot be read: {os.strerror(error.errno or 0)}"
        ) from None


def _ask(
    connection: "HTTPSConnection",
    request: tuple[str, str, str | None, dict[str, str]],
    timeout_s: float,
) -> tuple[int, bytes]:
    """Status and body, the latter up to one byte too many. Raises OSError and TokenError."""
    import socket
    import traceback
    from http.client import HTTPException
    from queue import Empty, SimpleQueue

    outcome: SimpleQueue[tuple[int, bytes] | OSError | TokenError] = SimpleQueue()
    opened: list[socket.socket] = []
    given_up = threading.Event()

    def run() -> None:
        try:
            connection.connect()
            opened.append(connection.sock)
            if given_up.is_set():
                return
            method, path, body, headers = request
            connection.request(method, path, None if body is None else body.encode(), headers)
            with connection.getresponse() as response:
                outcome.put((response.status, response.read(MAX_BYTES + 1)))
        except OSError as error:
            # Python 3.11.2's http.client leaves a proxy's refusal open, and its descriptor with it.
            traceback.clear_frames(error.__traceback__)
            outcome.put(error)
        except (HTTPException, ValueError) as error:
            name = type(error).__name__
            outcome.put(TokenError(f"it sent an invalid HTTP reply ({name}); is url right?"))
        finally:
            connection.close()

    threading.Thread(target=run, name="token-server", daemon=True).start()
    try:
        got = outcome.get(timeout=timeout_s)
    except Empty:
        given_up.set()
        for one in opened or [connection.sock]:
            _shut(one)
        got = TimeoutError()
    if isinstance(got, Exception):
        raise got
    return got


def _shut(one: "socket.socket | None") -> None:
    """Ends what another thread reads from ``one``, beneath any TLS."""
    import contextlib
    import socket

    if one is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(one, socket.SHUT_RDWR)


def _token_in(status: int, answer: bytes, token_path: str | None) -> str:
    """The token in an answer. Raises TokenError, whose words hold nothing of it."""
    import re

    if status in (401, 403):
        raise TokenError(
            f"the device credential was refused ({status}); have the server issue a new one"
        )
    if 300 <= status < 400:
        raise TokenError(
            f"it replied {status}, a redirect, which is not followed; put the final address in url"
        )
    if status == 404:
        raise TokenError("it replied 404, not found; correct the path in url")
    if status == 405:
        raise TokenError('it replied 405; it wants another method, set method to "POST" or "GET"')
    if status not in (200, 201):
        raise TokenError(f"it replied {status}; expected 200, see the server's log")
    if len(answer) > MAX_BYTES:
        raise TokenError(f"its reply is longer than {MAX_BYTES} bytes; expected a token")
    try:
        value = clean.parsed(answer)
    except ValueError:
        value = answer.decode("utf-8", "replace")
    if token_path is not None:
        value = _at(value, token_path)
    elif isinstance(value, dict):
        named = [value[key] for key in TOKEN_KEYS if isinstance(value.get(key), str)]
        if not named:
            raise TokenError(
                f"its reply has none of the keys {', '.join(TOKEN_KEYS)}; set token_path to where "
                'the token is, such as "data.token"'
            )
        value = named[0]
    text = value.strip() if isinstance(value, str) else "no text"
    if not text:
        raise TokenError("its reply is empty; expected JSON or the token alone")
    if not re.fullmatch(r"[0-9A-Za-z+/=]+", text):
        raise TokenError("its reply is not a valid token; expected JSON or the token alone")
    return text


def _at(value: object, token_path: str) -> str:
    """The text at ``token_path``; of the answer nothing is in the error."""
    gone: list[str] = []
    for key in token_path.split("."):
        where = ".".join(gone) or "its reply"
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key in map(str, range(len(value))):
            value = value[int(key)]
        else:
            found = "no JSON object" if isinstance(value, str) and not gone else "no such key"
            raise TokenError(f"{where} has {found} for token_path {token_path} at {key}")
        gone.append(key)
    if not isinstance(value, str):
        raise TokenError(f"{token_path} in its reply is not text; correct token_path")
    return value


def _why(error: Exception, ca_file: str | None) -> str:
    """``error`` in words for a person; none of them come from the other side."""
    import re
    import socket
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return _why_not_trusted(error, ca_file)
    if isinstance(error, ssl.SSLError):
        return f"TLS handshake failed ({error.reason or 'broken off'}); is it an https port?"
    if isinstance(error, socket.gaierror):
        return "host name not found; check the name and the network"
    if isinstance(error, TimeoutError):
        return "timed out; check the network and the server"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused; check url and the server"
    if isinstance(error, ConnectionError):
        return "the server closed the connection; see its log"
    if isinstance(error, OSError) and error.errno:
        return f"{os.strerror(error.errno)}; check the network"
    if isinstance(error, OSError):
        code = re.search(r"\b[1-5]\d\d\b", str(error))
        return f"the proxy (https_proxy) refused ({code[0] if code else 'no reason given'})"
    return str(error)


def _why_not_trusted(error: "ssl.SSLCertVerificationError", ca_file: str | None) -> str:
    if error.verify_code in _NAME_MISMATCH:
        return "its certificate is for another name; correct the host in url"
    if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
        wrong = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
        today = time.strftime("%Y-%m-%d", time.gmtime())
        return f"its certificate {wrong}, according to this machine's date, {today}"
    if error.verify_code in _NOT_TRUSTED:
        if ca_file is None:
            return (
                "its certificate is from an authority this system does not know; "
                "name the authority's certificate as ca_file"
            )
        return f"its certificate is not from an authority in {ca_file}; correct ca_file"
    return f"its certificate is not accepted (code {error.verify_code})"
