"""``meal-gpu bench train``: a step and an epoch, against research code and against the same network compiled."""

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from meal_gpu.config import Config

from ..baselines import rivals
from ..baselines.rivals import Rival
from ..result import Result, Stage
from ..subjects.ground import Ground
from ..timing.measure import Effort
from . import round
from .stages import Case, cases


def run(config: Config, effort: Effort, compile_: bool = True, images: int = 0,
        tell: Callable[[str], None] = lambda doing: None,
        done: Callable[[Stage], None] = lambda stage: None) -> Result:
    """Measure training on the pool of a config, or on ``images`` of it. Raises as `round.run` does."""
    return round.run(config, effort, images=images, part="train",
                     make=lambda ground: training_cases(ground, compile_), tell=tell, done=done)


def training_cases(ground: Ground, compile_: bool = True) -> list[Case]:
    """One step alone, then the epoch of the round with its baselines."""
    (epoch,) = (case for case in cases(ground) if case.name == "training step")
    batch = min(ground.config.train.batch_size, len(ground.ids))
    pupil = copy.deepcopy(ground.model)
    step = Case("training step", batch, "patches", lambda: ground.learn(pupil, batch),
                ground.network.training(batch, batch), rivals=[rivals.research_epoch(ground, batch, batch)],
                note="with the copy of the weights that every epoch keeps, and what every epoch sets up")
    if compile_:
        step.rivals.append(compiled_step(ground, batch))
    epoch.name, epoch.rivals = "training epoch", [rivals.research_epoch(ground, epoch.items, batch)]
    return [step, epoch]


def compiled_step(ground: Ground, batch: int) -> Rival:
    """The fairer baseline: the network as written down, compiled, in the engine's precision, images in memory."""
    ids = ground.ids[:batch].tolist()
    research = ground.alike(i // ground.experiment.grid.cells for i in ids)
    torch._dynamo.reset()
    network: nn.Module = ground.plain()
    fast = cast(nn.Module, torch.compile(network, dynamic=False))
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=ground.config.train.lr,
                                 fused=True)
    pupil, backend = copy.deepcopy(ground.model), ground.experiment.backend

    def theirs() -> None:
        with backend.autocast():
            research.epoch(fast, optimiser, ids, batch)

    def error(of: Ground) -> float:
        fresh = cast(nn.Module, torch.compile(ground.plain().eval(), dynamic=False))
        with torch.no_grad(), of.experiment.backend.autocast():
            loss = float(research.loss(fresh, ids))
        return abs(rivals.window_loss(of, ground.ids[:batch], ground.labels[:batch]) / loss - 1)

    return Rival("torch.compile", theirs, lambda: ground.learn(pupil, batch), lambda: error(ground.exact), 1e-3,
                 "relative difference of the loss in eval mode", batch, lambda: error(ground))
