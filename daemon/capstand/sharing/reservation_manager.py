"""Cards are shared with PipeWire, PulseAudio and JACK by org.freedesktop.ReserveDevice1.

On the bus of a user's session whoever owns the name ``org.freedesktop.ReserveDevice1.AudioN`` may
use card N. Another who wants it calls RequestRelease with a priority of its own; an owner of a
lower one closes the card, drops the name and says yes. (An owner may also keep the name until it is
replaced, but then PipeWire's own tools wait indefinitely.) So capstand

- takes the name before it opens a card, asking an owner to let go first;
- lets go when asked with a higher priority than ``reserve_priority``, once the card is closed;
- waits while another owns the name, and takes the card back as soon as the name is free.

The capture thread knows nothing of this: it is told to release its device and to resume. A card may
feed several streams, but a name is one per process: hence one ``CardReservation`` per card. Where
this user has no session bus (the service's own user ``capstand``), nothing is reserved.

Anybody on that bus may send us anything. Who owns a name is believed of the bus alone, what is
asked must have the shape that the protocol gives it, and each may ask ``RATE`` times a second.

Thread: ``reserve``; it may wait for the bus, for a bounded time, and a bus that fails sets all
devices free.
"""

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from capstand.accounting.ledger import Ledger
from capstand.capture.release import RESERVATION
from capstand.config.naming import parse
from capstand.devices.address import card_of, is_hardware
from capstand.host import bug
from capstand.host.logs import log_event
from capstand.host.ratelimit import RateLimits
from capstand.sharing.card_reservation import INTERFACE, Captures, CardReservation, process_of

if TYPE_CHECKING:
    from capstand.sharing.bus import Bus, Incoming


RATE, BURST = 10.0, 20.0
LOOK_S = 1.0  # how often cards that come and go are looked for
RECONNECT_S = 5.0
BUS = "org.freedesktop.DBus"  # as in bus.py, which is loaded only where there is one


