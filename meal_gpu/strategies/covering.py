"""Strategies whose query is to speak for the whole pool: `greedy.cover` with other kernels, weights and candidates."""

import torch
from torch import Tensor

from .greedy import cosine, cover, rbf, unit
from .view import PoolView, Strategy

CANDIDATES = 2000
"""Of how many patches MaxHerding and UHerding choose; all of the pool is what they are to speak for."""


def suggestive(view: PoolView, n: int) -> Tensor:
    """Suggestive annotation (Yang et al., 2017): of the N_I most uncertain, those most similar to the whole pool.

    With the uncertainty of one network, where the paper trains four.
    """
    return cover(unit(view.whole("features")), view.most_uncertain(view.query.n_informative), n, cosine)


def maxherding(view: PoolView, n: int) -> Tensor:
    """MaxHerding (Bae et al., 2024): greatest coverage by a Gaussian kernel of width 1 on features of length 1."""
    drawn = view.free_ids[torch.argsort(view.uniforms(view.n_free), stable=True)[: max(n, CANDIDATES)]]
    return cover(unit(view.whole("features")), drawn.sort().values, n, rbf(1.0), start=view.labelled_ids)


def uherding(view: PoolView, n: int) -> Tensor:
    """UHerding (Bae et al., 2025): coverage weighted by uncertainty, of the most uncertain.

    The kernel's width is the lower decile of the distances between labelled patches and their nearest labelled one (the
    paper takes the least, which near-duplicate frames make 0); 1 with less than two.
    """
    assert view.score is not None
    vectors = unit(view.whole("features"))
    return cover(vectors, view.most_uncertain(max(n, CANDIDATES)), n, rbf(_width(vectors[view.labelled_ids])),
                 weight=view.score.clamp_min(0), start=view.labelled_ids)


def _width(labelled: Tensor) -> Tensor | float:
    """A tensor, so that nothing waits."""
    if len(labelled) < 2:
        return 1.0
    nearest = torch.cdist(labelled, labelled).fill_diagonal_(torch.inf).min(1).values
    width = nearest.quantile(0.1)
    return torch.where(width > 1e-3, width, 1.0)


COVERING: dict[str, Strategy] = {
    "maxherding": Strategy(maxherding, frozenset({"features"})),
    "uherding": Strategy(uherding, frozenset({"score", "features"})),
    "suggestive": Strategy(suggestive, frozenset({"score", "features"})),
}
