"""The claim to one card on a session's bus: its name, and the streams that want the card.

The name is taken before the card is opened, if need be after its owner was asked to let go, and let
go of once the card is closed: the protocol of ``reservation_manager.py``, for one card.

Thread: ``reserve``.
"""

import time
from typing import TYPE_CHECKING, Protocol

from capstand.accounting.ledger import Ledger
from capstand.capture.release import OPERATOR, RESERVATION
from capstand.config.schema import StreamConfig
from capstand.devices.holder import process_name

if TYPE_CHECKING:
    from capstand.sharing.bus import Bus

INTERFACE = "org.freedesktop.ReserveDevice1"
FOLDER = "/org/freedesktop/ReserveDevice1"
HIGHEST = 2**31 - 1
ALLOW_REPLACEMENT, REPLACE_EXISTING, DO_NOT_QUEUE = 1, 2, 4
OWNER, ALREADY_OWNER = 1, 4

CLOSE_S = 2.0  # how long closing one may take
CLOSE_LOOK_S = 0.005
GRACE_S = 3.0  # how long one who was given a card may take to own its name
ASK_AGAIN_S = 10.0  # after what time an owner who keeps a card is asked again


class Captures(Protocol):
    """A stream, as far as its card is concerned."""

    name: str
    config: StreamConfig

    def release(self, who: str, words: str) -> None:
        """``who`` gets the card, which is closed once it ``rests``. Any thread."""

    def resume(self, who: str) -> None:
        """``who`` gives it back. Any thread."""

    def is_released_to(self, who: str) -> bool: ...

    @property
    def rests(self) -> bool: ...


class CardReservation:
    """Our claim to one card: its name on the bus, and the streams that want the card."""

    def __init__(self, number: int, bus: "Bus", ledger: Ledger) -> None:
        self.name = f"{INTERFACE}.Audio{number}"
        self.path = f"{FOLDER}/Audio{number}"
        self.streams: list[Captures] = []
        self.owned = False
        self._card = f"card {number}"
        self._bus = bus
        self._ledger = ledger
        self._lent = False  # it was ours and another has it, or is about to
        self._lent_until = 0.0  # so long the one we lent it to may take over the name
        self._ask_at = 0.0

    @property
    def priority(self) -> int:
        return max(stream.config.capture.reserve_priority for stream in self.streams)

    def poll(self, now: float) -> None:
        """Takes the name where it is wanted, lets it go where it is not."""
        if all(stream.is_released_to(OPERATOR) for stream in self.streams):
            self.give_up()
            return
        if now < self._lent_until:
            return
        self._lent_until = 0.0
        if not self.owned and now >= self._ask_at:
            self._ask_at = now + ASK_AGAIN_S
            self._take()
        if self.owned:
            self._open()

    def give_up(self) -> None:
        """Nobody wants the card any more: closes it, then the name is free."""
        if self.owned:
            self._close("is not reserved at the moment")
            self._closed()
            self._bus.ask("ReleaseName", "s", self.name)
        self.owned, self._ask_at, self._lent_until = False, 0.0, 0.0

    def requested(self, priority: int, who: str) -> bool:
        """Another asks for the card: true once it is closed, false when we keep it."""
        if not self.owned or priority <= self.priority:
            return False
        self._close(f"is released to {who}, which requested it with priority {priority}")
        if not self._closed():
            self._open()
            return False
        self._bus.ask("ReleaseName", "s", self.name)
        self._lend(who)
        self.owned, self._lent_until = False, time.monotonic() + GRACE_S
        return True

    def owner_changed(self, owner: str) -> None:
        """The bus tells who owns the name now, "" for nobody."""
        if owner == "":
            self._ask_at = 0.0
            return
        if owner == self._bus.unique_name or (self.owned and self._is_ours()):
            return  # what is told may be old by now
        if self.owned or self._lent_until:
            self.owned, self._lent_until = False, 0.0
            self._ask_at = time.monotonic() + ASK_AGAIN_S
            who = self._owner()
            self._close(f"is reserved by {who}; waiting for it")
            self._lend(who)

    def properties(self) -> dict[str, tuple[str, object]]:
        return {
            "Priority": ("i", self.priority),
            "ApplicationName": ("s", "capstand"),
            "ApplicationDeviceName": ("s", self.streams[0].config.capture.wanted),
        }

    def _take(self) -> None:
        """Owns the name, if need be after its owner let go of the card; else says who has it."""
        flags = DO_NOT_QUEUE | (ALLOW_REPLACEMENT if self.priority < HIGHEST else 0)
        self.owned = self._request(flags)
        if self.owned:
            return
        who = self._owner()
        if self._asked_owner():
            self.owned = self._request(flags | REPLACE_EXISTING)
        if not self.owned:
            self._close(f"is reserved by {who}; waiting for it")

    def _request(self, flags: int) -> bool:
        return self._bus.ask("RequestName", "su", self.name, flags)[0] in (OWNER, ALREADY_OWNER)

    def _is_ours(self) -> bool:
        from capstand.sharing.bus import Refusal

        try:
            return bool(self._bus.ask("GetNameOwner", "s", self.name)[0] == self._bus.unique_name)
        except Refusal:
            return False

    def _asked_owner(self) -> bool:
        from capstand.sharing.bus import Refusal

        try:
            said = self._bus.call(
                self.name, self.path, INTERFACE, "RequestRelease", "i", self.priority
            )
        except Refusal:
            return False
        return bool(said) and said[0] is True

    def _owner(self) -> str:
        return process_of(self._bus, self.name)

    def _open(self) -> None:
        for stream in self.streams:
            stream.resume(RESERVATION)
            if self._lent:
                self._ledger.write(stream.name, "resume", reason=f"{self._card} is free again")
        self._lent = False

    def _close(self, words: str) -> None:
        for stream in self.streams:
            stream.release(RESERVATION, f"{self._card} {words}")

    def _closed(self) -> bool:
        """Waits for all devices of the card, at most CLOSE_S."""
        end = time.monotonic() + CLOSE_S
        while not all(stream.rests for stream in self.streams):
            if time.monotonic() >= end:
                return False
            time.sleep(CLOSE_LOOK_S)
        return True

    def _lend(self, who: str) -> None:
        if not self._lent:
            self._lent = True
            for stream in self.streams:
                self._ledger.write(stream.name, "release", to=who)


def process_of(bus: "Bus", name: str) -> str:
    """Who owns a name on the bus, as a person knows it: "wireplumber (pid 812, …)"."""
    from capstand.sharing.bus import Refusal

    try:
        (pid,) = bus.ask("GetConnectionUnixProcessID", "s", name)
    except (Refusal, ValueError):
        return "another program"
    return process_name(str(pid)) or f"pid {pid}"
