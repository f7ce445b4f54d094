"""A connection to a D-Bus message bus that never waits for longer than it says.

jeepney makes and reads the messages; the socket is ours, because a bus that hangs must not keep a
microphone closed. What comes in while an answer is waited for is kept for ``incoming``.

Thread: the one that made it.
"""

import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import get_connectable_addresses
from jeepney.low_level import HeaderFields, Message, MessageFlag, MessageType, Parser
from jeepney.wrappers import DBusAddress, new_error, new_method_call, new_method_return

from capstand.errors import CapstandError

CALL_S = 2.0
_DAEMON = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


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
    body: tuple[Any, ...]
    message: Message


class Bus:
    """A connection of one's own; ``unique_name`` is what the bus calls it."""

    def __init__(self, address: str) -> None:
        self._inbox: deque[Message] = deque()
        self._serial = count(1)
        self._parser = Parser()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        try:
            self._socket.settimeout(CALL_S)
            self._socket.connect(next(get_connectable_addresses(address)))
            login = Authenticator()
            for line in login:
                self._socket.sendall(line)
                login.feed(self._some())
            self._socket.sendall(BEGIN)
            self.unique_name = str(self.ask("Hello")[0])
        except (OSError, ValueError, RuntimeError, StopIteration, CapstandError) as error:
            self._socket.close()
            raise BusError(f"{address}: {error}") from None

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
                    fields.get(HeaderFields.sender, ""),
                    fields.get(HeaderFields.path, ""),
                    fields.get(HeaderFields.interface, ""),
                    fields.get(HeaderFields.member, ""),
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
            self._parser.add_data(self._some())
            while (message := self._parser.get_next_message()) is not None:
                self._inbox.append(message)
        except (OSError, ValueError, RuntimeError) as error:
            raise BusError(str(error)) from None

    def _some(self) -> bytes:
        got = self._socket.recv(65536)
        if not got:
            raise ConnectionResetError("the bus hung up")
        return got
