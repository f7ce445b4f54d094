"""A channel that is held: joined, joined again when it is lost, with a token that stays valid.

One control thread makes every call into the SDK but ``send``. It is driven by one queue: what the
SDK's callbacks post, tokens that were fetched (by short-lived threads, because a token server may
take its time), and wishes to join and leave. ``life.TABLE`` says what each of them leads to; this
file does it. Pushes go through a gate of their own (``gate.py``); whether they are sent is proven
by the SDK's statistics (``proof.py``).

At the end of a process, when the program's own threads have ended and before Python goes, what is
still joined is left, within ``END_S``, and the SDK is released (``_end``).
"""

import atexit
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from capstand.agora.connection_state import Action, ConnectionState, Event, event_of, move
from capstand.agora.gate import Gate
from capstand.agora.proof import Proof, Silence
from capstand.agora.sdk import rtc as engine
from capstand.agora.sdk.codes import Code, describe_code, describe_reason
from capstand.agora.sdk.rtc import NativeFailure, RtcConnection, Settings, Track, sdk
from capstand.agora.send_buffer import SendBufferModel
from capstand.agora.tokens.renewal import Fetched, TokenRenewal, channel_log
from capstand.agora.tokens.sources import TokenSource
from capstand.audio.block import NS_PER_S
from capstand.errors import SinkError
from capstand.host import backoff
from capstand.host.backoff import Backoff
from capstand.host.realtime import prepare_thread

PAUSE_S = (0.5, 30.0)
LONG_PAUSE_S = (60.0, 900.0)
JITTER = backoff.JITTER
STABLE_S = 10.0
"""Joined for so long, the pauses begin small again."""
JOIN_S = 20.0
RECONNECT_S = 60.0
LEAVE_S = 1.0
CALLBACK_S = 0.02
"""For the callback that told us to come back before the structure behind it is taken away."""
TICK_S = 1.0
HUNG_S = 10.0
END_S = 3.0
"""So long may leaving take at the end of a process."""


class Condition(NamedTuple):
    """What is wrong with a connection, each None or in words for a person.

    ``trouble``: nothing can be sent, and why. ``concern``: it is sent, but not all is well.
    ``hung``: a call into the SDK does not come back. ``needs_new_process``: only a new process can
    heal it.
    """

    trouble: str | None
    concern: str | None
    hung: str | None
    needs_new_process: str | None


class _Callback(NamedTuple):
    """A callback of the SDK: of which call, its name, its number."""

    connection: int
    name: str
    number: int


