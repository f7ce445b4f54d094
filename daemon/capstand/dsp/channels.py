"""From any number of channels to one or two."""

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


def to_channels(block: Float32, channels: int) -> Float32:
    """Shape (frames, n) → (frames, channels), ``channels`` 1 or 2.

    To one: the mean of all. To two: one is doubled, of more the first two are taken.
    """
    have = block.shape[1]
    if have == channels:
        return block
    if channels == 1:
        mean: Float32 = block.mean(axis=1, keepdims=True, dtype=np.float32)
        return mean
    return np.repeat(block, 2, axis=1) if have == 1 else block[:, :2]
