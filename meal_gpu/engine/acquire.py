"""The query procedure of Algorithm 1: score the unlabelled pool, embed, and select what to ask for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import Config, QueryConfig
from ..errors import InputError
from ..machine.backend import Backend
from ..randomness import derive, generator
from ..records import Record
from ..sharding.shards import Sharded
from ..stages.embed import Embedding, fit
from ..stages.near import Nearness
from ..stages.pool import Pool
from ..stages.predict import How, Predictions, passes
from ..strategies.costs import clicks_of
from ..strategies.select import PoolView, Strategy
from ..timing import StageClock
from .apart import choose_apart

Seen = Predictions | Sharded
"""What a pass over the pool found, in this process or on the workers."""


class Planes(Protocol):
    """Φ per seed, such as `meal_gpu.engine.embeddings.Embeddings`."""

    def of(self, seed: int) -> Embedding: ...

    @property
    def nearness(self) -> Nearness: ...


class Asking(Protocol):
    """Who asks: an `Experiment`, or whoever looks at a pool with a network of their own."""

    @property
    def config(self) -> Config: ...

    @property
    def strategy(self) -> Strategy: ...

    @property
    def backend(self) -> Backend: ...

    @property
    def embeddings(self) -> Planes: ...

    def look(self, model: Any, needs: set[str], free: Tensor, how: How = ..., members: Sequence[Any] = ...) -> Seen: ...

    def temperature(self, pool: Pool, model: Any, seed: int, k: int) -> float: ...


@dataclass
class Query:
    """D_Q: the patches to ask for."""

    ids: Tensor
    """int64 ``[n]``, distinct and free; on the host."""
    scores: Tensor | None
    """float32 ``[n]``, on the host; None where the strategy scores nothing."""
    embedded: dict[str, Tensor] = field(default_factory=dict)
    """For ``embedding.npz``: the pool's points, and the candidates' ids and points of this round; on the device."""
    looked: Record = field(default_factory=dict)
    """For the record: ``passes`` over the pool, and the ``temperature`` where there is one."""

    def records(self, find: Callable[[int], Record]) -> list[Record]:
        """Each patch with its id, what ``find`` knows of it, and its score."""
        scores = [None] * len(self.ids) if self.scores is None else self.scores.tolist()
        return [{"id": patch, **find(patch), "score": score}
                for patch, score in zip(self.ids.tolist(), scores, strict=True)]


def acquire(experiment: Asking, pool: Pool, model: Any, seed: int, k: int, clock: StageClock,
            members: Sequence[Any] = ()) -> Query:
    """Choose ``query.n_query`` free patches with the network of round k, and the other ``members`` of its ensemble.

    Raises `InputError` where the network's output is not finite, naming the round and the image.
    """
    needs = _needs(experiment.strategy)
    with clock.stage("score"):
        how = _how(experiment, pool, model, seed, k)
        seen = experiment.look(model, needs, pool.free, how, members)
    view, embedded = _view(experiment, pool, seen, seed, k, clock)
    with clock.stage("select"):
        ids = _choose(experiment, view, pool)
        ids, scores = _read(ids, seen, pool, experiment.config.query, k)
    clock.seconds["select"] -= clock.seconds.get("embed", 0.0)  # it ran inside
    looked: Record = {"passes": passes(needs, how, members)}
    if "temperature" in needs:
        looked["temperature"] = round(how.temperature, 4)
    return Query(ids, scores, embedded, looked)


def _how(experiment: Asking, pool: Pool, model: Any, seed: int, k: int) -> How:
    query = experiment.config.query
    warm = experiment.temperature(pool, model, seed, k) if "temperature" in experiment.strategy.needs else 1.0
    return How(warm, query.dropout, query.samples, derive(seed, k, "dropout"))


def _choose(experiment: Asking, view: PoolView, pool: Pool) -> Tensor:
    query, strategy = experiment.config.query, experiment.strategy
    if not query.min_distance and not query.per_image:
        return strategy.choose(view, query.n_query)
    near = experiment.embeddings.nearness if query.min_distance else None
    return choose_apart(strategy, view, query.n_query, near, pool.labelled_ids, query.min_distance, query.per_image)


def _needs(strategy: Strategy) -> set[str]:
    """Of a pass over the pool: what is embedded are features."""
    return {*strategy.needs, "features"} if "embedding" in strategy.needs else set(strategy.needs)


def _view(experiment: Asking, pool: Pool, seen: Seen, seed: int, k: int,
          clock: StageClock) -> tuple[PoolView, dict[str, Tensor]]:
    """What the strategy may look at, and a place where its embeddings are remembered."""
    config, needs = experiment.config, experiment.strategy.needs
    ids, draw = torch.arange(pool.n_patches, device=pool.device), generator(seed, k, "select")
    embedded: dict[str, Tensor] = {}

    def remember(candidates: Tensor, points: Tensor) -> Tensor:
        embedded[f"round_{k}_candidates"], embedded[f"round_{k}_points"] = candidates, points
        return points

    def place(candidates: Tensor) -> Tensor:
        with clock.stage("embed"):
            phi = experiment.embeddings.of(seed)
            embedded["points"] = phi.points
            if phi.ids is not None:
                embedded["point_ids"] = phi.ids
            elif config.model.freeze_backbone:  # the pool is closed and its vectors are constants: look them up
                return remember(candidates, phi.points[candidates])
            _check_finite(seen, pool, k)
            return remember(candidates, phi.place(seen.rows("features", candidates)))

    def fit_alone(candidates: Tensor) -> Tensor:
        _check_finite(seen, pool, k)
        with clock.stage("embed"):
            vectors = seen.rows("features", candidates)
            alone = fit(vectors, config.umap, derive(seed, k, "umap") % 2**32, experiment.backend.umap)
            return remember(candidates, alone.points)

    def of(name: str, ids: Tensor | None) -> Tensor:
        return seen.whole(name) if ids is None else seen.rows(name, ids)

    def clicks() -> Tensor:
        return clicks_of(pool.labels)[pool.labelled_ids.argsort()]

    view = PoolView(
        image=ids // pool.grid.cells, cell=ids % pool.grid.cells,
        free=pool.free, n_free=pool.n_free, labelled=pool.labelled.view(-1), n_labelled=len(pool.labelled_ids),
        query=config.query,
        score=seen.score, features=seen.features, probabilities=seen.probabilities, best=seen.best,
        uniforms=lambda n: torch.rand(n, generator=draw, dtype=torch.float64).to(pool.device),
        place=place if "embedding" in needs else None,
        fit=fit_alone if "features" in needs else None,
        seed=derive(seed, k, "kmeans") % 2**31, kmeans=experiment.backend.kmeans, of=of,
        clicks=clicks if len(pool.labels) == len(pool.labelled_ids) else None, round=k, rounds=config.query.rounds,
    )
    return view, embedded


def _check_finite(seen: Seen, pool: Pool, k: int) -> None:
    """Before anything is embedded: the libraries take no NaN. They wait for the device anyway."""
    _raise_bad(int(seen.bad(pool.device)), pool, k)


def _read(ids: Tensor, seen: Seen, pool: Pool, query: QueryConfig, k: int) -> tuple[Tensor, Tensor | None]:
    """The one transfer of a query: ids and scores ``[n]`` on the host, checked there. Nothing before waits.

    Unless the strategy embeds, that is: UMAP waits in its library.
    """
    wanted, name, free = query.n_query, query.strategy, pool.free
    if ids.shape != (wanted,):
        raise ValueError(f"strategy '{name}' must return {wanted} patch ids, and returned {list(ids.shape)}")
    inside = (ids >= 0) & (ids < len(free))
    ids = torch.where(inside, ids, -1)  # so that nothing is looked up outside
    scores = torch.zeros(wanted, device=ids.device) if seen.score is None else seen.rows("score", ids)
    may = (inside & free[ids]).double()
    # float64 holds ids and float32 scores exactly.
    bad = seen.bad(ids.device).double().view(1)
    *read, found = torch.cat([ids.double(), scores.double(), may, bad]).tolist()
    _raise_bad(int(found), pool, k)
    asked = list(map(int, read[:wanted]))
    if len(set(asked)) != wanted or not all(read[2 * wanted :]):
        raise ValueError(f"strategy '{name}' must return {wanted} distinct free patch ids, and returned {asked}")
    return torch.tensor(asked), None if seen.score is None else torch.tensor(read[wanted : 2 * wanted])


def _raise_bad(patch: int, pool: Pool, k: int) -> None:
    if patch >= 0:
        image = pool.names[pool.grid.split(patch)[0]]
        raise InputError(f"Round {k}: the network's output for image {image} is not finite: training diverged. "
                         "Lower train.lr, or use model.precision: float32; the rounds before are kept.")
