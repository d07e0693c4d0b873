"""Where a patch lies in its original file, and how labels come from there to the patch that a network sees.

A patch is a box in an image that was turned by EXIF, perhaps cut into tiles, and resized. Labels are sampled at exactly
the pixels at which a data set's own masks are (`data.maskfile.nearest`), so that what people draw trains as it would if
it had been there from the beginning.
"""

from dataclasses import dataclass

import numpy as np

from ..data.classes import VOID
from ..data.fit import inner_size
from ..data.listing import Sample
from ..data.maskfile import nearest_index
from ..data.rules import Rules
from ..data.sheet import read_size
from ..grid import Box, Grid, Size
from .windows import Windowed


@dataclass(frozen=True, eq=False)
class Place(Windowed):
    """Of one patch; boxes are ``(y0, x0, y1, x1)`` in the file's pixels as it is read, EXIF applied."""

    size: Size
    """(height, width) of the file."""
    box: Box
    """The patch."""
    window: Box
    """The patch and half a patch around it, within the file."""
    rows: np.ndarray
    """int64 ``[patch_height]``: the row of ``box`` that each row of the patch is sampled from; -1 beside the image."""
    cols: np.ndarray
    """The same across."""

    def to_patch(self, labels: np.ndarray) -> np.ndarray:
        """Labels uint8 of the box as those of the patch, uint8 ``[patch_height, patch_width]``; beside the image
        void."""
        found = labels[np.ix_(self.rows, self.cols)]
        found[self.rows < 0] = VOID
        found[:, self.cols < 0] = VOID
        return found

    def from_patch(self, labels: np.ndarray) -> np.ndarray:
        """What a network says of the patch, uint8 ``[patch_height, patch_width]``, in the pixels of the box."""
        return labels[np.ix_(_nearest_sample(self.rows, self.shape[0]), _nearest_sample(self.cols, self.shape[1]))]


def place(sample: Sample, cell: int, grid: Grid, rules: Rules) -> Place:
    """Of a cell of a sample's image. Reads the file's header; raises `InputError` where that cannot be read."""
    size = sample.file_size if sample.box is not None else read_size(sample.image, rules.reading)
    tile = sample.box or (0, 0, *size)
    cut = tile[2] - tile[0], tile[3] - tile[1]
    inner = inner_size(size, (grid.height, grid.width)) if rules.resize == "fit" else (grid.height, grid.width)
    y0, x0, y1, x1 = grid.box(cell)
    top, bottom, rows = _along(y0, y1, tile[0], cut[0], inner[0], size[0])
    left, right, cols = _along(x0, x1, tile[1], cut[1], inner[1], size[1])
    down, across = -(-(bottom - top) // 2), -(-(right - left) // 2)
    window = (max(0, top - down), max(0, left - across), min(size[0], bottom + down), min(size[1], right + across))
    return Place(size, (top, left, bottom, right), window, rows, cols)


def _along(start: int, stop: int, offset: int, source: int, target: int, whole: int) -> tuple[int, int, np.ndarray]:
    """Of one side of a patch: first and last + 1 pixel in the file, and what each pixel is sampled from.

    ``source`` pixels of the file from ``offset`` on are resized to ``target``; the file has ``whole``.
    """
    at = np.full(stop, -1, np.int64)
    found = offset + nearest_index(source, target)
    at[: min(stop, target)] = np.where(found < whole, found, -1)[:stop]
    at = at[start:]
    scale = source / target
    low = min(offset + int(np.floor(start * scale)), whole - 1)
    high = min(offset + int(np.ceil(min(stop, target) * scale)), whole)
    there = at[at >= 0]
    if len(there):
        low, high = min(low, int(there[0])), max(high, int(there[-1]) + 1)
    return low, max(high, low + 1), np.where(at >= 0, at - low, -1)


def _nearest_sample(at: np.ndarray, length: int) -> np.ndarray:
    """int64 ``[length]``: of each pixel of a box, the pixel of the patch that is sampled nearest to it."""
    there = np.flatnonzero(at >= 0)
    if not len(there):
        return np.zeros(length, np.int64)
    middles = (at[there[1:]] + at[there[:-1]]) / 2
    return there[np.searchsorted(middles, np.arange(length), side="left")]
