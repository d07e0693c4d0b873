"""The strategies: which patches to ask for. Each is one function of a `PoolView` and the number wanted.

A new one is a function like these and a line in `STRATEGIES`. It returns distinct free ids; the engine checks that.

Ties are broken in favour of the lower patch id, that is by image (in the order of the store), then row, then column.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import QueryConfig
from ..errors import InputError, did_you_mean
from .ranking import top


class Fetched:
    """A field that may be given as a function: it is called when a strategy first reads the field.

    That way a pool's workers send only what is read.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.slot = f"_{name}"

    def __get__(self, view: Any, owner: type) -> Tensor | None:
        if view is None:
            return None  # the field's default
        held = getattr(view, self.slot)
        if callable(held):
            held = held()
            setattr(view, self.slot, held)
        return held

    def __set__(self, view: Any, value: Tensor | Callable[[], Tensor] | None) -> None:
        setattr(view, self.slot, value)


@dataclass
class PoolView:
    """What a strategy may know of the pool: one entry per patch, indexed by patch id. It holds no ground truth."""

    image: Tensor
    """int64 ``[n_patches]``"""
    cell: Tensor
    """int64 ``[n_patches]``: row * cols + col"""
    free: Tensor
    """bool ``[n_patches]``: may be asked for"""
    n_free: int
    """How many may be asked for; known without waiting for the device."""
    labelled: Tensor
    """bool ``[n_patches]``"""
    query: QueryConfig
    uniforms: Callable[[int], Tensor]
    """float64 ``[n]`` in [0, 1), the same on every device; a function of seed and round."""
    score: Fetched = Fetched()
    """float32 ``[n_patches]``, mean uncertainty per pixel; where the strategy needs ``score``."""
    features: Fetched = Fetched()
    """float32 ``[n_patches, C]``; where it needs ``features``."""
    probabilities: Fetched = Fetched()
    """float32 ``[n_patches, classes]``; where it needs ``probabilities``."""
    place: Callable[[Tensor], Tensor] | None = None
    """ids → float32 ``[n, d]`` in the embedding fitted on the whole pool; where it needs ``embedding``."""
    fit: Callable[[Tensor], Tensor] | None = None
    """ids → float32 ``[n, d]`` in an embedding fitted on these ids alone; where it needs ``features``."""
    seed: int = 0
    """In 0 ... 2^31 - 1, for libraries that draw for themselves; a function of seed and round too."""
    kmeans: str = "sklearn"
    """The library for ``query.selector: kmeans``; see `meal_gpu.machine.backend.Backend`."""
    best: Callable[[int], Tensor] | None = None
    """n → `most_uncertain`, where workers hold the scores: they send their first n, not all of them."""

    @property
    def free_ids(self) -> Tensor:
        """int64 ``[n_free]``, ascending. By sorting, since `nonzero` would wait for the device to count."""
        return torch.argsort((~self.free).to(torch.uint8), stable=True)[: self.n_free]

    def most_uncertain(self, n: int) -> Tensor:
        """The n free patches of highest score, int64 ``[n]``, highest first (paper, Step 1); all if there are fewer."""
        if self.best is not None:
            return self.best(n)
        assert self.score is not None, "declare the need of 'score' in STRATEGIES"
        return top(self.score, self.free, self.n_free, n)


def random(view: PoolView, n: int) -> Tensor:
    """n free patches, all equally likely."""
    return view.free_ids[torch.argsort(view.uniforms(view.n_free), stable=True)[:n]]


def entropy(view: PoolView, n: int) -> Tensor:
    """The n free patches of highest uncertainty (section 3.3)."""
    return view.most_uncertain(n)


def meal(view: PoolView, n: int) -> Tensor:
    """Algorithm 1: the N_I most uncertain patches, embedded by the Φ of the whole pool, thinned to n."""
    assert view.place is not None
    candidates = view.most_uncertain(view.query.n_informative)
    return candidates[represent(view.place(candidates), n, view)]


def meal_ft(view: PoolView, n: int) -> Tensor:
    """Section 3.5: as `meal`, with Φ fitted on the candidates alone, in every round."""
    assert view.fit is not None
    candidates = view.most_uncertain(view.query.n_informative)
    return candidates[represent(view.fit(candidates), n, view)]


def represent(points: Tensor, n: int, view: PoolView) -> Tensor:
    """n representative rows of points float32 ``[m, d]``, by the configured selector (Step 2)."""
    if view.query.selector == "kmeans":
        return snap_kmeans(points, n, view.seed, view.kmeans)
    return seed_kmeans(points, n, view.uniforms(n).to(points.device))


