"""Waking a thread that waits."""

from capstand.audio.wake import WakeUp


def test_it_is_set_until_it_is_cleared() -> None:
    """Who waits returns at once when it was set before, as often as they wait, until it is
    cleared; then after the time."""
    wake = WakeUp()
    assert not wake.wait(0.001)
    wake.set()
    wake.set()
    assert wake.wait(600) and wake.wait(600)
    wake.clear()
    wake.clear()
    assert not wake.wait(0)
