"""Recordings on file systems that can do less than ext4, and on disks that come and go.

What a file system cannot do is refused by a shim for the C library (``shim.c``), in a process of
its own; what can be mounted everywhere is mounted.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from capstand.audio.block import AudioFormat, SampleFormat
from capstand.errors import SinkError
from capstand.sinks import disk
from capstand.sinks.recording import folder
from capstand.sinks.sink_queue import SinkQueue
from tests.sinks.test_recording import PERIOD, S16, STAMP, Desk, expected, heard

Nobody = Callable[[], AbstractContextManager[Path]]
ROOT = Path(__file__).parents[2]
RECORD = """
import json, sys
from pathlib import Path
from capstand.sinks.sink_queue import SinkQueue
from tests.sinks.test_recording import Desk, PERIOD
folder, setup, periods = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
sink_queue, told = None, []
try:
    desk = Desk(folder, **setup)
    sink_queue = SinkQueue("file", desk.sink, 10**9)
    sink_queue.try_open()
    for number in range(periods):
        sink_queue.put(desk.block(number * PERIOD))
    try:
        sink_queue.step()
        desk.sink.flush()
        desk.sink.close()
    except Exception as error:
        told.append(str(error))
        sink_queue._fail(error)
    told += [what["reason"] for _, what in desk.sink.events()]
    books = sink_queue.books()
except Exception as error:
    told.append(str(error))
    books = (0, 0)
print(json.dumps({"told": told, "delivered": books[0], "dropped": books[1]}))
"""


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shim") / "shim.so"
    source = ROOT / "tests/shim.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", made, source], check=True, timeout=120)
    return made


class Outcome:
    """What a process said that recorded under the shim, and what is in the directory then."""

    def __init__(self, folder: Path, said: str) -> None:
        answer = json.loads(said)
        self.told: list[str] = answer["told"]
        self.delivered: int = answer["delivered"]
        self.dropped: int = answer["dropped"]
        self.files = sorted(folder.glob("*.*")) if folder.is_dir() else []
        self.frames = sum(len(heard(file)) // 2 for file in self.files)


@pytest.fixture
def record(shim: Path, tmp_path: Path) -> Callable[..., Outcome]:
    def run(lacks: str, periods: int = 25, **setup: object) -> Outcome:
        """Records ``periods`` of 800 frames on a file system that lacks something."""
        rec = tmp_path / "rec"
        said = subprocess.run(
            [sys.executable, "-c", RECORD, rec, json.dumps(setup), str(periods)],
            cwd=ROOT,
            env=os.environ | {"LD_PRELOAD": str(shim), "SHIM_UNDER": str(rec), "SHIM": lacks},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert said.returncode == 0, said.stderr
        return Outcome(rec, said.stdout)

    return run


WITHOUT_HARM = [
    "fsync_folder=22",  # CIFS, some FUSE
    "fsync_folder=95",
    "fsync_folder=9",
    "fsync_folder=5",  # it failed after the file had its name
    "fsync=22 fdatasync=22 fsync_folder=22",
    "fsync=38 fdatasync=38 fsync_folder=38",
    "flock=37",  # NFS without a lock daemon
    "flock=95",
    "flock=38",
    "statvfs=38",
    "fchmod=1",
    "fchown=1",
]


@pytest.mark.parametrize("container", ["wav", "flac"])
@pytest.mark.parametrize("lacks", WITHOUT_HARM)
def test_what_a_file_system_need_not_have_costs_nothing(
    record: Callable[..., Outcome], lacks: str, container: str
) -> None:
    """Without folder syncs, syncs at all, locks or rights to give, all is delivered and nothing is
    told but that mode and group could not be set."""
    out = record(lacks, container=container, segment_s=1.0, mode="0660")
    assert (out.delivered, out.dropped) == (20_000, 0)
    assert out.frames == 20_000
    assert [file.suffix for file in out.files] == [f".{container}"] * 3
    words = [one for one in out.told if "cannot set mode and group" not in one]
    assert words == []
    assert len(out.told) == ("fchmod" in lacks)


def test_a_disk_without_a_size_is_not_a_full_one(record: Callable[..., Outcome]) -> None:
    """Where all sizes are zero, as on ramfs, how much is free is unknown; that is told once."""
    out = record("statvfs=0", min_free_mb=200)
    assert (out.delivered, out.dropped, out.frames) == (20_000, 0, 20_000)
    (words,) = out.told
    assert words.endswith("does not report free space, so min_free_mb has no effect")


FIXED = ["lseek=29", "rewrite=29", "rewrite=1", "lseek=29 rewrite=29"]


@pytest.mark.parametrize("lacks", FIXED)
def test_where_nothing_can_be_written_anew_a_flac_is_no_success(
    record: Callable[..., Outcome], lacks: str
) -> None:
    """A FLAC would lack its length there: it waits, says why and what to do, leaves no file, and
    what it did not record is dropped in the books."""
    out = record(lacks, container="flac")
    assert out.delivered == 0 and out.files == []
    assert out.told[0].endswith(
        "/rec: the file system cannot rewrite data; recording is paused; mount it with a "
        "cache (rclone: --vfs-cache-mode writes), or use another directory"
    )


@pytest.mark.parametrize("segment_s", [1.0, 86_400.0], ids=["short", "RF64"])
@pytest.mark.parametrize("lacks", FIXED)
def test_where_nothing_can_be_written_anew_a_wav_leaves_its_length_open(
    record: Callable[..., Outcome], lacks: str, segment_s: float
) -> None:
    """A WAV can be read to its end there, and every frame is in it; that is told once."""
    out = record(lacks, segment_s=segment_s)
    assert (out.delivered, out.dropped, out.frames) == (20_000, 0, 20_000)
    assert len(out.files) == (3 if segment_s == 1.0 else 1)
    assert len(out.told) == 1 and "recordings have no length in their header" in out.told[0]
    made = Desk(out.files[0].parent)
    whole = b"".join(made.block(one).samples for one in range(0, 20_000, PERIOD))
    found = np.concatenate([heard(file) for file in out.files])
    assert np.array_equal(found, expected(whole, S16.sample))


@pytest.mark.parametrize("container", ["wav", "flac"])
def test_a_file_that_cannot_be_named_is_no_loss(
    record: Callable[..., Outcome], container: str
) -> None:
    """A rename that fails leaves a whole .part, which counts as delivered; it is told."""
    out = record("rename=5", container=container)
    assert (out.delivered, out.dropped, out.frames) == (20_000, 0, 20_000)
    assert [file.suffix for file in out.files] == [".part"]
    (words,) = out.told
    assert words.endswith(".part is complete but could not be renamed: Input/output error")


def test_a_write_that_fails_once_is_told_in_words(record: Callable[..., Outcome]) -> None:
    """The reason is the system's own; the sound before it is in the file."""
    out = record("write_once=5")
    assert (out.delivered, out.dropped, out.frames) == (1600, 800, 1600)
    assert "the disk is failing" in out.told[0]


