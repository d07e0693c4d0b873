"""Keep patches that look nearly alike out of one query, whatever the strategy (``query.min_distance``).

The strategy is asked, and of what it names the patches are taken in its order that are far enough from each other;
then it is asked again for the rest, with everything near those out of its sight. It knows nothing of distances.
"""

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ..stages.near import Nearness
from ..strategies.select import PoolView, Strategy

_log = logging.getLogger("meal_gpu")


def choose_apart(strategy: Strategy, view: PoolView, n: int, near: Nearness, labelled: Tensor,
                 distance: float) -> Tensor:
    """n free patches, int64 ``[n]``, at least ``distance`` from each other and from those ``labelled`` int64 ``[m]``.

    Where there are not so many, the rest may be near labelled ones, and when these are used up, near each other; both
    is said. Raises `ValueError` for a strategy that names what is not free.
    """
    view, free = copy.copy(view), view.free
    best, beside = view.best, near.within(labelled, distance)
    shut, far = torch.zeros_like(free), True
    kept = torch.empty(0, dtype=torch.int64, device=free.device)
    while len(kept) < n:
        left = n - len(kept)
        view.free = free & ~shut & ~beside
        view.n_free = int(view.free.sum())
        if not view.n_free and bool(beside.any()):
            _log.warning("query.min_distance: %d of the %d patches asked for are near labelled ones; there are no "
                         "others.", left, n)
            beside = torch.zeros_like(free)
            continue
        if not view.n_free:
            _log.warning("query.min_distance: %d of the %d patches asked for are near others of this query; there are "
                         "no others.", left, n)
            view.free = free.index_fill(0, kept, False)
            view.n_free, far = int(view.free.sum()), False
        view.best = None if best is None else _among(best, view.free)
        wanted = min(left, view.n_free)
        asked = strategy.choose(view, wanted)
        _check(asked, view.free, wanted)
        if not far:
            return torch.cat([kept, asked])
        taken = asked[_far(near.pairs(asked, distance))]
        shut |= near.within(taken, distance)
        kept = torch.cat([kept, taken])
    return kept


def _far(close: Tensor) -> Tensor:
    """Of bool ``[m, m]``, who is near whom: each that is near none taken before it, int64."""
    taken: list[int] = []
    rows = close.cpu()
    for i in range(len(rows)):
        if not bool(rows[i, taken].any()):
            taken.append(i)
    return torch.tensor(taken, device=close.device)


def _among(best: Callable[[int], Tensor], free: Tensor) -> Callable[[int], Tensor]:
    """The workers' ranking, of patches that are ``free`` alone: they know the labelled ones only."""

    def restricted(n: int) -> Tensor:
        asked = n
        while True:
            ids = best(asked)
            found = ids[free[ids]]
            if len(found) >= n or len(ids) < asked:
                return found[:n]
            asked *= 2

    return restricted


def _check(asked: Tensor, free: Tensor, wanted: int) -> None:
    inside = asked.shape == (wanted,) and bool(((asked >= 0) & (asked < len(free))).all())
    if not inside or not bool(free[asked].all()) or len(asked.unique()) < wanted:
        raise ValueError(f"the strategy must return {wanted} distinct free patch ids, and returned {asked.tolist()}")