class ReservationManager:
    """Reserves the cards of ``streams()`` as long as there is a bus; ``root`` is for /proc."""

    def __init__(
        self,
        streams: Callable[[], Sequence[Captures]],
        ledger: Ledger,
        address: Callable[[], str | None],
        root: Path = Path("/"),
    ) -> None:
        self._streams = streams
        self._ledger = ledger
        self._address = address
        self._root = root
        self._reservations: dict[int, CardReservation] = {}
        self._allowed = RateLimits(RATE, BURST)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        self._told: str | None = None
        self._thread = threading.Thread(target=self._run, name="reserve", daemon=True)

    def start(self) -> None:
        """Before the streams start, so that none opens a card that is not reserved."""
        self.hold(self._streams())
        self._thread.start()

    def hold(self, streams: Sequence[Captures]) -> None:
        """The same for ``streams`` that begin later; they are among ours by now. Main thread."""
        if self._address() is None:
            return
        for stream in streams:
            if self._card_of(stream) is not None:
                stream.release(RESERVATION, "waiting to reserve its card")
        self.wake()

    def wake(self) -> None:
        """Something changed: look at once. Any thread."""
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Waits a moment only: whoever waits for the names gets them when the process ends."""
        self._stopping = True
        self.wake()
        self._thread.join(0.5)

    def _run(self) -> None:
        try:
            while not self._stopping:
                address = self._address()
                if address is None:
                    self._tell("cards are not reserved: this user has no session bus")
                else:
                    self._serve(address)
                self._let_all_open()
                self._pause(RECONNECT_S)
        finally:
            self._let_all_open()

    def _serve(self, address: str) -> None:
        """Until the bus fails or ``stop``."""
        from capstand.sharing.bus import Bus, BusError, Refusal

        try:
            bus = Bus(address)
        except BusError as error:
            self._tell(f"cards are not reserved: {error}")
            return
        try:
            rule = "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged'"
            bus.ask("AddMatch", "s", f"{rule},arg0namespace='{INTERFACE}'")
            look_at = 0.0
            while not self._stopping:
                for message in bus.incoming():
                    if message.is_call:
                        self._serve_call(bus, message)
                    elif self._hear(message):
                        look_at = 0.0
                if time.monotonic() >= look_at:
                    self._poll(bus)
                    look_at = time.monotonic() + LOOK_S
                self._tell("cards are reserved on the session bus")
                if self._pause(0.0 if bus.pending else LOOK_S, bus.fileno()):
                    look_at = 0.0
        except (BusError, Refusal) as error:
            self._tell(f"cards are no longer reserved: {error}")
        except Exception as error:  # noqa: BLE001  to share cards is not worth the sound
            self._tell(f"cards are no longer reserved: {bug.log_unexpected('reserve', error)}")
        finally:
            bus.close()
            self._reservations.clear()

    def _poll(self, bus: "Bus") -> None:
        """Which streams are on which card changes when one is plugged in."""
        cards: dict[int, list[Captures]] = {}
        for stream in self._streams():
            number = self._card_of(stream)
            if number is None:
                stream.resume(RESERVATION)
            else:
                cards.setdefault(number, []).append(stream)
        for number in self._reservations.keys() - cards.keys():
            gone = self._reservations.pop(number)
            gone.streams = []
            gone.give_up()
        for number, streams in cards.items():
            if number not in self._reservations:
                self._reservations[number] = CardReservation(number, bus, self._ledger)
            self._reservations[number].streams = streams
            self._reservations[number].poll(time.monotonic())

    def _hear(self, signal: "Incoming") -> bool:
        """Whether it is the bus's word that one of our names has another owner. The bus alone knows
        that, and only it can send as itself."""
        if (signal.sender, signal.member, signal.signature) != (BUS, "NameOwnerChanged", "sss"):
            return False
        name, _, owner = signal.body
        reservation = self._named(name)
        if reservation is not None:
            reservation.owner_changed(owner)
        return reservation is not None

    def _serve_call(self, bus: "Bus", call: "Incoming") -> None:
        reservation = self._named(call.path.replace("/", ".").removeprefix("."))
        if not self._allowed.take(call.sender, time.monotonic()):
            bus.refuse(call, "LimitsExceeded")
            return
        if reservation is None:
            bus.refuse(call, "UnknownObject")
            return
        match call.interface, call.member, call.signature:
            case (("" | "org.freedesktop.ReserveDevice1"), "RequestRelease", "i"):
                (priority,) = call.body
                who = process_of(bus, call.sender)
                bus.answer(call, "b", reservation.requested(priority, who))
            case (("" | "org.freedesktop.DBus.Properties"), "Get", "ss"):
                interface, name = call.body
                known = reservation.properties() if interface == INTERFACE else {}
                if name in known:
                    bus.answer(call, "v", known[name])
                else:
                    bus.refuse(call, "UnknownProperty")
            case (("" | "org.freedesktop.DBus.Properties"), "GetAll", "s"):
                known = reservation.properties() if call.body == (INTERFACE,) else {}
                bus.answer(call, "a{sv}", known)
            case (_, "RequestRelease" | "Get" | "GetAll", _):
                bus.refuse(call, "InvalidArgs")
            case _:
                bus.refuse(call, "UnknownMethod")

    def _named(self, name: object) -> CardReservation | None:
        return next(
            (
                reservation
                for reservation in self._reservations.values()
                if reservation.name == name
            ),
            None,
        )

    def _card_of(self, stream: Captures) -> int | None:
        """The best that is there; None for a card that is away, and for what is no card."""
        numbers = (card_of(name, self._root) for name in stream.config.capture.devices)
        return next((number for number in numbers if number is not None), None)

    def _let_all_open(self) -> None:
        for stream in self._streams():
            stream.resume(RESERVATION)

    def _pause(self, timeout_s: float, *descriptors: int) -> bool:
        """Whether it was ended by ``wake``."""
        poll = select.poll()
        for one in (self._wake, *descriptors):
            poll.register(one, select.POLLIN)
        woken = any(one == self._wake for one, _ in poll.poll(timeout_s * 1000))
        if woken:
            os.eventfd_read(self._wake)
        return woken

    def _tell(self, line: str) -> None:
        """Each change once, if there is a card at all."""
        on_cards = any(
            _on_card(name) for stream in self._streams() for name in stream.config.capture.devices
        )
        if line != self._told and on_cards:
            self._told = line
            log_event(logging.INFO, "%s", line, KIND="reservation")


def _on_card(device: str) -> bool:
    """Whether a device is a card's own; what dsnoop shares is not to be had for one alone."""
    return parse(device) is not None or is_hardware(device)


def session_address() -> str | None:
    """The bus of this user's session, also for a system service that runs as that user."""
    if given := os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
        return given
    own = Path(f"/run/user/{os.geteuid()}/bus")
    return f"unix:path={own}" if own.exists() else None
