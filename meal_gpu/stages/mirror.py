"""Images in a mirror, and the patches in them: what self-consistency compares a network's logits on.

After EquAL (Golestaneh & Kitani 2020), which trains a network to say of a mirrored image what it says of the image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..grid import Grid


@dataclass(frozen=True)
class Mirrored:
    """The frames of a batch of patches in a mirror, left and right exchanged."""

    low: Tensor
    high: Tensor
    """Maps ``[B, C, h, w]``."""
    cells: Tensor
    """int64 ``[B]``: where in its mirrored frame each patch lies."""
    weight: float
    """Of the difference between what is said of them and of the patches as they are."""


def pixels_in_mirror(pixels: Tensor, grid: Grid) -> Tensor:
    """Frames ``[B, 3, H, W]``. The mirror stands in the middle of what the grid covers, so that patches come to lie on
    patches; columns that no patch covers show the frame's left edge once more."""
    source = grid.cols * grid.patch_width - 1 - torch.arange(pixels.shape[3], device=pixels.device)
    source = torch.where(source < 0, -1 - source, source)
    return pixels.index_select(3, source).contiguous(memory_format=torch.channels_last)


def cells_in_mirror(cells: Tensor, grid: Grid) -> Tensor:
    """int64 ``[B]``."""
    return cells + grid.cols - 1 - 2 * (cells % grid.cols)
