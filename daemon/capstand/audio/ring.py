"""The ring: blocks in shared memory, one writer, many readers.

The writer waits for nobody and never learns how fast readers are: it fills the next slot, counts
it as published and wakes each reader by its eventfd. A reader that is too slow is lapped. It finds
that out by the count alone, before and after it copied a block, knows to the frame what it missed,
because each slot says how much was captured before it, and goes on with the newest blocks.

The memory is a memfd: it outlasts the process that writes it, and readers get a descriptor that is
open for reading only, so nothing that goes wild in one of them changes what the others hear. Its
mode keeps other users from opening it anew for writing, its seals keep its size. All numbers in it
are native and 8 bytes long. A block without frames says by the count alone that all before it was
missed::

    64 bytes           magic, slots, slot_bytes, published
    slots × 64 bytes   number, first_frame, frames, captured_at_ns, captured_before,
                       ns_per_frame, drift_ppm, settled + 2 × gap_code
    slots × slot_bytes samples

Block n lies in slot n % slots. While block ``published`` is being written, its slot still counts as
block ``published - slots``; one more is given up, so that a whole block's time lies between the
last look at a slot and the writer's return to it. No processor reorders memory for that long; and
what a reader looks at was made visible by the system call that woke it.

Threads: ``slot`` and ``publish`` belong to the writer, a Reader to one thread of any process.
"""

import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from capstand.audio.block import AudioFormat, Block
from capstand.audio.clock import Pace
from capstand.audio.wake import Paced, WakeUp

MAGIC = 0x3130676E69720002  # a layout that differs gets another number
HEAD = 64
SLOT = Struct("@qqqqqddq")
PUBLISHED = 3  # its place among the 8-byte words of the head
LEAST_SLOTS = 4
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
TRIES = 1000


class Missing(NamedTuple):
    """Frames that are missing before a block: first index, how many, time of the first, and the
    writer's code for why; 0: unknown."""

    first_frame: int
    frames: int
    at_ns: int
    gap_code: int


class Ring:
    """The writer's side: ``slots`` blocks of up to ``slot_bytes`` bytes each, in new memory or in
    that behind ``descriptor``, which had another writer before and is closed with it."""

    def __init__(self, slots: int, slot_bytes: int, descriptor: int | None = None) -> None:
        assert slots >= LEAST_SLOTS and slot_bytes >= 1
        self.slots = slots
        self.slot_bytes = slot_bytes
        size = HEAD + slots * (SLOT.size + slot_bytes)
        if descriptor is None:
            descriptor = os.memfd_create("capstand-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.fchmod(descriptor, stat.S_IRUSR)
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, size)
        self._words = memoryview(self._memory)[:HEAD].cast("q")
        self._words[0], self._words[1], self._words[2] = MAGIC, slots, slot_bytes
        self.published = self._words[PUBLISHED]
        view, first = memoryview(self._memory), HEAD + slots * SLOT.size
        self._rows = [
            view[first + at * slot_bytes : first + (at + 1) * slot_bytes] for at in range(slots)
        ]
        self._quarter = slots // 4
        self._wakes: tuple[WakeUp, ...] = ()
        self._rests: tuple[WakeUp, ...] = ()
        self._paced: tuple[Paced, ...] = ()

    def open_for_reading(self) -> int:
        """A descriptor of the memory that allows nothing but reading; the caller closes it. Where
        there is no /proc it is the reader alone who maps the memory for reading only."""
        try:
            return os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return os.dup(self.descriptor)

    def wakes(
        self, *readers: WakeUp, rests: tuple[WakeUp, ...] = (), paced: tuple[Paced, ...] = ()
    ) -> None:
        """From the next block on, these are set for each block, ``paced`` as they say, and
        ``rests`` whenever another quarter of the ring is full: a reader may rest until then. Any
        thread."""
        self._wakes, self._rests, self._paced = readers, rests, paced

    def slot(self) -> memoryview:
        """Where the next block goes."""
        return self._rows[self.published % self.slots]

    def publish(
        self,
        first_frame: int,
        frames: int,
        captured_at_ns: int,
        captured_before: int,
        pace: Pace,
        gap_code: int = 0,
    ) -> None:
        """Shows the filled slot to all readers, and wakes them. ``gap_code`` says why frames are
        missing before it, for when the writer has ended (``Reader.missing``)."""
        number = self.published
        SLOT.pack_into(
            self._memory,
            HEAD + number % self.slots * SLOT.size,
            number,
            first_frame,
            frames,
            captured_at_ns,
            captured_before,
            pace.ns_per_frame,
            pace.drift_ppm,
            pace.settled | gap_code << 1,
        )
        self.published = self._words[PUBLISHED] = number + 1
        for wake in self._wakes:
            if wake.expected:
                wake.set()
        for paced in self._paced:
            paced.left -= frames
            if paced.left <= 0:
                paced.set()
        if not (number + 1) % self._quarter:
            for wake in self._rests:
                wake.set()

    def close(self) -> None:
        """The writer's thread must have ended; readers keep what they have mapped."""
        for row in self._rows:
            row.release()
        self._words.release()
        self._rows = []
        self._memory.close()
        os.close(self.descriptor)


