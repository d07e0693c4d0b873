"""The strategies: which patches to ask for. Each is one function of a `PoolView` and the number wanted.

A new one is a function like these and a line in `STRATEGIES`. It returns distinct free ids; the engine checks that.

Ties are broken in favour of the lower patch id, that is by image (in the order of the store), then row, then column.
"""

import torch
from torch import Tensor

from ..errors import InputError, did_you_mean
from .kmeans import seed_kmeans, snap_kmeans
from .literature import LITERATURE
from .view import PoolView, Strategy


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


STRATEGIES: dict[str, Strategy] = {
    "random": Strategy(random),
    "entropy": Strategy(entropy, frozenset({"score"})),
    "meal": Strategy(meal, frozenset({"score", "embedding"})),
    "meal_ft": Strategy(meal_ft, frozenset({"score", "features"})),
    **LITERATURE,
}


def find_strategy(name: str, key: str = "query.strategy") -> Strategy:
    """Raises `InputError` with the nearest name where there is none of that name."""
    if name not in STRATEGIES:
        raise InputError(f"{key} is '{name}'.{did_you_mean(name, STRATEGIES)} "
                         f"Allowed: {', '.join(STRATEGIES)}.")
    return STRATEGIES[name]
