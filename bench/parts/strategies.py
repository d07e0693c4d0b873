"""``meal-gpu bench strategies``: the pass that serves all strategies beside that of MEAL, and what each takes.

Choosing is timed on numbers that stand in for a pool of any size; they are drawn, but in heaps, as features are.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from meal_gpu.config import Config, QueryConfig
from meal_gpu.planning.roofline import Work
from meal_gpu.stages.members import DISAGREEMENTS
from meal_gpu.stages.predict import BEYOND, How, predict
from meal_gpu.strategies.select import STRATEGIES
from meal_gpu.strategies.view import PoolView, Strategy

from ..baselines.rivals import Rival
from ..result import Result, Stage
from ..subjects.ground import Ground, scores_of
from ..timing.measure import Effort
from . import round
from .stages import Case

CITYSCAPES = 47_600
"""Patches of its training split in a grid of 4 × 4."""
CLASSES, CHANNELS, INPUTS, CELLS, LABELLED = 19, 320, 256, 16, 476
MEMBERS = 3
AT_MOST = 1.3
"""What the pass for all strategies may take of MEAL's."""


def run(config: Config, effort: Effort, patches: int = CITYSCAPES, images: int = 0,
        tell: Callable[[str], None] = lambda doing: None, done: Callable[[Stage], None] = lambda stage: None) -> Result:
    """Measure both passes on the pool of a config, or on some of its ``images``, and every strategy on ``patches``.

    Raises as `round.run` does.
    """
    return round.run(config, effort, part="strategies", make=lambda ground: [*_passes(ground), *_choices(patches)],
                     images=images, tell=tell, done=done)


def single() -> frozenset[str]:
    """What all strategies need that make do with one pass."""
    return frozenset().union(*(one.needs for one in STRATEGIES.values() if not one.needs & BEYOND.keys()))


def _passes(ground: Ground) -> list[Case]:
    patches = ground.n * ground.experiment.grid.cells
    backend = ground.experiment.backend

    def look(needs: frozenset[str], how: How) -> Callable[[], object]:
        return lambda: predict(ground.model, ground.features, needs, "entropy", backend, how=how)

    meal = scores_of(ground, ground.features)
    needs = single() - {"features"}  # a frozen backbone's are constants, known before the pass
    every = look(needs if ground.frozen else needs | {"features"}, How())

    def error() -> float:
        found = predict(ground.model, ground.features, needs, "entropy", backend)
        return float((found.whole("score") - meal).abs().max())

    plain = look(frozenset({"score"}), How())
    found = [Case("pass of meal", patches, "patches", plain, Work()),
             Case("pass for all", patches, "patches", every, Work(),
                  rivals=[Rival("meal's", plain, every, error, 1e-6, "scores apart", patches)],
                  note=f"{len(needs)} fields; at most {AT_MOST} times meal's is asked for")]
    for where in ("last", "decoder", "all"):
        sampled = look(frozenset({"bald"}), How(dropout=where, samples=5))
        found.append(Case(f"bald, {where}", patches, "patches", sampled, Work(), note="5 samples"))
    seed = ground.config.seeds[0]
    others = [ground.experiment.new_model(seed, 0, member) for member in range(1, MEMBERS)]
    found.append(Case(f"ensemble of {MEMBERS}", patches, "patches", lambda: predict(
        ground.model, ground.features, DISAGREEMENTS, "entropy", backend, members=others), Work(),
        note="without the trainings"))
    mirrored = look(frozenset({"score", "mirrored", "flip_js"}), How())
    return [*found, Case("mirrored", patches, "patches", mirrored, Work(), note="a second pass, from the pixels")]


def _choices(patches: int) -> list[Case]:
    pool = StandIn(patches)
    return [Case(f"{name}, {patches:,}", patches, "patches", functools.partial(pool.choose, strategy), Work())
            for name, strategy in STRATEGIES.items()]


class StandIn:
    """A pool of drawn numbers; what is large is drawn when a strategy needs it, and one at a time is kept."""

    def __init__(self, patches: int) -> None:
        self.n, self.draw = patches, torch.Generator().manual_seed(0)
        heaps = torch.rand(300, CHANNELS, generator=self.draw)
        self.features = (heaps[torch.randint(300, (patches,), generator=self.draw)]
                         + 0.3 * torch.rand(patches, CHANNELS, generator=self.draw))
        self.points = torch.randn(patches, 2, generator=self.draw)
        self.score = torch.rand(patches, generator=self.draw)
        labelled = min(LABELLED, patches // 4)
        self.labelled = torch.zeros(patches, dtype=torch.bool)
        self.labelled[torch.randperm(patches, generator=self.draw)[:labelled]] = True
        self.clicks = 50 * torch.rand(labelled, generator=self.draw)
        self.held: dict[str, Tensor] = {}

    def field(self, name: str) -> Tensor:
        if name == "features":
            return self.features
        if name not in self.held:
            wide = {"histogram": CLASSES, "class_entropy": CLASSES, "residual": CLASSES, "probabilities": CLASSES,
                    "inputs": INPUTS, "gradient": CLASSES * INPUTS}
            self.held = {key: values for key, values in self.held.items() if key != "gradient"}
            shape = (self.n, wide[name]) if name in wide else (self.n,)
            self.held[name] = torch.rand(shape, generator=self.draw)
        return self.held[name]

    def choose(self, strategy: Strategy, n: int = 32) -> Tensor:
        ids, labelled = torch.arange(self.n), int(self.labelled.sum())
        view = PoolView(
            image=ids // CELLS, cell=ids % CELLS, free=~self.labelled, n_free=self.n - labelled,
            labelled=self.labelled, n_labelled=labelled, score=self.score, features=self.features,
            query=QueryConfig(n_query=n, n_informative=max(n, min(200, self.n // 2))), round=3, rounds=8,
            uniforms=lambda k: torch.rand(k, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
            place=lambda some: self.points[some], fit=lambda some: self.points[some], clicks=lambda: self.clicks,
            of=lambda name, some: self.field(name) if some is None else self.field(name)[some])
        return strategy.choose(view, n)
