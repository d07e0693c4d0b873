"""The pool: images, which of their patches are labelled, and the labels revealed so far."""

import copy
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..grid import Grid


class Tiled(Protocol):
    """Images under a grid, such as `meal_gpu.data.frames.Frames`."""

    @property
    def images_grid(self) -> Grid: ...

    @property
    def device(self) -> torch.device: ...


class Pool:
    """The images to choose from, and what is labelled of them.

    Parameters
    ----------
    frames
        The images as the network sees them, resident on the device or streamed; the labelled mask and the labels live
        on the device where they are delivered.
    names
        One per image.
    blank
        bool ``[images, cells]``: patches beside an image that does not fill its frame, never to be asked for; or None.
    """

    def __init__(self, frames: Tiled, names: Sequence[str], blank: Tensor | None = None) -> None:
        self.frames = frames
        self.names = tuple(names)
        self.grid: Grid = frames.images_grid
        self.device = frames.device
        self.labelled = torch.zeros(len(names), self.grid.cells, dtype=torch.bool, device=self.device)
        """bool ``[images, cells]``."""
        self.blank = None if blank is None else blank.to(self.device)
        self._n_blank = 0 if blank is None else int(blank.sum())
        self.labelled_ids = torch.zeros(0, dtype=torch.int64, device=self.device)
        """int64 ``[n]``, in the order of revealing."""
        self.labels = torch.zeros(0, self.grid.patch_height, self.grid.patch_width, dtype=torch.uint8,
                                  device=self.device)
        """uint8 ``[n, patch_height, patch_width]``, class indices and 255 for void, beside ``labelled_ids``."""

    @property
    def n_patches(self) -> int:
        return self.labelled.numel()

    @property
    def free(self) -> Tensor:
        """bool ``[n_patches]``: not labelled yet, and there to be labelled."""
        taken = self.labelled if self.blank is None else self.labelled | self.blank
        return ~taken.view(-1)

    @property
    def n_free(self) -> int:
        """How many are `free`, counted without waiting for the device: nobody labels what is blank."""
        return self.n_patches - self._n_blank - len(self.labelled_ids)

    @property
    def fraction(self) -> float:
        """Share of the patches that is labelled."""
        return len(self.labelled_ids) / self.n_patches

    def withhold(self, ids: Tensor) -> None:
        """Never ask for these patches, int64 ``[n]``: nobody can label them."""
        blank = torch.zeros_like(self.labelled) if self.blank is None else self.blank.clone()
        blank.view(-1)[ids.to(self.device)] = True
        self.blank, self._n_blank = blank, int((blank & ~self.labelled).sum())

    def without(self, ids: Tensor) -> "Pool":
        """The pool as it is, in which these patches, int64 ``[n]``, cannot be asked for."""
        other = copy.copy(self)
        other.withhold(ids)
        return other

    def reveal(self, ids: Tensor, labels: Tensor) -> None:
        """Add labels uint8 ``[n, patch_height, patch_width]`` for patches ``ids`` int64 ``[n]``.

        Raises `ValueError` for an id that is outside the pool, labelled already, or given twice.
        """
        ids = ids.to(self.device)
        if len(ids) != len(ids.unique()) or not bool(((ids >= 0) & (ids < self.n_patches)).all()):
            raise ValueError(f"ids must be distinct and in 0 ... {self.n_patches - 1}: {ids.tolist()}")
        if not bool(self.free[ids].all()):
            raise ValueError(f"already labelled, or beside the image: {ids[~self.free[ids]].tolist()}")
        if labels.shape != (len(ids), self.grid.patch_height, self.grid.patch_width) or labels.dtype != torch.uint8:
            raise ValueError(f"labels must be uint8 [{len(ids)}, {self.grid.patch_height}, {self.grid.patch_width}], "
                             f"not {labels.dtype} {list(labels.shape)}")
        self.labelled.view(-1)[ids] = True
        self.labelled_ids = torch.cat([self.labelled_ids, ids])
        self.labels = torch.cat([self.labels, labels.to(self.device)])
