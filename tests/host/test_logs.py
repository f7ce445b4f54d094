"""Log lines: said once then counted, sent to the journal without ever waiting for it."""

import ast
import io
import logging
import os
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import capstand
from capstand.host import bug, logs
from capstand.host.logs import (
    MAX_FIELD,
    MOST_KINDS,
    MOST_TEXTS,
    REPEAT_S,
    JournalHandler,
    RepeatFilter,
    log,
    log_event,
    tell_held_back,
)
from capstand.text import clean


class Kept(logging.Handler):
    """Keeps the lines it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Time:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """The log as it was before."""
    before = log.handlers[:], log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    yield
    for one in log.handlers:
        one.close()
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def kept() -> Kept:
    one = Kept()
    log.handlers[:] = [one]
    return one


@pytest.fixture
def repeats(kept: Kept, time: Time) -> RepeatFilter:
    one = RepeatFilter(time)
    kept.addFilter(one)
    return one


def lost(frames: int, **fields: object) -> None:
    log_event(logging.WARNING, "lost %d frames", frames, **fields)


def test_each_channel_has_its_own_repeats(kept: Kept, repeats: RepeatFilter) -> None:
    """What is said of one stream, sink or channel does not hold back the same of another."""
    for field in ("STREAM", "SINK", "CHANNEL"):
        lost(1, **{field: "one"})
        lost(2, **{field: "two"})
    assert len(kept.lines) == 6


def test_a_line_that_another_thread_says_meanwhile_is_not_told_again(
    kept: Kept, repeats: RepeatFilter, time: Time
) -> None:
    """While what was held back is told, another thread may say one of those lines itself."""
    for _ in range(2):
        lost(1, SINK="one")
        lost(2, SINK="two")
    time.s += REPEAT_S
    emit, told = kept.emit, []

    def meanwhile(record: logging.LogRecord) -> None:
        told.append(record)
        if len(told) == 1:
            lost(3, SINK="two")
        emit(record)

    kept.emit = meanwhile  # type: ignore[method-assign]
    repeats.tell(all_now=True)
    assert sorted(kept.lines) == [
        *("lost 1 frames", "lost 1 frames", "lost 2 frames"),
        "lost 3 frames (and 1 more like it)",
    ]


def test_a_repeated_fault_is_said_once_then_counted(
    kept: Kept, repeats: RepeatFilter, time: Time
) -> None:
    """The first is said at once; those of the next minute are held back and told as a number."""
    for n in range(1, 6):
        lost(n)
        repeats.tell()
    assert kept.lines == ["lost 1 frames"]
    time.s += REPEAT_S
    repeats.tell()
    assert kept.lines == ["lost 1 frames", "lost 5 frames (and 3 more like it)"]
    repeats.tell(all_now=True)
    assert len(kept.lines) == 2


def test_one_line_a_minute_however_long_it_lasts(
    kept: Kept, repeats: RepeatFilter, time: Time
) -> None:
    """A fault that repeats each second for an hour makes no more than a line a minute."""
    for n in range(3600):
        lost(n)
        repeats.tell()
        time.s += 1.0
    repeats.tell(all_now=True)
    assert 60 <= len(kept.lines) <= 62
    told = sum(
        int(line.split("(and ")[1].split()[0]) if "(and" in line else 0 for line in kept.lines
    )
    assert told + len(kept.lines) == 3600


def test_a_single_repeat_is_told_as_it_was(kept: Kept, repeats: RepeatFilter, time: Time) -> None:
    """One line that was held back comes out unchanged when it is due."""
    lost(1)
    lost(2)
    time.s += REPEAT_S
    repeats.tell()
    assert kept.lines == ["lost 1 frames", "lost 2 frames"]


def test_the_next_line_carries_the_count(kept: Kept, repeats: RepeatFilter, time: Time) -> None:
    """A line that comes after the minute, before it was told, says how many were held back."""
    for n in (1, 2, 3):
        lost(n)
    time.s += REPEAT_S
    lost(4)
    assert kept.lines == ["lost 1 frames", "lost 4 frames (and 2 more like it)"]


def test_nothing_is_held_back_at_the_end(kept: Kept, repeats: RepeatFilter) -> None:
    """At the end all that was held back is told."""
    for n in (1, 2, 3):
        lost(n)
    repeats.tell(all_now=True)
    assert kept.lines == ["lost 1 frames", "lost 3 frames (and 1 more like it)"]


def test_streams_and_sinks_are_counted_apart(kept: Kept, repeats: RepeatFilter) -> None:
    """A fault of one stream or sink does not silence that of another."""
    for stream in ("a", "b"):
        for sink in ("x", "y"):
            for _ in range(2):
                lost(1, STREAM=stream, SINK=sink)
    assert len(kept.lines) == 4


def test_faults_of_different_kinds_are_all_said(kept: Kept, repeats: RepeatFilter) -> None:
    """Only the same message is a repeat."""
    log_event(logging.ERROR, "one")
    log_event(logging.ERROR, "two")
    assert kept.lines == ["one", "two"]


def test_a_number_in_a_text_makes_no_new_kind(kept: Kept, repeats: RepeatFilter) -> None:
    """200 changes of the process that holds a card are one line and a count."""
    for pid in range(200):
        log_event(logging.ERROR, "%s: %s", "mic", f"used by arecord (pid {pid})", STREAM="mic")
    repeats.tell(all_now=True)
    assert kept.lines == [
        "mic: used by arecord (pid 0)",
        "mic: used by arecord (pid 100) (and 99 more like it)",
        "mic: used by arecord (pid 199) (and 98 more like it)",
    ]


def test_texts_that_differ_are_told_apart_up_to_a_bound(kept: Kept, repeats: RepeatFilter) -> None:
    """Another reason is news, but a name that somebody else changes all the time is not."""
    for number in range(60):
        log_event(logging.ERROR, "%s: %s", "mic", "used by " + "x" * number)
    assert len(kept.lines) == MOST_TEXTS + 1
    repeats.tell(all_now=True)
    assert kept.lines[-1].endswith("(and 54 more like it)")


def test_every_value_of_what_was_held_back_is_in_a_field(kept: Kept, repeats: RepeatFilter) -> None:
    """A search by the figures of any one line finds the line that stands for it."""
    found: set[int] = set()

    def note(record: logging.LogRecord) -> None:
        value = record.fields["LOST_FRAMES"]  # type: ignore[attr-defined]
        found.update(value if isinstance(value, tuple) else (value,))

    kept.emit = note  # type: ignore[method-assign]
    for number in range(1011):
        log_event(logging.WARNING, "lost %d frames", number, STREAM="mic", LOST_FRAMES=number)
    repeats.tell(all_now=True)
    assert found == set(range(1011))


def test_what_was_held_back_comes_in_the_order_it_came(kept: Kept, repeats: RepeatFilter) -> None:
    """The last of each kind, in order, with stamps that do not go back."""
    stamps: list[float] = []
    emit = kept.emit

    def stamp(record: logging.LogRecord) -> None:
        stamps.append(record.created)
        emit(record)

    kept.emit = stamp  # type: ignore[method-assign]
    for what in ("b", "c", "a", "c", "a", "b", "a"):
        log_event(logging.INFO, f"{what} happened")
    repeats.tell(all_now=True)
    assert kept.lines[3:] == [
        *("c happened", "b happened"),
        "a happened (and 1 more like it)",
    ]
    assert stamps == sorted(stamps)


def test_lines_of_one_stream_come_before_its_end(kept: Kept, repeats: RepeatFilter) -> None:
    """What is held back of a stream that ends is told, and only that."""
    for stream in ("mic", "line"):
        for _ in range(3):
            lost(1, STREAM=stream)
    tell_held_back(STREAM="mic")
    log_event(logging.INFO, "the end", STREAM="mic")
    assert kept.lines[2:] == ["lost 1 frames (and 1 more like it)", "the end"]


def test_what_is_kept_to_compare_with_is_bounded(
    kept: Kept, repeats: RepeatFilter, time: Time
) -> None:
    """100,000 different lines leave no more than MOST_KINDS behind, and none after a minute; what
    was held back of those that are forgotten is told."""
    log_event(logging.INFO, "first")
    log_event(logging.INFO, "first")
    for number in range(100_000):
        log_event(logging.INFO, "line", CHANNEL=f"channel {number}")
    assert len(repeats._said) == MOST_KINDS
    assert kept.lines.count("first") == 2
    time.s += REPEAT_S
    repeats.tell()
    assert not repeats._said and not repeats._kept


def test_every_message_is_a_template() -> None:
    """No call in the package builds its message of values: they are arguments and fields."""
    wrong = []
    calls = 0
    for path in Path(capstand.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            called = ast.unparse(call.func)
            if called in ("log_event", "logs.log_event"):
                message = call.args[1]
            elif re.fullmatch(r"(self\.)?_?log\.(debug|info|warning|error|exception)", called):
                message = call.args[0]
            else:
                continue
            calls += 1
            choice = [message.body, message.orelse] if isinstance(message, ast.IfExp) else [message]
            if not all(isinstance(one, ast.Constant) for one in choice):
                wrong.append(f"{path.name}:{call.lineno}")
    assert calls > 30
    assert wrong == []


# The journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as one:
        one.bind(str(tmp_path / "journal"))
        yield one


@pytest.fixture
def handler(journal: socket.socket) -> Iterator[JournalHandler]:
    one = JournalHandler(journal.getsockname())
    log.handlers[:] = [one]
    yield one
    one._socket.close()


def entry(raw: bytes) -> dict[str, bytes]:
    """An entry of journald's native protocol, taken apart as journald does."""
    fields = {}
    while raw:
        line, _, raw = raw.partition(b"\n")
        key, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack_from("<Q", raw)
            value, raw = raw[8 : 8 + size], raw[8 + size :]
            assert raw[:1] == b"\n"
            raw = raw[1:]
        fields[key.decode()] = value
    return fields


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.INFO, b"6"), (logging.WARNING, b"4"), (logging.ERROR, b"3")],
)
def test_an_entry_has_fields(
    journal: socket.socket, handler: JournalHandler, level: int, priority: bytes
) -> None:
    """An entry carries message, priority and the fields one can search for."""
    log_event(level, "%s: lost %d", "mic", 3, STREAM="mic", LOST_FRAMES=3)
    assert entry(journal.recv(65536)) == {
        "MESSAGE": b"mic: lost 3",
        "PRIORITY": priority,
        "SYSLOG_IDENTIFIER": b"capstand",
        "STREAM": b"mic",
        "LOST_FRAMES": b"3",
    }


