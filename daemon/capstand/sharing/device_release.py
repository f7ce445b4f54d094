"""``capstand release`` and ``resume``: a device is handed to another program and taken back.

The stream goes on meanwhile, with its sinks connected; what it misses is a gap of the cause
``released``. ``release`` is answered only once the device is closed, so that the next program finds
it free. It may be repeated, and the last one counts. A daemon that starts anew has forgotten it:
after a restart, sound.

Thread: main.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from capstand.accounting.ledger import Ledger, wall_time
from capstand.audio.block import NS_PER_S
from capstand.capture.release import OPERATOR
from capstand.errors import CapstandError
from capstand.host.control import Response
from capstand.host.peer import Peer
from capstand.sharing.card_reservation import Captures
from capstand.sharing.order import allowed, named, shown

LONGEST_S = 366 * 86_400
DAY_S = 86_400


class DeviceRelease:
    """Releases devices of ``streams()`` and takes them back when their time is over."""

    def __init__(
        self,
        streams: Callable[[], Sequence[Captures]],
        ledger: Ledger,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._streams = streams
        self._ledger = ledger
        self._changed = changed  # called after each change
        self._until_ns: dict[Captures, int | None] = {}  # those released; None: until resumed

    def release(self, request: Mapping[str, Any], peer: Peer) -> Callable[[], Response | None]:
        """Raises CapstandError for one who may not, and for what cannot be meant."""
        allowed(peer, "release")
        stream = named(request, self._streams())
        for_s = request.get("for_s")
        if for_s is None:
            until_ns, words = None, f"until `capstand resume {stream.name}`"
        else:
            if type(for_s) not in (int, float) or not 0 < for_s <= LONGEST_S:
                raise CapstandError(
                    f"{shown(for_s)}: expected the seconds to release {stream.name} for, above "
                    f"0 and at most {LONGEST_S}"
                )
            until_ns = time.monotonic_ns() + round(for_s * NS_PER_S)
            words = f"until {_clock_time(for_s)}"
        self._until_ns[stream] = until_ns
        stream.release(OPERATOR, f"released {words}")
        self._ledger.write(
            stream.name,
            "release",
            by_uid=peer.uid,
            by_pid=peer.pid,
            until=None if until_ns is None else wall_time(until_ns),
        )
        self._changed()

        def closed() -> Response | None:
            if stream not in self._until_ns:
                return {"error": f"{stream.name} was resumed before its device was closed"}
            return {"stream": stream.name, "released": words} if stream.rests else None

        return closed

    def resume(self, request: Mapping[str, Any], peer: Peer) -> Response:
        """The same errors; a stream that is not released stays as it is."""
        allowed(peer, "resume")
        stream = named(request, self._streams())
        was_released = stream in self._until_ns
        if was_released:
            self._take_back(stream, by_uid=peer.uid, by_pid=peer.pid)
        return {"stream": stream.name, "was_released": was_released}

    def poll(self, now_ns: int) -> None:
        """Takes back what was released until now; called now and then."""
        for stream in self._until_ns.keys() - set(self._streams()):
            del self._until_ns[stream]  # a configuration without it is in force
        for stream, until_ns in list(self._until_ns.items()):
            if until_ns is not None and now_ns >= until_ns:
                self._take_back(stream, reason="time elapsed")

    def _take_back(self, stream: Captures, **why: object) -> None:
        del self._until_ns[stream]
        self._ledger.write(stream.name, "resume", **why)
        stream.resume(OPERATOR)
        self._changed()


def _clock_time(for_s: float) -> str:
    """The wall time in so many seconds, for a person: with its date where that is not today's."""
    form = "%H:%M:%S" if for_s < DAY_S / 2 else "%Y-%m-%d %H:%M:%S"
    return time.strftime(form, time.localtime(time.time() + for_s))
