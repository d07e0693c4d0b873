"""The manifold embedding Φ (paper, sections 3.2 and 3.5): UMAP of patch features, fitted and looked up or placed."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import UmapConfig
from ..errors import InputError
from ..files import digest, read_arrays, write_atomic
from ..randomness import generator

_log = logging.getLogger("meal_gpu")


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

    The features are copied to the host for the digest, once in a run. What is kept is taken where it has the shape, the
    type and the digest that it was written with, and is finite; else it is fitted again.
    """
    host = features.cpu().numpy()
    key = hashlib.blake2b(host.tobytes(), digest_size=12)
    asked = config.model_dump(mode="json", exclude={"fit_at_most"})
    settings = {**asked, "backend": library}  # not what was asked for, but what is used
    key.update(json.dumps([host.shape, settings, seed]).encode())
    file = directory / f"{key.hexdigest()}.npz"
    held = _held(file, key.hexdigest(), (len(host), config.n_components))
    if held is not None:
        return Embedding(torch.from_numpy(held).to(features.device))
    embedding = fit(features, config, seed, library)
    points = embedding.points.cpu().numpy()
    try:
        write_atomic(file, lambda stream: np.savez(stream, points=points, check=_check(key.hexdigest(), points)))
    except IsADirectoryError:
        _log.warning("%s is a directory: the embedding is not kept. Remove it.", file)
    return embedding


def _check(key: str, points: np.ndarray) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(digest(key, points.tobytes())), np.uint8)


def _held(file: Path, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    """The points of a cached embedding, float32; None where there are none, or they are not those that were written."""
    try:
        arrays = read_arrays(file, 4 * shape[0] * shape[1] + 1024)
        points, check = arrays["points"], arrays["check"]
        if points.shape == shape and points.dtype == np.float32 and np.array_equal(check, _check(key, points)):
            if np.isfinite(points).all():
                return points.copy()  # torch wants memory that may be written
            why = f"{file} is not finite."
        else:
            why = f"{file} is not what was written there."
    except FileNotFoundError:
        return None
    except KeyError as error:
        why = f"{file} lacks {error}."
    except InputError as error:
        why = str(error)
    _log.warning("%s The embedding is fitted again.", why)
    return None
