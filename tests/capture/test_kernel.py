"""What Python believes of the kernel's structures, against the C header itself."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

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
