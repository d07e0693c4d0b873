"""One look at a pool by a network of somebody's: scores, features and mean probabilities per patch."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..grid import Grid, Size
from ..machine.backend import Backend
from ..network.features import Features, Means, mean_matrices
from ..network.model import DeepLabV3Plus
from ..network.reading import in_eval
from ..stages.predict import BASE, PLAIN, How, PatchMaps, Predictions, base_of, patch_maps, predict
from ..stages.statistics import STATISTICS, measure, tiles_on
from ..timing import Progress
from .images import Images
from .network import Observed, Seen


@dataclass
class Reading:
    """How the outputs of a network that is not ours are read."""

    grid: Grid
    score: str
    align_corners: bool
    """Of the bilinear interpolation that brings its outputs to the images' size."""
    probabilities: bool
    """Whether outputs are probabilities, and not logits."""
    means: dict[tuple[Size, torch.device], Means] = field(default_factory=dict)
    """By size of map: matrices that interpolate and average over patches."""

    def logits(self, seen: Seen) -> Tensor:
        """Of probabilities their logarithms, at full resolution: it is these that interpolation is meant for."""
        if not self.probabilities:
            return seen.logits
        size, p = (self.grid.height, self.grid.width), seen.logits.float()
        if p.shape[2:] != size:
            p = F.interpolate(p, size, mode="bilinear", align_corners=self.align_corners)
        return p.clamp_min(torch.finfo(torch.float32).tiny).log()

    def per_patch(self, seen: Seen, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """What is wanted of a batch, rows in the order of patch ids."""
        logits, base = self.logits(seen), [name for name in BASE if name in wanted]
        maps = logits if seen.maps is None else seen.maps  # looked at where features are wanted alone, and then there
        yield from zip(base, base_of(logits, maps, self._matrices(logits), self._matrices(maps), self.grid, base,
                                     self.score, None, self.align_corners), strict=True)
        names = [name for name in STATISTICS if name in wanted]
        if names:
            tiles = tiles_on(self.grid, (logits.shape[2], logits.shape[3]), logits.device, self.align_corners)
            yield from measure(names, logits, None, tiles).items()

    def _matrices(self, maps: Tensor) -> Means:
        """That interpolate maps ``[B, C, h, w]`` to the image and average them per patch."""
        key = (maps.shape[2], maps.shape[3]), maps.device
        if key not in self.means:
            self.means[key] = mean_matrices(self.grid, key[0], maps.device, self.align_corners)
        return self.means[key]


def gather(batches: Iterable[Seen], reading: Reading, wanted: Collection[str], n_images: int,
           progress: Progress) -> Predictions:
    """Fill `Predictions` batch by batch: no more is kept of an image than the rows of its patches."""
    held: dict[str, Tensor] = {}
    done = 0
    for seen in batches:
        for name, values in reading.per_patch(seen, wanted):
            if name not in held:
                held[name] = values.new_empty(n_images * reading.grid.cells, *values.shape[1:])
            held[name][done * reading.grid.cells :][: len(values)] = values
        done += len(seen.logits)
        progress("score", done, n_images)
    return Predictions.of(held)


class Read(ABC):
    """A pass that reads outputs by `Reading`: of a `Foreign` network, or of saved predictions."""

    def __init__(self, reading: Reading, n_images: int, batch: int, device: torch.device) -> None:
        self.reading, self.n_images, self.batch, self.device = reading, n_images, batch, device

    def in_use(self) -> AbstractContextManager[object]:
        """Around whatever reads."""
        return nullcontext()

    @abstractmethod
    def scan(self) -> Iterator[Seen]:
        """Of all images in their order, batch by batch."""

    @abstractmethod
    def read(self, index: list[int]) -> Seen:
        """Of some images."""

    def look(self, wanted: Collection[str], progress: Progress, how: How = PLAIN) -> Predictions:
        with self.in_use():
            return gather(self.scan(), self.reading, wanted, self.n_images, progress)

    def maps(self, ids: Tensor) -> PatchMaps:
        """Entropy and prediction of patches, by a second pass over their images alone."""
        grid = self.reading.grid
        by_image: dict[int, list[int]] = {}
        for place, patch in enumerate(ids.tolist()):
            by_image.setdefault(patch // grid.cells, []).append(place)
        entropy = torch.empty(len(ids), grid.patch_height, grid.patch_width, device=self.device)
        prediction = torch.empty(len(ids), grid.patch_height, grid.patch_width, dtype=torch.uint8, device=self.device)
        index = sorted(by_image)
        with self.in_use():
            for start in range(0, len(index), self.batch):
                part = index[start : start + self.batch]
                logits = self.reading.logits(self.read(part)).float()
                for row, image in enumerate(part):
                    full = F.interpolate(logits[row : row + 1], (grid.height, grid.width), mode="bilinear",
                                         align_corners=self.reading.align_corners)[0]
                    for place in by_image[image]:
                        y0, x0, y1, x1 = grid.box(int(ids[place]) % grid.cells)
                        log_p = full[:, y0:y1, x0:x1].log_softmax(0)
                        entropy[place] = -(log_p.exp() * log_p).sum(0)
                        prediction[place] = log_p.argmax(0).to(torch.uint8)
        return PatchMaps(entropy, prediction)


class Foreign(Read):
    """A pass by a network that is somebody else's."""

    def __init__(self, network: Observed, images: Images, reading: Reading, batch: int) -> None:
        super().__init__(reading, len(images), batch, network.device)
        self.network, self.images = network, images

    def in_use(self) -> AbstractContextManager[object]:
        return self.network.in_use()

    def scan(self) -> Iterator[Seen]:
        first = True
        for part in self.images.scan(self.batch, self.device):
            given = self.network.given(part)
            # Of the first a copy: should the network write into it, the images are as they were.
            yield self.network(given.clone() if first else given)
            first = False

    def read(self, index: list[int]) -> Seen:
        return self.network(self.network.given(self.images.read(index, self.device)))


class Ours:
    """A pass by a `DeepLabV3Plus`: what the engine does."""

    def __init__(self, model: DeepLabV3Plus, features: Features, score: str, backend: Backend) -> None:
        self.model, self.features, self.score, self.backend = model, features, score, backend
        self.device = backend.device

    def look(self, wanted: Collection[str], progress: Progress, how: How = PLAIN) -> Predictions:
        with in_eval(self.model):
            return predict(self.model, self.features, wanted, self.score, self.backend, progress, how=how)

    def maps(self, ids: Tensor) -> PatchMaps:
        with in_eval(self.model):
            return patch_maps(self.model, self.features, ids, self.backend)
