"""CVAT's run lengths of a mask: within its box, row by row, runs of 0 and 1 in turn, beginning with 0."""

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from ..grid import Box, Size, box_around


def encode(mask: np.ndarray) -> tuple[list[int], Box]:
    """Run lengths of a mask, bool ``[H, W]``, that is not empty, and the box ``(y0, x0, y1, x1)`` that holds it."""
    box = box_around(mask)
    values = mask[box[0] : box[2], box[1] : box[3]].ravel()
    edges = np.flatnonzero(np.diff(values)) + 1
    lengths = [int(length) for length in np.diff(np.concatenate([[0], edges, [len(values)]]))]
    return ([0, *lengths] if values[0] else lengths), box


def decode(runs: Sequence[int], box: Box, size: Size) -> np.ndarray:
    """bool ``[H, W]``. Raises `InputError` where the runs are not those of the box, or the box is not in the image."""
    y0, x0, y1, x1 = box
    if not (0 <= y0 < y1 <= size[0] and 0 <= x0 < x1 <= size[1]):
        raise InputError(f"its box (left {x0}, top {y0}, right {x1}, bottom {y1}) is not within its image of {size[1]} "
                         f"x {size[0]} pixels (width x height)")
    total = sum(runs)
    if total != (y1 - y0) * (x1 - x0) or min(runs) < 0:
        raise InputError(f"its run lengths add up to {total}, and its box has {(y1 - y0) * (x1 - x0)} pixels")
    lengths = np.array(runs, np.int64)
    found = np.zeros(size, bool)
    found[y0:y1, x0:x1] = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(y1 - y0, x1 - x0)
    return found
