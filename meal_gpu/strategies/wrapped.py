"""What composes with any strategy, as ``query`` says: other scores (noise, costs), and shares of classes.

Limits between patches of one query (``min_distance``, ``per_image``) are the engine's: see `meal_gpu.engine.apart`.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import QueryConfig
from ..errors import InputError
from ..stages.ranking import top
from .costs import NEEDS, expected_clicks
from .noise import with_noise
from .select import find_strategy
from .view import PoolView, Strategy

Choose = Callable[[PoolView, int], Tensor]
SCARCE = 0.01
"""A class whose share is predicted nowhere higher has no part of a query: it would be spent on noise."""


def asked_for(query: QueryConfig) -> Strategy:
    """The strategy that ``query`` names, with all around it. Raises `InputError` for what does not fit together."""
    return wrapped(find_strategy(query.strategy), query)


def wrapped(strategy: Strategy, query: QueryConfig) -> Strategy:
    """A strategy with what ``query`` asks for around it; itself where that is nothing."""
    choose, needs = strategy.choose, strategy.needs
    for key in ("power", "per_cost"):
        if getattr(query, key) and "score" not in needs and not strategy.ranks:
            raise InputError(f"query.{key} is {getattr(query, key):g}, and strategy '{query.strategy}' looks at no "
                             f"scores. Leave out query.{key}, or use a strategy that does, such as entropy or meal.")
    if query.per_cost:
        choose, needs = functools.partial(per_cost, choose, query.per_cost), needs | NEEDS
    if query.power:
        choose = functools.partial(noisy, choose, query.power)
    if query.class_quota:
        choose = functools.partial(by_classes, choose, query.class_quota)
        needs |= {"probabilities"}
    return strategy if choose is strategy.choose else Strategy(choose, needs, strategy.ranks)


def per_cost(choose: Choose, power: float, view: PoolView, n: int) -> Tensor:
    """Scores by expected clicks ^ power."""
    clicks = expected_clicks(view) ** power
    return choose(view.adjusted(lambda score: score / clicks), n)


def noisy(choose: Choose, power: float, view: PoolView, n: int) -> Tensor:
    """Gumbel noise on log scores (PowerBALD's; Kirsch et al., 2021), after scores have become one per patch."""
    return choose(view.adjusted(lambda score: with_noise(score, power, view)), n)


def by_classes(choose: Choose, part: float, view: PoolView, n: int) -> Tensor:
    """A part of the query evenly over classes, the rarest first; the strategy chooses, class by class, and the rest."""
    shares = view.probabilities
    assert shares is not None
    most = torch.where(view.free[:, None], shares, -1.0).amax(0).tolist()
    order = [c for c in shares.mean(0).argsort(stable=True).tolist() if most[c] >= SCARCE]
    free, n_free = view.free, view.n_free
    picked: list[Tensor] = []
    for turn, c in enumerate(order):
        share = int(part * n)
        wanted = share // len(order) + (turn < share % len(order))
        if not wanted:
            continue
        best = top(shares[:, c].contiguous(), free, n_free, max(wanted, view.query.n_informative))
        picked.append(choose(view.among(torch.zeros_like(free).index_fill(0, best, True), len(best)), wanted))
        free = free.index_fill(0, picked[-1], False)
        n_free -= wanted
    left = n - sum(len(part) for part in picked)
    if left:
        picked.append(choose(view.among(free, n_free), left))
    return torch.cat(picked)