@given(st.text(st.characters(exclude_categories=()), max_size=100))
@settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_any_value_arrives_as_one_field(
    journal: socket.socket, handler: JournalHandler, value: str
) -> None:
    """No value, whatever lines or characters are in it, can forge another field."""
    log_event(logging.INFO, "%s", value, DEVICE=value)
    got = entry(journal.recv(65536))
    assert set(got) == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "DEVICE"}
    assert got["DEVICE"] == got["MESSAGE"] == clean.line(value).encode()


def test_a_field_may_have_several_values(journal: socket.socket, handler: JournalHandler) -> None:
    """Each value is a field of its own in the entry, as journald wants it."""
    log_event(logging.INFO, "lost", LOST_FRAMES=(480, 960))
    assert journal.recv(65536).count(b"LOST_FRAMES=") == 2


def test_an_entry_that_stands_for_many_fits(
    journal: socket.socket, handler: JournalHandler
) -> None:
    """However many lines are held back, and however long: none is too large for the journal."""
    handler.addFilter(repeats := RepeatFilter())
    received = 0
    for number in range(300):
        log_event(logging.ERROR, "%s", "x", TEXT=f"{number} " + "x" * 10_000, N=number)
        with suppress(BlockingIOError):
            received += journal.recv(1_000_000).count(b"\nN=")
    repeats.tell(all_now=True)
    received += journal.recv(1_000_000).count(b"\nN=")
    assert (handler._missed, received) == (0, 300)


