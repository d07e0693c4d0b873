"""Φ of Step 0: the pool's plane, fitted on the vectors of the pretrained backbone, once per seed."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from ..config import Config
from ..data.datasets import cache_dir
from ..machine.backend import Backend
from ..randomness import derive
from ..sharding.shards import Sharded
from ..stages.embed import Embedding, fit, fit_cached, sample
from ..stages.near import NEAR, NearDuplicates, Nearness
from ..stages.predict import Predictions
from ..timing import Progress

_log = logging.getLogger("meal_gpu")


class Embeddings:
    """One embedding per seed, fitted when it is first asked for.

    Parameters
    ----------
    n_patches
        Of the pool.
    look
        A pass over the pool by the pretrained network, for its ``features``; called once.
    """

    def __init__(self, config: Config, backend: Backend, n_patches: int, look: Callable[[], Predictions | Sharded],
                 progress: Progress) -> None:
        self.config, self.backend, self.n_patches, self.progress = config, backend, n_patches, progress
        self.fitted: dict[int, Embedding] = {}
        """By seed."""
        self.near: NearDuplicates | None = None
        """How many patches look like another; known once vectors are there."""
        self._look = look

    def of(self, seed: int) -> Embedding:
        """Φ of a seed, fitted on all patches; on ``umap.fit_at_most`` drawn ones where the pool has more."""
        if seed not in self.fitted:
            self.progress("embed", 0, 1)
            self.fitted[seed] = self._fit(seed)
            self.progress("embed", 1, 1)
        return self.fitted[seed]

    def _fit(self, seed: int) -> Embedding:
        settings, most = (self.config.umap, derive(seed, 0, "umap") % 2**32), self.config.umap.fit_at_most
        ids = sample(self.n_patches, most, seed, self.backend.device)
        if ids is not None:
            vectors = self._seen.rows("features", ids)
            self._count(Nearness.of(vectors))
            return replace(fit(vectors, *settings, self.backend.umap), ids=ids)
        if self.config.model.freeze_backbone:  # only looked up, so its points are all that is needed
            cache = cache_dir(self.config.data) / "embeddings"
            return fit_cached(self.vectors, *settings, cache, self.backend.umap)
        return fit(self.vectors, *settings, self.backend.umap)

    @cached_property
    def vectors(self) -> Tensor:
        """Of all patches under the pretrained backbone, float32 ``[n_patches, C]``."""
        held = self._seen.features
        assert held is not None
        vectors = held() if callable(held) else held
        self._count(Nearness.of(vectors))
        return vectors

    @cached_property
    def nearness(self) -> Nearness:
        """Distances between all patches of the pool."""
        return Nearness.of(self.vectors)

    def _count(self, near: Nearness) -> None:
        if self.near is None:
            self.near = near.count(self.config.query.min_distance or NEAR)
            _log.info("%s", self.near.words(self.n_patches))

    @cached_property
    def _seen(self) -> Predictions | Sharded:
        return self._look()
