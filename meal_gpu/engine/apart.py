"""Limits between the patches of one query, whatever the strategy: how alike they may look (``query.min_distance``), and
how many may be of one image (``query.per_image``).

The strategy is asked, and of what it names the patches are taken in its order that are within the limits; then it is
asked again for the rest, with everything out of its sight that no longer is. It knows nothing of limits.
"""

import logging

import torch
from torch import Tensor

from ..stages.near import Nearness
from ..strategies.select import PoolView, Strategy

_log = logging.getLogger("meal_gpu")


def choose_apart(strategy: Strategy, view: PoolView, n: int, near: Nearness | None, labelled: Tensor,
                 distance: float, per_image: int = 0) -> Tensor:
    """n free patches, int64 ``[n]``, at least ``distance`` from each other and from those ``labelled`` int64 ``[m]``,
    and at most ``per_image`` of one image (0: any number).

    Where there are not so many, the rest may be near labelled ones, and when these are used up, outside of all limits;
    both is said. Raises `ValueError` for a strategy that names what is not free.
    """
    free = view.free
    beside = torch.zeros_like(free) if near is None else near.within(labelled, distance)
    shut = torch.zeros_like(free)
    kept = torch.empty(0, dtype=torch.int64, device=free.device)
    while len(kept) < n:
        left, mine = n - len(kept), free & ~shut & ~beside
        n_mine, limited = int(mine.sum()), True
        if not n_mine and bool(beside.any()):
            _log.warning("query.min_distance: %d of the %d patches asked for are near labelled ones; there are no "
                         "others.", left, n)
            beside = torch.zeros_like(free)
            continue
        if not n_mine:
            keys = " and ".join(f"query.{key}" for key, value in (("min_distance", distance), ("per_image", per_image))
                                if value)
            _log.warning("%s: %d of the %d patches asked for are near others of this query, or of the same image; "
                         "there are no others.", keys, left, n)
            mine = free.index_fill(0, kept, False)
            n_mine, limited = int(mine.sum()), False
        wanted = min(left, n_mine)
        asked = strategy.choose(view.among(mine, n_mine), wanted)
        _check(asked, mine, wanted)
        if not limited:
            return torch.cat([kept, asked])
        close = torch.zeros(wanted, wanted) if near is None else near.pairs(asked, distance)
        taken = asked[_within_limits(close, view.image[asked], view.image[kept], per_image)]
        kept = torch.cat([kept, taken])
        shut = shut.index_fill(0, taken, True) if near is None else shut | near.within(taken, distance)
        if per_image:
            shut |= torch.bincount(view.image[kept], minlength=int(view.image[-1]) + 1)[view.image] >= per_image
    return kept


def _within_limits(close: Tensor, images: Tensor, before: Tensor, per_image: int) -> Tensor:
    """Of patches, of which ``close`` bool ``[m, m]`` says who is near whom: those that are near none taken before
    them, and of no image that is full, int64."""
    taken: list[int] = []
    counts: dict[int, int] = {}
    for image in before.tolist():
        counts[image] = counts.get(image, 0) + 1
    rows, image_of = close.cpu().bool(), images.tolist()
    for i in range(len(rows)):
        full = per_image and counts.get(image_of[i], 0) >= per_image
        if not full and not bool(rows[i, taken].any()):
            taken.append(i)
            counts[image_of[i]] = counts.get(image_of[i], 0) + 1
    return torch.tensor(taken, dtype=torch.int64, device=close.device)


def _check(asked: Tensor, free: Tensor, wanted: int) -> None:
    inside = asked.shape == (wanted,) and bool(((asked >= 0) & (asked < len(free))).all())
    if not inside or not bool(free[asked].all()) or len(asked.unique()) < wanted:
        raise ValueError(f"the strategy must return {wanted} distinct free patch ids, and returned {asked.tolist()}")
