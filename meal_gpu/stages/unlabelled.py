"""Unlabelled patches beside the labelled ones of a training: what pseudo-labels and consistency are learned on."""

import torch
from torch import Tensor

from ..data.fit import mostly_beside
from ..grid import Grid
from ..randomness import derive


class Unlabelled:
    """Of images that have labelled patches, int64 ``[n]`` on the host: ``count`` beside each of them, at random.

    ``filled`` as `predict` has it, on the host: none of those patches that nobody is asked for, since they lie beside
    their image.
    """

    def __init__(self, count: int, labelled: Tensor, n_images: int, grid: Grid, order: torch.Generator,
                 filled: Tensor | None = None) -> None:
        self.count, self.per_image = count, grid.cells
        # The name that these draws had when pseudo-labels alone used them: a run that was begun goes on.
        self.draws = torch.Generator().manual_seed(derive(order.initial_seed(), 0, "pseudo-labels"))
        self.free = torch.ones(n_images, self.per_image, dtype=torch.bool)
        self.free[labelled // self.per_image, labelled % self.per_image] = False
        if filled is not None:
            self.free &= ~torch.from_numpy(mostly_beside(filled.prod(1).view_as(self.free).numpy(), grid))

    def beside(self, patches: Tensor) -> Tensor:
        """``count`` of the image of each patch, as far as there are: int64 ``[P]`` on the host.

        Where a batch has several patches of an image, one may come several times.
        """
        images = patches // self.per_image
        weights = torch.rand(len(patches), self.per_image, generator=self.draws)
        weights = torch.where(self.free[images], weights, -1.0)
        highest, cells = weights.topk(min(self.count, self.per_image))
        return (images[:, None] * self.per_image + cells)[highest >= 0]
