"""Health: a table from what is seen to what is said, judged from the top."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstand.accounting.stats import Health
from capstand.audio.block import NS_PER_S
from capstand.stream.health import (
    HUNG_NS,
    RECENT_NS,
    SILENT_NS,
    SINK_HUNG_NS,
    Assessment,
    SinkView,
    View,
    assess,
)

SINK = SinkView(name="file", trouble=None, still_ns=0, drop_age_ns=None)
WELL = View(
    open=True,
    trouble=None,
    refused=False,
    frames=480,
    silent_ns=0,
    unseen_ns=0,
    push_still_ns=0,
    loss_age_ns=None,
    sinks=(SINK,),
)
S4, S6 = 4 * NS_PER_S, 6 * NS_PER_S

TABLE = {
    "frames advance, sinks take them": (WELL, Health.OK, None),
    "no sink has anything to say": (WELL._replace(sinks=()), Health.OK, None),
    "capture hangs": (
        WELL._replace(unseen_ns=S4),
        Health.STALLED,
        "the capture thread has been stuck for 4 s",
    ),
    "push hangs": (
        WELL._replace(push_still_ns=S4),
        Health.STALLED,
        "the push thread has been stuck for 4 s",
    ),
    "an open device is silent": (
        WELL._replace(silent_ns=S4),
        Health.STALLED,
        "no frame for 4 s from an open device",
    ),
    "a sink takes blocks and yet": (
        WELL._replace(sinks=(SINK._replace(concern="nobody hears it"),)),
        Health.DEGRADED,
        "sink file: nobody hears it",
    ),
    "a closed device is silent": (
        WELL._replace(open=False, trouble="unplugged", silent_ns=3600 * NS_PER_S),
        Health.DEGRADED,
        "unplugged",
    ),
    "the device is another's, by intent": (
        WELL._replace(open=False, released="released to others", trouble="busy", refused=True),
        Health.DEGRADED,
        "released to others",
    ),
    "the device refuses": (
        WELL._replace(open=False, trouble="no such rate", refused=True),
        Health.FAILED,
        "no such rate",
    ),
    "nothing has come yet": (
        WELL._replace(open=False, frames=0),
        Health.STARTING,
        None,
    ),
    "it was never there": (
        WELL._replace(open=False, frames=0, trouble="no such card"),
        Health.DEGRADED,
        "no such card",
    ),
    "a sink fails": (
        WELL._replace(sinks=(SINK, SINK._replace(name="b", trouble="disk full"))),
        Health.DEGRADED,
        "sink b: disk full",
    ),
    "a sink hangs": (
        WELL._replace(sinks=(SINK._replace(still_ns=S6),)),
        Health.DEGRADED,
        "sink file has accepted no data for 6 s",
    ),
    "a sink was too slow": (
        WELL._replace(sinks=(SINK._replace(drop_age_ns=0),)),
        Health.DEGRADED,
        "sink file is too slow and just dropped sound",
    ),
    "nothing but zeros comes": (
        WELL._replace(concern="only zeros"),
        Health.DEGRADED,
        "only zeros",
    ),
    "a slow device is silent for longer": (
        WELL._replace(silent_ns=S4, stall_timeout_ns=3 * NS_PER_S),
        Health.OK,
        None,
    ),
    "frames were lost": (
        WELL._replace(loss_age_ns=0),
        Health.DEGRADED,
        "frames were just lost",
    ),
}


@pytest.mark.parametrize("row", TABLE)
def test_each_row_of_the_table(row: str) -> None:
    """Each thing that can be seen has its state and its sentence for a person."""
    view, health, reason = TABLE[row]
    assert assess(view) == Assessment(health, reason, alive=health is not Health.STALLED)


@pytest.mark.parametrize(
    "view",
    [
        WELL._replace(unseen_ns=HUNG_NS),
        WELL._replace(push_still_ns=HUNG_NS),
        WELL._replace(silent_ns=HUNG_NS),
        WELL._replace(sinks=(SINK._replace(still_ns=SINK_HUNG_NS),)),
        WELL._replace(sinks=(SINK._replace(drop_age_ns=RECENT_NS),)),
        WELL._replace(loss_age_ns=RECENT_NS),
    ],
)
def test_a_limit_that_is_just_reached_is_no_fault(view: View) -> None:
    """3 s without life, 5 s of a still sink and 10 s after a loss are still well."""
    assert assess(view) == Assessment(Health.OK, None, alive=True)


def test_the_first_row_that_applies_is_told() -> None:
    """Threads that hang come before the device, the device before sinks, sinks before losses."""
    view = WELL._replace(
        unseen_ns=S4,
        push_still_ns=S4,
        silent_ns=S4,
        refused=True,
        trouble="refused",
        frames=0,
        sinks=(SINK._replace(trouble="full", still_ns=S6, drop_age_ns=0, concern="nothing"),),
        loss_age_ns=0,
        concern="it hears nothing",
    )
    told = []
    for cure in (
        {"unseen_ns": 0},
        {"push_still_ns": 0},
        {"silent_ns": 0},
        {"refused": False},
        {"trouble": None},
        {"frames": 1},
        {"sinks": (SINK._replace(still_ns=S6, drop_age_ns=0, concern="nothing"),)},
        {"sinks": (SINK._replace(drop_age_ns=0, concern="nothing"),)},
        {"sinks": (SINK._replace(drop_age_ns=0),)},
        {"sinks": (SINK,)},
        {"concern": None},
        {"loss_age_ns": None},
    ):
        verdict = assess(view)
        told.append((verdict.health.value, (verdict.reason or "").split(" ")[1:3]))
        view = view._replace(**cure)
    assert told == [
        ("STALLED", ["capture", "thread"]),
        ("STALLED", ["push", "thread"]),
        ("STALLED", ["frame", "for"]),
        ("FAILED", []),
        ("DEGRADED", []),
        ("STARTING", []),
        ("DEGRADED", ["file:", "full"]),
        ("DEGRADED", ["file", "has"]),
        ("DEGRADED", ["file:", "nothing"]),
        ("DEGRADED", ["file", "is"]),
        ("DEGRADED", ["hears", "nothing"]),
        ("DEGRADED", ["were", "just"]),
    ]
    assert assess(view).health is Health.OK


AGES = st.integers(0, 20 * NS_PER_S)
WORDS = st.none() | st.text(min_size=1)
VIEWS = st.builds(
    View,
    open=st.booleans(),
    trouble=WORDS,
    refused=st.booleans(),
    frames=st.integers(0, 3),
    silent_ns=AGES,
    unseen_ns=AGES,
    push_still_ns=AGES,
    loss_age_ns=st.none() | AGES,
    sinks=st.lists(
        st.builds(SinkView, st.just("s"), WORDS, AGES, st.none() | AGES, WORDS), max_size=2
    ).map(tuple),
    stall_timeout_ns=AGES,
    concern=WORDS,
)


@given(VIEWS)
def test_only_a_stall_starves_the_watchdog(view: View) -> None:
    """The watchdog goes unfed for STALLED alone: a restart helps against nothing else."""
    verdict = assess(view)
    assert verdict.alive == (verdict.health is not Health.STALLED)
    hangs = view.unseen_ns > HUNG_NS or view.push_still_ns > HUNG_NS
    hangs = hangs or (view.open and view.silent_ns > view.stall_timeout_ns + SILENT_NS)
    assert (verdict.health is Health.STALLED) == hangs


@given(VIEWS.filter(lambda view: view.trouble is not None or not view.refused))
def test_whatever_is_wrong_has_a_sentence(view: View) -> None:
    """Only OK and STARTING come without a reason."""
    verdict = assess(view)
    assert (verdict.reason is None) == (verdict.health in (Health.OK, Health.STARTING))
