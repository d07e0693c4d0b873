"""What a strategy may know of the pool, and what a strategy is."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import QueryConfig
from ..stages.ranking import top


class Fetched:
    """A field that may be given as a function: it is called when a strategy first reads the field.

    That way a pool's workers send only what is read.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.slot = f"_{name}"

    def __get__(self, view: Any, owner: type) -> Tensor | None:
        if view is None:
            return None  # the field's default
        held = getattr(view, self.slot)
        if callable(held):
            held = held()
            setattr(view, self.slot, held)
        return held

    def __set__(self, view: Any, value: Tensor | Callable[[], Tensor] | None) -> None:
        setattr(view, self.slot, value)


@dataclass
class PoolView:
    """What a strategy may know of the pool: one entry per patch, indexed by patch id. It holds no ground truth."""

    image: Tensor
    """int64 ``[n_patches]``"""
    cell: Tensor
    """int64 ``[n_patches]``: row * cols + col"""
    free: Tensor
    """bool ``[n_patches]``: may be asked for"""
    n_free: int
    """How many may be asked for; known without waiting for the device."""
    labelled: Tensor
    """bool ``[n_patches]``: what people have labelled. A patch may be neither free nor labelled."""
    query: QueryConfig
    uniforms: Callable[[int], Tensor]
    """float64 ``[n]`` in [0, 1), the same on every device; a function of seed and round."""
    score: Fetched = Fetched()
    """float32 ``[n_patches]``, mean uncertainty per pixel; where the strategy needs ``score``."""
    features: Fetched = Fetched()
    """float32 ``[n_patches, C]``; where it needs ``features``."""
    probabilities: Fetched = Fetched()
    """float32 ``[n_patches, classes]``; where it needs ``probabilities``."""
    place: Callable[[Tensor], Tensor] | None = None
    """ids → float32 ``[n, d]`` in the embedding fitted on the whole pool; where it needs ``embedding``."""
    fit: Callable[[Tensor], Tensor] | None = None
    """ids → float32 ``[n, d]`` in an embedding fitted on these ids alone; where it needs ``features``."""
    seed: int = 0
    """In 0 ... 2^31 - 1, for libraries that draw for themselves; a function of seed and round too."""
    kmeans: str = "sklearn"
    """The library for ``query.selector: kmeans``; see `meal_gpu.machine.backend.Backend`."""
    best: Callable[[int], Tensor] | None = None
    """n → `most_uncertain`, where workers hold the scores: they send their first n, not all of them."""
    n_labelled: int = 0
    """How many are labelled."""
    of: Callable[[str, Tensor | None], Tensor] | None = None
    """A field of the pass by name, such as ``histogram`` (`meal_gpu.stages.statistics.STATISTICS`): ``of(name, None)``
    of all patches, ``of(name, ids)`` their rows alone, which is less to move where workers hold the pool."""
    clicks: Callable[[], Tensor] | None = None
    """What the labelled patches took to label, by their own masks, float32 ``[n_labelled]`` beside `labelled_ids`."""
    round: int = 0
    """Queries of this run before this one, and ``rounds``, how many there are to be."""
    rounds: int = 1
    adjust: Callable[[Tensor], Tensor] | None = None
    """What ``query`` does to scores, such as noise; it has been done to `score`, and `ranked` does it to others."""

    @property
    def free_ids(self) -> Tensor:
        """int64 ``[n_free]``, ascending. By sorting, since `nonzero` would wait for the device to count."""
        return torch.argsort((~self.free).to(torch.uint8), stable=True)[: self.n_free]

    @property
    def labelled_ids(self) -> Tensor:
        """int64 ``[n_labelled]``, ascending."""
        return torch.argsort((~self.labelled).to(torch.uint8), stable=True)[: self.n_labelled]

    def whole(self, name: str) -> Tensor:
        """A field of all patches that the strategy needs, float32 ``[n_patches, …]``."""
        assert self.of is not None, f"declare the need of '{name}' in STRATEGIES"
        return self.of(name, None)

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """A field's rows for patches ``ids``."""
        assert self.of is not None, f"declare the need of '{name}' in STRATEGIES"
        return self.of(name, ids)

    def among(self, free: Tensor, n_free: int) -> "PoolView":
        """The same pool, of which only ``n_free`` patches may be asked for: those that are ``free``, some of mine."""
        other = copy.copy(self)
        other.free, other.n_free = free, n_free
        if self.best is not None:
            other.best = functools.partial(_best_among, self.best, free)
        return other

    def adjusted(self, adjust: Callable[[Tensor], Tensor]) -> "PoolView":
        """The same pool, with every score float32 ``[n_patches]`` as ``adjust`` makes it."""
        other, before, score = copy.copy(self), self.adjust, self.score
        other.adjust = adjust if before is None else lambda one: adjust(before(one))
        if score is not None:
            other.score, other.best = adjust(score), None
        return other

    def ranked(self, score: Tensor, n: int, adjusted: Tensor | None = None) -> Tensor:
        """The n free patches of highest ``score`` float32 ``[n_patches]``, which the strategy has made, int64 ``[n]``;
        added to it is what is ``adjusted`` already, such as `score`."""
        score = score if self.adjust is None else self.adjust(score)
        return top(score if adjusted is None else score + adjusted, self.free, self.n_free, n)

    def most_uncertain(self, n: int) -> Tensor:
        """The n free patches of highest score, int64 ``[n]``, highest first (paper, Step 1); all if there are fewer."""
        if self.best is not None:
            return self.best(n)
        assert self.score is not None, "declare the need of 'score' in STRATEGIES"
        return top(self.score, self.free, self.n_free, n)


def _best_among(best: Callable[[int], Tensor], free: Tensor, n: int) -> Tensor:
    """The workers' ranking, of patches that are ``free`` alone: they know the labelled ones only."""
    asked = n
    while True:
        ids = best(asked)
        found = ids[free[ids]]
        if len(found) >= n or len(ids) < asked:
            return found[:n]
        asked *= 2


@dataclass(frozen=True)
class Strategy:
    """A function, and what it needs of a pass over the pool: ``score features probabilities embedding``, any of
    `meal_gpu.stages.statistics.STATISTICS` and `meal_gpu.stages.predict.BEYOND`, and ``temperature``."""

    choose: Callable[[PoolView, int], Tensor]
    needs: frozenset[str] = frozenset()
    ranks: bool = False
    """It takes patches by a score of its own, through `PoolView.ranked`."""

    @property
    def embeds(self) -> bool:
        """Whether it may ask for places in an embedding: of the pool's features, or of those of its candidates."""
        return not self.needs.isdisjoint({"embedding", "features"})
