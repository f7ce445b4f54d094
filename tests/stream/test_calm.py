"""While all is well a stream tells main now and then; what happens it tells at the next look."""

import pickle
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from capstand.accounting.stats import Cause
from capstand.audio.block import NS_PER_S
from capstand.capture.synthetic import VirtualTime
from capstand.config import schema as config
from capstand.errors import DeviceError
from capstand.host.logs import RepeatFilter
from capstand.processes.child import DaemonLink
from capstand.processes.page import CALLS, Page
from capstand.service.display import LiveLine
from capstand.service.service import WELL_TICK_NS, Service
from capstand.stream import worker
from capstand.stream.intake import Intake
from capstand.stream.orders import End
from tests.line import Keep, Line, capture
from tests.line import config as line_config
from tests.patience import PATIENCE_S

LOOK_NS = NS_PER_S // 2


def well() -> tuple[Line, Callable[[int], None]]:
    """A line on which sound flows, and what lets it flow on for so long."""
    time = VirtualTime()
    line = Line(capture(), [Keep()], time)

    def flow(for_ns: int) -> None:
        until_ns = time.now_ns() + for_ns
        while time.now_ns() < until_ns:
            line.capture()
            line.push()
            line.deliver()

    flow(NS_PER_S)
    line.stream.overview.report(time.now_ns(), (), {})
    flow(LOOK_NS)
    return line, flow


def is_calm(line: Line) -> bool:
    return line.stream.overview.is_calm(line.time.now_ns())


def test_a_stream_is_calm_while_sound_flows() -> None:
    line, flow = well()
    for _ in range(10):
        assert is_calm(line)
        flow(LOOK_NS)


def lost(line: Line) -> None:
    line.stream.capturer._lose(480, Cause.OVERRUN, exact=True)


def failed(line: Line) -> None:
    line.stream.capturer.fail(DeviceError("unplugged"))


def opened_again(line: Line) -> None:
    line.stream.capturer.fail(DeviceError("unplugged"))
    line.stream.capturer.open()
    line.stream.capturer.trouble = None


def restarted(line: Line) -> None:
    line.stream.capturer._restart("the device says: Input/output error")
    line.stream.capturer.trouble = None


def released(line: Line) -> None:
    line.stream.release("desktop", "left to pulseaudio")


def silent(line: Line) -> None:
    assert isinstance(line.time, VirtualTime)
    line.time.at_ns += LOOK_NS + 1


def held_up(line: Line) -> None:
    while not line.stream.pusher.is_behind:
        line.capture()


def missed(line: Line) -> None:
    line.stream.pusher._reader.missed += 480


def sink_failed(line: Line) -> None:
    line.stream.sink_queues[0]._fail(DeviceError("the peer hung up"))


def sink_busy(line: Line) -> None:
    line.stream.sink_queues[0].trouble = "the peer is full"


def sink_dropped(line: Line) -> None:
    line.stream.sink_queues[0].overflowed += 480


@pytest.mark.parametrize(
    "happens",
    [
        *(lost, failed, opened_again, restarted, released, silent, held_up, missed),
        *(sink_failed, sink_busy, sink_dropped),
    ],
)
def test_whatever_happens_is_told_at_the_next_look(happens: Callable[[Line], None]) -> None:
    line, _ = well()
    assert is_calm(line)
    happens(line)
    assert not is_calm(line)


def test_what_was_told_is_not_told_again_and_again_once_all_is_well() -> None:
    """A gap is told, and for as long as it makes the stream DEGRADED each look is a report."""
    line, flow = well()
    lost(line)
    overview = line.stream.overview
    overview.report(line.time.now_ns(), (), {})
    flow(LOOK_NS)
    assert not is_calm(line)
    flow(10 * NS_PER_S)
    overview.report(line.time.now_ns(), (), {})
    flow(LOOK_NS)
    assert is_calm(line)


def test_a_process_that_stood_still_is_not_taken_for_a_stuck_thread() -> None:
    """The short looks count: only between two of them may the process have been away."""
    line, flow = well()
    for _ in range(8):
        flow(LOOK_NS)
        assert is_calm(line)
    line.stream.overview.assessment(line.time.now_ns())
    assert line.stream.overview._back_ns < line.time.now_ns() - 3 * NS_PER_S


SETUP = """
[[stream]]
name = "mic"
capture = {{ device = "synthetic", rt_priority = 0 }}
[[stream.sink]]
type = "file"
path = "{folder}/recordings"
"""


def test_main_looks_at_all_where_somebody_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short look has to do for as long as the last whole one found all well, but no longer than
    its time, and only while each stream is calm."""
    setup = tmp_path / "capstand.toml"
    setup.write_text(SETUP.format(folder=tmp_path))
    service = Service(
        *(config.load(setup), tmp_path, tmp_path, LiveLine(wanted=False), RepeatFilter()),
        *(setup, Intake),
    )
    (stream,) = service._streams
    calm = True
    monkeypatch.setattr(stream, "is_calm", lambda: calm)
    service._reporters["mic"].begin()
    asked: list[int] = []
    monkeypatch.setattr(service._device_release, "poll", asked.append)
    service._look_due_ns = time.monotonic_ns() + 3600 * NS_PER_S
    assert service._is_calm()
    assert len(asked) == 1, "what was released for a time is taken back in time"
    calm = False
    assert not service._is_calm()
    calm = True
    service._tick()  # it has only begun
    assert not service._is_calm()
    service._look_due_ns = time.monotonic_ns() - 1
    assert not service._is_calm()
    assert WELL_TICK_NS < 5 * NS_PER_S, "half of what the unit gives the watchdog"


def test_a_process_reports_in_its_turn_and_calls_where_it_is_not_calm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its looks, those at which all is well tell nothing."""
    monkeypatch.setattr(worker, "LOOK_MS", 5)
    monkeypatch.setattr(worker, "WELL_TELL_NS", 1 << 62)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.settimeout(PATIENCE_S)
    page = Page()
    link = DaemonLink(there, page, RepeatFilter())
    intake = Intake(line_config(capture()), tmp_path, tmp_path)
    intake.start_meter()
    one, answers, looks = worker.StreamWorker(link, intake), [False], 0

    def looked(enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not enough():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def is_calm() -> bool:
        nonlocal looks
        looks += 1
        return answers[0]

    monkeypatch.setattr(intake, "is_calm", is_calm)
    one._in_terminal = False
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # it sets its own
    thread = threading.Thread(target=one.run)
    thread.start()
    try:
        for _ in range(5):
            assert here.recv(1 << 17)
        answers[0] = True
        quiet = looks + 2
        looked(lambda: looks > quiet)
        calls = page.words[CALLS]
        assert calls >= 5
        here.setblocking(False)
        with suppress(BlockingIOError):
            while here.recv(1 << 17):
                pass
        quiet = looks + 20
        looked(lambda: looks > quiet)
        assert page.words[CALLS] == calls
        with pytest.raises(BlockingIOError):
            here.recv(1 << 17)
        here.settimeout(PATIENCE_S)
        one._unsent = b"what main had no room for"
        assert here.recv(1 << 17) == b"what main had no room for"
    finally:
        here.send(pickle.dumps(End(1.0)))
        thread.join(PATIENCE_S)
        here.close()
        there.close()
    assert not thread.is_alive()
