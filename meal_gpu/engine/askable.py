"""Which patches of a pool anybody can be asked for, and those that a run on it begins with."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..config import Config, DataConfig, QueryConfig
from ..data.fit import blank_patches, extents, partly_filled
from ..data.ingest import Stores
from ..data.labelled import labelled_cells
from ..errors import InputError
from ..randomness import generator


@dataclass
class Askable:
    """Of a pool, whichever runs share it: what is a run's own is given. The tensors are on the host."""

    data: DataConfig
    stores: Stores

    @cached_property
    def extents(self) -> np.ndarray | None:
        """int64 ``[images, 2]``: what each fills of its frame; None where all do."""
        sources = self.stores.train.sources
        return None if sources is None else extents(sources, self.data)

    @cached_property
    def filled(self) -> Tensor | None:
        """What images fill of their patches: see `predict`."""
        found = partly_filled(self.extents, self.data.tiling())
        return None if found is None else torch.from_numpy(found)

    @cached_property
    def blank(self) -> Tensor | None:
        """bool ``[images, cells]``: patches that nobody is asked for: those that no image fills, where images keep
        their aspect ratio or are tiles, and those of images whose files are gone; None where there are none."""
        grid, names, gone = self.data.tiling(), self.stores.train.names, self.stores.dataset.gone
        blank = torch.zeros(len(names), grid.cells, dtype=torch.bool)
        if self.extents is not None:
            blank |= torch.from_numpy(blank_patches(self.extents, grid))
        blank |= torch.tensor([name in gone for name in names])[:, None]
        return blank if bool(blank.any()) else None

    @cached_property
    def given(self) -> Tensor | None:
        """int64: patches that were labelled before the run began (``data.unlabelled: ask``); None where none was.

        Raises `InputError` where their masks hold no label.
        """
        names, masks, given = self.stores.train.names, self.stores.train.masks, self.stores.dataset.given
        if given is None:
            return None
        self.check_there(list(given), "its mask is what this run begins with")
        grid, place = self.data.tiling(), {name: i for i, name in enumerate(names)}
        images = [place[name] for name in given]
        bare = [names[i] for i in images if self.stores.dataset.train[i].mask is None]
        if bare or masks is None:
            raise InputError(f"The mask of {bare[0]} is gone, and it is what this run begins with. Restore it to go "
                             "on, or start a new run.")
        cells = torch.from_numpy(labelled_cells(masks, images, grid))
        if self.blank is not None:
            cells &= ~self.blank[images]
        ids = (torch.tensor(images)[:, None] * grid.cells + torch.arange(grid.cells))[cells]
        if not len(ids):
            raise InputError(f"The masks of {len(given)} images hold nothing but void, so that there is nothing to "
                             "begin with. Correct them by data.mask_values or data.ignore_index, or give data.masks: "
                             "null and let people label the first images too.")
        return ids

    def initial(self, query: QueryConfig, seed: int) -> Tensor:
        """D_L at the start, int64: what was labelled before, where anything was, else all patches of a few random
        images (0: of all images) of those it began with.

        Raises `InputError` where one of these is gone.
        """
        if self.given is not None:
            return self.given
        images, _ = self._drawn(query, seed)
        self.check_there([self.stores.train.names[i] for i in images.tolist()], f"seed {seed} begins with it")
        return self._patches(images)

    def after_initial(self, query: QueryConfig, seed: int) -> Tensor:
        """What stands in for initial patches that nobody can label, int64: those of the images drawn next."""
        return self._patches(self._drawn(query, seed)[1])

    def _drawn(self, query: QueryConfig, seed: int) -> tuple[Tensor, Tensor]:
        """Images that a run begins with, and the others of those that there were, in the order of drawing."""
        first = self.stores.dataset.first or len(self.stores.train.names)
        images = torch.randperm(first, generator=generator(seed, 0, "initial"))
        n = query.n_initial_images or first
        return images[:n], images[n:]

    def _patches(self, images: Tensor) -> Tensor:
        """All that may be asked for."""
        cells = self.data.tiling().cells
        ids = (images[:, None] * cells + torch.arange(cells)).flatten()
        return ids if self.blank is None else ids[~self.blank.view(-1)[ids]]

    @property
    def _n_patches(self) -> int:
        return len(self.stores.train.names) * self.data.tiling().cells

    def check_there(self, names: list[str], why: str) -> None:
        """Files that nobody asked for may go; the others are what the run rests on: `InputError`."""
        gone = [name for name in names if name in self.stores.dataset.gone]
        if gone:
            raise InputError(f"The image {gone[0]} is gone, and {why}. Restore its file, and its mask's, to go on, or "
                             "start a new run.")

    def check_budget(self, config: Config) -> None:
        """Raise `InputError` for a run that asks for more patches than there are to be asked for.

        `feasible.check_feasible` has counted those of all files before they were read.
        """
        query = config.query
        if self.blank is None:
            if self.given is not None and len(self.given) + query.rounds * query.n_query > self._n_patches:
                raise InputError(
                    f"The run asks for {query.rounds} rounds of {query.n_query}, and {len(self.given)} of the pool's "
                    f"{self._n_patches} patches are labelled already. Lower query.rounds or query.n_query, or use a "
                    "finer data.grid.")
            return
        if query.labels_of is not None:  # `beginning.bought_before` looks at each of its patches
            return
        askable = int((~self.blank).sum())
        for seed in config.seeds:
            first = len(self.initial(query, seed))
            wanted = first + query.rounds * query.n_query
            if not first:
                raise InputError(f"Seed {seed} would begin with images that fill none of their patches. Use another "
                                 "seed, or more query.n_initial_images.")
            if wanted > askable:
                raise InputError(
                    f"Seed {seed} asks for {first} initial patches and {query.rounds} rounds of {query.n_query}, "
                    f"{wanted} in all, but only {askable} of the pool's {self.blank.numel()} patches can be asked for: "
                    "the others lie beside their images, or their images are gone. Lower query.rounds, query.n_query "
                    "or query.n_initial_images, or give data.image_size the shape of the images.")
