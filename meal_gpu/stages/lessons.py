"""What the steps of a training are taken on: maps of frames, windows on them, and what is known of their pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

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
        self.features, self.labels = features, labels
        self.augmentation, self.teacher, self.mixing = augmentation, teacher, mixing
        self.host_ids = ids.cpu() if host_ids is None else host_ids

    @classmethod
    def of(cls, model: Network, features: Features, ids: Tensor, labels: Tensor, config: TrainConfig,
           order: torch.Generator, mean: MovingMean) -> "Lessons":
        """As the config has it. What is drawn for them depends on where ``order`` began, and changes nothing of it."""
        augmentation = Augmentation(features, ids, labels, config, order) if config.changes_images else None
        teacher = Teacher(features, ids.cpu(), config, order, mean) if config.pseudo_labels else None
        mixing = None
        if config.classmix:
            mixing = Mixing(config.classmix, model.classes, features.frames.grid, order, ids.device)
        return cls(features, ids, labels, augmentation, teacher, mixing)

    def read(self, model: Network, batches: Sequence[Tensor]) -> Iterator[Lesson]:
        """Of each batch, int64 positions on the host; each is made when it is asked for."""
        cells, device = self.features.frames.grid.cells, self.labels.device
        patches = [self.host_ids[batch] for batch in batches]
        taught: Iterator[Tensor] = repeat(self.labels[:0], len(batches))
        if self.teacher:
            rest = [self.teacher.chosen(ids) for ids in patches]
            patches = [torch.cat(pair) for pair in zip(patches, rest, strict=True)]
            taught = self.teacher.read(model, rest)
        frames = [ids // cells for ids in patches]
        given = zip(sent(batches, device), sent(patches, device), strict=True)
        if self.augmentation is None:
            # The teacher comes before the network's own maps: it borrows the network's weights.
            for (batch, ids), more, (low, high) in zip(given, taught, self.features.read(model, frames), strict=True):
                yield Lesson(low, high, ids % cells, torch.cat([self.labels[batch], more]), len(batch))
            return
        changed, pixels = self.augmentation.drawn(patches), self.features.frames.read(frames)
        sizes = [len(batch) for batch in batches]
        partners = self.mixing.drawn(sizes, [len(ids) - n for ids, n in zip(patches, sizes, strict=True)]
                                     ) if self.mixing else []
        steps = zip(given, taught, changed, pixels, strict=True)
        for step, ((batch, ids), more, changes, whole) in enumerate(steps):
            labels = self.augmentation.labels_of(ids, changes, torch.cat([self.labels[batch], more]))
            pictures = self.augmentation.pictures(whole, changes)
            if self.mixing:
                pictures, labels = self.mixing(pictures, labels, changes.cells, partners[step])
            with self.features.backend.autocast():
                low, high = model.features(pictures)
            yield Lesson(low, high, changes.cells, labels, len(batch))
