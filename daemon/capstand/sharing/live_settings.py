"""``capstand set``, the daemon's side: a setting of a running chain is changed, or all are listed.

The stream takes it as it takes those of a reload: no frame is lost, and the chain fades. What was
set is in force until the next reload or start: the configuration file alone says what lasts.

Thread: main.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from capstand.accounting.ledger import Ledger
from capstand.config.schema import Config, StreamConfig
from capstand.config.settings import changed, changes, find, settings
from capstand.errors import CapstandError
from capstand.host.control import Response
from capstand.host.logs import log_event
from capstand.host.peer import Peer
from capstand.sharing.order import allowed, named, shown


class Chained(Protocol):
    """A stream, as far as its chain is concerned."""

    name: str
    config: StreamConfig

    def exchange(self, config: StreamConfig) -> None: ...


class LiveSettings:
    """Of the chains of ``streams()``; ``file()`` is the configuration as ``path`` had it."""

    def __init__(
        self,
        streams: Callable[[], Sequence[Chained]],
        file: Callable[[], Config],
        path: Path | None,
        ledger: Ledger,
    ) -> None:
        self._streams = streams
        self._file = file
        self._path = path
        self._ledger = ledger

    def set(self, request: Mapping[str, Any], peer: Peer) -> Response:
        """Without a value what is set now, of one key or all. What cannot be meant is ``refused``.
        Raises CapstandError for one who may not."""
        if "value" in request:
            allowed(peer, "change")
        key, text = request.get("key"), request.get("value")
        try:
            for one in (key, text):
                if not isinstance(one, str | None):
                    raise CapstandError(f"{shown(one)}: expected a text")
            stream = named(request, self._streams())
            if text is None:
                return {"stream": stream.name, "settings": self._shown(stream, key)}
            return self._change(stream, key or "", text, peer)
        except CapstandError as error:
            return {"refused": str(error).split("\n")}

    def changes(self, stream: Chained) -> list[dict[str, Any]]:
        """How its chain differs from the file's; one that the file has no more is ending."""
        file = [one for one in self._file().stream if one.name == stream.name]
        return [
            change._asdict()
            for one in file
            for change in changes(stream.config.process, one.process)
        ]

    def _shown(self, stream: Chained, key: str | None) -> list[dict[str, Any]]:
        where = find(stream.config, key) if key is not None else None
        differs = {one["key"]: one for one in self.changes(stream)}
        now = settings(stream.config.process)
        return [
            differs.get(name, {"key": name, "value": value})
            for name, value in now.items()
            if where is None or find(stream.config, name)[: len(where)] == where
        ]

    def _change(self, stream: Chained, key: str, text: str, peer: Peer) -> Response:
        present = Config(tuple(one.config for one in self._streams()))
        before, config = stream.config, changed(present, stream.name, key, text)
        if config != before:
            stream.exchange(config)
        told = changes(config.process, before.process)
        for one in told:
            self._ledger.write(
                stream.name,
                "set",
                key=one.key,
                value=one.value,
                was=one.file,
                by_uid=peer.uid,
                by_pid=peer.pid,
            )
            log_event(
                logging.INFO,
                "%s: %s is %s now, and was %s; until the next reload or start",
                *(stream.name, one.key, json.dumps(one.value), json.dumps(one.file)),
                STREAM=stream.name,
                KIND="set",
            )
        return {
            "stream": stream.name,
            "set": [{"key": one.key, "value": one.value, "was": one.file} for one in told],
            "path": str(self._path) if self._path else None,
        }
