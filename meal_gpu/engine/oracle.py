"""Who labels: the masks of the data set (simulated), or people, see `meal_gpu.labelling.people`."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.frames import as_tensor
from ..data.store import compare
from ..grid import Grid
from ..records import More, Record


class Oracle(Protocol):
    def ask(self, round_: int, patches: list[Record], more: More) -> tuple[list[Record], list[int]]:
        """The patches that a round reveals, and the ids of those that nobody can label: they are never asked for again.

        That is what it asks for, but for skipped patches and others in their place.
        """
        ...

    def label(self, round_: int, ids: Tensor) -> Tensor:
        """Labels uint8 ``[n, patch_height, patch_width]`` (255 = void) of the patches that a round reveals.

        Raises `LabelsMissingError` where they have not come yet.
        """
        ...


class SimulatedOracle:
    """Reveals what the data set's masks already hold (paper, section 4.1)."""

    def __init__(self, masks: np.ndarray, grid: Grid) -> None:
        self.mapped, self.masks, self.grid = masks, as_tensor(masks), grid

    def ask(self, round_: int, patches: list[Record], more: More) -> tuple[list[Record], list[int]]:
        return patches, []

    def label(self, round_: int, ids: Tensor) -> Tensor:
        labels = torch.empty(len(ids), self.grid.patch_height, self.grid.patch_width, dtype=torch.uint8)
        for i, patch in enumerate(ids.tolist()):
            image, cell = self.grid.split(patch)
            y0, x0, y1, x1 = self.grid.box(cell)
            compare(self.mapped, image, image + 1)
            labels[i] = self.masks[image, y0:y1, x0:x1]
        return labels
