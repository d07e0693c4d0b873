"""Strategies that take a patch of each cluster."""

import torch
from torch import Tensor

from .kmeans import lloyd, snap_kmeans
from .view import PoolView, Strategy

NEIGHBOURS = 10
"""Of `spectral`'s graph."""
DENSE = 500
"""Up to so many patches all eigenvectors are computed, beyond the leading ones alone."""
AMONG = 2000
"""The most uncertain patches that `spectral` clusters: its graph is one of all pairs."""


def kmeans(view: PoolView, n: int) -> Tensor:
    """Lloyd's k-means of the free patches' features; the patch nearest to each centre."""
    ids = view.free_ids
    return ids[snap_kmeans(view.rows("features", ids), n, view.seed, view.kmeans)]


def spectral(view: PoolView, n: int) -> Tensor:
    """Spectral clustering of the most uncertain (Bodó et al., 2011): the most central patch of each of n clusters.

    Of a graph of nearest neighbours. The most uncertain first where clusters are empty, and where patches are so few
    that there is nothing to cluster.
    """
    ids = view.most_uncertain(max(n, AMONG))
    if len(ids) <= n + 1 or n == 1 or len(ids) <= NEIGHBOURS:
        return ids[:n]
    vectors = view.rows("features", ids).double().cpu()
    cluster = _spectral(vectors, n, view.seed)
    order = list(range(len(ids)))
    picked = []
    for c in range(n):
        members = (cluster == c).nonzero().view(-1)
        if len(members):
            apart = torch.cdist(vectors[members], vectors[members], compute_mode="donot_use_mm_for_euclid_dist").sum(1)
            picked.append(int(members[apart.argmin()]))
    picked += [i for i in order if i not in picked][: n - len(picked)]
    return ids[torch.tensor(sorted(picked), device=ids.device)]


def _spectral(vectors: Tensor, n: int, seed: int) -> Tensor:
    """Clusters int64 ``[m]`` by the n leading eigenvectors of the graph's normalised affinity."""
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import eigsh

    m = len(vectors)
    apart = torch.cdist(vectors, vectors).fill_diagonal_(torch.inf)
    near = apart.topk(NEIGHBOURS, largest=False).indices
    edges = torch.zeros(m, m, dtype=torch.float64).scatter_(1, near, 1.0)
    affinity = (edges + edges.T) / 2 + torch.eye(m, dtype=torch.float64)
    scale = affinity.sum(1).rsqrt()
    # Degenerate eigenvalues (a graph in pieces) leave the basis open, but not what it spans.
    graph = affinity * scale[:, None] * scale
    if m <= DENSE:
        points = torch.linalg.eigh(graph).eigenvectors[:, -n:]
    else:
        begin = torch.rand(m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        _, leading = eigsh(csr_array(graph.numpy()), k=n, which="LA", v0=begin.numpy(), ncv=min(m, 3 * n + 20))
        points = torch.from_numpy(leading).contiguous()
    points = points / points.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return lloyd(points, n, torch.Generator().manual_seed(seed))


def typiclust(view: PoolView, n: int) -> Tensor:
    """TypiClust (Hacohen et al., 2022): the most typical patch of each of the largest clusters without labels.

    Typical: the inverse of the mean distance to its 20 nearest in the cluster.
    """
    vectors = view.whole("features").float().cpu()
    k = min(view.n_labelled + n, 500, len(vectors))
    cluster = lloyd(vectors, k, torch.Generator().manual_seed(view.seed))
    free, labelled = view.free.cpu().clone(), view.labelled.cpu()
    size, bought, left = (torch.bincount(cluster[mask], minlength=k).tolist()
                          for mask in (torch.ones_like(free), labelled, free))
    picked: list[int] = []
    while len(picked) < n:
        # Least bought first, then largest; clusters of five and fewer only when no other has a free patch.
        turn = min((c for c in range(k) if left[c]), key=lambda c: (size[c] <= 5, bought[c], -size[c], c))
        members = (cluster == turn).nonzero().view(-1)
        own = members[free[members]]
        apart = torch.cdist(vectors[own], vectors[members], compute_mode="donot_use_mm_for_euclid_dist")
        near = apart.topk(min(21, len(members)), largest=False).values[:, 1:]  # the first is itself
        mean = near.double().mean(1) if near.shape[1] else torch.zeros(len(own), dtype=torch.float64)
        one = int(own[mean.argmin()])
        picked.append(one)
        free[one] = False
        bought[turn] += 1
        left[turn] -= 1
    return torch.tensor(picked, device=view.free.device)


CLUSTERS: dict[str, Strategy] = {
    "kmeans": Strategy(kmeans, frozenset({"features"})),
    "typiclust": Strategy(typiclust, frozenset({"features"})),
    "spectral": Strategy(spectral, frozenset({"score", "features"})),
}