def test_what_libsndfile_keeps_quiet_about_is_told_in_words(
    record: Callable[..., Outcome],
) -> None:
    """Of a FLAC it only says that the system failed."""
    out = record("write_once=5", container="flac")
    assert 0 < out.delivered == out.frames and out.dropped
    assert (
        "the disk rejected a write, then accepted the next one; recording is paused" in out.told[0]
    )


@pytest.mark.parametrize("container", ["wav", "flac"])
def test_what_could_not_be_synced_is_not_called_delivered(
    record: Callable[..., Outcome], container: str
) -> None:
    """Sound that the disk took and then lost (EIO of a sync) is dropped in the books."""
    out = record("fdatasync=5 fsync=5", container=container)
    assert (out.delivered, out.dropped) == (0, 20_000)
    assert "the disk is failing" in out.told[0]


@pytest.mark.parametrize("container", ["wav", "flac"])
@pytest.mark.parametrize("hint", ["", " seek_any=1"], ids=["FAT", "behind FUSE"])
def test_a_file_that_may_grow_no_further_is_followed_by_the_next(
    record: Callable[..., Outcome], container: str, hint: str
) -> None:
    """At a file system's limit the next segment begins, and no frame is lost or comes twice,
    whether the file system says its limit before or only refuses."""
    out = record(f"size=60000{hint}", periods=100, container=container)
    assert (out.delivered, out.dropped, out.told) == (80_000, 0, [])
    assert len(out.files) >= 6
    assert all(file.stat().st_size <= 60_000 for file in out.files)
    made = Desk(out.files[0].parent)
    whole = b"".join(made.block(one).samples for one in range(0, 80_000, PERIOD))
    found = np.concatenate([heard(file) for file in out.files])
    assert np.array_equal(found, expected(whole, S16.sample))


