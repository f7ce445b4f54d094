"""A connection to a D-Bus message bus that never waits for longer than it says.

jeepney makes and reads the messages; the socket is ours, because a bus that hangs must not keep a
microphone closed. What comes in while an answer is waited for is kept for ``incoming``.

The bus is believed, those on it are not, and each of them may send us anything: a message that
is longer than ours ever are, or that jeepney cannot read, is left out; so is what comes while
``MOST_WAITING`` wait already, but not an answer, nor what the bus itself says; and a flood is read
slowly, for the bus to hold.

Thread: the one that made it.
"""

import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple

from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import get_connectable_addresses
from jeepney.low_level import HeaderFields, Message, MessageFlag, MessageType, calc_msg_size
from jeepney.wrappers import DBusAddress, new_error, new_method_call, new_method_return

from capstand.errors import CapstandError
from capstand.host.ratelimit import RateLimit

CALL_S = 2.0
AT_ONCE = 16384
LONGEST = 16384
MOST_WAITING = 500
RATE, BURST = 500.0, 1000.0
"""Messages a second that are taken apart; one counts twice for each kilobyte."""
SKIP_AT_ONCE, SKIP_PAUSE_S = 65536, 0.001
DAEMON = "org.freedesktop.DBus"
_DAEMON = (DAEMON, "/org/freedesktop/DBus", DAEMON)
_HEAD_BYTES = 16


class BusError(CapstandError):
    """The bus does not answer, or will not have us; the connection is of no further use."""


class Refusal(CapstandError):
    """A call was answered by an error, or not in time; the connection is well."""


class Incoming(NamedTuple):
    """A call to one of our objects, or a signal."""

    is_call: bool
    sender: str
    path: str
    interface: str
    member: str
    signature: str
    body: tuple[Any, ...]
    message: Message


class Bus:
    """A connection of one's own; ``unique_name`` is what the bus calls it."""

    def __init__(self, address: str) -> None:
        self._inbox: deque[Message] = deque()
        self._serial = count(1)
        self._received = bytearray()
        self._to_skip = 0
        self._allowed = RateLimit(RATE, BURST, time.monotonic())
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        try:
            self._log_in(address)
            self.unique_name = str(self.ask("Hello")[0])
        except Exception as error:  # noqa: BLE001  of an address, and of who listens there
            self._socket.close()
            raise BusError(f"{address}: {error or type(error).__name__}") from None

    def _log_in(self, address: str) -> None:
        deadline_s = time.monotonic() + CALL_S
        self._socket.settimeout(CALL_S)
        self._socket.connect(next(get_connectable_addresses(address)))
        login = Authenticator()
        for line in login:
            self._socket.settimeout(max(0.001, deadline_s - time.monotonic()))
            self._socket.sendall(line)
            login.feed(self._some())
        self._socket.settimeout(CALL_S)
        self._socket.sendall(BEGIN)

    @property
    def pending(self) -> bool:
        """Whether something came that the socket does not show any more."""
        return bool(self._inbox)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def ask(self, method: str, signature: str | None = None, *body: Any) -> tuple[Any, ...]:
        """A call to the bus itself. Raises Refusal and BusError, as ``call`` does."""
        return self.call(*_DAEMON, method, signature, *body)

    def call(
        self,
        name: str,
        path: str,
        interface: str,
        method: str,
        signature: str | None = None,
        *body: Any,
    ) -> tuple[Any, ...]:
        """What is answered within CALL_S. Raises Refusal when it is an error, or nothing."""
        target = DBusAddress(path, bus_name=name, interface=interface)
        serial = self._send(new_method_call(target, method, signature, body))
        deadline = time.monotonic() + CALL_S
        while True:
            for number, got in enumerate(self._inbox):
                if got.header.fields.get(HeaderFields.reply_serial) == serial:
                    del self._inbox[number]
                    if got.header.message_type is MessageType.error:
                        raise Refusal(str(got.header.fields.get(HeaderFields.error_name)))
                    return tuple(got.body)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Refusal("no answer")
            self._collect(left_s)

    def incoming(self) -> Iterator[Incoming]:
        """What has come and is no answer. Raises BusError when the bus hung up."""
        self._collect(0.0)
        while self._inbox:
            message = self._inbox.popleft()
            kind, fields = message.header.message_type, message.header.fields
            if kind in (MessageType.method_call, MessageType.signal):
                yield Incoming(
                    kind is MessageType.method_call,
                    str(fields.get(HeaderFields.sender, "")),
                    str(fields.get(HeaderFields.path, "")),
                    str(fields.get(HeaderFields.interface, "")),
                    str(fields.get(HeaderFields.member, "")),
                    str(fields.get(HeaderFields.signature, "")),
                    tuple(message.body),
                    message,
                )

    def answer(self, call: Incoming, signature: str, *body: Any) -> None:
        if not call.message.header.flags & MessageFlag.no_reply_expected:
            self._send(new_method_return(call.message, signature, body))

    def refuse(self, call: Incoming, error: str) -> None:
        """Answers by an error of org.freedesktop.DBus.Error."""
        if not call.message.header.flags & MessageFlag.no_reply_expected:
            self._send(new_error(call.message, f"org.freedesktop.DBus.Error.{error}"))

    def _send(self, message: Message) -> int:
        serial = next(self._serial)
        try:
            self._socket.sendall(message.serialise(serial=serial))
        except OSError as error:
            raise BusError(str(error)) from None
        return serial

    def _collect(self, timeout_s: float) -> None:
        """Puts what comes within ``timeout_s`` into the inbox."""
        if not self._poll.poll(timeout_s * 1000):
            return
        try:
            self._received += self._some()
            for message in self._whole_messages():
                if len(self._inbox) < MOST_WAITING or _is_wanted(message):
                    self._inbox.append(message)
        except (OSError, KeyError) as error:  # KeyError: what comes is no D-Bus
            raise BusError(str(error)) from None
        if self._to_skip:
            time.sleep(SKIP_PAUSE_S)
        elif (wait_s := self._allowed.wait_s(time.monotonic())) > 0:
            time.sleep(wait_s)

    def _whole_messages(self) -> Iterator[Message]:
        received = self._received
        while True:
            skipped = min(self._to_skip, len(received))
            del received[:skipped]
            self._to_skip -= skipped
            if self._to_skip or len(received) < _HEAD_BYTES:
                return
            size = calc_msg_size(bytes(received[:_HEAD_BYTES]))
            if size > LONGEST:
                self._to_skip = size
            elif len(received) < size:
                return
            else:
                raw = bytes(received[:size])
                del received[:size]
                self._allowed.take(1 + size // 512)
                # Whatever a reader of foreign bytes may raise costs that message only.
                with suppress(Exception):
                    yield Message.from_buffer(raw)

    def _some(self) -> bytes:
        got = self._socket.recv(SKIP_AT_ONCE if self._to_skip else AT_ONCE)
        if not got:
            raise ConnectionResetError("the bus hung up")
        return got


def _is_wanted(message: Message) -> bool:
    """Whether it is an answer, or the bus's own word."""
    fields = message.header.fields
    return HeaderFields.reply_serial in fields or fields.get(HeaderFields.sender) == DAEMON
