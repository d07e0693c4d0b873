"""The manifold embedding Φ (paper, sections 3.2 and 3.5): UMAP of patch features, fitted and looked up or placed."""

import contextlib
import functools
import hashlib
import inspect
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .config import UmapConfig
from .files import write_atomic


@dataclass
class Embedding:
    """Φ: fitted on some feature vectors, and able to place others."""

    points: Tensor
    """float32 ``[n, n_components]``: where the fitted vectors lie, on their device."""
    reducer: Any
    """The fitted UMAP; None where the points came from the cache, or are too few for one."""

    def place(self, features: Tensor) -> Tensor:
        """Place vectors float32 ``[m, C]`` that the fit did not see (a finetuned backbone moves them).

        umap-learn's ``transform`` draws from its own generator; it is reset, so that what was placed before does not
        matter.
        """
        reducer = self.reducer
        reducer.transform_seed = reducer.random_state
        # A copy: for the vectors it was fitted on, transform hands out the reducer's own array.
        return torch.from_numpy(np.array(reducer.transform(features.cpu().numpy()), np.float32)).to(features.device)


def fit(features: Tensor, config: UmapConfig, seed: int) -> Embedding:
    """Fit UMAP on float32 ``[n, C]`` with umap-learn; ``seed`` makes it deterministic (and single-threaded).

    ``n_neighbors`` is clamped to n - 1: MEAL-FT fits on as few vectors as there are candidates. One or two vectors
    have no neighbourhoods to preserve (umap-learn refuses them): they are put on a line, 1 apart.
    """
    if len(features) < 3:
        points = torch.zeros(len(features), config.n_components, device=features.device)
        points[:, 0] = torch.arange(len(features))
        return Embedding(points, None)
    import umap  # 3 to 20 seconds: paid only by the strategies that embed

    reducer = umap.UMAP(
        n_neighbors=min(config.n_neighbors, len(features) - 1), n_components=config.n_components,
        min_dist=config.min_dist, metric=config.metric, random_state=seed,
        # Spectral initialisation needs more vectors than components + 1.
        init="spectral" if len(features) > config.n_components + 2 else "random",
    )
    with warnings.catch_warnings(), _seeded_eigensolver(umap.spectral.scipy.sparse.linalg, seed):
        warnings.filterwarnings("ignore", "n_jobs value", UserWarning)  # one thread is what random_state means
        warnings.filterwarnings("ignore", "Spectral init", UserWarning)  # of equal vectors; random places do for them
        placed = reducer.fit_transform(features.cpu().numpy())
    return Embedding(torch.from_numpy(np.array(placed, np.float32, order="C")).to(features.device), reducer)


def fit_cached(features: Tensor, config: UmapConfig, seed: int, directory: Path) -> Embedding:
    """`fit`, kept on disk under the digest of features, settings and seed. A cached embedding cannot place."""
    host = features.cpu().numpy()
    digest = hashlib.blake2b(host.tobytes(), digest_size=12)
    digest.update(json.dumps([host.shape, config.model_dump(mode="json"), seed]).encode())
    file = directory / f"{digest.hexdigest()}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # missing or damaged: fitted again
        return Embedding(torch.from_numpy(np.load(file)).to(features.device), None)
    embedding = fit(features, config, seed)
    write_atomic(file, lambda stream: np.save(stream, embedding.points.cpu().numpy()))
    return embedding


@contextlib.contextmanager
def _seeded_eigensolver(linalg: Any, seed: int) -> Iterator[None]:
    """Give scipy's ``eigsh`` a seed inside umap-learn, which gives it none.

    Where vectors coincide, the Krylov space that it builds may end early, and scipy >= 1.17 goes on from fresh entropy:
    equal seeds then gave different points. Otherwise nothing is drawn, and nothing changes.
    """
    solve = linalg.eigsh
    if "rng" in inspect.signature(solve).parameters:
        linalg.eigsh = functools.partial(solve, rng=seed)
    try:
        yield
    finally:
        linalg.eigsh = solve
