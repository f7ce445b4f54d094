"""What is missing between blocks: the one place where a block is held against the one before."""

from capstand.audio.block import Block


class Continuity:
    """Follows blocks; ``next_frame`` is the index of the one that would go on without a gap, None
    where nothing came before."""

    def __init__(self) -> None:
        self.next_frame: int | None = None

    def missing(self, block: Block) -> int:
        """So many frames are missing before it; less than 0: indices have begun anew."""
        return 0 if self.next_frame is None else block.first_frame - self.next_frame

    def follow(self, block: Block) -> int:
        """The same, and it goes on behind the block."""
        expected, first_frame = self.next_frame, block.first_frame
        self.next_frame = first_frame + block.frames
        return 0 if expected is None else first_frame - expected
