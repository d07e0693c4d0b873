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
        """Pictures ``[B, 3, H, W]`` with patches at these cells, and the patches' labels uint8 ``[B, h, w]``."""
        grid, entry = self.grid, torch.arange(len(pixels), device=pixels.device)[:, None, None]
        y = torch.arange(grid.patch_height, device=pixels.device) + (cells // grid.cols * grid.patch_height)[:, None]
        x = torch.arange(grid.patch_width, device=pixels.device) + (cells % grid.cols * grid.patch_width)[:, None]
        at = entry, y[:, :, None], x[:, None]
        mixed = pixels.permute(0, 2, 3, 1).clone()
        own, known = mixed[at], labels[partners.index]
        taken = self._taken(known, partners.ranks)[entry, known.clamp(max=self.classes - 1).long()] & (known != 255)
        mixed[at] = torch.where(taken[:, :, :, None], own[partners.index], own)
        return mixed.permute(0, 3, 1, 2), torch.where(taken, known, labels)

    def _taken(self, labels: Tensor, ranks: Tensor) -> Tensor:
        """Which classes are taken of each patch, bool ``[B, classes]``: half of those in it, rounded down."""
        every = torch.arange(self.classes, device=labels.device)[:, None, None]
        there = (labels[:, None] == every).flatten(2).any(2)
        place = torch.where(there, ranks, 2.0).argsort(stable=True, dim=1).argsort(1)
        return there & (place < there.sum(1, keepdim=True) // 2)
