"""Pseudo-labels: what a mean of the network's weights says of unlabelled patches of images that have labelled ones.

The teacher sees a frame as it is, in eval mode; the network that learns from it may be shown a changed one. The mean
holds the statistics of the norms too (`recipe.MovingMean`): without them it would say next to nothing.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..data.frames import sent
from ..network.features import Features, window_pixels
from ..network.interface import Network
from .recipe import MovingMean


class Teacher:
    """Of a training, whose ``mean`` says it from a probability of ``threshold`` on. True labels are never replaced."""

    def __init__(self, features: Features, threshold: float, mean: MovingMean) -> None:
        self.features, self.threshold, self.mean = features, threshold, mean

    def read(self, model: Network, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each batch of patches, int64 ``[P]`` on the host, on the device, and their labels uint8 ``[P, patch_height,
        patch_width]``: 255 where the teacher is less sure than ``threshold``. Computed when they are asked for.
        """
        grid, windows = self.features.frames.grid, self.features.windows
        maps = self.features.read(model, [ids // grid.cells for ids in batches if len(ids)])
        for ids in sent(batches, self.features.frames.device):
            if not len(ids):
                yield ids, torch.empty(0, grid.patch_height, grid.patch_width, dtype=torch.uint8, device=ids.device)
                continue
            with torch.no_grad(), self.mean.in_place():
                model.eval()
                low, high = next(maps)
                pixels = window_pixels(model, low, high, windows.of(ids % grid.cells), self.features.backend)
                model.train()
                sure, says = pixels.float().softmax(-1).max(-1)
                labels = torch.where(sure >= self.threshold, says, 255).to(torch.uint8)
            yield ids, labels
        next(maps, None)  # a stream that has ended can be used again
