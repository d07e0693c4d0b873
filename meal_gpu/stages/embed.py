"""The manifold embedding Φ (paper, sections 3.2 and 3.5): UMAP of patch features, fitted and looked up or placed."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import UmapConfig
from ..files import write_atomic
from ..randomness import generator


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
    from ..machine import umap_learn

    points, reducer = umap_learn.fit_umap(features.cpu(), config, seed)
    return Embedding(points.to(features.device), functools.partial(umap_learn.place_umap, reducer), reducer)


def sample(n: int, most: int, seed: int, device: torch.device) -> Tensor | None:
    """Patches that Φ is fitted on where a pool of n has more than ``most``: int64 ``[most]``, ascending; else None."""
    if n <= most:
        return None
    return torch.randperm(n, generator=generator(seed, 0, "umap sample"))[:most].sort().values.to(device)


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
