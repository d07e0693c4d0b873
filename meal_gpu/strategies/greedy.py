"""The two greedy loops under most strategies: seeding by squared distances (D²), and facility location.

k-means++ (MEAL, MEAL-FT) and core-set are `spread` with other arguments; suggestive annotation, MaxHerding and UHerding
are `cover`. Nothing here waits for the device.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Rows ``[a, d]`` and ``[b, d]`` → how much each of the first speaks for each of the second: ``[a, b]``, at least 0."""
BLOCK = 2**24
"""Similarities that are computed at once."""
GAINS = 2**20
"""Similarities whose gains are summed at once: so many stay in a processor's cache from one operation to the next."""
PLAIN = 16
"""Up to so many dimensions differences are written out, and squared; beyond, that takes memory and time."""
LARGE = 2**25
"""Numbers in a matrix that `spread` copies in float64: a quarter of a gigabyte."""
AT_ONCE = 32
"""Rows whose gains are summed anew together, where few have to be."""
KEPT = 2**27
"""Similarities that `cover` keeps, in float32: half a gigabyte."""


def spread(factors: Sequence[Tensor], n: int, uniforms: Tensor | None = None, weight: Tensor | None = None,
           centres: Sequence[Tensor] | None = None, first: Tensor | None = None) -> Tensor:
    """n distinct rows far from each other: each by its squared distance to what was picked before (Arthur &
    Vassilvitskii, 2007; Sener & Savarese, 2018).

    Parameters
    ----------
    factors
        One matrix float ``[m, d]``, m >= n: points. Two, ``[m, a]`` and ``[m, b]``: points that are outer products of
        their rows, which are never made. Distances are taken in float64; of a single matrix of more than `LARGE`
        numbers in its own precision, since a copy of twice the size may not fit.
    uniforms
        float64 ``[n]`` in [0, 1): rows are drawn with probability ~ weight · D², which is all the randomness there is.
        Without it the row with the largest is taken, the first of equal ones.
    weight
        ``[m]``, at least 0; 1 by default.
    centres
        Factors of rows that count as picked already, ``[k, …]``. Without any (or k = 0) the first pick goes by weight
        alone.
    first
        int64 ``[1]``: the row that is picked first, whatever its weight.

    Returns
    -------
    int64 ``[n]``, in the order of picking. A row that lies on a picked one has D² = 0 and is not drawn; when all that
    are left do, they are drawn by weight, and when that is 0 as well, uniformly (or by the lowest index).
    """
    alone = len(factors) == 1
    factors = [factor if alone and factor.numel() > LARGE else factor.double() for factor in factors]
    norms = None if alone else _norms(factors)
    m, device = len(factors[0]), factors[0].device
    if n > m:
        raise ValueError(f"cannot pick {n} of {m} points")
    open_ = torch.ones(m, dtype=torch.float64, device=device)
    weights = open_.clone() if weight is None else weight.double()
    if centres is None or not len(centres[0]):
        nearest = torch.full((m,), torch.inf, dtype=torch.float64, device=device)
    else:
        nearest = _to_nearest(factors, [c.to(f.dtype) for c, f in zip(centres, factors, strict=True)])
    picked = torch.empty(n, dtype=torch.int64, device=device)
    for i in range(n):
        mass = torch.where(torch.isinf(nearest), 1.0, nearest) * weights * open_
        for fallback in (weights * open_, open_):
            mass = torch.where(mass.sum() > 0, mass, fallback)
        index = mass.argmax().view(1) if uniforms is None else draw(mass, uniforms[i])
        index = first if i == 0 and first is not None else index
        picked[i : i + 1] = index
        open_[index] = 0.0
        one = [factor[index] for factor in factors]
        squares = _apart(factors[0], one[0]) if norms is None else _squares(factors, norms, one)[:, 0]
        nearest = torch.minimum(nearest, squares)
    return picked


def draw(mass: Tensor, uniform: Tensor) -> Tensor:
    """An index int64 ``[1]``, with probability ~ mass float64 ``[m]``, by a number in [0, 1)."""
    # On a GPU a vector is summed in blocks whose order depends on which is first; a row among others is not.
    sums = mass.expand(2, -1).cumsum(1)[0] if mass.is_cuda else mass.cumsum(0)
    index = torch.searchsorted(sums, (uniform * sums[-1]).view(1), right=True)
    # u < 1, yet u * total can round up to the total: take the last row with any mass then.
    return torch.minimum(index, (sums < sums[-1]).sum().view(1))


def _apart(rows: Tensor, one: Tensor) -> Tensor:
    """Squared distances float64 ``[m]`` to a row ``[1, d]``, as sums of squared differences: 0 of equal rows."""
    if rows.shape[1] <= PLAIN:
        return ((rows - one) ** 2).sum(1)
    return torch.cdist(rows, one, compute_mode="donot_use_mm_for_euclid_dist")[:, 0].double().square()


def _norms(factors: Sequence[Tensor]) -> Tensor:
    """Squared lengths ``[m]`` of rows, or of their outer products."""
    return torch.stack([torch.einsum("ij,ij->i", factor, factor) for factor in factors]).prod(0)


