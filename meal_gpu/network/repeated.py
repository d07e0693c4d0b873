"""Frames of a batch by their places, with a backward pass that adds in one order.

Indexing with repeats gets, under autograd, a gradient that is added up by whichever thread comes first (on a GPU: by
atomics), so that two equal trainings differ in the last bit, and soon in their queries.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Repeated(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, maps: Tensor, place: Tensor) -> Tensor:
        context.n = len(maps)
        context.save_for_backward(place)
        return maps[place]

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """A product with the zeros and ones that say which entry is of which frame: a third of the scatter's time."""
        (place,) = context.saved_tensors
        last = gradient.permute(0, 2, 3, 1)  # as channels_last lies in memory
        of = (torch.arange(context.n, device=place.device)[:, None] == place).to(gradient.dtype)
        added = of @ last.reshape(len(last), -1)
        return added.view(context.n, *last.shape[1:]).permute(0, 3, 1, 2), None


def repeated(maps: Tensor, place: Tensor) -> Tensor:
    """``maps[place]``: maps ``[n, C, h, w]`` of distinct frames, places int64 ``[B]`` → ``[B, C, h, w]``."""
    taken: Tensor = _Repeated.apply(maps, place)
    return taken
