"""Strategies of the literature, each a few lines over the two greedy loops: functions of a `PoolView`, as in `select`.

None needs a second pass over the pool. docs/strategies.md has sources, formulas and costs.
"""

import torch
from torch import Tensor

from .greedy import cosine, cover, rbf, spread, unit
from .kmeans import seed_kmeans, snap_kmeans
from .view import PoolView, Strategy

CANDIDATES = 2000
"""Of how many patches MaxHerding and UHerding choose; all of the pool is what they are to speak for."""


def random_spread(view: PoolView, n: int) -> Tensor:
    """Free patches at random, one of every image before a second of any."""
    ids = view.free_ids[torch.argsort(view.uniforms(view.n_free), stable=True)]
    return ids[torch.argsort(turn(view.image[ids]), stable=True)[:n]]


def coreset(view: PoolView, n: int) -> Tensor:
    """k-centre greedy (Sener & Savarese, 2018): the patch farthest from all that is labelled or chosen."""
    ids, vectors = view.free_ids, _features(view)
    return ids[spread([vectors[ids]], n, None if view.n_labelled else view.uniforms(n),
                      centres=[vectors[view.labelled_ids]])]


def kmeans(view: PoolView, n: int) -> Tensor:
    """Lloyd's k-means of the free patches' features; the patch nearest to each centre."""
    ids = view.free_ids
    return ids[snap_kmeans(_features(view)[ids], n, view.seed, view.kmeans)]


def meal_weighted(view: PoolView, n: int) -> Tensor:
    """MEAL without N_I: of all free patches, drawn by uncertainty times squared distance on the plane of the pool."""
    assert view.place is not None
    assert view.score is not None
    ids = view.free_ids
    return ids[spread([view.place(ids)], n, view.uniforms(n).to(ids.device), weight=view.score[ids])]


def meal_repel(view: PoolView, n: int) -> Tensor:
    """MEAL whose seeding counts labelled patches as picked: what is covered is not bought again."""
    assert view.place is not None
    candidates = view.most_uncertain(view.query.n_informative)
    points = view.place(torch.cat([candidates, view.labelled_ids]))
    return candidates[spread([points[: len(candidates)]], n, view.uniforms(n).to(points.device),
                             centres=[points[len(candidates) :]])]


def meal_features(view: PoolView, n: int) -> Tensor:
    """MEAL without UMAP: k-means++ seeding in the space of the features themselves."""
    candidates = view.most_uncertain(view.query.n_informative)
    return candidates[seed_kmeans(_features(view)[candidates], n, view.uniforms(n).to(candidates.device))]


def suggestive(view: PoolView, n: int) -> Tensor:
    """Suggestive annotation (Yang et al., 2017): of the N_I most uncertain, those most similar to the whole pool.

    With the uncertainty of one network, where the paper trains four.
    """
    return cover(unit(_features(view)), view.most_uncertain(view.query.n_informative), n, cosine)


def maxherding(view: PoolView, n: int) -> Tensor:
    """MaxHerding (Bae et al., 2024): greatest coverage by a Gaussian kernel of width 1 on features of length 1."""
    drawn = view.free_ids[torch.argsort(view.uniforms(view.n_free), stable=True)[: max(n, CANDIDATES)]]
    return cover(unit(_features(view)), drawn.sort().values, n, rbf(1.0), start=view.labelled_ids)


def uherding(view: PoolView, n: int) -> Tensor:
    """UHerding (Bae et al., 2025): coverage weighted by uncertainty, of the most uncertain.

    The kernel's width is the lower decile of the distances between labelled patches and their nearest labelled one (the
    paper takes the least, which near-duplicate frames make 0); 1 with less than two.
    """
    assert view.score is not None
    vectors = unit(_features(view))
    return cover(vectors, view.most_uncertain(max(n, CANDIDATES)), n, rbf(_width(vectors[view.labelled_ids])),
                 weight=view.score.clamp_min(0), start=view.labelled_ids)


def typiclust(view: PoolView, n: int) -> Tensor:
    """TypiClust (Hacohen et al., 2022): the most typical patch of each of the largest clusters without labels.

    Typical: the inverse of the mean distance to its 20 nearest in the cluster.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    vectors = _features(view).double().cpu()
    k = min(view.n_labelled + n, 500, len(vectors))
    with threadpool_limits(1, user_api="openmp"):
        cluster = torch.from_numpy(KMeans(k, random_state=view.seed, n_init=1).fit(vectors.numpy()).labels_).long()
    free, labelled = view.free.cpu(), view.labelled.cpu()
    size = torch.bincount(cluster, minlength=k)
    bought = torch.bincount(cluster[labelled], minlength=k)
    picked: list[int] = []
    while len(picked) < n:
        # Least bought first, then largest; clusters of five and fewer only when no other has a free patch.
        has = torch.zeros(k, dtype=torch.bool).index_fill(0, cluster[free], True)
        order = sorted(has.nonzero().view(-1).tolist(), key=lambda c: (size[c] <= 5, bought[c], -size[c], c))
        members = (cluster == order[0]).nonzero().view(-1)
        own = members[free[members]]
        apart = torch.cdist(vectors[own], vectors[members])
        near = apart.topk(min(21, len(members)), largest=False).values[:, 1:]  # the first is itself
        mean = near.mean(1) if near.shape[1] else torch.zeros(len(own), dtype=torch.float64)
        one = int(own[mean.argmin()])
        picked.append(one)
        free[one] = False
        bought[order[0]] += 1
    return torch.tensor(picked, device=view.free.device)


def turn(groups: Tensor) -> Tensor:
    """How many of its group stand before each, int64 ``[m]``."""
    by_group = torch.argsort(groups, stable=True)
    sorted_ = groups[by_group]
    first = torch.searchsorted(sorted_, sorted_)
    return torch.empty_like(groups).index_copy_(0, by_group, torch.arange(len(groups), device=groups.device) - first)


def _features(view: PoolView) -> Tensor:
    assert view.features is not None, "declare the need of 'features' in STRATEGIES"
    return view.features


def _width(labelled: Tensor) -> Tensor | float:
    """A tensor, so that nothing waits."""
    if len(labelled) < 2:
        return 1.0
    nearest = torch.cdist(labelled, labelled).fill_diagonal_(torch.inf).min(1).values
    width = nearest.quantile(0.1)
    return torch.where(width > 1e-3, width, 1.0)


LITERATURE: dict[str, Strategy] = {
    "random_spread": Strategy(random_spread),
    "coreset": Strategy(coreset, frozenset({"features"})),
    "kmeans": Strategy(kmeans, frozenset({"features"})),
    "typiclust": Strategy(typiclust, frozenset({"features"})),
    "maxherding": Strategy(maxherding, frozenset({"features"})),
    "uherding": Strategy(uherding, frozenset({"score", "features"})),
    "suggestive": Strategy(suggestive, frozenset({"score", "features"})),
    "meal_weighted": Strategy(meal_weighted, frozenset({"score", "embedding"})),
    "meal_repel": Strategy(meal_repel, frozenset({"score", "embedding"})),
    "meal_features": Strategy(meal_features, frozenset({"score", "features"})),
}