@pytest.fixture
def limited() -> Iterator[None]:
    """No file of this process may have more than 200 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("container", ["wav", "flac"])
@pytest.mark.parametrize("sample", ["S16_LE", "S24_LE", "S24_3LE"])
def test_the_limit_of_the_process_costs_nothing_either(
    tmp_path: Path, container: str, sample: str
) -> None:
    """LimitFSIZE= makes files short, in every format, also where a gap fills one up."""
    audio = AudioFormat(8000, 2, SampleFormat[sample])
    desk = Desk(tmp_path, audio, container=container)
    samples = desk.write(*range(0, 48_000, PERIOD))
    gap = bytes(20_000 * audio.frame_bytes)
    samples += gap + desk.write(*range(68_000, 100_000, PERIOD))
    desk.sink.close()
    assert sum(desk.sink.account()[:2]) == 80_000 and desk.sink.account().dropped == 0
    files = sorted(tmp_path.iterdir())
    assert len(files) > 2 and all(file.stat().st_size <= 200_000 for file in files)
    found = np.concatenate([heard(file) for file in files])
    silence = 2 * 100_000 - len(found)  # a gap that does not fit is left to the next one's name
    assert silence in (0, 2 * 20_000)
    if not silence:
        assert np.array_equal(found, expected(samples, audio.sample))


def test_the_largest_file_is_asked_for(tmp_path: Path) -> None:
    """Without a limit of the process it is the file system's, and the place in the file is kept."""
    descriptor = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    try:
        largest = disk.largest_file(descriptor)
        assert largest >= 2**32
        if largest < disk.UNLIMITED:  # a tmpfs knows no limit
            with pytest.raises(OSError, match="Invalid argument"):
                os.lseek(descriptor, largest + 1, os.SEEK_SET)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
    finally:
        os.close(descriptor)


# Words


def test_no_inode_left_is_not_a_full_disk(mounted: Callable[[str], Path]) -> None:
    """A disk with room and without an inode is told as that, for a file and for a directory."""
    small = mounted("nr_inodes=3,size=20m")
    (small / "one").touch()
    (small / "two").touch()
    for path in (small, small / "rec"):
        with pytest.raises(SinkError) as refused:
            Desk(path).write(0)
        assert str(refused.value) == (
            f"{path}: the disk can hold no more files (no inode left, see df -i); recording is "
            "paused; "
            "delete files, or raise segment_s so that there are fewer"
        )


def test_every_refusal_says_what_to_do(tmp_path: Path) -> None:
    """Each errno of a disk has its advice; a disk that is full though it has room is told so."""
    for number, advice in disk._ADVICE.items():
        assert disk.explain(OSError(number, os.strerror(number)), tmp_path)[1] == advice
    reason, advice = disk.explain(OSError(errno.ENOSPC, "No space left on device"), tmp_path)
    assert reason == "No space left on device"
    assert advice.endswith("MB are free; check for a quota, a full directory or snapshots")


# Disks that come and go


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a tmpfs with these options, by default at a new place."""
    if os.geteuid() != 0:
        pytest.skip("a disk of its own needs the right to mount: run as root")
    places: list[Path] = []

    def mount(options: str, place: Path | None = None) -> Path:
        place = place or tmp_path / f"disk{len(places)}"
        place.mkdir(exist_ok=True)
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, check=False
        )
        if made.returncode:
            pytest.skip(f"nothing can be mounted here: {made.stderr.decode().strip()}")
        places.append(place)
        return place

    yield mount
    for place in reversed(places):
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


def unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", place], check=True)


def notes(desk: Desk) -> list[str]:
    return [str(what["reason"]) for event, what in desk.sink.events() if event == "note"]


@pytest.mark.parametrize("container", ["wav", "flac"])
def test_a_disk_that_is_mounted_later_gets_what_follows(
    mounted: Callable[..., Path], tmp_path: Path, container: str
) -> None:
    """A recording notices a disk that is mounted over its directory: the file below is finished
    where it is, what follows goes to the disk, and every frame is in one of them."""
    usb = tmp_path / "usb"
    desk = Desk(usb / "rec", container=container)
    first = desk.write(0)
    mounted("size=20m", usb)
    later = desk.write(PERIOD)
    desk.sink.flush()
    assert "a disk was mounted or unmounted there" in notes(desk)[0]
    above = desk.write(2 * PERIOD)
    desk.sink.close()
    assert desk.sink.account()[:2] == (3 * PERIOD, 0)
    (path,) = (usb / "rec").iterdir()
    assert np.array_equal(heard(path), expected(above, S16.sample))
    unmount(usb)
    (path,) = (usb / "rec").iterdir()
    assert path.name == f"mic-{STAMP}.{container}"
    assert np.array_equal(heard(path), expected(first + later, S16.sample))


@pytest.fixture
def usb() -> Iterator[Path]:
    """A mount point on the root disk, wherever the tests' own directory is."""
    if os.geteuid() != 0:
        pytest.skip("to make a directory below / needs root")
    with TemporaryDirectory(dir="/", prefix="capstand-test-") as place:
        (Path(place) / "usb").mkdir()
        yield Path(place) / "usb"


