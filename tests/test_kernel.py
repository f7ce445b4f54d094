"""What Python believes of the kernel's structures, against the C header itself."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstand.capture import kernel

SW_FIELDS = (
    "tstamp_mode",
    "period_step",
    "sleep_min",
    "avail_min",
    "xfer_align",
    "start_threshold",
    "stop_threshold",
    "silence_threshold",
    "silence_size",
    "boundary",
    "proto",
    "tstamp_type",
)
STATUS_FIELDS = (
    "state",
    "tstamp.tv_sec",
    "tstamp.tv_nsec",
    "appl_ptr",
    "hw_ptr",
    "delay",
    "avail",
)


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that says what C makes of <sound/asound.h>.

    ``numbers``: the ioctl numbers and sizes. ``sw``: reads struct snd_pcm_sw_params from its input
    and prints the fields. ``status``: writes a struct snd_pcm_status whose fields count from 11 on.
    """
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing")
    folder = tmp_path_factory.mktemp("header")
    prints = "\n".join(f'printf("%lld\\n", (long long)sw.{name});' for name in SW_FIELDS)
    sets = "\n".join(f"st.{name} = {11 + at};" for at, name in enumerate(STATUS_FIELDS))
    (folder / "show.c").write_text(
        f"""
        #include <stdio.h>
        #include <string.h>
        #include <time.h>
        #include <sys/ioctl.h>
        #include <sound/asound.h>
        int main(int argc, char **argv) {{
            struct snd_pcm_sw_params sw;
            struct snd_pcm_status st;
            (void)argc;
            if (!strcmp(argv[1], "numbers"))
                printf("%lu %lu %lu %zu %zu %zu\\n", (unsigned long)SNDRV_PCM_IOCTL_SW_PARAMS,
                       (unsigned long)SNDRV_PCM_IOCTL_STATUS,
                       (unsigned long)SNDRV_PCM_IOCTL_FORWARD,
                       sizeof sw, sizeof st, sizeof(snd_pcm_uframes_t));
            if (!strcmp(argv[1], "states"))
                printf("%d %d %d %d %d\\n", SNDRV_PCM_STATE_PREPARED, SNDRV_PCM_STATE_RUNNING,
                       SNDRV_PCM_STATE_XRUN, SNDRV_PCM_STATE_SUSPENDED,
                       SNDRV_PCM_STATE_DISCONNECTED);
            if (!strcmp(argv[1], "sw") && fread(&sw, sizeof sw, 1, stdin) == 1) {{
                {prints}
            }}
            if (!strcmp(argv[1], "status")) {{
                memset(&st, 0xee, sizeof st);
                {sets}
                fwrite(&st, sizeof st, 1, stdout);
            }}
            return 0;
        }}
        """
    )
    build = subprocess.run(
        ["gcc", "-o", str(folder / "show"), str(folder / "show.c")],
        capture_output=True,
        text=True,
        check=False,
    )
    if "sound/asound.h: No such file" in build.stderr:
        pytest.skip("sound/asound.h (linux-libc-dev) is missing")
    assert build.returncode == 0, build.stderr
    return folder / "show"


def say(header: Path, what: str, given: bytes = b"") -> bytes:
    return subprocess.run([header, what], input=given, capture_output=True, check=True).stdout


def test_numbers(header: Path) -> None:
    """The three calls have the header's numbers, and their structures the header's sizes."""
    assert [int(one) for one in say(header, "numbers").split()] == [
        kernel.SW_PARAMS,
        kernel.STATUS,
        kernel.FORWARD,
        kernel._SW_PARAMS.size,
        kernel._STATUS_BYTES,
        kernel._FRAMES.size,
    ]


def test_states(header: Path) -> None:
    """The states of a stream have the header's numbers."""
    assert [int(one) for one in say(header, "states").split()] == [
        kernel.PREPARED,
        kernel.RUNNING,
        kernel.XRUN,
        kernel.SUSPENDED,
        kernel.DISCONNECTED,
    ]


def test_software_parameters(header: Path) -> None:
    """Each software parameter lies where C looks for it."""
    values = range(101, 101 + len(SW_FIELDS))
    told = say(header, "sw", kernel._SW_PARAMS.pack(*values))
    assert [int(one) for one in told.split()] == list(values)


def test_status(header: Path) -> None:
    """State, stamp, pointers and avail are read from where C puts them."""
    found = kernel._STATUS.unpack_from(say(header, "status"))
    assert found == tuple(range(11, 11 + len(STATUS_FIELDS)))


def test_numbers_carry_the_sizes() -> None:
    """The kernel's number of a call holds the size of its structure, so both agree."""
    for number, size in (
        (kernel.SW_PARAMS, kernel._SW_PARAMS.size),
        (kernel.STATUS, kernel._STATUS_BYTES),
        (kernel.FORWARD, kernel._FRAMES.size),
    ):
        assert number >> 16 & 0x3FFF == size


