"""ClassMix on patches: half of the classes of one patch, with their pixels, pasted onto another of its batch.

After Olsson et al. 2021, who mix whole images of pseudo-labels. Here windows are mixed, whose labels are known: true
ones onto true ones, and whatever is there onto pseudo-labelled ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.frames import sent
from ..grid import Grid
from ..randomness import derive


@dataclass(frozen=True)
class Partners:
    """What the B patches of a batch are given."""

    index: Tensor
    """int64 ``[B]``: of which other patch."""
    ranks: Tensor
    """float32 ``[B, classes]``: of the classes that are there the lower half is taken."""


class Mixing:
    """Of a training: each patch is given something with probability ``part``."""

    def __init__(self, part: float, classes: int, grid: Grid, order: torch.Generator, device: torch.device) -> None:
        self.part, self.classes, self.grid, self.device = part, classes, grid, device
        self.draws = torch.Generator().manual_seed(derive(order.initial_seed(), 0, "classmix"))

    def drawn(self, labelled: Sequence[int], others: Sequence[int]) -> list[Partners]:
        """For each batch of so many labelled patches and others behind them. A patch that is given nothing is its own
        partner."""
        found = [self._partners(n, more) for n, more in zip(labelled, others, strict=True)]
        return [Partners(*pair) for pair in zip(sent([index for index, _ in found], self.device),
                                                sent([ranks for _, ranks in found], self.device), strict=True)]

    def _partners(self, labelled: int, others: int) -> tuple[Tensor, Tensor]:
        """Labelled patches have labelled partners, so that their loss is that of true labels."""
        both = labelled + others
        among = torch.tensor([labelled] * labelled + [both] * others)
        draws, own = torch.rand(both, 2, generator=self.draws, dtype=torch.float64), torch.arange(both)
        ranks = torch.rand(both, self.classes, generator=self.draws)
        another = (own + 1 + (draws[:, 0] * (among - 1)).long()) % among
        return torch.where(draws[:, 1] < self.part, another, own), ranks

    def __call__(self, pixels: Tensor, labels: Tensor, cells: Tensor, partners: Partners) -> tuple[Tensor, Tensor]:
        """Pictures ``[B, 3, H, W]`` with patches at these cells, int64 ``[B]`` on the host, and the patches' labels
        uint8 ``[B, h, w]``."""
        boxes = [self.grid.box(cell) for cell in cells.tolist()]
        mixed = pixels.clone()
        own = torch.stack([picture[:, y0:y1, x0:x1] for picture, (y0, x0, y1, x1) in zip(mixed, boxes, strict=True)])
        known, entry = labels[partners.index], torch.arange(len(pixels), device=pixels.device)[:, None, None]
        taken = self._taken(known, partners.ranks)[entry, known.clamp(max=self.classes - 1).long()] & (known != 255)
        given = torch.where(taken[:, None], own[partners.index], own)
        # By slices: what writes by an index is refused on CUDA where equal runs are to be equal.
        for picture, window, (y0, x0, y1, x1) in zip(mixed, given, boxes, strict=True):
            picture[:, y0:y1, x0:x1] = window
        return mixed, torch.where(taken, known, labels)

    def _taken(self, labels: Tensor, ranks: Tensor) -> Tensor:
        """Which classes are taken of each patch, bool ``[B, classes]``: half of those in it, rounded down."""
        every = torch.arange(self.classes, device=labels.device)[:, None, None]
        there = (labels[:, None] == every).flatten(2).any(2)
        place = torch.where(there, ranks, 2.0).argsort(stable=True, dim=1).argsort(1)
        return there & (place < there.sum(1, keepdim=True) // 2)
