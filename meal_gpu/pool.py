"""The pool: images, which of their patches are labelled, and the labels revealed so far.

`Frames` decides what the network sees: whole images, or patches as images of their own (``data.context``). Behind it
nothing else needs to know.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .grid import Grid


@dataclass(frozen=True)
class Frames:
    """What the network is shown, one index per frame; also the masks of such frames.

    Patches keep their pool ids: ``id = frame * grid.cells + cell``, where ``grid`` is the grid *within a frame*: the
    images' grid where frames are images, 1 × 1 where frames are patches.
    """

    pixels: Tensor
    """uint8 ``[N, H, W, …]``, or ``[N, rows, h, cols, w, …]`` where frames are patches. On the device or the host."""
    grid: Grid
    device: torch.device
    count: int

    @classmethod
    def of(cls, images: Tensor, grid: Grid, context: str, device: torch.device) -> "Frames":
        """Frames of images (or masks) uint8 ``[N, H, W, …]``. No pixel is copied."""
        if context == "image":
            return cls(images, grid, device, len(images))
        height, width = grid.patch_height, grid.patch_width
        tiles = images[:, : grid.rows * height, : grid.cols * width]
        tiles = tiles.unflatten(2, (grid.cols, width)).unflatten(1, (grid.rows, height))
        return cls(tiles, Grid(1, 1, height, width), device, len(images) * grid.cells)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Frames uint8 ``[B, h, w, …]`` on the device, for int64 indices ``[B]``."""
        index = index.to(self.pixels.device)
        if self.pixels.dim() > 4:
            rows, cols = self.pixels.shape[1], self.pixels.shape[3]
            cell = index % (rows * cols)
            return self.pixels[index // (rows * cols), cell // cols, :, cell % cols].to(self.device)
        return self.pixels[index].to(self.device)

    def batches(self, size: int) -> Iterator[Tensor]:
        """All frames' indices in order, ``size`` at a time."""
        yield from torch.arange(self.count, device=self.device).split(size)


class Pool:
    """The images to choose from, and what is labelled of them.

    Parameters
    ----------
    images
        uint8 ``[N, H, W, 3]``: on the device (resident), or on the host or memory-mapped (read a batch at a time).
    names
        One per image.
    grid
        The tiling.
    device
        Where the labelled mask and the labels live, and where frames are delivered.
    """

    def __init__(self, images: Tensor, names: Sequence[str], grid: Grid, device: torch.device) -> None:
        self.images = images
        self.names = tuple(names)
        self.grid = grid
        self.device = device
        self.labelled = torch.zeros(len(names), grid.cells, dtype=torch.bool, device=device)
        """bool ``[images, cells]``."""
        self.labelled_ids = torch.zeros(0, dtype=torch.int64, device=device)
        """int64 ``[n]``, in the order of revealing."""
        self.labels = torch.zeros(0, grid.patch_height, grid.patch_width, dtype=torch.uint8, device=device)
        """uint8 ``[n, patch_height, patch_width]``, class indices and 255 for void, beside ``labelled_ids``."""

    @property
    def n_patches(self) -> int:
        return self.labelled.numel()

    @property
    def free(self) -> Tensor:
        """bool ``[n_patches]``: not labelled yet."""
        return ~self.labelled.view(-1)

    @property
    def fraction(self) -> float:
        """Share of the patches that is labelled."""
        return len(self.labelled_ids) / self.n_patches

    def frames(self, context: str) -> Frames:
        return Frames.of(self.images, self.grid, context, self.device)

    def reveal(self, ids: Tensor, labels: Tensor) -> None:
        """Add labels uint8 ``[n, patch_height, patch_width]`` for patches ``ids`` int64 ``[n]``.

        Raises `ValueError` for an id that is outside the pool, labelled already, or given twice.
        """
        ids = ids.to(self.device)
        if len(ids) != len(ids.unique()) or not bool(((ids >= 0) & (ids < self.n_patches)).all()):
            raise ValueError(f"ids must be distinct and in 0 ... {self.n_patches - 1}: {ids.tolist()}")
        if not bool(self.free[ids].all()):
            raise ValueError(f"already labelled: {ids[~self.free[ids]].tolist()}")
        if labels.shape != (len(ids), self.grid.patch_height, self.grid.patch_width) or labels.dtype != torch.uint8:
            raise ValueError(f"labels must be uint8 [{len(ids)}, {self.grid.patch_height}, {self.grid.patch_width}], "
                             f"not {labels.dtype} {list(labels.shape)}")
        self.labelled.view(-1)[ids] = True
        self.labelled_ids = torch.cat([self.labelled_ids, ids])
        self.labels = torch.cat([self.labels, labels.to(self.device)])


def as_tensor(array: np.ndarray) -> Tensor:
    """Share an array's memory, also where it is read-only: nothing here writes into images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
