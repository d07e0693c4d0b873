"""umap-learn: UMAP on the CPU, without its minute of compiling. The one file that imports it.

umap-learn is written in numba, and keeps nearly nothing of what numba compiles: 20 seconds of processor time in every
process, and 25 more in the first one, for a library that searches neighbours (pynndescent). Three things are done:
what it compiles is kept in numba's cache; the neighbours are searched exactly, by scikit-learn, as umap-learn itself
does below 4096 vectors and cuML does here at every size; and `warm_up` imports and compiles while other work goes on.
"""

import contextlib
import functools
import inspect
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from torch import Tensor

from ..config import UmapConfig
from ..kernels.jit import Awaited, not_kept, settle_cache

_log = logging.getLogger("meal_gpu")
_once = threading.Lock()
_CHUNK_MB = 256
"""Of distances at a time: they are never all there."""


def fit_umap(features: Tensor, config: UmapConfig, seed: int) -> tuple[Tensor, Any]:
    """Points float32 ``[n, n_components]`` of vectors float32 ``[n, C]`` (host, n >= 3), and what `place_umap` needs.

    The seed makes umap-learn single-threaded too.
    """
    umap = _library_compiled()
    reducer = umap.UMAP(
        n_neighbors=min(config.n_neighbors, len(features) - 1), n_components=config.n_components,
        min_dist=config.min_dist, metric=config.metric, random_state=seed,
        # Spectral initialisation needs more vectors than components + 1.
        init="spectral" if len(features) > config.n_components + 2 else "random",
    )
    with (warnings.catch_warnings(), _seeded_eigensolver(umap.spectral.scipy.sparse.linalg, seed),
          _exact_neighbours(umap.umap_)):
        warnings.filterwarnings("ignore", "n_jobs value", UserWarning)  # one thread is what random_state means
        warnings.filterwarnings("ignore", "Spectral init", UserWarning)  # of equal vectors; random places do for them
        placed = reducer.fit_transform(features.numpy())
    return torch.from_numpy(np.array(placed, np.float32, order="C")), reducer


def _library_compiled() -> Any:
    for each in COMPILED.values():
        each.wait()
    return library()


def place_umap(reducer: Any, features: Tensor) -> Tensor:
    """Points of vectors float32 ``[m, C]`` in a fitted embedding.

    umap-learn's ``transform`` draws from its own generator; it is reset, so that what was placed before does not
    matter.
    """
    reducer.transform_seed = reducer.random_state
    # A copy: for the vectors it was fitted on, transform hands out the reducer's own array.
    return torch.from_numpy(np.array(reducer.transform(features.cpu().numpy()), np.float32)).to(features.device)


# --- importing and compiling ------------------------------------------------------------------------------------------


def library() -> Any:
    """The module ``umap``, imported so that what it compiles is kept."""
    with _once:
        settle_cache()
        with _keeping_compiled():
            import umap
        return umap


