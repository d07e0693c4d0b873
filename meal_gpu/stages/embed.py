"""The manifold embedding Φ (paper, sections 3.2 and 3.5): UMAP of patch features, fitted and looked up or placed."""

import contextlib
import functools
import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import UmapConfig
from ..files import write_atomic


def _no_place(features: Tensor) -> Tensor:
    raise RuntimeError("this embedding came from the cache, or of fewer than 3 vectors: it cannot place others")


@dataclass
class Embedding:
    """Φ: fitted on some feature vectors, and able to place others."""

    points: Tensor
    """float32 ``[n, n_components]``: where the fitted vectors lie, on their device."""
    place: Callable[[Tensor], Tensor] = _no_place
    """Vectors float32 ``[m, C]`` that the fit did not see (a finetuned backbone moves them) → points ``[m, d]``."""
    reducer: Any = None
    """The library's fitted UMAP; None where the points came from the cache, or are too few for one."""
    ids: Tensor | None = None
    """int64 ``[n]``: the patches of the pool that it was fitted on, where these are a sample."""


def fit(features: Tensor, config: UmapConfig, seed: int, library: str = "umap-learn") -> Embedding:
    """Fit UMAP on float32 ``[n, C]`` with ``umap-learn`` (CPU) or ``cuml`` (CUDA); see `machine.backend.Backend`.

    A seed gives the same points every time; the libraries' points differ. ``n_neighbors`` is clamped to n - 1: MEAL-FT
    fits on as few vectors as there are candidates. One or two vectors have no neighbourhoods to preserve (umap-learn
    refuses them): they are put on a line, 1 apart.
    """
    if len(features) < 3:
        points = torch.zeros(len(features), config.n_components, device=features.device)
        points[:, 0] = torch.arange(len(features), device=features.device)
        return Embedding(points)
    if library == "cuml":
        from ..machine import rapids

        points, reducer = rapids.fit_umap(features, config, seed)
        return Embedding(points, functools.partial(rapids.place_umap, reducer), reducer)
    points, reducer = _fit_on_host(features.cpu(), config, seed)
    return Embedding(points.to(features.device), functools.partial(_place_on_host, reducer), reducer)


def fit_cached(features: Tensor, config: UmapConfig, seed: int, directory: Path,
               library: str = "umap-learn") -> Embedding:
    """`fit`, kept on disk under the digest of features, settings, library and seed. A cached embedding cannot place.

    The features are copied to the host for the digest, once in a run.
    """
    host = features.cpu().numpy()
    digest = hashlib.blake2b(host.tobytes(), digest_size=12)
    asked = config.model_dump(mode="json", exclude={"fit_at_most"})
    settings = {**asked, "backend": library}  # not what was asked for, but what is used
    digest.update(json.dumps([host.shape, settings, seed]).encode())
    file = directory / f"{digest.hexdigest()}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # missing or damaged: fitted again
        return Embedding(torch.from_numpy(np.load(file)).to(features.device))
    embedding = fit(features, config, seed, library)
    write_atomic(file, lambda stream: np.save(stream, embedding.points.cpu().numpy()))
    return embedding


def _fit_on_host(features: Tensor, config: UmapConfig, seed: int) -> tuple[Tensor, Any]:
    """umap-learn's points and the fitted UMAP. The seed makes it single-threaded too."""
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
        placed = reducer.fit_transform(features.numpy())
    return torch.from_numpy(np.array(placed, np.float32, order="C")), reducer


def _place_on_host(reducer: Any, features: Tensor) -> Tensor:
    """umap-learn's ``transform`` draws from its own generator; it is reset, so that what was placed before does not
    matter."""
    reducer.transform_seed = reducer.random_state
    # A copy: for the vectors it was fitted on, transform hands out the reducer's own array.
    return torch.from_numpy(np.array(reducer.transform(features.cpu().numpy()), np.float32)).to(features.device)


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