class ChannelSession:
    """Holds ``channel`` as ``uid`` until ``leave``."""

    def __init__(
        self,
        settings: Settings,
        track: Track,
        channel: str,
        uid: int,
        source: TokenSource,
        *,
        publish: bool = True,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.state = ConnectionState.IDLE
        self.send_buffer = SendBufferModel(track.send_delay_ms)
        self.joins = 0
        self.proof = Proof()
        self.gate = Gate(self.send_buffer, self.proof, self.summary, now_ns)
        self.send = self.gate.send
        """Hands 10 ms over. Raises AgoraError; then nothing was sent. Any one thread."""
        self.session = ""
        self._settings = settings
        self._track = track
        self._channel = channel
        self._uid = uid
        self._publish = publish
        self._now_ns = now_ns
        self._events: queue.SimpleQueue[_Callback | Fetched | Event] = queue.SimpleQueue()
        self._log = channel_log(channel)
        self._tokens = TokenRenewal(source, settings.app_id, channel, uid, self._events.put)
        self._later: list[Event] = []  # wishes that came while a call was being closed
        self._connection: RtcConnection | None = None
        self._number = 0
        self._native: tuple[str, int] | None = None
        self._trouble = ""
        self._needs_new_process: str | None = None
        self._due_s = float("inf")  # time.monotonic, like all that end in _s below
        self._deadline_s = float("inf")
        self._since_s = 0.0
        self._pause = Backoff(*PAUSE_S, JITTER)
        self._long_pause = Backoff(*LONG_PAUSE_S, JITTER)
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self.run, name=f"agora {channel}", daemon=True)

    # From any thread

    def start(self) -> None:
        _active_sessions.add(self)
        self._events.put(Event.JOIN)
        self._thread.start()

    def leave(self, timeout_s: float) -> bool:
        """Leaves the channel and ends; False when the SDK did not let go in time."""
        self._events.put(Event.LEAVE)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        _active_sessions.discard(self)  # it is not waited for again
        return not self._thread.is_alive()

    def forked(self) -> None:
        """In a process made by fork: the channel is the other process's."""
        self.gate.forked()
        self._changed = threading.Condition()
        self._connection = None
        self.state = ConnectionState.IDLE

    def wait(self, timeout_s: float, *states: ConnectionState) -> bool:
        """Until the state is one of ``states``."""
        with self._changed:
            return self._changed.wait_for(lambda: self.state in states, timeout_s)

    def offer(self, text: str) -> None:
        """A new token from the program itself; it takes the place of where tokens came from."""
        self._tokens.offer(text)
        self._events.put(Event.FRESH)

    @property
    def token_ends_s(self) -> float | None:
        """Unix time at which the token ends, where it is known."""
        return self._tokens.ends_s

    def depth_ms(self) -> float:
        """The sound that waits in the SDK's send buffer, estimated."""
        return self.send_buffer.depth_ms(self._now_ns())

    def summary(self) -> str:
        """The state in one phrase."""
        channel, trouble = self._channel, self._trouble
        match self.state:
            case ConnectionState.IDLE:
                return f"not in channel {channel}"
            case ConnectionState.JOINING:
                return f"joining {channel}" + (f" again: {trouble}" if trouble else "")
            case ConnectionState.JOINED:
                return f"in {channel}"
            case ConnectionState.RECONNECTING:
                return f"reconnecting to {channel}: {trouble}"
            case ConnectionState.LOST:
                return f"not in {channel}: {trouble}; rejoining"
            case ConnectionState.REFUSED:
                return f"not in {channel}: {trouble}; retrying every few minutes"
            case ConnectionState.LEAVING:
                return f"leaving {channel}"

    def condition(self) -> Condition:
        concern = self._tokens.trouble
        if self.state is ConnectionState.JOINED and self._publish and concern is None:
            unsent_s = self.proof.unsent_s(self._since_s, time.monotonic())
            if unsent_s is not None:
                concern = (
                    f"in {self._channel}, but the SDK's statistics show nothing sent for "
                    f"{unsent_s:.0f} s"
                )
        return Condition(
            None if self.state is ConnectionState.JOINED else self.summary(),
            concern,
            self._hung(),
            self._needs_new_process,
        )

    def _hung(self) -> str | None:
        connection = self._connection
        within = self._native or (connection.within if connection is not None else None)
        sending_ns = self.gate.sending_since_ns
        if within is None and sending_ns:
            within = "push", sending_ns
        if within is None:
            return None
        still_s = (time.monotonic_ns() - within[1]) / NS_PER_S
        if still_s < HUNG_S:
            return None
        return f"Agora's SDK has not returned from {within[0]} for {still_s:.0f} s"

    # The control thread

    def run(self) -> None:
        """The thread's body; ends after ``leave``."""
        prepare_thread(f"agora:{self._channel}", 0)
        try:
            while True:
                event = self._next()
                if event is not None:
                    self._take(event)
                self._check_timers()
                if event is Event.LEAVE:
                    return
        except BaseException:
            self._needs_new_process = "the connection's control thread crashed; see the log"
            raise

    def _next(self) -> "_Callback | Fetched | Event | None":
        if self._later:
            return self._later.pop(0)
        now_s = time.monotonic()
        first_s = min(self._due_s, self._deadline_s, self._tokens.renew_s, now_s + TICK_S)
        try:
            return self._events.get(timeout=max(0.0, first_s - now_s))
        except queue.Empty:
            return None

    def _take(self, event: "_Callback | Fetched | Event") -> None:
        if isinstance(event, Event):
            self._move(event)
        elif isinstance(event, Fetched):
            self._tokens.arrived()
            self._fetched(event)
        elif event.connection == self._number:
            self._handle_callback(event.name, event.number)

    def _move(self, event: Event, why: str = "") -> None:
        """Follows the table; ``why`` is what went wrong."""
        before = self.state
        after, todo = move(before, event)
        if Action.PUBLISH in todo and (wrong := self._publish_track()):
            self._move(Event.BROKEN, wrong)  # joined, but not so that anybody hears it
            return
        if after is ConnectionState.JOINED:
            if before is ConnectionState.RECONNECTING:
                self.send_buffer.restart()
            self.gate.open(self._connection)
        if why and (todo or after is not before):
            self._trouble = why
        if after is not before:
            self._since_s = time.monotonic()
            self._log_change(before, after)
            with self._changed:
                self.state = after
                self._changed.notify_all()
            self._deadline_s = float("inf")
            if after is ConnectionState.RECONNECTING:
                self._deadline_s = self._since_s + RECONNECT_S
        for what in todo:
            self._do(what)

    def _do(self, what: Action) -> None:
        match what:
            case Action.OPEN:
                self._due_s = float("inf")
                self._tokens.fetch()
            case Action.HOLD:
                self.gate.close()
            case Action.CLOSE:
                self._close()
                if self.state is ConnectionState.LEAVING:
                    self._move(Event.LEFT)
            case Action.PAUSE:
                self._due_s = time.monotonic() + self._pause.next_s()
            case Action.LONG_PAUSE:
                self._due_s = time.monotonic() + self._long_pause.next_s()
            case Action.PUBLISH:
                pass  # before the state says that sound may come

    def _check_timers(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = float("inf")
            if self.state is ConnectionState.REFUSED:
                self._tokens.clear_refusal()  # by now the project may be changed
            self._move(Event.DUE)
        if now_s >= self._deadline_s:
            self._deadline_s = float("inf")
            waited = "to join" if self.state is ConnectionState.JOINING else "to reconnect"
            self._move(Event.BROKEN, f"no reply for {now_s - self._since_s:.0f} s {waited}")
        if self.state is ConnectionState.JOINED:
            if now_s - self._since_s > STABLE_S:
                self._pause.reset()
                self._long_pause.reset()
            match self.proof.silence(self._since_s, now_s):
                case Silence.FALLEN:
                    self._move(Event.BROKEN, "the SDK stopped reporting statistics")
                case Silence.KEPT:
                    self._needs_new_process = (
                        "Agora's SDK stopped reporting statistics, after a rejoin too"
                    )
        standing = self.state in (ConnectionState.JOINED, ConnectionState.RECONNECTING)
        if self._tokens.due(now_s) or (standing and self._tokens.changed()):
            self._tokens.fetch()
        if self.state is ConnectionState.REFUSED and self._tokens.changed():
            self._move(Event.FRESH)

    def _fetched(self, answer: Fetched) -> None:
        if self.state is ConnectionState.JOINING and self._connection is None:
            self._open(answer)
        elif self.state in (ConnectionState.JOINED, ConnectionState.RECONNECTING):
            assert self._connection is not None
            self._tokens.renew(answer, self._connection.renew)

    def _open(self, answer: Fetched) -> None:
        if answer.text is None:
            self._move(Event.BROKEN, answer.error)
            return
        wrong = self._tokens.take(answer)
        if wrong is not None:
            self._move(Event.DENIED, wrong)
            return
        self._number += 1
        number = self._number
        try:
            self._native = "initialize", time.monotonic_ns()
            service = sdk(self._settings)
            self._native = "create_rtc_connection", time.monotonic_ns()
            self._connection = service.connection(
                self._track, lambda name, what: self._events.put(_Callback(number, name, what))
            )
        except NativeFailure as error:
            self._needs_new_process = str(error)
            self._move(Event.DENIED, str(error))
            return
        except SinkError as error:
            self._move(Event.DENIED, str(error))
            return
        finally:
            self._native = None
        self._deadline_s = time.monotonic() + JOIN_S
        code = self._connection.connect(self._tokens.text, self._channel, self._uid)
        if code:
            self._move(Event.BROKEN, f"joining was refused: {describe_code(code)}")

    # What the SDK says

    def _handle_callback(self, name: str, number: int) -> None:
        match name:
            case "connected" | "reconnected":
                self._move(Event.CONNECTED)
            case "reconnecting":
                self._move(Event.INTERRUPTED, describe_reason(number))
            case "connection_lost":
                self._move(Event.BROKEN, "connection lost; is the network up?")
            case "disconnected" | "connection_failure":
                self._ended(number)
            case "license_failure":
                self._move(Event.DENIED, f"Agora's licence was rejected ({number})")
            case "publication_failure":
                self._move(Event.BROKEN, f"publishing failed: {describe_code(-abs(number))}")
            case "token_will_expire":
                self._tokens.due_now()
            case "token_did_expire":
                self._tokens.refuse("the token has expired")
                self._move(Event.EXPIRED, "the token has expired")
            case "statistics":
                self.proof.heard(number, time.monotonic())
            case "error":
                self._log.warning("channel %s: the SDK reports error %d", self._channel, number)

    def _ended(self, reason: int) -> None:
        event = event_of(reason)
        if event is Event.EXPIRED:
            self._tokens.refuse(describe_reason(reason))
        self._move(event, describe_reason(reason))

    def _publish_track(self) -> str | None:
        """Why it cannot be, or None."""
        connection = self._connection
        assert connection is not None
        if self._publish:
            code = connection.publish()
            if code:
                return f"publishing was refused: {describe_code(code)}"
        self.session = connection.session()
        self.joins += 1
        self.send_buffer.restart()
        self.proof.joined()
        self._tokens.clear_refusal()
        self._needs_new_process = None
        return None

    def _close(self) -> None:
        """Ends the call: no push can be in it or come to it any more."""
        self._tokens.rest()
        connection = self._connection
        if connection is None:
            return
        self.gate.close()
        if connection.disconnect() == Code.OK:
            self._wait_disconnected(time.monotonic() + LEAVE_S)
        self._number += 1
        sdk(self._settings).release(connection)
        self._connection = None
        self.proof.ended()

    def _wait_disconnected(self, until_s: float) -> None:
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=left_s)
            except queue.Empty:
                return
            if isinstance(event, Event):
                self._later.append(event)
            elif isinstance(event, Fetched):
                self._tokens.arrived()
            elif event == (self._number, "disconnected", event.number):
                time.sleep(CALLBACK_S)
                return

    def _log_change(self, before: ConnectionState, after: ConnectionState) -> None:
        channel, trouble = self._channel, self._trouble
        match after:
            case ConnectionState.JOINED:
                again = before is ConnectionState.RECONNECTING
                self._log.info("channel %s: back in" if again else "channel %s: joined", channel)
            case ConnectionState.RECONNECTING:
                self._log.warning("channel %s: the SDK reconnects: %s", channel, trouble)
            case ConnectionState.LOST | ConnectionState.REFUSED:
                self._log.error("channel %s: not joined: %s", channel, trouble)
            case _:
                pass


_active_sessions: set[ChannelSession] = set()


def _end() -> None:
    """Leaves what the program has not left. Ctrl-C ends the waiting."""
    standing, until_s = tuple(_active_sessions), time.monotonic() + END_S
    try:
        for one in standing:
            one.leave(0.0)
        for one in standing:
            one.leave(max(0.0, until_s - time.monotonic()))
    except KeyboardInterrupt:
        pass
    finally:
        engine.end()


def _forked() -> None:
    for active_session in _active_sessions:
        active_session.forked()
    _active_sessions.clear()
    engine.forked()


atexit.register(_end)
os.register_at_fork(after_in_child=_forked)
