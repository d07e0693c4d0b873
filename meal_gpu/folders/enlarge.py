"""From logits at stride 4 to classes at the size that an image file has, whatever size the network saw it in.

A pixel of the file lies somewhere in the frame that the network saw, and that somewhere in its map of logits; each axis
for itself. Logits are interpolated there, so that an edge is as fine as the file, not as the frame.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_BYTES = 2**26
"""Of logits that are interpolated at once."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Where each of n pixels lies among the m cells of a map: between ``lower`` and the cell after it."""

    lower: Tensor
    """int64 ``[n]``"""
    weight: Tensor
    """float32 ``[n]``: of the cell after ``lower``."""

    @classmethod
    def of(cls, pixels: int, seen: int, frame: int, cells: int, parts: int = 1,
           device: torch.device | None = None) -> "Axis":
        """Of a file's side of ``pixels``, resized to the first ``seen`` pixels of a frame of ``frame``.

        The frame is seen in ``parts`` equal parts, each by itself, whose maps of ``cells`` lie beside each other; what
        is left over behind the last part goes with its last pixel. Corners of a part and of its map are the same
        points, as where logits are upsampled in training.
        """
        at = np.clip((np.arange(pixels) + 0.5) * (seen / pixels) - 0.5, 0, seen - 1)  # as images are resized
        part = frame // parts
        number = np.clip(np.floor((at + 0.5) / part), 0, parts - 1).astype(np.int64)
        within = np.clip(at - number * part, 0, part - 1) * ((cells - 1) / (part - 1) if part > 1 else 0.0)
        lower = np.minimum(np.floor(within).astype(np.int64), max(cells - 2, 0))
        return cls(torch.from_numpy(lower + number * cells).to(device),
                   torch.from_numpy((within - lower).astype(np.float32)).to(device))

    def blend(self, maps: Tensor, axis: int, first: int, last: int) -> Tensor:
        """Maps at pixels ``first … last - 1`` along an axis."""
        lower, shape = self.lower[first:last], [1] * maps.ndim
        shape[axis] = -1
        weight = self.weight[first:last].view(shape)
        after = (lower + 1).clamp(max=maps.shape[axis] - 1)
        return maps.index_select(axis, lower) * (1 - weight) + maps.index_select(axis, after) * weight


def classes_at(logits: Tensor, rows: Axis, cols: Axis) -> np.ndarray:
    """Class indices uint8 ``[len(rows), len(cols)]`` of logits float ``[C, h, w]``."""
    height, width = len(rows.lower), len(cols.lower)
    found, step = np.empty((height, width), np.uint8), max(1, _BYTES // (4 * len(logits) * width))
    logits = logits.float()
    for first in range(0, height, step):
        last = min(height, first + step)
        part = cols.blend(rows.blend(logits, 1, first, last), 2, 0, width)
        found[first:last] = part.argmax(0).to(torch.uint8).cpu().numpy()
    return found


def beside_each_other(maps: Tensor, rows: int, cols: int) -> Tensor:
    """Maps ``[rows * cols, C, h, w]`` of an image's parts as one, ``[C, rows * h, cols * w]``."""
    _, channels, height, width = maps.shape
    tiled = maps.view(rows, cols, channels, height, width).permute(2, 0, 3, 1, 4)
    return tiled.reshape(channels, rows * height, cols * width)
