"""Whether what is pushed is sent, by statistics that come, stay away or show nothing."""

import pytest

from capstand.agora.proof import Proof, Silence

JOINED_S = 1000.0


@pytest.fixture
def proof() -> Proof:
    """Nothing sent for 10 s is a concern, nothing said for 20 s a failure."""
    proof = Proof(10.0, 20.0)
    proof.joined()
    return proof


def unsent_s(proof: Proof, after_s: float) -> float | None:
    return proof.unsent_s(JOINED_S, JOINED_S + after_s)


def silence(proof: Proof, after_s: float) -> Silence:
    return proof.silence(JOINED_S, JOINED_S + after_s)


def test_nothing_sent_is_a_concern_while_something_is_pushed(proof: Proof) -> None:
    """It counts from the last bit rate above 0, or from when the channel was joined."""
    proof.pushed_s = JOINED_S + 9
    assert unsent_s(proof, 10) is None
    assert unsent_s(proof, 11) == 11
    proof.heard(64, JOINED_S + 12)
    assert proof.sent_kbps == 64 and unsent_s(proof, 13) is None
    proof.heard(0, JOINED_S + 20)
    proof.pushed_s = JOINED_S + 23
    assert (proof.sent_kbps, unsent_s(proof, 23)) == (0, 11)
    assert unsent_s(proof, 33) is None  # nothing is pushed any more


def test_statistics_that_never_came_are_no_failure(proof: Proof) -> None:
    """An SDK that keeps none is believed."""
    assert silence(proof, 1000) is Silence.NONE


def test_statistics_that_stay_away_are_a_failure_once(proof: Proof) -> None:
    """First of the session; if they do not come back in the next one, of the process."""
    proof.heard(64, JOINED_S + 5)
    assert silence(proof, 25) is Silence.NONE
    assert silence(proof, 26) is Silence.FALLEN
    proof.ended()
    assert proof.sent_kbps is None
    proof.joined()
    assert proof.silence(JOINED_S + 30, JOINED_S + 50) is Silence.NONE
    assert proof.silence(JOINED_S + 30, JOINED_S + 51) is Silence.KEPT


def test_statistics_that_come_back_end_the_matter(proof: Proof) -> None:
    """The next time is a first time again, and a new session proves nothing for the one before."""
    proof.heard(64, JOINED_S + 5)
    assert silence(proof, 26) is Silence.FALLEN
    proof.joined()
    proof.heard(64, JOINED_S + 27)
    assert silence(proof, 48) is Silence.FALLEN
    proof.joined()
    proof.heard(64, JOINED_S + 49)
    proof.joined()
    assert silence(proof, 1000) is Silence.NONE
    proof.pushed_s = JOINED_S + 55
    assert unsent_s(proof, 55) == 55
