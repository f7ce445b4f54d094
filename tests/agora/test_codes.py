"""The SDK's numbers in words, and what each reason asks for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstand.agora.sdk.codes import (
    AgoraError,
    Code,
    Reason,
    Remedy,
    describe_code,
    describe_reason,
    reason_of,
)
from capstand.errors import SinkError

CODES = {one.value for one in Code}
REASONS = {one.value for one in Reason}


@pytest.mark.parametrize("code", Code)
def test_every_code_has_words(code: Code) -> None:
    """A result is told by its number, the name of Agora's headers and a meaning for a person."""
    number, name, meaning = describe_code(code).replace(":", "").split(" ", 2)
    assert (number, name) == (str(int(code)), code.name)
    assert meaning == code.meaning.replace(":", "")
    assert meaning.isprintable()
    assert "_" not in meaning


def test_a_full_buffer_says_when_to_push_again() -> None:
    """−12 alone says that the same push may succeed later: after 30 to 50 ms, as Agora writes."""
    assert describe_code(-12) == (
        "-12 TOO_OFTEN: too often: the send buffer is full; push again after 30 to 50 ms"
    )
    for code in Code:
        again_ms = AgoraError(code, "refused").retry_after_ms
        assert (again_ms is not None) == (code is Code.TOO_OFTEN)
        assert again_ms is None or 30 <= again_ms <= 50


@given(st.integers().filter(lambda number: number not in CODES))
def test_a_code_without_a_name_is_told_by_its_number(number: int) -> None:
    """A result that Agora's headers do not name is told too, and asks for no second push."""
    assert describe_code(number) == f"{number}, unknown to Agora's headers"
    error = AgoraError(number, "pushing failed")
    assert str(number) in str(error)
    assert error.retry_after_ms is None


@given(st.integers(-2000, 10), st.text(min_size=1))
def test_an_error_says_what_and_why(number: int, text: str) -> None:
    """An AgoraError is a SinkError with the text of the call, the number, its name and meaning."""
    error = AgoraError(number, text)
    assert isinstance(error, SinkError)
    assert str(error) == f"{text} ({describe_code(number)})"
    assert (error.code, error.taken) == (number, 0)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_words(reason: Reason) -> None:
    """A reason is told by a phrase, its number and the name of Agora's headers."""
    words = describe_reason(reason)
    phrase, rest = words.split(" (reason ")
    assert rest == f"{int(reason)} {reason.name})"
    assert phrase.isprintable()
    assert reason_of(reason) is reason


@given(st.integers().filter(lambda number: number not in REASONS))
def test_a_reason_without_a_name_is_told_by_its_number(number: int) -> None:
    """A reason that Agora's headers do not name is none of ours, but it is told."""
    assert reason_of(number) is None
    assert describe_reason(number) == f"reason {number}, unknown to Agora's headers"


VERDICTS = {
    Remedy.NEW_TOKEN: {Reason.INVALID_TOKEN, Reason.TOKEN_EXPIRED},
    Remedy.PERSON: {
        Reason.BANNED_BY_SERVER,
        Reason.INVALID_APP_ID,
        Reason.INVALID_CHANNEL_NAME,
        Reason.REJECTED_BY_SERVER,
        Reason.SAME_UID_LOGIN,
        Reason.TOO_MANY_BROADCASTERS,
        Reason.LICENSE_VALIDATION_FAILURE,
    },
}


@pytest.mark.parametrize("reason", Reason)
def test_verdict_of_each_reason(reason: Reason) -> None:
    """A bad token asks for another, a wrong setting for a person; all else is worth a new try."""
    expected = [verdict for verdict, reasons in VERDICTS.items() if reason in reasons]
    assert [reason.remedy] == (expected or [Remedy.AGAIN])


@pytest.mark.parametrize("reason", sorted(VERDICTS[Remedy.PERSON]))
def test_a_person_is_told_what_to_do(reason: Reason) -> None:
    """Where a person must act, the words are a sentence of our own, not just Agora's name."""
    assert not describe_reason(reason).startswith(reason.name.lower().replace("_", " "))


def test_the_numbers_are_those_of_the_headers() -> None:
    """The numbers that decide something are Agora's own."""
    assert (Code.INVALID_ARGUMENT, Code.NOT_READY, Code.INVALID_STATE) == (-2, -3, -8)
    assert (Code.TOO_OFTEN, Code.TOKEN_EXPIRED, Code.INVALID_TOKEN) == (-12, -109, -110)
    assert (Code.NO_OBJECT, Code.NO_SENDER, Code.NOT_WHOLE_MILLISECONDS) == (-1000, -1001, -1002)
    by_number = [
        Reason.BANNED_BY_SERVER,
        Reason.INVALID_APP_ID,
        Reason.INVALID_CHANNEL_NAME,
        Reason.INVALID_TOKEN,
        Reason.TOKEN_EXPIRED,
        Reason.REJECTED_BY_SERVER,
    ]
    assert by_number == [3, 6, 7, 8, 9, 10]