def test_a_disk_that_is_unmounted_is_waited_for(usb: Path, mounted: Callable[..., Path]) -> None:
    """A disk that was there and went is not replaced by the empty mount point on the root disk."""
    mounted("size=20m", usb)
    desk = Desk(usb / "rec")
    desk.write(0)
    unmount(usb)
    desk.sink.flush()
    with pytest.raises(SinkError, match="the disk that was mounted there was removed"):
        desk.write(PERIOD)
    desk.sink.close()
    with pytest.raises(
        SinkError, match="was removed; recording is paused; mount it, or set mount = false"
    ):
        desk.sink.open()
    assert list(usb.iterdir()) == []
    mounted("size=20m", usb)
    desk.sink.open()
    samples = desk.write(2 * PERIOD)
    desk.sink.close()
    (path,) = (usb / "rec").iterdir()
    assert np.array_equal(heard(path), expected(samples, S16.sample))


@pytest.mark.parametrize("exact", [True, False])
def test_a_disk_that_must_be_mounted_is_waited_for(
    usb: Path, mounted: Callable[..., Path], exact: bool
) -> None:
    """With the key mount nothing is made below an empty mount point; recording waits, in words."""
    wanted = str(usb) if exact else True
    with pytest.raises(
        SinkError,
        match=r"no disk is mounted (there|at .*/usb); recording is "
        "paused",
    ):
        Desk(usb / "rec", mount=wanted)
    assert list(usb.iterdir()) == []
    mounted("size=20m", usb)
    desk = Desk(usb / "rec", mount=wanted)
    samples = desk.write(0)
    unmount(usb)
    desk.sink.flush()
    with pytest.raises(SinkError, match="no disk is mounted"):
        desk.write(PERIOD)
    desk.sink.close()
    assert desk.sink.account()[:2] == (PERIOD, 0) and list(usb.iterdir()) == []
    assert len(samples) == PERIOD * S16.frame_bytes