class Compiled(Awaited):
    """What a fit calls, and with ``placing`` what `place_umap` calls, as a `meal_gpu.kernels.jit.Kernel` is."""

    def __init__(self, placing: bool) -> None:
        self.placing = placing
        self._here = False

    def __call__(self) -> None:
        """Import and compile it, or load it from numba's cache.

        Nothing is run here: not every threading layer of numba lets two threads run kernels.
        """
        if self._here:
            return
        self.wait()
        for dispatcher, signature in self._dispatchers():
            if not threading.main_thread().is_alive():  # the process ends
                return
            dispatcher.compile(signature)
        self._here = True

    def missing(self) -> bool:
        """Some of it has to be compiled, and will be kept."""
        return not self._here and any(not_kept(*each) for each in self._dispatchers())

    def _dispatchers(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        modules = library()
        for module, name, signature in _signatures(self.placing):
            yield getattr(getattr(modules, module), name), signature


COMPILED = {placing: Compiled(placing) for placing in (False, True)}
"""By ``placing``."""


def _signatures(placing: bool) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Module, name and argument types of what a fit calls. What is missing here is compiled by the fit itself."""
    flag, whole, real, no = types.boolean, types.int64, types.float64, types.Omitted(False)
    places, matrix, chosen = types.int32[:, ::1], types.float32[:, ::1], types.int64[:, ::1]
    edges, numbers, vector = types.int32[::1], types.float64[::1], types.float32[::1]
    yield "distances", "euclidean", (vector, vector)  # tried on two vectors, when a metric is looked up
    yield "umap_", "smooth_knn_dist", (matrix, real, types.Omitted(64), real, types.Omitted(1.0))
    yield "umap_", "compute_membership_strengths", (places, matrix, vector, vector, flag, no)
    yield "layouts", "_nb_optimize_layout_euclidean_single_epoch", (
        matrix, matrix, edges, edges, whole, numbers, real, real, chosen, real, whole, flag, real, numbers, numbers,
        numbers, whole, flag, vector, vector, whole, whole, whole, whole, vector, vector, whole)
    if placing:
        strided = types.int64[:, :]
        for signature in ((matrix, strided, whole), (strided, chosen, whole), (matrix, chosen, whole)):
            yield "utils", "submatrix", signature
        yield "umap_", "compute_membership_strengths", (chosen, matrix, vector, vector, no, flag)


@contextlib.contextmanager
def _keeping_compiled() -> Iterator[None]:
    """While this thread imports umap-learn, its functions are told to use numba's cache.

    Those of pynndescent are left for their first call: nearly none is called, and it wants fifty compiled on its
    import.
    """
    original, me, seen = numba.njit, threading.get_ident(), set[Any]()

    def decorated(function: Callable[..., Any], signature: Any, options: dict[str, Any]) -> Any:
        if function.__module__.partition(".")[0] == "pynndescent":
            signature = None
        # numba's cache does not tell apart two functions of one source that are compiled with different options.
        options = {**options, "cache": function not in seen}
        seen.add(function)
        arguments = () if signature is None else (signature,)
        try:
            return original(*arguments, **options)(function)
        except RuntimeError:  # no place for a cache
            return original(*arguments, **{**options, "cache": False})(function)

    def njit(first: Any = None, /, *more: Any, **options: Any) -> Any:
        if threading.get_ident() != me or numba.njit is not njit:
            return original(*(() if first is None else (first,)), *more, **options)
        if inspect.isfunction(first):
            return decorated(first, None, options)
        return lambda function: decorated(function, first, options)

    numba.njit = njit
    try:
        yield
    finally:
        numba.njit = original


# --- neighbours -------------------------------------------------------------------------------------------------------


class ExactNeighbours:
    """What umap-learn asks for the neighbours of new vectors, as it asks pynndescent's index."""

    _angular_trees = False

    def __init__(self, vectors: np.ndarray, metric: str) -> None:
        self.vectors, self.metric = vectors, metric

    def query(self, vectors: np.ndarray, k: int, epsilon: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """int32 and float32 ``[m, k]``: the k nearest of the fitted vectors, nearest first, and how far they are."""
        return _nearest(vectors, self.vectors, k, self.metric)


def _nearest(vectors: np.ndarray, among: np.ndarray | None, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    import sklearn
    from sklearn.metrics import pairwise_distances_chunked

    def nearest(distances: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        found = _first(distances, k)
        return found, np.take_along_axis(distances, found, 1).astype(np.float32)

    with sklearn.config_context(working_memory=_CHUNK_MB):
        parts = list(pairwise_distances_chunked(vectors, among, reduce_func=nearest, metric=metric))
    indices, distances = (np.concatenate(part) for part in zip(*parts, strict=True))
    return indices, distances


def _first(distances: np.ndarray, k: int) -> np.ndarray:
    """int32 ``[m, k]``: per row the columns of the k smallest, in order; of equal ones the earlier first."""
    n = distances.shape[1]
    if n < 4 * k or n < 4096:
        return distances.argsort(1, kind="stable")[:, :k].astype(np.int32)
    last = np.partition(distances, k - 1, 1)[:, k - 1 : k]  # sorting all of 100,000 for 15 would take minutes
    rows = [(row <= limit).nonzero()[0] for row, limit in zip(distances, last, strict=True)]
    return np.stack([near[row[near].argsort(kind="stable")[:k]] for row, near in zip(distances, rows, strict=True)],
                    ).astype(np.int32)


def _neighbours(vectors: np.ndarray, n_neighbors: int, metric: str, *_: Any, **__: Any,
                ) -> tuple[np.ndarray, np.ndarray, ExactNeighbours | None]:
    """In place of ``umap.umap_.nearest_neighbors``. Below 4096 vectors it is given their distances, as ``precomputed``,
    and this sorts them as umap-learn does."""
    if metric == "precomputed":
        indices = _first(vectors, n_neighbors)
        distances = np.take_along_axis(vectors, indices, 1)
        indices[distances == np.inf] = -1
        return indices, distances, None
    return *_nearest(vectors, None, n_neighbors, metric), ExactNeighbours(vectors, metric)


@contextlib.contextmanager
def _exact_neighbours(module: ModuleType) -> Iterator[None]:
    original = module.nearest_neighbors
    module.nearest_neighbors = _neighbours  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.nearest_neighbors = original  # type: ignore[attr-defined]


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