def test_a_long_value_is_cut(journal: socket.socket, handler: JournalHandler) -> None:
    """A value is cut where it would make the entry too large to send."""
    log_event(logging.INFO, "x" * 1_000_000, DEVICE="y\n" * 1_000_000)
    got = entry(journal.recv(65536))
    assert got["MESSAGE"] == b"x" * (MAX_FIELD - 1) + "…".encode()
    assert got["DEVICE"].startswith(b"y y y") and len(got["DEVICE"]) <= MAX_FIELD


def test_a_stalled_journal_is_not_waited_for(
    journal: socket.socket, handler: JournalHandler
) -> None:
    """When the journal takes nothing lines are counted; the next that passes tells how many."""
    said = 0
    while not handler._missed:
        log_event(logging.INFO, "line")
        said += 1
    for _ in range(9):
        log_event(logging.INFO, "line")
    for _ in range(said - 1):
        assert "MISSED_LINES" not in entry(journal.recv(65536))
    with pytest.raises(BlockingIOError):
        journal.recv(65536)
    log_event(logging.INFO, "back")
    assert entry(journal.recv(65536))["MISSED_LINES"] == b"10"
    log_event(logging.INFO, "well")
    assert "MISSED_LINES" not in entry(journal.recv(65536))


def test_a_missing_journal_is_not_minded(tmp_path: Path) -> None:
    """Where no journal listens the daemon goes on, and counts."""
    handler = JournalHandler(str(tmp_path / "none"))
    log.handlers[:] = [handler]
    log_event(logging.ERROR, "line")
    assert handler._missed == 1
    handler._socket.close()


