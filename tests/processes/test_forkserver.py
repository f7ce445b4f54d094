"""The forkserver: processes are forked from a clean parent, which may go without them."""

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capstand.processes import forkserver, supervisor
from capstand.processes.child import Task
from capstand.processes.page import Doing
from capstand.processes.supervisor import ProcessState, Supervisor
from tests.patience import PATIENCE_S

MODULE = "capstand.sinks.push"


def idle(line: object, _: tuple[int, ...], loaded: tuple[str, ...]) -> int:
    """The work of a process: says what it has loaded already and waits to be told to end."""
    import sys

    from capstand.processes.child import DaemonLink

    assert isinstance(line, DaemonLink)
    line.tell(trouble=None, detail=" ".join(one for one in loaded if one in sys.modules))
    poll = select.poll()
    poll.register(line, select.POLLIN)
    while True:
        line.page.does(Doing.WAITING, time.monotonic_ns())
        if poll.poll(100):
            return int(line.receive())


Make = Callable[[], Supervisor]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Supervisor] = []

    def make() -> Supervisor:
        task = Task(f"{__name__}:idle", ((MODULE, "numpy"),), {}, "idle", 0)
        made.append(Supervisor(task, (), modules=(MODULE,)))
        return made[-1]

    yield make
    for one in made:
        one.abandon()
        one.close()


def until(one: Supervisor, state: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not state():
        assert time.monotonic() < deadline, (one.state, one.trouble, one.detail)
        one.poll(time.monotonic_ns())
        time.sleep(0.005)


def begun(one: Supervisor) -> int:
    until(one, lambda: one.detail == MODULE)
    assert one.pid is not None
    return one.pid


def ended(one: Supervisor, status: int = 0) -> None:
    one.stop(status)
    assert one.join(time.monotonic() + PATIENCE_S)


def nurse_of(pid: int) -> int:
    """The forkserver that has just made ``pid``; what it makes is main's to wait for."""
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    nurse = forkserver.shared.pid
    assert parent == os.getpid() and nurse is not None and nurse not in (pid, parent)
    return nurse


def test_what_is_needed_is_loaded_before_and_once(make: Make) -> None:
    """Two processes are forked from one parent, which has loaded capstand's own module for them
    and nothing else; the parent has no thread but its own."""
    one, two = make(), make()
    pids = begun(one), begun(two)
    nurse = nurse_of(pids[0])
    assert nurse == nurse_of(pids[1]) and len({nurse, *pids}) == 3
    assert len(list(Path(f"/proc/{nurse}/task").iterdir())) == 1
    ended(one)
    ended(two)
    assert one.state is two.state is ProcessState.ENDED and one.trouble is None


def test_how_a_process_ended_is_known(make: Make) -> None:
    """Its status, or the signal that ended it."""
    one = make()
    begun(one)
    one.stop(7)
    until(one, lambda: one.trouble)
    assert one.trouble == "its process ended with status 7; a new one is starting"
    two = make()
    os.kill(begun(two), signal.SIGKILL)
    until(two, lambda: two.trouble)
    assert two.trouble == "its process was ended by SIGKILL; a new one is starting"
    begun(two)
    ended(two)


def test_without_the_forkserver_all_go_on(make: Make) -> None:
    """Where it is killed its processes live on, and the next one is made by another."""
    one = make()
    nurse = nurse_of(begun(one))
    os.kill(nurse, signal.SIGKILL)
    os.waitid(os.P_PID, nurse, os.WEXITED | os.WNOWAIT)
    two = make()
    assert nurse_of(begun(two)) != nurse
    one.poll(time.monotonic_ns())
    assert one.detail == MODULE and one.deaths == two.deaths == 0
    ended(one)
    ended(two)


def test_a_forkserver_that_hangs_is_replaced(make: Make) -> None:
    """Nobody waits for it, and when a process has not come within its limit another makes one."""
    one = make()
    nurse = nurse_of(begun(one))
    os.kill(nurse, signal.SIGSTOP)
    two = make()
    two.poll(time.monotonic_ns())
    assert two.pid is None and two.state is ProcessState.RUNNING
    two.poll(time.monotonic_ns() + 31 * 10**9)
    assert two.trouble is not None and "did not return from starting" in two.trouble
    assert not Path(f"/proc/{nurse}").exists()
    assert nurse_of(begun(two)) != nurse
    ended(one)
    ended(two)


def test_one_that_is_wanted_no_more_ends_at_once(make: Make) -> None:
    """Also one that was not there yet."""
    mine = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    before = set(mine.read_text().split())
    one = make()
    nurse = nurse_of(begun(one))
    two = make()
    os.kill(nurse, signal.SIGSTOP)
    two.poll(time.monotonic_ns())
    two.abandon()
    os.kill(nurse, signal.SIGCONT)
    ours = {str(one.pid), str(nurse)}
    assert supervisor.ghosts
    until(one, lambda: not supervisor.ghosts)
    assert not set(mine.read_text().split()) - before - ours
    ended(one)


def test_one_that_ends_as_soon_as_it_is_there_is_waited_for(make: Make) -> None:
    """It is not main's child yet then: the one between, which forked it, has not ended."""
    begun(make())  # main is the subreaper now
    word, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gate, open_gate = os.pipe()
    between = os.fork()
    if between == 0:
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        os.close(open_gate)
        os.write(its.fileno(), forkserver.WORD.pack(pid))
        os.read(gate, 1)
        os._exit(0)
    os.close(gate)
    try:
        process = forkserver.Process(word, forkserver.shared.news)
        deadline = time.monotonic() + PATIENCE_S
        while process.pid is None or ") Z" not in Path(f"/proc/{process.pid}/stat").read_text():
            assert time.monotonic() < deadline
            assert process.poll() is None
        assert process.poll() is None and not process.wait(0.01)
    finally:
        os.close(open_gate)
        os.waitpid(between, 0)
        its.close()
    assert process.wait(PATIENCE_S) and process.returncode == 7


def test_a_forkserver_with_nothing_to_do_ends(make: Make) -> None:
    """Its memory is then that of the processes it made, which go on, and the next one is made
    by another."""
    one = make()
    nurse = nurse_of(begun(one))
    assert Path(f"/proc/{nurse}/comm").read_text() == "forkserver\n"
    until(one, lambda: forkserver.shared.pid is None)
    assert not Path(f"/proc/{nurse}").exists()
    two = make()
    assert nurse_of(begun(two)) != nurse and one.deaths == two.deaths == 0
    ended(one)
    ended(two)


def test_it_ends_with_the_daemon() -> None:
    """Its only tie is the socket."""
    forkserver.shared.end()
    word, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with word, its:
        process = forkserver.shared.make((), (its.fileno(),) * 2)
        nurse = forkserver.shared
        assert nurse.pid is not None and nurse.channel is not None
        handle = os.pidfd_open(nurse.pid)
        nurse.channel.close()
        assert select.select([handle], [], [], PATIENCE_S)[0]
        os.close(handle)
        forkserver.shared.end()
    assert process.wait(PATIENCE_S)
