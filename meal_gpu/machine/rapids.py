"""cuML: UMAP and k-means in device memory. The one file that imports it; called by `stages.embed` and `strategies`.

Vectors go in through ``__cuda_array_interface__``, results come back through DLPack: nothing is copied on the way, and
the host sees neither. Inside, cuML waits for the device, and keeps UMAP's neighbour graph on the host; that is its own.
"""

from typing import Any

import torch
from torch import Tensor

from ..config import UmapConfig
from ..errors import first_line

EXTRA = "pip install 'meal-gpu[cuda]'"
MISSING_METRICS = frozenset({"braycurtis"})
"""What umap-learn measures by and cuML does not."""


def trouble() -> str | None:
    """Why cuML cannot be used on the current CUDA device; None if it can, for a tiny embedding has succeeded there."""
    try:
        vectors = torch.linspace(0, 9, 400, device="cuda").sin().view(100, 4)
        points, _ = fit_umap(vectors, UmapConfig(n_neighbors=5), 0)
        return None if bool(points.isfinite().all()) else "a first embedding with cuML is not finite"
    except ImportError as error:
        return f"cuML cannot be imported ({first_line(error)}): {EXTRA}"
    except Exception as error:  # whatever the driver, CuPy and cuML raise: the reason is what matters
        return f"a first embedding with cuML failed: {first_line(error)}"


def fit_umap(features: Tensor, config: UmapConfig, seed: int) -> tuple[Tensor, Any]:
    """Points float32 ``[n, n_components]`` of vectors float32 ``[n, C]`` (CUDA, n >= 3), and what `place_umap` needs.

    The seed makes cuML repeat itself, and also keeps it right on fewer than about 90 vectors. The neighbours are
    searched by brute force at every size: with a seed that is cuML's own choice too, also above 50,000 vectors, where
    without one it would take the faster search that does not repeat itself. It is asked for so that it stays.
    """
    from cuml.manifold import UMAP

    reducer = UMAP(
        n_neighbors=min(config.n_neighbors, len(features) - 1), n_components=config.n_components,
        min_dist=config.min_dist, metric=config.metric, random_state=seed, build_algo="brute_force_knn",
        init="spectral" if len(features) >= fewest_for_spectral(config.n_components) else "random", output_type="cupy",
    )
    with torch.cuda.device(features.device):
        return torch.from_dlpack(reducer.fit_transform(_ready(features))), reducer


def fewest_for_spectral(n_components: int) -> int:
    """Vectors from which on cuVS's spectral start can be asked for.

    It looks for k = d + 1 eigenvectors (the first is left out) in a Krylov space of ``min(n - k, max(2 k + 1, 20))``
    dimensions, which must be more than k for its restarts; only n > k is checked there.
    """
    return 2 * n_components + 4


def place_umap(reducer: Any, features: Tensor) -> Tensor:
    """Points of vectors float32 ``[m, C]`` (CUDA) in a fitted embedding."""
    with torch.cuda.device(features.device):
        return torch.from_dlpack(reducer.transform(_ready(features)))


def kmeans_centroids(points: Tensor, n: int, seed: int) -> Tensor:
    """n centroids float64 ``[n, d]`` of points ``[m, d]`` (CUDA, m >= n): Lloyd's k-means from one k-means++ start."""
    from cuml.cluster import KMeans

    means = KMeans(n_clusters=n, random_state=seed, n_init=1, init="k-means++", output_type="cupy")
    with torch.cuda.device(points.device):
        means.fit(_ready(points.double()))
        return torch.from_dlpack(means.cluster_centers_)


def _ready(x: Tensor) -> Tensor:
    """x, contiguous and complete: cuML reads it on a stream of its own, and allocates beside PyTorch.

    So this waits for PyTorch's stream, and gives back the memory that PyTorch keeps without using it.
    """
    x = x.detach().contiguous()
    torch.cuda.current_stream(x.device).synchronize()
    torch.cuda.empty_cache()
    return x
