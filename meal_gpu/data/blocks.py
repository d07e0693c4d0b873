"""Memory for batches, used again: a block is free as soon as nobody holds the batch in it.

A batch of frames is tens of megabytes. New memory for each would cost a page fault per page and miss every cache: more
time than cutting and normalising the pixels takes.
"""

import math
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

_KEPT = 2
"""Blocks: one that is used, one that is being filled."""


class Blocks:
    """Gives tensors on the host. Whoever keeps what he was given keeps its memory, and others get another block."""

    def __init__(self) -> None:
        # PyTorch holds the array that a tensor was made of for as long as any tensor shares its memory, the ones that
        # autograd saved included. So an array per tensor tells whether its block is free.
        self._given: deque[tuple[np.ndarray, weakref.ref[np.ndarray]]] = deque(maxlen=_KEPT)

    def new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor, not initialised."""
        size = math.prod(shape) * dtype.itemsize
        block = self._free(size)
        if block is None:
            block = np.empty(size, np.uint8)
        array = block[:size]
        self._given.append((block, weakref.ref(array)))
        return torch.from_numpy(array).view(dtype).view(shape)

    def _free(self, size: int) -> np.ndarray | None:
        for _ in range(len(self._given)):
            block, user = given = self._given.popleft()
            if user() is not None:
                self._given.append(given)
            elif len(block) >= size:
                return block
        return None
