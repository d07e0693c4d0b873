"""Views of small pools, as strategies are given them."""

import dataclasses
from collections.abc import Callable

import torch

from meal_gpu.config import QueryConfig
from meal_gpu.randomness import generator
from meal_gpu.stages.predict import BEYOND
from meal_gpu.stages.statistics import STATISTICS
from meal_gpu.strategies.view import PoolView


def drawn(seed: int, round_: int = 0) -> Callable[[int], torch.Tensor]:
    draw = generator(seed, round_, "select")
    return lambda n: torch.rand(n, generator=draw, dtype=torch.float64)


def view(free: list[int], n: int = 24, seed: int = 0, score: torch.Tensor | None = None,
         points: torch.Tensor | None = None, **query: object) -> PoolView:
    """A pool of n patches, 4 to an image, of which some are free."""
    ids = torch.arange(n)
    mask = torch.zeros(n, dtype=torch.bool)
    mask[free] = True
    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(n, 2, generator=draw) if points is None else points
    score = torch.rand(n, generator=draw) if score is None else score
    fields = fields_of(n, seed) | {"score": score, "features": points}

    def of(name: str, ids: torch.Tensor | None) -> torch.Tensor:
        return fields[name] if ids is None else fields[name][ids]

    return PoolView(
        image=ids // 4, cell=ids % 4, free=mask, n_free=len(free), labelled=~mask, n_labelled=n - len(free),
        query=QueryConfig(**{"n_query": 3, "n_informative": 8, **query}), uniforms=drawn(seed),
        score=score, features=points, probabilities=fields["probabilities"],
        place=lambda ids: points[ids], fit=lambda ids: points[ids], of=of, round=1, rounds=4,
        clicks=lambda: torch.arange(1.0, n - len(free) + 1))


def fields_of(n: int, seed: int = 0, classes: int = 4, channels: int = 3) -> dict[str, torch.Tensor]:
    """Whatever a pass may give of n patches, at random."""
    draw = torch.Generator().manual_seed(seed + 1)
    wide = {"histogram": classes, "class_entropy": classes, "residual": classes, "inputs": channels,
            "gradient": classes * channels}
    found = {name: torch.rand(n, wide[name], generator=draw) if name in wide else torch.rand(n, generator=draw)
             for name in (*STATISTICS, *BEYOND)}
    found["histogram"] /= found["histogram"].sum(1, keepdim=True)
    return found | {"probabilities": torch.rand(n, classes, generator=draw).softmax(1)}


FREE = [i for i in range(24) if i not in (3, 4, 11, 17)]
LABELLED = [3, 4, 11, 17]


def pool(free: list[int] = FREE, seed: int = 0, width: int = 5, **changes: object) -> PoolView:
    made = view(free, seed=seed, **changes)
    return featured(made, torch.randn(24, width, generator=torch.Generator().manual_seed(seed + 7)))


def featured(one: PoolView, vectors: torch.Tensor, **fields: torch.Tensor) -> PoolView:
    """With other features, and other fields."""
    before = one.of
    given = {"features": vectors, **fields}

    def of(name: str, ids: torch.Tensor | None) -> torch.Tensor:
        if name not in given:
            return before(name, ids)
        return given[name] if ids is None else given[name][ids]

    return dataclasses.replace(one, features=vectors, of=of)
