"""What a person painted, as one label per pixel.

Tools keep a list of regions that may overlap, and do not say which was painted last. So: what a person has touched
beats what is left of a prediction; and where a person has painted two classes over each other, nobody knows which is
meant, and the pixel is unlabelled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..grid import Size
from ..journal import UNLABELLED

Overlap = Literal["void", "later"]
"""Where a person painted two classes on one pixel: nothing, or the one that stands later in the tool's list."""


@dataclass(frozen=True, eq=False)
class Region:
    index: int
    """Class index, or `VOID`."""
    mask: np.ndarray
    """bool ``[H, W]`` of the window."""
    touched: bool = True
    """By a person; else it is a prediction as it was sent out."""
    z: int = 0
    """What has a higher one lies above, where the tool has an order."""


def compose(regions: Sequence[Region], size: Size, overlap: Overlap) -> tuple[np.ndarray, np.ndarray]:
    """Labels uint8 ``[H, W]``, `UNLABELLED` where nobody said anything; and where a person said two things, bool."""
    labels, conflicts = np.full(size, UNLABELLED, np.uint8), np.zeros(size, bool)
    for region in reversed([region for region in regions if not region.touched]):  # tools show the first on top
        labels[region.mask] = region.index
    touched = [region for region in regions if region.touched]
    for z in sorted({region.z for region in touched}):
        layer, twice = np.full(size, UNLABELLED, np.uint8), np.zeros(size, bool)
        for region in touched:
            if region.z == z:
                if overlap == "void":
                    twice |= region.mask & (layer != UNLABELLED) & (layer != region.index)
                layer[region.mask] = region.index
        there = layer != UNLABELLED
        labels[there], conflicts[there] = layer[there], twice[there]
    labels[conflicts] = UNLABELLED
    return labels, conflicts