def _squares(factors: Sequence[Tensor], norms: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Squared distances ``[m, k]`` of rows to others."""
    both = torch.stack([factor @ other.T for factor, other in zip(factors, others, strict=True)]).prod(0)
    squares = norms[:, None] + _norms(others) - 2 * both
    # Of equal rows the digits that are left are no distance.
    return torch.where(squares < 1e-12 * (norms[:, None] + _norms(others)), 0.0, squares)


def _to_nearest(factors: Sequence[Tensor], centres: Sequence[Tensor]) -> Tensor:
    """Squared distance of each row to the nearest of some centres, in blocks."""
    norms = _norms(factors)
    nearest = torch.full_like(norms, torch.inf)
    step = max(1, BLOCK // len(norms))
    for first in range(0, len(centres[0]), step):
        part = [centre[first : first + step] for centre in centres]
        nearest = torch.minimum(nearest, _squares(factors, norms, part).min(1).values)
    return nearest


def cover(vectors: Tensor, candidates: Tensor, n: int, kernel: Kernel, weight: Tensor | None = None,
          start: Tensor | None = None) -> Tensor:
    """n of some candidates that together speak for all rows: facility location, greedily.

    Maximises ``F(S) = sum_j weight_j · max_{i in S} k(x_i, x_j)`` row by row, which is within 1 - 1/e of the best
    (Nemhauser et al., 1978).

    Parameters
    ----------
    vectors
        float32 ``[m, d]``: those that are to be spoken for.
    candidates
        int64 ``[c]``, c >= n: which of them may be picked.
    weight
        ``[m]``, at least 0; 1 by default.
    start
        int64 ``[k]``: rows that speak already, such as labelled ones.

    Returns
    -------
    int64 ``[n]`` of ``candidates``, in the order of picking; of equal gains the first.
    """
    if n > len(candidates):
        raise ValueError(f"cannot pick {n} of {len(candidates)} candidates")
    weights = torch.ones(len(vectors), device=vectors.device) if weight is None else weight.float()
    covered = torch.zeros(len(vectors), device=vectors.device)
    step = max(1, BLOCK // len(vectors))
    for part in start.split(step) if start is not None and len(start) else ():
        covered = torch.maximum(covered, kernel(vectors[part], vectors).max(0).values)
    parts, kept = candidates.split(step), None
    if len(candidates) * len(vectors) <= KEPT:  # else each pick computes them again
        kept = torch.empty(len(candidates), len(vectors), device=vectors.device)
        for part, rows in zip(parts, kept.split(step), strict=True):
            rows.copy_(kernel(vectors[part], vectors))
        if vectors.device.type == "cpu":
            return candidates[_lazily(kept, covered, weights, n)]
    closed = torch.zeros(len(candidates), dtype=torch.bool, device=vectors.device)
    picked = torch.empty(n, dtype=torch.int64, device=vectors.device)
    for i in range(n):
        similar = (kernel(vectors[part], vectors) for part in parts) if kept is None else iter([kept])
        gains = torch.cat([_gains(some, covered, weights) for some in similar])
        best = gains.masked_fill(closed, -1).argmax().view(1)
        chosen = candidates[best]
        picked[i : i + 1] = chosen
        closed[best] = True
        covered = torch.maximum(covered, kernel(vectors[chosen], vectors)[0])
    return picked


def _gains(similar: Tensor, covered: Tensor, weights: Tensor) -> Tensor:
    """What each row of ``similar [k, m]`` would add to what is ``covered [m]``."""
    rows = max(1, GAINS // len(covered))
    return torch.cat([(some - covered).clamp_min_(0) @ weights for some in similar.split(rows)])


def _lazily(similar: Tensor, covered: Tensor, weights: Tensor, n: int) -> Tensor:
    """The rows that `cover` picks, on the host: gains only shrink, so that of most rows the one of before says enough
    (Minoux, 1978)."""
    bounds = _gains(similar, covered, weights)
    closed, fresh = torch.zeros_like(bounds, dtype=torch.bool), torch.ones_like(bounds, dtype=torch.bool)
    picked = torch.empty(n, dtype=torch.int64)
    for i in range(n):
        while True:
            known = bounds.masked_fill(closed | ~fresh, -1)
            best = known.max()
            # Sums are rounded: whoever comes close to the best is looked at again.
            ahead = (~fresh & ~closed & (bounds >= best - 1e-5 * best.abs())).nonzero().view(-1)
            if not len(ahead):
                break
            some = ahead[bounds[ahead].argsort(descending=True, stable=True)[:AT_ONCE]]
            bounds[some], fresh[some] = _gains(similar[some], covered, weights), True
        index = known.argmax()
        picked[i], closed[index] = index, True
        covered = torch.maximum(covered, similar[index])
        fresh = torch.zeros_like(fresh)
    return picked


# --- kernels ----------------------------------------------------------------------------------------------------------


def unit(vectors: Tensor) -> Tensor:
    """Rows of length 1; of zeros, zeros."""
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Of rows of length 1; what points the other way does not speak for it."""
    return (one @ other.T).clamp_min(0)


def rbf(width: Tensor | float) -> Kernel:
    """exp(-d² / width²) of rows of length 1."""
    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return (one @ other.T).clamp_max_(1).sub_(1).mul_(2 / width**2).exp_()

    return kernel


def top_hat(radius: Tensor | float) -> Kernel:
    """1 within a radius, 0 beyond, of rows of length 1."""
    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return (2 - 2 * one @ other.T <= radius**2).to(one.dtype)

    return kernel
