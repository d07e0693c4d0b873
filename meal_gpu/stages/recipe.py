"""What a training may be made of beyond the paper's Adam at one rate: its steps, their rates, and a mean of weights.

All of it is off by default. Nothing here waits for the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from ..config import TrainConfig
from ..network.interface import Network

POLY_POWER = 0.9
"""Of the schedule of that name, as DeepLab has it (Chen et al. 2017, section 4.1)."""


def optimiser_of(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam or AdamW on what is trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.Adam(trained, lr=config.lr, fused=True)


def schedule_of(optimiser: torch.optim.Optimizer, config: TrainConfig, epochs: int,
                per_epoch: int) -> lr_scheduler.LRScheduler:
    """The learning rate over ``epochs`` of so many steps; to be stepped after each step of the optimiser."""
    if config.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimiser, epochs * per_epoch)
    if config.schedule == "poly":
        return lr_scheduler.PolynomialLR(optimiser, epochs * per_epoch, POLY_POWER)
    return lr_scheduler.StepLR(optimiser, (config.lr_decay_every or epochs) * per_epoch, config.lr_decay)


class MovingMean:
    """An exponential mean of a network's trained weights over its steps, statistics of batch-norms included.

    With the weights alone a network in eval mode would normalise by statistics of other weights. In the first steps the
    mean is shorter, ``(1 + t) / (10 + t)``, so that the random start is forgotten. A decay of 0 keeps nothing: the
    network stands for itself.
    """

    def __init__(self, model: Network, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.live = [value for value in trained_state(model).values() if value.is_floating_point()] if decay else []
        self.mean = [value.detach().clone() for value in self.live]

    @torch.no_grad()
    def follow(self) -> None:
        """After a step of the optimiser."""
        self.steps += 1
        if self.live:
            torch._foreach_lerp_(self.mean, self.live, 1 - min(self.decay, (1 + self.steps) / (10 + self.steps)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the mean meanwhile, and its own weights again after it."""
        own = [value.detach().clone() for value in self.live]
        self._put(self.mean)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        if self.live:
            torch._foreach_copy_(self.live, values)


def trained_state(model: Network) -> dict[str, Tensor]:
    """What training changes, as it lies in the network: parameters and buffers, but those of a frozen backbone."""
    return {name: value for name, value in model.state_dict().items() if not model.constant(name)}