def test_an_empty_mount_point_is_doubted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below /mnt, /media and /srv a directory on the root disk is told, with the key that says that
    it is meant; elsewhere, and with that key, it is not."""
    top = tmp_path / "media"
    monkeypatch.setattr(folder, "_REMOVABLE", (str(top),))
    desk = Desk(top / "usb/rec")
    words = f"no disk is mounted there; set mount = false if {top} should have none"
    assert desk.sink.detail == f"no segment yet; {words}"
    assert notes(desk) == [f"{top}/usb/rec: {words}"]
    assert notes(Desk(top / "usb/rec", mount=False)) == []
    assert notes(Desk(tmp_path / "medium")) == []


def test_what_a_spool_takes_back_may_be_on_a_disk_that_comes_later(tmp_path: Path) -> None:
    """A file that is to be cut off where it was safe is cut off once its disk is there."""
    desk = Desk(tmp_path / "disk")
    desk.write(0)
    desk.sink.flush()
    place = desk.sink.checkpoint().cursor
    desk.write(PERIOD)
    desk.sink.close()
    (tmp_path / "disk").rename(tmp_path / "away")
    later = desk.recording()
    later.rewind(place)
    later.open()
    later.close()
    (tmp_path / "disk").rmdir()
    (tmp_path / "away").rename(tmp_path / "disk")
    later.open()
    (path,) = (tmp_path / "disk").iterdir()
    assert len(heard(path)) == 2 * PERIOD


# Whom the files belong to


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_files_get_the_mode_that_is_asked_for(tmp_path: Path) -> None:
    """The mode is given whatever the umask; directories that are made can be entered by those who
    may read; those that are there already stay as they are."""
    before = os.umask(0o077)
    try:
        desk = Desk(tmp_path / "new/rec", mode="0664")
        desk.write(0)
        assert mode(next((tmp_path / "new/rec").iterdir())) == 0o664
        desk.sink.close()
        said = Desk(tmp_path / "said", mode="0640")
        said.write(0)
        said.sink.close()
        plain = Desk(tmp_path / "plain")
        plain.write(0)
        plain.sink.close()
    finally:
        os.umask(before)
    assert mode(next((tmp_path / "new/rec").iterdir())) == 0o664
    assert mode(tmp_path / "new") == mode(tmp_path / "new/rec") == 0o775
    assert mode(tmp_path / "said") == 0o750
    assert mode(next((tmp_path / "said").iterdir())) == 0o640
    assert mode(next((tmp_path / "plain").iterdir())) == 0o600


def test_files_get_the_group_that_is_asked_for(tmp_path: Path) -> None:
    """The group is given to files and to directories that are made, and can read them whatever the
    umask."""
    if os.geteuid() != 0:
        pytest.skip("a group of others can be given by root only")
    before = os.umask(0o077)
    try:
        desk = Desk(tmp_path / "rec", group="audio", mode="0660")
        readers = Desk(tmp_path / "plain", group="audio")
    finally:
        os.umask(before)
    readers.write(0)
    assert mode(tmp_path / "plain") == 0o750
    assert mode(next((tmp_path / "plain").iterdir())) == 0o640
    readers.sink.close()
    desk.write(0)
    desk.sink.close()
    group = desk.setup.group_id
    (path,) = (tmp_path / "rec").iterdir()
    assert path.stat().st_gid == path.parent.stat().st_gid == group
    assert mode(path) == 0o660


def test_a_group_that_may_not_be_given_costs_no_sound(nobody: Nobody) -> None:
    """Who is no member of the group is told so once, and the recording goes on."""
    with nobody() as place:
        desk = Desk(place / "rec", group="audio", segment_s=0.1)
        desk.write(0, PERIOD)
        desk.sink.close()
    assert desk.sink.account()[:2] == (2 * PERIOD, 0)
    assert notes(desk) == [
        f"{place}/rec: cannot set mode and group: Operation not permitted; recording goes on; "
        "is the user a member of audio?"
    ]


# The status of a disk that fills


def test_a_disk_that_fills_up_says_how_long_it_lasts(mounted: Callable[..., Path]) -> None:
    """From 80 % on the status says how full the disk is and, once that can be told, how long the
    rest lasts at this rate."""
    small = mounted("size=20m")
    desk = Desk(small)
    desk.write(0)
    desk.sink.flush()
    assert desk.sink.detail == f"mic-{STAMP}.wav, 0 s"
    (small / "ballast").write_bytes(bytes(17_000_000))
    desk.sink.flush()
    words = desk.sink.detail.partition("; ")[2]
    assert words.startswith("the disk is 8") and words.endswith(" % full")
    desk.clock.ns += 3600 * 1_000_000_000
    desk.sink.flush()
    words = desk.sink.detail.partition("; ")[2]
    assert words.endswith(" % full, 0 h left at this rate")
    desk.sink.close()


def test_books_are_those_of_the_files(tmp_path: Path) -> None:
    """What is not safe in a file yet is inside, neither delivered nor dropped."""
    desk = Desk(tmp_path)
    sink_queue = SinkQueue("file", desk.sink, 10**9)
    sink_queue.try_open()
    for first in (0, PERIOD):
        sink_queue.put(desk.block(first))
    sink_queue.step()
    assert sink_queue.books() == (0, 0)
    desk.sink.flush()
    assert sink_queue.books() == (2 * PERIOD, 0)
    sink_queue.put(desk.block(2 * PERIOD))
    sink_queue.step()
    desk.sink.close()
    assert sink_queue.books() == (3 * PERIOD, 0)
