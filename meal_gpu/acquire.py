"""The query procedure of Algorithm 1: score the unlabelled pool, embed, and select what to ask for."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .embed import fit
from .errors import InputError
from .experiment import Experiment
from .model import DeepLabV3Plus
from .pool import Pool
from .predict import Predictions, non_finite_patch, predict
from .randomness import derive, generator
from .select import PoolView
from .timing import StageClock


@dataclass
class Query:
    """D_Q: the patches to ask for."""

    ids: Tensor
    """int64 ``[n]``, distinct and free."""
    scores: Tensor | None
    """float32 ``[n]``; None where the strategy scores nothing."""
    embedded: dict[str, np.ndarray] = field(default_factory=dict)
    """Arrays for ``embedding.npz``: the pool's points, and the candidates' ids and points of this round."""


def acquire(experiment: Experiment, pool: Pool, model: DeepLabV3Plus, seed: int, k: int, clock: StageClock) -> Query:
    """Choose ``query.n_query`` free patches with the network of round k.

    Raises `InputError` where the network's output is not finite, naming the round and the image.
    """
    with clock.stage("score"):
        seen = _score(experiment, model)
    view, embedded = _view(experiment, pool, seen, seed, k, clock)
    with clock.stage("select"):
        ids = experiment.strategy.choose(view, experiment.config.query.n_query)
    clock.seconds["select"] -= clock.seconds.get("embed", 0.0)  # it ran inside
    # From here on the host reads: nothing before has waited for the device, unless the strategy embeds.
    _check_finite(seen, experiment, k)
    _check_promise(ids, view.free, experiment)
    return Query(ids, None if seen.score is None else seen.score[ids], embedded)


def _score(experiment: Experiment, model: DeepLabV3Plus) -> Predictions:
    needs = set(experiment.strategy.needs)
    if "embedding" in needs:
        needs |= {"features"}
    if experiment.config.model.freeze_backbone:
        needs -= {"features"}  # constants: experiment.pretrained_vectors
    return predict(model, experiment.features(model), needs, experiment.config.query.score, experiment.backend,
                   experiment.progress)


def _view(experiment: Experiment, pool: Pool, seen: Predictions, seed: int, k: int,
          clock: StageClock) -> tuple[PoolView, dict[str, np.ndarray]]:
    """What the strategy may look at, and a place where its embeddings are remembered."""
    config, needs = experiment.config, experiment.strategy.needs
    ids, draw = torch.arange(pool.n_patches, device=pool.device), generator(seed, k, "select")
    embedded: dict[str, np.ndarray] = {}
    vectors = seen.features
    if vectors is None and needs & {"features", "embedding"}:
        vectors = experiment.pretrained_vectors

    def remember(candidates: Tensor, points: Tensor) -> Tensor:
        embedded[f"round_{k}_candidates"], embedded[f"round_{k}_points"] = (
            candidates.cpu().numpy(), points.cpu().numpy())
        return points

    def place(candidates: Tensor) -> Tensor:
        assert vectors is not None
        _check_finite(seen, experiment, k)
        with clock.stage("embed"):
            phi = experiment.embedding(seed)
            embedded["points"] = phi.points.cpu().numpy()
            if config.model.freeze_backbone:  # the pool is closed and its vectors are constants: look them up
                return remember(candidates, phi.points[candidates])
            return remember(candidates, phi.place(vectors[candidates]))

    def fit_alone(candidates: Tensor) -> Tensor:
        assert vectors is not None
        _check_finite(seen, experiment, k)
        with clock.stage("embed"):
            alone = fit(vectors[candidates], config.umap, derive(seed, k, "umap") % 2**32, experiment.backend.umap)
            return remember(candidates, alone.points)

    view = PoolView(
        image=ids // experiment.grid.cells, cell=ids % experiment.grid.cells,
        free=pool.free, n_free=pool.n_patches - len(pool.labelled_ids), labelled=~pool.free, query=config.query,
        score=seen.score, features=vectors, probabilities=seen.probabilities,
        uniforms=lambda n: torch.rand(n, generator=draw, dtype=torch.float64).to(pool.device),
        place=place if "embedding" in needs else None,
        fit=fit_alone if "features" in needs else None,
        seed=derive(seed, k, "kmeans") % 2**31, kmeans=experiment.backend.kmeans,
    )
    return view, embedded


def _check_finite(seen: Predictions, experiment: Experiment, k: int) -> None:
    bad = non_finite_patch(seen)
    if bad is not None:
        image = experiment.stores.train.names[experiment.grid.split(bad)[0]]
        raise InputError(f"Round {k}: the network's output for image {image} is not finite: training diverged. "
                         "Lower train.lr, or use model.precision: float32; the rounds before are kept.")


def _check_promise(ids: Tensor, free: Tensor, experiment: Experiment) -> None:
    wanted = experiment.config.query.n_query
    if len(ids) != wanted or len(ids.unique()) != wanted or not bool(free[ids].all()):
        raise ValueError(f"strategy '{experiment.config.query.strategy}' must return {wanted} distinct free patch ids, "
                         f"and returned {ids.tolist()}")
