"""The life of a connection: laws that hold in every state and after any sequence of events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstand.agora.connection_state import TABLE, Action, ConnectionState, Event, event_of, move
from capstand.agora.sdk.codes import Reason, Remedy

CALLS = (ConnectionState.JOINING, ConnectionState.JOINED, ConnectionState.RECONNECTING)
"""The states in which there may be a call of the SDK's."""
EVENTS = st.lists(st.sampled_from(Event), max_size=60)
PAUSES = {ConnectionState.LOST: (Action.PAUSE,), ConnectionState.REFUSED: (Action.LONG_PAUSE,)}


def reached(start: ConnectionState) -> set[ConnectionState]:
    """Every state that some sequence of events leads to."""
    found, new = {start}, [start]
    while new:
        state = new.pop()
        for after in {move(state, event)[0] for event in Event} - found:
            found.add(after)
            new.append(after)
    return found


def lived(
    events: list[Event],
) -> list[tuple[ConnectionState, Event, ConnectionState, tuple[Action, ...]]]:
    """What happens to a new connection: state before, event, state after, what is done."""
    state, steps = ConnectionState.IDLE, []
    for event in events:
        after, todo = move(state, event)
        steps.append((state, event, after, todo))
        state = after
    return steps


@pytest.mark.parametrize("state", ConnectionState)
def test_every_state_is_reached_from_every_other(state: ConnectionState) -> None:
    """Nothing ends a connection for good: each state can be left for any other."""
    assert reached(state) == set(ConnectionState)


@pytest.mark.parametrize("state", ConnectionState)
def test_leaving_always_ends_in_idle(state: ConnectionState) -> None:
    """From every state LEAVE leads to IDLE, by way of LEAVING where there is a call to close."""
    after, todo = move(state, Event.LEAVE)
    if state in CALLS:
        assert (after, todo) == (ConnectionState.LEAVING, (Action.CLOSE,))
    else:
        assert todo == ()
    assert move(after, Event.LEFT) == (ConnectionState.IDLE, ())


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
        (ConnectionState.JOINING, (Action.OPEN,)),
        (ConnectionState.JOINED, (Action.PUBLISH,)),
        (ConnectionState.RECONNECTING, (Action.HOLD,)),
        (ConnectionState.JOINED, ()),
        (ConnectionState.LOST, (Action.CLOSE, Action.PAUSE)),
        (ConnectionState.JOINING, (Action.OPEN,)),
        (ConnectionState.JOINED, (Action.PUBLISH,)),
        (ConnectionState.LEAVING, (Action.CLOSE,)),
        (ConnectionState.IDLE, ()),
    ]


@given(st.sampled_from(ConnectionState), st.sampled_from(Event))
def test_what_the_table_does_not_name_changes_nothing(state: ConnectionState, event: Event) -> None:
    """Callbacks that come late or twice leave the state and do nothing."""
    after, todo = move(state, event)
    if (state, event) not in TABLE:
        assert (after, todo) == (state, ())
    else:
        assert (after, todo) != (state, ())
        assert move(after, event)[1] in (
            (),
            (Action.CLOSE, Action.PAUSE),
            (Action.CLOSE, Action.LONG_PAUSE),
        )


@pytest.mark.parametrize("event", Event)
def test_an_event_twice_is_an_event_once(event: Event) -> None:
    """No event does anything again that comes twice in a row."""
    for state in ConnectionState:
        after, _ = move(state, event)
        assert move(after, event) == (after, ())


@given(EVENTS)
def test_one_call_at_a_time(events: list[Event]) -> None:
    """A call is opened only when the one before was closed, closed once, and published once."""
    there = published = False
    for _, _, after, todo in lived(events):
        for what in todo:
            match what:
                case Action.OPEN:
                    assert not there
                    there = True
                case Action.PUBLISH:
                    assert there
                    assert not published
                    published = True
                case Action.HOLD:
                    assert published
                case Action.CLOSE:
                    assert there
                    there = published = False
        assert there == (after in CALLS)
        assert published == (after in (ConnectionState.JOINED, ConnectionState.RECONNECTING))


@given(EVENTS)
def test_a_pause_comes_with_the_state_that_waits(events: list[Event]) -> None:
    """Entering LOST is a pause, entering REFUSED a long one, and nothing else is any."""
    for before, _, after, todo in lived(events):
        pauses = tuple(what for what in todo if what in (Action.PAUSE, Action.LONG_PAUSE))
        assert pauses == (PAUSES.get(after, ()) if after is not before else ())


@given(EVENTS)
def test_a_refusal_never_leads_to_a_short_pause(events: list[Event]) -> None:
    """After DENIED nothing is opened before a long pause is over, a new token, or a new wish."""
    denied = False
    for _, event, after, todo in lived(events):
        if event is Event.DENIED and after is ConnectionState.REFUSED:
            denied = True
        if event in (Event.DUE, Event.FRESH, Event.LEAVE):
            denied = False
        if denied:
            assert after is ConnectionState.REFUSED
            assert Action.PAUSE not in todo
            assert Action.OPEN not in todo


@given(EVENTS)
def test_sound_is_held_back_where_the_channel_hears_none(events: list[Event]) -> None:
    """JOINED is left only by an action that takes the sender from the pushing threads."""
    for before, _, after, todo in lived(events):
        if before is ConnectionState.JOINED and after is not ConnectionState.JOINED:
            assert todo[0] in (Action.HOLD, Action.CLOSE)


@given(EVENTS)
def test_nothing_is_opened_without_a_wish(events: list[Event]) -> None:
    """Before JOIN, and after LEAVE until the next JOIN, nothing is opened."""
    wanted = False
    for before, event, _, todo in lived(events):
        if event is Event.JOIN and before is ConnectionState.IDLE:
            wanted = True
        elif event is Event.LEAVE:
            wanted = False
        assert wanted or Action.OPEN not in todo


@given(st.integers(-5, 40))
def test_event_of_a_reason(number: int) -> None:
    """A reason of the SDK's leads where its verdict says; one without a name is tried again."""
    known = {one.value: one for one in Reason}
    verdict = known[number].remedy if number in known else Remedy.AGAIN
    after, todo = move(ConnectionState.JOINED, event_of(number))
    assert (after, todo[-1]) == {
        Remedy.AGAIN: (ConnectionState.LOST, Action.PAUSE),
        Remedy.NEW_TOKEN: (ConnectionState.LOST, Action.PAUSE),
        Remedy.PERSON: (ConnectionState.REFUSED, Action.LONG_PAUSE),
    }[verdict]
    assert (event_of(number) is Event.EXPIRED) == (verdict is Remedy.NEW_TOKEN)
