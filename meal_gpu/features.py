"""Backbone features of frames: constants where the backbone is frozen, and then computed once."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .backend import Backend
from .grid import Grid
from .model import RATES, DeepLabV3Plus
from .pool import Frames
from .timing import Progress, no_progress
from .windows import Windows, along, bilinear_matrix

BATCH_PIXELS = 1_400_000
"""Pixels per forward pass over a pool: eight CamVid images, enough to fill a processor, small beside its memory."""


@dataclass(frozen=True)
class Features:
    """Where a network's (low, high) feature maps of frames come from: a cache on the device, or the backbone."""

    frames: Frames
    low_size: tuple[int, int]
    high_size: tuple[int, int]
    cache: tuple[Tensor, Tensor] | None
    """Maps ``[frames, h4, w4, C]`` and ``[frames, h16, w16, C]`` in the autocast dtype; channels last, as used."""

    @classmethod
    @torch.no_grad()
    def of(cls, frames: Frames, model: DeepLabV3Plus, backend: Backend, cached: bool, stage: str = "features",
           progress: Progress = no_progress) -> "Features":
        """Prepare the features of frames under a network, computing all of them now if ``cached``."""
        model.eval()
        with backend.autocast():
            low, high = model.features(frames[torch.zeros(1, dtype=torch.int64, device=frames.device)])
            low_size, high_size = (low.shape[2], low.shape[3]), (high.shape[2], high.shape[3])
            if not cached:
                return cls(frames, low_size, high_size, None)
            cache, done = (_empty_cache(frames, low, backend.dtype), _empty_cache(frames, high, backend.dtype)), 0
            for index in frames.batches(batch_size(frames.grid)):
                for store, maps in zip(cache, model.features(frames[index]), strict=True):
                    store[index] = maps.permute(0, 2, 3, 1).to(backend.dtype)
                progress(stage, done := done + len(index), frames.count)
        return cls(frames, low_size, high_size, cache)

    def get(self, model: DeepLabV3Plus, index: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``[B, C, h4, w4]`` and ``[B, C, h16, w16]`` of frames int64 ``[B]``."""
        if self.cache is None:
            return model.features(self.frames[index])
        low, high = (store[index].permute(0, 3, 1, 2) for store in self.cache)
        return low, high

    def windows(self) -> Windows:
        """The decoder's windows on the patches of a frame."""
        return Windows.of_grid(self.frames.grid, self.low_size, self.high_size, RATES, self.frames.device)

    def patch_vectors(self, maps: Tensor) -> Tensor:
        """F of equation 2: float32 ``[B * cells, C]``, maps ``[B, C, h, w]`` upsampled and averaged per patch."""
        grid, (height, width) = self.frames.grid, maps.shape[2:]
        rows = _mean_matrix(grid.height, grid.patch_height, grid.rows, height).to(maps.device)
        cols = _mean_matrix(grid.width, grid.patch_width, grid.cols, width).to(maps.device)
        with torch.autocast(maps.device.type, enabled=False):
            return along(rows, cols, maps.float().permute(0, 2, 3, 1)).flatten(0, 2)


def cache_bytes(frames: Frames, low: Tensor, high: Tensor, dtype: torch.dtype) -> int:
    """Bytes that the cached features of ``frames`` take, given the maps of one of them."""
    return frames.count * (low[0].numel() + high[0].numel()) * dtype.itemsize


def batch_size(grid: Grid) -> int:
    """Frames per forward pass."""
    return max(1, BATCH_PIXELS // (grid.height * grid.width))


def _empty_cache(frames: Frames, maps: Tensor, dtype: torch.dtype) -> Tensor:
    _, channels, height, width = maps.shape
    return torch.empty(frames.count, height, width, channels, dtype=dtype, device=frames.device)


def _mean_matrix(n_pixels: int, patch: int, n_patches: int, n_in: int) -> Tensor:
    """[1, n_patches, n_in]: the mean over each patch's pixels of what is interpolated from ``n_in`` cells."""
    weights = bilinear_matrix(n_pixels, n_in)[: n_patches * patch].reshape(n_patches, patch, n_in).mean(axis=1)
    return torch.from_numpy(weights.astype(np.float32)).unsqueeze(0)
