"""What the engine's acquisition needs of whoever asks, here of a network that the engine did not train."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..errors import InputError
from ..grid import Grid
from ..machine.backend import Backend
from ..stages.embed import Embedding
from ..stages.near import Nearness
from ..stages.pool import Pool
from ..stages.predict import PLAIN, How, Predictions
from ..strategies.select import Strategy
from ..timing import Progress
from .labelled import Labelled, labelled_ids
from .manifold import Manifold
from .passes import Foreign, Ours
from .saved import Replayed

Looking = Foreign | Ours | Replayed


@dataclass
class Asking:
    """See `meal_gpu.engine.acquire.Asking`."""

    config: Config
    strategy: Strategy
    backend: Backend
    looking: Looking
    manifold: Manifold
    names: Sequence[str]
    report: Progress
    seen: Predictions = field(default_factory=Predictions)

    @property
    def embeddings(self) -> "Asking":
        return self

    def temperature(self, pool: Pool, model: Any, seed: int, k: int) -> float:
        raise InputError("The strategy needs a temperature, which is fitted on labelled images that the network was "
                         "not trained on, and which these are is not known here. Use another strategy, or divide the "
                         "logits yourself.")

    def look(self, model: Any, needs: set[str], free: Tensor, how: How = PLAIN,
             members: Sequence[Any] = ()) -> Predictions:
        if self.config.query.min_distance:
            needs = {*needs, "features"}
        self.seen = self.looking.look(needs, self.report, how)
        bad = int(self.seen.bad(self.looking.device))
        if bad >= 0:
            image = bad // (len(free) // len(self.names))
            raise InputError(f"The network's output for image {self.names[image]} (number {image}) is not finite: NaN "
                             "or infinite. Look at its weights, its input, or its precision.")
        if "embedding" in self.strategy.needs and self.seen.features is not None:
            # Points are looked up where vectors are those of the fit, as a frozen backbone's are.
            self.config = self.config.revised("model", freeze_backbone=self.manifold.knows(self.seen.features))
        return self.seen

    @property
    def nearness(self) -> Nearness:
        """Distances of all patches, in units of the pool's."""
        assert self.seen.features is not None
        return Nearness.of(self.seen.features)

    def of(self, seed: int) -> Embedding:
        """Φ."""
        assert self.seen.features is not None
        self.report("embed", 0, 1)
        phi = self.manifold.fitted(self.seen.features, self.config.umap, seed, self.backend.umap)
        self.report("embed", 1, 1)
        return phi


def pool_of(grid: Grid, device: torch.device, names: Sequence[str], labelled: Labelled) -> Pool:
    pool = Pool(_Tiled(grid, device), names)
    ids = labelled_ids(labelled, grid, names).to(device)
    pool.labelled.view(-1)[ids] = True
    pool.labelled_ids = ids
    return pool


@dataclass
class _Tiled:
    images_grid: Grid
    device: torch.device
