"""Strategies that spread a query out: `greedy.spread` over features, gradients, or the plane."""

from torch import Tensor

from .greedy import spread
from .kmeans import seed_kmeans
from .view import PoolView, Strategy


def coreset(view: PoolView, n: int) -> Tensor:
    """k-centre greedy (Sener & Savarese, 2018): the patch farthest from all that is labelled or chosen."""
    ids, labelled = view.free_ids, view.labelled_ids
    vectors = view.whole("features")
    return ids[spread([vectors[ids]], n, None if view.n_labelled else view.uniforms(n), centres=[vectors[labelled]])]


def badge(view: PoolView, n: int) -> Tensor:
    """BADGE (Ash et al., 2020): k-means++ seeding of the last layer's gradients for the predicted classes, from the
    longest one on. Of a patch the gradient is the mean over its pixels, exactly (at stride 4).
    """
    gradient = view.whole("gradient")
    lengths = gradient.norm(dim=1)
    first = lengths.masked_fill(~view.free, -1).argmax().view(1)
    return spread([gradient], n, view.uniforms(n).to(gradient.device), weight=view.free, first=first)


def badge_mean(view: PoolView, n: int) -> Tensor:
    """`badge` of outer products of means, which are never made: a hundredth of the memory. No gradient: what pixels
    of two sides of a boundary have cancels."""
    factors = [view.whole("residual"), view.whole("inputs")]
    lengths = factors[0].square().sum(1) * factors[1].square().sum(1)
    first = lengths.masked_fill(~view.free, -1).argmax().view(1)
    return spread(factors, n, view.uniforms(n).to(lengths.device), weight=view.free, first=first)


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
    points, known = view.place(candidates), view.place(view.labelled_ids)
    return candidates[spread([points], n, view.uniforms(n).to(points.device), centres=[known])]


def meal_features(view: PoolView, n: int) -> Tensor:
    """MEAL without UMAP: k-means++ seeding in the space of the features themselves."""
    candidates = view.most_uncertain(view.query.n_informative)
    points = view.rows("features", candidates)
    return candidates[seed_kmeans(points, n, view.uniforms(n).to(points.device))]


SPREADING: dict[str, Strategy] = {
    "coreset": Strategy(coreset, frozenset({"features"})),
    "badge": Strategy(badge, frozenset({"gradient"})),
    "badge_mean": Strategy(badge_mean, frozenset({"residual", "inputs"})),
    "badge_calibrated": Strategy(badge, frozenset({"gradient", "temperature"})),
    "meal_weighted": Strategy(meal_weighted, frozenset({"score", "embedding"})),
    "meal_repel": Strategy(meal_repel, frozenset({"score", "embedding"})),
    "meal_features": Strategy(meal_features, frozenset({"score", "features"})),
}