# Plain lines


def test_plain_lines_say_time_and_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside systemd a line is a time, a word for what is no mere news, and the message."""
    stderr = io.StringIO()
    cleared: list[str] = []
    monkeypatch.setattr("sys.stderr", stderr)
    logs.setup(before=lambda: cleared.append(stderr.getvalue()), journal=False)
    log_event(logging.INFO, "news")
    log_event(logging.WARNING, "%d lost", 3, STREAM="mic")
    log_event(logging.ERROR, "gone")
    lines = [line.split(" ", 1) for line in stderr.getvalue().splitlines()]
    assert [rest for _, rest in lines] == ["news", "warning: 3 lost", "error: gone"]
    assert all(len(stamp) == 8 and stamp.count(":") == 2 for stamp, _ in lines)
    assert [text.count("\n") for text in cleared] == [0, 1, 2]


HOSTILE = "\x1b[2J\n12:00:00 error: forged\0\u202e\udcff"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_plain_line_is_one_line(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """Whatever a message holds, it is one line that steers no terminal; what the terminal has not
    is written in another way."""
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(raw, encoding, errors=clean.ERRORS))
    logs.setup(journal=False)
    log_event(logging.INFO, "→ %s", HOSTILE)
    (line,) = raw.getvalue().decode(encoding).splitlines()
    arrow = "→" if encoding == "utf-8" else "->"
    assert line.isprintable()
    assert line[9:] == f"{arrow} \\x1b[2J 12:00:00 error: forged\\x00\\u202e\\udcff"


def test_a_traceback_cannot_be_mistaken_for_lines_of_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its lines are set in, so none of them begins with a time, and each is clean."""
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr(bug, "_told", set())
    logs.setup(journal=False)
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        bug.log_unexpected("here", error)
    first, *others = stderr.getvalue().splitlines()
    assert "error: here: ValueError: " in first
    assert len(others) > 2 and all(other.startswith("    ") for other in others)
    assert all(one.isprintable() for one in (first, *others))


def test_a_message_that_does_not_fit_its_values_is_told(
    journal: socket.socket, handler: JournalHandler
) -> None:
    """A template and values that do not belong together raise nothing and lose nothing."""
    for template, value in (("%d frames", "many"), ("%s and %s", "one")):
        handler.emit(logging.LogRecord("capstand", logging.INFO, "", 0, template, (value,), None))
    assert [entry(journal.recv(65536))["MESSAGE"] for _ in range(2)] == [
        b"%d frames ('many',)",
        b"%s and %s ('one',)",
    ]


def test_a_log_that_is_closed_is_not_minded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stderr that was closed, and a disk that is full under it, raise nothing."""
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    logs.setup(journal=False)
    stderr.close()
    log_event(logging.ERROR, "line")
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr("sys.stderr", full)
        log_event(logging.ERROR, "line")
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, full.fileno())  # what it holds is written at its end
        os.close(null)


def test_the_journal_is_taken_under_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """setup() sends to the journal where it is told so, and holds repeats back either way."""
    for journal, kind in ((True, JournalHandler), (False, logs.PlainHandler)):
        repeats = logs.setup(journal=journal)
        (handler,) = log.handlers
        assert type(handler) is kind
        assert repeats in handler.filters
        if isinstance(handler, JournalHandler):
            handler._socket.close()
    monkeypatch.setenv("JOURNAL_STREAM", "0:0")
    logs.setup()
    assert type(log.handlers[0]) is logs.PlainHandler
