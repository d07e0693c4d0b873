"""What the steps of a training are taken on: maps of frames, windows on them, and what is known of their pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.frames import sent
from ..network.features import Features, Maps
from ..network.interface import Network
from .augment import Augmentation
from .mirror import Mirrored, cells_in_mirror, pixels_in_mirror
from .mixing import Mixing
from .recipe import MovingMean
from .teacher import Teacher
from .unlabelled import Unlabelled


@dataclass(frozen=True)
class Lesson:
    """One step's."""

    low: Tensor
    high: Tensor
    """Maps ``[B, C, h, w]`` of each patch's frame."""
    cells: Tensor
    """int64 ``[B]``: where in its frame each patch lies."""
    labels: Tensor
    """uint8 ``[B, patch_height, patch_width]``, 255 where nothing is known."""
    labelled: int
    """So many of them, the first, have been labelled; the others' labels are the teacher's, or all 255."""
    mirrored: Mirrored | None = None
    """The same patches in a mirror, where a training asks for consistency."""


class Lessons:
    """The lessons of a training on patches int64 ``[n]`` and their labels uint8 ``[n, patch_height, patch_width]``."""

    def __init__(self, features: Features, ids: Tensor, labels: Tensor, augmentation: Augmentation | None = None,
                 unlabelled: Unlabelled | None = None, teacher: Teacher | None = None, mixing: Mixing | None = None,
                 consistency: float = 0.0, host_ids: Tensor | None = None) -> None:
        self.features, self.ids, self.labels = features, ids, labels
        self.augmentation, self.unlabelled, self.teacher, self.mixing = augmentation, unlabelled, teacher, mixing
        self.consistency = consistency
        self.host_ids = ids.cpu() if host_ids is None else host_ids

    @classmethod
    def of(cls, model: Network, features: Features, ids: Tensor, host_ids: Tensor, labels: Tensor, config: TrainConfig,
           order: torch.Generator, mean: MovingMean, filled: Tensor | None = None) -> "Lessons":
        """As the config has it. What is drawn for them depends on where ``order`` began, and changes nothing of it."""
        augmentation = Augmentation(features, ids, labels, config, order) if config.changes_images else None
        unlabelled = None
        if config.unlabelled:
            unlabelled = Unlabelled(config.unlabelled, host_ids, features.frames.n_images, features.frames.images_grid,
                                    order, filled)
        teacher = Teacher(features, config.pseudo_threshold, mean, filled) if config.pseudo_labels else None
        mixing = None
        if config.classmix:
            mixing = Mixing(config.classmix, model.classes, features.frames.grid, order, ids.device)
        return cls(features, ids, labels, augmentation, unlabelled, teacher, mixing, config.consistency, host_ids)

    def read(self, model: Network, batches: Sequence[Tensor]) -> Iterator[Lesson]:
        """Of each batch, int64 positions on the host; each is made when it is asked for."""
        grid = self.features.frames.grid
        patches = [self.host_ids[batch] for batch in batches]
        rest = [self.unlabelled.beside(ids) for ids in patches] if self.unlabelled else None
        if rest is not None:
            patches = [torch.cat(pair) for pair in zip(patches, rest, strict=True)]
        asked = self._asked(model, batches, rest)
        if self.augmentation is None:
            # The teacher comes before the network's own maps: it borrows the network's weights.
            frames = [ids // grid.cells for ids in patches]
            maps, others = self.features.read(model, frames), self._in_mirror(model, frames)
            for batch, (ids, labels), (low, high), other in zip(batches, asked, maps, others, strict=True):
                cells = ids % grid.cells
                mirrored = Mirrored(*other, cells_in_mirror(cells, grid), self.consistency) if other else None
                yield Lesson(low, high, cells, labels, len(batch), mirrored)
            return
        changed, places = self.augmentation.drawn(patches)
        sizes = [len(batch) for batch in batches]
        partners = self.mixing.drawn(sizes, [len(ids) - n for ids, n in zip(patches, sizes, strict=True)]
                                     ) if self.mixing else []
        pixels = self.features.frames.read([ids // grid.cells for ids in patches])
        for step, ((ids, own), changes, whole) in enumerate(zip(asked, changed, pixels, strict=True)):
            labels = self.augmentation.labels_of(ids, changes, own)
            pictures = self.augmentation.pictures(whole, changes)
            if self.mixing:
                pictures, labels = self.mixing(pictures, labels, places[step], partners[step])
            with self.features.backend.autocast():
                low, high = model.features(pictures)
                other = model.features(pixels_in_mirror(pictures, grid)) if self.consistency else None
            mirrored = Mirrored(*other, cells_in_mirror(changes.cells, grid), self.consistency) if other else None
            yield Lesson(low, high, changes.cells, labels, sizes[step], mirrored)

    def _in_mirror(self, model: Network, frames: Sequence[Tensor]) -> Iterator[Maps | None]:
        """Maps of each batch of frames in a mirror, where consistency is asked for. What is kept is of the frames as
        they are."""
        if not self.consistency:
            return iter([None] * len(frames))
        fresh = replace(self.features, cache=None, memo=None)
        return fresh.read(model, frames, lambda pixels: pixels_in_mirror(pixels, fresh.frames.grid))

    def _asked(self, model: Network, batches: Sequence[Tensor],
               rest: Sequence[Tensor] | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The patches of each batch and their labels, on the device: those that are labelled, then the others."""
        on_device = sent(batches, self.ids.device)
        if rest is None:
            for batch in on_device:
                yield self.ids[batch], self.labels[batch]
            return
        others = self.teacher.read(model, rest) if self.teacher else self._unknown(rest)
        for batch, (ids, labels) in zip(on_device, others, strict=True):
            yield torch.cat([self.ids[batch], ids]), torch.cat([self.labels[batch], labels])

    def _unknown(self, rest: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for ids in sent(rest, self.ids.device):
            yield ids, self.labels.new_full((len(ids), *self.labels.shape[1:]), 255)
