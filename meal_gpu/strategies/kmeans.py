"""k-means of points, as MEAL's representative step takes it: its seeding alone, or all of Lloyd's algorithm."""

import torch
from torch import Tensor

from .greedy import spread


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
    return spread([points], n, uniforms)


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


SEEDS = 2048
STEPS = 6
"""Of `lloyd`: what moves later moves little."""


def lloyd(points: Tensor, k: int, draw: torch.Generator) -> Tensor:
    """Lloyd's k-means on the host: the cluster of each row, int64 ``[m]``.

    For hundreds of clusters: seeded by distances among `SEEDS` drawn rows, since among all it would take longer than
    the rest. In the points' own precision; products of blocks that stay in a processor's cache.
    """
    drawn = torch.randperm(len(points), generator=draw)[: max(SEEDS, 4 * k)]
    centres = points[drawn[spread([points[drawn]], k, torch.rand(k, generator=draw, dtype=torch.float64))]]
    cluster = torch.full((len(points),), -1, dtype=torch.int64)
    ones = torch.ones(len(points), dtype=points.dtype)
    for _ in range(STEPS):
        lengths = centres.square().sum(1) / 2
        found = torch.cat([torch.addmm(lengths, part, centres.T, alpha=-1).argmin(1) for part in points.split(2048)])
        if torch.equal(found, cluster):
            break
        cluster = found
        sizes = torch.zeros(k, dtype=points.dtype).index_add_(0, cluster, ones)
        sums = torch.zeros_like(centres).index_add_(0, cluster, points)
        centres = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp_min(1), centres)
    return cluster


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
