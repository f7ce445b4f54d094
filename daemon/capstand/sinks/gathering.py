"""Short blocks put together, because to pass one on costs what a long one does.

Thread: the one that reads the ring.
"""

from capstand.audio.block import Block, joined
from capstand.audio.continuity import Continuity


class Gathering:
    """Makes blocks of at least ``frames``, until ``rest``; 0: each goes on as it came. A gap ends
    one that is shorter."""

    def __init__(self, frames: int) -> None:
        self._enough = frames
        self._blocks: list[Block] = []  # in order and without a gap
        self._frames = 0
        self._continuity = Continuity()

    def put(self, block: Block) -> list[Block]:
        """What is to go on now, in order."""
        if block.frames >= self._enough and not self._blocks:
            return [block]
        ready = self.rest() if self._continuity.follow(block) else []
        self._blocks.append(block)
        self._frames += block.frames
        return ready + self.rest() if self._frames >= self._enough else ready

    def rest(self) -> list[Block]:
        """What is left; it need not wait for more."""
        if not self._blocks:
            return []
        whole = joined(self._blocks)
        self._blocks.clear()
        self._frames = 0
        return [whole]
