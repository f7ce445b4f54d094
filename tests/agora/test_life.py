"""The life of a connection: laws that hold in every state and after any sequence of events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstand.agora.life import TABLE, Do, Event, State, event_of, move
from capstand.agora.sdk.codes import Reason, Verdict

CALLS = (State.JOINING, State.JOINED, State.RECONNECTING)
"""The states in which there may be a call of the SDK's."""
EVENTS = st.lists(st.sampled_from(Event), max_size=60)
PAUSES = {State.LOST: (Do.PAUSE,), State.REFUSED: (Do.LONG_PAUSE,)}


def reached(start: State) -> set[State]:
    """Every state that some sequence of events leads to."""
    found, new = {start}, [start]
    while new:
        state = new.pop()
        for after in {move(state, event)[0] for event in Event} - found:
            found.add(after)
            new.append(after)
    return found


def lived(events: list[Event]) -> list[tuple[State, Event, State, tuple[Do, ...]]]:
    """What happens to a new connection: state before, event, state after, what is done."""
    state, steps = State.IDLE, []
    for event in events:
        after, todo = move(state, event)
        steps.append((state, event, after, todo))
        state = after
    return steps


@pytest.mark.parametrize("state", State)
def test_every_state_is_reached_from_every_other(state: State) -> None:
    """Nothing ends a connection for good: each state can be left for any other."""
    assert reached(state) == set(State)


@pytest.mark.parametrize("state", State)
def test_leaving_always_ends_in_idle(state: State) -> None:
    """From every state LEAVE leads to IDLE, by way of LEAVING where there is a call to close."""
    after, todo = move(state, Event.LEAVE)
    if state in CALLS:
        assert (after, todo) == (State.LEAVING, (Do.CLOSE,))
    else:
        assert todo == ()
    assert move(after, Event.LEFT) == (State.IDLE, ())


def test_the_ordinary_way() -> None:
    """Joined, interrupted, back, lost, joined again, left."""
    events = [
        Event.JOIN,
        Event.CONNECTED,
        Event.INTERRUPTED,
        Event.CONNECTED,
        Event.BROKEN,
        Event.DUE,
        Event.CONNECTED,
        Event.LEAVE,
        Event.LEFT,
    ]
    assert [(after, todo) for _, _, after, todo in lived(events)] == [
        (State.JOINING, (Do.OPEN,)),
        (State.JOINED, (Do.PUBLISH,)),
        (State.RECONNECTING, (Do.HOLD,)),
        (State.JOINED, ()),
        (State.LOST, (Do.CLOSE, Do.PAUSE)),
        (State.JOINING, (Do.OPEN,)),
        (State.JOINED, (Do.PUBLISH,)),
        (State.LEAVING, (Do.CLOSE,)),
        (State.IDLE, ()),
    ]


@given(st.sampled_from(State), st.sampled_from(Event))
def test_what_the_table_does_not_name_changes_nothing(state: State, event: Event) -> None:
    """Callbacks that come late or twice leave the state and do nothing."""
    after, todo = move(state, event)
    if (state, event) not in TABLE:
        assert (after, todo) == (state, ())
    else:
        assert (after, todo) != (state, ())
        assert move(after, event)[1] in ((), (Do.CLOSE, Do.PAUSE), (Do.CLOSE, Do.LONG_PAUSE))


@pytest.mark.parametrize("event", Event)
def test_an_event_twice_is_an_event_once(event: Event) -> None:
    """No event does anything again that comes twice in a row."""
    for state in State:
        after, _ = move(state, event)
        assert move(after, event) == (after, ())


@given(EVENTS)
def test_one_call_at_a_time(events: list[Event]) -> None:
    """A call is opened only when the one before was closed, closed once, and published once."""
    there = published = False
    for _, _, after, todo in lived(events):
        for what in todo:
            match what:
                case Do.OPEN:
                    assert not there
                    there = True
                case Do.PUBLISH:
                    assert there
                    assert not published
                    published = True
                case Do.HOLD:
                    assert published
                case Do.CLOSE:
                    assert there
                    there = published = False
        assert there == (after in CALLS)
        assert published == (after in (State.JOINED, State.RECONNECTING))


@given(EVENTS)
def test_a_pause_comes_with_the_state_that_waits(events: list[Event]) -> None:
    """Entering LOST is a pause, entering REFUSED a long one, and nothing else is any."""
    for before, _, after, todo in lived(events):
        pauses = tuple(what for what in todo if what in (Do.PAUSE, Do.LONG_PAUSE))
        assert pauses == (PAUSES.get(after, ()) if after is not before else ())


@given(EVENTS)
def test_a_refusal_never_leads_to_a_short_pause(events: list[Event]) -> None:
    """After DENIED nothing is opened before a long pause is over, a new token, or a new wish."""
    denied = False
    for _, event, after, todo in lived(events):
        if event is Event.DENIED and after is State.REFUSED:
            denied = True
        if event in (Event.DUE, Event.FRESH, Event.LEAVE):
            denied = False
        if denied:
            assert after is State.REFUSED
            assert Do.PAUSE not in todo
            assert Do.OPEN not in todo


@given(EVENTS)
def test_sound_is_held_back_where_the_channel_hears_none(events: list[Event]) -> None:
    """JOINED is left only by an action that takes the sender from the pushing threads."""
    for before, _, after, todo in lived(events):
        if before is State.JOINED and after is not State.JOINED:
            assert todo[0] in (Do.HOLD, Do.CLOSE)


@given(EVENTS)
def test_nothing_is_opened_without_a_wish(events: list[Event]) -> None:
    """Before JOIN, and after LEAVE until the next JOIN, nothing is opened."""
    wanted = False
    for before, event, _, todo in lived(events):
        if event is Event.JOIN and before is State.IDLE:
            wanted = True
        elif event is Event.LEAVE:
            wanted = False
        assert wanted or Do.OPEN not in todo


@given(st.integers(-5, 40))
def test_event_of_a_reason(number: int) -> None:
    """A reason of the SDK's leads where its verdict says; one without a name is tried again."""
    known = {one.value: one for one in Reason}
    verdict = known[number].verdict if number in known else Verdict.AGAIN
    after, todo = move(State.JOINED, event_of(number))
    assert (after, todo[-1]) == {
        Verdict.AGAIN: (State.LOST, Do.PAUSE),
        Verdict.NEW_TOKEN: (State.LOST, Do.PAUSE),
        Verdict.PERSON: (State.REFUSED, Do.LONG_PAUSE),
    }[verdict]
    assert (event_of(number) is Event.EXPIRED) == (verdict is Verdict.NEW_TOKEN)
