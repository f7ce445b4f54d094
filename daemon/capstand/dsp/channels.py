"""From any number of channels to one or two."""

from typing import Any

import numpy as np
import numpy.typing as npt


def to_channels(block: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:
    """Shape (frames, n) → (frames, channels), ``channels`` 1 or 2, of the same type.

    To one: the mean of all. To two: one is doubled, of more the first two are taken.
    """
    have = block.shape[1]
    if have == channels:
        return block
    if channels == 1:
        mean = block.mean(axis=1, keepdims=True, dtype=np.float64)
        if np.issubdtype(block.dtype, np.integer):
            mean = np.rint(mean)
        return np.asarray(mean, block.dtype)
    return np.repeat(block, 2, axis=1) if have == 1 else block[:, :2]
