"""``meal-gpu bench embed``: from feature vectors to a query: UMAP fit, placing, k-means++ seeding."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from meal_gpu.config import Config
from meal_gpu.machine import umap_learn

from ..baselines.rivals import Rival
from ..result import Result, Stage
from ..subjects.ground import Ground
from ..timing.measure import Effort
from . import round
from .stages import Case, cases

STAGES = ("vectors", "top-k", "UMAP fit", "UMAP place", "seeding")
MOST_ROWS = 2000
"""Trustworthiness takes all distances: of so many rows at most."""


def run(config: Config, effort: Effort, tell: Callable[[str], None] = lambda doing: None,
        done: Callable[[Stage], None] = lambda stage: None) -> Result:
    """Measure the stages of the embedding on the pool of a config. Raises as `round.run` does."""
    return round.run(config, effort, part="embed", make=embed_cases, tell=tell, done=done)


def embed_cases(ground: Ground) -> list[Case]:
    found = [case for case in cases(ground) if case.name in STAGES]
    for case in found:
        if case.name == "UMAP fit" and case.items == len(ground.vectors):
            case.rivals.append(unseeded(ground, case))
    return found


def unseeded(ground: Ground, case: Case) -> Rival:
    """umap-learn without a seed: on all cores, another embedding in every run, and so another query."""
    umap = umap_learn.library()
    umap = umap_learn.library()
    config, vectors = ground.config.umap, ground.vectors.cpu().numpy()

    def theirs() -> np.ndarray:
        reducer = umap.UMAP(n_neighbors=min(config.n_neighbors, len(vectors) - 1), n_components=config.n_components,
                            min_dist=config.min_dist, metric=config.metric)
        placed: np.ndarray = reducer.fit_transform(vectors)
        return placed

    def error() -> float:
        other = trustworthy(ground.vectors, torch.from_numpy(theirs()))
        return max(0.0, other - trustworthy(ground.vectors, ground.phi.points))

    # Of a few dozen points trustworthiness moves by several hundredths from seed to seed.
    return Rival("umap-learn, unseeded", theirs, case.run, error, 0.05 if len(vectors) >= 500 else 0.2,
                 "trustworthiness that ours lacks", case.items)


def trustworthy(vectors: Tensor, points: Tensor) -> float:
    """How far neighbours in the plane are neighbours among the vectors, 0 … 1, over the first rows."""
    from sklearn.manifold import trustworthiness

    few, n = slice(0, MOST_ROWS), min(len(vectors), MOST_ROWS)
    return float(trustworthiness(vectors[few].cpu().numpy(), points[few].cpu().numpy(),
                                 n_neighbors=max(1, min(15, n // 2 - 1))))