def seed_kmeans(points: Tensor, n: int, uniforms: Tensor) -> Tensor:
    """k-means++ seeding (Arthur & Vassilvitskii, 2007): n distinct rows, each drawn with probability ~ D².

    Parameters
    ----------
    points
        float ``[m, d]`` with m >= n; distances are taken in float64.
    uniforms
        float64 ``[n]`` in [0, 1): the only randomness, drawn by the caller, so that every device picks alike.

    Returns
    -------
    int64 ``[n]`` row indices in the order of picking. A row that lies on a picked one has D² = 0 and cannot be drawn;
    when all that are left do, they are drawn uniformly.
    """
    points = points.double()
    m = len(points)
    if n > m:
        raise ValueError(f"cannot pick {n} of {m} points")
    open_ = torch.ones(m, dtype=torch.float64, device=points.device)
    nearest = torch.full((m,), torch.inf, dtype=torch.float64, device=points.device)
    picked = torch.empty(n, dtype=torch.int64, device=points.device)
    for i in range(n):
        # Tensor conditions throughout: nothing here waits for the device.
        weight = torch.where(torch.isinf(nearest), 1.0, nearest) * open_
        weight = torch.where(weight.sum() > 0, weight, open_)
        # On a GPU a vector is summed in blocks whose order depends on which is first; a row among others is not.
        mass = weight.expand(2, -1).cumsum(1)[0] if weight.is_cuda else weight.cumsum(0)
        index = torch.searchsorted(mass, (uniforms[i] * mass[-1]).view(1), right=True)
        # u < 1, yet u * total can round up to the total: take the last row with any mass then.
        last = (mass < mass[-1]).sum().view(1)
        index = torch.minimum(index, last)
        picked[i : i + 1] = index
        open_[index] = 0.0
        nearest = torch.minimum(nearest, ((points - points[index]) ** 2).sum(1))
    return picked


def snap_kmeans(points: Tensor, n: int, seed: int, library: str = "sklearn") -> Tensor:
    """Lloyd's k-means with n clusters; each centroid is snapped to its nearest row that no other centroid took.

    The clustering reading of the paper's "cluster centroids", by ``sklearn`` on the host or ``cuml`` on CUDA. Pairs
    are taken nearest first, so that the result does not depend on the order of the centroids. Returns int64 ``[n]``.
    """
    distance = torch.cdist(_centroids(points, n, seed, library), points.double())
    # A centroid that is not a number (an empty cluster) takes what the others leave.
    distance = distance.nan_to_num(nan=torch.finfo(torch.float64).max)
    picked = torch.empty(n, dtype=torch.int64, device=points.device)
    for _ in range(n):  # tensor indices throughout: nothing here waits for the device
        nearest = distance.argmin().view(1)
        centroid, row = nearest // len(points), nearest % len(points)
        picked.index_copy_(0, centroid, row)
        distance.index_fill_(0, centroid, torch.inf).index_fill_(1, row, torch.inf)
    return picked


def _centroids(points: Tensor, n: int, seed: int, library: str) -> Tensor:
    """float64 ``[n, d]``, on the device of the points."""
    if library == "cuml":
        from ..machine import rapids

        return rapids.kmeans_centroids(points, n, seed)
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # scikit-learn stands on it

    # Of more than 256 points Lloyd's sums would be added up by whichever thread is done first.
    with threadpool_limits(1, user_api="openmp"):
        means = KMeans(n, random_state=seed, n_init=1).fit(points.double().cpu().numpy())
    return torch.from_numpy(means.cluster_centers_).to(points.device)


@dataclass(frozen=True)
class Strategy:
    """A function, and what it needs of a pass over the pool: ``score features probabilities embedding``."""

    choose: Callable[[PoolView, int], Tensor]
    needs: frozenset[str] = frozenset()

    @property
    def embeds(self) -> bool:
        """Whether it may ask for places in an embedding: of the pool's features, or of those of its candidates."""
        return not self.needs.isdisjoint({"embedding", "features"})


STRATEGIES: dict[str, Strategy] = {
    "random": Strategy(random),
    "entropy": Strategy(entropy, frozenset({"score"})),
    "meal": Strategy(meal, frozenset({"score", "embedding"})),
    "meal_ft": Strategy(meal_ft, frozenset({"score", "features"})),
}


def find_strategy(name: str) -> Strategy:
    """Raises `InputError` with the nearest name where there is none of that name."""
    if name not in STRATEGIES:
        raise InputError(f"query.strategy is '{name}'.{did_you_mean(name, STRATEGIES)} "
                         f"Allowed: {', '.join(STRATEGIES)}.")
    return STRATEGIES[name]
