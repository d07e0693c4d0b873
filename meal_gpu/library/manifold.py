"""Φ between the calls of `meal_gpu.query`: the caller keeps it, as a run keeps its own."""

from dataclasses import replace

import torch
from torch import Tensor

from ..config import UmapConfig
from ..randomness import derive
from ..stages.embed import Embedding, fit, sample


class Manifold:
    """The plane of a pool (paper, section 3.2), fitted by the first query that needs one and used by those after it.

    Give the same object to every query of a pool. Patches whose vectors are those that it was fitted on stay where the
    fit put them; if the network that makes the vectors has been trained meanwhile, patches are placed anew.
    """

    def __init__(self) -> None:
        self.embedding: Embedding | None = None
        self.vectors: Tensor | None = None
        """float32 ``[n_patches, F]``: what it was fitted on, on their device."""

    @property
    def points(self) -> Tensor | None:
        """float32 ``[n, d]``: the pool's patches on the plane; of a pool above ``fit_at_most``, a sample's."""
        return None if self.embedding is None else self.embedding.points

    def fitted(self, vectors: Tensor, config: UmapConfig, seed: int, library: str) -> Embedding:
        """Φ; of these vectors, float32 ``[n_patches, F]``, where there is none yet."""
        if self.embedding is None:
            ids = sample(len(vectors), config.fit_at_most, seed, vectors.device)
            phi = fit(vectors if ids is None else vectors[ids], config, derive(seed, 0, "umap") % 2**32, library)
            self.embedding, self.vectors = replace(phi, ids=ids), vectors
        return self.embedding

    def knows(self, vectors: Tensor) -> bool:
        """Whether it was, or will be, fitted on just these vectors."""
        return self.vectors is None or (self.vectors.shape == vectors.shape and torch.equal(self.vectors, vectors))
