"""What the steps of a training are taken on: maps of frames, windows on them, and what is known of their pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.frames import sent
from ..network.features import Features
from ..network.interface import Network
from .augment import Augmentation
from .mixing import Mixing
from .recipe import MovingMean
from .teacher import Teacher


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
    """So many of them, the first, have been labelled; the others' labels are the teacher's."""


class Lessons:
    """The lessons of a training on patches int64 ``[n]`` and their labels uint8 ``[n, patch_height, patch_width]``."""

    def __init__(self, features: Features, ids: Tensor, labels: Tensor, augmentation: Augmentation | None = None,
                 teacher: Teacher | None = None, mixing: Mixing | None = None,
                 host_ids: Tensor | None = None) -> None:
        self.features, self.ids, self.labels = features, ids, labels
        self.augmentation, self.teacher, self.mixing = augmentation, teacher, mixing
        self.host_ids = ids.cpu() if host_ids is None else host_ids

    @classmethod
    def of(cls, model: Network, features: Features, ids: Tensor, host_ids: Tensor, labels: Tensor, config: TrainConfig,
           order: torch.Generator, mean: MovingMean) -> "Lessons":
        """As the config has it. What is drawn for them depends on where ``order`` began, and changes nothing of it."""
        augmentation = Augmentation(features, ids, labels, config, order) if config.changes_images else None
        teacher = Teacher(features, host_ids, config, order, mean) if config.pseudo_labels else None
        mixing = None
        if config.classmix:
            mixing = Mixing(config.classmix, model.classes, features.frames.grid, order, ids.device)
        return cls(features, ids, labels, augmentation, teacher, mixing, host_ids)

    def read(self, model: Network, batches: Sequence[Tensor]) -> Iterator[Lesson]:
        """Of each batch, int64 positions on the host; each is made when it is asked for."""
        cells = self.features.frames.grid.cells
        patches = [self.host_ids[batch] for batch in batches]
        rest = [self.teacher.chosen(ids) for ids in patches] if self.teacher else None
        if rest is not None:
            patches = [torch.cat(pair) for pair in zip(patches, rest, strict=True)]
        asked = self._asked(model, batches, rest)
        if self.augmentation is None:
            # The teacher comes before the network's own maps: it borrows the network's weights.
            maps = self.features.read(model, [ids // cells for ids in patches])
            for batch, (ids, labels), (low, high) in zip(batches, asked, maps, strict=True):
                yield Lesson(low, high, ids % cells, labels, len(batch))
            return
        changed, places = self.augmentation.drawn(patches)
        sizes = [len(batch) for batch in batches]
        partners = self.mixing.drawn(sizes, [len(ids) - n for ids, n in zip(patches, sizes, strict=True)]
                                     ) if self.mixing else []
        pixels = self.features.frames.read([ids // cells for ids in patches])
        for step, ((ids, own), changes, whole) in enumerate(zip(asked, changed, pixels, strict=True)):
            labels = self.augmentation.labels_of(ids, changes, own)
            pictures = self.augmentation.pictures(whole, changes)
            if self.mixing:
                pictures, labels = self.mixing(pictures, labels, places[step], partners[step])
            with self.features.backend.autocast():
                low, high = model.features(pictures)
            yield Lesson(low, high, changes.cells, labels, sizes[step])

    def _asked(self, model: Network, batches: Sequence[Tensor],
               rest: Sequence[Tensor] | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The patches of each batch and their labels, on the device: those that are labelled, then the teacher's."""
        on_device = sent(batches, self.ids.device)
        if self.teacher is None or rest is None:
            for batch in on_device:
                yield self.ids[batch], self.labels[batch]
            return
        for batch, (ids, labels) in zip(on_device, self.teacher.read(model, rest), strict=True):
            yield torch.cat([self.ids[batch], ids]), torch.cat([self.labels[batch], labels])
