"""Waking a thread that waits."""

import os
from collections import deque
from threading import Thread

from capstand.audio.wake import Doorbell, Paced, WakeUp


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


def test_a_doorbell_rings_only_for_those_who_wait() -> None:
    """Nothing is set for a thread that is at work; one that is about to wait is woken once."""
    bell = Doorbell()
    bell.set()
    assert not bell.wait(0)
    bell.expect()
    bell.set()
    bell.set()
    assert os.eventfd_read(bell.descriptor) == 1


def test_nothing_is_missed_at_the_door() -> None:
    """Whatever comes between the look whether something is there and the wait: it is found."""
    bell, there, found = Doorbell(), deque[int](), list[int]()

    def work() -> None:
        while len(found) < 20_000:
            bell.expect()
            if not there:
                assert bell.wait(600)
            bell.clear()
            while there:
                found.append(there.popleft())

    reader = Thread(target=work)
    reader.start()
    for number in range(20_000):
        there.append(number)
        bell.set()
    reader.join(600)
    assert found == list(range(20_000))


def test_who_is_paced_is_woken_for_so_many_frames() -> None:
    """Whatever the blocks are: of long ones each wakes it, of short ones every so many; what is
    too much for one wake-up counts for the next."""
    wake = WakeUp()

    def woken(frames: int, *blocks: int) -> list[bool]:
        paced, found = Paced(wake, frames), []
        for block in blocks:
            paced.left -= block
            if paced.left <= 0:
                paced.set()
            found.append(wake.wait(0))
            wake.clear()
        return found

    assert woken(960, 480, 480, 480, 480) == [False, True, False, True]
    assert woken(960, 480, 479, 480, 480) == [False, False, True, False]
    assert woken(960, 1024, 0, 1024, 5000, 1, 480) == [True, False, True, True, True, False]