@pytest.mark.parametrize(
    ("device", "link", "exact"),
    [
        ("hw:0,0", "/dev/snd/pcmC0D0c", True),
        ("hw:CARD=Mic,DEV=0", "/dev/snd/pcmC1D10c", True),
        ("hw:CARD=Mic,DEV=0", "/dev/snd/pcmC1D0p", False),
        ("hw:0,0", "/dev/snd/timer", False),
        ("hw:0,0", "/dev/null", False),
        ("plughw:0,0", "/dev/snd/pcmC0D0c", False),
        ("plug:hw:0", "/dev/snd/pcmC0D0c", False),
        ("dsnoop:0", "/dev/snd/pcmC0D0c", False),
        ("default", "/dev/snd/pcmC0D0c", False),
        ("plug:{SLAVE=hw:0}", "/dev/snd/pcmC0D0c", False),
        ("my_hw:0", "/dev/snd/pcmC0D0c", False),
    ],
)
def test_exact_only_on_a_plain_device(device: str, link: str, exact: bool, tmp_path: Path) -> None:
    """Pointers are trusted only where the name is plain ``hw:`` and the descriptor the kernel's."""
    shown = tmp_path / "proc/self/fd"
    shown.mkdir(parents=True)
    (shown / "7").symlink_to(link)
    assert kernel.usable(device, 7, tmp_path) is exact


def test_a_descriptor_that_is_no_card(tmp_path: Path) -> None:
    """A descriptor of anything else is not taken for a card's, whatever the name says."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        assert not kernel.usable("hw:0,0", descriptor)
    finally:
        os.close(descriptor)


def card_folder(root: Path, status: str) -> None:
    folder = root / "proc/asound/card1/pcm0c/sub0"
    folder.mkdir(parents=True)
    (folder / "status").write_text(status)


def test_owner(tmp_path: Path) -> None:
    """A card in use says by which program, and the number is that of the process."""
    card_folder(tmp_path, "state: RUNNING\nowner_pid   : 815\ntrigger_time: 1.2\n")
    for number in (812, 815):
        (tmp_path / f"proc/{number}").mkdir()
    (tmp_path / "proc/812/comm").write_text("arecord\n")
    (tmp_path / "proc/815/status").write_text("Name:\tarecord\nTgid:\t812\nPid:\t815\n")
    assert kernel.owner_of("1", 0, tmp_path) == "arecord (pid 812)"
    (tmp_path / "proc/asound/Mic").symlink_to("card1")
    assert kernel.owner_of("Mic", 0, tmp_path) == "arecord (pid 812)"


def test_no_owner(tmp_path: Path) -> None:
    """A closed card, one whose owner has just gone and one that is not there have no owner."""
    card_folder(tmp_path, "closed\n")
    assert kernel.owner_of("1", 0, tmp_path) is None
    card_folder(tmp_path / "gone", "owner_pid   : 4194305\n")
    assert kernel.owner_of("1", 0, tmp_path / "gone") is None
    assert kernel.owner_of("2", 0, tmp_path) is None


BUFFER, TURN_NS = 9600, 200_000_000  # 200 ms at 48 kHz
BOUNDARY = BUFFER * 2**40


class Card:
    """A pointer that moves with time, as a driver reports it."""

    def __init__(self) -> None:
        self.turns = kernel.Turns(48_000, BUFFER, BOUNDARY)
        self.now_ns = 10**12
        self.hidden = 0
        self.start = BOUNDARY - 5000  # it wraps soon

    def look(self, after_ms: float, *, late_ms: float = 0.0, behind_ms: float = 0.0) -> int:
        """Time passes, then a look; the stamp may be late, the pointer not yet caught up."""
        self.now_ns += round(after_ms * 1e6)
        frame = round((self.now_ns - 10**12) * 48e-6 - behind_ms * 48) - self.hidden
        return self.turns.see(self.now_ns + round(late_ms * 1e6), (self.start + frame) % BOUNDARY)

    def hold(self, milliseconds: float) -> int:
        """The machine stands still and the driver misses the whole turns of that time."""
        missed = int(milliseconds * 48 // BUFFER) * BUFFER
        self.hidden += missed
        self.now_ns += round(milliseconds * 1e6)
        return missed


def test_a_pointer_that_keeps_time_hides_nothing() -> None:
    """Nothing is booked while pointer and stamps agree, however late single stamps are."""
    card = Card()
    assert not any(card.look(10, late_ms=20 if n % 7 == 0 else 0) for n in range(500))
    assert card.look(600) == card.look(900) == 0  # the reader was away, the pointer was not


@given(st.lists(st.tuples(st.floats(0, 3000), st.floats(0, 30)), max_size=10))
def test_turns_that_the_driver_missed_are_found(holds: list[tuple[float, float]]) -> None:
    """Whole buffers by which the pointer fell behind are booked, also when it catches up late."""
    card = Card()
    card.look(10)
    booked = missed = 0
    for held_ms, behind_ms in holds:
        missed += card.hold(held_ms)
        booked += card.look(0.01, behind_ms=behind_ms)
        booked += sum(card.look(10) for _ in range(20))
    assert booked == missed


def test_a_device_that_stood_still_is_not_a_missed_turn() -> None:
    """A pointer that stops and goes on later, out of step with whole buffers, books nothing."""
    card = Card()
    card.look(10)
    ptr = (card.start + 480) % BOUNDARY
    assert not any(card.turns.see(card.now_ns + n * TURN_NS, ptr) for n in range(1, 5))
    card.now_ns += 4 * TURN_NS + TURN_NS // 2
    card.hidden += round(4.5 * BUFFER)
    assert not any(card.look(10) for _ in range(300))
    card.hold(400)
    assert card.look(10) == 2 * BUFFER
