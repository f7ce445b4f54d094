"""The token of one connection: fetched, judged before use, renewed in time, noted when refused.

A source may take its time, so it is asked in a short-lived thread that posts a ``Fetched``; all
else happens in the connection's control thread. A token that Agora refused is not tried again
before the source has another, or ``clear_refusal`` was called.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from capstand.agora.sdk.codes import Code, describe_code
from capstand.agora.tokens import token as tokens
from capstand.agora.tokens.sources import Fixed, TokenSource
from capstand.errors import SinkError
from capstand.host import walltime

RENEW_AGAIN_S = 30.0


def channel_log(channel: str) -> logging.LoggerAdapter[logging.Logger]:
    """The log of one channel; its lines carry CHANNEL."""
    return logging.LoggerAdapter(
        logging.getLogger("capstand.agora"), {"fields": {"CHANNEL": channel}}
    )


class Fetched(NamedTuple):
    """A token, or why there is none; and what the source looked like before it was asked."""

    text: str | None
    error: str
    fingerprint: object


class TokenRenewal:
    """Keeps the token for ``uid`` in ``channel``; answers of its source go to ``post``.

    ``text`` is the token in use, ``ends_s`` the unix time of its end where known, ``renew_s`` when
    the next is due (time.monotonic), ``trouble`` why it could not be renewed.
    """

    def __init__(
        self,
        source: TokenSource,
        app_id: str,
        channel: str,
        uid: int,
        post: Callable[[Fetched], None],
    ) -> None:
        self.text = ""
        self.ends_s: float | None = None
        self.renew_s = float("inf")
        self.trouble: str | None = None
        self._source = source
        self._app_id = app_id
        self._channel = channel
        self._uid = uid
        self._post = post
        self._log = channel_log(channel)
        self._refused: tuple[str, str] | None = None  # a token and why
        self._fetching = False
        self._used: object = None  # the stamp of the answer that was used last
        self._wanted = False  # a newer token

    def offer(self, text: str) -> None:
        """A new token from the program itself; it takes the place of the source. Any thread."""
        self._source = Fixed(text)

    def fetch(self) -> None:
        """Asks the source, unless it is being asked."""
        if self._fetching:
            return
        self._fetching = True
        source = self._source
        fingerprint = source, source.fingerprint()

        def ask() -> None:
            answer = Fetched(None, f"{source.label} failed, see the log", fingerprint)
            try:
                answer = Fetched(source.fetch(), "", fingerprint)
            except SinkError as error:
                answer = Fetched(None, str(error), fingerprint)
            finally:
                self._post(answer)

        try:
            threading.Thread(target=ask, name="agora token", daemon=True).start()
        except RuntimeError as error:  # memory is short, or the process is ending
            self._post(Fetched(None, f"{source.label} cannot be asked: {error}", fingerprint))

    def arrived(self) -> None:
        """An answer came, whether it is used or not."""
        self._fetching = False

    def changed(self) -> bool:
        """Whether the source may have another token than the one used last."""
        source = self._source
        return (source, source.fingerprint()) != self._used

    def due(self, now_s: float) -> bool:
        """Whether a newer token is wanted now; asked again every ``RENEW_AGAIN_S`` until it is."""
        if now_s < self.renew_s:
            return False
        self.renew_s = now_s + RENEW_AGAIN_S
        self._wanted = True
        return True

    def due_now(self) -> None:
        self.renew_s = 0.0

    def rest(self) -> None:
        """No connection stands: nothing is to be renewed."""
        self.renew_s = float("inf")

    def refuse(self, why: str) -> None:
        """Agora takes the token no longer."""
        self._refused = self.text, why

    def clear_refusal(self) -> None:
        self._refused = None

    def take(self, answer: Fetched) -> str | None:
        """Takes a token for joining; returns why it will not do, or None. ``answer`` has one."""
        assert answer.text is not None
        self._used = answer.fingerprint
        wrong = self._check(answer.text)
        if wrong is None and self._refused is not None and answer.text == self._refused[0]:
            wrong = f"{self._refused[1]}; {self._source.label} has no other token"
        if wrong is None:
            self.text, self.trouble, self._wanted = answer.text, None, False
        return wrong

    def renew(self, answer: Fetched, hand_over: Callable[[str], int]) -> None:
        """Gives a newer token to ``hand_over``; without one the connection stands on."""
        self._used = answer.fingerprint
        if answer.text is None:
            self.trouble = f"the token was not renewed: {answer.error}"
            return
        if answer.text == self.text:
            label = f"{self._source.label} has no newer token yet"
            self.trouble = label if self._wanted else None
            return
        kept = self.ends_s
        wrong = self._check(answer.text)
        if wrong is None:
            code = hand_over(answer.text)
            if code == Code.OK:
                self.text, self.trouble, self._wanted = answer.text, None, False
                self._log.info("channel %s: token renewed", self._channel)
                return
            wrong = f"the SDK refused it: {describe_code(code)}"
        self.ends_s, self.renew_s = kept, time.monotonic() + RENEW_AGAIN_S
        self.trouble = f"the token was not renewed: {wrong}"

    def _check(self, text: str) -> str | None:
        """Why the token will not do, or None; sets when it ends and is to be renewed."""
        self.renew_s, self.ends_s = float("inf"), None
        if text == "":
            return None  # a project without certificate
        now_s, sure = time.time(), walltime.clock_sure()
        try:
            token = tokens.parse(text)
            tokens.check_valid(token, self._app_id, self._channel, self._uid, now_s, sure)
        except tokens.TokenError as error:
            return f"{self._source.label}: {error}"
        self.ends_s = token.expires_s
        self.renew_s = time.monotonic() + tokens.renew_after_s(token, now_s, sure)
        return None