def check(descriptor: int, frame_bytes: int) -> int:
    """Raises ValueError for what is no ring of such frames, or may shrink while it is read; returns
    its slots. For who was given the descriptor by somebody else."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        head = os.pread(descriptor, HEAD, 0)
    except OSError as error:
        raise ValueError(error.strerror) from None
    if not seals & fcntl.F_SEAL_SHRINK or len(head) < HEAD:
        raise ValueError("its size is not sealed")
    magic, slots, slot_bytes, published = Struct("@4q").unpack_from(head)
    if magic != MAGIC:
        raise ValueError("another layout")
    least_bytes = max(1, frame_bytes)
    if slots < LEAST_SLOTS or slot_bytes < least_bytes or published < 0:
        raise ValueError("no sizes of a ring")
    if os.fstat(descriptor).st_size != HEAD + slots * (SLOT.size + slot_bytes):
        raise ValueError("not the size of its slots")
    return int(slots)


class Reader:
    """One reader of the memory behind ``descriptor``, which it does not close, from the next block
    on; blocks are of ``audio``. A lapped one goes on with the ``keep`` newest blocks, or with half
    of the ring's (None).

    ``captured``: so many frames had been captured, and ``next_frame`` was to be the next one's
    index, at the end of the last block read, or when it joined; ``missed`` are the frames that it
    was lapped by since. Has the pace of the stream's clock, as the last block brought it. When it
    joined, the next frame was ``due_ns``.
    """

    due_ns = 0
    ns_per_frame = 0.0
    drift_ppm = 0.0
    settled = False
    newest = False
    """Whether the block that was read last was the newest when it was."""

    def __init__(self, descriptor: int, audio: AudioFormat, keep: int | None = 1) -> None:
        head = os.pread(descriptor, HEAD, 0)
        magic, self.slots, self._slot_bytes, _ = Struct("@4q").unpack_from(head)
        self._keep = self.slots // 2 if keep is None else keep
        assert magic == MAGIC and 1 <= self._keep <= self.slots - 2
        self._memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        self._words = memoryview(self._memory)[:HEAD].cast("q")
        self._first = HEAD + self.slots * SLOT.size
        self._audio = audio
        self._frame_bytes = audio.frame_bytes
        self.missed = 0
        self.number = self.captured = self.next_frame = 0
        self.join()

    @property
    def published(self) -> int:
        """Blocks that were ever written."""
        return self._words[PUBLISHED]

    @property
    def waiting(self) -> int:
        """Blocks that are there and not read."""
        return self._words[PUBLISHED] - self.number

    def join(self) -> None:
        """What was captured until now was not meant for this reader. Raises ValueError for memory
        that makes no sense."""
        for _ in range(TRIES):
            self.number = number = self._words[PUBLISHED]
            if not number:
                return
            last = number - 1
            found, first_frame, frames, at_ns, before, rate, ppm, flags = self._slot(last)
            if found == last and self._words[PUBLISHED] - last <= self.slots - 2:
                self.captured, self.next_frame = before + frames, first_frame + frames
                self.ns_per_frame, self.drift_ppm, self.settled = rate, ppm, flags & 1 > 0
                self.due_ns = at_ns + round(frames * self.ns_per_frame)
                return
        raise ValueError("the newest block of the ring is not where it should be")

    def go_back(self, captured: int) -> None:
        """Goes on with the block that begins where so much had been captured, or that holds the
        frame after; what the ring no longer holds of that counts as missed."""
        published = self._words[PUBLISHED]
        self.number, self.captured = published, captured
        for number in range(published - 1, max(-1, published - 1 - (self.slots - 2)), -1):
            found, first_frame, frames, _, before, *_ = self._slot(number)
            if found != number or before + frames <= captured:
                return
            self.number = number
            if before <= captured:
                self.captured, self.next_frame = before, first_frame
                return

    def read(self) -> Block | None:
        """The next block, copied; None where there is none."""
        words, slots, memory = self._words, self.slots, self._memory
        while (number := self.number) < words[PUBLISHED]:
            place = number % slots
            found, first_frame, frames, captured_at_ns, before, ns_per_frame, drift_ppm, flags = (
                SLOT.unpack_from(memory, HEAD + place * SLOT.size)
            )
            if found == number:
                at = self._first + place * self._slot_bytes
                samples = memory[at : at + frames * self._frame_bytes]
            behind = words[PUBLISHED] - number
            if behind > slots - 2:  # perhaps written over while it was copied
                self.number = words[PUBLISHED] - self._keep
                continue
            if found != number:
                return None  # the count was seen before the slot; the next wake-up comes
            self.missed += before - self.captured
            self.captured, self.next_frame = before + frames, first_frame + frames
            self.number, self.newest = number + 1, behind == 1
            self.ns_per_frame, self.drift_ppm, self.settled = ns_per_frame, drift_ppm, flags & 1 > 0
            return Block(first_frame, frames, captured_at_ns, samples, self._audio)
        return None

    def missing(self, captured: int, next_frame: int) -> Iterator[Missing]:
        """The frames missing between blocks, from the place in the stream where so much had been
        captured and ``next_frame`` was due. What was lost before the ring's oldest block counts as
        one gap there. For when the writer has ended."""
        published = self._words[PUBLISHED]
        for number in range(max(0, published - self.slots), published):
            found, first_frame, frames, at_ns, before, rate, _, flags = self._slot(number)
            if found != number or before < captured:
                continue
            lost = first_frame - next_frame - (before - captured)
            if lost > 0:
                since_ns = at_ns - round(lost * rate)
                code = flags >> 1 if before == captured else 0  # several gaps in one
                yield Missing(first_frame - lost, lost, since_ns, code)
            captured, next_frame = before + frames, first_frame + frames

    def blocks(self) -> Iterator[Block]:
        """All that are there."""
        while (block := self.read()) is not None:
            yield block

    def close(self) -> None:
        self._words.release()
        self._memory.close()

    def _slot(self, number: int) -> tuple[int, int, int, int, int, float, float, int]:
        at = HEAD + number % self.slots * SLOT.size
        return SLOT.unpack_from(self._memory, at)
