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
    """Of a training, whose ``mean`` says it from a probability of ``threshold`` on. True labels are never replaced.

    ``filled`` as `predict` has it, on the host: nothing is said of pixels beside an image.
    """

    def __init__(self, features: Features, threshold: float, mean: MovingMean, filled: Tensor | None = None) -> None:
        self.features, self.threshold, self.mean, self.filled = features, threshold, mean, filled

    def read(self, model: Network, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each batch of patches, int64 ``[P]`` on the host, on the device, and their labels uint8 ``[P, patch_height,
        patch_width]``: 255 where the teacher is less sure than ``threshold``. Computed when they are asked for.
        """
        grid, windows = self.features.frames.grid, self.features.windows
        maps = self.features.read(model, [ids // grid.cells for ids in batches if len(ids)])
        device = self.features.frames.device
        ends: Sequence[Tensor | None] = [None] * len(batches)
        if self.filled is not None:
            ends = sent([self.filled[ids] for ids in batches], device)
        for ids, end in zip(sent(batches, device), ends, strict=True):
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
                if end is not None:
                    labels.masked_fill_(_beside(end, labels), 255)
            yield ids, labels
        next(maps, None)  # a stream that has ended can be used again


def _beside(ends: Tensor, labels: Tensor) -> Tensor:
    """bool, as labels: which pixels lie from those rows and columns, int64 ``[P, 2]``, on."""
    rows, cols = (torch.arange(n, device=ends.device) >= ends[:, axis, None]
                  for axis, n in enumerate(labels.shape[1:]))
    return rows[:, :, None] | cols[:, None]
